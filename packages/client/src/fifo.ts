/**
 * A first-in, first-out queue with constant-time operations: an array and the index of its first item. The `shift` of a
 * long array would move all of its items.
 *
 * Invariant: the items are `#slots[#head…]`. At most half of the slots, or fewer than `FREE_SLOTS`, precede them. A
 * slot keeps a reference to its item, even if the item was taken, until the slot is dropped.
 */
const FREE_SLOTS = 1024

export class Fifo<Item> {
  #slots: Item[] = []
  #head = 0

  get length(): number {
    return this.#slots.length - this.#head
  }

  /** The item with `index` items before it. */
  at(index: number): Item | undefined {
    return this.#slots[this.#head + index]
  }

  push(item: Item): void {
    this.#slots.push(item)
  }

  shift(): Item | undefined {
    if (this.#head === this.#slots.length) return undefined
    const item = this.#slots[this.#head]
    this.skip(1)
    return item
  }

  /** Takes the first `count` items, or all if there are fewer. */
  take(count: number): Item[] {
    const items = this.#slots.slice(this.#head, this.#head + count)
    this.skip(items.length)
    return items
  }

  /** Drops the first `count` items. There must be at least `count`. */
  skip(count: number): void {
    this.#head += count
    if (this.#head === this.#slots.length) this.clear()
    else if (this.#head >= FREE_SLOTS && this.#head * 2 > this.#slots.length) {
      this.#slots = this.#slots.slice(this.#head)
      this.#head = 0
    }
  }

  /** Takes the last item. */
  pop(): Item | undefined {
    if (this.#head === this.#slots.length) return undefined
    const item = this.#slots.pop()
    if (this.#head === this.#slots.length) this.clear()
    return item
  }

  /** Takes all items. */
  drain(): Item[] {
    const items = this.#head === 0 ? this.#slots : this.#slots.slice(this.#head)
    this.clear()
    return items
  }

  /** Replaces all items. The queue owns the array from now on. */
  replace(items: Item[]): void {
    this.#slots = items
    this.#head = 0
  }

  clear(): void {
    this.#slots = []
    this.#head = 0
  }

  /** Iterates from the front, including items that are added during the iteration. */
  *[Symbol.iterator](): IterableIterator<Item> {
    for (let i = this.#head; i < this.#slots.length; i++) yield this.#slots[i]!
  }
}
