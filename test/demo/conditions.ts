/** Waits for conditions, which are checked after each report. */
export class Conditions {
  #waiters: { readonly condition: () => boolean; readonly resolve: () => void }[] = []

  /** Resolves when the condition is met. */
  until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve()
    return new Promise((resolve) => this.#waiters.push({ condition, resolve }))
  }

  look(): void {
    this.#waiters = this.#waiters.filter(({ condition, resolve }) => {
      const isMet = condition()
      if (isMet) resolve()
      return !isMet
    })
  }
}
