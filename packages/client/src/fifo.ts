/**
 * What waits in line: added at the end, taken from the front, in constant time. An array with the place of its first item,
 * because `shift` of a long array moves all of it.
 *
 * Invariant: the items are `#slots[#head…]`. Fewer than half of the slots, or fewer than `FREE_SLOTS`, are before them; what
 * was taken stays in memory until its slot is given back.
 */
const FREE_SLOTS = 1024

export class Fifo<Item> {
  #slots: Item[] = []
  #head = 0

  get length(): number {
    return this.#slots.length - this.#head
  }

  /** The item behind `index` others. */
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

  /** Takes the first `count`, or as many as there are. */
  take(count: number): Item[] {
    const items = this.#slots.slice(this.#head, this.#head + count)
    this.skip(items.length)
    return items
  }

  /** Drops the first `count`; there are as many. */
  skip(count: number): void {
    this.#head += count
    if (this.#head === this.#slots.length) this.clear()
    else if (this.#head >= FREE_SLOTS && this.#head * 2 > this.#slots.length) {
      this.#slots = this.#slots.slice(this.#head)
      this.#head = 0
    }
  }

  /** Takes the item that was added last. */
  pop(): Item | undefined {
    if (this.#head === this.#slots.length) return undefined
    const item = this.#slots.pop()
    if (this.#head === this.#slots.length) this.clear()
    return item
  }

  /** Takes all. */
  drain(): Item[] {
    const items = this.#head === 0 ? this.#slots : this.#slots.slice(this.#head)
    this.clear()
    return items
  }

  /** These are in line instead; the array is the line's own from now on. */
  replace(items: Item[]): void {
    this.#slots = items
    this.#head = 0
  }

  clear(): void {
    this.#slots = []
    this.#head = 0
  }

  /** From the front; what is added meanwhile comes too. */
  *[Symbol.iterator](): IterableIterator<Item> {
    for (let i = this.#head; i < this.#slots.length; i++) yield this.#slots[i]!
  }
}
