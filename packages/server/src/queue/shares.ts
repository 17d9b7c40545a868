/**
 * What the rows of a shared batch count as needed. Each row adds its share when the batch is written and removes it when none
 * of its messages is needed any more, like a batch of one queue. So nothing has to know all rows of a batch, and chunks
 * with such rows can be cold.
 *
 * Invariant: when a shared batch is written, the shares of its rows add up to at least what is written: the batch and a
 * batch with its `refer` facts. While rows leave it, the shares of the others are less than a copy of the batch. A copy
 * gives the rows that are left new shares, so that they add up again.
 *
 * If queues that retain messages use the batch, only their rows count its size, because these rows usually are the last.
 * With equal shares, a stream beside two queues would soon count a third of what it keeps, and all of it would be copied.
 */
import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import { REFER_BYTES, type Refer } from './facts.js'

/** What one row counts. */
export interface Share {
  readonly bytes: number
  /** The batch and its facts about this row have at most `bytes` × 2^`scale`. At most 28, since a batch has less than 4 GiB. */
  readonly scale: number
}

/** The shares of rows that count the size of the batch, and of those that do not. */
export interface Shares {
  readonly counted: Share
  readonly uncounted: Share
}

/** The shares of the rows of a batch of `batchBytes`, of which `countedRows` count its size. */
export function sharesOf(batchBytes: number, countedRows: number): Shares {
  const wholeBytes = batchBytes + BATCH_HEADER_BYTES
  return {
    counted: shareOf(REFER_BYTES + Math.ceil(wholeBytes / Math.max(1, countedRows)), wholeBytes),
    uncounted: shareOf(REFER_BYTES, wholeBytes),
  }
}

function shareOf(bytes: number, wholeBytes: number): Share {
  let scale = 0
  while (bytes * 2 ** scale < wholeBytes + REFER_BYTES) scale++
  return { bytes, scale }
}

/** Number of the rows with these facts that count the size of their batch. */
export function countedRows(refers: readonly Refer[]): number {
  let rows = 0
  for (const { isCounted } of refers) if (isCounted) rows++
  return rows
}
