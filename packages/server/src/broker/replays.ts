/**
 * Replays: messages that were acknowledged and that the log still holds are published again, in the order in which they
 * are stored there, up to where the log ended when the first page was asked for.
 *
 * Which messages were acknowledged is known only from facts that follow them. So a replay goes over windows of offsets:
 * for each it first reads the facts of the whole log into a set of bits, and then the messages. Both take as many pages
 * as they need; the cursor says all that a page must know, and the set is a cache of what the log says. It is given up
 * with the last page, with the connection of its client, and when it is idle and another replay needs its place; a page
 * that does not find it reads the facts anew.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  SluiceError,
  batchLength,
  batchQueueId,
  batchType,
  copyBytes,
  readBatchHeader,
  recordSize,
  type BatchHeader,
  type ReplayRequest,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import { FACT, readFacts, type Queue } from '../queue/index.js'
import { addBits, hasBit, removeBits } from '../queue/bits.js'
import type { Caller } from './operator.js'
import { choosesAmong, choosesRecord } from './records.js'
import { READ_BYTES_MAX, entriesFrom, numbersOf, segmentStart } from '../log/scan.js'

/** Offsets of one window, unless the broker was given other ones, and of one piece of its set: 4 MiB in pieces of 8 KiB. */
const WINDOW_OFFSETS = 1 << 25
const PIECE_OFFSETS = 1 << 16
/** Replays that have a set, of all clients. */
const REPLAYS_MAX = 8
/** One whose next page was not asked for within this time gives way to another replay. */
const IDLE_MS = 10_000

/** What a page has done so far, and where the next one goes on. */
export interface ReplayProgress {
  matched: number
  replayed: number
  cursor: string | null
}

/** Who does the work of a page. */
export interface ReplayWork {
  /** Time of this turn, ms. */
  now(): number
  /** Called after each wait. @throws SluiceError when the page shall end */
  check(): void
  /** Publishes the message again. @throws SluiceError when there is no room */
  publish(message: Settled): void
}

/** A message that is to be published again. */
export interface Settled {
  readonly record: Uint8Array
  readonly offset: number
  readonly publishedMs: number
}

/** Where a page begins, and what holds for all pages of its replay. */
interface Cursor {
  /** Place of a batch or an entry, and index of a message in the batch: what precedes it is done. */
  readonly position: number
  readonly index: number
  /** The log ended and began here when the replay began. */
  readonly end: number
  readonly start: number
  /** First offset of the window. */
  readonly floor: number
  /** The facts before this are in the set of the window. */
  readonly scanned: number
  /** Of the replay, in this run of the broker. */
  readonly id: number
}

/** What is known of the messages of one window. */
class Window {
  readonly queueId: number
  readonly floor: number
  readonly offsets: number
  /** Acknowledged, and not come to. */
  readonly acked: OffsetSet
  /** While the set is made anew for a later page: what earlier pages came to. */
  done: OffsetSet | undefined
  /** First offset behind the window that the log holds. */
  nextFloor = Infinity
  /** Segments went while the set was not there: what earlier pages came to is not all known. */
  isPartly = false
  /** Cursor of the page that it is for; who asks for it, and when it was used. */
  cursor = ''
  caller: Caller | undefined
  usedMs = 0

  constructor(queueId: number, floor: number, offsets: number) {
    this.queueId = queueId
    this.floor = floor
    this.offsets = offsets
    this.acked = new OffsetSet(floor, offsets)
  }
}

export class Replays {
  readonly #log: Log
  readonly #windowOffsets: number
  readonly #kept = new Set<Window>()
  #running = 0
  #lastId = 0

  constructor(log: Log, windowOffsets = WINDOW_OFFSETS) {
    this.#log = log
    this.#windowOffsets = windowOffsets
  }

  /** Windows that are kept between pages. */
  get kept(): number {
    return this.#kept.size
  }

  /** The client is gone: nothing is kept for it. */
  forget(caller: Caller): void {
    for (const window of this.#kept) if (window.caller === caller) this.#kept.delete(window)
  }

  /**
   * A page, from `request.cursor` on, or of a replay that ends at `end`. `progress` says what it did, also when it throws.
   * @throws SluiceError INVALID_ARGUMENT, TOO_MANY_REQUESTS; what `work` and reading the log throw
   */
  async page(
    queue: Queue,
    request: ReplayRequest,
    end: number,
    caller: Caller,
    work: ReplayWork,
    progress: ReplayProgress,
  ): Promise<void> {
    const cursor = request.cursor === undefined ? this.#begin(request, end) : cursorOf(request.cursor)
    const window = this.#take(queue.id, cursor, request.cursor, work.now())
    let isTold = false
    this.#running++
    try {
      await this.#page(queue, request, cursor, window, work, progress)
      isTold = true
    } finally {
      this.#running--
      if (isTold || progress.replayed > 0) this.#keep(window, progress.cursor, caller, work.now())
    }
  }

  #keep(window: Window, cursor: string | null, caller: Caller, nowMs: number): void {
    if (window.cursor !== cursor || !caller.isOpen) return
    window.caller = caller
    window.usedMs = nowMs
    this.#kept.add(window)
  }

  #begin({ fromOffset = 0 }: ReplayRequest, end: number): Cursor {
    const start = this.#log.usage().firstPosition
    return { position: start, index: 0, end, start, floor: fromOffset, scanned: 0, id: ++this.#lastId }
  }

  // The window that an earlier page left for this cursor, or one of which nothing is known yet.
  #take(queueId: number, cursor: Cursor, text: string | undefined, nowMs: number): Window {
    for (const window of this.#kept) {
      if (window.cursor !== text || window.queueId !== queueId) continue
      this.#kept.delete(window)
      return window
    }
    for (const window of this.#kept) {
      if (this.#running + this.#kept.size < REPLAYS_MAX) break
      if (nowMs - window.usedMs >= IDLE_MS) this.#kept.delete(window)
    }
    if (this.#running + this.#kept.size >= REPLAYS_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${REPLAYS_MAX} replays are running on this broker; another has to wait until one of them ends.`,
        { retryAfterMs: 1_000 },
      )
    }
    const window = new Window(queueId, cursor.floor, this.#windowOffsets)
    if (cursor.position > cursor.start || cursor.index > 0) {
      window.done = new OffsetSet(cursor.floor, this.#windowOffsets)
      window.isPartly = this.#log.usage().firstPosition > cursor.start
    }
    return window
  }

  async #page(
    queue: Queue,
    request: ReplayRequest,
    cursor: Cursor,
    window: Window,
    work: ReplayWork,
    progress: ReplayProgress,
  ): Promise<void> {
    let { position, index } = cursor
    // A set that is not there is made from the beginning.
    let scanned = window.cursor === '' ? 0 : cursor.scanned
    try {
      let readBytes = 0
      if (scanned < cursor.end) {
        for await (const entry of entriesFrom(this.#log, segmentStart(scanned, this.#log))) {
          work.check()
          if (entry.position >= cursor.end) break
          if (entry.position < scanned) continue
          scanned = entry.position
          if (readBytes > READ_BYTES_MAX) return
          readBytes += entry.bytes.length
          scan(entry, queue.id, cursor, window)
        }
        scanned = cursor.end
        window.acked.subtract(window.done)
        window.done = undefined
      }
      let hasAny = false
      for await (const entry of entriesFrom(this.#log, segmentStart(position, this.#log))) {
        work.check()
        if (entry.position >= cursor.end) break
        if (entry.position + entry.bytes.length <= position) continue
        if (readBytes > READ_BYTES_MAX && hasAny) return
        hasAny = true
        readBytes += entry.bytes.length
        for (const message of settledIn(entry, queue.id, request, window, position, index)) {
          position = message.position
          index = message.index
          const { record, publishedMs } = message
          const circumstances = { dead: undefined, attempts: 0, timeMs: publishedMs }
          if (
            choosesAmong(request.filter, circumstances, work.now()) &&
            choosesRecord(request.filter, record)
          ) {
            if (progress.matched === request.limit) return
            if (!request.dryRun) work.publish(message)
            progress.matched++
            progress.replayed++
          }
          // Another copy of its batch, which was made to give space back, can follow.
          window.acked.remove(message.offset)
          index++
        }
        position = Math.max(position, entry.position + entry.bytes.length)
        index = 0
      }
      position = cursor.end
    } finally {
      const { end } = cursor
      if (position < end) window.cursor = cursorText({ ...cursor, position, index, scanned })
      if (position < end) progress.cursor = window.cursor
      else if (window.nextFloor === Infinity) progress.cursor = null
      else {
        const start = this.#log.usage().firstPosition
        const floor = window.nextFloor
        progress.cursor = cursorText({ ...cursor, position: start, index: 0, start, floor, scanned: 0 })
      }
    }
  }
}

/** Messages of the entry that were acknowledged, from the one at `index` of the batch at `from` on. */
function* settledIn(
  entry: LogEntry,
  queueId: number,
  { fromOffset = 0, fromMs = 0, untilMs = Infinity }: ReplayRequest,
  window: Window,
  from: number,
  fromIndex: number,
): Generator<Settled & { readonly position: number; readonly index: number }, void> {
  const { bytes } = entry
  for (const at of entryBatches(bytes, 0)) {
    const position = entry.position + at
    if (position < from || !isOfQueue(bytes, at, BATCH_TYPE.messages, queueId)) continue
    const header = readBatchHeader(bytes, at)
    if (window.isPartly && (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0) continue
    const { baseOffset, count, timeMs } = header
    if (timeMs < fromMs || timeMs >= untilMs) continue
    let record = at + BATCH_HEADER_BYTES
    for (let index = 0; index < count; index++, record += recordSize(bytes, record)) {
      const offset = baseOffset + index
      if (offset < fromOffset || !window.acked.has(offset)) continue
      if (position === from && index < fromIndex) continue
      const copy = copyBytes(bytes, record, record + recordSize(bytes, record))
      yield { record: copy, offset, publishedMs: timeMs, position, index }
    }
  }
}

// Notes what the entry says of messages of the window.
function scan({ position, bytes }: LogEntry, queueId: number, cursor: Cursor, window: Window): void {
  for (const at of entryBatches(bytes, 0)) {
    if (isOfQueue(bytes, at, BATCH_TYPE.facts, queueId)) {
      readFacts(bytes, at + BATCH_HEADER_BYTES, at + batchLength(bytes, at), (fact) => {
        if (fact.kind === FACT.ack) window.acked.add(fact.offset, fact.count)
      })
    } else if (isOfQueue(bytes, at, BATCH_TYPE.messages, queueId)) {
      const header = readBatchHeader(bytes, at)
      const end = header.baseOffset + header.count
      const windowEnd = window.floor + window.offsets
      if (end > windowEnd)
        window.nextFloor = Math.min(window.nextFloor, Math.max(header.baseOffset, windowEnd))
      window.done?.add(header.baseOffset, comeTo(header, position + at, cursor))
    }
  }
}

/** How many messages of the batch earlier pages came to. */
function comeTo({ count }: BatchHeader, position: number, cursor: Cursor): number {
  return position < cursor.position ? count : position === cursor.position ? cursor.index : 0
}

function isOfQueue(bytes: Uint8Array, at: number, type: number, queueId: number): boolean {
  return batchType(bytes, at) === type && batchQueueId(bytes, at) === queueId
}

function cursorText({ position, index, end, start, floor, scanned, id }: Cursor): string {
  return [position, index, end, start, floor, scanned, id].join(':')
}

/** @throws SluiceError INVALID_ARGUMENT */
function cursorOf(text: string): Cursor {
  const [position = 0, index = 0, end = 0, start = 0, floor = 0, scanned = 0, id = 0] = numbersOf(text, 7)
  return { position, index, end, start, floor, scanned, id }
}

/** Offsets of one window, as bits; those outside it are passed over. */
class OffsetSet {
  readonly #floor: number
  readonly #size: number
  readonly #pieces = new Map<number, Uint32Array>()

  constructor(floor: number, size: number) {
    this.#floor = floor
    this.#size = size
  }

  add(offset: number, count: number): void {
    const end = Math.min(offset + count - this.#floor, this.#size)
    for (let from = Math.max(offset - this.#floor, 0); from < end;) {
      const piece = Math.floor(from / PIECE_OFFSETS)
      const to = Math.min(end, (piece + 1) * PIECE_OFFSETS)
      let words = this.#pieces.get(piece)
      if (words === undefined) this.#pieces.set(piece, (words = new Uint32Array(PIECE_OFFSETS / 32)))
      addBits(words, from - piece * PIECE_OFFSETS, to - piece * PIECE_OFFSETS)
      from = to
    }
  }

  has(offset: number): boolean {
    const at = offset - this.#floor
    const words = this.#pieces.get(Math.floor(at / PIECE_OFFSETS))
    return words !== undefined && hasBit(words, at % PIECE_OFFSETS)
  }

  remove(offset: number): void {
    const at = offset - this.#floor
    const words = this.#pieces.get(Math.floor(at / PIECE_OFFSETS))
    if (words !== undefined) removeBits(words, at % PIECE_OFFSETS, (at % PIECE_OFFSETS) + 1)
  }

  subtract(other: OffsetSet | undefined): void {
    if (other === undefined) return
    for (const [piece, words] of this.#pieces) {
      const taken = other.#pieces.get(piece)
      if (taken !== undefined) for (let i = 0; i < words.length; i++) words[i]! &= ~taken[i]!
    }
  }
}
