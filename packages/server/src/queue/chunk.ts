/**
 * A chunk: the durable state of 1,024 consecutive offsets of one queue. What waits in line costs the place of its
 * batch and nothing else; only messages that were returned or died have an object of their own.
 *
 * Invariant: `live` counts the indexes in `[0, count)` that are not in `gone`; indexes below the chunk's first
 * message (a chunk can begin in its middle after recovery) are in `gone`.
 */
import { DEATH, type Death } from '@sluice/protocol'
import { CHUNK_MESSAGES, CHUNK_WORDS, addBits, firstOutside, hasBit } from './bits.js'
import { BatchTable } from './batches.js'
import { Links } from './column.js'
import type { DeadMessages } from './dead.js'
import { ID_WORDS } from './hash.js'

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

export class Chunk {
  // What each append looks at stands together: it is all that is looked at of most chunks.
  /** Offset of index 0. */
  readonly base: number
  /** Index after the last message that was appended. */
  count = 0
  live = 0
  /** Bytes of the records that were appended here; of a batch across chunks, its share by count. */
  bytes = 0
  /** Those that hold the messages. */
  readonly batches = new BatchTable()
  /** Bit by priority: some message here was appended with it. */
  priorityMask = 0
  /** Whether the state differs from the newest page of it in the log, and where that page stands (-1: none). */
  dirty = true
  pagePosition = -1
  /** What that page takes in the log. */
  pageBytes = 0
  gone: Uint32Array | undefined
  dead: DeadMessages | undefined
  /** By index, where any message here has one. Due: 0 for a message that has not to wait for its time. */
  priorities: Uint8Array | undefined
  dues: Float64Array | undefined
  expiries: Float64Array | undefined
  /** Tries that were charged so far. */
  attempts: Uint8Array | undefined
  /** Slot of the key + 1; 0: the message has none. */
  keys: Uint32Array | undefined
  /** Hashes of the ids that are needed while their messages are pending, `ID_WORDS` words each. */
  ids: Uint32Array | undefined
  /** Record sizes; 0 where the size is not known. */
  sizes: Uint32Array | undefined
  /** Of the live messages whose size is known: how many, and their bytes. */
  #sizedLive = 0
  #sizedBytes = 0
  lives: Map<number, Lives> | undefined
  /** No message here expires before this. */
  earliestExpiryMs = Infinity

  /** Volatile: leased, waiting for their time, or dead; not in the plain line. Not part of the durable state. */
  out: Uint32Array | undefined
  /** Volatile: in a heap or in the line of a key, for their time or for their turn. */
  waiting: Uint32Array | undefined
  /** Volatile: of these, those whose time has come. */
  ripe: Uint32Array | undefined
  /** Volatile: no message here that waits beyond the horizon of the schedule is due before this. */
  laterMs = Infinity
  /** Volatile: neighbours in the line of a key, by offset; set where `keys` is. */
  nexts: Links | undefined
  previous: Links | undefined
  /** Volatile: neighbours in the list of pending messages that have one id, by offset. */
  #nextsLike: Links | undefined
  #previousLike: Links | undefined
  /** Volatile: among those that the line keeps because they came back behind the oldest that it looks for. */
  behind: Uint32Array | undefined
  /** Volatile: handed out at least once since the broker started. */
  seen: Uint32Array | undefined

  constructor(base: number) {
    this.base = base
  }

  get full(): boolean {
    return this.count === CHUNK_MESSAGES
  }

  priorityAt(index: number): number {
    return this.priorities === undefined ? 0 : this.priorities[index]!
  }

  attemptsAt(index: number): number {
    return this.attempts === undefined ? 0 : this.attempts[index]!
  }

  dueAt(index: number): number {
    return this.dues === undefined ? 0 : this.dues[index]!
  }

  /** Slot of the message's key, -1 if it has none. */
  keyAt(index: number): number {
    return this.keys === undefined ? -1 : this.keys[index]! - 1
  }

  isWaiting(index: number): boolean {
    return this.waiting !== undefined && hasBit(this.waiting, index)
  }

  isRipe(index: number): boolean {
    return this.ripe !== undefined && hasBit(this.ripe, index)
  }

  /** Whether the message waits for its time. */
  isScheduled(index: number): boolean {
    return this.isWaiting(index) && !this.isRipe(index) && !this.isGone(index)
  }

  expiryAt(index: number): number {
    return this.expiries === undefined ? 0 : this.expiries[index]!
  }

  isExpired(index: number, nowMs: number): boolean {
    const expiryMs = this.expiryAt(index)
    return expiryMs !== 0 && expiryMs <= nowMs
  }

  /** Where the message stands in time: when it is or was due, or when it was published. */
  lineTimeAt(index: number): number {
    return this.dueAt(index) || this.batches.timeAt(index)
  }

  /** Size of the message's record, which is live; where it is not known, the mean of those that are not. */
  bytesAt(index: number): number {
    const size = this.sizes === undefined ? 0 : this.sizes[index]!
    if (size > 0) return size
    const live = this.live - this.#sizedLive
    return live === 0 ? 0 : Math.max(0, this.bytes - this.#sizedBytes) / live
  }

  /** The message, which is live, is about to be gone. */
  forgetSize(index: number): void {
    const size = this.sizes === undefined ? 0 : this.sizes[index]!
    if (size === 0) return
    this.#sizedLive--
    this.#sizedBytes -= size
  }

  isDead(index: number): boolean {
    return this.dead?.has(index) === true
  }

  hasId(index: number): boolean {
    if (this.ids === undefined) return false
    const at = index * ID_WORDS
    return (this.ids[at]! | this.ids[at + 1]! | this.ids[at + 2]! | this.ids[at + 3]!) !== 0
  }

  /** Sets what the messages at `[from, to)` ask for; `traitsFrom` is the index of the first in its batch. */
  setTraits(from: number, to: number, traits: Traits, traitsFrom: number): void {
    for (let index = from, at = traitsFrom; index < to; index++, at++) {
      this.setPriority(index, traits.priorities[at]!)
      if (traits.dues[at] !== 0) this.setDue(index, 0, traits.dues[at]!)
      if (traits.expiries[at] !== 0) this.setExpiry(index, traits.expiries[at]!)
      if (traits.sizes !== undefined) this.setSize(index, traits.sizes[at]!)
    }
  }

  setSize(index: number, size: number): void {
    this.sizes ??= new Uint32Array(CHUNK_MESSAGES)
    this.sizes[index] = size
    if (size === 0 || this.isGone(index)) return
    this.#sizedLive++
    this.#sizedBytes += size
  }

  setKey(index: number, slot: number): void {
    this.keys ??= new Uint32Array(CHUNK_MESSAGES)
    this.nexts ??= new Links(this.base, CHUNK_MESSAGES)
    this.previous ??= new Links(this.base, CHUNK_MESSAGES)
    this.keys[index] = slot + 1
  }

  setId(index: number, words: Uint32Array, at: number): void {
    this.ids ??= new Uint32Array(CHUNK_MESSAGES * ID_WORDS)
    for (let word = 0; word < ID_WORDS; word++) this.ids[index * ID_WORDS + word] = words[at + word]!
  }

  /** The next pending message with the same id; -1: none. */
  nextLike(index: number): number {
    return this.#nextsLike === undefined ? -1 : this.#nextsLike.get(index)
  }

  /** The one before it, or from the first the last; -1: none. */
  previousLike(index: number): number {
    return this.#previousLike === undefined ? -1 : this.#previousLike.get(index)
  }

  setNextLike(index: number, offset: number): void {
    if (this.#nextsLike === undefined && offset === -1) return
    this.#nextsLike ??= new Links(this.base, CHUNK_MESSAGES)
    this.#nextsLike.set(index, offset)
  }

  setPreviousLike(index: number, offset: number): void {
    if (this.#previousLike === undefined && offset === -1) return
    this.#previousLike ??= new Links(this.base, CHUNK_MESSAGES)
    this.#previousLike.set(index, offset)
  }

  setPriority(index: number, priority: number): void {
    this.priorityMask |= 1 << priority
    if (priority === 0 && this.priorities === undefined) return
    this.priorities ??= new Uint8Array(CHUNK_MESSAGES)
    this.priorities[index] = priority
  }

  /** The message has to wait until `dueMs`, after `attempts` tries. */
  setDue(index: number, attempts: number, dueMs: number): void {
    this.dues ??= new Float64Array(CHUNK_MESSAGES)
    this.dues[index] = dueMs
    if (attempts > 0) this.attempts ??= new Uint8Array(CHUNK_MESSAGES)
    if (this.attempts !== undefined) this.attempts[index] = attempts
  }

  setExpiry(index: number, expiryMs: number): void {
    this.expiries ??= new Float64Array(CHUNK_MESSAGES)
    this.expiries[index] = expiryMs
    this.lookAtExpiries(expiryMs)
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
    return this.isGone(end - 1) && firstOutside(this.gone, undefined, this.batches.first(batch), end) === end
  }

  /** The batch was copied forward in the log. */
  relocate(batch: number, position: number): void {
    this.batches.setPlace(batch, position)
    this.dirty = true
  }

  isGone(index: number): boolean {
    return this.gone !== undefined && hasBit(this.gone, index)
  }

  /** Marks `[from, to)` gone; returns how many were not before. `bytes` is what they take, where that is known. */
  remove(from: number, to: number, bytes?: number): number {
    this.gone ??= new Uint32Array(CHUNK_WORDS)
    const removed = addBits(this.gone, from, to)
    if (removed === 0) return 0
    this.bytes -= this.live === removed ? this.bytes : (bytes ?? (this.bytes * removed) / this.live)
    this.live -= removed
    this.dirty = true
    return removed
  }

  /** Recovery: the batches have come from a page, and hold the messages until `count`. */
  restored(count: number, bytes: number): void {
    this.count = count
    this.live = count - this.batches.first(0)
    this.bytes = bytes
    this.priorityMask |= 1
  }
}
