/**
 * The chunks of one queue, by offset. A chunk that is full and has no live message is dropped. A full chunk may be
 * cold, that is, not in memory, if its page contains all of its state (see cold.ts). All messages of a chunk that is
 * neither in memory nor cold are gone.
 */
import { LIMITS } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { Chunk } from './chunk.js'
import type { ChunkSummary } from './cold.js'
import type { LogUse } from './log-use.js'
import { NO_PAGES, type Pages } from './pages.js'
import { MARK } from './marks.js'

/** Maximum number of chunks that one batch can span. */
const BATCH_CHUNKS_MAX = Math.ceil(LIMITS.batchCountMax / CHUNK_MESSAGES) + 1

/** End of the chunk that holds `offset`: the offset after the last offset of the chunk. */
export function chunkEndAfter(offset: number): number {
  return (Math.floor(offset / CHUNK_MESSAGES) + 1) * CHUNK_MESSAGES
}

/** Shared by all queues without cold chunks; always empty. */
const NO_NUMBERS = new Set<number>()

export class Chunks {
  #list: (Chunk | undefined)[] = []
  #first = 0
  /** The list has at least this many places at its front whose chunks are neither in memory nor cold. */
  #empty = 0
  /** Numbers of the cold chunks. */
  #cold = NO_NUMBERS
  readonly #pages: Pages
  readonly #queueId: number

  constructor(pages: Pages = NO_PAGES, queueId = 0) {
    this.#pages = pages
    this.#queueId = queueId
  }

  // --- cold chunks ---

  get coldCount(): number {
    return this.#cold.size
  }

  get coldMessages(): number {
    return this.#cold.size * CHUNK_MESSAGES
  }

  /** Whether the chunk of `offset` is cold. */
  isCold(offset: number): boolean {
    return this.#cold.size > 0 && this.#cold.has(Math.floor(offset / CHUNK_MESSAGES))
  }

  /** The summary of the cold chunk of `offset`. */
  summaryAt(offset: number): ChunkSummary {
    return this.#pages.summary(this.#queueId, Math.floor(offset / CHUNK_MESSAGES))!
  }

  /** Publish time of the first message of the cold chunk of `offset`. */
  firstMsAt(offset: number): number {
    return this.summaryAt(offset).firstMs
  }

  /**
   * Numbers of the cold chunks among the first chunks that together have `messages` messages ready, or among all chunks.
   * Messages with a due time are not counted, because they may not be ready.
   */
  coldHead(messages: number): number[] {
    const numbers: number[] = []
    let found = 0
    for (let at = this.firstNumber - this.#first; at < this.#list.length && found < messages; at++) {
      const chunk = this.#list[at]
      if (chunk !== undefined) found += chunk.undelayed
      else if (this.#cold.has(this.#first + at)) {
        numbers.push(this.#first + at)
        found += CHUNK_MESSAGES
      }
    }
    return numbers
  }

  /** Numbers of the cold chunks, in any order. */
  get coldNumbers(): Iterable<number> {
    return this.#cold
  }

  /** Records that a chunk is cold. The chunk must be absent, or clean and untouched with no leased message. */
  setCold(number: number): void {
    this.#put(number, undefined)
    if (this.#cold === NO_NUMBERS) this.#cold = new Set()
    this.#cold.add(number)
  }

  /** Number of the first chunk that is in memory or cold. */
  get firstNumber(): number {
    for (; this.#empty < this.#list.length; this.#empty++)
      if (this.#list[this.#empty] !== undefined || this.#cold.has(this.#first + this.#empty)) break
    return this.#first + this.#empty
  }

  /** Every message below this offset is gone. */
  get firstOffset(): number {
    return this.#first * CHUNK_MESSAGES
  }

  at(offset: number): Chunk | undefined {
    return this.#list[Math.floor(offset / CHUNK_MESSAGES) - this.#first]
  }

  /** The chunk that will hold `offset`, created if absent. */
  toFill(offset: number): Chunk {
    const found = this.at(offset)
    if (found !== undefined) return found
    const base = chunkEndAfter(offset) - CHUNK_MESSAGES
    const chunk = new Chunk(base)
    if (offset > base) {
      // Recovery found no page of this chunk, so its messages before `offset` are gone.
      chunk.marks.add(MARK.gone, 0, offset - base)
      chunk.count = offset - base
    }
    this.place(chunk)
    return chunk
  }

  /** Adds a chunk that was created or decoded elsewhere. */
  place(chunk: Chunk): void {
    if (this.#cold.size > 0) this.#cold.delete(chunk.number)
    this.#put(chunk.number, chunk)
  }

  #put(at: number, chunk: Chunk | undefined): void {
    if (this.#list.length === 0) {
      // A new array, because `push` would make room for 17 chunks.
      this.#list = [chunk]
      this.#first = at
      this.#empty = 0
      return
    }
    if (at < this.#first) {
      const gap = Array.from({ length: this.#first - at }, () => undefined)
      this.#list = [...gap, ...this.#list]
      this.#first = at
    }
    while (at - this.#first > this.#list.length) this.#list.push(undefined)
    this.#list[at - this.#first] = chunk
    this.#empty = Math.min(this.#empty, at - this.#first)
  }

  clear(): void {
    this.#list = []
    this.#first = 0
    this.#empty = 0
    this.#cold.clear()
  }

  /** Removes a chunk whose messages are all gone. */
  drop(number: number): void {
    if (this.#cold.size > 0) this.#cold.delete(number)
    this.#list[number - this.#first] = undefined
    const empty = this.firstNumber - this.#first
    // Absent chunks are removed from the front in blocks, so that `drop` stays cheap for a long queue.
    if (empty === this.#list.length || (empty >= 64 && empty * 2 >= this.#list.length)) {
      this.#list.splice(0, empty)
      this.#first += empty
      this.#empty = 0
    }
  }

  /** The chunks that are in memory. */
  *[Symbol.iterator](): IterableIterator<Chunk> {
    for (const chunk of this.#list.slice()) if (chunk !== undefined) yield chunk
  }

  // --- batches with live messages: the log keeps a batch until its last message is gone ---

  /** Position of the batch that holds the oldest live message; -1 if no message is live. */
  get oldestPosition(): number {
    let oldest = -1
    this.eachLiveBatch((position) => {
      oldest = position
      return true
    })
    return oldest
  }

  /**
   * Visits the batches that have a live message, each batch once, in the order of their offsets, until `visit` returns
   * true. Allocates nothing per batch, because a queue that is deleted can have millions of batches.
   */
  eachLiveBatch(visit: (position: number, bytes: number) => boolean | void): void {
    let last = -1
    for (let at = 0; at < this.#list.length; at++) {
      const chunk = this.#list[at]
      if (chunk === undefined) {
        if (!this.#cold.has(this.#first + at)) continue
        const { uses, firstPosition, firstBytes, lastPosition } = this.summaryAt(
          (this.#first + at) * CHUNK_MESSAGES,
        )
        for (const [position, bytes] of uses) {
          const isVisited = position === firstPosition && position === last
          if (visit(position, isVisited ? bytes - firstBytes : bytes) === true) return
        }
        last = lastPosition
        continue
      }
      if (chunk.live === 0) continue
      for (let batch = 0; batch < chunk.batches.count; batch++) {
        const position = chunk.batches.position(batch)
        // A batch that continues from the previous chunk was visited there.
        if (position === last || chunk.isGoneHere(batch)) continue
        last = position
        if (visit(position, chunk.batches.bytes(batch)) === true) return
      }
    }
  }

  /**
   * Searches for the first batch that has a live message and is `wanted`, from the batch of the message at `offset` on.
   * Returns the position of that batch; -1 if the search reaches a chunk that is not in memory before it finds one.
   */
  liveBatchFrom(offset: number, wanted: (position: number) => boolean): number {
    let chunk = this.at(offset)
    let batch = chunk === undefined ? 0 : chunk.batches.find(offset - chunk.base)
    while (chunk !== undefined) {
      for (; batch < chunk.batches.count; batch++) {
        const position = chunk.batches.position(batch)
        if (wanted(position) && !chunk.isGoneHere(batch)) return position
      }
      chunk = this.at(chunk.base + CHUNK_MESSAGES)
      batch = 0
    }
    return -1
  }

  /**
   * Searches for the first chunk that is not in memory, from the chunk of `offset` on. Returns an offset in that chunk
   * if the chunk is cold; -1 otherwise.
   */
  coldAfter(offset: number): number {
    if (this.#cold.size === 0) return -1
    let next = offset
    while (this.at(next) !== undefined) next = chunkEndAfter(next)
    return this.isCold(next) ? next : -1
  }

  /**
   * Number of live messages in the batch of `[offset, offset + count)`; 0 if that batch is no longer at `position`. None
   * of its chunks may be cold.
   */
  liveAt(offset: number, count: number, position: number): number {
    let live = 0
    for (let from = offset; from < offset + count;) {
      const to = Math.min(offset + count, chunkEndAfter(from))
      const chunk = this.at(from)
      if (chunk !== undefined && from - chunk.base < chunk.count) {
        const batch = chunk.batches.find(from - chunk.base)
        if (chunk.batches.position(batch) === position)
          live += chunk.liveIn(from - chunk.base, to - chunk.base)
      }
      from = to
    }
    return live
  }

  /** Whether no message of the batch is live, neither in this chunk nor in any other chunk that the batch reaches. */
  isBatchGone(chunk: Chunk, batch: number): boolean {
    if (!chunk.isGoneHere(batch)) return false
    const position = chunk.batches.position(batch)
    if (batch === 0 && this.#isLiveFrom(chunk.base, -CHUNK_MESSAGES, position)) return false
    const isLast = batch + 1 === chunk.batches.count
    return !isLast || !chunk.full || !this.#isLiveFrom(chunk.base, CHUNK_MESSAGES, position)
  }

  /** Removes the batches of the cold chunk `number`, which was dropped, from `use`. */
  removeUses(number: number, summary: ChunkSummary, use: LogUse): void {
    for (const [position, bytes] of summary.uses) use.remove(position, bytes)
    // A batch that reaches into another chunk may still be live there.
    const { firstPosition, firstBytes, lastPosition, lastBytes } = summary
    const base = number * CHUNK_MESSAGES
    const isOne = firstPosition === lastPosition
    const isLastLive = this.#isLiveFrom(base, CHUNK_MESSAGES, lastPosition)
    if (this.#isLiveFrom(base, -CHUNK_MESSAGES, firstPosition) || (isOne && isLastLive))
      use.add(firstPosition, firstBytes)
    if (!isOne && isLastLive) use.add(lastPosition, lastBytes)
  }

  // Whether the batch at `position` has a live message in the nearest present chunk in the direction of `step`. Absent chunks
  // are skipped, because the batch may have filled them and reach beyond them.
  #isLiveFrom(base: number, step: number, position: number): boolean {
    for (let i = 1; i <= BATCH_CHUNKS_MAX; i++) {
      const chunk = this.at(base + i * step)
      if (chunk === undefined && this.isCold(base + i * step)) {
        const { firstPosition, lastPosition } = this.summaryAt(base + i * step)
        return (step > 0 ? firstPosition : lastPosition) === position
      }
      if (chunk === undefined || chunk.batches.count === 0) continue
      const batch = step > 0 ? 0 : chunk.batches.count - 1
      return chunk.batches.position(batch) === position && !chunk.isGoneHere(batch)
    }
    return false
  }
}
