/**
 * A subscription: one consumer's credit, and the ring that maps its delivery tags to the messages it holds.
 *
 * Invariants: a slot is held from grant to settle; its tag is congruent to it modulo the ring's size; the ring has
 * at least twice as many slots as are held, so a free one is always found. It grows with what is held, not with the
 * credit, which costs its owner nothing to ask for. `unsettled` counts the held slots and
 * never exceeds the credit that was in force when they were granted (invariant 14).
 */
import type { Loss, LostRange, SluiceError, TagRange } from '@sluice/protocol'
import type { Run } from './run.js'

const FREE = 0
const HELD = 1
const STARTED = 2
/** It may be the next that is handled: named in STARTING, and not in a STARTED since. */
const STARTING = 3

/** What a tag stood for, when its slot is given back. */
export interface Lease {
  tag: number
  offset: number
  bytes: number
  /** Since when the message was eligible when it was handed out; -1 for one that came from the plain line. */
  sinceMs: number
  /** It was being handled, as far as is known: named in STARTED, or in STARTING and in no STARTED since. */
  started: boolean
  /** Handed out alone, as a suspect. */
  alone: boolean
  /** The try was charged already, when the connection was lost from which this lease was claimed. */
  isCharged: boolean
  /** When it has to be done; Infinity where no time runs. Set by `takeAll` alone. */
  deadlineMs: number
}

/**
 * The first `count` messages of `run` under the tags from `firstTag`; their records are `bytes[start, end)`. One object
 * serves all deliveries: it is valid during the call.
 */
export interface Delivery {
  readonly run: Run
  firstTag: number
  count: number
  bytes: Uint8Array
  start: number
  end: number
}

/** What a subscription asks of the queue that it belongs to. `queue.ts` says which class that is. */
interface Settled {
  ack(offset: number, count: number, nowMs: number, bytes?: number): void
}

/** What a subscription's owner does with what the queue decides. All of it waits at the durability gate. */
export interface ConsumerOf<Q extends Settled> {
  /** The label that its client gave itself, and where it is; for people. */
  readonly label: string
  readonly peer: string
  /** Whether it takes deliveries now: false while too much that was sent to it is unread. */
  readonly isReady: boolean
  /** These messages are leased to the subscription. */
  deliver(subscription: SubscriptionOf<Q>, delivery: Delivery): void
  /** Messages under these tags were taken away from it. */
  lost(subscription: SubscriptionOf<Q>, reason: Loss, ranges: readonly LostRange[]): void
  /** A drain was asked for and nothing more goes out now. */
  drained(subscription: SubscriptionOf<Q>): void
  /** The subscription is over, all its leases with it. */
  ended(subscription: SubscriptionOf<Q>, error: SluiceError): void
}

export class SubscriptionOf<Q extends Settled> {
  readonly id: number
  readonly channel: number
  readonly queue: Q
  readonly consumer: ConsumerOf<Q>
  readonly sinceMs: number
  /** How long a message may be handled. */
  processingTimeoutMs: number | undefined
  creditMessages = 0
  creditBytes = 0
  /** Deliveries after which it stops; Infinity: no end. */
  limit = Infinity
  /** A drain was asked for and not yet answered. */
  draining = false
  unsettled = 0
  unsettledBytes = 0
  /** How many of the held messages are being handled, or may be the next. */
  startedCount = 0
  delivered = 0
  /** What it holds is a suspect, which it gets alone. */
  holdsSuspect = false
  /** No message that is being handled must be done before this. */
  earliestDeadlineMs = Infinity
  /** Tags of claimed leases whose try was charged already; undefined: none. */
  #charged: Set<number> | undefined
  /** Named in the last STARTING, which no STARTED has followed. */
  #starting: readonly TagRange[] = NO_RANGES
  /** Tag of the next delivery that finds its slot free. */
  #nextTag = 0
  #mask = 0
  #states: Uint8Array = NO_BYTES
  #tags: Uint32Array = NO_WORDS
  #sizes: Uint32Array = NO_WORDS
  #offsets: Float64Array = NO_NUMBERS
  #sinces: Float64Array = NO_NUMBERS
  /** When it was handed out; and of a message that is being handled, when it has to be done. */
  #times: Float64Array = NO_NUMBERS
  #deadlines: Float64Array = NO_NUMBERS

  constructor(
    id: number,
    channel: number,
    queue: Q,
    consumer: ConsumerOf<Q>,
    sinceMs: number,
    processingTimeoutMs?: number,
  ) {
    this.id = id
    this.channel = channel
    this.queue = queue
    this.consumer = consumer
    this.sinceMs = sinceMs
    this.processingTimeoutMs = processingTimeoutMs
  }

  setCredit(messages: number, bytes: number, limit: number | undefined, drain: boolean): void {
    this.creditMessages = messages
    this.creditBytes = bytes
    this.limit = limit ?? Infinity
    this.draining = drain
  }

  /** Nothing more goes out until the next credit, and the consumer is told so. */
  answerDrain(): void {
    this.draining = false
    this.limit = this.delivered
    this.consumer.drained(this)
  }

  /** How many messages may be granted now, bytes aside. */
  get room(): number {
    if (this.holdsSuspect) return 0
    return Math.min(this.creditMessages - this.unsettled, this.limit - this.delivered)
  }

  /** It holds nothing and asks for nothing: of a queue with `single` others take over. */
  get isIdle(): boolean {
    return this.unsettled === 0 && (this.creditMessages === 0 || this.delivered >= this.limit)
  }

  /** Whether a message of `bytes` may go now: within the byte credit, or alone when nothing is unsettled. */
  takes(bytes: number): boolean {
    return this.unsettled === 0 || this.unsettledBytes + bytes <= this.creditBytes
  }

  /**
   * The tag that the next grant uses, with slots for `count` grants: of a run, the tags that follow are free as long as
   * `isFree` says so.
   */
  claimTag(count: number): number {
    const slots = (this.unsettled + count) * 2
    if (slots > this.#states.length) this.#grow(slots)
    while (this.#states[this.#nextTag & this.#mask] !== FREE) this.#nextTag = (this.#nextTag + 1) >>> 0
    return this.#nextTag
  }

  /** Whether the slot of `tag` is free; a run of consecutive tags ends where it is not. */
  isFree(tag: number): boolean {
    return this.#states[tag & this.#mask] === FREE
  }

  /** Leases a message under `tag`, which is the next one and free. */
  grant(tag: number, offset: number, bytes: number, sinceMs: number, nowMs: number): void {
    const slot = tag & this.#mask
    this.#states[slot] = HELD
    this.#tags[slot] = tag
    this.#sizes[slot] = bytes
    this.#offsets[slot] = offset
    this.#sinces[slot] = sinceMs
    this.#times[slot] = nowMs
    this.#nextTag = (tag + 1) >>> 0
    this.unsettled++
    this.unsettledBytes += bytes
    this.delivered++
  }

  /** Whether a claimed message of `bytes` may be leased again: within the credit. */
  takesClaim(bytes: number): boolean {
    return this.unsettled < this.creditMessages && this.takes(bytes)
  }

  /** Leases a message again that is being handled, and says under which tag. It was delivered before. */
  grantClaim(
    offset: number,
    bytes: number,
    sinceMs: number,
    nowMs: number,
    deadlineMs: number,
    isCharged: boolean,
  ): number {
    const tag = this.claimTag(1)
    this.grant(tag, offset, bytes, sinceMs, nowMs)
    this.delivered--
    this.start(tag, deadlineMs)
    if (isCharged) {
      this.#charged ??= new Set()
      this.#charged.add(tag)
    }
    return tag
  }

  /** Offset of the message under `tag`, or -1 if the tag is stale. */
  offsetOf(tag: number): number {
    const slot = tag & this.#mask
    return this.#states[slot] !== FREE && this.#tags[slot] === tag ? this.#offsets[slot]! : -1
  }

  /** Ends the lease under `tag` and fills `lease`; false when the tag is stale. */
  take(tag: number, lease: Lease): boolean {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    // An empty ring reads undefined here: no tag is held.
    if (state === undefined || state === FREE || this.#tags[slot] !== tag) return false
    lease.tag = tag
    lease.offset = this.#offsets[slot]!
    lease.bytes = this.#sizes[slot]!
    lease.sinceMs = this.#sinces[slot]!
    lease.started = state !== HELD
    lease.alone = this.holdsSuspect
    lease.isCharged = this.#charged !== undefined && this.#charged.delete(tag)
    if (lease.started) this.startedCount--
    this.#states[slot] = FREE
    this.unsettled--
    this.holdsSuspect = false
    this.unsettledBytes -= lease.bytes
    return true
  }

  /** The consumer handles the message under `tag`, which has until `deadlineMs`. Stale tags are passed over. */
  start(tag: number, deadlineMs: number): void {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    if ((state !== HELD && state !== STARTING) || this.#tags[slot] !== tag) return
    if (state === HELD) this.startedCount++
    this.#setDeadline(slot, deadlineMs)
  }

  #setDeadline(slot: number, deadlineMs: number): void {
    this.#states[slot] = STARTED
    this.#deadlines[slot] = deadlineMs
    if (deadlineMs < this.earliestDeadlineMs) this.earliestDeadlineMs = deadlineMs
  }

  /** The consumer is going to handle messages under these tags, in their order, for as long as each is quick. */
  announce(ranges: readonly TagRange[]): void {
    this.endAnnouncement()
    this.#starting = ranges
    this.#restate(HELD, STARTING, 1)
  }

  /** What was announced, and is neither settled nor named as started since, is not being handled. */
  endAnnouncement(): void {
    if (this.startedCount > 0) this.#restate(STARTING, HELD, -1)
    this.#starting = NO_RANGES
  }

  #restate(from: number, to: number, started: number): void {
    for (const { firstTag, count } of this.#starting) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const slot = tag & this.#mask
        if (this.#states[slot] !== from || this.#tags[slot] !== tag) continue
        this.#states[slot] = to
        this.startedCount += started
      }
    }
  }

  /**
   * The message under `tag` may take until `deadlineMs`; false where the tag is stale. Before it is begun with there is
   * no deadline yet that could be set.
   */
  extend(tag: number, deadlineMs: number): boolean {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    if (state === undefined || state === FREE || this.#tags[slot] !== tag) return false
    // Only a handler extends: what was announced is being handled.
    if (state !== HELD) this.#setDeadline(slot, deadlineMs)
    return true
  }

  /** What is being handled may take `byMs` longer. */
  postpone(byMs: number): void {
    this.earliestDeadlineMs += byMs
    for (let slot = 0; slot < this.#states.length; slot++)
      if (this.#states[slot] === STARTED) this.#deadlines[slot]! += byMs
  }

  /** Tags of messages that had to be done by now; sets the next deadline. */
  overdue(nowMs: number): number[] {
    const tags: number[] = []
    this.earliestDeadlineMs = Infinity
    for (let slot = 0; slot < this.#states.length; slot++) {
      if (this.#states[slot] !== STARTED) continue
      const deadlineMs = this.#deadlines[slot]!
      if (deadlineMs <= nowMs) tags.push(this.#tags[slot]!)
      else if (deadlineMs < this.earliestDeadlineMs) this.earliestDeadlineMs = deadlineMs
    }
    return tags
  }

  /** Every tag that is held, with its message. */
  *held(): IterableIterator<{ readonly tag: number; readonly offset: number; readonly leasedAtMs: number }> {
    for (let slot = 0; slot < this.#states.length; slot++) {
      if (this.#states[slot] === FREE) continue
      yield { tag: this.#tags[slot]!, offset: this.#offsets[slot]!, leasedAtMs: this.#times[slot]! }
    }
  }

  /** Slots that looking at all it holds passes: at least twice what it ever held at once. */
  get slots(): number {
    return this.#states.length
  }

  /** When the message was delivered that it has held for longest; null: it holds none. */
  get oldestLeaseMs(): number | null {
    if (this.unsettled === 0) return null
    let oldestMs = Infinity
    for (let slot = 0; slot < this.#states.length; slot++)
      if (this.#states[slot] !== FREE && this.#times[slot]! < oldestMs) oldestMs = this.#times[slot]!
    return oldestMs
  }

  /** Bytes of the message under `tag`; -1 where the tag is stale. */
  bytesOf(tag: number): number {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    return state !== undefined && state !== FREE && this.#tags[slot] === tag ? this.#sizes[slot]! : -1
  }

  /** The messages under `[firstTag, firstTag + count)` are done. Calls `stale` for tags that mean nothing any more. */
  ack(firstTag: number, count: number, nowMs: number, stale?: (tag: number) => void): void {
    const lease = SCRATCH
    let runOffset = -1
    let runCount = 0
    let runBytes = 0
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      if (!this.take(tag, lease)) {
        stale?.(tag)
      } else if (lease.offset === runOffset + runCount) {
        runCount++
        runBytes += lease.bytes
      } else {
        if (runCount > 0) this.queue.ack(runOffset, runCount, nowMs, runBytes)
        runOffset = lease.offset
        runCount = 1
        runBytes = lease.bytes
      }
    }
    if (runCount > 0) this.queue.ack(runOffset, runCount, nowMs, runBytes)
  }

  /** Ends every lease, in the order of tags, and hands each to `ended`. */
  takeAll(lease: Lease, ended: (lease: Lease) => void): void {
    const size = this.#states.length
    for (let step = 0; step < size && this.unsettled > 0; step++) {
      const slot = (this.#nextTag + step) & this.#mask
      if (this.#states[slot] === FREE) continue
      lease.deadlineMs = this.#states[slot] === STARTED ? this.#deadlines[slot]! : Infinity
      if (this.take(this.#tags[slot]!, lease)) ended(lease)
    }
  }

  // Tags keep their meaning: each held slot moves to where its tag belongs in the larger ring.
  #grow(slots: number): void {
    let size = 16
    while (size < slots) size *= 2
    const states = new Uint8Array(size)
    const tags = new Uint32Array(size)
    const sizes = new Uint32Array(size)
    const offsets = new Float64Array(size)
    const sinces = new Float64Array(size)
    const times = new Float64Array(size)
    const deadlines = new Float64Array(size)
    for (let old = 0; old < this.#states.length; old++) {
      if (this.#states[old] === FREE) continue
      const slot = this.#tags[old]! & (size - 1)
      states[slot] = this.#states[old]!
      tags[slot] = this.#tags[old]!
      sizes[slot] = this.#sizes[old]!
      offsets[slot] = this.#offsets[old]!
      sinces[slot] = this.#sinces[old]!
      times[slot] = this.#times[old]!
      deadlines[slot] = this.#deadlines[old]!
    }
    this.#states = states
    this.#tags = tags
    this.#sizes = sizes
    this.#offsets = offsets
    this.#sinces = sinces
    this.#times = times
    this.#deadlines = deadlines
    this.#mask = size - 1
  }
}

/** One that says nothing yet. */
export function emptyLease(): Lease {
  return {
    tag: 0,
    offset: 0,
    bytes: 0,
    sinceMs: -1,
    started: false,
    alone: false,
    isCharged: false,
    deadlineMs: Infinity,
  }
}

const SCRATCH = emptyLease()
const NO_RANGES: readonly TagRange[] = []
const NO_BYTES = new Uint8Array(0)
const NO_WORDS = new Uint32Array(0)
const NO_NUMBERS = new Float64Array(0)
