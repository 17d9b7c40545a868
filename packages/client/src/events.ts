/**
 * Typed events of the client. What goes wrong and has no listener becomes a warning of the process; so does a listener
 * that fails. Neither is thrown.
 */
import { attempt, reasonOf, stackOf } from './endings.js'

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
      attempt(
        () => (listener as (payload: Payloads[Name]) => unknown)(payload),
        (error) => this.#warn(name, error),
      )
    }
  }

  // It must stop neither the other listeners, nor this client half-way through its work, nor the process.
  #warn(name: keyof Payloads, error: unknown): void {
    process.emitWarning(`A listener of '${String(name)}' failed: ${reasonOf(error)}`, {
      type: 'SluiceWarning',
      detail: stackOf(error),
    })
  }
}
