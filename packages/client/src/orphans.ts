/**
 * Messages whose leases are lost, or may be, while their handlers still run in this process. None of them is handed to
 * a second handler meanwhile, and in order of keys no other of its key: who is delivered one sets it aside until the
 * handler has ended.
 *
 * Invariant: a queue is listed as long as it has a handler of that kind, so that mostly there is nothing to look at.
 */

/** How long a message waits at first for the handler that has it, and at most. */
const PATIENCE_MS = 1_000
const PATIENCE_MS_MAX = 60_000

/** A message by its offset, or all messages of a key. */
export type Held = number | string

interface Waiting {
  handlers: number
  /** How often a message was released because the handler had not ended. */
  releases: number
  /** Called once, when the last handler has ended. */
  readonly wakes: Set<() => void>
}

export class Orphans {
  readonly #queues = new Map<string, Map<Held, Waiting>>()

  /** A handler runs that holds these; the result is to be called when it has ended. */
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

  /** Whether a handler of the queue runs whose lease may be lost. */
  has(queue: string): boolean {
    return this.#queues.has(queue)
  }

  holds(queue: string, one: Held): boolean {
    return this.#queues.get(queue)?.has(one) === true
  }

  /** Calls `wake` once when `one`, which is held, no longer is, unless it is released before. */
  wait(queue: string, one: Held, wake: () => void): void {
    this.#queues.get(queue)?.get(one)?.wakes.add(wake)
  }

  /** `wake` waits for `one` no more: its message is released. */
  released(queue: string, one: Held, wake: () => void): void {
    const waiting = this.#queues.get(queue)?.get(one)
    if (waiting?.wakes.delete(wake) === true) waiting.releases++
  }

  /**
   * Milliseconds for which a message waits for `one` before it is released. Doubles with each release, because a message
   * that came back to this process was wanted by no other.
   */
  patienceMs(queue: string, one: Held): number {
    const releases = this.#queues.get(queue)?.get(one)?.releases ?? 0
    return Math.min(PATIENCE_MS * 2 ** releases, PATIENCE_MS_MAX)
  }
}
