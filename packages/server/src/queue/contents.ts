/**
 * What is durable of a queue: its messages by offset and what has become of each, the ids that it remembers, its
 * counters. All of it follows from the log alone: changes come as facts, and the same code applies them in service and in
 * recovery (invariant 17). `State` applies what is read back, `Queue` what it decides.
 *
 * What the queue keeps beside it while it serves (its line, the index of pending ids, the use of the log) is notified of
 * each change through `Follower`. In recovery there is none of it yet, and nothing follows.
 *
 * Each message is in exactly one state (invariant 6): ready in a plain line (in neither `gone` nor `out` of its
 * chunk), scheduled (in `out` and `waiting`), due (in `ripe` as well, and in a heap or in the line of its key), leased
 * (in `out`, and in one slot of one subscription), dead (in `out` and `dead`), or gone.
 */
import {
  BATCH_HEADER_BYTES,
  QUEUE_COUNTERS,
  type Duplicates,
  type QueueCounter,
  type QueueOptions,
} from '@sluice/protocol'
import { NO_ARRIVAL, type Arrivals, type Arriving } from './arrivals.js'
import { CHUNK_MESSAGES } from './bits.js'
import type { Chunk, Lives, Traits } from './chunk.js'
import { Chunks, chunkEndAfter } from './chunks.js'
import { DeadMessages, type Dead } from './dead.js'
import { ID_WORDS, isId } from './hash.js'
import { IdWindow } from './ids.js'
import { Keys, NONE } from './keys.js'
import type { Location } from './location.js'
import type { PageUse } from './page-use.js'
import { Reasons } from './reasons.js'

/**
 * Told where in the log batches with live messages stand, so that it knows which segments are still needed, and what
 * copying would copy: a batch counts whole until its last message is gone.
 */
export interface LogUse {
  /** What the queues' pages take. */
  readonly pages: PageUse
  /** A batch of `bytes`, header included, with live messages stands at `position`. */
  add(position: number, bytes: number): void
  /** Nothing of the batch at `position` is live any more. */
  remove(position: number, bytes: number): void
  /** A live batch was copied. */
  move(from: number, to: number, bytes: number): void
  /** Messages of a queue that retains them were settled; they stay readable for a while. */
  retain(queueId: number, position: number, bytes: number, timeMs: number): void
}

/** What makes a queue what it is, beside its messages. */
export interface QueueDefinition {
  readonly name: string
  readonly options: QueueOptions
  readonly createdAtMs: number
  readonly paused: boolean
  /** Key of the hashes of its ids and keys: four words. */
  readonly seed: readonly number[]
  /** Ids of messages below this offset were forgotten when the window of ids was changed. */
  readonly idsFrom: number
}

/** A batch that is appended, by the fields of its header. */
export interface AppendedBatch {
  readonly baseOffset: number
  readonly count: number
  readonly timeMs: number
  /** Bytes of the batch, header included. */
  readonly length: number
}

/** Who is notified of changes once recovery is over; see `Queue`, the only one. */
export interface Follower {
  /** The messages of `chunk` at `[from, to)` are new. */
  entered(chunk: Chunk, from: number, to: number): void
  /** Every message below `end` has entered, or is gone. */
  passed(end: number): void
  /** The message at `offset` has an id and is pending. */
  idPending(offset: number): void
  /** The message at `offset` has an id and is no longer pending; it is still in its chunk. */
  idDone(offset: number): void
  /** Messages of a batch of `chunk` are gone. */
  removedFrom(chunk: Chunk, batch: number): void
  /** A live batch was copied. */
  copied(from: number, to: number, bytes: number): void
  /** All of it is about to be dropped. */
  dropped(): void
}

/** In recovery: what would follow is built when it is over, because a later fact can change it. */
const NOTHING_FOLLOWS: Follower = {
  entered() {},
  passed() {},
  idPending() {},
  idDone() {},
  removedFrom() {},
  copied() {},
  dropped() {},
}

/** Messages that a queue leaves in the ring of arrivals: to take in a thousand batches takes 0.2 ms. */
const ARRIVED_MAX = CHUNK_MESSAGES
/** In the place of a time of settling: what was never there for a consumer is not retained. */
const NEVER = -1
const FIRST_LIFE: Lives = { redrives: 0, attempts: 0 }

export class Contents implements Arriving {
  // What each append looks at is declared first, together: with thousands of queues little else is in the cache.
  readonly id: number
  readonly name: string
  /** Offset of the next message. */
  next = 0
  live = 0
  /** The definition or the counters differ from the newest page. */
  dirty = true
  /** Its options ask for a look at each batch, whatever the messages ask for. */
  looksAtMessages = false
  protected readonly use: LogUse
  readonly #arrivals: Arrivals
  lastArrival = NO_ARRIVAL
  /** Messages that have arrived and are not taken in: the newest ones. */
  #arrived = 0
  /** Of all messages that are not gone. */
  bytes = 0
  #options!: QueueOptions
  #follower = NOTHING_FOLLOWS
  /** The chunk that was filled last, if it is still there: the way to it through the list of all is longer. */
  #newest: Chunk | undefined
  /** As of what was taken in: only what is notified of each arrival looks at it. */
  protected readonly chunksSoFar = new Chunks()
  readonly keys = new Keys()
  readonly createdAtMs: number
  readonly seed: readonly number[]
  paused: boolean
  idsFrom: number
  /** Offsets below this may have been delivered by an earlier run of the broker. */
  redeliveredBelow = 0
  /** Messages that went to another queue when they were brought back. */
  carried = 0
  readonly counts = Object.fromEntries(Object.keys(QUEUE_COUNTERS).map((name) => [name, 0])) as Record<
    QueueCounter,
    number
  >
  /** Of the counters that follow from no other fact, what the log says. */
  readonly tallied = { released: 0, redelivered: 0 }
  deadCount = 0
  /** Of the dead messages. */
  deadBytes = 0
  /** Where the newest page of it stands; -1: none. */
  pagePosition = -1
  /** What that page takes in the log. */
  pageBytes = 0
  /**
   * In recovery: where the fact that is being applied stands in the log. A chunk whose page is newer holds it already
   * and passes it over.
   */
  appliedFrom = Infinity
  /** How what its messages ask for is read. */
  traitRules!: { readonly seed: readonly number[]; readonly ttlMs: number; readonly withSizes: boolean }
  readonly ids: IdWindow
  /** No message expires before this. */
  protected earliestExpiryMs = Infinity
  readonly #reasons: Reasons

  constructor(
    id: number,
    definition: QueueDefinition,
    use: LogUse,
    arrivals: Arrivals,
    reasons: Reasons = new Reasons(),
  ) {
    this.id = id
    this.name = definition.name
    this.createdAtMs = definition.createdAtMs
    this.seed = definition.seed
    this.paused = definition.paused
    this.idsFrom = definition.idsFrom
    this.use = use
    this.ids = new IdWindow(use.pages)
    this.#arrivals = arrivals
    this.#reasons = reasons
    this.options = definition.options
  }

  get options(): QueueOptions {
    return this.#options
  }

  set options(options: QueueOptions) {
    this.#options = options
    this.looksAtMessages = options.ttlMs > 0 || options.maxMessages > 0 || options.maxBytes > 0
    this.traitRules = { seed: this.seed, ttlMs: options.ttlMs, withSizes: options.maxBytes > 0 }
  }

  /** The chunks, with all that has arrived in them. */
  get chunks(): Chunks {
    if (this.lastArrival !== NO_ARRIVAL) this.takeIn()
    return this.chunksSoFar
  }

  /** Recovery is over: `follower`, who knows what is here, is notified of each change from now on. */
  protected follow(follower: Follower): void {
    this.#follower = follower
  }

  /** Messages that were acknowledged. */
  get acked(): number {
    const { purged, expired, dropped, cancelled, duplicates, moved, discarded } = this.counts
    const otherwise = purged + expired + dropped + cancelled + duplicates + moved + discarded + this.carried
    return this.next - this.live - otherwise
  }

  get retains(): boolean {
    return this.#options.retainAgeMs > 0 || this.#options.retainBytes > 0
  }

  /** Tries of the message that were charged so far. */
  attemptsOf(offset: number): number {
    const chunk = this.chunkAt(offset)
    return chunk === undefined ? 0 : chunk.attemptsAt(offset - chunk.base)
  }

  livesOf(offset: number): Lives {
    const chunk = this.chunkAt(offset)
    return chunk?.lives?.get(offset - chunk.base) ?? FIRST_LIFE
  }

  deadAt(offset: number): Dead | undefined {
    const chunk = this.chunkAt(offset)
    return chunk?.dead?.get(offset - chunk.base)
  }

  // --- arrivals: in service ---

  /**
   * As `appendFact`, of a batch of the next messages that asks for nothing: it only takes its place at the end, and that
   * is done at the next look at the chunks.
   */
  protected arrive(count: number, position: number, timeMs: number, recordsBytes: number): void {
    this.#arrivals.add(this, count, position, timeMs, recordsBytes)
    this.#arrived += count
    this.next += count
    this.live += count
    this.bytes += recordsBytes
    this.dirty = true
    if (this.#arrived >= ARRIVED_MAX) this.takeIn()
  }

  /** Puts what has arrived into its chunks and into the line. */
  takeIn(): void {
    if (this.lastArrival === NO_ARRIVAL) return
    const arrivals = this.#arrivals
    let from = this.next - this.#arrived
    let place = arrivals.turn(this.lastArrival)
    this.#arrived = 0
    this.lastArrival = NO_ARRIVAL
    while (place !== NO_ARRIVAL) {
      const count = arrivals.count(place)
      const bytes = arrivals.bytes(place)
      for (const end = from + count; from < end;) {
        const to = Math.min(end, chunkEndAfter(from))
        const chunk = this.#chunkToFill(from)
        const share = (bytes * (to - from)) / count
        const position = arrivals.position(place)
        chunk.append(to - chunk.base, position, arrivals.timeMs(place), share, BATCH_HEADER_BYTES + bytes)
        this.#follower.entered(chunk, from - chunk.base, to - chunk.base)
        from = to
      }
      place = arrivals.free(place)
    }
  }

  // --- facts: the same in service and in recovery ---

  /**
   * The messages of a batch were accepted; it is at `position` in the log. In service its first offset is `next`.
   * `traits`: the options of its messages, if any has one. `duplicates` are gone at once.
   */
  appendFact(batch: AppendedBatch, position: number, traits?: Traits, duplicates?: Duplicates): void {
    this.takeIn()
    const { baseOffset: base, count, timeMs, length } = batch
    const end = base + count
    const recordsBytes = length - BATCH_HEADER_BYTES
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.#chunkToFill(from)
      const index = from - chunk.base
      if (chunk.pagePosition <= this.appliedFrom && index >= chunk.count) {
        const bytes =
          traits?.sizes === undefined
            ? (recordsBytes * (to - from)) / count
            : sumOf(traits.sizes, from - base, to - base)
        chunk.append(to - chunk.base, position, timeMs, bytes, length)
        if (traits !== undefined) this.#setTraits(chunk, index, to - chunk.base, traits, from - base)
        this.live += to - from
        this.bytes += bytes
        if (duplicates === undefined) this.#follower.entered(chunk, index, to - chunk.base)
      }
      from = to
    }
    if (end > this.next) this.next = end
    if (duplicates !== undefined) this.#takeDuplicates(base, end, duplicates)
    if (traits?.hasIds === true && this.#options.dedupWindowMs > 0 && this.#options.unique === 'window')
      this.#rememberIds(batch, traits, duplicates)
    this.dirty = true
  }

  #chunkToFill(offset: number): Chunk {
    const newest = this.#newest
    if (newest !== undefined && offset >= newest.base && offset < newest.base + CHUNK_MESSAGES) return newest
    const known = this.chunks.at(offset)
    if (known === undefined) this.use.pages.count++
    return (this.#newest = known ?? this.chunks.toFill(offset))
  }

  #setTraits(chunk: Chunk, from: number, to: number, traits: Traits, traitsFrom: number): void {
    chunk.setTraits(from, to, traits, traitsFrom)
    if (chunk.earliestExpiryMs < this.earliestExpiryMs) this.earliestExpiryMs = chunk.earliestExpiryMs
    const { isKeyed, keys, hasIds, ids, dues } = traits
    if (isKeyed) {
      for (let index = from, at = traitsFrom; index < to; index++, at++) {
        const low = keys[at * 2]!
        const high = keys[at * 2 + 1]!
        if ((low | high) !== 0) chunk.setKey(index, this.keys.hold(low, high))
      }
    }
    if (!hasIds) return
    const all = this.#options.unique === 'pending'
    for (let index = from, at = traitsFrom; index < to; index++, at++) {
      // What is delayed can be cancelled by its id for as long as it waits.
      if (!isId(ids, at * ID_WORDS) || (!all && dues[at] === 0)) continue
      chunk.setId(index, ids, at * ID_WORDS)
      this.#follower.idPending(chunk.base + index)
    }
  }

  #rememberIds(batch: AppendedBatch, traits: Traits, duplicates: Duplicates | undefined): void {
    const { baseOffset: base, count, timeMs } = batch
    if (this.ids.restoredUntil > this.appliedFrom) return
    this.ids.forgetUntil(timeMs - this.#options.dedupWindowMs)
    for (let i = 0; i < count; i++) {
      // In recovery a later change of the window can be known already.
      if (base + i >= this.idsFrom && isId(traits.ids, i * ID_WORDS) && duplicates?.has(i) !== true)
        this.ids.remember(traits.ids, i * ID_WORDS, base + i, timeMs)
    }
  }

  // All of the batch is there by now: it is live for as long as any part of it is.
  #takeDuplicates(base: number, end: number, duplicates: Duplicates): void {
    for (const index of duplicates.keys()) this.remove(base + index, 1, NEVER)
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.chunks.at(from)
      if (chunk !== undefined) {
        for (let index = from - chunk.base; index < to - chunk.base; index++)
          if (!chunk.isGone(index)) this.#follower.entered(chunk, index, index + 1)
      }
      this.#follower.passed(to)
      from = to
    }
  }

  /** Messages `[offset, offset + count)` are gone; those that were gone before are passed over. Returns how many. */
  remove(offset: number, count: number, timeMs: number, bytes?: number): number {
    let removed = 0
    const end = Math.min(offset + count, this.next)
    for (let from = offset; from < end;) {
      const chunk = this.#chunkToApply(from)
      const to = Math.min(end, chunkEndAfter(from))
      if (chunk !== undefined) {
        const share = bytes === undefined ? undefined : (bytes * (to - from)) / count
        removed += this.#removeIn(chunk, from - chunk.base, to - chunk.base, timeMs, share)
      }
      from = to
    }
    return removed
  }

  retryFact(offset: number, attempts: number, dueMs: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    chunk.setDue(offset - chunk.base, attempts, dueMs)
    chunk.dirty = true
  }

  /** `size` is what its record takes, where that is known. */
  deadFact(offset: number, dead: Omit<Dead, 'bytes'>, size?: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    const index = offset - chunk.base
    if (chunk.hasId(index) && !chunk.isDead(index)) this.#follower.idDone(offset)
    chunk.dead ??= new DeadMessages()
    // As exact as it is kept, so that what is added here is what is taken away later.
    const known = chunk.dead.get(index)
    const bytes = known?.bytes ?? size ?? Math.round(chunk.bytesAt(index))
    if (known === undefined) {
      this.deadCount++
      this.deadBytes += bytes
    } else this.#reasons.forget(known.reason)
    chunk.dead.set(index, { ...dead, reason: this.#reasons.keep(dead.reason), bytes })
    chunk.dirty = true
  }

  /** A dead message begins a new life in its queue: it is due at `timeMs`, untried, and no time to live ends it. */
  redriveFact(offset: number, redrives: number, timeMs: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    const index = offset - chunk.base
    const dead = chunk.dead?.get(index)
    if (dead !== undefined) {
      this.deadCount--
      this.deadBytes -= dead.bytes
      this.#reasons.forget(dead.reason)
      this.#undead(chunk, index)
      chunk.lives ??= new Map()
      chunk.lives.set(index, {
        redrives,
        attempts: (chunk.lives.get(index)?.attempts ?? 0) + dead.attempts,
      })
    }
    chunk.setDue(index, 0, timeMs)
    if (chunk.expiryAt(index) !== 0) chunk.setExpiry(index, 0)
    if (chunk.hasId(index)) this.#follower.idPending(offset)
    chunk.dirty = true
  }

  /** The message is due at another time. As long as it was not tried, its time to live begins there. */
  rescheduleFact(offset: number, dueMs: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    const index = offset - chunk.base
    const attempts = chunk.attemptsAt(index)
    const expiryMs = chunk.expiryAt(index)
    if (expiryMs !== 0) {
      if (attempts === 0) chunk.setExpiry(index, expiryMs + dueMs - chunk.lineTimeAt(index))
      else chunk.lookAtExpiries(Math.max(expiryMs, dueMs))
      this.earliestExpiryMs = Math.min(this.earliestExpiryMs, chunk.earliestExpiryMs)
    }
    chunk.setDue(index, attempts, dueMs)
    chunk.dirty = true
  }

  /** All below `below` but the dead are gone. */
  purgeFact(below: number, timeMs: number): void {
    for (const chunk of this.chunks) {
      if (chunk.pagePosition > this.appliedFrom) continue
      const end = Math.min(chunk.count, below - chunk.base)
      if (end <= 0) continue
      let from = 0
      for (const index of [...(chunk.dead?.indexes() ?? []), end]) {
        if (index > from) this.#removeIn(chunk, from, Math.min(index, end), timeMs)
        from = index + 1
      }
    }
  }

  /** The batch that begins with `offset` was copied to `position`. */
  relocateFact(offset: number, count: number, position: number): void {
    let from = -1
    let bytes = 0
    for (let at = offset; at < offset + count; at = chunkEndAfter(at)) {
      const chunk = this.#chunkToApply(at)
      if (chunk === undefined) continue
      const index = at - chunk.base
      const batch = chunk.batches.find(index)
      if (chunk.batches.first(batch) !== index) continue
      from = chunk.batches.place(batch)
      bytes = chunk.batches.bytes(batch)
      chunk.relocate(batch, position)
    }
    if (from !== -1) this.#follower.copied(from, position, bytes)
  }

  /** Recovery: the definition was changed. */
  redefine({ options, paused, idsFrom }: QueueDefinition): void {
    this.options = options
    this.paused = paused
    this.idsFrom = idsFrom
    this.ids.forgetBelow(idsFrom)
    this.dirty = true
  }

  tallyFact(released: number, redelivered: number): void {
    Object.assign(this.counts, { released, redelivered })
    Object.assign(this.tallied, { released, redelivered })
    this.dirty = true
  }

  // --- chunks ---

  /** The queue is gone: nothing in the log is needed for it any more. */
  drop(): void {
    this.#follower.dropped()
    for (const chunk of this.chunks) {
      this.use.pages.gone(chunk.pageBytes)
      for (const index of chunk.dead?.indexes() ?? []) this.#reasons.forget(chunk.dead!.get(index)!.reason)
    }
    this.ids.drop()
    // Whoever still holds on to the queue finds nothing in it.
    this.chunks.clear()
    this.#newest = undefined
    this.live = 0
    this.deadCount = 0
  }

  chunkAt(offset: number): Chunk | undefined {
    return this.chunks.at(offset)
  }

  /** Says where the message at `offset`, which is not gone, is in the log. */
  locate(offset: number, location: Location): void {
    const chunk = this.chunkAt(offset)!
    chunk.locate(offset - chunk.base, location)
  }

  /** Puts a chunk in that was read from a page. */
  restore(chunk: Chunk): void {
    this.chunks.place(chunk)
    this.#newest = undefined
    this.use.pages.count++
    this.use.pages.written(0, chunk.pageBytes)
    this.live += chunk.live
    this.bytes += chunk.bytes
    this.deadCount += chunk.dead?.size ?? 0
    for (const index of chunk.dead?.indexes() ?? []) {
      const dead = chunk.dead!.get(index)!
      this.deadBytes += dead.bytes
      chunk.dead!.set(index, { ...dead, reason: this.#reasons.keep(dead.reason) })
    }
    this.earliestExpiryMs = Math.min(this.earliestExpiryMs, chunk.earliestExpiryMs)
  }

  // The chunk that a fact about `offset` changes; undefined when it is gone or its page holds the fact already.
  #chunkToApply(offset: number): Chunk | undefined {
    const chunk = this.chunks.at(offset)
    return chunk === undefined || chunk.pagePosition > this.appliedFrom ? undefined : chunk
  }

  #liveChunkToApply(offset: number): Chunk | undefined {
    const chunk = this.#chunkToApply(offset)
    return chunk === undefined || chunk.isGone(offset - chunk.base) ? undefined : chunk
  }

  // Batch by batch, because each stands in a segment of its own that loses live messages.
  // `size` is what the messages take, where that is known.
  #removeIn(chunk: Chunk, from: number, to: number, timeMs: number, size?: number): number {
    let removed = 0
    const end = Math.min(to, chunk.count)
    const hasMore = chunk.holdsMessages
    for (let index = from; index < end;) {
      const batch = chunk.batches.find(index)
      const batchEnd = Math.min(chunk.batchEnd(batch), end)
      const counted = hasMore ? this.#forget(chunk, index, batchEnd) : undefined
      const bytes =
        size === undefined || chunk.hasSizes ? counted : (size * (batchEnd - index)) / (end - from)
      const bytesBefore = chunk.bytes
      const count = chunk.remove(index, batchEnd, bytes)
      if (count > 0) {
        removed += count
        this.bytes -= bytesBefore - chunk.bytes
        this.#follower.removedFrom(chunk, batch)
        // What is in the queue's page is counted there.
        if (this.retains && timeMs !== NEVER && this.pagePosition < this.appliedFrom)
          this.use.retain(this.id, chunk.batches.place(batch), bytesBefore - chunk.bytes, timeMs)
      }
      index = batchEnd
    }
    if (removed === 0) return 0
    this.live -= removed
    this.dirty = true
    if (chunk.live === 0 && chunk.full) {
      this.chunks.drop(chunk)
      this.use.pages.gone(chunk.pageBytes)
      if (this.#newest === chunk) this.#newest = undefined
    } else chunk.pack(end)
    return removed
  }

  // What is kept about single messages that are about to be gone goes with them. Returns their bytes.
  #forget(chunk: Chunk, from: number, to: number): number {
    let bytes = 0
    for (let index = from; index < to; index++) {
      if (chunk.isGone(index)) continue
      const size = chunk.bytesAt(index)
      bytes += size
      const slot = chunk.keyAt(index)
      if (slot !== NONE) this.keys.release(slot)
      if (chunk.hasId(index) && !chunk.isDead(index)) this.#follower.idDone(chunk.base + index)
      chunk.lives?.delete(index)
      chunk.forgetSize(index)
      const dead = chunk.dead?.get(index)
      if (dead === undefined) continue
      this.#reasons.forget(dead.reason)
      this.#undead(chunk, index)
      this.deadCount--
      this.deadBytes -= dead.bytes
    }
    return bytes
  }

  #undead(chunk: Chunk, index: number): void {
    chunk.dead!.delete(index)
    if (chunk.dead!.size === 0) chunk.dead = undefined
  }
}

function sumOf(sizes: Uint32Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += sizes[at]!
  return sum
}
