/**
 * Cold chunks: full chunks that are not in memory, because their page is all that there is to know. Every message of a
 * cold chunk is ready and has no state of its own, so the page is only the table of batches. The summary of the page is
 * kept with the position of the page: it answers everything except where a single message is stored.
 */
import type { Chunk } from './chunk.js'

/** Maximum number of segments with batches of a chunk that is left out of memory. */
export const SUMMARY_SEGMENTS_MAX = 4

export interface ChunkSummary {
  /** Record bytes of the messages. */
  readonly bytes: number
  /** Publish time of the first message. */
  readonly firstMs: number
  /** Position and size of the first batch, which can begin in the chunk before. */
  readonly firstPosition: number
  readonly firstBytes: number
  /** Position and size of the last batch, which can end in a later chunk. */
  readonly lastPosition: number
  readonly lastBytes: number
  /**
   * Bytes of the batches by segment, headers included, in order of first occurrence: the position of one batch in the
   * segment, and the total. The first position is that of the first batch.
   */
  readonly uses: readonly (readonly [position: number, bytes: number])[]
}

/** The summary of a chunk that can be left out of memory; undefined if the chunk has to stay. */
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
    bytes: chunk.bytes,
    firstMs: batches.timeMs(0),
    firstPosition: batches.position(0),
    firstBytes: batches.bytes(0),
    lastPosition: batches.position(last),
    lastBytes: batches.bytes(last),
    uses: [...uses.values()],
  }
}
