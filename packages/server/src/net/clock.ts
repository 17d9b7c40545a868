/**
 * The broker's time: the wall clock at start plus the monotonic clock, drawn slowly towards the wall and never
 * stepped. A jump of the wall clock makes nothing expire and nothing early.
 */
import { performance } from 'node:perf_hooks'

/** Gained or lost against the monotonic clock, at most: half a millisecond a second. */
const SLEW = 0.0005

export class Clock {
  #monotonicMs = performance.now()
  #nowMs = Date.now()
  #toldMs = 0

  /** Whole milliseconds since the epoch; never goes back. */
  now(): number {
    // Where a fraction of a millisecond is lost to the wall, the same one is told again.
    this.#toldMs = Math.max(this.#toldMs, Math.floor(this.#preciseMs()))
    return this.#toldMs
  }

  #preciseMs(): number {
    const monotonicMs = performance.now()
    const passedMs = monotonicMs - this.#monotonicMs
    if (passedMs >= 100) {
      const offMs = Date.now() - (this.#nowMs + passedMs)
      const most = passedMs * SLEW
      this.#nowMs += passedMs + Math.max(-most, Math.min(most, offMs))
      this.#monotonicMs = monotonicMs
      return this.#nowMs
    }
    return this.#nowMs + passedMs
  }
}
