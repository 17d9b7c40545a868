/** A deadline and its callback. Only the heap of the turn (`broker/timers.ts`) writes the fields. */
export class Timer {
  /** Time of the deadline, ms since the epoch; Infinity if the timer is not armed. */
  deadlineMs = Infinity
  /** Place in the heap; -1 if the timer is not armed. */
  place = -1
  readonly run: () => void

  constructor(run: () => void) {
    this.run = run
  }
}
