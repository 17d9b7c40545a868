/**
 * The layout of entries. Each entry is one group commit: a header, then the batches, then zeros up to the next multiple
 * of 512 bytes.
 *
 * Header, 64 bytes: u32 magic · u32 length (header and batches, no padding) · u64 lsn · u32 epoch · u32 previous CRC ·
 * u48 time · u16 0 · u32 batches · u32 CRC · u64 position · 16 zeros. The CRC starts from the log's salt and covers
 * this header (with the CRC field as zero) and every batch's header; a batch's header has a CRC of its records.
 * `position` is the entry's own position in the log, so that old entries of a recycled segment never pass the check.
 */
import {
  BATCH_HEADER_BYTES,
  batchIsIntact,
  batchLength,
  crc32,
  readU32,
  readU48,
  readU64,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from '@sluice/protocol'

export const ENTRY_HEADER_BYTES = 64
/** Entries begin and end at multiples of this, the unit that a disk writes whole or not at all. */
export const ENTRY_ALIGN_BYTES = 512
export const ENTRY_MAGIC = 0x4e_45_4c_53

const LENGTH_AT = 4
const LSN_AT = 8
const EPOCH_AT = 16
const PREVIOUS_CRC_AT = 20
const TIME_AT = 24
const BATCHES_AT = 32
const CRC_AT = 36
const POSITION_AT = 40
const SPARE_AT = 48

export interface EntryHeader {
  /** Size of header and batches, without padding. */
  readonly length: number
  readonly lsn: number
  readonly epoch: number
  readonly previousCrc: number
  readonly timeMs: number
  readonly batches: number
  readonly crc: number
  readonly position: number
}

export interface EntrySeal {
  readonly lsn: number
  /** Position of the entry, from `placeEntry`. */
  readonly position: number
  readonly epoch: number
  readonly previousCrc: number
  readonly timeMs: number
  readonly salt: number
  readonly batches: number
}

/** Expected fields of the entry at a position; a field is `undefined` if its value is unknown. */
export interface EntryExpectation {
  readonly lsn: number | undefined
  readonly previousCrc: number | undefined
  readonly position: number
  readonly salt: number
}

/** `short`: the available bytes end before the entry does, and show no other fault. */
export type EntryFault =
  | 'short'
  | 'magic'
  | 'length'
  | 'lsn'
  | 'previous-crc'
  | 'position'
  | 'batches'
  | 'crc'

/** Size in the log of an entry of `length` bytes, with padding. */
export function entryPaddedBytes(length: number): number {
  return Math.ceil(length / ENTRY_ALIGN_BYTES) * ENTRY_ALIGN_BYTES
}

/** Replaces the CRC field when the CRC is computed. */
const NO_CRC = new Uint8Array(4)

/** End of the batch at `at`, or -1 when there is no whole batch between `at` and `end`. */
export function batchEnd(bytes: Uint8Array, at: number, end: number): number {
  if (at + BATCH_HEADER_BYTES > end) return -1
  const length = batchLength(bytes, at)
  return length < BATCH_HEADER_BYTES || length > end - at ? -1 : at + length
}

/**
 * The entry's CRC, or -1 when its batches do not fill it exactly or their number differs from the count in the header.
 */
function entryCrc(bytes: Uint8Array, at: number, length: number, salt: number): number {
  const end = at + length
  let left = readU32(bytes, at + BATCHES_AT)
  let crc = crc32(bytes, at, at + CRC_AT, salt)
  crc = crc32(NO_CRC, 0, NO_CRC.length, crc)
  crc = crc32(bytes, at + CRC_AT + NO_CRC.length, at + ENTRY_HEADER_BYTES, crc)
  for (let batch = at + ENTRY_HEADER_BYTES; batch < end; left--) {
    const next = batchEnd(bytes, batch, end)
    if (next < 0) return -1
    crc = crc32(bytes, batch, batch + BATCH_HEADER_BYTES, crc)
    batch = next
  }
  return left === 0 ? crc : -1
}

/**
 * Writes the header of the entry of `length` bytes at `at`, whose batches are in place and sealed.
 * @returns the entry's CRC, which the next entry contains
 */
export function sealEntry(bytes: Uint8Array, at: number, length: number, seal: EntrySeal): number {
  writeU32(bytes, at, ENTRY_MAGIC)
  writeU32(bytes, at + LENGTH_AT, length)
  writeU64(bytes, at + LSN_AT, seal.lsn)
  writeU32(bytes, at + EPOCH_AT, seal.epoch)
  writeU32(bytes, at + PREVIOUS_CRC_AT, seal.previousCrc)
  writeU48(bytes, at + TIME_AT, seal.timeMs)
  writeU16(bytes, at + TIME_AT + 6, 0)
  writeU32(bytes, at + BATCHES_AT, seal.batches)
  writeU64(bytes, at + POSITION_AT, seal.position)
  bytes.fill(0, at + SPARE_AT, at + ENTRY_HEADER_BYTES)
  const crc = entryCrc(bytes, at, length, seal.salt)
  // An entry without a valid CRC would be unreadable.
  if (crc < 0) throw new Error(`Entry ${seal.lsn} is not filled by exactly ${seal.batches} batches.`)
  writeU32(bytes, at + CRC_AT, crc)
  return crc
}

/** Reads the header at `at` without checking it. */
export function readEntryHeader(bytes: Uint8Array, at: number): EntryHeader {
  return {
    length: readU32(bytes, at + LENGTH_AT),
    lsn: readU64(bytes, at + LSN_AT),
    epoch: readU32(bytes, at + EPOCH_AT),
    previousCrc: readU32(bytes, at + PREVIOUS_CRC_AT),
    timeMs: readU48(bytes, at + TIME_AT),
    batches: readU32(bytes, at + BATCHES_AT),
    crc: readU32(bytes, at + CRC_AT),
    position: readU64(bytes, at + POSITION_AT),
  }
}

/** Reads one field without creating an object, because readers need the length, LSN and CRC of each entry. */
export function entryLength(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + LENGTH_AT)
}

export function entryLsn(bytes: Uint8Array, at: number): number {
  return readU64(bytes, at + LSN_AT)
}

export function entryCrcOf(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + CRC_AT)
}

/**
 * Whether the entry at `at` is whole and is the expected entry. Reads at most `available` bytes from `at` on. Does not
 * check the records: see `recordsAreIntact`.
 */
export function checkEntry(
  bytes: Uint8Array,
  at: number,
  available: number,
  expected: EntryExpectation,
): 'valid' | EntryFault {
  if (available < ENTRY_HEADER_BYTES) return 'short'
  if (readU32(bytes, at) !== ENTRY_MAGIC) return 'magic'
  const length = readU32(bytes, at + LENGTH_AT)
  if (length < ENTRY_HEADER_BYTES) return 'length'
  const lsn = readU64(bytes, at + LSN_AT)
  if (!Number.isSafeInteger(lsn) || (expected.lsn !== undefined && lsn !== expected.lsn)) return 'lsn'
  if (expected.previousCrc !== undefined && readU32(bytes, at + PREVIOUS_CRC_AT) !== expected.previousCrc) {
    return 'previous-crc'
  }
  if (readU64(bytes, at + POSITION_AT) !== expected.position) return 'position'
  if (length > available) return 'short'
  const crc = entryCrc(bytes, at, length, expected.salt)
  if (crc < 0) return 'batches'
  return crc === readU32(bytes, at + CRC_AT) ? 'valid' : 'crc'
}

/**
 * Whether these bytes are a remnant of the expected entry. Two of four fields must match: a flipped bit changes only
 * one of them, and unrelated bytes match only by chance.
 */
export function resemblesEntry(bytes: Uint8Array, at: number, expected: EntryExpectation): boolean {
  let alike = 0
  if (readU32(bytes, at) === ENTRY_MAGIC) alike++
  if (readU64(bytes, at + LSN_AT) === expected.lsn) alike++
  if (readU32(bytes, at + PREVIOUS_CRC_AT) === expected.previousCrc) alike++
  if (readU64(bytes, at + POSITION_AT) === expected.position) alike++
  return alike >= 2
}

/** The start of each batch of the entry at `at`. Stops at a batch that does not fit in the entry. */
export function* entryBatches(bytes: Uint8Array, at: number): Generator<number, void, undefined> {
  const end = at + Math.min(readU32(bytes, at + LENGTH_AT), bytes.length - at)
  for (let batch = at + ENTRY_HEADER_BYTES; batch < end;) {
    const next = batchEnd(bytes, batch, end)
    if (next < 0) return
    yield batch
    batch = next
  }
}

/** Whether the batches fill the entry at `at` and the records of each match its checksum. */
export function recordsAreIntact(bytes: Uint8Array, at: number): boolean {
  const length = readU32(bytes, at + LENGTH_AT)
  if (length < ENTRY_HEADER_BYTES || length > bytes.length - at) return false
  const end = at + length
  for (let batch = at + ENTRY_HEADER_BYTES; batch < end;) {
    const next = batchEnd(bytes, batch, end)
    if (next < 0 || !batchIsIntact(bytes, batch, next)) return false
    batch = next
  }
  return true
}
