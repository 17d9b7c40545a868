/**
 * The one timer for a broker's deadlines. The server arms the timer after each turn, because only turns change
 * deadlines.
 */
import { TIMER_PART_MS_MAX } from '@sluice/protocol'

/** The part of a broker's turn that the alarm uses. */
export interface Deadlines {
  /** Time of the next deadline in milliseconds since the epoch; Infinity when there is no deadline. */
  readonly nextDeadline: number
  tick(): void
}

export class Alarm {
  readonly #now: () => number
  #deadlines: Deadlines | undefined
  #timer: NodeJS.Timeout | undefined
  #armedFor = Infinity

  constructor(now: () => number) {
    this.#now = now
  }

  start(deadlines: Deadlines): void {
    this.#deadlines = deadlines
    this.arm()
  }

  /** Sets the timer for the next deadline. Has no effect before `start` or after `stop`. */
  arm(): void {
    const deadlines = this.#deadlines
    if (deadlines === undefined || deadlines.nextDeadline === this.#armedFor) return
    this.#armedFor = deadlines.nextDeadline
    clearTimeout(this.#timer)
    if (this.#armedFor === Infinity) return
    // A long wait is split into parts. The clock is read again after each part, because it may have been changed.
    const waitMs = Math.min(Math.max(0, this.#armedFor - this.#now()), TIMER_PART_MS_MAX)
    this.#timer = setTimeout(() => {
      this.#armedFor = Infinity
      deadlines.tick()
    }, waitMs)
  }

  stop(): void {
    this.#deadlines = undefined
    clearTimeout(this.#timer)
  }
}
