/**
 * Pulls messages. Each queue has one subscription. After a pull, the subscription is kept for a short time, without
 * credit, for the next pull. Pulls are served one after the other, so that it is clear to which pull a delivery
 * belongs.
 *
 * A pull raises the limit of the subscription by `max`. At the first delivery, or when its wait has passed, it drains the
 * subscription: the broker delivers what it can at once, and then answers that nothing more follows.
 */
import { LIMITS, SluiceError, Timer } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Claims } from './claims.js'
import type { Connection } from './connection.js'
import { fail } from './failure.js'
import { Fifo } from './fifo.js'
import { lossBy } from './losses.js'
import type { DeliveredMessage } from './message.js'
import type { PullSettings } from './options.js'
import { aborted } from './outcomes.js'
import { Renewal } from './renewal.js'
import { retire, retireClaims } from './retired.js'
import type { Consumer, Session } from './session.js'
import { Subscription, type SubscriptionOwner } from './subscription.js'
import type { Starting } from './turn.js'

class Pull implements PullSettings {
  readonly max: number
  readonly waitMs: number
  readonly processingTimeoutMs: number | undefined
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
  readonly resolve: (messages: DeliveredMessage[]) => void
  timer: Timer | undefined
  onAbort: (() => void) | undefined
  waitIsOver = false
  /** Whether the call has already rejected. If so, later deliveries are released. */
  abandoned = false
  #isOver = false

  constructor(settings: PullSettings, resolve: (messages: DeliveredMessage[]) => void) {
    this.max = settings.max
    this.waitMs = settings.waitMs
    this.processingTimeoutMs = settings.processingTimeoutMs
    this.timeoutMs = settings.timeoutMs
    this.signal = settings.signal
    this.resolve = resolve
  }

  fail(error: SluiceError, queue: string): void {
    if (this.#isOver) return
    this.#isOver = true
    fail(this.resolve, error, { queue })
  }

  detach(): void {
    this.timer?.cancel()
    if (this.onAbort !== undefined) removeAbortListener(this.signal, this.onAbort)
  }
}

const CREDIT = { messages: LIMITS.creditMessagesMax, bytes: LIMITS.creditBytesMax }

class Puller implements Consumer, SubscriptionOwner, Starting {
  readonly #session: Session
  readonly queue: string
  #subscription: Subscription | undefined
  /** The processing timeout of `#subscription`. */
  #processingTimeoutMs: number | undefined
  readonly #waiting = new Fifo<Pull>()
  /** Number of abandoned pulls in `#waiting`; at most half of all pulls there. */
  #abandonedWaiting = 0
  #current: Pull | undefined
  #draining = false
  /** Messages that were pulled on a lost connection and are not settled. */
  #claims: Claims | undefined
  /** Whether the subscription is claiming `#claims`. Until the broker answers, the subscription has no credit. */
  #isClaiming = false
  #listed = false
  readonly #renewal: Renewal
  /** The error with which the last subscription was refused. */
  #refusal: SluiceError | undefined
  readonly #rests: (puller: Puller) => void

  /** `rests` is called when the last pull has ended. */
  constructor(session: Session, queue: string, rests: (puller: Puller) => void) {
    this.#session = session
    this.queue = queue
    this.#rests = rests
    this.#renewal = new Renewal(session, queue, false, (connection) => this.attach(connection))
  }

  get hasSubscription(): boolean {
    return this.#subscription !== undefined || this.#claims !== undefined
  }

  /** Whether some pulled message is unsettled. */
  get holdsMessages(): boolean {
    return this.#subscription?.isEmpty === false || this.#claims !== undefined
  }

  /** Gives up the subscription. It ends when all pulled messages are settled. */
  leave(): void {
    this.#retire()
    if (this.#claims !== undefined) retireClaims(this.#session, this.#claims, this.#processingTimeoutMs)
    this.#claims = undefined
  }

  #retire(): void {
    if (this.#subscription !== undefined) retire(this.#session, this.#subscription)
    this.#subscription = undefined
    this.#isClaiming = false
  }

  pull(settings: PullSettings): Promise<DeliveredMessage[]> {
    const { waitMs, signal } = settings
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(aborted(signal, false))
        return
      }
      const pull = new Pull(settings, resolve)
      if (signal !== undefined) {
        pull.onAbort = () => this.#abandon(pull, aborted(signal, false))
        addAbortListener(signal, pull.onAbort)
      }
      pull.timer = new Timer(() => this.#waited(pull), waitMs)
      this.#waiting.push(pull)
      this.#serve()
    })
  }

  #waited(pull: Pull): void {
    pull.waitIsOver = true
    pull.timer = new Timer(
      () =>
        this.#abandon(
          pull,
          this.#refusal ??
            new SluiceError('TIMEOUT', `The pull from ${this.queue} was not answered in time.`),
        ),
      pull.timeoutMs,
    )
    if (pull === this.#current) this.#drain()
  }

  #abandon(pull: Pull, error: SluiceError): void {
    pull.detach()
    pull.fail(error, this.queue)
    pull.abandoned = true
    if (pull !== this.#current) {
      this.#abandonedWaiting++
      // The list is cleaned only when most pulls in it are abandoned. Otherwise aborting a signal of thousands of pulls
      // would search the list once for each pull.
      if (this.#abandonedWaiting * 2 > this.#waiting.length) {
        this.#waiting.replace([...this.#waiting].filter(({ abandoned }) => !abandoned))
        this.#abandonedWaiting = 0
      }
      return
    }
    if (this.#subscription === undefined) this.#next()
    else this.#drain()
  }

  #serve(): void {
    if (this.#current !== undefined) return
    let pull = this.#waiting.shift()
    while (pull?.abandoned === true) {
      this.#abandonedWaiting--
      pull = this.#waiting.shift()
    }
    if (pull === undefined) return
    this.#current = pull
    this.#grant()
  }

  #next(): void {
    this.#current = undefined
    this.#refusal = undefined
    this.#serve()
    if (this.#current === undefined) this.#rests(this)
  }

  #grant(): void {
    const pull = this.#current!
    const { connection } = this.#session
    const { processingTimeoutMs } = pull
    if (this.#subscription !== undefined && this.#processingTimeoutMs !== processingTimeoutMs) {
      // The subscription ends when the messages of earlier pulls are settled.
      this.#retire()
    }
    if (this.#subscription !== undefined) {
      if (!this.#subscription.open) return
      this.#subscription.credit({ ...CREDIT, limit: this.#subscription.deliveries + pull.max })
      if (pull.waitIsOver || pull.waitMs === 0) this.#drain()
    } else if (connection !== undefined && !connection.stopping)
      this.#subscribe(connection, pull.max, processingTimeoutMs)
  }

  #subscribe(
    connection: Connection,
    limit: number,
    processingTimeoutMs: number | undefined,
    claims?: Claims,
  ): void {
    this.#renewal.cancel()
    const terms = { ...CREDIT, limit, processingTimeoutMs, claims }
    try {
      this.#subscription = new Subscription(this.#session, connection, this.queue, terms, this)
      this.#processingTimeoutMs = processingTimeoutMs
    } catch (error) {
      this.ended(error as SluiceError, claims)
    }
  }

  // At most one drain is under way, and it belongs to the current pull, which ends only after DRAINED.
  #drain(): void {
    const subscription = this.#subscription
    const pull = this.#current
    if (subscription === undefined || pull === undefined || !subscription.open) return
    if (this.#draining || this.#listed) return
    this.#draining = true
    const limit = subscription.deliveries - subscription.buffered + pull.max
    subscription.credit({ ...CREDIT, limit, drain: true })
  }

  attach(connection: Connection): void {
    const claims = this.#claims
    this.#claims = undefined
    if (claims === undefined) {
      if (this.#current !== undefined) this.#grant()
      return
    }
    // The pulled messages are claimed before the next pull gets its credit.
    this.#isClaiming = true
    this.#subscribe(connection, 0, this.#processingTimeoutMs, claims)
  }

  subscribed(): void {
    this.#renewal.subscribed()
    this.#refusal = undefined
    const pull = this.#current
    if (this.#isClaiming) {
      this.#isClaiming = false
      if (pull !== undefined) this.#grant()
    }
    if (pull !== undefined && (pull.waitIsOver || pull.abandoned || pull.waitMs === 0)) this.#drain()
  }

  mayStart(): void {
    const pull = this.#current
    if (pull === undefined || this.#draining) return
    // After `max` messages no drain is needed, because the limit has stopped the broker.
    if (this.#subscription!.buffered >= pull.max) this.#list()
    else this.#drain()
  }

  drained(): void {
    this.#draining = false
    this.#list()
  }

  #list(): void {
    if (this.#listed) return
    this.#listed = true
    this.#session.turn.start(this)
  }

  announce(): void {
    this.#listed = false
    const pull = this.#current
    if (pull !== undefined && !pull.abandoned && !this.#draining)
      this.#subscription?.announcements.announce(pull.max, pull.max, true)
  }

  startHandlers(): void {
    const pull = this.#current
    const subscription = this.#subscription
    // If the pull ended before DRAINED, a late delivery would go to the next pull.
    if (pull === undefined || subscription === undefined || this.#draining) return
    const messages: DeliveredMessage[] = []
    while (subscription.announced > 0) messages.push(subscription.take())
    // Messages remain when the pull was aborted, or when one of them must be handled alone.
    if (subscription.buffered > 0) subscription.releaseBuffered()
    pull.detach()
    pull.resolve(messages)
    this.#next()
  }

  lost(claims: Claims | undefined): void {
    this.#subscription = undefined
    this.#draining = false
    this.#isClaiming = false
    this.#claims = claims
    if (this.#current === undefined) this.#rests(this)
    else if (this.#current.abandoned) this.#next()
  }

  ended(error: SluiceError, claims: Claims | undefined): void {
    this.#subscription = undefined
    this.#draining = false
    this.#isClaiming = false
    const pull = this.#current
    if (claims !== undefined || pull?.abandoned === false) {
      if (this.#renewal.renews(error)) {
        this.#claims = claims
        if (pull !== undefined) this.#refusal = error
        return
      }
      claims?.refuse(lossBy(error))
    }
    if (pull === undefined) {
      this.#rests(this)
      return
    }
    pull.detach()
    pull.fail(error, this.queue)
    this.#next()
  }

  // Messages that are delivered for the current pull return to the queue.
  async #stop(): Promise<void> {
    const subscription = this.#subscription
    await subscription?.stop()
    subscription?.releaseBuffered()
  }

  /**
   * Rejects all pulls. Messages that were pulled earlier remain leased until they are settled or the client is closed.
   */
  fail(error: SluiceError): void {
    this.#renewal.cancel()
    if (this.#current !== undefined) void this.#stop()
    this.leave()
    const pulls = this.#waiting.drain()
    if (this.#current !== undefined) pulls.unshift(this.#current)
    this.#current = undefined
    for (const pull of pulls) {
      pull.detach()
      pull.fail(error, this.queue)
    }
  }
}

/** Maximum time for which a subscription without a pull is kept, and maximum number of these subscriptions. */
export const IDLE = { ms: 1_000, subscriptionsMax: 256 } as const

/**
 * The pullers of a client, by queue. Idle subscriptions are ended, because a connection can have only a limited number
 * of subscriptions.
 */
export class Pullers implements Consumer {
  readonly #session: Session
  readonly #pullers = new Map<string, Puller>()
  /**
   * Pullers without a pull, with the time at which they became idle. The puller that has been idle for the longest
   * time comes first.
   */
  readonly #idle = new Map<Puller, number>()
  #closed: SluiceError | undefined

  constructor(session: Session) {
    this.#session = session
    session.deadlines.add((nowMs) => this.#sweep(nowMs))
  }

  pull(queue: string, settings: PullSettings): Promise<DeliveredMessage[]> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed.with({}))
    let puller = this.#pullers.get(queue)
    if (puller === undefined) {
      puller = new Puller(this.#session, queue, this.#rests)
      this.#pullers.set(queue, puller)
    } else this.#idle.delete(puller)
    return puller.pull(settings)
  }

  readonly #rests = (puller: Puller): void => {
    this.#idle.delete(puller)
    // Another puller may have replaced this puller.
    if (this.#pullers.get(puller.queue) !== puller) return
    if (!puller.hasSubscription) {
      this.#pullers.delete(puller.queue)
      return
    }
    const nowMs = performance.now()
    this.#idle.set(puller, nowMs)
    this.#session.deadlines.arm(nowMs + IDLE.ms)
    if (this.#idle.size > IDLE.subscriptionsMax) this.#leave(this.#idle.keys().next().value!)
  }

  #leave(puller: Puller): void {
    this.#idle.delete(puller)
    this.#pullers.delete(puller.queue)
    puller.leave()
  }

  #sweep(nowMs: number): number {
    for (const [puller, sinceMs] of this.#idle) {
      if (sinceMs + IDLE.ms > nowMs) return sinceMs + IDLE.ms
      if (puller.holdsMessages) {
        // The subscription is kept while it has messages: a queue with `single` serves only one consumer at a time.
        this.#idle.delete(puller)
        this.#idle.set(puller, nowMs)
      } else this.#leave(puller)
    }
    return Infinity
  }

  attach(connection: Connection): void {
    for (const puller of this.#pullers.values()) puller.attach(connection)
  }

  fail(error: SluiceError): void {
    this.#closed ??= error
    const pullers = [...this.#pullers.values()]
    this.#pullers.clear()
    this.#idle.clear()
    for (const puller of pullers) puller.fail(error)
  }
}
