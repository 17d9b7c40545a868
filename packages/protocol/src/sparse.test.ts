import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  batchAttributes,
  readBatchHeader,
  sealBatch,
  stampBatch,
  writeRecordsCrc,
} from './batch.js'
import { readU32, writeU16 } from './bytes.js'
import { crc32 } from './checksum.js'
import { CONTENT_TYPE, RECORD_HEADER_BYTES, recordSize, writeRecordHead } from './record.js'
import {
  batchIsIntact,
  firstRecordAt,
  indexOfSlot,
  isSparse,
  presentCount,
  slotOfIndex,
  sparseBytes,
  writeSparse,
} from './sparse.js'

/** A batch whose message `i` has `sizes[i]` bytes of the value `i`. */
function batchOf(sizes: readonly number[]): Uint8Array {
  const length = sizes.reduce((sum, size) => sum + RECORD_HEADER_BYTES + size, BATCH_HEADER_BYTES)
  const bytes = new Uint8Array(length)
  let at = BATCH_HEADER_BYTES
  for (const [index, size] of sizes.entries()) {
    at = writeRecordHead(bytes, at, undefined, CONTENT_TYPE.bytes, size)
    bytes.fill(index, at, at + size)
    at += size
  }
  sealBatch(bytes, 0, length, { type: BATCH_TYPE.messages, count: sizes.length, batchNumber: 7 })
  stampBatch(bytes, 0, 3, 1_000, 5_000, 9)
  return bytes
}

/** A sparse copy behind some other bytes. */
function sparseOf(bytes: Uint8Array, at: number, indexes: readonly number[]): Uint8Array {
  const length = sparseBytes(bytes, at, indexes)
  const target = new Uint8Array(5 + length)
  const attributes = batchAttributes(bytes, at) | BATCH_ATTRIBUTE.relocated
  writeSparse(target, 5, bytes, at, indexes, length, attributes)
  return target.subarray(5)
}

/** The records in the batch, by index in the original batch. */
function recordsIn(bytes: Uint8Array): [number, Uint8Array][] {
  let at = firstRecordAt(bytes, 0)
  const records = Array.from({ length: presentCount(bytes, 0) }, (_, slot): [number, Uint8Array] => {
    const start = at
    at += recordSize(bytes, at)
    return [indexOfSlot(bytes, 0, slot), bytes.slice(start, at)]
  })
  expect(at).toBe(bytes.length)
  return records
}

const sizes = fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 2, maxLength: 80 })

/** Some of the indexes, ascending, and then some of these. */
const cuts = sizes.chain((sizes) => {
  const indexes = sizes.map((_, index) => index)
  return fc.record({
    sizes: fc.constant(sizes),
    first: fc.subarray(indexes, { minLength: 1 }),
    keep: fc.infiniteStream(fc.boolean()),
  })
})

describe('a sparse batch', () => {
  test('has exactly the kept records, unchanged, and the header of the original', () => {
    let twice = 0
    fc.assert(
      fc.property(cuts, ({ sizes, first, keep }) => {
        const original = batchOf(sizes)
        const all = recordsIn(original)
        const sparse = sparseOf(original, 0, first)
        expect(batchIsIntact(sparse, 0, sparse.length)).toBe(true)
        expect(recordsIn(sparse)).toEqual(all.filter(([index]) => first.includes(index)))
        const { length, attributes, recordsCrc, ...header } = readBatchHeader(sparse, 0)
        expect(readBatchHeader(original, 0)).toMatchObject(header)
        expect([length, attributes]).toEqual([sparse.length, 2 | 8])
        expect(recordsCrc).toBe(readU32(sparse, 44))
        for (const index of sizes.keys()) {
          const slot = slotOfIndex(sparse, 0, index)
          expect(slot).toBe(first.indexOf(index))
          expect(slotOfIndex(original, 0, index)).toBe(index)
        }
        // When more messages are gone, the copy is copied again.
        const second = first.filter(() => keep.next().value)
        if (second.length === 0) return
        twice++
        const again = sparseOf(sparse, 0, second)
        expect(batchIsIntact(again, 0, again.length)).toBe(true)
        expect(again).toEqual(sparseOf(original, 0, second))
      }),
    )
    expect(twice).toBeGreaterThan(50)
  })

  test('cannot be copied with a record that it does not have', () => {
    const sparse = sparseOf(batchOf([1, 2, 3, 4]), 0, [1, 3])
    expect(sparseBytes(sparse, 0, [1, 3])).toBe(sparse.length)
    for (const indexes of [[0], [1, 2], [1, 2, 3], [4]]) expect(sparseBytes(sparse, 0, indexes)).toBe(-1)
  })

  test('has the documented layout', () => {
    const sparse = sparseOf(batchOf([2, 0, 1]), 0, [0, 2])
    expect([...sparse.subarray(48)]).toEqual([
      ...[2, 0, 0, 0, 2, 0],
      ...[10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      ...[9, 0, 0, 0, 0, 0, 0, 0, 2],
    ])
    const unsigned = sparse.slice()
    writeRecordsCrc(unsigned, 0, 0)
    expect(readU32(sparse, 44)).toBe(crc32(unsigned, 0, unsigned.length))
  })

  test('is not intact after any byte of it was changed', () => {
    const sparse = sparseOf(batchOf([3, 5, 0, 7, 1]), 0, [0, 2, 3])
    let found = 0
    for (let at = 4; at < sparse.length; at++) {
      for (let bit = 0; bit < 8; bit++) {
        const damaged = sparse.slice()
        damaged[at]! ^= 1 << bit
        if (!batchIsIntact(damaged, 0, damaged.length)) found++
      }
    }
    expect(found).toBe((sparse.length - 4) * 8)
    for (let end = 1; end < sparse.length; end++) expect(batchIsIntact(sparse, 0, end)).toBe(false)
  })

  test('is not made by a flipped attribute of another batch', () => {
    const bytes = batchOf([3, 5])
    bytes[5]! ^= BATCH_ATTRIBUTE.sparse
    expect(isSparse(bytes, 0)).toBe(true)
    expect(batchIsIntact(bytes, 0, bytes.length)).toBe(false)
  })

  test('with a matching checksum is not intact if its indexes or sizes are impossible', () => {
    const sparse = sparseOf(batchOf([3, 5, 0, 7, 1]), 0, [0, 2, 3])
    const changes: ((bytes: Uint8Array) => void)[] = [
      (bytes) => writeU16(bytes, 48, 0),
      (bytes) => writeU16(bytes, 48, 2),
      (bytes) => writeU16(bytes, 48, 4),
      (bytes) => writeU16(bytes, 48, 0xffff),
      (bytes) => writeU16(bytes, 50, 2),
      (bytes) => writeU16(bytes, 50, 3),
      (bytes) => writeU16(bytes, 54, 5),
      (bytes) => writeU16(bytes, 56, RECORD_HEADER_BYTES - 1),
      (bytes) => writeU16(bytes, 56, RECORD_HEADER_BYTES + 4),
      (bytes) => writeU16(bytes, 56, 0xffff),
    ]
    for (const change of changes) {
      const bytes = sparse.slice()
      change(bytes)
      writeRecordsCrc(bytes, 0, 0)
      writeRecordsCrc(bytes, 0, crc32(bytes, 0, bytes.length))
      expect(batchIsIntact(bytes, 0, bytes.length), change.toString()).toBe(false)
    }
  })
})
