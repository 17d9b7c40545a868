/**
 * Plain messages that returned to the line below the cursor of their priority. They are delivered in the order of
 * offsets, before the messages at the cursor. The cursor does not move back for them, so the line passes each message once. Volatile.
 *
 * Invariant: each message is here at most once, and has `MARK.returned` while it is here.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE } from './keys.js'
import { MARK } from './marks.js'
import { TimeQueue } from './time-queue.js'

export class ReturnedMessages {
  /** One bit per priority, set if a message of that priority may be here. */
  mask = 0
  readonly #chunks: Chunks
  /** The messages, by priority. Some of these messages may have left the line again. */
  readonly #queues: (TimeQueue | undefined)[] = []

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  add(priority: number, chunk: Chunk, index: number): void {
    if (chunk.marks.add(MARK.returned, index, index + 1) === 0) return
    const queue = (this.#queues[priority] ??= new TimeQueue())
    queue.push(0, chunk.base + index)
    this.mask |= 1 << priority
  }

  /** Offset of the first message of this priority that is still plain; -1 if there is none. */
  first(priority: number): number {
    const queue = this.#queues[priority]
    if (queue === undefined) return NONE
    for (; queue.size > 0; this.#drop(queue)) {
      const offset = queue.firstOffset
      const chunk = this.#chunks.at(offset)
      const index = chunk === undefined ? 0 : offset - chunk.base
      if (chunk !== undefined && !chunk.has(MARK.out, index) && !chunk.isGone(index)) return offset
    }
    this.mask &= ~(1 << priority)
    return NONE
  }

  /** Called when no message of this priority below `end` is plain any more. */
  dropBelow(priority: number, end: number): void {
    const queue = this.#queues[priority]
    if (queue === undefined) return
    while (queue.size > 0 && queue.firstOffset < end) this.#drop(queue)
    if (queue.size === 0) this.mask &= ~(1 << priority)
  }

  clear(): void {
    this.#queues.length = 0
    this.mask = 0
  }

  // Removes the mark too, so that the message is added again if it returns once more.
  #drop(queue: TimeQueue): void {
    const offset = queue.firstOffset
    const chunk = this.#chunks.at(offset)
    queue.pop()
    chunk?.marks.delete(MARK.returned, offset - chunk.base, offset - chunk.base + 1)
  }
}
