/**
 * Cold chunks: full chunks that are not in memory, because their pages contain all of their state. Either every message
 * of a cold chunk is ready and has no state of its own, or all its messages are gone and some are retained for replay. So
 * its page is only the table of batches and the set of retained messages. A summary of each page is kept in memory with
 * the position of the page. The summary answers every question except where a single message is stored.
 */
import type { Chunk } from './chunk.js'
import { RETAINED_EXCESS_BYTES_MAX } from './retained.js'

/** A chunk stays in memory if its batches are in more segments than this. */
export const SUMMARY_SEGMENTS_MAX = 4

/** In a summary: the first or last batch is shared, or has no retained message in the chunk. */
export const NO_BATCH = 0

export interface ChunkSummary {
  /** Number of the messages that are live or retained, and bytes of their records. */
  readonly messages: number
  readonly bytes: number
  /** Publish time of the first message. */
  readonly firstMs: number
  /** Time of the last acknowledgement, if all messages are gone and some are retained; 0 if all messages are live. */
  readonly retainedMs: number
  /** Position and size of the first batch, which can begin in the previous chunk. */
  readonly firstPosition: number
  readonly firstBytes: number
  /** Position and size of the last batch, which can end in a later chunk. */
  readonly lastPosition: number
  readonly lastBytes: number
  /**
   * For each segment that holds batches with live or retained messages, in order of first occurrence: the position of
   * the first of these batches, and what they count: their size, headers included, or the share of a row.
   */
  readonly uses: readonly (readonly [position: number, bytes: number])[]
  /** The largest scale of the shares among these bytes; 0 if there is no shared batch. */
  readonly scale: number
}

/** The summary of a chunk that may be cold; undefined if the chunk must stay in memory. */
export function summaryOf(chunk: Chunk, segmentOf: (position: number) => number): ChunkSummary | undefined {
  const { batches, retained } = chunk
  const isRetained = chunk.isOnlyRetained && retained!.bytes <= RETAINED_EXCESS_BYTES_MAX
  if (!isRetained && !chunk.isUntouched) return undefined
  const last = batches.count - 1
  // A row counts for itself, even if the next chunk has another row of its shared batch.
  const reachesOut = (batch: number): boolean =>
    !batches.isShared(batch) && !(isRetained && chunk.isUnneededHere(batch))
  let scale = 0
  const uses = new Map<number, [number, number]>()
  for (let batch = 0; batch <= last; batch++) {
    if (isRetained && chunk.isUnneededHere(batch)) continue
    scale = Math.max(scale, batches.scale(batch))
    const position = batches.position(batch)
    const segment = segmentOf(position)
    const use = uses.get(segment)
    if (use !== undefined) use[1] += batches.bytes(batch)
    else if (uses.size === SUMMARY_SEGMENTS_MAX) return undefined
    else uses.set(segment, [position, batches.bytes(batch)])
  }
  return {
    messages: isRetained ? retained!.count : chunk.live,
    bytes: Math.round(isRetained ? retained!.bytes : chunk.bytes),
    firstMs: batches.timeMs(0),
    retainedMs: isRetained ? retained!.newestMs : 0,
    firstPosition: reachesOut(0) ? batches.position(0) : NO_BATCH,
    firstBytes: batches.bytes(0),
    lastPosition: reachesOut(last) ? batches.position(last) : NO_BATCH,
    lastBytes: batches.bytes(last),
    uses: [...uses.values()],
    scale,
  }
}
