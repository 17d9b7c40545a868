/**
 * The due queues, one per priority: due messages without a key, and the heads of keys that are on offer, each from the time
 * at which it became eligible. They are a part of the line, which creates them when the first message is due.
 *
 * A due queue can hold stale entries. Each entry is checked at the front; all are checked when a due queue has grown.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE, type Keys } from './keys.js'
import { emptyLocation } from './location.js'
import { TimeQueue } from './time-queue.js'

/**
 * Stale entries of a due queue are removed when it reaches twice the size that it had after the last removal, plus this
 * number.
 */
const STALE_SLACK = 1024
/** Result of the last call of `Chunk.locate` in this module. */
const LOCATION = emptyLocation()

export class DueQueues {
  /** One bit per priority, set if the due queue of the priority is not empty. */
  mask = 0
  readonly #chunks: Chunks
  readonly #keys: Keys
  readonly #queues: (TimeQueue | undefined)[] = []

  constructor(chunks: Chunks, keys: Keys) {
    this.#chunks = chunks
    this.#keys = keys
  }

  push(priority: number, sinceMs: number, offset: number): void {
    const queue = (this.#queues[priority] ??= new TimeQueue())
    queue.push(sinceMs, offset)
    this.mask |= 1 << priority
    if (queue.size < queue.lookAt) return
    queue.keep((timeMs, other) => this.chunkOf(timeMs, other) !== undefined)
    queue.lookAt = queue.size * 2 + STALE_SLACK
  }

  /** The due queue of the priority, without stale entries at its front; undefined if it is empty. */
  of(priority: number): TimeQueue | undefined {
    if ((this.mask & (1 << priority)) === 0) return undefined
    const queue = this.#queues[priority]!
    while (queue.size > 0 && this.chunkOf(queue.firstTime, queue.firstOffset) === undefined) queue.pop()
    if (queue.size > 0) return queue
    this.mask &= ~(1 << priority)
    return undefined
  }

  /** Removes the first `count` entries of the priority. */
  pop(priority: number, count: number): void {
    const queue = this.#queues[priority]!
    for (let i = 0; i < count; i++) queue.pop()
    if (queue.size === 0) this.mask &= ~(1 << priority)
  }

  /** The chunk of the message that has been in a due queue since `timeMs`; undefined if the entry is stale. */
  chunkOf(timeMs: number, offset: number): Chunk | undefined {
    const chunk = this.#chunks.at(offset)
    if (chunk === undefined) return undefined
    const index = offset - chunk.base
    if (!chunk.isWaiting(index) || !chunk.isDue(index) || chunk.isGone(index)) return undefined
    const slot = chunk.keyAt(index)
    const isCurrent =
      slot === NONE
        ? chunk.dueAt(index) === timeMs
        : this.#keys.offeredOf(slot) === offset && this.#keys.sinceOf(slot) === timeMs
    return isCurrent ? chunk : undefined
  }

  /** Calls `each` with the batch positions of early messages of the highest priority; see `TimeQueue.early`. */
  upcoming(count: number, each: (batchPosition: number) => void): void {
    if (this.mask === 0) return
    this.#queues[31 - Math.clz32(this.mask)]!.early(count, (offset) => {
      const chunk = this.#chunks.at(offset)
      if (chunk === undefined) return
      chunk.locate(offset - chunk.base, LOCATION)
      each(LOCATION.batchPosition)
    })
  }

  /** Counts the messages without a key. @throws Error if the mask lacks a priority */
  audit(): number {
    const offsets = new Set<number>()
    for (const [priority, queue] of this.#queues.entries()) {
      queue?.forEach((timeMs, offset) => {
        const chunk = this.chunkOf(timeMs, offset)
        if (chunk === undefined) return
        if (!((this.mask >>> priority) & 1))
          throw new Error(`line: offset ${offset} is due, but its priority is not in the mask`)
        if (chunk.keyAt(offset - chunk.base) === NONE) offsets.add(offset)
      })
    }
    return offsets.size
  }
}
