/**
 * Typed events of the client. What goes wrong and nobody listens for becomes a warning of the process; it is never
 * thrown.
 */

type Listener<Payload> = (payload: Payload) => void

export class Events<Payloads extends object> {
  readonly #listeners = new Map<keyof Payloads, Set<Listener<never>>>()
  readonly #unheard: (name: keyof Payloads, payload: Payloads[keyof Payloads]) => void

  /** `unheard` is called for what nobody listens to. */
  constructor(unheard: (name: keyof Payloads, payload: Payloads[keyof Payloads]) => void) {
    this.#unheard = unheard
  }

  on<Name extends keyof Payloads>(name: Name, listener: Listener<Payloads[Name]>): () => void {
    let listeners = this.#listeners.get(name)
    if (listeners === undefined) this.#listeners.set(name, (listeners = new Set()))
    listeners.add(listener)
    return () => this.off(name, listener)
  }

  off<Name extends keyof Payloads>(name: Name, listener: Listener<Payloads[Name]>): void {
    this.#listeners.get(name)?.delete(listener)
  }

  emit<Name extends keyof Payloads>(name: Name, payload: Payloads[Name]): void {
    const listeners = this.#listeners.get(name)
    if (listeners === undefined || listeners.size === 0) {
      this.#unheard(name, payload)
      return
    }
    for (const listener of listeners) {
      try {
        ;(listener as Listener<Payloads[Name]>)(payload)
      } catch (error) {
        // A listener's own fault is its program's, and must not stop this client half-way through its work.
        setImmediate(() => {
          throw error
        })
      }
    }
  }
}
