/**
 * The limits that follow from `Log.entryBytesMax`. Data that a crash must keep or lose as a whole is written in one
 * entry: a batch with the facts that precede it, an atomic step, a moved message, a state page. Each limit is checked
 * where its data is accepted or remembered (`intake.ts`, `leases.ts`, `producers.ts`, the handshake), before anything
 * changes.
 *
 * Invariant: from ENTRY_BYTES_MIN on, the largest write of each kind fits in an entry with its headers and padding, so
 * `Tail` never refuses a write.
 */
import { LIMITS } from '@sluice/protocol'

/**
 * Smallest `entryBytesMax` of a server. The largest page that these limits do not bound is that of a chunk: up to 82
 * KiB without its reasons. Tests with small pages use a smaller value.
 */
export const ENTRY_BYTES_MIN = 128 << 10

/** Size of one remembered number in the page of a producer, in bytes. */
export const PRODUCER_NUMBER_BYTES = 20

/** Maximum size of the text of one definition, in bytes. */
export const DEFINITION_BYTES_MAX = 32 << 10

export interface EntryLimits {
  readonly entryBytesMax: number
  /**
   * Size of one message, including MESSAGE_OVERHEAD_BYTES. A moved message can have up to LIMITS.headersBytesMax more
   * bytes, for its origin headers.
   */
  readonly messageBytesMax: number
  /** Size of one batch, including its header. */
  readonly batchBytesMax: number
  /** Size of the facts about ids of one batch that are already known. These facts precede the batch in its entry. */
  readonly aheadBytesMax: number
  /**
   * Size of an atomic step, as `intake.ts` counts it. The headers and facts that are not counted take at most twice
   * this size.
   */
  readonly stepBytesMax: number
  /** Size of one batch of facts, unless a single fact is larger. */
  readonly factsBytesMax: number
  /** Size of the text of one definition: a binding or a schedule. Its fact has a u16 for the size of the text. */
  readonly definitionBytesMax: number
  /** Size of the reasons of the dead messages of one chunk, in the page of the chunk. */
  readonly reasonsBytesMax: number
  /**
   * Size of those results in the page of one producer that are more than a base offset. The newest result may be
   * larger.
   */
  readonly resultsBytesMax: number
  /**
   * Number of batch numbers that are remembered for one producer, which limits its batches in flight; a power of two.
   */
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
    definitionBytesMax: Math.min(DEFINITION_BYTES_MAX, entryBytesMax / 8),
    reasonsBytesMax: entryBytesMax / 4,
    resultsBytesMax: entryBytesMax / 4,
    producerNumbersMax: Math.min(LIMITS.inFlightBatchesMax, numbers),
  }
}
