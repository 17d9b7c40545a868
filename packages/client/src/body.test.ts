import { CONTENT_TYPE, recordBytes, SluiceError, writeRecordHead } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BODY_DEPTH_MAX, checkText, decodeBody, packBody } from './body.js'
import { recordBody, recordsCopy } from './records.js'

const roundTrip = (value: unknown): unknown => {
  const bytes = Uint8Array.from(packBody(value))
  return decodeBody(CONTENT_TYPE.msgpack, bytes, 0, bytes.length)
}

const refusal = (value: unknown): string => {
  try {
    packBody(value)
  } catch (error) {
    expect(error).toBeInstanceOf(SluiceError)
    expect((error as SluiceError).code).toBe('INVALID_BODY')
    return (error as SluiceError).message.split(';')[0]!
  }
  throw new Error('it was accepted')
}

describe('plain data', () => {
  it('is decoded as it was published', () => {
    const values = [
      null,
      true,
      0,
      1.5,
      NaN,
      Infinity,
      2 ** 53,
      -(2 ** 40),
      5n,
      -(2n ** 63n),
      2n ** 64n - 1n,
      '',
      'ü🙂',
      [],
      {},
      new Date(0),
      new Date(1_700_000_000_123),
      new Date(-5),
      Uint8Array.of(1, 2),
      { a: [{ b: { c: [null, 'x'.repeat(70_000)] } }], constructor: 'Ford', toJSON: 'text', 7: 'seven' },
      JSON.parse('{"__proto__": {"polluted": true}}'),
    ]
    for (const value of values) expect(roundTrip(value)).toEqual(value)
    expect(values.length).toBe(21)
    expect(({} as { polluted?: boolean }).polluted).toBe(undefined)
    expect(Object.getPrototypeOf(roundTrip(JSON.parse('{"__proto__": 1}')))).toBe(Object.prototype)
  })

  it('is decoded as it was published, for random values', () => {
    const anything = fc.anything({
      withBigInt: true,
      withDate: true,
      withNullPrototype: false,
      maxDepth: 4,
      values: [
        fc.string({ unit: 'grapheme' }),
        fc.integer(),
        // msgpackr encodes -0 as 0.
        fc.double().map((number) => (number === 0 ? 0 : number)),
        fc.boolean(),
        fc.constant(null),
        fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
      ],
      key: fc.string({ unit: 'grapheme' }),
    })
    fc.assert(
      fc.property(anything, (value) => {
        let packed: Uint8Array
        try {
          packed = Uint8Array.from(packBody(value))
        } catch (error) {
          expect((error as SluiceError).code).toBe('INVALID_BODY')
          return
        }
        expect(decodeBody(CONTENT_TYPE.msgpack, packed, 0, packed.length)).toEqual(value)
      }),
      { numRuns: 500 },
    )
  })

  it('omits undefined properties and uses toJSON, as JSON does, but keeps dates and bytes', () => {
    class Money {
      readonly cents: number
      constructor(cents: number) {
        this.cents = cents
      }
      toJSON(name: string): unknown {
        return { [name]: this.cents, note: undefined }
      }
    }
    const date = new Date(5)
    const shared = { x: 1, y: undefined }
    const converted: [unknown, unknown][] = [
      [{ id: 1, nick: undefined }, { id: 1 }],
      [
        { a: { b: undefined }, c: [{ d: undefined, e: date }] },
        { a: {}, c: [{ e: date }] },
      ],
      [{ price: new Money(5) }, { price: { price: 5 } }],
      [[new Money(5)], [{ 0: 5 }]],
      [new Money(5), { '': 5 }],
      [new URL('https://example.org/a'), 'https://example.org/a'],
      [
        { at: date, bytes: Buffer.from([1, 2]), none: undefined },
        { at: date, bytes: Uint8Array.of(1, 2) },
      ],
      [{ a: { toJSON: () => undefined }, b: 1 }, { b: 1 }],
      [{ a: Object.assign(() => {}, { toJSON: () => 'function' }) }, { a: 'function' }],
      [Object.assign([1, 2], { toJSON: () => 'list' }), 'list'],
      [Object.defineProperty({ a: 1 }, 'toJSON', { value: () => 'hidden' }), 'hidden'],
      [
        { a: shared, b: shared },
        { a: { x: 1 }, b: { x: 1 } },
      ],
    ]
    for (const [value, result] of converted) expect(roundTrip(value)).toEqual(result)
    expect(converted.length).toBe(12)
    const proto = Object.assign(JSON.parse('{"__proto__": {"polluted": true}}') as object, { a: undefined })
    expect(roundTrip(proto)).toEqual(JSON.parse('{"__proto__": {"polluted": true}}'))
    // As in JSON, the toJSON method of a result of toJSON is not called.
    let asked = 0
    const once = { toJSON: () => (asked++, { toJSON: 'text', a: 1 }) }
    expect(roundTrip({ once })).toEqual({ once: { toJSON: 'text', a: 1 } })
    expect(asked).toBe(1)
  })

  it('names the path of refused data', () => {
    class Customer {
      name = 'somebody'
    }
    const deep: unknown[] = []
    let inner = deep
    for (let i = 0; i < BODY_DEPTH_MAX + 1; i++) {
      const next: unknown[] = []
      inner.push(next)
      inner = next
    }
    const cycle: Record<string, unknown> = {}
    cycle['self'] = cycle
    const refused: [unknown, string][] = [
      [undefined, 'body is undefined'],
      [() => {}, 'body is a function'],
      [Symbol('x'), 'body is a symbol'],
      [new Map(), 'body is an instance of Map'],
      [{ a: [1, new Set()] }, 'body.a[1] is an instance of Set'],
      [{ 'not a word': () => {} }, 'body["not a word"] is a function'],
      [{ a: [{ b: undefined }, undefined] }, 'body.a[1] is undefined'],
      [[new Customer()], 'body[0] is an instance of Customer'],
      [{ a: { b: () => {} } }, 'body.a.b is a function'],
      [[1, undefined], 'body[1] is undefined'],
      // oxlint-disable-next-line no-sparse-arrays -- the test needs a hole
      [[1, , 3], 'body[1] is undefined'],
      [2n ** 64n, 'body is a bigint of more than 64 bits'],
      [new Date(NaN), 'body is an invalid date'],
      [new Float64Array(1), 'body is an instance of Float64Array'],
      [/x/, 'body is an instance of RegExp'],
      [new Error('x'), 'body is an instance of Error'],
      [Promise.resolve(), 'body is an instance of Promise'],
      ['\ud800', 'body is text with an unpaired surrogate'],
      [{ [Symbol('s')]: 1 }, 'body has a symbol as the name of a property'],
      [
        deep,
        `body[0][0][0][0] … (${BODY_DEPTH_MAX - 8} steps) … [0][0][0][0] is nested deeper than ${BODY_DEPTH_MAX}`,
      ],
      [cycle, 'body.self refers to an object that contains it'],
      [{ list: [{ back: cycle }, cycle] }, 'body.list[0].back.self refers to an object that contains it'],
      [Object.assign([1], { total: 2 }), 'body is an array that has a property "total" besides its items'],
      [{ a: { ['half \ud83c']: 1 } }, 'body.a["half \\ud83c"] has an unpaired surrogate in its name'],
      [{ a: { toJSON: () => undefined }, b: [{ toJSON: () => undefined }] }, 'body.b[0] is undefined'],
      [{ a: { toJSON: () => new Map() } }, 'body.a is an instance of Map'],
      [
        {
          a: {
            toJSON: () => {
              throw new Error('broken')
            },
          },
        },
        'body.a has a `toJSON` that threw',
      ],
      [{ toJSON: () => undefined }, 'body is undefined'],
      [{ ['x'.repeat(1000)]: new Map() }, `body["${'x'.repeat(40)}"] is an instance of Map`],
    ]
    for (const [value, message] of refused) expect(refusal(value)).toBe(message)
    expect(refused.length).toBe(29)
    expect(() => checkText('a\udc00')).toThrow('surrogate')
    checkText('🙂')
  })
})

describe('decoding', () => {
  it('returns bytes that are never overwritten and keep no large buffer alive', () => {
    const run = new Uint8Array(1000).fill(7)
    const small = decodeBody(CONTENT_TYPE.bytes, run, 10, 14) as Uint8Array
    expect([...small]).toEqual([7, 7, 7, 7])
    expect(small.buffer).not.toBe(run.buffer)
    expect(small.buffer.byteLength).toBeLessThanOrEqual(16_384)
    const large = decodeBody(CONTENT_TYPE.bytes, run, 16, 900) as Uint8Array
    expect(large.buffer).toBe(run.buffer)
    const nested = decodeBody(CONTENT_TYPE.msgpack, Uint8Array.of(0xc4, 2, 8, 9), 0, 4) as Uint8Array
    expect([...nested]).toEqual([8, 9])
    expect(nested.buffer.byteLength).toBe(2)
  })

  it('refuses hostile bytes with INVALID_BODY and nothing else', () => {
    const hostile = [
      [],
      [0xc1],
      // These declare a length and have no data: an array, a map, text, bytes.
      [0xdd, 0xff, 0xff, 0xff, 0xff],
      [0xdf, 0xff, 0xff, 0xff, 0xff],
      [0xdb, 0xff, 0xff, 0xff, 0xff],
      [0xc6, 0xff, 0xff, 0xff, 0xff],
      // Extensions of msgpackr: undefined, Set, RegExp, Error, pointers, records.
      [0xd4, 0, 0],
      [0xd4, 0x73, 0x91, 0x01],
      [0xd4, 0x78, 0x92, 0xa1, 0x61, 0xa0],
      [0xd4, 0x65, 0x93, 0xa1, 0x61, 0xa1, 0x62, 0xa1, 0x63],
      [0xd6, 0x69, 0, 0, 0, 1],
      [0xd6, 0x70, 0, 0, 0, 1],
      [0xd4, 0x72, 0x40],
      // These are a map whose key is a map, and two values in one body.
      [0x81, 0x80, 0x01],
      [0x01, 0x02],
      Array.from({ length: 10_000 }, () => 0x91),
    ]
    for (const bytes of hostile)
      expect(() => decodeBody(CONTENT_TYPE.msgpack, Uint8Array.from(bytes), 0, bytes.length)).toThrow(
        expect.objectContaining({ code: 'INVALID_BODY' }),
      )
    expect(hostile.length).toBe(16)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          decodeBody(CONTENT_TYPE.msgpack, bytes, 0, bytes.length)
        } catch (error) {
          expect((error as SluiceError).code).toBe('INVALID_BODY')
        }
      }),
      { numRuns: 2000 },
    )
  })
})

it('copies the bytes of each body out of the frame, aligned for typed arrays', () => {
  const frame = new Uint8Array(100_000).map((_, index) => index)
  const sizes = [0, 1, 7, 8, 128, 129, 4_095, 4_096, 4_097, 20_000]
  const bodies: { body: Uint8Array; start: number; end: number }[] = []
  for (let round = 0; round < 20; round++) {
    for (const size of sizes) {
      const start = (round * 977 + size) % (frame.length - size)
      const end = start + size
      bodies.push({ body: decodeBody(CONTENT_TYPE.bytes, frame, start, end) as Uint8Array, start, end })
    }
  }
  frame.copyWithin(0, 1)
  for (const { body, start, end } of bodies) {
    expect(body.length).toBe(end - start)
    expect(body.every((byte, index) => byte === ((start + index) & 0xff))).toBe(true)
    expect(body.byteOffset % 8).toBe(0)
    body.fill(0xee)
    expect(body.buffer).not.toBe(frame.buffer)
    // A small body keeps only a small buffer alive.
    expect(body.buffer.byteLength).toBeLessThanOrEqual(Math.max(16_384, body.length))
  }
})

it('does not copy the body of a copied record again, for any length of its options', () => {
  for (let keyBytes = 1; keyBytes <= 17; keyBytes++) {
    for (const gap of [0, 16]) {
      const body = new Uint8Array(200).map((_, index) => index + keyBytes)
      const options = { key: 'k'.repeat(keyBytes) }
      const start = 3
      const end = start + gap + recordBytes(options, body.length)
      const frame = new Uint8Array(100_000)
      frame.set(body, writeRecordHead(frame, start + gap, options, CONTENT_TYPE.bytes, body.length))
      const copy = recordsCopy(frame, start, end, gap)
      frame.fill(0)
      const read = recordBody(copy, gap) as Uint8Array
      expect([...read]).toEqual([...body])
      expect(read.buffer).toBe(copy.buffer)
      expect(read.byteOffset % 8).toBe(0)
    }
  }
})
