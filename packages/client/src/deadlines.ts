/**
 * One timer for all deadlines of a client. Whoever waits keeps its own deadlines and is asked when the earliest may
 * have passed: no timer, closure or heap entry per call.
 */
import { Timer } from '@sluice/protocol'

/** Ends what is overdue and returns its next deadline, Infinity when it has none. */
export type Sweep = (nowMs: number) => number

export class Deadlines {
  readonly #sweeps: Sweep[] = []
  #timer: Timer | undefined
  #armedMs = Infinity
  #stopped = false

  add(sweep: Sweep): void {
    this.#sweeps.push(sweep)
  }

  /** There is a deadline at this time. Cheap when an earlier one is known already, which is the usual case. */
  arm(deadlineMs: number): void {
    if (deadlineMs >= this.#armedMs || this.#stopped) return
    this.#armedMs = deadlineMs
    this.#timer?.cancel()
    // What waits for an answer also holds a socket or a reconnect timer, and that keeps the process alive.
    this.#timer = new Timer(
      () => this.#fire(),
      Math.max(1, Math.ceil(deadlineMs - performance.now())),
    ).unref()
  }

  /** A deadline `timeoutMs` from now. */
  after(timeoutMs: number): number {
    const deadlineMs = performance.now() + timeoutMs
    this.arm(deadlineMs)
    return deadlineMs
  }

  stop(): void {
    this.#stopped = true
    this.#timer?.cancel()
  }

  #fire(): void {
    this.#timer = undefined
    this.#armedMs = Infinity
    const nowMs = performance.now()
    let nextMs = Infinity
    for (const sweep of this.#sweeps) nextMs = Math.min(nextMs, sweep(nowMs))
    this.arm(nextMs)
  }
}
