/**
 * A queue: what is durable of it (`Contents`), and the serving of its messages: the line in which they are delivered, the
 * leases of its subscriptions. Pure: time and chance come as arguments, bytes stay outside (the queue
 * knows where a batch is in the log, not what it says).
 *
 * It decides, puts what it decided into `facts`, and applies it to its contents at once; the broker writes the facts into
 * the open entry. As their `Follower` it keeps what serves in step with the contents.
 */
import {
  BATCH_HEADER_BYTES,
  LIMITS,
  SluiceError,
  type Claim,
  type Duplicates,
  type MessageState,
  type QueueInfo,
  type QueueOptions,
} from '@sluice/protocol'
import { NO_ARRIVAL } from './arrivals.js'
import { DEATH, type Chunk, type Death, type Traits } from './chunk.js'
import { Contents, type Follower } from './contents.js'
import { FactBuffer, type GoneFact } from './facts.js'
import { FormerLeases } from './former.js'
import { PendingIds } from './ids.js'
import type { KeyRules, Placed } from './key-lines.js'
import { Line } from './line.js'
import type { Run } from './run.js'
import { SubscriptionOf, type ConsumerOf } from './subscription.js'
import { Suspects } from './suspects.js'
import type { Timer } from './timer.js'

/** What is known of a lease that was claimed. */
export interface Reclaimed {
  /** Since when the message was eligible; -1: it stood in the plain line. */
  readonly sinceMs: number
  readonly attempt: number
  /** When it has to be done; Infinity: its time begins anew. */
  readonly deadlineMs: number
  readonly isCharged: boolean
  /** Of its record; after a restart as its client says. */
  readonly bytes: number
}

export const Subscription = SubscriptionOf<Queue>
export type Subscription = SubscriptionOf<Queue>
export type Consumer = ConsumerOf<Queue>

const NOBODY: readonly Subscription[] = []
/** How often messages are looked for whose time to live is over. */
const SWEEP_MS = 1_000

/** The batch that `append` appends: one object for all calls. */
const APPENDED = { baseOffset: 0, count: 0, timeMs: 0, length: 0 }

/** Is notified of messages that leave because their time to live is over. */
export interface QueueObserver {
  expired(queue: Queue, offset: number): void
}

export class Queue extends Contents implements Follower {
  /** Those that it hands messages to, in the order in which they came. */
  subscriptions: readonly Subscription[] = NOBODY
  readonly suspects = new Suspects()
  readonly #lineSoFar = new Line(this.chunksSoFar, this.keys, this.suspects)
  leased = 0
  /** Facts that are applied here and not yet in the open entry. */
  readonly facts = new FactBuffer()
  // Three notes of the broker, which looks at them with each batch: a map from the queue would be a look-up more.
  /** In the list of queues whose facts wait to be written; see `Writer.note`. */
  hasPendingFacts = false
  /** In the list of queues that may have something to deliver; see `Turn.activate`. */
  active = false
  /** For its next deadline, once it has had one; see `Turn.armQueue`. */
  timer: Timer | undefined
  /** No message that is being handled must be done before this. */
  earliestDeadlineMs = Infinity
  /** Offsets of dead messages that are to be moved, as they died. */
  readonly moving: number[] = []

  readonly former = new FormerLeases()
  /** Ids of messages that are not done. */
  readonly pending = new PendingIds(this.chunksSoFar)
  /** Highest offset handed out by this run of the broker, + 1. */
  #deliveredBelow = 0
  #sweptMs = 0
  observer: QueueObserver | undefined

  get #line(): Line {
    if (this.lastArrival !== NO_ARRIVAL) this.takeIn()
    return this.#lineSoFar
  }

  /** It is served in turn with the others, from now on. */
  attach(subscription: Subscription): void {
    this.subscriptions = [...this.subscriptions, subscription]
  }

  /** It is served no more. */
  detach(subscription: Subscription): void {
    const others = this.subscriptions.filter((other) => other !== subscription)
    this.subscriptions = others.length === 0 ? NOBODY : others
  }

  /**
   * Of a queue with `single`, the one subscription that gets messages: one that holds some, or else the oldest that has
   * credit left. One that is idle, as between two pulls, keeps nothing from the others.
   */
  get soleSubscription(): Subscription | undefined {
    let oldest: Subscription | undefined
    for (const subscription of this.subscriptions) {
      if (subscription.unsettled > 0) return subscription
      if (oldest === undefined && !subscription.isIdle) oldest = subscription
    }
    return oldest
  }

  get scheduled(): number {
    return this.#line.scheduled
  }

  get ready(): number {
    return this.live - this.deadCount - this.leased - this.#line.scheduled
  }

  get deliveredBelow(): number {
    return Math.max(this.redeliveredBelow, this.#deliveredBelow)
  }

  /**
   * As `appendFact`, in service: the first message gets the offset `next`. A batch that asks for nothing only takes its
   * place at the end; that is done at the next look at the queue.
   */
  append(
    count: number,
    position: number,
    timeMs: number,
    recordsBytes: number,
    traits?: Traits,
    duplicates?: Duplicates,
  ): void {
    const length = BATCH_HEADER_BYTES + recordsBytes
    this.use.add(position, length)
    if (traits === undefined && duplicates === undefined) this.arrive(count, position, timeMs, recordsBytes)
    else {
      APPENDED.baseOffset = this.next
      APPENDED.count = count
      APPENDED.timeMs = timeMs
      APPENDED.length = length
      this.appendFact(APPENDED, position, traits, duplicates)
    }
  }

  // --- what follows from a change of the contents: see `Follower` ---

  entered(chunk: Chunk, from: number, to: number): void {
    this.#lineSoFar.add(chunk, from, to)
  }

  passed(end: number): void {
    this.#lineSoFar.passed(end)
  }

  idPending(offset: number): void {
    this.pending.add(offset)
  }

  idDone(offset: number): void {
    this.pending.done(offset)
  }

  removedFrom(chunk: Chunk, batch: number): void {
    if (this.chunksSoFar.isBatchGone(chunk, batch))
      this.use.remove(chunk.batches.place(batch), chunk.batches.bytes(batch))
  }

  copied(from: number, to: number, bytes: number): void {
    this.use.move(from, to, bytes)
  }

  dropped(): void {
    this.chunks.eachLiveBatch((place, bytes) => this.use.remove(place, bytes))
    this.#line.clear()
    this.moving.length = 0
    this.leased = 0
  }

  // --- the line ---

  /** Recovery is over: every message takes its place in the line. */
  open(nowMs: number): void {
    this.follow(this)
    this.chunks.eachLiveBatch((place, bytes) => this.use.add(place, bytes))
    this.former.open()
    for (const chunk of this.chunks) {
      for (const index of chunk.dead?.indexes() ?? [])
        if (chunk.dead!.get(index)!.isMoving) this.moving.push(chunk.base + index)
      if (!chunk.hasIds) continue
      for (const index of chunk.liveIndexes()) {
        if (chunk.hasId(index) && !chunk.isDead(index)) this.pending.add(chunk.base + index)
      }
    }
    this.#line.rebuild(keyRules(this.options), this.next, this.redeliveredBelow, nowMs)
  }

  /** The options have changed: what follows from them for what is there already. */
  applyOptions(options: QueueOptions, nowMs: number): void {
    const { onFail, keyConcurrency, dedupWindowMs } = this.options
    this.options = options
    if (onFail !== options.onFail || keyConcurrency !== options.keyConcurrency)
      this.#line.reorder(keyRules(options), nowMs)
    if (dedupWindowMs !== options.dedupWindowMs) {
      // What either window has forgotten no later one knows again, nor another process that reads the ids in the log.
      this.ids.forgetUntil(nowMs - Math.min(dedupWindowMs, options.dedupWindowMs))
      this.idsFrom = this.ids.oldestOffset === -1 ? this.next : this.ids.oldestOffset
    }
    this.dirty = true
  }

  /** Time passed: what was scheduled becomes due, and what has expired goes. */
  advance(nowMs: number): void {
    this.#line.advance(nowMs)
    if (nowMs >= this.#nextSweepMs) this.#sweep(nowMs)
  }

  /** As `advance`, and nothing is left that has expired: for decisions that depend on what there is. */
  settleTime(nowMs: number): void {
    this.#line.advance(nowMs)
    if (nowMs >= this.earliestExpiryMs) this.#sweep(nowMs)
    if (this.ids.size > 0) this.ids.forgetUntil(nowMs - this.options.dedupWindowMs)
  }

  /** When `advance` has something to do next; Infinity when nothing waits for its time. */
  get nextDeadline(): number {
    return Math.min(this.#line.nextDeadline, this.#nextSweepMs, this.earliestDeadlineMs)
  }

  get #nextSweepMs(): number {
    return Math.max(this.earliestExpiryMs, this.#sweptMs + SWEEP_MS)
  }

  /** Fills `run` with what goes next, at most `max` messages; false when nothing is ready. */
  nextRun(max: number, nowMs: number, run: Run): boolean {
    while (this.#line.next(max, nowMs, run)) {
      if (!run.expired) return true
      this.#expireInLine(this.chunkAt(run.offset)!, run.offset, nowMs)
    }
    return false
  }

  /** See `Line.upcoming`. */
  upcoming(count: number, each: (batchPosition: number) => void): void {
    this.#line.upcoming(count, each)
  }

  /** The first `count` messages of `run`, the newest from `nextRun`, are leased to the client of this name. */
  lease(run: Run, count: number, nowMs: number, client: string): void {
    this.#line.take(run, count, nowMs)
    this.leased += count
    if (this.former.size > 0)
      for (let offset = run.offset; offset < run.offset + count; offset++) this.former.delete(offset)
    if (run.redelivered) this.counts.redelivered += count
    if (run.offset + count > this.#deliveredBelow) this.#deliveredBelow = run.offset + count
    if (this.retains) this.facts.hand(run.offset, count, client)
  }

  /**
   * The message that a client handles, and whose lease it lost with its connection, is leased to it again; undefined,
   * and nothing is done, if anything has become of the message since, or may have. `boot`: of this run of the broker.
   */
  reclaim(claim: Claim, boot: number, nowMs: number, client: string): Reclaimed | undefined {
    const { offset } = claim
    const chunk = this.chunkAt(offset)
    if (claim.queueNumber !== this.id || chunk === undefined || this.stateOf(offset) === undefined)
      return undefined
    const index = offset - chunk.base
    if (chunk.isDead(index) || !chunk.isInLine(index)) return undefined
    const former = this.former.get(offset)
    if (claim.boot === boot) {
      // No one has had it since: that would have taken the former lease away.
      if (former?.subscriptionId !== claim.subscriptionId || former.tag !== claim.tag) return undefined
    } else if (
      claim.boot !== boot - 1 ||
      claim.attempt !== chunk.attemptsAt(index) + 1 ||
      // Beyond that all tries have one number.
      claim.attempt > LIMITS.maxDeliveriesMax ||
      this.former.hadEnded(claim) ||
      this.#line.isSeen(chunk, index) ||
      chunk.lives?.has(index) === true
    ) {
      // Others may have had it, before the restart or since; or it began a new life, in which attempts count anew.
      return undefined
    }
    const sinceMs = this.#line.retake(chunk, index, nowMs)
    if (sinceMs === undefined) return undefined
    const bytes = this.claimBytes(offset)
    this.former.delete(offset)
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
   * What the lease of a message counts when it is claimed: what it counted before, or of one that this boot does not know
   * the queue's own count. The client's word would change what is counted. 0: there is no such message.
   */
  claimBytes(offset: number): number {
    const former = this.former.get(offset)
    if (former !== undefined) return former.bytes
    const chunk = this.stateOf(offset) === undefined ? undefined : this.chunkAt(offset)
    return chunk === undefined ? 0 : Math.round(chunk.bytesAt(offset - chunk.base))
  }

  /** A subscription ended and gave messages back: after a restart no lease of it can be claimed. */
  subscriptionEnded(id: number): void {
    if (!this.former.end(id)) return
    this.facts.ended(id)
    this.dirty = true
  }

  /** Leased messages are done. `bytes` is what their records take, as those know that delivered them. */
  ack(offset: number, count: number, nowMs: number, bytes?: number): void {
    this.leased -= count
    this.#line.finish(offset, count, nowMs)
    this.facts.gone('ack', offset, count)
    this.remove(offset, count, nowMs, bytes)
  }

  /**
   * A leased message was tried in vain and comes back at `dueMs`. If that was its last try it is dead; if its time to
   * live is over it is gone. `isCharged`: this try was counted before.
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
    this.#line.comeBack(this.chunkAt(offset)!, offset, dueMs, nowMs)
  }

  /** Has the log know what was released and delivered again; that alone writes nothing. */
  tally(): void {
    const { released, redelivered } = this.counts
    if (released === this.tallied.released && redelivered === this.tallied.redelivered) return
    this.facts.tally(released, redelivered)
    this.tallyFact(released, redelivered)
  }

  /** A leased message was not tried: it takes its old place, and nothing is recorded. */
  release(offset: number, sinceMs: number, nowMs: number): void {
    this.counts.released++
    if (this.#isExpired(offset, nowMs)) {
      this.#expireLeased(offset, nowMs)
      return
    }
    this.leased--
    this.#line.giveBack(this.chunkAt(offset)!, offset, sinceMs, nowMs)
  }

  /** A leased message is given up; this try counts, if it was not counted before. */
  deadLetter(
    offset: number,
    death: Death,
    nowMs: number,
    reason: string,
    bytes?: number,
    isCharged = false,
  ): void {
    this.leased--
    this.#line.finish(offset, 1, nowMs)
    this.#die(offset, this.#nextAttempt(offset, isCharged), death, nowMs, reason, bytes)
  }

  // Where tries are unlimited the count ends before they do.
  #nextAttempt(offset: number, isCharged: boolean): number {
    return Math.min(this.attemptsOf(offset) + (isCharged ? 0 : 1), LIMITS.maxDeliveriesMax)
  }

  #die(offset: number, attempts: number, death: Death, nowMs: number, reason: string, bytes?: number): void {
    const isMoving = this.options.deadLetter !== ''
    this.suspects.clear(offset, 1)
    this.facts.dead(offset, attempts, death, isMoving, nowMs, reason)
    this.deadFact(offset, { attempts, death, timeMs: nowMs, reason, isMoving }, bytes)
    if (isMoving) this.moving.push(offset)
  }

  /** All that is scheduled, ready or leased goes; the caller ends the leases. Returns how many messages. */
  purge(nowMs: number): number {
    const messages = this.live - this.deadCount
    this.facts.purge(this.next, messages)
    this.purgeFact(this.next, nowMs)
    this.counts.purged += messages
    this.dirty = true
    this.#line.clear()
    this.former.clear()
    this.leased = 0
    return messages
  }

  /** The message at `offset` stands in the line, or nothing is done: takes it out for good. @throws SluiceError */
  cancel(offset: number, nowMs: number): void {
    const chunk = this.#standing(offset)
    this.#line.leave(chunk, offset - chunk.base, nowMs)
    this.#gone('cancel', offset)
    this.counts.cancelled += this.remove(offset, 1, nowMs)
  }

  /** The message at `offset` stands in the line, or nothing is done: it is due at `dueMs`. @throws SluiceError */
  reschedule(offset: number, dueMs: number, nowMs: number): void {
    const chunk = this.#standing(offset)
    this.#line.leave(chunk, offset - chunk.base, nowMs)
    this.former.delete(offset)
    this.facts.reschedule(offset, dueMs)
    this.rescheduleFact(offset, dueMs)
    this.#line.enter(chunk, offset - chunk.base, dueMs, nowMs)
  }

  // @throws SluiceError MESSAGE_NOT_FOUND, MESSAGE_LEASED
  #standing(offset: number): Chunk {
    const state = this.stateOf(offset)
    if (state === 'leased')
      throw new SluiceError(
        'MESSAGE_LEASED',
        `Message ${offset} of the queue ${this.name} is held by a consumer; it cannot be changed until it is settled.`,
      )
    if (state === undefined || state === 'dead') {
      throw new SluiceError(
        'MESSAGE_NOT_FOUND',
        state === 'dead'
          ? `Message ${offset} of the queue ${this.name} is dead; it can be redriven or discarded.`
          : `There is no message ${offset} in the queue ${this.name}.`,
      )
    }
    return this.chunkAt(offset)!
  }

  /** Whether a dead message may come back: where only one with its id may be pending, none is. */
  mayRedrive(offset: number): boolean {
    if (this.options.unique !== 'pending') return true
    const chunk = this.chunkAt(offset)!
    const index = offset - chunk.base
    return !chunk.hasId(index) || this.pending.find(chunk.idAt(index), 0) === -1
  }

  /** A dead message begins a new life at the end of its line. */
  redrive(offset: number, nowMs: number, by: string): void {
    const redrives = this.livesOf(offset).redrives + 1
    this.former.delete(offset)
    this.facts.redrive(offset, redrives, nowMs, by)
    this.redriveFact(offset, redrives, nowMs)
    this.counts.redriven++
    this.dirty = true
    const chunk = this.chunkAt(offset)!
    this.#line.enter(chunk, offset - chunk.base, nowMs, nowMs)
  }

  /** A dead message is deleted. */
  discard(offset: number, nowMs: number): void {
    this.#gone('discard', offset)
    this.counts.discarded += this.remove(offset, 1, nowMs)
  }

  /** A dead message is in another queue now; the fact that says so is the caller's. */
  moved(offset: number, isRedrive: boolean, nowMs: number): void {
    this.remove(offset, 1, nowMs)
    if (isRedrive) {
      this.carried++
      this.counts.redriven++
    } else this.counts.moved++
    this.dirty = true
  }

  #gone(kind: GoneFact, offset: number): void {
    this.suspects.clear(offset, 1)
    this.facts.gone(kind, offset, 1)
    this.dirty = true
  }

  /**
   * The oldest message of the lowest priority in the line makes room: it is dropped or dead, as the queue says. False, and
   * nothing is done, when the line is empty.
   */
  evictOldest(nowMs: number): boolean {
    const offset = this.#line.firstToDrop()
    if (offset === -1) return false
    const chunk = this.chunkAt(offset)!
    this.#line.leave(chunk, offset - chunk.base, nowMs)
    if (this.options.overflow === 'drop-oldest') {
      this.#gone('drop', offset)
      this.counts.dropped += this.remove(offset, 1, nowMs)
    } else this.#die(offset, this.attemptsOf(offset), DEATH.overflow, nowMs, '')
    return true
  }

  // --- looking ---

  /** Undefined for a message that is gone, or never was. */
  stateOf(offset: number): MessageState | undefined {
    const chunk = this.chunkAt(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || index >= chunk.count || chunk.isGone(index)) return undefined
    if (chunk.isDead(index)) return 'dead'
    if (chunk.isScheduled(index)) return 'scheduled'
    return chunk.isInLine(index) ? 'ready' : 'leased'
  }

  /** As `stateOf`, but at `nowMs`, whether or not anything was done since: nothing is changed. */
  stateAt(offset: number, nowMs: number): MessageState | undefined {
    const state = this.stateOf(offset)
    if (state !== 'ready' && state !== 'scheduled') return state
    const chunk = this.chunkAt(offset)!
    const index = offset - chunk.base
    if (state === 'scheduled' && chunk.dueAt(index) > nowMs) return state
    return chunk.isExpired(index, nowMs) ? undefined : 'ready'
  }

  /** Offset of the message with this id, as far as ids are known; -1 if it is not here. */
  offsetOf(id: Uint32Array): number {
    // Of several, one that can be changed.
    const standing = this.pending.find(id, 0, (offset) => this.stateOf(offset) !== 'leased')
    const pending = standing === -1 ? this.pending.find(id, 0) : standing
    if (pending !== -1 || this.options.unique === 'pending') return pending
    const offset = this.ids.find(id, 0)
    return offset === -1 || this.stateOf(offset) === undefined ? -1 : offset
  }

  /**
   * Wait before try `attempts + 1`: initial × 2^(attempts − 1), within ± 20 % by `chance` in [0, 1), at most the
   * queue's `retryMaxMs`.
   */
  backoffMs(attempts: number, chance: number): number {
    const { retryInitialMs, retryMaxMs } = this.options
    const nominal = Math.min(retryInitialMs * 2 ** Math.min(attempts - 1, 50), retryMaxMs)
    return Math.min(Math.round(nominal * (0.8 + 0.4 * chance)), retryMaxMs)
  }

  /**
   * As `info`, but with what time has done by `nowMs` and was not noticed: what is due is ready, and what has expired
   * is gone. Nothing is changed; it costs what is overdue, and nothing else.
   */
  infoAt(nowMs: number, retainedBytes: number): QueueInfo {
    const info = this.info(nowMs, retainedBytes)
    let due = 0
    let expired = 0
    let bytes = 0
    const expire = (chunk: Chunk, index: number): void => {
      expired++
      bytes += chunk.bytesAt(index)
    }
    this.#line.eachDue(nowMs, (chunk, index) => {
      due++
      if (chunk.isExpired(index, nowMs)) expire(chunk, index)
    })
    if (nowMs >= this.earliestExpiryMs) {
      for (const chunk of this.chunks) {
        if (chunk.earliestExpiryMs > nowMs) continue
        for (let index = 0; index < chunk.count; index++) {
          if (!chunk.isExpired(index, nowMs) || chunk.isGone(index) || chunk.isDead(index)) continue
          if (!chunk.isScheduled(index) && chunk.isInLine(index)) expire(chunk, index)
        }
      }
    }
    return {
      ...info,
      ready: info.ready + due - expired,
      scheduled: info.scheduled - due,
      expired: info.expired + expired,
      bytes: Math.round(this.bytes - bytes),
    }
  }

  info(nowMs: number, retainedBytes: number): QueueInfo {
    const oldest = this.#line.oldestSince
    return {
      name: this.name,
      options: this.options,
      paused: this.paused,
      ready: this.ready,
      scheduled: this.scheduled,
      leased: this.leased,
      dead: this.deadCount,
      bytes: Math.round(this.bytes),
      consumers: this.subscriptions.length,
      oldestReadyMs: oldest === Infinity ? null : Math.max(0, nowMs - oldest),
      published: this.next - this.counts.duplicates,
      acked: this.acked,
      ...this.counts,
      retainedBytes: Math.round(retainedBytes),
      createdAtMs: this.createdAtMs,
    }
  }

  /** Counts every message anew and compares with the counters. @throws Error naming what differs */
  audit(): void {
    let live = 0
    let dead = 0
    let deadBytes = 0
    let standing = 0
    for (const chunk of this.chunks) {
      chunk.invariants()
      live += chunk.live
      for (const index of chunk.dead?.indexes() ?? []) {
        dead++
        deadBytes += chunk.dead!.get(index)!.bytes
      }
      for (const index of chunk.liveIndexes()) if (chunk.isInLine(index)) standing++
    }
    this.#line.invariants()
    let held = 0
    for (const subscription of this.subscriptions) held += subscription.unsettled
    const counted = standing + this.leased + dead
    if (
      live !== this.live ||
      dead !== this.deadCount ||
      deadBytes !== this.deadBytes ||
      counted !== live ||
      held !== this.leased
    ) {
      throw new Error(
        `queue ${this.name}: live ${this.live}/${live}, dead ${this.deadCount}/${dead} of ${this.deadBytes}/${deadBytes} bytes, ` +
          `leased ${this.leased}/${held}, in the line ${standing} + leased + dead = ${counted}`,
      )
    }
  }

  #isExpired(offset: number, nowMs: number): boolean {
    const chunk = this.chunkAt(offset)!
    return chunk.isExpired(offset - chunk.base, nowMs)
  }

  #expireLeased(offset: number, nowMs: number): void {
    this.leased--
    this.#line.finish(offset, 1, nowMs)
    this.#noteExpired(offset, nowMs)
  }

  #expireInLine(chunk: Chunk, offset: number, nowMs: number): void {
    // It went when its time was over, however late that is noticed.
    this.#line.leave(chunk, offset - chunk.base, chunk.expiryAt(offset - chunk.base))
    this.#noteExpired(offset, nowMs)
  }

  #noteExpired(offset: number, nowMs: number): void {
    this.#gone('expire', offset)
    this.observer?.expired(this, offset)
    this.counts.expired += this.remove(offset, 1, nowMs)
  }

  // What is leased is looked at when it comes back.
  #sweep(nowMs: number): void {
    this.#sweptMs = nowMs
    const expired: Placed[] = []
    for (const chunk of this.chunks) if (chunk.earliestExpiryMs <= nowMs) this.#look(chunk, nowMs, expired)
    // In the order in which their times were over: each may have freed its key for the next.
    if (this.keys.size > 0) expired.sort((a, b) => a.timeMs - b.timeMs)
    for (const { chunk, index } of expired) this.#expireInLine(chunk, chunk.base + index, nowMs)
    this.earliestExpiryMs = Infinity
    for (const chunk of this.chunks)
      this.earliestExpiryMs = Math.min(this.earliestExpiryMs, chunk.earliestExpiryMs)
  }

  // Finds what has expired, and when to look again.
  #look(chunk: Chunk, nowMs: number, expired: Placed[]): void {
    chunk.earliestExpiryMs = Infinity
    for (const index of chunk.liveIndexes()) {
      const expiryMs = chunk.expiryAt(index)
      if (expiryMs === 0 || chunk.isDead(index)) continue
      // What waits for its time is looked at when it is due.
      const lookAtMs = chunk.isScheduled(index) ? Math.max(expiryMs, chunk.dueAt(index)) : expiryMs
      if (lookAtMs > nowMs) chunk.lookAtExpiries(lookAtMs)
      else if (chunk.isInLine(index)) expired.push({ chunk, index, timeMs: expiryMs })
    }
  }
}

function keyRules({ keyConcurrency, onFail }: QueueOptions): KeyRules {
  return { keyConcurrency, blocks: onFail === 'block' }
}
