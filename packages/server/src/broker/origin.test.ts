/** The parts of a record that a move keeps, whatever bytes they contain, and the parts that a move adds. */
import {
  BATCH_HEADER_BYTES,
  DEATH,
  LIMITS,
  MOVED_BYTES_MAX,
  ORIGIN_BYTES_MAX,
  ORIGIN_HEADERS,
  RECORD_FLAG,
  batchIsIntact,
  checkRecords,
  readRecordOptions,
} from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { fittedRecord, movedBatch, type Origin } from './origin.js'
import { RecordFilter } from './record-filter.js'
import { runs } from '../../../../test/amount.js'

interface Parts {
  readonly times?: number
  readonly key?: Buffer
  readonly id?: Buffer
  readonly headers?: readonly (readonly [Buffer, Buffer])[]
  readonly payload?: Buffer
  /** The byte of the record with priority and content type. */
  readonly kind?: number
}

/** Builds a record from bytes, because its parts need not be valid text. */
function recordOf({ times = 0, key, id, headers, payload = Buffer.alloc(3), kind = 0 }: Parts): Uint8Array {
  const short = (bytes: Buffer): Buffer => Buffer.concat([Buffer.from([bytes.length]), bytes])
  const u16 = (value: number): Buffer => Buffer.from([value & 255, value >> 8])
  const options = Buffer.concat([
    ...[1, 2, 4].flatMap((flag) => (times & flag ? [Buffer.alloc(6, 1)] : [])),
    ...(key === undefined ? [] : [short(key)]),
    ...(id === undefined ? [] : [short(id)]),
    ...(headers ?? []).flatMap(([name, value]) => [short(name), u16(value.length), value]),
  ])
  const flags =
    times |
    (key === undefined ? 0 : RECORD_FLAG.key) |
    (id === undefined ? 0 : RECORD_FLAG.id) |
    (headers === undefined ? 0 : RECORD_FLAG.headers)
  const size = Buffer.alloc(4)
  size.writeUInt32LE(8 + options.length + payload.length)
  return Buffer.concat([size, Buffer.from([flags, kind]), u16(options.length), options, payload])
}

/** The headers of a record in order, decoded as latin1. */
function headersOf(record: Uint8Array): [string, string][] {
  const bytes = Buffer.from(record)
  let at = 8
  for (const flag of [1, 2, 4]) if (bytes[4]! & flag) at += 6
  for (const flag of [8, 16]) if (bytes[4]! & flag) at += 1 + bytes[at]!
  const found: [string, string][] = []
  for (const end = 8 + bytes.readUInt16LE(6); at < end;) {
    const value = at + 1 + bytes[at]! + 2
    const next = value + bytes.readUInt16LE(value - 2)
    found.push([bytes.toString('latin1', at + 1, value - 2), bytes.toString('latin1', value, next)])
    at = next
  }
  return found
}

const ORIGIN: Origin = {
  queue: 'q'.repeat(LIMITS.queueNameBytesMax),
  offset: Number.MAX_SAFE_INTEGER,
  publishedMs: 2 ** 48 - 1,
  attempts: 65_535,
  redrives: 65_535,
  dead: {
    attempts: 255,
    death: DEATH.maxDeliveries,
    timeMs: 2 ** 48 - 1,
    reason: 'é'.repeat(LIMITS.reasonBytesMax),
    isMoving: true,
    bytes: 0,
  },
}
const NAMES: readonly string[] = Object.values(ORIGIN_HEADERS)

/** Builds the batch of a moved message, checks that a producer could send it, and returns its record. */
function moved(record: Uint8Array, origin: Origin = ORIGIN): Uint8Array {
  const batch = movedBatch(record, origin)
  expect(batchIsIntact(batch, 0, batch.length)).toBe(true)
  expect(checkRecords(batch, BATCH_HEADER_BYTES, batch.length, 1, MOVED_BYTES_MAX)).toBeTypeOf('number')
  return batch.subarray(BATCH_HEADER_BYTES)
}

/** Expects `copy` to have these parts, apart from origin headers and times. */
function expectKept(copy: Uint8Array, parts: Parts): void {
  const own = headersOf(copy).filter(([name]) => !NAMES.includes(name))
  const headers = own.map(
    ([name, value]) => [Buffer.from(name, 'latin1'), Buffer.from(value, 'latin1')] as const,
  )
  const rest = recordOf({ ...parts, times: 0, headers: headers.length === 0 ? undefined! : headers })
  const wanted = (parts.headers ?? []).filter(([name]) => !NAMES.includes(name.toString('latin1')))
  const original = recordOf({ ...parts, times: 0, headers: wanted.length === 0 ? undefined! : wanted })
  expect(Buffer.compare(rest, original)).toBe(0)
  const payload = parts.payload ?? Buffer.alloc(3)
  expect(
    Buffer.from(copy)
      .subarray(copy.length - payload.length)
      .equals(payload),
  ).toBe(true)
  expect([copy[4]! & 7, copy[5]]).toEqual([0, parts.kind ?? 0])
  const at = 8
  const bytes = Buffer.from(copy)
  const keyEnd = parts.key === undefined ? at : at + 1 + parts.key.length
  if (parts.key !== undefined) expect(bytes.subarray(at + 1, keyEnd).equals(parts.key)).toBe(true)
  if (parts.id !== undefined)
    expect(bytes.subarray(keyEnd + 1, keyEnd + 1 + parts.id.length).equals(parts.id)).toBe(true)
}

const ROUNDS = runs(200, 10_000)

describe('a moved record', () => {
  it('has the key, id, headers and payload of the published record byte for byte, for random records', () => {
    let seed = 1
    const chance = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0
      return Math.floor((seed / 2 ** 32) * below)
    }
    const bytes = (min: number, max: number): Buffer => {
      const buffer = Buffer.alloc(min + chance(max - min + 1))
      for (let i = 0; i < buffer.length; i++) buffer[i] = chance(256)
      return buffer
    }
    let withOrigin = 0
    for (let round = 0; round < ROUNDS; round++) {
      const headers = Array.from({ length: chance(8) === 0 ? 64 : chance(5) }, () => {
        const name = chance(6) === 0 ? Buffer.from(NAMES[chance(NAMES.length)]!) : bytes(1, 40)
        return [name, bytes(0, 60)] as const
      })
      const parts: Parts = {
        times: [0, 1, 2, 4, 5, 6][chance(6)]!,
        ...(chance(2) === 0 ? {} : { key: bytes(1, 255) }),
        ...(chance(2) === 0 ? {} : { id: bytes(1, 255) }),
        ...(headers.length === 0 ? {} : { headers }),
        payload: bytes(0, 200),
        kind: chance(32) | (chance(3) << 5),
      }
      const record = recordOf(parts)
      expect(checkRecords(record, 0, record.length, 1, 1 << 20)).toBeTypeOf('number')
      const copy = moved(record)
      expectKept(copy, parts)
      expect(copy.length - record.length).toBeLessThanOrEqual(ORIGIN_BYTES_MAX)
      // A second move adds nothing.
      expect(Buffer.compare(moved(copy), copy)).toBe(0)
      const added = headersOf(copy).filter(([name]) => NAMES.includes(name))
      if (added.length > 0) withOrigin++
      expect(added.map(([name]) => name)).toEqual(NAMES_IN_ORDER.slice(0, added.length))
      // Only the added headers are shortened or omitted for a small frame.
      const room = copy.length - chance(copy.length - moved(record, { ...ORIGIN }).length + ORIGIN_BYTES_MAX)
      const least = recordOf({
        ...parts,
        times: 0,
        ...(parts.headers === undefined
          ? {}
          : { headers: parts.headers.filter(([name]) => !NAMES.includes(name.toString('latin1'))) }),
      }).length
      const fitted = fittedRecord(copy, Math.max(room, least))
      expect(fitted.length).toBeLessThanOrEqual(Math.max(room, least))
      expectKept(fitted, parts)
    }
    expect(withOrigin).toBeGreaterThan(0.8 * ROUNDS)
  })

  it('has all added headers if there is room; otherwise the error is cut off, or headers are omitted', () => {
    const options = readRecordOptions(moved(recordOf({})), 0)
    expect(Object.keys(options.headers!)).toEqual(NAMES_IN_ORDER)
    expect(options.headers![ORIGIN_HEADERS.error]).toBe('é'.repeat(LIMITS.reasonBytesMax / 2))
    // The published header leaves no room, then one byte, and then 500 bytes: enough for all added headers, but only for a
    // part of the error.
    for (const short of [0, 1, 500]) {
      const value = Buffer.alloc(LIMITS.headersBytesMax - 3 - 1 - short, 255)
      const copy = moved(recordOf({ headers: [[Buffer.from('x'), value]] }))
      expect(headersOf(copy)[0]![1].length).toBe(value.length)
      expect(headersOf(copy).length).toBe(short < 500 ? 1 : 9)
    }
    for (const count of [63, 64]) {
      const own = Array.from({ length: count }, (_, i) => [Buffer.from(`h${i}`), Buffer.from('v')] as const)
      expect(headersOf(moved(recordOf({ headers: own })))).toHaveLength(64)
    }
  })

  it('keeps a key of 255 bytes that are not valid UTF-8, and the key is compared as bytes', () => {
    const key = Buffer.alloc(255, 255)
    const copy = moved(recordOf({ key, id: key }))
    expectKept(copy, { key, id: key })
    expect(new RecordFilter({ key: '\u{fffd}'.repeat(255) }).matches(copy, 0)).toBe(false)
    expect(
      new RecordFilter({ key: 'k', id: 'i' }).matches(
        recordOf({ key: Buffer.from('k'), id: Buffer.from('i') }),
        0,
      ),
    ).toBe(true)
    expect(new RecordFilter({ key: 'k' }).matches(recordOf({ id: Buffer.from('k') }), 0)).toBe(false)
    const twice = [
      ['h', 'a'],
      ['h', 'b'],
    ].map((pair) => pair.map((text) => Buffer.from(text)) as [Buffer, Buffer])
    expect(new RecordFilter({ headers: { h: 'b' } }).matches(recordOf({ headers: twice }), 0)).toBe(true)
    expect(new RecordFilter({ headers: { h: 'a' } }).matches(recordOf({ headers: twice }), 0)).toBe(false)
  })
})

const NAMES_IN_ORDER = [
  ORIGIN_HEADERS.queue,
  ORIGIN_HEADERS.offset,
  ORIGIN_HEADERS.publishedMs,
  ORIGIN_HEADERS.redrives,
  ORIGIN_HEADERS.attempts,
  ORIGIN_HEADERS.reason,
  ORIGIN_HEADERS.diedMs,
  ORIGIN_HEADERS.error,
]
