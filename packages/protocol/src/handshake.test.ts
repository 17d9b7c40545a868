import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { readU16, writeU16 } from './bytes.js'
import { ERRORS, SluiceError, errorCode, type ErrorCode, type ErrorScope } from './errors.js'
import {
  PRODUCER_IDENTITY_BYTES,
  decodeAuth,
  decodeFault,
  decodeGoodbye,
  decodeHello,
  decodeHelloOk,
  encodeAuth,
  encodeFault,
  encodeGoodbye,
  encodeHello,
  encodeHelloOk,
  exact,
  faultError,
  need,
  type Hello,
  type HelloOk,
} from './handshake.js'
import { LIMITS } from './limits.js'

const PLAIN = { noNullPrototype: true } as const
const u8 = fc.nat(0xff)
const u16 = fc.nat(0xffff)
const u32 = fc.integer({ min: 0, max: 0xffff_ffff })
const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })
const shortText = fc
  .string({ unit: 'grapheme', maxLength: 40 })
  .filter((text) => Buffer.byteLength(text) <= 255)
const identity = fc.uint8Array({ minLength: PRODUCER_IDENTITY_BYTES, maxLength: PRODUCER_IDENTITY_BYTES })

const anyHello: fc.Arbitrary<Hello> = fc.record(
  {
    versionMin: u16,
    versionMax: u16,
    features: u32,
    frameBytesMax: u32,
    heartbeatMs: u32,
    producer: identity,
    acceptedNumber: u64,
    inFlightBatchesMax: u32,
    name: shortText,
  },
  PLAIN,
)
const anyHelloOk: fc.Arbitrary<HelloOk> = fc.record(
  {
    version: u16,
    features: u32,
    frameBytesMax: u32,
    heartbeatMs: u32,
    messageBytesMax: u32,
    inFlightBatchesMax: u32,
    inFlightBytesMax: u32,
    boot: u32,
    durability: u8,
    serverVersion: shortText,
  },
  PLAIN,
)

/** Decodes `bytes`, followed by `extra` further bytes, from the middle of a larger buffer. */
function inside<Value>(
  bytes: Uint8Array,
  decode: (bytes: Uint8Array, start: number, end: number) => Value,
  extra = 0,
): Value {
  const around = Buffer.concat([Buffer.alloc(3, 0xee), bytes, Buffer.alloc(extra + 3, 0xee)])
  return decode(new Uint8Array(around), 3, 3 + bytes.length + extra)
}

function malformed(message: string): Error {
  return expect.objectContaining({
    code: 'MALFORMED_FRAME',
    message: expect.stringContaining(message) as string,
  }) as Error
}

describe('HELLO', () => {
  test('any HELLO is decoded as it was encoded, even with bytes of a later version after it', () => {
    fc.assert(
      fc.property(anyHello, fc.nat(9), (hello, extra) => {
        expect(inside(encodeHello(hello), decodeHello, extra)).toStrictEqual(hello)
      }),
      { numRuns: 300 },
    )
  })

  test('the identity is a copy, as the frame is valid only during the call', () => {
    const hello = fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!
    // Bytes from a socket are in a Buffer, whose slices share its memory.
    for (const bytes of [encodeHello(hello), Buffer.from(encodeHello(hello))]) {
      const { producer } = decodeHello(bytes, 0, bytes.length)
      bytes.fill(0)
      expect(producer).toStrictEqual(hello.producer)
    }
  })

  test('a name is truncated to its limit, and never within a character', () => {
    const hello = fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!
    const name = (text: string): string => inside(encodeHello({ ...hello, name: text }), decodeHello).name
    expect(name('n'.repeat(255))).toBe('n'.repeat(255))
    expect(name('n'.repeat(256))).toBe('n'.repeat(255))
    expect(name('é'.repeat(200))).toBe('é'.repeat(127))
    expect(name('n'.repeat(100_000))).toBe('n'.repeat(255))
  })

  test('a name that is not UTF-8 stays within the limit as text', () => {
    const bytes = encodeHello({ ...fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!, name: 'x'.repeat(255) })
    bytes.fill(0xff, 45)
    const { name } = decodeHello(bytes, 0, bytes.length)
    expect(name).toBe('\u{fffd}'.repeat(255 / 3))
  })

  test('a number of 2^53 or more is refused', () => {
    const bytes = encodeHello(fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!)
    bytes.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0], 32)
    expect(decodeHello(bytes, 0, bytes.length).acceptedNumber).toBe(Number.MAX_SAFE_INTEGER)
    bytes.set([0, 0, 0, 0, 0, 0, 0x20, 0], 32)
    expect(() => decodeHello(bytes, 0, bytes.length)).toThrow(malformed('it must be below 2^53'))
  })

  test('a name that is longer than the frame is refused', () => {
    const bytes = encodeHello({ ...fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!, name: 'abc' })
    bytes[44] = 4
    expect(() => decodeHello(bytes, 0, bytes.length)).toThrow(
      malformed('HELLO is cut off: 49 bytes are needed, and 48 are available'),
    )
  })
})

describe('HELLO_OK', () => {
  test('any HELLO_OK is decoded as it was encoded, even with bytes of a later version after it', () => {
    fc.assert(
      fc.property(anyHelloOk, fc.nat(9), (ok, extra) => {
        expect(inside(encodeHelloOk(ok), decodeHelloOk, extra)).toStrictEqual(ok)
      }),
      { numRuns: 300 },
    )
  })

  test('reserved bytes are ignored, and the version of the software is truncated to 255 bytes', () => {
    const ok = fc.sample(anyHelloOk, { numRuns: 1, seed: 1 })[0]!
    const bytes = encodeHelloOk({ ...ok, serverVersion: 'v'.repeat(300) })
    for (const at of [2, 3, 33, 34]) {
      expect(bytes[at]).toBe(0)
      bytes[at] = 0xff
    }
    expect(decodeHelloOk(bytes, 0, bytes.length)).toStrictEqual({ ...ok, serverVersion: 'v'.repeat(255) })
  })
})

describe('AUTH', () => {
  test('any AUTH is decoded as it was encoded', () => {
    fc.assert(
      fc.property(
        fc.record({ mechanism: u8, identity: shortText, secret: fc.uint8Array({ maxLength: 1024 }) }, PLAIN),
        (auth) => {
          expect(inside(encodeAuth(auth), decodeAuth)).toStrictEqual(auth)
          expect(() => inside(encodeAuth(auth), decodeAuth, 1)).toThrow(malformed('AUTH has'))
        },
      ),
      { numRuns: 200 },
    )
  })

  test('the secret is a copy', () => {
    const auth = { mechanism: 0, identity: 'ann', secret: Uint8Array.of(1, 2, 3) }
    for (const bytes of [encodeAuth(auth), Buffer.from(encodeAuth(auth))]) {
      const { secret } = decodeAuth(bytes, 0, bytes.length)
      bytes.fill(0)
      expect(secret).toStrictEqual(auth.secret)
    }
  })

  test('accepts an identity and a secret at their limits, and refuses one byte more, on both sides', () => {
    const most = {
      mechanism: 0,
      identity: 'i'.repeat(255),
      secret: new Uint8Array(LIMITS.credentialBytesMax),
    }
    const bytes = encodeAuth(most)
    expect(inside(bytes, decodeAuth)).toStrictEqual(most)
    expect(() => encodeAuth({ ...most, identity: 'i'.repeat(256) })).toThrow(SluiceError)
    expect(() => encodeAuth({ ...most, secret: new Uint8Array(1025) })).toThrow(SluiceError)
    const longer = new Uint8Array(bytes.length + 1)
    longer.set(bytes)
    writeU16(longer, 2 + 255, 1025)
    expect(() => decodeAuth(longer, 0, longer.length)).toThrow(
      malformed('The secret has 1025 bytes; at most 1024'),
    )
  })

  test('the whole handshake fits the frame size before authentication', () => {
    const hello = encodeHello({ ...fc.sample(anyHello, { numRuns: 1, seed: 1 })[0]!, name: 'n'.repeat(255) })
    const auth = encodeAuth({ mechanism: 0, identity: 'i'.repeat(255), secret: new Uint8Array(1024) })
    expect(Math.max(hello.length, auth.length) + 12).toBeLessThanOrEqual(LIMITS.frameBytesUnauthenticated)
  })
})

describe('ERROR', () => {
  const scopes: readonly ErrorScope[] = ['request', 'channel', 'connection']
  const anyFault = fc.record(
    {
      code: fc.constantFrom(...(Object.keys(ERRORS) as ErrorCode[])),
      scope: fc.constantFrom(...scopes),
      retryable: fc.boolean(),
      retryAfterMs: u32,
      message: fc.string({ unit: 'grapheme', maxLength: 100 }),
    },
    PLAIN,
  )

  test('any fault is decoded as it was encoded, and becomes an error with the same content', () => {
    fc.assert(
      fc.property(anyFault, (fault) => {
        expect(inside(encodeFault(fault), decodeFault)).toStrictEqual(fault)
        expect(faultError(fault)).toMatchObject(fault)
        expect(() => inside(encodeFault(fault), decodeFault, 1)).toThrow(malformed('ERROR has'))
      }),
      { numRuns: 300 },
    )
  })

  test('every code is decoded as it was encoded', () => {
    for (const [code, { number, scope, retryable }] of Object.entries(ERRORS)) {
      const fault = { code: code as ErrorCode, scope, retryable, retryAfterMs: 0, message: code }
      const bytes = encodeFault(fault)
      expect(readU16(bytes, 0)).toBe(number)
      expect(decodeFault(bytes, 0, bytes.length)).toStrictEqual(fault)
      expect(errorCode(number)).toBe(code)
    }
    expect(Object.keys(ERRORS).length).toBeGreaterThanOrEqual(44)
  })

  test('an unknown code keeps its scope, retryable and text', () => {
    const known = {
      code: 'DISK_LOW',
      scope: 'channel',
      retryable: true,
      retryAfterMs: 7,
      message: 'later',
    } as const
    const bytes = encodeFault(known)
    writeU16(bytes, 0, 60_000)
    expect(decodeFault(bytes, 0, bytes.length)).toStrictEqual({ ...known, code: 'NOT_SUPPORTED' })
  })

  test('unknown scopes are refused, and any byte but 1 is not retryable', () => {
    const bytes = encodeFault({
      code: 'DISK_LOW',
      scope: 'request',
      retryable: true,
      retryAfterMs: 0,
      message: '',
    })
    let refused = 0
    for (let scope = 0; scope < 256; scope++) {
      bytes[2] = scope
      if (scope < 3) expect(decodeFault(bytes, 0, bytes.length).scope).toBe(scopes[scope])
      else {
        expect(() => decodeFault(bytes, 0, bytes.length)).toThrow(
          malformed(`Error scope ${scope} is unknown`),
        )
        refused++
      }
    }
    expect(refused).toBe(253)
    bytes[2] = 0
    for (const retryable of [0, 1, 2, 255]) {
      bytes[3] = retryable
      expect(decodeFault(bytes, 0, bytes.length).retryable).toBe(retryable === 1)
    }
  })

  test('a text is truncated to its limit', () => {
    const fault = { code: 'DISK_LOW', scope: 'request', retryable: true, retryAfterMs: 0 } as const
    for (const [text, bytes] of [
      ['x'.repeat(4096), 4096],
      ['x'.repeat(4097), 4096],
      ['é'.repeat(100_000), 4096],
      ['€'.repeat(100_000), 4095],
    ] as const) {
      const read = inside(encodeFault({ ...fault, message: text }), decodeFault).message
      expect(Buffer.byteLength(read)).toBe(bytes)
      expect(text.startsWith(read)).toBe(true)
    }
  })
})

describe('GOODBYE', () => {
  test('any GOODBYE is decoded as it was encoded, with its text truncated to the limit', () => {
    fc.assert(
      fc.property(u8, fc.string({ unit: 'grapheme', maxLength: 100 }), (reason, text) => {
        expect(inside(encodeGoodbye(reason, text), decodeGoodbye)).toStrictEqual({ reason, text })
        expect(() => inside(encodeGoodbye(reason, text), decodeGoodbye, 1)).toThrow(malformed('GOODBYE has'))
      }),
      { numRuns: 100 },
    )
    expect(inside(encodeGoodbye(1, 'x'.repeat(5000)), decodeGoodbye).text).toBe('x'.repeat(4096))
  })
})

test('need and exact name the frame, the bytes that arrived and the bytes expected', () => {
  expect(() => need('HELLO', 4, 4)).not.toThrow()
  expect(() => need('HELLO', 3, 4)).toThrow(
    malformed('HELLO is cut off: 4 bytes are needed, and 3 are available.'),
  )
  expect(() => exact('AUTH', 4, 4)).not.toThrow()
  expect(() => exact('AUTH', 3, 4)).toThrow(malformed('AUTH has 3 bytes; it must have 4.'))
  expect(() => exact('AUTH', 5, 4)).toThrow(malformed('AUTH has 5 bytes; it must have 4.'))
})
