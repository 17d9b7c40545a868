/**
 * The ids that a queue remembers, by the rules: in a window of time after the first acceptance, in the order of
 * acceptance, or for as long as a message is pending. The model and the ledger each have their own.
 */

interface Accepted {
  readonly id: string
  readonly offset: number
  readonly timeMs: number
}

/** Ids by acceptance. What is in front goes first, so a clock that was set back keeps some for longer, and none for less. */
export class RememberedIds {
  #list: Accepted[] = []
  readonly #current = new Map<string, Accepted>()

  get size(): number {
    return this.#current.size
  }

  /** Where the id was accepted; undefined when it is not remembered. */
  find(id: string): { readonly offset: number; readonly timeMs: number } | undefined {
    return this.#current.get(id)
  }

  remember(id: string, offset: number, timeMs: number): void {
    const accepted = { id, offset, timeMs }
    this.#list.push(accepted)
    this.#current.set(id, accepted)
  }

  forgetUntil(timeMs: number): void {
    while (this.#list.length > 0 && this.#list[0]!.timeMs <= timeMs) {
      const first = this.#list.shift()!
      if (this.#current.get(first.id) === first) this.#current.delete(first.id)
    }
  }

  *entries(): IterableIterator<Accepted> {
    yield* this.#current.values()
  }

  clone(): RememberedIds {
    const copy = new RememberedIds()
    copy.#list = [...this.#list]
    for (const [id, accepted] of this.#current) copy.#current.set(id, accepted)
    return copy
  }
}

/** Ids of messages that are not done: of several with one id, that of the one which was there first. */
export class PendingIds {
  readonly #offsets = new Map<string, number>()

  get size(): number {
    return this.#offsets.size
  }

  find(id: string): number | undefined {
    return this.#offsets.get(id)
  }

  add(id: string, offset: number): void {
    if (!this.#offsets.has(id)) this.#offsets.set(id, offset)
  }

  done(id: string, offset: number): void {
    if (this.#offsets.get(id) === offset) this.#offsets.delete(id)
  }

  entries(): IterableIterator<[string, number]> {
    return this.#offsets.entries()
  }
}
