/**
 * The chunks of one queue, by offset. A chunk that is full and has no live message is dropped, or is kept by `retention`
 * alone. A full chunk may be cold, that is, not in memory, if its page contains all of its state (see cold.ts). All
 * messages of a chunk that is neither in memory nor cold are gone.
 */
import { BATCH_HEADER_BYTES, LIMITS } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { Chunk } from './chunk.js'
import { NO_BATCH, type ChunkSummary } from './cold.js'
import { REFER_BYTES } from './facts.js'
import type { LogUse } from './log-use.js'
import { NO_PAGES, type Pages } from './pages.js'
import { MARK } from './marks.js'
import type { Retention } from './retention.js'

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
  /** The messages that are kept for replay; undefined if there are none. */
  retention: Retention | undefined

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
    return this.#summary(Math.floor(offset / CHUNK_MESSAGES))
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
    this.retention = undefined
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
  [Symbol.iterator](): IterableIterator<Chunk> {
    return this.#list.filter((chunk) => chunk !== undefined).values()
  }

  // --- batches with live or retained messages: the log keeps a batch until the last of them is gone ---

  /** The chunk in memory with live or retained messages at `number`. */
  held(number: number): Chunk | undefined {
    // An array without negative indexes is read much faster.
    const at = number - this.#first
    return (at < 0 ? undefined : this.#list[at]) ?? this.retention?.at(number)
  }

  /** Whether the chunk is not in memory although it has live or retained messages. */
  isColdNumber(number: number): boolean {
    return this.#cold.has(number) || this.retention?.isCold(number) === true
  }

  // Numbers of all chunks with live or retained messages, in ascending order. Numbers of other chunks can be among them.
  *#neededNumbers(): Generator<number, void> {
    const retained = this.retention?.numbers ?? []
    let next = 0
    for (let at = 0; at < this.#list.length; at++) {
      const number = this.#first + at
      for (; next < retained.length && retained[next]! < number; next++) yield retained[next]!
      if (retained[next] === number) next++
      yield number
    }
    for (; next < retained.length; next++) yield retained[next]!
  }

  /** Position of the batch that holds the oldest live or retained message; -1 if there is no such message. */
  get oldestPosition(): number {
    let oldest = -1
    this.eachNeededBatch((position) => {
      oldest = position
      return true
    })
    return oldest
  }

  /**
   * Visits the batches that have a live or retained message, each batch once, in the order of their offsets, until
   * `visit` returns true. `bytes` is what the batch counts. A shared batch is visited once for each of its rows with such a
   * message. In a cold chunk, all batches in a segment are visited as one. Allocates nothing per batch, because a queue
   * that is deleted can have millions of batches.
   */
  eachNeededBatch(visit: (position: number, bytes: number, scale: number) => boolean | void): void {
    let last = -1
    for (const number of this.#neededNumbers()) {
      const chunk = this.held(number)
      if (chunk === undefined) {
        if (!this.isColdNumber(number)) continue
        const { uses, firstPosition, firstBytes, lastPosition, scale } = this.#summary(number)
        for (const [position, bytes] of uses) {
          const isVisited = position === firstPosition && position === last
          if (visit(position, isVisited ? bytes - firstBytes : bytes, scale) === true) return
        }
        last = lastPosition
        continue
      }
      if (chunk.live === 0 && chunk.retained === undefined) continue
      for (let batch = 0; batch < chunk.batches.count; batch++) {
        const position = chunk.batches.position(batch)
        const isShared = chunk.batches.isShared(batch)
        // A batch that continues from the previous chunk was visited there.
        if ((position === last && !isShared) || chunk.isUnneededHere(batch)) continue
        last = position
        if (visit(position, chunk.batches.bytes(batch), chunk.batches.scale(batch)) === true) return
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
   * Number of live or retained messages in the batch of `[offset, offset + count)`; 0 if that batch is no longer at
   * `position`. None of its chunks may be cold.
   */
  neededAt(offset: number, count: number, position: number): number {
    let needed = 0
    for (let from = offset; from < offset + count;) {
      const to = Math.min(offset + count, chunkEndAfter(from))
      const chunk = this.held(Math.floor(from / CHUNK_MESSAGES))
      if (chunk !== undefined && from - chunk.base < chunk.count) {
        const batch = chunk.batches.find(from - chunk.base)
        if (chunk.batches.position(batch) === position)
          needed += chunk.neededIn(from - chunk.base, to - chunk.base)
      }
      from = to
    }
    return needed
  }

  /** Indexes in that batch of its live and retained messages, ascending: a copy of the batch must have their records. */
  neededIndexesAt(offset: number, count: number, position: number): number[] {
    const indexes: number[] = []
    for (let from = offset; from < offset + count; from = chunkEndAfter(from)) {
      const chunk = this.held(Math.floor(from / CHUNK_MESSAGES))
      if (chunk === undefined || chunk.batches.positionAt(from - chunk.base) !== position) continue
      const end = Math.min(offset + count, chunkEndAfter(from)) - chunk.base
      for (let index = chunk.nextNeeded(from - chunk.base, end); index < end;) {
        indexes.push(chunk.base + index - offset)
        index = chunk.nextNeeded(index + 1, end)
      }
    }
    return indexes
  }

  /**
   * Removes the batch from `use` if none of its messages is live or retained, neither in this chunk nor in any other chunk
   * that the batch reaches. In a shared batch, only this row is considered.
   */
  removeUse(chunk: Chunk, batch: number, use: LogUse): void {
    if (!chunk.isUnneededHere(batch)) return
    const { batches } = chunk
    const isShared = batches.isShared(batch)
    if (!isShared && this.#isNeededElsewhere(chunk, batch)) return
    use.gone(isShared ? REFER_BYTES : BATCH_HEADER_BYTES)
    use.remove(batches.position(batch), batches.bytes(batch))
  }

  #isNeededElsewhere(chunk: Chunk, batch: number): boolean {
    const position = chunk.batches.position(batch)
    if (batch === 0 && this.#isNeededFrom(chunk.number, -1, position)) return true
    const isLast = batch + 1 === chunk.batches.count
    return isLast && chunk.full && this.#isNeededFrom(chunk.number, 1, position)
  }

  /** Adds every batch that has a live or retained message to `use`. */
  addUses(use: LogUse): void {
    this.eachNeededBatch((position, bytes, scale) => use.share(position, bytes, scale))
    use.gone(this.#goneBytes)
  }

  /** Removes all batches from `use`, because the queue is about to be dropped. */
  removeAllUses(use: LogUse): void {
    use.gone(-this.#goneBytes)
    this.eachNeededBatch((position, bytes) => removeWhole(position, bytes, use))
  }

  // Estimate of the record bytes of messages that are neither live nor retained, in batches that are still needed. In a
  // shared batch, it is their part of the share of the row. Cold chunks are not included.
  get #goneBytes(): number {
    let bytes = 0
    let last = -1
    for (const number of this.#neededNumbers()) {
      const chunk = this.held(number)
      if (chunk === undefined) continue
      bytes -= chunk.bytes + (chunk.retained?.bytes ?? 0)
      for (let batch = 0; batch < chunk.batches.count; batch++) {
        const position = chunk.batches.position(batch)
        const isShared = chunk.batches.isShared(batch)
        if ((position === last && !isShared) || chunk.isUnneededHere(batch)) continue
        last = position
        bytes += isShared
          ? chunk.neededBytes(batch) + chunk.spareBytes(batch)
          : chunk.batches.bytes(batch) - BATCH_HEADER_BYTES
      }
    }
    return bytes
  }

  /** Removes the batches of the cold chunk `number`, which was dropped, from `use`. */
  removeUses(number: number, summary: ChunkSummary, use: LogUse): void {
    for (const [position, bytes] of summary.uses) removeWhole(position, bytes, use)
    // A batch that reaches into another chunk may still be needed there.
    const { firstPosition, firstBytes, lastPosition, lastBytes } = summary
    const isOne = firstPosition === lastPosition
    const isLastNeeded = this.#isNeededFrom(number, 1, lastPosition)
    if (this.#isNeededFrom(number, -1, firstPosition) || (isOne && isLastNeeded))
      use.add(firstPosition, firstBytes)
    if (!isOne && isLastNeeded) use.add(lastPosition, lastBytes)
  }

  // Whether the batch at `position` has a live or retained message in the nearest present chunk in the direction of `step`.
  // Absent chunks are skipped, because the batch may have filled them and reach beyond them.
  #isNeededFrom(number: number, step: 1 | -1, position: number): boolean {
    if (position === NO_BATCH) return false
    for (let i = 1; i <= BATCH_CHUNKS_MAX; i++) {
      const other = number + i * step
      const chunk = this.held(other)
      if (chunk === undefined && this.isColdNumber(other)) {
        const { firstPosition, lastPosition } = this.#summary(other)
        return (step > 0 ? firstPosition : lastPosition) === position
      }
      if (chunk === undefined || chunk.batches.count === 0) continue
      const batch = step > 0 ? 0 : chunk.batches.count - 1
      return chunk.batches.position(batch) === position && !chunk.isUnneededHere(batch)
    }
    return false
  }

  #summary(number: number): ChunkSummary {
    return this.#pages.summary(this.#queueId, number)!
  }
}

// Removes a batch, or several, whose messages were not reported as gone one by one.
function removeWhole(position: number, bytes: number, use: LogUse): void {
  use.gone(bytes)
  use.remove(position, bytes)
}
