/**
 * Checkpoints: the state that changed since the last checkpoint is appended as pages, one slice per turn. The pages are
 * followed by the nodes of the page tree that changed with them, and by a directory with the root of the tree. `Space`
 * calls `step` once per turn.
 *
 * Invariant: a directory takes effect when the next segment begins, because recovery finds its position in the header
 * of the newest segment. The pages and facts that it replaces may be truncated only then.
 */
import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import {
  CHUNK_MESSAGES,
  NOT_WRITTEN,
  PAGE,
  encodeChunkPage,
  encodeDefinitionPage,
  encodeCountersPage,
  summaryOf,
  type Chunk,
  type ChunkSummary,
  type PageKind,
  type Queue,
} from '../queue/index.js'
import type { ChunkOf, ColdChunks } from './cold-chunks.js'
import type { Definition } from './definitions.js'
import type { Producer } from './producers.js'
import { encodeDirectory } from './directory.js'
import { encodeNode, type PageEntry } from './page-node.js'
import { NODE_PAGE } from './page-tree.js'
import type { State } from './state.js'

/** Maximum size of the pages that one turn appends, in bytes. With small segments it is a sixteenth of a segment. */
const SLICE_BYTES = 256 << 10
/**
 * A checkpoint is due only if at least this share of the appended bytes is new data: state pages alone never make
 * another checkpoint due.
 */
const NEW_SHARE = 1 / 16
/**
 * A checkpoint starts early if it would free at least this many segments. An early checkpoint may leave a segment half
 * empty.
 */
const FREED_SEGMENTS = 2
/** A producer without a connection or publish for this long is forgotten. */
export const PRODUCER_IDLE_MS = 7 * 24 * 3600 * 1000

interface Finished {
  readonly lsn: number
  readonly position: number
  /** Once this directory takes effect, recovery needs no page and no fact before this position. */
  readonly lowWater: number
}

/** A directory that is durable and marked in the log; it takes effect when the segment after `segment` begins. */
interface Marked {
  readonly segment: number
  readonly lowWater: number
}

export class Checkpoints {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #cold: ColdChunks
  readonly #wake: () => void
  readonly #intervalBytes: number
  /** The next checkpoint is due when this many bytes were appended since the last checkpoint started. */
  #dueBytes: number
  #startedAtBytes = 0
  #startedAtWritten = 0
  #startedAtNewBytes = 0
  #running: Generator<boolean, void> | undefined
  /** Chunks that this checkpoint has written. When it is durable, they can leave memory. */
  #chunks: ChunkOf[] = []
  /** Bytes of pages and directories written since the broker started. */
  #writtenBytes = 0
  #finished: Finished | undefined
  #marked: Marked | undefined
  /** Low-water mark: recovery needs nothing before this position. */
  lowWater: number
  /** Number of checkpoints that have begun since the broker started. */
  begun = 0
  /** Whether a checkpoint is to begin because many changed chunks are in memory. */
  isWanted = false
  /** Unchanged pages before this position are appended again. */
  evacuateBefore = 0
  /** The low-water mark that another checkpoint would reach, while the log uses too much space; otherwise 0. */
  wantedLowWater = 0
  /** Whether publishes are refused for lack of room, so that every freed segment helps. */
  isScarce = false
  /** Whether copies are filling the segment, so that it need not end early. */
  isFilling = false

  /** `wake` asks for another turn. */
  constructor(
    log: Log,
    tail: Tail,
    state: State,
    cold: ColdChunks,
    intervalBytes: number,
    lowWater: number,
    wake: () => void,
  ) {
    this.#cold = cold
    this.#wake = wake
    this.#log = log
    this.#tail = tail
    this.#state = state
    this.#intervalBytes = intervalBytes
    this.#dueBytes = intervalBytes
    this.lowWater = lowWater
  }

  /**
   * Runs one slice of a checkpoint. Starts a checkpoint if one is due or would free enough. Every applied fact must be
   * in the open entry. Returns whether a slice ran.
   */
  step(nowMs: number): boolean {
    this.#anchor(nowMs)
    if (this.#running === undefined) {
      if (this.#finished !== undefined) return false
      const isDue =
        this.isWanted ||
        (this.#tail.appendedBytes - this.#startedAtBytes >= this.#dueBytes &&
          this.#newBytes - this.#startedAtNewBytes >= this.#dueBytes * NEW_SHARE)
      if (!isDue && (!this.#freesEnough(this.wantedLowWater) || this.markFrees)) return false
      this.begun++
      this.isWanted = false
      this.#startedAtBytes = this.#tail.appendedBytes
      this.#startedAtWritten = this.#writtenBytes
      this.#startedAtNewBytes = this.#newBytes
      this.#running = this.#run(nowMs)
    }
    const result = this.#running.next()
    if (result.done !== true) return result.value
    this.#running = undefined
    // The pages of ten thousand busy queues take half an interval, so the interval grows with their size. Otherwise
    // the broker would mostly write checkpoints. So a restart may have to read three intervals of the log.
    const checkpointBytes = this.#writtenBytes - this.#startedAtWritten
    this.#dueBytes = Math.max(this.#intervalBytes, Math.min(checkpointBytes * 8, this.#intervalBytes * 3))
    return true
  }

  /** Bytes of batches other than pages since the broker started. */
  get #newBytes(): number {
    return this.#tail.addedBytes - this.#writtenBytes
  }

  /** Whether a checkpoint is being written or is not durable yet. */
  get isUnderWay(): boolean {
    return this.#running !== undefined || this.#finished !== undefined
  }

  /** Whether no checkpoint is under way, and a checkpoint up to `lowWater` would free enough to start early. */
  freesEnoughUpTo(lowWater: number): boolean {
    return this.#running === undefined && this.#finished === undefined && this.#freesEnough(lowWater)
  }

  /** Reports that entries up to `lsn` are durable. Returns whether a checkpoint became durable with them. */
  durable(lsn: number): boolean {
    const finished = this.#finished
    if (finished === undefined || finished.lsn > lsn) return false
    // The segment that lets the previous directory take effect can have begun since the last step.
    const marked = this.#marked
    if (marked !== undefined && this.#segmentOf(this.#tail.position) > marked.segment)
      this.#takeEffect(marked)
    this.#log.markCheckpoint(finished.position)
    this.#marked = { segment: this.#segmentOf(this.#tail.position), lowWater: finished.lowWater }
    this.#finished = undefined
    for (const written of this.#chunks) this.#cold.written(written)
    this.#chunks = []
    return true
  }

  // Lets the marked directory take effect once a segment begins after it: each later segment has the position of
  // the directory in its header, and recovery starts from there.
  #anchor(nowMs: number): void {
    const marked = this.#marked
    if (marked === undefined) return
    if (this.#segmentOf(this.#tail.position) <= marked.segment) {
      // Draining a backlog appends little, so the segment would stay unfinished for a long time.
      if (!this.#freesEnough(this.wantedLowWater) || !this.markFrees || this.isFilling) return
      this.#tail.endSegment(nowMs)
    }
    this.#takeEffect(marked)
  }

  #takeEffect({ lowWater }: Marked): void {
    this.lowWater = Math.max(this.lowWater, lowWater)
    this.#marked = undefined
  }

  #freesEnough(wantedLowWater: number): boolean {
    return this.#segmentsUpTo(wantedLowWater) >= (this.isScarce ? 1 : FREED_SEGMENTS)
  }

  /**
   * Whether the marked directory will free a segment. If it will not, ending the segment early only uses another
   * segment.
   */
  get markFrees(): boolean {
    return this.#marked !== undefined && this.#segmentsUpTo(this.#marked.lowWater) >= 1
  }

  // Number of segments that are freed when the low-water mark reaches `lowWater`.
  #segmentsUpTo(lowWater: number): number {
    const { segmentBytes } = this.#log
    return Math.floor(lowWater / segmentBytes) - Math.floor(this.lowWater / segmentBytes)
  }

  // When an entry ends exactly at the end of its segment, the next segment has not begun and has no header yet.
  #segmentOf(position: number): number {
    return Math.floor((position - 1) / this.#log.segmentBytes)
  }

  // Yields after each slice: true, or false if it waits for a read.
  *#run(nowMs: number): Generator<boolean, void> {
    const state = this.#state
    const { tree } = state
    const replayFrom = this.#tail.position
    const { boot, seed, nextQueueId, nextProducerId, crashedAt } = state
    const nextDefinitionId = state.definitions.nextId
    const sliceBytes = Math.min(SLICE_BYTES, this.#log.segmentBytes / 16)
    let sliceEnd = this.#writtenBytes + sliceBytes
    for (const isWritten of this.#pages(nowMs)) {
      if (isWritten && this.#writtenBytes < sliceEnd) continue
      sliceEnd = this.#writtenBytes + sliceBytes
      yield isWritten
    }
    for (const node of tree.nodesToWrite(this.evacuateBefore)) {
      const bytes = encodeNode(node)
      const position = this.#append(NODE_PAGE, 0, bytes, nowMs)
      tree.nodeWritten(node, position, BATCH_HEADER_BYTES + bytes.length)
      if (this.#writtenBytes < sliceEnd) continue
      sliceEnd = this.#writtenBytes + sliceBytes
      yield true
    }
    const bytes = encodeDirectory({
      replayFrom,
      boot,
      seed,
      nextQueueId,
      nextProducerId,
      nextDefinitionId,
      crashedAt,
      root: tree.root,
    })
    const position = this.#append(0, 0, bytes, nowMs, BATCH_TYPE.directory)
    const lowWater = Math.min(replayFrom, tree.root.lowestNow)
    this.#finished = { lsn: this.#tail.openLsn, position, lowWater }
  }

  /**
   * Writes the pages that changed, and those whose newest copy is before `evacuateBefore`. Yields after each page and,
   * because there can be very many, after some queues without a page to write.
   */
  *#pages(nowMs: number): Generator<boolean, void> {
    const { tree, queues, producers, definitions } = this.#state
    // Pages that are only moved come first, so that the page of a changed queue still follows the pages of its chunks.
    let moved = tree.nextBefore(this.evacuateBefore)
    for (; moved !== undefined; moved = tree.nextBefore(this.evacuateBefore, moved)) {
      if (!(yield* this.#isReadable(moved))) continue
      this.#writeAgain(moved, nowMs)
      yield true
    }
    for (const queue of [...queues.values()]) {
      if (!queue.dirty) continue
      // A queue or producer can be removed before the checkpoint reaches it, or between two of its pages. The page of a
      // removed queue must not be written, because nothing would remove it from the tree again.
      const exists = (): boolean => this.#state.has(queue)
      // Changes between two of its pages mark the queue for the next checkpoint.
      queue.dirty = false
      for (const chunk of queue.heldChunks()) {
        // A chunk can be freed while the checkpoint waits between two slices.
        if (!chunk.dirty || queue.heldChunk(chunk.base) !== chunk) continue
        this.#writeChunk(queue, chunk, nowMs)
        yield true
      }
      for (const page of queue.rememberedIds?.pagesToWrite() ?? []) {
        if (!exists()) break
        this.#writeIds(queue, page, nowMs)
        yield true
      }
      if (!exists()) continue
      if (queue.definitionPosition === NOT_WRITTEN) {
        this.#writeDefinition(queue, nowMs)
        yield true
      }
      // The page of a queue follows the pages of its chunks, so that its counters match the chunks.
      if (!exists()) continue
      this.#writeCounters(queue, nowMs)
      yield true
    }
    for (const producer of [...producers.values()]) {
      if (producers.get(producer.identity) !== producer) continue
      if (isIdle(producer, nowMs)) this.#state.removeProducer(producer)
      else if (producer.id !== 0 && producer.dirty) {
        this.#writeProducer(producer, nowMs)
        yield true
      }
    }
    for (const definition of definitions.changed) {
      // It can be removed between two slices.
      if (!definitions.isChanged(definition)) continue
      this.#writeDefined(definition, nowMs)
      yield true
    }
  }

  // Waits until the chunk of the page is in memory. Returns false if there is nothing to write: the chunk is gone, or
  // its page cannot be read. A page that cannot be read stays where it is.
  *#isReadable({ kind, id, number }: PageEntry): Generator<boolean, boolean> {
    const queue = this.#state.queuesById.get(id)
    const offset = number * CHUNK_MESSAGES
    if (kind !== PAGE.chunk || queue?.isCold(offset) !== true) return true
    const read = { isOver: false }
    const done = (): void => {
      read.isOver = true
      this.#wake()
    }
    this.#cold.load(queue, offset).then(done, done)
    while (!read.isOver) yield false
    return this.#state.queuesById.get(id)?.heldChunk(offset) !== undefined
  }

  #writeAgain({ kind, id, number }: PageEntry, nowMs: number): void {
    if (kind === PAGE.producer) {
      this.#writeProducer(this.#state.producersById.get(id)!, nowMs)
      return
    }
    if (kind === PAGE.defined) {
      this.#writeDefined(this.#state.definitions.get(id)!, nowMs)
      return
    }
    const queue = this.#state.queuesById.get(id)!
    if (kind === PAGE.definition) this.#writeDefinition(queue, nowMs)
    else if (kind === PAGE.counters) {
      // The counters of a queue that has changed are written after its chunks.
      if (!queue.dirty) this.#writeCounters(queue, nowMs)
    } else if (kind === PAGE.ids) this.#writeIds(queue, number, nowMs)
    else this.#writeChunk(queue, queue.heldChunk(number * CHUNK_MESSAGES)!, nowMs)
  }

  #writeChunk(queue: Queue, chunk: Chunk, nowMs: number): void {
    const { segments } = this.#state
    const summary = summaryOf(chunk, (position) => segments.segmentOf(position))
    const page = encodeChunkPage(chunk, queue)
    chunk.pagePosition = this.#write(PAGE.chunk, queue.id, chunk.number, page, nowMs, summary)
    chunk.dirty = false
    if (summary !== undefined) this.#chunks.push({ queue, number: chunk.number })
  }

  #writeIds(queue: Queue, page: number, nowMs: number): void {
    this.#write(PAGE.ids, queue.id, page, queue.ids.encodePage(page), nowMs)
    queue.ids.pageWritten(page)
  }

  #writeDefinition(queue: Queue, nowMs: number): void {
    queue.definitionPosition = this.#write(PAGE.definition, queue.id, 0, encodeDefinitionPage(queue), nowMs)
  }

  #writeCounters(queue: Queue, nowMs: number): void {
    queue.pagePosition = this.#write(PAGE.counters, queue.id, 0, encodeCountersPage(queue), nowMs)
  }

  #writeProducer(producer: Producer, nowMs: number): void {
    producer.pagePosition = this.#write(PAGE.producer, producer.id, 0, producer.encodePage(), nowMs)
    producer.dirty = false
  }

  #writeDefined(definition: Definition, nowMs: number): void {
    const position = this.#write(PAGE.defined, definition.id, 0, definition.encodePage(), nowMs)
    this.#state.definitions.pageWritten(definition, position)
  }

  // Appends a page with the current state of its owner. Returns its position.
  #write(
    kind: PageKind,
    id: number,
    number: number,
    payload: Uint8Array,
    nowMs: number,
    summary?: ChunkSummary,
  ): number {
    const position = this.#append(kind, id, payload, nowMs)
    this.#state.tree.written(kind, id, number, position, BATCH_HEADER_BYTES + payload.length, summary)
    return position
  }

  #append(
    kind: number,
    id: number,
    payload: Uint8Array,
    timeMs: number,
    type: number = BATCH_TYPE.page,
  ): number {
    const length = BATCH_HEADER_BYTES + payload.length
    this.#writtenBytes += length
    this.#tail.upkeepBytes += length
    const at = this.#tail.reserve(length, timeMs)
    this.#tail.bytes.set(payload, at + BATCH_HEADER_BYTES)
    sealBatch(this.#tail.bytes, at, at + length, { type, queueId: id, count: kind, timeMs })
    return this.#tail.add(length)
  }
}

function isIdle(producer: Producer, nowMs: number): boolean {
  return producer.connections === 0 && nowMs - producer.lastUsedMs > PRODUCER_IDLE_MS
}
