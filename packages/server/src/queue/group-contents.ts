/**
 * The durable part of a queue as a group or as a stream with groups, and how batches are appended in service. It also
 * decides for which group the retention of a stream waits.
 *
 * A group is a queue whose messages are those of its stream, with the same offsets. It has no batches of its own: the log keeps a batch while the stream retains it, and each row in the chunks
 * of the group is a copy of a row of the stream.
 *
 * Messages *enter* the group in the order of their offsets, when its line needs them. `next` is the offset of the next
 * message to enter. All messages from there on cost nothing, however many there are. A fact records which messages
 * entered, with the hashes of their keys, so recovery reads no records.
 *
 * Invariant: each message of a group is retained by the stream. Before the stream releases messages, its groups lose them
 * with a fact.
 */
import { BATCH_HEADER_BYTES, type Duplicates } from '@sluice/protocol'
import { removeBits } from './bits.js'
import { Contents } from './contents.js'
import type { Chunk, Traits } from './chunk.js'
import { chunkEndAfter } from './chunks.js'
import { cutChunk, enterChunk } from './entering.js'
import type { LogUse } from './log-use.js'
import { PAGE } from './pages.js'
import type { Hold, RetentionLimits } from './retention.js'
import { StreamNumbers } from './stream-numbers.js'

/** Two words of the hash of the key of each message; 0 for a message without a key. */
export type KeyWords = Uint32Array

const NO_GROUPS: readonly GroupContents[] = []

/** The argument of `appendFact`. All calls share this object. */
const APPENDED = { baseOffset: 0, count: 0, timeMs: 0, length: 0 }

export class GroupContents extends Contents {
  /** Of a stream: its groups. */
  groups: readonly GroupContents[] = NO_GROUPS
  /** Of a group: its stream. */
  source: GroupContents | undefined
  /** Of a stream. */
  readonly numbers: StreamNumbers | undefined = this.stream === undefined ? undefined : new StreamNumbers()
  /** Of a group: number of messages that retention removed before they were acknowledged or dead. */
  missed = 0
  /** Of a group: number of acknowledged messages. A message that was moved back to and acknowledged again counts again. */
  ackedCount = 0

  /**
   * Appends a batch in service to a queue, not to a stream. Its first message gets the offset `next`, and no message has an
   * option. The batch is only counted, and the chunks and the line are updated when they are next read.
   */
  appendPlain(count: number, position: number, timeMs: number, recordsBytes: number): void {
    this.use.add(position, BATCH_HEADER_BYTES + recordsBytes)
    this.arrive(count, position, timeMs, recordsBytes)
  }

  /** Appends a batch in service. Its first message gets the offset `next`. */
  append(
    count: number,
    position: number,
    timeMs: number,
    recordsBytes: number,
    traits?: Traits,
    duplicates?: Duplicates,
  ): void {
    if (traits === undefined && duplicates === undefined && this.stream === undefined) {
      this.appendPlain(count, position, timeMs, recordsBytes)
      return
    }
    const length = BATCH_HEADER_BYTES + recordsBytes
    this.use.add(position, length)
    APPENDED.baseOffset = this.next
    APPENDED.count = count
    APPENDED.timeMs = timeMs
    APPENDED.length = length
    this.appendFact(APPENDED, position, traits, duplicates)
  }

  /** Used in recovery: every message below `below` may have been delivered before. */
  deliveredFact(below: number): void {
    if (below <= this.redeliveredBelow) return
    this.redeliveredBelow = below
    this.dirty = true
  }

  /** Connects a group with its stream. */
  join(stream: GroupContents): void {
    this.source = stream
    this.batchOwner = stream.id
    stream.groups = [...stream.groups, this]
  }

  /** Called when the group is deleted. */
  part(): void {
    const stream = this.source
    if (stream === undefined) return
    const others = stream.groups.filter((group) => group !== this)
    stream.groups = others.length === 0 ? NO_GROUPS : others
  }

  /** Time at which retained messages are released next; see `Retention.nextMs`. */
  get nextReleaseMs(): number {
    return this.appliedChunks.retention?.nextMs(this.retentionLimits) ?? Infinity
  }

  protected get retentionLimits(): RetentionLimits {
    if (this.stream === undefined) return this.options
    const { retainAgeMs, retainBytes } = this.options
    return { retainAgeMs, retainBytes, ...this.stream }
  }

  /** Of a stream: time at which compaction has to look at it; see `StreamNumbers.nextPassMs`. */
  get nextPassMs(): number {
    if (this.stream?.compact !== 'key') return Infinity
    return this.numbers!.nextPassMs(this.next, this.retainedMessages, this.stream.tombstoneAgeMs)
  }

  /** Of a stream: a pass of compaction is over. It has looked at all messages below `below`. */
  passDone(below: number, tombstoneMs: number): void {
    const numbers = this.numbers!
    numbers.compactedBelow = below
    numbers.tombstoneMs = tombstoneMs
    this.dirty = true
  }

  /** Compaction removes the `count` messages with these indexes from the chunk at `base`. */
  compactFact(base: number, count: number, indexes: Uint32Array): void {
    this.releaseIndexes(base, indexes)
    if (this.pagePosition >= this.appliedFrom) return
    this.numbers!.compacted += count
    this.dirty = true
  }

  override releaseFact(from: number, end: number): void {
    super.releaseFact(from, end)
    const { numbers } = this
    if (numbers === undefined || this.pagePosition >= this.appliedFrom) return
    numbers.releasedBelow = Math.max(numbers.releasedBelow, Math.min(end, this.next))
    this.dirty = true
  }

  /** Of a stream: removes from the set those messages of the chunk at `base` that a group still holds. */
  withoutHeld(base: number, indexes: Uint32Array): void {
    for (const group of this.groups) {
      const chunk = group.chunkAt(base)
      if (chunk !== undefined) for (const index of chunk.liveIndexes()) removeBits(indexes, index, index + 1)
    }
  }

  /** Of a group: every message below this offset is done, dead or missed. */
  get position(): number {
    for (const chunk of this.chunks)
      for (const index of chunk.liveIndexes()) if (!chunk.isDead(index)) return chunk.base + index
    return this.next
  }

  override get acked(): number {
    return this.source === undefined ? super.acked : this.ackedCount
  }

  /** Of a group: number of messages below `end` that have not entered and would enter. */
  protected countUnseen(end: number): number {
    const stream = this.source!
    const { fromMs } = this.group!
    const from = fromMs > 0 ? Math.max(this.next, stream.keptSince(fromMs)) : this.next
    return from < end ? stream.keptIn(from, end) : 0
  }

  /** Of a stream: whether, and by which group, retention is held back; see `Hold`. */
  get hold(): Hold | undefined {
    return this.appliedChunks.retention?.hold
  }

  /** Of a stream: bytes of the messages that are kept only because a group has not finished them. */
  heldBytesAt(nowMs: number): number {
    const { retention } = this.appliedChunks
    return retention?.hold === undefined ? 0 : retention.dueBytes(this.retentionLimits, nowMs)
  }

  // Whether the messages below `end`, which retention would release, are kept for a group. Notes the group.
  protected isHeld(end: number): boolean {
    const limit = this.stream?.waitForGroupsBytes ?? 0
    if (limit === 0) return false
    let slowest: GroupContents | undefined
    for (const group of this.groups)
      if (group.needs(end) && (slowest === undefined || group.position < slowest.position)) slowest = group
    if (slowest === undefined) return false
    const isExceeded = this.retainedBytes > limit
    const wasExceeded = this.retention.hold?.isExceeded === true
    this.retention.hold = { group: slowest.name, isExceeded: isExceeded || wasExceeded }
    return !isExceeded
  }

  /** Of a group: whether messages below `end` are neither done nor dead. */
  protected needs(end: number): boolean {
    const { position } = this
    return position < end && (position < this.next || this.countUnseen(end) > 0)
  }

  /** Of a stream: offset of the first message that is kept, or an offset before it in the same chunk; `next` if there is none. */
  get firstKept(): number {
    const first = this.nextRetained(0)
    return first === -1 ? this.next : first
  }

  /**
   * Of a stream: offset of the first message that is kept and was published at `timeMs` or later; `next` if there is none. A lower
   * offset if the chunk of `retainedSince(timeMs)` is cold, or if the first messages of the next chunk were not kept and it is cold.
   */
  keptSince(timeMs: number): number {
    const from = this.retainedSince(timeMs)
    const chunk = this.heldChunk(from)
    const first = this.nextRetained(chunk === undefined ? from : chunk.base + chunk.batches.since(timeMs))
    return first === -1 ? this.next : first
  }

  /** Called in service, before the stream releases all messages below `end`. */
  losing(_end: number, _nowMs: number): void {}

  /** Of a group: whether messages of the stream have not entered yet. */
  get isBehind(): boolean {
    return this.source !== undefined && this.next < this.source.next
  }

  /**
   * The messages `[from, end)` of the stream enter; all of them are in one chunk. Without `keys`, no message has a key. Of the
   * messages that the stream does not keep, none enters, and with `isSkipped` none enters at all.
   */
  enterFact(from: number, end: number, keys: KeyWords | undefined, isSkipped: boolean): void {
    // The counters of a newer page include this fact.
    if (this.pagePosition < this.appliedFrom && end > this.next) this.next = end
    this.dirty = true
    const given = isSkipped ? undefined : this.source!.heldChunk(from)
    const known = this.chunks.at(from)
    if (known === undefined && given === undefined) return
    const chunk = this.chunkToFill(from)
    const index = from - chunk.base
    if (chunk.pagePosition > this.appliedFrom || index < chunk.count) return
    const before = { live: chunk.live, bytes: chunk.bytes }
    // The group moved on to `from`.
    if (index > chunk.count) enterChunk(chunk, undefined, index)
    enterChunk(chunk, given, end - chunk.base)
    this.live += chunk.live - before.live
    this.bytes += chunk.bytes - before.bytes
    if (keys !== undefined) this.#setKeys(chunk, index, end - chunk.base, keys)
    for (let at = index; at < end - chunk.base;) {
      const first = chunk.firstLive(at)
      at = first + 1
      while (at < end - chunk.base && !chunk.isGone(at)) at++
      if (first < end - chunk.base) this.follower.entered(chunk, first, at)
    }
    this.follower.passed(end)
    if (chunk.live === 0 && chunk.full) this.dropChunk(chunk)
  }

  #setKeys(chunk: Chunk, from: number, end: number, keys: KeyWords): void {
    for (let index = from, at = 0; index < end; index++, at += 2) {
      if ((keys[at]! | keys[at + 1]!) !== 0 && !chunk.isGone(index))
        chunk.setKey(index, this.keys.hold(keys[at]!, keys[at + 1]!))
    }
  }

  /** Retention removed all messages below `end` from the stream. `missed` messages of the group were neither done nor dead. */
  missFact(end: number, missed: number): void {
    for (const { base, count } of this.chunks) if (base < end) this.remove(base, Math.min(end - base, count))
    if (this.pagePosition >= this.appliedFrom) return
    this.missed += missed
    if (end > this.next) this.next = end
    this.dirty = true
  }

  /**
   * The group moves to `to`: all messages leave it, except dead ones below `to`. The messages from `to` on enter again later.
   * In recovery, a chunk with a newer page contains this fact.
   */
  moveFact(to: number): void {
    for (const chunk of this.chunks) {
      if (chunk.pagePosition > this.appliedFrom) continue
      const { base, count } = chunk
      let from = base
      for (const index of [...(chunk.dead?.indexes() ?? [])]) {
        const offset = base + index
        if (offset >= to) break
        if (offset > from) this.remove(from, offset - from)
        from = offset + 1
      }
      this.remove(from, base + count - from)
      if (this.chunks.at(base) !== chunk) continue
      // A message that is gone can enter again, so nothing of the chunk may be left from `to` on.
      if (chunk.live === 0) this.dropChunk(chunk)
      else if (to < base + count) this.replaceChunk(chunk, cutChunk(chunk, to - base))
    }
    if (this.pagePosition >= this.appliedFrom) return
    this.next = to
    this.redeliveredBelow = Math.min(this.redeliveredBelow, to)
    this.dirty = true
  }

  override relocateFact(offset: number, count: number, position: number, bytes: number, scale = 0): void {
    super.relocateFact(offset, count, position, bytes, scale)
    for (const group of this.groups) {
      group.appliedFrom = this.appliedFrom
      group.relocateFact(offset, count, position, bytes, scale)
      group.appliedFrom = Infinity
    }
  }

  /** Groups are near the head of their streams, or have changed messages, so their chunks stay in memory. */
  override mayBeCold(number: number): boolean {
    return this.source === undefined && super.mayBeCold(number)
  }

  /** Number of messages of a stream in `[from, end)` that are kept. If the chunk of `from` is cold, about this number. */
  keptIn(from: number, end: number): number {
    let kept = 0
    for (let at = from; at < end; at = chunkEndAfter(at)) {
      const to = Math.min(end, chunkEndAfter(at))
      const chunk = this.heldChunk(at)
      if (chunk !== undefined) kept += chunk.retained?.countIn(at - chunk.base, to - chunk.base) ?? 0
      else if (this.isCold(at)) kept += Math.min(this.chunks.summaryAt(at).messages, to - at)
    }
    return kept
  }

  protected replaceChunk(chunk: Chunk, other: Chunk): void {
    this.forgetNewest(chunk)
    this.chunks.place(other)
    this.dirty = true
  }

  protected dropChunk(chunk: Chunk): void {
    this.chunks.drop(chunk.number)
    this.use.pages.removed(PAGE.chunk, this.id, chunk.number)
    this.forgetNewest(chunk)
    this.dirty = true
  }
}

/** The use of the log by groups: none, because their streams keep the batches. Only pages are counted. */
export function pagesOnly(use: LogUse): LogUse {
  return {
    pages: use.pages,
    segmentOf: (position) => use.segmentOf(position),
    add() {},
    share() {},
    remove() {},
    gone() {},
    move() {},
  }
}
