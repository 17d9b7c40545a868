/** Seeded random numbers: xorshift over 32 bits, with a mixed seed. */
export class Random {
  #state: number

  constructor(seed: number) {
    // Mixing gives neighbouring seeds different sequences.
    this.#state = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ (seed >>> 16) ^ 0x6d2b79f5) >>> 0 || 1
  }

  /** A number in [0, 1). */
  next(): number {
    let state = this.#state
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    this.#state = state >>> 0
    return this.#state / 2 ** 32
  }

  /** A whole number from 0 to `below` - 1. */
  below(below: number): number {
    return Math.floor(this.next() * below)
  }

  /** An exponentially distributed number, at most ten times the mean. */
  exponential(mean: number): number {
    return Math.min(-Math.log(1 - this.next()) * mean, mean * 10)
  }
}
