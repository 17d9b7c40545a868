/**
 * The dead messages of one chunk, by index. This map takes only a few bytes per message, because a queue can hold many
 * dead messages.
 */
import type { Death } from '@sluice/protocol'

export interface Dead {
  readonly attempts: number
  readonly death: Death
  readonly timeMs: number
  /** Reason from the consumer, at most `LIMITS.reasonBytesMax` bytes; '' if it gave no reason. */
  readonly reason: string
  /** Whether the message will be moved to the dead-letter queue. */
  readonly isMoving: boolean
  /** Size of the record; if it was not known when the message died, the mean size in its chunk. */
  readonly bytes: number
}

const MOVING = 8
const PLACES_FIRST = 2
/** Number of words per dead message. The first word has, from its low end: the index (10 bits), death and `MOVING`, the high bits of the time (16). */
const WORDS = 4
const DEATH_SHIFT = 10
const INDEX_MASK = 2 ** DEATH_SHIFT - 1
const TIME_SHIFT = 16
/** Places of the other words: the low 32 bits of the time, the attempts, and the bytes. */
const TIME = 1
const ATTEMPTS = 2
const BYTES = 3
const WORD_2 = 2 ** 32

/** Invariant: the first `size` places hold the dead messages, in the order of their indexes. */
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
    // Releases room when three quarters of it are unused.
    const places = this.#words.length / WORDS
    if (places > PLACES_FIRST && this.size * 4 <= places) this.#resize(places / 2)
    return true
  }

  /** A copy of the indexes of the dead messages, in order. */
  indexes(): Uint16Array {
    const indexes = new Uint16Array(this.size)
    for (let place = 0; place < this.size; place++) indexes[place] = this.#words[place * WORDS]! & INDEX_MASK
    return indexes
  }

  /** Indexes of the messages that will be moved to the dead-letter queue, in order. */
  movingIndexes(): number[] {
    const indexes: number[] = []
    for (let place = 0; place < this.size; place++) {
      const head = this.#words[place * WORDS]!
      if (((head >>> DEATH_SHIFT) & MOVING) !== 0) indexes.push(head & INDEX_MASK)
    }
    return indexes
  }

  // Place of the message. If it is not here, -1 minus the place at which it would be inserted.
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
