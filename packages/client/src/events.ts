/** Typed events of the client. An `error` that nobody listens for is dropped, never thrown. */

type Listener<Payload> = (payload: Payload) => void

export class Events<Payloads extends object> {
  readonly #listeners = new Map<keyof Payloads, Set<Listener<never>>>()

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
    if (listeners === undefined) return
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
