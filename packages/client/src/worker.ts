/**
 * A consumer that calls a handler for each message and settles it as the handler ends.
 *
 * Messages are announced to the broker just before their handlers run. Where handlers take a millisecond or more that
 * is as many as have a free place, so that a crash is blamed on what was really running. Where a whole burst of them
 * is done within a millisecond, the next burst is twice as long: one frame announces it.
 */
import { OUTCOME, SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import { parseDuration, type Duration } from './duration.js'
import {
  clip,
  DeadLetter,
  Retry,
  type DeliveredMessage,
  type HandlerContext,
  type Message,
} from './message.js'
import type { Intake } from './options.js'
import { Subscription, type Consumer, type Session, type SubscriptionOwner } from './subscription.js'
import type { Starting } from './turn.js'

/**
 * Handles one message. When it resolves, the message is acknowledged. When it throws `DeadLetter`, the message is
 * given up; when it throws `Retry` or anything else, it is tried again. A handler that settles the message itself has
 * the first word: then its end means nothing.
 */
export type Handler<Body = unknown> = (message: Message<Body>, context: HandlerContext) => unknown

/** A running consumer, made by `consume`. */
export interface Worker extends AsyncDisposable {
  /** Name of the queue. */
  readonly queue: string
  /**
   * Resolves once the worker is closed; rejects with the SluiceError that ended it, such as QUEUE_NOT_FOUND or
   * QUEUE_DELETED. Not listening to it is safe.
   */
  readonly closed: Promise<void>
  /**
   * Takes no more messages, gives back those that no handler has begun with, waits for the handlers and until their
   * outcomes are durable.
   *
   * @param options `timeout`: default the client's. When it passes, the handlers' signals are aborted and their
   * messages go back to the queue.
   * @throws SluiceError TIMEOUT
   */
  close(options?: { readonly timeout?: Duration }): Promise<void>
}

const BURST_MAX = 4096
const BURST_MS = 1

/** A place for one running handler; kept and used again, so that a message costs no closure. */
class Place {
  message!: DeliveredMessage
  readonly done: () => void
  readonly failed: (error: unknown) => void

  constructor(worker: HandlerWorker) {
    this.done = () => worker.handled(this, true, undefined)
    this.failed = (error) => worker.handled(this, false, error)
  }
}

export class HandlerWorker implements Worker, Consumer, SubscriptionOwner, Starting {
  readonly queue: string
  readonly closed: Promise<void>
  readonly #session: Session
  readonly #intake: Intake
  readonly #handler: (message: DeliveredMessage, context: HandlerContext) => unknown
  readonly #forget: (worker: HandlerWorker) => void
  #subscription: Subscription | undefined
  readonly #free: Place[] = []
  #running = 0
  /** In the list of the turn. */
  #listed = false
  #burst: number
  #burstBeganMs = 0
  #closing: Promise<void> | undefined
  #finished = false
  #idleWaiters: (() => void)[] = []
  #subscribedWaiters: (() => void)[] = []
  #resolveClosed!: () => void
  #rejectClosed!: (error: SluiceError) => void

  constructor(
    session: Session,
    queue: string,
    intake: Intake,
    handler: Handler<never>,
    forget: (worker: HandlerWorker) => void,
  ) {
    this.#session = session
    this.queue = queue
    this.#intake = intake
    // The types of bodies are the caller's word; a handler gets what is there.
    this.#handler = handler as unknown as (message: DeliveredMessage, context: HandlerContext) => unknown
    this.#forget = forget
    this.#burst = intake.concurrency
    this.closed = new Promise((resolve, reject) => {
      this.#resolveClosed = resolve
      this.#rejectClosed = reject
    })
    this.closed.catch(() => {})
  }

  attach(connection: Connection): void {
    if (this.#closing !== undefined || this.#finished) return
    try {
      this.#subscription = new Subscription(this.#session, connection, this.queue, this.#intake, this)
    } catch (error) {
      this.ended(error as SluiceError)
    }
  }

  subscribed(): void {
    this.#tellSubscribed()
  }

  #tellSubscribed(): void {
    const waiters = this.#subscribedWaiters
    this.#subscribedWaiters = []
    for (const resolve of waiters) resolve()
  }

  delivered(): void {
    this.#list()
  }

  drained(): void {}

  #list(): void {
    if (this.#listed) return
    this.#listed = true
    this.#session.turn.start(this)
  }

  announce(): void {
    this.#listed = false
    const subscription = this.#subscription
    if (subscription === undefined || this.#closing !== undefined) return
    const idle = this.#running === 0 && subscription.announced === 0
    const free = this.#intake.concurrency - this.#running - subscription.announced
    subscription.announce(idle ? Math.max(this.#burst, free) : free)
    if (idle) this.#burstBeganMs = performance.now()
  }

  startHandlers(): void {
    const subscription = this.#subscription
    if (subscription === undefined) return
    while (
      subscription.announced > 0 &&
      this.#running < this.#intake.concurrency &&
      this.#closing === undefined
    )
      this.#start(subscription.take())
    if (this.#running === 0) this.#rested(subscription)
    else if (subscription.announced === 0 && this.#running < this.#intake.concurrency)
      this.#more(subscription)
  }

  #start(message: DeliveredMessage): void {
    let result: unknown
    try {
      result = this.#handler(message, message)
    } catch (error) {
      this.#failed(message, error)
      return
    }
    if (!isThenable(result)) {
      message.finish(OUTCOME.ack)
      return
    }
    const place = this.#free.pop() ?? new Place(this)
    place.message = message
    this.#running++
    result.then(place.done, place.failed)
  }

  /** The handler in `place` has ended. */
  handled(place: Place, succeeded: boolean, error: unknown): void {
    const { message } = place
    this.#free.push(place)
    this.#running--
    if (succeeded) message.finish(OUTCOME.ack)
    else this.#failed(message, error)
    const subscription = this.#subscription
    if (subscription !== undefined && this.#closing === undefined) {
      if (subscription.announced > 0) this.startHandlers()
      else if (this.#running === 0) this.#rested(subscription)
      else this.#more(subscription)
    }
    if (this.#running === 0 && this.#idleWaiters.length > 0) this.#tellIdle()
  }

  /** Nothing runs and nothing is announced: the burst is over. */
  #rested(subscription: Subscription): void {
    if (this.#burstBeganMs > 0) {
      const tookMs = performance.now() - this.#burstBeganMs
      this.#burstBeganMs = 0
      if (tookMs < BURST_MS) this.#burst = Math.min(this.#burst * 2, BURST_MAX)
      else if (tookMs > BURST_MS * 2) {
        const shorter = Math.floor((this.#burst * BURST_MS) / tookMs)
        this.#burst = Math.max(shorter, this.#intake.concurrency)
      }
    }
    this.#more(subscription)
  }

  // What is blocked is told by `delivered` when it may go on; asking again each turn would never let the loop rest.
  #more(subscription: Subscription): void {
    if (subscription.buffered > 0 && !subscription.blocked) this.#list()
  }

  #failed(message: DeliveredMessage, error: unknown): void {
    if (error instanceof DeadLetter) {
      message.finish(OUTCOME.deadLetter, undefined, clip(error.message))
      return
    }
    if (error instanceof Retry) {
      message.finish(OUTCOME.retry, error.delayMs, error.message === '' ? undefined : clip(error.message))
      return
    }
    message.finish(OUTCOME.retry, undefined, clip(reasonOf(error)))
    const { queue, offset, attempt } = message
    this.#session.handlerFailed({ queue, offset, attempt, error })
  }

  #tellIdle(): void {
    const waiters = this.#idleWaiters
    this.#idleWaiters = []
    for (const resolve of waiters) resolve()
  }

  lost(): void {
    this.#subscription = undefined
    this.#burst = this.#intake.concurrency
    this.#tellSubscribed()
  }

  ended(error: SluiceError): void {
    this.#subscription = undefined
    this.#tellSubscribed()
    // While closing this is one more way to the same end.
    if (this.#closing !== undefined || this.#finished) return
    this.#finish(error)
    this.#session.report(error)
  }

  fail(error: SluiceError): void {
    this.#subscription = undefined
    if (error.code === 'CLOSED') this.#finish(undefined)
    else this.#finish(error)
  }

  #finish(error: SluiceError | undefined): void {
    if (this.#finished) return
    this.#finished = true
    this.#forget(this)
    if (error === undefined) this.#resolveClosed()
    else this.#rejectClosed(error)
  }

  close(options: { readonly timeout?: Duration } = {}): Promise<void> {
    if (this.#closing === undefined) {
      const timeoutMs =
        options.timeout === undefined ? this.#session.timeoutMs : parseDuration(options.timeout, 'timeout')
      this.#closing = this.#finished ? Promise.resolve() : this.#close(timeoutMs)
    }
    return this.#closing
  }

  async #close(timeoutMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const overdue = new Promise<boolean>((resolve) => {
      timer = setTimeout(resolve, timeoutMs, false)
    })
    const inTime = await Promise.race([this.#drain(), overdue])
    clearTimeout(timer)
    if (inTime) {
      this.#finish(undefined)
      return
    }
    const error = new SluiceError(
      'TIMEOUT',
      `${this.#running} handlers of ${this.queue} were still running after ${timeoutMs} ms; their messages go back.`,
    )
    this.#subscription?.abortHandlers(error)
    void this.#subscription?.unsubscribe()
    this.#finish(undefined)
    throw error
  }

  async #drain(): Promise<true> {
    const subscription = this.#subscription
    if (subscription !== undefined) {
      if (!subscription.open) await new Promise<void>((resolve) => this.#subscribedWaiters.push(resolve))
      await subscription.stop()
      subscription.releaseBuffered()
    }
    if (this.#running > 0) await new Promise<void>((resolve) => this.#idleWaiters.push(resolve))
    await subscription?.settled()
    await subscription?.unsubscribe()
    return true
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function'
  )
}

function reasonOf(error: unknown): string {
  try {
    return error instanceof Error && error.message !== '' ? error.message : String(error)
  } catch {
    return 'the handler threw something that has no text'
  }
}
