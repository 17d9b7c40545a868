/**
 * Replays: publishes again the acknowledged messages that are still in the log, in log order. A replay ends where the
 * log ended when its first page was requested.
 *
 * Only facts that follow a message in the log say whether the message was acknowledged. So a replay works on windows of
 * offsets. For each window, it first reads the facts of the whole log into a set of bits, and then it reads the
 * messages. Each of the two steps can take several pages. A page needs only its cursor, because the set of bits can be
 * rebuilt from the log. The set is dropped after the last page, when the client's connection ends, and when the replay
 * is idle and another replay needs its place. A page that finds no set reads the facts again.
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
import type { Intake } from './intake.js'
import { OffsetSet } from './offset-set.js'
import { movedBatch } from './origin.js'
import { matchesState, matchesRecord } from './records.js'
import { READ_BYTES_MAX, entriesFrom, numbersOf, segmentStart } from '../log/cursor.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Default number of offsets in a window: 4 MiB of bits. */
const WINDOW_OFFSETS = 1 << 25
/** Maximum number of windows at a time, for all clients together. Each unfinished replay has one window. */
const REPLAYS_MAX = 8
/** A replay whose next page is not requested within this time gives way to another replay. */
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

/** An acknowledged message. */
interface Settled {
  readonly record: Uint8Array
  readonly offset: number
  readonly publishedMs: number
  /** Position of the message's batch in the log, and index of the message in the batch. */
  readonly position: number
  readonly index: number
}

/** The start of a page, and the values that all pages of its replay share. */
interface Cursor {
  /** Position of a batch or an entry, and index of a message in the batch. All messages before this place are done. */
  readonly position: number
  readonly index: number
  /** End of the log when the replay began, and start of the log when the window began. */
  readonly end: number
  readonly start: number
  /** First offset of the window. */
  readonly floor: number
  /** The set of the window includes the facts before this position. */
  readonly scanned: number
  /** Id of the replay, in this run of the broker. */
  readonly id: number
}

/** The acknowledged messages of one window. */
class Window {
  readonly queueId: number
  readonly floor: number
  readonly offsets: number
  /** Acknowledged messages that no page has reached. */
  readonly acked: OffsetSet
  /** Messages that earlier pages have reached; undefined unless the set is being rebuilt for a later page. */
  done: OffsetSet | undefined
  /** First offset in the log that is after the window. */
  nextFloor = Infinity
  /** Whether segments were freed before the set was rebuilt, so that `done` is incomplete. */
  isPartial = false
  /** Cursor of the next page, the caller of the replay, and the time of its last page. */
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
  readonly #intake: Intake
  readonly #requests: DiskRequests
  readonly #windowOffsets: number
  readonly #kept = new Set<Window>()
  #running = 0
  #lastId = 0

  constructor(
    state: State,
    writer: Writer,
    intake: Intake,
    requests: DiskRequests,
    turn: Turn,
    { log, replayWindowOffsets = WINDOW_OFFSETS }: ReplaysOptions,
  ) {
    this.#log = log
    this.#state = state
    this.#turn = turn
    this.#writer = writer
    this.#intake = intake
    this.#requests = requests
    this.#windowOffsets = replayWindowOffsets
  }

  /** Drops the windows of a client that is gone. */
  forget(caller: Caller): void {
    for (const window of this.#kept) if (window.caller === caller) this.#kept.delete(window)
  }

  /**
   * Returns the page at `request.cursor`. Without a cursor, starts a new replay and returns its first page.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, MEMORY_FULL, CORRUPT, TOO_MANY_REQUESTS
   */
  page(request: ReplayRequest, caller: Caller): Promise<ReplayResult> {
    return this.#requests.run(caller, async () => {
      const queue = this.#state.queue(request.name)
      // The target must exist even if this is a dry run or there is nothing to publish.
      if (request.to !== undefined) this.#state.queue(request.to)
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

  // Starts a turn for each message, because time advances within a page. Looks up the target again, because the target
  // can be deleted between pages.
  #publish(message: Settled, queue: Queue, request: ReplayRequest, caller: Caller): void {
    this.#requests.resume(caller)
    const { record, offset, publishedMs } = message
    const target = this.#state.queue(request.to ?? request.name)
    const origin = { queue: queue.name, offset, publishedMs, attempts: 0, redrives: 0, dead: undefined }
    const batch = movedBatch(record, origin)
    this.#intake.take(target, { bytes: batch, at: 0, end: batch.length }, 'replayed')
  }

  // Keeps the window for the next page, if the next page needs the same window.
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

  // Returns the window that an earlier page kept for this cursor, or an empty window. @throws SluiceError
  // TOO_MANY_REQUESTS
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
        `${REPLAYS_MAX} replays are running on this broker. Try again when one has ended.`,
        { retryAfterMs: 1_000 },
      )
    }
    const window = new Window(queueId, cursor.floor, this.#windowOffsets)
    if (cursor.position > cursor.start || cursor.index > 0) {
      window.done = new OffsetSet(cursor.floor, this.#windowOffsets)
      window.isPartial = this.#log.usage().firstPosition > cursor.start
    }
    return window
  }
}

/** The functions of the broker that a page needs. */
interface Work {
  /** Returns the time of this turn. */
  nowMs(): number
  /** Called after each wait. @throws SluiceError when the page must end */
  resume(): void
  /** @throws SluiceError when there is no room */
  publish(message: Settled): void
}

/** One page. It reads the facts that its window lacks, and then messages, up to the limits of a page. */
class Page {
  readonly window: Window
  /** Number of messages that matched. Unless this is a dry run, these messages were published. */
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
    // A new window needs all facts.
    this.#scanned = window.cursor === '' ? 0 : cursor.scanned
  }

  /** Whether the window of the page is done. */
  get isOver(): boolean {
    return this.#position >= this.#cursor.end
  }

  /** Returns the progress of the page, even after an error. */
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

  // Returns whether all messages of the window were checked.
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

  // Returns whether the page has room for messages of further entries.
  #publishFrom(entry: LogEntry, work: Work): boolean {
    const { window } = this
    for (const message of this.#settledIn(entry)) {
      this.#position = message.position
      this.#index = message.index
      if (this.#isChosen(message, work.nowMs())) {
        if (this.matched === this.#request.limit) return false
        if (!this.#request.dryRun) work.publish(message)
        this.matched++
      }
      // A relocated copy of the batch can follow in the log. The message must not be published a second time from
      // that copy.
      window.acked.remove(message.offset)
      this.#index++
    }
    return true
  }

  // Acknowledged messages of the entry, from the page's position on.
  *#settledIn(entry: LogEntry): Generator<Settled, void> {
    const { window } = this
    const { fromOffset = 0, fromMs = 0, untilMs = Infinity } = this.#request
    // The position of the page advances while the caller handles each message.
    const from = this.#position
    const fromIndex = this.#index
    const { bytes } = entry
    for (const at of entryBatches(bytes, 0)) {
      const position = entry.position + at
      if (position < from || !isOfQueue(bytes, at, BATCH_TYPE.messages, this.#queueId)) continue
      const header = readBatchHeader(bytes, at)
      if (window.isPartial && (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0) continue
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

  #isChosen({ record, publishedMs }: Settled, nowMs: number): boolean {
    const { filter } = this.#request
    const state = { dead: undefined, attempts: 0, timeMs: publishedMs }
    return matchesState(filter, state, nowMs) && matchesRecord(filter, record)
  }
}

// Adds the facts of the entry to the window.
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
      window.done?.add(header.baseOffset, doneIn(header, position + at, cursor))
    }
  }
}

/** Number of messages of the batch that earlier pages have reached. */
function doneIn({ count }: BatchHeader, position: number, cursor: Cursor): number {
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
