/**
 * A chunk: the durable state of 1,024 consecutive offsets of one queue. A message that waits without options costs only its
 * part of the batch table. The state of single messages is in tables that grow with their contents. When messages are gone,
 * the tables are packed, so that a single remaining message takes the room of one message and not of a thousand.
 *
 * Invariant: `live` counts the indexes in `[0, count)` that are not gone. After recovery the first messages of a
 * chunk can be missing: their indexes count as gone.
 */
import { DEATH, type Death, type MessageState } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { BatchTable } from './batches.js'
import { COLUMN, Columns } from './columns.js'
import type { DeadMessages } from './dead.js'
import { ID_WORDS } from './hash.js'
import type { Location } from './location.js'
import { LISTED_MAX, MARK, Marks, type Mark } from './marks.js'
import { NOT_WRITTEN } from './not-written.js'
import { Retained } from './retained.js'

export { DEATH, type Death }

/** The header fields of a batch to append. */
export interface AppendedBatch {
  readonly baseOffset: number
  readonly count: number
  readonly timeMs: number
  /** Size of the batch, header included. If the batch is shared: what a row counts. */
  readonly length: number
}

/** Options of the messages of one batch, by index in the batch. One object is reused for all batches. */
export interface Traits {
  readonly priorities: Uint8Array
  /** Time at which a delayed message is due, ms since the epoch; 0 for a message without a delay. */
  readonly dues: Float64Array
  /** Time at which a message expires; 0 if it does not expire. */
  readonly expiries: Float64Array
  /** Whether any message has a key. `keys` has two words of the hash of each key, both 0 for a message without a key. */
  readonly isKeyed: boolean
  readonly keys: Uint32Array
  /** Whether any message has an id. `ids` has four words of the hash of each id, all 0 for a message without an id. */
  readonly hasIds: boolean
  readonly ids: Uint32Array
  /** 1 if the message replaces a waiting message with the same id. */
  readonly replaces: Uint8Array
  /** Sizes of the records; undefined if the queue does not need the sizes of single records. */
  readonly sizes: Uint32Array | undefined
}

export function sumOf(sizes: Uint32Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += sizes[at]!
  return sum
}

/** History of a message that was redriven. */
export interface RedriveHistory {
  /** Number of redrives. */
  readonly redrives: number
  /** Number of attempts before the last redrive. */
  readonly attempts: number
}

/** Tables with less room than this are packed only in a full chunk, which gets no more messages. */
const ROWS_KEPT = 32
const BATCHES_KEPT = 32
/**
 * A chunk whose messages are removed in order is packed only when at most this many messages are left, because most of
 * these chunks are soon empty.
 */
const DRAINED_MAX = 4
/** Columns whose contents must be released when a message is gone: its key, its id and its size. */
const RESOURCES = (1 << COLUMN.key) | (1 << COLUMN.id) | (1 << COLUMN.size)
const PRIORITY_BITS = 5
export const PRIORITIES = 2 ** PRIORITY_BITS
const PRIORITY_MASK = PRIORITIES - 1

export class Chunk {
  // Fields that each append reads are declared first. Most appends read no other fields.
  /** Offset of index 0. */
  readonly base: number
  /** Index after the last appended message. */
  count = 0
  live = 0
  /** Record bytes of the live messages. The bytes of a batch that spans chunks are split by message count. */
  bytes = 0
  /** The batches of the messages. Code outside this folder does not use this table; see `Location`. */
  readonly batches = new BatchTable()
  /** One bit per priority, set if a message with that priority was appended. */
  priorityMask = 0
  /** Whether the state differs from its newest page in the log, whose position is `pagePosition`. */
  dirty = true
  pagePosition = NOT_WRITTEN
  readonly marks = new Marks()
  dead: DeadMessages | undefined
  redriven: Map<number, RedriveHistory> | undefined
  /** Acknowledged messages that the queue keeps for replay; undefined if there are none. */
  retained: Retained | undefined
  /** State of single messages, if there is any. */
  #columns: Columns | undefined
  /** Number and bytes of the live messages whose size is known. */
  #sizedLive = 0
  #sizedBytes = 0
  /** Lower bound for the time at which the next message of the chunk expires. */
  earliestExpiryMs = Infinity
  /** Lower bound for those due times in the chunk that are beyond the horizon of the schedule. Volatile. */
  laterMs = Infinity

  constructor(base: number) {
    this.base = base
  }

  /** Number of the chunk in its queue, counted from offset 0. */
  get number(): number {
    return this.base / CHUNK_MESSAGES
  }

  get full(): boolean {
    return this.count === CHUNK_MESSAGES
  }

  /** Whether the chunk is full, and every message is ready and has no state of its own. Volatile marks are not considered. */
  get isUntouched(): boolean {
    return (
      this.live === CHUNK_MESSAGES &&
      this.full &&
      this.#columns === undefined &&
      this.dead === undefined &&
      this.redriven === undefined
    )
  }

  /** Whether every message of the chunk is gone, and some are kept for replay. Such a chunk gets no more messages. */
  get isOnlyRetained(): boolean {
    return this.live === 0 && this.full && this.retained !== undefined
  }

  priorityAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.charge, index) & PRIORITY_MASK
  }

  /** Whether all messages here have this priority. */
  hasOnly(priority: number): boolean {
    return this.priorityMask === 1 << priority
  }

  /** Number of attempts that have been charged so far. */
  attemptsAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.charge, index) >>> PRIORITY_BITS
  }

  /** Time at which the message is or was due; 0 if it has no due time. */
  dueAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.getWide(COLUMN.due, COLUMN.dueHigh, index)
  }

  /** Slot of the message's key; -1 if it has none. */
  keyAt(index: number): number {
    return this.#columns === undefined ? -1 : this.#columns.get(COLUMN.key, index) - 1
  }

  /** Number of live messages that are not dead and have no due time. */
  get undelayed(): number {
    if (!this.hasDues) return this.live - (this.dead?.size ?? 0)
    let undelayed = 0
    for (const index of this.liveIndexes()) if (!this.isDead(index) && this.dueAt(index) === 0) undelayed++
    return undelayed
  }

  get hasDues(): boolean {
    return this.#columns?.has(COLUMN.due) === true
  }

  get hasKeys(): boolean {
    return this.#columns?.has(COLUMN.key) === true
  }

  get hasExpiries(): boolean {
    return this.#columns?.has(COLUMN.expiry) === true
  }

  get hasIds(): boolean {
    return this.#columns?.has(COLUMN.id) === true
  }

  get hasSizes(): boolean {
    return this.#columns?.has(COLUMN.size) === true
  }

  /**
   * Whether any message of the chunk has something that must be released when the message is gone: a key, an id, a known
   * size, or an entry as dead or redriven.
   */
  get holdsResources(): boolean {
    return this.#columns?.hasAny(RESOURCES) === true || this.dead !== undefined || this.redriven !== undefined
  }

  has(mark: Mark, index: number): boolean {
    return this.marks.has(mark, index)
  }

  isGone(index: number): boolean {
    return this.marks.has(MARK.gone, index)
  }

  isWaiting(index: number): boolean {
    return this.marks.has(MARK.waiting, index)
  }

  isDue(index: number): boolean {
    return this.marks.has(MARK.due, index)
  }

  /** Whether the message has a due time that `Line.advance` has not reached yet. */
  isScheduled(index: number): boolean {
    return this.isWaiting(index) && !this.isDue(index) && !this.isGone(index)
  }

  /** The state of the message; undefined if it is gone or never existed. */
  stateOf(index: number): MessageState | undefined {
    if (index >= this.count || this.isGone(index)) return undefined
    if (this.isDead(index)) return 'dead'
    if (this.isScheduled(index)) return 'scheduled'
    return this.isInLine(index) ? 'ready' : 'leased'
  }

  /**
   * The state that the message has at `nowMs`, even if its due or expiry time has not been noticed yet. Changes
   * nothing.
   */
  stateAt(index: number, nowMs: number): MessageState | undefined {
    const state = this.stateOf(index)
    if (state !== 'ready' && state !== 'scheduled') return state
    if (state === 'scheduled' && this.dueAt(index) > nowMs) return state
    return this.isExpired(index, nowMs) ? undefined : 'ready'
  }

  /** Whether the message is in the line, that is, neither leased nor dead. The message must not be gone. */
  isInLine(index: number): boolean {
    return !this.has(MARK.out, index) || this.isWaiting(index)
  }

  /** Index of the first live message at or after `index`; `count` if there is none. */
  firstLive(index: number): number {
    return this.marks.firstLive(index, this.count)
  }

  /** Number of live messages in `[from, to)`. The range may end after `count`. */
  liveIn(from: number, to: number): number {
    const end = Math.min(to, this.count)
    return end <= from ? 0 : end - from - this.marks.countGone(from, end)
  }

  /** Indexes of the live messages, in order. */
  liveIndexes(): number[] {
    return this.marks.liveIndexes(this.count)
  }

  expiryAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.getWide(COLUMN.expiry, COLUMN.expiryHigh, index)
  }

  isExpired(index: number, nowMs: number): boolean {
    if (!this.hasExpiries) return false
    const expiryMs = this.expiryAt(index)
    return expiryMs !== 0 && expiryMs <= nowMs
  }

  /** Time of publication. */
  publishedAt(index: number): number {
    return this.batches.timeAt(index)
  }

  /** Time that orders the message in its line: its due time, or else its time of publication. */
  lineTimeAt(index: number): number {
    return this.dueAt(index) || this.batches.timeAt(index)
  }

  /** Fills `location` with the place of the message in the log. */
  locate(index: number, location: Location): void {
    const { base, batches } = this
    const batch = batches.find(index)
    location.offset = base + index
    location.batchPosition = batches.position(batch)
    location.publishedAtMs = batches.timeMs(batch)
    location.batchFrom = base + batches.first(batch)
    location.batchEnd = base + this.batchEnd(batch)
    location.sharedIndex = batches.sharedIndex(batch)
  }

  /** Size of the message's record; 0 if it is not known. */
  sizeAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.size, index)
  }

  /** Size of the record of a live message. If it is not known, the mean size of the live messages whose size is not known. */
  bytesAt(index: number): number {
    const size = this.sizeAt(index)
    if (size > 0) return size
    const live = this.live - this.#sizedLive
    return live === 0 ? 0 : Math.max(0, this.bytes - this.#sizedBytes) / live
  }

  /** Called before a live message is removed: subtracts its size from the totals of known sizes. */
  forgetSize(index: number): void {
    const size = this.sizeAt(index)
    if (size === 0) return
    this.#sizedLive--
    this.#sizedBytes -= size
  }

  isDead(index: number): boolean {
    return this.dead?.has(index) === true
  }

  hasId(index: number): boolean {
    return this.hasIds && !this.isId(index, 0, 0, 0, 0)
  }

  /** Whether these words are the hash of the message's id. The hash is all 0 if the message has no id, or its id is not kept. */
  isId(index: number, h0: number, h1: number, h2: number, h3: number): boolean {
    const columns = this.#columns
    return columns === undefined ? (h0 | h1 | h2 | h3) === 0 : columns.isId(index, h0, h1, h2, h3)
  }

  /** One word of the hash of the message's id. */
  idWordAt(index: number, word: 0 | 1 | 2 | 3): number {
    if (this.#columns === undefined) return 0
    return this.#columns.get((COLUMN.id + word) as typeof COLUMN.id, index)
  }

  /** The hash of the message's id. */
  idAt(index: number): Uint32Array {
    const words = new Uint32Array(ID_WORDS)
    for (let word = 0; word < ID_WORDS; word++) words[word] = this.idWordAt(index, word as 0 | 1 | 2 | 3)
    return words
  }

  /** Sets the options of the new messages `[from, to)`. `traitsFrom` is the index of the first one in its batch. */
  setTraits(from: number, to: number, traits: Traits, traitsFrom: number): void {
    const { priorities, dues, expiries, sizes } = traits
    for (let index = from, at = traitsFrom; index < to; index++, at++) {
      const priority = priorities[at]!
      this.priorityMask |= 1 << priority
      if (priority !== 0) this.columns.set(COLUMN.charge, index, priority)
      if (dues[at] !== 0) this.columns.setWide(COLUMN.due, COLUMN.dueHigh, index, dues[at]!)
      if (expiries[at] !== 0) this.setExpiry(index, expiries[at]!)
      if (sizes !== undefined) this.setSize(index, sizes[at]!)
    }
  }

  /** Columns to write to, created on first use. */
  get columns(): Columns {
    return (this.#columns ??= new Columns())
  }

  setSize(index: number, size: number): void {
    this.columns.set(COLUMN.size, index, size)
    if (size === 0 || this.isGone(index)) return
    this.#sizedLive++
    this.#sizedBytes += size
  }

  setKey(index: number, slot: number): void {
    this.columns.set(COLUMN.key, index, slot + 1)
  }

  /** Offset of the next message in the line of the key; -1 if there is no next message. */
  nextAt(index: number): number {
    return this.#linkAt(COLUMN.next, COLUMN.nextHigh, index)
  }

  previousAt(index: number): number {
    return this.#linkAt(COLUMN.previous, COLUMN.previousHigh, index)
  }

  setNext(index: number, offset: number): void {
    this.#setLink(COLUMN.next, COLUMN.nextHigh, index, offset)
  }

  setPrevious(index: number, offset: number): void {
    this.#setLink(COLUMN.previous, COLUMN.previousHigh, index, offset)
  }

  /** Offset of the next pending message with the same id; -1 if there is no next message. */
  nextSameId(index: number): number {
    return this.#linkAt(COLUMN.nextSameId, COLUMN.nextSameIdHigh, index)
  }

  /**
   * Offset of the previous pending message with the same id. For the first message this is the offset of the last one;
   * -1 if no other message has the id.
   */
  previousSameId(index: number): number {
    return this.#linkAt(COLUMN.previousSameId, COLUMN.previousSameIdHigh, index)
  }

  setNextSameId(index: number, offset: number): void {
    this.#setLink(COLUMN.nextSameId, COLUMN.nextSameIdHigh, index, offset)
  }

  setPreviousSameId(index: number, offset: number): void {
    this.#setLink(COLUMN.previousSameId, COLUMN.previousSameIdHigh, index, offset)
  }

  // A link is the distance to a neighbour, which is usually small. 0 means that there is no neighbour. An even number is twice
  // the distance forward. An odd number is twice the distance back, minus 1.
  #linkAt(low: LinkColumn, high: LinkHighColumn, index: number): number {
    const code = this.#columns === undefined ? 0 : this.#columns.getWide(low, high, index)
    if (code === 0) return -1
    return this.base + index + (code % 2 === 0 ? code / 2 : -(code + 1) / 2)
  }

  // `offset` must not be the offset of the message itself.
  #setLink(low: LinkColumn, high: LinkHighColumn, index: number, offset: number): void {
    const distance = offset === -1 ? 0 : offset - this.base - index
    this.columns.setWide(low, high, index, distance >= 0 ? distance * 2 : -distance * 2 - 1)
  }

  setId(index: number, words: Uint32Array, at: number): void {
    this.columns.setId(index, words, at)
  }

  setPriority(index: number, priority: number): void {
    this.priorityMask |= 1 << priority
    if (priority !== 0) this.#charge(index, this.attemptsAt(index), priority)
  }

  /** Sets the due time of the message, and the number of its attempts so far. */
  setDue(index: number, attempts: number, dueMs: number): void {
    this.columns.setWide(COLUMN.due, COLUMN.dueHigh, index, dueMs)
    if (attempts !== this.attemptsAt(index)) this.#charge(index, attempts, this.priorityAt(index))
  }

  #charge(index: number, attempts: number, priority: number): void {
    this.columns.set(COLUMN.charge, index, ((attempts << PRIORITY_BITS) | priority) >>> 0)
  }

  /** Sets when the message expires; 0 if it does not expire. */
  setExpiry(index: number, expiryMs: number): void {
    this.columns.setWide(COLUMN.expiry, COLUMN.expiryHigh, index, expiryMs)
    if (expiryMs !== 0) this.checkExpiriesAt(expiryMs)
  }

  /** Requests a check for expired messages at `timeMs`. */
  checkExpiriesAt(timeMs: number): void {
    if (timeMs < this.earliestExpiryMs) this.earliestExpiryMs = timeMs
  }

  /**
   * Appends a batch for the indexes `[count, end)`. Its messages have priority 0 until options set another priority.
   * `bytes` is the size of its records, and `batchBytes` what it counts (see `BatchTable.bytes`).
   */
  append(end: number, position: number, timeMs: number, bytes: number, batchBytes: number): void {
    // If there are at least twice as many batches as live messages, the room of batches without live messages is reused.
    const { count, room } = this.batches
    if (count === room && count >= BATCHES_KEPT && this.live * 2 <= count && this.retained === undefined)
      this.batches.keep(this.liveIndexes())
    this.batches.push(this.count, position, timeMs, batchBytes)
    this.priorityMask |= 1
    this.live += end - this.count
    this.bytes += bytes
    this.count = end
    this.dirty = true
  }

  /** Index after the last message of the batch. */
  batchEnd(batch: number): number {
    return batch + 1 < this.batches.count ? this.batches.first(batch + 1) : this.count
  }

  /** Whether no message of the batch is live in this chunk. */
  isGoneHere(batch: number): boolean {
    const end = this.batchEnd(batch)
    // Checks the last message first: while messages are settled in order, this check alone detects that a batch is live.
    return this.isGone(end - 1) && this.marks.firstLive(this.batches.first(batch), end) === end
  }

  /** Whether the log may drop the batch as far as this chunk is concerned: no message of the batch here is live or retained. */
  isUnneededHere(batch: number): boolean {
    if (!this.isGoneHere(batch)) return false
    return (
      this.retained === undefined ||
      this.retained.countIn(this.batches.first(batch), this.batchEnd(batch)) === 0
    )
  }

  /** Whether the log must keep the message: it is live or retained. */
  isNeeded(index: number): boolean {
    return index < this.count && (!this.isGone(index) || this.retained?.has(index) === true)
  }

  /** Index of the first live or retained message in `[from, to)`; `to` if there is none. */
  nextNeeded(from: number, to: number): number {
    const end = Math.min(to, this.count)
    const live = from < end ? this.marks.firstLive(from, end) : end
    const first = this.retained === undefined ? live : Math.min(live, this.retained.next(from))
    return first < end ? first : to
  }

  /** Estimate of the record bytes of the live and retained messages of the batch in this chunk. */
  neededBytes(batch: number): number {
    const from = this.batches.first(batch)
    const end = this.batchEnd(batch)
    const live = this.live === 0 ? 0 : (this.liveIn(from, end) * this.bytes) / this.live
    const { retained } = this
    return retained === undefined
      ? live
      : live + (retained.countIn(from, end) * retained.bytes) / retained.count
  }

  /** Number of messages in `[from, to)` that are live or retained. The range may end after `count`. */
  neededIn(from: number, to: number): number {
    const retained = this.retained === undefined ? 0 : this.retained.countIn(from, Math.min(to, this.count))
    return this.liveIn(from, to) + retained
  }

  /**
   * Keeps the live messages in `[from, to)`, which are about to be removed, for replay. Returns all retained messages.
   * `bytes` is the size of all their records, if it is known.
   */
  retain(from: number, to: number, timeMs: number, bytes?: number): Retained {
    const retained = (this.retained ??= new Retained())
    const live = this.liveIn(from, to)
    this.dirty = true
    if (bytes !== undefined && live === to - from) {
      retained.add(from, to, bytes, timeMs)
      return retained
    }
    for (let index = from; index < to; index++) {
      if (this.isGone(index)) continue
      retained.add(index, index + 1, bytes === undefined ? this.bytesAt(index) : bytes / live, timeMs)
    }
    return retained
  }

  /** Called when all messages of a full chunk are gone and some are retained: drops what only live messages need. */
  close(): void {
    this.#columns = undefined
    this.dead = undefined
    this.redriven = undefined
    this.#sizedLive = 0
    this.#sizedBytes = 0
    if (!this.marks.areListed) this.marks.list()
    this.batches.keep([...this.retained!.indexes()])
    this.batches.trim()
    this.dirty = true
  }

  /** Called when retained messages were released: if few are left, removes the rows of batches that are not needed. */
  packRetained(): void {
    const { batches, retained } = this
    if (!this.isOnlyRetained || retained!.count * 2 > batches.count) return
    batches.keep([...retained!.indexes()])
    batches.trim()
  }

  /**
   * Sets the new position of a batch that was copied forward in the log, and what it counts now. `scale` is the scale of a
   * share.
   */
  relocate(batch: number, position: number, bytes: number, scale: number): void {
    const { batches } = this
    if (batches.isShared(batch)) {
      // A row without needed messages does not count.
      const needed = Math.max(1, this.#neededOf(batch))
      batches.moveShared(batch, position, bytes, needed, scale)
    } else batches.move(batch, position, bytes)
    this.dirty = true
  }

  #neededOf(batch: number): number {
    return this.neededIn(this.batches.first(batch), this.batchEnd(batch))
  }

  /**
   * Estimate of the part of a row's share that belongs to messages that are no longer needed. The batch must be shared.
   */
  spareBytes(batch: number): number {
    return this.batches.shareOf(batch, this.batches.sharedNeeded(batch) - this.#neededOf(batch))
  }

  /** Marks `[from, to)` gone and returns how many were not gone before. `bytes` is the size of their records, if it is known. */
  remove(from: number, to: number, bytes?: number): number {
    const removed = this.marks.add(MARK.gone, from, to)
    if (removed === 0) return 0
    const known = bytes ?? (this.bytes * removed) / this.live
    this.bytes -= this.live === removed ? this.bytes : Math.min(known, this.bytes)
    this.live -= removed
    this.dirty = true
    return removed
  }

  /**
   * Called when messages before `end` were removed. If few live messages are left, shrinks each table that is three
   * quarters unused. This renumbers batches.
   */
  pack(end: number): void {
    const { live, full } = this
    if (live > LISTED_MAX || (live === 0 && full)) return
    // A full chunk whose oldest messages go first will soon be empty.
    if (full && live > DRAINED_MAX && this.dead === undefined && this.firstLive(0) >= end) return
    const columns = this.#columns
    const isLoose = columns !== undefined && live * 4 <= columns.room
    if (!full) {
      if (!isLoose) return
      if (columns.room > ROWS_KEPT) columns.pack(this.liveIndexes())
      else if (live === 0) columns.restart(this.count)
      return
    }
    if (!this.marks.areListed) this.marks.list()
    if (live * 4 <= this.batches.room && this.retained === undefined) {
      this.batches.keep(this.liveIndexes())
      this.batches.trim()
    }
    if (isLoose && !columns.pack(this.liveIndexes())) this.#columns = undefined
  }

  /** Recounts the messages and compares the results with the counters. @throws Error with the difference */
  invariants(): void {
    const { batches, count, live } = this
    for (let batch = 1; batch < batches.count; batch++)
      if (batches.first(batch - 1) >= batches.first(batch)) this.#differs(`batch ${batch} begins too early`)
    const indexes = this.liveIndexes()
    const marked = this.liveIn(0, count)
    if (indexes.length !== live || marked !== live)
      this.#differs(`live is ${live}, counted ${indexes.length}, by marks ${marked}`)
    if (live === 0 && this.bytes !== 0) this.#differs(`no message is live, but bytes is ${this.bytes}`)
    for (const index of this.retained?.indexes() ?? [])
      if (index >= count || !this.isGone(index)) this.#differs(`${index} is retained, but not gone`)
    let sizedLive = 0
    let sizedBytes = 0
    for (const index of indexes) {
      const isWaiting = this.isWaiting(index)
      const isOut = this.has(MARK.out, index)
      if (index < batches.first(0)) this.#differs(`${index} is live, but in no batch`)
      if (!((this.priorityMask >>> this.priorityAt(index)) & 1))
        this.#differs(`the priority of ${index} is not in the mask`)
      if (isWaiting ? !isOut || this.isDead(index) : this.isDue(index))
        this.#differs(`${index} is in two states at once`)
      // Leased messages are checked for expiry when they return, scheduled ones when they are due.
      const expiryMs = isOut && !isWaiting ? 0 : this.expiryAt(index)
      const lookAtMs = isWaiting ? Math.max(expiryMs, this.dueAt(index)) : expiryMs
      if (expiryMs !== 0 && lookAtMs < this.earliestExpiryMs)
        this.#differs(`${index} expires at ${lookAtMs}, before earliestExpiryMs ${this.earliestExpiryMs}`)
      const size = this.sizeAt(index)
      if (size > 0) sizedLive++
      sizedBytes += size
    }
    if (sizedLive !== this.#sizedLive || sizedBytes !== this.#sizedBytes)
      this.#differs(
        `${this.#sizedLive} known sizes, ${this.#sizedBytes} bytes; counted ${sizedLive} known sizes, ${sizedBytes} bytes`,
      )
    for (const index of [...(this.dead?.indexes() ?? []), ...(this.redriven?.keys() ?? [])])
      if (this.isGone(index)) this.#differs(`${index} is gone, but has an entry as dead or redriven`)
  }

  #differs(what: string): never {
    throw new Error(`chunk ${this.base}: ${what}`)
  }

  /** Used in recovery: marks `[from, to)` gone, according to a page. */
  restoreGone(from: number, to: number): void {
    this.live -= this.marks.add(MARK.gone, from, to)
  }

  /** Used in recovery, after the batches were decoded from a page. They hold the messages `[0, count)`. */
  restored(count: number, bytes: number): void {
    this.count = count
    this.live = count
    this.bytes = bytes
    this.priorityMask |= 1
  }
}

type LinkColumn =
  | typeof COLUMN.next
  | typeof COLUMN.previous
  | typeof COLUMN.nextSameId
  | typeof COLUMN.previousSameId
type LinkHighColumn =
  | typeof COLUMN.nextHigh
  | typeof COLUMN.previousHigh
  | typeof COLUMN.nextSameIdHigh
  | typeof COLUMN.previousSameIdHigh
