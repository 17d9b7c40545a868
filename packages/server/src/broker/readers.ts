/**
 * Readers: deliver the messages of a stream, or the retained messages of a queue, in the order of their offsets and without
 * leases, and only those that match the filter of the reader. Sessions open and close readers and give back credit. `step`
 * is called at the end of each turn and serves the readers that may have something to deliver; a reader that follows a stream waits at its end until a message is published.
 *
 * Invariant: one step examines a limited number of messages for all readers together. A message is delivered before its
 * batch is on disk only through the gate of its turn.
 */
import { SluiceError, recordSize, type ReadRequest } from '@sluice/protocol'
import { holdsBatch, type Block, type Blocks } from '../log/blocks.js'
import { CHUNK_MESSAGES, emptyRun, type Delivery, type Queue } from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import { kindOfQueue, type State } from '../state/state.js'
import { Reader, type ReaderSink } from './reader.js'
import type { Turn } from './turn.js'
import type { UnusedQueues } from './unused-queues.js'

/**
 * Cost of the messages that all readers together may examine in one turn. A filtered message costs `FILTER_COST` and the
 * steps of its comparison.
 */
const STEP_COST_MAX = 64 * 1024
const FILTER_COST = 16
const NOTHING_TO_LOAD = -1

const NO_BYTES = new Uint8Array(0)

export interface ReadersOptions {
  readonly onNotice?: ((event: string, details: object) => void) | undefined
}

export class Readers {
  readonly #state: State
  readonly #blocks: Blocks
  readonly #cold: ColdChunks
  readonly #turn: Turn
  readonly #unused: UnusedQueues
  readonly #onNotice: ReadersOptions['onNotice']
  readonly #byQueue = new Map<Queue, Set<Reader>>()
  #active: Reader[] = []
  #nextId = 0
  /** What this step may still examine. */
  #costLeft = 0
  readonly #run = emptyRun()
  readonly #delivery: Delivery = { run: this.#run, firstTag: 0, count: 0, bytes: NO_BYTES, start: 0, end: 0 }

  constructor(
    state: State,
    blocks: Blocks,
    cold: ColdChunks,
    turn: Turn,
    unused: UnusedQueues,
    { onNotice }: ReadersOptions,
  ) {
    this.#state = state
    this.#blocks = blocks
    this.#cold = cold
    this.#turn = turn
    this.#unused = unused
    this.#onNotice = onNotice
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND, WRONG_KIND, OPTION_CONFLICT */
  open(request: ReadRequest, channel: number, sink: ReaderSink): { reader: Reader; missed: number } {
    const queue = this.#state.queue(request.name)
    checkReadable(queue, request)
    const start = startOf(queue, request)
    const reader = new Reader(this.#nextId, channel, queue, sink, request, start.next)
    this.#nextId = (this.#nextId + 1) >>> 0
    const readers = this.#byQueue.get(queue)
    if (readers === undefined) this.#byQueue.set(queue, new Set([reader]))
    else readers.add(reader)
    queue.listeners++
    this.#activate(reader)
    return { reader, missed: start.missed }
  }

  /** The client gives back credit. */
  credit(reader: Reader, messages: number, bytes: number): void {
    reader.giveBack(messages, bytes)
    this.#activate(reader)
  }

  /** Called when the client is ready for deliveries again. */
  ready(reader: Reader): void {
    this.#activate(reader)
  }

  close(reader: Reader): void {
    if (reader.isClosed) return
    reader.isClosed = true
    const { queue } = reader
    const readers = this.#byQueue.get(queue)!
    readers.delete(reader)
    if (readers.size === 0) this.#byQueue.delete(queue)
    queue.listeners--
    this.#unused.used(queue)
  }

  /** Ends all readers of the queue with `error`. */
  closeAll(queue: Queue, error: SluiceError): void {
    for (const reader of [...(this.#byQueue.get(queue) ?? [])]) this.#end(reader, error)
  }

  /** Called when the queue may have messages that its readers have not looked at. */
  wake(queue: Queue): void {
    const readers = this.#byQueue.size === 0 ? undefined : this.#byQueue.get(queue)
    if (readers !== undefined) for (const reader of readers) this.#activate(reader)
  }

  #activate(reader: Reader): void {
    if (reader.isActive || reader.isLoading || reader.isClosed) return
    reader.isActive = true
    this.#active.push(reader)
    this.#turn.wake()
  }

  /** Serves the active readers. Those that are left for want of budget come first in the next turn. */
  step(): void {
    if (this.#active.length === 0) return
    this.#costLeft = STEP_COST_MAX
    const active = this.#active
    this.#active = []
    const left: Reader[] = []
    for (const reader of active) {
      if (this.#costLeft <= 0) {
        left.push(reader)
        continue
      }
      reader.isActive = false
      if (!reader.isClosed) this.#serveOrEnd(reader)
    }
    if (left.length === 0) return
    this.#active = [...left, ...this.#active]
    this.#turn.wake()
  }

  #serveOrEnd(reader: Reader): void {
    let position: number
    try {
      position = this.#serve(reader)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      this.#end(reader, error)
      return
    }
    if (position === NOTHING_TO_LOAD) return
    reader.isLoading = true
    this.#blocks.load(position, true).then(
      () => this.#loaded(reader),
      (error: unknown) => this.#readFailed(reader, position, error),
    )
  }

  #loaded(reader: Reader): void {
    reader.isLoading = false
    this.#activate(reader)
  }

  #readFailed(reader: Reader, position: number, error: unknown): void {
    // A read that failed for now is repeated. After any other failure, the messages may have been copied or released in
    // the meantime, so a second failure at the same position is final.
    const isPassing = error instanceof SluiceError && error.code === 'READ_FAILED'
    const isFinal = !isPassing && reader.unreadablePosition === position
    if (!isPassing) reader.unreadablePosition = position
    if (!isFinal || reader.isClosed) {
      this.#loaded(reader)
      return
    }
    const { name } = reader.queue
    this.#onNotice?.('stored messages could not be read', { queue: name, position, error })
    const cause = error instanceof SluiceError ? error.message : 'They could not be read from disk.'
    const text = `Messages of the queue ${name} cannot be read. ${cause}`
    this.#end(reader, new SluiceError('CORRUPT', text, { cause: error }))
  }

  #end(reader: Reader, error: SluiceError): void {
    this.close(reader)
    reader.sink.readEnded(reader, error)
  }

  // Delivers until credit, messages, loaded blocks or the budget of the step run out. Returns the position in the log that
  // must be loaded before the reader can continue. @throws SluiceError CORRUPT
  #serve(reader: Reader): number {
    const { queue, sink } = reader
    // Reading the chunks applies the arrivals of the queue.
    const { chunks } = queue
    while (sink.isReady && reader.room > 0) {
      if (this.#costLeft <= 0) {
        this.#activate(reader)
        break
      }
      const offset = chunks.retention === undefined ? -1 : queue.nextRetained(reader.next)
      if (offset === -1 || offset >= reader.end) {
        this.#atEnd(reader)
        break
      }
      const missed = moveTo(reader, offset)
      if (missed > 0) sink.readAt(reader, missed, false)
      if (queue.isCold(offset)) {
        if (!this.#cold.takeBack(queue, offset)) return this.#cold.positionOf(queue, offset)
        continue
      }
      const run = this.#run
      queue.locate(offset, run)
      if (run.publishedAtMs < reader.fromMs) {
        this.#costLeft--
        reader.next = run.batchEnd
        continue
      }
      reader.fromMs = 0
      const block = this.#blocks.findBatch(run.batchPosition)
      if (block === undefined) return run.batchPosition
      if (!block.isFollowed) this.#loadNext(queue, block)
      if (!this.#deliver(reader, block)) break
    }
    return NOTHING_TO_LOAD
  }

  // No message is retained between the position of the reader and its end.
  #atEnd(reader: Reader): void {
    const missed = moveTo(reader, Math.min(reader.end, reader.queue.next))
    const isEnd = reader.next === reader.end
    if (isEnd) this.close(reader)
    if (isEnd || missed > 0) reader.sink.readAt(reader, missed, isEnd)
  }

  // Delivers messages of the located batch, as many as fit, and moves on. Returns false if the credit has no room for the
  // next message. @throws SluiceError CORRUPT
  #deliver(reader: Reader, block: Block): boolean {
    const run = this.#run
    const { queue } = reader
    const end = Math.min(queue.retainedEnd(run.offset, run), reader.end)
    const { bytes } = block
    const batchAt = run.batchPosition - block.position
    let start = reader.records.find(run, end - run.offset, queue, block, batchAt)
    let at = start
    let offset = run.offset
    if (reader.filter !== undefined) {
      while (offset < end && this.#costLeft > 0 && !this.#matches(reader, bytes, at)) {
        at += recordSize(bytes, at)
        offset++
      }
      reader.records.advance(offset - run.offset, at - start)
      reader.next = run.offset = offset
      if (offset === end || this.#costLeft <= 0) return true
      start = at
    }
    const delivery = this.#delivery
    delivery.firstTag = reader.delivered
    let hasRoom = true
    while (offset < end && reader.room > 0) {
      if (reader.filter !== undefined && offset > run.offset && !this.#matches(reader, bytes, at)) break
      const size = recordSize(bytes, at)
      hasRoom = reader.takes(size)
      if (!hasRoom) break
      reader.spend(size)
      at += size
      offset++
    }
    const count = offset - run.offset
    if (count === 0) return false
    this.#costLeft -= count
    run.count = count
    run.ungated = run.batchPosition < this.#blocks.durablePosition
    reader.records.advance(count, at - start)
    reader.next = offset
    delivery.count = count
    delivery.bytes = bytes
    delivery.start = start
    delivery.end = at
    reader.sink.deliverRead(reader, delivery)
    return hasRoom
  }

  #matches({ filter }: Reader, bytes: Uint8Array, at: number): boolean {
    const before = filter!.steps
    const isMatch = filter!.matches(bytes, at)
    this.#costLeft -= FILTER_COST + filter!.steps - before
    return isMatch
  }

  // Starts to load the block that the reader needs after `block`, while `block` is being delivered.
  #loadNext(queue: Queue, block: Block): void {
    block.isFollowed = true
    const chunk = queue.heldChunk(this.#run.offset)!
    const { batches } = chunk
    for (let batch = batches.find(this.#run.offset - chunk.base) + 1; batch < batches.count; batch++) {
      const position = batches.position(batch)
      if (holdsBatch(block, position)) continue
      this.#blocks.loadEarly(position)
      return
    }
    const next = queue.nextRetained((chunk.number + 1) * CHUNK_MESSAGES)
    if (next === -1) return
    if (queue.isCold(next)) this.#blocks.loadEarly(this.#cold.positionOf(queue, next))
    else {
      const after = queue.heldChunk(next)!
      this.#blocks.loadEarly(after.batches.positionAt(next - after.base))
    }
  }
}

// @throws SluiceError WRONG_KIND, OPTION_CONFLICT
function checkReadable(queue: Queue, { follow }: ReadRequest): void {
  if (queue.stream !== undefined) return
  if (follow) {
    throw new SluiceError(
      'WRONG_KIND',
      `${queue.name} is a queue: its messages are not acknowledged in the order of their offsets, so no reader can follow it. Use a stream, or read without \`follow\`.`,
    )
  }
  if (queue.retains || queue.retainedBytes > 0) return
  throw new SluiceError(
    'OPTION_CONFLICT',
    `The queue ${queue.name} keeps no acknowledged messages, so there is nothing to read. Set \`retain\`, or use a stream.`,
  )
}

// Moves the reader to `offset`, past messages that are not kept. Returns how many of these retention has removed.
function moveTo(reader: Reader, offset: number): number {
  const missed = Math.min(offset, releasedBelow(reader.queue)) - reader.next
  reader.next = offset
  return Math.max(0, missed)
}

/**
 * Retention has removed all messages of a stream below this offset. 0 for a queue, whose messages are not retained in the
 * order of their offsets. Messages that compaction has removed are not missed: a newer one has the same key.
 */
function releasedBelow({ numbers }: Queue): number {
  return numbers === undefined ? 0 : numbers.releasedBelow
}

/**
 * Offset of the first message of a stream that is kept; a lower one while its chunk is cold. 0 for a queue, whose messages
 * are not retained in the order of their offsets.
 */
function firstOf(queue: Queue): number {
  if (queue.stream === undefined) return 0
  const first = queue.nextRetained(0)
  return first === -1 ? queue.next : first
}

// Where the reader begins. @throws SluiceError MESSAGE_NOT_FOUND
function startOf(queue: Queue, { from, fromMs }: ReadRequest): { next: number; missed: number } {
  const first = firstOf(queue)
  if (from === 'last') return { next: queue.next, missed: 0 }
  const since = fromMs === undefined ? first : Math.max(first, queue.retainedSince(fromMs))
  if (from === 'first') return { next: since, missed: 0 }
  if (from > queue.next) {
    throw new SluiceError(
      'MESSAGE_NOT_FOUND',
      `The ${kindOfQueue(queue)} ${queue.name} has no message ${from} yet; its next offset is ${queue.next}.`,
    )
  }
  return { next: Math.max(from, since), missed: Math.max(0, releasedBelow(queue) - from) }
}
