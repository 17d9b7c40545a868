/**
 * One life of a subscription, on one connection: its credit, what of its messages is announced as started, the leases of
 * what was taken, and their settles. Its connection's end is its end; whoever owns it opens another.
 *
 * Invariant: what is delivered and unsettled is in the buffer, set aside, held, or handled.
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
  encodeRanges,
  encodeSubscriptionId,
  OP,
  recordSize,
  scatteredOffset,
  type SluiceError,
  type AtomicAck,
  type Outcome,
  type TagRange,
} from '@sluice/protocol'
import { Aside } from './aside.js'
import { addRange, RunBuffer, STARTED_RANGES_MAX } from './buffer.js'
import { Claims } from './claims.js'
import type { ChannelSink, Connection, Reply } from './connection.js'
import { CreditBounds, type Credit } from './credit.js'
import type { LeaseKeeper } from './lease.js'
import { leaseLost, lossBy, lossReason } from './losses.js'
import type { DeliveredMessage } from './message.js'
import { recordsCopy } from './records.js'
import { decodeRun, malformedDelivery, partOf, recordsBytes, type Run } from './run.js'
import type { Session } from './session.js'
import type { SettleGroup } from './settlement.js'
import { Settles } from './settles.js'
import { Waiters } from './waiters.js'
import { Watchers, type Watcher } from './watchers.js'

export interface SubscriptionOwner {
  subscribed(): void
  delivered(): void
  drained(): void
  /** The broker refused the subscription or ended it. */
  ended(error: SluiceError, claims: Claims | undefined): void
  /** The connection is lost; with it what is handled, unless it is claimed again. */
  lost(claims: Claims | undefined): void
  /** What it has taken and may still handle; without it the subscription keeps count itself. */
  handling?(): readonly DeliveredMessage[]
  /** Messages are lost. Returns those of them that it holds and has not begun with, and forgets them. */
  leasesLost?(tags: ReadonlySet<number>): readonly DeliveredMessage[]
}

/** What a subscription begins with. */
export interface Terms extends Credit {
  /** Instead of the queue's own. */
  readonly processingTimeoutMs?: number | undefined
  /** What the owner still handles of an earlier connection. */
  readonly claims?: Claims | undefined
}

export class Subscription implements ChannelSink, LeaseKeeper {
  readonly queue: string
  live = true
  /** SUBSCRIBE_OK came. */
  open = false
  /** Named in the last STARTING, of which STARTED has not said yet what became of it. */
  #starting: readonly TagRange[] = NO_RANGES
  /** What comes next waits until nothing else is being handled; the owner is told `delivered` then. */
  blocked = false
  /** Taken and not yet named as started. */
  held = 0
  /** Delivered and not settled. */
  unsettled = 0
  /** Delivered in all. */
  deliveries = 0
  readonly #session: Session
  readonly #connection: Connection
  #owner: SubscriptionOwner
  readonly #channel: number
  #id = 0
  #queueNumber = 0
  /** Sent with SUBSCRIBE and not answered. */
  #claims: Claims | undefined
  /** What names the tries of messages that were claimed, by tag. */
  #attempts: Map<number, number> | undefined
  /** What was taken and may not be settled yet; kept where the owner does not. */
  #taken: DeliveredMessage[] | undefined
  readonly #buffer: RunBuffer
  readonly #aside: Aside
  readonly #credit: CreditBounds
  readonly #settles: Settles
  /** Of those that are held. */
  #heldBytes = 0
  /** Begun, and not yet named as started. */
  #begun: { firstTag: number; count: number }[] = []
  readonly #emptied = new Waiters()
  readonly #drained = new Waiters()
  readonly #watchers = new Watchers()
  /** Tags of messages that were taken, and lost before they were settled; undefined: none. */
  #lost: Set<number> | undefined
  /** Tags that atomic steps acknowledge, which are under way; undefined: none. They are not unsettled. */
  #claimed: Set<number> | undefined

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
    this.#settles = new Settles(session, connection, this.#channel, this.#credit)
    if (owner.handling === undefined) this.#taken = []
    const { messages, bytes, limit, processingTimeoutMs, claims } = terms
    if (claims !== undefined && claims.size > 0) this.#claims = claims
    const body = {
      ...(this.#claims === undefined ? {} : { claims: this.#claims.encode() }),
      ...{ queue, messages, bytes },
      ...(limit === undefined ? {} : { limit }),
      ...(processingTimeoutMs === undefined ? {} : { processingTimeoutMs }),
    }
    this.#request(OP.SUBSCRIBE, encodeControl(body), {
      expects: OP.SUBSCRIBE_OK,
      // A subscription that was forgotten would keep its leases: only the connection's end ends this wait.
      deadlineMs: Infinity,
      answered: (bytes, start, end) => {
        const { subscriptionId, queueNumber, granted } = decodeSubscribed(bytes, start, end)
        const claims = this.#claims
        if (granted.some(({ index }) => index >= (claims?.size ?? 0)))
          throw malformedDelivery('It grants what was not claimed.')
        this.#claims = undefined
        this.#id = subscriptionId
        this.#settles.open(subscriptionId)
        this.#queueNumber = queueNumber
        this.open = true
        if (this.live) claims?.answered(this, granted)
        else claims?.refuse(undefined)
        if (this.live) this.#owner.subscribed()
        else void this.#leave()
      },
      // A lost connection is told by `lost`.
      failed: (error) => {
        if (error.code !== 'CONNECTION_LOST') this.ended(error)
      },
    })
  }

  /** Delivered and not taken. */
  get buffered(): number {
    return this.#buffer.count
  }

  /** Of these, those that are named as started. */
  get announced(): number {
    return this.#buffer.announced
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
    // What a consumer holds is bounded by what it asked for, also when the broker miscounts.
    const waitingBytes = this.#buffer.bytes + this.#heldBytes + runBytes
    const excess = this.#credit.excess(this.unsettled + count, waitingBytes, this.deliveries + count)
    if (excess !== undefined) throw malformedDelivery(excess)
    if (this.#session.orphans.has(this.queue)) this.#keepOthers(run)
    else this.#buffer.keep(run)
    if (this.#lost !== undefined) this.#reuse(head)
    this.#settles.deliveredBytes += runBytes
    this.unsettled += count
    this.deliveries += count
    this.#owner.delivered()
  }

  // What a handler of this process still has, or one of its key, is set aside; the others go into the buffer.
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
    this.#owner.delivered()
  }

  #released(tag: number): void {
    this.#settles.release(tag, 1)
    this.unsettled--
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.notify()
  }

  /** A claimed message is leased to it, under `tag`, and still being handled: on the next connection it is claimed again. */
  adopt(message: DeliveredMessage, tag: number, attempt: number): void {
    this.unsettled++
    if (this.#taken !== undefined) this.#track(message)
    this.#attempts ??= new Map()
    this.#attempts.set(tag, attempt)
  }

  // Of what it has taken, what is not settled. Settling removes nothing there: that is done once in a while.
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

  // What is handled of a connection that is lost, to be claimed on the next.
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

  // Tags come round again; what was lost under one of these is long out of anybody's hands.
  #reuse({ firstTag, count }: TagRange): void {
    for (let i = 0; i < count; i++) this.forget((firstTag + i) >>> 0)
  }

  /**
   * The broker has taken messages away and has freed their credit. Those in the buffer vanish; those that were taken are
   * told by their signal, and when they are settled. What this side has settled meanwhile is not concerned.
   * @throws SluiceError MALFORMED_FRAME
   */
  leasesLost(bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, reason: why, ranges } = decodeLeasesLost(bytes, start, end)
    if (!this.open || !this.live || subscriptionId !== this.#id) return
    const offsets = new Map<number, number>()
    for (const { firstTag, count, firstOffset } of ranges)
      for (let i = 0; i < count; i++) offsets.set((firstTag + i) >>> 0, firstOffset + i)
    for (const tag of this.#lost ?? []) offsets.delete(tag)
    const lost = new Set(offsets.keys())
    this.#settles.exclude(lost)
    for (const tag of this.#claimed ?? []) if (lost.delete(tag)) (this.#lost ??= new Set()).add(tag)
    const dropped = [...this.#buffer.drop(lost), ...this.#aside.drop(lost)]
    for (const tag of dropped) offsets.delete(tag)
    this.unsettled -= dropped.length
    const held = this.#owner.leasesLost?.(lost) ?? []
    this.#forgetHeld(held)
    this.unsettled -= held.length
    for (const { tag } of held) {
      lost.delete(tag)
      offsets.delete(tag)
    }
    const taken = this.unsettled - this.buffered - this.held - this.#aside.count
    if (lost.size > taken)
      throw malformedDelivery(
        `LEASES_LOST names ${lost.size} messages that are being handled; there are ${taken}.`,
      )
    this.unsettled -= lost.size
    if (lost.size > 0) {
      this.#lost ??= new Set()
      for (const tag of lost) this.#lost.add(tag)
      this.#session.isolation.leave(lost.size)
      this.#watchers.abort(lost, leaseLost())
    }
    // A handler had each that is left, also where its settle is under way: that comes too late.
    for (const offset of offsets.values())
      this.#session.leaseLost({ queue: this.queue, offset, reason: lossReason(why) })
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.notify()
    // The one that could not begin may have been among them.
    this.#session.isolation.withdraw(this.#wake)
    if (this.live && this.buffered + this.held > 0) this.#owner.delivered()
  }

  holds(tag: number): boolean {
    return this.live && (this.#lost === undefined || !this.#lost.has(tag))
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

  claim(tag: number): void {
    this.#claimed ??= new Set()
    this.#claimed.add(tag)
    this.unsettled--
    this.#session.isolation.leave(1)
  }

  settleClaim(tag: number): void {
    this.#unclaim(tag)
    this.forget(tag)
    if (this.#isEmpty() && this.#emptied.any) this.#emptied.notify()
  }

  reopenClaim(tag: number, alone: boolean): void {
    this.#unclaim(tag)
    if (this.holds(tag)) {
      this.unsettled++
      this.#session.isolation.enter(1, alone)
    } else if (this.#isEmpty() && this.#emptied.any) this.#emptied.notify()
  }

  #unclaim(tag: number): void {
    if (this.#claimed?.delete(tag) === true && this.#claimed.size === 0) this.#claimed = undefined
  }

  /** Nothing that was delivered may still have to be settled. */
  #isEmpty(): boolean {
    return this.unsettled === 0 && this.#claimed === undefined
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
    // Not awaiting it is safe, as it is with a settle.
    extended.catch(() => {})
    return extended
  }

  /** Grants credit; only once open. */
  credit(credit: Credit): void {
    this.#credit.extend(credit)
    const { messages, bytes, limit, drain = false } = credit
    this.#send(OP.CREDIT, encodeCredit({ subscriptionId: this.#id, messages, bytes, limit, drain }))
  }

  /** Takes all credit back; resolves when nothing more can come. */
  stop(): Promise<void> {
    if (!this.live || !this.open) return Promise.resolve()
    this.credit({ messages: 0, bytes: 0, drain: true })
    return this.#drained.wait()
  }

  /**
   * Names up to `count` further messages before they are handled: as started, where no more of them are named than are
   * `certain` to be handled in this turn; and else as starting, one after the other, where `nameStarted` has to say in
   * the next turn what became of it. One that must be alone is named by itself, when nothing else is being handled;
   * until that is so the owner is told `delivered` again when it may have become so. `regardless`: what others handle
   * does not matter.
   */
  announce(count: number, certain: number, regardless = false): void {
    this.blocked = false
    if (!this.live) return
    const ranges = this.#buffer.announce(count, regardless)
    this.blocked = this.#buffer.isBlocked
    if (ranges.length === 0) return
    const isCertain = this.announced <= certain
    if (!isCertain) this.#starting = ranges
    this.#send(isCertain ? OP.STARTED : OP.STARTING, encodeRanges(this.#id, ranges))
  }

  /** What was named as starting has to be looked at by `nameStarted` in the next turn. */
  get isStarting(): boolean {
    return this.#starting !== NO_RANGES
  }

  /**
   * Names those that were announced as starting, were taken, and are not done; those that were not taken are announced
   * no more. So the broker counts the time of just those that are being handled. Where all of them are done there is
   * nothing to say. Returns whether some were not taken: the burst was too long.
   */
  nameStarted(): boolean {
    const starting = this.#starting
    if (starting === NO_RANGES) return false
    this.#starting = NO_RANGES
    const { announced } = this
    if (!this.live || (announced === 0 && this.unsettled === this.buffered + this.held + this.#aside.count))
      return false
    // What is done is not named, so the broker has to hear of that first.
    this.#settles.flushSettles()
    const { firstTag } = this.#buffer
    const taken = announced === 0 || firstTag === undefined ? starting : upTo(starting, firstTag)
    this.#send(OP.STARTED, encodeRanges(this.#id, taken))
    this.#buffer.unannounce()
    return announced > 0
  }

  readonly #wake = (): void => {
    if (this.live) this.#owner.delivered()
  }

  /** The next message, without naming it as started: only where none is announced. */
  hold(): DeliveredMessage {
    const message = this.#buffer.takeUnannounced()
    if (this.#taken !== undefined) this.#track(message)
    this.held++
    this.#heldBytes += message.recordBytes
    return message
  }

  #forgetHeld(held: readonly DeliveredMessage[]): void {
    this.held -= held.length
    for (const { recordBytes } of held) this.#heldBytes -= recordBytes
  }

  /** Whether a held message may begin now; if not, the owner is told `delivered` when that may have changed. */
  mayBegin({ alone }: DeliveredMessage): boolean {
    this.blocked = !this.#session.isolation.admits(alone, this.#wake)
    return !this.blocked
  }

  /** Held messages begin, of which `mayBegin` holds; `nameBegun` tells the broker. */
  begin(messages: readonly DeliveredMessage[]): void {
    this.#forgetHeld(messages)
    for (const { tag, alone } of messages) {
      this.#session.isolation.enter(1, alone)
      addRange(this.#begun, tag, 1)
    }
  }

  nameBegun(): void {
    const ranges = this.#begun
    this.#begun = []
    for (let at = 0; at < ranges.length && this.live; at += STARTED_RANGES_MAX)
      this.#send(OP.STARTED, encodeRanges(this.#id, ranges.slice(at, at + STARTED_RANGES_MAX)))
  }

  /** Gives back held messages. */
  releaseHeld(messages: readonly DeliveredMessage[]): void {
    if (!this.live) return
    for (const { tag } of messages) this.#settles.release(tag, 1)
    this.#forgetHeld(messages)
    this.unsettled -= messages.length
  }

  /** The next announced message. */
  take(): DeliveredMessage {
    const message = this.#buffer.take()
    if (this.#taken !== undefined) this.#track(message)
    return message
  }

  /** Gives back what was not taken: it was not tried. */
  releaseBuffered(): void {
    this.#session.isolation.withdraw(this.#wake)
    if (!this.live) return
    this.nameStarted()
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
    invalid?: boolean,
  ): SettleGroup {
    const group = this.#settles.add(tag, outcome, delayMs, reason, invalid)
    this.unsettled--
    this.#session.isolation.leave(1)
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.notify()
    return group
  }

  /** Resolves when nothing that was delivered is unsettled. */
  emptied(): Promise<void> {
    if (this.#isEmpty() || !this.live) return Promise.resolve()
    return this.#emptied.wait()
  }

  /** Resolves when every settle so far has its answer. */
  settled(): Promise<void> {
    return this.#settles.settled()
  }

  /** Leaves it to itself: it ends when everything that was delivered is settled, and tells nobody. */
  async retire(): Promise<void> {
    this.#owner = NO_OWNER
    await this.emptied()
    await this.#settles.settled()
    await this.unsubscribe()
  }

  /** Ends the subscription; what is unsettled goes back to the queue. Resolves when the broker has done so. */
  unsubscribe(): Promise<void> {
    if (!this.live) return Promise.resolve()
    // What was settled was settled before.
    if (this.open) this.#settles.flushSettles()
    this.#die(leaseLost())
    // Before SUBSCRIBE_OK there is no id to name; it is left as soon as there is one.
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

  /** Counts everything anew and compares; between two turns, or at the end of one. @throws Error naming what differs */
  invariants(): void {
    const { unsettled, held } = this
    const buffer = this.#buffer
    buffer.invariants()
    this.#settles.invariants()
    if (this.#lost?.size === 0 || this.#claimed?.size === 0) this.#differs('an empty set is kept')
    if (!this.live) {
      const kept = buffer.count + this.#aside.count + held
      if (kept > 0) this.#differs(`it has ended, and keeps ${kept} messages`)
      return
    }
    if (held < 0 || this.#heldBytes < 0 || (held === 0 && this.#heldBytes > 0))
      this.#differs(`${held} held messages take ${this.#heldBytes} bytes`)
    const handled = unsettled - buffer.count - this.#aside.count - held
    if (handled < 0) this.#differs(`${unsettled} are unsettled, ${-handled} too few for what was not taken`)
    // A list of its own may have one that was lost, and whose tag has come round again.
    const leased = this.#taken === undefined ? this.#handled.length : 0
    if (leased > handled) this.#differs(`${leased} messages are leased, and ${handled} counted as handled`)
    if (this.#drained.any && !this.open) this.#differs('it drains before it is open')
    if (this.#emptied.any && this.#isEmpty()) this.#differs('it is empty, and something waits for that')
  }

  #differs(what: string): never {
    throw new Error(`subscription of ${this.queue}: ${what}`)
  }

  #die(reason: SluiceError): void {
    this.live = false
    this.#session.isolation.withdraw(this.#wake)
    const handled = this.unsettled - this.#buffer.count - this.held - this.#aside.count
    this.held = 0
    this.#aside.clear()
    this.#buffer.clear()
    if (handled > 0) this.#session.isolation.leave(handled)
    this.#settles.end(reason)
    this.#drained.notify()
    this.#emptied.notify()
    this.abortHandlers(reason)
  }
}

const NO_OWNER: SubscriptionOwner = {
  subscribed() {},
  delivered() {},
  drained() {},
  ended(error, claims) {
    claims?.refuse(lossBy(error))
  },
  lost(claims) {
    claims?.refuse('disconnected')
  },
}

/** Messages that are kept in the list of what is handled, beyond twice of what is. */
const TRACKED_SLACK = 64

const NO_RANGES: readonly TagRange[] = []

/** The part of these ranges that comes before `tag`, in their order. */
function upTo(ranges: readonly TagRange[], tag: number): TagRange[] {
  const before: TagRange[] = []
  for (const range of ranges) {
    const count = (tag - range.firstTag) >>> 0
    if (count >= range.count) {
      before.push(range)
      continue
    }
    if (count > 0) before.push({ firstTag: range.firstTag, count })
    break
  }
  return before
}
