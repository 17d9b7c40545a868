/**
 * Messages by time, then by offset. Entries that arrive in this order go into a list, where adding and removing is
 * cheap. Most entries arrive in order, for example with a constant delay, or when keys become free one after another.
 * All other entries go into a heap. An entry takes 16 bytes in either.
 */
import { TimeHeap } from './heap.js'
import { TimeList } from './time-list.js'

export class TimeQueue {
  readonly #heap = new TimeHeap()
  readonly #list = new TimeList()

  get size(): number {
    return this.#list.length + this.#heap.size
  }

  /** Time of the first entry; Infinity if the queue is empty. */
  get firstTime(): number {
    return this.#listIsFirst() ? this.#list.firstTime : this.#heap.firstTime
  }

  /** Offset of the first entry; undefined if the queue is empty. */
  get firstOffset(): number {
    return this.#listIsFirst() ? this.#list.firstOffset : this.#heap.firstOffset
  }

  /** Number of entries, at most `max`, that have the time of the first one and consecutive offsets. */
  firstRun(max: number): number {
    if (!this.#listIsFirst()) return 1
    const list = this.#list
    const { firstTime, firstOffset } = list
    const end = Math.min(max, list.length)
    let count = 1
    while (count < end && list.timeAt(count) === firstTime && list.offsetAt(count) === firstOffset + count)
      count++
    return count
  }

  /** Calls `each` with offsets of early entries, up to `count` from the list and up to `count` from the heap. */
  early(count: number, each: (offset: number) => void): void {
    for (let i = 0; i < count && i < this.#list.length; i++) each(this.#list.offsetAt(i))
    for (const offset of this.#heap.early(count)) each(offset)
  }

  /** Calls `each` with every entry, in any order. */
  forEach(each: (timeMs: number, offset: number) => void): void {
    for (let i = 0; i < this.#list.length; i++) each(this.#list.timeAt(i), this.#list.offsetAt(i))
    this.#heap.forEach(each)
  }

  /** Removes the entries for which `isKept` returns false. */
  keep(isKept: (timeMs: number, offset: number) => boolean): void {
    this.#list.keep(isKept)
    this.#heap.keep(isKept)
  }

  clear(): void {
    this.#heap.clear()
    this.#list.clear()
  }

  push(timeMs: number, offset: number): void {
    const list = this.#list
    const isLast =
      list.length === 0 || timeMs > list.lastTime || (timeMs === list.lastTime && offset >= list.lastOffset)
    if (isLast) list.push(timeMs, offset)
    else this.#heap.push(timeMs, offset)
  }

  /** Removes the first entry. */
  pop(): void {
    if (this.#listIsFirst()) this.#list.pop()
    else this.#heap.pop()
  }

  #listIsFirst(): boolean {
    const list = this.#list
    if (list.length === 0) return false
    const timeMs = list.firstTime
    const heapMs = this.#heap.firstTime
    return timeMs < heapMs || (timeMs === heapMs && list.firstOffset <= this.#heap.firstOffset)
  }
}
