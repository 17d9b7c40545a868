/**
 * The order in which the model's messages may be handed out: by priority, then eligible since, then offset; of a key
 * only the head of its line, while the key is free. Plain arrays, looked through from end to end.
 */
import type { Wishes } from './wishes.js'

export type ModelState = 'ready' | 'scheduled' | 'leased' | 'dead'

export interface ModelDead {
  readonly attempts: number
  readonly death: number
  readonly timeMs: number
  readonly isMoving: boolean
}

export interface ModelMessage {
  readonly offset: number
  readonly record: Uint8Array
  readonly wishes: Wishes
  readonly publishedMs: number
  state: ModelState
  /** Where it stands in time: when it was published, or is or was due. */
  lineMs: number
  /** It never had to wait for a time. */
  isPlain: boolean
  /** Eligible since. Of one with a key: when it was handed out. */
  sinceMs: number
  /** 0: never. */
  expiresMs: number
  attempts: number
  lives: { readonly redrives: number; readonly attempts: number }
  dead: ModelDead | undefined
  /** Its id is known for as long as it is pending. */
  readonly isListed: boolean
  /** A delivery must say that it is not the first; it may say so. */
  mustMark: boolean
  mayMark: boolean
  /** A delivery of it left the broker. */
  left: boolean
  /** It may have killed its consumer: it goes alone until it is settled. */
  isSuspect: boolean
  /** Consumers that died with it and had begun with nothing. */
  unexplained: number
  /** The lease that ended last, in this life of the broker, if the message was not leased since. */
  former: FormerLease | undefined
}

export interface FormerLease {
  /** What it counts in a credit. */
  readonly bytes: number
  readonly lease: string
  readonly deadlineMs: number
  /** The try was charged when it ended. */
  readonly isCharged: boolean
}

export interface LineRules {
  readonly keyConcurrency: number
  readonly onFail: string
}

interface KeyLine {
  readonly line: ModelMessage[]
  leased: number
  /** Messages that were tried and wait for their time. */
  retrying: number
  /** The head, while it may go, and since when; the last one's time stays. */
  offered: ModelMessage | undefined
  sinceMs: number
}

export class ModelLine {
  #rules: LineRules
  #keys = new Map<string, KeyLine>()

  constructor(rules: LineRules) {
    this.#rules = rules
  }

  /** It was published: if it is not to wait, behind all that was before, also where the clock was set back since. */
  add(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined || message.lineMs > nowMs) {
      this.enter(message, nowMs)
      return
    }
    message.state = 'ready'
    key.line.push(message)
    this.#offer(key, nowMs, message)
  }

  /** It stands nowhere, and takes its place at its time. */
  enter(message: ModelMessage, nowMs: number): void {
    if (message.lineMs <= nowMs) {
      this.arrive(message, nowMs)
      return
    }
    message.state = 'scheduled'
    const key = this.#keyOf(message)
    if (key === undefined) return
    if (message.attempts > 0) key.retrying++
    this.#offer(key, nowMs)
  }

  /** Its time has come. */
  arrive(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key !== undefined && message.state === 'scheduled' && message.attempts > 0) key.retrying--
    message.state = 'ready'
    message.sinceMs = message.lineMs
    if (key === undefined) return
    this.#insert(key, message)
    this.#offer(key, nowMs, message)
  }

  /** It was handed out. */
  take(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    message.state = 'leased'
    if (key === undefined) return
    message.sinceMs = key.sinceMs
    takeFrom(key.line, message)
    key.leased++
    this.#offer(key, nowMs)
  }

  /** It stood in the line, and is leased again to the one that had it. */
  retake(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key !== undefined) key.leased++
    this.leave(message, nowMs)
    message.state = 'leased'
    message.sinceMs = message.lineMs
  }

  /** It was handed out, and takes its old place. */
  giveBack(message: ModelMessage, nowMs: number): void {
    message.state = 'ready'
    const key = this.#keyOf(message)
    if (key === undefined) return
    key.leased--
    this.#insert(key, message)
    this.#offer(key, nowMs, message)
  }

  /** It was handed out, and comes back at its new time. */
  comeBack(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key !== undefined) key.leased--
    // Whatever it was, it is not scheduled.
    message.state = 'leased'
    this.enter(message, nowMs)
  }

  /** It was handed out, and is done. */
  finish(message: ModelMessage, nowMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined) return
    key.leased--
    this.#offer(key, nowMs)
  }

  /** It stood in the line, and does no more since `timeMs`. */
  leave(message: ModelMessage, timeMs: number): void {
    const key = this.#keyOf(message)
    if (key === undefined) return
    if (message.state === 'ready') takeFrom(key.line, message)
    else if (message.attempts > 0) key.retrying--
    if (key.offered === message) key.offered = undefined
    this.#offer(key, timeMs)
  }

  clear(): void {
    this.#keys.clear()
  }

  /** Other rules: every line anew, and each head eligible since it stands there. */
  reorder(rules: LineRules, live: Iterable<ModelMessage>): void {
    this.#rules = rules
    for (const key of this.#keys.values()) {
      key.line.length = 0
      key.offered = undefined
    }
    for (const message of live) {
      const key = this.#keyOf(message)
      if (key !== undefined && message.state === 'ready') this.#insert(key, message)
    }
    for (const key of this.#keys.values()) {
      const head = key.line[0]
      if (head === undefined || !this.#isFree(key)) continue
      key.offered = head
      key.sinceMs = head.lineMs
    }
  }

  /** Since when it may be handed out; undefined: it may not. */
  eligibleSince(message: ModelMessage): number | undefined {
    if (message.state !== 'ready') return undefined
    const key = this.#keyOf(message)
    if (key === undefined) return message.sinceMs
    return key.offered === message ? key.sinceMs : undefined
  }

  /**
   * What goes first. Of one priority, plain messages go by offset alone: their times ascend with it, but for a clock
   * that was set back between two lives.
   */
  first(live: Iterable<ModelMessage>): ModelMessage | undefined {
    let priority = -1
    let plain: ModelMessage | undefined
    let other: ModelMessage | undefined
    let otherMs = 0
    for (const message of live) {
      if (message.wishes.priority < priority) continue
      const sinceMs = this.eligibleSince(message)
      if (sinceMs === undefined) continue
      if (message.wishes.priority > priority) {
        priority = message.wishes.priority
        plain = undefined
        other = undefined
      }
      if (message.isPlain && message.wishes.key === undefined) {
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

  /** 13: leased messages of the key of this one, and whether one of them waits for a retry. */
  keyOf(message: ModelMessage): { readonly leased: number; readonly retrying: number } | undefined {
    return this.#keyOf(message)
  }

  #keyOf({ wishes }: ModelMessage): KeyLine | undefined {
    if (wishes.key === undefined) return undefined
    let key = this.#keys.get(wishes.key)
    if (key === undefined) {
      key = { line: [], leased: 0, retrying: 0, offered: undefined, sinceMs: 0 }
      this.#keys.set(wishes.key, key)
    }
    return key
  }

  #isFree({ leased, retrying }: KeyLine): boolean {
    const { keyConcurrency, onFail } = this.#rules
    return leased < keyConcurrency && (onFail === 'skip' || retrying === 0)
  }

  #insert(key: KeyLine, message: ModelMessage): void {
    const last = key.line.at(-1)
    const isLast = last === undefined || this.#isBefore(last, message)
    const at = isLast ? key.line.length : key.line.findIndex((other) => this.#isBefore(message, other))
    key.line.splice(at, 0, message)
  }

  #isBefore(a: ModelMessage, b: ModelMessage): boolean {
    const rank = this.#rank(a) - this.#rank(b)
    if (rank !== 0) return rank < 0
    return a.lineMs < b.lineMs || (a.lineMs === b.lineMs && a.offset < b.offset)
  }

  // Where a failed message holds its key, it stands before all that were not tried.
  #rank({ attempts }: ModelMessage): number {
    return this.#rules.onFail === 'block' && attempts > 0 ? 0 : 1
  }

  #offer(key: KeyLine, timeMs: number, arrived?: ModelMessage): void {
    const head = key.line[0]
    if (head === undefined || !this.#isFree(key)) {
      key.offered = undefined
      return
    }
    if (key.offered === head) return
    key.offered = head
    key.sinceMs = head === arrived ? head.sinceMs : Math.max(timeMs, key.sinceMs, head.lineMs)
  }
}

function takeFrom(line: ModelMessage[], message: ModelMessage): void {
  const at = line.indexOf(message)
  if (at === -1) throw new Error(`offset ${message.offset} is not in the line of its key`)
  line.splice(at, 1)
}
