/**
 * The broker's time: the wall clock at start plus the monotonic clock, corrected towards the wall clock. A small
 * difference is corrected gradually. After a large difference has lasted for some seconds, time steps forward if the
 * wall clock is ahead, and passes more slowly if the wall clock is behind (ADR 0021).
 *
 * Invariant: time never goes back.
 */
import { performance } from 'node:perf_hooks'

/** Correction of a small difference, as a share of the elapsed time. The value means half a millisecond per second. */
const SLEW = 0.0005
/**
 * Correction while the wall clock is far behind, as a share of the elapsed time. With this value a difference of one
 * hour is gone after ten hours.
 */
const SLOW_SLEW = 0.1
/**
 * A difference above this counts as large: it does not come from drift, but from a suspension of the machine or from
 * setting its clock.
 */
export const STEP_MS = 5_000
/** Time for which a large difference must last, so that a clock that is set and soon set back changes nothing. */
export const STEP_LASTS_MS = 4_000
/** Interval at which the two clocks are compared. */
const COMPARE_MS = 100

/** Event about a large difference between the wall clock and the broker's time. */
export interface ClockChange {
  /**
   * `stepped`: the broker's time was set forward by `byMs`. `behind`: the wall clock is behind by `byMs`, and the
   * broker's time passes more slowly until both agree.
   */
  readonly kind: 'stepped' | 'behind'
  readonly byMs: number
}

export class Clock {
  #monotonicMs = performance.now()
  #nowMs = Date.now()
  #lastMs = 0
  /** The wall clock minus the broker's time. */
  #offMs = 0
  /**
   * Monotonic time since which the difference has been large in one direction; undefined while the difference is
   * small.
   */
  #largeSinceMs: number | undefined
  /** Whether the wall clock is far behind and this was reported. */
  #isBehind = false

  /** Returns the time in whole milliseconds since the epoch. It never goes back. */
  now(): number {
    // A correction can set the precise time back by a fraction of a millisecond. In that case the last value is
    // returned again.
    this.#lastMs = Math.max(this.#lastMs, Math.floor(this.#preciseMs()))
    return this.#lastMs
  }

  /**
   * Moves the time forward to `timeMs`, the newest time in a log, unless the time is already later. Returns the
   * number of milliseconds by which the time was moved.
   */
  continueFrom(timeMs: number): number {
    const aheadMs = Math.max(0, timeMs - this.#preciseMs())
    this.#nowMs += aheadMs
    this.#isBehind = aheadMs > STEP_MS
    return aheadMs
  }

  /**
   * Acts on a large difference that has lasted. The server calls this method several times a second, and logs the
   * returned change.
   */
  look(): ClockChange | undefined {
    this.#preciseMs()
    if (this.#largeSinceMs === undefined) {
      // Compares with half of the limit, so that a difference near the limit is not reported repeatedly.
      if (this.#offMs > -STEP_MS / 2) this.#isBehind = false
      return undefined
    }
    if (performance.now() - this.#largeSinceMs < STEP_LASTS_MS) return undefined
    if (this.#offMs > 0) {
      const byMs = this.#offMs
      this.#nowMs += byMs
      this.#offMs = 0
      this.#largeSinceMs = undefined
      return { kind: 'stepped', byMs: Math.round(byMs) }
    }
    if (this.#isBehind) return undefined
    this.#isBehind = true
    return { kind: 'behind', byMs: Math.round(-this.#offMs) }
  }

  #preciseMs(): number {
    const monotonicMs = performance.now()
    const passedMs = monotonicMs - this.#monotonicMs
    if (passedMs < COMPARE_MS) return this.#nowMs + passedMs
    const offMs = Date.now() - (this.#nowMs + passedMs)
    const isLarge = Math.abs(offMs) > STEP_MS
    if (!isLarge || offMs > 0 !== this.#offMs > 0) this.#largeSinceMs = undefined
    if (isLarge) this.#largeSinceMs ??= monotonicMs
    const lossMs = passedMs * (this.#isBehind ? SLOW_SLEW : SLEW)
    // If the wall clock is far ahead, the time steps forward instead.
    const gainMs = isLarge ? 0 : passedMs * SLEW
    const byMs = Math.max(-lossMs, Math.min(gainMs, offMs))
    this.#nowMs += passedMs + byMs
    this.#offMs = offMs - byMs
    this.#monotonicMs = monotonicMs
    return this.#nowMs
  }
}
