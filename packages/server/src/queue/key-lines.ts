/**
 * The lines of keys: in what order the messages of one key go, and whether its head may be handed out (invariant 13).
 * Part of the line; `Keys` holds the numbers, the chunks the links.
 *
 * Invariant: the head of a key is on offer if and only if the key is free; nothing else of it ever is.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE, type Keys } from './keys.js'

/** How the keys of a queue are to be treated. */
export interface KeyRules {
  readonly keyConcurrency: number
  /** A message that waits for a retry holds its key. */
  readonly blocks: boolean
}

/** A message, and where it stands in time. */
export interface Placed {
  readonly chunk: Chunk
  readonly index: number
  readonly timeMs: number
}

export class KeyLines {
  rules: KeyRules = { keyConcurrency: 1, blocks: true }
  readonly #chunks: Chunks
  readonly #keys: Keys
  readonly #offered: (priority: number, sinceMs: number, offset: number) => void

  /** What was put before another one last, and in which line. */
  #inserted = NONE
  #insertedSlot = NONE

  /** `offered` is told each head that is put on offer. */
  constructor(
    chunks: Chunks,
    keys: Keys,
    offered: (priority: number, sinceMs: number, offset: number) => void,
  ) {
    this.#chunks = chunks
    this.#keys = keys
    this.#offered = offered
  }

  /** Puts messages that stand nowhere into their lines, which are empty, and the heads on offer. */
  rebuild(messages: Placed[]): void {
    const rank = ({ chunk, index }: Placed): number => this.#rank(chunk, index)
    // Sorted first, so that each finds its place at the end of its line.
    messages.sort(
      (a, b) => rank(a) - rank(b) || a.timeMs - b.timeMs || a.chunk.base + a.index - (b.chunk.base + b.index),
    )
    for (const { chunk, index } of messages) this.append(chunk.keyAt(index), chunk, index)
    for (const slot of this.#keys.slots()) this.#offerHead(slot)
  }

  /** Empties all lines. */
  reset(): void {
    this.#keys.clearLines()
  }

  /** Whether the message at `offset` is on offer since `timeMs`. */
  isOffered(slot: number, offset: number, timeMs: number): boolean {
    return this.#keys.offeredOf(slot) === offset && this.#keys.sinceOf(slot) === timeMs
  }

  /** Counts the messages in all lines. @throws Error where a link or what is on offer is wrong */
  audit(): number {
    let count = 0
    for (const slot of this.#keys.slots()) {
      let before = NONE
      for (let offset = this.#keys.headOf(slot); offset !== NONE;) {
        const chunk = this.#chunks.at(offset)!
        if (chunk.previousAt(offset - chunk.base) !== before)
          throw new Error(`offset ${offset} follows ${before} in the line of its key and does not know it`)
        count++
        before = offset
        offset = chunk.nextAt(offset - chunk.base)
      }
      const head = this.#keys.headOf(slot)
      const expected = head !== NONE && this.isFree(slot) ? head : NONE
      if (this.#keys.offeredOf(slot) !== expected)
        throw new Error(`the head of a key is offset ${head}, on offer is ${this.#keys.offeredOf(slot)}`)
    }
    return count
  }

  /** Whether another message of the key may be handed out. */
  isFree(slot: number): boolean {
    const { keyConcurrency, blocks } = this.rules
    return this.#keys.leasedOf(slot) < keyConcurrency && !(blocks && this.#keys.retryingOf(slot) > 0)
  }

  /** Whether fewer messages of the key are handed out than may be. */
  hasPlace(slot: number): boolean {
    return this.#keys.leasedOf(slot) < this.rules.keyConcurrency
  }

  // Where a failed message holds its key, it stays before all that were not tried.
  #rank(chunk: Chunk, index: number): number {
    return this.rules.blocks && chunk.attemptsAt(index) > 0 ? 0 : 1
  }

  /**
   * Something about the key has changed at `timeMs`: its head is put on offer if the key is free. It is eligible since
   * then, but not since before it was there; unless it is the one at `arrived`, which brings its own time. What made
   * the change may have been noticed late, and after something later.
   */
  offer(slot: number, timeMs: number, arrived: number, arrivedSinceMs: number): void {
    const keys = this.#keys
    const head = keys.headOf(slot)
    if (head === NONE || !this.isFree(slot)) {
      keys.withdraw(slot)
      return
    }
    if (keys.offeredOf(slot) === head) return
    const chunk = this.#chunks.at(head)!
    const sinceMs =
      head === arrived
        ? arrivedSinceMs
        : Math.max(timeMs, keys.sinceOf(slot), chunk.lineTimeAt(head - chunk.base))
    keys.offer(slot, head, sinceMs)
    this.#offered(chunk.priorityAt(head - chunk.base), sinceMs, head)
  }

  // After a rebuild: nobody knows when it became eligible.
  #offerHead(slot: number): void {
    const head = this.#keys.headOf(slot)
    if (head === NONE) return
    const chunk = this.#chunks.at(head)!
    this.offer(slot, 0, head, chunk.lineTimeAt(head - chunk.base))
  }

  /** The message takes its place at the end of the line. */
  append(slot: number, chunk: Chunk, index: number): void {
    this.#link(slot, chunk, index, this.#keys.tailOf(slot), NONE)
  }

  /** The message takes its place: mostly at the end; what comes back belongs among the few at the front. */
  insert(slot: number, chunk: Chunk, index: number): void {
    const tail = this.#keys.tailOf(slot)
    if (tail === NONE || this.#isBehind(tail, chunk, index)) {
      this.append(slot, chunk, index)
      return
    }
    const next = this.#nextOf(slot, chunk, index)
    this.#link(slot, chunk, index, this.#before(next), next)
    this.#insertedSlot = slot
    this.#inserted = chunk.base + index
  }

  // The message that the one at `index`, which does not belong at the end, belongs before. It is sought from the head and
  // from the one that was inserted last at once: several that come back in order take one step each.
  #nextOf(slot: number, chunk: Chunk, index: number): number {
    let next = this.#keys.headOf(slot)
    let other = this.#isInserted(slot, chunk.base + index) ? this.#inserted : NONE
    const isAfter = other !== NONE && this.#isBehind(other, chunk, index)
    while (this.#isBehind(next, chunk, index)) {
      next = this.#after(next)
      if (other === NONE) continue
      if (isAfter) {
        other = this.#after(other)
        if (!this.#isBehind(other, chunk, index)) return other
      } else {
        const previous = this.#before(other)
        if (previous === NONE || this.#isBehind(previous, chunk, index)) return other
        other = previous
      }
    }
    return next
  }

  // Whether the message that was inserted last is in the line of this key still, and is not the one that comes now.
  #isInserted(slot: number, offset: number): boolean {
    const inserted = this.#inserted
    if (this.#insertedSlot !== slot || inserted === offset) return false
    const chunk = this.#chunks.at(inserted)
    if (chunk === undefined) return false
    const index = inserted - chunk.base
    return (
      chunk.isWaiting(index) && chunk.isRipe(index) && !chunk.isGone(index) && chunk.keyAt(index) === slot
    )
  }

  #after(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.nextAt(offset - chunk.base)
  }

  #before(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.previousAt(offset - chunk.base)
  }

  // Whether the message at `index` stands behind the one at `offset` in the line of their key.
  #isBehind(offset: number, chunk: Chunk, index: number): boolean {
    const other = this.#chunks.at(offset)!
    const otherIndex = offset - other.base
    const rank = this.#rank(chunk, index) - this.#rank(other, otherIndex)
    if (rank !== 0) return rank > 0
    const timeMs = chunk.lineTimeAt(index) - other.lineTimeAt(otherIndex)
    return timeMs === 0 ? chunk.base + index > offset : timeMs > 0
  }

  #link(slot: number, chunk: Chunk, index: number, previous: number, next: number): void {
    const offset = chunk.base + index
    chunk.setPrevious(index, previous)
    chunk.setNext(index, next)
    this.#setNext(slot, previous, offset)
    this.#setPrevious(slot, next, offset)
  }

  /** The message leaves the line. */
  unlink(slot: number, chunk: Chunk, index: number): void {
    const previous = chunk.previousAt(index)
    const next = chunk.nextAt(index)
    this.#setNext(slot, previous, next)
    this.#setPrevious(slot, next, previous)
    if (this.#keys.offeredOf(slot) === chunk.base + index) this.#keys.withdraw(slot)
  }

  #setNext(slot: number, offset: number, next: number): void {
    if (offset === NONE) this.#keys.setHead(slot, next)
    else {
      const chunk = this.#chunks.at(offset)!
      chunk.setNext(offset - chunk.base, next)
    }
  }

  #setPrevious(slot: number, offset: number, previous: number): void {
    if (offset === NONE) this.#keys.setTail(slot, previous)
    else {
      const chunk = this.#chunks.at(offset)!
      chunk.setPrevious(offset - chunk.base, previous)
    }
  }
}
