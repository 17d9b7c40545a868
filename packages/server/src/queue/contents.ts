/**
 * The durable part of a queue: its messages by offset and their states, the ids that it remembers, and its counters.
 * This part follows entirely from the log: changes come as facts, and the same code applies them in service and in
 * recovery (invariant 17). `Replay` applies facts read from the log, and `Queue` applies the facts that it decides. One
 * case differs: in service a batch without options is only counted at first. It is applied to its chunk when the chunk
 * is next read (arrivals.ts).
 *
 * The volatile part (the line, the index of pending ids, the use of the log) does not exist during recovery. Afterwards
 * it is notified through `Follower` of messages that entered or are gone, of pending ids and of copied batches. Other
 * changes of the line are made by the methods of `Queue` that decide them.
 *
 * Each message is in exactly one state (invariant 6): ready in a plain line (neither `gone` nor `out` in the marks of its
 * chunk), scheduled (`out` and `waiting`), due (also `due`, and in a due queue or the line of its key), leased (`out`, and in
 * one slot of one subscription), dead (`out`, and in the dead messages of its chunk), or gone.
 */
import {
  BATCH_HEADER_BYTES,
  type Duplicates,
  type MessageState,
  type QueueCounter,
  type QueueOptions,
} from '@sluice/protocol'
import { NO_ARRIVAL, type Arrivals, type Arriving } from './arrivals.js'
import { CHUNK_MESSAGES } from './bits.js'
import { sumOf, type AppendedBatch, type Chunk, type RedriveHistory, type Traits } from './chunk.js'
import type { ChunkSummary } from './cold.js'
import { chunkEndAfter, type Chunks } from './chunks.js'
import { NO_COUNTS, NO_TALLY, type Counts, type Tally } from './counts.js'
import { DeadMessages, type Dead } from './dead.js'
import type { GroupRules, QueueDefinition, StreamRules } from './definition.js'
import type { Refer } from './facts.js'
import type { Follower } from './follower.js'
import { ID_WORDS, isId } from './hash.js'
import { IdWindow } from './ids.js'
import { Keys, NONE, type KeysOwner } from './keys.js'
import type { LogUse } from './log-use.js'
import { NOT_WRITTEN } from './not-written.js'
import { PAGE } from './pages.js'
import { Reasons } from './reasons.js'
import { Source } from './source.js'

/** Maximum number of messages of one queue in the ring of arrivals. Applying 1,024 batches takes 0.2 ms. */
const ARRIVED_MAX = CHUNK_MESSAGES
/** Instead of the time of an acknowledgement: the message is not kept for replay. */
export const NOT_RETAINED = -1
const NEVER_REDRIVEN: RedriveHistory = { redrives: 0, attempts: 0 }

export class Contents extends Source implements Arriving, KeysOwner {
  // Fields that each append reads are declared first, because with thousands of queues few cache lines stay in the cache.
  /** Offset of the next message. */
  next = 0
  live = 0
  /** Whether the options of the queue require a check of each batch, even if its messages have no delivery options. */
  checksBatches = false
  readonly #arrivals: Arrivals
  lastArrival = NO_ARRIVAL
  /** Number of messages in the ring of arrivals. These are the newest messages of the queue. */
  #arrived = 0
  /** Total record bytes of all messages that are not gone. */
  bytes = 0
  #options!: QueueOptions
  /** The chunk that was filled last, unless it was dropped. This saves the look-up in the list. */
  #newest: Chunk | undefined
  #keys: Keys | undefined
  readonly createdAtMs: number
  /**
   * Set in a stream: each message is retained when it is accepted, as if it had been acknowledged at once. So no message of a
   * stream is live.
   */
  stream: StreamRules | undefined
  /** Set in a group; see group-contents.ts. */
  group: GroupRules | undefined
  paused: boolean
  idsFrom: number
  /** Offsets below this may have been delivered by an earlier run of the broker. */
  redeliveredBelow = 0
  /** Number of messages that moved to another queue when they were redriven. */
  carried = 0
  #counts: Record<QueueCounter, number> = NO_COUNTS
  /** The counters that only `tally` facts record, with the values of the newest such fact. */
  tallied: Tally = NO_TALLY
  deadCount = 0
  /** Total record bytes of the dead messages. */
  deadBytes = 0
  /** Position of the newest page of the counters. */
  pagePosition = NOT_WRITTEN
  /** Position of the newest page of the definition; `NOT_WRITTEN` if the definition has changed since. */
  definitionPosition = NOT_WRITTEN
  /** The ids of the window; undefined until the first id is remembered, because most queues have no ids. */
  rememberedIds: IdWindow | undefined
  /** Lower bound for the time at which the next message expires. */
  protected earliestExpiryMs = Infinity
  readonly #reasons: Reasons

  constructor(
    id: number,
    definition: QueueDefinition,
    use: LogUse,
    arrivals: Arrivals,
    reasons: Reasons = new Reasons(),
  ) {
    super(id, definition.name, use)
    this.createdAtMs = definition.createdAtMs
    this.stream = definition.stream
    this.group = definition.group
    this.paused = definition.paused
    this.idsFrom = definition.idsFrom
    this.#arrivals = arrivals
    this.#reasons = reasons
    this.options = definition.options
  }

  get options(): QueueOptions {
    return this.#options
  }

  set options(options: QueueOptions) {
    this.#options = options
    this.checksBatches =
      this.stream !== undefined ||
      this.group !== undefined ||
      options.ttlMs > 0 ||
      options.maxMessages > 0 ||
      options.maxBytes > 0
  }

  get keys(): Keys {
    return (this.#keys ??= new Keys())
  }

  get hasKeys(): boolean {
    return this.#keys !== undefined && this.#keys.size > 0
  }

  /** Like `rememberedIds`, but created if it is undefined. */
  get ids(): IdWindow {
    return (this.rememberedIds ??= new IdWindow(this.use.pages, this.id))
  }

  get chunks(): Chunks {
    if (this.lastArrival !== NO_ARRIVAL) this.applyArrivals()
    return this.appliedChunks
  }

  /** Ends recovery: `follower`, which knows the current contents, is notified of each later change. */
  protected follow(follower: Follower): void {
    this.follower = follower
  }

  get counts(): Counts {
    return this.#counts
  }

  count(counter: QueueCounter, by: number): void {
    if (by === 0) return
    if (this.#counts === NO_COUNTS) this.#counts = { ...NO_COUNTS }
    this.#counts[counter] += by
  }

  /** Used in recovery. The queue changes `counts` later, unless it is `NO_COUNTS`. */
  restoreCounts(counts: Counts): void {
    this.#counts = counts
    if (counts !== NO_COUNTS) this.tallied = { released: counts.released, redelivered: counts.redelivered }
  }

  /** Number of acknowledged messages. */
  get acked(): number {
    const { purged, expired, dropped, cancelled, duplicates, moved, discarded } = this.counts
    const otherwise = purged + expired + dropped + cancelled + duplicates + moved + discarded + this.carried
    return this.next - this.live - otherwise
  }

  get retains(): boolean {
    return this.stream !== undefined || this.#options.retainAgeMs > 0 || this.#options.retainBytes > 0
  }

  /** Number of attempts of the message that have been charged so far. */
  attemptsOf(offset: number): number {
    const chunk = this.chunkAt(offset)
    return chunk === undefined ? 0 : chunk.attemptsAt(offset - chunk.base)
  }

  redriveHistory(offset: number): RedriveHistory {
    const chunk = this.chunkAt(offset)
    return chunk?.redriven?.get(offset - chunk.base) ?? NEVER_REDRIVEN
  }

  deadAt(offset: number): Dead | undefined {
    const chunk = this.chunkAt(offset)
    return chunk?.dead?.get(offset - chunk.base)
  }

  // --- arrivals: in service ---

  /**
   * Accepts the next batch, whose messages have no options. Unlike `appendFact`, this only counts the batch. The chunks
   * and the line are updated when the chunks are next read.
   */
  protected arrive(count: number, position: number, timeMs: number, recordsBytes: number): void {
    this.#arrivals.add(this, count, position, timeMs, recordsBytes)
    this.#arrived += count
    this.next += count
    this.live += count
    this.bytes += recordsBytes
    this.dirty = true
    if (this.#arrived >= ARRIVED_MAX) this.applyArrivals()
  }

  /** Moves all arrivals of this queue into its chunks and into the line. */
  applyArrivals(): void {
    if (this.lastArrival === NO_ARRIVAL) return
    const arrivals = this.#arrivals
    let from = this.next - this.#arrived
    let slot = arrivals.reverse(this.lastArrival)
    this.#arrived = 0
    this.lastArrival = NO_ARRIVAL
    while (slot !== NO_ARRIVAL) {
      const count = arrivals.count(slot)
      const bytes = arrivals.bytes(slot)
      for (const end = from + count; from < end;) {
        const to = Math.min(end, chunkEndAfter(from))
        const chunk = this.chunkToFill(from)
        const share = (bytes * (to - from)) / count
        const position = arrivals.position(slot)
        chunk.append(to - chunk.base, position, arrivals.timeMs(slot), share, BATCH_HEADER_BYTES + bytes)
        this.follower.entered(chunk, from - chunk.base, to - chunk.base)
        from = to
      }
      slot = arrivals.free(slot)
    }
  }

  // --- facts: the same in service and in recovery ---

  /**
   * The messages of a batch, which is at `position` in the log, were accepted. In service the batch starts at offset
   * `next`. `traits` are the options of its messages, if any message has options. `duplicates` are gone at once.
   */
  appendFact(batch: AppendedBatch, position: number, traits?: Traits, duplicates?: Duplicates): void {
    this.applyArrivals()
    const { baseOffset: base, count, length } = batch
    const end = base + count
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      this.#appendTo(from, to, batch, position, length - BATCH_HEADER_BYTES, traits, duplicates)
      from = to
    }
    this.#appended(batch, length - BATCH_HEADER_BYTES, traits, duplicates)
  }

  /**
   * Like `appendFact`, for messages of a shared batch, which is at `position` in the log. `refers` are the places of all
   * of these messages in the batch, in the order of their offsets. `batch` is about these messages alone, and its size is
   * the share of each of their rows.
   */
  referFact(
    refers: readonly Refer[],
    batch: AppendedBatch & { readonly scale: number },
    position: number,
    recordsBytes: number,
    traits?: Traits,
    duplicates?: Duplicates,
  ): void {
    this.applyArrivals()
    for (const { offset, count, index } of refers) {
      const end = offset + count
      const chunk = this.#appendTo(offset, end, batch, position, recordsBytes, traits, duplicates)
      chunk?.batches.share(index, count, batch.scale)
    }
    this.#appended(batch, recordsBytes, traits, duplicates)
  }

  // Appends the messages `[from, to)` of the batch to their chunk, and returns it; undefined if it already has them. All
  // messages of the batch have `recordsBytes`.
  #appendTo(
    from: number,
    to: number,
    { baseOffset: base, count, timeMs, length }: AppendedBatch,
    position: number,
    recordsBytes: number,
    traits: Traits | undefined,
    duplicates: Duplicates | undefined,
  ): Chunk | undefined {
    // The page of a cold or retained chunk is newer than all batches of the chunk, so the chunk already has these messages.
    if (this.isCold(from) || this.heldChunk(from)?.isOnlyRetained === true) return undefined
    const chunk = this.chunkToFill(from)
    const index = from - chunk.base
    if (chunk.pagePosition > this.appliedFrom || index < chunk.count) return undefined
    const share = (recordsBytes * (to - from)) / count
    const bytes = traits?.sizes === undefined ? share : sumOf(traits.sizes, from - base, to - base)
    chunk.append(to - chunk.base, position, timeMs, bytes, length)
    // A stream has no line, so it does not need the options of its messages.
    if (traits !== undefined && this.stream === undefined)
      this.#setTraits(chunk, index, to - chunk.base, traits, from - base)
    this.live += to - from
    this.bytes += bytes
    if (duplicates === undefined && this.stream === undefined)
      this.follower.entered(chunk, index, to - chunk.base)
    return chunk
  }

  #appended(
    batch: AppendedBatch,
    recordsBytes: number,
    traits: Traits | undefined,
    duplicates: Duplicates | undefined,
  ): void {
    const { baseOffset: base, count } = batch
    const end = base + count
    if (end > this.next) this.next = end
    if (this.stream !== undefined) this.#retainAppended(batch, recordsBytes, duplicates)
    else if (duplicates !== undefined) this.#takeDuplicates(base, end, duplicates)
    if (traits?.hasIds === true && this.#options.dedupWindowMs > 0 && this.#options.unique === 'window')
      this.#rememberIds(batch, traits, duplicates)
    this.dirty = true
  }

  protected chunkToFill(offset: number): Chunk {
    const newest = this.#newest
    if (newest !== undefined && offset >= newest.base && offset < newest.base + CHUNK_MESSAGES) return newest
    const known = this.chunks.at(offset)
    if (known === undefined) this.use.pages.created()
    return (this.#newest = known ?? this.chunks.toFill(offset))
  }

  /** Called when the chunk is no longer in the list. */
  protected forgetNewest(chunk: Chunk): void {
    if (this.#newest === chunk) this.#newest = undefined
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
      // A delayed message can be cancelled by its id until it is delivered.
      if (!isId(ids, at * ID_WORDS) || (!all && dues[at] === 0)) continue
      chunk.setId(index, ids, at * ID_WORDS)
      this.follower.idPending(chunk.base + index)
    }
  }

  #rememberIds(batch: AppendedBatch, traits: Traits, duplicates: Duplicates | undefined): void {
    const { baseOffset: base, count, timeMs } = batch
    if (this.ids.restoredUntil > this.appliedFrom) return
    this.ids.forgetUntil(timeMs - this.#options.dedupWindowMs)
    for (let i = 0; i < count; i++) {
      // During recovery, `idsFrom` may already be the result of a later change of the window.
      if (base + i >= this.idsFrom && isId(traits.ids, i * ID_WORDS) && duplicates?.has(i) !== true)
        this.ids.remember(traits.ids, i * ID_WORDS, base + i, timeMs)
    }
  }

  // Called after the whole batch is in its chunks. The duplicates are gone, and all other messages are retained.
  #retainAppended(
    { baseOffset, count, timeMs }: AppendedBatch,
    recordsBytes: number,
    duplicates: Duplicates | undefined,
  ): void {
    if (duplicates === undefined) {
      this.remove(baseOffset, count, timeMs, recordsBytes)
      return
    }
    for (let index = 0; index < count; index++) {
      const isKept = !duplicates.has(index)
      this.remove(baseOffset + index, 1, isKept ? timeMs : NOT_RETAINED, recordsBytes / count)
    }
  }

  // Called after the whole batch is in its chunks. Any earlier, a batch that starts with duplicates would count as gone.
  #takeDuplicates(base: number, end: number, duplicates: Duplicates): void {
    for (const index of duplicates.keys()) this.remove(base + index, 1)
    for (let from = base; from < end;) {
      const to = Math.min(end, chunkEndAfter(from))
      const chunk = this.chunks.at(from)
      if (chunk !== undefined) {
        for (let index = from - chunk.base; index < to - chunk.base; index++)
          if (!chunk.isGone(index)) this.follower.entered(chunk, index, index + 1)
      }
      this.follower.passed(to)
      from = to
    }
  }

  /**
   * Removes messages `[offset, offset + count)`. If `ackedMs` is given, they were acknowledged at that time, and the queue
   * keeps them for replay. Returns how many were not gone before. In recovery, a group that will move back can have messages
   * from `next` on.
   */
  remove(offset: number, count: number, ackedMs = NOT_RETAINED, bytes?: number): number {
    let removed = 0
    const end = offset + count
    for (let from = offset; from < end;) {
      const chunk = this.toApply(this.chunks.at(from), from)
      const to = Math.min(end, chunkEndAfter(from))
      if (chunk !== undefined) {
        const share = bytes === undefined ? undefined : (bytes * (to - from)) / count
        removed += this.#removeIn(chunk, from - chunk.base, to - chunk.base, ackedMs, share)
      }
      from = to
    }
    return removed
  }

  retryFact(offset: number, attempts: number, dueMs: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    chunk.setDue(offset - chunk.base, attempts, dueMs)
    this.changed(chunk)
  }

  /** The message is dead. `size` is the size of its record, if it is known. */
  deadFact(offset: number, dead: Omit<Dead, 'bytes'>, size?: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    const index = offset - chunk.base
    if (chunk.hasId(index) && !chunk.isDead(index)) this.follower.idDone(offset)
    chunk.dead ??= new DeadMessages()
    // Rounded, because `dead` stores integers, and because the number that is added here must be subtracted later.
    const known = chunk.dead.get(index)
    const bytes = known?.bytes ?? size ?? Math.round(chunk.bytesAt(index))
    if (known === undefined) {
      this.deadCount++
      this.deadBytes += bytes
    } else this.#reasons.forget(known.reason)
    chunk.dead.set(index, { ...dead, reason: this.#reasons.keep(dead.reason), bytes })
    this.changed(chunk)
  }

  /** A dead message is redriven in its queue: it is due at `timeMs`, without attempts and without a time to live. */
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
      chunk.redriven ??= new Map()
      chunk.redriven.set(index, {
        redrives,
        attempts: (chunk.redriven.get(index)?.attempts ?? 0) + dead.attempts,
      })
    }
    chunk.setDue(index, 0, timeMs)
    if (chunk.expiryAt(index) !== 0) chunk.setExpiry(index, 0)
    if (chunk.hasId(index)) this.follower.idPending(offset)
    this.changed(chunk)
  }

  /** Changes the due time of a message. If the message has not been tried yet, its time to live starts at the new time. */
  rescheduleFact(offset: number, dueMs: number): void {
    const chunk = this.#liveChunkToApply(offset)
    if (chunk === undefined) return
    const index = offset - chunk.base
    const attempts = chunk.attemptsAt(index)
    const expiryMs = chunk.expiryAt(index)
    if (expiryMs !== 0) {
      if (attempts === 0) chunk.setExpiry(index, expiryMs + dueMs - chunk.lineTimeAt(index))
      else chunk.checkExpiriesAt(Math.max(expiryMs, dueMs))
      this.earliestExpiryMs = Math.min(this.earliestExpiryMs, chunk.earliestExpiryMs)
    }
    chunk.setDue(index, attempts, dueMs)
    this.changed(chunk)
  }

  /** All messages below `below` are gone, except dead ones. */
  purgeFact(below: number): void {
    for (const number of [...this.chunks.coldNumbers]) {
      if ((number + 1) * CHUNK_MESSAGES > below) continue
      const summary = this.chunks.summaryAt(number * CHUNK_MESSAGES)
      this.chunks.drop(number)
      this.forgetCold(number, summary)
      this.live -= CHUNK_MESSAGES
      this.bytes -= summary.bytes
    }
    for (const chunk of this.chunks) {
      if (chunk.pagePosition > this.appliedFrom) continue
      const end = Math.min(chunk.count, below - chunk.base)
      if (end <= 0) continue
      let from = 0
      for (const index of [...(chunk.dead?.indexes() ?? []), end]) {
        if (index > from) this.#removeIn(chunk, from, Math.min(index, end), NOT_RETAINED)
        from = index + 1
      }
    }
  }

  /** Used in recovery: the definition was changed. */
  redefine({ options, paused, idsFrom, stream, group }: QueueDefinition): void {
    this.stream = stream
    this.group = group
    this.options = options
    this.paused = paused
    this.idsFrom = idsFrom
    this.rememberedIds?.forgetBelow(idsFrom)
    this.definitionChanged()
  }

  /** The next checkpoint writes the definition. */
  definitionChanged(): void {
    this.definitionPosition = NOT_WRITTEN
    this.dirty = true
  }

  tallyFact(released: number, redelivered: number): void {
    this.count('released', released - this.counts.released)
    this.count('redelivered', redelivered - this.counts.redelivered)
    this.tallied = { released, redelivered }
    this.dirty = true
  }

  // --- chunks ---

  /** Used in recovery: a chunk stays out of memory. Its page has this summary. */
  restoreCold(number: number, summary: ChunkSummary): void {
    if (summary.retainedMs > 0) {
      this.retention.restoreCold(number, summary)
      return
    }
    this.chunks.setCold(number)
    this.live += CHUNK_MESSAGES
    this.bytes += summary.bytes
  }

  /**
   * Makes a chunk cold if it is clean, its page has a summary, and no message of the chunk has a volatile mark or a
   * remembered id. Returns whether it is cold now.
   */
  makeCold(chunk: Chunk): boolean {
    const { number } = chunk
    if (chunk.dirty || this.chunks.held(number) !== chunk) return false
    const summary = this.use.pages.summary(this.id, number)
    if (summary === undefined) return false
    if (chunk.isOnlyRetained) {
      this.retention.makeCold(chunk)
      return true
    }
    if (!chunk.marks.areNone || !chunk.isUntouched || !this.mayBeCold(number)) return false
    // The page has whole bytes.
    this.bytes += summary.bytes - chunk.bytes
    this.chunks.setCold(number)
    if (this.#newest === chunk) this.#newest = undefined
    return true
  }

  /**
   * Whether the options and ids of the queue allow the chunk to be cold. In queues that drop messages or remember ids,
   * dropping, replacing and cancelling should not have to wait for a read.
   */
  mayBeCold(number: number): boolean {
    const { overflow, maxMessages, maxBytes } = this.#options
    if (overflow !== 'reject' && (maxMessages > 0 || maxBytes > 0)) return false
    const ids = this.rememberedIds
    return ids === undefined || ids.size === 0 || (number + 1) * CHUNK_MESSAGES <= ids.oldestOffset
  }

  /** Called when the queue is deleted: it needs nothing in the log any more. */
  drop(): void {
    this.follower.dropped()
    for (const number of this.chunks.coldNumbers) this.use.pages.removed(PAGE.chunk, this.id, number)
    for (const number of this.chunks.retention?.numbers ?? [])
      if (this.chunks.at(number * CHUNK_MESSAGES) === undefined)
        this.use.pages.removed(PAGE.chunk, this.id, number)
    for (const chunk of this.chunks) {
      this.use.pages.removed(PAGE.chunk, this.id, chunk.number)
      for (const index of chunk.dead?.indexes() ?? []) this.#reasons.forget(chunk.dead!.get(index)!.reason)
    }
    this.rememberedIds?.drop()
    // A caller that still has a reference finds an empty queue.
    this.chunks.clear()
    this.#newest = undefined
    this.live = 0
    this.deadCount = 0
  }

  /** The id of a dead message, if the message may not return while another message with this id is pending; otherwise undefined. */
  uniqueIdOf(offset: number): Uint32Array | undefined {
    if (this.options.unique !== 'pending') return undefined
    const chunk = this.chunkAt(offset)!
    const index = offset - chunk.base
    return chunk.hasId(index) ? chunk.idAt(index) : undefined
  }

  /** The state of a message; undefined if it is gone or never existed. */
  stateOf(offset: number): MessageState | undefined {
    const chunk = this.chunkAt(offset)
    if (chunk === undefined && this.chunks.isCold(offset)) return 'ready'
    return chunk?.stateOf(offset - chunk.base)
  }

  /** The state that the message has at `nowMs`, even if `advance` has not run. Changes nothing. */
  stateAt(offset: number, nowMs: number): MessageState | undefined {
    const chunk = this.chunkAt(offset)
    if (chunk === undefined && this.chunks.isCold(offset)) return 'ready'
    return chunk?.stateAt(offset - chunk.base, nowMs)
  }

  /** Adds a chunk that was decoded from a page. */
  restore(chunk: Chunk): void {
    if (chunk.retained !== undefined) {
      this.retention.add(chunk.retained.count, chunk.retained.bytes)
      this.retention.addChunk(chunk)
    }
    if (chunk.isOnlyRetained) return
    this.chunks.place(chunk)
    this.#newest = undefined
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

  #liveChunkToApply(offset: number): Chunk | undefined {
    const chunk = this.toApply(this.chunks.at(offset), offset)
    return chunk === undefined || chunk.isGone(offset - chunk.base) ? undefined : chunk
  }

  // Removes messages batch by batch, because each batch may be in a different segment. `size` is the total size of their
  // records, if it is known.
  #removeIn(chunk: Chunk, from: number, to: number, ackedMs: number, size?: number): number {
    let removed = 0
    const end = Math.min(to, chunk.count)
    const hasMore = chunk.holdsResources
    const isRetained = ackedMs !== NOT_RETAINED
    if (isRetained) this.retain(chunk, from, end, ackedMs, size)
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
        const goneBytes = bytesBefore - chunk.bytes
        this.bytes -= goneBytes
        this.follower.removedFrom(chunk, batch, isRetained ? 0 : count, isRetained ? 0 : goneBytes)
      }
      index = batchEnd
    }
    if (removed === 0) return 0
    this.live -= removed
    this.dirty = true
    if (chunk.live === 0 && chunk.full) {
      this.chunks.drop(chunk.number)
      if (chunk.retained === undefined) this.use.pages.removed(PAGE.chunk, this.id, chunk.number)
      else chunk.close()
      if (this.#newest === chunk) this.#newest = undefined
    } else chunk.pack(end)
    return removed
  }

  // Releases the keys, ids, sizes and other entries of single messages that are about to be gone. Returns the record
  // bytes of these messages.
  #forget(chunk: Chunk, from: number, to: number): number {
    let bytes = 0
    for (let index = from; index < to; index++) {
      if (chunk.isGone(index)) continue
      const size = chunk.bytesAt(index)
      bytes += size
      const slot = chunk.keyAt(index)
      if (slot !== NONE) this.keys.release(slot)
      if (chunk.hasId(index) && !chunk.isDead(index)) this.follower.idDone(chunk.base + index)
      chunk.redriven?.delete(index)
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
