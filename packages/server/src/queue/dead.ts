/**
 * The dead messages of one chunk, by index: what a map of objects would say, in a few bytes each, because there can be
 * as many as a queue takes.
 */
import type { Death } from '@sluice/protocol'

export interface Dead {
  readonly attempts: number
  readonly death: Death
  readonly timeMs: number
  /** What the consumer said, at most `LIMITS.reasonBytesMax` bytes; '' when nothing. */
  readonly reason: string
  /** It is to be moved to the dead-letter queue of its queue. */
  readonly isMoving: boolean
  /** Of its record; where that is not known, as many as others here had when it died. */
  readonly bytes: number
}

const MOVING = 128
const PLACES_FIRST = 4

/** Invariant: the first `size` places of each array are the dead, in the order of their indexes. */
export class DeadMessages {
  size = 0
  #indexes = new Uint16Array(PLACES_FIRST)
  /** Cause of death, and whether it is to be moved. */
  #deaths = new Uint8Array(PLACES_FIRST)
  #attempts = new Uint8Array(PLACES_FIRST)
  #times = new Float64Array(PLACES_FIRST)
  #bytes = new Float32Array(PLACES_FIRST)
  readonly #reasons: string[] = []

  has(index: number): boolean {
    return this.#find(index) >= 0
  }

  get(index: number): Dead | undefined {
    const place = this.#find(index)
    if (place < 0) return undefined
    const death = this.#deaths[place]!
    return {
      attempts: this.#attempts[place]!,
      death: (death & ~MOVING) as Death,
      timeMs: this.#times[place]!,
      reason: this.#reasons[place]!,
      isMoving: (death & MOVING) !== 0,
      bytes: this.#bytes[place]!,
    }
  }

  set(index: number, { attempts, death, timeMs, reason, isMoving, bytes }: Dead): void {
    let place = this.#find(index)
    if (place < 0) {
      place = -place - 1
      this.#open(place)
      this.#indexes[place] = index
    }
    this.#deaths[place] = death | (isMoving ? MOVING : 0)
    this.#attempts[place] = attempts
    this.#times[place] = timeMs
    this.#bytes[place] = bytes
    this.#reasons[place] = reason
  }

  delete(index: number): boolean {
    const place = this.#find(index)
    if (place < 0) return false
    for (const values of [this.#indexes, this.#deaths, this.#attempts, this.#times, this.#bytes])
      values.copyWithin(place, place + 1, this.size)
    this.#reasons.splice(place, 1)
    this.size--
    return true
  }

  /** Indexes of the dead, in their order, as they were when it was called. */
  indexes(): Uint16Array {
    return this.#indexes.slice(0, this.size)
  }

  // Where it is, or -1 minus where it would be.
  #find(index: number): number {
    let low = 0
    let high = this.size
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#indexes[middle]! < index) low = middle + 1
      else high = middle
    }
    return low < this.size && this.#indexes[low] === index ? low : -low - 1
  }

  #open(place: number): void {
    if (this.size === this.#indexes.length) this.#grow(this.size * 2)
    for (const values of [this.#indexes, this.#deaths, this.#attempts, this.#times, this.#bytes])
      values.copyWithin(place + 1, place, this.size)
    this.#reasons.splice(place, 0, '')
    this.size++
  }

  #grow(places: number): void {
    const [indexes, deaths, attempts] = [this.#indexes, this.#deaths, this.#attempts]
    const [times, bytes] = [this.#times, this.#bytes]
    this.#indexes = new Uint16Array(places)
    this.#deaths = new Uint8Array(places)
    this.#attempts = new Uint8Array(places)
    this.#times = new Float64Array(places)
    this.#bytes = new Float32Array(places)
    this.#indexes.set(indexes)
    this.#deaths.set(deaths)
    this.#attempts.set(attempts)
    this.#times.set(times)
    this.#bytes.set(bytes)
  }
}
