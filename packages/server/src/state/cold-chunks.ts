/**
 * Takes cold chunks back into memory, and makes chunks cold again. Pages are read through `Blocks`, like messages.
 *
 * Called by deliveries, by requests about single messages, by relocation, and by checkpoints.
 */
import { BATCH_HEADER_BYTES, BATCH_TYPE, SluiceError, batchType, readBatchHeader } from '@sluice/protocol'
import type { Blocks } from '../log/blocks.js'
import {
  CHUNK_MESSAGES,
  PAGE,
  chunkEndAfter,
  decodeChunkPage,
  type Chunk,
  type Queue,
} from '../queue/index.js'
import type { PageTree } from './page-tree.js'

/**
 * Maximum number of chunks that are in memory although they could be cold, and maximum size of their tables of batches in
 * bytes. They are the chunks that became full or were read back last. A backlog within these limits, or one that is drained
 * soon, costs no reads.
 */
const WARM_MAX = 4_096
const WARM_BYTES_MAX = 4 << 20
/** Number of chunks at the head of a queue that stay in memory: they are delivered next. */
const HEAD_CHUNKS = 4

/** Consecutive messages of a queue. */
export interface MessageRange {
  readonly queue: Queue
  readonly offset: number
  readonly count: number
}

/** Whether a chunk with messages of these ranges is cold. */
export function isAnyCold(ranges: readonly MessageRange[]): boolean {
  for (const { queue, offset, count } of ranges)
    for (let at = offset; at < offset + count; at = chunkEndAfter(at)) if (queue.isCold(at)) return true
  return false
}

// The cold chunks of these messages: for each of them, the first of its messages.
function* coldIn(ranges: Iterable<MessageRange>): Generator<{ queue: Queue; offset: number }, void> {
  for (const { queue, offset, count } of ranges)
    for (let at = offset; at < offset + count; at = chunkEndAfter(at))
      if (queue.isCold(at)) yield { queue, offset: at }
}

/** Names a chunk without keeping it in memory. */
export interface ChunkOf {
  readonly queue: Queue
  readonly number: number
}

interface Warm extends ChunkOf {
  readonly bytes: number
}

export class ColdChunks {
  /** Tests set lower numbers, so that few chunks are enough for some to be cold. */
  static headChunks = HEAD_CHUNKS
  static warmMax = WARM_MAX
  static warmBytesMax = WARM_BYTES_MAX
  readonly #blocks: Blocks
  readonly #tree: PageTree
  /** Chunks that may be cold but are in memory, oldest first, from the index `#oldest` on. Some may be gone since. */
  #warm: Warm[] = []
  #oldest = 0
  #warmBytes = 0

  constructor(blocks: Blocks, tree: PageTree) {
    this.#blocks = blocks
    this.#tree = tree
  }

  /** Position of the page of the cold chunk of `offset`. */
  positionOf(queue: Queue, offset: number): number {
    return this.#tree.positionOf(PAGE.chunk, queue.id, Math.floor(offset / CHUNK_MESSAGES))
  }

  /**
   * Takes back the cold chunk of `offset`. Returns false if the block with its page must be loaded first.
   * @throws SluiceError CORRUPT
   */
  takeBack(queue: Queue, offset: number): boolean {
    const chunk = this.#find(queue, offset)
    if (chunk === undefined) return false
    queue.makeWarm(chunk)
    this.#keep(queue, chunk)
    return true
  }

  // The cold chunk of `offset`, which is not put into memory; undefined if the block with its page must be loaded first.
  #find(queue: Queue, offset: number): Chunk | undefined {
    const position = this.positionOf(queue, offset)
    const block = this.#blocks.findBatch(position)
    if (block === undefined) return undefined
    return decodePage(block.bytes, position - block.position, position, queue, offset)
  }

  /**
   * Takes back the chunk of `offset` if it is cold. Reads its page from disk if necessary.
   * @throws SluiceError CORRUPT; errors of the log's `readRange`
   */
  load(queue: Queue, offset: number): Promise<void> {
    return this.#loadUntil(queue, offset, () => this.takeBack(queue, offset))
  }

  // Loads the block with the page of the chunk of `offset` until `isFound`, or until the chunk is not cold any more.
  async #loadUntil(queue: Queue, offset: number, isFound: () => boolean): Promise<void> {
    for (let failures = 0; queue.isCold(offset) && !isFound();) {
      const position = this.positionOf(queue, offset)
      try {
        await this.#blocks.load(position, true)
      } catch (error) {
        // After the wait, the messages can be gone, or the page can have been written again and the old segment freed.
        if (failures++ > 0 && queue.isCold(offset) && this.positionOf(queue, offset) === position) throw error
      }
    }
  }

  /**
   * Runs `use` while all chunks with messages of these ranges are in memory. The pages of cold chunks are read one after
   * another and decoded, and the chunks are put into memory together before `use`. So they need not all fit among the
   * chunks that stay in memory.
   * @throws SluiceError CORRUPT; errors of the log's `readRange`
   */
  async whileWarm(ranges: readonly MessageRange[], use: () => void): Promise<void> {
    const read = new Map<string, { queue: Queue; chunk: Chunk }>()
    // While a page is read, another one can be written again, so the ranges are searched until nothing is missing.
    for (let isComplete = false; !isComplete;) {
      isComplete = true
      for (const { queue, offset } of coldIn(ranges)) {
        const key = `${queue.id}:${Math.floor(offset / CHUNK_MESSAGES)}`
        if (read.get(key)?.chunk.pagePosition === this.positionOf(queue, offset)) continue
        isComplete = false
        await this.#loadUntil(queue, offset, () => {
          const chunk = this.#find(queue, offset)
          if (chunk !== undefined) read.set(key, { queue, chunk })
          return chunk !== undefined
        })
      }
    }
    const warmed = [...read.values()].filter(({ queue, chunk }) => queue.isCold(chunk.base))
    for (const { queue, chunk } of warmed) queue.makeWarm(chunk)
    use()
    for (const { queue, chunk } of warmed) this.#keep(queue, chunk)
  }

  /** The page of the chunk is durable, so that the chunk can become cold, at once or later. */
  written({ queue, number }: ChunkOf): void {
    const chunk = queue.heldChunk(number * CHUNK_MESSAGES)
    if (chunk === undefined) return
    if (chunk.isOnlyRetained) queue.makeCold(chunk)
    else if (chunk.isUntouched) this.#keep(queue, chunk)
  }

  #keep(queue: Queue, newest: Chunk): void {
    const { number, batches } = newest
    const bytes = batches.pageBytes
    this.#warm.push({ queue, number, bytes })
    this.#warmBytes += bytes
    // The newest stays, so that its caller finds it.
    for (let count = this.#warm.length - this.#oldest; count > 1; count--) {
      if (this.#warmBytes <= ColdChunks.warmBytesMax && count <= ColdChunks.warmMax) return
      this.#cool(newest)
    }
  }

  // Makes the oldest warm chunk cold, if it can be cold and is not near the head of its queue. The oldest entry can be an
  // earlier one of `newest`, which became cold in between.
  #cool(newest: Chunk): void {
    const { queue, number, bytes } = this.#warm[this.#oldest++]!
    this.#warmBytes -= bytes
    if (this.#oldest > this.#warm.length / 2) {
      this.#warm = this.#warm.slice(this.#oldest)
      this.#oldest = 0
    }
    const chunk = queue.heldChunk(number * CHUNK_MESSAGES)
    if (chunk === undefined || chunk === newest) return
    if (chunk.isOnlyRetained || number >= queue.chunks.firstNumber + ColdChunks.headChunks)
      queue.makeCold(chunk)
  }
}

/** Decodes the page of a chunk, whose checksum was verified. @throws SluiceError CORRUPT if it is another page */
function decodePage(bytes: Uint8Array, at: number, position: number, queue: Queue, offset: number): Chunk {
  const header = readBatchHeader(bytes, at)
  const isPage = batchType(bytes, at) === BATCH_TYPE.page && header.count === PAGE.chunk
  const chunk =
    isPage && header.queueId === queue.id ? decodeChunkPage(bytes, at + BATCH_HEADER_BYTES, queue) : undefined
  if (chunk === undefined || chunk.number !== Math.floor(offset / CHUNK_MESSAGES))
    throw new SluiceError(
      'CORRUPT',
      `The page at position ${position} of the log is not the page of the queue ${queue.name} that was written there.`,
    )
  chunk.pagePosition = position
  return chunk
}
