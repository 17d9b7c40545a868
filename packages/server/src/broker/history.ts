/**
 * The events of one message, as recorded in the log. Each page reads a part of the log; the next page begins at the
 * cursor.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  SluiceError,
  batchQueueId,
  readBatchHeader,
  textBytes,
  type HistoryEvent,
  type HistoryEventName,
  type HistoryRequest,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log } from '../log/log.js'
import { FACT, readFacts, type Fact, type Queue } from '../queue/index.js'
import { batchesWith } from '../state/shared-batches.js'
import { kindOfQueue, type State } from '../state/state.js'
import type { Caller, DiskRequests } from './disk-requests.js'
import { READ_BYTES_MAX, entriesFrom, numbersOf, segmentStart } from '../log/cursor.js'

/**
 * Maximum size of the events in one page, and size of an event without its text, in bytes. A page fits in a control
 * frame.
 */
const EVENTS_BYTES_MAX = 32 << 10
const EVENT_BYTES = 64

export interface HistoryResult {
  readonly events: HistoryEvent[]
  /** Whether the log still contains the publish of the message. */
  readonly complete: boolean
  readonly cursor: string | null
}

/** The state of the message after the entries that have been read. */
interface Known {
  complete: boolean
  /** Whether the message is neither gone nor dead, so that a purge would remove it. */
  isPending: boolean
}

export class History {
  readonly #log: Log
  readonly #state: State
  readonly #requests: DiskRequests

  constructor(log: Log, state: State, requests: DiskRequests) {
    this.#log = log
    this.#state = state
    this.#requests = requests
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, INVALID_ARGUMENT, CORRUPT, TOO_MANY_REQUESTS */
  page(request: HistoryRequest, caller: Caller): Promise<HistoryResult> {
    return this.#requests.run(caller, () => {
      const queue = this.#state.queue(request.name)
      return read(queue, request, this.#log, () => this.#requests.resume(caller))
    })
  }
}

// Reads the requested page. Calls `resume` for each entry; `resume` throws when the request must end.
async function read(
  queue: Queue,
  request: HistoryRequest,
  log: Log,
  resume: () => void,
): Promise<HistoryResult> {
  const { offset } = request
  const [position, flags, answered] = numbersOf(request.cursor ?? '0:0:0', 3) as [number, number, number]
  // The messages of a group are those of its stream.
  const source = queue.source ?? queue
  if (offset >= source.next) {
    throw new SluiceError(
      'MESSAGE_NOT_FOUND',
      `The ${kindOfQueue(source as Queue)} ${source.name} has no message ${offset} yet; its next offset is ${source.next}.`,
    )
  }
  const events: HistoryEvent[] = []
  const known: Known = { complete: (flags & COMPLETE) !== 0, isPending: (flags & PENDING) !== 0 }
  let readBytes = 0
  let eventsBytes = 0
  for await (const entry of entriesFrom(log, segmentStart(position, log))) {
    resume()
    if (entry.position < position) continue
    const before = flagsOf(known)
    const next = (skip: number): HistoryResult => ({
      events,
      complete: known.complete,
      cursor: `${entry.position}:${before}:${skip}`,
    })
    if (readBytes > READ_BYTES_MAX || eventsBytes > EVENTS_BYTES_MAX) return next(0)
    readBytes += entry.bytes.length
    // One entry can have more events of a message than fit in a page. The events that earlier pages contain are
    // skipped.
    const skip = entry.position === position ? answered : 0
    let found = 0
    let taken = skip
    eventsIn(entry.bytes, queue.id, source.id, offset, known, (event) => {
      if (found++ < skip || eventsBytes > EVENTS_BYTES_MAX) return
      events.push(event)
      eventsBytes += EVENT_BYTES + textBytes(event.text ?? '')
      taken++
    })
    if (taken < found) return next(taken)
  }
  return { events, complete: known.complete, cursor: null }
}

// `sourceId` is the id of the stream if the queue is a group, and otherwise that of the queue.
function eventsIn(
  bytes: Uint8Array,
  queueId: number,
  sourceId: number,
  offset: number,
  known: Known,
  each: (event: HistoryEvent) => void,
): void {
  let isDuplicate = false
  const stored = batchesWith(bytes, sourceId, offset)
  for (const at of entryBatches(bytes, 0)) {
    const owner = batchQueueId(bytes, at)
    if (owner !== queueId && owner !== sourceId && !stored.has(at)) continue
    const header = readBatchHeader(bytes, at)
    if (header.type === BATCH_TYPE.messages) {
      if (!stored.has(at) || header.attributes & BATCH_ATTRIBUTE.relocated) continue
      known.complete = true
      // A duplicate was never added to the queue. Its fact of the kind `duplicate` precedes the batch.
      known.isPending = !isDuplicate
      if (!isDuplicate) each({ event: 'published', atMs: header.timeMs })
    } else if (header.type === BATCH_TYPE.facts) {
      readFacts(bytes, at + BATCH_HEADER_BYTES, at + header.length, (fact) => {
        // A group has no duplicates of its own.
        if (owner !== queueId && fact.kind !== FACT.duplicate) return
        const event = eventOf(fact, offset, header.timeMs)
        if (event === undefined || (REMOVES_PENDING.has(fact.kind) && !known.isPending)) return
        const isMove = fact.kind === FACT.position
        // The group was created or moved before the message was published.
        if (isMove && fact.offset <= offset && !known.complete) return
        known.isPending = isMove
          ? fact.offset <= offset
          : KEEPS_PENDING.has(event.event) && fact.kind !== FACT.carry
        isDuplicate = event.event === 'duplicate'
        each(event)
      })
    }
  }
}

const COMPLETE = 1
const PENDING = 2

function flagsOf({ complete, isPending }: Known): number {
  return (complete ? COMPLETE : 0) | (isPending ? PENDING : 0)
}

/** Facts that remove only messages that are neither gone nor dead. */
const REMOVES_PENDING: ReadonlySet<number> = new Set([FACT.purge, FACT.miss])

/** Events after which a message is neither gone nor dead. */
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
  [FACT.position]: 'groupMoved',
  [FACT.miss]: 'missed',
}

/** Facts about several consecutive messages. */
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
  if (fact.kind === FACT.position) return { event, atMs, text: String(fact.offset) }
  const isBelow = REMOVES_PENDING.has(fact.kind)
  const from = isBelow ? 0 : fact.offset
  const end = isBelow ? fact.offset : fact.offset + (isRange ? fact.count : 1)
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
