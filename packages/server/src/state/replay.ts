/**
 * How recovery fills the state: it restores the pages of a checkpoint, then applies every later batch of the log, with
 * the methods that queues also use in service. `recover` creates a `Replay` and drops it before the broker serves.
 *
 * Invariant 17: a batch can be applied to a state that already contains it. Pages are written while the broker serves,
 * so a page can be newer than a fact that is replayed; a change is skipped if the page that contains it has a later
 * position.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  batchCount,
  batchLength,
  batchQueueId,
  batchTimeMs,
  batchType,
  readBatchHeader,
  type BatchHeader,
  type Duplicates,
  type Placed,
  type QueueCounter,
} from '@sluice/protocol'
import {
  FACT,
  countedRows,
  MOVING,
  RETAINED,
  SKIPPED,
  CHUNK_MESSAGES,
  NOT_WRITTEN,
  PAGE,
  chunkEndAfter,
  decodeChunkPage,
  decodeDefinition,
  decodeDefinitionPage,
  keysIn,
  wordsIn,
  readFacts,
  readSeed,
  restoreCounters,
  sharesOf,
  type Death,
  type Fact,
  type Queue,
  type Refer,
  type Share,
  type PageKind,
} from '../queue/index.js'
import { NO_OWNER, type DefinitionKind } from './definitions.js'
import type { Directory } from './directory.js'
import type { PageEntry } from './page-node.js'
import { Producer, answeredDuplicates } from './producers.js'
import { SharedRecords, byQueue, countOf, isSharedBatch, refersIn } from './shared-batches.js'
import { BOOT_AFTER_CLOSE, type State } from './state.js'
import { readTraits } from './traits.js'

export class Replay {
  /**
   * Chunks at the head of a queue are read into memory even if they could be cold, until they hold as many ready messages
   * as this number of full chunks: as many as one consumer can have unsettled. So leases can be claimed after a restart.
   * Tests set another number.
   */
  static headChunks = 64
  readonly #state: State
  /**
   * Queue ids below this belong to queues that the directory lists, or that were gone when the directory was written.
   */
  #listedQueueIds = 0
  /**
   * Producer ids below this belong to producers that the directory lists, or that were gone when the directory was
   * written.
   */
  #listedProducerIds = 0
  /**
   * Definition ids below this belong to definitions that the directory lists, or that were gone when the directory was
   * written.
   */
  #listedDefinitionIds = 0
  /** Facts about the batch that follows them, by queue. */
  readonly #preceding = new Map<number, PrecedingFacts>()
  /** The `refer` facts of the shared batch that follows them. */
  #refers: readonly Refer[] = []
  /** Duplicates in the batches of an atomic step, by queue and base offset; kept until the step's own fact is read. */
  readonly #stepDuplicates = new Map<string, Duplicates>()

  /** Number of cold chunks. */
  #cold = 0
  /** The queue of the last chunk page, and the number of its first chunk. */
  #headOf = { queueId: 0, number: 0 }

  constructor(state: State) {
    this.#state = state
  }

  /** Called first when there is a directory; `restorePage` follows for each of its pages. */
  restoreDirectory(directory: Directory): void {
    this.#state.boot = directory.boot
    this.#state.seed = directory.seed
    this.#state.crashedAt = directory.crashedAt
    this.#state.nextQueueId = directory.nextQueueId
    this.#state.nextProducerId = directory.nextProducerId
    this.#listedQueueIds = directory.nextQueueId
    this.#listedProducerIds = directory.nextProducerId
    this.#state.definitions.nextId = directory.nextDefinitionId
    this.#listedDefinitionIds = directory.nextDefinitionId
    this.#state.tree.restore(directory.root)
  }

  /**
   * Restores the page at `position`. Pages must be restored in ascending order of kind (the numbers in `PAGE`), except
   * the pages of cold chunks, which can be restored later.
   */
  restorePage(bytes: Uint8Array, at: number, position: number): void {
    const kind = batchCount(bytes, at)
    const id = batchQueueId(bytes, at)
    const start = at + BATCH_HEADER_BYTES
    const end = at + batchLength(bytes, at)
    if (kind === PAGE.definition) {
      const definition = decodeDefinitionPage(bytes, start, end, this.#state.options)
      const queue = this.#state.addQueue(id, definition, true)
      queue.definitionPosition = position
      queue.dirty = false
    } else if (kind === PAGE.counters) {
      const queue = this.#state.queuesById.get(id)
      if (queue === undefined) return
      restoreCounters(queue, bytes, start)
      queue.pagePosition = position
    } else if (kind === PAGE.chunk) {
      const queue = this.#state.queuesById.get(id)
      if (queue === undefined) return
      const chunk = decodeChunkPage(bytes, start, queue)
      chunk.pagePosition = position
      if (queue.isCold(chunk.base)) {
        queue.makeWarm(chunk)
        this.#cold--
      } else queue.restore(chunk)
    } else if (kind === PAGE.ids) {
      this.#state.queuesById.get(id)?.ids.restorePage(bytes, start, end, position)
    } else if (kind === PAGE.defined) {
      this.#state.definitions.restorePage(id, bytes, start, end, position)
    } else {
      const producer = Producer.decodePage(bytes, start, end, this.#state.limits)
      producer.pagePosition = position
      this.#state.addProducer(producer, true)
    }
  }

  /** Called after the last page. A queue that was deleted while the nodes were written can be listed without counters. */
  pagesRestored(): void {
    for (const queue of this.#state.queues.values())
      if (queue.pagePosition === NOT_WRITTEN) this.#state.tree.created()
  }

  /** Called after the last page of each kind. */
  restored(kind: PageKind): void {
    if (kind !== PAGE.counters && kind !== PAGE.ids) return
    // Which chunks can be cold depends on the ids that the queue remembers.
    for (const queue of this.#state.queues.values()) {
      if (queue.pagePosition < this.#state.crashedAt) queue.redeliveredBelow = queue.next
      queue.rememberedIds?.restored()
      // The pages of ids can be older than the queue's page.
      queue.rememberedIds?.forgetBelow(queue.idsFrom)
    }
  }

  /**
   * The pages of the cold chunks at the head of each queue, after all facts were applied. The chunks at the head hold as
   * many messages as one consumer can have unsettled.
   */
  coldHeads(): PageEntry[] {
    const pages: PageEntry[] = []
    for (const { id, chunks } of this.#state.queues.values()) {
      if (chunks.coldCount === 0) continue
      for (const number of chunks.coldHead(Replay.headChunks * CHUNK_MESSAGES))
        pages.push(this.#state.tree.find(PAGE.chunk, id, number)!)
    }
    return pages
  }

  get hasCold(): boolean {
    return this.#cold > 0
  }

  /**
   * Leaves a chunk out of memory if its page has a summary and the chunk is not near the head of its queue. Called for
   * the pages of chunks in the order of their offsets. Returns whether the page need not be read.
   */
  leavesCold({ kind, id, number, hasSummary }: PageEntry): boolean {
    if (kind !== PAGE.chunk) return false
    if (hasSummary && this.#state.tree.summary(id, number)!.retainedMs > 0) return this.#leaveCold(id, number)
    if (this.#headOf.queueId !== id) this.#headOf = { queueId: id, number }
    if (number < this.#headOf.number + Replay.headChunks) return false
    if (!hasSummary || this.#state.queuesById.get(id)?.mayBeCold(number) !== true) return false
    return this.#leaveCold(id, number)
  }

  #leaveCold(id: number, number: number): boolean {
    const queue = this.#state.queuesById.get(id)
    const summary = this.#state.tree.summary(id, number)
    if (queue === undefined || summary === undefined) return false
    queue.restoreCold(number, summary)
    this.#cold++
    return true
  }

  /**
   * The pages of the cold chunks that are changed by the batch at `bytes[at]`. Its position in the log is `position`.
   */
  coldIn(bytes: Uint8Array, at: number, position: number): PageEntry[] {
    const header = readBatchHeader(bytes, at)
    const { queuesById, tree } = this.#state
    const found = new Map<number, PageEntry>()
    const look = (queue: Queue | undefined, from: number, count: number): void => {
      for (let offset = from; offset < from + count; offset = chunkEndAfter(offset)) {
        if (queue?.isCold(offset) !== true) continue
        const page = tree.find(PAGE.chunk, queue.id, Math.floor(offset / CHUNK_MESSAGES))!
        if (page.position < position) found.set(page.position, page)
      }
    }
    const queue = queuesById.get(header.queueId)
    const type = batchType(bytes, at)
    if (type === BATCH_TYPE.messages) {
      if ((header.attributes & BATCH_ATTRIBUTE.relocated) === 0) return []
      look(queue, header.baseOffset, header.count)
      if (isSharedBatch(bytes, at))
        for (const { queueId, offset, count } of this.#refers) look(queuesById.get(queueId), offset, count)
    } else if (type === BATCH_TYPE.facts && queue !== undefined) {
      readFacts(bytes, at + BATCH_HEADER_BYTES, at + header.length, ({ kind, offset, count, timeMs }) => {
        if (RANGES.has(kind)) look(queue, offset, count)
        else if (kind === FACT.enter) this.#lookInStream(queue, offset, found)
        // The chunks in between are released as a whole.
        else if (kind === FACT.release) for (const edge of [offset, timeMs - 1]) look(queue, edge, 1)
        else if (SINGLES.has(kind)) look(queue, offset, 1)
      })
    }
    return [...found.values()]
  }

  // The rows of messages that enter a group are copied from the chunk of the stream, however new its page is.
  #lookInStream({ source }: Queue, offset: number, found: Map<number, PageEntry>): void {
    if (source?.isCold(offset) !== true) return
    const page = this.#state.tree.find(PAGE.chunk, source.id, Math.floor(offset / CHUNK_MESSAGES))!
    found.set(page.position, page)
  }

  /** Applies the batch at `bytes[at]`, whose position in the log is `position`. */
  apply(bytes: Uint8Array, at: number, position: number): void {
    const type = batchType(bytes, at)
    // Batches of every type have a time in their header.
    this.#state.newestMs = Math.max(this.#state.newestMs, batchTimeMs(bytes, at))
    if (isSharedBatch(bytes, at)) this.#applyShared(bytes, at, position)
    else if (type === BATCH_TYPE.messages) this.#applyMessages(bytes, at, position)
    else if (type === BATCH_TYPE.facts) this.#applyFacts(bytes, at, position)
    else if (type === BATCH_TYPE.boot) this.#applyBoot(bytes, at, position)
    this.#state.closed = type === BATCH_TYPE.close
  }

  #applyMessages(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const queue = this.#state.queuesById.get(header.queueId)
    const preceding = this.#preceding.get(header.queueId)
    this.#forgetPreceding()
    const relocated = (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0
    const duplicates = relocated ? undefined : byIndex(preceding?.duplicates, header.baseOffset)
    const answered = relocated
      ? undefined
      : answeredDuplicates(duplicates, replacingIn(preceding, header.baseOffset), header.baseOffset)
    // Only a batch of an atomic step has a number and no producer.
    if (answered !== undefined && header.producerId === 0 && header.batchNumber > 0)
      this.#stepDuplicates.set(`${header.queueId}:${header.baseOffset}`, answered)
    if (!relocated) this.#applyNumber(header, position, answered)
    if (queue === undefined) return
    queue.appliedFrom = position
    if (relocated) {
      queue.relocateFact(header.baseOffset, header.count, position, header.length)
    } else {
      const rules = { ttlMs: preceding?.ttlMs ?? 0, maxBytes: queue.options.maxBytes }
      const traits =
        header.attributes & BATCH_ATTRIBUTE.traits
          ? readTraits(bytes, at, header.count, header.timeMs, this.#state.seed, rules)
          : undefined
      queue.appendFact(header, position, traits, duplicates)
      if (duplicates !== undefined && queue.pagePosition < position)
        queue.count('duplicates', duplicates.size)
    }
    queue.appliedFrom = Infinity
  }

  // The result of a batch is remembered under its number. After a publish to a topic, the result is the number of targets. It
  // is the base offset of a shared batch.
  #applyNumber(header: BatchHeader, position: number, answered: Duplicates | undefined): void {
    const producer = this.#state.producersById.get(header.producerId)
    if (producer === undefined || producer.pagePosition >= position) return
    if (header.batchNumber < producer.windowStart) return
    if ((header.attributes & BATCH_ATTRIBUTE.topic) !== 0)
      producer.accept(header.batchNumber, 1, header.recordsCrc, undefined)
    else producer.accept(header.batchNumber, header.baseOffset, header.recordsCrc, answered)
    producer.lastUsedMs = header.timeMs
  }

  #applyShared(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const isRelocated = (header.attributes & BATCH_ATTRIBUTE.relocated) !== 0
    const records = new SharedRecords(bytes, at, header, this.#state.seed)
    const shares = sharesOf(header.length, countedRows(this.#refers))
    for (const refers of byQueue(this.#refers)) {
      const queue = this.#state.queuesById.get(refers[0]!.queueId)
      if (queue === undefined) continue
      queue.appliedFrom = position
      const share = refers[0]!.isCounted ? shares.counted : shares.uncounted
      if (!isRelocated) this.#applyRefers(queue, refers, share, header, position, records)
      else
        for (const { offset, count } of refers)
          queue.relocateFact(offset, count, position, share.bytes, share.scale)
      queue.appliedFrom = Infinity
    }
    if (!isRelocated) this.#applyNumber(header, position, undefined)
    this.#forgetPreceding()
    this.#refers = []
  }

  // Clearing an empty map would allocate, and most batches have no such facts.
  #forgetPreceding(): void {
    if (this.#preceding.size > 0) this.#preceding.clear()
  }

  #applyRefers(
    queue: Queue,
    refers: readonly Refer[],
    share: Share,
    { attributes, timeMs }: BatchHeader,
    position: number,
    records: SharedRecords,
  ): void {
    const baseOffset = refers[0]!.offset
    const preceding = this.#preceding.get(queue.id)
    const duplicates = byIndex(preceding?.duplicates, baseOffset)
    const rules = { ttlMs: preceding?.ttlMs ?? 0, maxBytes: queue.options.maxBytes }
    const traits = attributes & BATCH_ATTRIBUTE.traits ? records.traitsOf(refers, rules) : undefined
    const batch = { baseOffset, count: countOf(refers), timeMs, length: share.bytes, scale: share.scale }
    queue.referFact(refers, batch, position, records.bytesOf(refers), traits, duplicates)
    if (duplicates !== undefined && queue.pagePosition < position) queue.count('duplicates', duplicates.size)
  }

  #applyFacts(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    const id = header.queueId
    this.#refers = refersIn(bytes, at)
    if (this.#refers.length > 0) return
    readFacts(bytes, at + BATCH_HEADER_BYTES, at + header.length, (fact) => {
      if (fact.kind === FACT.producer) {
        // A producer that was added during the checkpoint can have a page in the checkpoint. Recovery already knows
        // this producer.
        if (fact.offset >= this.#listedProducerIds && !this.#state.producersById.has(fact.offset))
          this.#state.addProducer(this.#state.newProducer(fact.offset, fact.text))
      } else if (fact.kind === FACT.atomic) {
        const places = this.#placesOf(fact.text)
        this.#stepDuplicates.clear()
        const producer = this.#state.producersById.get(fact.offset)
        if (producer === undefined || producer.pagePosition >= position || fact.timeMs < producer.windowStart)
          return
        producer.answer(fact.timeMs, fact.count, places)
        producer.lastUsedMs = header.timeMs
      } else if (fact.kind === FACT.ensure) {
        this.#applyEnsure(id, fact, position)
      } else if (fact.kind === FACT.define) {
        this.#applyDefine(fact, position)
      } else if (fact.kind === FACT.fired) {
        const definition = this.#state.definitions.get(fact.offset)
        if (definition !== undefined && definition.pagePosition < position)
          this.#state.definitions.fired(definition, fact.timeMs, fact.count)
      } else if (fact.kind === FACT.undefine) {
        const definition = this.#state.definitions.get(fact.offset)
        if (definition !== undefined) this.#state.definitions.undefine(definition)
      } else {
        const queue = this.#state.queuesById.get(id)
        if (queue !== undefined) this.#applyToQueue(queue, fact, position, header.timeMs)
      }
    })
  }

  #precedingFacts({ id }: Queue): PrecedingFacts {
    let preceding = this.#preceding.get(id)
    if (preceding === undefined)
      this.#preceding.set(id, (preceding = { ttlMs: 0, duplicates: new Map(), replacing: new Set() }))
    return preceding
  }

  // `text` lists the queue id and base offset of each batch of an atomic step. The duplicates were collected when the
  // batches were applied.
  #placesOf(text: string): Placed[] {
    return (JSON.parse(text) as [number, number][]).map(([queueId, baseOffset]) => ({
      baseOffset,
      duplicates: this.#stepDuplicates.get(`${queueId}:${baseOffset}`),
    }))
  }

  #applyEnsure(id: number, fact: Fact, position: number): void {
    const definition = decodeDefinition(fact.text, this.#state.options)
    const queue = this.#state.queuesById.get(id)
    if (queue === undefined) {
      if (id >= this.#listedQueueIds) this.#state.addQueue(id, definition)
    } else if (queue.definitionPosition < position) {
      queue.redefine(definition)
    }
  }

  // If the queue that owns the definition is gone, the fact that deleted the queue has removed the definition.
  #applyDefine({ offset: id, death, count: owner, timeMs, text }: Fact, position: number): void {
    const { definitions, queuesById } = this.#state
    const definition = definitions.get(id)
    if (id >= definitions.nextId) definitions.nextId = id + 1
    const isOwned = owner === NO_OWNER || queuesById.has(owner)
    if (
      definition === undefined
        ? id >= this.#listedDefinitionIds && isOwned
        : definition.pagePosition < position
    )
      definitions.define(id, { kind: death as DefinitionKind, owner, text, number: timeMs })
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
        queue.remove(offset, count, isRetained(fact) ? timeMs : undefined)
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
        this.#precedingFacts(queue).duplicates.set(offset, fact.timeMs)
        break
      case FACT.replace:
        this.#precedingFacts(queue).replacing.add(offset)
        break
      case FACT.ttl:
        this.#precedingFacts(queue).ttlMs = fact.timeMs
        break
      case FACT.purge:
        queue.purgeFact(offset)
        break
      case FACT.delivered:
        queue.deliveredFact(offset)
        break
      case FACT.tally:
        if (queue.pagePosition < position) queue.tallyFact(offset, fact.timeMs)
        break
      case FACT.release:
        this.#applyRelease(queue, offset, fact.timeMs, position)
        break
      case FACT.ended:
        if (queue.pagePosition < position && queue.former.end(offset)) queue.dirty = true
        break
      case FACT.delete:
        this.#state.removeQueue(queue)
        break
      default:
        if (fact.kind === FACT.hand || applyOfStream(queue, fact)) break
        throw new Error(`The fact at position ${position} has the unknown kind ${fact.kind}.`)
    }
    queue.appliedFrom = Infinity
    if (queue.pagePosition < position) countFact(queue, fact)
  }

  // Chunks that are released as a whole need not be read.
  #applyRelease(queue: Queue, from: number, end: number, position: number): void {
    const retention = queue.chunks.retention
    for (const number of retention?.numbersIn(from, end) ?? []) {
      const isWhole = number * CHUNK_MESSAGES >= from && (number + 1) * CHUNK_MESSAGES <= end
      if (!isWhole || !retention!.isCold(number)) continue
      if (this.#state.tree.positionOf(PAGE.chunk, queue.id, number) >= position) continue
      queue.releaseCold(number)
      this.#cold--
    }
    queue.releaseFact(from, end)
  }

  // An orderly stop writes facts about what was delivered. After any other stop, every message may have been delivered.
  #applyBoot(bytes: Uint8Array, at: number, position: number): void {
    const header = readBatchHeader(bytes, at)
    this.#state.boot = header.count
    this.#state.seed = readSeed(bytes, at + BATCH_HEADER_BYTES)
    for (const queue of this.#state.queues.values())
      if (queue.endedSubscriptions.length > 0 && queue.pagePosition < position) queue.former.bootBegan()
    if (header.attributes === BOOT_AFTER_CLOSE) return
    this.#state.crashed(position)
  }
}

/** Kinds of facts that change the chunks of their messages: facts about a range of messages, and facts about one. */
const RANGES: ReadonlySet<number> = new Set([
  FACT.ack,
  FACT.expire,
  FACT.drop,
  FACT.cancel,
  FACT.discard,
  FACT.move,
  FACT.carry,
])
const SINGLES: ReadonlySet<number> = new Set([
  FACT.retry,
  FACT.dead,
  FACT.redrive,
  FACT.reschedule,
  FACT.compact,
])

function isRetained({ kind, death }: Fact): boolean {
  return kind === FACT.ack && death === RETAINED
}

// Applies a fact that only streams and their groups have. Returns false if it is another fact.
function applyOfStream(queue: Queue, { kind, death, offset, count, timeMs, text }: Fact): boolean {
  if (kind === FACT.compact) queue.compactFact(offset, count, wordsIn(text))
  else if (kind === FACT.enter) queue.enterFact(offset, timeMs, keysIn(text), death === SKIPPED)
  else if (kind === FACT.position) queue.moveFact(offset)
  else if (kind === FACT.miss) queue.missFact(offset, count)
  else return false
  return true
}

interface PrecedingFacts {
  ttlMs: number
  /** Offset of the message that was accepted first, by the offset of its duplicate. */
  readonly duplicates: Map<number, number>
  /** Offsets of messages that replaced others. */
  readonly replacing: Set<number>
}

function byIndex(
  duplicates: ReadonlyMap<number, number> | undefined,
  base: number,
): Map<number, number> | undefined {
  if (duplicates === undefined || duplicates.size === 0) return undefined
  return new Map([...duplicates].map(([offset, first]) => [offset - base, first]))
}

function replacingIn(preceding: PrecedingFacts | undefined, base: number): number[] {
  return preceding === undefined ? [] : [...preceding.replacing].map((offset) => offset - base)
}

/** The counter that a fact increments. */
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
  if (fact.kind === FACT.ack && queue.group !== undefined) queue.ackedCount += fact.count
  const counter = COUNTED[fact.kind]
  if (counter === undefined) return
  queue.count(counter, fact.kind === FACT.redrive ? 1 : fact.count)
  queue.dirty = true
  if (fact.kind === FACT.carry) queue.carried += fact.count
}
