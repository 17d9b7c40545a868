/** Counts what happens, and lets it be told once in a while: the first at once, later ones with all since. */
export class Throttle {
  readonly #everyMs: number
  #nextMs = -Infinity
  #count = 0

  constructor(everyMs: number) {
    this.#everyMs = everyMs
  }

  /** It happened again. Returns how often since it was last told, if it should be told now, and else 0. */
  take(nowMs: number): number {
    this.#count++
    if (nowMs < this.#nextMs) return 0
    this.#nextMs = nowMs + this.#everyMs
    const count = this.#count
    this.#count = 0
    return count
  }
}
