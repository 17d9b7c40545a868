/**
 * Messages that wait for a handler, in the order in which they came. With `ordered`, a message of a key waits until the
 * one of the same key before it is done; the messages of other keys go past it.
 *
 * Invariant: of each key, at most one message is ready or out; the others stand behind it.
 */
import { Fifo } from './fifo.js'

export interface Keyed {
  readonly key: string | undefined
}

export class Lines<Message extends Keyed> {
  readonly #ordered: boolean
  /** These may go, each since the time at the same place. */
  readonly #ready = new Fifo<Message>()
  readonly #times = new Fifo<number>()
  /** By each key that is ready or out: what stands behind. */
  readonly #behind = new Map<string, Message[]>()
  /** Those that went and are not done; kept where there is an order. */
  readonly #out = new Set<Message>()

  constructor(ordered: boolean) {
    this.#ordered = ordered
  }

  /** How many may go. */
  get ready(): number {
    return this.#ready.length
  }

  /** Since when the first may go; only when there is one. */
  get sinceMs(): number {
    return this.#times.at(0)!
  }

  /** The one that goes after `index` others. */
  at(index: number): Message | undefined {
    return this.#ready.at(index)
  }

  add(message: Message, nowMs: number): void {
    const key = this.#ordered ? message.key : undefined
    if (key !== undefined) {
      const behind = this.#behind.get(key)
      if (behind !== undefined) {
        behind.push(message)
        return
      }
      this.#behind.set(key, [])
    }
    this.#push(message, nowMs)
  }

  #push(message: Message, nowMs: number): void {
    this.#ready.push(message)
    this.#times.push(nowMs)
  }

  /** Lets the first `count` go. */
  take(count: number): Message[] {
    const taken = this.#ready.take(count)
    this.#times.skip(taken.length)
    if (this.#ordered) for (const message of taken) this.#out.add(message)
    return taken
  }

  /** A message that went is done, or is no longer ours to order: the next of its key may go. */
  done(message: Message, nowMs: number): void {
    if (this.#out.delete(message)) this.#free(message, nowMs)
  }

  #free({ key }: Message, nowMs: number): void {
    if (key === undefined) return
    const next = this.#behind.get(key)?.shift()
    if (next === undefined) this.#behind.delete(key)
    else this.#push(next, nowMs)
  }

  /** Takes out, and returns, what is lost of those that wait; what is lost of those that went counts as done. */
  lose(isLost: (message: Message) => boolean, nowMs: number): Message[] {
    const lost: Message[] = []
    for (const [key, behind] of this.#behind) {
      const kept = behind.filter((message) => !isLost(message))
      if (kept.length === behind.length) continue
      lost.push(...behind.filter(isLost))
      this.#behind.set(key, kept)
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

  /** Forgets everything, also what is out; returns what waited. */
  clear(): Message[] {
    const waiting = this.#ready.drain()
    for (const behind of this.#behind.values()) waiting.push(...behind)
    this.#times.clear()
    this.#behind.clear()
    this.#out.clear()
    return waiting
  }
}
