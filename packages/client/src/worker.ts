/**
 * A consumer that calls a handler for delivered messages, from its first subscription to its close, over any number of
 * connections. `SingleWorker` and `GroupWorker` decide when the handler is called, and with which messages.
 */
import { SluiceError, Timer, durationText } from '@sluice/protocol'
import { excuseAwaiting, nextTurn, type Running } from './awaiting.js'
import type { Claims } from './claims.js'
import type { Connection } from './connection.js'
import type { Duration } from './duration.js'
import { endingOf } from './endings.js'
import { lossBy } from './losses.js'
import type { DeliveredMessage, HandlerContext, Message } from './message.js'
import { closeTimeoutMs, type WorkerSettings } from './options.js'
import { Renewal } from './renewal.js'
import { retire } from './retired.js'
import type { Held } from './orphans.js'
import type { Consumer, Session } from './session.js'
import { Subscription, type SubscriptionOwner } from './subscription.js'
import type { Starting } from './turn.js'
import { Waiters } from './waiters.js'

/**
 * Handles one message. When the handler returns or resolves, the message is acknowledged. When the handler throws
 * `DeadLetter`, the message becomes a dead letter. When the handler throws `Retry` or anything else, the attempt
 * counts as failed, and the message is delivered again or, after its last attempt, becomes a dead letter. If the
 * handler settles the message itself, the end of the handler has no effect.
 */
export type Handler<Body = unknown> = (message: Message<Body>, context: HandlerContext) => unknown

/**
 * Handles several messages at a time. When the handler ends, each message that it has not settled itself is settled in
 * the same way as the message of a `Handler`.
 */
export type BatchHandler<Body = unknown> = (messages: Message<Body>[], context: HandlerContext) => unknown

/** A running consumer, made by `consume`. */
export interface Worker extends AsyncDisposable {
  /** Name of the queue. */
  readonly queue: string
  /**
   * Resolves once the worker is closed. Rejects with the SluiceError that ended the worker: CONSUMER_CLOSED if an
   * operator closed it; with `missing: 'fail'`, QUEUE_NOT_FOUND or QUEUE_DELETED. It is safe not to await this promise.
   */
  readonly closed: Promise<void>
  /**
   * Stops the worker: releases messages without a handler, and resolves when all handlers have ended and their outcomes are
   * durable. It does not wait for a handler that awaits `close` itself; the outcome of that handler counts later.
   *
   * @param options `timeout`, default: the timeout of the client. When it passes, the signals of the handlers are
   * aborted, and their messages return to the queue. With 0 this happens at once, without an error.
   * @throws SluiceError TIMEOUT, INVALID_ARGUMENT
   */
  close(options?: { readonly timeout?: Duration }): Promise<void>
}

export abstract class ConsumingWorker implements Worker, Consumer, SubscriptionOwner, Starting {
  readonly queue: string
  readonly closed: Promise<void>
  protected readonly settings: WorkerSettings
  protected subscription: Subscription | undefined
  /** Number of running handlers. */
  protected running = 0
  readonly #session: Session
  readonly #forget: (worker: ConsumingWorker) => void
  readonly #renewal: Renewal
  /** Leases that the handlers had on a lost connection. */
  #claims: Claims | undefined
  /** Whether the turn has this worker in its list. */
  #listed = false
  #closing: Promise<void> | undefined
  #finished = false
  readonly #idle = new Waiters()
  /** Notified when a subscription is open, or when there is no subscription any more. */
  readonly #subscribed = new Waiters()
  #resolveClosed!: () => void
  #rejectClosed!: (error: SluiceError) => void

  constructor(
    session: Session,
    queue: string,
    settings: WorkerSettings,
    forget: (worker: ConsumingWorker) => void,
  ) {
    this.#session = session
    this.queue = queue
    this.settings = settings
    this.#forget = forget
    this.#renewal = new Renewal(session, queue, settings.waitsForQueue, (connection) =>
      this.attach(connection),
    )
    this.closed = new Promise((resolve, reject) => {
      this.#resolveClosed = resolve
      this.#rejectClosed = reject
    })
    this.closed.catch(() => {})
  }

  protected get isClosing(): boolean {
    return this.#closing !== undefined
  }

  attach(connection: Connection): void {
    if (this.#finished || this.subscription !== undefined) return
    const claims = this.#claims
    const isClosing = this.#closing !== undefined
    // A closing worker subscribes again only so that the outcomes of its handlers count.
    if (isClosing && claims === undefined) return
    this.#renewal.cancel()
    this.#claims = undefined
    const terms = { ...this.settings, claims, ...(isClosing ? { limit: 0 } : {}) }
    try {
      this.subscription = new Subscription(this.#session, connection, this.queue, terms, this)
    } catch (error) {
      this.ended(error as SluiceError, claims)
    }
  }

  subscribed(): void {
    this.#renewal.subscribed()
    this.#subscribed.notify()
  }

  mayStart(): void {
    this.requestStart()
  }

  drained(): void {}

  /** Requests `announce` and `startHandlers` at the end of the turn. */
  protected requestStart(): void {
    if (this.#listed) return
    this.#listed = true
    this.#session.turn.start(this)
  }

  announce(): void {
    this.#listed = false
    if (this.subscription !== undefined && this.#closing === undefined) this.announceNext(this.subscription)
  }

  /** Announces the messages whose handlers `startHandlers` calls. */
  protected abstract announceNext(subscription: Subscription): void

  abstract startHandlers(): void

  /** Forgets the messages of the subscription, which has ended. */
  protected abstract forgetMessages(): void

  /** Releases all messages that were not passed to a handler. */
  protected abstract giveBack(subscription: Subscription): void

  /** Called when the handler of these messages failed with `error`. */
  protected failed(messages: readonly DeliveredMessage[], error: unknown): void {
    const { outcome, delayMs, reason, detail, isFailure } = endingOf(error)
    for (const message of messages) message.finish(outcome, delayMs, reason, detail)
    if (!isFailure) return
    const { queue, offset, attempt } = messages[0]!
    this.#session.handlerFailed({ queue, offset, attempt, messages: messages.length, error })
  }

  get runningHandlers(): number {
    return this.running
  }

  /** The running handlers. */
  protected abstract handlers(): readonly Running[]

  #isIdle(): boolean {
    return this.running === 0 || this.handlers().every(({ isExcused }) => isExcused)
  }

  /** Called when a handler has ended, or when the worker no longer waits for it. */
  protected notifyIdle(): void {
    if (this.#idle.any && this.#isIdle()) this.#idle.notify()
  }

  lost(claims: Claims | undefined): void {
    this.orphan()
    if (this.#finished) claims?.refuse('disconnected')
    else this.#claims = claims
    this.#leave()
    this.#subscribed.notify()
  }

  #leave(): void {
    this.subscription = undefined
    this.forgetMessages()
  }

  handling(): readonly DeliveredMessage[] {
    return this.handlers().flatMap((handler) => this.messagesOf(handler))
  }

  /**
   * Marks the handlers of these tags, or all handlers, as orphaned: they may have lost their leases. No other handler
   * gets the messages of these handlers before these handlers have ended.
   */
  protected orphan(tags?: ReadonlySet<number>): void {
    const { orphans } = this.#session
    for (const handler of this.handlers()) {
      const messages = this.messagesOf(handler)
      if (
        handler.orphaned !== undefined ||
        (tags !== undefined && !messages.some((one) => one.isAmong(tags)))
      )
        continue
      const held = new Set<Held>()
      for (const { offset, key } of messages) {
        held.add(offset)
        if (this.settings.ordered && key !== undefined) held.add(key)
      }
      handler.orphaned = orphans.begin(this.queue, [...held])
    }
  }

  /** Called when a handler has ended: messages that waited for it can start. */
  protected handlerEnded(handler: Running): void {
    const { orphaned } = handler
    if (orphaned === undefined) return
    handler.orphaned = undefined
    orphaned()
  }

  protected abstract messagesOf(handler: Running): readonly DeliveredMessage[]

  ended(error: SluiceError, claims: Claims | undefined): void {
    // A queue that is created again starts at offset 0, so the same offsets belong to other messages.
    if (error.code !== 'QUEUE_DELETED') this.orphan()
    this.#leave()
    this.#subscribed.notify()
    // A closing worker ends here, unless handlers can still claim their leases.
    const claimsAgain = claims !== undefined && error.retryable
    const isOver = this.#finished || (this.#closing !== undefined && !claimsAgain)
    if (!isOver && this.#renewal.renews(error)) {
      this.#claims = claims
      return
    }
    claims?.refuse(lossBy(error))
    if (isOver) return
    const about = error.with({ queue: this.queue })
    this.#finish(about)
    this.#session.report(about)
  }

  fail(error: SluiceError): void {
    this.#leave()
    if (error.code === 'CLOSED') this.#finish(undefined)
    else this.#finish(error)
  }

  #finish(error: SluiceError | undefined): void {
    if (this.#finished) return
    this.#finished = true
    this.#renewal.cancel()
    this.#claims?.refuse(undefined)
    this.#claims = undefined
    this.#forget(this)
    if (error === undefined) this.#resolveClosed()
    else this.#rejectClosed(error)
  }

  async close(options: { readonly timeout?: Duration } = {}): Promise<void> {
    const timeoutMs = closeTimeoutMs(options, this.#session.timeoutMs)
    if (this.#closing === undefined) {
      this.#closing = this.#finished ? Promise.resolve() : this.#close(timeoutMs)
      this.#closing.catch(() => {})
    }
    await this.#ending(this.#closing)
  }

  // This runs in each call of `close`, because only the stack of a call shows which function awaits it.
  async #ending(closing: Promise<void>): Promise<void> {
    await nextTurn()
    this.excuse()
    try {
      await closing
    } catch (error) {
      throw (error as SluiceError).with({ queue: this.queue })
    }
  }

  /** Stops waiting for handlers in the chain of async callers of this function; see `excuseAwaiting`. */
  excuse(): void {
    excuseAwaiting(this.handlers())
    this.notifyIdle()
  }

  async #close(timeoutMs: number): Promise<void> {
    if (timeoutMs === 0) {
      this.#giveUp(new SluiceError('CLOSED', `The worker of ${this.queue} was closed.`))
      return
    }
    let timer: Timer | undefined
    const overdue = new Promise<boolean>((resolve) => {
      timer = new Timer(() => resolve(false), timeoutMs)
    })
    const inTime = await Promise.race([this.#drain(), overdue])
    timer?.cancel()
    if (inTime) {
      this.#finish(undefined)
      return
    }
    const error = new SluiceError(
      'TIMEOUT',
      `${this.running} handlers of ${this.queue} were still running after ${durationText(timeoutMs)}; their messages are released.`,
    )
    this.#giveUp(error)
    throw error
  }

  #giveUp(reason: SluiceError): void {
    this.subscription?.abortHandlers(reason)
    this.#claims?.abortHandlers(reason)
    void this.subscription?.unsubscribe()
    this.forgetMessages()
    this.#finish(undefined)
  }

  async #drain(): Promise<true> {
    const { subscription } = this
    if (subscription !== undefined) {
      if (!subscription.open) await this.#subscribed.wait()
      await subscription.stop()
      this.giveBack(subscription)
    }
    if (!this.#isIdle()) await this.#idle.wait()
    // Messages that were leased on a lost connection are settled on the next connection.
    for (;;) {
      const { subscription } = this
      if (this.#claims !== undefined || subscription?.open === false) await this.#subscribed.wait()
      else {
        await subscription?.settled()
        if (subscription === this.subscription) break
      }
    }
    // A handler that is itself awaiting this `close` may still hold its message.
    if (this.running > 0 && this.subscription !== undefined) {
      // Once the worker is closed, it does not learn that a lease is lost.
      this.orphan()
      retire(this.#session, this.subscription)
    } else await this.subscription?.unsubscribe()
    return true
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
