/**
 * Promises for one moment that comes again and again, such as that nothing is unanswered. Whoever owns the moment says
 * when it has come; each promise resolves the first time after it was made.
 */
export class Waiters {
  #resolves: (() => void)[] | undefined

  /** Whether `tell` has a promise to resolve. */
  get any(): boolean {
    return this.#resolves !== undefined
  }

  wait(): Promise<void> {
    return new Promise((resolve) => (this.#resolves ??= []).push(resolve))
  }

  /** The moment has come. */
  notify(): void {
    const resolves = this.#resolves
    if (resolves === undefined) return
    this.#resolves = undefined
    for (const resolve of resolves) resolve()
  }
}
