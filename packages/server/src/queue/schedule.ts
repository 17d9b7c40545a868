/**
 * Delayed messages and retries of a queue, by their due times. Schedules with ticks are in `broker/schedules.ts`.
 *
 * The messages that are due first are in a time queue. There can be millions of other scheduled
 * messages, so their due times are stored only in their chunks, and each chunk has a lower bound of these times. The
 * horizon divides the two groups. It moves forward when the time queue is empty, and back when the time queue grows too
 * large. So ten million messages scattered over a year take 8 bytes each instead of 24. The horizon moves forward chunk by
 * chunk, in several turns if necessary; meanwhile some chunks have the former horizon.
 *
 * Invariant: a scheduled message that is due before the horizon of its chunk is in the time queue. For each other scheduled
 * message, `laterMs` of its chunk is at or before its due time.
 */
import type { Chunk } from './chunk.js'
import type { Chunks } from './chunks.js'
import { NONE } from './keys.js'
import { TimeQueue } from './time-queue.js'

/**
 * Stale entries are removed when the size of the time queue exceeds twice the number of scheduled messages, plus this
 * number.
 */
const STALE_SLACK = 1_024
/** Maximum number of due times, and of chunks, that are sampled to choose a horizon. */
const SAMPLE_TIMES = 4_096
const SAMPLE_CHUNKS = 64
/** Result of `takeDue` if it has done a part of its work and found no message yet. */
export const STEP = -2
/**
 * Cost of searching a chunk when the horizon moves, in messages that become ready, and the number of messages that can be
 * added to the time queue at the cost of one.
 */
const SEARCH_COST = 16
const PULLED_PER_COST = 4
/** Maximum number of chunks without later messages that one step passes. */
const PASSED_MAX = 1_024

export class Schedule {
  /** Maximum number of messages in the time queue. With this many, it takes 16 MiB. Tests set a smaller number. */
  static nearMax = 1 << 20
  /** Number of scheduled messages. */
  size = 0
  readonly #chunks: Chunks
  readonly #near = new TimeQueue()
  #horizonMs = Infinity
  /** The chunks to which the horizon still has to move; undefined if it does not move. */
  #moving: IterableIterator<Chunk> | undefined
  /** While the horizon moves: the former horizon, which holds for the chunks above `#movedTo`, up to `#moveEnd`. */
  #formerMs = Infinity
  #movedTo = NONE
  #moveEnd = NONE
  /** Cost of the last step, in messages that become ready. */
  stepCost = 1
  /** Upper bound for the number of messages that are due at the horizon or later. */
  #later = 0

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  /** Time of the next due message, or of the horizon; Infinity if nothing is scheduled. */
  get nextDeadline(): number {
    return Math.min(this.#near.firstTime, this.#later > 0 ? this.#nearUntilMs : Infinity)
  }

  // All scheduled messages that are due before this time are in the time queue.
  get #nearUntilMs(): number {
    return this.#moving === undefined ? this.#horizonMs : this.#formerMs
  }

  #horizonOf({ base }: Chunk): number {
    const isFormer = this.#moving !== undefined && base > this.#movedTo && base <= this.#moveEnd
    return isFormer ? this.#formerMs : this.#horizonMs
  }

  /** Adds a scheduled message. Its due time is already in its chunk. */
  add(chunk: Chunk, index: number, dueMs: number): void {
    this.size++
    if (this.#later === 0) this.#forgetHorizon()
    if (dueMs >= this.#horizonOf(chunk)) {
      this.#later++
      if (dueMs < chunk.laterMs) chunk.laterMs = dueMs
      return
    }
    this.#near.push(dueMs, chunk.base + index)
    const { size } = this.#near
    if (size > 2 * this.size + STALE_SLACK) this.#near.keep((timeMs, offset) => this.#holds(timeMs, offset))
    else if (size > Schedule.nearMax && this.#moving === undefined) this.#spill()
  }

  // Called while no message is beyond the horizon. Time can have passed the horizon. With a message beyond it, `nextDeadline`
  // would then be in the past although no message is due, and messages with keys that are not delayed would wait.
  #forgetHorizon(): void {
    this.#moving = undefined
    this.#horizonMs = Infinity
  }

  /** Removes a message that is no longer scheduled. Its due time is still in its chunk. */
  remove(chunk: Chunk, index: number): void {
    this.size--
    if (chunk.lineTimeAt(index) >= this.#horizonOf(chunk)) this.#later--
  }

  /**
   * Offset of the next message that is due at `nowMs`, in the order of due times and offsets; -1 if no message is due. The message
   * counts as scheduled until the caller calls `remove`. Returns STEP after a step of limited work; see `stepCost`.
   */
  takeDue(nowMs: number): number {
    const timeMs = this.#near.firstTime
    if (timeMs <= nowMs && timeMs < this.#nearUntilMs) {
      const offset = this.#near.firstOffset
      this.#near.pop()
      if (this.#holds(timeMs, offset)) return offset
      this.stepCost = 1
      return STEP
    }
    if (this.#moving === undefined) {
      if (this.#later === 0 || this.#horizonMs > nowMs) return NONE
      this.#beginMove()
    }
    this.#moveOn()
    return STEP
  }

  /**
   * Calls `each` with every message that is due at `nowMs`. Changes nothing, and costs nothing if no message is due.
   */
  eachDue(nowMs: number, each: (chunk: Chunk, index: number) => void): void {
    if (this.nextDeadline > nowMs) return
    this.#near.forEach((timeMs, offset) => {
      if (timeMs > nowMs || !this.#holds(timeMs, offset)) return
      const chunk = this.#chunks.at(offset)!
      each(chunk, offset - chunk.base)
    })
    if (this.#later === 0 || this.#nearUntilMs > nowMs) return
    for (const chunk of this.#chunks) {
      if (chunk.laterMs > nowMs) continue
      for (const index of this.#laterIn(chunk)) if (chunk.lineTimeAt(index) <= nowMs) each(chunk, index)
    }
  }

  clear(): void {
    this.#near.clear()
    for (const chunk of this.#chunks) chunk.laterMs = Infinity
    this.size = 0
    this.#later = 0
    this.#horizonMs = Infinity
    this.#moving = undefined
  }

  /** Offsets of all messages that will be found when they are due. For audits. */
  offsets(): Set<number> {
    const offsets = new Set<number>()
    this.#near.forEach((timeMs, offset) => {
      if (this.#holds(timeMs, offset)) offsets.add(offset)
    })
    for (const chunk of this.#chunks) {
      for (const index of this.#laterIn(chunk))
        if (chunk.lineTimeAt(index) >= chunk.laterMs) offsets.add(chunk.base + index)
    }
    return offsets
  }

  #holds(timeMs: number, offset: number): boolean {
    const chunk = this.#chunks.at(offset)
    return (
      chunk !== undefined &&
      chunk.isScheduled(offset - chunk.base) &&
      chunk.lineTimeAt(offset - chunk.base) === timeMs
    )
  }

  // Moves the horizon back, so that about half of the time queue is beyond it.
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

  // Starts to move the horizon forward.
  #beginMove(): void {
    const horizonMs = this.#nextHorizon()
    this.#formerMs = this.#horizonMs
    this.#horizonMs = horizonMs
    this.#movedTo = NONE
    this.#moving = this.#chunks[Symbol.iterator]()
  }

  // Moves the horizon to the next chunk with later messages, and adds those that are due before it to the time queue.
  #moveOn(): void {
    this.stepCost = SEARCH_COST
    for (let passed = 0; passed < PASSED_MAX; passed++) {
      const next = this.#moving!.next()
      if (next.done === true) {
        this.#endMove()
        return
      }
      const chunk = next.value
      if (chunk.laterMs >= this.#horizonMs) this.#movedTo = chunk.base
      else {
        const pulled = this.#pullNear(chunk)
        this.stepCost += Math.floor(pulled / PULLED_PER_COST)
        return
      }
    }
  }

  #endMove(): void {
    this.#moving = undefined
    for (const chunk of this.#chunks) if (chunk.laterMs !== Infinity) return
    this.#later = 0
    this.#horizonMs = Infinity
  }

  // Returns the number of messages that were added to the time queue.
  #pullNear(chunk: Chunk): number {
    const indexes = this.#laterIn(chunk)
    this.#movedTo = chunk.base
    chunk.laterMs = Infinity
    let pulled = 0
    for (const index of indexes) {
      const dueMs = chunk.lineTimeAt(index)
      if (dueMs < this.#horizonMs) {
        this.#near.push(dueMs, chunk.base + index)
        pulled++
      } else if (dueMs < chunk.laterMs) chunk.laterMs = dueMs
    }
    this.#later -= pulled
    return pulled
  }

  #nextHorizon(): number {
    const withLater: Chunk[] = []
    let earliestMs = Infinity
    for (const chunk of this.#chunks) {
      this.#moveEnd = chunk.base
      if (chunk.laterMs === Infinity) continue
      withLater.push(chunk)
      if (chunk.laterMs < earliestMs) earliestMs = chunk.laterMs
    }
    const stride = Math.max(1, Math.floor(withLater.length / SAMPLE_CHUNKS))
    const sample: number[] = []
    for (let at = 0; at < withLater.length; at += stride) {
      const indexes = this.#laterIn(withLater[at]!)
      const step = Math.ceil((indexes.length * SAMPLE_CHUNKS) / SAMPLE_TIMES)
      for (let i = 0; i < indexes.length; i += step) sample.push(withLater[at]!.lineTimeAt(indexes[i]!))
    }
    const wanted = Schedule.nearMax / 2 / this.#later
    if (wanted >= 1 || sample.length === 0) return Infinity
    return Math.max(quantile(sample, wanted), earliestMs + 1)
  }

  // Indexes of the chunk's scheduled messages that are due at its horizon or later.
  #laterIn(chunk: Chunk): number[] {
    const indexes: number[] = []
    const horizonMs = this.#horizonOf(chunk)
    for (const index of chunk.liveIndexes())
      if (chunk.isScheduled(index) && chunk.lineTimeAt(index) >= horizonMs) indexes.push(index)
    return indexes
  }
}

function quantile(times: readonly number[], share: number): number {
  const sorted = Float64Array.from(times).sort()
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!
}
