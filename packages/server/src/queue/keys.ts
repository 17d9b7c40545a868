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
const SLOTS_FIRST = 16

export class Keys extends HashIndex {
  /** By slot: first and last message of the line. */
  heads = new Float64Array(0)
  tails = new Float64Array(0)
  /** The head that may be handed out, and since when; NONE when the key is not free or has no line. */
  offered = new Float64Array(0)
  sinces = new Float64Array(0)
  leased = new Uint32Array(0)
  /** Messages that were tried in vain and wait for their time. */
  retrying = new Uint32Array(0)
  #lows = new Uint32Array(0)
  #highs = new Uint32Array(0)
  #refs = new Uint32Array(0)
  /** Slots below this were used before; those that are free are linked through `#refs`. */
  #end = 0
  #free = NONE

  protected override wordOf(slot: number): number {
    return this.#lows[slot]!
  }

  protected override isHashOf(slot: number, low: number, high: number): boolean {
    return this.#lows[slot] === low && this.#highs[slot] === high
  }

  low(slot: number): number {
    return this.#lows[slot]!
  }

  high(slot: number): number {
    return this.#highs[slot]!
  }

  /** The slot of the key with this hash, for one more message of it. */
  hold(low: number, high: number): number {
    let slot = this.lookUp(low, high, 0, 0)
    if (slot === NONE) slot = this.#make(low, high)
    this.#refs[slot]!++
    return slot
  }

  /** A message of the key is gone. */
  release(slot: number): void {
    const refs = --this.#refs[slot]!
    if (refs > 0) return
    this.remove(slot)
    this.#refs[slot] = this.#free + 1
    this.#free = slot
  }

  /** Every slot that is in use. */
  *slots(): IterableIterator<number> {
    const free = new Set<number>()
    for (let slot = this.#free; slot !== NONE; slot = this.#refs[slot]! - 1) free.add(slot)
    for (let slot = 0; slot < this.#end; slot++) if (!free.has(slot)) yield slot
  }

  /** No message waits or is leased. */
  clearLines(): void {
    this.heads.fill(NONE)
    this.tails.fill(NONE)
    this.offered.fill(NONE)
    this.leased.fill(0)
    this.retrying.fill(0)
  }

  #make(low: number, high: number): number {
    let slot = this.#free
    if (slot !== NONE) this.#free = this.#refs[slot]! - 1
    else {
      if (this.#end === this.#lows.length) this.#grow()
      slot = this.#end++
    }
    this.#lows[slot] = low
    this.#highs[slot] = high
    this.#refs[slot] = 0
    this.heads[slot] = NONE
    this.tails[slot] = NONE
    this.offered[slot] = NONE
    this.sinces[slot] = 0
    this.leased[slot] = 0
    this.retrying[slot] = 0
    this.enter(slot)
    return slot
  }

  #grow(): void {
    const slots = Math.max(SLOTS_FIRST, this.#lows.length * 2)
    this.heads = grown(this.heads, new Float64Array(slots).fill(NONE))
    this.tails = grown(this.tails, new Float64Array(slots).fill(NONE))
    this.offered = grown(this.offered, new Float64Array(slots).fill(NONE))
    this.sinces = grown(this.sinces, new Float64Array(slots))
    this.leased = grown(this.leased, new Uint32Array(slots))
    this.retrying = grown(this.retrying, new Uint32Array(slots))
    this.#lows = grown(this.#lows, new Uint32Array(slots))
    this.#highs = grown(this.#highs, new Uint32Array(slots))
    this.#refs = grown(this.#refs, new Uint32Array(slots))
  }
}

function grown<Values extends Float64Array | Uint32Array>(from: Values, to: Values): Values {
  to.set(from)
  return to
}
