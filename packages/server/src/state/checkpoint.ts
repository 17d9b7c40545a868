/**
 * Checkpoints: the state that changed since the last checkpoint is appended as state pages, one slice per turn. A
 * directory of the newest copy of every page follows. `Space` calls `step` once per turn.
 *
 * Invariant: a directory takes effect when the next segment begins, because recovery finds its position in the header
 * of the newest segment. The pages and facts that it replaces may be truncated only then.
 */
import { BATCH_HEADER_BYTES, BATCH_TYPE, sealBatch } from '@sluice/protocol'
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { encodeChunkPage, encodeQueuePage } from '../queue/index.js'
import type { Producer } from './producers.js'
import { PAGE, encodeDirectory, type PageAt } from './directory.js'
import type { State } from './state.js'

/** Maximum size of the pages that one turn appends, in bytes. With small segments it is a sixteenth of a segment. */
const SLICE_BYTES = 256 << 10
/**
 * A checkpoint is due only if this share of the appended bytes is new data: state pages alone never make another
 * checkpoint due.
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

export class Checkpoints {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #intervalBytes: number
  /** The next checkpoint is due when this many bytes were appended since the last checkpoint started. */
  #dueBytes: number
  #startedAtBytes = 0
  #startedAtWritten = 0
  #startedAtNewBytes = 0
  #running: Generator<void, void> | undefined
  /** Bytes of pages and directories written since the broker started. */
  #writtenBytes = 0
  #finished: Finished | undefined
  /** The directory that is durable and marked in the log; it takes effect when the next segment begins. */
  #marked: { readonly segment: number; readonly lowWater: number } | undefined
  /** Low-water mark: recovery needs nothing before this position. */
  lowWater: number
  /** Unchanged pages before this position are appended again. */
  evacuateBefore = 0
  /** The low-water mark that another checkpoint would reach, while the log uses too much space; otherwise 0. */
  wantedLowWater = 0
  /** Whether publishes are refused for lack of room, so that every freed segment helps. */
  isScarce = false
  /** Whether copies are filling the segment, so that it need not end early. */
  isFilling = false

  constructor(log: Log, tail: Tail, state: State, intervalBytes: number, lowWater: number) {
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
        this.#tail.appendedBytes - this.#startedAtBytes >= this.#dueBytes &&
        this.#newBytes - this.#startedAtNewBytes >= this.#dueBytes * NEW_SHARE
      if (!isDue && (!this.#freesEnough(this.wantedLowWater) || this.markFrees)) return false
      this.#startedAtBytes = this.#tail.appendedBytes
      this.#startedAtWritten = this.#writtenBytes
      this.#startedAtNewBytes = this.#newBytes
      this.#running = this.#run(nowMs)
    }
    if (this.#running.next().done === true) {
      this.#running = undefined
      // The pages of ten thousand busy queues take half an interval, so the interval grows with their size. Otherwise
      // the broker would mostly write checkpoints. A restart then reads up to three intervals.
      const checkpointBytes = this.#writtenBytes - this.#startedAtWritten
      this.#dueBytes = Math.max(this.#intervalBytes, Math.min(checkpointBytes * 8, this.#intervalBytes * 3))
    }
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
    this.#log.markCheckpoint(finished.position)
    this.#marked = { segment: this.#segmentOf(this.#tail.position), lowWater: finished.lowWater }
    this.#finished = undefined
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
    this.lowWater = Math.max(this.lowWater, marked.lowWater)
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
      // A queue or producer can be removed before the checkpoint reaches it, or between two of its pages. The page of a
      // removed queue must not be counted, because nothing would subtract it again.
      const exists = (): boolean => state.queuesById.get(queue.id) === queue
      for (const chunk of queue.chunks) {
        // A chunk can be freed while the checkpoint waits between two slices.
        if (queue.chunkAt(chunk.base) !== chunk) continue
        if (!chunk.dirty && chunk.pagePosition >= this.evacuateBefore) continue
        this.#write(chunk, PAGE.chunk, queue.id, encodeChunkPage(chunk, queue.keys), nowMs)
        if (sliceIsFull()) yield
      }
      if (!exists()) continue
      for (const page of queue.ids.pagesToWrite(this.evacuateBefore)) {
        if (!exists()) break
        const bytes = queue.ids.encodePage(page)
        const position = this.#append(PAGE.ids, queue.id, bytes, nowMs)
        queue.ids.pageWritten(page, position, BATCH_HEADER_BYTES + bytes.length)
        if (sliceIsFull()) yield
      }
      // The page of a queue follows the pages of its chunks, so that its counters match the chunks.
      if (exists() && (queue.dirty || queue.pagePosition < this.evacuateBefore)) {
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
    let lowWater = replayFrom
    for (const page of pages) if (page.position < lowWater) lowWater = page.position
    this.#finished = { lsn: this.#tail.openLsn, position, lowWater }
  }

  // Appends the page of `owner` with its current state.
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

// A queue, chunk or producer without a page was added after the checkpoint started, and the later facts contain it.
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
