/**
 * Items in ascending order of their numbers. Most items are deleted in the same order. The items are in a ring of slots
 * instead of a Map. Old tables of a Map keep deleted items alive: with a thousand batches in flight, a third of a
 * producer's time went to garbage collection. Also, finding the lowest number in a Map needs an iterator.
 */
const SLOTS_FIRST = 64

export class NumberRing<Item> {
  size = 0
  #slots: (Item | undefined)[] = emptySlots<Item>(SLOTS_FIRST)
  /** All items have numbers in `[#first, #end)`. Unless the ring is empty, there is an item with the number `#first`. */
  #first = 0
  #end = 0

  /** The lowest number; undefined if the ring is empty. */
  get lowest(): number | undefined {
    return this.size === 0 ? undefined : this.#first
  }

  get(number: number): Item | undefined {
    return number >= this.#first && number < this.#end ? this.#slots[this.#slot(number)] : undefined
  }

  /** Adds an item. `number` must be higher than all numbers in the ring. */
  add(number: number, item: Item): void {
    if (this.size === 0) this.#first = number
    while (number - this.#first >= this.#slots.length) this.#grow()
    this.#end = number + 1
    this.#slots[this.#slot(number)] = item
    this.size++
  }

  delete(number: number): void {
    if (this.get(number) === undefined) return
    this.#slots[this.#slot(number)] = undefined
    this.size--
    if (number !== this.#first) return
    while (this.#first < this.#end && this.#slots[this.#slot(this.#first)] === undefined) this.#first++
  }

  clear(): void {
    this.#slots = emptySlots(SLOTS_FIRST)
    this.size = 0
    this.#first = this.#end = 0
  }

  /** Iterates by ascending number, without items that are deleted during the iteration. */
  *values(): IterableIterator<Item> {
    for (let number = this.#first; number < this.#end; number++) {
      const item = this.get(number)
      if (item !== undefined) yield item
    }
  }

  #slot(number: number): number {
    return number % this.#slots.length
  }

  #grow(): void {
    const old = this.#slots
    this.#slots = emptySlots(old.length * 2)
    for (let number = this.#first; number < this.#end; number++)
      this.#slots[this.#slot(number)] = old[number % old.length]
  }
}

function emptySlots<Item>(count: number): (Item | undefined)[] {
  return Array.from<Item | undefined>({ length: count })
}
