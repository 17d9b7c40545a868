/**
 * The search for expired messages in the chunks of a queue. `Queue` runs it at most once a second, and before each
 * decision that depends on the contents.
 */
import type { Chunk } from './chunk.js'
import type { Timed } from './key-lines.js'

/** Adds to `expired` the expired messages of the chunk that are in the line, and sets the time of the chunk's next check. */
export function findExpired(chunk: Chunk, nowMs: number, expired: Timed[]): void {
  chunk.earliestExpiryMs = Infinity
  for (const index of chunk.liveIndexes()) {
    const expiryMs = chunk.expiryAt(index)
    if (expiryMs === 0 || chunk.isDead(index)) continue
    // A scheduled message is checked when it is due.
    const lookAtMs = chunk.isScheduled(index) ? Math.max(expiryMs, chunk.dueAt(index)) : expiryMs
    if (lookAtMs > nowMs) chunk.checkExpiriesAt(lookAtMs)
    else if (chunk.isInLine(index)) expired.push({ chunk, index, timeMs: expiryMs })
  }
}

/**
 * Calls `each` with each run of consecutive messages in `messages`, a list in the order of offsets. Removing a run costs
 * little more than removing one message.
 */
export function eachRun(
  messages: readonly Timed[],
  each: (chunk: Chunk, index: number, count: number) => void,
): void {
  for (let from = 0, end = 0; from < messages.length; from = end) {
    const { chunk, index } = messages[from]!
    for (end = from + 1; end < messages.length; end++)
      if (messages[end]!.chunk !== chunk || messages[end]!.index !== index + end - from) break
    each(chunk, index, end - from)
  }
}
