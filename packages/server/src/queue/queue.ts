/**
 * A queue: the durable state of its messages, and the line in which they are handed out. Pure: time and chance come
 * as arguments, bytes stay outside (the queue knows where a batch stands in the log, not what it says).
 *
 * Each message is in exactly one state (invariant 6): ready in the plain line (in neither `gone` nor `out` of its
 * chunk), due or scheduled (in `out`, and in one heap), leased (in `out`, and in one slot of one subscription),
 * dead (in `out` and `dead`), or gone. Messages are handed out by eligible since, then offset (invariant 12).
 */
import type { QueueInfo, QueueOptions } from '@sluice/protocol'
import {
  CHUNK_MESSAGES,
  CHUNK_WORDS,
  addBits,
  countRange,
  firstInside,
  firstOutside,
  hasBit,
  removeBits,
} from './bits.js'
import { Chunk, DEATH, type Dead, type Death } from './chunk.js'
import { FactBuffer } from './facts.js'
import { TimeHeap } from './heap.js'
import type { Subscription } from './subscription.js'

/** Told which places in the log gain and lose live messages, so that it knows which segments are still needed. */
export interface LogUse {
  add(position: number, messages: number, bytes: number): void
  remove(position: number, messages: number): void
}

/** Consecutive messages of one batch that can be handed out together: same attempt, same mark. */
export interface Run {
  offset: number
  count: number
  batchPosition: number
  publishedAtMs: number
  attempt: number
  redelivered: boolean
  /** A suspect: whoever gets it handles nothing else meanwhile. */
  alone: boolean
  /** -1: from the plain line. */
  sinceMs: number
  /** All that a delivery of it says is on disk already; set by whoever knows where the disk is. */
  durable: boolean
}

export class Queue {
  readonly id: number
  readonly name: string
  readonly createdAtMs: number
  options: QueueOptions
  /** Offset of the next message. */
  next = 0
  /** Offsets below this may have been delivered by an earlier run of the broker. */
  redeliveredBelow = 0
  purged = 0
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
  /** In the broker's list of queues that may have something to hand out. */
  active = false
  /** In the broker's list of queues whose facts wait to be written. */
  hasPendingFacts = false
  /** For when the broker's timer is set. */
  armedMs = Infinity
  /** Waiting for bytes from the disk; handing out goes on when they are there. */
  loading = false
  /** Place in the log that could not be read; -1: none. */
  unreadablePosition = -1

  readonly #use: LogUse
  #chunks: (Chunk | undefined)[] = []
  #firstChunk = 0
  #cursor = 0
  /** Highest offset handed out by this run of the broker, + 1. */
  #deliveredBelow = 0
  /** Offsets that were being handled, among others, when a connection died; one of them may have killed it. */
  readonly #suspects = new Set<number>()
  readonly #scheduled = new TimeHeap()
  readonly #due = new TimeHeap()

  constructor(id: number, name: string, options: QueueOptions, createdAtMs: number, use: LogUse) {
    this.id = id
    this.name = name
    this.options = options
    this.createdAtMs = createdAtMs
    this.#use = use
  }

  get scheduled(): number {
    return this.#scheduled.size
  }

  get ready(): number {
    return this.live - this.deadCount - this.leased - this.#scheduled.size
  }

  /** Messages that were acknowledged, or given up and removed. */
  get acked(): number {
    return this.next - this.live - this.purged
  }

  get deliveredBelow(): number {
    return Math.max(this.redeliveredBelow, this.#deliveredBelow)
  }

  // --- durable state: the same in service and in recovery ---

  /** Messages `[base, base + count)` were accepted; their batch stands at `position`. In service, base is `next`. */
  append(base: number, count: number, position: number, timeMs: number, recordsBytes: number): void {
    const end = base + count
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.#chunkToFill(from)
      const index = from - chunk.base
      if (chunk.pagePosition <= this.appliedFrom && index >= chunk.count) {
        const bytes = (recordsBytes * (to - from)) / count
        chunk.append(to - chunk.base, position, timeMs, bytes)
        this.live += to - from
        this.bytes += bytes
        this.#use.add(position, to - from, bytes)
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
    chunk.returned ??= new Map()
    chunk.returned.set(index, { attempts, dueMs })
    chunk.dirty = true
  }

  deadFact(offset: number, dead: Dead): void {
    const chunk = this.#chunkToApply(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || chunk.isGone(index)) return
    chunk.dead ??= new Map()
    if (!chunk.dead.has(index)) this.deadCount++
    chunk.dead.set(index, dead)
    chunk.returned?.delete(index)
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
    return this.#chunks[Math.floor(offset / CHUNK_MESSAGES) - this.#firstChunk]
  }

  *chunks(): IterableIterator<Chunk> {
    for (const chunk of this.#chunks.slice()) if (chunk !== undefined) yield chunk
  }

  /** Puts a chunk in that was read from a page. */
  restore(chunk: Chunk): void {
    this.#place(chunk)
    this.live += chunk.live
    this.bytes += chunk.bytes
    this.deadCount += chunk.dead?.size ?? 0
    for (let batch = 0; batch < chunk.batches; batch++) {
      const start = chunk.batchStart(batch)
      const live = liveIn(chunk, start, chunk.batchEnd(batch))
      if (live > 0) this.#use.add(chunk.batchPosition(batch), live, (chunk.bytes * live) / chunk.live)
    }
  }

  // --- the line ---

  /** Recovery is over: puts every message in its place in the line. */
  open(nowMs: number): void {
    this.#cursor = this.#firstChunk * CHUNK_MESSAGES
    for (const chunk of this.chunks()) {
      if (chunk.returned !== undefined) {
        for (const [index, { dueMs }] of chunk.returned) {
          takeOut(chunk, index, index + 1)
          this.#scheduled.push(dueMs, chunk.base + index)
        }
      }
      if (chunk.dead !== undefined) for (const index of chunk.dead.keys()) takeOut(chunk, index, index + 1)
    }
    this.advance(nowMs)
  }

  /** What was scheduled for `nowMs` or before is ready now. */
  advance(nowMs: number): void {
    while (this.#scheduled.firstTime <= nowMs) {
      this.#due.push(this.#scheduled.firstTime, this.#scheduled.firstOffset)
      this.#scheduled.pop()
    }
  }

  /** When `advance` has something to do next; Infinity when nothing is scheduled. */
  get nextDeadline(): number {
    return this.#scheduled.firstTime
  }

  /** Fills `run` with what goes next, at most `max` messages; false when nothing is ready. */
  nextRun(max: number, run: Run): boolean {
    const chunk = this.#plainHead()
    if (this.#due.size > 0) {
      const plainSince = chunk === undefined ? Infinity : this.#plainTime(chunk)
      const first = this.#due.firstTime
      if (first < plainSince || (first === plainSince && this.#due.firstOffset < this.#cursor)) {
        return this.#dueRun(run)
      }
    }
    if (chunk === undefined) return false
    const index = this.#cursor - chunk.base
    const batch = chunk.batchAt(index)
    let end = Math.min(chunk.batchEnd(batch), index + max)
    end = firstInside(chunk.gone, chunk.out, index, end)
    const marked = this.#isMarked(chunk, index)
    if (this.redeliveredBelow > this.#cursor) end = Math.min(end, this.redeliveredBelow - chunk.base)
    else if (marked) end = firstOutside(chunk.seen, undefined, index, end)
    else end = firstInside(chunk.seen, undefined, index, end)
    if (this.#suspects.size > 0) end = this.#untilSuspect(chunk, index, end)
    run.offset = this.#cursor
    run.count = end - index
    run.batchPosition = chunk.batchPosition(batch)
    run.publishedAtMs = chunk.batchTime(batch)
    run.attempt = 1
    run.redelivered = marked
    run.alone = this.#suspects.has(run.offset)
    run.sinceMs = -1
    return true
  }

  /** The first `count` messages of `run`, the newest from `nextRun`, are leased. */
  lease(run: Run, count: number): void {
    if (run.sinceMs === -1) {
      const chunk = this.chunkAt(run.offset)!
      takeOut(chunk, run.offset - chunk.base, run.offset - chunk.base + count)
      this.#cursor = run.offset + count
    } else {
      this.#due.pop()
    }
    this.leased += count
    if (run.redelivered) this.redelivered += count
    if (run.offset + count > this.#deliveredBelow) this.#deliveredBelow = run.offset + count
  }

  /** Leased messages are done. */
  ack(offset: number, count: number): void {
    this.leased -= count
    for (let i = 0; i < count && this.#suspects.size > 0; i++) this.#suspects.delete(offset + i)
    this.facts.ack(offset, count)
    this.remove(offset, count)
  }

  /** A leased message was tried in vain and comes back at `dueMs`, or is dead if that was its last try. */
  retry(offset: number, dueMs: number, nowMs: number, reason: string): void {
    const attempts = this.attemptsOf(offset) + 1
    if (attempts >= this.options.maxDeliveries) {
      this.deadLetter(offset, DEATH.maxDeliveries, nowMs, reason)
      return
    }
    this.leased--
    this.#suspects.delete(offset)
    this.facts.retry(offset, attempts, dueMs)
    this.retryFact(offset, attempts, dueMs)
    this.#mark(offset)
    if (dueMs <= nowMs) this.#due.push(dueMs, offset)
    else this.#scheduled.push(dueMs, offset)
  }

  /** A leased message was not tried: it takes its old place, and nothing is recorded. */
  release(offset: number, sinceMs: number): void {
    this.leased--
    this.#mark(offset)
    if (sinceMs !== -1) {
      this.#due.push(sinceMs, offset)
      return
    }
    const chunk = this.chunkAt(offset)!
    removeBits(chunk.out!, offset - chunk.base, offset - chunk.base + 1)
    if (offset < this.#cursor) this.#cursor = offset
  }

  /** A leased message, about to be released, may have killed its consumer: it is handed out alone from now on. */
  suspect(offset: number): void {
    this.#suspects.add(offset)
  }

  /** A leased message is given up; this try counts. */
  deadLetter(offset: number, death: Death, nowMs: number, reason: string): void {
    const attempts = this.attemptsOf(offset) + 1
    this.leased--
    this.#suspects.delete(offset)
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
    this.#scheduled.clear()
    this.#due.clear()
    this.#suspects.clear()
    this.leased = 0
    return messages
  }

  /** Tries of the message that were charged so far. */
  attemptsOf(offset: number): number {
    const chunk = this.chunkAt(offset)
    return chunk?.returned?.get(offset - chunk.base)?.attempts ?? 0
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
    let oldest = this.#due.firstTime
    const chunk = this.#plainHead()
    if (chunk !== undefined) oldest = Math.min(oldest, this.#plainTime(chunk))
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
        const out = chunk.out !== undefined && hasBit(chunk.out, index)
        if (!chunk.isGone(index) && !out) {
          plain++
          if (chunk.base + index < this.#cursor)
            throw new Error(`offset ${chunk.base + index} is ready behind the cursor ${this.#cursor}`)
        }
      }
    }
    let held = 0
    for (const subscription of this.subscriptions) held += subscription.unsettled
    const counted = plain + this.#due.size + this.#scheduled.size + this.leased + dead
    if (live !== this.live || dead !== this.deadCount || counted !== live || held !== this.leased) {
      throw new Error(
        `queue ${this.name}: live ${this.live}/${live}, dead ${this.deadCount}/${dead}, leased ${this.leased}/${held}, ` +
          `plain ${plain} + due ${this.#due.size} + scheduled ${this.#scheduled.size} + leased + dead = ${counted}`,
      )
    }
  }

  #dueRun(run: Run): boolean {
    const offset = this.#due.firstOffset
    const chunk = this.chunkAt(offset)!
    const batch = chunk.batchAt(offset - chunk.base)
    run.offset = offset
    run.count = 1
    run.batchPosition = chunk.batchPosition(batch)
    run.publishedAtMs = chunk.batchTime(batch)
    run.attempt = this.attemptsOf(offset) + 1
    run.redelivered = true
    run.alone = this.#suspects.has(offset)
    run.sinceMs = this.#due.firstTime
    return true
  }

  // Moves the cursor to the first plain message and returns its chunk; undefined when there is none.
  #plainHead(): Chunk | undefined {
    while (this.#cursor < this.next) {
      const chunk = this.chunkAt(this.#cursor)
      if (chunk !== undefined) {
        const index = firstOutside(chunk.gone, chunk.out, this.#cursor - chunk.base, chunk.count)
        if (index < chunk.count) {
          this.#cursor = chunk.base + index
          return chunk
        }
      }
      this.#cursor = Math.min(chunkEndAfter(this.#cursor), this.next)
    }
    return undefined
  }

  // A suspect is a run by itself, and the run before it ends there.
  #untilSuspect(chunk: Chunk, from: number, to: number): number {
    if (this.#suspects.has(chunk.base + from)) return from + 1
    for (let index = from + 1; index < to; index++) if (this.#suspects.has(chunk.base + index)) return index
    return to
  }

  #plainTime(chunk: Chunk): number {
    return chunk.batchTime(chunk.batchAt(this.#cursor - chunk.base))
  }

  #isMarked(chunk: Chunk, index: number): boolean {
    return (
      chunk.base + index < this.redeliveredBelow || (chunk.seen !== undefined && hasBit(chunk.seen, index))
    )
  }

  #mark(offset: number): void {
    const chunk = this.chunkAt(offset)!
    chunk.seen ??= new Uint32Array(CHUNK_WORDS)
    addBits(chunk.seen, offset - chunk.base, offset - chunk.base + 1)
  }

  // The chunk that a fact about `offset` changes; undefined when it is gone or its page holds the fact already.
  #chunkToApply(offset: number): Chunk | undefined {
    const chunk = this.chunkAt(offset)
    return chunk === undefined || chunk.pagePosition > this.appliedFrom ? undefined : chunk
  }

  #chunkToFill(offset: number): Chunk {
    const found = this.chunkAt(offset)
    if (found !== undefined) return found
    const base = chunkEndAfter(offset) - CHUNK_MESSAGES
    const chunk = new Chunk(base)
    if (offset > base) {
      // What stood before in this chunk is known to be gone: recovery found no page of it.
      chunk.gone = new Uint32Array(CHUNK_WORDS)
      addBits(chunk.gone, 0, offset - base)
      chunk.count = offset - base
    }
    this.#place(chunk)
    return chunk
  }

  #place(chunk: Chunk): void {
    const at = chunk.base / CHUNK_MESSAGES
    if (this.#chunks.length === 0) this.#firstChunk = at
    while (at < this.#firstChunk) {
      this.#chunks.unshift(undefined)
      this.#firstChunk--
    }
    while (at - this.#firstChunk > this.#chunks.length) this.#chunks.push(undefined)
    this.#chunks[at - this.#firstChunk] = chunk
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
    if (chunk.returned !== undefined || chunk.dead !== undefined) this.#forget(chunk, from, end)
    if (chunk.live === 0 && chunk.full) this.#free(chunk)
    return removed
  }

  #forget(chunk: Chunk, from: number, to: number): void {
    for (let index = from; index < to; index++) {
      chunk.returned?.delete(index)
      if (chunk.dead?.delete(index) === true) this.deadCount--
    }
  }

  #free(chunk: Chunk): void {
    this.#chunks[chunk.base / CHUNK_MESSAGES - this.#firstChunk] = undefined
    let empty = 0
    while (empty < this.#chunks.length && this.#chunks[empty] === undefined) empty++
    // The front is cut off in pieces, so that freeing stays cheap for a long line.
    if (empty === this.#chunks.length || (empty >= 64 && empty * 2 >= this.#chunks.length)) {
      this.#chunks.splice(0, empty)
      this.#firstChunk += empty
    }
  }
}

// Offset after the last one of the chunk that holds `offset`.
function chunkEndAfter(offset: number): number {
  return (Math.floor(offset / CHUNK_MESSAGES) + 1) * CHUNK_MESSAGES
}

function takeOut(chunk: Chunk, from: number, to: number): void {
  chunk.out ??= new Uint32Array(CHUNK_WORDS)
  addBits(chunk.out, from, to)
}

function liveIn(chunk: Chunk, from: number, to: number): number {
  return chunk.gone === undefined
    ? to - from
    : to - from - countRange(chunk.gone, from, Math.min(to, chunk.count))
}
