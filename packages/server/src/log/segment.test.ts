import { SluiceError } from '@sluice/protocol'
import { crc32 } from 'node:zlib'
import { expect, test } from 'vitest'
import { SimulatedDisk } from '../../../../test/simulation/disk.js'
import { makeEntry } from '../../../../test/simulation/entries.js'
import type { DiskFile } from './log.js'
import {
  EntryWalker,
  SEGMENT_HEADER_BYTES,
  decodeLogMeta,
  encodeLogMeta,
  findLaterEntry,
  isBlank,
  readSegmentHeader,
  segmentBytesFit,
  segmentName,
  segmentNumber,
  writeSegmentHeader,
} from './segment.js'

const HEADER = {
  number: 12,
  salt: 0x0102_0304,
  segmentBytes: 64 * 1024 * 1024,
  firstLsn: 0x1_0000_0002,
  previousCrc: 0xaabb_ccdd,
  checkpoint: 0x2_0000_0003,
  createdMs: 1_700_000_000_000,
}

test('a file name is a number of exactly twenty digits', () => {
  expect(segmentName(12)).toBe('00000000000000000012.segment')
  expect(segmentNumber('00000000000000000012.segment')).toBe(12)
  for (const name of [
    '12.segment',
    '00000000000000000012.segment.draft',
    '0000000000000000001x.segment',
    '00000000000000000000.segment',
    '99999999999999999999.segment',
    'x00000000000000000012.segment',
    'log.meta',
    '',
  ]) {
    expect(segmentNumber(name)).toBe(undefined)
  }
})

test('the header of a segment has the layout of STORAGE.md', () => {
  const bytes = new Uint8Array(SEGMENT_HEADER_BYTES).fill(0xee)
  writeSegmentHeader(bytes, HEADER)
  // prettier-ignore
  const golden = [
    0x53, 0x4c, 0x53, 0x47, 2, 0, 0, 0, // "SLSG", version
    12, 0, 0, 0, 0, 0, 0, 0,
    4, 3, 2, 1, 0xdd, 0xcc, 0xbb, 0xaa, // salt, previous CRC
    0, 0, 0, 4, 0, 0, 0, 0,
    2, 0, 0, 0, 1, 0, 0, 0, // first lsn
    3, 0, 0, 0, 2, 0, 0, 0, // checkpoint
    0, 0x68, 0xe5, 0xcf, 0x8b, 0x01, 1, 0, // created, flags
    0, 0, 0, 0,
  ]
  expect([...bytes.subarray(0, 60)]).toEqual(golden)
  expect(new DataView(bytes.buffer).getUint32(60, true)).toBe(crc32(Uint8Array.from(golden)))
  expect(bytes.subarray(64).every((byte) => byte === 0)).toBe(true)
  expect(readSegmentHeader(bytes)).toEqual(HEADER)
  writeSegmentHeader(bytes, { ...HEADER, checkpoint: undefined })
  expect(readSegmentHeader(bytes)).toEqual({ ...HEADER, checkpoint: undefined })
})

test('`log.meta` identifies the log', () => {
  const meta = { salt: 0x0102_0304, segmentBytes: 1024 * 1024, createdMs: 1_700_000_000_000 }
  const bytes = encodeLogMeta(meta)
  expect([...bytes.subarray(0, 12)]).toEqual([0x53, 0x4c, 0x4c, 0x4d, 2, 0, 0, 0, 0, 0, 16, 0])
  expect(decodeLogMeta(bytes)).toEqual(meta)
  expect(decodeLogMeta(encodeLogMeta({ ...meta, segmentBytes: 1000 }))).toBe(undefined)
  expect([16 * 1024, 1024 * 1024, 2 ** 30].map((size) => segmentBytesFit(size))).toEqual([true, true, true])
  expect([0, 8192, 16 * 1024 + 512, 2 ** 31].map((size) => segmentBytesFit(size))).toEqual([
    false,
    false,
    false,
    false,
  ])
})

test('a damaged or shortened header is not accepted', () => {
  const block = new Uint8Array(SEGMENT_HEADER_BYTES)
  writeSegmentHeader(block, HEADER)
  const meta = encodeLogMeta({ salt: 1, segmentBytes: 1024 * 1024, createdMs: 2 })
  let flips = 0
  for (let byte = 0; byte < 64; byte++) {
    for (let bit = 0; bit < 8; bit++) {
      block[byte]! ^= 1 << bit
      meta[byte]! ^= 1 << bit
      expect(readSegmentHeader(block)).toBe(undefined)
      expect(decodeLogMeta(meta)).toBe(undefined)
      block[byte]! ^= 1 << bit
      meta[byte]! ^= 1 << bit
      flips++
    }
    expect(readSegmentHeader(block.subarray(0, byte))).toBe(undefined)
    expect(decodeLogMeta(meta.subarray(0, byte))).toBe(undefined)
  }
  expect(flips).toBe(512)
})

test.each([
  [1, 'Drain its queues'],
  [3, 'Start a version'],
])(
  'format %i is refused by its number and not as damage, and the error says what to do',
  (version, advice) => {
    const block = new Uint8Array(SEGMENT_HEADER_BYTES)
    writeSegmentHeader(block, HEADER)
    const meta = encodeLogMeta({ salt: 1, segmentBytes: 1024 * 1024, createdMs: 2 })
    for (const bytes of [block, meta]) {
      bytes[4] = version
      new DataView(bytes.buffer).setUint32(60, crc32(bytes.subarray(0, 60)), true)
    }
    for (const read of [() => readSegmentHeader(block), () => decodeLogMeta(meta)]) {
      expect(read).toThrow(SluiceError)
      expect(read).toThrow(`The log has format ${version}; this broker reads format 2. ${advice}`)
    }
  },
)

const START = 12 * 8 * 1024 * 1024
const SALT = 99

/** A segment file with one entry of each size, its end, and the CRCs of the entries. */
async function segmentOf(sizes: readonly number[]): Promise<{ file: DiskFile; end: number; crcs: number[] }> {
  const disk = new SimulatedDisk()
  const file = await disk.open('x', { create: true })
  let at = SEGMENT_HEADER_BYTES
  let previousCrc = 5
  const crcs: number[] = []
  await file.write(8 * 1024 * 1024 - 1, new Uint8Array(1))
  for (const [index, size] of sizes.entries()) {
    const entry = makeEntry({ lsn: 100 + index, previousCrc, position: START + at, salt: SALT }, [size])
    await file.write(at, entry.bytes)
    at += entry.bytes.length
    previousCrc = entry.crc
    crcs.push(entry.crc)
  }
  return { file, end: at, crcs }
}

test('a walker finds entries smaller and larger than one read', async () => {
  const sizes = [10, 3_000_000, 400_000, 100, 2_000_000, 1, 1_900_000]
  const { file, end, crcs } = await segmentOf(sizes)
  const walker = new EntryWalker(file, {
    at: SEGMENT_HEADER_BYTES,
    segmentStart: START,
    salt: SALT,
    lsn: 100,
    previousCrc: 5,
  })
  for (const [index, size] of sizes.entries()) {
    const entry = await walker.next(file.bytes)
    if (typeof entry === 'string') throw new Error(`entry ${index}: ${entry}`)
    expect(entry.length).toBe(Math.ceil((64 + 48 + size) / 512) * 512)
    expect(walker.lsn).toBe(101 + index)
    expect(walker.previousCrc).toBe(crcs[index])
  }
  expect(walker.at).toBe(end)
  expect(await walker.next(file.bytes)).toBe('magic')
  expect(walker.at).toBe(end)
  expect(await walker.next(end)).toBe('length')
})

test('a walker does not read past the given end', async () => {
  const { file, end } = await segmentOf([10, 600])
  const from = { at: SEGMENT_HEADER_BYTES, segmentStart: START, salt: SALT, lsn: 100, previousCrc: 5 }
  for (let limit = SEGMENT_HEADER_BYTES; limit < end; limit += 256) {
    const walker = new EntryWalker(file, from)
    let found = 0
    while (typeof (await walker.next(limit)) !== 'string') found++
    expect(found).toBe(limit >= SEGMENT_HEADER_BYTES + 512 ? 1 : 0)
  }
})

test('a later entry is found only if it is whole, at its own position, and has a higher LSN', async () => {
  const { file, end } = await segmentOf([10, 3_000_000, 10])
  const last = end - 512
  const from = SEGMENT_HEADER_BYTES
  const size = file.bytes
  expect(await findLaterEntry(file, from, size, START, SALT, 99)).toEqual({ at: from, lsn: 100 })
  expect(await findLaterEntry(file, from, size, START, SALT, 100)).toEqual({ at: from + 512, lsn: 101 })
  expect(await findLaterEntry(file, from, size, START, SALT, 101)).toEqual({ at: last, lsn: 102 })
  expect(await findLaterEntry(file, from, size, START, SALT, 102)).toBe(undefined)
  expect(await findLaterEntry(file, from, size, START, SALT + 1, 99)).toBe(undefined)
  // With another start position these bytes count as left over from an earlier use of the file, so nothing is found.
  expect(await findLaterEntry(file, from, size, START + size, SALT, 99)).toBe(undefined)
  await file.write(last + 20, new Uint8Array(100))
  expect(await findLaterEntry(file, from, size, START, SALT, 101)).toBe(undefined)
})

test('a file with one nonzero byte is not blank', async () => {
  const disk = new SimulatedDisk()
  const file = await disk.open('x', { create: true })
  await file.write(5_000_000, new Uint8Array(1))
  expect(await isBlank(file)).toBe(true)
  await file.write(4_999_999, Uint8Array.of(1))
  expect(await isBlank(file)).toBe(false)
})
