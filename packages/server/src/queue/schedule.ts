/**
 * Messages that wait for their time. Those that are due first stand in a queue by time. Of the others, which can be
 * very many, nothing is kept but the due times that their chunks hold anyway, and for each chunk how early one can be
 * due. When the near ones are used up, the next ones come in; when they are too many, the last ones go out. Ten million
 * messages scattered over a year then take 8 bytes each instead of 24.
 *
 * Invariant: a scheduled message that is due before the horizon is in the queue by time; of each other one the chunk's
 * `laterMs` is not after its due time.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE } from './keys.js'
import { TimeQueue } from './time-queue.js'

/** What means nothing any more is looked for once it is more than half and more than this. */
const STALE_SLACK = 1_024
/** Due times that are looked at to choose a horizon: so many, or those of so many chunks. */
const SAMPLE_TIMES = 4_096
const SAMPLE_CHUNKS = 64

export class Schedule {
  /** Most messages in the queue by time: 16 MiB. Less in tests. */
  static nearMax = 1 << 20
  /** Messages that wait for their time. */
  size = 0
  readonly #chunks: Chunks
  readonly #near = new TimeQueue()
  #horizonMs = Infinity
  /** How many are due at the horizon or after it; never too few. */
  #later = 0

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  /** When there is something to do next; Infinity when nothing waits. */
  get nextDeadline(): number {
    return Math.min(this.#near.firstTime, this.#later > 0 ? this.#horizonMs : Infinity)
  }

  /** The message, which waits and is not ripe, is due at `dueMs`, as its chunk says. */
  add(chunk: Chunk, index: number, dueMs: number): void {
    this.size++
    if (dueMs >= this.#horizonMs) {
      this.#later++
      if (dueMs < chunk.laterMs) chunk.laterMs = dueMs
      return
    }
    this.#near.push(dueMs, chunk.base + index)
    const { size } = this.#near
    if (size > 2 * this.size + STALE_SLACK) this.#near.keep((timeMs, offset) => this.#holds(timeMs, offset))
    else if (size > Schedule.nearMax) this.#spill()
  }

  /** The message waits no more; its chunk still says when it was due. */
  remove(chunk: Chunk, index: number): void {
    this.size--
    if (chunk.dueAt(index) >= this.#horizonMs) this.#later--
  }

  /** Offset of a message that is due at `nowMs`, by due time and offset; it still waits. -1: none is. */
  takeDue(nowMs: number): number {
    for (;;) {
      const timeMs = this.#near.firstTime
      if (timeMs > nowMs) {
        if (this.#later === 0 || this.#horizonMs > nowMs) return NONE
        this.#refill()
        continue
      }
      const offset = this.#near.firstOffset
      this.#near.pop()
      if (this.#holds(timeMs, offset)) return offset
    }
  }

  /** Calls `each` for every message that is due at `nowMs`; nothing is changed, and without any it costs nothing. */
  eachDue(nowMs: number, each: (chunk: Chunk, index: number) => void): void {
    if (this.nextDeadline > nowMs) return
    this.#near.forEach((timeMs, offset) => {
      if (timeMs > nowMs || !this.#holds(timeMs, offset)) return
      const chunk = this.#chunks.at(offset)!
      each(chunk, offset - chunk.base)
    })
    if (this.#later === 0 || this.#horizonMs > nowMs) return
    for (const chunk of this.#chunks) {
      if (chunk.laterMs > nowMs) continue
      for (const index of this.#laterIn(chunk)) if (chunk.dueAt(index) <= nowMs) each(chunk, index)
    }
  }

  clear(): void {
    this.#near.clear()
    for (const chunk of this.#chunks) chunk.laterMs = Infinity
    this.size = 0
    this.#later = 0
    this.#horizonMs = Infinity
  }

  /** Offsets of all that wait and will be found when they are due. */
  offsets(): Set<number> {
    const offsets = new Set<number>()
    this.#near.forEach((timeMs, offset) => {
      if (this.#holds(timeMs, offset)) offsets.add(offset)
    })
    for (const chunk of this.#chunks) {
      for (const index of this.#laterIn(chunk))
        if (chunk.dueAt(index) >= chunk.laterMs) offsets.add(chunk.base + index)
    }
    return offsets
  }

  #holds(timeMs: number, offset: number): boolean {
    const chunk = this.#chunks.at(offset)
    return (
      chunk !== undefined &&
      chunk.isScheduled(offset - chunk.base) &&
      chunk.dueAt(offset - chunk.base) === timeMs
    )
  }

  // Those in the second half of what is near become later ones.
  #spill(): void {
    const stride = Math.max(1, Math.floor(this.#near.size / SAMPLE_TIMES))
    const sample: number[] = []
    let at = 0
    this.#near.forEach((timeMs) => {
      if (at++ % stride === 0) sample.push(timeMs)
    })
    const horizonMs = quantile(sample, 0.5)
    this.#near.keep((timeMs, offset) => {
      if (!this.#holds(timeMs, offset)) return false
      if (timeMs < horizonMs) return true
      const chunk = this.#chunks.at(offset)!
      if (timeMs < chunk.laterMs) chunk.laterMs = timeMs
      this.#later++
      return false
    })
    this.#horizonMs = horizonMs
  }

  // The horizon is reached: moves it on, and takes in what is due before it then.
  #refill(): void {
    const horizonMs = this.#nextHorizon()
    let isLeft = false
    for (const chunk of this.#chunks) {
      if (chunk.laterMs < horizonMs) this.#takeIn(chunk, horizonMs)
      if (chunk.laterMs !== Infinity) isLeft = true
    }
    if (!isLeft) this.#later = 0
    this.#horizonMs = isLeft ? horizonMs : Infinity
  }

  #takeIn(chunk: Chunk, horizonMs: number): void {
    const indexes = this.#laterIn(chunk)
    chunk.laterMs = Infinity
    for (const index of indexes) {
      const dueMs = chunk.dueAt(index)
      if (dueMs < horizonMs) {
        this.#near.push(dueMs, chunk.base + index)
        this.#later--
      } else if (dueMs < chunk.laterMs) chunk.laterMs = dueMs
    }
  }

  #nextHorizon(): number {
    const withLater: Chunk[] = []
    let earliestMs = Infinity
    for (const chunk of this.#chunks) {
      if (chunk.laterMs === Infinity) continue
      withLater.push(chunk)
      if (chunk.laterMs < earliestMs) earliestMs = chunk.laterMs
    }
    const stride = Math.max(1, Math.floor(withLater.length / SAMPLE_CHUNKS))
    const sample: number[] = []
    for (let at = 0; at < withLater.length; at += stride)
      for (const index of this.#laterIn(withLater[at]!)) sample.push(withLater[at]!.dueAt(index))
    const wanted = Schedule.nearMax / 2 / this.#later
    if (wanted >= 1 || sample.length === 0) return Infinity
    return Math.max(quantile(sample, wanted), earliestMs + 1)
  }

  // Indexes of the messages of the chunk that are due at the horizon or after it.
  #laterIn(chunk: Chunk): number[] {
    const indexes: number[] = []
    if (!chunk.hasDues) return indexes
    for (const index of chunk.liveIndexes())
      if (chunk.isScheduled(index) && chunk.dueAt(index) >= this.#horizonMs) indexes.push(index)
    return indexes
  }
}

function quantile(times: readonly number[], share: number): number {
  const sorted = Float64Array.from(times).sort()
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!
}
