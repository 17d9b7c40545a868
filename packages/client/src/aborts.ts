/**
 * What waits for an AbortSignal. A signal is often that of a process or a request, under which thousands of calls are
 * made: each signal gets one listener, which is there only while something waits.
 */

class Fan {
  readonly #signal: AbortSignal
  readonly #waiting = new Set<() => void>()

  constructor(signal: AbortSignal) {
    this.#signal = signal
  }

  add(listener: () => void): void {
    if (this.#waiting.size === 0) this.#signal.addEventListener('abort', this.#aborted, { once: true })
    this.#waiting.add(listener)
  }

  delete(listener: () => void): void {
    if (this.#waiting.delete(listener) && this.#waiting.size === 0)
      this.#signal.removeEventListener('abort', this.#aborted)
  }

  readonly #aborted = (): void => {
    // One of them may remove others.
    for (const listener of [...this.#waiting]) if (this.#waiting.delete(listener)) listener()
  }
}

const FANS = new WeakMap<AbortSignal, Fan>()

/** Calls `listener` once, when the signal is aborted; each function is added once. It must not throw. */
export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  let fan = FANS.get(signal)
  if (fan === undefined) FANS.set(signal, (fan = new Fan(signal)))
  fan.add(listener)
}

/** Ends what `addAbortListener` began. */
export function removeAbortListener(signal: AbortSignal | undefined, listener: () => void): void {
  if (signal !== undefined) FANS.get(signal)?.delete(listener)
}
