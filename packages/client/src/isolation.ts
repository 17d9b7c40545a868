/**
 * Isolates suspects. The broker flags a message as `alone` when it may have crashed a client. Such a suspect starts only
 * when this client handles no other message, on any subscription, and no other message starts until it is settled.
 *
 * Invariant: neither suspects nor ordinary messages starve. While a suspect waits, no ordinary message starts, so that
 * the running handlers end. When a suspect is settled, the ordinary messages that waited for it start before the next
 * suspect.
 */
export class Isolation {
  /** Number of messages that were announced as started and are not settled. */
  #handled = 0
  #alone = false
  /** Wake-ups of subscriptions whose next message is a suspect, in the order in which suspects start. */
  readonly #suspects = new Set<() => void>()
  /** Wake-ups of subscriptions whose next message is ordinary; each is called once. */
  #others = new Set<() => void>()
  /** Whether a suspect was settled and the ordinary messages that waited for it start next. */
  #othersAreNext = false

  /**
   * Whether a message may start now. If not, `wake` is called when the message may be allowed to start. `alone` marks a
   * suspect.
   */
  admits(alone: boolean, wake: () => void): boolean {
    if (alone) {
      this.#othersAreNext = false
      if (this.#handled === 0) this.#suspects.delete(wake)
      else this.#suspects.add(wake)
      return this.#handled === 0
    }
    if (!this.#alone && this.#suspects.size === 0) return true
    // This subscription may have waited for a suspect, which is no longer its next message.
    this.#suspects.delete(wake)
    if (!this.#alone && (this.#suspects.size === 0 || this.#othersAreNext)) return true
    this.#others.add(wake)
    return false
  }

  /** Removes the wake-up of a subscription that no longer waits. */
  withdraw(wake: () => void): void {
    this.#others.delete(wake)
    // This may have been the only suspect that ordinary messages waited for.
    if (this.#suspects.delete(wake) && this.#suspects.size === 0 && !this.#alone) this.#wakeOthers()
  }

  enter(count: number, alone: boolean): void {
    this.#handled += count
    if (alone) this.#alone = true
  }

  leave(count: number): void {
    this.#handled -= count
    if (this.#handled > 0) return
    // Subscriptions start their messages in the order in which they are woken.
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
