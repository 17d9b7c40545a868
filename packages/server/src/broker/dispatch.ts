/**
 * Handing out: takes runs from a queue's line and gives them to its subscriptions in turn, within their credit. The
 * only place that joins what the queue knows (offsets) with the bytes (blocks of the log).
 */
import { BATCH_HEADER_BYTES, recordSize } from '@sluice/protocol'
import { holdsBatch, type Block, type Blocks } from '../log/blocks.js'
import {
  checkBatchAt,
  emptyRun,
  indexInBatch,
  type Delivery,
  type Queue,
  type Subscription,
} from '../queue/index.js'
import type { Observer } from './observer.js'

/** Most messages in one run when several consumers share a queue. */
const SHARED_RUN_MESSAGES = 64

/**
 * Messages that are looked at for what to read with the one that is needed. Where each is due by itself, 64 rather than 16
 * halved how late they are.
 */
const UPCOMING = 64

/** Where a message was found last: the next one of the same batch is found from there, not from the batch's start. */
interface Place {
  batchPosition: number
  /** Index in the batch, and byte from its start. */
  index: number
  byte: number
}

const NO_BYTES = new Uint8Array(0)

export class Dispatcher {
  readonly #blocks: Blocks
  readonly #observer: Observer | undefined
  readonly #run = emptyRun()
  readonly #delivery: Delivery = { run: this.#run, firstTag: 0, count: 0, bytes: NO_BYTES, start: 0, end: 0 }
  readonly #places = new WeakMap<Queue, Place>()

  constructor(blocks: Blocks, observer: Observer | undefined) {
    this.#blocks = blocks
    this.#observer = observer
  }

  /**
   * Reads what `dispatch` could not do without. In a line that is read in order that is the batch and what follows it.
   * What is due can stand in order too, as heads of keys mostly do; otherwise it is read batch by batch, those of the
   * next ones with it.
   * @throws SluiceError CORRUPT; whatever the log's `readRange` throws
   */
  async load(queue: Queue, position: number): Promise<void> {
    if (this.#run.sinceMs === -1) return this.#blocks.load(position, true)
    const others = new Set<number>()
    let upcoming = 0
    let near = 0
    queue.upcoming(UPCOMING, (other) => {
      upcoming++
      if (other >= position && other - position < this.#blocks.readAheadBytes) near++
      if (other !== position && !this.#blocks.has(other)) others.add(other)
    })
    if (near * 2 > upcoming) return this.#blocks.load(position, true)
    const needed = this.#blocks.load(position, false)
    await Promise.all([needed, this.#blocks.loadAhead(others)])
  }

  /**
   * Hands out what can go now. Returns a position in the log that has to be loaded first, or -1.
   * @throws SluiceError CORRUPT
   */
  dispatch(queue: Queue, nowMs: number): number {
    const run = this.#run
    const subscriptions = queue.options.single ? sole(queue) : queue.subscriptions
    const served = subscriptions.length
    const shared = served > 1
    // A subscription whose byte credit is too small for the message at the head is passed over once.
    let passed = 0
    while (passed < served) {
      const subscription = subscriptions[queue.turn % served]!
      queue.turn = (queue.turn + 1) % served
      const room = subscription.consumer.isReady ? subscription.room : 0
      if (room <= 0) {
        passed++
        continue
      }
      if (!queue.nextRun(shared ? Math.min(room, SHARED_RUN_MESSAGES) : room, nowMs, run)) break
      // A suspect goes to whoever holds nothing else, and nothing else goes there until it is settled.
      if (run.alone && subscription.unsettled > 0) {
        passed++
        continue
      }
      const block = this.#blocks.findBatch(run.batchPosition)
      if (block === undefined) return run.batchPosition
      if (this.#deliver(queue, subscription, block, nowMs)) passed = 0
      else passed++
    }
    this.answerDrains(queue)
    return -1
  }

  /** Delivers the first part of the run that fits; false when not even one message does. */
  #deliver(queue: Queue, subscription: Subscription, block: Block, nowMs: number): boolean {
    const run = this.#run
    const bytes = block.bytes
    const batchAt = run.batchPosition - block.position
    const place = this.#place(queue, bytes, batchAt)
    const start = batchAt + place.byte
    const firstTag = subscription.claimTag(run.count)
    let at = start
    let count = 0
    let tag = firstTag
    while (count < run.count && (count === 0 || subscription.isFree(tag))) {
      const size = recordSize(bytes, at)
      if (!subscription.takes(size)) break
      subscription.grant(tag, run.offset + count, size, run.sinceMs, nowMs)
      at += size
      count++
      tag = (tag + 1) >>> 0
    }
    if (count === 0) return false
    if (!block.isFollowed) this.#loadNext(queue, block)
    if (run.alone) subscription.holdsSuspect = true
    // A first try is described by its batch alone; a further one also by facts, which may not be durable yet.
    run.durable = run.sinceMs === -1 && run.batchPosition < this.#blocks.durablePosition
    // That the one who had it before can no longer claim it after a restart is such a fact.
    if (run.redelivered && queue.former.isWatched) run.durable = false
    queue.lease(run, count, nowMs, subscription.consumer.label)
    place.index += count
    place.byte += at - start
    const delivery = this.#delivery
    delivery.firstTag = firstTag
    delivery.count = count
    delivery.bytes = bytes
    delivery.start = start
    delivery.end = at
    this.#observer?.delivered(subscription, delivery)
    subscription.consumer.deliver(subscription, delivery)
    return true
  }

  // Has what the queue needs after `block` read while the block is handed out.
  #loadNext(queue: Queue, block: Block): void {
    block.isFollowed = true
    const next = queue.liveBatchFrom(this.#run.offset, (position) => !holdsBatch(block, position))
    if (next !== -1) this.#blocks.loadEarly(next)
  }

  // Finds the first message of the run within its batch.
  #place(queue: Queue, bytes: Uint8Array, batchAt: number): Place {
    const run = this.#run
    let place = this.#places.get(queue)
    if (place === undefined) {
      place = { batchPosition: -1, index: 0, byte: 0 }
      this.#places.set(queue, place)
    }
    const index = indexInBatch(run, bytes, batchAt)
    if (place.batchPosition !== run.batchPosition) checkBatchAt(run, queue, bytes, batchAt)
    if (place.batchPosition !== run.batchPosition || place.index > index) {
      place.batchPosition = run.batchPosition
      place.index = 0
      place.byte = BATCH_HEADER_BYTES
    }
    while (place.index < index) {
      place.byte += recordSize(bytes, batchAt + place.byte)
      place.index++
    }
    return place
  }

  /** Tells those that asked for it that nothing more goes out now. */
  answerDrains(queue: Queue): void {
    for (const subscription of queue.subscriptions) {
      if (!subscription.draining || !subscription.consumer.isReady) continue
      this.#observer?.drained(subscription)
      subscription.answerDrain()
    }
  }
}

function sole(queue: Queue): readonly Subscription[] {
  const { soleSubscription } = queue
  return soleSubscription === undefined ? [] : [soleSubscription]
}
