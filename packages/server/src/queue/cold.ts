/**
 * Cold chunks: full chunks that are not in memory, because their pages contain all of their state. Every message of a
 * cold chunk is ready and has no state of its own, so its page is only the table of batches. A summary of each page is
 * kept in memory with the position of the page. The summary answers every question except where a single message is
 * stored.
 */
import type { Chunk } from './chunk.js'

/** A chunk stays in memory if its batches are in more segments than this. */
export const SUMMARY_SEGMENTS_MAX = 4

export interface ChunkSummary {
  /** Record bytes of the messages. */
  readonly bytes: number
  /** Publish time of the first message. */
  readonly firstMs: number
  /** Position and size of the first batch, which can begin in the previous chunk. */
  readonly firstPosition: number
  readonly firstBytes: number
  /** Position and size of the last batch, which can end in a later chunk. */
  readonly lastPosition: number
  readonly lastBytes: number
  /**
   * For each segment that holds batches of the chunk, in order of first occurrence: the position of one of these
   * batches, and their total size, headers included. The first position is that of the first batch.
   */
  readonly uses: readonly (readonly [position: number, bytes: number])[]
}

/** The summary of a chunk that may be cold; undefined if the chunk must stay in memory. */
export function summaryOf(chunk: Chunk, segmentOf: (position: number) => number): ChunkSummary | undefined {
  if (!chunk.isUntouched) return undefined
  const { batches } = chunk
  const last = batches.count - 1
  const uses = new Map<number, [number, number]>()
  for (let batch = 0; batch <= last; batch++) {
    const position = batches.position(batch)
    const segment = segmentOf(position)
    const use = uses.get(segment)
    if (use !== undefined) use[1] += batches.bytes(batch)
    else if (uses.size === SUMMARY_SEGMENTS_MAX) return undefined
    else uses.set(segment, [position, batches.bytes(batch)])
  }
  return {
    bytes: Math.round(chunk.bytes),
    firstMs: batches.timeMs(0),
    firstPosition: batches.position(0),
    firstBytes: batches.bytes(0),
    lastPosition: batches.position(last),
    lastBytes: batches.bytes(last),
    uses: [...uses.values()],
  }
}
