/**
 * A queue: the durable state of its messages, and the line in which they are handed out. Pure: time and chance come
 * as arguments, bytes stay outside (the queue knows where a batch stands in the log, not what it says).
 *
 * Each message is in exactly one state (invariant 6): ready in a plain line (in neither `gone` nor `out` of its
 * chunk), scheduled (in `out` and `waiting`), due (in `ripe` as well, and in a heap or in the line of its key), leased
 * (in `out`, and in one slot of one subscription), dead (in `out` and `dead`), or gone.
 */
import {
  BATCH_HEADER_BYTES,
  LIMITS,
  QUEUE_COUNTERS,
  SluiceError,
  type Claim,
  type Duplicates,
  type MessageState,
  type QueueCounter,
  type QueueInfo,
  type QueueOptions,
} from '@sluice/protocol'
import { NO_ARRIVAL, type Arrivals, type Arriving } from './arrivals.js'
import { CHUNK_MESSAGES } from './bits.js'
import { DEATH, type Chunk, type Death, type Lives, type Traits } from './chunk.js'
import { DeadMessages, type Dead } from './dead.js'
import { Chunks, chunkEndAfter } from './chunks.js'
import { FactBuffer, type GoneFact } from './facts.js'
import { FormerLeases } from './former.js'
import { ID_WORDS } from './hash.js'
import { IdWindow, PendingIds } from './ids.js'
import type { Placed } from './key-lines.js'
import { Keys, NONE } from './keys.js'
import { Line, type Run } from './line.js'
import { MARK } from './marks.js'
import type { PageUse } from './page-use.js'
import { Reasons } from './reasons.js'
import type { Subscription } from './subscription.js'

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

/** What comes to a queue in one step, while it is checked: a batch, or acknowledgements and batches of an atomic step. */
export interface Coming {
  /** What leaves: acknowledged messages, which are as good as gone. */
  messages: number
  bytes: number
  /** Undefined: none. */
  offsets: Set<number> | undefined
  /** The batches, in their order. */
  readonly batches: Admission[]
  /** Offsets that they take. */
  taken: number
  /** Ids that they have; undefined: none so far. */
  firsts: Map<string, First> | undefined
  /** Those of them whose message takes the place of one that waits. */
  replacing: First[] | undefined
  /** How many ids were not known. */
  freshIds: number
}

export function newComing(): Coming {
  return {
    messages: 0,
    bytes: 0,
    offsets: undefined,
    batches: [],
    taken: 0,
    firsts: undefined,
    replacing: undefined,
    freshIds: 0,
  }
}

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

/** What accepting a batch needs to know before it changes anything. Final once all that comes with it was looked at. */
export interface Admission {
  /** Offset of its first message. */
  readonly base: number
  /** Messages that have the id of another one, in any order. */
  later: { readonly index: number; readonly first: First }[] | undefined
  /** The same, in order: index → offset of that one. */
  duplicates: Map<number, number> | undefined
  /** Messages that take the place of one that waits: index → offset of that one. */
  replaced: Map<number, number> | undefined
  /** Without duplicates. */
  messages: number
  bytes: number
}

/** An id of what comes, while it is looked at. */
interface First {
  /** Of the message that has the id: one that comes, or one that is known. */
  offset: number
  /** The batch that it comes in; undefined: an earlier message is known. */
  batch: Admission | undefined
  /** What its record takes, where that counts. */
  bytes: number
  /** The message whose place it takes; -1: none. */
  readonly replaced: number
}

/** Messages that a queue leaves in the ring of arrivals: to take in a thousand batches takes 0.2 ms. */
const ARRIVED_MAX = CHUNK_MESSAGES
const NOBODY: readonly Subscription[] = []
/** Chunks that one batch can be in. */
const BATCH_CHUNKS_MAX = Math.ceil(LIMITS.batchCountMax / CHUNK_MESSAGES) + 1
/** How often messages are looked for whose time to live is over. */
const SWEEP_MS = 1_000

export class Queue implements Arriving {
  // What each append looks at stands first, together: with thousands of queues little else is in the cache.
  readonly id: number
  readonly name: string
  /** Offset of the next message. */
  next = 0
  live = 0
  /** The definition or the counters differ from the newest page. */
  dirty = true
  /** Its options ask for a look at each batch, whatever the messages ask for. */
  looksAtMessages = false
  /** The line exists: recovery is over. */
  #isOpen = false
  /** Those that it hands messages to, in the order in which they came. */
  subscriptions: readonly Subscription[] = NOBODY
  readonly #use: LogUse
  readonly #arrivals: Arrivals
  lastArrival = NO_ARRIVAL
  /** Messages that have arrived and are not taken in: the newest ones. */
  #arrived = 0
  /** Of all messages that are not gone. */
  bytes = 0
  #options!: QueueOptions
  /** The chunk that was filled last, if it is still there: the way to it through the list of all is longer. */
  #newest: Chunk | undefined
  // Both as of what was taken in: nobody but `#chunks` and `#line` looks at them.
  readonly #chunksSoFar = new Chunks()
  readonly keys = new Keys()
  readonly #lineSoFar = new Line(this.#chunksSoFar, this.keys)
  readonly createdAtMs: number
  readonly seed: readonly number[]
  paused: boolean
  idsFrom: number
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

  leased = 0
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
  /** No message that is being handled must be done before this. */
  earliestDeadlineMs = Infinity
  /** How what its messages ask for is read. */
  traitRules!: { readonly seed: readonly number[]; readonly ttlMs: number; readonly withSizes: boolean }
  /** Offsets of dead messages that are to be moved, as they died. */
  readonly moving: number[] = []

  readonly ids: IdWindow
  readonly former = new FormerLeases()
  readonly #pending: PendingIds
  readonly #reasons: Reasons
  /** Highest offset handed out by this run of the broker, + 1. */
  #deliveredBelow = 0
  /** No message expires before this. */
  #earliestExpiryMs = Infinity
  #sweptMs = 0

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
    this.#use = use
    this.ids = new IdWindow(use.pages)
    this.#arrivals = arrivals
    this.#reasons = reasons
    this.#pending = new PendingIds(this.#chunksSoFar)
    this.options = definition.options
  }

  get options(): QueueOptions {
    return this.#options
  }

  set options(options: QueueOptions) {
    this.#options = options
    this.looksAtMessages = options.ttlMs > 0 || options.maxMessages > 0 || options.maxBytes > 0
    this.traitRules = { seed: this.seed, ttlMs: options.ttlMs, withSizes: options.maxBytes > 0 }
    this.#lineSoFar.rules = { keyConcurrency: options.keyConcurrency, blocks: options.onFail === 'block' }
  }

  get #chunks(): Chunks {
    if (this.lastArrival !== NO_ARRIVAL) this.takeIn()
    return this.#chunksSoFar
  }

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

  /** Messages that were acknowledged. */
  get acked(): number {
    const { purged, expired, dropped, cancelled, duplicates, moved, discarded } = this.counts
    const otherwise = purged + expired + dropped + cancelled + duplicates + moved + discarded + this.carried
    return this.next - this.live - otherwise
  }

  get retains(): boolean {
    return this.#options.retainAgeMs > 0 || this.#options.retainBytes > 0
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
   * `traits`: what they ask for, where any of them asks for anything. `duplicates` are gone at once.
   */
  append(
    base: number,
    count: number,
    position: number,
    timeMs: number,
    recordsBytes: number,
    traits?: Traits,
    duplicates?: Duplicates,
  ): void {
    // What asks for nothing only takes its place at the end; that is done when somebody looks.
    if (this.#isOpen && traits === undefined && duplicates === undefined) {
      this.#arrivals.add(this, count, position, timeMs, recordsBytes)
      this.#arrived += count
      this.next = base + count
      this.live += count
      this.bytes += recordsBytes
      this.dirty = true
      this.#use.add(position, BATCH_HEADER_BYTES + recordsBytes)
      if (this.#arrived >= ARRIVED_MAX) this.takeIn()
      return
    }
    this.takeIn()
    const end = base + count
    const batchBytes = BATCH_HEADER_BYTES + recordsBytes
    if (this.#isOpen) this.#use.add(position, batchBytes)
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.#chunkToFill(from)
      const index = from - chunk.base
      if ((this.#isOpen || chunk.pagePosition <= this.appliedFrom) && index >= chunk.count) {
        const bytes =
          traits?.sizes === undefined
            ? (recordsBytes * (to - from)) / count
            : sumOf(traits.sizes, from - base, to - base)
        chunk.append(to - chunk.base, position, timeMs, bytes, batchBytes)
        if (traits !== undefined) this.#setTraits(chunk, index, to - chunk.base, traits, from - base)
        this.live += to - from
        this.bytes += bytes
        if (this.#isOpen && duplicates === undefined) this.#line.add(chunk, index, to - chunk.base)
      }
      from = to
    }
    if (end > this.next) this.next = end
    if (duplicates !== undefined) this.#takeDuplicates(base, end, duplicates)
    if (traits?.hasIds === true && this.#options.dedupWindowMs > 0 && this.#options.unique === 'window')
      this.#rememberIds(base, count, timeMs, traits, duplicates)
    this.dirty = true
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
        this.#line.add(chunk, from - chunk.base, to - chunk.base)
        from = to
      }
      place = arrivals.free(place)
    }
  }

  #chunkToFill(offset: number): Chunk {
    const newest = this.#newest
    if (newest !== undefined && offset >= newest.base && offset < newest.base + CHUNK_MESSAGES) return newest
    const known = this.#chunks.at(offset)
    if (known === undefined) this.#use.pages.count++
    return (this.#newest = known ?? this.#chunks.toFill(offset))
  }

  #setTraits(chunk: Chunk, from: number, to: number, traits: Traits, traitsFrom: number): void {
    chunk.setTraits(from, to, traits, traitsFrom)
    if (chunk.earliestExpiryMs < this.#earliestExpiryMs) this.#earliestExpiryMs = chunk.earliestExpiryMs
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
      // In recovery a later fact can free an id for an earlier batch of the same turn: they are known when it is over.
      if (this.#isOpen) this.#pending.add(chunk.base + index)
    }
  }

  #rememberIds(
    base: number,
    count: number,
    timeMs: number,
    traits: Traits,
    duplicates: Duplicates | undefined,
  ): void {
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
    if (!this.#isOpen) return
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.#chunks.at(from)
      if (chunk !== undefined) {
        for (let index = from - chunk.base; index < to - chunk.base; index++)
          if (!chunk.isGone(index)) this.#line.add(chunk, index, index + 1)
      }
      this.#line.passed(to)
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
    if (this.#isOpen && chunk.hasId(index) && !chunk.isDead(index)) this.#pending.done(offset)
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
    if (this.#isOpen && chunk.hasId(index)) this.#pending.add(offset)
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
      this.#earliestExpiryMs = Math.min(this.#earliestExpiryMs, chunk.earliestExpiryMs)
    }
    chunk.setDue(index, attempts, dueMs)
    chunk.dirty = true
  }

  /** All below `below` but the dead are gone. */
  purgeFact(below: number, timeMs: number): void {
    for (const chunk of this.chunks()) {
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
    if (this.#isOpen && from !== -1) this.#use.move(from, position, bytes)
  }

  /** Live messages of the batch of `[offset, offset + count)`, if it still stands at `position`. */
  liveAt(offset: number, count: number, position: number): number {
    let live = 0
    for (let from = offset; from < offset + count;) {
      const to = Math.min(offset + count, chunkEndAfter(from))
      const chunk = this.chunkAt(from)
      if (chunk !== undefined && from - chunk.base < chunk.count) {
        const batch = chunk.batches.find(from - chunk.base)
        if (chunk.batches.place(batch) === position) live += liveIn(chunk, from - chunk.base, to - chunk.base)
      }
      from = to
    }
    return live
  }

  /** The queue is gone: nothing in the log is needed for it any more. */
  drop(): void {
    if (this.#isOpen) this.eachLiveBatch((place, bytes) => this.#use.remove(place, bytes))
    for (const chunk of this.chunks()) {
      this.#use.pages.gone(chunk.pageBytes)
      for (const index of chunk.dead?.indexes() ?? []) this.#reasons.forget(chunk.dead!.get(index)!.reason)
    }
    this.ids.drop()
    // Whoever still holds on to the queue finds nothing in it.
    this.#chunks.clear()
    this.#newest = undefined
    this.#line.clear()
    this.moving.length = 0
    this.live = 0
    this.leased = 0
    this.deadCount = 0
  }

  chunkAt(offset: number): Chunk | undefined {
    return this.#chunks.at(offset)
  }

  /** Where the batch with its oldest message that is not done stands in the log; -1: it has none. */
  get oldestPosition(): number {
    let position = -1
    this.eachLiveBatch((place) => {
      position = place
      return true
    })
    return position
  }

  /**
   * Visits the batches that any live message is in, each once, by offset, until `visit` returns true. Makes no object for
   * each: a queue that is deleted can have millions of them.
   */
  eachLiveBatch(visit: (place: number, bytes: number) => boolean | void): void {
    let last = -1
    for (const chunk of this.chunks()) {
      if (chunk.live === 0) continue
      for (let batch = 0; batch < chunk.batches.count; batch++) {
        const place = chunk.batches.place(batch)
        // One that goes on in the next chunk was told of.
        if (place === last || chunk.batchIsGone(batch)) continue
        last = place
        if (visit(place, chunk.batches.bytes(batch)) === true) return
      }
    }
  }

  chunks(): IterableIterator<Chunk> {
    return this.#chunks[Symbol.iterator]()
  }

  /** Offset of the oldest chunk that is not all gone, and everything before it is. */
  get firstOffset(): number {
    return this.#chunks.firstOffset
  }

  /** Puts a chunk in that was read from a page. */
  restore(chunk: Chunk): void {
    this.#chunks.place(chunk)
    this.#newest = undefined
    this.#use.pages.count++
    this.#use.pages.written(0, chunk.pageBytes)
    this.live += chunk.live
    this.bytes += chunk.bytes
    this.deadCount += chunk.dead?.size ?? 0
    for (const index of chunk.dead?.indexes() ?? []) {
      const dead = chunk.dead!.get(index)!
      this.deadBytes += dead.bytes
      chunk.dead!.set(index, { ...dead, reason: this.#reasons.keep(dead.reason) })
    }
    this.#earliestExpiryMs = Math.min(this.#earliestExpiryMs, chunk.earliestExpiryMs)
  }

  // --- the line ---

  /** Recovery is over: every message takes its place in the line. */
  open(nowMs: number): void {
    this.#isOpen = true
    this.eachLiveBatch((place, bytes) => this.#use.add(place, bytes))
    this.former.open()
    for (const chunk of this.chunks()) {
      for (const index of chunk.dead?.indexes() ?? [])
        if (chunk.dead!.get(index)!.isMoving) this.moving.push(chunk.base + index)
      if (!chunk.hasIds) continue
      for (const index of chunk.liveIndexes()) {
        if (chunk.hasId(index) && !chunk.isDead(index)) this.#pending.add(chunk.base + index)
      }
    }
    this.#line.rebuild(this.next, nowMs)
  }

  /** The options have changed: what follows from them for what is there already. */
  applyOptions(options: QueueOptions, nowMs: number): void {
    const { onFail, keyConcurrency, dedupWindowMs } = this.#options
    this.options = options
    if (onFail !== options.onFail || keyConcurrency !== options.keyConcurrency)
      this.#line.reorder(this.#line.rules, nowMs)
    if (dedupWindowMs !== options.dedupWindowMs) {
      // What either window has forgotten no later one knows again, nor another process that reads the ids in the log.
      this.ids.forgetUntil(nowMs - Math.min(dedupWindowMs, options.dedupWindowMs))
      this.idsFrom = this.ids.oldestOffset === -1 ? this.next : this.ids.oldestOffset
    }
    this.dirty = true
  }

  /** Recovery: the definition was changed. */
  redefine({ options, paused, idsFrom }: QueueDefinition): void {
    this.options = options
    this.paused = paused
    this.idsFrom = idsFrom
    this.ids.forgetBelow(idsFrom)
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
    if (nowMs >= this.#earliestExpiryMs) this.#sweep(nowMs)
    if (this.ids.size > 0) this.ids.forgetUntil(nowMs - this.#options.dedupWindowMs)
  }

  /** When `advance` has something to do next; Infinity when nothing waits for its time. */
  get nextDeadline(): number {
    return Math.min(this.#line.nextDeadline, this.#nextSweepMs, this.earliestDeadlineMs)
  }

  get #nextSweepMs(): number {
    return Math.max(this.#earliestExpiryMs, this.#sweptMs + SWEEP_MS)
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
    if (chunk.isDead(index) || !this.#line.stands(chunk, index)) return undefined
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
    const { maxDeliveries } = this.#options
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

  tallyFact(released: number, redelivered: number): void {
    Object.assign(this.counts, { released, redelivered })
    Object.assign(this.tallied, { released, redelivered })
    this.dirty = true
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

  /** A leased message, about to be released, may have killed its consumer: it is handed out alone from now on. */
  suspect(offset: number): void {
    this.#line.suspect(offset)
  }

  /** A leased message, about to be released, was with a consumer that died and had begun with nothing. */
  unexplained(offset: number): void {
    this.#line.unexplained(offset)
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
    const isMoving = this.#options.deadLetter !== ''
    this.#line.absolve(offset)
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
        `Message ${offset} of the queue ${this.name} is with a consumer; it can be changed once it is back.`,
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
    if (this.#options.unique !== 'pending') return true
    const chunk = this.chunkAt(offset)!
    const index = offset - chunk.base
    return !chunk.hasId(index) || this.#pending.find(chunk.idAt(index), 0) === -1
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
    this.#line.absolve(offset)
    this.facts.gone(kind, offset, 1)
    this.dirty = true
  }

  // --- what may be accepted ---

  /**
   * Looks at a batch that would come behind those of `coming`, after `settleTime`. Nothing of the queue is changed.
   * @throws SluiceError DEDUP_FULL
   */
  look(count: number, recordsBytes: number, traits: Traits | undefined, coming: Coming): Admission {
    const { unique, dedupWindowMs } = this.#options
    const base = this.next + coming.taken
    const batch: Admission = {
      base,
      later: undefined,
      duplicates: undefined,
      replaced: undefined,
      messages: count,
      bytes: recordsBytes,
    }
    coming.batches.push(batch)
    coming.taken += count
    if (traits?.hasIds === true && (unique === 'pending' || dedupWindowMs > 0))
      this.#findDuplicates(count, traits, batch, coming)
    return batch
  }

  // Each id is looked up once, however often it comes.
  #findDuplicates(count: number, traits: Traits, batch: Admission, coming: Coming): void {
    const { offsets } = coming
    const firsts = (coming.firsts ??= new Map())
    const isPending = this.#options.unique === 'pending'
    const stays = offsets === undefined ? undefined : (offset: number): boolean => !offsets.has(offset)
    let fresh = 0
    for (let index = 0; index < count; index++) {
      const at = index * ID_WORDS
      if (!isId(traits.ids, at)) continue
      const id = traits.ids.subarray(at, at + ID_WORDS).join()
      const replaces = traits.replaces[index] === 1
      const offset = batch.base + index
      const bytes = traits.sizes?.[index] ?? 0
      const first = firsts.get(id)
      if (first === undefined) {
        const known = isPending ? this.#pending.find(traits.ids, at, stays) : this.ids.find(traits.ids, at)
        if (known === -1) fresh++
        const isAccepted = known === -1 || (replaces && this.#isReplaceable(known))
        const made = isAccepted
          ? { offset, batch, bytes, replaced: known }
          : { offset: known, batch: undefined, bytes: 0, replaced: -1 }
        firsts.set(id, made)
        if (!isAccepted) addLater(batch, index, bytes, made)
        else if (known !== -1) (coming.replacing ??= []).push(made)
      } else if (replaces && first.batch !== undefined) {
        // Of several that come together the last is accepted, whichever batches they are in.
        addLater(first.batch, first.offset - first.batch.base, first.bytes, first)
        first.offset = offset
        first.batch = batch
        first.bytes = bytes
      } else addLater(batch, index, bytes, first)
    }
    coming.freshIds += fresh
    if (fresh > 0) this.#checkIds(coming)
  }

  // @throws SluiceError DEDUP_FULL
  #checkIds(coming: Coming): void {
    const { unique, dedupMaxIds } = this.#options
    const known = unique === 'pending' ? this.#pending.count - this.#idsOf(coming) : this.ids.count
    if (known + coming.freshIds <= dedupMaxIds) return
    throw new SluiceError(
      'DEDUP_FULL',
      `The queue ${this.name} remembers ${known} ids, and ${coming.freshIds} more came; it remembers at most ${dedupMaxIds}.`,
      { retryAfterMs: 1_000 },
    )
  }

  /**
   * All that comes was looked at: what each batch brings is final. Nothing of the queue is changed.
   * @throws SluiceError QUEUE_FULL
   */
  admit(coming: Coming): void {
    for (const batch of coming.batches) {
      if (batch.later === undefined) continue
      batch.later.sort((a, b) => a.index - b.index)
      batch.duplicates = new Map(batch.later.map(({ index, first }) => [index, first.offset]))
    }
    for (const { batch, offset, replaced } of coming.replacing ?? [])
      (batch!.replaced ??= new Map()).set(offset - batch!.base, replaced)
    const { maxMessages, maxBytes } = this.#options
    if (maxMessages > 0 || maxBytes > 0) this.#checkLimits(coming)
  }

  #isReplaceable(offset: number): boolean {
    const state = this.stateOf(offset)
    return state === 'scheduled' || state === 'ready'
  }

  /** What was admitted takes their places. */
  replace({ replaced }: Admission, nowMs: number): void {
    if (replaced === undefined) return
    for (const offset of replaced.values()) this.cancel(offset, nowMs)
  }

  // Ids of messages that leave in the same step, and that no other message has.
  #idsOf({ offsets }: Coming): number {
    if (offsets === undefined) return 0
    let ids = 0
    const stays = (offset: number): boolean => !offsets.has(offset)
    const seen = new Set<string>()
    for (const offset of offsets) {
      const chunk = this.chunkAt(offset)!
      const words = chunk.idAt(offset - chunk.base)
      const id = words.join()
      if (!isId(words, 0) || seen.has(id)) continue
      seen.add(id)
      if (this.#pending.find(words, 0, stays) === -1) ids++
    }
    return ids
  }

  #checkLimits(coming: Coming): void {
    const { maxMessages, maxBytes, overflow } = this.#options
    let messages = this.live - this.deadCount - coming.messages
    let bytes = this.bytes - this.deadBytes - coming.bytes
    let moreMessages = 0
    let moreBytes = 0
    for (const batch of coming.batches) {
      moreMessages += batch.messages
      moreBytes += batch.bytes
      if (batch.replaced === undefined) continue
      for (const offset of batch.replaced.values()) {
        const chunk = this.chunkAt(offset)!
        messages--
        bytes -= chunk.bytesAt(offset - chunk.base)
      }
    }
    if (moreMessages === 0) return
    bytes = Math.round(bytes)
    // What consumers hold cannot make room; of the rest, all could.
    const firmMessages = overflow === 'reject' ? messages : this.leased - coming.messages
    let firmBytes = bytes
    if (overflow !== 'reject') {
      firmBytes = -coming.bytes
      for (const subscription of this.subscriptions) firmBytes += subscription.unsettledBytes
    }
    if (maxMessages > 0 && firmMessages + moreMessages > maxMessages)
      throw this.#full('messages', messages, moreMessages, maxMessages)
    if (maxBytes > 0 && Math.round(firmBytes) + moreBytes > maxBytes)
      throw this.#full('bytes', bytes, moreBytes, maxBytes)
  }

  #full(what: string, has: number, more: number, most: number): SluiceError {
    return new SluiceError(
      'QUEUE_FULL',
      `The queue ${this.name} holds ${has} ${what}, and ${more} more came; it holds at most ${most}.`,
      // What would not fit an empty queue will never fit.
      more > most ? { retryable: false } : { retryAfterMs: 100 },
    )
  }

  /** Makes room for what was admitted. */
  makeRoom({ batches }: Pick<Coming, 'batches'>, nowMs: number): void {
    const { maxMessages, maxBytes, overflow } = this.#options
    if ((maxMessages === 0 && maxBytes === 0) || overflow === 'reject') return
    let messages = 0
    let bytes = 0
    for (const batch of batches) {
      messages += batch.messages
      bytes += batch.bytes
    }
    if (messages === 0) return
    const mostMessages = (maxMessages || Infinity) - messages
    const mostBytes = (maxBytes || Infinity) - bytes
    while (this.live - this.deadCount > mostMessages || Math.round(this.bytes - this.deadBytes) > mostBytes) {
      const offset = this.#line.oldest()
      if (offset === -1) return
      const chunk = this.chunkAt(offset)!
      this.#line.leave(chunk, offset - chunk.base, nowMs)
      if (overflow === 'drop-oldest') {
        this.#gone('drop', offset)
        this.counts.dropped += this.remove(offset, 1, nowMs)
      } else this.#die(offset, this.attemptsOf(offset), DEATH.overflow, nowMs, '')
    }
  }

  // --- looking ---

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

  /** Undefined for a message that is gone, or never was. */
  stateOf(offset: number): MessageState | undefined {
    const chunk = this.chunkAt(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || index >= chunk.count || chunk.isGone(index)) return undefined
    if (chunk.isDead(index)) return 'dead'
    if (chunk.isScheduled(index)) return 'scheduled'
    return this.#line.stands(chunk, index) ? 'ready' : 'leased'
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
    const standing = this.#pending.find(id, 0, (offset) => this.stateOf(offset) !== 'leased')
    const pending = standing === -1 ? this.#pending.find(id, 0) : standing
    if (pending !== -1 || this.#options.unique === 'pending') return pending
    const offset = this.ids.find(id, 0)
    return offset === -1 || this.stateOf(offset) === undefined ? -1 : offset
  }

  /**
   * Wait before try `attempts + 1`: initial × 2^(attempts − 1), within ± 20 % by `chance` in [0, 1), at most the
   * queue's `retryMaxMs`.
   */
  backoffMs(attempts: number, chance: number): number {
    const { retryInitialMs, retryMaxMs } = this.#options
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
    if (nowMs >= this.#earliestExpiryMs) {
      for (const chunk of this.#chunks) {
        if (chunk.earliestExpiryMs > nowMs) continue
        for (let index = 0; index < chunk.count; index++) {
          if (!chunk.isExpired(index, nowMs) || chunk.isGone(index) || chunk.isDead(index)) continue
          if (!chunk.isScheduled(index) && this.#line.stands(chunk, index)) expire(chunk, index)
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
      options: this.#options,
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
    let plain = 0
    let waiting = 0
    let scheduled = 0
    for (const chunk of this.chunks()) {
      const counted = chunk.liveIn(0, chunk.count)
      if (chunk.live !== counted)
        throw new Error(`chunk ${chunk.base}: live ${chunk.live}, counted ${counted}`)
      live += chunk.live
      dead += chunk.dead?.size ?? 0
      for (const index of chunk.liveIndexes()) {
        if (!chunk.has(MARK.out, index)) plain++
        else if (this.#line.stands(chunk, index)) waiting++
        if (chunk.isScheduled(index)) scheduled++
      }
    }
    let held = 0
    for (const subscription of this.subscriptions) held += subscription.unsettled
    const line = this.#line.counts()
    const counted = plain + waiting + this.leased + dead
    if (
      live !== this.live ||
      dead !== this.deadCount ||
      counted !== live ||
      held !== this.leased ||
      plain !== line.plain ||
      scheduled !== line.scheduled ||
      scheduled !== this.#line.scheduled ||
      waiting !== line.scheduled + line.due + line.keyed
    ) {
      throw new Error(
        `queue ${this.name}: live ${this.live}/${live}, dead ${this.deadCount}/${dead}, leased ${this.leased}/${held}, ` +
          `plain ${line.plain}/${plain} + waiting ${line.scheduled} + ${line.due} + ${line.keyed}/${waiting} + leased + dead = ${counted}, ` +
          `scheduled ${this.#line.scheduled}/${scheduled}`,
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
    this.#gone('expire', offset)
    this.counts.expired += this.remove(offset, 1, nowMs)
  }

  #expireInLine(chunk: Chunk, offset: number, nowMs: number): void {
    // It went when its time was over, however late that is noticed.
    this.#line.leave(chunk, offset - chunk.base, chunk.expiryAt(offset - chunk.base))
    this.#gone('expire', offset)
    this.counts.expired += this.remove(offset, 1, nowMs)
  }

  // What is leased is looked at when it comes back.
  #sweep(nowMs: number): void {
    this.#sweptMs = nowMs
    const expired: Placed[] = []
    for (const chunk of this.#chunks) if (chunk.earliestExpiryMs <= nowMs) this.#look(chunk, nowMs, expired)
    // In the order in which their times were over: each may have freed its key for the next.
    if (this.keys.size > 0) expired.sort((a, b) => a.timeMs - b.timeMs)
    for (const { chunk, index } of expired) this.#expireInLine(chunk, chunk.base + index, nowMs)
    this.#earliestExpiryMs = Infinity
    for (const chunk of this.#chunks)
      this.#earliestExpiryMs = Math.min(this.#earliestExpiryMs, chunk.earliestExpiryMs)
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
      else if (this.#line.stands(chunk, index)) expired.push({ chunk, index, timeMs: expiryMs })
    }
  }

  // The chunk that a fact about `offset` changes; undefined when it is gone or its page holds the fact already.
  #chunkToApply(offset: number): Chunk | undefined {
    const chunk = this.#chunks.at(offset)
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
        // In recovery parts of a batch can be missing still: what is live is counted when it is over.
        if (this.#isOpen && this.#isOver(chunk, batch))
          this.#use.remove(chunk.batches.place(batch), chunk.batches.bytes(batch))
        // What is in the queue's page is counted there.
        if (this.retains && timeMs !== NEVER && this.pagePosition < this.appliedFrom)
          this.#use.retain(this.id, chunk.batches.place(batch), bytesBefore - chunk.bytes, timeMs)
      }
      index = batchEnd
    }
    if (removed === 0) return 0
    this.live -= removed
    this.dirty = true
    if (chunk.live === 0 && chunk.full) {
      this.#chunks.drop(chunk)
      this.#use.pages.gone(chunk.pageBytes)
      if (this.#newest === chunk) this.#newest = undefined
    } else chunk.pack(end)
    return removed
  }

  // Whether nothing of the batch is live, here or in the chunks that it came from and goes on in.
  #isOver(chunk: Chunk, batch: number): boolean {
    if (!chunk.batchIsGone(batch)) return false
    const place = chunk.batches.place(batch)
    if (batch === 0 && this.#isLiveFrom(chunk.base, -CHUNK_MESSAGES, place)) return false
    const isLast = batch + 1 === chunk.batches.count
    return !isLast || !chunk.full || !this.#isLiveFrom(chunk.base, CHUNK_MESSAGES, place)
  }

  // Whether the batch at `place` has a live message in the next chunk that is there: a chunk between would be all of it.
  #isLiveFrom(base: number, step: number, place: number): boolean {
    for (let i = 1; i <= BATCH_CHUNKS_MAX; i++) {
      const chunk = this.#chunksSoFar.at(base + i * step)
      if (chunk === undefined || chunk.batches.count === 0) continue
      const batch = step > 0 ? 0 : chunk.batches.count - 1
      return chunk.batches.place(batch) === place && !chunk.batchIsGone(batch)
    }
    return false
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
      if (this.#isOpen && chunk.hasId(index) && !chunk.isDead(index)) this.#pending.done(chunk.base + index)
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

/** In the place of a time of settling: of what was never there for anybody, nothing is retained. */
const NEVER = -1
const FIRST_LIFE: Lives = { redrives: 0, attempts: 0 }

function isId(words: Uint32Array, at: number): boolean {
  return (words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) !== 0
}

function addLater(batch: Admission, index: number, bytes: number, first: First): void {
  ;(batch.later ??= []).push({ index, first })
  batch.messages--
  batch.bytes -= bytes
}

function sumOf(sizes: Uint32Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += sizes[at]!
  return sum
}

function liveIn(chunk: Chunk, from: number, to: number): number {
  return chunk.liveIn(from, to)
}
