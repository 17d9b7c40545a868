/**
 * One timer for all deadlines of a client. Each part that waits keeps its own deadlines. When the earliest deadline of
 * all parts may have passed, the sweep of each part is called. So a call needs no timer, closure or heap entry.
 */
import { Timer } from '@sluice/protocol'

/** Fails the calls whose deadline has passed. Returns the next deadline, or Infinity. */
export type Sweep = (nowMs: number) => number

export class Deadlines {
  readonly #sweeps: Sweep[] = []
  #timer: Timer | undefined
  #armedMs = Infinity
  #stopped = false

  add(sweep: Sweep): void {
    this.#sweeps.push(sweep)
  }

  /** Adds a deadline. This is cheap when an earlier one is armed already, which is the usual case. */
  arm(deadlineMs: number): void {
    if (deadlineMs >= this.#armedMs || this.#stopped) return
    this.#armedMs = deadlineMs
    this.#timer?.cancel()
    // While a call waits, a socket or a reconnect timer keeps the process alive.
    this.#timer = new Timer(
      () => this.#fire(),
      Math.max(1, Math.ceil(deadlineMs - performance.now())),
    ).unref()
  }

  /** Returns the deadline that is `timeoutMs` from now. */
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
