/** The largest write of each kind fits in an entry. `broker/entry-max.test.ts` makes these writes. */
import { BATCH_HEADER_BYTES, LIMITS, MESSAGE_OVERHEAD_BYTES, RECORD_HEADER_BYTES } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { ENTRY_HEADER_BYTES } from './entry.js'
import { ENTRY_BYTES_MIN, PRODUCER_NUMBER_BYTES, entryLimits } from './entry-limits.js'
import { SEGMENT_BYTES_DEFAULT, SEGMENT_HEADER_BYTES } from './segment.js'

const KIB = 1 << 10
const FACT_WITH_TIME_BYTES = 24
/** Size of an entry with one batch, such as a page, without the payload of the batch. */
const ALONE_BYTES = ENTRY_HEADER_BYTES + BATCH_HEADER_BYTES

/**
 * Total size of the headers of the batches that hold `bytes` bytes of facts. Any two successive batches together exceed
 * `factsBytesMax`.
 */
const headersOf = (bytes: number, factsBytesMax: number): number =>
  BATCH_HEADER_BYTES * Math.max(1, Math.ceil((2 * bytes) / factsBytesMax))

describe.each([ENTRY_BYTES_MIN, 256 * KIB, 1024 * KIB, SEGMENT_BYTES_DEFAULT - SEGMENT_HEADER_BYTES])(
  'an entry of %i bytes',
  (entryBytesMax) => {
    const limits = entryLimits(entryBytesMax)
    const { factsBytesMax, aheadBytesMax, batchBytesMax, stepBytesMax } = limits

    it('has room for a batch with the facts that precede it', () => {
      const ahead = aheadBytesMax + FACT_WITH_TIME_BYTES
      const cancelled = BATCH_HEADER_BYTES
      const facts = ahead + headersOf(ahead, factsBytesMax) + cancelled
      expect(ENTRY_HEADER_BYTES + facts + batchBytesMax).toBeLessThanOrEqual(entryBytesMax)
    })

    it('has room for a batch as the SDK packs it', () => {
      expect(batchBytesMax).toBeGreaterThanOrEqual(LIMITS.batchBytesTarget)
    })

    it('has room for an atomic step, including the bytes that are not counted', () => {
      // Per batch: the header of its facts, its time to live, and its item in the result.
      const notCounted = BATCH_HEADER_BYTES + FACT_WITH_TIME_BYTES + '[4294967295,9007199254740991],'.length
      const counted = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES
      // Per replaced message: one more header, if each message is in a different queue.
      const share = Math.max(notCounted / counted, BATCH_HEADER_BYTES / (FACT_WITH_TIME_BYTES + 16))
      expect(share).toBeLessThan(2)
      const facts = headersOf(stepBytesMax, factsBytesMax)
      expect(ENTRY_HEADER_BYTES + stepBytesMax * (1 + share) + facts).toBeLessThanOrEqual(entryBytesMax)
    })

    it('has room for a message that moved, with its origin headers', () => {
      const facts = 2 * (BATCH_HEADER_BYTES + FACT_WITH_TIME_BYTES) + LIMITS.queueNameBytesMax
      const bytes = limits.messageBytesMax + LIMITS.headersBytesMax + facts
      expect(ENTRY_HEADER_BYTES + bytes).toBeLessThanOrEqual(entryBytesMax)
      expect(limits.messageBytesMax).toBeLessThanOrEqual(stepBytesMax)
      expect(limits.messageBytesMax + LIMITS.headersBytesMax).toBeLessThanOrEqual(batchBytesMax)
      expect(limits.messageBytesMax).toBeGreaterThan(MESSAGE_OVERHEAD_BYTES)
    })

    it('has room for the page of a chunk with its reasons', () => {
      const chunkBytes = 160 + 1024 * 79
      expect(ALONE_BYTES + chunkBytes + limits.reasonsBytesMax).toBeLessThanOrEqual(entryBytesMax)
    })

    it('has room for a page of ids, and for a node in a directory', () => {
      const idsBytes = 16 + 1024 * 32
      const nodeBytes = 40 + 8 + 256 * (24 + 40 + 4 * 12)
      expect(ALONE_BYTES + Math.max(idsBytes, nodeBytes)).toBeLessThanOrEqual(entryBytesMax)
    })

    it('has room for the page of a producer, even if its newest result is the largest', () => {
      const numbers = limits.producerNumbersMax
      expect(Math.log2(numbers) % 1).toBe(0)
      expect(numbers).toBeLessThanOrEqual(LIMITS.inFlightBatchesMax)
      const newest = 40 * (1 + aheadBytesMax / FACT_WITH_TIME_BYTES)
      const places = Math.max(limits.resultsBytesMax, newest)
      const bytes = 48 + numbers * PRODUCER_NUMBER_BYTES + places
      expect(ALONE_BYTES + bytes).toBeLessThanOrEqual(entryBytesMax)
    })
  },
)

it('a log with segments of 1 MiB does not limit the batches in flight', () => {
  const { producerNumbersMax } = entryLimits((1 << 20) - SEGMENT_HEADER_BYTES)
  expect(producerNumbersMax).toBe(LIMITS.inFlightBatchesMax)
})
