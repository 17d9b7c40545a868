/**
 * One life of a subscription, on one connection: what was delivered and not yet taken, what of it was announced as
 * started, and the settles of what was taken. Its connection's end is its end; whoever owns it opens another.
 *
 * Invariant: of the `buffered` messages, in the order in which they came, the first `announced` were named in STARTED
 * or STARTING.
 */
import {
  checkRecords,
  decodeDeliverHead,
  decodeDrained,
  decodeLeasesLost,
  decodeRanges,
  decodeSubscribed,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  encodeControl,
  encodeCredit,
  encodeExtend,
  encodeRanges,
  encodeSubscriptionId,
  LOSS,
  MOVED_BYTES_MAX,
  OP,
  OUTCOME,
  readRecordOptions,
  recordFlags,
  recordSize,
  scatteredOffset,
  RECORD_FLAG,
  SCATTERED_BYTES,
  SluiceError,
  Timer,
  type AtomicAck,
  type ErrorCode,
  type Outcome,
  type TagRange,
} from '@sluice/protocol'
import { SHARED_BYTES } from './body.js'
import { Claims } from './claims.js'
import type { ChannelSink, Connection, Reply } from './connection.js'
import type { Deadlines } from './deadlines.js'
import type { Floor } from './floor.js'
import type { Held, Orphans } from './orphans.js'
import { DeliveredMessage, type Lessor, type Run, type Watcher } from './message.js'
import { recordsCopy } from './records.js'
import { leaseLost, SettleGroup } from './settlement.js'
import type { Settling, Turn } from './turn.js'
import { Waiters } from './waiters.js'

/** What consumers need of their client. */
export interface Session {
  readonly turn: Turn
  readonly deadlines: Deadlines
  readonly timeoutMs: number
  readonly floor: Floor
  readonly orphans: Orphans
  /** The open connection, if there is one. */
  readonly connection: Connection | undefined
  /** Emits `error`. */
  report(error: SluiceError): void
  /** Emits `handlerError`. */
  handlerFailed(failure: HandlerFailure): void
  /** Emits `leaseLost`. */
  leaseLost(loss: LeaseLoss): void
  /** Emits `waiting`. */
  waiting(event: ConsumerWaiting): void
}

/** A worker or an iterator has no subscription, because its queue does not exist or the broker refuses it for now; it asks again. */
export interface ConsumerWaiting {
  readonly queue: string
  /** QUEUE_NOT_FOUND, QUEUE_DELETED, or an error that is `retryable`. */
  readonly error: SluiceError
}

/** A handler threw something other than `Retry` and `DeadLetter`; the message is tried again. */
export interface HandlerFailure {
  readonly queue: string
  /** Of a batch, its first message's. */
  readonly offset: number
  readonly attempt: number
  /** How many messages the handler had. */
  readonly messages: number
  readonly error: unknown
}

/** A message that a handler had no longer belongs to this client: what the handler did with it does not count. */
export interface LeaseLoss {
  readonly queue: string
  readonly offset: number
  readonly reason: LeaseLossReason
}

/** `other`: for a reason that a later broker knows. */
export type LeaseLossReason =
  | 'processingTimeout'
  | 'purged'
  | 'disconnected'
  | 'queueDeleted'
  | 'consumerClosed'
  | 'other'

const REASONS: Readonly<Record<number, LeaseLossReason>> = {
  [LOSS.processingTimeout]: 'processingTimeout',
  [LOSS.purged]: 'purged',
}

/** Of the ends of a subscription. */
const END_REASONS: Partial<Readonly<Record<ErrorCode, LeaseLossReason>>> = {
  QUEUE_DELETED: 'queueDeleted',
  CONSUMER_CLOSED: 'consumerClosed',
}

/** What the end of a subscription means for what is handled. */
export function lossBy({ code }: SluiceError): LeaseLossReason {
  return END_REASONS[code] ?? 'other'
}

/** What the client needs of whatever subscribes: it is attached to each new connection. */
export interface Consumer {
  attach(connection: Connection): void
  /** The client is closed for good. */
  fail(error: SluiceError): void
}

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

export interface Credit {
  readonly messages: number
  readonly bytes: number
  readonly limit?: number
  readonly drain?: boolean
}

/** What a subscription begins with. */
export interface Terms extends Credit {
  /** Instead of the queue's own. */
  readonly processingTimeoutMs?: number | undefined
  /** What the owner still handles of an earlier connection. */
  readonly claims?: Claims | undefined
}

export class Subscription implements ChannelSink, Settling, Lessor {
  readonly queue: string
  live = true
  /** SUBSCRIBE_OK came. */
  open = false
  /** Delivered and not taken. */
  buffered = 0
  announced = 0
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
  /** Delivered, while a handler that lost the same message still runs. */
  readonly #aside = new Set<Aside>()
  #creditMessages: number
  #creditBytes: number
  #limit: number
  /** Of these, and of those that are held. */
  #bufferedBytes = 0
  /** The buffer: `#runs[#runsAt…]`, the first of them from message `#index`, whose part of it begins at byte `#at`. */
  #runs: Run[] = []
  #runsAt = 0
  #index = 0
  #at = 0
  /** Begun, and not yet named as started. */
  #begun: { firstTag: number; count: number }[] = []
  #group: SettleGroup | undefined
  /** The settles of `#group` go out with the turn; else they may be gathered for a while. */
  #isUrgent = false
  /** Settles in `#group`, and bytes delivered since the one before went out. */
  #gathered = 0
  #bytesSince = 0
  readonly #unanswered = new Set<SettleGroup>()
  readonly #settled = new Waiters()
  readonly #emptied = new Waiters()
  readonly #drained = new Waiters()
  readonly #watched = new Set<Watcher>()
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
    this.#creditMessages = terms.messages
    this.#creditBytes = terms.bytes
    this.#limit = terms.limit ?? Infinity
    this.#channel = connection.openChannel(this)
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
          throw malformed('It grants what was not claimed.')
        this.#claims = undefined
        this.#id = subscriptionId
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

  #deadline(): number {
    const deadlineMs = performance.now() + this.#session.timeoutMs
    this.#session.deadlines.arm(deadlineMs)
    return deadlineMs
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
    const { count, firstOffset, publishedAtMs } = head
    const from = start + DELIVER_HEADER_BYTES
    const gap = head.flags & DELIVER_FLAG.scattered ? SCATTERED_BYTES : 0
    const found = checkRecords(bytes, from, end, count, MOVED_BYTES_MAX, gap)
    if (typeof found !== 'number') throw malformed(found.message)
    if (count === 0 || !Number.isSafeInteger(firstOffset + count) || !Number.isSafeInteger(publishedAtMs))
      throw malformed(`It has ${count} messages from offset ${firstOffset}, published at ${publishedAtMs}.`)
    // What a consumer holds is bounded by what it asked for, also when the broker miscounts.
    if (this.unsettled + count > this.#creditMessages)
      throw malformed(
        `It brings ${this.unsettled + count} unsettled messages; the credit is ${this.#creditMessages}.`,
      )
    const recordsBytes = end - from - count * gap
    if (
      this.#bufferedBytes + recordsBytes > this.#creditBytes + MOVED_BYTES_MAX ||
      this.deliveries + count > this.#limit
    )
      throw malformed('It brings more bytes or messages than were asked for.')
    const run = { ...head, lessor: this, gap, records: bytes.subarray(from, end) }
    if (this.#session.orphans.has(this.queue)) this.#keepOthers(run)
    else this.#keep(run)
    if (this.#lost !== undefined) this.#reuse(head)
    this.buffered += count
    this.#bufferedBytes += recordsBytes
    this.#bytesSince += recordsBytes
    this.unsettled += count
    this.deliveries += count
    this.#owner.delivered()
  }

  // As `#keep`, but what a handler of this process still has, or one of its key, is set aside.
  #keepOthers(run: Run): void {
    const { gap, records } = run
    let from = 0
    let fromAt = 0
    let at = 0
    for (let index = 0; index < run.count; index++) {
      const next = at + gap + recordSize(records, at + gap)
      const offset = gap === 0 ? run.firstOffset + index : scatteredOffset(records, at)
      const held = this.#heldBy(offset, records, at + gap)
      if (held !== undefined) {
        if (index > from) this.#keep(partOf(run, from, index, records.subarray(fromAt, at)))
        this.#setAside(partOf(run, index, index + 1, recordsCopy(records, at, next, gap)), held)
        from = index + 1
        fromAt = next
      }
      at = next
    }
    if (run.count > from) this.#keep(partOf(run, from, run.count, records.subarray(fromAt)))
  }

  /** What of the message at `at` a handler of an earlier lease holds. */
  #heldBy(offset: number, records: Uint8Array, at: number): Held | undefined {
    const { orphans } = this.#session
    if (orphans.holds(this.queue, offset)) return offset
    if ((recordFlags(records, at) & RECORD_FLAG.key) === 0) return undefined
    const { key } = readRecordOptions(records, at)
    return key !== undefined && orphans.holds(this.queue, key) ? key : undefined
  }

  // It waits for the end of the handler, but not for long: then others may have it.
  #setAside(run: Run, held: Held): void {
    const { orphans } = this.#session
    const aside: Aside = {
      run,
      timer: new Timer(() => this.#releaseAside(aside), orphans.patienceMs(this.queue, held)),
      held,
      wake: () => this.#resume(aside),
    }
    this.#aside.add(aside)
    // It counts as delivered, but not as buffered.
    this.buffered--
    this.#bufferedBytes -= run.records.length - run.gap
    orphans.wait(this.queue, held, aside.wake)
  }

  #resume(aside: Aside): void {
    if (!this.live || !this.#aside.has(aside)) return
    const { run } = aside
    const offset = run.gap === 0 ? run.firstOffset : scatteredOffset(run.records, 0)
    const held = this.#heldBy(offset, run.records, run.gap)
    if (held !== undefined) {
      aside.held = held
      this.#session.orphans.wait(this.queue, held, aside.wake)
      return
    }
    aside.timer.cancel()
    this.#aside.delete(aside)
    this.#runs.push(run)
    this.buffered++
    this.#bufferedBytes += run.records.length - run.gap
    this.#owner.delivered()
  }

  #releaseAside(aside: Aside): void {
    this.#forgetAside(aside)
    if (!this.live) return
    this.#gather().add(aside.run.firstTag, 1, OUTCOME.release, undefined, undefined)
    this.#hurry()
    this.unsettled--
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.tell()
  }

  #dropAside(): void {
    for (const aside of this.#aside) this.#forgetAside(aside)
  }

  #forgetAside(aside: Aside): void {
    this.#aside.delete(aside)
    aside.timer.cancel()
    this.#session.orphans.released(this.queue, aside.held, aside.wake)
  }

  /** A claimed message is leased to it, under `tag`, and still being handled. */
  adopt(tag: number, attempt: number): void {
    this.unsettled++
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
    for (const watcher of this.#watched) {
      if (!watcher.isAmong(tags)) continue
      this.#watched.delete(watcher)
      claims.watch(watcher)
    }
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

  // The bytes of a frame are overwritten by the next read. They are copied once, in parts so small that the body of a
  // message can be a view of its part: that is 50 ns for each instead of the 200 of a further copy.
  #keep(run: Run): void {
    const { count, gap, records } = run
    let from = 0
    let fromAt = 0
    let at = 0
    for (let index = 0; index < count; index++) {
      const next = at + gap + recordSize(records, at + gap)
      if (next - fromAt > PART_BYTES && index > from) {
        pushPart(this.#runs, run, from, index, recordsCopy(records, fromAt, at, gap))
        from = index
        fromAt = at
      }
      at = next
    }
    pushPart(this.#runs, run, from, count, recordsCopy(records, fromAt, at, gap))
  }

  /** @throws SluiceError MALFORMED_FRAME */
  drained(bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId } = decodeDrained(bytes, start, end)
    if (!this.open || !this.live || subscriptionId !== this.#id) return
    this.#owner.drained()
    this.#drained.tell()
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
    this.#group?.exclude(lost)
    for (const group of this.#unanswered) group.exclude(lost)
    for (const tag of this.#claimed ?? []) if (lost.delete(tag)) (this.#lost ??= new Set()).add(tag)
    for (const tag of this.#dropFromBuffer(lost)) offsets.delete(tag)
    for (const aside of this.#aside) {
      const { firstTag } = aside.run
      if (!lost.delete(firstTag)) continue
      offsets.delete(firstTag)
      this.#forgetAside(aside)
      this.unsettled--
    }
    const held = this.#owner.leasesLost?.(lost) ?? []
    this.#letGo(held)
    this.unsettled -= held.length
    for (const { tag } of held) {
      lost.delete(tag)
      offsets.delete(tag)
    }
    const taken = this.unsettled - this.buffered - this.held - this.#aside.size
    if (lost.size > taken)
      throw malformed(`LEASES_LOST names ${lost.size} messages that are being handled; there are ${taken}.`)
    this.unsettled -= lost.size
    if (lost.size > 0) {
      this.#lost ??= new Set()
      for (const tag of lost) this.#lost.add(tag)
      this.#session.floor.leave(lost.size)
      const reason = leaseLost()
      for (const watcher of [...this.#watched]) {
        if (!watcher.isAmong(lost)) continue
        this.#watched.delete(watcher)
        watcher.abort(reason)
      }
    }
    // A handler had each that is left, also where its settle is under way: that comes too late.
    for (const offset of offsets.values())
      this.#session.leaseLost({ queue: this.queue, offset, reason: REASONS[why] ?? 'other' })
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.tell()
    // The one that could not begin may have been among them.
    this.#session.floor.withdraw(this.#wake)
    if (this.live && this.buffered + this.held > 0) this.#owner.delivered()
  }

  /** Takes the messages with these tags out of the buffer, and their tags out of `tags`; returns those. */
  #dropFromBuffer(tags: Set<number>): readonly number[] {
    const dropped: number[] = []
    if (this.buffered === 0 || tags.size === 0) return dropped
    const runs: Run[] = []
    let announced = 0
    let seen = 0
    let index = this.#index
    let at = this.#at
    for (let r = this.#runsAt; r < this.#runs.length; r++, index = 0, at = 0) {
      const run = this.#runs[r]!
      let keptIndex = index
      let keptAt = at
      for (; index < run.count; index++, seen++) {
        const size = recordSize(run.records, at + run.gap)
        const next = at + run.gap + size
        const tag = (run.firstTag + index) >>> 0
        if (tags.delete(tag)) {
          pushPart(runs, run, keptIndex, index, run.records.subarray(keptAt, at))
          keptIndex = index + 1
          keptAt = next
          dropped.push(tag)
          if (seen < this.announced) announced++
          this.#bufferedBytes -= size
        }
        at = next
      }
      pushPart(runs, run, keptIndex, index, run.records.subarray(keptAt, at))
    }
    this.#runs = runs
    this.#runsAt = 0
    this.#index = 0
    this.#at = 0
    this.buffered -= dropped.length
    this.unsettled -= dropped.length
    this.announced -= announced
    if (announced > 0) this.#session.floor.leave(announced)
    return dropped
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
    this.#session.floor.leave(1)
  }

  settleClaim(tag: number): void {
    this.#unclaim(tag)
    this.forget(tag)
    if (this.#isEmpty() && this.#emptied.any) this.#emptied.tell()
  }

  reopenClaim(tag: number, alone: boolean): void {
    this.#unclaim(tag)
    if (this.holds(tag)) {
      this.unsettled++
      this.#session.floor.enter(1, alone)
    } else if (this.#isEmpty() && this.#emptied.any) this.#emptied.tell()
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
  credit({ messages, bytes, limit, drain = false }: Credit): void {
    // Deliveries under the old credit may still be under way, so the bound only grows.
    this.#creditMessages = Math.max(this.#creditMessages, messages)
    this.#creditBytes = Math.max(this.#creditBytes, bytes)
    this.#limit = Math.max(this.#limit, limit ?? Infinity)
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
    const { floor } = this.#session
    const ranges: { firstTag: number; count: number }[] = []
    let skip = this.announced
    let left = Math.min(count, this.buffered - this.announced)
    let index = this.#index
    for (let r = this.#runsAt; left > 0 && r < this.#runs.length; r++, index = 0) {
      const run = this.#runs[r]!
      let from = index
      if (skip > 0) {
        const skipped = Math.min(skip, run.count - from)
        skip -= skipped
        from += skipped
      }
      if (from === run.count) continue
      const alone = (run.flags & DELIVER_FLAG.alone) !== 0
      if (alone && this.announced > 0 && regardless) break
      if (!regardless && !floor.admits(alone, this.#wake)) {
        this.blocked = true
        break
      }
      const named = alone ? 1 : Math.min(left, run.count - from)
      addRange(ranges, (run.firstTag + from) >>> 0, named)
      floor.enter(named, alone)
      this.announced += named
      left -= named
      if (alone || ranges.length === STARTED_RANGES_MAX) break
    }
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
    if (!this.live || (announced === 0 && this.unsettled === this.buffered + this.held + this.#aside.size))
      return false
    // What is done is not named, so the broker has to hear of that first.
    this.flushSettles()
    const run = this.#runs[this.#runsAt]
    const taken = announced === 0 || run === undefined ? starting : upTo(starting, run.firstTag + this.#index)
    this.#send(OP.STARTED, encodeRanges(this.#id, taken))
    this.announced = 0
    if (announced > 0) this.#session.floor.leave(announced)
    return announced > 0
  }

  readonly #wake = (): void => {
    if (this.live) this.#owner.delivered()
  }

  /** The next message, without naming it as started: only where none is announced. */
  hold(): DeliveredMessage {
    this.announced++
    const message = this.take()
    this.held++
    this.#bufferedBytes += message.recordBytes
    return message
  }

  #letGo(held: readonly DeliveredMessage[]): void {
    this.held -= held.length
    for (const { recordBytes } of held) this.#bufferedBytes -= recordBytes
  }

  /** Whether a held message may begin now; if not, the owner is told `delivered` when that may have changed. */
  mayBegin({ alone }: DeliveredMessage): boolean {
    this.blocked = !this.#session.floor.admits(alone, this.#wake)
    return !this.blocked
  }

  /** Held messages begin, of which `mayBegin` holds; `nameBegun` tells the broker. */
  begin(messages: readonly DeliveredMessage[]): void {
    this.#letGo(messages)
    for (const { tag, alone } of messages) {
      this.#session.floor.enter(1, alone)
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
    for (const { tag } of messages) this.#gather().add(tag, 1, OUTCOME.release, undefined, undefined)
    this.#letGo(messages)
    this.unsettled -= messages.length
    if (messages.length > 0) this.#hurry()
  }

  /** The next announced message. */
  take(): DeliveredMessage {
    const run = this.#runs[this.#runsAt]!
    const at = this.#at + run.gap
    const message = new DeliveredMessage(run, this.#index, at)
    const size = recordSize(run.records, at)
    this.buffered--
    this.announced--
    this.#bufferedBytes -= size
    if (this.#taken !== undefined) this.#track(message)
    if (++this.#index < run.count) {
      this.#at = at + size
      return message
    }
    this.#index = 0
    this.#at = 0
    if (++this.#runsAt === this.#runs.length) {
      this.#runs = []
      this.#runsAt = 0
    } else if (this.#runsAt === 1024) {
      this.#runs = this.#runs.slice(1024)
      this.#runsAt = 0
    }
    return message
  }

  /** Gives back what was not taken: it was not tried. */
  releaseBuffered(): void {
    this.#session.floor.withdraw(this.#wake)
    if (!this.live) return
    this.nameStarted()
    let index = this.#index
    for (let r = this.#runsAt; r < this.#runs.length; r++, index = 0) {
      const { firstTag, count } = this.#runs[r]!
      this.#gather().add((firstTag + index) >>> 0, count - index, OUTCOME.release, undefined, undefined)
      this.#hurry()
    }
    for (const aside of this.#aside) this.#releaseAside(aside)
    this.unsettled -= this.buffered
    const { announced } = this
    this.#dropBuffer()
    if (announced > 0) this.#session.floor.leave(announced)
  }

  #dropBuffer(): void {
    this.#runs = []
    this.#runsAt = 0
    this.#index = 0
    this.#at = 0
    this.buffered = 0
    this.announced = 0
    this.#bufferedBytes = 0
  }

  settle(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    invalid?: boolean,
  ): SettleGroup {
    const group = this.#group ?? this.#gather()
    group.add(tag, 1, outcome, delayMs, reason, invalid)
    this.#gathered++
    if (!this.#isUrgent && !this.#mayWait(outcome)) this.#hurry()
    this.unsettled--
    this.#session.floor.leave(1)
    if (this.#emptied.any && this.#isEmpty()) this.#emptied.tell()
    return group
  }

  /** Resolves when nothing that was delivered is unsettled. */
  emptied(): Promise<void> {
    if (this.#isEmpty() || !this.live) return Promise.resolve()
    return this.#emptied.wait()
  }

  #gather(): SettleGroup {
    if (this.#group === undefined) {
      const group = new SettleGroup(() => {
        if (this.#group === group) this.#hurry()
      })
      this.#group = group
      this.#session.turn.gather(this)
    }
    return this.#group
  }

  // Only what cost no time to handle, and never so much that the broker runs out of credit meanwhile.
  #mayWait(outcome: Outcome): boolean {
    return (
      outcome === OUTCOME.ack &&
      this.#session.turn.isStarting &&
      this.#gathered * 4 < this.#creditMessages &&
      this.#bytesSince * 4 < this.#creditBytes
    )
  }

  #hurry(): void {
    if (this.#isUrgent) return
    this.#isUrgent = true
    this.#session.turn.settle(this)
  }

  flushSettles(): void {
    const group = this.#group
    this.#group = undefined
    this.#isUrgent = false
    if (group === undefined) return
    this.#gathered = 0
    this.#bytesSince = 0
    if (!this.live) {
      group.finish(leaseLost())
      return
    }
    const payloads = group.encode(this.#id, this.#connection.ok.frameBytesMax)
    let left = payloads.length
    let failure: SluiceError | undefined
    this.#unanswered.add(group)
    const done = (error: SluiceError | undefined): void => {
      failure ??= error
      if (--left > 0) return
      group.finish(failure)
      this.#unanswered.delete(group)
      this.#tellSettled()
    }
    const deadlineMs = this.#deadline()
    for (const payload of payloads) {
      this.#connection.request(OP.SETTLE, this.#channel, payload, {
        expects: OP.SETTLE_OK,
        deadlineMs,
        answered: (bytes, start, end) => {
          group.stale(decodeRanges('SETTLE_OK', bytes, start, end).ranges)
          done(undefined)
        },
        failed: (error) => done(error.code === 'SUBSCRIPTION_NOT_FOUND' ? leaseLost(error) : error),
      })
    }
  }

  /** Resolves when every settle so far has been answered. */
  settled(): Promise<void> {
    if (this.#unanswered.size === 0 && this.#group === undefined) return Promise.resolve()
    if (this.#group !== undefined) this.#hurry()
    return this.#settled.wait()
  }

  #tellSettled(): void {
    if (this.#unanswered.size === 0 && this.#group === undefined) this.#settled.tell()
  }

  /** Leaves it to itself: it ends when everything that was delivered is settled, and tells nobody. */
  async retire(): Promise<void> {
    this.#owner = NOBODY
    await this.emptied()
    await this.settled()
    await this.unsubscribe()
  }

  /** Ends the subscription; what is unsettled goes back to the queue. Resolves when the broker has done so. */
  unsubscribe(): Promise<void> {
    if (!this.live) return Promise.resolve()
    // What was settled was settled before.
    if (this.open) this.flushSettles()
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
    this.#watched.add(watcher)
  }

  unwatch(watcher: Watcher): void {
    this.#watched.delete(watcher)
  }

  /** Aborts the signals of running handlers. */
  abortHandlers(reason: SluiceError): void {
    const watched = [...this.#watched]
    this.#watched.clear()
    for (const watcher of watched) watcher.abort(reason)
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

  #die(reason: SluiceError): void {
    this.live = false
    this.#session.floor.withdraw(this.#wake)
    const started = this.unsettled - this.buffered - this.held - this.#aside.size + this.announced
    this.held = 0
    this.#dropAside()
    this.#dropBuffer()
    if (started > 0) this.#session.floor.leave(started)
    const group = this.#group
    this.#group = undefined
    group?.finish(reason)
    this.#tellSettled()
    this.#drained.tell()
    this.#emptied.tell()
    this.abortHandlers(reason)
  }
}

const NOBODY: SubscriptionOwner = {
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

/** With what `recordsCopy` may put before it, a part fills what bodies may share. */
const PART_BYTES = SHARED_BYTES - 8

function pushPart(runs: Run[], run: Run, from: number, to: number, records: Uint8Array): void {
  if (from < to) runs.push(partOf(run, from, to, records))
}

/** Messages `[from, to)` of a run, whose records these are, as a run of their own. */
function partOf(run: Run, from: number, to: number, records: Uint8Array): Run {
  return {
    ...run,
    firstTag: (run.firstTag + from) >>> 0,
    firstOffset: run.firstOffset + from,
    count: to - from,
    records,
  }
}

/** A message that waits for the end of a handler of an earlier lease. */
interface Aside {
  readonly run: Run
  /** Releases it, so that other consumers may have it. */
  readonly timer: Timer
  held: Held
  readonly wake: () => void
}

/** Messages that are kept in the list of what is handled, beyond twice of what is. */
const TRACKED_SLACK = 64

const NO_RANGES: readonly TagRange[] = []
const STARTED_RANGES_MAX = 4_096

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

function addRange(ranges: { firstTag: number; count: number }[], firstTag: number, count: number): void {
  const last = ranges[ranges.length - 1]
  if (last !== undefined && (last.firstTag + last.count) >>> 0 === firstTag) last.count += count
  else ranges.push({ firstTag, count })
}

function malformed(what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `What the broker delivers is not acceptable. ${what}`)
}
