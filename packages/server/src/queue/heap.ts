/**
 * Messages by time: a binary heap of (time, offset) in two typed arrays, 16 bytes a message. The first is the one
 * with the earliest time, and of equal times the lowest offset.
 */
export class TimeHeap {
  size = 0
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

  /** Every offset in it, in no particular order. */
  offsets(): Float64Array {
    return this.#offsets.subarray(0, this.size)
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
    const timeMs = this.#times[last]!
    const offset = this.#offsets[last]!
    let hole = 0
    for (let child = 1; child < last; child = hole * 2 + 1) {
      if (
        child + 1 < last &&
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
