/**
 * The chunks of one queue, by offset. A chunk that is full and has no live message is dropped. So all messages of an absent
 * chunk are gone.
 */
import { LIMITS } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { Chunk } from './chunk.js'
import { MARK } from './marks.js'

/** Maximum number of chunks that one batch can span. */
const BATCH_CHUNKS_MAX = Math.ceil(LIMITS.batchCountMax / CHUNK_MESSAGES) + 1

/** End of the chunk that holds `offset`: the offset after the last offset of the chunk. */
export function chunkEndAfter(offset: number): number {
  return (Math.floor(offset / CHUNK_MESSAGES) + 1) * CHUNK_MESSAGES
}

export class Chunks {
  #list: (Chunk | undefined)[] = []
  #first = 0

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
      // Messages before `offset` in this chunk are gone, because recovery found no page of the chunk.
      chunk.marks.add(MARK.gone, 0, offset - base)
      chunk.count = offset - base
    }
    this.place(chunk)
    return chunk
  }

  /** Adds a chunk that was created or decoded elsewhere. */
  place(chunk: Chunk): void {
    const at = chunk.base / CHUNK_MESSAGES
    if (this.#list.length === 0) {
      // Not `push`, which makes room for 17 chunks.
      this.#list = [chunk]
      this.#first = at
      return
    }
    if (at < this.#first) {
      const gap = Array.from({ length: this.#first - at }, () => undefined)
      this.#list = [...gap, ...this.#list]
      this.#first = at
    }
    while (at - this.#first > this.#list.length) this.#list.push(undefined)
    this.#list[at - this.#first] = chunk
  }

  clear(): void {
    this.#list = []
    this.#first = 0
  }

  drop(chunk: Chunk): void {
    this.#list[chunk.base / CHUNK_MESSAGES - this.#first] = undefined
    let empty = 0
    while (empty < this.#list.length && this.#list[empty] === undefined) empty++
    // Absent chunks are removed from the front in blocks, so that `drop` stays cheap for a long queue.
    if (empty === this.#list.length || (empty >= 64 && empty * 2 >= this.#list.length)) {
      this.#list.splice(0, empty)
      this.#first += empty
    }
  }

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
    for (const chunk of this) {
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
   * Position of the first batch that has a live message and is `wanted`, starting with the batch of the message at
   * `offset`. -1 if the search reaches an absent chunk first.
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

  /** Number of live messages in the batch of `[offset, offset + count)`; 0 if that batch is no longer at `position`. */
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

  // Whether the batch at `position` has a live message in the nearest present chunk in the direction of `step`. Absent chunks
  // are skipped, because the batch may have filled them and reach beyond them.
  #isLiveFrom(base: number, step: number, position: number): boolean {
    for (let i = 1; i <= BATCH_CHUNKS_MAX; i++) {
      const chunk = this.at(base + i * step)
      if (chunk === undefined || chunk.batches.count === 0) continue
      const batch = step > 0 ? 0 : chunk.batches.count - 1
      return chunk.batches.position(batch) === position && !chunk.isGoneHere(batch)
    }
    return false
  }
}
