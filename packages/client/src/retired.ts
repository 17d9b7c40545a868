/**
 * Messages that the program still has after their consumer has ended: messages of an iterator that was left, of a pull
 * whose subscription was replaced, or of a handler that awaits the close of its worker. A subscription without credit
 * keeps their leases until all of these messages are settled. The leases are claimed on each new connection, like those
 * of a running consumer.
 *
 * Invariant: while this object is in `session.retired`, it has either a subscription or claims for the next
 * subscription.
 */
import { LIMITS, type SluiceError } from '@sluice/protocol'
import type { Claims } from './claims.js'
import type { Connection } from './connection.js'
import { lossBy } from './losses.js'
import { Renewal } from './renewal.js'
import type { Consumer, Session } from './session.js'
import { Subscription, type SubscriptionOwner } from './subscription.js'

const NO_CREDIT = { messages: LIMITS.creditMessagesMax, bytes: LIMITS.creditBytesMax, limit: 0 }

/**
 * Ends the subscription once all its messages are settled. The owner of the subscription gets no further calls from it.
 */
export function retire(session: Session, subscription: Subscription): void {
  if (subscription.live) new RetiredLeases(session, subscription).own(subscription)
}

/** Keeps the leases of an ended consumer that has no subscription at the moment. */
export function retireClaims(
  session: Session,
  claims: Claims,
  processingTimeoutMs: number | undefined,
): void {
  const { queue } = claims
  new RetiredLeases(session, { queue, processingTimeoutMs }).lost(claims)
}

class RetiredLeases implements Consumer, SubscriptionOwner {
  readonly #session: Session
  readonly #queue: string
  readonly #processingTimeoutMs: number | undefined
  readonly #renewal: Renewal
  #subscription: Subscription | undefined
  #claims: Claims | undefined

  constructor(
    session: Session,
    {
      queue,
      processingTimeoutMs,
    }: { readonly queue: string; readonly processingTimeoutMs: number | undefined },
  ) {
    this.#session = session
    this.#queue = queue
    this.#processingTimeoutMs = processingTimeoutMs
    this.#renewal = new Renewal(session, queue, false, (connection) => this.attach(connection))
    session.retired.add(this)
  }

  own(subscription: Subscription): void {
    this.#subscription = subscription
    subscription.handOver(this)
    void this.#end(subscription)
  }

  // A lost connection ends each of the waits below. In that case `lost` has already set the claims.
  async #end(subscription: Subscription): Promise<void> {
    await subscription.emptied()
    await subscription.settled()
    await subscription.unsubscribe()
    if (this.#subscription === subscription) this.#forget()
  }

  #forget(): void {
    this.#subscription = undefined
    this.#renewal.cancel()
    this.#session.retired.delete(this)
  }

  attach(connection: Connection): void {
    const claims = this.#claims
    if (claims === undefined) return
    this.#claims = undefined
    this.#renewal.cancel()
    const terms = { ...NO_CREDIT, processingTimeoutMs: this.#processingTimeoutMs, claims }
    try {
      this.own(new Subscription(this.#session, connection, this.#queue, terms, this))
    } catch (error) {
      this.ended(error as SluiceError, claims)
    }
  }

  subscribed(): void {
    this.#renewal.subscribed()
  }

  mayStart(): void {}

  drained(): void {}

  lost(claims: Claims | undefined): void {
    this.#subscription = undefined
    this.#claims = claims
    if (claims === undefined) this.#forget()
    else if (this.#session.isClosed) this.#refuse(claims)
  }

  // The client was closed while the program still had these messages, so their leases end with the connection.
  #refuse(claims: Claims): void {
    this.#claims = undefined
    claims.refuse('disconnected')
    this.#forget()
  }

  ended(error: SluiceError, claims: Claims | undefined): void {
    this.#subscription = undefined
    if (claims !== undefined && this.#renewal.renews(error)) {
      this.#claims = claims
      return
    }
    claims?.refuse(lossBy(error))
    this.#forget()
  }

  /** Called when the client is closed. A subscription is lost with its connection, which ends after this call. */
  fail(): void {
    if (this.#claims !== undefined) this.#refuse(this.#claims)
  }
}
