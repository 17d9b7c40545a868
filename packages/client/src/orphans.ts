/**
 * Messages and keys of orphaned handlers: handlers that still run in this process although their leases are lost or may
 * be lost. A message that is delivered again is set aside until its orphaned handler has ended. Where keys are ordered,
 * all messages of the same key are set aside too.
 *
 * Invariant: only queues with orphaned handlers are in the map, so that usually there is nothing to look up.
 */

/** Minimum and maximum of `patienceMs`. */
const PATIENCE_MS = 1_000
const PATIENCE_MS_MAX = 60_000

/** A message, given by its offset, or all messages of a key, given by the key. */
export type Held = number | string

interface Waiting {
  handlers: number
  /** Number of times that a message was released because the handler had not ended. */
  releases: number
  /** Called once, when the last handler has ended. */
  readonly wakes: Set<() => void>
}

export class Orphans {
  readonly #queues = new Map<string, Map<Held, Waiting>>()

  /** Registers an orphaned handler and what it holds. Returns a function that the caller calls when the handler has ended. */
  begin(queue: string, held: readonly Held[]): () => void {
    let all = this.#queues.get(queue)
    if (all === undefined) this.#queues.set(queue, (all = new Map()))
    for (const one of held) {
      const waiting = all.get(one)
      if (waiting === undefined) all.set(one, { handlers: 1, wakes: new Set(), releases: 0 })
      else waiting.handlers++
    }
    return () => this.#end(queue, held)
  }

  #end(queue: string, held: readonly Held[]): void {
    const all = this.#queues.get(queue)
    const woken = new Set<() => void>()
    for (const one of held) {
      const waiting = all?.get(one)
      if (waiting === undefined || --waiting.handlers > 0) continue
      all!.delete(one)
      for (const wake of waiting.wakes) woken.add(wake)
    }
    if (all?.size === 0) this.#queues.delete(queue)
    for (const wake of woken) wake()
  }

  /** Whether the queue has an orphaned handler. */
  has(queue: string): boolean {
    return this.#queues.has(queue)
  }

  holds(queue: string, one: Held): boolean {
    return this.#queues.get(queue)?.has(one) === true
  }

  /** Calls `wake` once, when no handler holds `one` any more. A handler must hold `one` when this is called. */
  wait(queue: string, one: Held, wake: () => void): void {
    this.#queues.get(queue)?.get(one)?.wakes.add(wake)
  }

  /** Called when the message that waited for `one` is released: `wake` is not called. */
  released(queue: string, one: Held, wake: () => void): void {
    const waiting = this.#queues.get(queue)?.get(one)
    if (waiting?.wakes.delete(wake) === true) waiting.releases++
  }

  /**
   * How long a message waits for `one` before it is released. A message that is delivered to this process again
   * probably has no other consumer, so the time doubles with each release.
   */
  patienceMs(queue: string, one: Held): number {
    const releases = this.#queues.get(queue)?.get(one)?.releases ?? 0
    return Math.min(PATIENCE_MS * 2 ** releases, PATIENCE_MS_MAX)
  }
}
