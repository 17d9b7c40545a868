/**
 * The keys of the messages of a queue. Each key has the line in which its messages wait, the number of its leased
 * messages, the number of its messages that wait for a retry, and the message that is on offer.
 *
 * A key is identified by a 64-bit hash. Two keys with the same hash share a line. This only delays their messages. A
 * key has a slot while one of its messages is in the queue. Lines are doubly linked through the chunks, so removing a
 * message from the middle takes constant time, and a million messages behind a blocked head cost nothing.
 *
 * Invariants: `refs` counts the messages of a key that are not gone. If a message is on offer, it is the head.
 */
import { HashIndex } from './hash-index.js'

/** Marks that there is no message. */
export const NONE = -1
/** Number of slots of a page. The first page starts smaller. */
const PAGE_SLOTS = 1024
const SLOTS_FIRST = 16
/** A page of this many slots or fewer is kept when its last key is gone. */
const SLOTS_KEPT = 64
/** Number of 8-byte numbers per slot. A slot takes 56 bytes, in at most two cache lines. The first four fields are such numbers. */
const NUMBERS = 7
const HEAD = 0
const TAIL = 1
const OFFERED = 2
const SINCE = 3
/** Number of 4-byte words per slot. The other six fields are such words. */
const WORDS = NUMBERS * 2
const LEASED = 8
const RETRYING = 9
const LOW = 10
const HIGH = 11
/** Number of messages that hold the slot; 0 if the slot is free. */
const REFS = 12
/** Number of changes of the rules that the offer of the key takes into account; see `KeyLines.change`. */
const CHANGES = 13
/** In a free slot, the number of the next free slot, plus 1; 0 if no other slot is free. */
const NEXT_FREE = LOW

/** A page of neighbouring slots. */
class KeyPage {
  /** Number of slots in use. */
  used = 0
  numbers: Float64Array
  words: Uint32Array
  /** Slots from here on were never used. */
  end = 0
  /** The first free slot before `end`, plus 1; 0 if no slot before `end` is free. */
  #free = 0

  constructor(slots: number) {
    this.numbers = new Float64Array(slots * NUMBERS)
    this.words = new Uint32Array(this.numbers.buffer)
  }

  get slots(): number {
    return this.numbers.length / NUMBERS
  }

  /** Takes a free slot and returns its number in the page. The caller has checked that there is a free slot. */
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

  /** Frees a slot that is no longer in use. */
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
  /** Slot `n` is in page `n / PAGE_SLOTS`. A page without used slots is absent or small. The last page always exists. */
  #pages: (KeyPage | undefined)[] = []
  /** Number of the page that slots are taken from. */
  #filling = 0
  /** Number of changes of the rules so far. A new slot takes all of them into account. */
  changes = 0

  /** Number of pages that exist. */
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

  /** First message of the line; NONE if no message of the key waits. */
  headOf(slot: number): number {
    return this.#number(slot, HEAD)
  }

  setHead(slot: number, offset: number): void {
    this.#setNumber(slot, HEAD, offset)
  }

  /** Last message of the line; NONE if no message of the key waits. */
  tailOf(slot: number): number {
    return this.#number(slot, TAIL)
  }

  setTail(slot: number, offset: number): void {
    this.#setNumber(slot, TAIL, offset)
  }

  /** The head that may be delivered; NONE if the key is not free or its line is empty. */
  offeredOf(slot: number): number {
    return this.#number(slot, OFFERED)
  }

  /**
   * Time at which the last offered message went on offer or, if the key has been free without a message since then, the
   * time from which it has been free; 0 if there is neither.
   */
  sinceOf(slot: number): number {
    return this.#number(slot, SINCE)
  }

  /** Notes that the key is free and its line is empty at `timeMs`. */
  freeAt(slot: number, timeMs: number): void {
    this.withdraw(slot)
    if (timeMs > this.sinceOf(slot)) this.#setNumber(slot, SINCE, timeMs)
  }

  changesOf(slot: number): number {
    return this.#word(slot, CHANGES)
  }

  /** Notes that the offer of the key takes all changes of the rules into account. */
  changed(slot: number): void {
    this.#page(slot).words[(slot % PAGE_SLOTS) * WORDS + CHANGES] = this.changes
  }

  /** Whether the slot is in use. */
  isUsed(slot: number): boolean {
    const page = this.#pages[Math.floor(slot / PAGE_SLOTS)]
    return page !== undefined && slot % PAGE_SLOTS < page.end && this.#word(slot, REFS) > 0
  }

  /** All slots are below this number. */
  get slotsEnd(): number {
    return this.#pages.length * PAGE_SLOTS
  }

  offer(slot: number, offset: number, sinceMs: number): void {
    this.#setNumber(slot, OFFERED, offset)
    this.#setNumber(slot, SINCE, sinceMs)
  }

  /** Withdraws the message that is on offer. */
  withdraw(slot: number): void {
    this.#setNumber(slot, OFFERED, NONE)
  }

  leasedOf(slot: number): number {
    return this.#word(slot, LEASED)
  }

  countLeased(slot: number, change: 1 | -1): void {
    this.#count(slot, LEASED, change)
  }

  /** Number of failed messages that wait for their retry. */
  retryingOf(slot: number): number {
    return this.#word(slot, RETRYING)
  }

  countRetrying(slot: number, change: 1 | -1): void {
    this.#count(slot, RETRYING, change)
  }

  /** The slot of the key with this hash; NONE if no message of the key is in the queue. */
  slotOf(low: number, high: number): number {
    return this.lookUp(low, high, 0, 0)
  }

  /** Returns the slot of the key with this hash, and counts one more message of the key. */
  hold(low: number, high: number): number {
    let slot = this.lookUp(low, high, 0, 0)
    if (slot === NONE) slot = this.#make(low, high)
    this.#count(slot, REFS, 1)
    return slot
  }

  /** Called when a message of the key is gone. */
  release(slot: number): void {
    if (this.#count(slot, REFS, -1) > 0) return
    this.remove(slot)
    const page = this.#page(slot)
    page.free(slot % PAGE_SLOTS)
    if (page.used > 0 || page.slots <= SLOTS_KEPT) return
    this.#pages[Math.floor(slot / PAGE_SLOTS)] = undefined
    while (this.#pages.length > 0 && this.#pages.at(-1) === undefined) this.#pages.pop()
  }

  /** Iterates over all slots that are in use. */
  *slots(): IterableIterator<number> {
    for (const [number, page] of this.#pages.entries()) {
      if (page === undefined) continue
      for (let slot = 0; slot < page.end; slot++)
        if (page.words[slot * WORDS + REFS]! > 0) yield number * PAGE_SLOTS + slot
    }
  }

  /**
   * Called when no message waits or is leased any more: empties all lines and withdraws all offers. A key with dead messages
   * keeps its slot. Its messages enter a group again after a move, and are eligible from their own times.
   */
  clear(): void {
    for (const page of this.#pages) {
      if (page === undefined) continue
      const { numbers, words } = page
      // Slots that are not in use may be written too: `take` sets these fields again.
      for (let slot = 0; slot < page.end; slot++) {
        numbers[slot * NUMBERS + HEAD] = numbers[slot * NUMBERS + TAIL] = NONE
        numbers[slot * NUMBERS + OFFERED] = NONE
        numbers[slot * NUMBERS + SINCE] = 0
        words[slot * WORDS + LEASED] = words[slot * WORDS + RETRYING] = 0
      }
    }
  }

  #make(low: number, high: number): number {
    const page = this.#pageToFill()
    const slot = page.take()
    page.words[slot * WORDS + LOW] = low
    page.words[slot * WORDS + HIGH] = high
    page.words[slot * WORDS + CHANGES] = this.changes
    this.enter(this.#filling * PAGE_SLOTS + slot)
    return this.#filling * PAGE_SLOTS + slot
  }

  #pageToFill(): KeyPage {
    const pages = this.#pages
    const current = pages[this.#filling]
    if (current !== undefined && current.used < PAGE_SLOTS) return current
    // If more than an eighth of all slots are free, a search for a page with a free slot visits about eight pages.
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

  /** Changes a count of the slot and returns the new count. */
  #count(slot: number, which: number, change: 1 | -1): number {
    return (this.#page(slot).words[(slot % PAGE_SLOTS) * WORDS + which]! += change)
  }

  #word(slot: number, which: number): number {
    return this.#page(slot).words[(slot % PAGE_SLOTS) * WORDS + which]!
  }
}

/** A queue. Its keys are created when they are first read, because with many queues most have no keys. */
export interface KeysOwner {
  readonly keys: Keys
  readonly hasKeys: boolean
}
