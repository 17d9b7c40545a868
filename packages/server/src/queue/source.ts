/**
 * Where the messages of a queue are stored: the batches of its chunks, for the messages that are live and, in a queue with
 * retention, for those that were acknowledged and are kept for replay. `Contents` adds the state of each message.
 *
 * Invariant: `locate` is the only way from an offset to a place in the log. The log keeps a batch while a message in it is
 * live or retained.
 */
import { CHUNK_MESSAGES, nextBit, nextGap } from './bits.js'
import type { Chunk } from './chunk.js'
import { chunkEndAfter, Chunks } from './chunks.js'
import type { ChunkSummary } from './cold.js'
import { NO_FOLLOWER } from './follower.js'
import type { Location } from './location.js'
import type { Copy, LogUse } from './log-use.js'
import { PAGE } from './pages.js'
import { Retention } from './retention.js'

export abstract class Source {
  readonly id: number
  readonly name: string
  /** The queue id in the headers of the batches: that of the queue itself or, for a group, that of its stream. */
  batchOwner: number
  /** Whether the counters, the ids or a chunk differ from their newest pages. */
  dirty = true
  /** Number of subscriptions and readers. A queue without any is left out when the turn looks for deliveries. */
  listeners = 0
  protected readonly use: LogUse
  protected follower = NO_FOLLOWER
  /** The chunks without the arrivals. Only a follower that is notified of arrivals reads this field directly. */
  protected readonly appliedChunks: Chunks
  /**
   * Position in the log of the fact that is being applied; only used during recovery. A chunk with a newer page already
   * contains the fact and ignores it.
   */
  appliedFrom = Infinity

  constructor(id: number, name: string, use: LogUse) {
    this.id = id
    this.batchOwner = id
    this.name = name
    this.use = use
    this.appliedChunks = new Chunks(use.pages, id)
  }

  /** The chunks, after all arrivals are applied. */
  abstract get chunks(): Chunks

  /** Whether acknowledged messages are kept for replay. */
  abstract get retains(): boolean

  chunkAt(offset: number): Chunk | undefined {
    return this.chunks.at(offset)
  }

  /** The chunk of `offset`, if it is in memory and has live or retained messages. */
  heldChunk(offset: number): Chunk | undefined {
    return this.chunks.held(Math.floor(offset / CHUNK_MESSAGES))
  }

  /** All chunks that are in memory: those with live messages, then those with retained messages alone. */
  *heldChunks(): Generator<Chunk, void> {
    yield* this.chunks
    for (const chunk of this.chunks.retention?.inMemory ?? []) if (chunk.isOnlyRetained) yield chunk
  }

  /** Whether the chunk of `offset` has live or retained messages and is not in memory. */
  isCold(offset: number): boolean {
    return this.chunks.isColdNumber(Math.floor(offset / CHUNK_MESSAGES))
  }

  /** Fills `location` with the place in the log of the message at `offset`, which is live or retained. */
  locate(offset: number, location: Location): void {
    const chunk = this.heldChunk(offset)!
    chunk.locate(offset - chunk.base, location)
  }

  // --- retained messages ---

  /** Number of the acknowledged messages that are kept for replay, or of all messages of a stream. */
  get retainedMessages(): number {
    return this.appliedChunks.retention?.messages ?? 0
  }

  /** Record bytes of these messages. */
  get retainedBytes(): number {
    return this.appliedChunks.retention?.bytes ?? 0
  }

  /** Whether the message was acknowledged and is kept for replay. Its chunk must not be cold. */
  isRetained(offset: number): boolean {
    const chunk = this.heldChunk(offset)
    return chunk?.retained?.has(offset - chunk.base) === true
  }

  /**
   * End of the retained messages from `offset` on that have consecutive offsets and are in the batch of `location`, which
   * is that of `offset`.
   */
  retainedEnd(offset: number, { batchEnd }: Location): number {
    const { base, retained } = this.heldChunk(offset)!
    return base + retained!.endFrom(offset - base, batchEnd - base)
  }

  /** See `Retention.next`; -1 if the queue retains no messages. */
  nextRetained(offset: number): number {
    return this.appliedChunks.retention?.next(offset) ?? -1
  }

  /** An offset at or before that of the first retained message that was published at `timeMs` or later. */
  retainedSince(timeMs: number): number {
    return this.appliedChunks.retention?.offsetAt(timeMs) ?? 0
  }

  /** Publish time of the message at `offset`, whose chunk is in memory. */
  publishedAt(offset: number): number {
    const chunk = this.heldChunk(offset)!
    return chunk.publishedAt(offset - chunk.base)
  }

  protected get retention(): Retention {
    return (this.appliedChunks.retention ??= new Retention(this.use.pages, this.id))
  }

  /** Keeps the live messages `[from, to)` of the chunk, which were acknowledged at `ackedMs` and are about to be removed. */
  protected retain(chunk: Chunk, from: number, to: number, ackedMs: number, bytes: number | undefined): void {
    const { retained } = chunk
    const [messagesBefore, bytesBefore] = retained === undefined ? [0, 0] : [retained.count, retained.bytes]
    const { count, bytes: bytesAfter } = chunk.retain(from, to, ackedMs, chunk.hasSizes ? undefined : bytes)
    if (count === 0) {
      chunk.retained = undefined
      return
    }
    if (retained === undefined) this.retention.addChunk(chunk)
    this.retention.add(count - messagesBefore, bytesAfter - bytesBefore)
  }

  /**
   * The acknowledged messages in `[from, end)` are no longer kept for replay. In recovery, the page of a chunk that is still
   * cold contains this fact.
   */
  releaseFact(from: number, end: number): void {
    const { retention } = this.chunks
    if (retention === undefined) return
    for (const number of retention.numbersIn(from, end)) {
      const chunk = retention.at(number)
      if (chunk !== undefined) this.#releaseIn(chunk, from, end)
      else if (this.appliedFrom === Infinity) this.releaseCold(number)
    }
    if (retention.isEmpty && !this.retains) this.appliedChunks.retention = undefined
  }

  /** Releases all messages of a cold chunk without reading its page. */
  releaseCold(number: number): void {
    const { retention } = this
    const summary = this.appliedChunks.summaryAt(number * CHUNK_MESSAGES)
    retention.add(-summary.messages, -summary.bytes)
    retention.remove(number)
    this.forgetCold(number, summary)
  }

  /**
   * The messages of the chunk at `base` with these indexes, a set of bits, are no longer kept. The chunk is in memory. In
   * recovery, the page of a chunk that is still cold contains this fact.
   */
  protected releaseIndexes(base: number, indexes: Uint32Array): void {
    const chunk = this.chunks.retention?.at(base / CHUNK_MESSAGES)
    if (chunk === undefined || chunk.pagePosition > this.appliedFrom) return
    for (let from = nextBit(indexes, 0); from < CHUNK_MESSAGES;) {
      const end = nextGap(indexes, from)
      this.#releaseRun(chunk, from, end)
      from = nextBit(indexes, end)
    }
    this.#released(chunk)
  }

  #releaseIn(chunk: Chunk, from: number, end: number): void {
    if (chunk.pagePosition > this.appliedFrom) return
    this.#releaseRun(chunk, Math.max(0, from - chunk.base), end - chunk.base)
    this.#released(chunk)
  }

  // Releases the messages in `[from, end)`, which are indexes in the chunk.
  #releaseRun(chunk: Chunk, from: number, end: number): void {
    const retained = chunk.retained!
    const last = Math.min(end, chunk.count)
    for (let index = from; index < last;) {
      const batch = chunk.batches.find(index)
      const batchEnd = Math.min(chunk.batchEnd(batch), last)
      const messages = retained.countIn(index, batchEnd)
      if (messages > 0) {
        const bytes = retained.release(index, batchEnd)
        this.retention.add(-messages, -bytes)
        this.follower.removedFrom(chunk, batch, messages, bytes)
      }
      index = batchEnd
    }
  }

  #released(chunk: Chunk): void {
    const retained = chunk.retained!
    this.changed(chunk)
    if (retained.count > 0) {
      chunk.packRetained()
      return
    }
    const isGone = chunk.isOnlyRetained
    chunk.retained = undefined
    this.retention.remove(chunk.number)
    if (isGone) this.use.pages.removed(PAGE.chunk, this.id, chunk.number)
  }

  // --- cold chunks ---

  // Called when no message of a cold chunk is live or retained any more.
  protected forgetCold(number: number, summary: ChunkSummary): void {
    this.use.pages.removed(PAGE.chunk, this.id, number)
    this.follower.removedCold(number, summary)
    this.dirty = true
  }

  /** Puts a cold chunk, which was decoded from its page, back into memory. */
  makeWarm(chunk: Chunk): void {
    if (chunk.isOnlyRetained) this.retention.makeWarm(chunk)
    else this.chunks.place(chunk)
  }

  // --- copies ---

  /**
   * The batch of the messages `[offset, offset + count)` was copied to `position`, where it has `bytes`. Or these are the
   * messages of a row, and its shared batch was copied: then `bytes` is the share of the row, and `scale` its scale.
   */
  relocateFact(offset: number, count: number, position: number, bytes: number, scale = 0): void {
    let copy: Copy | undefined
    for (let at = offset; at < offset + count; at = chunkEndAfter(at)) {
      const chunk = this.toApply(this.heldChunk(at), at)
      if (chunk === undefined) continue
      const { batches } = chunk
      const index = at - chunk.base
      const batch = batches.find(index)
      if (batches.first(batch) !== index) continue
      const before = batches.bytes(batch)
      const leftOutBytes = batches.isShared(batch) ? chunk.spareBytes(batch) : before - bytes
      copy = {
        from: batches.position(batch),
        fromBytes: before,
        to: position,
        toBytes: bytes,
        scale,
        leftOutBytes,
      }
      chunk.relocate(batch, position, bytes, scale)
      this.dirty = true
    }
    if (copy !== undefined) this.follower.copied(copy)
  }

  // Returns the chunk of `offset` if a fact changes it; undefined if the chunk is gone, or if its page already contains
  // the fact.
  protected toApply(chunk: Chunk | undefined, offset: number): Chunk | undefined {
    // In recovery, the page of a chunk that is still cold contains the fact.
    if (chunk === undefined && this.appliedFrom === Infinity && this.isCold(offset))
      throw new Error(`the chunk of offset ${offset} of the queue ${this.name} is cold`)
    return chunk === undefined || chunk.pagePosition > this.appliedFrom ? undefined : chunk
  }

  // Marks the queue too, because a checkpoint looks only at the chunks of dirty queues.
  protected changed(chunk: Chunk): void {
    chunk.dirty = true
    this.dirty = true
  }
}
