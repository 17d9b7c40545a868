/**
 * Listeners of AbortSignals. Thousands of calls may share the signal of a process or a request, so this module adds one
 * listener to each signal, and only while a call waits for that signal.
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
    // A listener may remove other listeners.
    for (const listener of [...this.#waiting]) if (this.#waiting.delete(listener)) listener()
  }
}

const LISTENERS = new WeakMap<AbortSignal, Listeners>()

/**
 * Calls `listener` once, when the signal is aborted. `listener` must not throw; adding it a second time has no effect.
 */
export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  let listeners = LISTENERS.get(signal)
  if (listeners === undefined) LISTENERS.set(signal, (listeners = new Listeners(signal)))
  listeners.add(listener)
}

/** Undoes `addAbortListener`. */
export function removeAbortListener(signal: AbortSignal | undefined, listener: () => void): void {
  if (signal !== undefined) LISTENERS.get(signal)?.delete(listener)
}
