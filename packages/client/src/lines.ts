/**
 * Messages that wait for a handler, in order of arrival. With `ordered`, a message waits until the previous message of its
 * key is done, and messages of other keys pass it.
 *
 * Invariant: with `ordered`, at most one message of each key is ready or out (with a handler); the other messages of
 * the key are behind it.
 */
import { Fifo } from './fifo.js'

export interface Keyed {
  readonly key: string | undefined
}

export class Lines<Message extends Keyed> {
  readonly #ordered: boolean
  /** Messages that may go to a handler. Each has been ready since the time at the same index of `#times`. */
  readonly #ready = new Fifo<Message>()
  readonly #times = new Fifo<number>()
  /**
   * For each key that has a message ready or out, the messages that wait behind that message; undefined if no message
   * has waited yet.
   */
  readonly #behind = new Map<string, Fifo<Message> | undefined>()
  /** Messages that went to a handler and are not done; only kept with `ordered`. */
  readonly #out = new Set<Message>()

  constructor(ordered: boolean) {
    this.#ordered = ordered
  }

  /** Number of messages that may go to a handler. */
  get ready(): number {
    return this.#ready.length
  }

  /** The time at which the first ready message became ready. There must be one. */
  get sinceMs(): number {
    return this.#times.at(0)!
  }

  /** The message that goes to a handler after `index` other messages. */
  at(index: number): Message | undefined {
    return this.#ready.at(index)
  }

  add(message: Message, nowMs: number): void {
    const key = this.#ordered ? message.key : undefined
    if (key !== undefined) {
      if (this.#behind.has(key)) {
        let behind = this.#behind.get(key)
        if (behind === undefined) this.#behind.set(key, (behind = new Fifo()))
        behind.push(message)
        return
      }
      this.#behind.set(key, undefined)
    }
    this.#push(message, nowMs)
  }

  #push(message: Message, nowMs: number): void {
    this.#ready.push(message)
    this.#times.push(nowMs)
  }

  /** Takes the first `count` messages, which go to a handler. */
  take(count: number): Message[] {
    const taken = this.#ready.take(count)
    this.#times.skip(taken.length)
    if (this.#ordered) for (const message of taken) this.#out.add(message)
    return taken
  }

  /**
   * Called when a message that went to a handler is done or has lost its lease. The next message of its key may then go
   * to a handler.
   */
  done(message: Message, nowMs: number): void {
    if (this.#out.delete(message)) this.#free(message, nowMs)
  }

  #free({ key }: Message, nowMs: number): void {
    if (key === undefined) return
    const next = this.#behind.get(key)?.shift()
    if (next === undefined) this.#behind.delete(key)
    else this.#push(next, nowMs)
  }

  /** Removes and returns the waiting messages that are lost. A lost message that went to a handler counts as done. */
  lose(isLost: (message: Message) => boolean, nowMs: number): Message[] {
    const lost: Message[] = []
    for (const behind of this.#behind.values()) {
      if (behind === undefined) continue
      const waiting = [...behind]
      const kept = waiting.filter((message) => !isLost(message))
      if (kept.length === waiting.length) continue
      lost.push(...waiting.filter(isLost))
      behind.replace(kept)
    }
    const ready = this.#ready.drain()
    const times = this.#times.drain()
    const heads = ready.filter(isLost)
    this.#ready.replace(ready.filter((message) => !isLost(message)))
    this.#times.replace(times.filter((_, index) => !isLost(ready[index]!)))
    if (this.#ordered) {
      for (const message of heads) this.#free(message, nowMs)
      for (const message of [...this.#out]) if (isLost(message)) this.done(message, nowMs)
    }
    return [...heads, ...lost]
  }

  /** Removes all messages, including those that went to a handler. Returns the messages that waited. */
  clear(): Message[] {
    const waiting = this.#ready.drain()
    for (const behind of this.#behind.values()) if (behind !== undefined) waiting.push(...behind)
    this.#times.clear()
    this.#behind.clear()
    this.#out.clear()
    return waiting
  }
}
