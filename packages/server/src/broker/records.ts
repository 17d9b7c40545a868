/**
 * Finds single records by offset, in memory or on disk, and matches the state of messages with a filter. Called for dead-letter
 * routing and for requests about single messages.
 */
import {
  ORIGIN_HEADERS,
  RECORD_FLAG,
  copyBytes,
  deathName,
  readText,
  recordFlags,
  recordHeaders,
  recordLayout,
  recordSize,
  type MessageFilter,
} from '@sluice/protocol'
import { recordAt, type Blocks } from '../log/blocks.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import { checkBatchAt, emptyLocation, slotInBatch, type Dead, type Queue } from '../queue/index.js'

export class Records {
  readonly #blocks: Blocks
  readonly #cold: ColdChunks
  readonly #location = emptyLocation()

  constructor(blocks: Blocks, cold: ColdChunks) {
    this.#blocks = blocks
    this.#cold = cold
  }

  /**
   * Returns a copy of the record at `offset`, whose message must be live or retained. Returns undefined if the block of the
   * record must be loaded first.
   * @throws SluiceError CORRUPT
   */
  find(queue: Queue, offset: number): Uint8Array | undefined {
    queue.locate(offset, this.#location)
    const { batchPosition } = this.#location
    const block = this.#blocks.findBatch(batchPosition)
    if (block === undefined) return undefined
    const batchAt = batchPosition - block.position
    checkBatchAt(this.#location, queue, block.bytes, batchAt)
    const at = recordAt(block, batchAt, slotInBatch(this.#location, 1, block.bytes, batchAt))
    return copyBytes(block.bytes, at, at + recordSize(block.bytes, at))
  }

  /**
   * Returns a copy of the record at `offset`, which is read from disk if necessary, together with the bytes that follow it
   * if `ahead` is set. Returns undefined if the message is neither live nor retained after the read.
   * @throws SluiceError CORRUPT; errors of the log's `readRange`
   */
  async read(queue: Queue, offset: number, ahead = false): Promise<Uint8Array | undefined> {
    for (let loads = 0; ; loads++) {
      while (queue.isCold(offset)) await this.#cold.load(queue, offset)
      if (!isStored(queue, offset)) return undefined
      const record = this.find(queue, offset)
      if (record !== undefined) return record
      const position = this.#positionOf(queue, offset)
      try {
        await this.#blocks.load(position, ahead)
      } catch (error) {
        // After the wait, the message can be gone, or its batch can have been relocated and the old segment freed.
        const isStill =
          queue.heldChunk(offset) !== undefined &&
          isStored(queue, offset) &&
          this.#positionOf(queue, offset) === position
        if (isStill && loads > 0) throw error
      }
    }
  }

  #positionOf(queue: Queue, offset: number): number {
    queue.locate(offset, this.#location)
    return this.#location.batchPosition
  }
}

// Whether the message is live or retained. Its chunk must not be cold.
function isStored(queue: Queue, offset: number): boolean {
  return queue.stateOf(offset) !== undefined || queue.isRetained(offset)
}

/** The part of a message's state that a filter can check without its record. */
export interface FilteredState {
  readonly dead: Dead | undefined
  readonly attempts: number
  /** Time at which the message died; if the message is not dead, time at which it was published. */
  readonly timeMs: number
}

/** Whether the state of a message matches the filter. */
export function matchesState(
  filter: MessageFilter,
  { dead, attempts, timeMs }: FilteredState,
  nowMs: number,
): boolean {
  const { reason, error, minAttempts, olderThanMs, youngerThanMs } = filter
  if (reason !== undefined && (dead === undefined || deathName(dead.death) !== reason)) return false
  if (error !== undefined && dead?.reason.includes(error) !== true) return false
  if (minAttempts !== undefined && attempts < minAttempts) return false
  if (olderThanMs !== undefined && nowMs - timeMs < olderThanMs) return false
  return youngerThanMs === undefined || nowMs - timeMs <= youngerThanMs
}

/** Returns how often a message was redriven, in all queues that it has been in. */
export function redrivesOf(queue: Queue, offset: number, record: Uint8Array): number {
  const here = queue.redriveHistory(offset).redrives
  if ((recordFlags(record, 0) & RECORD_FLAG.headers) === 0) return here
  let before = 0
  for (const { nameAt, nameEnd, valueAt, valueEnd } of recordHeaders(record, recordLayout(record))) {
    if (readText(record, nameAt, nameEnd) === ORIGIN_HEADERS.redrives)
      before = Number(readText(record, valueAt, valueEnd))
  }
  return here + (Number.isSafeInteger(before) && before > 0 ? before : 0)
}
