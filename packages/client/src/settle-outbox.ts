/**
 * Sends the settles of one subscription: gathers them into a request for a turn or a little longer, and sends it as SETTLE
 * frames.
 *
 * Invariant: each request is either still gathered or already sent. After `end`, no request is gathered.
 */
import { decodeRanges, OP, OUTCOME, type Outcome, type SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { CreditBounds } from './credit.js'
import { leaseLost } from './losses.js'
import type { Session } from './session.js'
import { SettleRequest, type SettleDetail } from './settle-request.js'
import type { Settling } from './turn.js'
import { Waiters } from './waiters.js'

export class SettleOutbox implements Settling {
  /** Bytes of records that were delivered since the last SETTLE was sent. */
  deliveredBytes = 0
  readonly #session: Session
  readonly #connection: Connection
  readonly #channel: number
  readonly #credit: CreditBounds
  #subscriptionId = 0
  #request: SettleRequest | undefined
  /** Whether `#request` is sent at the end of this turn; otherwise it may be gathered for longer. */
  #isUrgent = false
  /** Number of settles in `#request`. */
  #gathered = 0
  #isOver = false
  /** Requests that are sent and not answered. */
  readonly #unanswered = new Set<SettleRequest>()
  readonly #settled = new Waiters()

  constructor(session: Session, connection: Connection, channel: number, credit: CreditBounds) {
    this.#session = session
    this.#connection = connection
    this.#channel = channel
    this.#credit = credit
  }

  /** Called when the broker has opened the subscription under this number. */
  open(subscriptionId: number): void {
    this.#subscriptionId = subscriptionId
  }

  /** Adds the settle of one message that was handled. Returns the request that will get the answer. */
  add(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail: SettleDetail | undefined,
  ): SettleRequest {
    const request = this.#request ?? this.#gather()
    request.add(tag, 1, outcome, delayMs, reason, detail)
    this.#gathered++
    if (!this.#isUrgent && !this.#mayWait(outcome)) this.#hurry()
    return request
  }

  /** Adds the release of messages that no handler got. */
  release(firstTag: number, count: number): void {
    const request = this.#request ?? this.#gather()
    request.add(firstTag, count, OUTCOME.release, undefined, undefined)
    this.#hurry()
  }

  #gather(): SettleRequest {
    const request = new SettleRequest(() => {
      if (this.#request === request) this.#hurry()
    })
    this.#request = request
    this.#session.turn.gather(this)
    return request
  }

  // Whether this settle may be gathered for longer than a turn. This is allowed only for an acknowledgement that is made
  // while the turn calls handlers, and only while the broker has most of its credit left.
  #mayWait(outcome: Outcome): boolean {
    return (
      outcome === OUTCOME.ack &&
      this.#session.turn.isCallingHandlers &&
      this.#gathered * 4 < this.#credit.messages &&
      this.deliveredBytes * 4 < this.#credit.bytes
    )
  }

  #hurry(): void {
    if (this.#isUrgent) return
    this.#isUrgent = true
    this.#session.turn.settle(this)
  }

  flushSettles(): void {
    const request = this.#request
    this.#request = undefined
    this.#isUrgent = false
    if (request === undefined) return
    if (this.#isOver) {
      request.finish(leaseLost())
      return
    }
    this.#gathered = 0
    this.deliveredBytes = 0
    const payloads = request.encode(this.#subscriptionId, this.#connection.ok.frameBytesMax)
    let left = payloads.length
    let failure: SluiceError | undefined
    this.#unanswered.add(request)
    const done = (error: SluiceError | undefined): void => {
      failure ??= error
      if (--left > 0) return
      request.finish(failure)
      this.#unanswered.delete(request)
      this.#notifySettled()
    }
    const { deadlines, timeoutMs } = this.#session
    const deadlineMs = deadlines.after(timeoutMs)
    for (const payload of payloads) {
      this.#connection.request(OP.SETTLE, this.#channel, payload, {
        expects: OP.SETTLE_OK,
        deadlineMs,
        answered: (bytes, start, end) => {
          request.stale(decodeRanges('SETTLE_OK', bytes, start, end).ranges)
          done(undefined)
        },
        failed: (error) => done(error.code === 'SUBSCRIPTION_NOT_FOUND' ? leaseLost(error) : error),
      })
    }
  }

  /** Removes from `tags` the tags whose settle is gathered or unanswered. */
  exclude(tags: Set<number>): void {
    this.#request?.exclude(tags)
    for (const request of this.#unanswered) request.exclude(tags)
  }

  get #isSettled(): boolean {
    return this.#unanswered.size === 0 && this.#request === undefined
  }

  /** Resolves when every settle so far has its answer. */
  settled(): Promise<void> {
    if (this.#isSettled) return Promise.resolve()
    if (this.#request !== undefined) this.#hurry()
    return this.#settled.wait()
  }

  #notifySettled(): void {
    if (this.#isSettled) this.#settled.notify()
  }

  /** Called when the subscription has ended: gathered settles fail with `reason`. */
  end(reason: SluiceError): void {
    this.#isOver = true
    const request = this.#request
    this.#request = undefined
    request?.finish(reason)
    this.#notifySettled()
  }

  /** @throws Error naming what differs */
  invariants(): void {
    if (this.#isOver && this.#request !== undefined)
      throw new Error('settle outbox: the subscription has ended, but a request is still being gathered')
    if (this.#settled.any && this.#isSettled)
      throw new Error('settle outbox: everything is settled, but a waiter was not notified')
  }
}
