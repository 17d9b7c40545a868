/**
 * The durable state of the broker: queues and producers, and how each batch of the log changes them. The same code
 * runs in service and in recovery, so replaying a log gives the state that wrote it (invariant 17).
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  readBatchHeader,
  readU32,
  readU64,
  writeU32,
  writeU64,
  type QueueOptions,
} from '@sluice/protocol'
import {
  FACT,
  Queue,
  decodeChunkPage,
  decodeQueuePage,
  readFacts,
  type Death,
  type Fact,
  type QueueDefinition,
} from '../queue/index.js'
import { Producer } from './producers.js'
import { Segments } from './segments.js'
import { readTraits } from './traits.js'

/** Kinds of state pages; a page batch has the kind as its count and the queue's or producer's id. */
export const PAGE = { queue: 1, chunk: 2, producer: 3 } as const

/** Where the newest copy of one page stands. */
export interface PageAt {
  readonly kind: number
  readonly id: number
  readonly position: number
}

export interface Directory {
  /** Facts from here on are not, or not all, in the pages. */
  readonly replayFrom: number
  readonly boot: number
  readonly nextQueueId: number
  readonly nextProducerId: number
  readonly pages: readonly PageAt[]
}

export class State {
  readonly queues = new Map<string, Queue>()
  readonly queuesById = new Map<number, Queue>()
  readonly producers = new Map<string, Producer>()
  readonly producersById = new Map<number, Producer>()
  readonly segments: Segments
  nextQueueId = 1
  nextProducerId = 1
  /** Ids below these that the directory does not list belong to what was gone when it was written. */
  #listedQueueIds = 0
  #listedProducerIds = 0
  /** How often the broker has started on this log. */
  boot = 0
  /** The log ends with the mark of an orderly stop. */
  closed = true

  constructor(segmentBytes: number) {
    this.segments = new Segments(segmentBytes)
  }

  addQueue(id: number, definition: QueueDefinition): Queue {
    const queue = new Queue(id, definition.name, definition.options, definition.createdAtMs, this.segments)
    this.queues.set(queue.name, queue)
    this.queuesById.set(id, queue)
    if (id >= this.nextQueueId) this.nextQueueId = id + 1
    return queue
  }

  removeQueue(queue: Queue): void {
    queue.drop()
    this.queues.delete(queue.name)
    this.queuesById.delete(queue.id)
  }

  /** A producer with id 0 has not published yet: the log does not know it. */
  addProducer(producer: Producer): void {
    this.producers.set(producer.identity, producer)
    if (producer.id === 0) return
    this.producersById.set(producer.id, producer)
    if (producer.id >= this.nextProducerId) this.nextProducerId = producer.id + 1
  }

  declareProducer(producer: Producer): void {
    producer.id = this.nextProducerId
    this.addProducer(producer)
  }

  removeProducer(producer: Producer): void {
    this.producers.delete(producer.identity)
    this.producersById.delete(producer.id)
  }

  /** Begins recovery from a directory; `restorePage` follows for each of its pages. */
  restoreDirectory(directory: Directory): void {
    this.boot = directory.boot
    this.nextQueueId = directory.nextQueueId
    this.nextProducerId = directory.nextProducerId
    this.#listedQueueIds = directory.nextQueueId
    this.#listedProducerIds = directory.nextProducerId
  }

  /** Puts in what a page at `position` holds. Queue pages come before the pages of their chunks. */
  restorePage(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const start = at + BATCH_HEADER_BYTES
    const end = at + header.length
    if (header.count === PAGE.queue) {
      const page = decodeQueuePage(bytes, start, end)
      const queue = this.addQueue(header.queueId, page)
      queue.next = page.next
      queue.redeliveredBelow = page.redeliveredBelow
      queue.purged = page.purged
      queue.expired = page.expired
      queue.redelivered = page.redelivered
      queue.dirty = false
      queue.pagePosition = position
    } else if (header.count === PAGE.chunk) {
      const chunk = decodeChunkPage(bytes, start)
      chunk.pagePosition = position
      this.queuesById.get(header.queueId)?.restore(chunk)
    } else {
      const producer = Producer.decodePage(bytes, start)
      producer.pagePosition = position
      this.addProducer(producer)
    }
  }

  /** Recovery: applies the batch at `at`, which stands at `position` in the log. */
  apply(bytes: Uint8Array, at: number, position: number): void {
    const type = bytes[at + 4]!
    if (type === BATCH_TYPE.messages) this.#applyMessages(bytes, at, position)
    else if (type === BATCH_TYPE.facts) this.#applyFacts(bytes, at, position)
    else if (type === BATCH_TYPE.boot) this.#applyBoot(bytes, at)
    this.closed = type === BATCH_TYPE.close
  }

  #applyMessages(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const queue = this.queuesById.get(header.queueId)
    if ((header.attributes & BATCH_ATTRIBUTE.relocated) === 0) {
      const producer = this.producersById.get(header.producerId)
      if (
        producer !== undefined &&
        producer.pagePosition < position &&
        header.batchNumber >= producer.floor
      ) {
        producer.accept(header.batchNumber, header.baseOffset, header.recordsCrc)
        producer.lastUsedMs = header.timeMs
      }
    }
    if (queue === undefined) return
    queue.appliedFrom = position
    if (header.attributes & BATCH_ATTRIBUTE.relocated) {
      queue.relocateFact(header.baseOffset, header.count, position)
    } else {
      const { baseOffset, count, timeMs, length } = header
      const traits =
        header.attributes & BATCH_ATTRIBUTE.traits ? readTraits(bytes, at, count, timeMs) : undefined
      queue.append(baseOffset, count, position, timeMs, length - BATCH_HEADER_BYTES, traits)
    }
    queue.appliedFrom = Infinity
  }

  #applyFacts(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const id = header.queueId
    readFacts(bytes, at + BATCH_HEADER_BYTES, at + header.length, (fact) => {
      if (fact.kind === FACT.producer) {
        if (fact.offset >= this.#listedProducerIds) this.addProducer(new Producer(fact.offset, fact.text))
      } else if (fact.kind === FACT.ensure) {
        this.#applyEnsure(id, fact, position)
      } else {
        const queue = this.queuesById.get(id)
        if (queue !== undefined) this.#applyToQueue(queue, fact, position)
      }
    })
  }

  #applyEnsure(id: number, fact: Fact, position: number): void {
    const definition = JSON.parse(fact.text) as QueueDefinition
    const queue = this.queuesById.get(id)
    if (queue === undefined) {
      if (id >= this.#listedQueueIds) this.addQueue(id, definition)
    } else if (queue.pagePosition < position) {
      queue.options = definition.options
    }
  }

  #applyToQueue(queue: Queue, fact: Fact, position: number): void {
    queue.appliedFrom = position
    switch (fact.kind) {
      case FACT.ack:
        queue.remove(fact.offset, fact.count)
        break
      case FACT.retry:
        queue.retryFact(fact.offset, fact.attempts, fact.timeMs)
        break
      case FACT.dead:
        queue.deadFact(fact.offset, {
          attempts: fact.attempts,
          death: fact.count as Death,
          timeMs: fact.timeMs,
          reason: fact.text,
        })
        break
      case FACT.purge:
        queue.purgeFact(fact.offset)
        if (queue.pagePosition < position) queue.purged += fact.count
        break
      case FACT.expire:
        queue.remove(fact.offset, fact.count)
        if (queue.pagePosition < position) queue.expired += fact.count
        break
      case FACT.delivered:
        if (fact.offset > queue.redeliveredBelow) {
          queue.redeliveredBelow = fact.offset
          queue.dirty = true
        }
        break
      case FACT.delete:
        this.removeQueue(queue)
        break
      default:
        throw new Error(`fact of unknown kind ${fact.kind} at position ${position}`)
    }
    queue.appliedFrom = Infinity
  }

  // After an orderly stop the facts say what was delivered. After any other, everything may have been.
  #applyBoot(bytes: Uint8Array, at: number): void {
    const header = readBatchHeader(bytes, at)
    this.boot = header.count
    if (header.attributes === BOOT_AFTER_CLOSE) return
    this.markAllDelivered()
  }

  /** Any message may have been delivered before: nothing says what was. */
  markAllDelivered(): void {
    for (const queue of this.queues.values()) {
      if (queue.redeliveredBelow === queue.next) continue
      queue.redeliveredBelow = queue.next
      queue.dirty = true
    }
  }
}

/** Attribute of a boot batch: the log before it ended with an orderly stop. */
export const BOOT_AFTER_CLOSE = 4

/** What an option set says in the order of its table; for comparing. */
export function sameOptions(a: QueueOptions, b: QueueOptions): boolean {
  return Object.entries(a).every(([name, value]) => b[name as keyof QueueOptions] === value)
}

const DIRECTORY_HEAD_BYTES = 24
const PAGE_AT_BYTES = 16

/**
 * Layout: u64 replay from · u32 boot · u32 next queue id · u32 next producer id · u32 pages ·
 * of each page u32 id, u32 kind, u64 position.
 */
export function encodeDirectory(directory: Directory): Uint8Array {
  const bytes = new Uint8Array(DIRECTORY_HEAD_BYTES + directory.pages.length * PAGE_AT_BYTES)
  writeU64(bytes, 0, directory.replayFrom)
  writeU32(bytes, 8, directory.boot)
  writeU32(bytes, 12, directory.nextQueueId)
  writeU32(bytes, 16, directory.nextProducerId)
  writeU32(bytes, 20, directory.pages.length)
  let at = DIRECTORY_HEAD_BYTES
  for (const page of directory.pages) {
    writeU32(bytes, at, page.id)
    writeU32(bytes, at + 4, page.kind)
    writeU64(bytes, at + 8, page.position)
    at += PAGE_AT_BYTES
  }
  return bytes
}

export function decodeDirectory(bytes: Uint8Array, start: number): Directory {
  const pages: PageAt[] = []
  const count = readU32(bytes, start + 20)
  let at = start + DIRECTORY_HEAD_BYTES
  for (let i = 0; i < count; i++, at += PAGE_AT_BYTES) {
    pages.push({ id: readU32(bytes, at), kind: readU32(bytes, at + 4), position: readU64(bytes, at + 8) })
  }
  return {
    replayFrom: readU64(bytes, start),
    boot: readU32(bytes, start + 8),
    nextQueueId: readU32(bytes, start + 12),
    nextProducerId: readU32(bytes, start + 16),
    pages,
  }
}
