/**
 * A location: where a message is in the log. `Contents.locate` and `Chunk.locate` fill one, and there is no other way from
 * an offset to a place: what reads the log does not look into batch tables. The index of the message in its batch is in
 * the header of the batch, as it is stored: the first of a batch can be in a chunk that is gone.
 */
import { SluiceError, batchBaseOffset, batchCount, batchQueueId } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'

export interface Location {
  offset: number
  /** Where its batch is in the log. */
  batchPosition: number
  publishedAtMs: number
  /**
   * Offsets `[batchFrom, batchEnd)` of the chunk are in this batch, or are gone: it can begin in an earlier chunk and go
   * on in the next, and end before others that are gone.
   */
  batchFrom: number
  batchEnd: number
}

export function emptyLocation(): Location {
  return { offset: 0, batchPosition: 0, publishedAtMs: 0, batchFrom: 0, batchEnd: 0 }
}

/** Index of the message in its batch, whose header is at `bytes[at]`. */
export function indexInBatch({ offset }: Location, bytes: Uint8Array, at: number): number {
  return offset - batchBaseOffset(bytes, at)
}

/**
 * Whether the batch at `bytes[at]` is the one that the queue has there. Its checksum covers its records alone, so the
 * header is compared with what the queue knows. A batch that reaches over both ends of the chunk is known by its queue and
 * by holding the offset.
 * @throws SluiceError CORRUPT
 */
export function checkBatchAt(
  { offset, batchPosition, batchFrom, batchEnd }: Location,
  queue: { readonly id: number; readonly name: string },
  bytes: Uint8Array,
  at: number,
): void {
  const first = batchBaseOffset(bytes, at)
  const end = first + batchCount(bytes, at)
  const isFirst = batchFrom % CHUNK_MESSAGES === 0 ? first <= batchFrom : first === batchFrom
  // Batches between it and the next one that the chunk knows may be gone.
  const isLast = batchEnd % CHUNK_MESSAGES === 0 ? end >= batchEnd : end > offset && end <= batchEnd
  if (isFirst && isLast && batchQueueId(bytes, at) === queue.id) return
  throw new SluiceError(
    'CORRUPT',
    `The batch at position ${batchPosition} of the log is not the one that the queue ${queue.name} has there.`,
  )
}
