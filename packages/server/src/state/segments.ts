/**
 * What each segment of the log still contains: batches with live messages, and settled messages that their queues
 * retain. Live batches are counted as the queues report changes; the counts of retained messages are stored in the
 * queues' pages.
 *
 * Invariant 6: the live bytes of a segment are the bytes of those batches in it that have a live message, headers
 * included. Copying the segment would copy exactly these bytes.
 */
import { DIRECTORY_BYTES } from './directory.js'
import type { LogUse, Queue } from '../queue/index.js'
import type { PageTree } from './page-tree.js'

/** Settled messages of one queue in one segment. */
interface Retained {
  /** Time at which the last of these messages was settled. */
  lastMs: number
  bytes: number
}

/**
 * Maximum number of segments that are counted separately for one queue, in memory and in its page. Beyond this number,
 * neighbours are merged in pairs.
 */
const RETAINED_MAX = 256

/** Merges each pair under its older segment, with the later time: nothing is freed too early. */
function inPairs(segments: ReadonlyMap<number, Retained>): Map<number, Retained> {
  const pairs = new Map<number, Retained>()
  let older: Retained | undefined
  for (const number of [...segments.keys()].sort((a, b) => a - b)) {
    const { lastMs, bytes } = segments.get(number)!
    if (older === undefined) pairs.set(number, (older = { lastMs, bytes }))
    else {
      older.lastMs = Math.max(older.lastMs, lastMs)
      older.bytes += bytes
      older = undefined
    }
  }
  return pairs
}

interface Use {
  liveBytes: number
}

export class Segments implements LogUse {
  readonly pages: PageTree
  /** Bytes of live batches in all segments. */
  liveBytes = 0
  /** Bytes of batches that stopped being live since the broker started. */
  goneBytes = 0
  readonly #segmentBytes: number
  readonly #uses = new Map<number, Use>()
  /** Retained messages by queue, then by segment number, oldest first. */
  readonly #retained = new Map<number, Map<number, Retained>>()
  #last: Use | undefined
  #lastNumber = -1

  constructor(segmentBytes: number, pages: PageTree) {
    this.#segmentBytes = segmentBytes
    this.pages = pages
  }

  segmentOf(position: number): number {
    return Math.floor(position / this.#segmentBytes)
  }

  add(position: number, bytes: number): void {
    this.#use(position).liveBytes += bytes
    this.liveBytes += bytes
  }

  remove(position: number, bytes: number): void {
    this.#use(position).liveBytes -= bytes
    this.liveBytes -= bytes
    this.goneBytes += bytes
  }

  move(from: number, to: number, bytes: number): void {
    this.#use(from).liveBytes -= bytes
    this.#use(to).liveBytes += bytes
  }

  /** Whether messages were retained since the last call of `oldestRetained`. */
  retainsMore = false

  retain(queueId: number, position: number, bytes: number, timeMs: number): void {
    this.retainsMore = true
    let segments = this.#retained.get(queueId)
    if (segments === undefined) this.#retained.set(queueId, (segments = new Map()))
    const number = Math.floor(position / this.#segmentBytes)
    const retained = segments.get(number)
    if (retained === undefined) segments.set(number, { lastMs: timeMs, bytes })
    else {
      retained.lastMs = Math.max(retained.lastMs, timeMs)
      retained.bytes += bytes
    }
    if (segments.size > RETAINED_MAX) this.#retained.set(queueId, inPairs(segments))
  }

  retainedBytes(queueId: number): number {
    let sum = 0
    for (const { bytes } of this.#retained.get(queueId)?.values() ?? []) sum += bytes
    return sum
  }

  /** Values for the page of a queue: the number of each segment, the time of the last settle, and the bytes. */
  retained(queueId: number): [number, number, number][] {
    const segments = this.#retained.get(queueId)
    return [...(segments ?? [])].map(([number, { lastMs, bytes }]) => [number, lastMs, Math.round(bytes)])
  }

  restoreRetained(queueId: number, list: readonly (readonly [number, number, number])[]): void {
    if (list.length === 0) return
    this.#retained.set(queueId, new Map(list.map(([number, lastMs, bytes]) => [number, { lastMs, bytes }])))
  }

  /** Id of a queue that retains messages of the segment that contains `position`. */
  retainerOf(position: number): number | undefined {
    const number = Math.floor(position / this.#segmentBytes)
    for (const [queueId, segments] of this.#retained) if (segments.has(number)) return queueId
    return undefined
  }

  forgetQueue(queueId: number): void {
    this.#retained.delete(queueId)
  }

  /**
   * Forgets segments whose last settle is older than the queue's age limit, and the oldest segments beyond its byte
   * limit. Returns `oldest`, the start of the oldest segment that a queue still retains, and `untilMs`, the time at
   * which the next segment expires; each is Infinity if there is none.
   */
  oldestRetained(
    queues: ReadonlyMap<number, Queue>,
    nowMs: number,
  ): { readonly oldest: number; readonly untilMs: number } {
    let oldest = Infinity
    let untilMs = Infinity
    this.retainsMore = false
    for (const [queueId, segments] of this.#retained) {
      const queue = queues.get(queueId)
      if (queue === undefined || !queue.retains) {
        this.#retained.delete(queueId)
        continue
      }
      const { retainAgeMs, retainBytes } = queue.options
      let room = retainBytes === 0 ? Infinity : retainBytes
      for (const number of [...segments.keys()].sort((a, b) => b - a)) {
        const { lastMs, bytes } = segments.get(number)!
        // The segment that crosses the limit is kept as a whole.
        const isOver = room <= 0 || (retainAgeMs > 0 && lastMs + retainAgeMs <= nowMs)
        room -= bytes
        if (isOver) segments.delete(number)
        else {
          oldest = Math.min(oldest, number)
          if (retainAgeMs > 0) untilMs = Math.min(untilMs, lastMs + retainAgeMs)
        }
      }
    }
    return { oldest: oldest * this.#segmentBytes, untilMs }
  }

  /** Bytes of live batches in the segments that end at or before `position`. */
  liveBytesBefore(position: number): number {
    if (position === Infinity) return this.liveBytes
    let bytes = 0
    for (const [number, { liveBytes }] of this.#uses)
      if ((number + 1) * this.#segmentBytes <= position) bytes += liveBytes
    return bytes
  }

  /** Bytes of live batches in the segment that contains `position`. */
  liveBytesAt(position: number): number {
    return this.#uses.get(Math.floor(position / this.#segmentBytes))?.liveBytes ?? 0
  }

  /**
   * Recounts the live batches of all queues and compares the result with the counters. @throws Error that names the
   * segment that differs
   */
  audit(queues: Iterable<Queue>): void {
    const counted = new Map<number, number>()
    let total = 0
    for (const queue of queues) {
      queue.chunks.eachLiveBatch((position, bytes) => {
        const number = Math.floor(position / this.#segmentBytes)
        counted.set(number, (counted.get(number) ?? 0) + bytes)
        total += bytes
      })
    }
    for (const number of new Set([...counted.keys(), ...this.#uses.keys()])) {
      const bytes = counted.get(number) ?? 0
      const { liveBytes } = this.#uses.get(number) ?? { liveBytes: 0 }
      if (bytes !== liveBytes)
        throw new Error(`Segment ${number} has ${bytes} live bytes, but its counter is ${liveBytes}.`)
    }
    if (total !== this.liveBytes)
      throw new Error(`All segments have ${total} live bytes, but the counter is ${this.liveBytes}.`)
  }

  /** Bytes of a checkpoint that writes every page, every node and the directory. */
  get upkeepBytes(): number {
    return this.pages.bytes + this.pages.nodeBytes + DIRECTORY_BYTES
  }

  /** Start of the oldest segment with a live message at or after `position`; Infinity when no message is live there. */
  oldestLive(position: number): number {
    let oldest = Infinity
    const from = Math.floor(position / this.#segmentBytes)
    for (const [number, use] of this.#uses) {
      if (use.liveBytes > 0 && number >= from && number < oldest) oldest = number
    }
    return oldest * this.#segmentBytes
  }

  /** Forgets the segments that end at or before `position`; they no longer exist. */
  forgetBefore(position: number): void {
    for (const [number, { liveBytes }] of this.#uses) {
      if ((number + 1) * this.#segmentBytes > position) continue
      this.liveBytes -= liveBytes
      this.#uses.delete(number)
    }
    for (const segments of this.#retained.values()) {
      for (const number of segments.keys())
        if ((number + 1) * this.#segmentBytes <= position) segments.delete(number)
    }
    this.#last = undefined
    this.#lastNumber = -1
  }

  #use(position: number): Use {
    const number = Math.floor(position / this.#segmentBytes)
    if (number === this.#lastNumber) return this.#last!
    let use = this.#uses.get(number)
    if (use === undefined) {
      use = { liveBytes: 0 }
      this.#uses.set(number, use)
    }
    this.#last = use
    this.#lastNumber = number
    return use
  }
}
