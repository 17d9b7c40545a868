/**
 * The state of the log: every entry that the broker ever appended, read by its documented layout into plain Maps. The
 * ledger skips state pages and remembers truncated segments, so its state equals a full replay of the whole log. A
 * recovered broker is compared with it.
 *
 * `durable` is the state after the last entry whose append has resolved; `written` is the state after the last entry
 * whose append has started. At most one write is in flight, so a crash leaves one of these two states.
 */
import { readText, readU16, readU32, readU48, readU64, type QueueOptions } from '@sluice/protocol'
import { sameBytes } from './attempts.js'
import { isAccepted } from '../rules/admission.js'
import { RememberedIds } from '../rules/ids.js'
import {
  NO_EARLIER_LIVES,
  dueMsOf,
  expiryOf,
  isExpired,
  isListedById,
  livesAfterRedrive,
  rescheduled,
  type EarlierLives,
} from '../rules/message.js'
import { changeOf } from '../rules/options.js'
import { Violation } from './trace.js'
import { DEATHS, OVERFLOW, contentOf, copyOf, redrivesBefore, type Content } from './record.js'

export interface LedgerDead {
  readonly attempts: number
  readonly death: number
  readonly timeMs: number
  readonly reason: string
  readonly isMoving: boolean
}

export interface LedgerMessage {
  readonly record: Uint8Array
  readonly content: Content
  readonly timeMs: number
  readonly batchBase: number
  attempts: number
  dueMs: number | undefined
  /** Time at which the message expires; 0: never. */
  expiresMs: number
  /** Number of redrives of the message, and of attempts before the last redrive. */
  earlier: EarlierLives | undefined
  dead: LedgerDead | undefined
  /** Whether the message's id is known while the message is pending. */
  readonly isListed: boolean
}

export const COUNTERS = [
  'purged',
  'expired',
  'dropped',
  'cancelled',
  'duplicates',
  'moved',
  'discarded',
  'redriven',
  'released',
  'redelivered',
] as const
export type Counter = (typeof COUNTERS)[number]
export type Counters = Record<Counter, number>

export function noCounts(): Counters {
  return Object.fromEntries(COUNTERS.map((name) => [name, 0])) as Counters
}

export type LedgerOptions = Readonly<Record<string, number | string | boolean>>

export interface LedgerQueue {
  readonly id: number
  readonly name: string
  options: LedgerOptions
  readonly createdAtMs: number
  paused: boolean
  next: number
  redeliveredBelow: number
  readonly counts: Counters
  /** Number of messages that were redriven into another queue. */
  carried: number
  /** All messages that are not gone, by offset. */
  readonly live: Map<number, LedgerMessage>
  /** The acknowledged messages that are kept for replay, by offset. */
  readonly retained: Map<number, LedgerMessage>
  /** Positions of the copies of each batch, by the batch's first offset. */
  readonly places: Map<number, number[]>
  /** Size of the newest copy of each batch, by its first offset. */
  readonly batchBytes: Map<number, number>
  /** Bytes that each row of a shared batch counts of its newest copy, by the first offset of the row. */
  readonly shared: Map<number, number>
  /** All accepted ids, except those that a change of options has forgotten. */
  readonly remembered: RememberedIds
  /** Set if this is a stream: its messages are retained when they are accepted. */
  stream: object | undefined
  /** Set if this is a group: its messages are those of the stream that have entered it. */
  group: { readonly streamId: number; readonly fromMs: number } | undefined
  /** Of a group: number of messages that retention removed before they were done, and number of its moves. */
  missed: number
  moves: number
}

/** A binding or a schedule. */
interface LedgerDefinition {
  readonly kind: number
  readonly owner: number
  text: string
  number: number
  fired: number
}

/** The place at which one batch was accepted. */
export interface LedgerPlace {
  readonly queueId: number
  readonly base: number
  readonly duplicates: ReadonlyMap<number, number>
}

export interface Acceptance {
  readonly places: readonly LedgerPlace[]
  readonly crc: number
  readonly isAtomic: boolean
}

export interface LedgerProducer {
  readonly id: number
  readonly identity: string
  highest: number
  readonly accepted: Map<number, Acceptance>
}

function definitionOf(text: string): Definition {
  const [first, options] = text.split('\n')
  return { ...(JSON.parse(first!) as Definition), options: JSON.parse(options!) as LedgerOptions }
}

interface Definition {
  readonly name: string
  readonly options: LedgerOptions
  readonly createdAtMs: number
  readonly paused: boolean
  readonly stream?: object
  readonly group?: LedgerQueue['group']
}

/** A message that left its queue without a request, so that only the log knows the reason. */
export interface Departure {
  readonly queue: string
  readonly record: Uint8Array
  readonly why: string
}

const TYPE = { messages: 1, facts: 2, page: 3, boot: 4, directory: 5, close: 6 } as const
const FACT = {
  ack: 1,
  retry: 2,
  dead: 3,
  purge: 4,
  delivered: 5,
  ended: 21,
  expire: 6,
  drop: 7,
  cancel: 8,
  duplicate: 9,
  discard: 10,
  move: 11,
  redrive: 12,
  carry: 13,
  reschedule: 14,
  ttl: 15,
  ensure: 16,
  tally: 20,
  release: 22,
  delete: 17,
  hand: 18,
  replace: 19,
  refer: 23,
  define: 24,
  undefine: 25,
  enter: 26,
  position: 27,
  miss: 28,
  fired: 29,
  producer: 32,
  atomic: 33,
} as const
const WITH_TIME: ReadonlySet<number> = new Set([
  FACT.retry,
  FACT.dead,
  FACT.duplicate,
  FACT.replace,
  FACT.redrive,
  FACT.reschedule,
  FACT.ttl,
  FACT.tally,
  FACT.release,
  FACT.refer,
  FACT.define,
  FACT.enter,
  FACT.fired,
  FACT.atomic,
])
const ENTRY_HEADER = 64
const BATCH_HEADER = 48
const RELOCATED = 2
const SPARSE = 8
const TOPIC = 16
/** In the death byte of a fact `enter`: no message enters. */
const SKIPPED = 1
const QUEUE_IDS = 2 ** 32
/** The places of a publish to a topic that reached no queue. */
const NO_TARGETS = '[[0,0]]'
const SCHEDULE = 2
const AFTER_CLOSE = 4
const MOVING = 128

interface Fact {
  readonly kind: number
  readonly death: number
  readonly attempts: number
  readonly count: number
  readonly offset: number
  readonly timeMs: number
  readonly text: string
  /** Time at which the fact was written. */
  readonly atMs: number
}

/** Facts about the batch that follows them. */
interface Ahead {
  readonly queueId: number
  ttl: { readonly base: number; readonly count: number; readonly ttlMs: number } | undefined
  readonly duplicates: Map<number, number>
  /** Offset of a message → offset of the message that it replaces. */
  readonly replaced: Map<number, number>
}

/** Messages of a queue that are records of a shared batch, from the record `index` on. */
interface Refer {
  readonly queueId: number
  readonly offset: number
  readonly count: number
  readonly index: number
  /** Whether the row counts a part of the size of the batch. */
  readonly isCounted: boolean
}

/** Parts that must be in the same entry. */
interface Together {
  /** Facts about the next batch, by the id of its queue. A shared batch can have several. */
  readonly ahead: Map<number, Ahead>
  readonly refers: Refer[]
  /** Number of ticks whose batch has not followed yet. */
  fired: number
  /** Ids of the cancelled messages, by "queue id:offset". */
  readonly cancelled: Map<string, string | undefined>
  readonly leaving: { readonly target: string; readonly record: Uint8Array }[]
  /** Batches without a producer of their own, which an atomic step must follow. */
  readonly steps: { readonly number: number; readonly place: LedgerPlace }[]
}

/** The effects of one entry. */
export interface EntrySummary {
  /** "queue id:offset" of every acknowledged message. */
  readonly acked: Set<string>
  readonly atomics: { readonly identity: string; readonly number: number }[]
}

export class LedgerState {
  lsn = 0
  boot = 0
  /** Seed of the hashes, from the first boot. */
  seed: readonly number[] = []
  closed = true
  /** The latest time of any batch. */
  newestMs = 0
  nextPosition = 0
  lastCrc = 0
  lastQueueId = 0
  readonly queues = new Map<number, LedgerQueue>()
  readonly producers = new Map<string, LedgerProducer>()
  readonly producersById = new Map<number, LedgerProducer>()
  /** Number of batches of each kind so far. */
  pages = 0
  directories = 0
  relocated = 0
  sparse = 0
  atomics = 0
  /**
   * Called for each message that left without a request. It is set for only one of the two states, `durable` and
   * `written`.
   */
  onDeparture: ((departure: Departure) => void) | undefined
  summary: EntrySummary = { acked: new Set(), atomics: [] }
  /**
   * Called with the messages that producers sent, in the order of the log. Like `onDeparture`, it is set for only one
   * of the two states.
   */
  onAccepted: ((queueId: number, records: readonly Uint8Array[]) => void) | undefined
  /** Bindings and schedules, by id. */
  readonly definitions = new Map<number, LedgerDefinition>()
  /** Number of shared batches, and of their copies. */
  sharedBatches = 0
  sharedCopies = 0
  #together: Together = {
    ...{ ahead: new Map(), refers: [], fired: 0, cancelled: new Map(), leaving: [], steps: [] },
  }

  queueNamed(name: string): LedgerQueue | undefined {
    for (const queue of this.queues.values()) if (queue.name === name) return queue
    return undefined
  }

  /**
   * Applies the next entry. @throws Violation 5 if the entry does not continue the log, 9 if it has only a part of a step
   * or move
   */
  apply(entry: Uint8Array, position: number): void {
    const lsn = readU64(entry, 8)
    if (lsn !== this.lsn + 1) throw new Violation(5, `entry ${lsn} follows entry ${this.lsn}`)
    if (readU32(entry, 20) !== this.lastCrc)
      throw new Violation(5, `entry ${lsn} does not name the entry before it`)
    if (position < this.nextPosition)
      throw new Violation(5, `entry ${lsn} is at ${position}, before ${this.nextPosition}`)
    if (readU64(entry, 40) !== position)
      throw new Violation(5, `entry ${lsn} names position ${readU64(entry, 40)}, not ${position}`)
    const end = readU32(entry, 4)
    let batches = 0
    this.summary = { acked: new Set(), atomics: [] }
    this.#together.cancelled.clear()
    this.#together.fired = 0
    for (let at = ENTRY_HEADER; at < end; at += readU32(entry, at)) {
      this.#applyBatch(entry, at, position + at)
      batches++
    }
    if (batches !== readU32(entry, 32))
      throw new Violation(5, `entry ${lsn} has ${batches} batches, not ${readU32(entry, 32)}`)
    this.#checkWhole(lsn)
    this.lsn = lsn
    this.lastCrc = readU32(entry, 36)
    this.nextPosition = position + entry.length
  }

  // Invariant 9: parts that belong together are in one entry.
  #checkWhole(lsn: number): void {
    const { ahead, refers, leaving, steps } = this.#together
    if (ahead.size > 0 || refers.length > 0)
      throw new Violation(9, `entry ${lsn} ends with facts about a batch that is not in it`)
    if (leaving.length > 0)
      throw new Violation(9, `entry ${lsn} ends before a message that left arrives in ${leaving[0]!.target}`)
    if (steps.length > 0)
      throw new Violation(
        9,
        `entry ${lsn} ends with a batch of step ${steps[0]!.number} and without the step itself`,
      )
  }

  #applyBatch(bytes: Uint8Array, at: number, position: number): void {
    const type = bytes[at + 4]!
    this.#checkTime(bytes, at)
    if (type === TYPE.messages) this.#applyMessages(bytes, at, position)
    else if (type === TYPE.facts) this.#applyFacts(bytes, at)
    else if (type === TYPE.page) this.pages++
    else if (type === TYPE.directory) this.directories++
    else if (type === TYPE.boot) {
      this.boot = readU32(bytes, at + 12)
      const seed = [0, 4, 8, 12].map((word) => readU32(bytes, at + BATCH_HEADER + word))
      if (this.boot > 1 && seed.join() !== this.seed.join())
        throw new Violation(
          17,
          `boot ${this.boot} has the seed ${seed.join()}; the log has ${this.seed.join()}`,
        )
      this.seed = seed
      const isClean = bytes[at + 5] === AFTER_CLOSE
      if (!isClean) for (const queue of this.queues.values()) queue.redeliveredBelow = queue.next
    }
    this.closed = type === TYPE.close
  }

  // For invariant 12, which orders messages by time, no batch may be older than those before it, even if the machine's
  // clock was set back. A copy has the time of its original, and a state page has the time of its checkpoint.
  #checkTime(bytes: Uint8Array, at: number): void {
    const type = bytes[at + 4]!
    if (type === TYPE.page || type === TYPE.directory) return
    if (type === TYPE.messages && bytes[at + 5]! & RELOCATED) return
    // These facts also precede the copy of a shared batch, with its time.
    if (type === TYPE.facts && bytes[at + BATCH_HEADER] === FACT.refer) return
    const timeMs = readU48(bytes, at + 32)
    if (timeMs < this.newestMs)
      throw new Violation(12, `a batch of ${timeMs} follows one of ${this.newestMs}`)
    this.newestMs = timeMs
  }

  #applyMessages(bytes: Uint8Array, at: number, position: number): void {
    if (readU32(bytes, at + 8) === 0) {
      this.#applyShared(bytes, at, position)
      return
    }
    if (this.#together.refers.length > 0)
      throw new Violation(9, 'facts about a shared batch precede the batch of a queue')
    const queue = this.queues.get(readU32(bytes, at + 8))
    const count = readU32(bytes, at + 12)
    const base = readU64(bytes, at + 16)
    const number = readU64(bytes, at + 24)
    const producerId = readU32(bytes, at + 40)
    if (bytes[at + 5]! & RELOCATED) {
      this.relocated++
      if (bytes[at + 5]! & SPARSE) this.sparse++
      if (queue !== undefined) checkCopy(queue, bytes, at, base, count, 0)
      queue?.places.get(base)?.push(position)
      queue?.batchBytes.set(base, readU32(bytes, at))
      return
    }
    if (queue === undefined)
      throw new Violation(5, `a batch for queue ${readU32(bytes, at + 8)}, which does not exist`)
    if (base !== queue.next)
      throw new Violation(5, `a batch at offset ${base} of ${queue.name}, whose next one is ${queue.next}`)
    const records = recordsOf(bytes, at, count)
    const { duplicates, ttlMs } = this.#takeAhead(queue, base, records)
    const place = { queueId: queue.id, base, duplicates }
    if (producerId === 0 && number === 0) this.#arrived(queue, records)
    else if (producerId === 0) this.#together.steps.push({ number, place })
    else {
      const producer = this.producersById.get(producerId)
      if (producer === undefined)
        throw new Violation(3, `a batch of producer ${producerId}, which does not exist`)
      // The result of a publish to a topic is the number of its targets.
      const isTopic = (bytes[at + 5]! & TOPIC) !== 0
      const places = [isTopic ? { queueId: queue.id, base: 1, duplicates: NO_DUPLICATES } : place]
      this.#accept(producer, number, { places, crc: readU32(bytes, at + 44), isAtomic: false })
    }
    if (number > 0)
      this.onAccepted?.(
        queue.id,
        records.filter((_, index) => isAccepted({ duplicates }, base, index)),
      )
    queue.places.set(base, [position])
    queue.batchBytes.set(base, readU32(bytes, at))
    this.#add(queue, base, records, readU48(bytes, at + 32), ttlMs, duplicates, () => base)
  }

  // Invariant 9: the batch and the facts about all of its queues are in one entry. Each queue gets consecutive offsets.
  #applyShared(bytes: Uint8Array, at: number, position: number): void {
    const refers = this.#together.refers.splice(0)
    if (refers.length === 0) throw new Violation(9, `a shared batch at ${position} that no queue refers to`)
    if (bytes[at + 5]! & RELOCATED) {
      this.#copyShared(refers, bytes, at, position)
      return
    }
    this.sharedBatches++
    const records = recordsOf(bytes, at, readU32(bytes, at + 12))
    const timeMs = readU48(bytes, at + 32)
    const number = readU64(bytes, at + 24)
    const producerId = readU32(bytes, at + 40)
    const targets = new Set(refers.map(({ queueId }) => queueId))
    if (targets.size !== readU64(bytes, at + 16))
      throw new Violation(
        9,
        `a shared batch names ${readU64(bytes, at + 16)} queues; ${targets.size} refer to it`,
      )
    for (const queueId of targets) {
      const queue = this.queues.get(queueId)
      if (queue === undefined)
        throw new Violation(5, `a shared batch for queue ${queueId}, which does not exist`)
      const rows = refers.filter((refer) => refer.queueId === queueId)
      const own = rows.flatMap(({ index, count }) => records.slice(index, index + count))
      let next = queue.next
      for (const row of rows) {
        const { offset, count } = row
        if (offset !== next)
          throw new Violation(
            5,
            `a shared batch at offset ${offset} of ${queue.name}, whose next one is ${next}`,
          )
        next += count
        queue.places.set(offset, [position])
        queue.batchBytes.set(offset, readU32(bytes, at))
        queue.shared.set(offset, shareOf(row, refers, readU32(bytes, at)))
      }
      const base = queue.next
      const { duplicates, ttlMs } = this.#takeAhead(queue, base, own, targets)
      if (number > 0)
        this.onAccepted?.(
          queue.id,
          own.filter((_, index) => isAccepted({ duplicates }, base, index)),
        )
      const rowOf = (offset: number): number => rows.findLast((row) => row.offset <= offset)!.offset
      this.#add(queue, base, own, timeMs, ttlMs, duplicates, rowOf)
    }
    if (producerId === 0) {
      this.#hasFired('a shared batch')
      return
    }
    const producer = this.producersById.get(producerId)
    if (producer === undefined)
      throw new Violation(3, `a batch of producer ${producerId}, which does not exist`)
    const places = [{ queueId: 0, base: targets.size, duplicates: NO_DUPLICATES }]
    this.#accept(producer, number, { places, crc: readU32(bytes, at + 44), isAtomic: false })
  }

  #copyShared(refers: readonly Refer[], bytes: Uint8Array, at: number, position: number): void {
    this.relocated++
    this.sharedCopies++
    if (bytes[at + 5]! & SPARSE) this.sparse++
    for (const row of refers) {
      const { queueId, offset, count, index } = row
      const queue = this.queues.get(queueId)
      if (queue === undefined) continue
      checkCopy(queue, bytes, at, offset, count, index)
      queue.places.get(offset)?.push(position)
      queue.batchBytes.set(offset, readU32(bytes, at))
      queue.shared.set(offset, shareOf(row, refers, readU32(bytes, at)))
    }
  }

  // A batch without a producer that left no queue is the message of a tick.
  #hasFired(what: string): void {
    if (this.#together.fired === 0) throw new Violation(9, `${what} has no producer, and no tick has fired`)
    this.#together.fired--
  }

  #accept(producer: LedgerProducer, number: number, acceptance: Acceptance): void {
    if (producer.accepted.has(number))
      throw new Violation(3, `batch ${number} of ${producer.identity} was accepted twice`)
    producer.accepted.set(number, acceptance)
    producer.highest = Math.max(producer.highest, number)
  }

  // The next batch without a producer, in the same entry, is the message that left another queue.
  #arrived(queue: LedgerQueue, records: readonly Uint8Array[]): void {
    const leaving = this.#together.leaving.shift()
    if (leaving === undefined && records.every((record) => isReplayed(record))) return
    if (leaving === undefined) {
      this.#hasFired(`a message that arrived in ${queue.name}`)
      return
    }
    if (leaving.target !== queue.name || records.length !== 1)
      throw new Violation(9, `a message left for ${leaving.target} and arrived in ${queue.name}`)
    if (!sameBytes(records[0]!, leaving.record))
      throw new Violation(2, `a message that arrived in ${queue.name} is not the one that left`)
  }

  #takeAhead(
    queue: LedgerQueue,
    base: number,
    records: readonly Uint8Array[],
    targets: ReadonlySet<number> = new Set([queue.id]),
  ): { readonly duplicates: ReadonlyMap<number, number>; readonly ttlMs: number } {
    const ahead = this.#together.ahead.get(queue.id)
    const what = `the batch at offset ${base} of ${queue.name}`
    for (const queueId of this.#together.ahead.keys())
      if (!targets.has(queueId))
        throw new Violation(9, `${what} follows facts about a batch of queue ${queueId}`)
    this.#together.ahead.delete(queue.id)
    const duplicates = new Map<number, number>()
    for (const [offset, first] of ahead?.duplicates ?? []) {
      const record = records[offset - base]
      if (record === undefined || contentOf(record).id === undefined)
        throw new Violation(9, `offset ${offset} is marked as a duplicate; ${what} follows`)
      // Within a batch the last message that replaces is accepted.
      const later = records[first - base]
      const isReplaced = first > offset && later !== undefined && replacesIn(later, record)
      if (first >= offset && !isReplaced)
        throw new Violation(6, `offset ${offset} of ${queue.name} is the duplicate of ${first}, a later one`)
      duplicates.set(offset - base, first)
    }
    for (const [offset, old] of ahead?.replaced ?? []) {
      // Invariant 9: the entry that removes the replaced message also adds the new one.
      const content = records[offset - base] === undefined ? undefined : contentOf(records[offset - base]!)
      const gone = this.#together.cancelled.get(`${queue.id}:${old}`)
      if (content?.replaces !== true || content.id === undefined || content.id !== gone)
        throw new Violation(
          9,
          `offset ${offset} is marked as replacing ${old} of ${queue.name}; ${what} follows`,
        )
      duplicates.set(offset - base, offset)
    }
    const ttl = ahead?.ttl
    if (ttl !== undefined && (ttl.base !== base || ttl.count !== records.length))
      throw new Violation(9, `${what} follows the time to live of another batch`)
    const ttlMs = ttl?.ttlMs ?? 0
    const lacks = records.some((record) => contentOf(record).ttlMs === undefined)
    const must = lacks ? (queue.options['ttlMs'] as number) : 0
    if (ttlMs !== must) throw new Violation(17, `${what} has the time to live ${ttlMs}, not ${must}`)
    return { duplicates: new Map([...duplicates].toSorted(([a], [b]) => a - b)), ttlMs }
  }

  #add(
    queue: LedgerQueue,
    base: number,
    records: readonly Uint8Array[],
    timeMs: number,
    ttlMs: number,
    duplicates: ReadonlyMap<number, number>,
    rowOf: (offset: number) => number,
  ): void {
    const messages = queue.stream === undefined ? queue.live : queue.retained
    const windowMs = queue.options['unique'] === 'window' ? (queue.options['dedupWindowMs'] as number) : 0
    for (const [index, record] of records.entries()) {
      if (!isAccepted({ duplicates }, base, index)) continue
      const offset = base + index
      const content = contentOf(record)
      const lineMs = dueMsOf(content, timeMs)
      const isDelayed = lineMs > timeMs
      messages.set(offset, {
        record: new Uint8Array(record),
        content,
        timeMs,
        batchBase: rowOf(offset),
        attempts: 0,
        dueMs: isDelayed ? lineMs : undefined,
        expiresMs: expiryOf(content, ttlMs, lineMs),
        earlier: undefined,
        dead: undefined,
        isListed: isListedById(content, queue.options['unique'] as string, isDelayed),
      })
      if (windowMs > 0 && content.id !== undefined) queue.remembered.remember(content.id, offset, timeMs)
    }
    for (const index of duplicates.keys())
      if (!isAccepted({ duplicates }, base, index)) queue.counts.duplicates++
    queue.next = base + records.length
  }

  #applyFacts(bytes: Uint8Array, batchAt: number): void {
    const end = batchAt + readU32(bytes, batchAt)
    const queueId = readU32(bytes, batchAt + 8)
    const atMs = readU48(bytes, batchAt + 32)
    const queue = this.queues.get(queueId)
    for (let at = batchAt + BATCH_HEADER; at < end;) {
      const kind = bytes[at]!
      const hasTime = WITH_TIME.has(kind)
      const textAt = at + (hasTime ? 24 : 16)
      const next = textAt + readU16(bytes, at + 2)
      const count = readU32(bytes, at + 4)
      const fact: Fact = {
        kind,
        death: bytes[at + 1]!,
        attempts: kind === FACT.retry || kind === FACT.dead ? count : 0,
        count,
        offset: readU64(bytes, at + 8),
        timeMs: hasTime ? readU64(bytes, at + 16) : 0,
        text: readText(bytes, textAt, next),
        atMs,
      }
      at = next
      if (at > end) throw new Violation(5, `a fact of kind ${kind} is cut off`)
      if (kind === FACT.producer) this.#declare(fact)
      else if (kind === FACT.atomic) this.#step(fact)
      else if (kind === FACT.ensure) this.#ensure(queueId, definitionOf(fact.text), fact.atMs)
      else if (kind === FACT.refer)
        this.#together.refers.push({
          ...{ queueId: fact.timeMs % QUEUE_IDS, index: Math.floor(fact.timeMs / QUEUE_IDS) },
          ...{ offset: fact.offset, count, isCounted: fact.death === 0 },
        })
      else if (kind === FACT.define) this.#define(fact)
      else if (kind === FACT.undefine) this.#undefine(fact.offset)
      else if (kind === FACT.fired) this.#fire(fact)
      else if (queue === undefined) {
        throw new Violation(5, `a fact of kind ${kind} about queue ${queueId}, which does not exist`)
      } else this.#applyFact(queue, fact)
    }
  }

  #declare({ offset: id, text: identity }: Fact): void {
    if (this.producers.has(identity)) throw new Violation(3, `producer ${identity} was declared twice`)
    const producer = { id, identity, highest: 0, accepted: new Map<number, Acceptance>() }
    this.producers.set(identity, producer)
    this.producersById.set(id, producer)
  }

  #define({ offset: id, death: kind, count: owner, timeMs: number, text }: Fact): void {
    const known = this.definitions.get(id)
    if (known === undefined) this.definitions.set(id, { kind, owner, text, number, fired: 0 })
    else Object.assign(known, { text, number })
  }

  #undefine(id: number): void {
    if (!this.definitions.delete(id)) throw new Violation(5, `definition ${id} is removed and does not exist`)
  }

  /** Each tick fires once. With an interval, and if all missed ticks fire, no tick is left out. */
  #fire({ offset: id, timeMs: tickMs, count }: Fact): void {
    const schedule = this.definitions.get(id)
    if (schedule?.kind !== SCHEDULE)
      throw new Violation('schedule', `tick ${tickMs} of schedule ${id}, which does not exist`)
    const { name, everyMs, missed, fromMs } = JSON.parse(schedule.text) as {
      readonly name: string
      readonly everyMs?: number
      readonly missed: string
      readonly fromMs: number
    }
    const { number, fired } = schedule
    const isNext =
      everyMs === undefined || missed !== 'all' || number <= fromMs || tickMs === number + everyMs
    if (tickMs <= number || tickMs <= fromMs || count !== fired + 1 || !isNext)
      throw new Violation(
        'schedule',
        `schedule ${name} fires for ${tickMs} as number ${count}; its last tick was ${number}, number ${fired}`,
      )
    schedule.number = tickMs
    schedule.fired = count
    this.#together.fired++
  }

  // Invariant 9: a step names exactly its own batches.
  #step({ offset: producerId, timeMs: number, count: crc, text }: Fact): void {
    const producer = this.producersById.get(producerId)
    if (producer === undefined)
      throw new Violation(3, `a step of producer ${producerId}, which does not exist`)
    const steps = this.#together.steps.splice(0)
    const places = steps.map(({ place }) => place)
    const has = JSON.stringify(places.map(({ queueId, base }) => [queueId, base]))
    if (text === NO_TARGETS && steps.length === 0) {
      // A publish to a topic that reached no queue.
      const nowhere = [{ queueId: 0, base: 0, duplicates: NO_DUPLICATES }]
      this.#accept(producer, number, { places: nowhere, crc, isAtomic: false })
      return
    }
    if (steps.some((step) => step.number !== number) || has !== text)
      throw new Violation(
        9,
        `step ${number} of ${producer.identity} names ${text}; batches at ${has} are in its entry`,
      )
    this.atomics++
    this.summary.atomics.push({ identity: producer.identity, number })
    this.#accept(producer, number, { places, crc, isAtomic: true })
  }

  #ensure(id: number, definition: Definition, atMs: number): void {
    const queue = this.queues.get(id)
    if (queue !== undefined) {
      const [before, after] = [queue.options, definition.options] as unknown as [QueueOptions, QueueOptions]
      const { forgetsAfterMs } = changeOf(before, after)
      if (forgetsAfterMs !== undefined) queue.remembered.forgetUntil(atMs - forgetsAfterMs)
      queue.options = definition.options
      queue.paused = definition.paused
      queue.stream = definition.stream
      queue.group = definition.group
      return
    }
    if (id <= this.lastQueueId)
      throw new Violation(5, `queue ${definition.name} has id ${id}, which is not above ${this.lastQueueId}`)
    this.lastQueueId = id
    const { stream, group } = definition
    const source = group === undefined ? undefined : this.queues.get(group.streamId)
    if (group !== undefined && source?.stream === undefined)
      throw new Violation(5, `the group ${definition.name} of queue ${group.streamId}, which is not a stream`)
    this.queues.set(id, {
      id,
      ...definition,
      ...{ stream, group, missed: 0, moves: 0 },
      next: 0,
      redeliveredBelow: 0,
      counts: noCounts(),
      carried: 0,
      live: new Map(),
      retained: new Map(),
      // The batches of a group are those of its stream.
      places: source?.places ?? new Map<number, number[]>(),
      batchBytes: source?.batchBytes ?? new Map<number, number>(),
      shared: source?.shared ?? new Map<number, number>(),
      remembered: new RememberedIds(),
    })
  }

  #applyFact(queue: LedgerQueue, fact: Fact): void {
    const { kind, offset, count, timeMs } = fact
    switch (kind) {
      case FACT.ack:
        for (let i = offset; i < offset + count; i++) {
          const message = queue.live.get(i)
          if (message !== undefined && retains(queue)) queue.retained.set(i, message)
          this.#leave(queue, i, 'is acknowledged', undefined)
          this.summary.acked.add(`${queue.id}:${i}`)
        }
        return
      case FACT.tally:
        if (offset < queue.counts.released || timeMs < queue.counts.redelivered)
          throw new Violation(
            6,
            `${queue.name} had ${queue.counts.released} releases and ${queue.counts.redelivered} redeliveries, and now has ${offset} and ${timeMs}`,
          )
        queue.counts.released = offset
        queue.counts.redelivered = timeMs
        return
      case FACT.retry: {
        const message = this.#alive(queue, offset, 'comes back')
        // Invariant 10: attempts never decrease. The attempt of a claimed lease can already be charged; see consuming.ts.
        if (
          fact.attempts !== message.attempts + 1 &&
          (fact.attempts !== message.attempts || fact.attempts === 0)
        )
          throw new Violation(
            10,
            `offset ${offset} of ${queue.name} had ${message.attempts} attempts and now has ${fact.attempts}`,
          )
        message.attempts = fact.attempts
        message.dueMs = timeMs
        return
      }
      case FACT.dead:
        this.#die(queue, fact)
        return
      case FACT.purge: {
        let purged = 0
        for (const [at, { dead }] of [...queue.live]) {
          if (at >= offset || dead !== undefined) continue
          this.#remove(queue, at)
          purged++
        }
        if (purged !== count)
          throw new Violation(6, `a purge of ${queue.name} counts ${count} messages; there were ${purged}`)
        queue.counts.purged += purged
        return
      }
      case FACT.ended:
      case FACT.hand:
        return
      case FACT.release:
        for (const at of queue.retained.keys()) if (at >= offset && at < timeMs) queue.retained.delete(at)
        return
      case FACT.delivered:
        queue.redeliveredBelow = Math.max(queue.redeliveredBelow, offset)
        return
      case FACT.expire:
        for (let i = offset; i < offset + count; i++) {
          const message = this.#alive(queue, i, 'expires')
          if (!isExpired(message, fact.atMs))
            throw new Violation(
              6,
              `offset ${i} of ${queue.name} expires at ${fact.atMs}, not ${message.expiresMs}`,
            )
          this.#leave(queue, i, 'expires', 'expired')
        }
        return
      case FACT.drop:
        for (let i = offset; i < offset + count; i++) this.#leave(queue, i, 'is dropped', 'dropped')
        return
      case FACT.cancel:
        for (let i = offset; i < offset + count; i++) {
          this.#together.cancelled.set(`${queue.id}:${i}`, queue.live.get(i)?.content.id)
          this.#leave(queue, i, 'is cancelled', 'cancelled')
        }
        return
      case FACT.discard:
        for (let i = offset; i < offset + count; i++) {
          this.#dead(queue, i, 'is discarded')
          this.#departed(queue, i, 'discarded')
          queue.counts.discarded++
        }
        return
      case FACT.move:
      case FACT.carry:
        this.#depart(queue, fact)
        return
      case FACT.redrive: {
        const { message, dead } = this.#dead(queue, offset, 'is redriven')
        const earlier = livesAfterRedrive(message.earlier ?? NO_EARLIER_LIVES, dead.attempts)
        if (count !== earlier.redrives)
          throw new Violation(10, `offset ${offset} of ${queue.name} reports redrive number ${count}`)
        message.dead = undefined
        message.earlier = earlier
        message.attempts = 0
        message.dueMs = timeMs
        message.expiresMs = 0
        queue.counts.redriven++
        return
      }
      case FACT.reschedule: {
        const message = this.#alive(queue, offset, 'is rescheduled')
        const { attempts, expiresMs } = message
        const before = { attempts, expiresMs, lineMs: message.dueMs ?? message.timeMs }
        message.expiresMs = rescheduled(before, timeMs).expiresMs
        message.dueMs = timeMs
        return
      }
      case FACT.duplicate:
        this.#about(queue).duplicates.set(offset, timeMs)
        return
      case FACT.replace:
        this.#about(queue).replaced.set(offset, timeMs)
        return
      case FACT.ttl:
        this.#about(queue).ttl = { base: offset, count, ttlMs: timeMs }
        return
      case FACT.delete:
        this.queues.delete(queue.id)
        for (const [id, { owner }] of this.definitions) if (owner === queue.id) this.definitions.delete(id)
        return
      case FACT.enter:
        this.#enter(queue, fact)
        return
      case FACT.position:
        for (const [at, { dead }] of [...queue.live])
          if (dead === undefined || at >= offset) this.#remove(queue, at)
        queue.next = offset
        queue.redeliveredBelow = Math.min(queue.redeliveredBelow, offset)
        queue.moves++
        return
      case FACT.miss:
        for (const at of [...queue.live.keys()]) if (at < offset) this.#remove(queue, at)
        queue.next = Math.max(queue.next, offset)
        queue.missed += count
        return
      default:
        throw new Violation(5, `a fact of unknown kind ${kind}`)
    }
  }

  /** Each message of the stream enters the group once, unless the group moves. */
  #enter(group: LedgerQueue, { offset: from, timeMs: end, death }: Fact): void {
    const stream = this.queues.get(group.group?.streamId ?? 0)
    if (stream === undefined || from < group.next || end > stream.next || end <= from)
      throw new Violation(
        6,
        `messages ${from} to ${end} enter ${group.name}, whose next one is ${group.next}; its stream ends at ${stream?.next}`,
      )
    group.next = end
    if (death === SKIPPED) return
    for (let offset = from; offset < end; offset++) {
      const message = stream.retained.get(offset)
      if (message !== undefined) group.live.set(offset, { ...message, isListed: false })
    }
  }

  #about(queue: LedgerQueue): Ahead {
    let ahead = this.#together.ahead.get(queue.id)
    if (ahead === undefined) {
      ahead = { queueId: queue.id, ttl: undefined, duplicates: new Map(), replaced: new Map() }
      this.#together.ahead.set(queue.id, ahead)
    }
    return ahead
  }

  #die(queue: LedgerQueue, { offset, attempts, death: how, timeMs, text }: Fact): void {
    const message = this.#alive(queue, offset, 'dies')
    const death = how & ~MOVING
    const isMoving = (how & MOVING) !== 0
    const isCharged = attempts === message.attempts && attempts > 0
    if (attempts !== message.attempts + (death === OVERFLOW ? 0 : 1) && !isCharged)
      throw new Violation(
        10,
        `offset ${offset} of ${queue.name} had ${message.attempts} attempts and dies (${death}) with ${attempts}`,
      )
    message.dead = { attempts, death, timeMs, reason: text, isMoving }
    // It is possible that no client has seen this message.
    if (death === OVERFLOW) this.onDeparture?.({ queue: queue.name, record: message.record, why: 'overflow' })
    message.attempts = 0
    message.dueMs = undefined
  }

  // The dead message leaves here and arrives in another queue in the same entry.
  #depart(queue: LedgerQueue, { kind, offset, text: target }: Fact): void {
    const { message, dead } = this.#dead(queue, offset, 'is moved')
    const isCarried = kind === FACT.carry
    const earlier = message.earlier ?? NO_EARLIER_LIVES
    const record = copyOf(message.record, {
      queue: queue.name,
      offset,
      publishedMs: message.timeMs,
      attempts: earlier.attempts + dead.attempts,
      redrives: earlier.redrives + redrivesBefore(message.content) + (isCarried ? 1 : 0),
      dead: { death: DEATHS[dead.death]!, diedMs: dead.timeMs, error: dead.reason },
    })
    this.#together.leaving.push({ target, record })
    this.#departed(queue, offset, isCarried ? 'carried' : 'moved')
    if (isCarried) {
      queue.carried++
      queue.counts.redriven++
    } else queue.counts.moved++
  }

  #alive(queue: LedgerQueue, offset: number, what: string): LedgerMessage {
    const message = queue.live.get(offset)
    // Invariant 6: a message that leaves must exist.
    if (message === undefined || message.dead !== undefined)
      throw new Violation(6, `offset ${offset} of ${queue.name} ${what} but was gone or dead`)
    return message
  }

  #dead(
    queue: LedgerQueue,
    offset: number,
    what: string,
  ): { readonly message: LedgerMessage; readonly dead: LedgerDead } {
    const message = queue.live.get(offset)
    if (message?.dead === undefined)
      throw new Violation(6, `offset ${offset} of ${queue.name} ${what} but was not dead`)
    return { message, dead: message.dead }
  }

  #leave(queue: LedgerQueue, offset: number, what: string, counter: Counter | undefined): void {
    this.#alive(queue, offset, what)
    if (counter === undefined) {
      this.#remove(queue, offset)
      return
    }
    this.#departed(queue, offset, counter)
    queue.counts[counter]++
  }

  #departed(queue: LedgerQueue, offset: number, why: string): void {
    this.onDeparture?.({ queue: queue.name, record: queue.live.get(offset)!.record, why })
    this.#remove(queue, offset)
  }

  #remove(queue: LedgerQueue, offset: number): void {
    queue.live.delete(offset)
  }

  // Groups use the places of their streams, which are copied first, because a stream is older than its groups.
  #copiedPlaces(
    { group, places, batchBytes, shared }: LedgerQueue,
    copy: LedgerState,
  ): Pick<LedgerQueue, 'places' | 'batchBytes' | 'shared'> {
    const stream = group === undefined ? undefined : copy.queues.get(group.streamId)
    if (stream !== undefined)
      return { places: stream.places, batchBytes: stream.batchBytes, shared: stream.shared }
    return {
      places: new Map([...places].map(([base, positions]) => [base, [...positions]])),
      batchBytes: new Map(batchBytes),
      shared: new Map(shared),
    }
  }

  /** A deep copy of everything that changes. */
  clone(): LedgerState {
    const copy = new LedgerState()
    copy.lsn = this.lsn
    copy.boot = this.boot
    copy.seed = this.seed
    copy.closed = this.closed
    copy.newestMs = this.newestMs
    copy.nextPosition = this.nextPosition
    copy.lastCrc = this.lastCrc
    copy.lastQueueId = this.lastQueueId
    copy.pages = this.pages
    copy.directories = this.directories
    copy.relocated = this.relocated
    copy.sparse = this.sparse
    copy.atomics = this.atomics
    for (const queue of this.queues.values()) {
      copy.queues.set(queue.id, {
        ...queue,
        counts: { ...queue.counts },
        live: new Map([...queue.live].map(([offset, message]) => [offset, { ...message }])),
        retained: new Map(queue.retained),
        ...this.#copiedPlaces(queue, copy),
        remembered: queue.remembered.clone(),
      })
    }
    for (const [id, definition] of this.definitions) copy.definitions.set(id, { ...definition })
    copy.sharedBatches = this.sharedBatches
    copy.sharedCopies = this.sharedCopies
    for (const producer of this.producers.values()) {
      const copied = { ...producer, accepted: new Map(producer.accepted) }
      copy.producers.set(producer.identity, copied)
      copy.producersById.set(producer.id, copied)
    }
    return copy
  }
}

const NO_DUPLICATES: ReadonlyMap<number, number> = new Map()
/** Bytes that the log needs for the facts about a shared batch: the header of the facts, and a fact for each row. */
const REFERS_HEAD_BYTES = BATCH_HEADER
const REFER_BYTES = 24

/** The share of a row: its fact, and an equal part of the batch and of the header of its facts if it counts one. */
function shareOf({ isCounted }: Refer, rows: readonly Refer[], batchBytes: number): number {
  const parts = rows.filter((row) => row.isCounted).length
  return REFER_BYTES + (isCounted ? Math.ceil((batchBytes + REFERS_HEAD_BYTES) / parts) : 0)
}

/** Size of the batches that are needed, and of the shares of the needed rows of shared batches. */
export function neededBytes({ queues }: LedgerState): number {
  let bytes = 0
  for (const queue of queues.values()) {
    if (queue.group !== undefined) continue
    const bases = new Set<number>()
    for (const messages of [queue.live, queue.retained])
      for (const { batchBase } of messages.values()) bases.add(batchBase)
    for (const base of bases) bytes += queue.shared.get(base) ?? queue.batchBytes.get(base)!
  }
  return bytes
}

/** Whether the record can be the copy that a replay made. */
function isReplayed(record: Uint8Array): boolean {
  const names = new Set(contentOf(record).headers.map(([name]) => name))
  return names.has('sluice-origin-queue') && !names.has('sluice-death')
}

function replacesIn(later: Uint8Array, record: Uint8Array): boolean {
  const { id, replaces } = contentOf(later)
  return replaces && id === contentOf(record).id
}

function retains({ options }: LedgerQueue): boolean {
  return (options['retainAgeMs'] as number) > 0 || (options['retainBytes'] as number) > 0
}

// A copy has the record of every message of the batch that is not gone or is kept for replay, unchanged. The messages
// `[from, from + count)` of the queue are its records from `firstIndex` on.
function checkCopy(
  queue: LedgerQueue,
  bytes: Uint8Array,
  at: number,
  from: number,
  count: number,
  firstIndex: number,
): void {
  const all = readU32(bytes, at + 12)
  const found = new Map<number, Uint8Array>()
  if (bytes[at + 5]! & SPARSE) {
    const present = readU16(bytes, at + BATCH_HEADER)
    const indexesAt = at + BATCH_HEADER + 2
    const records = recordsOf(bytes, at, present, indexesAt + 2 * present)
    for (const [slot, record] of records.entries()) found.set(readU16(bytes, indexesAt + 2 * slot), record)
    if (found.size !== present || found.size >= all || [...found.keys()].some((index) => index >= all))
      throw new Violation(1, `a copy of ${all} messages names the wrong ${present} of them`)
  } else for (const [index, record] of recordsOf(bytes, at, all).entries()) found.set(index, record)
  for (let offset = from; offset < from + count; offset++) {
    const message = queue.live.get(offset) ?? queue.retained.get(offset)
    if (message === undefined) continue
    const record = found.get(firstIndex + offset - from)
    if (record === undefined || !sameBytes(record, message.record))
      throw new Violation(1, `message ${offset} of ${queue.name} is not in the copy of its batch`)
  }
}

function recordsOf(
  bytes: Uint8Array,
  at: number,
  count: number,
  start: number = at + BATCH_HEADER,
): Uint8Array[] {
  const end = at + readU32(bytes, at)
  const records: Uint8Array[] = []
  let record = start
  for (let i = 0; i < count; i++) {
    const size = readU32(bytes, record)
    records.push(bytes.subarray(record, record + size))
    record += size
  }
  if (record !== end) throw new Violation(5, `a batch of ${count} messages whose records do not fill it`)
  return records
}

export class Ledger {
  durable = new LedgerState()
  written = new LedgerState()
  /** The entry that is being written. */
  #underWay: { readonly entry: Uint8Array; readonly position: number } | undefined

  /**
   * `onDeparture` is called for each message that is durably gone for a reason that no client learns. `onAccepted` is
   * called with the durable messages of producers, in the order of the log.
   */
  constructor(
    onDeparture?: (departure: Departure) => void,
    onAccepted?: (queueId: number, records: readonly Uint8Array[]) => void,
  ) {
    this.durable.onDeparture = onDeparture
    this.durable.onAccepted = onAccepted
  }

  begin(entry: Uint8Array, position: number): EntrySummary {
    if (this.#underWay !== undefined) throw new Violation(5, 'two entries are under way')
    const kept = { entry: new Uint8Array(entry), position }
    this.written.apply(kept.entry, position)
    this.#underWay = kept
    return this.written.summary
  }

  /** Called when the append that started last has resolved. */
  finish(): void {
    const { entry, position } = this.#underWay!
    this.#underWay = undefined
    this.durable.apply(entry, position)
  }

  /**
   * Called when the log was opened and ends with entry `lsn`.
   * @throws Violation if entry `lsn` is neither the last durable entry nor the one under way
   */
  recovered(lsn: number): void {
    this.allows(lsn)
    if (lsn === this.written.lsn && this.#underWay !== undefined) this.finish()
    else if (this.#underWay !== undefined) {
      this.#underWay = undefined
      this.written = this.durable.clone()
    }
  }

  /** The state of a log that ends with entry `lsn`. @throws Violation if the log cannot end there */
  allows(lsn: number): LedgerState {
    if (lsn < this.durable.lsn)
      throw new Violation(1, `the log ends with entry ${lsn}; entry ${this.durable.lsn} was durable`)
    if (lsn > this.written.lsn)
      throw new Violation(18, `the log ends with entry ${lsn}; only ${this.written.lsn} were written`)
    return lsn === this.durable.lsn ? this.durable : this.written
  }
}
