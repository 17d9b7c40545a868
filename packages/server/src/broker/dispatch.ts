/**
 * Delivery: takes runs from a queue's line and gives them to its subscriptions in turn, within their credit. The only
 * place that joins what the queue knows (offsets) with the bytes (blocks of the log).
 *
 * The end of the turn calls it for each queue that may have something to deliver. What is not in memory is read first, and
 * then the queue is served again; where it cannot be read, the subscriptions end, nothing is dropped, and everything else
 * goes on.
 */
import { BATCH_HEADER_BYTES, SluiceError, recordSize } from '@sluice/protocol'
import { holdsBatch, type Block, type Blocks } from '../log/blocks.js'
import {
  checkBatchAt,
  emptyRun,
  indexInBatch,
  type Delivery,
  type Queue,
  type Subscription,
} from '../queue/index.js'
import type { Leases } from './leases.js'
import type { Observer } from './observer.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Most messages in one run when several consumers share a queue. */
const SHARED_RUN_MESSAGES = 64

/**
 * Messages that are looked at for what to read with the one that is needed. Where each is due by itself, 64 rather than 16
 * halved how late they are.
 */
const UPCOMING = 64

/** How far the delivery of a queue has come. */
interface Course {
  /** Which subscription is served next. */
  nextSubscription: number
  /** It waits for bytes from the disk. */
  isLoading: boolean
  /** Place in the log that could not be read; -1: none. */
  unreadablePosition: number
  /** Where a message was found last: the next one of the same batch is found from there, not from the batch's start. */
  batchPosition: number
  /** Index of that message in the batch, and its byte from the batch's start. */
  index: number
  byte: number
}

const NO_BYTES = new Uint8Array(0)

export interface DispatchOptions {
  readonly onNotice?: ((event: string, details: object) => void) | undefined
  readonly observer?: Observer | undefined
}

export class Dispatcher {
  readonly #blocks: Blocks
  readonly #writer: Writer
  readonly #leases: Leases
  readonly #turn: Turn
  readonly #onNotice: ((event: string, details: object) => void) | undefined
  readonly #observer: Observer | undefined
  readonly #run = emptyRun()
  readonly #delivery: Delivery = { run: this.#run, firstTag: 0, count: 0, bytes: NO_BYTES, start: 0, end: 0 }
  readonly #courses = new WeakMap<Queue, Course>()

  constructor(
    blocks: Blocks,
    writer: Writer,
    leases: Leases,
    turn: Turn,
    { onNotice, observer }: DispatchOptions,
  ) {
    this.#blocks = blocks
    this.#writer = writer
    this.#leases = leases
    this.#turn = turn
    this.#onNotice = onNotice
    this.#observer = observer
  }

  /** Delivers what can be delivered now. */
  dispatch(queue: Queue): void {
    if (queue.paused) {
      this.#answerDrains(queue)
      return
    }
    if (queue.subscriptions.length === 0) return
    const course = this.#courseOf(queue)
    if (course.isLoading) return
    let position: number
    try {
      position = this.#serve(queue, course)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      this.#end(queue, error)
      return
    }
    this.#writer.note(queue)
    this.#turn.armQueue(queue)
    if (position === -1) return
    course.isLoading = true
    this.#load(queue, position).then(
      () => {
        course.isLoading = false
        this.#turn.activate(queue)
      },
      (error: unknown) => {
        course.isLoading = false
        this.#readFailed(queue, course, position, error)
      },
    )
  }

  #courseOf(queue: Queue): Course {
    let course = this.#courses.get(queue)
    if (course === undefined) {
      course = {
        nextSubscription: 0,
        isLoading: false,
        unreadablePosition: -1,
        batchPosition: -1,
        index: 0,
        byte: 0,
      }
      this.#courses.set(queue, course)
    }
    return course
  }

  #readFailed(queue: Queue, course: Course, position: number, error: unknown): void {
    // If it may succeed the next time, the log has waited between its tries, and reported it; consumers wait on.
    const isPassing = error instanceof SluiceError && error.code === 'READ_FAILED'
    if (isPassing || course.unreadablePosition !== position) {
      // It may have been purged meanwhile, and its segment given back: looked at once more.
      if (!isPassing) course.unreadablePosition = position
      this.#turn.activate(queue)
      return
    }
    this.#onNotice?.('stored messages could not be read', { queue: queue.name, position, error })
    const cause = error instanceof SluiceError ? error.message : 'They could not be read from disk.'
    const text = `Messages of the queue ${queue.name} cannot be delivered. ${cause}`
    this.#end(queue, new SluiceError('CORRUPT', text, { cause: error }))
  }

  // What is stored cannot be delivered.
  #end(queue: Queue, error: SluiceError): void {
    this.#onNotice?.('subscriptions ended', { queue: queue.name, error: error.message })
    this.#leases.closeAll(queue, error)
  }

  /**
   * Reads what `#serve` could not do without. In a line that is read in order that is the batch and what follows it.
   * What is due can stand in order too, as heads of keys mostly do; otherwise it is read batch by batch, those of the
   * next ones with it.
   * @throws SluiceError CORRUPT; whatever the log's `readRange` throws
   */
  async #load(queue: Queue, position: number): Promise<void> {
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

  // Returns a position in the log that has to be loaded first, or -1. @throws SluiceError CORRUPT
  #serve(queue: Queue, course: Course): number {
    const { nowMs } = this.#turn
    const run = this.#run
    const subscriptions = queue.options.single ? sole(queue) : queue.subscriptions
    const served = subscriptions.length
    const shared = served > 1
    // A subscription whose byte credit is too small for the message at the head is passed over once.
    let passed = 0
    while (passed < served) {
      const subscription = subscriptions[course.nextSubscription % served]!
      course.nextSubscription = (course.nextSubscription + 1) % served
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
      if (this.#deliver(queue, course, subscription, block, nowMs)) passed = 0
      else passed++
    }
    this.#answerDrains(queue)
    return -1
  }

  /** Delivers the first part of the run that fits; false when not even one message does. */
  #deliver(queue: Queue, course: Course, subscription: Subscription, block: Block, nowMs: number): boolean {
    const run = this.#run
    const bytes = block.bytes
    const batchAt = run.batchPosition - block.position
    this.#find(queue, course, bytes, batchAt)
    const start = batchAt + course.byte
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
    course.index += count
    course.byte += at - start
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
    const next = queue.chunks.liveBatchFrom(this.#run.offset, (position) => !holdsBatch(block, position))
    if (next !== -1) this.#blocks.loadEarly(next)
  }

  // Finds the first message of the run within its batch.
  #find(queue: Queue, course: Course, bytes: Uint8Array, batchAt: number): void {
    const run = this.#run
    const index = indexInBatch(run, bytes, batchAt)
    if (course.batchPosition !== run.batchPosition) checkBatchAt(run, queue, bytes, batchAt)
    if (course.batchPosition !== run.batchPosition || course.index > index) {
      course.batchPosition = run.batchPosition
      course.index = 0
      course.byte = BATCH_HEADER_BYTES
    }
    while (course.index < index) {
      course.byte += recordSize(bytes, batchAt + course.byte)
      course.index++
    }
  }

  // Tells those that asked for it that nothing more goes out now.
  #answerDrains(queue: Queue): void {
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
