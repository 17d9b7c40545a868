/**
 * Sparse batches: copies of stored batches that leave out records that are no longer needed. Only the broker writes
 * them, and only to its log. This file also answers, for stored batches of both forms, where their records are.
 *
 * A sparse batch has the header of the original batch, including the count of its records, with another length, the
 * attribute `sparse` and another CRC. After the header: u16 count of the records that are present · for each of them u16
 * index in the original batch, ascending · the records, unchanged. The CRC covers the header, with the CRC itself as 0,
 * and everything after the header. So a flipped attribute bit never turns indexes into records.
 *
 * The slot of a record is its number among the records that are present. In a batch that is not sparse, slot and index
 * are equal. Consecutive slots are adjacent bytes.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  batchAttributes,
  batchCount,
  batchRecordsCrc,
  recordsMatchCrc,
  writeBatchAttributes,
  writeBatchLength,
  writeRecordsCrc,
} from './batch.js'
import { readU16, viewBytes, writeU16 } from './bytes.js'
import { crc32 } from './checksum.js'
import { RECORD_HEADER_BYTES, recordSize } from './record.js'

const PRESENT_AT = BATCH_HEADER_BYTES
const INDEXES_AT = BATCH_HEADER_BYTES + 2
const INDEX_BYTES = 2
const NO_CRC = new Uint8Array(4)

export function isSparse(bytes: Uint8Array, at: number): boolean {
  return (batchAttributes(bytes, at) & BATCH_ATTRIBUTE.sparse) !== 0
}

/** Number of records in the stored batch at `at`. */
export function presentCount(bytes: Uint8Array, at: number): number {
  return isSparse(bytes, at) ? readU16(bytes, at + PRESENT_AT) : batchCount(bytes, at)
}

/** Position of the first record of the stored batch at `at`. */
export function firstRecordAt(bytes: Uint8Array, at: number): number {
  return isSparse(bytes, at)
    ? at + INDEXES_AT + INDEX_BYTES * readU16(bytes, at + PRESENT_AT)
    : at + BATCH_HEADER_BYTES
}

/** Index in the original batch of the record in this slot. */
export function indexOfSlot(bytes: Uint8Array, at: number, slot: number): number {
  return isSparse(bytes, at) ? indexAt(bytes, at, slot) : slot
}

/** Slot of the record with this index; -1 if the record was left out. */
export function slotOfIndex(bytes: Uint8Array, at: number, index: number): number {
  if (!isSparse(bytes, at)) return index
  let low = 0
  let high = readU16(bytes, at + PRESENT_AT) - 1
  while (low < high) {
    const middle = (low + high) >>> 1
    if (indexAt(bytes, at, middle) < index) low = middle + 1
    else high = middle
  }
  return indexAt(bytes, at, low) === index ? low : -1
}

function indexAt(bytes: Uint8Array, at: number, slot: number): number {
  return readU16(bytes, at + INDEXES_AT + INDEX_BYTES * slot)
}

/**
 * Size of a sparse copy of the stored batch at `at` that has only the records with these indexes, which are ascending.
 * Returns -1 if one of these records is not present.
 */
export function sparseBytes(bytes: Uint8Array, at: number, indexes: readonly number[]): number {
  const present = presentCount(bytes, at)
  let length = INDEXES_AT + INDEX_BYTES * indexes.length
  let record = firstRecordAt(bytes, at)
  let kept = 0
  for (let slot = 0; slot < present && kept < indexes.length; slot++) {
    const size = recordSize(bytes, record)
    if (indexOfSlot(bytes, at, slot) === indexes[kept]) {
      length += size
      kept++
    }
    record += size
  }
  return kept === indexes.length ? length : -1
}

/**
 * Writes a sparse copy of the stored batch at `at` to `target[to, to + length)`. `length` is the result of `sparseBytes`
 * for the same indexes. `attributes` are those of the copy, without `sparse`.
 */
export function writeSparse(
  target: Uint8Array,
  to: number,
  bytes: Uint8Array,
  at: number,
  indexes: readonly number[],
  length: number,
  attributes: number,
): void {
  target.set(viewBytes(bytes, at, at + BATCH_HEADER_BYTES), to)
  writeBatchLength(target, to, length)
  writeBatchAttributes(target, to, attributes | BATCH_ATTRIBUTE.sparse)
  writeU16(target, to + PRESENT_AT, indexes.length)
  let next = to + INDEXES_AT + INDEX_BYTES * indexes.length
  let slot = 0
  let record = firstRecordAt(bytes, at)
  for (let kept = 0; kept < indexes.length; kept++) {
    const index = indexes[kept]!
    for (; indexOfSlot(bytes, at, slot) !== index; slot++) record += recordSize(bytes, record)
    writeU16(target, to + INDEXES_AT + INDEX_BYTES * kept, index)
    const size = recordSize(bytes, record)
    target.set(viewBytes(bytes, record, record + size), next)
    next += size
    record += size
    slot++
  }
  writeRecordsCrc(target, to, sparseCrc(target, to, to + length))
}

/** Whether the stored batch at `[at, end)` matches its checksum. If it is sparse, also checks its indexes and the sizes of its records. */
export function batchIsIntact(bytes: Uint8Array, at: number, end: number): boolean {
  if (!isSparse(bytes, at)) return recordsMatchCrc(bytes, at, end)
  if (end - at < INDEXES_AT || batchRecordsCrc(bytes, at) !== sparseCrc(bytes, at, end)) return false
  const present = readU16(bytes, at + PRESENT_AT)
  let record = firstRecordAt(bytes, at)
  if (present === 0 || record > end) return false
  for (let slot = 0, above = -1; slot < present; slot++) {
    const index = indexAt(bytes, at, slot)
    if (index <= above || index >= batchCount(bytes, at)) return false
    above = index
    if (end - record < RECORD_HEADER_BYTES) return false
    const size = recordSize(bytes, record)
    if (size < RECORD_HEADER_BYTES || size > end - record) return false
    record += size
  }
  return record === end
}

function sparseCrc(bytes: Uint8Array, at: number, end: number): number {
  const crcAt = at + BATCH_HEADER_BYTES - NO_CRC.length
  const crc = crc32(NO_CRC, 0, NO_CRC.length, crc32(bytes, at, crcAt))
  return crc32(bytes, at + BATCH_HEADER_BYTES, end, crc)
}
