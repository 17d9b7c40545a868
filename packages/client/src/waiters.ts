/**
 * Promises for a condition that the owner of this object observes, such as the condition that nothing is unanswered.
 */
export class Waiters {
  #resolves: (() => void)[] | undefined

  /** Whether any promise is waiting. */
  get any(): boolean {
    return this.#resolves !== undefined
  }

  wait(): Promise<void> {
    return new Promise((resolve) => (this.#resolves ??= []).push(resolve))
  }

  /** Called when the condition holds: resolves all promises that wait. */
  notify(): void {
    const resolves = this.#resolves
    if (resolves === undefined) return
    this.#resolves = undefined
    for (const resolve of resolves) resolve()
  }
}
