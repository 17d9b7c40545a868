/**
 * Pulling: one subscription a queue, kept for the next pull, without credit between pulls. Pulls are served one after
 * the other, so that each knows which deliveries are its own.
 *
 * A pull raises the subscription's limit by what it wants. At the first delivery, or when its wait is over, it drains:
 * the broker sends what it can at once and then says that nothing more comes.
 */
import { LIMITS, SluiceError, Timer } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { DeliveredMessage } from './message.js'
import type { PullSettings } from './options.js'
import { aborted } from './producer.js'
import { Subscription, type Consumer, type Session, type SubscriptionOwner } from './subscription.js'
import type { Starting } from './turn.js'

class Pull implements PullSettings {
  readonly max: number
  readonly waitMs: number
  readonly processingTimeoutMs: number | undefined
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
  readonly resolve: (messages: DeliveredMessage[]) => void
  readonly reject: (error: SluiceError) => void
  timer: Timer | undefined
  onAbort: (() => void) | undefined
  waitIsOver = false
  /** The caller has been told; what still comes is given back. */
  abandoned = false

  constructor(
    settings: PullSettings,
    resolve: (messages: DeliveredMessage[]) => void,
    reject: (error: SluiceError) => void,
  ) {
    this.max = settings.max
    this.waitMs = settings.waitMs
    this.processingTimeoutMs = settings.processingTimeoutMs
    this.timeoutMs = settings.timeoutMs
    this.signal = settings.signal
    this.resolve = resolve
    this.reject = reject
  }

  detach(): void {
    this.timer?.cancel()
    if (this.onAbort !== undefined) removeAbortListener(this.signal, this.onAbort)
  }
}

const CREDIT = { messages: LIMITS.creditMessagesMax, bytes: LIMITS.creditBytesMax }

export class Puller implements Consumer, SubscriptionOwner, Starting {
  readonly #session: Session
  readonly #queue: string
  #subscription: Subscription | undefined
  /** The processing timeout that it was made with. */
  #processingTimeoutMs: number | undefined
  #waiting: Pull[] = []
  #current: Pull | undefined
  #draining = false
  #listed = false

  constructor(session: Session, queue: string) {
    this.#session = session
    this.#queue = queue
  }

  pull(settings: PullSettings): Promise<DeliveredMessage[]> {
    const { waitMs, signal } = settings
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(aborted(signal, false))
        return
      }
      const pull = new Pull(settings, resolve, reject)
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
          new SluiceError('TIMEOUT', `The pull from ${this.#queue} was not answered in time.`),
        ),
      pull.timeoutMs,
    )
    if (pull === this.#current) this.#drain()
  }

  #abandon(pull: Pull, error: SluiceError): void {
    pull.detach()
    pull.reject(error)
    if (pull !== this.#current) {
      this.#waiting = this.#waiting.filter((other) => other !== pull)
      return
    }
    pull.abandoned = true
    if (this.#subscription === undefined) this.#next()
    else this.#drain()
  }

  #serve(): void {
    if (this.#current !== undefined || this.#waiting.length === 0) return
    this.#current = this.#waiting.shift()!
    this.#grant()
  }

  #next(): void {
    this.#current = undefined
    this.#serve()
  }

  #grant(): void {
    const pull = this.#current!
    const { connection } = this.#session
    const { processingTimeoutMs } = pull
    if (this.#subscription !== undefined && this.#processingTimeoutMs !== processingTimeoutMs) {
      // It lasts until what earlier pulls took from it is settled.
      void this.#subscription.retire()
      this.#subscription = undefined
    }
    if (this.#subscription !== undefined) {
      if (!this.#subscription.open) return
      this.#subscription.credit({ ...CREDIT, limit: this.#subscription.deliveries + pull.max })
      if (pull.waitIsOver || pull.waitMs === 0) this.#drain()
    } else if (connection !== undefined) {
      try {
        this.#subscription = new Subscription(
          this.#session,
          connection,
          this.#queue,
          { ...CREDIT, limit: pull.max, processingTimeoutMs },
          this,
        )
        this.#processingTimeoutMs = processingTimeoutMs
      } catch (error) {
        this.ended(error as SluiceError)
      }
    }
  }

  // At most one is under way, and it belongs to the current pull: a pull ends only after its DRAINED.
  #drain(): void {
    const subscription = this.#subscription
    const pull = this.#current
    if (subscription === undefined || pull === undefined || !subscription.open) return
    if (this.#draining || this.#listed) return
    this.#draining = true
    const limit = subscription.deliveries - subscription.buffered + pull.max
    subscription.credit({ ...CREDIT, limit, drain: true })
  }

  attach(): void {
    if (this.#current !== undefined) this.#grant()
  }

  subscribed(): void {
    const pull = this.#current
    if (pull !== undefined && (pull.waitIsOver || pull.abandoned || pull.waitMs === 0)) this.#drain()
  }

  delivered(): void {
    const pull = this.#current
    if (pull === undefined || this.#draining) return
    // A full hand needs no drain: the limit has stopped the broker.
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
      this.#subscription?.announce(pull.max, pull.max, true)
  }

  startHandlers(): void {
    const pull = this.#current
    const subscription = this.#subscription
    // What comes before DRAINED would be taken for the answer to the next pull.
    if (pull === undefined || subscription === undefined || this.#draining) return
    const messages: DeliveredMessage[] = []
    while (subscription.announced > 0) messages.push(subscription.take())
    // Left over when the caller has gone, or when one of them must be handled alone.
    if (subscription.buffered > 0) subscription.releaseBuffered()
    pull.detach()
    pull.resolve(messages)
    this.#next()
  }

  lost(): void {
    this.#subscription = undefined
    this.#draining = false
    if (this.#current?.abandoned === true) this.#next()
  }

  ended(error: SluiceError): void {
    this.#subscription = undefined
    this.#draining = false
    const pull = this.#current
    if (pull === undefined) return
    pull.detach()
    pull.reject(error)
    this.#next()
  }

  fail(error: SluiceError): void {
    this.#subscription = undefined
    const pulls = this.#current === undefined ? this.#waiting : [this.#current, ...this.#waiting]
    this.#current = undefined
    this.#waiting = []
    for (const pull of pulls) {
      pull.detach()
      pull.reject(error)
    }
  }
}
