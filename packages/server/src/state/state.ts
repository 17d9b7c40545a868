/**
 * The durable state of the broker: queues and producers, and how each batch of the log changes them. The same code
 * runs in service and in recovery, so replaying a log gives the state that wrote it (invariant 17).
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  batchTimeMs,
  batchType,
  SluiceError,
  readBatchHeader,
  type Duplicates,
  type Placed,
  type QueueCounter,
  type QueueOptions,
} from '@sluice/protocol'
import {
  Arrivals,
  FACT,
  MOVING,
  Queue,
  Reasons,
  decodeChunkPage,
  decodeQueuePage,
  readFacts,
  type Death,
  type Fact,
  type QueueDefinition,
  type QueueObserver,
} from '../queue/index.js'
import { PAGE, type Directory } from './directory.js'
import { NameCache } from './name-cache.js'
import { Producer } from './producers.js'
import { Segments } from './segments.js'
import { readTraits } from './traits.js'

export class State {
  readonly queues = new Map<string, Queue>()
  readonly queuesById = new Map<number, Queue>()
  readonly names = new NameCache(this.queues)
  readonly producers = new Map<string, Producer>()
  readonly producersById = new Map<number, Producer>()
  readonly segments: Segments
  readonly #arrivals = new Arrivals()
  readonly #reasons = new Reasons()
  nextQueueId = 1
  nextProducerId = 1
  /** Ids below these that the directory does not list belong to what was gone when it was written. */
  #listedQueueIds = 0
  #listedProducerIds = 0
  /** What facts have said about the batch that follows them. */
  #ahead: Ahead | undefined
  /** Duplicates of batches that belong to an atomic step whose own fact is still to come, by queue and base offset. */
  readonly #stepDuplicates = new Map<string, Duplicates>()
  /** How often the broker has started on this log. */
  boot = 0
  /** The log ends with the mark of an orderly stop. */
  closed = true
  /** The newest time in the log: what is written next must not be older, or it would stand in line before it. */
  newestMs = 0

  /** What the results of one producer may take in its page. */
  readonly #producerPageBytes: number
  #queueObserver: QueueObserver | undefined

  constructor(segmentBytes: number) {
    this.#producerPageBytes = segmentBytes / 4
    this.segments = new Segments(segmentBytes)
  }

  /** Pages that a directory may have to list: a queue whose messages have arrived gets another one with the next chunk. */
  get pages(): number {
    return this.segments.pages.count + this.queues.size
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue {
    const queue = this.queues.get(name)
    if (queue === undefined)
      throw new SluiceError('QUEUE_NOT_FOUND', `There is no queue ${JSON.stringify(name)}.`)
    return queue
  }

  addQueue(id: number, definition: QueueDefinition): Queue {
    const queue = new Queue(id, definition, this.segments, this.#arrivals, this.#reasons)
    queue.observer = this.#queueObserver
    this.queues.set(queue.name, queue)
    this.queuesById.set(id, queue)
    if (id >= this.nextQueueId) this.nextQueueId = id + 1
    this.segments.pages.count++
    return queue
  }

  /** Recovery is over: each queue reports to `observer`, those that come later too. */
  observe(observer: QueueObserver): void {
    this.#queueObserver = observer
    for (const queue of this.queues.values()) queue.observer = observer
  }

  removeQueue(queue: Queue): void {
    queue.drop()
    this.segments.pages.gone(queue.pageBytes)
    this.segments.forgetQueue(queue.id)
    this.queues.delete(queue.name)
    this.names.forget(queue)
    this.queuesById.delete(queue.id)
  }

  newProducer(id: number, identity: string): Producer {
    return new Producer(id, identity, this.#producerPageBytes)
  }

  /** A producer with id 0 has not published yet: the log does not know it. */
  addProducer(producer: Producer): void {
    this.producers.set(producer.identity, producer)
    if (producer.id === 0) return
    this.producersById.set(producer.id, producer)
    this.segments.pages.count++
    this.segments.pages.written(0, producer.pageBytes)
    if (producer.id >= this.nextProducerId) this.nextProducerId = producer.id + 1
  }

  declareProducer(producer: Producer): void {
    producer.id = this.nextProducerId
    this.addProducer(producer)
  }

  removeProducer(producer: Producer): void {
    this.producers.delete(producer.identity)
    if (this.producersById.delete(producer.id)) this.segments.pages.gone(producer.pageBytes)
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
      queue.former.restoreEnded(page.ended ?? [])
      queue.carried = page.carried
      Object.assign(queue.counts, page.counts)
      queue.tallied.released = page.counts.released
      queue.tallied.redelivered = page.counts.redelivered
      this.segments.restoreRetained(queue.id, page.retained)
      queue.dirty = false
      queue.pagePosition = position
      queue.pageBytes = header.length
      this.segments.pages.written(0, header.length)
    } else if (header.count === PAGE.chunk) {
      const queue = this.queuesById.get(header.queueId)
      if (queue === undefined) return
      const chunk = decodeChunkPage(bytes, start, queue.keys)
      chunk.pagePosition = position
      chunk.pageBytes = header.length
      queue.restore(chunk)
    } else if (header.count === PAGE.ids) {
      this.queuesById.get(header.queueId)?.ids.restorePage(bytes, start, end, position, header.length)
    } else {
      const producer = Producer.decodePage(bytes, start, end, this.#producerPageBytes)
      producer.pagePosition = position
      producer.pageBytes = header.length
      this.addProducer(producer)
    }
  }

  /** All pages have been put in. */
  pagesRestored(): void {
    for (const queue of this.queues.values()) {
      queue.ids.restored()
      // Their pages can be older than the queue's.
      queue.ids.forgetBelow(queue.idsFrom)
    }
  }

  /** Recovery: applies the batch at `at`, which stands at `position` in the log. */
  apply(bytes: Uint8Array, at: number, position: number): void {
    const type = batchType(bytes, at)
    // The time of its header, which batches of every kind have.
    this.newestMs = Math.max(this.newestMs, batchTimeMs(bytes, at))
    if (type === BATCH_TYPE.messages) this.#applyMessages(bytes, at, position)
    else if (type === BATCH_TYPE.facts) this.#applyFacts(bytes, at, position)
    else if (type === BATCH_TYPE.boot) this.#applyBoot(bytes, at, position)
    this.closed = type === BATCH_TYPE.close
  }

  #applyMessages(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const queue = this.queuesById.get(header.queueId)
    const ahead = this.#ahead
    this.#ahead = undefined
    const relocated = (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0
    const duplicates = relocated ? undefined : byIndex(ahead?.duplicates, header.baseOffset)
    const told = relocated
      ? undefined
      : toldDuplicates(duplicates, replacingIn(ahead, header.baseOffset), header.baseOffset)
    if (told !== undefined && header.producerId === 0)
      this.#stepDuplicates.set(`${header.queueId}:${header.baseOffset}`, told)
    if (!relocated) {
      const producer = this.producersById.get(header.producerId)
      if (
        producer !== undefined &&
        producer.pagePosition < position &&
        header.batchNumber >= producer.floor
      ) {
        producer.accept(header.batchNumber, header.baseOffset, header.recordsCrc, told)
        producer.lastUsedMs = header.timeMs
      }
    }
    if (queue === undefined) return
    queue.appliedFrom = position
    if (relocated) {
      queue.relocateFact(header.baseOffset, header.count, position)
    } else {
      const { baseOffset, count, timeMs, length } = header
      const rules = { ...queue.traitRules, ttlMs: ahead?.ttlMs ?? 0 }
      const traits =
        header.attributes & BATCH_ATTRIBUTE.traits ? readTraits(bytes, at, count, timeMs, rules) : undefined
      queue.appendFact(baseOffset, count, position, timeMs, length - BATCH_HEADER_BYTES, traits, duplicates)
      if (duplicates !== undefined && queue.pagePosition < position)
        queue.counts.duplicates += duplicates.size
    }
    queue.appliedFrom = Infinity
  }

  #applyFacts(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const id = header.queueId
    readFacts(bytes, at + BATCH_HEADER_BYTES, at + header.length, (fact) => {
      if (fact.kind === FACT.producer) {
        // One that came while the checkpoint was under way can have its page in it already.
        if (fact.offset >= this.#listedProducerIds && !this.producersById.has(fact.offset))
          this.addProducer(this.newProducer(fact.offset, fact.text))
      } else if (fact.kind === FACT.atomic) {
        const places = this.#placesOf(fact.text)
        this.#stepDuplicates.clear()
        const producer = this.producersById.get(fact.offset)
        if (producer === undefined || producer.pagePosition >= position || fact.timeMs < producer.floor)
          return
        producer.answer(fact.timeMs, fact.count, places)
        producer.lastUsedMs = header.timeMs
      } else if (fact.kind === FACT.ensure) {
        this.#applyEnsure(id, fact, position)
      } else {
        const queue = this.queuesById.get(id)
        if (queue !== undefined) this.#applyToQueue(queue, fact, position, header.timeMs)
      }
    })
  }

  #aheadOf(): Ahead {
    return (this.#ahead ??= { ttlMs: 0, duplicates: new Map(), replacing: new Set() })
  }

  // Queue ids and base offsets of an atomic step's batches. Their duplicates were told with the batches.
  #placesOf(text: string): Placed[] {
    return (JSON.parse(text) as [number, number][]).map(([queueId, baseOffset]) => ({
      baseOffset,
      duplicates: this.#stepDuplicates.get(`${queueId}:${baseOffset}`),
    }))
  }

  #applyEnsure(id: number, fact: Fact, position: number): void {
    const definition = JSON.parse(fact.text) as QueueDefinition
    const queue = this.queuesById.get(id)
    if (queue === undefined) {
      if (id >= this.#listedQueueIds) this.addQueue(id, definition)
    } else if (queue.pagePosition < position) {
      queue.redefine(definition)
    }
  }

  #applyToQueue(queue: Queue, fact: Fact, position: number, timeMs: number): void {
    const { offset, count } = fact
    queue.appliedFrom = position
    switch (fact.kind) {
      case FACT.ack:
      case FACT.expire:
      case FACT.drop:
      case FACT.cancel:
      case FACT.discard:
      case FACT.move:
      case FACT.carry:
        queue.remove(offset, count, timeMs)
        break
      case FACT.retry:
        queue.retryFact(offset, fact.attempts, fact.timeMs)
        break
      case FACT.dead:
        queue.deadFact(offset, {
          attempts: fact.attempts,
          death: (fact.death & ~MOVING) as Death,
          timeMs: fact.timeMs,
          reason: fact.text,
          isMoving: (fact.death & MOVING) !== 0,
        })
        break
      case FACT.redrive:
        queue.redriveFact(offset, count, fact.timeMs)
        break
      case FACT.reschedule:
        queue.rescheduleFact(offset, fact.timeMs)
        break
      case FACT.duplicate:
        this.#aheadOf().duplicates.set(offset, fact.timeMs)
        break
      case FACT.replace:
        this.#aheadOf().replacing.add(offset)
        break
      case FACT.ttl:
        this.#aheadOf().ttlMs = fact.timeMs
        break
      case FACT.purge:
        queue.purgeFact(offset, timeMs)
        break
      case FACT.delivered:
        if (offset > queue.redeliveredBelow) {
          queue.redeliveredBelow = offset
          queue.dirty = true
        }
        break
      case FACT.tally:
        if (queue.pagePosition < position) queue.tallyFact(offset, fact.timeMs)
        break
      case FACT.hand:
        break
      case FACT.ended:
        if (queue.pagePosition < position && queue.former.end(offset)) queue.dirty = true
        break
      case FACT.delete:
        this.removeQueue(queue)
        break
      default:
        throw new Error(`fact of unknown kind ${fact.kind} at position ${position}`)
    }
    queue.appliedFrom = Infinity
    if (queue.pagePosition < position) countFact(queue, fact)
  }

  /** Counts live batches and pages anew and compares (invariant 6). @throws Error naming what differs */
  audit(): void {
    const { segments } = this
    segments.audit(this.queues.values())
    let count = this.queues.size + this.producersById.size
    let bytes = 0
    for (const queue of this.queues.values()) {
      count += queue.ids.pageCount
      bytes += queue.pageBytes
      for (const chunk of queue.chunks) {
        count++
        bytes += chunk.pageBytes
      }
      for (const page of queue.ids.pagesAt()) bytes += page.bytes
    }
    for (const producer of this.producersById.values()) bytes += producer.pageBytes
    if (count !== segments.pages.count || bytes !== segments.pages.bytes)
      throw new Error(
        `${segments.pages.count} pages of ${segments.pages.bytes} bytes are said to be there, counted ${count} of ${bytes}`,
      )
  }

  // After an orderly stop the facts say what was delivered. After any other, everything may have been.
  #applyBoot(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    this.boot = header.count
    for (const queue of this.queues.values()) if (queue.pagePosition < position) queue.former.bootBegan()
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

interface Ahead {
  ttlMs: number
  /** By their offset. */
  readonly duplicates: Map<number, number>
  /** Offsets of messages that took the place of others. */
  readonly replacing: Set<number>
}

function byIndex(
  duplicates: ReadonlyMap<number, number> | undefined,
  base: number,
): Map<number, number> | undefined {
  if (duplicates === undefined || duplicates.size === 0) return undefined
  return new Map([...duplicates].map(([offset, first]) => [offset - base, first]))
}

function replacingIn(ahead: Ahead | undefined, base: number): number[] {
  return ahead === undefined ? [] : [...ahead.replacing].map((offset) => offset - base)
}

/** What a producer is told: of a message that took the place of another, its own offset. */
export function toldDuplicates(
  duplicates: ReadonlyMap<number, number> | undefined,
  replacing: Iterable<number>,
  base: number,
): ReadonlyMap<number, number> | undefined {
  let told: Map<number, number> | undefined
  for (const index of replacing) (told ??= new Map(duplicates)).set(index, base + index)
  return told === undefined ? duplicates : new Map([...told].toSorted(([a], [b]) => a - b))
}

/** Which counter a fact raises. */
const COUNTED: Readonly<Record<number, QueueCounter>> = {
  [FACT.purge]: 'purged',
  [FACT.expire]: 'expired',
  [FACT.drop]: 'dropped',
  [FACT.cancel]: 'cancelled',
  [FACT.discard]: 'discarded',
  [FACT.move]: 'moved',
  [FACT.carry]: 'redriven',
  [FACT.redrive]: 'redriven',
}

function countFact(queue: Queue, fact: Fact): void {
  const counter = COUNTED[fact.kind]
  if (counter === undefined) return
  queue.counts[counter] += fact.kind === FACT.redrive ? 1 : fact.count
  queue.dirty = true
  if (fact.kind === FACT.carry) queue.carried += fact.count
}
