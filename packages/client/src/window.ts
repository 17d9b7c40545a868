/**
 * What has a number and waits to be answered: numbers come in ascending order and mostly leave so. A ring of slots rather
 * than a Map, whose dead tables keep what once was in them alive: a thousand batches under way cost a third of a
 * producer's time in garbage collection, and finding the lowest number made an iterator each time.
 */
const SLOTS_FIRST = 64

export class Window<Item> {
  size = 0
  #slots: (Item | undefined)[] = emptySlots<Item>(SLOTS_FIRST)
  /** Numbers `[#first, #end)` can be here; unless it is empty, `#first` is. */
  #first = 0
  #end = 0

  /** The lowest number; undefined when it is empty. */
  get lowest(): number | undefined {
    return this.size === 0 ? undefined : this.#first
  }

  get(number: number): Item | undefined {
    return number >= this.#first && number < this.#end ? this.#slots[this.#slot(number)] : undefined
  }

  /** `number` is higher than every one that is here. */
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

  /** By ascending number. What is deleted meanwhile is passed over. */
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
