/**
 * A location: the place of a message in the log. Only `Contents.locate` and `Chunk.locate` map an offset to a place, by
 * filling in a location: readers of the log do not use batch tables. The slot of the message in its batch is computed
 * from the stored batch, because the chunk with the first message of the batch may be gone. The header of a shared batch,
 * which several queues use, has no offset; the location then has an index in the batch.
 */
import {
  SluiceError,
  batchBaseOffset,
  batchCount,
  batchQueueId,
  isSparse,
  slotOfIndex,
} from '@sluice/protocol'
import { NOT_SHARED } from './batches.js'
import { CHUNK_MESSAGES } from './bits.js'

/** Queue id in the header of a shared batch. */
export const SHARED_QUEUE_ID = 0

export interface Location {
  offset: number
  /** Position of the batch in the log. */
  batchPosition: number
  publishedAtMs: number
  /**
   * Each offset in `[batchFrom, batchEnd)` is in this batch or gone. The range does not go beyond the chunk. The batch can
   * start before the range, continue after it, or end within it before offsets that are gone.
   */
  batchFrom: number
  batchEnd: number
  /** Index in the batch of the message at `batchFrom`, if the batch is shared; otherwise `NOT_SHARED`. */
  sharedIndex: number
}

export function emptyLocation(): Location {
  return {
    offset: 0,
    batchPosition: 0,
    publishedAtMs: 0,
    batchFrom: 0,
    batchEnd: 0,
    sharedIndex: NOT_SHARED,
  }
}

/**
 * Slot of the message in its batch, which is at `bytes[at]`. The `count` messages from this one on, which are not gone, are
 * in consecutive slots.
 * @throws SluiceError CORRUPT if one of them is not in the batch
 */
export function slotInBatch(
  { offset, batchPosition, batchFrom, sharedIndex }: Location,
  count: number,
  bytes: Uint8Array,
  at: number,
): number {
  const index =
    sharedIndex === NOT_SHARED ? offset - batchBaseOffset(bytes, at) : sharedIndex + offset - batchFrom
  if (!isSparse(bytes, at)) return index
  const slot = slotOfIndex(bytes, at, index)
  if (slot !== -1 && slotOfIndex(bytes, at, index + count - 1) === slot + count - 1) return slot
  throw new SluiceError(
    'CORRUPT',
    `The batch at position ${batchPosition} of the log does not have the messages from ${offset} to ${offset + count - 1}.`,
  )
}

/** A queue that uses batches; for a group, they are those of its stream. */
export interface BatchUser {
  readonly batchOwner: number
  readonly name: string
  readonly group?: object | undefined
}

/**
 * Checks that the batch at `bytes[at]` is the batch of the location. The checksum of a batch does not cover its
 * header, so the header is compared with the location. If the range of the location is the whole chunk, the batch
 * only has to be of this queue and to contain the range. A shared batch has no queue and no offsets, and only has to
 * contain the index of the message.
 * @throws SluiceError CORRUPT
 */
export function checkBatchAt(location: Location, queue: BatchUser, bytes: Uint8Array, at: number): void {
  const { offset, batchPosition, batchFrom, batchEnd, sharedIndex } = location
  const isShared = sharedIndex !== NOT_SHARED
  const first = isShared ? batchFrom - sharedIndex : batchBaseOffset(bytes, at)
  const end = first + batchCount(bytes, at)
  const isFirst = isShared || (batchFrom % CHUNK_MESSAGES === 0 ? first <= batchFrom : first === batchFrom)
  // Batches between this one and the next one in the batch table may be gone, or may have been passed over by a group. A batch
  // can enter a group in parts.
  const isLast =
    isShared || queue.group !== undefined
      ? end > offset
      : batchEnd % CHUNK_MESSAGES === 0
        ? end >= batchEnd
        : end > offset && end <= batchEnd
  if (isFirst && isLast && batchQueueId(bytes, at) === (isShared ? SHARED_QUEUE_ID : queue.batchOwner)) return
  throw new SluiceError(
    'CORRUPT',
    `The batch at position ${batchPosition} of the log is not the batch of the queue ${queue.name} that was written there.`,
  )
}
