/**
 * Suspects: messages that may have ended the process of their consumer, so that each is delivered alone until it is
 * settled. A message is one when it was being handled, among others, as its connection died; or when that has happened a
 * few times to consumers that held it and had started with none of theirs, which no single message accounts for.
 *
 * Volatile, by offset. The line looks here for each run, and every settle clears: both first look at a number, because
 * mostly nothing is here.
 */

/** Unattributed deaths of its consumers after which a message is a suspect. */
const UNATTRIBUTED_MAX = 3

export class Suspects {
  /** How many there are. */
  size = 0
  /** Nothing is held against any message. */
  #isEmpty = true
  readonly #offsets = new Set<number>()
  /** Of messages that are no suspects: how many consumers died that held them and had started with none. */
  readonly #deaths = new Map<number, number>()

  has(offset: number): boolean {
    return this.size > 0 && this.#offsets.has(offset)
  }

  /** The first suspect in `[from, to)`; `to` if there is none. */
  firstIn(from: number, to: number): number {
    if (this.size > 0)
      for (let offset = from; offset < to; offset++) if (this.#offsets.has(offset)) return offset
    return to
  }

  /** The message may have killed its consumer. */
  add(offset: number): void {
    this.#offsets.add(offset)
    this.#deaths.delete(offset)
    this.#count()
  }

  /** The consumer of the message has died and had started with none of those that it held. */
  addUnattributed(offset: number): void {
    if (this.#offsets.has(offset)) return
    const deaths = (this.#deaths.get(offset) ?? 0) + 1
    if (deaths >= UNATTRIBUTED_MAX) this.add(offset)
    else {
      this.#deaths.set(offset, deaths)
      this.#count()
    }
  }

  /** Nothing is held against messages `[offset, offset + count)` any more. */
  clear(offset: number, count: number): void {
    if (this.#isEmpty) return
    for (let at = offset; at < offset + count; at++) {
      this.#offsets.delete(at)
      this.#deaths.delete(at)
    }
    this.#count()
  }

  clearAll(): void {
    this.#offsets.clear()
    this.#deaths.clear()
    this.#count()
  }

  #count(): void {
    this.size = this.#offsets.size
    this.#isEmpty = this.size === 0 && this.#deaths.size === 0
  }
}
