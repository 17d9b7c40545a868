import { FRAME_HEADER_BYTES, FrameDecoder, LIMITS, SluiceError, writeFrameHeader } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { runs, TIMEOUT_MS } from '../amount.js'
import { expectSame } from '../same.js'
import { FRAME_VECTORS, VECTORS, concat, fromHex, type Frame } from './vectors.js'
import { frame } from '../rig/frames.js'

const PREFACE = VECTORS.find(({ kind }) => kind === 'preface')!.bytes
const STREAM = concat([PREFACE, ...FRAME_VECTORS.map(({ bytes }) => bytes)])
const FRAMES: readonly Frame[] = FRAME_VECTORS.map(({ bytes }) => ({
  opcode: bytes[4]!,
  flags: bytes[5]!,
  channel: bytes[6]! + bytes[7]! * 256,
  correlation: bytes[8]! + bytes[9]! * 256,
  payload: bytes.slice(12),
}))

function* cutAt(bytes: Uint8Array, cuts: readonly number[]): Iterable<Uint8Array> {
  let from = 0
  for (const cut of [...cuts].sort((a, b) => a - b)) {
    yield bytes.subarray(from, cut)
    from = cut
  }
  yield bytes.subarray(from)
}

// The fields are compared one by one, and the payload is compared in place: copies and deep comparisons would take most
// of the time.
function expectSameFrames(chunks: Iterable<Uint8Array>): void {
  let count = 0
  const decoder = new FrameDecoder((opcode, flags, channel, correlation, bytes, start, end) => {
    const wanted = FRAMES[count++]
    const isSame =
      opcode === wanted?.opcode &&
      flags === wanted.flags &&
      channel === wanted.channel &&
      correlation === wanted.correlation &&
      isAt(wanted.payload, bytes, start, end)
    if (!isSame)
      expect({ opcode, flags, channel, correlation, payload: bytes.slice(start, end) }).toStrictEqual(wanted)
  })
  decoder.frameBytesMax = LIMITS.frameBytesMax
  for (const chunk of chunks) decoder.push(chunk)
  expectSame(count, FRAMES.length)
}

function isAt(wanted: Uint8Array, bytes: Uint8Array, start: number, end: number): boolean {
  if (end - start !== wanted.length) return false
  for (let i = 0; i < wanted.length; i++) if (bytes[start + i] !== wanted[i]) return false
  return true
}

describe('a stream split anywhere', () => {
  test('one byte at a time', () => {
    expectSameFrames(Array.from(STREAM, (byte) => Uint8Array.of(byte)))
    expect(FRAMES.length).toBeGreaterThanOrEqual(88)
  })

  test('in two pieces, at every byte', () => {
    for (let cut = 0; cut <= STREAM.length; cut++) expectSameFrames(cutAt(STREAM, [cut]))
    expect(STREAM.length).toBeGreaterThan(4000)
  })

  test('in many pieces, of every size', { timeout: TIMEOUT_MS }, () => {
    const numRuns = runs(3_000, 100_000)
    let checked = 0
    fc.assert(
      fc.property(fc.nat(60), fc.nat(0xffff_ffff), (count, seed) => {
        let random = seed
        const cut = (): number => {
          random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0
          return Math.floor((random / 2 ** 32) * (STREAM.length + 1))
        }
        expectSameFrames(cutAt(STREAM, Array.from({ length: count }, cut)))
        checked++
      }),
      { numRuns },
    )
    expect(checked).toBeGreaterThanOrEqual(2_000)
  })

  test('a decoder between frames keeps no memory, and reused buffers do not mix up frames', () => {
    const payloads = Array.from({ length: 40 }, (_, i) => new Uint8Array((i * 7_919) % 300_000).fill(i))
    const frames = payloads.map((payload) => frame(35, 1, 0, payload))
    const got: Uint8Array[] = []
    const decoders = frames.map(() => {
      const decoder = new FrameDecoder((_opcode, _flags, _channel, _correlation, bytes, start, end) => {
        got.push(bytes.slice(start, end))
      }, false)
      decoder.frameBytesMax = 1_000_000
      return decoder
    })
    for (let round = 0; round < 3; round++) {
      // All decoders have started a frame before the first one completes its frame.
      for (const [i, decoder] of decoders.entries())
        decoder.push(frames[i]!.subarray(0, frames[i]!.length >> 1))
      for (const [i, decoder] of decoders.entries()) {
        expect(decoder.capacityBytes).toBeGreaterThan(0)
        decoder.push(frames[i]!.subarray(frames[i]!.length >> 1))
        expect(decoder.capacityBytes).toBe(0)
        expect(Buffer.compare(got.pop()!, payloads[i]!)).toBe(0)
      }
    }
    expect(got).toHaveLength(0)
  })

  test('a long frame between short ones; its buffer is released', () => {
    const payload = new Uint8Array(700_000).map((_, i) => i * 7)
    const long = frame(35, 1, 0, payload)
    const short = FRAME_VECTORS[0]!.bytes
    const stream = concat([short, long, short])
    let checked = 0
    fc.assert(
      fc.property(fc.integer({ min: 20, max: 300_000 }), (size) => {
        const frames: number[] = []
        const decoder = new FrameDecoder((_opcode, _flags, _channel, _correlation, bytes, start, end) => {
          frames.push(end - start)
          if (end - start === payload.length)
            expect(Buffer.compare(bytes.subarray(start, end), payload)).toBe(0)
        }, false)
        decoder.frameBytesMax = 1_000_000
        for (let at = 0; at < stream.length; at += size) decoder.push(stream.subarray(at, at + size))
        expect(frames).toStrictEqual([short.length - 12, payload.length, short.length - 12])
        expect(decoder.heldBytes).toBe(0)
        expect(decoder.capacityBytes).toBe(0)
        checked++
      }),
      { numRuns: 40 },
    )
    expect(checked).toBe(40)
  })
})

describe('after an error', () => {
  const bad = fromHex('ff ff ff ff 04 00 00 00 00 00 00 00')
  const good = fromHex('00 00 00 00 04 00 00 00 03 00 00 00')

  test('no further frame is emitted, wherever the stream is split', () => {
    let checked = 0
    for (let cut = 0; cut <= 24; cut++) {
      const { decoder, opcodes } = counting()
      let errors = 0
      for (const chunk of cutAt(concat([good, bad, good]), [cut, cut + 6, cut + 12])) {
        try {
          decoder.push(chunk)
        } catch (error) {
          expect(error).toMatchObject({ code: 'FRAME_TOO_LARGE' })
          errors++
        }
      }
      decoder.push(good)
      expect(opcodes).toStrictEqual([4])
      expect(errors).toBe(1)
      checked++
    }
    expect(checked).toBe(25)
  })

  test('an error of the sink stops the decoder and is not swallowed', () => {
    for (const chunks of [[good], [good.subarray(0, 5), good.subarray(5)]]) {
      let calls = 0
      const decoder = new FrameDecoder(() => {
        calls++
        throw new Error('from the sink')
      }, false)
      expect(() => chunks.forEach((chunk) => decoder.push(chunk))).toThrow('from the sink')
      decoder.push(good)
      expect(calls).toBe(1)
    }
  })

  test('stop() within the sink keeps the rest of the chunk back', () => {
    const opcodes: number[] = []
    const decoder = new FrameDecoder((opcode) => {
      opcodes.push(opcode)
      decoder.stop()
    }, false)
    decoder.push(concat([good, good]))
    decoder.push(good)
    expect(opcodes).toStrictEqual([4])
    expect(decoder.capacityBytes).toBe(0)
  })
})

function counting(frameBytesMax?: number, preface = false): { decoder: FrameDecoder; opcodes: number[] } {
  const opcodes: number[] = []
  const decoder = new FrameDecoder((opcode) => opcodes.push(opcode), preface)
  if (frameBytesMax !== undefined) decoder.frameBytesMax = frameBytesMax
  return { decoder, opcodes }
}

function header(payloadBytes: number): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES)
  writeFrameHeader(bytes, 0, payloadBytes, 16, 0, 0)
  return bytes
}

describe('the length in a header', () => {
  const sizes = [
    ['before authentication', LIMITS.frameBytesUnauthenticated],
    ['smallest', LIMITS.frameBytesMin],
    ['default', LIMITS.frameBytesDefault],
    ['largest', LIMITS.frameBytesMax],
  ] as const

  test('begins with the limit before authentication', () => {
    expect(counting().decoder.frameBytesMax).toBe(LIMITS.frameBytesUnauthenticated)
  })

  test.each(sizes)(
    '%s: a length one byte over the limit, or far over it, is refused at the header',
    (_, max) => {
      let refused = 0
      for (const payloadBytes of [max - 12 + 1, max, 0x7fff_ffff, 0x8000_0000, 0xffff_fff4, 0xffff_ffff]) {
        for (const step of [1, 5, 12]) {
          const { decoder, opcodes } = counting(max)
          const bytes = header(payloadBytes)
          const push = (): void => {
            for (let at = 0; at < 12; at += step) {
              decoder.push(bytes.subarray(at, at + step))
              expect(decoder.capacityBytes).toBeLessThanOrEqual(256)
            }
          }
          expect(push).toThrow(expect.objectContaining({ code: 'FRAME_TOO_LARGE', scope: 'connection' }))
          expect(decoder.capacityBytes).toBe(0)
          expect(opcodes).toStrictEqual([])
          refused++
        }
      }
      expect(refused).toBe(18)
    },
  )

  test.each(sizes)(
    '%s: a length at the limit is accepted, and the buffer grows only as bytes arrive',
    (_, max) => {
      const { decoder, opcodes } = counting(max)
      decoder.push(header(max - 12))
      expect(decoder.capacityBytes).toBeLessThanOrEqual(256)
      const half = Math.floor((max - 12) / 2)
      decoder.push(new Uint8Array(half))
      expect(decoder.heldBytes).toBe(12 + half)
      expect(decoder.capacityBytes).toBeLessThanOrEqual(max)
      decoder.push(new Uint8Array(max - 12 - half))
      expect(opcodes).toStrictEqual([16])
      expect(decoder.heldBytes).toBe(0)
    },
  )
})

describe('the preface', () => {
  const strangers: readonly [string, Uint8Array][] = [
    ['HTTP GET', new TextEncoder().encode('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
    ['HTTP POST', new TextEncoder().encode('POST / HTTP/1.1\r\n')],
    ['HTTP/2', new TextEncoder().encode('PRI * HTTP/2.0\r\n')],
    ['SSH', new TextEncoder().encode('SSH-2.0-OpenSSH_9.2\r\n')],
    ['TLS', fromHex('16 03 01 02 00 01 00 01 fc 03 03')],
    ['AMQP 0-9-1', fromHex('41 4d 51 50 00 00 09 01')],
    ['AMQP 1.0', fromHex('41 4d 51 50 00 01 00 00')],
    ['last letter wrong', new TextEncoder().encode('SLCX\u0001\0\0\0')],
  ]

  test.each(strangers)('%s is refused at the fourth byte, however the bytes are split', (_, bytes) => {
    for (const step of [1, 2, 3, 4, bytes.length]) {
      const { decoder, opcodes } = counting(undefined, true)
      let pushed = 0
      let error: unknown
      for (let at = 0; at < bytes.length && error === undefined; at += step) {
        try {
          decoder.push(bytes.subarray(at, at + step))
        } catch (thrown) {
          error = thrown
        }
        pushed += step
      }
      expect(error).toBeInstanceOf(SluiceError)
      expect(error).toMatchObject({ code: 'PROTOCOL_VERSION' })
      expect(pushed).toBeLessThan(4 + step)
      expect(opcodes).toStrictEqual([])
    }
  })

  // A peer that speaks another version of the protocol is answered with PROTOCOL_VERSION; a peer that speaks another
  // protocol gets no answer.
  test('the decoder recognises a Sluice peer by the magic bytes, even after an error', () => {
    const ours = (bytes: Uint8Array, step: number): boolean => {
      const { decoder } = counting(undefined, true)
      expect(decoder.isOurs).toBe(false)
      try {
        for (let at = 0; at < bytes.length; at += step) decoder.push(bytes.subarray(at, at + step))
      } catch {
        // The neighbouring tests check which error each input causes.
      }
      return decoder.isOurs
    }
    for (const step of [1, 3, 64]) {
      expect(ours(fromHex('53 4c 43 45'), step)).toBe(true)
      expect(ours(fromHex('53 4c 43 45 02 00 00 00'), step)).toBe(true)
      expect(ours(fromHex('53 4c 43 45 01 00 00 00 ff ff ff ff 01 00 00 00 00 00 00 00'), step)).toBe(true)
      expect(ours(fromHex('53 4c 43'), step)).toBe(false)
      for (const [, bytes] of strangers) expect(ours(bytes, step)).toBe(false)
    }
  })

  test('the magic is checked at its fourth byte, not before', () => {
    const { decoder } = counting(undefined, true)
    decoder.push(fromHex('53 4c 43'))
    expect(decoder.heldBytes).toBe(3)
    expect(() => decoder.push(fromHex('58'))).toThrow(SluiceError)
  })

  test('another major version is refused at the fifth byte; another minor version and reserved bytes are accepted', () => {
    let refused = 0
    for (let major = 0; major < 256; major++) {
      const { decoder } = counting(undefined, true)
      decoder.push(fromHex('53 4c 43 45'))
      if (major === 1) {
        decoder.push(Uint8Array.of(major, 255, 255, 255))
        expect(decoder.heldBytes).toBe(0)
      } else {
        expect(() => decoder.push(Uint8Array.of(major))).toThrow(
          expect.objectContaining({ code: 'PROTOCOL_VERSION' }),
        )
        refused++
      }
    }
    expect(refused).toBe(255)
  })
})
