/**
 * A worker whose handler gets one message at a time, in order of arrival.
 *
 * Messages are announced to the broker just before their handlers run. When handlers take a millisecond or more, only
 * as many messages are announced as there are free places for handlers, so that after a crash of the process the broker
 * suspects only messages whose handlers were running, if there are any. The messages that one frame announces are a
 * burst. When a whole burst is done within a millisecond, the next burst is twice as long. When a handler of a burst is
 * slow after all, the next turn tells the broker which messages of the burst have started.
 */
import { OUTCOME } from '@sluice/protocol'
import { Running } from './awaiting.js'
import { callHandler, Thrown, type Caller, type Follower } from './endings.js'
import type { DeliveredMessage, HandlerContext } from './message.js'
import type { WorkerSettings } from './options.js'
import type { Session } from './session.js'
import type { Subscription } from './subscription.js'
import { ConsumingWorker } from './worker.js'

const BURST_MAX = 4096
const BURST_MS = 1

/** Holds one running handler. Places are reused, so that no closure is made for a message. */
class Place extends Running implements Follower {
  message!: DeliveredMessage
  readonly done: () => void
  readonly failed: (error: unknown) => void

  constructor(worker: SingleWorker) {
    super()
    this.done = () => worker.handled(this, true, undefined)
    this.failed = (error) => worker.handled(this, false, error)
  }
}

export type SingleHandler = (message: DeliveredMessage, context: HandlerContext) => unknown

export class SingleWorker extends ConsumingWorker implements Caller<DeliveredMessage, Place> {
  readonly #handler: SingleHandler
  readonly #places: Place[] = []
  readonly #free: Place[] = []
  #burst: number
  #burstBeganMs = 0

  constructor(
    session: Session,
    queue: string,
    settings: WorkerSettings,
    handler: SingleHandler,
    forget: (worker: ConsumingWorker) => void,
  ) {
    super(session, queue, settings, forget)
    this.#handler = handler
    this.#burst = settings.concurrency
  }

  protected announceNext(subscription: Subscription): void {
    if (subscription.announcements.nameStarted()) this.#shorten()
    const idle = this.running === 0
    const free = this.settings.concurrency - this.running
    subscription.announcements.announce(idle ? Math.max(this.#burst, free) : free, free)
    if (idle) this.#burstBeganMs = performance.now()
  }

  startHandlers(): void {
    const { subscription } = this
    if (subscription === undefined) return
    while (subscription.announced > 0 && this.running < this.settings.concurrency && !this.isClosing)
      this.#start(subscription.take())
    if (this.running === 0) this.#rested(subscription)
    else if (subscription.announced === 0 && this.running < this.settings.concurrency)
      this.#more(subscription)
    if (subscription.announcements.isStarting) this.requestStart()
  }

  #start(message: DeliveredMessage): void {
    const end = callHandler(this.#handler, message, message, this)
    if (end === undefined) message.finish(OUTCOME.ack)
    else if (end instanceof Thrown) this.failed([message], end.error)
    else this.running++
  }

  follower(message: DeliveredMessage): Place {
    const place = this.#free.pop() ?? this.#newPlace()
    place.message = message
    return place
  }

  unfollowed(place: Place): void {
    this.#free.push(place)
  }

  #newPlace(): Place {
    const place = new Place(this)
    this.#places.push(place)
    return place
  }

  protected handlers(): readonly Running[] {
    return this.#places.filter(({ ended }) => ended !== undefined)
  }

  protected messagesOf(place: Running): readonly DeliveredMessage[] {
    return [(place as Place).message]
  }

  leasesLost(tags: ReadonlySet<number>): readonly DeliveredMessage[] {
    this.orphan(tags)
    return []
  }

  /** Called when the handler in `place` has ended. */
  handled(place: Place, succeeded: boolean, error: unknown): void {
    const { message } = place
    place.ended = undefined
    if (place.orphaned !== undefined) this.handlerEnded(place)
    this.#free.push(place)
    this.running--
    if (succeeded) message.finish(OUTCOME.ack)
    else this.failed([message], error)
    const { subscription } = this
    if (subscription !== undefined && !this.isClosing) {
      if (subscription.announced > 0) this.startHandlers()
      else if (this.running === 0) this.#rested(subscription)
      else this.#more(subscription)
    }
    this.notifyIdle()
  }

  /** Called when the burst has ended: no handler runs and no message is announced. */
  #rested(subscription: Subscription): void {
    if (this.#burstBeganMs > 0) {
      const tookMs = performance.now() - this.#burstBeganMs
      this.#burstBeganMs = 0
      if (tookMs < BURST_MS) this.#burst = Math.min(this.#burst * 2, BURST_MAX)
      else if (tookMs > BURST_MS * 2) {
        const shorter = Math.floor((this.#burst * BURST_MS) / tookMs)
        this.#burst = Math.max(shorter, this.settings.concurrency)
      }
    }
    this.#more(subscription)
  }

  #shorten(): void {
    this.#burst = Math.max(this.#burst >> 1, this.settings.concurrency)
    this.#burstBeganMs = 0
  }

  // A blocked subscription calls `mayStart` when it may continue. Checking in each turn would keep the event loop busy.
  #more(subscription: Subscription): void {
    if (subscription.buffered > 0 && !subscription.announcements.blocked) this.requestStart()
  }

  protected forgetMessages(): void {
    this.#burst = this.settings.concurrency
  }

  protected giveBack(subscription: Subscription): void {
    subscription.releaseBuffered()
  }
}
