/**
 * The messages of a queue as an async iterator. A message counts as started when it is yielded. When the loop is fast, a
 * burst of messages is announced at once, and the next turn tells the broker which of them were yielded (see
 * `SingleWorker`).
 */
import type { SluiceError } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Claims } from './claims.js'
import type { Connection } from './connection.js'
import { fail } from './failure.js'
import { Fifo } from './fifo.js'
import { lossBy } from './losses.js'
import type { DeliveredMessage, Message } from './message.js'
import type { ConsumerSettings } from './options.js'
import { aborted } from './outcomes.js'
import { Renewal } from './renewal.js'
import { retire, retireClaims } from './retired.js'
import type { Consumer, Session } from './session.js'
import { Subscription, type SubscriptionOwner } from './subscription.js'
import type { Starting } from './turn.js'
import { Waiters } from './waiters.js'

type Next = (result: IteratorResult<DeliveredMessage, undefined>) => void

const BURST_MAX = 1024
const BURST_MS = 1
const DONE = { value: undefined, done: true } as const

/** Returned by `messages`. Leaving a `for await` loop closes the iterator. */
export interface MessageIterator<Body>
  extends AsyncIterableIterator<Message<Body>, undefined>, AsyncDisposable {}

export class MessageStream
  implements AsyncIterableIterator<DeliveredMessage, undefined>, Consumer, SubscriptionOwner, Starting
{
  readonly #session: Session
  readonly #queue: string
  readonly #settings: ConsumerSettings
  readonly #forget: (stream: MessageStream) => void
  readonly #signal: AbortSignal | undefined
  readonly #renewal: Renewal
  readonly #onAbort: () => void
  #subscription: Subscription | undefined
  /** Messages that were yielded on a lost connection and are not settled. */
  #claims: Claims | undefined
  /** Calls of `next` that wait for a message. */
  readonly #nexts = new Fifo<Next>()
  #listed = false
  #burst = 1
  #burstBeganMs = 0
  /** The error with which the next call of `next` rejects, once. */
  #failure: SluiceError | undefined
  #ending: Promise<void> | undefined
  readonly #subscribed = new Waiters()

  constructor(
    session: Session,
    queue: string,
    settings: ConsumerSettings,
    signal: AbortSignal | undefined,
    forget: (stream: MessageStream) => void,
  ) {
    this.#session = session
    this.#queue = queue
    this.#settings = settings
    this.#signal = signal
    this.#forget = forget
    this.#renewal = new Renewal(session, queue, settings.waitsForQueue, (connection) =>
      this.attach(connection),
    )
    this.#onAbort = () => this.#end(aborted(signal!, false))
    if (signal?.aborted === true) this.#onAbort()
    else if (signal !== undefined) addAbortListener(signal, this.#onAbort)
  }

  attach(connection: Connection): void {
    if (this.#ending !== undefined || this.#subscription !== undefined) return
    this.#renewal.cancel()
    const claims = this.#claims
    this.#claims = undefined
    const terms = { ...this.#settings, claims }
    try {
      this.#subscription = new Subscription(this.#session, connection, this.#queue, terms, this)
    } catch (error) {
      this.ended(error as SluiceError, claims)
    }
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  next(): Promise<IteratorResult<DeliveredMessage, undefined>> {
    if (this.#failure !== undefined) {
      const failure = this.#failure
      this.#failure = undefined
      return Promise.reject(failure.with({ queue: this.#queue }))
    }
    if (this.#ending !== undefined) return Promise.resolve(DONE)
    const subscription = this.#subscription
    if (subscription !== undefined && subscription.announced > 0 && this.#nexts.length === 0) {
      return Promise.resolve({ value: subscription.take(), done: false })
    }
    if (this.#burstBeganMs > 0) this.#adapt()
    if (subscription !== undefined && subscription.buffered > 0) this.#list()
    return new Promise((resolve) => this.#nexts.push(resolve))
  }

  // The loop has consumed all announced messages and calls `next` again.
  #adapt(): void {
    const tookMs = performance.now() - this.#burstBeganMs
    this.#burstBeganMs = 0
    if (tookMs < BURST_MS) this.#burst = Math.min(this.#burst * 2, BURST_MAX)
    else if (tookMs > BURST_MS * 2) this.#burst = Math.max(1, Math.floor((this.#burst * BURST_MS) / tookMs))
  }

  #list(): void {
    if (this.#listed) return
    this.#listed = true
    this.#session.turn.start(this)
  }

  subscribed(): void {
    this.#renewal.subscribed()
    this.#subscribed.notify()
  }

  mayStart(): void {
    if (this.#nexts.length > 0) this.#list()
  }

  drained(): void {}

  announce(): void {
    this.#listed = false
    const subscription = this.#subscription
    if (subscription === undefined || this.#ending !== undefined) return
    if (subscription.announcements.nameStarted()) {
      this.#burst = Math.max(this.#burst >> 1, 1)
      this.#burstBeganMs = 0
    }
    if (this.#nexts.length === 0) return
    subscription.announcements.announce(Math.max(this.#burst, this.#nexts.length), this.#nexts.length)
    this.#burstBeganMs = performance.now()
  }

  startHandlers(): void {
    const subscription = this.#subscription
    if (subscription === undefined || this.#ending !== undefined) return
    while (this.#nexts.length > 0 && subscription.announced > 0)
      this.#nexts.shift()!({ value: subscription.take(), done: false })
    if (this.#nexts.length > 0 && subscription.buffered > 0 && !subscription.announcements.blocked)
      this.#list()
    if (subscription.announcements.isStarting) this.#list()
  }

  lost(claims: Claims | undefined): void {
    this.#subscription = undefined
    this.#claims = claims
    if (this.#ending !== undefined) this.#retireClaims()
    this.#burst = 1
    this.#subscribed.notify()
  }

  ended(error: SluiceError, claims: Claims | undefined): void {
    this.#subscription = undefined
    this.#subscribed.notify()
    if (this.#ending === undefined ? this.#renewal.renews(error) : error.retryable) {
      this.#claims = claims
      if (this.#ending !== undefined) this.#retireClaims()
      return
    }
    claims?.refuse(lossBy(error))
    this.#end(error)
  }

  fail(error: SluiceError): void {
    this.#subscription = undefined
    this.#subscribed.notify()
    this.#end(error.code === 'CLOSED' ? undefined : error)
  }

  /** Called when the loop ends. Messages that it got and has not settled stay leased. */
  async return(): Promise<IteratorReturnResult<undefined>> {
    this.#end(undefined)
    await this.#ending
    return DONE
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.return().then(() => undefined)
  }

  /** Ends the iteration; `#ending` resolves when all messages that were not yielded are released. */
  #end(error: SluiceError | undefined): void {
    if (this.#ending !== undefined) return
    removeAbortListener(this.#signal, this.#onAbort)
    this.#renewal.cancel()
    this.#retireClaims()
    this.#forget(this)
    const nexts = this.#nexts.drain()
    if (error !== undefined && nexts.length === 0) this.#failure = error
    nexts.forEach((resolve, index) => {
      if (index === 0 && error !== undefined) fail(resolve, error, { queue: this.#queue })
      else resolve(DONE)
    })
    this.#ending = this.#drain()
  }

  // Called when the loop has ended. The program may still have messages that the iterator yielded.
  #retireClaims(): void {
    if (this.#claims !== undefined)
      retireClaims(this.#session, this.#claims, this.#settings.processingTimeoutMs)
    this.#claims = undefined
  }

  async #drain(): Promise<void> {
    const subscription = this.#subscription
    if (subscription === undefined) return
    if (!subscription.open) await this.#subscribed.wait()
    await subscription.stop()
    subscription.releaseBuffered()
    await subscription.settled()
    if (subscription.isEmpty) await subscription.unsubscribe()
    else retire(this.#session, subscription)
  }
}
