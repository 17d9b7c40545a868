/**
 * Messages by time, then by offset. Entries that arrive in this order go into a ring, where adding and removing is
 * cheap. Most entries arrive in order, for example with a constant delay, or when keys become free one after another.
 * All other entries go into a heap. An entry takes 16 bytes in either.
 */
import { TimeHeap } from './heap.js'

const RING_FIRST = 16
/** Shared by all empty rings. */
const NO_NUMBERS = new Float64Array(0)
const LOOK_FIRST = 4096
/** Maximum number of entries for which an empty ring keeps room. */
const RING_KEPT = 4096

export class TimeQueue {
  /** Size at which the owner removes stale entries. Only the owner sets and reads it. */
  lookAt = LOOK_FIRST
  readonly #heap = new TimeHeap()
  /** A ring of `#length` entries in ascending order from `#at`. Its size is a power of two, or 0. */
  #times: Float64Array = NO_NUMBERS
  #offsets: Float64Array = NO_NUMBERS
  #at = 0
  #length = 0

  get size(): number {
    return this.#length + this.#heap.size
  }

  /** Time of the first entry; Infinity if the queue is empty. */
  get firstTime(): number {
    return this.#ringIsFirst() ? this.#times[this.#at]! : this.#heap.firstTime
  }

  /** Offset of the first entry; undefined if the queue is empty. */
  get firstOffset(): number {
    return this.#ringIsFirst() ? this.#offsets[this.#at]! : this.#heap.firstOffset
  }

  /** Number of entries, at most `max`, that have the time of the first one and consecutive offsets. */
  firstRun(max: number): number {
    if (!this.#ringIsFirst()) return 1
    const mask = this.#times.length - 1
    const timeMs = this.#times[this.#at]!
    const offset = this.#offsets[this.#at]!
    const end = Math.min(max, this.#length)
    let count = 1
    while (count < end) {
      const at = (this.#at + count) & mask
      if (this.#times[at] !== timeMs || this.#offsets[at] !== offset + count) break
      count++
    }
    return count
  }

  /** Calls `each` with offsets of early entries, up to `count` from the ring and up to `count` from the heap. */
  early(count: number, each: (offset: number) => void): void {
    const mask = this.#times.length - 1
    for (let i = 0; i < count && i < this.#length; i++) each(this.#offsets[(this.#at + i) & mask]!)
    for (const offset of this.#heap.early(count)) each(offset)
  }

  /** Calls `each` with every entry, in any order. */
  forEach(each: (timeMs: number, offset: number) => void): void {
    const mask = this.#times.length - 1
    for (let i = 0; i < this.#length; i++) {
      const at = (this.#at + i) & mask
      each(this.#times[at]!, this.#offsets[at]!)
    }
    this.#heap.forEach(each)
  }

  /** Removes the entries for which `isKept` returns false. */
  keep(isKept: (timeMs: number, offset: number) => boolean): void {
    const mask = this.#times.length - 1
    let kept = 0
    for (let i = 0; i < this.#length; i++) {
      const from = (this.#at + i) & mask
      if (!isKept(this.#times[from]!, this.#offsets[from]!)) continue
      const to = (this.#at + kept++) & mask
      this.#times[to] = this.#times[from]!
      this.#offsets[to] = this.#offsets[from]!
    }
    this.#length = kept
    this.#heap.keep(isKept)
  }

  clear(): void {
    this.#heap.clear()
    this.#length = 0
    this.#resize(RING_FIRST)
  }

  push(timeMs: number, offset: number): void {
    if (this.#length > 0) {
      const last = (this.#at + this.#length - 1) & (this.#times.length - 1)
      const lastMs = this.#times[last]!
      if (timeMs < lastMs || (timeMs === lastMs && offset < this.#offsets[last]!)) {
        this.#heap.push(timeMs, offset)
        return
      }
    }
    if (this.#length === this.#times.length) this.#resize(Math.max(RING_FIRST, this.#length * 2))
    const at = (this.#at + this.#length++) & (this.#times.length - 1)
    this.#times[at] = timeMs
    this.#offsets[at] = offset
  }

  /** Removes the first entry. */
  pop(): void {
    if (!this.#ringIsFirst()) {
      this.#heap.pop()
      return
    }
    this.#at = (this.#at + 1) & (this.#times.length - 1)
    if (--this.#length === 0 && this.#times.length > RING_KEPT) this.#resize(RING_FIRST)
  }

  #ringIsFirst(): boolean {
    if (this.#length === 0) return false
    const timeMs = this.#times[this.#at]!
    const heapMs = this.#heap.firstTime
    return timeMs < heapMs || (timeMs === heapMs && this.#offsets[this.#at]! <= this.#heap.firstOffset)
  }

  #resize(capacity: number): void {
    this.#times = this.#moved(this.#times, capacity)
    this.#offsets = this.#moved(this.#offsets, capacity)
    this.#at = 0
  }

  #moved(ring: Float64Array, capacity: number): Float64Array {
    const moved = new Float64Array(capacity)
    const end = Math.min(this.#at + this.#length, ring.length)
    moved.set(ring.subarray(this.#at, end))
    moved.set(ring.subarray(0, this.#at + this.#length - end), end - this.#at)
    return moved
  }
}
