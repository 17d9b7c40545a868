/**
 * Checkpoints: what changed since the last one is appended as state pages, a slice a turn, and then a directory of
 * the newest copy of every page. A directory counts once a segment begins behind it, because that is where recovery
 * finds its position; only then may what it replaces be truncated.
 */
import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { encodeChunkPage, encodeQueuePage } from '../queue/index.js'
import type { Producer } from './producers.js'
import { PAGE, encodeDirectory, type PageAt } from './directory.js'
import type { State } from './state.js'

/** Most bytes of pages that one turn appends; of small segments, a sixteenth. */
const SLICE_BYTES = 256 << 10
/** A checkpoint is due when of what was appended such a share was new: pages alone never make another one due. */
const NEW_SHARE = 1 / 16
/** What a checkpoint frees that is made before it is due; it may leave a segment half empty. */
const FREED_SEGMENTS = 2
/** A producer that was not heard of for so long is forgotten. */
export const PRODUCER_IDLE_MS = 7 * 24 * 3600 * 1000

interface Finished {
  readonly lsn: number
  readonly position: number
  /** No page and no fact below this is needed any more once this directory counts. */
  readonly floor: number
}

export class Checkpoints {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #intervalBytes: number
  /** The next one begins when so much was appended since the last one began. */
  #dueBytes: number
  #begunAtBytes = 0
  #begunAtWritten = 0
  #begunAtNews = 0
  #running: Generator<void, void> | undefined
  /** Bytes of pages and directories, since the broker started. */
  #writtenBytes = 0
  #finished: Finished | undefined
  /** Durable and told to the log; counts when the next segment begins. */
  #marked: { readonly segment: number; readonly floor: number } | undefined
  /** Nothing before this position is needed for recovery. */
  floor: number
  /** Pages that stand before this position are appended again although they did not change. */
  evacuateBefore = 0
  /** Another checkpoint would free what stands before this, and the log takes too much. 0: it does not. */
  wantedFloor = 0
  /** Publishes are refused for want of room: each segment counts. */
  isScarce = false
  /** What is copied fills the segment in any case: it need not end early. */
  isFilling = false

  constructor(log: Log, tail: Tail, state: State, intervalBytes: number, floor: number) {
    this.#log = log
    this.#tail = tail
    this.#state = state
    this.#intervalBytes = intervalBytes
    this.#dueBytes = intervalBytes
    this.floor = floor
  }

  /**
   * One slice of the running checkpoint, or the begin of one if enough was appended since the last, or if one would free
   * enough. All facts that are applied must be in the open entry. Returns whether anything was appended.
   */
  step(nowMs: number): boolean {
    this.#anchor(nowMs)
    if (this.#running === undefined) {
      if (this.#finished !== undefined) return false
      const isDue =
        this.#tail.appendedBytes - this.#begunAtBytes >= this.#dueBytes &&
        this.#news - this.#begunAtNews >= this.#dueBytes * NEW_SHARE
      if (!isDue && (!this.#freesEnough(this.wantedFloor) || this.markFrees)) return false
      this.#begunAtBytes = this.#tail.appendedBytes
      this.#begunAtWritten = this.#writtenBytes
      this.#begunAtNews = this.#news
      this.#running = this.#run(nowMs)
    }
    if (this.#running.next().done === true) {
      this.#running = undefined
      // Of ten thousand queues in use the pages take as much as half an interval: fewer of them, or they are most of the
      // work. Restarting reads up to three intervals then.
      const took = this.#writtenBytes - this.#begunAtWritten
      this.#dueBytes = Math.max(this.#intervalBytes, Math.min(took * 8, this.#intervalBytes * 3))
    }
    return true
  }

  /** Bytes of batches that are no pages, since the broker started. */
  get #news(): number {
    return this.#tail.addedBytes - this.#writtenBytes
  }

  /** One is being written, or has yet to count. */
  get isUnderWay(): boolean {
    return this.#running !== undefined || this.#finished !== undefined
  }

  /** Whether one would free enough of what the log takes too much, now or once it may. */
  freesEnoughUpTo(floor: number): boolean {
    return this.#running === undefined && this.#finished === undefined && this.#freesEnough(floor)
  }

  /** Entries up to `lsn` are durable. Returns whether a checkpoint is. */
  durable(lsn: number): boolean {
    const finished = this.#finished
    if (finished === undefined || finished.lsn > lsn) return false
    this.#log.markCheckpoint(finished.position)
    this.#marked = { segment: this.#segmentOf(this.#tail.position), floor: finished.floor }
    this.#finished = undefined
    return true
  }

  // The mark is in the header of each segment that begins after it; from then on recovery starts there.
  #anchor(nowMs: number): void {
    const marked = this.#marked
    if (marked === undefined) return
    if (this.#segmentOf(this.#tail.position) <= marked.segment) {
      // Who drains a backlog appends so little that the segment would not be full for long.
      if (!this.#freesEnough(this.wantedFloor) || !this.markFrees || this.isFilling) return
      this.#tail.endSegment(nowMs)
    }
    this.floor = Math.max(this.floor, marked.floor)
    this.#marked = undefined
  }

  #freesEnough(wantedFloor: number): boolean {
    return this.#segmentsUpTo(wantedFloor) >= (this.isScarce ? 1 : FREED_SEGMENTS)
  }

  // Whether a segment goes once the directory counts that is marked: otherwise another one is made in its place.
  get markFrees(): boolean {
    return this.#marked !== undefined && this.#segmentsUpTo(this.#marked.floor) >= 1
  }

  // Whole segments that go when the floor is there.
  #segmentsUpTo(floor: number): number {
    const { segmentBytes } = this.#log
    return Math.floor(floor / segmentBytes) - Math.floor(this.floor / segmentBytes)
  }

  // An entry that ends with its segment has not begun the next one: no header there says anything yet.
  #segmentOf(position: number): number {
    return Math.floor((position - 1) / this.#log.segmentBytes)
  }

  *#run(nowMs: number): Generator<void, void> {
    const state = this.#state
    const replayFrom = this.#tail.position
    const { boot, nextQueueId, nextProducerId } = state
    const sliceBytes = Math.min(SLICE_BYTES, this.#log.segmentBytes / 16)
    let sliceEnd = this.#writtenBytes + sliceBytes
    const sliceIsFull = (): boolean => {
      if (this.#writtenBytes < sliceEnd) return false
      sliceEnd = this.#writtenBytes + sliceBytes
      return true
    }
    for (const queue of [...state.queues.values()]) {
      // A queue, or a producer, can be gone by the time that its turn comes, or between two of its pages: what is counted
      // of pages that are not there any more is never given back.
      const isThere = (): boolean => state.queuesById.get(queue.id) === queue
      for (const chunk of queue.chunks) {
        // The list was made when the queue's turn came; a chunk can be freed while the checkpoint waits.
        if (queue.chunkAt(chunk.base) !== chunk) continue
        if (!chunk.dirty && chunk.pagePosition >= this.evacuateBefore) continue
        this.#write(chunk, PAGE.chunk, queue.id, encodeChunkPage(chunk, queue.keys), nowMs)
        if (sliceIsFull()) yield
      }
      if (!isThere()) continue
      for (const page of queue.ids.pagesToWrite(this.evacuateBefore)) {
        if (!isThere()) break
        const bytes = queue.ids.encodePage(page)
        const position = this.#append(PAGE.ids, queue.id, bytes, nowMs)
        queue.ids.pageWritten(page, position, BATCH_HEADER_BYTES + bytes.length)
        if (sliceIsFull()) yield
      }
      // Behind its chunks, so that what it counts is what they hold.
      if (isThere() && (queue.dirty || queue.pagePosition < this.evacuateBefore)) {
        const retained = state.segments.retained(queue.id)
        this.#write(queue, PAGE.queue, queue.id, encodeQueuePage(queue, retained), nowMs)
        if (sliceIsFull()) yield
      }
    }
    for (const producer of [...state.producers.values()]) {
      if (state.producers.get(producer.identity) !== producer) continue
      if (isIdle(producer, nowMs)) state.removeProducer(producer)
      else if (producer.id !== 0 && (producer.dirty || producer.pagePosition < this.evacuateBefore)) {
        this.#write(producer, PAGE.producer, producer.id, producer.encodePage(), nowMs)
        if (sliceIsFull()) yield
      }
    }
    const pages = pagesOf(state)
    const bytes = encodeDirectory({ replayFrom, boot, nextQueueId, nextProducerId, pages })
    const position = this.#append(0, 0, bytes, nowMs, BATCH_TYPE.directory)
    let floor = replayFrom
    for (const page of pages) if (page.position < floor) floor = page.position
    this.#finished = { lsn: this.#tail.openLsn, position, floor }
  }

  // The page of `owner`, as it is now.
  #write(
    owner: { pagePosition: number; pageBytes: number; dirty: boolean },
    kind: number,
    id: number,
    payload: Uint8Array,
    nowMs: number,
  ): void {
    owner.pagePosition = this.#append(kind, id, payload, nowMs)
    this.#state.segments.pages.written(owner.pageBytes, BATCH_HEADER_BYTES + payload.length)
    owner.pageBytes = BATCH_HEADER_BYTES + payload.length
    owner.dirty = false
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

// Whatever has no page yet came after the checkpoint began, and is in the facts behind it.
function pagesOf(state: State): PageAt[] {
  const pages: PageAt[] = []
  const list = (kind: number, id: number, position: number): void => {
    if (position !== -1) pages.push({ kind, id, position })
  }
  for (const queue of state.queues.values()) {
    list(PAGE.queue, queue.id, queue.pagePosition)
    for (const chunk of queue.chunks) list(PAGE.chunk, queue.id, chunk.pagePosition)
    for (const { position } of queue.ids.pagesAt()) list(PAGE.ids, queue.id, position)
  }
  for (const producer of state.producers.values()) list(PAGE.producer, producer.id, producer.pagePosition)
  return pages
}
