/**
 * What waits for an AbortSignal. A signal is often that of a process or a request, under which thousands of calls are
 * made: each signal gets one listener, which is there only while something waits.
 */

class Listeners {
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

const LISTENERS = new WeakMap<AbortSignal, Listeners>()

/** Calls `listener` once, when the signal is aborted; each function is added once. It must not throw. */
export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  let listeners = LISTENERS.get(signal)
  if (listeners === undefined) LISTENERS.set(signal, (listeners = new Listeners(signal)))
  listeners.add(listener)
}

/** Ends what `addAbortListener` began. */
export function removeAbortListener(signal: AbortSignal | undefined, listener: () => void): void {
  if (signal !== undefined) LISTENERS.get(signal)?.delete(listener)
}
