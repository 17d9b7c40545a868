/**
 * The limits that follow from `Log.entryBytesMax`. Whatever a crash must keep or lose as a whole is written to one
 * entry: a batch with the facts that precede it, an atomic step, a moved message, a state page. Each limit is checked
 * where its data is accepted or remembered (`intake.ts`, `leases.ts`, `producers.ts`, the handshake), before anything
 * changes.
 *
 * Invariant: from ENTRY_BYTES_MIN on, the largest write of each kind fits in an entry with its headers and padding, so
 * `Tail` never refuses a write.
 */
import { LIMITS } from '@sluice/protocol'

/**
 * Smallest `entryBytesMax` of a server. The largest page that does not depend on these limits is that of a chunk, with
 * 80 KiB besides its reasons. Tests use less where their pages are small.
 */
export const ENTRY_BYTES_MIN = 128 << 10

/** Size of one remembered number in the page of a producer, in bytes. */
export const PRODUCER_NUMBER_BYTES = 20

export interface EntryLimits {
  readonly entryBytesMax: number
  /** One message with MESSAGE_OVERHEAD_BYTES. A moved message has up to LIMITS.headersBytesMax of origin headers more. */
  readonly messageBytesMax: number
  /** One batch with its header. */
  readonly batchBytesMax: number
  /** The facts about known ids of one batch. They precede the batch in its entry. */
  readonly aheadBytesMax: number
  /** An atomic step, as `intake.ts` counts it. Headers and facts that are not counted take at most twice as much. */
  readonly stepBytesMax: number
  /** One batch of facts, unless a single fact is larger. */
  readonly factsBytesMax: number
  /** The reasons of the dead messages of one chunk, in its page. */
  readonly reasonsBytesMax: number
  /** The results in the page of one producer that are more than a base offset. The newest result may be larger. */
  readonly resultsBytesMax: number
  /** Numbers that are remembered of one producer, and so its batches in flight; a power of two. */
  readonly producerNumbersMax: number
}

export function entryLimits(entryBytesMax: number): EntryLimits {
  const numbers = 2 ** Math.floor(Math.log2(entryBytesMax / 2 / PRODUCER_NUMBER_BYTES))
  return {
    entryBytesMax,
    messageBytesMax: entryBytesMax / 4,
    batchBytesMax: entryBytesMax / 2,
    aheadBytesMax: entryBytesMax / 4,
    stepBytesMax: entryBytesMax / 4,
    factsBytesMax: entryBytesMax / 8,
    reasonsBytesMax: entryBytesMax / 4,
    resultsBytesMax: entryBytesMax / 4,
    producerNumbersMax: Math.min(LIMITS.inFlightBatchesMax, numbers),
  }
}
