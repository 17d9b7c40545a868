import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { makeEntry } from '../../../../test/simulation/entries.js'
import {
  ENTRY_HEADER_BYTES,
  batchEnd,
  checkEntry,
  entryBatches,
  entryPaddedBytes,
  readEntryHeader,
  recordsAreIntact,
  resemblesEntry,
  sealEntry,
} from './entry.js'
import { expectSame } from '../../../../test/same.js'

const CHAIN = { lsn: 7, previousCrc: 0xdead_beef, position: 0x1_0000_1000, salt: 0x1234_5678, epoch: 3 }
const EXPECTED = { lsn: 7, previousCrc: 0xdead_beef, position: 0x1_0000_1000, salt: 0x1234_5678 }

/** Computes a CRC bit by bit from its definition. It shares no code with the tested function. */
function slowCrc(bytes: Uint8Array, start: number): number {
  let crc = ~start
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1
  }
  return ~crc >>> 0
}

test('an entry has the layout of STORAGE.md', () => {
  // prettier-ignore
  const header = Uint8Array.of(
    0x53, 0x4c, 0x45, 0x4e, // magic: "SLEN"
    116, 0, 0, 0, // 64 + 48 + 4
    7, 0, 0, 0, 0, 0, 0, 0, // lsn
    3, 0, 0, 0, // epoch
    0xef, 0xbe, 0xad, 0xde, // CRC of the previous entry
    0x07, 0x68, 0xe5, 0xcf, 0x8b, 0x01, 0, 0, // 1,700,000,000,007 ms
    1, 0, 0, 0, // batches
    0, 0, 0, 0, // CRC of this entry
    0, 0x10, 0, 0, 1, 0, 0, 0, // position
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  )
  const made = makeEntry(CHAIN, [4])
  expect(made.bytes).toHaveLength(512)
  const batchHeader = made.bytes.subarray(64, 112)
  const crc = slowCrc(new Uint8Array([...header, ...batchHeader]), CHAIN.salt)
  new DataView(header.buffer).setUint32(36, crc, true)
  expect([...made.bytes.subarray(0, 64)]).toEqual([...header])
  expect(made.crc).toBe(crc)
  expect(made.bytes.subarray(116).every((byte) => byte === 0)).toBe(true)
  expect(readEntryHeader(made.bytes, 0)).toEqual({
    length: 116,
    lsn: 7,
    epoch: 3,
    previousCrc: 0xdead_beef,
    timeMs: 1_700_000_000_007,
    batches: 1,
    crc,
    position: 0x1_0000_1000,
  })
  expect(checkEntry(made.bytes, 0, 512, EXPECTED)).toBe('valid')
})

test('an entry can be anywhere in a larger array, with no batches or thousands', () => {
  let checked = 0
  for (const count of [0, 1, 2, 681, 682, 683, 2000, 5000]) {
    const made = makeEntry(
      CHAIN,
      Array.from({ length: count }, (_, index) => index % 3),
    )
    const bytes = new Uint8Array(made.bytes.length + 1000)
    bytes.set(made.bytes, 777)
    expect(checkEntry(bytes, 777, made.bytes.length, EXPECTED)).toBe('valid')
    expect(recordsAreIntact(bytes, 777)).toBe(true)
    const positions = [...entryBatches(bytes, 777)]
    expect(positions).toHaveLength(count)
    let at = 777 + ENTRY_HEADER_BYTES
    for (const [index, batch] of positions.entries()) {
      expectSame(batch, at)
      at += BATCH_HEADER_BYTES + (index % 3)
    }
    checked++
  }
  expect(checked).toBe(8)
})

test('every flipped bit is detected, in headers by the CRC of the entry and in records by the CRC of their batch', () => {
  const { bytes } = makeEntry(CHAIN, [30, 0, 200])
  const { length } = readEntryHeader(bytes, 0)
  const faults = new Map<string, number>()
  let flips = 0
  for (let byte = 0; byte < length; byte++) {
    for (let bit = 0; bit < 8; bit++) {
      bytes[byte]! ^= 1 << bit
      const verdict = checkEntry(bytes, 0, bytes.length, EXPECTED)
      const fault = verdict === 'valid' ? (recordsAreIntact(bytes, 0) ? 'none' : 'records') : verdict
      faults.set(fault, (faults.get(fault) ?? 0) + 1)
      bytes[byte]! ^= 1 << bit
      flips++
    }
  }
  expect(flips).toBe((64 + 3 * 48 + 230) * 8)
  expect(faults.get('none')).toBe(undefined)
  expect(faults.get('records')).toBe(230 * 8)
  expect(faults.get('magic')).toBe(32)
  expect(faults.get('lsn')).toBe(64)
  expect(faults.get('previous-crc')).toBe(32)
  expect(faults.get('position')).toBe(64)
  expect(faults.get('crc')).toBeGreaterThan(1000)
  expect(faults.get('batches')).toBeGreaterThan(100)
})

test('an entry of which only the beginning is available is `short`', () => {
  const { bytes } = makeEntry(CHAIN, [30, 500])
  const { length } = readEntryHeader(bytes, 0)
  for (let available = 0; available < length; available++) {
    expect(checkEntry(bytes, 0, available, EXPECTED)).toBe('short')
  }
  expect(checkEntry(bytes, 0, length, EXPECTED)).toBe('valid')
})

test('only the expected entry is valid', () => {
  const { bytes } = makeEntry(CHAIN, [30])
  const check = (change: Partial<typeof EXPECTED>): string =>
    checkEntry(bytes, 0, bytes.length, { ...EXPECTED, ...change })
  expect(check({ lsn: 8 })).toBe('lsn')
  expect(check({ previousCrc: 1 })).toBe('previous-crc')
  expect(check({ position: 0x1000 })).toBe('position')
  expect(check({ salt: 0x1234_5679 })).toBe('crc')
  const open = { ...EXPECTED, lsn: undefined, previousCrc: undefined }
  expect(checkEntry(bytes, 0, bytes.length, open)).toBe('valid')
  expect(checkEntry(bytes, 0, bytes.length, { ...open, salt: 0 })).toBe('crc')
})

test('hostile lengths and counts are faults, and nothing is read outside the bytes', () => {
  const lengths = [0, 1, 63, 64, 65, 111, 112, 113, 511, 512, 513, 0x7fff_ffff, 0xffff_ffff]
  let checked = 0
  for (const length of lengths) {
    for (const batch of [...lengths, 47, 48, 49]) {
      for (const count of [0, 1, 2, 0xffff_ffff]) {
        const { bytes } = makeEntry(CHAIN, [30, 10])
        const view = new DataView(bytes.buffer)
        view.setUint32(4, length, true)
        view.setUint32(64, batch, true)
        view.setUint32(32, count, true)
        expect(['length', 'short', 'batches', 'crc']).toContain(checkEntry(bytes, 0, bytes.length, EXPECTED))
        expect([...entryBatches(bytes, 0)].length).toBeLessThan(12)
        expect(typeof recordsAreIntact(bytes, 0)).toBe('boolean')
        checked++
      }
    }
  }
  expect(checked).toBe(13 * 16 * 4)
  expect(batchEnd(new Uint8Array(100), 0, 47)).toBe(-1)
  expect(batchEnd(new Uint8Array(100), 0, 100)).toBe(-1)
  expect(checkEntry(new Uint8Array(0), 0, 0, EXPECTED)).toBe('short')
})

test('an LSN above 2^53 is a fault', () => {
  const { bytes } = makeEntry(CHAIN, [])
  bytes.fill(0xff, 8, 16)
  expect(checkEntry(bytes, 0, 512, { ...EXPECTED, lsn: undefined })).toBe('lsn')
})

test('an entry cannot be sealed with a wrong length or a wrong number of batches', () => {
  const bytes = new Uint8Array(512)
  sealBatch(bytes, 64, 64 + 48 + 10, { type: BATCH_TYPE.facts })
  const seal = { lsn: 1, position: 0, epoch: 0, previousCrc: 0, timeMs: 0, salt: 0 }
  expect(() => sealEntry(bytes, 0, 122, { ...seal, batches: 2 })).toThrow('Entry 1')
  expect(() => sealEntry(bytes, 0, 121, { ...seal, batches: 1 })).toThrow('Entry 1')
  expect(() => sealEntry(bytes, 0, 123, { ...seal, batches: 1 })).toThrow('Entry 1')
  expect(sealEntry(bytes, 0, 122, { ...seal, batches: 1 })).toBeGreaterThan(0)
})

test('a damaged header is distinguished from other bytes', () => {
  const { bytes } = makeEntry(CHAIN, [30])
  let flips = 0
  for (let byte = 0; byte < 64; byte++) {
    for (let bit = 0; bit < 8; bit++) {
      bytes[byte]! ^= 1 << bit
      expect(resemblesEntry(bytes, 0, EXPECTED)).toBe(true)
      bytes[byte]! ^= 1 << bit
      flips++
    }
  }
  expect(flips).toBe(512)
  const old = makeEntry({ ...CHAIN, lsn: 3, previousCrc: 5, position: 0x1000 }, [30])
  expect(resemblesEntry(old.bytes, 0, EXPECTED)).toBe(false)
  expect(resemblesEntry(new Uint8Array(64), 0, EXPECTED)).toBe(false)
  // The previous CRC of the first entry of a log is zero, like the bytes of an unused file.
  expect(resemblesEntry(new Uint8Array(64), 0, { ...EXPECTED, lsn: 1, previousCrc: 0 })).toBe(false)
})

test('entries are padded to whole sectors', () => {
  expect([64, 511, 512, 513, 1024].map((length) => entryPaddedBytes(length))).toEqual([
    512, 512, 512, 1024, 1024,
  ])
})
