/**
 * The due queues, one per priority: due messages without a key, and the heads of keys that are on offer, each from the time
 * at which it became eligible. They are a part of the line, which creates them when the first message is due.
 *
 * A due queue can hold stale entries. Each entry is checked at the front; all are checked when most of them must be stale.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE, type KeysOwner } from './keys.js'
import { emptyLocation } from './location.js'
import { TimeQueue } from './time-queue.js'

/** Stale entries are removed when there are more than twice as many entries as live messages, plus this number. */
const STALE_SLACK = 1024
/** Result of the last call of `Chunk.locate` in this module. */
const LOCATION = emptyLocation()

/** The queue. Its number of live messages is an upper bound for the number of entries that are not stale. */
export interface LineOwner extends KeysOwner {
  readonly live: number
  /** Of a group: its stream. */
  readonly source: unknown
}

export class DueQueues {
  /** One bit per priority, set if the due queue of the priority is not empty. */
  mask = 0
  readonly #chunks: Chunks
  readonly #queue: LineOwner
  readonly #queues: (TimeQueue | undefined)[] = []
  /** Number of entries of all due queues. */
  #size = 0

  /** Size from which stale entries may be removed again. */
  #lookAt = 0

  constructor(chunks: Chunks, queue: LineOwner) {
    this.#chunks = chunks
    this.#queue = queue
  }

  push(priority: number, sinceMs: number, offset: number): void {
    const queue = (this.#queues[priority] ??= new TimeQueue())
    queue.push(sinceMs, offset)
    this.mask |= 1 << priority
    if (++this.#size > 2 * this.#queue.live + STALE_SLACK && this.#size > this.#lookAt) this.#removeStale()
  }

  #removeStale(): void {
    this.#size = 0
    for (const queue of this.#queues) {
      if (queue === undefined) continue
      queue.keep((timeMs, offset) => this.chunkOf(timeMs, offset) !== undefined)
      this.#size += queue.size
    }
    this.#lookAt = this.#size * 2 + STALE_SLACK
  }

  /** The due queue of the priority, without stale entries at its front; undefined if it is empty. */
  of(priority: number): TimeQueue | undefined {
    if ((this.mask & (1 << priority)) === 0) return undefined
    const queue = this.#queues[priority]!
    while (queue.size > 0 && this.chunkOf(queue.firstTime, queue.firstOffset) === undefined) {
      queue.pop()
      this.#size--
    }
    if (queue.size > 0) return queue
    this.mask &= ~(1 << priority)
    return undefined
  }

  /** Removes the first `count` entries of the priority. */
  pop(priority: number, count: number): void {
    const queue = this.#queues[priority]!
    for (let i = 0; i < count; i++) queue.pop()
    this.#size -= count
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
        : this.#queue.keys.offeredOf(slot) === offset && this.#queue.keys.sinceOf(slot) === timeMs
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
