/**
 * Moves messages from queue to queue: dead messages to the dead-letter queue at the end of a turn, and redriven or
 * replayed messages when an operator requests it.
 *
 * Invariant: the fact that a message left its queue and the batch that adds the message to the other queue are in one
 * entry, so after any crash the message is in exactly one of the two queues.
 */
import {
  ANY_PRIORITY,
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  SluiceError,
  recordFlags,
  recordPriority,
} from '@sluice/protocol'
import { FactBuffer, type Queue, type Timer } from '../queue/index.js'
import { movedBatch, type Origin } from './origin.js'
import { redrivesOf, type Records } from './records.js'
import type { State } from '../state/state.js'
import { hasDeliveryOptions, readTraits } from '../state/traits.js'
import type { Observer } from './observer.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Maximum number of messages moved in one turn; further messages are moved in later turns. */
const TURN_MESSAGES = 256
/** Time after which a move is tried again when the log had no room. */
const RETRY_MS = 1_000

export class Moves {
  readonly #state: State
  readonly #writer: Writer
  readonly #records: Records
  readonly #turn: Turn
  readonly #observer: Observer | undefined
  readonly #facts = new FactBuffer()
  /** Timer for the next try, which is armed while the log has no room. */
  readonly #retry: Timer
  /** Queues with messages to move. */
  readonly #queues = new Set<Queue>()
  /** Queues with messages to move that have no existing dead-letter queue. */
  readonly #stranded = new Set<Queue>()
  /** Queues whose next message to move is being read from disk. */
  readonly #loading = new Set<Queue>()

  constructor(state: State, writer: Writer, records: Records, turn: Turn, observer: Observer | undefined) {
    this.#state = state
    this.#writer = writer
    this.#records = records
    this.#turn = turn
    this.#retry = turn.timer()
    this.#observer = observer
    for (const queue of state.queues.values()) this.note(queue)
  }

  /** Notes the queue for `step` if it has messages to move and names a dead-letter queue. */
  note(queue: Queue): void {
    if (queue.moving.length > 0 && queue.options.deadLetter !== '') this.#queues.add(queue)
  }

  /** Called when a queue was created. Messages that waited for a queue of this name can now be moved. */
  made(name: string): void {
    for (const queue of this.#stranded) {
      // Deleted queues are removed from the set only here.
      if (queue.options.deadLetter !== name && !this.#isGone(queue)) continue
      this.#stranded.delete(queue)
      this.note(queue)
    }
  }

  /** Whether `step` has something to do. */
  get isWanted(): boolean {
    return this.#queues.size > 0
  }

  /** Moves the messages that can be moved now. */
  step(): void {
    let left = TURN_MESSAGES
    this.#turn.arm(this.#retry, Infinity)
    for (const queue of [...this.#queues]) {
      if (this.#loading.has(queue)) continue
      const target = this.#state.queues.get(queue.options.deadLetter)
      const isGone = this.#isGone(queue)
      if (target === undefined || isGone) {
        // The messages stay in the queue until the dead-letter queue is created.
        this.#queues.delete(queue)
        if (!isGone) this.#stranded.add(queue)
        continue
      }
      left = this.#moveFrom(queue, target, left)
      if (left === 0) {
        this.#turn.wake()
        return
      }
    }
  }

  #isGone(queue: Queue): boolean {
    return this.#state.queuesById.get(queue.id) !== queue
  }

  // Moves at most `most` messages. Returns how many more messages may be moved in this turn.
  #moveFrom(queue: Queue, target: Queue, most: number): number {
    let left = most
    let done = 0
    for (const offset of queue.moving.offsets) {
      if (left === 0) break
      const record = queue.deadAt(offset)?.isMoving === true ? this.#find(queue, offset) : 'none'
      if (record === 'loading') break
      if (record !== 'none') {
        if (!this.move(queue, offset, record, target, 'move')) {
          this.#turn.arm(this.#retry, this.#turn.nowMs + RETRY_MS)
          break
        }
        left--
      }
      done++
    }
    queue.moving.pass(done, queue.deadCount)
    if (queue.moving.length === 0) this.#queues.delete(queue)
    return left
  }

  // Returns the record of a message to move. Returns 'none' if the record is damaged: the message then stays in its
  // queue, and the next message is moved.
  #find(queue: Queue, offset: number): Uint8Array | 'loading' | 'none' {
    try {
      const record = this.#records.find(queue, offset)
      if (record !== undefined) return record
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      return 'none'
    }
    this.#load(queue, offset)
    return 'loading'
  }

  #load(queue: Queue, offset: number): void {
    this.#loading.add(queue)
    const done = (): void => {
      this.#loading.delete(queue)
      this.#turn.wake()
    }
    this.#records.read(queue, offset).then(done, (error: unknown) => {
      // A damaged message stays in its queue. After READ_FAILED the move is tried again.
      if (!(error instanceof SluiceError) || error.code !== 'READ_FAILED') queue.moving.skip(offset)
      done()
    })
  }

  /**
   * Moves the dead message at `offset` to `target`, which accepts it regardless of limits and ids. The kind `carry`
   * is a redrive to another queue. Returns false if the log has no room; then nothing has changed.
   */
  move(queue: Queue, offset: number, record: Uint8Array, target: Queue, kind: 'move' | 'carry'): boolean {
    const { nowMs } = this.#turn
    const dead = queue.deadAt(offset)!
    const chunk = queue.chunkAt(offset)!
    const batch = movedBatch(record, {
      queue: queue.name,
      offset,
      publishedMs: chunk.publishedAt(offset - chunk.base),
      attempts: queue.redriveHistory(offset).attempts + dead.attempts,
      redrives: redrivesOf(queue, offset, record) + (kind === 'carry' ? 1 : 0),
      dead,
    })
    // Earlier facts about the message are written first.
    this.#writer.writeFacts(queue.id, queue.facts)
    this.#facts.move(kind, offset, target.name)
    const bytes = this.#bytesOf(batch)
    if (!this.#writer.hasRoom(bytes)) {
      this.#facts.clear()
      return false
    }
    const targetOffset = this.#put(batch, bytes, target, () => this.#writer.writeFacts(queue.id, this.#facts))
    queue.moved(offset, kind === 'carry', nowMs)
    this.#observer?.moved(queue, offset, kind === 'carry', target, targetOffset, dead.reason)
    this.#turn.changed(queue)
    return true
  }

  /** Publishes a copy of an acknowledged message to `target`. @throws SluiceError DISK_LOW, MEMORY_FULL */
  copy(record: Uint8Array, origin: Origin, target: Queue): void {
    const batch = movedBatch(record, origin)
    const bytes = this.#bytesOf(batch)
    this.#writer.checkRoom(bytes)
    this.#put(batch, bytes, target, () => {})
  }

  // Size in the log of the batch together with the facts in `#facts`.
  #bytesOf(batch: Uint8Array): number {
    return batch.length + this.#writer.factsBytes(this.#facts) + 2 * BATCH_HEADER_BYTES
  }

  // Writes the batch to `target`, after the facts that `before` writes. Returns the offset of the message in `target`.
  #put(batch: Uint8Array, bytes: number, target: Queue, before: () => void): number {
    const writer = this.#writer
    const { nowMs } = this.#turn
    const { ttlMs, maxBytes } = target.options
    const readsRecords = asksForTraits(batch) || ttlMs > 0 || maxBytes > 0
    const ahead = new FactBuffer()
    if (ttlMs > 0) ahead.ttl(target.next, 1, ttlMs)
    this.#turn.catchUp(target)
    writer.together(bytes + writer.factsBytes(ahead))
    before()
    writer.writeFacts(target.id, ahead)
    const base = target.next
    const attributes = readsRecords ? BATCH_ATTRIBUTE.traits : 0
    const position = writer.writeMessages(batch, 0, batch.length, target, 0, attributes)
    const traits = readsRecords ? readTraits(batch, 0, 1, nowMs, this.#state.seed, target.options) : undefined
    target.append(1, position, nowMs, batch.length - BATCH_HEADER_BYTES, traits)
    this.#turn.changed(target)
    return base
  }
}

function asksForTraits(batch: Uint8Array): boolean {
  const at = BATCH_HEADER_BYTES
  return hasDeliveryOptions(recordFlags(batch, at) | (recordPriority(batch, at) > 0 ? ANY_PRIORITY : 0))
}
