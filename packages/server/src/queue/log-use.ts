import type { Pages } from './pages.js'

/**
 * Counts the bytes of batches that have live or retained messages, by segment of the log. The counts show which segments
 * are still needed, and the cost of copying their batches. A batch counts in full until its last such message is gone.
 * For a shared batch, which several queues use, the rows that have such messages are counted.
 */
export interface LogUse {
  /** Gets notified of the pages of chunks and ids. */
  readonly pages: Pages
  /** Number of the segment that contains `position`. */
  segmentOf(position: number): number
  /** The batch at `position` is needed now. `bytes` is its size, including its header. */
  add(position: number, bytes: number): void
  /**
   * `rows` more rows of the shared batch at `position` are needed now. `bytes` is the size of the batch, and `neededBytes`
   * about that of the records that these rows need.
   */
  share(position: number, bytes: number, rows: number, neededBytes: number): void
  /**
   * Called when no message of the batch at `position`, or of a row of a shared batch, is live or retained any more. All
   * record bytes of a batch that is not shared were reported to `gone`.
   */
  remove(position: number, bytes: number, isShared: boolean): void
  /** Messages are neither live nor retained any more. `bytes` is an estimate of the bytes of their records. */
  gone(bytes: number): void
  /** Like `gone`, for messages of one queue in the shared batch at `position`. */
  goneShared(position: number, bytes: number): void
  /** A batch of `bytes` that is needed was copied from `from` to `to`, where it takes `copyBytes`. */
  move(from: number, to: number, bytes: number, copyBytes: number): void
}
