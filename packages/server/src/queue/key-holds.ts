/**
 * The keys that are held for a time: a key that has used up its rate until its next token arrives, and a key that a retry
 * paused until that retry is due. `KeyLines` puts no message of a held key on offer, so a held key costs the others
 * nothing, however long its line is. A heap, ordered by the ends of the holds, finds the keys that are on offer again.
 *
 * Holds are volatile, and kept by the hash of the key, because they outlive the messages of the key. An entry is dropped when
 * its bucket is full again and its pause is over. A key without an entry has a full bucket and no pause.
 *
 * Invariants: an entry has at most one item in the heap of holds, and exactly one if the key is held; the time of that item is
 * not later than the end of the hold. Each entry has exactly one item in the heap of entries to drop.
 */
import { HashIndex } from './hash-index.js'
import { TimeHeap } from './heap.js'
import { fullUnits, reachedMs, unitsAt, type Rate } from './rate.js'

const NONE = -1
const ENTRIES_FIRST = 16
/** Number of 8-byte numbers per entry. */
const NUMBERS = 4
/** Units of the bucket, and the time at which it had them. */
const UNITS = 0
const AT = 1
/** End of the hold; 0 if the key is not held. */
const HELD = 2
/** End of the pause; 0 if there is none. */
const PAUSED = 3
/** Number of 4-byte words per entry. */
const WORDS = 3
const LOW = 0
const HIGH = 1
/** Whether the entry has an item in the heap of holds. */
const LISTED = 2

/** Maximum number of paused keys of a queue. Beyond it, a retry does not pause its key. */
export const PAUSED_KEYS_MAX = 65_536
/** Maximum number of entries that one call of `continue` looks at to drop them. */
const DROPS_MAX = 1_024

export class KeyHolds extends HashIndex {
  #rate: Rate | undefined
  #numbers = new Float64Array(ENTRIES_FIRST * NUMBERS)
  #words = new Uint32Array(ENTRIES_FIRST * WORDS)
  /** Entries from here on were never used. */
  #used = 0
  readonly #free: number[] = []
  /** Entries by the end of their hold, and by the time at which they may be dropped. */
  readonly #holds = new TimeHeap()
  readonly #drops = new TimeHeap()
  /** Time at which entries are dropped next. */
  #nextDropMs = Infinity
  /** Number of held keys. A hold that is over counts until `end` or `continue` ends it. */
  held = 0
  /** Number of entries that have had a pause. */
  #paused = 0

  constructor(rate: Rate | undefined) {
    super()
    this.#rate = rate
  }

  protected override wordOf(entry: number): number {
    return this.#words[entry * WORDS + LOW]!
  }

  protected override isHashOf(entry: number, low: number, high: number): boolean {
    return this.#words[entry * WORDS + LOW] === low && this.#words[entry * WORDS + HIGH] === high
  }

  /** End of the hold of the key; 0 if it is not held. */
  heldUntil(low: number, high: number): number {
    const entry = this.size === 0 ? NONE : this.lookUp(low, high, 0, 0)
    return entry === NONE ? 0 : this.#numbers[entry * NUMBERS + HELD]!
  }

  /** Whether the hold of the key lasts because of a pause, not because of the rate. */
  isPaused(low: number, high: number): boolean {
    const entry = this.size === 0 ? NONE : this.lookUp(low, high, 0, 0)
    return entry !== NONE && this.#numbers[entry * NUMBERS + PAUSED] === this.#numbers[entry * NUMBERS + HELD]
  }

  /** Time at which `continue` has work next; Infinity if there is none. */
  get nextMs(): number {
    return Math.min(this.#holds.firstTime, this.#nextDropMs)
  }

  /** Lower bound for the time at which the next hold ends. */
  get nextEndMs(): number {
    return this.#holds.firstTime
  }

  /** Number of keys whose hold ends after `nowMs`. */
  heldAt(nowMs: number): number {
    if (this.#holds.firstTime > nowMs) return this.held
    let held = 0
    this.#holds.forEach((_, entry) => {
      if (this.#numbers[entry * NUMBERS + HELD]! > nowMs) held++
    })
    return held
  }

  /** Called when a message of the key is delivered. Holds the key if it may not be followed by another one at `nowMs`. */
  take(low: number, high: number, nowMs: number): void {
    const rate = this.#rate
    if (rate === undefined) return
    const entry = this.#entryOf(low, high, nowMs, nowMs + rate.perMs)
    const at = entry * NUMBERS
    const units = unitsAt(rate, this.#numbers[at + UNITS]!, this.#numbers[at + AT]!, nowMs) - rate.perMs
    this.#numbers[at + UNITS] = units
    this.#numbers[at + AT] = nowMs
    if (units < rate.perMs) this.#hold(entry, reachedMs(rate, units, nowMs, rate.perMs))
  }

  /** Holds the key until `untilMs`, unless PAUSED_KEYS_MAX keys are paused. */
  pause(low: number, high: number, untilMs: number, nowMs: number): void {
    if (untilMs <= nowMs) return
    const known = this.lookUp(low, high, 0, 0)
    const isPaused = known !== NONE && this.#numbers[known * NUMBERS + PAUSED]! > 0
    if (!isPaused) {
      if (this.#paused === PAUSED_KEYS_MAX) return
      this.#paused++
    }
    const entry = this.#entryOf(low, high, nowMs, untilMs)
    const at = entry * NUMBERS + PAUSED
    this.#numbers[at] = Math.max(this.#numbers[at]!, untilMs)
    this.#hold(entry, untilMs)
  }

  #hold(entry: number, untilMs: number): void {
    const at = entry * NUMBERS + HELD
    const heldMs = this.#numbers[at]!
    if (heldMs === 0) this.held++
    if (untilMs > heldMs) this.#numbers[at] = untilMs
    if (this.#words[entry * WORDS + LISTED] === 0) this.#list(entry)
  }

  #list(entry: number): void {
    this.#words[entry * WORDS + LISTED] = 1
    this.#holds.push(this.#numbers[entry * NUMBERS + HELD]!, entry)
  }

  /** If the hold of the key is over at `nowMs`, ends it and returns the time at which it ended; otherwise returns 0. */
  end(low: number, high: number, nowMs: number): number {
    const entry = this.held === 0 ? NONE : this.lookUp(low, high, 0, 0)
    return entry === NONE ? 0 : this.#end(entry, nowMs)
  }

  #end(entry: number, nowMs: number): number {
    const at = entry * NUMBERS + HELD
    const untilMs = this.#numbers[at]!
    if (untilMs === 0 || untilMs > nowMs) return 0
    this.#numbers[at] = 0
    this.held--
    return untilMs
  }

  /**
   * Ends the holds that are over at `nowMs`, and calls `ended` with each key and the time at which its hold ended. Then drops
   * some of the entries that are not needed any more. Ends at most `max` holds, and returns the cost.
   */
  continue(nowMs: number, max: number, ended: (low: number, high: number, untilMs: number) => void): number {
    let count = 0
    for (; count < max && this.#holds.firstTime <= nowMs; count++) {
      const entry = this.#holds.firstOffset
      this.#holds.pop()
      this.#words[entry * WORDS + LISTED] = 0
      const untilMs = this.#end(entry, nowMs)
      if (untilMs !== 0) ended(this.#words[entry * WORDS + LOW]!, this.#words[entry * WORDS + HIGH]!, untilMs)
      else if (this.#numbers[entry * NUMBERS + HELD]! > 0) this.#list(entry)
    }
    this.#dropUnneeded(nowMs)
    return count
  }

  #dropUnneeded(nowMs: number): void {
    for (let left = DROPS_MAX; left > 0 && this.#drops.firstTime <= nowMs; left--) {
      const entry = this.#drops.firstOffset
      this.#drops.pop()
      this.#endPause(entry, nowMs)
      const neededMs = this.#neededMs(entry)
      if (neededMs > nowMs || this.#words[entry * WORDS + LISTED] === 1)
        this.#drops.push(Math.max(neededMs, nowMs + 1), entry)
      else this.#drop(entry)
    }
    // If there are more, they wait for a later turn: they delay no delivery.
    this.#nextDropMs = Math.max(this.#drops.firstTime, nowMs + 1)
  }

  /** Gives each key another rate, and a full bucket. A hold that was due to the old rate ends at `nowMs`. */
  changeRate(rate: Rate | undefined, nowMs: number): void {
    this.#rate = rate
    this.#holds.clear()
    this.#drops.forEach((_, entry) => {
      const at = entry * NUMBERS
      this.#numbers[at + UNITS] = rate === undefined ? 0 : fullUnits(rate)
      this.#numbers[at + AT] = nowMs
      this.#words[entry * WORDS + LISTED] = 0
      if (this.#numbers[at + HELD] === 0) return
      if (this.#numbers[at + HELD]! > nowMs)
        this.#numbers[at + HELD] = Math.max(nowMs, this.#numbers[at + PAUSED]!)
      this.#list(entry)
    })
  }

  #endPause(entry: number, nowMs: number): void {
    const at = entry * NUMBERS + PAUSED
    if (this.#numbers[at] === 0 || this.#numbers[at]! > nowMs) return
    this.#numbers[at] = 0
    this.#paused--
  }

  // Time until which the entry is needed: its pause is not over, or its bucket is not full.
  #neededMs(entry: number): number {
    const at = entry * NUMBERS
    const rate = this.#rate
    const fullMs =
      rate === undefined
        ? 0
        : reachedMs(rate, this.#numbers[at + UNITS]!, this.#numbers[at + AT]!, fullUnits(rate))
    return Math.max(fullMs, this.#numbers[at + PAUSED]!, this.#numbers[at + HELD]!)
  }

  // The entry of the key. A new one is kept at least until `keptMs`.
  #entryOf(low: number, high: number, nowMs: number, keptMs: number): number {
    const found = this.lookUp(low, high, 0, 0)
    if (found !== NONE) return found
    const entry = this.#free.pop() ?? this.#next()
    this.#words[entry * WORDS + LOW] = low
    this.#words[entry * WORDS + HIGH] = high
    this.#words[entry * WORDS + LISTED] = 0
    const at = entry * NUMBERS
    this.#numbers[at + UNITS] = this.#rate === undefined ? 0 : fullUnits(this.#rate)
    this.#numbers[at + AT] = nowMs
    this.#numbers[at + HELD] = this.#numbers[at + PAUSED] = 0
    this.enter(entry)
    this.#drops.push(keptMs, entry)
    if (keptMs < this.#nextDropMs) this.#nextDropMs = keptMs
    return entry
  }

  #next(): number {
    const entry = this.#used++
    if (entry * WORDS < this.#words.length) return entry
    const { length } = this.#words
    const words = new Uint32Array(length * 2)
    words.set(this.#words)
    this.#words = words
    const numbers = new Float64Array(this.#numbers.length * 2)
    numbers.set(this.#numbers)
    this.#numbers = numbers
    return entry
  }

  #drop(entry: number): void {
    this.remove(entry)
    if (this.size > 0) {
      this.#free.push(entry)
      return
    }
    // The last entry is gone, so its memory is given back.
    this.#free.length = 0
    this.#used = 0
    this.#numbers = new Float64Array(ENTRIES_FIRST * NUMBERS)
    this.#words = new Uint32Array(ENTRIES_FIRST * WORDS)
  }

  /** Compares the counts and the heaps with the entries. @throws Error with the difference */
  audit(): void {
    let entries = 0
    let held = 0
    let listed = 0
    this.#drops.forEach((_, entry) => {
      entries++
      if (this.#numbers[entry * NUMBERS + HELD]! > 0) held++
      listed += this.#words[entry * WORDS + LISTED]!
    })
    if (entries !== this.size || held !== this.held || listed !== this.#holds.size)
      throw new Error(
        `holds of keys: ${this.size} entries, found ${entries}; ${this.held} held, found ${held}; ${this.#holds.size} in the heap, counted ${listed}`,
      )
    this.#holds.forEach((timeMs, entry) => {
      const untilMs = this.#numbers[entry * NUMBERS + HELD]!
      if (untilMs > 0 && timeMs > untilMs)
        throw new Error(
          `holds of keys: entry ${entry} is held until ${untilMs}, but looked at only at ${timeMs}`,
        )
    })
  }
}
