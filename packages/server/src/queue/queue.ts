/**
 * A queue: the durable state of its messages, and the line in which they are handed out. Pure: time and chance come
 * as arguments, bytes stay outside (the queue knows where a batch stands in the log, not what it says).
 *
 * Each message is in exactly one state (invariant 6): ready in a plain line (in neither `gone` nor `out` of its
 * chunk), scheduled or due (in `out` and `waiting`, and in one heap), leased (in `out`, and in one slot of one
 * subscription), dead (in `out` and `dead`), or gone.
 */
import type { QueueInfo, QueueOptions } from '@sluice/protocol'
import { countRange, hasBit } from './bits.js'
import { DEATH, type Chunk, type Dead, type Death, type Traits } from './chunk.js'
import { Chunks, chunkEndAfter } from './chunks.js'
import { FactBuffer } from './facts.js'
import { Line, type Run } from './line.js'
import type { Subscription } from './subscription.js'

/** Told which places in the log gain and lose live messages, so that it knows which segments are still needed. */
export interface LogUse {
  add(position: number, messages: number, bytes: number): void
  remove(position: number, messages: number): void
}

/** How often messages are looked for whose time to live is over. */
const SWEEP_MS = 1_000

export class Queue {
  readonly id: number
  readonly name: string
  readonly createdAtMs: number
  options: QueueOptions
  /** Offset of the next message. */
  next = 0
  purged = 0
  expired = 0
  redelivered = 0
  live = 0
  deadCount = 0
  bytes = 0
  /** Whether the definition or the counters differ from the newest page, and where that stands (-1: none). */
  dirty = true
  pagePosition = -1

  leased = 0
  readonly subscriptions: Subscription[] = []
  /** Which subscription is served next. */
  turn = 0
  /** Facts that are applied here and not yet in the open entry. */
  readonly facts = new FactBuffer()
  /**
   * In recovery: where the fact that is being applied stands in the log. A chunk whose page is newer holds it already
   * and passes it over.
   */
  appliedFrom = Infinity
  /** In the broker's list of queues whose facts wait to be written. */
  hasPendingFacts = false
  /** For when the broker's timer is set. */
  armedMs = Infinity
  /** In the broker's list of queues that may have something to hand out. */
  active = false
  /** Waiting for bytes from the disk; handing out goes on when they are there. */
  loading = false
  /** Place in the log that could not be read; -1: none. */
  unreadablePosition = -1

  readonly #use: LogUse
  readonly #chunks = new Chunks()
  readonly #line = new Line(this.#chunks)
  /** The line exists: recovery is over. */
  #isOpen = false
  /** Highest offset handed out by this run of the broker, + 1. */
  #deliveredBelow = 0
  /** No message expires before this. */
  #earliestExpiryMs = Infinity
  #sweptMs = 0

  constructor(id: number, name: string, options: QueueOptions, createdAtMs: number, use: LogUse) {
    this.id = id
    this.name = name
    this.options = options
    this.createdAtMs = createdAtMs
    this.#use = use
  }

  get scheduled(): number {
    return this.#line.scheduled
  }

  get ready(): number {
    return this.live - this.deadCount - this.leased - this.#line.scheduled
  }

  /** Messages that were acknowledged, or given up and removed. */
  get acked(): number {
    return this.next - this.live - this.purged - this.expired
  }

  /** Offsets below this may have been delivered by an earlier run of the broker. */
  get redeliveredBelow(): number {
    return this.#line.redeliveredBelow
  }

  set redeliveredBelow(offset: number) {
    this.#line.redeliveredBelow = offset
  }

  get deliveredBelow(): number {
    return Math.max(this.redeliveredBelow, this.#deliveredBelow)
  }

  // --- durable state: the same in service and in recovery ---

  /**
   * Messages `[base, base + count)` were accepted; their batch stands at `position`. In service, base is `next`.
   * `traits`: what they ask for, where any of them asks for anything.
   */
  append(
    base: number,
    count: number,
    position: number,
    timeMs: number,
    recordsBytes: number,
    traits?: Traits,
  ): void {
    const end = base + count
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.#chunks.toFill(from)
      const index = from - chunk.base
      if (chunk.pagePosition <= this.appliedFrom && index >= chunk.count) {
        const bytes = (recordsBytes * (to - from)) / count
        chunk.append(to - chunk.base, position, timeMs, bytes)
        if (traits !== undefined) {
          chunk.setTraits(index, to - chunk.base, traits, from - base)
          if (chunk.earliestExpiryMs < this.#earliestExpiryMs) this.#earliestExpiryMs = chunk.earliestExpiryMs
        }
        this.live += to - from
        this.bytes += bytes
        this.#use.add(position, to - from, bytes)
        if (this.#isOpen) this.#line.add(chunk, index, to - chunk.base)
      }
      from = to
    }
    if (end > this.next) this.next = end
    this.dirty = true
  }

  /** Messages `[offset, offset + count)` are gone; those that were gone before are passed over. Returns how many. */
  remove(offset: number, count: number): number {
    let removed = 0
    const end = Math.min(offset + count, this.next)
    for (let from = offset; from < end;) {
      const chunk = this.#chunkToApply(from)
      const to = Math.min(end, chunkEndAfter(from))
      if (chunk !== undefined) removed += this.#removeIn(chunk, from - chunk.base, to - chunk.base)
      from = to
    }
    return removed
  }

  retryFact(offset: number, attempts: number, dueMs: number): void {
    const chunk = this.#chunkToApply(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || chunk.isGone(index)) return
    chunk.setDue(index, attempts, dueMs)
    chunk.dirty = true
  }

  deadFact(offset: number, dead: Dead): void {
    const chunk = this.#chunkToApply(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || chunk.isGone(index)) return
    chunk.dead ??= new Map()
    if (!chunk.dead.has(index)) this.deadCount++
    chunk.dead.set(index, dead)
    chunk.dirty = true
  }

  /** All below `below` but the dead are gone. */
  purgeFact(below: number): void {
    for (const chunk of this.chunks()) {
      if (chunk.pagePosition > this.appliedFrom) continue
      const end = Math.min(chunk.count, below - chunk.base)
      if (end <= 0) continue
      let from = 0
      const dead = [...(chunk.dead?.keys() ?? [])].toSorted((a, b) => a - b)
      for (const index of [...dead, end]) {
        if (index > from) this.#removeIn(chunk, from, Math.min(index, end))
        from = index + 1
      }
    }
  }

  /** The batch that begins with `offset` was copied to `position`. */
  relocateFact(offset: number, count: number, position: number): void {
    for (let from = offset; from < offset + count;) {
      const to = Math.min(offset + count, chunkEndAfter(from))
      const chunk = this.#chunkToApply(from)
      if (chunk !== undefined) {
        const index = from - chunk.base
        const batch = chunk.batchAt(index)
        if (chunk.batchStart(batch) === index) {
          const live = liveIn(chunk, index, to - chunk.base)
          const bytes = chunk.live === 0 ? 0 : (chunk.bytes * live) / chunk.live
          this.#use.remove(chunk.batchPosition(batch), live)
          this.#use.add(position, live, bytes)
          chunk.relocate(batch, position)
        }
      }
      from = to
    }
  }

  /** Live messages of the batch of `[offset, offset + count)`, if it still stands at `position`. */
  liveAt(offset: number, count: number, position: number): number {
    let live = 0
    for (let from = offset; from < offset + count;) {
      const to = Math.min(offset + count, chunkEndAfter(from))
      const chunk = this.chunkAt(from)
      if (chunk !== undefined && from - chunk.base < chunk.count) {
        const batch = chunk.batchAt(from - chunk.base)
        if (chunk.batchPosition(batch) === position) live += liveIn(chunk, from - chunk.base, to - chunk.base)
      }
      from = to
    }
    return live
  }

  /** The queue is gone: nothing in the log is needed for it any more. */
  drop(): void {
    for (const chunk of this.chunks()) this.#removeIn(chunk, 0, chunk.count)
    this.deadCount = 0
  }

  chunkAt(offset: number): Chunk | undefined {
    return this.#chunks.at(offset)
  }

  chunks(): IterableIterator<Chunk> {
    return this.#chunks[Symbol.iterator]()
  }

  /** Puts a chunk in that was read from a page. */
  restore(chunk: Chunk): void {
    this.#chunks.place(chunk)
    this.live += chunk.live
    this.bytes += chunk.bytes
    this.deadCount += chunk.dead?.size ?? 0
    this.#earliestExpiryMs = Math.min(this.#earliestExpiryMs, chunk.earliestExpiryMs)
    for (let batch = 0; batch < chunk.batches; batch++) {
      const start = chunk.batchStart(batch)
      const live = liveIn(chunk, start, chunk.batchEnd(batch))
      if (live > 0) this.#use.add(chunk.batchPosition(batch), live, (chunk.bytes * live) / chunk.live)
    }
  }

  // --- the line ---

  /** Recovery is over: every message takes its place in the line. */
  open(nowMs: number): void {
    this.#isOpen = true
    this.#line.rebuild(this.next)
    this.#line.advance(nowMs)
  }

  /** Time passed: what was scheduled becomes due, and what has expired goes. */
  advance(nowMs: number): void {
    this.#line.advance(nowMs)
    if (nowMs >= this.#nextSweepMs) this.#sweep(nowMs)
  }

  /** When `advance` has something to do next; Infinity when nothing waits for its time. */
  get nextDeadline(): number {
    return Math.min(this.#line.nextDeadline, this.#nextSweepMs)
  }

  get #nextSweepMs(): number {
    return Math.max(this.#earliestExpiryMs, this.#sweptMs + SWEEP_MS)
  }

  /** Fills `run` with what goes next, at most `max` messages; false when nothing is ready. */
  nextRun(max: number, nowMs: number, run: Run): boolean {
    while (this.#line.next(max, nowMs, run)) {
      if (!run.expired) return true
      this.#line.take(run, 1)
      this.#expire(run.offset, 1)
    }
    return false
  }

  /** The first `count` messages of `run`, the newest from `nextRun`, are leased. */
  lease(run: Run, count: number): void {
    this.#line.take(run, count)
    this.leased += count
    if (run.redelivered) this.redelivered += count
    if (run.offset + count > this.#deliveredBelow) this.#deliveredBelow = run.offset + count
  }

  /** Leased messages are done. */
  ack(offset: number, count: number): void {
    this.leased -= count
    this.#line.forget(offset, count)
    this.facts.ack(offset, count)
    this.remove(offset, count)
  }

  /**
   * A leased message was tried in vain and comes back at `dueMs`. If that was its last try it is dead; if its time to
   * live is over it is gone.
   */
  retry(offset: number, dueMs: number, nowMs: number, reason: string): void {
    const attempts = this.attemptsOf(offset) + 1
    if (attempts >= this.options.maxDeliveries) {
      this.deadLetter(offset, DEATH.maxDeliveries, nowMs, reason)
      return
    }
    if (this.#isExpired(offset, nowMs)) {
      this.#expireLeased(offset)
      return
    }
    this.leased--
    this.facts.retry(offset, attempts, dueMs)
    this.retryFact(offset, attempts, dueMs)
    this.#line.comeBack(this.chunkAt(offset)!, offset, dueMs, nowMs)
  }

  /** A leased message was not tried: it takes its old place, and nothing is recorded. */
  release(offset: number, sinceMs: number, nowMs: number): void {
    if (this.#isExpired(offset, nowMs)) {
      this.#expireLeased(offset)
      return
    }
    this.leased--
    this.#line.giveBack(this.chunkAt(offset)!, offset, sinceMs)
  }

  /** A leased message, about to be released, may have killed its consumer: it is handed out alone from now on. */
  suspect(offset: number): void {
    this.#line.suspect(offset)
  }

  /** A leased message is given up; this try counts. */
  deadLetter(offset: number, death: Death, nowMs: number, reason: string): void {
    const attempts = this.attemptsOf(offset) + 1
    this.leased--
    this.#line.forget(offset, 1)
    this.facts.dead(offset, attempts, death, nowMs, reason)
    this.deadFact(offset, { attempts, death, timeMs: nowMs, reason })
  }

  /** All that is scheduled, ready or leased goes; the caller ends the leases. Returns how many messages. */
  purge(): number {
    const messages = this.live - this.deadCount
    this.facts.purge(this.next, messages)
    this.purgeFact(this.next)
    this.purged += messages
    this.dirty = true
    this.#line.clear()
    this.leased = 0
    return messages
  }

  /** Tries of the message that were charged so far. */
  attemptsOf(offset: number): number {
    const chunk = this.chunkAt(offset)
    return chunk === undefined ? 0 : chunk.attemptsAt(offset - chunk.base)
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

  info(nowMs: number): QueueInfo {
    const oldest = this.#line.oldestSince
    return {
      name: this.name,
      options: this.options,
      ready: this.ready,
      scheduled: this.scheduled,
      leased: this.leased,
      dead: this.deadCount,
      bytes: Math.round(this.bytes),
      consumers: this.subscriptions.length,
      oldestReadyMs: oldest === Infinity ? null : Math.max(0, nowMs - oldest),
      published: this.next,
      acked: this.acked,
      redelivered: this.redelivered,
      purged: this.purged,
      expired: this.expired,
      createdAtMs: this.createdAtMs,
    }
  }

  /** Counts every message anew and compares with the counters. @throws Error naming what differs */
  audit(): void {
    let live = 0
    let dead = 0
    let plain = 0
    for (const chunk of this.chunks()) {
      const gone = chunk.gone === undefined ? 0 : countRange(chunk.gone, 0, chunk.count)
      if (chunk.live !== chunk.count - gone)
        throw new Error(`chunk ${chunk.base}: live ${chunk.live}, counted ${chunk.count - gone}`)
      live += chunk.live
      dead += chunk.dead?.size ?? 0
      for (let index = 0; index < chunk.count; index++) {
        if (!chunk.isGone(index) && !(chunk.out !== undefined && hasBit(chunk.out, index))) plain++
      }
    }
    let held = 0
    for (const subscription of this.subscriptions) held += subscription.unsettled
    const line = this.#line.counts()
    const counted = plain + line.waiting + this.leased + dead
    if (
      live !== this.live ||
      dead !== this.deadCount ||
      counted !== live ||
      held !== this.leased ||
      plain !== line.plain
    ) {
      throw new Error(
        `queue ${this.name}: live ${this.live}/${live}, dead ${this.deadCount}/${dead}, leased ${this.leased}/${held}, ` +
          `plain ${line.plain}/${plain} + waiting ${line.waiting} + leased + dead = ${counted}`,
      )
    }
  }

  #isExpired(offset: number, nowMs: number): boolean {
    const chunk = this.chunkAt(offset)!
    return chunk.isExpired(offset - chunk.base, nowMs)
  }

  #expireLeased(offset: number): void {
    this.leased--
    this.#line.forget(offset, 1)
    this.#expire(offset, 1)
  }

  // The messages are out of the line.
  #expire(offset: number, count: number): void {
    this.facts.expire(offset, count)
    this.expired += this.remove(offset, count)
  }

  // What is leased is looked at when it comes back.
  #sweep(nowMs: number): void {
    this.#sweptMs = nowMs
    this.#earliestExpiryMs = Infinity
    for (const chunk of this.#chunks) {
      if (chunk.earliestExpiryMs <= nowMs) this.#sweepChunk(chunk, nowMs)
      this.#earliestExpiryMs = Math.min(this.#earliestExpiryMs, chunk.earliestExpiryMs)
    }
  }

  #sweepChunk(chunk: Chunk, nowMs: number): void {
    chunk.earliestExpiryMs = Infinity
    for (let index = 0; index < chunk.count; index++) {
      const expiryMs = chunk.expiries![index]!
      if (expiryMs === 0 || chunk.isGone(index) || chunk.dead?.has(index) === true) continue
      if (expiryMs <= nowMs && this.#line.leaveIfEligible(chunk, index, nowMs)) {
        this.#expire(chunk.base + index, 1)
        continue
      }
      // What has expired and is not due again is looked at when it is.
      const lookAtMs = expiryMs > nowMs ? expiryMs : chunk.dueAt(index)
      if (lookAtMs > nowMs && lookAtMs < chunk.earliestExpiryMs) chunk.earliestExpiryMs = lookAtMs
    }
  }

  // The chunk that a fact about `offset` changes; undefined when it is gone or its page holds the fact already.
  #chunkToApply(offset: number): Chunk | undefined {
    const chunk = this.#chunks.at(offset)
    return chunk === undefined || chunk.pagePosition > this.appliedFrom ? undefined : chunk
  }

  // Batch by batch, because each stands in a segment of its own that loses live messages.
  #removeIn(chunk: Chunk, from: number, to: number): number {
    let removed = 0
    const end = Math.min(to, chunk.count)
    for (let index = from; index < end;) {
      const batch = chunk.batchAt(index)
      const batchEnd = Math.min(chunk.batchEnd(batch), end)
      const bytesBefore = chunk.bytes
      const count = chunk.remove(index, batchEnd)
      if (count > 0) {
        removed += count
        this.bytes -= bytesBefore - chunk.bytes
        this.#use.remove(chunk.batchPosition(batch), count)
      }
      index = batchEnd
    }
    if (removed === 0) return 0
    this.live -= removed
    this.dirty = true
    if (chunk.dead !== undefined) this.#bury(chunk, from, end)
    if (chunk.live === 0 && chunk.full) this.#chunks.drop(chunk)
    return removed
  }

  // Dead messages that are gone are not dead any more.
  #bury(chunk: Chunk, from: number, to: number): void {
    for (let index = from; index < to; index++) if (chunk.dead!.delete(index)) this.deadCount--
  }
}

function liveIn(chunk: Chunk, from: number, to: number): number {
  return chunk.gone === undefined
    ? to - from
    : to - from - countRange(chunk.gone, from, Math.min(to, chunk.count))
}
