import type { Pages } from './pages.js'

/** A batch, or a row of a shared batch, that is needed and was copied. */
export interface Copy {
  readonly from: number
  /** Bytes that it counted. */
  readonly fromBytes: number
  readonly to: number
  /** Bytes that it counts now. */
  readonly toBytes: number
  /** The scale of a share. */
  readonly scale: number
  /** The part of the bytes that were reported as gone and that the copy does not count any more. */
  readonly leftOutBytes: number
}

/**
 * Counts the bytes of batches that have live or retained messages, by segment of the log. The counts show which segments
 * are still needed, and the cost of copying their batches. A batch counts in full until its last such message is gone.
 * In a shared batch, which several queues use, each row counts its share (see shares.ts) until its last such message is
 * gone.
 */
export interface LogUse {
  /** Gets notified of the pages of chunks and ids. */
  readonly pages: Pages
  /** Number of the segment that contains `position`. */
  segmentOf(position: number): number
  /** The batch at `position` is needed now. `bytes` is its size, including its header. */
  add(position: number, bytes: number): void
  /** Rows of a shared batch at `position` are needed now. `bytes` is the sum of their shares, `scale` the largest of their scales. */
  share(position: number, bytes: number, scale: number): void
  /**
   * Called when no message of the batch at `position`, or of rows of shared batches, is live or retained any more. All
   * `bytes` were reported to `gone`.
   */
  remove(position: number, bytes: number): void
  /** An estimate of bytes that are no longer needed, although the batch that contains them may be. */
  gone(bytes: number): void
  move(copy: Copy): void
}
