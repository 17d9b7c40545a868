/**
 * The search for expired messages in the chunks of a queue. `Queue` runs it at most once a second, and before each
 * decision that depends on the contents. One search finds a limited number of messages; later searches find the others.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'

/** Maximum number of messages that one search finds. */
const FOUND_MAX = 8_192
/** Searching a chunk costs about as much as removing this number of messages. */
const SEARCH_COST = 16

/** Expired messages. All queues share one object, whose contents are valid until the next search. */
export class Expired {
  count = 0
  /** Offsets of the messages and the times at which they left the line, in the order of offsets until `sort` is called. */
  readonly offsets = new Float64Array(FOUND_MAX)
  readonly times = new Float64Array(FOUND_MAX)
  /** Whether there may be expired messages that the search has not found. */
  hasMore = false
  /** Cost of the search and of removing what it has found, in messages. */
  cost = 0
  /** If `hasMore` is false: lower bound for the time at which the next message of the queue expires. */
  nextMs = Infinity

  /** Searches for expired messages that are in the line. Ends when the cost is at least `max`. */
  find(chunks: Chunks, nowMs: number, max: number): void {
    this.count = 0
    this.hasMore = false
    this.nextMs = Infinity
    let searches = 0
    for (const chunk of chunks) {
      if (chunk.earliestExpiryMs <= nowMs) {
        this.hasMore = this.count >= Math.min(max, FOUND_MAX) || searches * SEARCH_COST >= max
        if (this.hasMore) break
        searches++
        this.#search(chunk, nowMs, Math.min(max, FOUND_MAX))
        if (this.hasMore) break
      }
      this.nextMs = Math.min(this.nextMs, chunk.earliestExpiryMs)
    }
    this.cost = Math.max(this.count, searches * SEARCH_COST)
  }

  // Adds the expired messages of the chunk that are in the line, and sets the time of the chunk's next search.
  #search(chunk: Chunk, nowMs: number, max: number): void {
    const beforeMs = chunk.earliestExpiryMs
    chunk.earliestExpiryMs = Infinity
    for (const index of chunk.liveIndexes()) {
      const expiryMs = chunk.expiryAt(index)
      if (expiryMs === 0 || chunk.isDead(index)) continue
      const overMs = Math.max(expiryMs, chunk.dueAt(index))
      // A scheduled message is checked when it is due.
      const lookAtMs = chunk.isScheduled(index) ? overMs : expiryMs
      if (lookAtMs > nowMs) chunk.checkExpiriesAt(lookAtMs)
      else if (chunk.isInLine(index)) {
        if (this.count >= max) {
          // The rest of the chunk was not searched, so its lower bound stays.
          chunk.earliestExpiryMs = beforeMs
          this.hasMore = true
          return
        }
        this.offsets[this.count] = chunk.base + index
        this.times[this.count++] = overMs
      }
    }
  }

  /** Orders the messages by time, then by offset. Usually they are already in this order. */
  sort(): void {
    const { count, offsets, times } = this
    let at = 1
    while (at < count && times[at - 1]! <= times[at]!) at++
    if (at >= count) return
    const [oldOffsets, oldTimes] = [offsets.slice(0, count), times.slice(0, count)]
    const order = Uint32Array.from(oldTimes.keys())
    order.sort((a, b) => oldTimes[a]! - oldTimes[b]! || a - b)
    for (let to = 0; to < count; to++) {
      offsets[to] = oldOffsets[order[to]!]!
      times[to] = oldTimes[order[to]!]!
    }
  }

  /** Number of messages from `at` on that have consecutive offsets in one chunk. */
  runFrom(at: number, chunk: Chunk): number {
    const offset = this.offsets[at]!
    const end = Math.min(this.count, at + chunk.base + chunk.count - offset)
    let next = at + 1
    while (next < end && this.offsets[next] === offset + next - at) next++
    return next - at
  }
}

/** Calls `each` with every expired message that is in the line and not scheduled. Changes nothing. */
export function eachExpired(
  chunks: Chunks,
  nowMs: number,
  each: (chunk: Chunk, index: number) => void,
): void {
  for (const chunk of chunks) {
    if (chunk.earliestExpiryMs > nowMs) continue
    for (let index = 0; index < chunk.count; index++) {
      if (!chunk.isExpired(index, nowMs) || chunk.isGone(index) || chunk.isDead(index)) continue
      if (!chunk.isScheduled(index) && chunk.isInLine(index)) each(chunk, index)
    }
  }
}
