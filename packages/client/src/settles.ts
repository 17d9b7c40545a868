/**
 * The settles of one subscription. They are gathered for a turn or a little longer, sent as SETTLE frames, and answered.
 *
 * Invariant: a group is either still gathered or already sent. After `end` no group is gathered.
 */
import { decodeRanges, OP, OUTCOME, type Outcome, type SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { CreditBounds } from './credit.js'
import { leaseLost } from './losses.js'
import type { Session } from './session.js'
import { SettleGroup, type SettleDetail } from './settlement.js'
import type { Settling } from './turn.js'
import { Waiters } from './waiters.js'

export class Settles implements Settling {
  /** Bytes of records that were delivered since the last SETTLE was sent. */
  deliveredBytes = 0
  readonly #session: Session
  readonly #connection: Connection
  readonly #channel: number
  readonly #credit: CreditBounds
  #subscriptionId = 0
  #group: SettleGroup | undefined
  /** Whether `#group` is sent at the end of this turn; otherwise it may be gathered for longer. */
  #isUrgent = false
  /** Number of settles in `#group`. */
  #gathered = 0
  #isOver = false
  /** Groups that are sent and not answered. */
  readonly #unanswered = new Set<SettleGroup>()
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

  /** Adds the settle of one message that was handled. Returns the group that will get the answer. */
  add(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail: SettleDetail | undefined,
  ): SettleGroup {
    const group = this.#group ?? this.#gather()
    group.add(tag, 1, outcome, delayMs, reason, detail)
    this.#gathered++
    if (!this.#isUrgent && !this.#mayWait(outcome)) this.#hurry()
    return group
  }

  /** Adds the release of messages that no handler got. */
  release(firstTag: number, count: number): void {
    const group = this.#group ?? this.#gather()
    group.add(firstTag, count, OUTCOME.release, undefined, undefined)
    this.#hurry()
  }

  #gather(): SettleGroup {
    const group = new SettleGroup(() => {
      if (this.#group === group) this.#hurry()
    })
    this.#group = group
    this.#session.turn.gather(this)
    return group
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
    const group = this.#group
    this.#group = undefined
    this.#isUrgent = false
    if (group === undefined) return
    if (this.#isOver) {
      group.finish(leaseLost())
      return
    }
    this.#gathered = 0
    this.deliveredBytes = 0
    const payloads = group.encode(this.#subscriptionId, this.#connection.ok.frameBytesMax)
    let left = payloads.length
    let failure: SluiceError | undefined
    this.#unanswered.add(group)
    const done = (error: SluiceError | undefined): void => {
      failure ??= error
      if (--left > 0) return
      group.finish(failure)
      this.#unanswered.delete(group)
      this.#notifySettled()
    }
    const { deadlines, timeoutMs } = this.#session
    const deadlineMs = deadlines.after(timeoutMs)
    for (const payload of payloads) {
      this.#connection.request(OP.SETTLE, this.#channel, payload, {
        expects: OP.SETTLE_OK,
        deadlineMs,
        answered: (bytes, start, end) => {
          group.stale(decodeRanges('SETTLE_OK', bytes, start, end).ranges)
          done(undefined)
        },
        failed: (error) => done(error.code === 'SUBSCRIPTION_NOT_FOUND' ? leaseLost(error) : error),
      })
    }
  }

  /** Removes from `tags` the tags whose settle is gathered or unanswered. */
  exclude(tags: Set<number>): void {
    this.#group?.exclude(tags)
    for (const group of this.#unanswered) group.exclude(tags)
  }

  get #isSettled(): boolean {
    return this.#unanswered.size === 0 && this.#group === undefined
  }

  /** Resolves when every settle so far has its answer. */
  settled(): Promise<void> {
    if (this.#isSettled) return Promise.resolve()
    if (this.#group !== undefined) this.#hurry()
    return this.#settled.wait()
  }

  #notifySettled(): void {
    if (this.#isSettled) this.#settled.notify()
  }

  /** Called when the subscription has ended: gathered settles fail with `reason`. */
  end(reason: SluiceError): void {
    this.#isOver = true
    const group = this.#group
    this.#group = undefined
    group?.finish(reason)
    this.#notifySettled()
  }

  /** @throws Error naming what differs */
  invariants(): void {
    if (this.#isOver && this.#group !== undefined)
      throw new Error('settles: the subscription has ended, but a group is still being gathered')
    if (this.#settled.any && this.#isSettled)
      throw new Error('settles: everything is settled, but a waiter was not notified')
  }
}
