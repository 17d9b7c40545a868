/**
 * The batches of an atomic step as queues get them: a batch that was published to a topic becomes one batch for each
 * target, with the records that the target gets. Called by `Intake`.
 *
 * Invariant: the batches of a step for its queues stay within the limits of the batches, messages and bytes of one step,
 * also while they are collected, so that a step with many targets takes no more memory and time than the largest step
 * without topics.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  SluiceError,
  batchAttributes,
  batchCount,
  batchNumber,
  recordSize,
  sealBatch,
  viewBytes,
} from '@sluice/protocol'
import type { Queue } from '../queue/index.js'
import type { BatchBytes, RecordRange, Target } from './commands.js'

/** The targets of a batch that is published to a topic, whose records have these flags. @throws SluiceError */
export type TargetsOfTopic = (address: string, batch: BatchBytes, flags: number) => readonly Target[]

/** A batch for one queue, whose records have these flags. */
export interface QueueBatch extends BatchBytes {
  readonly queue: Queue
  readonly flags: number
}

export class StepBatches {
  readonly batches: QueueBatch[] = []
  readonly #bytesMax: number
  #messages = 0
  #bytes = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** Adds a batch that was published to this queue. */
  add(queue: Queue, { bytes, at, end }: BatchBytes, flags: number): void {
    this.batches.push({ queue, bytes, at, end, flags })
    this.#messages += batchCount(bytes, at)
    this.#bytes += end - at
  }

  /** Adds the part of a batch that each target gets. @throws SluiceError TRANSACTION_TOO_LARGE */
  addForTargets(targets: readonly Target[], batch: BatchBytes, flags: number): void {
    for (const { queue, ranges } of targets) {
      this.add(queue, ranges === undefined ? batch : partOf(batch, ranges), flags)
      limit(this.batches.length, 'batches', LIMITS.atomicBatchesMax)
      limit(this.#messages, 'messages', LIMITS.atomicMessagesMax)
      limit(this.#bytes, 'bytes', this.#bytesMax)
    }
  }
}

/** A copy of the batch that begins at `at`, with its batch number and only the records in `ranges`. */
function partOf({ bytes, at }: BatchBytes, ranges: readonly RecordRange[]): BatchBytes {
  const records: Uint8Array[] = []
  let end = BATCH_HEADER_BYTES
  let count = 0
  let index = 0
  let from = at + BATCH_HEADER_BYTES
  for (const range of ranges) {
    for (; index < range.index; index++) from += recordSize(bytes, from)
    const start = from
    for (; index < range.index + range.count; index++) from += recordSize(bytes, from)
    records.push(viewBytes(bytes, start, from))
    end += from - start
    count += range.count
  }
  const part = new Uint8Array(end)
  let to = BATCH_HEADER_BYTES
  for (const record of records) {
    part.set(record, to)
    to += record.length
  }
  const stamp = { type: BATCH_TYPE.messages, attributes: batchAttributes(bytes, at), count }
  sealBatch(part, 0, end, { ...stamp, batchNumber: batchNumber(bytes, at) })
  return { bytes: part, at: 0, end }
}

// @throws SluiceError TRANSACTION_TOO_LARGE
function limit(count: number, what: string, max: number): void {
  if (count <= max) return
  throw new SluiceError(
    'TRANSACTION_TOO_LARGE',
    `An atomic step has ${count} ${what} for the queues that its topics reach; at most ${max} are accepted.`,
  )
}
