/** Whole numbers side by side, mostly below 2^32: 4 bytes each for as long as they all are, 8 bytes otherwise. */
export class Column {
  readonly #count: number
  /** Made when the first is set. */
  #numbers: Uint32Array | Float64Array | undefined

  /** `count` of them, all 0. */
  constructor(count: number) {
    this.#count = count
  }

  get(index: number): number {
    return this.#numbers === undefined ? 0 : this.#numbers[index]!
  }

  set(index: number, value: number): void {
    this.#numbers ??= new Uint32Array(this.#count)
    if (value > MAX && this.#numbers instanceof Uint32Array) this.#numbers = Float64Array.from(this.#numbers)
    this.#numbers[index] = value
  }
}

/** For messages that stand side by side, the offset of another one each, mostly not far away; or none. */
export class Links {
  /** Offset of the first message. */
  readonly #base: number
  /** 0: none. Even: twice how far behind. Odd: twice how far before, less one. */
  readonly #distances: Column

  constructor(base: number, count: number) {
    this.#base = base
    this.#distances = new Column(count)
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
    this.#distances.set(index, distance >= 0 ? distance * 2 : -distance * 2 - 1)
  }
}

const MAX = 2 ** 32 - 1
