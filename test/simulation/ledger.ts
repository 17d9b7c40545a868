/**
 * What the log says: every entry that the broker ever appended, read by its documented layouts into plain Maps. It skips
 * state pages and forgets nothing with truncated segments, so it is what a full replay of a whole log gives. A
 * recovered broker is compared with it.
 *
 * `durable` is the state after the last entry whose append resolved, `written` the one after the last that was begun:
 * with one write in flight a crash leaves one or the other.
 */
import { readText, readU16, readU32, readU48, readU64 } from '@sluice/protocol'
import { Violation } from './trace.js'

export interface LedgerMessage {
  readonly record: Uint8Array
  readonly timeMs: number
  readonly batchBase: number
  attempts: number
  dueMs: number | undefined
  dead:
    | { readonly attempts: number; readonly death: number; readonly timeMs: number; readonly reason: string }
    | undefined
}

export interface LedgerQueue {
  readonly id: number
  readonly name: string
  options: Readonly<Record<string, number>>
  readonly createdAtMs: number
  next: number
  redeliveredBelow: number
  purged: number
  /** All that is not gone, by offset. */
  readonly live: Map<number, LedgerMessage>
  /** Where copies of each batch stand, by its first offset. */
  readonly places: Map<number, number[]>
}

export interface Acceptance {
  readonly queueId: number
  readonly base: number
  readonly count: number
  readonly crc: number
}

export interface LedgerProducer {
  readonly id: number
  readonly identity: string
  highest: number
  readonly accepted: Map<number, Acceptance>
}

interface Definition {
  readonly name: string
  readonly options: Record<string, number>
  readonly createdAtMs: number
}

const TYPE = { messages: 1, facts: 2, page: 3, boot: 4, directory: 5, close: 6 } as const
const FACT = {
  ack: 1,
  retry: 2,
  dead: 3,
  purge: 4,
  delivered: 5,
  ensure: 16,
  delete: 17,
  producer: 32,
} as const
const ENTRY_HEADER = 64
const BATCH_HEADER = 48
const RELOCATED = 2
const AFTER_CLOSE = 4

export class LedgerState {
  lsn = 0
  boot = 0
  closed = true
  nextPosition = 0
  lastCrc = 0
  lastQueueId = 0
  readonly queues = new Map<number, LedgerQueue>()
  readonly producers = new Map<string, LedgerProducer>()
  readonly producersById = new Map<number, LedgerProducer>()
  /** Batches of each kind so far. */
  pages = 0
  directories = 0
  relocated = 0

  queueNamed(name: string): LedgerQueue | undefined {
    for (const queue of this.queues.values()) if (queue.name === name) return queue
    return undefined
  }

  /** Takes the next entry. @throws Violation 5 when it does not continue the log */
  apply(entry: Uint8Array, position: number): void {
    const lsn = readU64(entry, 8)
    if (lsn !== this.lsn + 1) throw new Violation(5, `entry ${lsn} follows entry ${this.lsn}`)
    if (readU32(entry, 20) !== this.lastCrc)
      throw new Violation(5, `entry ${lsn} does not name the one before it`)
    if (position < this.nextPosition)
      throw new Violation(5, `entry ${lsn} is at ${position}, before ${this.nextPosition}`)
    if (readU64(entry, 40) !== position)
      throw new Violation(5, `entry ${lsn} names position ${readU64(entry, 40)}, not ${position}`)
    const end = readU32(entry, 4)
    let batches = 0
    for (let at = ENTRY_HEADER; at < end; at += readU32(entry, at)) {
      this.#applyBatch(entry, at, position + at)
      batches++
    }
    if (batches !== readU32(entry, 32))
      throw new Violation(5, `entry ${lsn} has ${batches} batches, not ${readU32(entry, 32)}`)
    this.lsn = lsn
    this.lastCrc = readU32(entry, 36)
    this.nextPosition = position + entry.length
  }

  #applyBatch(bytes: Uint8Array, at: number, position: number): void {
    const type = bytes[at + 4]!
    if (type === TYPE.messages) this.#applyMessages(bytes, at, position)
    else if (type === TYPE.facts) this.#applyFacts(bytes, at)
    else if (type === TYPE.page) this.pages++
    else if (type === TYPE.directory) this.directories++
    else if (type === TYPE.boot) {
      this.boot = readU32(bytes, at + 12)
      const isClean = bytes[at + 5] === AFTER_CLOSE
      if (!isClean) for (const queue of this.queues.values()) queue.redeliveredBelow = queue.next
    }
    this.closed = type === TYPE.close
  }

  #applyMessages(bytes: Uint8Array, at: number, position: number): void {
    const end = at + readU32(bytes, at)
    const queue = this.queues.get(readU32(bytes, at + 8))
    const count = readU32(bytes, at + 12)
    const base = readU64(bytes, at + 16)
    const number = readU64(bytes, at + 24)
    if (bytes[at + 5]! & RELOCATED) {
      this.relocated++
      queue?.places.get(base)?.push(position)
      return
    }
    const producer = this.producersById.get(readU32(bytes, at + 40))
    if (queue === undefined)
      throw new Violation(5, `a batch for queue ${readU32(bytes, at + 8)}, which there is not`)
    if (producer === undefined)
      throw new Violation(3, `a batch of producer ${readU32(bytes, at + 40)}, which there is not`)
    if (base !== queue.next)
      throw new Violation(5, `a batch at offset ${base} of ${queue.name}, whose next one is ${queue.next}`)
    if (producer.accepted.has(number))
      throw new Violation(3, `batch ${number} of ${producer.identity} was accepted twice`)
    producer.accepted.set(number, { queueId: queue.id, base, count, crc: readU32(bytes, at + 44) })
    producer.highest = Math.max(producer.highest, number)
    queue.places.set(base, [position])
    const timeMs = readU48(bytes, at + 32)
    let record = at + BATCH_HEADER
    for (let i = 0; i < count; i++) {
      const size = readU32(bytes, record)
      queue.live.set(base + i, {
        record: new Uint8Array(bytes.subarray(record, record + size)),
        timeMs,
        batchBase: base,
        attempts: 0,
        dueMs: undefined,
        dead: undefined,
      })
      record += size
    }
    if (record !== end) throw new Violation(5, `a batch of ${count} messages whose records do not fill it`)
    queue.next = base + count
  }

  #applyFacts(bytes: Uint8Array, batchAt: number): void {
    const end = batchAt + readU32(bytes, batchAt)
    const queueId = readU32(bytes, batchAt + 8)
    const queue = this.queues.get(queueId)
    for (let at = batchAt + BATCH_HEADER; at < end;) {
      const kind = bytes[at]!
      const attempts = bytes[at + 1]!
      const textBytes = readU16(bytes, at + 2)
      const count = readU32(bytes, at + 4)
      const offset = readU64(bytes, at + 8)
      const hasTime = kind === FACT.retry || kind === FACT.dead
      const timeMs = hasTime ? readU64(bytes, at + 16) : 0
      const textAt = at + (hasTime ? 24 : 16)
      const text = readText(bytes, textAt, textAt + textBytes)
      at = textAt + textBytes
      if (kind === FACT.producer) {
        const producer = { id: offset, identity: text, highest: 0, accepted: new Map<number, Acceptance>() }
        if (this.producers.has(text)) throw new Violation(3, `producer ${text} was declared twice`)
        this.producers.set(text, producer)
        this.producersById.set(offset, producer)
      } else if (kind === FACT.ensure) {
        this.#ensure(queueId, JSON.parse(text) as Definition)
      } else if (queue === undefined) {
        throw new Violation(5, `a fact of kind ${kind} about queue ${queueId}, which there is not`)
      } else {
        this.#applyFact(queue, kind, offset, count, attempts, timeMs, text)
      }
    }
  }

  #ensure(id: number, definition: Definition): void {
    const queue = this.queues.get(id)
    if (queue !== undefined) queue.options = definition.options
    else {
      if (id <= this.lastQueueId)
        throw new Violation(5, `queue ${definition.name} has id ${id}; ${this.lastQueueId} was used`)
      this.lastQueueId = id
      this.queues.set(id, {
        id,
        ...definition,
        next: 0,
        redeliveredBelow: 0,
        purged: 0,
        live: new Map(),
        places: new Map(),
      })
    }
  }

  #applyFact(
    queue: LedgerQueue,
    kind: number,
    offset: number,
    count: number,
    attempts: number,
    timeMs: number,
    text: string,
  ): void {
    const message = queue.live.get(offset)
    switch (kind) {
      case FACT.ack:
        for (let i = offset; i < offset + count; i++) {
          // 6: what leaves was there.
          if (!queue.live.delete(i))
            throw new Violation(6, `offset ${i} of ${queue.name} is acknowledged and was gone`)
        }
        return
      case FACT.retry:
        if (message === undefined || message.dead !== undefined)
          throw new Violation(6, `offset ${offset} of ${queue.name} comes back and was gone or dead`)
        // 10: attempts never decrease.
        if (attempts !== message.attempts + 1)
          throw new Violation(
            10,
            `offset ${offset} of ${queue.name} had ${message.attempts} attempts and has ${attempts}`,
          )
        message.attempts = attempts
        message.dueMs = timeMs
        return
      case FACT.dead:
        if (message === undefined || message.dead !== undefined)
          throw new Violation(6, `offset ${offset} of ${queue.name} dies and was gone or dead`)
        if (attempts !== message.attempts + 1)
          throw new Violation(
            10,
            `offset ${offset} of ${queue.name} had ${message.attempts} attempts and dies with ${attempts}`,
          )
        message.dead = { attempts, death: count, timeMs, reason: text }
        message.attempts = 0
        message.dueMs = undefined
        return
      case FACT.purge: {
        let purged = 0
        for (const [at, { dead }] of queue.live) {
          if (at >= offset || dead !== undefined) continue
          queue.live.delete(at)
          purged++
        }
        if (purged !== count)
          throw new Violation(6, `a purge of ${queue.name} says ${count} messages; there were ${purged}`)
        queue.purged += purged
        return
      }
      case FACT.delivered:
        queue.redeliveredBelow = Math.max(queue.redeliveredBelow, offset)
        return
      case FACT.delete:
        this.queues.delete(queue.id)
        return
      default:
        throw new Violation(5, `a fact of unknown kind ${kind}`)
    }
  }

  /** A copy that shares nothing that changes. */
  clone(): LedgerState {
    const copy = new LedgerState()
    copy.lsn = this.lsn
    copy.boot = this.boot
    copy.closed = this.closed
    copy.nextPosition = this.nextPosition
    copy.lastCrc = this.lastCrc
    copy.lastQueueId = this.lastQueueId
    copy.pages = this.pages
    copy.directories = this.directories
    copy.relocated = this.relocated
    for (const queue of this.queues.values()) {
      copy.queues.set(queue.id, {
        ...queue,
        live: new Map([...queue.live].map(([offset, message]) => [offset, { ...message }])),
        places: new Map([...queue.places].map(([base, positions]) => [base, [...positions]])),
      })
    }
    for (const producer of this.producers.values()) {
      const copied = { ...producer, accepted: new Map(producer.accepted) }
      copy.producers.set(producer.identity, copied)
      copy.producersById.set(producer.id, copied)
    }
    return copy
  }
}

export class Ledger {
  durable = new LedgerState()
  written = new LedgerState()
  /** The entry that is being written. */
  #underWay: { readonly entry: Uint8Array; readonly position: number } | undefined

  begin(entry: Uint8Array, position: number): void {
    if (this.#underWay !== undefined) throw new Violation(5, 'two entries are under way')
    const kept = { entry: new Uint8Array(entry), position }
    this.written.apply(kept.entry, position)
    this.#underWay = kept
  }

  /** The append of the entry that was begun last has resolved. */
  finish(): void {
    const { entry, position } = this.#underWay!
    this.#underWay = undefined
    this.durable.apply(entry, position)
  }

  /**
   * The log was opened and ends with entry `lsn`.
   * @throws Violation R5 when that is neither the last durable one nor the one under way
   */
  recovered(lsn: number): void {
    this.allows(lsn)
    if (lsn === this.written.lsn && this.#underWay !== undefined) this.finish()
    else if (this.#underWay !== undefined) {
      this.#underWay = undefined
      this.written = this.durable.clone()
    }
  }

  /** The state that a log which ends with entry `lsn` must have. */
  allows(lsn: number): LedgerState {
    if (lsn < this.durable.lsn)
      throw new Violation(1, `the log ends with entry ${lsn}; entry ${this.durable.lsn} was durable`)
    if (lsn > this.written.lsn)
      throw new Violation(18, `the log ends with entry ${lsn}; only ${this.written.lsn} were written`)
    return lsn === this.durable.lsn ? this.durable : this.written
  }
}
