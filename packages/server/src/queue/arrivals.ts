/**
 * Arrivals: batches that are counted in their queues, but not yet in the chunks and lines. All queues share one ring.
 *
 * A publish that cycles through 10,000 queues misses the CPU cache on each. Accepting a batch touches one part of its
 * queue, and the end of this ring. The other dozen cache lines of the queue are touched once for several batches.
 *
 * Invariant: the arrivals of a queue are a chain, from its newest, which the queue keeps, to its oldest. The queue
 * applies the whole chain before its chunks or its line are read, and before the ring overwrites its oldest.
 */

/** A queue with arrivals. */
export interface Arriving {
  /** Place of its newest arrival; `NO_ARRIVAL`: none. */
  lastArrival: number
  /** Moves all its arrivals out of the ring. */
  applyArrivals(): void
}

export const NO_ARRIVAL = -1

/** Six for each of 10,000 queues: 2.5 MiB. */
const PLACES_DEFAULT = 1 << 16
const PLACES_FIRST = 64

/** Numbers of an arrival: position in the log, time, record bytes, and count and link in one. */
const WIDTH = 4
const POSITION = 0
const TIME = 1
const BYTES = 2
const LINK = 3
const COUNT_UNIT = 2 ** 32

export class Arrivals {
  readonly #placesMax: number
  /** Grows up to `#placesMax` places. */
  #numbers = new Float64Array(PLACES_FIRST * WIDTH)
  readonly #owners: (Arriving | undefined)[] = []
  #next = 0

  constructor(placesMax: number = PLACES_DEFAULT) {
    this.#placesMax = placesMax
  }

  /** Adds a batch of `owner`. */
  add(owner: Arriving, count: number, position: number, timeMs: number, bytes: number): void {
    if (this.#next === this.#placesMax) this.#next = 0
    const place = this.#next++
    if (place === this.#owners.length) this.#grow()
    else this.#owners[place]?.applyArrivals()
    const at = place * WIDTH
    const numbers = this.#numbers
    numbers[at + POSITION] = position
    numbers[at + TIME] = timeMs
    numbers[at + BYTES] = bytes
    numbers[at + LINK] = count * COUNT_UNIT + (owner.lastArrival + 1)
    this.#owners[place] = owner
    owner.lastArrival = place
  }

  /** Reverses the chain that starts at `last`, its newest. Returns the place of its oldest. */
  reverse(last: number): number {
    let after = NO_ARRIVAL
    for (let place = last; place !== NO_ARRIVAL;) {
      const before = this.#link(place)
      this.#numbers[place * WIDTH + LINK] = this.count(place) * COUNT_UNIT + (after + 1)
      after = place
      place = before
    }
    return after
  }

  count(place: number): number {
    return Math.floor(this.#numbers[place * WIDTH + LINK]! / COUNT_UNIT)
  }

  position(place: number): number {
    return this.#numbers[place * WIDTH + POSITION]!
  }

  timeMs(place: number): number {
    return this.#numbers[place * WIDTH + TIME]!
  }

  /** Record bytes. */
  bytes(place: number): number {
    return this.#numbers[place * WIDTH + BYTES]!
  }

  /** Frees the place. Returns the next one in the reversed chain, `NO_ARRIVAL` after the last. */
  free(place: number): number {
    this.#owners[place] = undefined
    return this.#link(place)
  }

  // By one place. The ring does not wrap around before it has its full size.
  #grow(): void {
    this.#owners.push(undefined)
    if (this.#owners.length * WIDTH <= this.#numbers.length) return
    const numbers = this.#numbers
    this.#numbers = new Float64Array(numbers.length * 2)
    this.#numbers.set(numbers)
  }

  #link(place: number): number {
    return (this.#numbers[place * WIDTH + LINK]! % COUNT_UNIT) - 1
  }
}
