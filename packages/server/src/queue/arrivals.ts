/**
 * Arrivals: batches that are counted in their queues but not yet added to the chunks and lines. All queues share one ring.
 *
 * A client that publishes to 10,000 queues in turn misses the CPU cache for each queue. Accepting a batch touches only
 * one part of its queue, and the end of this ring. The other cache lines of the queue, about a dozen, are touched once
 * for several batches.
 *
 * Invariant: the arrivals of a queue are a chain from the newest, whose slot the queue keeps, to the oldest. The queue
 * applies the whole chain before its chunks or its line are read, and before the ring overwrites the oldest.
 */

/** A queue with arrivals. */
export interface Arriving {
  /** Slot of the newest arrival; `NO_ARRIVAL` if the queue has no arrival. */
  lastArrival: number
  /** Moves all arrivals of the queue out of the ring. */
  applyArrivals(): void
}

export const NO_ARRIVAL = -1

/** Number of slots in the ring: enough for six arrivals of each of 10,000 queues. The ring then takes 2.5 MiB. */
const SLOTS_DEFAULT = 1 << 16
const SLOTS_FIRST = 64

/** Numbers per arrival: its position in the log, its time, its record bytes, and one number for both count and link. */
const WIDTH = 4
const POSITION = 0
const TIME = 1
const BYTES = 2
const LINK = 3
const COUNT_UNIT = 2 ** 32

export class Arrivals {
  readonly #slotsMax: number
  /** The ring, which grows up to `#slotsMax` slots. */
  #numbers = new Float64Array(SLOTS_FIRST * WIDTH)
  readonly #owners: (Arriving | undefined)[] = []
  #next = 0

  constructor(slotsMax: number = SLOTS_DEFAULT) {
    this.#slotsMax = slotsMax
  }

  /** Adds a batch of `owner`. */
  add(owner: Arriving, count: number, position: number, timeMs: number, bytes: number): void {
    if (this.#next === this.#slotsMax) this.#next = 0
    const slot = this.#next++
    if (slot === this.#owners.length) this.#grow()
    else this.#owners[slot]?.applyArrivals()
    const at = slot * WIDTH
    const numbers = this.#numbers
    numbers[at + POSITION] = position
    numbers[at + TIME] = timeMs
    numbers[at + BYTES] = bytes
    numbers[at + LINK] = count * COUNT_UNIT + (owner.lastArrival + 1)
    this.#owners[slot] = owner
    owner.lastArrival = slot
  }

  /** Reverses the chain that starts at `last`, the newest arrival. Returns the slot of the oldest. */
  reverse(last: number): number {
    let after = NO_ARRIVAL
    for (let slot = last; slot !== NO_ARRIVAL;) {
      const before = this.#link(slot)
      this.#numbers[slot * WIDTH + LINK] = this.count(slot) * COUNT_UNIT + (after + 1)
      after = slot
      slot = before
    }
    return after
  }

  count(slot: number): number {
    return Math.floor(this.#numbers[slot * WIDTH + LINK]! / COUNT_UNIT)
  }

  position(slot: number): number {
    return this.#numbers[slot * WIDTH + POSITION]!
  }

  timeMs(slot: number): number {
    return this.#numbers[slot * WIDTH + TIME]!
  }

  /** Record bytes of the arrival. */
  bytes(slot: number): number {
    return this.#numbers[slot * WIDTH + BYTES]!
  }

  /** Frees the slot. Returns the next slot in the reversed chain, or `NO_ARRIVAL` after the last. */
  free(slot: number): number {
    this.#owners[slot] = undefined
    return this.#link(slot)
  }

  // Grows the ring by one slot. The ring does not wrap around before it has its full size.
  #grow(): void {
    this.#owners.push(undefined)
    if (this.#owners.length * WIDTH <= this.#numbers.length) return
    const numbers = this.#numbers
    this.#numbers = new Float64Array(numbers.length * 2)
    this.#numbers.set(numbers)
  }

  #link(slot: number): number {
    return (this.#numbers[slot * WIDTH + LINK]! % COUNT_UNIT) - 1
  }
}
