/**
 * The line: in what order the messages of a queue are handed out. By priority, then by eligible since, then by offset
 * (invariant 12). Volatile; recovery builds it from the chunks.
 *
 * What came without a delay and was not tried yet stands in the plain line of its priority, which is nothing but a
 * cursor: no such message stands before it. Everything else is in one of two kinds of heap: scheduled, until its
 * time, then due, by priority. A heap can hold messages that are gone by now; they are passed over when they come up.
 */
import { CHUNK_WORDS, addBits, firstInside, firstOutside, hasBit, removeBits } from './bits.js'
import type { Chunk } from './chunk.js'
import { chunkEndAfter, type Chunks } from './chunks.js'
import { TimeHeap } from './heap.js'

const PRIORITIES = 32

/** Consecutive messages of one batch that can be handed out together: same priority, same attempt, same mark. */
export interface Run {
  offset: number
  count: number
  batchPosition: number
  publishedAtMs: number
  attempt: number
  redelivered: boolean
  /** A suspect: whoever gets it handles nothing else meanwhile. */
  alone: boolean
  /** -1: from the plain line. */
  sinceMs: number
  /** Its time to live is over: it is a run by itself and must not be delivered. */
  expired: boolean
  /** All that a delivery of it says is on disk already; set by whoever knows where the disk is. */
  durable: boolean
}

export class Line {
  /** Offsets below this may have been delivered by an earlier run of the broker. */
  redeliveredBelow = 0
  /** Messages that wait for their time. */
  scheduled = 0
  readonly #chunks: Chunks
  /** Offset after the newest message. */
  #end = 0
  readonly #cursors = new Float64Array(PRIORITIES)
  readonly #plainCounts = new Float64Array(PRIORITIES)
  readonly #due: (TimeHeap | undefined)[] = []
  readonly #scheduled = new TimeHeap()
  /** Priorities whose plain line, or due heap, is not empty. */
  #plainMask = 0
  #dueMask = 0
  /** Offsets that were being handled, among others, when a connection died; one of them may have killed it. */
  readonly #suspects = new Set<number>()

  constructor(chunks: Chunks) {
    this.#chunks = chunks
  }

  /** The messages of `chunk` at `[from, to)`, which are neither gone nor dead, take their places. */
  add(chunk: Chunk, from: number, to: number): void {
    this.#end = Math.max(this.#end, chunk.base + to)
    const { dues, priorities } = chunk
    if (dues === undefined && priorities === undefined) {
      this.#countPlain(0, to - from)
      return
    }
    for (let index = from; index < to; index++) {
      const dueMs = dues === undefined ? 0 : dues[index]!
      if (dueMs === 0) this.#countPlain(chunk.priorityAt(index), 1)
      else this.#schedule(chunk, index, dueMs)
    }
  }

  /** Recovery is over: every message that is live and not dead takes its place. */
  rebuild(end: number): void {
    this.#end = end
    for (const chunk of this.#chunks) {
      if (chunk.dead !== undefined) for (const index of chunk.dead.keys()) takeOut(chunk, index, index + 1)
      for (let index = 0; index < chunk.count;) {
        const from = firstOutside(chunk.gone, chunk.out, index, chunk.count)
        const to = firstInside(chunk.gone, chunk.out, from, chunk.count)
        if (to > from) this.add(chunk, from, to)
        index = Math.max(to, index + 1)
      }
    }
  }

  /** What was scheduled for `nowMs` or before is due now. */
  advance(nowMs: number): void {
    while (this.#scheduled.firstTime <= nowMs) {
      const dueMs = this.#scheduled.firstTime
      const offset = this.#scheduled.firstOffset
      this.#scheduled.pop()
      const chunk = this.#waitingChunk(offset)
      if (chunk === undefined) continue
      this.scheduled--
      this.#makeDue(chunk.priorityAt(offset - chunk.base), dueMs, offset)
    }
  }

  /** When `advance` has something to do next; Infinity when nothing is scheduled. */
  get nextDeadline(): number {
    return this.#scheduled.firstTime
  }

  /** Since when the message has waited that was eligible first; Infinity when none is. */
  get oldestSince(): number {
    let oldest = Infinity
    for (let mask = this.#plainMask | this.#dueMask; mask !== 0; mask &= mask - 1) {
      const priority = 31 - Math.clz32(mask & -mask)
      const chunk = this.#head(priority)
      if (chunk !== undefined) oldest = Math.min(oldest, plainTime(chunk, this.#cursors[priority]!))
      oldest = Math.min(oldest, this.#dueHeap(priority)?.firstTime ?? Infinity)
    }
    return oldest
  }

  /** Fills `run` with what goes next, at most `max` messages; false when nothing is ready. */
  next(max: number, nowMs: number, run: Run): boolean {
    for (let mask = this.#plainMask | this.#dueMask; mask !== 0; mask = this.#plainMask | this.#dueMask) {
      const priority = 31 - Math.clz32(mask)
      const chunk = this.#head(priority)
      const cursor = this.#cursors[priority]!
      const due = this.#dueHeap(priority)
      if (due !== undefined) {
        const plainSince = chunk === undefined ? Infinity : plainTime(chunk, cursor)
        if (due.firstTime < plainSince || (due.firstTime === plainSince && due.firstOffset < cursor)) {
          this.#dueRun(due, nowMs, run)
          return true
        }
      }
      if (chunk === undefined) continue
      this.#plainRun(chunk, priority, max, nowMs, run)
      return true
    }
    return false
  }

  /** The first `count` messages of `run`, the newest from `next`, are handed out. */
  take(run: Run, count: number): void {
    const chunk = this.#chunks.at(run.offset)!
    const index = run.offset - chunk.base
    const priority = chunk.priorityAt(index)
    takeOut(chunk, index, index + count)
    if (run.sinceMs === -1) {
      this.#cursors[priority] = run.offset + count
      this.#countPlain(priority, -count)
    } else {
      removeBits(chunk.waiting!, index, index + 1)
      this.#due[priority]!.pop()
      this.#dueHeap(priority)
    }
  }

  /** A message that was handed out takes its old place. */
  giveBack(chunk: Chunk, offset: number, sinceMs: number): void {
    const index = offset - chunk.base
    const priority = chunk.priorityAt(index)
    this.#mark(chunk, index)
    if (sinceMs !== -1) {
      this.#wait(chunk, index)
      this.#makeDue(priority, sinceMs, offset)
      return
    }
    removeBits(chunk.out!, index, index + 1)
    if (offset < this.#cursors[priority]!) this.#cursors[priority] = offset
    this.#countPlain(priority, 1)
  }

  /** A message that was handed out comes back at `dueMs`. */
  comeBack(chunk: Chunk, offset: number, dueMs: number, nowMs: number): void {
    const index = offset - chunk.base
    this.#mark(chunk, index)
    this.#suspects.delete(offset)
    if (dueMs > nowMs) {
      this.#schedule(chunk, index, dueMs)
      return
    }
    this.#wait(chunk, index)
    this.#makeDue(chunk.priorityAt(index), dueMs, offset)
  }

  /**
   * Whether the message at `index`, which is not gone, could be handed out now; if so it leaves the line, as it is
   * about to be gone.
   */
  leaveIfEligible(chunk: Chunk, index: number, nowMs: number): boolean {
    if (chunk.waiting !== undefined && hasBit(chunk.waiting, index)) {
      if (chunk.dues![index]! > nowMs) return false
      removeBits(chunk.waiting, index, index + 1)
      return true
    }
    if (chunk.out !== undefined && hasBit(chunk.out, index)) return false
    this.#countPlain(chunk.priorityAt(index), -1)
    return true
  }

  /** Messages that were handed out are done with: nothing about them is remembered. */
  forget(offset: number, count: number): void {
    for (let i = 0; i < count && this.#suspects.size > 0; i++) this.#suspects.delete(offset + i)
  }

  /** A message that is about to be given back may have killed its consumer: it is handed out alone from now on. */
  suspect(offset: number): void {
    this.#suspects.add(offset)
  }

  /** Everything that stood in the line is gone. */
  clear(): void {
    this.#plainCounts.fill(0)
    this.#plainMask = 0
    this.#dueMask = 0
    this.#due.length = 0
    this.#scheduled.clear()
    this.scheduled = 0
    this.#suspects.clear()
  }

  /** Messages in plain lines, and waiting in heaps, for comparing with a count of the chunks. */
  counts(): { readonly plain: number; readonly waiting: number } {
    let waiting = 0
    for (const heap of [this.#scheduled, ...this.#due]) {
      for (const offset of heap?.offsets() ?? []) if (this.#waitingChunk(offset) !== undefined) waiting++
    }
    return { plain: this.#plainCounts.reduce((sum, count) => sum + count, 0), waiting }
  }

  #plainRun(chunk: Chunk, priority: number, max: number, nowMs: number, run: Run): void {
    const cursor = this.#cursors[priority]!
    const index = cursor - chunk.base
    const batch = chunk.batchAt(index)
    let end = Math.min(chunk.batchEnd(batch), index + max)
    end = firstInside(chunk.gone, chunk.out, index, end)
    const marked = this.#isMarked(chunk, index)
    if (this.redeliveredBelow > cursor) end = Math.min(end, this.redeliveredBelow - chunk.base)
    else if (marked) end = firstOutside(chunk.seen, undefined, index, end)
    else end = firstInside(chunk.seen, undefined, index, end)
    if (chunk.priorities !== undefined) {
      for (let at = index + 1; at < end; at++) if (chunk.priorities[at] !== priority) end = at
    }
    run.expired = chunk.isExpired(index, nowMs)
    if (run.expired) end = index + 1
    else if (chunk.expiries !== undefined) {
      for (let at = index + 1; at < end; at++) if (chunk.isExpired(at, nowMs)) end = at
    }
    if (this.#suspects.size > 0) end = this.#untilSuspect(chunk, index, end)
    run.offset = cursor
    run.count = end - index
    run.batchPosition = chunk.batchPosition(batch)
    run.publishedAtMs = chunk.batchTime(batch)
    run.attempt = 1
    run.redelivered = marked
    run.alone = this.#suspects.has(cursor)
    run.sinceMs = -1
  }

  #dueRun(due: TimeHeap, nowMs: number, run: Run): void {
    const offset = due.firstOffset
    const chunk = this.#chunks.at(offset)!
    const index = offset - chunk.base
    const batch = chunk.batchAt(index)
    const attempts = chunk.attemptsAt(index)
    run.offset = offset
    run.count = 1
    run.batchPosition = chunk.batchPosition(batch)
    run.publishedAtMs = chunk.batchTime(batch)
    run.attempt = attempts + 1
    run.redelivered = attempts > 0 || this.#isMarked(chunk, index)
    run.alone = this.#suspects.has(offset)
    run.expired = chunk.isExpired(index, nowMs)
    run.sinceMs = due.firstTime
  }

  // Moves the cursor to the first plain message of the priority and returns its chunk; undefined when there is none.
  #head(priority: number): Chunk | undefined {
    if ((this.#plainMask & (1 << priority)) === 0) return undefined
    let cursor = Math.max(this.#cursors[priority]!, this.#chunks.firstOffset)
    while (cursor < this.#end) {
      const chunk = this.#chunks.at(cursor)
      if (chunk !== undefined && (chunk.priorityMask >>> priority) & 1) {
        const { priorities, count } = chunk
        for (let index = cursor - chunk.base; index < count; index++) {
          index = firstOutside(chunk.gone, chunk.out, index, count)
          if (index === count) break
          if (priorities === undefined || priorities[index] === priority) {
            this.#cursors[priority] = chunk.base + index
            return chunk
          }
        }
      }
      cursor = Math.min(chunkEndAfter(cursor), this.#end)
    }
    throw new Error(`priority ${priority} counts ${this.#plainCounts[priority]} plain messages and has none`)
  }

  // The due heap of the priority without what is gone at its front; undefined when nothing is left.
  #dueHeap(priority: number): TimeHeap | undefined {
    if ((this.#dueMask & (1 << priority)) === 0) return undefined
    const heap = this.#due[priority]!
    while (heap.size > 0 && this.#waitingChunk(heap.firstOffset) === undefined) heap.pop()
    if (heap.size > 0) return heap
    this.#dueMask &= ~(1 << priority)
    return undefined
  }

  // A suspect is a run by itself, and the run before it ends there.
  #untilSuspect(chunk: Chunk, from: number, to: number): number {
    if (this.#suspects.has(chunk.base + from)) return from + 1
    for (let index = from + 1; index < to; index++) if (this.#suspects.has(chunk.base + index)) return index
    return to
  }

  #schedule(chunk: Chunk, index: number, dueMs: number): void {
    this.#wait(chunk, index)
    takeOut(chunk, index, index + 1)
    this.#scheduled.push(dueMs, chunk.base + index)
    this.scheduled++
  }

  #makeDue(priority: number, sinceMs: number, offset: number): void {
    this.#due[priority] ??= new TimeHeap()
    this.#due[priority].push(sinceMs, offset)
    this.#dueMask |= 1 << priority
  }

  #wait(chunk: Chunk, index: number): void {
    chunk.waiting ??= new Uint32Array(CHUNK_WORDS)
    addBits(chunk.waiting, index, index + 1)
  }

  // The chunk of a message that is in a heap; undefined when the heap holds it no longer in earnest.
  #waitingChunk(offset: number): Chunk | undefined {
    const chunk = this.#chunks.at(offset)
    if (chunk?.waiting === undefined) return undefined
    const index = offset - chunk.base
    return hasBit(chunk.waiting, index) && !chunk.isGone(index) ? chunk : undefined
  }

  #countPlain(priority: number, count: number): void {
    const total = this.#plainCounts[priority]! + count
    this.#plainCounts[priority] = total
    if (total === 0) this.#plainMask &= ~(1 << priority)
    else this.#plainMask |= 1 << priority
  }

  #isMarked(chunk: Chunk, index: number): boolean {
    return (
      chunk.base + index < this.redeliveredBelow || (chunk.seen !== undefined && hasBit(chunk.seen, index))
    )
  }

  #mark(chunk: Chunk, index: number): void {
    chunk.seen ??= new Uint32Array(CHUNK_WORDS)
    addBits(chunk.seen, index, index + 1)
  }
}

function plainTime(chunk: Chunk, offset: number): number {
  return chunk.batchTime(chunk.batchAt(offset - chunk.base))
}

function takeOut(chunk: Chunk, from: number, to: number): void {
  chunk.out ??= new Uint32Array(CHUNK_WORDS)
  addBits(chunk.out, from, to)
}
