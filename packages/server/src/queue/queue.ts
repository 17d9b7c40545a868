/**
 * A queue: its durable contents (`Contents`), the line in which its messages are delivered, and the leases of its
 * subscriptions. Pure: times and random numbers are arguments, and a queue knows where a batch is in the log but not its
 * bytes.
 *
 * A method that changes the queue adds its decision to `facts` and applies it at once. The broker writes the facts into
 * the open entry. As `Follower` of its contents, the queue learns which messages entered or are gone, and updates
 * its volatile state. Other changes of the line are made by the method that decides them.
 */
import { LIMITS, LOSS, type Claim, type QueueInfo, type QueueOptions } from '@sluice/protocol'
import { NO_ARRIVAL } from './arrivals.js'
import { auditCounts } from './audit.js'
import { UNLIMITED, type Budget } from './budget.js'
import { DEATH, type Chunk, type Death } from './chunk.js'
import type { ChunkSummary } from './cold.js'
import { NOT_RETAINED } from './contents.js'
import { GroupContents, type KeyWords } from './group-contents.js'
import { endLeasesBelow, leaveBelow } from './leaving.js'
import { Expired } from './expiries.js'
import { FactBuffer, RETAINED, type GoneFact } from './facts.js'
import type { Follower } from './follower.js'
import { FormerLeases, isClaimable, type Reclaimed } from './former.js'
import { PendingIds } from './ids.js'
import { infoAsOf, infoOf } from './info.js'
import { Line } from './line.js'
import type { Copy } from './log-use.js'
import { Moving } from './moving.js'
import { chunkInLine } from './in-line.js'
import { bucketOf, type Bucket } from './rate.js'
import type { Run } from './run.js'
import { SubscriptionOf, soleOf, type ConsumerOf } from './subscription.js'
import { NO_SUSPECTS, Suspects } from './suspects.js'
import type { Timer } from './timer.js'

export const Subscription = SubscriptionOf<Queue>
export type Subscription = SubscriptionOf<Queue>
export type Consumer = ConsumerOf<Queue>

const NO_SUBSCRIPTIONS: readonly Subscription[] = []
/** Minimum time between two searches for expired messages. */
const SWEEP_MS = 1_000

/** What a sweep has found. All calls share this object. */
const EXPIRED = new Expired()

/** Gets notified of messages whose time has come. */
export interface QueueObserver {
  becameReady(queue: Queue, offset: number): void
  expired(queue: Queue, offset: number): void
}

export class Queue extends GroupContents implements Follower {
  /** The subscriptions, in the order in which they were attached. */
  subscriptions: readonly Subscription[] = NO_SUBSCRIPTIONS
  #appliedLine = new Line(this.appliedChunks, this, this.options)
  leased = 0
  /**
   * Whether some due messages are not ready yet, or some keys do not follow the newest options yet. Until then nothing is
   * delivered; see `Turn.continueDue`.
   */
  hasMoreDue = false
  /** Whether there may be expired messages in the line that a sweep has left for later turns. They are never delivered. */
  hasMoreExpired = false
  #facts: FactBuffer | undefined
  // The next three fields belong to the broker, which reads them for each batch. A map by queue would cost another look-up.
  /** Whether the queue is in the list of queues with facts to write; see `Writer.note`. */
  hasPendingFacts = false
  /** Whether the queue is in the list of queues that may have messages to deliver; see `Turn.activate`. */
  active = false
  /** Created when the queue first has a deadline; see `Turn.armQueue`. */
  timer: Timer | undefined
  /** Lower bound for the deadlines of the messages that are being handled. */
  earliestDeadlineMs = Infinity
  #moving: Moving | undefined
  #former: FormerLeases | undefined
  #pending: PendingIds | undefined
  /** Highest offset that was delivered since the broker started, plus 1. */
  #deliveredBelow = 0
  #sweptMs = 0
  observer: QueueObserver | undefined
  bucket: Bucket | undefined
  /** Offset of the message that `evictOldest` could not drop because its chunk is cold; otherwise -1. */
  coldToDrop = -1

  // The next five parts are created when they are first read, because with many queues most of them are never needed.

  /** Facts that are applied here and not yet written to the open entry. */
  get facts(): FactBuffer {
    return (this.#facts ??= new FactBuffer())
  }

  get hasFacts(): boolean {
    return this.#facts !== undefined && !this.#facts.isEmpty
  }

  get suspects(): Suspects {
    const line = this.#appliedLine
    if (line.suspects === NO_SUSPECTS) line.suspects = new Suspects()
    return line.suspects
  }

  get former(): FormerLeases {
    return (this.#former ??= new FormerLeases())
  }

  /** Subscriptions of this boot that ended and returned messages. */
  get endedSubscriptions(): readonly number[] {
    return this.#former === undefined ? [] : this.#former.ended
  }

  /** The dead messages that wait to be moved. */
  get moving(): Moving {
    return (this.#moving ??= new Moving(this.appliedChunks))
  }

  get movingCount(): number {
    return this.#moving === undefined ? 0 : this.#moving.length
  }

  /** Ids of pending messages. */
  get pending(): PendingIds {
    return (this.#pending ??= new PendingIds(this.appliedChunks))
  }

  get line(): Line {
    if (this.lastArrival !== NO_ARRIVAL) this.applyArrivals()
    return this.#appliedLine
  }

  /** Adds a subscription, which takes part in round robin from now on. */
  attach(subscription: Subscription): void {
    this.subscriptions = [...this.subscriptions, subscription]
    this.listeners++
  }

  /** Removes a subscription, which gets no more messages. */
  detach(subscription: Subscription): void {
    const others = this.subscriptions.filter((other) => other !== subscription)
    this.listeners -= this.subscriptions.length - others.length
    this.subscriptions = others.length === 0 ? NO_SUBSCRIPTIONS : others
  }

  /**
   * In a queue with `single`, the only subscription that gets messages: the one with unsettled messages or, if there is
   * none, the oldest one that is not idle. A subscription that is idle, for example between two pulls, does not block the
   * others.
   */
  get soleSubscription(): Subscription | undefined {
    return soleOf(this.subscriptions)
  }

  get scheduled(): number {
    return this.line.scheduled
  }

  get ready(): number {
    return this.live - this.deadCount - this.leased - this.line.scheduled
  }

  get deliveredBelow(): number {
    return Math.max(this.redeliveredBelow, this.#deliveredBelow)
  }

  // --- Follower: what a change of the contents changes here ---

  entered(chunk: Chunk, from: number, to: number): void {
    this.#appliedLine.add(chunk, from, to)
  }

  passed(end: number): void {
    this.#appliedLine.passed(end)
  }

  idPending(offset: number): void {
    this.pending.add(offset)
  }

  idDone(offset: number): void {
    // After a purge the index is already empty: removing each id separately would be most of the cost of the purge.
    if (this.#pending !== undefined && this.#pending.count > 0) this.#pending.done(offset)
  }

  removedFrom(chunk: Chunk, batch: number, messages: number, bytes: number): void {
    const { batches } = chunk
    this.use.gone(batches.isShared(batch) ? batches.shareOf(batch, messages) : bytes)
    this.appliedChunks.removeUse(chunk, batch, this.use)
  }

  removedCold(number: number, summary: ChunkSummary): void {
    this.appliedChunks.removeUses(number, summary, this.use)
  }

  copied(copy: Copy): void {
    this.use.move(copy)
  }

  dropped(): void {
    this.chunks.removeAllUses(this.use)
    this.line.clear()
    this.#moving?.clear()
    this.leased = 0
  }

  // --- the line ---

  /** Called when recovery is over: builds the line and the rest of the volatile state. */
  open(nowMs: number): void {
    this.follow(this)
    this.bucket = bucketOf(this.options, nowMs)
    if (this.numbers !== undefined) this.numbers.passedMs = nowMs
    this.chunks.addUses(this.use)
    this.#former?.open()
    if (this.deadCount > 0) this.moving.list()
    for (const chunk of this.chunks) {
      if (!chunk.hasIds) continue
      for (const index of chunk.liveIndexes()) {
        if (chunk.hasId(index) && !chunk.isDead(index)) this.pending.add(chunk.base + index)
      }
    }
    this.line.rebuild(this.options, this.next, this.redeliveredBelow, nowMs)
  }

  /**
   * Changes the options, and applies them to the messages that the queue already has. The caller then calls `advance`,
   * which applies them to the keys.
   */
  applyOptions(options: QueueOptions, nowMs: number): void {
    const { dedupWindowMs, rateMessages, ratePerMs } = this.options
    this.options = options
    if (!this.retains && this.retainedBytes > 0) this.#release(0, this.next, nowMs)
    this.line.changeRules(options, nowMs)
    if (rateMessages !== options.rateMessages || ratePerMs !== options.ratePerMs)
      this.bucket = bucketOf(options, nowMs)
    if (dedupWindowMs !== options.dedupWindowMs) {
      // An id that the old or the new window has forgotten stays forgotten, also after recovery from the log.
      this.ids.forgetUntil(nowMs - Math.min(dedupWindowMs, options.dedupWindowMs))
      this.idsFrom = this.ids.oldestOffset === -1 ? this.next : this.ids.oldestOffset
    }
    this.dirty = true
  }

  /** Makes due messages ready. Also removes expired messages, at most once per `SWEEP_MS` unless some are left. */
  advance(nowMs: number, budget: Budget = UNLIMITED): void {
    this.bucket?.wake(nowMs)
    this.#advanceLine(nowMs, budget)
    if (this.hasMoreExpired || nowMs >= this.#nextSweepMs) this.#sweepWithin(nowMs, budget)
    if (this.nextReleaseMs <= nowMs) this.#endRetention(nowMs, budget)
  }

  // Releases retained messages that are beyond the limits of retention.
  #endRetention(nowMs: number, budget: Budget): void {
    const retention = this.appliedChunks.retention!
    retention.releaseUntil(this.retentionLimits, nowMs, budget, ({ from, end }) => {
      if (this.isHeld(Math.min(end, this.next))) return false
      this.#release(from, end, nowMs)
      return true
    })
  }

  #release(from: number, end: number, nowMs: number): void {
    // The chunk can get more messages, which this release must not reach. Their batch can even precede the fact in the log,
    // because facts are written at the end of the turn.
    const last = Math.min(end, this.next)
    for (const group of this.groups) group.losing(last, nowMs)
    this.facts.release(from, last)
    this.releaseFact(from, last)
  }

  /**
   * Called before a decision that depends on the contents. Like `advance`, but always removes expired messages, and forgets
   * old ids. While `hasMoreDue` is set, it makes no message ready, because only deliveries need ready messages.
   */
  catchUp(nowMs: number, budget: Budget = UNLIMITED): void {
    if (!this.hasMoreDue) this.#advanceLine(nowMs, budget)
    if (nowMs >= this.earliestExpiryMs) this.#sweepWithin(nowMs, budget)
    const ids = this.rememberedIds
    if (ids !== undefined && ids.size > 0) ids.forgetUntil(nowMs - this.options.dedupWindowMs)
  }

  #advanceLine(nowMs: number, budget: Budget): void {
    const { observer } = this
    const each = observer && ((offset: number): void => observer.becameReady(this, offset))
    budget.left -= this.line.advance(nowMs, budget.left, each)
    this.hasMoreDue = this.line.isBehind(nowMs)
  }

  /**
   * Time at which the queue has work next: a message is due, expired, past its deadline, or no longer retained, or compaction
   * is due. Infinity if there is no such time. Due or expired messages do not count while some are left, because then each turn
   * calls `advance` anyway.
   */
  get nextDeadline(): number {
    const sweepMs = this.hasMoreExpired ? Infinity : this.#nextSweepMs
    const wakeMs = this.bucket?.wakeMs ?? Infinity
    const otherMs = Math.min(sweepMs, this.earliestDeadlineMs, this.nextReleaseMs, this.nextPassMs, wakeMs)
    return this.hasMoreDue ? otherMs : Math.min(otherMs, this.line.nextWorkMs)
  }

  get #nextSweepMs(): number {
    return Math.max(this.earliestExpiryMs, this.#sweptMs + SWEEP_MS)
  }

  /**
   * Fills `run` with the next messages to deliver, at most `max`. Removes the expired messages before them. Returns false if
   * none is ready, or if it sets `hasMoreExpired` because the budget is used up.
   */
  nextRun(max: number, nowMs: number, run: Run, budget: Budget = UNLIMITED): boolean {
    while (this.line.next(max, nowMs, run)) {
      if (!run.expired) return true
      if (budget.left <= 0) {
        this.hasMoreExpired = true
        return false
      }
      budget.left--
      this.#expireInLine(this.chunkAt(run.offset)!, run.offset)
    }
    return false
  }

  /** Removes the message if it has expired and a sweep has left it. Returns whether it was removed. */
  removeIfExpired(offset: number, nowMs: number): boolean {
    if (!this.hasMoreExpired || this.stateAt(offset, nowMs) !== undefined) return false
    this.#expireInLine(this.chunkAt(offset)!, offset)
    return true
  }

  /** See `Line.coldOffset`. */
  get coldOffset(): number {
    return this.line.coldOffset
  }

  upcoming(count: number, each: (batchPosition: number) => void): void {
    this.line.upcoming(count, each)
  }

  /** Leases the first `count` messages of `run`, which `nextRun` filled last, to the client with this name. */
  lease(run: Run, count: number, nowMs: number, client: string): void {
    this.line.lease(run, count, nowMs)
    this.bucket?.take(count, nowMs)
    this.leased += count
    if (this.#former !== undefined && this.#former.size > 0)
      for (let offset = run.offset; offset < run.offset + count; offset++) this.#former.delete(offset)
    if (run.redelivered) this.count('redelivered', count)
    if (run.offset + count > this.#deliveredBelow) this.#deliveredBelow = run.offset + count
    if (this.retains) this.facts.hand(run.offset, count, client)
  }

  /**
   * Leases a message again to a client that lost its connection while it handled the message. Returns undefined and changes
   * nothing if the message may have changed since. `boot` is the number of this run of the broker.
   */
  reclaim(claim: Claim, boot: number, nowMs: number, client: string): Reclaimed | undefined {
    const { offset } = claim
    const former = this.#former?.get(offset)
    if (!isClaimable(this, this.line, this.#former, claim, boot)) return undefined
    const chunk = this.chunkAt(offset)!
    const index = offset - chunk.base
    const sinceMs = this.line.reclaim(chunk, index, nowMs)
    if (sinceMs === undefined) return undefined
    const bytes = this.claimBytes(offset)
    this.#former?.delete(offset)
    this.leased++
    if (this.retains) this.facts.hand(offset, 1, client)
    return {
      sinceMs,
      attempt: chunk.attemptsAt(index) + 1,
      deadlineMs: former?.deadlineMs ?? Infinity,
      isCharged: former?.isCharged ?? false,
      bytes,
    }
  }

  /**
   * Record bytes of the message that a claim names; the credit is charged with this number. The size is the one that the
   * former lease counted or, if this boot has no such lease, the one that the chunk knows or estimates. A size from the
   * client could make the credit wrong. 0 means that there is no such message.
   */
  claimBytes(offset: number): number {
    const former = this.#former?.get(offset)
    if (former !== undefined) return former.bytes
    const chunk = this.stateOf(offset) === undefined ? undefined : this.chunkAt(offset)
    return chunk === undefined ? 0 : Math.round(chunk.bytesAt(offset - chunk.base))
  }

  /** Called when a subscription ended and returned messages: none of its leases can be claimed after a restart. */
  subscriptionEnded(id: number): void {
    if (!this.former.end(id)) return
    this.facts.ended(id)
    this.dirty = true
  }

  /** Acknowledges leased messages. `bytes` is the size of their records, if the caller knows it. */
  ack(offset: number, count: number, nowMs: number, bytes?: number): void {
    this.leased -= count
    this.line.settled(offset, count, nowMs)
    if (this.source !== undefined) this.ackedCount += count
    if (this.retains) {
      this.facts.gone('ack', offset, count, RETAINED)
      this.remove(offset, count, nowMs, bytes)
    } else {
      this.facts.gone('ack', offset, count)
      this.remove(offset, count, NOT_RETAINED, bytes)
    }
  }

  /**
   * Returns a leased message that failed; it is due at `dueMs`. The message is dead if this was its last attempt, and
   * gone if it has expired. `isCharged` means that this attempt is already counted.
   */
  retry(
    offset: number,
    dueMs: number,
    nowMs: number,
    reason: string,
    bytes?: number,
    isCharged = false,
  ): void {
    const { maxDeliveries } = this.options
    const attempts = this.#nextAttempt(offset, isCharged)
    if (maxDeliveries !== 'unlimited' && attempts >= maxDeliveries) {
      this.deadLetter(offset, DEATH.maxDeliveries, nowMs, reason, bytes, isCharged)
      return
    }
    if (this.#isExpired(offset, nowMs)) {
      this.#expireLeased(offset, nowMs)
      return
    }
    this.leased--
    this.facts.retry(offset, attempts, dueMs, reason)
    this.retryFact(offset, attempts, dueMs)
    this.line.retry(this.chunkAt(offset)!, offset, dueMs, nowMs)
  }

  /** Delivers no message of the key of this message until `untilMs`. A message without a key changes nothing. */
  pauseKey(offset: number, untilMs: number, nowMs: number): void {
    if (this.hasKeys) this.line.pauseKey(offset, untilMs, nowMs)
  }

  /** Adds a fact with the counts of releases and redeliveries, if they changed. No other fact records them. */
  tally(): void {
    const { released, redelivered } = this.counts
    if (released === this.tallied.released && redelivered === this.tallied.redelivered) return
    this.facts.tally(released, redelivered)
    this.tallyFact(released, redelivered)
  }

  /** Returns a leased message to its old place without counting an attempt. Only the next `tally` records this. */
  release(offset: number, sinceMs: number, nowMs: number): void {
    this.count('released', 1)
    if (this.#isExpired(offset, nowMs)) {
      this.#expireLeased(offset, nowMs)
      return
    }
    this.leased--
    this.line.release(this.chunkAt(offset)!, offset, sinceMs, nowMs)
  }

  /** Makes a leased message dead. `isCharged` means that this attempt is already counted. */
  deadLetter(
    offset: number,
    death: Death,
    nowMs: number,
    reason: string,
    bytes?: number,
    isCharged = false,
  ): void {
    this.leased--
    this.line.settled(offset, 1, nowMs)
    this.#die(offset, this.#nextAttempt(offset, isCharged), death, nowMs, reason, bytes)
  }

  // The count stops at its maximum, because the number of attempts may be unlimited.
  #nextAttempt(offset: number, isCharged: boolean): number {
    return Math.min(this.attemptsOf(offset) + (isCharged ? 0 : 1), LIMITS.maxDeliveriesMax)
  }

  #die(offset: number, attempts: number, death: Death, nowMs: number, reason: string, bytes?: number): void {
    const isMoving = this.options.deadLetter !== ''
    this.#appliedLine.suspects.clear(offset, 1)
    this.facts.dead(offset, attempts, death, isMoving, nowMs, reason)
    this.deadFact(offset, { attempts, death, timeMs: nowMs, reason, isMoving }, bytes)
    if (isMoving) this.moving.add(offset)
  }

  /** Removes all messages that are not dead, and returns their number. The caller must have ended the leases before. */
  purge(): number {
    const messages = this.live - this.deadCount
    this.facts.purge(this.next, messages)
    this.#pending?.clear()
    this.purgeFact(this.next)
    this.count('purged', messages)
    this.dirty = true
    this.line.clear()
    this.#former?.clear()
    this.leased = 0
    return messages
  }

  /** Removes a message that is in the line. @throws SluiceError if it is not in the line; then nothing changes */
  cancel(offset: number, nowMs: number): void {
    const chunk = chunkInLine(this, offset, nowMs)
    this.line.leave(chunk, offset - chunk.base, nowMs)
    this.#gone('cancel', offset)
    this.count('cancelled', this.remove(offset, 1))
  }

  /** Makes a message that is in the line due at `dueMs`. @throws SluiceError if it is not in the line; then nothing changes */
  reschedule(offset: number, dueMs: number, nowMs: number): void {
    const chunk = chunkInLine(this, offset, nowMs)
    this.line.leave(chunk, offset - chunk.base, nowMs)
    this.#former?.delete(offset)
    this.facts.reschedule(offset, dueMs)
    this.rescheduleFact(offset, dueMs)
    this.line.enter(chunk, offset - chunk.base, dueMs, nowMs)
  }

  /** Returns a dead message to the end of the line. */
  redrive(offset: number, nowMs: number, by: string): void {
    const redrives = this.redriveHistory(offset).redrives + 1
    this.#former?.delete(offset)
    this.facts.redrive(offset, redrives, nowMs, by)
    this.redriveFact(offset, redrives, nowMs)
    this.count('redriven', 1)
    this.dirty = true
    const chunk = this.chunkAt(offset)!
    this.line.enter(chunk, offset - chunk.base, nowMs, nowMs)
    this.#moving?.trim(this.deadCount)
  }

  /** Removes a dead message. */
  discard(offset: number): void {
    this.#gone('discard', offset)
    this.count('discarded', this.remove(offset, 1))
    this.#moving?.trim(this.deadCount)
  }

  /** Removes a dead message that moved to another queue. The caller records the fact, and updates `moving` unless `isRedrive` is set. */
  moved(offset: number, isRedrive: boolean): void {
    this.remove(offset, 1)
    if (isRedrive) {
      this.carried++
      this.count('redriven', 1)
      this.#moving?.trim(this.deadCount)
    } else this.count('moved', 1)
    this.dirty = true
  }

  #gone(kind: GoneFact, offset: number, count = 1): void {
    this.#appliedLine.suspects.clear(offset, count)
    this.facts.gone(kind, offset, count)
    this.dirty = true
  }

  /** Drops the first message in drop order, or makes it dead. Returns false if there is none in memory; see `coldToDrop`. */
  evictOldest(nowMs: number): boolean {
    const offset = this.line.firstToDrop()
    this.coldToDrop = this.line.dropOrder!.coldOffset
    if (offset === -1) return false
    const chunk = this.chunkAt(offset)!
    this.line.leave(chunk, offset - chunk.base, nowMs)
    if (this.options.overflow === 'drop-oldest') {
      this.#gone('drop', offset)
      this.count('dropped', this.remove(offset, 1))
    } else this.#die(offset, this.attemptsOf(offset), DEATH.overflow, nowMs, '')
    return true
  }

  // --- groups ---

  /** The next messages of the stream enter the group; see `enterFact`. */
  enter(end: number, keys: KeyWords | undefined, isSkipped: boolean): void {
    this.facts.enter(this.next, end, keys, isSkipped)
    this.enterFact(this.next, end, keys, isSkipped)
  }

  /**
   * Called when the stream is about to release all messages below `end`: they leave the group. Dead ones are discarded, and the
   * others are missed.
   */
  override losing(end: number, nowMs: number): void {
    for (const chunk of this.chunks) {
      const { base } = chunk
      for (const index of [...(chunk.dead?.indexes() ?? [])])
        if (base + index < end) this.discard(base + index)
    }
    const unseen = this.countUnseen(end)
    const missed = unseen + leaveBelow(this, this.line, end, LOSS.retention, nowMs)
    this.facts.miss(end, missed)
    this.missFact(end, missed)
    this.line.passed(this.next)
    this.#moving?.trim(this.deadCount)
  }

  /** Called after recovery: the stream can have released messages in an entry before the one in which the group lost them. */
  loseReleased(nowMs: number): void {
    const first = this.source?.firstKept ?? 0
    const [chunk] = this.chunks
    if (this.next < first || (chunk !== undefined && chunk.base + chunk.firstLive(0) < first))
      this.losing(first, nowMs)
  }

  /** Moves the group to `to`; see `moveFact`. Its leases end. */
  moveTo(to: number, nowMs: number): void {
    endLeasesBelow(this, Infinity, LOSS.groupMoved)
    this.facts.position(to)
    this.line.clear()
    this.#former?.clear()
    this.moveFact(to)
    this.#deliveredBelow = Math.min(this.#deliveredBelow, to)
    this.#appliedLine = new Line(this.appliedChunks, this, this.options)
    this.#appliedLine.rebuild(this.options, this.next, this.redeliveredBelow, nowMs)
    this.#moving?.trim(this.deadCount)
  }

  // --- inspection ---

  /** Offset of the message with this id, if the id is still known and the message still exists; -1 otherwise. */
  offsetOf(id: Uint32Array, nowMs: number): number {
    // If several messages have the id, one that is not leased is preferred, because it can be changed.
    const unleased = this.pending.find(id, 0, (at) => (this.stateAt(at, nowMs) ?? 'leased') !== 'leased')
    const pending = unleased === -1 ? this.pendingOffset(id, nowMs) : unleased
    if (pending !== -1 || this.options.unique === 'pending') return pending
    const offset = this.ids.find(id, 0)
    return offset === -1 || this.stateAt(offset, nowMs) === undefined ? -1 : offset
  }

  /** Offset of a pending message with this id that has not expired; -1 if there is none. */
  pendingOffset(id: Uint32Array, nowMs: number): number {
    return this.pending.find(id, 0, (offset) => this.stateAt(offset, nowMs) !== undefined)
  }

  /** Like `info`, but as of `nowMs`, even if `advance` has not run. Changes nothing; see `infoAsOf`. */
  infoAt(nowMs: number): QueueInfo {
    const info = this.info(nowMs)
    if (nowMs < this.earliestExpiryMs && nowMs < this.line.nextDeadline) return info
    return infoAsOf(info, this, nowMs, (each) => this.line.eachDue(nowMs, each))
  }

  info(nowMs: number): QueueInfo {
    return infoOf(this, this.line.oldestSince, this.line.keyLines?.heldAt(nowMs) ?? 0, nowMs)
  }

  /** Recounts the messages and compares the results with the counters. @throws Error with both counts */
  audit(): void {
    this.line.invariants()
    auditCounts(this)
  }

  #isExpired(offset: number, nowMs: number): boolean {
    const chunk = this.chunkAt(offset)!
    return chunk.isExpired(offset - chunk.base, nowMs)
  }

  #expireLeased(offset: number, nowMs: number): void {
    this.leased--
    this.line.settled(offset, 1, nowMs)
    this.#noteExpired(offset, 1)
  }

  // Removes an expired message of the line. It left when it had expired and was due, not when that was noticed.
  #expireInLine(chunk: Chunk, offset: number): void {
    const index = offset - chunk.base
    this.line.leave(chunk, index, Math.max(chunk.expiryAt(index), chunk.dueAt(index)))
    this.#noteExpired(offset, 1)
  }

  #noteExpired(offset: number, count: number): void {
    this.#gone('expire', offset, count)
    for (let at = offset; at < offset + count; at++) this.observer?.expired(this, at)
    this.count('expired', this.remove(offset, count))
  }

  /**
   * Removes at most `max` expired messages of the line, and sets `hasMoreExpired`. Leased messages are checked when they
   * return. Returns the cost in messages.
   */
  sweep(nowMs: number, max: number): number {
    const expired = EXPIRED
    this.#sweptMs = nowMs
    expired.find(this.chunks, nowMs, max)
    this.hasMoreExpired = expired.hasMore
    if (!expired.hasMore) this.earliestExpiryMs = expired.nextMs
    if (this.hasKeys) expired.sort()
    this.line.leaveExpired(expired)
    for (let at = 0, count = 0; at < expired.count; at += count) {
      const offset = expired.offsets[at]!
      count = expired.runFrom(at, this.chunkAt(offset)!)
      this.#noteExpired(offset, count)
    }
    return expired.cost
  }

  // Sweeps in steps until nothing is left to remove or the budget is used up.
  #sweepWithin(nowMs: number, budget: Budget): void {
    do budget.left -= this.sweep(nowMs, budget.left)
    while (this.hasMoreExpired && budget.left > 0)
  }
}
