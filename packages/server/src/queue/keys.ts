/**
 * The keys of a queue: which there are among its messages, and for each the line in which its messages wait, how many
 * of them are leased, how many wait for a retry, and which one is on offer.
 *
 * A key is known by a 64-bit hash; two keys that share one share a line, which delays and harms nothing. It has a slot
 * for as long as one of its messages is in the queue. Lines are doubly linked through the chunks, so that whatever
 * leaves from their middle leaves at once; a million messages behind a blocked head cost nothing to pass.
 *
 * Invariants: `refs` counts the key's messages that are not gone; the offered message is the head, or none.
 */
import { HashIndex } from './hash-index.js'

/** No message; in lines and for what is on offer. */
export const NONE = -1
/** Slots of a page. The first one begins with less. */
const PAGE_SLOTS = 1024
const SLOTS_FIRST = 16
/** A page with no more slots than these is kept when the last key is gone. */
const SLOTS_KEPT = 64
/** A slot takes 56 bytes, so that what is known of a key mostly lies in one cache line: four numbers of 8 bytes … */
const NUMBERS = 7
const HEAD = 0
const TAIL = 1
const OFFERED = 2
const SINCE = 3
/** … and five of 4, counted in words. */
const WORDS = NUMBERS * 2
const LEASED = 8
const RETRYING = 9
const LOW = 10
const HIGH = 11
/** 0: the slot is free. */
const REFS = 12
/** Of a free slot: the next one, plus 1; 0 for none. */
const NEXT_FREE = LOW

/** What is known of keys whose slots stand side by side. */
class KeyPage {
  /** Slots in use. */
  used = 0
  numbers: Float64Array
  words: Uint32Array
  /** Slots from here on were never used. */
  end = 0
  /** The first of those before it that are free, plus 1; 0 for none. */
  #free = 0

  constructor(slots: number) {
    this.numbers = new Float64Array(slots * NUMBERS)
    this.words = new Uint32Array(this.numbers.buffer)
  }

  get slots(): number {
    return this.numbers.length / NUMBERS
  }

  /** A slot, by its number in the page, of which nothing is known yet. There is one. */
  take(): number {
    let slot = this.#free - 1
    if (slot !== NONE) this.#free = this.words[slot * WORDS + NEXT_FREE]!
    else {
      if (this.end === this.slots) this.#grow()
      slot = this.end++
    }
    this.used++
    this.words.fill(0, slot * WORDS, (slot + 1) * WORDS)
    this.numbers.fill(NONE, slot * NUMBERS, slot * NUMBERS + SINCE)
    return slot
  }

  /** Nothing refers to the slot any more. */
  free(slot: number): void {
    this.words[slot * WORDS + NEXT_FREE] = this.#free
    this.#free = slot + 1
    this.used--
  }

  #grow(): void {
    const { words } = this
    this.numbers = new Float64Array(this.slots * 2 * NUMBERS)
    this.words = new Uint32Array(this.numbers.buffer)
    this.words.set(words)
  }
}

export class Keys extends HashIndex {
  /** Slot `n` stands in page `n / PAGE_SLOTS`. Where no slot is in use is no page, or a small one; the last one is there. */
  #pages: (KeyPage | undefined)[] = []
  /** The page that gives slots. */
  #filling = 0

  /** Pages that take room. */
  get pages(): number {
    return this.#pages.reduce((pages, page) => (page === undefined ? pages : pages + 1), 0)
  }

  protected override wordOf(slot: number): number {
    return this.low(slot)
  }

  protected override isHashOf(slot: number, low: number, high: number): boolean {
    const { words } = this.#page(slot)
    const at = (slot % PAGE_SLOTS) * WORDS
    return words[at + LOW] === low && words[at + HIGH] === high
  }

  low(slot: number): number {
    return this.#word(slot, LOW)
  }

  high(slot: number): number {
    return this.#word(slot, HIGH)
  }

  /** First message of the line; NONE when no message of the key waits. */
  headOf(slot: number): number {
    return this.#number(slot, HEAD)
  }

  setHead(slot: number, offset: number): void {
    this.#setNumber(slot, HEAD, offset)
  }

  /** Last message of the line; NONE when no message of the key waits. */
  tailOf(slot: number): number {
    return this.#number(slot, TAIL)
  }

  setTail(slot: number, offset: number): void {
    this.#setNumber(slot, TAIL, offset)
  }

  /** The head that may be handed out; NONE when the key is not free or has no line. */
  offeredOf(slot: number): number {
    return this.#number(slot, OFFERED)
  }

  /** Since when the one that was offered last has been so; 0 when none ever was. */
  sinceOf(slot: number): number {
    return this.#number(slot, SINCE)
  }

  offer(slot: number, offset: number, sinceMs: number): void {
    this.#setNumber(slot, OFFERED, offset)
    this.#setNumber(slot, SINCE, sinceMs)
  }

  /** Nothing is on offer. */
  withdraw(slot: number): void {
    this.#setNumber(slot, OFFERED, NONE)
  }

  leasedOf(slot: number): number {
    return this.#word(slot, LEASED)
  }

  countLeased(slot: number, change: 1 | -1): void {
    this.#count(slot, LEASED, change)
  }

  /** Messages that were tried in vain and wait for their time. */
  retryingOf(slot: number): number {
    return this.#word(slot, RETRYING)
  }

  countRetrying(slot: number, change: 1 | -1): void {
    this.#count(slot, RETRYING, change)
  }

  /** The slot of the key with this hash, for one more message of it. */
  hold(low: number, high: number): number {
    let slot = this.lookUp(low, high, 0, 0)
    if (slot === NONE) slot = this.#make(low, high)
    this.#count(slot, REFS, 1)
    return slot
  }

  /** A message of the key is gone. */
  release(slot: number): void {
    if (this.#count(slot, REFS, -1) > 0) return
    this.remove(slot)
    const page = this.#page(slot)
    page.free(slot % PAGE_SLOTS)
    if (page.used > 0 || page.slots <= SLOTS_KEPT) return
    this.#pages[Math.floor(slot / PAGE_SLOTS)] = undefined
    while (this.#pages.length > 0 && this.#pages.at(-1) === undefined) this.#pages.pop()
  }

  /** Every slot that is in use. */
  *slots(): IterableIterator<number> {
    for (const [number, page] of this.#pages.entries()) {
      if (page === undefined) continue
      for (let slot = 0; slot < page.end; slot++)
        if (page.words[slot * WORDS + REFS]! > 0) yield number * PAGE_SLOTS + slot
    }
  }

  /** No message stands in a line or is on offer. */
  clearLines(): void {
    for (const slot of this.slots()) {
      this.setHead(slot, NONE)
      this.setTail(slot, NONE)
      this.withdraw(slot)
    }
  }

  /** No message waits or is leased. */
  clear(): void {
    this.clearLines()
    for (const slot of this.slots()) {
      const { words } = this.#page(slot)
      const at = (slot % PAGE_SLOTS) * WORDS
      words[at + LEASED] = 0
      words[at + RETRYING] = 0
    }
  }

  #make(low: number, high: number): number {
    const page = this.#pageToFill()
    const slot = page.take()
    page.words[slot * WORDS + LOW] = low
    page.words[slot * WORDS + HIGH] = high
    this.enter(this.#filling * PAGE_SLOTS + slot)
    return this.#filling * PAGE_SLOTS + slot
  }

  #pageToFill(): KeyPage {
    const pages = this.#pages
    const current = pages[this.#filling]
    if (current !== undefined && current.used < PAGE_SLOTS) return current
    // At least an eighth of all slots is free: of eight pages that are looked at, about one has some.
    if (this.size * 8 < pages.length * PAGE_SLOTS * 7) {
      do this.#filling = (this.#filling + 1) % pages.length
      while (pages[this.#filling]?.used === PAGE_SLOTS)
    } else this.#filling = pages.push(undefined) - 1
    const slots = pages.length === 1 ? SLOTS_FIRST : PAGE_SLOTS
    return (pages[this.#filling] ??= new KeyPage(slots))
  }

  #page(slot: number): KeyPage {
    return this.#pages[Math.floor(slot / PAGE_SLOTS)]!
  }

  #number(slot: number, which: number): number {
    return this.#page(slot).numbers[(slot % PAGE_SLOTS) * NUMBERS + which]!
  }

  #setNumber(slot: number, which: number, value: number): void {
    this.#page(slot).numbers[(slot % PAGE_SLOTS) * NUMBERS + which] = value
  }

  /** Returns what it is then. */
  #count(slot: number, which: number, change: 1 | -1): number {
    return (this.#page(slot).words[(slot % PAGE_SLOTS) * WORDS + which]! += change)
  }

  #word(slot: number, which: number): number {
    return this.#page(slot).words[(slot % PAGE_SLOTS) * WORDS + which]!
  }
}
