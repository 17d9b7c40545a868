/**
 * One subscription on one connection, from SUBSCRIBE to its end. It knows which of its messages are delivered,
 * announced as started, taken, and settled. When the connection ends, the owner opens a new subscription.
 *
 * Invariant: each delivered and unsettled message is in the buffer, set aside, held, or handled.
 */
import {
  decodeDeliverHead,
  decodeDrained,
  decodeLeasesLost,
  decodeRanges,
  decodeSubscribed,
  encodeControl,
  encodeCredit,
  encodeExtend,
  encodeSubscriptionId,
  OP,
  recordSize,
  scatteredOffset,
  type SluiceError,
  type AtomicAck,
  type Outcome,
  type TagRange,
} from '@sluice/protocol'
import { Announcements, type Announced } from './announcements.js'
import { Aside } from './aside.js'
import { RunBuffer } from './buffer.js'
import { Claims } from './claims.js'
import type { ChannelSink, Connection, Reply } from './connection.js'
import { CreditBounds, type Credit } from './credit.js'
import type { LeaseKeeper } from './lease.js'
import { leaseLost, lossBy, lossReason, type LeaseLossReason } from './losses.js'
import type { DeliveredMessage } from './message.js'
import { recordsCopy } from './records.js'
import { decodeRun, malformedDelivery, partOf, recordsBytes, type Run } from './run.js'
import type { Responder } from './responder.js'
import type { Session } from './session.js'
import type { SettleDetail, SettleRequest } from './settle-request.js'
import { SettleOutbox } from './settle-outbox.js'
import { Waiters } from './waiters.js'
import { Watchers, type Watcher } from './watchers.js'

export interface SubscriptionOwner {
  subscribed(): void
  /** Called when buffered messages may start, or when an answer changed which of them may start. */
  mayStart(): void
  drained(): void
  /** Called when the broker has refused or ended the subscription. */
  ended(error: SluiceError, claims: Claims | undefined): void
  /** Called when the connection is lost. `claims` contains the leases that are claimed on the next connection. */
  lost(claims: Claims | undefined): void
  /** Messages that the owner has taken and may still handle. Without this method, the subscription keeps its own list. */
  handling?(): readonly DeliveredMessage[]
  /** When leases are lost, removes and returns their messages that the owner holds and has not started. */
  leasesLost?(tags: ReadonlySet<number>): readonly DeliveredMessage[]
}

/** The credit and the options of SUBSCRIBE. */
export interface Terms extends Credit {
  /** Replaces the processing timeout of the queue. */
  readonly processingTimeoutMs?: number | undefined
  /** Messages of an earlier connection that the owner still handles. */
  readonly claims?: Claims | undefined
}

export class Subscription implements ChannelSink, LeaseKeeper, Announced {
  readonly queue: string
  readonly replies: Responder
  /** The processing timeout in SUBSCRIBE. */
  readonly processingTimeoutMs: number | undefined
  live = true
  /** Whether SUBSCRIBE is answered. */
  open = false
  /** Number of messages that are delivered and not settled. */
  unsettled = 0
  /** Number of all messages delivered. */
  deliveries = 0
  readonly announcements: Announcements
  readonly #session: Session
  readonly #connection: Connection
  #owner: SubscriptionOwner
  readonly #channel: number
  #id = 0
  #queueNumber = 0
  /** Claims that were sent in SUBSCRIBE and are not answered. */
  #claims: Claims | undefined
  /** Attempt numbers of claimed messages, by tag. */
  #attempts: Map<number, number> | undefined
  /** Taken messages. Settled messages are removed from time to time. Undefined if the owner keeps the list. */
  #taken: DeliveredMessage[] | undefined
  readonly #buffer: RunBuffer
  readonly #aside: Aside
  readonly #credit: CreditBounds
  readonly #settles: SettleOutbox
  readonly #emptied = new Waiters()
  readonly #drained = new Waiters()
  readonly #watchers = new Watchers()
  /** Tags of messages whose lease was lost before they were settled; undefined if there are none. */
  #lost: Map<number, LeaseLossReason> | undefined
  /** Tags that unanswered atomic steps acknowledge. They do not count in `unsettled`. Undefined if there are no tags. */
  #pledged: Set<number> | undefined

  /** @throws SluiceError TOO_MANY_SUBSCRIPTIONS */
  constructor(
    session: Session,
    connection: Connection,
    queue: string,
    terms: Terms,
    owner: SubscriptionOwner,
  ) {
    this.#session = session
    this.#connection = connection
    this.queue = queue
    this.replies = session.replies
    this.#owner = owner
    this.#buffer = new RunBuffer(session.isolation, this.#wake)
    this.#aside = new Aside(
      queue,
      session.orphans,
      (run) => this.#resumed(run),
      ({ firstTag }) => this.#released(firstTag),
    )
    this.#channel = connection.openChannel(this)
    this.#credit = new CreditBounds(terms)
    this.#settles = new SettleOutbox(session, connection, this.#channel, this.#credit)
    this.announcements = new Announcements(
      session,
      connection,
      this.#channel,
      this,
      this.#buffer,
      this.#settles,
      this.#wake,
    )
    if (owner.handling === undefined) this.#taken = []
    const { messages, bytes, limit, processingTimeoutMs, claims } = terms
    this.processingTimeoutMs = processingTimeoutMs
    if (claims !== undefined && claims.size > 0) this.#claims = claims
    const body = {
      ...(this.#claims === undefined ? {} : { claims: this.#claims.encode() }),
      ...{ queue, messages, bytes },
      ...(limit === undefined ? {} : { limit }),
      ...(processingTimeoutMs === undefined ? {} : { processingTimeoutMs }),
    }
    this.#request(OP.SUBSCRIBE, encodeControl(body), {
      expects: OP.SUBSCRIBE_OK,
      // SUBSCRIBE has no deadline, because a subscription that the client gave up would keep its leases at the broker.
      deadlineMs: Infinity,
      answered: (bytes, start, end) => {
        const { subscriptionId, queueNumber, granted } = decodeSubscribed(bytes, start, end)
        const claims = this.#claims
        if (granted.some(({ index }) => index >= (claims?.size ?? 0)))
          throw malformedDelivery('SUBSCRIBE_OK grants a lease that was not claimed.')
        this.#claims = undefined
        this.#id = subscriptionId
        this.#settles.open(subscriptionId)
        this.announcements.open(subscriptionId)
        this.#queueNumber = queueNumber
        this.open = true
        if (!this.live) {
          void this.#leave()
          return
        }
        claims?.answered(this, granted)
        this.#notifyEmptied()
        this.#owner.subscribed()
      },
      // When the connection is lost, `lost` is called instead.
      failed: (error) => {
        if (error.code !== 'CONNECTION_LOST') this.ended(error)
      },
    })
  }

  /** Number of messages that are delivered and not taken. */
  get buffered(): number {
    return this.#buffer.count
  }

  /** Number of `buffered` messages that are announced. */
  get announced(): number {
    return this.#buffer.announced
  }

  /** Number of messages that are taken, not held, and not settled. */
  get beingHandled(): number {
    return this.unsettled - this.#buffer.count - this.announcements.held - this.#aside.count
  }

  #deadline(): number {
    const { deadlines, timeoutMs } = this.#session
    return deadlines.after(timeoutMs)
  }

  #request(opcode: number, payload: Uint8Array, reply: Reply): void {
    this.#connection.request(opcode, this.#channel, payload, reply)
    this.#session.turn.schedule()
  }

  #send(opcode: number, payload: Uint8Array): void {
    this.#connection.send(opcode, this.#channel, 0, payload)
    this.#session.turn.schedule()
  }

  /** @throws SluiceError MALFORMED_FRAME */
  delivered(bytes: Uint8Array, start: number, end: number): void {
    const head = decodeDeliverHead(bytes, start, end)
    if (!this.open || !this.live || head.subscriptionId !== this.#id) return
    const run = decodeRun(head, bytes, start, end, this)
    const { count } = run
    const runBytes = recordsBytes(run)
    // Memory is bounded by the credit, even if the broker miscounts.
    const waitingBytes = this.#buffer.bytes + this.announcements.heldBytes + runBytes
    const excess = this.#credit.excess(this.unsettled + count, waitingBytes, this.deliveries + count)
    if (excess !== undefined) throw malformedDelivery(excess)
    if (this.#session.orphans.has(this.queue)) this.#keepOthers(run)
    else this.#buffer.keep(run)
    if (this.#lost !== undefined) this.#reuse(head)
    this.#settles.deliveredBytes += runBytes
    this.unsettled += count
    this.deliveries += count
    this.#owner.mayStart()
  }

  // Sets messages of orphaned handlers aside, and adds the others to the buffer.
  #keepOthers(run: Run): void {
    const { gap, records } = run
    let from = 0
    let fromAt = 0
    let at = 0
    for (let index = 0; index < run.count; index++) {
      const next = at + gap + recordSize(records, at + gap)
      const offset = gap === 0 ? run.firstOffset + index : scatteredOffset(records, at)
      const held = this.#aside.heldBy(offset, records, at + gap)
      if (held !== undefined) {
        if (index > from) this.#buffer.keep(partOf(run, from, index, records.subarray(fromAt, at)))
        this.#aside.add(partOf(run, index, index + 1, recordsCopy(records, at, next, gap)), held)
        from = index + 1
        fromAt = next
      }
      at = next
    }
    if (run.count > from) this.#buffer.keep(partOf(run, from, run.count, records.subarray(fromAt)))
  }

  #resumed(run: Run): void {
    this.#buffer.push(run)
    this.#owner.mayStart()
  }

  #released(tag: number): void {
    this.#settles.release(tag, 1)
    this.unsettled--
    this.#notifyEmptied()
  }

  /** Adds a claimed message that is still being handled and is now leased to this subscription, under `tag`. */
  adopt(message: DeliveredMessage, tag: number, attempt: number): void {
    this.unsettled++
    if (this.#taken !== undefined) this.#track(message)
    this.#attempts ??= new Map()
    this.#attempts.set(tag, attempt)
  }

  // Settled messages are removed from the list only when it has grown, so that a settle needs no search.
  #track(message: DeliveredMessage): void {
    const taken = this.#taken!
    taken.push(message)
    if (taken.length > 2 * (this.unsettled - this.buffered) + TRACKED_SLACK)
      this.#taken = taken.filter((one) => one.isLeasedBy(this))
  }

  get #handled(): readonly DeliveredMessage[] {
    const handled = this.#taken ?? this.#owner.handling?.() ?? []
    return handled.filter((message) => message.isLeasedBy(this))
  }

  // Returns the claims for the messages that were being handled when the connection was lost, if any.
  #toClaim(): Claims | undefined {
    if (!this.open) return this.#claims
    const handled = this.#handled
    if (handled.length === 0) return undefined
    const claims = new Claims(this.#session, this.queue)
    const tags = new Set(handled.map(({ tag }) => tag))
    for (const watcher of this.#watchers.take(tags)) claims.watch(watcher)
    const { boot } = this.#connection.ok
    for (const message of handled) {
      const { tag, offset, recordBytes: bytes } = message
      const attempt = this.#attempts?.get(tag) ?? message.attempt
      const lease = { boot, queueNumber: this.#queueNumber, subscriptionId: this.#id, tag, attempt }
      if (claims.add(message, { offset, bytes, ...lease })) this.unsettled--
      else this.#session.leaseLost({ queue: this.queue, offset, reason: 'disconnected' })
    }
    return claims
  }

  /** @throws SluiceError MALFORMED_FRAME */
  drained(bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId } = decodeDrained(bytes, start, end)
    if (!this.open || !this.live || subscriptionId !== this.#id) return
    this.#owner.drained()
    this.#drained.notify()
  }

  // Tags wrap around. An earlier message whose lease was lost under one of these tags was settled long ago.
  #reuse({ firstTag, count }: TagRange): void {
    for (let i = 0; i < count; i++) this.forget((firstTag + i) >>> 0)
  }

  /**
   * Called when the broker has ended leases and freed their credit. Messages in the buffer are dropped. The signals of
   * taken messages are aborted, and their settles reject. Messages that are already settled here are not affected.
   * @throws SluiceError MALFORMED_FRAME
   */
  leasesLost(bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, reason: why, ranges } = decodeLeasesLost(bytes, start, end)
    if (!this.open || !this.live || subscriptionId !== this.#id) return
    const offsets = new Map<number, number>()
    for (const { firstTag, count, firstOffset } of ranges)
      for (let i = 0; i < count; i++) offsets.set((firstTag + i) >>> 0, firstOffset + i)
    const reason = lossReason(why)
    for (const tag of this.#lost?.keys() ?? []) offsets.delete(tag)
    const lost = new Set(offsets.keys())
    this.#settles.exclude(lost)
    for (const tag of this.#pledged ?? []) if (lost.delete(tag)) (this.#lost ??= new Map()).set(tag, reason)
    const dropped = [...this.#buffer.drop(lost), ...this.#aside.drop(lost)]
    for (const tag of dropped) offsets.delete(tag)
    this.unsettled -= dropped.length
    const held = this.#owner.leasesLost?.(lost) ?? []
    this.announcements.forgetHeld(held)
    this.unsettled -= held.length
    for (const { tag } of held) {
      lost.delete(tag)
      offsets.delete(tag)
    }
    const taken = this.beingHandled
    if (lost.size > taken)
      throw malformedDelivery(
        `LEASES_LOST names ${lost.size} messages that are being handled, but only ${taken} are.`,
      )
    this.unsettled -= lost.size
    if (lost.size > 0) {
      this.#lost ??= new Map()
      for (const tag of lost) this.#lost.set(tag, reason)
      this.#session.isolation.leave(lost.size)
      this.#watchers.abort(lost, leaseLost(undefined, reason))
    }
    // Each of these messages had a handler. If a settle of one of them is under way, it comes too late.
    for (const offset of offsets.values()) this.#session.leaseLost({ queue: this.queue, offset, reason })
    this.#notifyEmptied()
    // The lost messages may include the one that the isolation did not admit yet.
    this.#session.isolation.withdraw(this.#wake)
    if (this.live && this.buffered + this.announcements.held > 0) this.#owner.mayStart()
  }

  /** @throws SluiceError MALFORMED_FRAME */
  readAt(): never {
    throw malformedDelivery('READ_AT names a subscription.')
  }

  isLeased(tag: number): boolean {
    return this.live && (this.#lost === undefined || !this.#lost.has(tag))
  }

  lossOf(tag: number): LeaseLossReason {
    return this.#lost?.get(tag) ?? 'other'
  }

  forget(tag: number): void {
    if (this.#lost?.delete(tag) === true && this.#lost.size === 0) this.#lost = undefined
  }

  isOn(connection: Connection): boolean {
    return this.#connection === connection
  }

  acknowledgement(tag: number): AtomicAck {
    return { channel: this.#channel, subscriptionId: this.#id, firstTag: tag, count: 1 }
  }

  pledge(tag: number): void {
    this.#pledged ??= new Set()
    this.#pledged.add(tag)
    this.unsettled--
    this.#session.isolation.leave(1)
  }

  settlePledge(tag: number): void {
    this.#unpledge(tag)
    this.forget(tag)
    this.#notifyEmptied()
  }

  reopenPledge(tag: number, alone: boolean): void {
    this.#unpledge(tag)
    if (this.isLeased(tag)) {
      this.unsettled++
      this.#session.isolation.enter(1, alone)
    } else this.#notifyEmptied()
  }

  #unpledge(tag: number): void {
    if (this.#pledged?.delete(tag) === true && this.#pledged.size === 0) this.#pledged = undefined
  }

  /** Whether every delivered message is settled, no atomic step may reopen a message, and no claim is unanswered. */
  get isEmpty(): boolean {
    return this.unsettled === 0 && this.#pledged === undefined && this.#claims === undefined
  }

  #notifyEmptied(): void {
    if (this.#emptied.any && this.isEmpty) this.#emptied.notify()
  }

  extend(tag: number, durationMs: number): Promise<void> {
    const extended = new Promise<void>((resolve, reject) => {
      this.#request(
        OP.EXTEND,
        encodeExtend({ subscriptionId: this.#id, firstTag: tag, count: 1, durationMs }),
        {
          expects: OP.SETTLE_OK,
          deadlineMs: this.#deadline(),
          answered: (bytes, start, end) => {
            if (decodeRanges('SETTLE_OK', bytes, start, end).ranges.length === 0) resolve()
            else reject(leaseLost())
          },
          failed: (error) => reject(error.code === 'SUBSCRIPTION_NOT_FOUND' ? leaseLost(error) : error),
        },
      )
    })
    // As with the promise of a settle, it is safe not to await this promise.
    extended.catch(() => {})
    return extended
  }

  /** Grants credit. The subscription must be open. */
  credit(credit: Credit): void {
    this.#credit.extend(credit)
    const { messages, bytes, limit, drain = false } = credit
    this.#send(OP.CREDIT, encodeCredit({ subscriptionId: this.#id, messages, bytes, limit, drain }))
  }

  /** Withdraws all credit. Resolves when nothing more can be delivered. */
  stop(): Promise<void> {
    if (!this.live || !this.open) return Promise.resolve()
    this.credit({ messages: 0, bytes: 0, drain: true })
    return this.#drained.wait()
  }

  readonly #wake = (): void => {
    if (this.live) this.#owner.mayStart()
  }

  /** Takes the next message without announcing it. No message may be announced at that time. */
  hold(): DeliveredMessage {
    const message = this.#buffer.takeUnannounced()
    if (this.#taken !== undefined) this.#track(message)
    this.announcements.hold(message)
    return message
  }

  /** Releases held messages. */
  releaseHeld(messages: readonly DeliveredMessage[]): void {
    if (!this.live) return
    for (const { tag } of messages) this.#settles.release(tag, 1)
    this.announcements.forgetHeld(messages)
    this.unsettled -= messages.length
  }

  /** Takes the next announced message. */
  take(): DeliveredMessage {
    const message = this.#buffer.take()
    if (this.#taken !== undefined) this.#track(message)
    return message
  }

  /** Releases all messages that were not taken. */
  releaseBuffered(): void {
    this.#session.isolation.withdraw(this.#wake)
    if (!this.live) return
    this.announcements.nameStarted()
    for (const { firstTag, count } of this.#buffer.ranges()) this.#settles.release(firstTag, count)
    this.#aside.releaseAll()
    this.unsettled -= this.#buffer.count
    this.#buffer.clear()
  }

  settle(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail?: SettleDetail,
  ): SettleRequest {
    const request = this.#settles.add(tag, outcome, delayMs, reason, detail)
    this.unsettled--
    this.#session.isolation.leave(1)
    this.#notifyEmptied()
    return request
  }

  /** Resolves when every delivered message is settled. */
  emptied(): Promise<void> {
    if (this.isEmpty || !this.live) return Promise.resolve()
    return this.#emptied.wait()
  }

  /** Resolves when every settle so far has its answer. */
  settled(): Promise<void> {
    return this.#settles.settled()
  }

  /** Makes `owner` the owner. The new owner handles no messages, so the subscription keeps the list of taken messages. */
  handOver(owner: SubscriptionOwner): void {
    this.#taken ??= [...this.#handled]
    this.#owner = owner
  }

  /**
   * Ends the subscription. Unsettled messages return to the queue. Resolves when the broker has ended the subscription;
   * at once if SUBSCRIBE is not answered yet.
   */
  unsubscribe(): Promise<void> {
    if (!this.live) return Promise.resolve()
    // Settles are sent before UNSUBSCRIBE, so that the broker still accepts them.
    if (this.open) this.#session.turn.settleNow(this.#settles)
    else this.#claims?.refuse(undefined)
    this.#die(leaseLost())
    // Before SUBSCRIBE_OK the subscription has no id. In that case UNSUBSCRIBE is sent when the answer arrives.
    return this.open ? this.#leave() : Promise.resolve()
  }

  #leave(): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        this.#connection.closeChannel(this.#channel)
        resolve()
      }
      this.#request(OP.UNSUBSCRIBE, encodeSubscriptionId(this.#id), {
        expects: OP.RESULT,
        deadlineMs: this.#deadline(),
        answered: done,
        failed: done,
      })
    })
  }

  watch(watcher: Watcher): void {
    this.#watchers.add(watcher)
  }

  unwatch(watcher: Watcher): void {
    this.#watchers.delete(watcher)
  }

  /** Aborts the signals of running handlers. */
  abortHandlers(reason: SluiceError): void {
    this.#watchers.abortAll(reason)
    this.#claims?.abortHandlers(reason)
  }

  ended(error: SluiceError): void {
    if (!this.live) return
    this.#connection.closeChannel(this.#channel)
    const reason = lossBy(error)
    const handled = this.#handled
    this.#die(leaseLost(error))
    for (const { offset } of handled) this.#session.leaseLost({ queue: this.queue, offset, reason })
    this.#owner.ended(error, this.#claims)
  }

  lost(error: SluiceError): void {
    if (!this.live) return
    const claims = this.#toClaim()
    this.#die(leaseLost(error))
    this.#owner.lost(claims)
  }

  /** Checks the invariants, which hold between two turns and at the end of a turn. @throws Error naming what differs */
  invariants(): void {
    const { unsettled, beingHandled } = this
    const { held } = this.announcements
    const buffer = this.#buffer
    buffer.invariants()
    this.#settles.invariants()
    this.announcements.invariants()
    if (this.#lost?.size === 0 || this.#pledged?.size === 0) this.#differs('an empty set of tags is kept')
    if (!this.live) {
      const kept = buffer.count + this.#aside.count + held
      if (kept > 0) this.#differs(`it has ended but still has ${kept} messages`)
      return
    }
    if (beingHandled < 0)
      this.#differs(
        `${unsettled} are unsettled, ${-beingHandled} fewer than the messages that were not taken`,
      )
    // The list of this subscription may contain a lost message whose tag was used again.
    const leased = this.#taken === undefined ? this.#handled.length : 0
    if (leased > beingHandled)
      this.#differs(`${leased} messages are leased, but only ${beingHandled} count as handled`)
    if (this.#drained.any && !this.open) this.#differs('it drains before it is open')
    if (this.#emptied.any && this.isEmpty) this.#differs('it is empty, but a waiter was not notified')
  }

  #differs(what: string): never {
    throw new Error(`subscription of ${this.queue}: ${what}`)
  }

  #die(reason: SluiceError): void {
    this.live = false
    this.#session.isolation.withdraw(this.#wake)
    const { beingHandled } = this
    this.announcements.end()
    this.#aside.clear()
    this.#buffer.clear()
    if (beingHandled > 0) this.#session.isolation.leave(beingHandled)
    this.#settles.end(reason)
    this.#drained.notify()
    this.#emptied.notify()
    // This does not abort the handlers of unanswered claims. Their watchers are in `#claims`, because the next
    // subscription may claim their messages again.
    this.#watchers.abortAll(reason)
  }
}

/**
 * The list of taken messages is cleaned when its length exceeds twice the number of unsettled messages in it by more
 * than this number.
 */
const TRACKED_SLACK = 64
