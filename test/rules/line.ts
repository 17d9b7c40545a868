/**
 * The order in which the messages of a queue are delivered: by priority, then by the time at which they became
 * eligible, then by offset. Only the head of a key's line is eligible, and only while the key is free and not held. A key is
 * held until its next token when it has used up its rate, and until a retry is due that paused it.
 *
 * Due messages become ready in the order of due time, then offset, and a broker may need some time for that. While a due
 * message is not ready, nothing is delivered, and any message with a key that arrives later waits behind it.
 *
 * A message is in the line while it is `ready` or `scheduled`. The line sets these two states, and sets `leased` when a
 * message is delivered. The line uses plain arrays, searched from end to end; it shares no code with the server.
 */
import type { Message } from './message.js'
import { RateLimit } from './rate.js'

export interface LineMessage extends Message {
  /** Whether the message was due when it was published, and was never rescheduled, retried or redriven. */
  isPlain: boolean
  /** Time at which the message became eligible. A message with a key gets this time when it is delivered. */
  sinceMs: number
}

/** Orders messages by line time, then by offset. */
export function byLineTime(
  a: Pick<Message, 'lineMs' | 'offset'>,
  b: Pick<Message, 'lineMs' | 'offset'>,
): number {
  return a.lineMs - b.lineMs || a.offset - b.offset
}

export interface LineRules {
  readonly keyConcurrency: number
  readonly onFail: string
  readonly keyRateMessages: number
  readonly keyRatePerMs: number
}

interface KeyLine<M> {
  /** Ready messages, the next one first. */
  readonly line: M[]
  leased: number
  /** Number of messages that have failed and wait for their retry. */
  retrying: number
  /** The head of the line, while it is eligible. */
  offered: M | undefined
  /**
   * Time at which `offered` became eligible. While nothing is offered, the time of the message that was offered last or,
   * if the key has been free since then, the time from which it has been free.
   */
  sinceMs: number
  limit: RateLimit | undefined
  /** End of the latest pause, and of the hold; 0 if there is none. */
  pausedMs: number
  heldMs: number
}

export class Line<M extends LineMessage> {
  #rules: LineRules
  readonly #keys = new Map<string, KeyLine<M>>()
  readonly #scheduled = new Set<M>()
  /** Messages in lines of keys that had failed when they entered and precede those that had not. */
  readonly #first = new Set<M>()

  constructor(rules: LineRules) {
    this.#rules = rules
  }

  /**
   * Called when a message has been published. If the message is due at once, it is placed after all earlier messages of
   * its key, even if the clock was set back in between.
   */
  add(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined || message.lineMs > nowMs || this.firstDue(nowMs) !== undefined) {
      this.enter(message, nowMs)
      return
    }
    message.state = 'ready'
    key.line.push(message)
    this.#offer(key, nowMs)
  }

  /**
   * Called when a message of a stream enters a group. It has its place by publish time, which can be long ago. `isNewKey`: no
   * message of the group has its key, so that it does not matter how long the key has been free.
   */
  appear(message: M, isNewKey: boolean): void {
    const key = this.#keyOf(message)
    if (key !== undefined && isNewKey) key.sinceMs = 0
    this.#becomeReady(message)
  }

  /** Adds a message that is not in the line, at its `lineMs`. */
  enter(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    const isBehind = key !== undefined && this.firstDue(nowMs) !== undefined
    if (message.lineMs <= nowMs && !isBehind) {
      this.#becomeReady(message)
      return
    }
    message.state = 'scheduled'
    this.#scheduled.add(message)
    if (key === undefined || message.attempts === 0) return
    key.retrying++
    this.#offer(key, nowMs)
  }

  /** Called when the time is `nowMs`, before anything happens then: ends the holds that are over. */
  passTime(nowMs: number): void {
    for (const key of this.#keys.values()) {
      const { heldMs } = key
      if (heldMs === 0 || heldMs > nowMs) continue
      key.heldMs = 0
      key.sinceMs = Math.max(key.sinceMs, heldMs)
      this.#offer(key, heldMs)
    }
  }

  /** Delivers no message of the key of this message until `untilMs`. */
  pauseKey(message: M, untilMs: number, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined || untilMs <= nowMs) return
    key.pausedMs = Math.max(key.pausedMs, untilMs)
    key.heldMs = Math.max(key.heldMs, untilMs)
    this.#offer(key, nowMs)
  }

  /** End of the hold of this message's key; undefined if it has none. */
  heldUntil(message: M): number | undefined {
    return this.#keyOf(message)?.heldMs || undefined
  }

  /** The hold of this message's key; undefined if it has none. */
  holdOf(message: M): { readonly untilMs: number; readonly isPause: boolean } | undefined {
    const key = this.#keyOf(message)
    if (key === undefined || key.heldMs === 0) return undefined
    return { untilMs: key.heldMs, isPause: key.pausedMs === key.heldMs }
  }

  /** The first message in the line of this message's key, and how many precede this message. */
  placeInKey(message: M): { readonly first: M; readonly before: number } {
    const { line } = this.#keyOf(message)!
    return { first: line[0]!, before: line.indexOf(message) }
  }

  /** Number of held keys. */
  get heldKeys(): number {
    return [...this.#keys.values()].filter(({ heldMs }) => heldMs > 0).length
  }

  /** Times at which holds end. */
  get holdEnds(): number[] {
    return [...this.#keys.values()].flatMap(({ heldMs }) => (heldMs > 0 ? [heldMs] : []))
  }

  /** The message that is due at `nowMs` and becomes ready next; undefined if every due message is ready. */
  firstDue(nowMs: number): M | undefined {
    return [...this.#scheduled].filter(({ lineMs }) => lineMs <= nowMs).toSorted(byLineTime)[0]
  }

  /** Called when a scheduled message is due and becomes ready. */
  arrive(message: M): void {
    const key = this.#keyOf(message)
    if (key !== undefined && message.attempts > 0) key.retrying--
    this.#scheduled.delete(message)
    this.#becomeReady(message)
  }

  /** Called when the message is delivered. */
  take(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    message.state = 'leased'
    if (key === undefined) return
    message.sinceMs = key.sinceMs
    takeFrom(key.line, message)
    key.leased++
    key.limit?.take(nowMs)
    const nextMs = key.limit?.nextMs(nowMs) ?? nowMs
    if (nextMs > nowMs) key.heldMs = Math.max(key.heldMs, nextMs)
    this.#offer(key, nowMs)
  }

  /** Called when a message in the line is leased again to the consumer that had it before. */
  retake(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    // The message counts as leased before it leaves the line, so that no other message of its key is offered.
    if (key !== undefined) key.leased++
    this.leave(message, nowMs)
    message.sinceMs = message.lineMs
  }

  /** Called when a leased message is released. It returns to its old place. */
  release(message: M, nowMs: number): void {
    message.state = 'ready'
    const key = this.#keyOf(message)
    if (key === undefined) return
    key.leased--
    this.#insert(key, message)
    this.#offer(key, nowMs, message)
  }

  /** Called when a leased message is to be retried at its new `lineMs`. */
  retry(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key !== undefined) key.leased--
    this.enter(message, nowMs)
  }

  /** Called when a leased message is gone or dead. */
  settled(message: M, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined) return
    key.leased--
    this.#offer(key, nowMs)
  }

  /** Called when a message leaves the line at `timeMs`. */
  leave(message: M, timeMs: number): void {
    const key = this.#keyOf(message)
    const wasReady = message.state === 'ready'
    message.state = 'leased'
    this.#scheduled.delete(message)
    if (key === undefined) return
    if (wasReady) takeFrom(key.line, message)
    else {
      if (message.attempts === 0) return
      key.retrying--
    }
    if (key.offered === message) key.offered = undefined
    this.#offer(key, timeMs)
  }

  /** Removes all messages, including leased ones. */
  clear(): void {
    this.#keys.clear()
    this.#scheduled.clear()
  }

  /** Changes the rules at `nowMs`. A message keeps its place in the line of its key. */
  changeRules(rules: LineRules, nowMs: number): void {
    const { keyRateMessages, keyRatePerMs, keyConcurrency, onFail } = this.#rules
    this.#rules = rules
    if (keyRateMessages !== rules.keyRateMessages || keyRatePerMs !== rules.keyRatePerMs)
      this.#newRates(nowMs)
    if (keyConcurrency === rules.keyConcurrency && onFail === rules.onFail) return
    for (const key of this.#keys.values()) this.#offer(key, nowMs)
  }

  // Each key has the whole burst again, and only pauses still hold.
  #newRates(nowMs: number): void {
    for (const key of this.#keys.values()) {
      key.limit = this.#newLimit()
      if (key.heldMs > 0) key.heldMs = Math.max(nowMs, key.pausedMs)
    }
    this.passTime(nowMs)
  }

  #newLimit(): RateLimit | undefined {
    return RateLimit.of(this.#rules.keyRateMessages, this.#rules.keyRatePerMs)
  }

  /** Called after a restart: builds the lines of all keys. Each head counts as eligible since its `lineMs`. */
  rebuild(messages: Iterable<M>): void {
    for (const message of messages) {
      const key = this.#keyOf(message)
      if (key !== undefined && message.state === 'ready') this.#insert(key, message)
    }
    for (const key of this.#keys.values()) {
      const head = key.line[0]
      key.sinceMs = 0
      if (head === undefined || !this.#isFree(key)) continue
      key.offered = head
      key.sinceMs = head.lineMs
    }
  }

  /** Time at which the message became eligible; undefined if it is not eligible. */
  eligibleSince(message: M): number | undefined {
    if (message.state !== 'ready') return undefined
    const key = this.#keyOf(message)
    if (key === undefined) return message.sinceMs
    return key.offered === message ? key.sinceMs : undefined
  }

  /**
   * The next eligible message. Plain messages of one priority without a key are ordered by offset alone: their times
   * ascend with the offset, unless the clock was set back between two runs of the broker.
   */
  first(messages: Iterable<M>): M | undefined {
    let priority = -1
    let plain: M | undefined
    let other: M | undefined
    let otherMs = 0
    for (const message of messages) {
      if (message.content.priority < priority) continue
      const sinceMs = this.eligibleSince(message)
      if (sinceMs === undefined) continue
      if (message.content.priority > priority) {
        priority = message.content.priority
        plain = undefined
        other = undefined
      }
      if (message.isPlain && message.content.key === undefined) {
        if (plain === undefined || message.offset < plain.offset) plain = message
      } else if (
        other === undefined ||
        sinceMs < otherMs ||
        (sinceMs === otherMs && message.offset < other.offset)
      ) {
        other = message
        otherMs = sinceMs
      }
    }
    if (plain === undefined || other === undefined) return plain ?? other
    const isOther = otherMs < plain.sinceMs || (otherMs === plain.sinceMs && other.offset < plain.offset)
    return isOther ? other : plain
  }

  /** Numbers of leased and of retrying messages of this message's key; undefined if the message has no key. */
  keyOf(message: M): { readonly leased: number; readonly retrying: number } | undefined {
    return this.#keyOf(message)
  }

  #keyOf({ content }: M): KeyLine<M> | undefined {
    if (content.key === undefined) return undefined
    let key = this.#keys.get(content.key)
    if (key === undefined) {
      const limit = this.#newLimit()
      key = {
        line: [],
        leased: 0,
        retrying: 0,
        offered: undefined,
        sinceMs: 0,
        limit,
        pausedMs: 0,
        heldMs: 0,
      }
      this.#keys.set(content.key, key)
    }
    return key
  }

  #becomeReady(message: M): void {
    const key = this.#keyOf(message)
    message.state = 'ready'
    message.sinceMs = message.lineMs
    if (key === undefined) return
    this.#insert(key, message)
    this.#offer(key, message.lineMs)
  }

  #isFree({ leased, retrying }: KeyLine<M>): boolean {
    const { keyConcurrency, onFail } = this.#rules
    return leased < keyConcurrency && (onFail === 'skip' || retrying === 0)
  }

  #insert(key: KeyLine<M>, message: M): void {
    // A failed message that blocks its key precedes all messages that have not failed.
    if (this.#rules.onFail === 'block' && message.attempts > 0) this.#first.add(message)
    else this.#first.delete(message)
    const last = key.line.at(-1)
    const isLast = last === undefined || this.#isBefore(last, message)
    const at = isLast ? key.line.length : key.line.findIndex((other) => this.#isBefore(message, other))
    key.line.splice(at, 0, message)
  }

  #isBefore(a: M, b: M): boolean {
    const rank = this.#rank(a) - this.#rank(b)
    if (rank !== 0) return rank < 0
    return byLineTime(a, b) < 0
  }

  #rank(message: M): number {
    return this.#first.has(message) ? 0 : 1
  }

  // A new head has been eligible since the latest of these: `timeMs`, the time of the head before it, the time from which
  // the key has been free, and its own time. A released message keeps its time.
  #offer(key: KeyLine<M>, timeMs: number, released?: M): void {
    const head = key.line[0]
    if (head === undefined || !this.#isFree(key) || key.heldMs > 0) {
      key.offered = undefined
      if (this.#isFree(key)) key.sinceMs = Math.max(key.sinceMs, timeMs)
      return
    }
    if (key.offered === head) return
    key.offered = head
    key.sinceMs = head === released ? head.sinceMs : Math.max(timeMs, key.sinceMs, head.lineMs)
  }
}

function takeFrom<M extends LineMessage>(line: M[], message: M): void {
  const at = line.indexOf(message)
  if (at === -1) throw new Error(`Message ${message.offset} is not in the line of its key.`)
  line.splice(at, 1)
}
