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
  /** Of its record, whole; where that is not known, as many as others here had when it died. */
  readonly bytes: number
}

const MOVING = 8
const PLACES_FIRST = 2
/** Words of a dead message: index in the low 10 bits, above them death and `MOVING`, above those the high 16 bits of the time; … */
const WORDS = 4
const DEATH_SHIFT = 10
const INDEX_MASK = 2 ** DEATH_SHIFT - 1
const TIME_SHIFT = 16
/** … its low bits; attempts; bytes. */
const TIME = 1
const ATTEMPTS = 2
const BYTES = 3
const WORD_2 = 2 ** 32

/** Invariant: the first `size` places are the dead, in the order of their indexes. */
export class DeadMessages {
  size = 0
  #words = new Uint32Array(PLACES_FIRST * WORDS)
  readonly #reasons: string[] = []

  has(index: number): boolean {
    return this.#find(index) >= 0
  }

  get(index: number): Dead | undefined {
    const place = this.#find(index)
    if (place < 0) return undefined
    const at = place * WORDS
    const head = this.#words[at]!
    const death = (head >>> DEATH_SHIFT) & (2 * MOVING - 1)
    return {
      attempts: this.#words[at + ATTEMPTS]!,
      death: (death & ~MOVING) as Death,
      timeMs: (head >>> TIME_SHIFT) * WORD_2 + this.#words[at + TIME]!,
      reason: this.#reasons[place]!,
      isMoving: (death & MOVING) !== 0,
      bytes: this.#words[at + BYTES]!,
    }
  }

  set(index: number, { attempts, death, timeMs, reason, isMoving, bytes }: Dead): void {
    let place = this.#find(index)
    if (place < 0) {
      place = -place - 1
      this.#insert(place)
    }
    const at = place * WORDS
    const high = Math.floor(timeMs / WORD_2)
    this.#words[at] = index | ((death | (isMoving ? MOVING : 0)) << DEATH_SHIFT) | (high << TIME_SHIFT)
    this.#words[at + TIME] = timeMs - high * WORD_2
    this.#words[at + ATTEMPTS] = attempts
    this.#words[at + BYTES] = bytes
    this.#reasons[place] = reason
  }

  delete(index: number): boolean {
    const place = this.#find(index)
    if (place < 0) return false
    this.#words.copyWithin(place * WORDS, (place + 1) * WORDS, this.size * WORDS)
    this.#reasons.splice(place, 1)
    this.size--
    // Few are left of many: the room of the others is given back.
    const places = this.#words.length / WORDS
    if (places > PLACES_FIRST && this.size * 4 <= places) this.#resize(places / 2)
    return true
  }

  /** Indexes of the dead, in their order, as they were when it was called. */
  indexes(): Uint16Array {
    const indexes = new Uint16Array(this.size)
    for (let place = 0; place < this.size; place++) indexes[place] = this.#words[place * WORDS]! & INDEX_MASK
    return indexes
  }

  // Where it is, or -1 minus where it would be.
  #find(index: number): number {
    let low = 0
    let high = this.size
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#words[middle * WORDS]! & INDEX_MASK) < index) low = middle + 1
      else high = middle
    }
    return low < this.size && (this.#words[low * WORDS]! & INDEX_MASK) === index ? low : -low - 1
  }

  #insert(place: number): void {
    if (this.size * WORDS === this.#words.length) this.#resize(this.size * 2)
    this.#words.copyWithin((place + 1) * WORDS, place * WORDS, this.size * WORDS)
    this.#reasons.splice(place, 0, '')
    this.size++
  }

  #resize(places: number): void {
    const words = new Uint32Array(places * WORDS)
    words.set(this.#words.subarray(0, this.size * WORDS))
    this.#words = words
  }
}
