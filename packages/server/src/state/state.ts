/**
 * The durable state of the broker: all queues, producers and definitions, and the use of the log by segment. It is derived from the
 * log alone.
 *
 * Service and recovery change a queue with the same methods of `Contents`, one for each kind of fact (invariant 17). In
 * service a `Queue` decides, adds the fact to its buffer, and calls the method; the writer puts the buffer into the
 * open entry. In recovery `Replay` reads the fact and calls the same method.
 */
import { SluiceError, isGroupName, type Kind, type QueueOptions } from '@sluice/protocol'
import { entryLimits, type EntryLimits } from '../log/entry-limits.js'
import type { Log } from '../log/log.js'
import {
  Arrivals,
  CHUNK_MESSAGES,
  NOT_WRITTEN,
  PAGE,
  Queue,
  Reasons,
  SharedOptions,
  pagesOnly,
  type LogUse,
  type QueueDefinition,
  type QueueObserver,
  type Seed,
} from '../queue/index.js'
import { Definitions, NO_OWNER } from './definitions.js'
import { NameCache } from './name-cache.js'
import { type PageEntry } from './page-node.js'
import { PageTree } from './page-tree.js'
import { Producer } from './producers.js'
import { Segments } from './segments.js'

export class State {
  readonly queues = new Map<string, Queue>()
  readonly queuesById = new Map<number, Queue>()
  readonly names = new NameCache(this.queues)
  readonly options = new SharedOptions()
  readonly producers = new Map<string, Producer>()
  readonly producersById = new Map<number, Producer>()
  /** The pages of all queues, producers and definitions. */
  readonly tree = new PageTree()
  readonly definitions = new Definitions(this.tree)
  readonly segments: Segments
  readonly #arrivals = new Arrivals()
  readonly #reasons = new Reasons()
  readonly #groupUse: LogUse
  /** Groups whose streams recovery has not restored yet. */
  readonly #unjoined = new Set<Queue>()
  nextQueueId = 1
  nextProducerId = 1
  /** Position at which the last run without an orderly stop ended; 0 if there was none. */
  crashedAt = 0
  /** Number of times that the broker has started on this log. */
  boot = 0
  /** Seed of the hashes of ids and keys. The first boot of the log draws it, and all later boots keep it. */
  seed: Seed = []
  /** Whether the log ends with the mark of an orderly stop. */
  closed = true
  /** Newest time in the log. A later batch with an earlier time would be delivered before older messages. */
  newestMs = 0

  readonly limits: EntryLimits
  #queueObserver: QueueObserver | undefined

  constructor({ segmentBytes, entryBytesMax }: Pick<Log, 'segmentBytes' | 'entryBytesMax'>) {
    this.limits = entryLimits(entryBytesMax)
    this.segments = new Segments(segmentBytes, this.tree)
    this.#groupUse = pagesOnly(this.segments)
  }

  /** Maximum number of pages of the next checkpoint: arrivals that are only counted can add one chunk to each queue. */
  get pages(): number {
    return this.tree.count + this.queues.size
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue {
    const queue = this.queues.get(name)
    if (queue === undefined) throw queueNotFound(name)
    return queue
  }

  /**
   * The queue with this name, which can be consumed. A stream cannot: it has no line.
   * @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND
   */
  consumable(name: string): Queue {
    const queue = this.queue(name)
    if (queue.stream !== undefined) throw wrongKind(queue, 'queue')
    return queue
  }

  /** Whether the queue exists. A deleted queue does not exist, even if there is another queue with its name. */
  has(queue: Queue): boolean {
    return this.queuesById.get(queue.id) === queue
  }

  /** `hasPages` means that the pages of the queue's definition and counters are in the tree. */
  addQueue(id: number, definition: QueueDefinition, hasPages = false): Queue {
    const use = definition.group === undefined ? this.segments : this.#groupUse
    const queue = new Queue(id, definition, use, this.#arrivals, this.#reasons)
    queue.observer = this.#queueObserver
    this.queues.set(queue.name, queue)
    this.queuesById.set(id, queue)
    if (definition.group !== undefined || definition.stream !== undefined) this.#join(queue)
    if (id >= this.nextQueueId) this.nextQueueId = id + 1
    if (!hasPages) {
      this.tree.created()
      this.tree.created()
    }
    return queue
  }

  // Connects a group with its stream. Recovery can restore the definition of a group before that of its stream.
  #join(queue: Queue): void {
    const { group, id } = queue
    if (group === undefined) {
      for (const waiting of this.#unjoined) {
        if (waiting.group!.streamId !== id) continue
        waiting.join(queue)
        this.#unjoined.delete(waiting)
      }
      return
    }
    const stream = this.queuesById.get(group.streamId)
    if (stream === undefined) this.#unjoined.add(queue)
    else queue.join(stream)
  }

  /** Called after recovery. Every queue reports to `observer`, including queues that are created later. */
  observe(observer: QueueObserver): void {
    this.#queueObserver = observer
    for (const queue of this.queues.values()) queue.observer = observer
  }

  removeQueue(queue: Queue): void {
    queue.part()
    this.#unjoined.delete(queue)
    queue.drop()
    this.definitions.ownerRemoved(queue.id)
    this.tree.removed(PAGE.definition, queue.id, 0)
    this.tree.removed(PAGE.counters, queue.id, 0)
    this.queues.delete(queue.name)
    this.names.forget(queue)
    this.queuesById.delete(queue.id)
  }

  newProducer(id: number, identity: string): Producer {
    return new Producer(id, identity, this.limits)
  }

  /**
   * A producer with id 0 has not published yet and is not in the log. `hasPage` means that the page of the producer is
   * in the tree.
   */
  addProducer(producer: Producer, hasPage = false): void {
    this.producers.set(producer.identity, producer)
    if (producer.id === 0) return
    this.producersById.set(producer.id, producer)
    if (!hasPage) this.tree.created()
    if (producer.id >= this.nextProducerId) this.nextProducerId = producer.id + 1
  }

  /** Gives the producer its id in the log. Called with its first batch. */
  declareProducer(producer: Producer): void {
    producer.id = this.nextProducerId
    this.addProducer(producer)
  }

  /** Moves the producer to the end of the list, which is in the order of last use. */
  used(producer: Producer): void {
    this.producers.delete(producer.identity)
    this.producers.set(producer.identity, producer)
  }

  removeProducer(producer: Producer): void {
    this.producers.delete(producer.identity)
    if (this.producersById.delete(producer.id)) this.tree.removed(PAGE.producer, producer.id, 0)
  }

  /**
   * Like `auditUse`; also checks that the next checkpoint will look at each changed chunk. No checkpoint may be running.
   */
  audit(): void {
    for (const queue of this.queues.values())
      for (const chunk of queue.heldChunks())
        if (chunk.dirty && !queue.dirty)
          throw new Error(`Chunk ${chunk.base} of the queue ${queue.name} is dirty, but the queue is not.`)
    this.auditUse()
  }

  /**
   * Recounts live batches and pages and compares the results with the counters (invariant 6). It looks at batches, not at
   * messages. @throws Error with the difference
   */
  auditUse(): void {
    this.segments.audit(this.queues.values())
    this.tree.audit()
    this.definitions.audit()
    for (const { id, owner } of this.definitions)
      if (owner !== NO_OWNER && !this.queuesById.has(owner))
        throw new Error(`The definition ${id} belongs to the queue ${owner}, which does not exist.`)
    let count = this.queues.size * 2 + this.producersById.size + this.definitions.size
    for (const queue of this.queues.values()) {
      const [from, end] = queue.rememberedIds?.pageNumbers ?? [0, 0]
      count += end - from
      const { chunks } = queue
      count += chunks.coldCount + [...queue.heldChunks()].length
      for (const number of chunks.retention?.numbers ?? []) if (chunks.retention!.isCold(number)) count++
      chunks.retention?.audit()
    }
    if (count !== this.tree.count)
      throw new Error(`There are ${count} pages, but the counter is ${this.tree.count}.`)
    for (const page of this.tree) {
      if (!this.#owns(page))
        throw new Error(`The tree lists a page of kind ${page.kind} at ${page.position} that no owner has.`)
    }
  }

  #owns({ kind, id, number, position }: PageEntry): boolean {
    if (kind === PAGE.producer) return this.producersById.get(id)?.pagePosition === position
    if (kind === PAGE.defined) return this.definitions.get(id)?.pagePosition === position
    const queue = this.queuesById.get(id)
    if (queue === undefined) return false
    if (kind === PAGE.chunk) {
      const offset = number * CHUNK_MESSAGES
      return queue.isCold(offset) || queue.heldChunk(offset)?.pagePosition === position
    }
    if (kind === PAGE.counters) return queue.pagePosition === position
    // A definition that has changed since has no position any more.
    if (kind === PAGE.definition) return [position, NOT_WRITTEN].includes(queue.definitionPosition)
    const [from, end] = queue.rememberedIds?.pageNumbers ?? [0, 0]
    return number >= from && number < end
  }

  /**
   * Called after an unclean stop, for the run whose log ends at `position`: marks every message as possibly delivered,
   * because the log does not record deliveries. This makes no queue dirty, because recovery marks the messages of each
   * page before `crashedAt` again. Otherwise the next checkpoint would write a page for every queue.
   */
  crashed(position: number): void {
    this.crashedAt = position
    for (const queue of this.queues.values()) queue.redeliveredBelow = queue.next
  }
}

/** Attribute of a boot batch: the previous run ended with an orderly stop. */
export const BOOT_AFTER_CLOSE = 4

/** Whether every option has the same value. */
export function sameOptions(a: QueueOptions, b: QueueOptions): boolean {
  return Object.entries(a).every(([name, value]) => b[name as keyof QueueOptions] === value)
}

export function kindOfQueue({ stream, group }: Queue): Kind {
  return stream !== undefined ? 'stream' : group !== undefined ? 'group' : 'queue'
}

/** The refusal of a call for another kind than that of `queue`. */
export function wrongKind(queue: Queue, wanted: Kind): SluiceError {
  const kind = kindOfQueue(queue)
  const hint = kind === 'stream' && wanted === 'queue' ? '. Read it, or consume it through a group.' : '.'
  return new SluiceError('WRONG_KIND', `${queue.name} is a ${kind}, not a ${wanted}${hint}`)
}

/** The refusal of a publish to a group. */
export function groupRefuses({ name, source }: Queue): SluiceError {
  return new SluiceError('WRONG_KIND', `${name} is a group: publish to its stream ${source!.name}.`)
}

export function queueNotFound(name: string): SluiceError {
  const kind = isGroupName(name) ? 'group' : 'queue'
  return new SluiceError('QUEUE_NOT_FOUND', `There is no ${kind} ${JSON.stringify(name)}.`)
}
