/**
 * Whole numbers side by side that mostly lie within 2^32 above the first: 4 bytes each for as long as they all do,
 * 8 bytes otherwise. Ten million messages from batches of one are ten million places in the log and times.
 */
export class Column {
  #base: number | undefined
  #narrow: Uint32Array | undefined
  #wide: Float64Array | undefined

  /** `base`: what the numbers lie above, where that is known. */
  constructor(base?: number) {
    this.#base = base
  }

  get(index: number): number {
    return this.#wide === undefined ? this.#base! + this.#narrow![index]! : this.#wide[index]!
  }

  /** Sets one of the first `capacity` numbers; those that were set before stay what they are. */
  set(index: number, value: number, capacity: number): void {
    if (this.#wide === undefined) {
      this.#base ??= value
      this.#narrow ??= new Uint32Array(capacity)
      const above = value - this.#base
      if (above >= 0 && above <= MAX) {
        if (this.#narrow.length < capacity) this.#narrow = grown(this.#narrow, new Uint32Array(capacity))
        this.#narrow[index] = above
        return
      }
      this.#wide = new Float64Array(Math.max(capacity, this.#narrow.length))
      for (let i = 0; i < this.#narrow.length; i++) this.#wide[i] = this.#base + this.#narrow[i]!
      this.#narrow = undefined
    } else if (this.#wide.length < capacity) this.#wide = grown(this.#wide, new Float64Array(capacity))
    this.#wide[index] = value
  }
}

/** For messages that stand side by side, the offset of another one each, mostly not far away; or none. */
export class Links {
  /** Offset of the first message. */
  readonly #base: number
  readonly #count: number
  /** 0: none. Even: twice how far behind. Odd: twice how far before, less one. */
  readonly #distances = new Column(0)

  constructor(base: number, count: number) {
    this.#base = base
    this.#count = count
  }

  /** Offset of the other one, which was set; -1: none. */
  get(index: number): number {
    const code = this.#distances.get(index)
    if (code === 0) return -1
    const distance = code % 2 === 0 ? code / 2 : -(code + 1) / 2
    return this.#base + index + distance
  }

  /** `offset` is not the message's own. */
  set(index: number, offset: number): void {
    const distance = offset === -1 ? 0 : offset - this.#base - index
    this.#distances.set(index, distance >= 0 ? distance * 2 : -distance * 2 - 1, this.#count)
  }
}

const MAX = 2 ** 32 - 1

function grown<Values extends Uint32Array | Float64Array>(from: Values, to: Values): Values {
  to.set(from)
  return to
}
