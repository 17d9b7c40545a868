/** Limits reports of a frequent event: the first is reported at once, and later ones at most once per interval. */
export class Throttle {
  readonly #everyMs: number
  #nextMs = -Infinity
  #count = 0

  constructor(everyMs: number) {
    this.#everyMs = everyMs
  }

  /** Counts one event. Returns the number of events since the last report if a report is due, and 0 otherwise. */
  take(nowMs: number): number {
    this.#count++
    if (nowMs < this.#nextMs) return 0
    this.#nextMs = nowMs + this.#everyMs
    const count = this.#count
    this.#count = 0
    return count
  }
}
