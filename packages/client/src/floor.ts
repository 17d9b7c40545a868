/**
 * Which messages of a connection are being handled. The broker flags a message `alone` when it may have killed a
 * client: it is started only when nothing else is being handled, on whatever subscription, and nothing is started
 * until it is settled.
 */
export class Floor {
  /** Messages that were named as started and are not settled. */
  #held = 0
  #alone = false
  #waiting = new Set<() => void>()

  /** Whether a message may start now, or one that must be alone. */
  admits(alone: boolean): boolean {
    return alone ? this.#held === 0 : !this.#alone
  }

  enter(count: number, alone: boolean): void {
    this.#held += count
    if (alone) this.#alone = true
  }

  leave(count: number): void {
    this.#held -= count
    if (this.#held > 0) return
    this.#alone = false
    if (this.#waiting.size === 0) return
    const waiting = this.#waiting
    this.#waiting = new Set()
    for (const wake of waiting) wake()
  }

  /** Calls `wake` once, when nothing is being handled. */
  wait(wake: () => void): void {
    this.#waiting.add(wake)
  }
}
