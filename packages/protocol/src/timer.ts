/**
 * A timer of any length, for broker and clients. `setTimeout` fires after 1 ms when the wait is longer than 24.8 days, but
 * durations go up to 100 years. So a longer wait is divided into parts.
 */

/** Maximum wait that `setTimeout` supports, in milliseconds. */
export const TIMER_PART_MS_MAX = 0x7fff_ffff

export class Timer {
  readonly #fire: () => void
  readonly #waitMs: number
  #dueMs = 0
  #handle: NodeJS.Timeout | undefined
  #keepsAlive = true

  /** Calls `fire` once, `waitMs` from now; never if `waitMs` is Infinity. */
  constructor(fire: () => void, waitMs: number) {
    this.#fire = fire
    this.#waitMs = waitMs
    this.restart()
  }

  /** Starts the timer again with its whole length, even after it has fired. */
  restart(): void {
    this.#dueMs = performance.now() + this.#waitMs
    this.#arm(this.#waitMs)
  }

  #arm(leftMs: number): void {
    clearTimeout(this.#handle)
    this.#handle = setTimeout(this.#passed, Math.min(leftMs, TIMER_PART_MS_MAX))
    if (!this.#keepsAlive) this.#handle.unref()
  }

  // A wait in one part ends when `setTimeout` fires, without reading `performance.now()`, whose value differs from the
  // clock of `setTimeout` by fractions of a millisecond.
  readonly #passed = (): void => {
    const leftMs = this.#waitMs <= TIMER_PART_MS_MAX ? 0 : this.#dueMs - performance.now()
    if (leftMs > 0) this.#arm(leftMs)
    else this.#fire()
  }

  /** Lets the process end while the timer is running. */
  unref(): this {
    this.#keepsAlive = false
    this.#handle?.unref()
    return this
  }

  /** Stops the timer: it does not fire unless it is restarted. */
  cancel(): void {
    clearTimeout(this.#handle)
  }
}
