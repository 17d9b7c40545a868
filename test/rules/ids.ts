/**
 * The ids that a queue knows: `RememberedIds` are known for a window of time after their acceptance, `PendingIds` while
 * a message with the id is pending.
 */

interface Accepted {
  readonly id: string
  readonly offset: number
  readonly timeMs: number
}

/**
 * Ids that are forgotten in the order of acceptance. So after the clock is set back, some ids are remembered for longer
 * than the window.
 */
export class RememberedIds {
  #list: Accepted[] = []
  readonly #current = new Map<string, Accepted>()

  get size(): number {
    return this.#current.size
  }

  /** The offset and time of the id's last acceptance; undefined if the id is not remembered. */
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

/** Ids of pending messages; several messages can have the same id. */
export class PendingIds {
  readonly #offsets = new Map<string, Set<number>>()
  /** Number of distinct ids, except ids that only messages in `except` have. */
  sizeWithout(except: ReadonlySet<number>): number {
    if (except.size === 0) return this.#offsets.size
    let size = 0
    for (const id of this.#offsets.keys()) if (this.find(id, except) !== undefined) size++
    return size
  }

  /** The oldest message with this id that is not in `except`. */
  find(id: string, except?: ReadonlySet<number>): number | undefined {
    let oldest: number | undefined
    for (const offset of this.#offsets.get(id) ?? [])
      if ((oldest === undefined || offset < oldest) && except?.has(offset) !== true) oldest = offset
    return oldest
  }

  add(id: string, offset: number): void {
    const offsets = this.#offsets.get(id) ?? new Set()
    this.#offsets.set(id, offsets.add(offset))
  }

  done(id: string, offset: number): void {
    const offsets = this.#offsets.get(id)
    offsets?.delete(offset)
    if (offsets?.size === 0) this.#offsets.delete(id)
  }

  *entries(): IterableIterator<[string, number]> {
    for (const id of this.#offsets.keys()) yield [id, this.find(id)!]
  }
}
