/**
 * Suspects: messages that may have crashed their consumer. Each is delivered alone until it is settled. A message
 * becomes a suspect if its consumer died while handling this message and others. It also becomes a suspect if several
 * consumers died while they held it and had not started any message, because then no single message explains the death.
 *
 * The suspects are volatile, and are kept by offset. The line looks for suspects in each run, and a settle clears the
 * messages that it settles. Both operations first check whether there are any suspects, because usually there are none.
 */

/** A message is a suspect after this many unattributed deaths of its consumers. */
const UNATTRIBUTED_MAX = 3

export class Suspects {
  /** Number of suspects. */
  size = 0
  /** Whether there are no suspects and no counted deaths. */
  #isEmpty = true
  // The next two fields are set when they are first needed, because most queues never have a suspect.
  #offsets: Set<number> | undefined
  /** Messages that are not suspects, with the number of consumers that died while they held the message and had not started any. */
  #deaths: Map<number, number> | undefined

  has(offset: number): boolean {
    return this.size > 0 && this.#offsets!.has(offset)
  }

  /** The first suspect in `[from, to)`; `to` if the range has no suspect. */
  firstIn(from: number, to: number): number {
    if (this.size > 0)
      for (let offset = from; offset < to; offset++) if (this.#offsets!.has(offset)) return offset
    return to
  }

  /** Makes the message a suspect: it may have crashed its consumer. */
  add(offset: number): void {
    this.#offsets ??= new Set()
    this.#offsets.add(offset)
    this.#deaths?.delete(offset)
    this.#count()
  }

  /** Called when the consumer of the message died and had not started any of its messages. */
  addUnattributed(offset: number): void {
    if (this.has(offset)) return
    this.#deaths ??= new Map()
    const deaths = (this.#deaths.get(offset) ?? 0) + 1
    if (deaths >= UNATTRIBUTED_MAX) this.add(offset)
    else {
      this.#deaths.set(offset, deaths)
      this.#count()
    }
  }

  /** Clears all suspicion of messages `[offset, offset + count)`. */
  clear(offset: number, count: number): void {
    if (this.#isEmpty) return
    for (let at = offset; at < offset + count; at++) {
      this.#offsets?.delete(at)
      this.#deaths?.delete(at)
    }
    this.#count()
  }

  /** Clears all suspicion of the messages below `end`. */
  clearBelow(end: number): void {
    if (this.#isEmpty) return
    for (const offset of this.#offsets ?? []) if (offset < end) this.#offsets!.delete(offset)
    for (const offset of this.#deaths?.keys() ?? []) if (offset < end) this.#deaths!.delete(offset)
    this.#count()
  }

  clearAll(): void {
    this.#offsets = undefined
    this.#deaths = undefined
    this.#count()
  }

  #count(): void {
    this.size = this.#offsets?.size ?? 0
    this.#isEmpty = this.size === 0 && (this.#deaths?.size ?? 0) === 0
  }
}

/** Shared by all queues that never had a suspect. Nothing is added to it. */
export const NO_SUSPECTS = new Suspects()
