/**
 * The order in which messages of the line are dropped to make room: lowest priority first, then lowest offset. The line asks
 * for the first message to drop, and reports each message that returns to the line. Volatile.
 *
 * Invariant: each message of the line that is below the cursor of its priority is also in `#behind`. A cursor never
 * moves back, so a search passes each message once.
 */
import { PRIORITIES, type Chunk } from './chunk.js'
import { chunkEndAfter, type Chunks } from './chunks.js'
import { NONE } from './keys.js'
import { MARK } from './marks.js'
import { TimeQueue } from './time-queue.js'

export class DropOrder {
  readonly #chunks: Chunks
  /** Cursors, by priority. */
  readonly #cursors = new Float64Array(PRIORITIES)
  /**
   * Messages that returned to the line below the cursor of their priority, by offset. Some of them may have left the line
   * again.
   */
  readonly #behind: (TimeQueue | undefined)[] = []

  /** Offset of the first message to drop, if its chunk is cold and has to be read first; otherwise -1. Set by `first`. */
  coldOffset = NONE

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  /** Called when the message is in the line again. */
  returned(chunk: Chunk, index: number): void {
    const priority = chunk.priorityAt(index)
    if (chunk.base + index >= this.#cursors[priority]!) return
    if (chunk.marks.add(MARK.behind, index, index + 1) === 0) return
    const behind = (this.#behind[priority] ??= new TimeQueue())
    behind.push(0, chunk.base + index)
  }

  /**
   * Offset of the first message to drop in a line that ends at `end`; -1 if the line is empty or `coldOffset` is set.
   */
  first(end: number): number {
    this.coldOffset = NONE
    for (let priority = 0; priority < PRIORITIES; priority++) {
      const behind = this.#firstBehind(priority)
      const offset = behind === NONE ? this.#advance(priority, end) : behind
      if (offset !== NONE || this.coldOffset !== NONE) return offset
    }
    return NONE
  }

  /** Whether `first` will find this message, which is in the line. */
  finds(chunk: Chunk, index: number): boolean {
    return chunk.base + index >= this.#cursors[chunk.priorityAt(index)]! || chunk.has(MARK.behind, index)
  }

  // Moves the cursor to the first message in the line that has this priority. Returns its offset; NONE if there is
  // none, or if it sets `coldOffset`.
  #advance(priority: number, end: number): number {
    let offset = Math.max(this.#cursors[priority]!, this.#chunks.firstOffset)
    for (; offset < end; offset = Math.min(chunkEndAfter(offset), end)) {
      const chunk = this.#chunks.at(offset)
      if (chunk === undefined && priority === 0 && this.#chunks.isCold(offset)) {
        this.coldOffset = this.#cursors[priority] = offset
        return NONE
      }
      if (chunk === undefined || ((chunk.priorityMask >>> priority) & 1) === 0) continue
      for (let index = offset - chunk.base; index < chunk.count; index++) {
        index = chunk.firstLive(index)
        if (index === chunk.count) break
        if (chunk.priorityAt(index) !== priority || !chunk.isInLine(index)) continue
        return (this.#cursors[priority] = chunk.base + index)
      }
    }
    this.#cursors[priority] = end
    return NONE
  }

  #firstBehind(priority: number): number {
    const behind = this.#behind[priority]
    if (behind === undefined) return NONE
    for (; behind.size > 0; behind.pop()) {
      const offset = behind.firstOffset
      const chunk = this.#chunks.at(offset)
      if (chunk === undefined) continue
      const index = offset - chunk.base
      if (!chunk.isGone(index) && chunk.isInLine(index)) return offset
      // Removes the mark, so that the message is added again if it returns to the line.
      chunk.marks.delete(MARK.behind, index, index + 1)
    }
    return NONE
  }
}
