/**
 * Arrivals: batches that their queues have counted and have not put into their chunks and lines yet. All queues share
 * one ring.
 *
 * Who publishes to ten thousand queues in turn finds nothing of any of them in the cache. To take a message is to look at
 * one part of its queue, and to write here behind the last one; the other dozen lines of memory are looked at once for
 * all the batches that came meanwhile.
 *
 * Invariant: what stands here of a queue is a chain, from its newest, which the queue keeps, to its oldest. The queue
 * takes all of it in before anybody looks at its chunks or its line, and before the ring comes round to its oldest.
 */

/** Whose batches stand here. */
export interface Arriving {
  /** Where its newest batch stands; `NO_ARRIVAL`: none does. */
  lastArrival: number
  /** Takes in all that stands here of it. */
  takeIn(): void
}

export const NO_ARRIVAL = -1

/** Half a dozen for each of ten thousand queues: 2.5 MiB. */
const PLACES_DEFAULT = 1 << 16
const PLACES_FIRST = 64

/** Numbers of a batch: place in the log, time, bytes of its records, and count and link as one. */
const WIDTH = 4
const POSITION = 0
const TIME = 1
const BYTES = 2
const LINK = 3
const COUNT_UNIT = 2 ** 32

export class Arrivals {
  readonly #placesMax: number
  /** Of the places so far. */
  #numbers = new Float64Array(PLACES_FIRST * WIDTH)
  readonly #owners: (Arriving | undefined)[] = []
  #next = 0

  constructor(placesMax: number = PLACES_DEFAULT) {
    this.#placesMax = placesMax
  }

  /** Puts in a batch of `owner`. */
  add(owner: Arriving, count: number, position: number, timeMs: number, bytes: number): void {
    if (this.#next === this.#placesMax) this.#next = 0
    const place = this.#next++
    if (place === this.#owners.length) this.#grow()
    else this.#owners[place]?.takeIn()
    const at = place * WIDTH
    const numbers = this.#numbers
    numbers[at + POSITION] = position
    numbers[at + TIME] = timeMs
    numbers[at + BYTES] = bytes
    numbers[at + LINK] = count * COUNT_UNIT + (owner.lastArrival + 1)
    this.#owners[place] = owner
    owner.lastArrival = place
  }

  /** Turns the chain around that ends at `last`; returns the place of its oldest batch. */
  turn(last: number): number {
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

  /** Of its records. */
  bytes(place: number): number {
    return this.#numbers[place * WIDTH + BYTES]!
  }

  /** The batch is taken in; returns the place of the next in its turned chain, `NO_ARRIVAL` behind the last. */
  free(place: number): number {
    this.#owners[place] = undefined
    return this.#link(place)
  }

  // By one place. Until there are as many as there may be, the ring does not come round.
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
