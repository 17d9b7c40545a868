/**
 * Lets messages of streams enter the groups whose lines need them, in the order of offsets. Called by `Dispatcher` when a group
 * has nothing to deliver, or nothing that precedes the next message of the stream.
 *
 * Invariant: a group has at most HELD_MAX messages in memory that are neither done nor dead, plus those that one step
 * adds.
 */
import {
  BATCH_ATTRIBUTE,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  RECORD_TIME_BYTES,
  batchAttributes,
  recordFlags,
} from '@sluice/protocol'
import type { Blocks } from '../log/blocks.js'
import {
  FROM_PLAIN_LINE,
  chunkEndAfter,
  emptyLocation,
  hashKey,
  type Budget,
  type Queue,
  type Run,
} from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import type { State } from '../state/state.js'
import { RecordCursor } from './record-cursor.js'

/**
 * Maximum number of messages that a group holds in memory. Keys that are blocked make a group read on; beyond this number
 * it waits until some of its messages are done.
 */
export const HELD_MAX = 1_000_000
/** Maximum number of messages that enter in one step if some of them have keys, because a fact has the hashes of the keys. */
const KEYED_MAX = 128

/** A step is done. */
export const ENTERED = -1
/** Nothing can enter now. */
export const NOTHING_ENTERS = -2

export class Feeds {
  /** Tests set a lower number. */
  static heldMax = HELD_MAX
  readonly #state: State
  readonly #blocks: Blocks
  readonly #cold: ColdChunks
  readonly #location = emptyLocation()

  constructor(state: State, blocks: Blocks, cold: ColdChunks) {
    this.#state = state
    this.#blocks = blocks
    this.#cold = cold
  }

  /** Whether the next message of the stream precedes `run`, the next messages of the group. */
  precedes({ source, next }: Queue, run: Run): boolean {
    if (run.sinceMs === FROM_PLAIN_LINE) return false
    return this.#publishedMs(source as Queue, next) <= run.sinceMs
  }

  // Publish time of the next message at or after `offset`, or an earlier time.
  #publishedMs(stream: Queue, offset: number): number {
    if (stream.isCold(offset)) return stream.chunks.summaryAt(offset).firstMs
    const chunk = stream.heldChunk(offset)
    return chunk === undefined ? 0 : chunk.publishedAt(offset - chunk.base)
  }

  /**
   * Lets the next messages enter, and takes their number from `budget`. Messages that are skipped at once count as one. Returns
   * `ENTERED`, `NOTHING_ENTERS`, or the position in the log that must be loaded before.
   * @throws SluiceError CORRUPT
   */
  enter(group: Queue, budget: Budget): number {
    if (!group.isBehind || group.live - group.deadCount >= Feeds.heldMax) return NOTHING_ENTERS
    const stream = group.source as Queue
    const { next } = group
    if (stream.isCold(next) && !this.#cold.takeBack(stream, next)) return this.#cold.positionOf(stream, next)
    const chunk = stream.heldChunk(next)
    const end = Math.min(chunkEndAfter(next), stream.next)
    if (chunk === undefined) {
      budget.left--
      group.enter(end, undefined, true)
      return ENTERED
    }
    return this.#enterFrom(group, stream, end, budget)
  }

  // Adds batch by batch, as long as their blocks are in memory, up to `end`, which is in the same chunk as the next message.
  #enterFrom(group: Queue, stream: Queue, end: number, budget: Budget): number {
    const location = this.#location
    const fromMs = group.group!.fromMs
    const from = group.next
    const words: number[] = []
    const key = new Uint32Array(2)
    let isKeyed = false
    let at = from
    while (at < end) {
      stream.locate(at, location)
      if (location.publishedAtMs < fromMs) {
        if (at > from) break
        budget.left--
        group.enter(Math.min(location.batchEnd, end), undefined, true)
        return ENTERED
      }
      // The log need not have the batch any more if the stream keeps none of its messages.
      const kept = stream.nextRetained(at)
      if (kept === -1 || kept >= location.batchEnd) {
        for (const last = Math.min(location.batchEnd, end); at < last; at++) words.push(0, 0)
        continue
      }
      const block = this.#blocks.findBatch(location.batchPosition)
      if (block === undefined) {
        if (at === from) return location.batchPosition
        break
      }
      const batchAt = location.batchPosition - block.position
      const batchEnd = Math.min(location.batchEnd, end)
      if ((batchAttributes(block.bytes, batchAt) & BATCH_ATTRIBUTE.traits) === 0) {
        for (; at < batchEnd; at++) words.push(0, 0)
        continue
      }
      const records = new RecordCursor()
      for (; at < batchEnd && at < from + KEYED_MAX; at++) {
        key.fill(0)
        if (stream.isRetained(at)) {
          stream.locate(at, location)
          const recordAt = records.find(location, 1, stream, block, batchAt)
          isKeyed = readKey(block.bytes, recordAt, this.#state.seed, key) || isKeyed
        }
        words.push(key[0]!, key[1]!)
      }
      if (at >= from + KEYED_MAX) break
    }
    if (isKeyed && at > from + KEYED_MAX) at = from + KEYED_MAX
    budget.left -= at - from
    group.enter(at, isKeyed ? Uint32Array.from(words.slice(0, 2 * (at - from))) : undefined, false)
    return ENTERED
  }
}

// Reads the hash of the key of the record at `at` into `key`. Returns false if the record has no key.
function readKey(bytes: Uint8Array, at: number, seed: State['seed'], key: Uint32Array): boolean {
  const flags = recordFlags(bytes, at)
  if ((flags & RECORD_FLAG.key) === 0) return false
  let next = at + RECORD_HEADER_BYTES
  for (const flag of [RECORD_FLAG.delay, RECORD_FLAG.at, RECORD_FLAG.ttl])
    if ((flags & flag) !== 0) next += RECORD_TIME_BYTES
  hashKey(bytes, next + 1, next + 1 + bytes[next]!, seed, key, 0)
  return true
}
