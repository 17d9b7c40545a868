/**
 * The broker's time: the wall clock at start plus the monotonic clock, corrected towards the wall clock and never set
 * back. A small difference is slewed. A large one is acted on once it has lasted: time jumps forward where the wall
 * clock is ahead, and passes more slowly where it is behind (ADR 0021).
 */
import { performance } from 'node:perf_hooks'

/** Gained or lost against the monotonic clock while the difference is small: half a millisecond a second. */
const SLEW = 0.0005
/** Lost while the wall clock is far behind: a tenth, so an error is gone after ten times as long. */
const SLOW_SLEW = 0.1
/** A difference beyond this is not drift: the machine was suspended, or its clock was set. */
export const STEP_MS = 5_000
/** A wall clock that is set back to where it was within this time changes nothing. */
export const STEP_LASTS_MS = 4_000
/** How often the clocks are compared. */
const COMPARE_MS = 100

/** What the wall clock did, for the log: it differs from the broker's time by `byMs`. */
export interface ClockChange {
  /** `stepped`: the broker's time was set forward by it. `behind`: the broker's time waits for the wall clock. */
  readonly kind: 'stepped' | 'behind'
  readonly byMs: number
}

export class Clock {
  #monotonicMs = performance.now()
  #nowMs = Date.now()
  #toldMs = 0
  /** Of the wall clock, ahead of the broker's time. */
  #offMs = 0
  /** Monotonic time since which the difference has been large, and in the same direction; undefined: it is small. */
  #largeSinceMs: number | undefined
  /** The wall clock is known to be far behind. */
  #isBehind = false

  /** Whole milliseconds since the epoch; never goes back. */
  now(): number {
    // Where a fraction of a millisecond is lost to the wall, the same one is told again.
    this.#toldMs = Math.max(this.#toldMs, Math.floor(this.#preciseMs()))
    return this.#toldMs
  }

  /**
   * Time goes on from `timeMs` where it would be earlier: the newest time of a log. Returns by how much that is ahead of
   * the wall clock.
   */
  continueFrom(timeMs: number): number {
    const aheadMs = Math.max(0, timeMs - this.#preciseMs())
    this.#nowMs += aheadMs
    this.#isBehind = aheadMs > STEP_MS
    return aheadMs
  }

  /** To be called several times a second: acts on a large difference that has lasted. Returns what changed. */
  look(): ClockChange | undefined {
    this.#preciseMs()
    if (this.#largeSinceMs === undefined) {
      // Halfway, so that a difference around the limit is not reported again and again.
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
    // What is large and ahead is stepped, not slewed.
    const gainMs = isLarge ? 0 : passedMs * SLEW
    const byMs = Math.max(-lossMs, Math.min(gainMs, offMs))
    this.#nowMs += passedMs + byMs
    this.#offMs = offMs - byMs
    this.#monotonicMs = monotonicMs
    return this.#nowMs
  }
}
