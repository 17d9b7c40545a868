/**
 * The dead messages of a queue that wait to be moved to its dead-letter queue. `Moves` takes them from here. While the
 * dead-letter queue does not exist, they wait until it is created or an operator redrives or discards them.
 *
 * Invariant: there are at most `ENTRIES_PER_DEAD` entries per dead message of the queue, so the list does not grow while
 * messages die and are redriven.
 */
import type { Chunks } from './chunks.js'

/** Maximum number of entries per dead message. With more, at least half of them are obsolete, and the list is built again. */
export const ENTRIES_PER_DEAD = 2

export class Moving {
  readonly #chunks: Chunks
  readonly #offsets: number[] = []

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  get length(): number {
    return this.#offsets.length
  }

  /**
   * The offsets, in the order in which the messages died, or in ascending order after `list`. A message that was redriven or
   * discarded since can still be here, and a message that died twice can be here twice.
   */
  get offsets(): readonly number[] {
    return this.#offsets
  }

  /** Called when the message died. */
  add(offset: number): void {
    this.#offsets.push(offset)
  }

  /** Called when the message cannot be moved because it is damaged. It is tried again when it is listed again. */
  skip(offset: number): void {
    const at = this.#offsets.indexOf(offset)
    if (at !== -1) this.#offsets.splice(at, 1)
  }

  /** Removes the first `count` messages, which were moved or cannot be moved. `dead` is the number of dead messages of the queue. */
  pass(count: number, dead: number): void {
    this.#offsets.splice(0, count)
    this.trim(dead)
  }

  /** Called when a dead message was redriven or discarded. `dead` is the number of dead messages left in the queue. */
  trim(dead: number): void {
    if (this.#offsets.length <= ENTRIES_PER_DEAD * dead) return
    if (dead === 0) this.clear()
    else this.list()
  }

  /** Rebuilds the list: searches all chunks for messages that wait to be moved. */
  list(): void {
    this.clear()
    for (const chunk of this.#chunks)
      for (const index of chunk.dead?.movingIndexes() ?? []) this.#offsets.push(chunk.base + index)
  }

  clear(): void {
    this.#offsets.length = 0
  }
}
