/**
 * A subscription: the credit of one consumer, and the ring that maps its delivery tags to its leased messages.
 *
 * Invariants: a slot is held from grant to settle. Its index is the tag modulo the size of the ring. The ring has at least
 * twice as many slots as are held, so a free slot is always found. The ring grows with the held slots, and not with the
 * credit, which a client can set to any value. `unsettled` counts the held slots. A grant never raises it above the
 * credit (invariant 14).
 */
import type { Loss, LostRange, SluiceError, TagRange } from '@sluice/protocol'
import { addLost } from './ranges.js'
import { FROM_PLAIN_LINE, type Run } from './run.js'

const FREE = 0
const HELD = 1
const STARTED = 2
/** State of a message that may be handled next: the latest STARTING named it, and no STARTED followed. */
const STARTING = 3

/** A lease, as it was when it ended. */
export interface Lease {
  tag: number
  offset: number
  bytes: number
  /** Time from which the message was eligible when it was delivered, or FROM_PLAIN_LINE. */
  sinceMs: number
  /**
   * Whether the message was probably being handled: STARTED named it, or the latest STARTING named it and no STARTED
   * followed.
   */
  started: boolean
  /** Whether the message was a suspect, delivered alone. */
  alone: boolean
  /**
   * Whether the attempt is charged already: the client claimed this lease after it had lost a connection, and the
   * attempt was charged when that connection was lost.
   */
  isCharged: boolean
  /** Deadline of the handling; Infinity if the handling has no deadline. Only `takeAll` sets it. */
  deadlineMs: number
}

/**
 * The first `count` messages of `run`, with consecutive tags from `firstTag` on. Their records are in `bytes[start, end)`.
 * One object serves all deliveries, so it is valid only during the call of `deliver`.
 */
export interface Delivery {
  readonly run: Run
  firstTag: number
  count: number
  bytes: Uint8Array
  start: number
  end: number
}

/**
 * The method of a queue that its subscriptions call. The queue is a type argument, because an import of `queue.ts` would
 * form a cycle; `queue.ts` passes the class `Queue`.
 */
interface Acknowledging {
  ack(offset: number, count: number, nowMs: number, bytes?: number): void
}

/**
 * Receives deliveries and events of a subscription. Everything that it sends to the client waits at the durability
 * gate, except deliveries with `run.ungated`.
 */
export interface ConsumerOf<Q extends Acknowledging> {
  /** The label that the client gave itself, for lists and logs. */
  readonly label: string
  /** The address of the client. */
  readonly address: string
  /** Whether the consumer accepts deliveries now; false while too many sent bytes are unread. */
  readonly isReady: boolean
  /** Delivers messages, which are already leased to the subscription. */
  deliver(subscription: SubscriptionOf<Q>, delivery: Delivery): void
  /** Reports that the leases of these tags ended without a settle. */
  lost(subscription: SubscriptionOf<Q>, reason: Loss, ranges: readonly LostRange[]): void
  /** Answers the drain: nothing more is delivered until the next credit. */
  drained(subscription: SubscriptionOf<Q>): void
  /** Reports that the subscription ended, and all its leases with it. */
  ended(subscription: SubscriptionOf<Q>, error: SluiceError): void
}

export class SubscriptionOf<Q extends Acknowledging> {
  readonly id: number
  readonly channel: number
  readonly queue: Q
  readonly consumer: ConsumerOf<Q>
  readonly sinceMs: number
  /** Maximum time that a message may be handled; undefined if there is no limit. */
  processingTimeoutMs: number | undefined
  creditMessages = 0
  creditBytes = 0
  /** Number of deliveries after which the subscription stops; Infinity if there is no limit. */
  limit = Infinity
  /** Whether the client asked for a drain that has not been answered yet. */
  draining = false
  unsettled = 0
  unsettledBytes = 0
  /** Number of held messages that are being handled, or may be handled next. */
  startedCount = 0
  delivered = 0
  /** Whether the only held message is a suspect. */
  holdsSuspect = false
  /** Lower bound for the deadlines of the messages that are being handled. */
  earliestDeadlineMs = Infinity
  /** Tags of claimed leases whose attempt is already charged; undefined if there are none. */
  #charged: Set<number> | undefined
  /** Tags that the last STARTING named, if no STARTED followed. */
  #starting: readonly TagRange[] = NO_RANGES
  /** Tag of the next delivery, if its slot is free. */
  #nextTag = 0
  #mask = 0
  #states: Uint8Array = NO_BYTES
  #tags: Uint32Array = NO_WORDS
  #sizes: Uint32Array = NO_WORDS
  #offsets: Float64Array = NO_NUMBERS
  #sinces: Float64Array = NO_NUMBERS
  /** Time of delivery; in `#deadlines`, the deadline of a message that is being handled. */
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

  /** Notifies the consumer, and delivers nothing more until the next credit. */
  answerDrain(): void {
    this.draining = false
    this.limit = this.delivered
    this.consumer.drained(this)
  }

  /** Number of messages that may be granted now, without regard to bytes. */
  get room(): number {
    if (this.holdsSuspect) return 0
    return Math.min(this.creditMessages - this.unsettled, this.limit - this.delivered)
  }

  /** Whether the subscription holds nothing and asks for nothing. With `single`, another subscription then takes over. */
  get isIdle(): boolean {
    return this.unsettled === 0 && (this.creditMessages === 0 || this.delivered >= this.limit)
  }

  /** Whether a message of `bytes` may be granted now: within the byte credit, or alone when nothing is unsettled. */
  takes(bytes: number): boolean {
    return this.unsettled === 0 || this.unsettledBytes + bytes <= this.creditBytes
  }

  /**
   * The tag of the next grant. Makes room for `count` grants: the tags that follow can be used for the same run while
   * `isFree` returns true.
   */
  nextTag(count: number): number {
    const slots = (this.unsettled + count) * 2
    if (slots > this.#states.length) this.#grow(slots)
    while (this.#states[this.#nextTag & this.#mask] !== FREE) this.#nextTag = (this.#nextTag + 1) >>> 0
    return this.#nextTag
  }

  /** Whether the slot of `tag` is free. A run of consecutive tags ends at a slot that is not free. */
  isFree(tag: number): boolean {
    return this.#states[tag & this.#mask] === FREE
  }

  /** Leases a message under `tag`, which must be the next tag. Its slot must be free. */
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

  /** Whether a claimed message of `bytes` may be leased again within the credit. */
  takesClaim(bytes: number): boolean {
    return this.unsettled < this.creditMessages && this.takes(bytes)
  }

  /** Leases again a message that the client is still handling, and returns its new tag. This does not count as a delivery. */
  grantClaim(
    offset: number,
    bytes: number,
    sinceMs: number,
    nowMs: number,
    deadlineMs: number,
    isCharged: boolean,
  ): number {
    const tag = this.nextTag(1)
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

  /** Ends the lease of `tag` and fills `lease`. Returns false if the tag is stale. */
  end(tag: number, lease: Lease): boolean {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    // In an empty ring the state is undefined: no tag is held.
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

  /** Notes that the consumer handles the message of `tag`, with a deadline. Ignores stale tags. */
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

  /**
   * Notes that the consumer will handle the messages of these tags in order. After this, the consumer reports only the
   * messages that take long.
   */
  announce(ranges: readonly TagRange[]): void {
    this.endAnnouncement()
    this.#starting = ranges
    this.#restate(HELD, STARTING, 1)
  }

  /** Ends the announcement: announced messages that were neither settled nor reported as started are not being handled. */
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
   * Sets the deadline of the message of `tag`. Returns false if the tag is stale. A message that is not being handled
   * has no deadline, so this only checks its tag.
   */
  extend(tag: number, deadlineMs: number): boolean {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    if (state === undefined || state === FREE || this.#tags[slot] !== tag) return false
    // Only a handler extends a lease, so an announced message is being handled now.
    if (state !== HELD) this.#setDeadline(slot, deadlineMs)
    return true
  }

  /** Adds `byMs` to the deadlines of all messages that are being handled. */
  postpone(byMs: number): void {
    this.earliestDeadlineMs += byMs
    for (let slot = 0; slot < this.#states.length; slot++)
      if (this.#states[slot] === STARTED) this.#deadlines[slot]! += byMs
  }

  /** Tags of messages whose deadline has passed. Also sets `earliestDeadlineMs` to the next deadline. */
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

  /** Iterates over every held tag and its message. */
  *held(): IterableIterator<{ readonly tag: number; readonly offset: number; readonly leasedAtMs: number }> {
    for (let slot = 0; slot < this.#states.length; slot++) {
      if (this.#states[slot] === FREE) continue
      yield { tag: this.#tags[slot]!, offset: this.#offsets[slot]!, leasedAtMs: this.#times[slot]! }
    }
  }

  /**
   * Number of slots that a loop over the held tags visits. This is at least twice the maximum number of slots that were
   * held at once.
   */
  get slots(): number {
    return this.#states.length
  }

  /** Delivery time of the oldest lease; null if nothing is held. */
  get oldestLeaseMs(): number | null {
    if (this.unsettled === 0) return null
    let oldestMs = Infinity
    for (let slot = 0; slot < this.#states.length; slot++)
      if (this.#states[slot] !== FREE && this.#times[slot]! < oldestMs) oldestMs = this.#times[slot]!
    return oldestMs
  }

  /** Record bytes of the message of `tag`; -1 if the tag is stale. */
  bytesOf(tag: number): number {
    const slot = tag & this.#mask
    const state = this.#states[slot]
    return state !== undefined && state !== FREE && this.#tags[slot] === tag ? this.#sizes[slot]! : -1
  }

  /** Acknowledges the messages of tags `[firstTag, firstTag + count)`. Calls `stale` for each stale tag. */
  ack(firstTag: number, count: number, nowMs: number, stale?: (tag: number) => void): void {
    const lease = SCRATCH
    let runOffset = -1
    let runCount = 0
    let runBytes = 0
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      if (!this.end(tag, lease)) {
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

  /** Ends the leases of the messages below `end`, calls `ended` with each, and returns their tags. */
  loseBelow(end: number, ended: (lease: Lease) => void): LostRange[] {
    const lost: LostRange[] = []
    const tags: number[] = []
    for (const { tag, offset } of this.held()) if (offset < end) tags.push(tag)
    for (const tag of tags.sort((a, b) => a - b)) {
      if (!this.end(tag, SCRATCH)) continue
      addLost(lost, tag, SCRATCH.offset)
      ended(SCRATCH)
    }
    return lost
  }

  /** Ends every lease, in the order of tags, and calls `ended` with each. */
  takeAll(lease: Lease, ended: (lease: Lease) => void): void {
    const size = this.#states.length
    for (let step = 0; step < size && this.unsettled > 0; step++) {
      const slot = (this.#nextTag + step) & this.#mask
      if (this.#states[slot] === FREE) continue
      lease.deadlineMs = this.#states[slot] === STARTED ? this.#deadlines[slot]! : Infinity
      if (this.end(this.#tags[slot]!, lease)) ended(lease)
    }
  }

  // Each held slot moves to the place of its tag in the larger ring, so tags stay valid.
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

/** See `Queue.soleSubscription`. */
export function soleOf<One extends { readonly unsettled: number; readonly isIdle: boolean }>(
  subscriptions: readonly One[],
): One | undefined {
  let oldest: One | undefined
  for (const subscription of subscriptions) {
    if (subscription.unsettled > 0) return subscription
    if (oldest === undefined && !subscription.isIdle) oldest = subscription
  }
  return oldest
}

/** Makes an empty lease, to be filled. */
export function emptyLease(): Lease {
  return {
    tag: 0,
    offset: 0,
    bytes: 0,
    sinceMs: FROM_PLAIN_LINE,
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
