/**
 * A chunk: the durable state of 1,024 consecutive offsets of one queue. What waits in line costs the place of its
 * batch and nothing else; what is known of single messages is in tables that cost by what is in them. As messages go,
 * the tables are packed: one message that stays takes what one takes, not what a thousand took.
 *
 * Invariant: `live` counts the indexes in `[0, count)` that are not gone; indexes below the chunk's first message (a
 * chunk can begin in its middle after recovery) are gone.
 */
import { DEATH, type Death } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { BatchTable } from './batches.js'
import { COLUMN, Columns } from './columns.js'
import type { DeadMessages } from './dead.js'
import { ID_WORDS } from './hash.js'
import type { Location } from './location.js'
import { LISTED_MAX, MARK, Marks, type Mark } from './marks.js'

export { DEATH, type Death }

/** What the records of a batch ask for, by index in the batch; kept and filled again for each batch. */
export interface Traits {
  readonly priorities: Uint8Array
  /** Time at which a delayed message is due, ms since the epoch; 0: at once. */
  readonly dues: Float64Array
  /** Time at which a message expires; 0: never. */
  readonly expiries: Float64Array
  /** Whether any has a key; the two words of each key's hash, both 0 for a message without one. */
  readonly isKeyed: boolean
  readonly keys: Uint32Array
  /** Whether any has an id; the four words of each id's hash, all 0 for a message without one. */
  readonly hasIds: boolean
  readonly ids: Uint32Array
  /** 1: it takes the place of a message with its id that waits. */
  readonly replaces: Uint8Array
  /** Sizes of the records; undefined where nobody needs them one by one. */
  readonly sizes: Uint32Array | undefined
}

/** What is known of a message's earlier lives. */
export interface Lives {
  /** How often it was brought back from the dead. */
  readonly redrives: number
  /** Tries in earlier lives. */
  readonly attempts: number
}

/** Tables with less room than this are packed only in a full chunk, which gets no more. */
const ROWS_KEPT = 32
const BATCHES_KEPT = 32
/** A chunk whose messages go in order is packed when no more than these are left: it keeps them if that is where it ends. */
const DRAINED_MAX = 4
/** What has to be given back when a message is gone: its key, its id, its part of the bytes. */
const HELD = (1 << COLUMN.key) | (1 << COLUMN.id) | (1 << COLUMN.size)
const PRIORITY_BITS = 5
export const PRIORITIES = 2 ** PRIORITY_BITS
const PRIORITY_MASK = PRIORITIES - 1

export class Chunk {
  // What each append looks at stands together: it is all that is looked at of most chunks.
  /** Offset of index 0. */
  readonly base: number
  /** Index after the last message that was appended. */
  count = 0
  live = 0
  /** Bytes of the records that were appended here; of a batch across chunks, its share by count. */
  bytes = 0
  /** Those that hold the messages; only the contents and pages of the queue look into them. */
  readonly batches = new BatchTable()
  /** Bit by priority: some message here was appended with it. */
  priorityMask = 0
  /** Whether the state differs from the newest page of it in the log, and where that page stands (-1: none). */
  dirty = true
  pagePosition = -1
  /** What that page takes in the log. */
  pageBytes = 0
  readonly marks = new Marks()
  dead: DeadMessages | undefined
  lives: Map<number, Lives> | undefined
  /** What is known of single messages, where there is anything. */
  #columns: Columns | undefined
  /** Of the live messages whose size is known: how many, and their bytes. */
  #sizedLive = 0
  #sizedBytes = 0
  /** No message here expires before this. */
  earliestExpiryMs = Infinity
  /** Volatile: no message here that waits beyond the horizon of the schedule is due before this. */
  laterMs = Infinity

  constructor(base: number) {
    this.base = base
  }

  get full(): boolean {
    return this.count === CHUNK_MESSAGES
  }

  priorityAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.charge, index) & PRIORITY_MASK
  }

  /** Whether all messages here have this priority. */
  hasOnly(priority: number): boolean {
    return this.priorityMask === 1 << priority
  }

  /** Tries that were charged so far. */
  attemptsAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.charge, index) >>> PRIORITY_BITS
  }

  /** When the message is or was due; 0 for one that has not to wait for its time. */
  dueAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.getWide(COLUMN.due, COLUMN.dueHigh, index)
  }

  /** Slot of the message's key, -1 if it has none. */
  keyAt(index: number): number {
    return this.#columns === undefined ? -1 : this.#columns.get(COLUMN.key, index) - 1
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

  /** Whether something is kept of single messages here that has to be given back when they are gone. */
  get holdsMessages(): boolean {
    return this.#columns?.hasAny(HELD) === true || this.dead !== undefined || this.lives !== undefined
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

  isRipe(index: number): boolean {
    return this.marks.has(MARK.ripe, index)
  }

  /** Whether the message waits for its time. */
  isScheduled(index: number): boolean {
    return this.isWaiting(index) && !this.isRipe(index) && !this.isGone(index)
  }

  /** Whether the message, which is not gone, is in the line: it is neither leased nor dead. */
  isInLine(index: number): boolean {
    return !this.has(MARK.out, index) || this.isWaiting(index)
  }

  /** Index of the first live message from `index` on; `count` if there is none. */
  firstLive(index: number): number {
    return this.marks.firstLive(index, this.count)
  }

  /** How many of `[from, to)`, as far as they were appended, are live. */
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

  /** When the message was published. */
  publishedAt(index: number): number {
    return this.batches.timeAt(index)
  }

  /** Where the message stands in time: when it is or was due, or when it was published. */
  lineTimeAt(index: number): number {
    return this.dueAt(index) || this.batches.timeAt(index)
  }

  /** Says where the message is in the log. */
  locate(index: number, location: Location): void {
    const { base, batches } = this
    const batch = batches.find(index)
    location.offset = base + index
    location.batchPosition = batches.place(batch)
    location.publishedAtMs = batches.timeMs(batch)
    location.batchFrom = base + batches.first(batch)
    location.batchEnd = base + this.batchEnd(batch)
  }

  /** Size of the message's record; 0 where it is not known. */
  sizeAt(index: number): number {
    return this.#columns === undefined ? 0 : this.#columns.get(COLUMN.size, index)
  }

  /** Size of the message's record, which is live; where it is not known, the mean of those that are not. */
  bytesAt(index: number): number {
    const size = this.sizeAt(index)
    if (size > 0) return size
    const live = this.live - this.#sizedLive
    return live === 0 ? 0 : Math.max(0, this.bytes - this.#sizedBytes) / live
  }

  /** The message, which is live, is about to be gone. */
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

  /** Whether this is the hash of the message's id, which is all 0 if it has none that is needed. */
  isId(index: number, h0: number, h1: number, h2: number, h3: number): boolean {
    const columns = this.#columns
    return columns === undefined ? (h0 | h1 | h2 | h3) === 0 : columns.isId(index, h0, h1, h2, h3)
  }

  /** Word of the hash of the message's id. */
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

  /** Sets what the messages at `[from, to)`, which are new, ask for; `traitsFrom` is the index of the first in its batch. */
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

  /** Where to put what is known of messages; until there is anything, there is nothing. */
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

  /** The next message in the line of the key, by offset; -1: none. */
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

  /** The next pending message with the same id; -1: none. */
  nextLike(index: number): number {
    return this.#linkAt(COLUMN.nextLike, COLUMN.nextLikeHigh, index)
  }

  /** The one before it, or from the first the last; -1: none. */
  previousLike(index: number): number {
    return this.#linkAt(COLUMN.previousLike, COLUMN.previousLikeHigh, index)
  }

  setNextLike(index: number, offset: number): void {
    this.#setLink(COLUMN.nextLike, COLUMN.nextLikeHigh, index, offset)
  }

  setPreviousLike(index: number, offset: number): void {
    this.#setLink(COLUMN.previousLike, COLUMN.previousLikeHigh, index, offset)
  }

  // 0: none. Even: twice how far behind. Odd: twice how far before, less one. Mostly it is not far.
  #linkAt(low: LinkColumn, high: LinkHighColumn, index: number): number {
    const code = this.#columns === undefined ? 0 : this.#columns.getWide(low, high, index)
    if (code === 0) return -1
    return this.base + index + (code % 2 === 0 ? code / 2 : -(code + 1) / 2)
  }

  // `offset` is not the message's own.
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

  /** The message has to wait until `dueMs`, after `attempts` tries. */
  setDue(index: number, attempts: number, dueMs: number): void {
    this.columns.setWide(COLUMN.due, COLUMN.dueHigh, index, dueMs)
    if (attempts !== this.attemptsAt(index)) this.#charge(index, attempts, this.priorityAt(index))
  }

  #charge(index: number, attempts: number, priority: number): void {
    this.columns.set(COLUMN.charge, index, ((attempts << PRIORITY_BITS) | priority) >>> 0)
  }

  /** `expiryMs`: 0 for never. */
  setExpiry(index: number, expiryMs: number): void {
    this.columns.setWide(COLUMN.expiry, COLUMN.expiryHigh, index, expiryMs)
    if (expiryMs !== 0) this.lookAtExpiries(expiryMs)
  }

  /** Something here has expired at `timeMs`, or is due then and expired before. */
  lookAtExpiries(timeMs: number): void {
    if (timeMs < this.earliestExpiryMs) this.earliestExpiryMs = timeMs
  }

  /**
   * Takes note of a batch whose messages have the indexes `[count, end)`; their priority is 0 unless traits say more.
   * `bytes`: what their records take; `batchBytes`: what the whole batch takes in the log.
   */
  append(end: number, position: number, timeMs: number, bytes: number, batchBytes: number): void {
    // Where half of the batches are gone at least, their room serves the next ones.
    const { count, room } = this.batches
    if (count === room && count >= BATCHES_KEPT && this.live * 2 <= count)
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

  /** Whether nothing of the batch that stands here is live. */
  batchIsGone(batch: number): boolean {
    const end = this.batchEnd(batch)
    // Who settles in order is told by the last message: the others need not be looked at.
    return this.isGone(end - 1) && this.marks.firstLive(this.batches.first(batch), end) === end
  }

  /** The batch was copied forward in the log. */
  relocate(batch: number, position: number): void {
    this.batches.setPlace(batch, position)
    this.dirty = true
  }

  /** Marks `[from, to)` gone; returns how many were not before. `bytes` is what they take, where that is known. */
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
   * After messages before `end` went: where few are left, gives back what the others took, each time that three quarters
   * of it are of no use. Batches have other numbers then.
   */
  pack(end: number): void {
    const { live, full } = this
    if (live > LISTED_MAX || (live === 0 && full)) return
    // A full chunk whose oldest messages go first is all gone soon.
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
    if (live * 4 <= this.batches.room) {
      this.batches.keep(this.liveIndexes())
      this.batches.trim()
    }
    if (isLoose && !columns.pack(this.liveIndexes())) this.#columns = undefined
  }

  /** Counts everything anew and compares. @throws Error naming what differs */
  invariants(): void {
    const { batches, count, live } = this
    for (let batch = 1; batch < batches.count; batch++)
      if (batches.first(batch - 1) >= batches.first(batch)) this.#differs(`batch ${batch} begins too early`)
    const indexes = this.liveIndexes()
    const marked = this.liveIn(0, count)
    if (indexes.length !== live || marked !== live)
      this.#differs(`live is ${live}, counted ${indexes.length}, by its marks ${marked}`)
    if (live === 0 && this.bytes !== 0) this.#differs(`nothing is live, and takes ${this.bytes} bytes`)
    let sizedLive = 0
    let sizedBytes = 0
    for (const index of indexes) {
      const isWaiting = this.isWaiting(index)
      const isOut = this.has(MARK.out, index)
      if (index < batches.first(0)) this.#differs(`${index} is live, and in no batch`)
      if (!((this.priorityMask >>> this.priorityAt(index)) & 1))
        this.#differs(`the priority of ${index} is not in the mask`)
      if (isWaiting ? !isOut || this.isDead(index) : this.isRipe(index))
        this.#differs(`${index} is in two states at once`)
      // What is leased is looked at when it comes back, and what has to wait when it is due.
      const expiryMs = isOut && !isWaiting ? 0 : this.expiryAt(index)
      const lookAtMs = isWaiting ? Math.max(expiryMs, this.dueAt(index)) : expiryMs
      if (expiryMs !== 0 && lookAtMs < this.earliestExpiryMs)
        this.#differs(`${index} expires at ${lookAtMs}, the first at ${this.earliestExpiryMs}`)
      const size = this.sizeAt(index)
      if (size > 0) sizedLive++
      sizedBytes += size
    }
    if (sizedLive !== this.#sizedLive || sizedBytes !== this.#sizedBytes)
      this.#differs(`${this.#sizedLive} of ${this.#sizedBytes} bytes, counted ${sizedLive} of ${sizedBytes}`)
    for (const index of [...(this.dead?.indexes() ?? []), ...(this.lives?.keys() ?? [])])
      if (this.isGone(index)) this.#differs(`${index} is gone, and known to be dead or brought back`)
  }

  #differs(what: string): never {
    throw new Error(`chunk ${this.base}: ${what}`)
  }

  /** Recovery: messages `[from, to)` are gone, as a page says. */
  restoreGone(from: number, to: number): void {
    this.live -= this.marks.add(MARK.gone, from, to)
  }

  /** Recovery: the batches have come from a page, and hold the messages until `count`. */
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
  | typeof COLUMN.nextLike
  | typeof COLUMN.previousLike
type LinkHighColumn =
  | typeof COLUMN.nextHigh
  | typeof COLUMN.previousHigh
  | typeof COLUMN.nextLikeHigh
  | typeof COLUMN.previousLikeHigh
