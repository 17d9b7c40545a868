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
import type { State } from '../state/state.js'
import { cutFault, type Caller, type CutShort, type DiskRequests } from './disk-requests.js'
import type { Moves } from './moves.js'
import { OffsetSet } from './offset-set.js'
import { choosesAmong, choosesRecord } from './records.js'
import { READ_BYTES_MAX, entriesFrom, numbersOf, segmentStart } from '../log/cursor.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Offsets of one window, unless the broker was given other ones: 4 MiB of bits. */
const WINDOW_OFFSETS = 1 << 25
/** Replays that have a set, of all clients. */
const REPLAYS_MAX = 8
/** One whose next page was not asked for within this time gives way to another replay. */
const IDLE_MS = 10_000

export interface ReplaysOptions {
  readonly log: Log
  readonly replayWindowOffsets?: number
}

export interface ReplayResult extends CutShort {
  readonly matched: number
  readonly replayed: number
  readonly cursor: string | null
}

/** A message that is to be published again. */
interface Settled {
  readonly record: Uint8Array
  readonly offset: number
  readonly publishedMs: number
  /** Of its batch, and its index in it. */
  readonly position: number
  readonly index: number
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
  readonly #state: State
  readonly #turn: Turn
  readonly #writer: Writer
  readonly #moves: Moves
  readonly #requests: DiskRequests
  readonly #windowOffsets: number
  readonly #kept = new Set<Window>()
  #running = 0
  #lastId = 0

  constructor(
    state: State,
    writer: Writer,
    moves: Moves,
    requests: DiskRequests,
    turn: Turn,
    { log, replayWindowOffsets = WINDOW_OFFSETS }: ReplaysOptions,
  ) {
    this.#log = log
    this.#state = state
    this.#turn = turn
    this.#writer = writer
    this.#moves = moves
    this.#requests = requests
    this.#windowOffsets = replayWindowOffsets
  }

  /** The client is gone: nothing is kept for it. */
  forget(caller: Caller): void {
    for (const window of this.#kept) if (window.caller === caller) this.#kept.delete(window)
  }

  /**
   * A page, from `request.cursor` on; without one the first of a replay.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, MEMORY_FULL, CORRUPT, TOO_MANY_REQUESTS
   */
  page(request: ReplayRequest, caller: Caller): Promise<ReplayResult> {
    return this.#requests.run(caller, async () => {
      const queue = this.#state.queue(request.name)
      const cursor = request.cursor === undefined ? this.#begin(request) : cursorOf(request.cursor)
      const window = this.#take(queue.id, cursor, request.cursor)
      const page = new Page(this.#log, queue.id, request, cursor, window)
      let isAnswered = false
      this.#running++
      try {
        await page.run({
          nowMs: () => this.#turn.nowMs,
          resume: () => this.#requests.resume(caller),
          publish: (message) => this.#publish(message, queue, request, caller),
        })
        isAnswered = true
        return page.result
      } catch (error) {
        if (request.dryRun || page.matched === 0) throw error
        return { ...page.result, error: cutFault(error) }
      } finally {
        this.#running--
        if (isAnswered || page.matched > 0) this.#keep(page, caller)
      }
    })
  }

  // The clock goes on between the messages of a page, and the queue that they go to can be deleted between pages.
  #publish(message: Settled, queue: Queue, request: ReplayRequest, caller: Caller): void {
    this.#requests.resume(caller)
    const { record, offset, publishedMs } = message
    const target = this.#state.queue(request.to ?? request.name)
    const origin = { queue: queue.name, offset, publishedMs, attempts: 0, redrives: 0, dead: undefined }
    this.#moves.copy(record, origin, target)
  }

  // For the next page, if that goes on in the same window.
  #keep({ window, isOver, result }: Page, caller: Caller): void {
    if (isOver || !caller.isOpen) return
    window.cursor = result.cursor ?? ''
    window.caller = caller
    window.usedMs = this.#turn.nowMs
    this.#kept.add(window)
  }

  #begin({ fromOffset = 0 }: ReplayRequest): Cursor {
    const start = this.#log.usage().firstPosition
    const end = this.#writer.tail.position
    return { position: start, index: 0, end, start, floor: fromOffset, scanned: 0, id: ++this.#lastId }
  }

  // The window that an earlier page left for this cursor, or one of which nothing is known yet.
  #take(queueId: number, cursor: Cursor, text: string | undefined): Window {
    const { nowMs } = this.#turn
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
}

/** What a page does with what it finds. */
interface Work {
  /** Time of this turn. */
  nowMs(): number
  /** Called after each wait. @throws SluiceError when the page shall end */
  resume(): void
  /** @throws SluiceError when there is no room */
  publish(message: Settled): void
}

/** One page: it reads the facts that its window lacks, and then messages, until it has read or published enough. */
class Page {
  readonly window: Window
  /** Messages that were chosen, and published unless it was a dry run. */
  matched = 0
  readonly #log: Log
  readonly #queueId: number
  readonly #request: ReplayRequest
  readonly #cursor: Cursor
  #position: number
  #index: number
  #scanned: number
  #readBytes = 0

  constructor(log: Log, queueId: number, request: ReplayRequest, cursor: Cursor, window: Window) {
    this.window = window
    this.#log = log
    this.#queueId = queueId
    this.#request = request
    this.#cursor = cursor
    this.#position = cursor.position
    this.#index = cursor.index
    // A set that is not there is made from the beginning.
    this.#scanned = window.cursor === '' ? 0 : cursor.scanned
  }

  /** Its window is done. */
  get isOver(): boolean {
    return this.#position >= this.#cursor.end
  }

  /** What it has done so far, also where it failed. */
  get result(): ReplayResult {
    return { matched: this.matched, replayed: this.matched, cursor: this.#next() }
  }

  #next(): string | null {
    const at = { position: this.#position, index: this.#index, scanned: this.#scanned }
    if (!this.isOver) return cursorText({ ...this.#cursor, ...at })
    const floor = this.window.nextFloor
    if (floor === Infinity) return null
    const start = this.#log.usage().firstPosition
    return cursorText({ ...this.#cursor, position: start, index: 0, start, floor, scanned: 0 })
  }

  async run(work: Work): Promise<void> {
    if (!(await this.#scan(work))) return
    if (await this.#publish(work)) this.#position = this.#cursor.end
  }

  // Returns whether the set of the window is complete.
  async #scan(work: Work): Promise<boolean> {
    const { window } = this
    const { end } = this.#cursor
    if (this.#scanned >= end) return true
    for await (const entry of entriesFrom(this.#log, segmentStart(this.#scanned, this.#log))) {
      work.resume()
      if (entry.position >= end) break
      if (entry.position < this.#scanned) continue
      this.#scanned = entry.position
      if (this.#readBytes > READ_BYTES_MAX) return false
      this.#readBytes += entry.bytes.length
      scan(entry, this.#queueId, this.#cursor, window)
    }
    this.#scanned = end
    window.acked.subtract(window.done)
    window.done = undefined
    return true
  }

  // Returns whether all messages of the window were looked at.
  async #publish(work: Work): Promise<boolean> {
    let hasAny = false
    for await (const entry of entriesFrom(this.#log, segmentStart(this.#position, this.#log))) {
      work.resume()
      if (entry.position >= this.#cursor.end) break
      const entryEnd = entry.position + entry.bytes.length
      if (entryEnd <= this.#position) continue
      if (this.#readBytes > READ_BYTES_MAX && hasAny) return false
      hasAny = true
      this.#readBytes += entry.bytes.length
      if (!this.#publishFrom(entry, work)) return false
      this.#position = Math.max(this.#position, entryEnd)
      this.#index = 0
    }
    return true
  }

  // Returns whether the page has room for more than the entry holds.
  #publishFrom(entry: LogEntry, work: Work): boolean {
    const { window } = this
    for (const message of settledIn(
      entry,
      this.#queueId,
      this.#request,
      window,
      this.#position,
      this.#index,
    )) {
      this.#position = message.position
      this.#index = message.index
      if (this.#isChosen(message, work.nowMs())) {
        if (this.matched === this.#request.limit) return false
        if (!this.#request.dryRun) work.publish(message)
        this.matched++
      }
      // Another copy of its batch, which was made to give space back, can follow.
      window.acked.remove(message.offset)
      this.#index++
    }
    return true
  }

  #isChosen({ record, publishedMs }: Settled, nowMs: number): boolean {
    const { filter } = this.#request
    const circumstances = { dead: undefined, attempts: 0, timeMs: publishedMs }
    return choosesAmong(filter, circumstances, nowMs) && choosesRecord(filter, record)
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
): Generator<Settled, void> {
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
