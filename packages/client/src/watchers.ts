/**
 * The signals of running handlers, each of which is aborted when a lease of its handler is lost.
 *
 * Invariant: a watcher is removed before it is aborted, because a listener of its signal may call methods of this
 * class.
 */
import type { SluiceError } from '@sluice/protocol'

/**
 * A message, or the group of messages that a handler got. The watcher is notified when a lease on one of its messages
 * is lost.
 */
export interface Watcher {
  isAmong(tags: ReadonlySet<number>): boolean
  /** Called when a lease of this watcher, or of its whole subscription, is lost. */
  abort(reason: SluiceError): void
}

export class Watchers {
  readonly #watchers = new Set<Watcher>()

  add(watcher: Watcher): void {
    this.#watchers.add(watcher)
  }

  delete(watcher: Watcher): void {
    this.#watchers.delete(watcher)
  }

  /** Removes and returns the watchers of messages with these tags. */
  take(tags: ReadonlySet<number>): Watcher[] {
    const taken = [...this.#watchers].filter((watcher) => watcher.isAmong(tags))
    for (const watcher of taken) this.#watchers.delete(watcher)
    return taken
  }

  /** Removes and returns all watchers. */
  takeAll(): Watcher[] {
    const taken = [...this.#watchers]
    this.#watchers.clear()
    return taken
  }

  /** Aborts the watchers of messages with these tags. */
  abort(tags: ReadonlySet<number>, reason: SluiceError): void {
    for (const watcher of this.take(tags)) watcher.abort(reason)
  }

  abortAll(reason: SluiceError): void {
    for (const watcher of this.takeAll()) watcher.abort(reason)
  }
}
