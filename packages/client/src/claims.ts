/**
 * The leases that the handlers of one consumer had when its connection was lost. The next SUBSCRIBE claims them. When a
 * handler settles its message in the meantime, the settle waits here until SUBSCRIBE is answered, and is then sent under
 * the new lease. A lease that the broker does not grant is lost.
 *
 * Invariant: the tag of a message here is TAG_BASE plus the index of its claim, so it differs from all tags of the lost
 * subscription.
 */
import {
  encodeClaims,
  LIMITS,
  SluiceError,
  Timer,
  type AtomicAck,
  type Claim,
  type Granted,
  type Outcome,
} from '@sluice/protocol'
import type { LeaseKeeper } from './lease.js'
import { leaseLost, type LeaseLossReason } from './losses.js'
import type { DeliveredMessage } from './message.js'
import type { Responder } from './responder.js'
import type { Session } from './session.js'
import { SettleRequest, type SettleDetail } from './settle-request.js'
import { Watchers, type Watcher } from './watchers.js'

interface Pending {
  readonly outcome: Outcome
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly detail: SettleDetail | undefined
  /** The broker's answer settles this request; the request fails when `timer` fires. */
  readonly request: SettleRequest
  timer: Timer | undefined
}

interface Extension {
  readonly durationMs: number
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

interface Entry {
  readonly message: DeliveredMessage
  readonly claim: Claim
  pending: Pending | undefined
  extension: Extension | undefined
}

const TAG_BASE = 0xfff0_0000

function notAnswered(): SluiceError {
  return new SluiceError('TIMEOUT', 'There was no connection before the deadline of the call passed.', {
    outcome: 'unknown',
  })
}

/** The subscription that claims the leases. */
export interface Claimant extends LeaseKeeper {
  /** Called when the message is leased to this claimant again, under `tag`. */
  adopt(message: DeliveredMessage, tag: number, attempt: number): void
}

export class Claims implements LeaseKeeper {
  readonly queue: string
  readonly replies: Responder
  readonly #session: Session
  readonly #entries: Entry[] = []
  readonly #watchers = new Watchers()
  #isOver = false

  constructor(session: Session, queue: string) {
    this.#session = session
    this.queue = queue
    this.replies = session.replies
  }

  get size(): number {
    return this.#entries.length
  }

  /** Adds a message of the lost subscription. Returns false if there are already `claimsMax` claims. */
  add(message: DeliveredMessage, claim: Claim): boolean {
    if (this.#entries.length === LIMITS.claimsMax) return false
    message.rebind(this, TAG_BASE + this.#entries.length)
    this.#entries.push({ message, claim, pending: undefined, extension: undefined })
    return true
  }

  /** The claims, as SUBSCRIBE encodes them. */
  encode(): Uint8Array {
    return encodeClaims(this.#entries.map(({ claim }) => claim))
  }

  /**
   * Called when SUBSCRIBE is answered. Granted messages continue under leases of `subscription`, and the leases of all
   * other messages are lost.
   */
  answered(subscription: Claimant, granted: readonly Granted[]): void {
    const refused = new Set(this.#entries.keys())
    for (const { index } of granted) refused.delete(index)
    const tags = new Set([...refused].map((index) => TAG_BASE + index))
    this.#isOver = true
    this.#watchers.abort(tags, leaseLost())
    for (const watcher of this.#watchers.takeAll()) subscription.watch(watcher)
    for (const { index, tag, attempt } of granted) {
      const { message, pending, extension } = this.#entries[index]!
      message.rebind(subscription, tag)
      subscription.adopt(message, tag, attempt)
      if (extension !== undefined)
        subscription.extend(tag, extension.durationMs).then(extension.resolve, extension.reject)
      if (pending === undefined) continue
      const { outcome, delayMs, reason, detail, request } = pending
      pending.timer?.cancel()
      subscription
        .settle(tag, outcome, delayMs, reason, detail)
        .answer(message)
        .then(
          () => request.finish(undefined),
          (error) => request.finish(error),
        )
    }
    for (const index of refused) this.#lose(this.#entries[index]!, 'disconnected')
  }

  /** Called when none of these leases can be claimed. `why` is undefined when the client gave up the leases itself. */
  refuse(why: LeaseLossReason | undefined): void {
    if (this.#isOver) return
    this.#isOver = true
    this.abortHandlers()
    for (const entry of this.#entries) this.#lose(entry, why)
  }

  abortHandlers(reason = leaseLost()): void {
    this.#watchers.abortAll(reason)
  }

  #lose({ message, pending, extension }: Entry, reason: LeaseLossReason | undefined): void {
    this.#session.isolation.leave(1)
    pending?.timer?.cancel()
    pending?.request.finish(leaseLost())
    extension?.reject(leaseLost())
    if (reason !== undefined) this.#session.leaseLost({ queue: this.queue, offset: message.offset, reason })
  }

  // The methods below make this object the lease keeper of the messages until SUBSCRIBE is answered.

  isLeased(): boolean {
    return !this.#isOver
  }

  forget(): void {}

  lossOf(): LeaseLossReason {
    return 'other'
  }

  settle(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail?: SettleDetail,
  ): SettleRequest {
    // A caller that waits for the answer has the usual deadline. The settle itself has no deadline: it is sent once
    // SUBSCRIBE is answered.
    const request = new SettleRequest(() => {
      pending.timer ??= new Timer(() => request.finish(notAnswered()), this.#session.timeoutMs).unref()
    })
    const pending: Pending = { outcome, delayMs, reason, detail, request, timer: undefined }
    this.#entries[tag - TAG_BASE]!.pending = pending
    return request
  }

  extend(tag: number, durationMs: number): Promise<void> {
    const entry = this.#entries[tag - TAG_BASE]!
    const before = entry.extension
    const extended = new Promise<void>((resolve, reject) => {
      entry.extension = { durationMs, resolve, reject }
    })
    if (before !== undefined) extended.then(before.resolve, before.reject)
    extended.catch(() => {})
    const { reject } = entry.extension!
    const timer = new Timer(() => reject(notAnswered()), this.#session.timeoutMs).unref()
    const cancel = (): void => timer.cancel()
    extended.then(cancel, cancel)
    return extended
  }

  isOn(): boolean {
    return false
  }

  // Never called: `isOn` returns false, so an atomic step refuses these messages.
  acknowledgement(): AtomicAck {
    throw leaseLost()
  }

  pledge(): void {}

  settlePledge(): void {}

  reopenPledge(): void {}

  watch(watcher: Watcher): void {
    this.#watchers.add(watcher)
  }

  unwatch(watcher: Watcher): void {
    this.#watchers.delete(watcher)
  }
}
