/**
 * Messages by time: a binary heap of (time, offset) in two typed arrays, 16 bytes a message. The first is the one
 * with the earliest time, and of equal times the lowest offset.
 */
export class TimeHeap {
  size = 0
  /** For its owner: the size at which it looks for entries that mean nothing any more. */
  lookAt = 4096
  #times = new Float64Array(16)
  #offsets = new Float64Array(16)

  /** Time of the first; Infinity when empty. */
  get firstTime(): number {
    return this.size === 0 ? Infinity : this.#times[0]!
  }

  /** Offset of the first; undefined behaviour when empty. */
  get firstOffset(): number {
    return this.#offsets[0]!
  }

  /** Offsets of up to `count` entries that are among the earliest. */
  early(count: number): Float64Array {
    return this.#offsets.subarray(0, Math.min(count, this.size))
  }

  /** Calls `each` for everything in it, in no particular order. */
  forEach(each: (timeMs: number, offset: number) => void): void {
    for (let at = 0; at < this.size; at++) each(this.#times[at]!, this.#offsets[at]!)
  }

  /** Removes what `isKept` denies. */
  keep(isKept: (timeMs: number, offset: number) => boolean): void {
    let kept = 0
    for (let at = 0; at < this.size; at++) {
      if (!isKept(this.#times[at]!, this.#offsets[at]!)) continue
      this.#times[kept] = this.#times[at]!
      this.#offsets[kept] = this.#offsets[at]!
      kept++
    }
    this.size = kept
    for (let at = (kept >>> 1) - 1; at >= 0; at--) this.#sink(at, this.#times[at]!, this.#offsets[at]!)
  }

  clear(): void {
    this.size = 0
  }

  push(timeMs: number, offset: number): void {
    if (this.size === this.#times.length) this.#grow()
    let hole = this.size++
    while (hole > 0) {
      const parent = (hole - 1) >>> 1
      if (!before(timeMs, offset, this.#times[parent]!, this.#offsets[parent]!)) break
      this.#times[hole] = this.#times[parent]!
      this.#offsets[hole] = this.#offsets[parent]!
      hole = parent
    }
    this.#times[hole] = timeMs
    this.#offsets[hole] = offset
  }

  /** Removes the first. */
  pop(): void {
    const last = --this.size
    this.#sink(0, this.#times[last]!, this.#offsets[last]!)
  }

  // Puts an entry into the hole, or deeper, so that nothing below it comes before it.
  #sink(from: number, timeMs: number, offset: number): void {
    let hole = from
    for (let child = hole * 2 + 1; child < this.size; child = hole * 2 + 1) {
      if (
        child + 1 < this.size &&
        before(this.#times[child + 1]!, this.#offsets[child + 1]!, this.#times[child]!, this.#offsets[child]!)
      ) {
        child++
      }
      if (before(timeMs, offset, this.#times[child]!, this.#offsets[child]!)) break
      this.#times[hole] = this.#times[child]!
      this.#offsets[hole] = this.#offsets[child]!
      hole = child
    }
    this.#times[hole] = timeMs
    this.#offsets[hole] = offset
  }

  #grow(): void {
    const times = new Float64Array(this.size * 2)
    times.set(this.#times)
    this.#times = times
    const offsets = new Float64Array(this.size * 2)
    offsets.set(this.#offsets)
    this.#offsets = offsets
  }
}

function before(timeA: number, offsetA: number, timeB: number, offsetB: number): boolean {
  return timeA < timeB || (timeA === timeB && offsetA < offsetB)
}
