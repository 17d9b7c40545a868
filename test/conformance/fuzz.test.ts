/** Feeds mutated vectors to the frame decoder and to every payload reader; they may throw only SluiceError. */
import { crc32 } from 'node:zlib'
import { FRAME_HEADER_BYTES, FrameDecoder, OP, SluiceError, checkRecords, writeU32 } from '@sluice/protocol'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { READERS, readBatch, readRecords } from './payloads.js'
import { runs, TIMEOUT_MS } from '../amount.js'
import { FRAME_VECTORS, VECTORS, concat, framesOf } from './vectors.js'
import { expectSame } from '../same.js'
import { frame } from '../rig/frames.js'

type Mutation = (bytes: Uint8Array) => Uint8Array

const EDGES = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff]

const place = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.tuple(place, fc.nat(255)).map(([at, value]): Mutation => (bytes) => {
    const out = bytes.slice()
    if (out.length > 0) out[Math.floor(at * out.length)] = value
    return out
  }),
  fc.tuple(place, fc.nat(7)).map(([at, bit]): Mutation => (bytes) => {
    const out = bytes.slice()
    if (out.length > 0) out[Math.floor(at * out.length)]! ^= 1 << bit
    return out
  }),
  fc
    .tuple(place, fc.constantFrom(...EDGES), fc.constantFrom(1, 2, 4))
    .map(([at, value, size]): Mutation => (bytes) => {
      const out = bytes.slice()
      const from = Math.floor(at * out.length)
      for (let i = 0; i < size && from + i < out.length; i++) out[from + i] = value >>> (8 * i)
      return out
    }),
  fc.tuple(place, place).map(([a, b]): Mutation => (bytes) => {
    const from = Math.floor(Math.min(a, b) * bytes.length)
    return concat([bytes.subarray(0, from), bytes.subarray(Math.floor(Math.max(a, b) * bytes.length))])
  }),
  fc.tuple(place, fc.uint8Array({ maxLength: 40 })).map(([at, more]): Mutation => (bytes) => {
    const from = Math.floor(at * bytes.length)
    return concat([bytes.subarray(0, from), more, bytes.subarray(from)])
  }),
  fc.tuple(place, place).map(([a, b]): Mutation => (bytes) => {
    const from = Math.floor(Math.min(a, b) * bytes.length)
    return concat([bytes, bytes.subarray(from, Math.floor(Math.max(a, b) * bytes.length))])
  }),
)
const mutations = fc.array(mutation, { minLength: 1, maxLength: 4 })

/** 1 if `reading` returned, 0 if it threw a SluiceError; any other error is rethrown. */
function outcome(reading: () => unknown): number {
  try {
    reading()
    return 1
  } catch (error) {
    if (error instanceof SluiceError) return 0
    throw error
  }
}

test('mutated payloads through the reader of every frame kind', { timeout: TIMEOUT_MS }, () => {
  let checked = 0
  let read = 0
  fc.assert(
    fc.property(fc.constantFrom(...FRAME_VECTORS), mutations, ({ bytes }, changes) => {
      const payload = changes.reduce<Uint8Array>(
        (changed, change) => change(changed),
        bytes.slice(FRAME_HEADER_BYTES),
      )
      // Other bytes surround the payload, as in a chunk that a socket delivers, so that a reader that reads outside its
      // range is noticed.
      const chunk = concat([new Uint8Array(9).fill(0xa5), payload, new Uint8Array(9).fill(0x5a)])
      for (const reader of READERS.values()) {
        const inside = outcome(() => reader(chunk, 9, 9 + payload.length))
        expectSame(
          inside,
          outcome(() => reader(payload, 0, payload.length)),
        )
        read += inside
        checked++
      }
    }),
    { numRuns: runs(300, 300_000) },
  )
  expect(checked).toBeGreaterThanOrEqual(300 * 42)
  // Some inputs were read, and some were refused, so both paths of the readers ran.
  expect(read).toBeGreaterThan(190)
  expect(read).toBeLessThan(checked)
})

// The mutated steps of the test above rarely have a correct checksum, but an attacker can compute one.
test('mutated atomic steps whose checksum is right', { timeout: TIMEOUT_MS }, () => {
  const written = FRAME_VECTORS.filter(({ bytes }) => bytes[4] === OP.ATOMIC)
  expect(written).toHaveLength(3)
  const read = READERS.get(OP.ATOMIC)!
  let accepted = 0
  let refused = 0
  fc.assert(
    fc.property(fc.constantFrom(...written), mutations, ({ bytes }, changes) => {
      const payload = changes.reduce<Uint8Array>(
        (changed, change) => change(changed),
        bytes.slice(FRAME_HEADER_BYTES),
      )
      if (payload.length >= 12) writeU32(payload, 8, crc32(payload.subarray(12)))
      const chunk = concat([new Uint8Array(9).fill(0xa5), payload, new Uint8Array(9).fill(0x5a)])
      const inside = outcome(() => read(chunk, 9, 9 + payload.length))
      expect(inside).toBe(outcome(() => read(payload, 0, payload.length)))
      accepted += inside
      refused += 1 - inside
    }),
    { numRuns: runs(1_500, 1_000_000) },
  )
  expect(accepted).toBeGreaterThan(100)
  expect(refused).toBeGreaterThan(100)
})

test(
  'mutated streams through the frame decoder, in pieces, and on into the readers',
  { timeout: TIMEOUT_MS },
  () => {
    const stream = concat(FRAME_VECTORS.map(({ bytes }) => bytes))
    let frames = 0
    let errors = 0
    fc.assert(
      fc.property(mutations, fc.integer({ min: 1, max: 700 }), (changes, size) => {
        const bytes = changes.reduce<Uint8Array>((changed, change) => change(changed), stream)
        const whole: number[] = []
        const pieces: number[] = []
        const sink = (lengths: number[]) =>
          new FrameDecoder((opcode, _flags, _channel, _correlation, at, start, end) => {
            expectSame(end <= at.length, true)
            lengths.push(opcode, end - start)
            outcome(() => READERS.get(opcode)?.(at, start, end))
          }, false)
        const decoder = sink(whole)
        const first = outcome(() => decoder.push(bytes))
        const other = sink(pieces)
        const second = outcome(() => {
          for (let at = 0; at < bytes.length; at += size) other.push(bytes.subarray(at, at + size))
        })
        expect(pieces).toStrictEqual(whole)
        expect(second).toBe(first)
        expect(other.capacityBytes).toBeLessThanOrEqual(8192)
        frames += whole.length / 2
        errors += 1 - first
      }),
      { numRuns: runs(600, 200_000) },
    )
    expect(frames).toBeGreaterThan(4_000)
    expect(errors).toBeGreaterThan(40)
  },
)

test('mutated records and batches', { timeout: TIMEOUT_MS }, () => {
  const written = VECTORS.filter(({ kind }) => kind === 'record' || kind === 'batch')
  let accepted = 0
  let refused = 0
  fc.assert(
    fc.property(fc.constantFrom(...written), mutations, fc.nat(3), ({ kind, bytes }, changes, count) => {
      const changed = changes.reduce<Uint8Array>((before, change) => change(before), bytes)
      const good =
        kind === 'batch'
          ? outcome(() => readBatch(changed, 0, changed.length))
          : outcome(() => readRecords(changed, 0, changed.length, count))
      const records = kind === 'batch' ? changed.subarray(48) : changed
      if (typeof checkRecords(records, 0, records.length, count, 1_000_000) === 'number') {
        // The records have passed the check, so reading them must not run past their end.
        expect(readRecords(records, 0, records.length, count)).toHaveLength(count)
      }
      accepted += good
      refused += 1 - good
    }),
    { numRuns: runs(1_500, 1_000_000) },
  )
  expect(accepted).toBeGreaterThan(40)
  expect(refused).toBeGreaterThan(40)
})

test('random bytes under every opcode and every frame flag', { timeout: TIMEOUT_MS }, () => {
  let checked = 0
  fc.assert(
    fc.property(fc.nat(255), fc.nat(255), fc.uint8Array({ maxLength: 200 }), (opcode, flags, payload) => {
      const bytes = frame(opcode, 65_535, 0xffff_ffff, payload)
      bytes[5] = flags
      const [decoded] = framesOf([bytes])
      expect(decoded).toStrictEqual({ opcode, flags, channel: 65_535, correlation: 0xffff_ffff, payload })
      for (const reader of READERS.values()) outcome(() => reader(payload, 0, payload.length))
      checked++
    }),
    { numRuns: runs(300, 300_000) },
  )
  expect(checked).toBeGreaterThanOrEqual(300)
})
