/**
 * Delivery: takes runs from the line of a queue and delivers them to its subscriptions in turn, within their credit.
 * For deliveries, this is the only place that joins offsets, which the queue knows, with bytes, which are in blocks of
 * the log; `Records` does the same for single messages.
 *
 * Called at the end of a turn for each queue that may have something to deliver. If a block is not in memory, it is
 * loaded and the queue is served again. If a read fails, it is repeated and the consumers wait. If the
 * block is damaged, the subscriptions of the queue end; no message is dropped, and other queues are not affected.
 */
import { SluiceError, recordSize } from '@sluice/protocol'
import { holdsBatch, type Block, type Blocks } from '../log/blocks.js'
import { FROM_PLAIN_LINE, emptyRun, type Delivery, type Queue, type Subscription } from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import { ENTERED, type Feeds } from './feeds.js'
import type { Leases } from './leases.js'
import type { Observer } from './observer.js'
import { RecordCursor } from './record-cursor.js'
import type { Turn } from './turn.js'
import type { Writer } from './writer.js'

/** Maximum number of messages in one run when several consumers share a queue. */
const SHARED_RUN_MESSAGES = 64

/**
 * Number of upcoming messages whose batches are loaded together with the batch that is needed now. In a test with a
 * due time for each message, 64 instead of 16 halved the delay of the deliveries.
 */
const UPCOMING = 64

/** Progress of the delivery of one queue. */
interface Progress {
  /** Index of the subscription to serve next. */
  nextSubscription: number
  /** Whether a block is being loaded. */
  isLoading: boolean
  /** Position of the batch that could not be read; -1 if there is no such batch. */
  unreadablePosition: number
  readonly records: RecordCursor
}

const NO_BYTES = new Uint8Array(0)

export interface DispatchOptions {
  readonly onNotice?: ((event: string, details: object) => void) | undefined
  readonly observer?: Observer | undefined
}

export class Dispatcher {
  readonly #blocks: Blocks
  readonly #cold: ColdChunks
  readonly #feeds: Feeds
  readonly #writer: Writer
  readonly #leases: Leases
  readonly #turn: Turn
  readonly #onNotice: ((event: string, details: object) => void) | undefined
  readonly #observer: Observer | undefined
  readonly #run = emptyRun()
  readonly #delivery: Delivery = { run: this.#run, firstTag: 0, count: 0, bytes: NO_BYTES, start: 0, end: 0 }
  readonly #progress = new WeakMap<Queue, Progress>()

  constructor(
    blocks: Blocks,
    cold: ColdChunks,
    feeds: Feeds,
    writer: Writer,
    leases: Leases,
    turn: Turn,
    { onNotice, observer }: DispatchOptions,
  ) {
    this.#blocks = blocks
    this.#cold = cold
    this.#feeds = feeds
    this.#writer = writer
    this.#leases = leases
    this.#turn = turn
    this.#onNotice = onNotice
    this.#observer = observer
  }

  /** Delivers all messages that the credit and the blocks in memory allow. */
  dispatch(queue: Queue): void {
    if (queue.paused) {
      this.#answerDrains(queue)
      return
    }
    // While due messages are not ready yet, the message to deliver first is unknown.
    if (queue.subscriptions.length === 0 || queue.hasMoreDue) return
    const progress = this.#progressOf(queue)
    if (progress.isLoading) return
    let position: number
    try {
      position = this.#serve(queue, progress)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      this.#end(queue, error)
      return
    }
    this.#writer.note(queue)
    this.#turn.armQueue(queue)
    this.#turn.follow(queue)
    if (position === -1) return
    progress.isLoading = true
    this.#load(queue, position).then(
      () => {
        progress.isLoading = false
        this.#turn.activate(queue)
      },
      (error: unknown) => {
        progress.isLoading = false
        this.#readFailed(queue, progress, position, error)
      },
    )
  }

  /** Whether the message that the queue delivers next is being read from the disk. */
  isReading(queue: Queue): boolean {
    return this.#progress.get(queue)?.isLoading === true
  }

  #progressOf(queue: Queue): Progress {
    let progress = this.#progress.get(queue)
    if (progress === undefined) {
      progress = {
        nextSubscription: 0,
        isLoading: false,
        unreadablePosition: -1,
        records: new RecordCursor(),
      }
      this.#progress.set(queue, progress)
    }
    return progress
  }

  #readFailed(queue: Queue, progress: Progress, position: number, error: unknown): void {
    // The log has already repeated the read after pauses and has reported the failure. A later read may succeed, so
    // consumers keep waiting.
    const isPassing = error instanceof SluiceError && error.code === 'READ_FAILED'
    if (isPassing || progress.unreadablePosition !== position) {
      // In the meantime the messages may have been purged and their segment freed. So the queue is served again. A
      // second failure with the same batch is final.
      if (!isPassing) progress.unreadablePosition = position
      this.#turn.activate(queue)
      return
    }
    this.#onNotice?.('stored messages could not be read', { queue: queue.name, position, error })
    const cause = error instanceof SluiceError ? error.message : 'They could not be read from disk.'
    const text = `Messages of the queue ${queue.name} cannot be delivered. ${cause}`
    this.#end(queue, new SluiceError('CORRUPT', text, { cause: error }))
  }

  // Ends the subscriptions of a queue whose messages cannot be read.
  #end(queue: Queue, error: SluiceError): void {
    this.#onNotice?.('subscriptions ended', { queue: queue.name, error: error.message })
    this.#leases.closeAll(queue, error)
  }

  /**
   * Loads the block that `#serve` needs. Messages without options are stored in order of delivery, so the block is
   * read together with the following blocks. Due messages and the first messages of keys are often stored in order
   * too; if they are not, each of the next batches is loaded separately.
   * @throws SluiceError CORRUPT; errors of the log's `readRange`
   */
  async #load(queue: Queue, position: number): Promise<void> {
    if (this.#run.sinceMs === FROM_PLAIN_LINE || queue.coldOffset !== -1)
      return this.#blocks.load(position, true)
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

  // Delivers until credit, messages or loaded blocks run out. Returns the position in the log that must be loaded before
  // the delivery can continue; -1 if nothing must be loaded. @throws SluiceError CORRUPT
  #serve(queue: Queue, progress: Progress): number {
    const { nowMs, budget, enterBudget } = this.#turn
    const run = this.#run
    const { bucket } = queue
    if (bucket !== undefined) bucket.wakeMs = Infinity
    const subscriptions = queue.options.single ? sole(queue) : queue.subscriptions
    const served = subscriptions.length
    const shared = served > 1
    // Number of consecutive subscriptions that could not take the next message. The loop ends when no subscription
    // could take it.
    let passed = 0
    let hasEntered = false
    while (passed < served) {
      const subscription = subscriptions[progress.nextSubscription % served]!
      progress.nextSubscription = (progress.nextSubscription + 1) % served
      let room = subscription.consumer.isReady ? subscription.room : 0
      if (room <= 0) {
        passed++
        continue
      }
      if (bucket !== undefined) {
        room = Math.min(room, bucket.available(nowMs))
        if (room === 0) {
          bucket.wakeMs = bucket.nextMs
          break
        }
      }
      const isFound = queue.nextRun(shared ? Math.min(room, SHARED_RUN_MESSAGES) : room, nowMs, run, budget)
      if (queue.isBehind && (!isFound || this.#feeds.precedes(queue, run))) {
        if (enterBudget.left <= 0) {
          this.#turn.continueEntering(queue, hasEntered)
          return -1
        }
        const position = this.#feeds.enter(queue, enterBudget)
        if (position >= 0) return position
        if (position === ENTERED) {
          hasEntered = true
          passed = 0
          continue
        }
      }
      if (!isFound) {
        const { coldOffset } = queue
        if (coldOffset === -1) {
          // More messages may be ready after further expired ones are removed.
          if (queue.hasMoreExpired) return -1
          break
        }
        if (!this.#cold.takeBack(queue, coldOffset)) return this.#cold.positionOf(queue, coldOffset)
        passed = 0
        continue
      }
      // A suspect is delivered only to a subscription that holds no other message; that subscription gets no other
      // message until the suspect is settled.
      if (run.alone && subscription.unsettled > 0) {
        passed++
        continue
      }
      const block = this.#blocks.findBatch(run.batchPosition)
      if (block === undefined) return run.batchPosition
      if (this.#deliver(queue, progress, subscription, block, nowMs)) passed = 0
      else passed++
    }
    this.#answerDrains(queue)
    return -1
  }

  /** Delivers the first messages of the run, as many as fit. Returns false if not even the first message fits. */
  #deliver(
    queue: Queue,
    progress: Progress,
    subscription: Subscription,
    block: Block,
    nowMs: number,
  ): boolean {
    const run = this.#run
    const bytes = block.bytes
    const batchAt = run.batchPosition - block.position
    const start = progress.records.find(run, run.count, queue, block, batchAt)
    const firstTag = subscription.nextTag(run.count)
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
    // A message of the plain line requires only that its batch is on disk: no fact put the message in that line (a
    // release has no fact). A due or keyed message is in its place because of facts, which may not be durable yet.
    run.ungated = run.sinceMs === FROM_PLAIN_LINE && run.batchPosition < this.#blocks.durablePosition
    // A message of a group is delivered only after the fact that it entered is on disk. Otherwise it would not be marked as
    // redelivered after a crash.
    if (queue.group !== undefined) run.ungated = false
    // While leases of the queue can be claimed after a restart, a redelivery requires one more fact on disk: the fact
    // after which the previous consumer can no longer claim the message.
    if (run.redelivered && queue.former.isWatched) run.ungated = false
    queue.lease(run, count, nowMs, subscription.consumer.label)
    progress.records.advance(count, at - start)
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

  // Starts to load the block that the queue needs after `block`, while `block` is being delivered.
  #loadNext(queue: Queue, block: Block): void {
    block.isFollowed = true
    const next = queue.chunks.liveBatchFrom(this.#run.offset, (position) => !holdsBatch(block, position))
    if (next !== -1) {
      this.#blocks.loadEarly(next)
      return
    }
    const cold = queue.chunks.coldAfter(this.#run.offset)
    if (cold !== -1) this.#blocks.loadEarly(this.#cold.positionOf(queue, cold))
  }

  // Answers the drain requests of subscriptions, because nothing more is delivered now.
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
