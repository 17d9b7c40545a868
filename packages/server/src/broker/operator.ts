/**
 * What people ask of single messages and consumers: looking, bringing back the dead, deleting them, replaying what was
 * settled, and telling what happened to a message. Reading can take a while; each page is done in as many turns as it
 * takes, and what was chosen is looked at again after every wait.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  PAGE_HEAD_BYTES,
  PEEKED_HEAD_BYTES,
  SluiceError,
  copyBytes,
  deathName,
  peekedBytes,
  readBatchHeader,
  readU32,
  textBytes,
  type BatchHeader,
  type ConsumerInfo,
  type ConsumersRequest,
  type DeadSelection,
  type HistoryEvent,
  type HistoryEventName,
  type HistoryRequest,
  type MessageFilter,
  type PeekPage,
  type PeekRequest,
  type PeekedMessage,
  type RedriveRequest,
  type ReplayRequest,
} from '@sluice/protocol'
import { entryBatches, readEntryHeader } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import { CHUNK_MESSAGES, CHUNK_WORDS, addBits, hasBit } from '../queue/bits.js'
import { FACT, readFacts, type Chunk, type Fact, type Queue } from '../queue/index.js'
import type { Moves } from './moves.js'
import { fittedRecord, type Origin } from './origin.js'
import { choosesAmong, choosesRecord, needsRecord, redrivesOf, type Records } from './records.js'

/** Bytes of one answer, unless a single message is larger. */
const PAGE_BYTES = 1 << 20
/** Messages that one page looks at, chosen or not. */
const LOOKED_AT_MAX = 100_000
/** Consumers in one answer: with names of 255 bytes they fit a control frame. */
const PAGE_CONSUMERS = 100
/** Replays of which something is kept between their pages. */
const REPLAYS_KEPT = 4
/** Events of one page, and what one takes beside its text: a page fits a control frame. */
const EVENTS_BYTES_MAX = 32 << 10
const EVENT_BYTES = 64
/** Log that one page of a replay or a history reads. */
const READ_BYTES_MAX = 64 << 20

/** What the operator needs of the broker. */
export interface Premises {
  /** Time of this turn, ms. */
  now(): number
  /** Where the log ends by now. */
  endPosition(): number
  /** A wait is over: a turn begins. @throws SluiceError SHUTTING_DOWN when nothing may be written any more */
  beginTurn(): void
  /** Something was done to the queue. */
  changed(queue: Queue): void
  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue
}

export interface RedriveResult {
  readonly matched: number
  readonly redriven: number
  /** Left alone: brought back too often, or one with the same id is pending where only one may be. */
  readonly guarded: number
  readonly next: number | null
}

export interface DiscardResult {
  readonly matched: number
  readonly discarded: number
  readonly next: number | null
}

export interface ReplayResult {
  readonly matched: number
  readonly replayed: number
  readonly cursor: string | null
}

export interface ConsumersResult {
  readonly consumers: ConsumerInfo[]
  readonly next: number | null
}

export interface HistoryResult {
  readonly events: HistoryEvent[]
  /** The log reaches back to when the message was published. */
  readonly complete: boolean
  readonly cursor: string | null
}

export class Operator {
  readonly #log: Log
  readonly #records: Records
  readonly #moves: Moves
  readonly #premises: Premises
  readonly #replays = new Map<number, Replay>()
  #lastReplay = 0

  constructor(log: Log, records: Records, moves: Moves, premises: Premises) {
    this.#log = log
    this.#records = records
    this.#moves = moves
    this.#premises = premises
  }

  /** `bytesMax`: what MESSAGES may have. @throws SluiceError QUEUE_NOT_FOUND, CORRUPT */
  async peek(request: PeekRequest, bytesMax = Infinity): Promise<PeekPage> {
    const queue = this.#premises.queue(request.name)
    queue.settleTime(this.#premises.now())
    this.#premises.changed(queue)
    const holders = new Map<number, { readonly holder: string; readonly sinceMs: number }>()
    for (const subscription of queue.subscriptions) {
      for (const { offset, leasedAtMs } of subscription.held())
        holders.set(offset, { holder: subscription.consumer.label, sinceMs: leasedAtMs })
    }
    const messages: PeekedMessage[] = []
    const pageBytesMax = Math.min(PAGE_BYTES, bytesMax - PAGE_HEAD_BYTES)
    let bytes = 0
    let looked = 0
    for (const offset of offsetsFrom(queue, request.from)) {
      if (messages.length === request.limit || bytes >= PAGE_BYTES || ++looked > LOOKED_AT_MAX)
        return { messages, next: offset }
      const state = queue.stateOf(offset)
      if (state === undefined || (request.state !== undefined && state !== request.state)) continue
      if (!this.#mayChoose(queue, offset, request.filter)) continue
      const record = await this.#records.read(queue, offset)
      if (record === undefined || !choosesRecord(request.filter, record)) continue
      const found = this.#peeked(queue, offset, record, holders.get(offset))
      if (found === undefined || (request.state !== undefined && found.state !== request.state)) continue
      const fitted = fittedRecord(record, bytesMax - PAGE_HEAD_BYTES - PEEKED_HEAD_BYTES)
      const message = { ...found, record: fitted }
      bytes += peekedBytes(message)
      if (messages.length > 0 && bytes > pageBytesMax) return { messages, next: offset }
      messages.push(message)
    }
    return { messages, next: undefined }
  }

  #mayChoose(queue: Queue, offset: number, filter: MessageFilter): boolean {
    const dead = queue.deadAt(offset)
    const chunk = queue.chunkAt(offset)!
    const circumstances = {
      dead,
      attempts: dead?.attempts ?? queue.attemptsOf(offset),
      timeMs: dead?.timeMs ?? chunk.batches.timeAt(offset - chunk.base),
    }
    return choosesAmong(filter, circumstances, this.#premises.now())
  }

  #peeked(
    queue: Queue,
    offset: number,
    record: Uint8Array,
    held: { readonly holder: string; readonly sinceMs: number } | undefined,
  ): PeekedMessage | undefined {
    const state = queue.stateOf(offset)
    if (state === undefined) return undefined
    const chunk = queue.chunkAt(offset)!
    const index = offset - chunk.base
    const dead = queue.deadAt(offset)
    const attempts = dead?.attempts ?? queue.attemptsOf(offset)
    return {
      state,
      death: dead === undefined ? undefined : deathName(dead.death),
      attempts,
      totalAttempts: queue.livesOf(offset).attempts + attempts,
      redrives: redrivesOf(queue, offset, record),
      offset,
      publishedAtMs: chunk.batches.timeAt(index),
      timeMs: state === 'leased' ? (held?.sinceMs ?? 0) : (dead?.timeMs ?? chunk.lineTimeAt(index)),
      expiresAtMs: dead === undefined ? chunk.expiryAt(index) : 0,
      reason: dead?.reason ?? '',
      holder: state === 'leased' ? (held?.holder ?? '') : '',
      record,
    }
  }

  /** `by`: who asks, for the history. @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, CORRUPT */
  async redrive(request: RedriveRequest, by: string): Promise<RedriveResult> {
    const { to, force, dryRun } = request
    const target = to === undefined ? undefined : this.#premises.queue(to)
    if (to === request.name) throw sameQueue('REDRIVE', to)
    let redriven = 0
    let guarded = 0
    const { matched, next } = await this.#forDead(request, async (queue, offset, read) => {
      // It says how often it was brought back elsewhere.
      const record = await read()
      if (record === undefined || queue.deadAt(offset) === undefined) return
      const redrives = redrivesOf(queue, offset, record)
      const isBarred = target === undefined && !queue.mayRedrive(offset)
      if (isBarred || (redrives >= LIMITS.redrivesMax && !force)) {
        guarded++
        return
      }
      redriven++
      if (dryRun) return
      if (target === undefined) queue.redrive(offset, this.#premises.now(), by)
      else if (!this.#moves.move(queue, offset, record, this.#premises.queue(to!), 'carry')) throw diskLow()
      this.#premises.changed(queue)
    })
    return { matched, redriven, guarded, next }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, CORRUPT */
  async discard(request: DeadSelection): Promise<DiscardResult> {
    let discarded = 0
    const { matched, next } = await this.#forDead(request, (queue, offset) => {
      discarded++
      if (request.dryRun) return
      queue.discard(offset, this.#premises.now())
      this.#premises.changed(queue)
    })
    return { matched, discarded, next }
  }

  // Calls `act` for each dead message that is meant, at a moment at which it is dead. `read` says nothing of that: who
  // waits for it looks again, for between a read and its reader another request may have been served.
  async #forDead(
    request: DeadSelection,
    act: (queue: Queue, offset: number, read: () => Promise<Uint8Array | undefined>) => void | Promise<void>,
  ): Promise<{ readonly matched: number; readonly next: number | null }> {
    const queue = this.#premises.queue(request.name)
    const { filter, limit, from } = request
    const offsets = request.offsets?.filter((offset) => offset >= from)
    let matched = 0
    let looked = 0
    for (const offset of offsets ?? deadFrom(queue, from)) {
      if (matched === limit || ++looked > LOOKED_AT_MAX) return { matched, next: offset }
      if (queue.deadAt(offset) === undefined || !this.#mayChoose(queue, offset, filter)) continue
      const read = async (): Promise<Uint8Array | undefined> => {
        const record = await this.#records.read(queue, offset)
        this.#premises.beginTurn()
        return record
      }
      if (needsRecord(filter)) {
        const record = await read()
        if (record === undefined || queue.deadAt(offset) === undefined || !choosesRecord(filter, record))
          continue
      }
      matched++
      await act(queue, offset, read)
      // While that was waited for the queue may have been deleted, and the broker stopped.
      this.#premises.beginTurn()
    }
    return { matched, next: null }
  }

  /**
   * Publishes messages again that were acknowledged and that the log still holds, in the order in which they stand
   * there, up to where the log ended when the first page was asked for.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, MEMORY_FULL, LOG_CORRUPT
   */
  async replay(request: ReplayRequest): Promise<ReplayResult> {
    const queue = this.#premises.queue(request.name)
    const { filter, limit, dryRun, fromMs = 0, untilMs = Infinity, fromOffset = 0 } = request
    const from = request.cursor === undefined ? await this.#replayFrom() : replayCursor(request.cursor)
    const { acked, seen } = await this.#replay(queue, from)
    let matched = 0
    let replayed = 0
    let readBytes = 0
    for await (const entry of this.#entries(segmentStart(from.position, this.#log))) {
      if (entry.position >= from.end) break
      if (entry.position + entry.bytes.length <= from.position) continue
      if (readBytes > READ_BYTES_MAX)
        return { matched, replayed, cursor: cursorText({ ...from, position: entry.position, index: 0 }) }
      readBytes += entry.bytes.length
      for (const at of entryBatches(entry.bytes, 0)) {
        const position = entry.position + at
        if (position < from.position) continue
        if (entry.bytes[at + 4] !== BATCH_TYPE.messages || readU32(entry.bytes, at + 8) !== queue.id) continue
        const header = readBatchHeader(entry.bytes, at)
        // The page before ended in it.
        const isResumed = position === from.position
        if (!isResumed && (seen.has(header.baseOffset) || isCopyOfKept(header, from.firstMs))) continue
        seen.add(header.baseOffset)
        let record = at + BATCH_HEADER_BYTES
        for (let index = 0; index < header.count; index++, record += readU32(entry.bytes, record)) {
          if (position === from.position && index < from.index) continue
          const offset = header.baseOffset + index
          if (offset < fromOffset || header.timeMs < fromMs || header.timeMs >= untilMs) continue
          if (!acked.has(offset)) continue
          const copy = copyBytes(entry.bytes, record, record + readU32(entry.bytes, record))
          const circumstances = { dead: undefined, attempts: 0, timeMs: header.timeMs }
          if (!choosesAmong(filter, circumstances, this.#premises.now()) || !choosesRecord(filter, copy))
            continue
          if (matched === limit)
            return { matched, replayed, cursor: cursorText({ ...from, position, index }) }
          matched++
          replayed++
          if (dryRun) continue
          this.#premises.beginTurn()
          const target = this.#premises.queue(request.to ?? request.name)
          const origin: Origin = {
            queue: queue.name,
            offset,
            publishedMs: header.timeMs,
            attempts: 0,
            redrives: 0,
            dead: undefined,
          }
          this.#moves.copy(copy, origin, target)
        }
      }
    }
    return { matched, replayed, cursor: null }
  }

  // Where a replay begins that begins now.
  async #replayFrom(): Promise<ReplayCursor> {
    const position = this.#log.usage().firstPosition
    const cursor = {
      position,
      index: 0,
      end: this.#premises.endPosition(),
      firstMs: 0,
      id: ++this.#lastReplay,
    }
    for await (const entry of this.#entries(position))
      return { ...cursor, firstMs: readEntryHeader(entry.bytes, 0).timeMs }
    return cursor
  }

  // Entries from the one at `position` on, or from the oldest that is there. Segments in front can go meanwhile.
  async *#entries(position: number): AsyncGenerator<LogEntry, void> {
    for (let from = position; ;) {
      from = Math.max(from, this.#log.usage().firstPosition)
      try {
        for await (const entry of this.#log.read(from)) {
          yield entry
          from = entry.position + entry.bytes.length
        }
        return
      } catch (error) {
        if (from >= this.#log.usage().firstPosition) throw error
      }
    }
  }

  // What the pages of one replay need, found by the first of them; or by a later one, if that is long ago.
  async #replay(queue: Queue, { id, end }: ReplayCursor): Promise<Replay> {
    const known = this.#replays.get(id)
    if (known !== undefined) return known
    const replay: Replay = { acked: new OffsetSet(), seen: new Set() }
    for await (const entry of this.#entries(0)) {
      if (entry.position >= end) break
      for (const at of entryBatches(entry.bytes, 0)) {
        if (entry.bytes[at + 4] !== BATCH_TYPE.facts || readU32(entry.bytes, at + 8) !== queue.id) continue
        readFacts(entry.bytes, at + BATCH_HEADER_BYTES, at + readU32(entry.bytes, at), (fact) => {
          if (fact.kind === FACT.ack) replay.acked.add(fact.offset, fact.count)
        })
      }
    }
    this.#replays.set(id, replay)
    if (this.#replays.size > REPLAYS_KEPT) this.#replays.delete(this.#replays.keys().next().value!)
    return replay
  }

  /**
   * What the log says of a message. A page reads a part of the log; the next one goes on at its cursor.
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, INVALID_ARGUMENT, LOG_CORRUPT
   */
  async history(request: HistoryRequest): Promise<HistoryResult> {
    const queue = this.#premises.queue(request.name)
    const { offset } = request
    const cursor = historyCursor(request.cursor)
    if (offset >= queue.next) {
      throw new SluiceError(
        'MESSAGE_NOT_FOUND',
        `There was no message ${offset} in the queue ${queue.name} yet; the next one is ${queue.next}.`,
      )
    }
    const events: HistoryEvent[] = []
    let complete = (cursor.index & COMPLETE) !== 0
    // A purge takes what is there: it says nothing of a message that was done, or dead, before.
    let isPending = (cursor.index & PENDING) !== 0
    let readBytes = 0
    let eventsBytes = 0
    for await (const entry of this.#entries(segmentStart(cursor.position, this.#log))) {
      if (entry.position < cursor.position) continue
      if (readBytes > READ_BYTES_MAX || eventsBytes > EVENTS_BYTES_MAX)
        return { events, complete, cursor: historyCursorText(entry.position, complete, isPending) }
      readBytes += entry.bytes.length
      // Some facts stand in front of the batch of their message.
      const first = events.length
      for (const at of entryBatches(entry.bytes, 0)) {
        if (readU32(entry.bytes, at + 8) !== queue.id) continue
        const header = readBatchHeader(entry.bytes, at)
        if (header.type === BATCH_TYPE.messages) {
          const holds = offset >= header.baseOffset && offset < header.baseOffset + header.count
          if (!holds || header.attributes & BATCH_ATTRIBUTE.relocated) continue
          complete = true
          isPending = true
          // What was a duplicate was never there for anybody.
          if (events[first]?.event === 'duplicate') continue
          events.splice(first, 0, { event: 'published', atMs: header.timeMs })
        } else if (header.type === BATCH_TYPE.facts) {
          readFacts(entry.bytes, at + BATCH_HEADER_BYTES, at + header.length, (fact) => {
            const event = eventOf(fact, offset, header.timeMs)
            if (event === undefined || (fact.kind === FACT.purge && !isPending)) return
            isPending = KEEPS_PENDING.has(event.event) && fact.kind !== FACT.carry
            events.push(event)
            eventsBytes += EVENT_BYTES + textBytes(fact.text)
          })
        }
      }
    }
    return { events, complete, cursor: null }
  }

  /** A page of the queue's consumers, by id, from `request.from` on. @throws SluiceError QUEUE_NOT_FOUND */
  consumers(request: ConsumersRequest): ConsumersResult {
    const queue = this.#premises.queue(request.name)
    const active = queue.subscriptions[0]
    const all = queue.subscriptions.filter(({ id }) => id >= request.from).toSorted((a, b) => a.id - b.id)
    const page = all.slice(0, PAGE_CONSUMERS).map((subscription) => {
      let oldestLeaseMs: number | null = null
      for (const { leasedAtMs } of subscription.held())
        oldestLeaseMs = oldestLeaseMs === null ? leasedAtMs : Math.min(oldestLeaseMs, leasedAtMs)
      return {
        id: subscription.id,
        client: subscription.consumer.label,
        peer: subscription.consumer.peer,
        active: !queue.options.single || subscription === active,
        sinceMs: subscription.sinceMs,
        creditMessages: subscription.creditMessages,
        creditBytes: subscription.creditBytes,
        leased: subscription.unsettled,
        leasedBytes: subscription.unsettledBytes,
        started: subscription.startedCount,
        oldestLeaseMs,
        delivered: subscription.delivered,
      }
    })
    return { consumers: page, next: all[PAGE_CONSUMERS]?.id ?? null }
  }
}

function segmentStart(position: number, log: Log): number {
  return Math.floor(position / log.segmentBytes) * log.segmentBytes
}

/** Where a page of a replay begins, and what holds for all its pages. */
interface ReplayCursor {
  /** Place of a batch or an entry, and index of a message in the batch. */
  readonly position: number
  readonly index: number
  /** The log ended here when the replay began, and began with an entry of this time. */
  readonly end: number
  readonly firstMs: number
  /** Of the replay. */
  readonly id: number
}

/** What is kept of a replay between its pages. */
interface Replay {
  /** The messages whose acknowledgement stands in the log before its end. */
  readonly acked: OffsetSet
  /** Base offsets of the batches that it has come to. */
  readonly seen: Set<number>
}

function cursorText({ position, index, end, firstMs, id }: ReplayCursor): string {
  return [position, index, end, firstMs, id].join(':')
}

/** @throws SluiceError INVALID_ARGUMENT */
function replayCursor(text: string): ReplayCursor {
  const [position, index, end, firstMs, id] = numbersOf(text, 5)
  return { position: position!, index: index!, end: end!, firstMs: firstMs!, id: id! }
}

/** @throws SluiceError INVALID_ARGUMENT */
function historyCursor(text: string | undefined): { readonly position: number; readonly index: number } {
  const [position, index] = text === undefined ? [0, 0] : numbersOf(text, 2)
  return { position: position!, index: index! }
}

function numbersOf(text: string, count: number): number[] {
  const numbers = text.split(':').map((part) => (/^\d{1,15}$/.test(part) ? Number(part) : Number.NaN))
  if (numbers.length === count && !numbers.some(Number.isNaN)) return numbers
  throw new SluiceError('INVALID_ARGUMENT', 'The `cursor` is not one that an earlier page ended with.')
}

// A copy that was made when space was given back, of a batch that stands in the log in its first place too.
function isCopyOfKept(header: BatchHeader, firstMs: number): boolean {
  return (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0 && header.timeMs > firstMs
}

/** Offsets, as bits in pieces of 1,024. */
class OffsetSet {
  readonly #pieces = new Map<number, Uint32Array>()

  add(offset: number, count: number): void {
    for (let from = offset; from < offset + count;) {
      const piece = Math.floor(from / CHUNK_MESSAGES)
      const to = Math.min(offset + count, (piece + 1) * CHUNK_MESSAGES)
      let words = this.#pieces.get(piece)
      if (words === undefined) this.#pieces.set(piece, (words = new Uint32Array(CHUNK_WORDS)))
      addBits(words, from - piece * CHUNK_MESSAGES, to - piece * CHUNK_MESSAGES)
      from = to
    }
  }

  has(offset: number): boolean {
    const piece = Math.floor(offset / CHUNK_MESSAGES)
    const words = this.#pieces.get(piece)
    return words !== undefined && hasBit(words, offset - piece * CHUNK_MESSAGES)
  }
}

/** Offsets that are not gone, from `from` on, as they are when they are come to. */
function* offsetsFrom(queue: Queue, from: number): IterableIterator<number> {
  for (const chunk of queue.chunks()) {
    if (chunk.base + chunk.count <= from) continue
    for (let index = Math.max(0, from - chunk.base); index < chunk.count; index++)
      if (!chunk.isGone(index)) yield chunk.base + index
  }
}

function* deadFrom(queue: Queue, from: number): IterableIterator<number> {
  for (const chunk of queue.chunks()) {
    if (chunk.dead === undefined || chunk.base + chunk.count <= from) continue
    for (const offset of deadIn(chunk)) if (offset >= from) yield offset
  }
}

function deadIn(chunk: Chunk): number[] {
  return [...chunk.dead!.indexes()].map((index) => chunk.base + index)
}

const COMPLETE = 1
const PENDING = 2

function historyCursorText(position: number, complete: boolean, isPending: boolean): string {
  return `${position}:${(complete ? COMPLETE : 0) | (isPending ? PENDING : 0)}`
}

/** Events after which a message is still there, and not dead. */
const KEEPS_PENDING: ReadonlySet<HistoryEventName> = new Set<HistoryEventName>([
  'published',
  'delivered',
  'retried',
  'redriven',
  'rescheduled',
])

const EVENTS: Readonly<Record<number, HistoryEventName>> = {
  [FACT.ack]: 'acked',
  [FACT.retry]: 'retried',
  [FACT.dead]: 'dead',
  [FACT.purge]: 'purged',
  [FACT.expire]: 'expired',
  [FACT.drop]: 'dropped',
  [FACT.cancel]: 'cancelled',
  [FACT.duplicate]: 'duplicate',
  [FACT.discard]: 'discarded',
  [FACT.move]: 'moved',
  [FACT.redrive]: 'redriven',
  [FACT.carry]: 'redriven',
  [FACT.reschedule]: 'rescheduled',
  [FACT.hand]: 'delivered',
}

/** Facts that can name several messages, one behind the other. */
const RANGES: ReadonlySet<number> = new Set([
  FACT.ack,
  FACT.expire,
  FACT.drop,
  FACT.cancel,
  FACT.discard,
  FACT.hand,
])

function eventOf(fact: Fact, offset: number, atMs: number): HistoryEvent | undefined {
  const event = EVENTS[fact.kind]
  if (event === undefined) return undefined
  const isRange = RANGES.has(fact.kind)
  const from = fact.kind === FACT.purge ? 0 : fact.offset
  const end = fact.kind === FACT.purge ? fact.offset : fact.offset + (isRange ? fact.count : 1)
  if (offset < from || offset >= end) return undefined
  const comesBack = fact.kind === FACT.retry || fact.kind === FACT.reschedule
  return {
    event,
    atMs,
    ...(fact.attempts > 0 ? { attempts: fact.attempts } : {}),
    ...(comesBack ? { dueMs: fact.timeMs } : {}),
    ...(fact.text === '' ? {} : { text: fact.text }),
  }
}

function sameQueue(frame: string, name: string): SluiceError {
  return new SluiceError(
    'INVALID_ARGUMENT',
    `${frame} goes to the queue ${name}, where the messages are; without \`to\` they go back into their own.`,
  )
}

function diskLow(): SluiceError {
  return new SluiceError('DISK_LOW', 'The log has no room for more messages.', { retryAfterMs: 1_000 })
}
