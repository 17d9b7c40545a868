/**
 * Which messages of a client are being handled. The broker flags a message `alone` when it may have ended a
 * connection: it is started only when nothing else is being handled, on whatever subscription, and nothing is started
 * until it is settled.
 *
 * Neither side starves. While such a suspect waits, no ordinary message is started, so that the handlers that run come
 * to an end. When one suspect is done, the ordinary messages that waited for it go before the next suspect.
 */
export class Isolation {
  /** Messages that were named as started and are not settled. */
  #held = 0
  #alone = false
  /** Wake-ups of those that wait with a suspect, until it starts or they withdraw; the first of them goes first. */
  readonly #suspects = new Set<() => void>()
  /** Wake-ups of those that wait with ordinary messages; each is called once. */
  #others = new Set<() => void>()
  /** A suspect is done: those that waited for it are next. */
  #othersAreNext = false

  /** Whether a message may start now, or one that must be alone; if not, `wake` is called when that may have changed. */
  admits(alone: boolean, wake: () => void): boolean {
    if (alone) {
      this.#othersAreNext = false
      if (this.#held === 0) this.#suspects.delete(wake)
      else this.#suspects.add(wake)
      return this.#held === 0
    }
    if (!this.#alone && this.#suspects.size === 0) return true
    // What it waited with before is no longer its first.
    this.#suspects.delete(wake)
    if (!this.#alone && (this.#suspects.size === 0 || this.#othersAreNext)) return true
    this.#others.add(wake)
    return false
  }

  /** Whoever waits with `wake` waits no more. */
  withdraw(wake: () => void): void {
    this.#others.delete(wake)
    // Ordinary messages may have waited for just this suspect.
    if (this.#suspects.delete(wake) && this.#suspects.size === 0 && !this.#alone) this.#wakeOthers()
  }

  enter(count: number, alone: boolean): void {
    this.#held += count
    if (alone) this.#alone = true
  }

  leave(count: number): void {
    this.#held -= count
    if (this.#held > 0) return
    // Those that are woken first start first.
    const othersFirst = this.#alone && this.#others.size > 0
    this.#alone = false
    if (othersFirst) {
      this.#othersAreNext = true
      this.#wakeOthers()
    }
    for (const wake of this.#suspects) wake()
    if (!othersFirst) this.#wakeOthers()
  }

  #wakeOthers(): void {
    if (this.#others.size === 0) return
    const waiting = this.#others
    this.#others = new Set()
    for (const wake of waiting) wake()
  }
}
