/**
 * Subscriptions and their leases, from credit to the end of each lease. Called by sessions for the requests of
 * consumers, by the turn when a deadline of a queue has passed, by the catalog when a queue is purged or deleted, by the
 * dispatcher when the messages of a queue cannot be read, and by the server when the clock was set forward.
 *
 * Invariant: when a lease ends, its message is acknowledged, or `#end` decides what happens to the message, unless the
 * queue is purged or deleted.
 */
import {
  LOSS,
  OUTCOME,
  SluiceError,
  clipText,
  type Claim,
  type Granted,
  type Loss,
  type LostRange,
  type QueueName,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { CHUNK_MESSAGES } from '../queue/bits.js'
import {
  DEATH,
  REASON_HEAD_BYTES,
  Subscription,
  backoffMs,
  emptyLease,
  type Consumer,
  type Lease,
  type Queue,
  addLost,
  addTag,
} from '../queue/index.js'
import type { State } from '../state/state.js'
import type { EndReason } from './commands.js'
import type { Observer } from './observer.js'
import type { Turn } from './turn.js'
import type { UnusedQueues } from './unused-queues.js'
import type { Writer } from './writer.js'

/** What happens to a message whose lease ended without an acknowledgement. */
type Ending = 'release' | 'suspect' | 'unattributed' | 'retry' | 'rejected' | 'invalid'

export interface LeasesOptions {
  /** Returns a number in [0, 1), for jitter. */
  readonly random: () => number
  readonly observer?: Observer | undefined
}

/** The request of a consumer to subscribe. A decoded SUBSCRIBE frame has this shape. */
export interface SubscriptionRequest {
  readonly queue: QueueName
  /**
   * Credit: the maximum number of unsettled messages, their maximum size in bytes, and the maximum number of messages
   * to deliver in total.
   */
  readonly messages: number
  readonly bytes: number
  readonly limit?: number | undefined
  /** Overrides the processing timeout of the queue. */
  readonly processingTimeoutMs?: number | undefined
}

/** Maximum number of queues whose ended leases can be claimed; each has at most FORMER_LEASES_MAX such leases. */
const CLAIMABLE_QUEUES_MAX = 64
/** Maximum size of the reasons of one SETTLE item in the log, in bytes; each reason keeps at least its beginning. */
const ITEM_REASONS_BYTES_MAX = 1 << 20

export class Leases {
  readonly #state: State
  readonly #writer: Writer
  readonly #turn: Turn
  readonly #unused: UnusedQueues
  readonly #random: () => number
  readonly #observer: Observer | undefined
  /** Maximum size of a reason in bytes, so that one page can hold the reasons of a whole chunk of dead messages. */
  readonly #reasonBytesMax: number
  readonly #lease = emptyLease()
  /** Queues with claimable leases, in the order in which they were last added. */
  readonly #claimable = new Set<Queue>()
  #nextSubscription: number

  constructor(
    state: State,
    writer: Writer,
    turn: Turn,
    unused: UnusedQueues,
    { random, observer }: LeasesOptions,
  ) {
    this.#state = state
    this.#writer = writer
    this.#turn = turn
    this.#unused = unused
    this.#random = random
    this.#observer = observer
    this.#reasonBytesMax = Math.floor(writer.limits.reasonsBytesMax / CHUNK_MESSAGES)
    // The id of a subscription can be reused after 4,096 boots, or after a million subscriptions in one boot.
    this.#nextSubscription = ((state.boot % 4096) << 20) >>> 0
  }

  // --- subscriptions ---

  /** @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND */
  subscribe(request: SubscriptionRequest, channel: number, consumer: Consumer): Subscription {
    const { messages, bytes, limit, processingTimeoutMs } = request
    const queue = this.#state.consumable(request.queue)
    const { nowMs } = this.#turn
    const id = this.#nextSubscription
    const subscription = new Subscription(id, channel, queue, consumer, nowMs, processingTimeoutMs)
    this.#nextSubscription = (this.#nextSubscription + 1) >>> 0
    subscription.setCredit(messages, bytes, limit, false)
    queue.attach(subscription)
    this.#turn.activate(queue)
    this.#observer?.subscribed(subscription, messages, bytes, limit)
    return subscription
  }

  credit(
    subscription: Subscription,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void {
    subscription.setCredit(messages, bytes, limit, drain)
    this.#turn.activate(subscription.queue)
    this.#observer?.credited(subscription, messages, bytes, limit, drain)
  }

  /** Called when the consumer is ready for deliveries again. */
  ready(subscription: Subscription): void {
    this.#turn.activate(subscription.queue)
  }

  /**
   * Ends the subscriptions of a lost connection. If one message was being handled, one of its attempts failed. If
   * several messages were being handled, in any of the subscriptions, each becomes a suspect, and suspects are
   * delivered one at a time. If no message was being handled, and the only held message had been delivered alone, one
   * of its attempts failed. In any other case without a message being handled, all held messages become suspects after
   * enough such losses. `isStopping`: see `unsubscribe`.
   */
  disconnect(subscriptions: Iterable<Subscription>, isStopping = false): void {
    const all = [...subscriptions]
    const started = all.reduce((sum, { startedCount }) => sum + startedCount, 0)
    const held = all.reduce((sum, { unsettled }) => sum + unsettled, 0)
    const endReason =
      started === 1 ? 'started' : started > 1 ? 'suspects' : held === 1 ? 'alone' : 'unattributed'
    for (const subscription of all) this.unsubscribe(subscription, endReason, isStopping)
  }

  /**
   * Ends the subscription. Its messages are released, retried or marked as suspects, according to `endReason`. The
   * client may claim the messages that it is still handling. `isStopping` says that the broker delivers nothing more
   * before its restart, so no other consumer gets these messages until then.
   */
  unsubscribe(subscription: Subscription, endReason: EndReason, isStopping = false): void {
    const { queue, id: subscriptionId } = subscription
    if (subscription.unsettled > 0 && !isStopping) {
      queue.subscriptionEnded(subscriptionId)
      this.#noteClaimable(queue)
    }
    subscription.takeAll(this.#lease, (lease) => {
      const { offset, tag, deadlineMs, bytes } = lease
      const ending = endingOfLoss(endReason, lease)
      const isCharged = ending === 'retry' || lease.isCharged
      if (!isStopping) queue.former.add(offset, { subscriptionId, tag, deadlineMs, bytes, isCharged })
      this.#end(queue, lease, ending, 'the connection of its consumer was lost')
    })
    queue.detach(subscription)
    this.#unused.used(queue)
    this.#turn.changed(queue)
    this.#observer?.unsubscribed(subscription, endReason, isStopping)
  }

  /**
   * Ends a subscription and releases its messages, without a failed attempt. Returns the number of released messages.
   * @throws SluiceError QUEUE_NOT_FOUND, CONSUMER_NOT_FOUND
   */
  closeConsumer(name: QueueName, id: number): { readonly messages: number } {
    const queue = this.#state.consumable(name)
    const subscription = queue.subscriptions.find((subscription) => subscription.id === id)
    if (subscription === undefined)
      throw new SluiceError('CONSUMER_NOT_FOUND', `The queue ${name} has no consumer with the id ${id}.`)
    const messages = subscription.unsettled
    this.#close(
      subscription,
      new SluiceError('CONSUMER_CLOSED', `An operator closed the consumer ${id} of the queue ${name}.`),
    )
    return { messages }
  }

  /** Ends all subscriptions of the queue with `error`; the messages stay in the queue. */
  closeAll(queue: Queue, error: SluiceError): void {
    for (const subscription of [...queue.subscriptions]) this.#close(subscription, error)
  }

  #close(subscription: Subscription, error: SluiceError): void {
    this.unsubscribe(subscription, 'normal')
    subscription.consumer.ended(subscription, error)
  }

  // --- outcomes ---

  /** Settles the messages that the items name. Ignores stale tags, and returns their ranges. */
  settle(subscription: Subscription, items: readonly SettleItem[]): TagRange[] {
    const stale: TagRange[] = []
    const { queue } = subscription
    const noteStale = (tag: number): void => addTag(stale, tag)
    for (const item of items) {
      if (item.outcome === OUTCOME.ack) {
        subscription.ack(item.firstTag, item.count, this.#turn.nowMs, noteStale)
        continue
      }
      const reason = clipText(item.reason ?? '', this.#reasonBytes(item.count))
      const ending = endingOfSettle(item)
      for (let i = 0; i < item.count; i++) {
        const tag = (item.firstTag + i) >>> 0
        if (!subscription.end(tag, this.#lease)) {
          noteStale(tag)
          continue
        }
        this.#end(queue, this.#lease, ending, reason, item.delayMs, item.pauseKey)
        // One item can settle many messages, each with a fact that contains the reason, so the facts are written within
        // the loop.
        this.#writer.note(queue)
      }
    }
    this.#turn.changed(queue)
    this.#observer?.settled(subscription, items, stale)
    return stale
  }

  // Returns the maximum size of the reason. Each message of an item has a fact with the reason, so the messages of an
  // item share one limit.
  #reasonBytes(messages: number): number {
    const share = Math.max(REASON_HEAD_BYTES, Math.floor(ITEM_REASONS_BYTES_MAX / messages))
    return Math.min(this.#reasonBytesMax, share)
  }

  // Applies the end of a lease to its message. Acknowledgements do not come here; they go directly to the queue. The
  // queue may still find that the message has used its last attempt or has expired.
  #end(
    queue: Queue,
    lease: Lease,
    ending: Ending,
    reason: string,
    delayMs?: number,
    pausesKey?: boolean,
  ): void {
    const { offset, sinceMs, bytes, isCharged } = lease
    const { nowMs } = this.#turn
    if (ending === 'retry') {
      const attempts = queue.attemptsOf(offset) + (isCharged ? 0 : 1)
      const waitMs = delayMs ?? backoffMs(queue.options, attempts, this.#random())
      if (pausesKey === true) queue.pauseKey(offset, nowMs + waitMs, nowMs)
      queue.retry(offset, nowMs + waitMs, nowMs, reason, bytes, isCharged)
    } else if (ending === 'rejected' || ending === 'invalid') {
      queue.deadLetter(offset, DEATH[ending], nowMs, reason, bytes, isCharged)
    } else {
      if (ending === 'suspect') queue.suspects.add(offset)
      else if (ending === 'unattributed') queue.suspects.addUnattributed(offset)
      queue.release(offset, sinceMs, nowMs)
    }
  }

  // --- time ---

  /**
   * Called when the consumer has started these messages. Their processing timeouts begin. Messages that the consumer
   * announced before are no longer announced.
   */
  started(subscription: Subscription, ranges: readonly TagRange[]): void {
    const deadlineMs = this.#turn.nowMs + processingTimeoutMs(subscription)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) subscription.start((firstTag + i) >>> 0, deadlineMs)
    }
    subscription.endAnnouncement()
    this.#noteDeadline(subscription)
    this.#observer?.started(subscription, ranges)
  }

  /**
   * Called when the consumer is about to handle these messages one after the other. If the connection is lost, each of
   * them may be the cause. A message has no deadline until the consumer names it in STARTED.
   */
  starting(subscription: Subscription, ranges: readonly TagRange[]): void {
    subscription.announce(ranges)
    this.#observer?.starting(subscription, ranges)
  }

  /**
   * Sets the deadline of the messages to `durationMs` from now. If `durationMs` is 0, sets it to the end of the
   * processing timeout. Returns the ranges of stale tags.
   */
  extend(subscription: Subscription, firstTag: number, count: number, durationMs: number): TagRange[] {
    const deadlineMs = this.#turn.nowMs + (durationMs || processingTimeoutMs(subscription))
    const stale: TagRange[] = []
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      if (!subscription.extend(tag, deadlineMs)) addTag(stale, tag)
    }
    this.#noteDeadline(subscription)
    this.#observer?.extended(subscription, firstTag, count, durationMs, stale)
    return stale
  }

  #noteDeadline(subscription: Subscription): void {
    const { queue, earliestDeadlineMs } = subscription
    if (earliestDeadlineMs >= queue.earliestDeadlineMs) return
    queue.earliestDeadlineMs = earliestDeadlineMs
    this.#turn.armQueue(queue)
    this.#turn.wake()
  }

  /** Called when a deadline of the queue has passed. */
  due(queue: Queue): void {
    const { nowMs } = this.#turn
    this.#turn.advance(queue)
    if (queue.earliestDeadlineMs <= nowMs) this.#endOverdue(queue)
    this.#turn.changed(queue)
  }

  // Retries the messages whose deadline has passed, and notifies their consumer of the loss.
  #endOverdue(queue: Queue): void {
    const { nowMs } = this.#turn
    queue.earliestDeadlineMs = Infinity
    for (const subscription of queue.subscriptions) {
      if (subscription.earliestDeadlineMs <= nowMs) {
        const lost: LostRange[] = []
        for (const tag of subscription.overdue(nowMs).sort((a, b) => a - b)) {
          if (!subscription.end(tag, this.#lease)) continue
          // A charged lease and the next lease of its message have the same attempt number. After a restart, claims of
          // the two leases can be distinguished only by the record that this subscription has ended.
          if (this.#lease.isCharged) queue.subscriptionEnded(subscription.id)
          this.#end(queue, this.#lease, 'retry', 'the processing timeout passed')
          addLost(lost, tag, this.#lease.offset)
        }
        this.#lose(subscription, LOSS.processingTimeout, lost)
      }
      queue.earliestDeadlineMs = Math.min(queue.earliestDeadlineMs, subscription.earliestDeadlineMs)
    }
  }

  /**
   * Called when the clock was set forward by `byMs`. The skipped time does not count towards processing timeouts and
   * unused queues.
   */
  clockStepped(byMs: number): void {
    this.#unused.clockStepped(byMs)
    for (const queue of this.#state.queues.values()) {
      if (queue.earliestDeadlineMs === Infinity) continue
      queue.earliestDeadlineMs += byMs
      for (const subscription of queue.subscriptions) subscription.postpone(byMs)
    }
    this.#turn.tick()
  }

  // --- claims ---

  /**
   * Leases again the messages that the client was handling when its connection was lost, unless another consumer has
   * received them since. A claim is not a delivery. The message keeps its deadline, unless the broker was restarted.
   */
  claim(subscription: Subscription, claims: readonly Claim[]): Granted[] {
    const granted = this.#claim(subscription, claims)
    this.#observer?.claimed(subscription, claims, granted)
    return granted
  }

  #claim(subscription: Subscription, claims: readonly Claim[]): Granted[] {
    const { queue } = subscription
    const { nowMs } = this.#turn
    const granted: Granted[] = []
    // With `single`, only the active subscription may handle messages.
    const { soleSubscription } = queue
    if (queue.options.single && soleSubscription !== undefined && soleSubscription !== subscription)
      return granted
    for (const [index, claim] of claims.entries()) {
      if (!subscription.takesClaim(queue.claimBytes(claim.offset))) continue
      const { label } = subscription.consumer
      const reclaimed = queue.reclaim(claim, this.#state.boot, nowMs, label)
      if (reclaimed === undefined) continue
      const { sinceMs, attempt, isCharged, bytes } = reclaimed
      const deadlineMs =
        reclaimed.deadlineMs === Infinity ? nowMs + processingTimeoutMs(subscription) : reclaimed.deadlineMs
      const tag = subscription.grantClaim(claim.offset, bytes, sinceMs, nowMs, deadlineMs, isCharged)
      granted.push({ index, tag, attempt })
    }
    if (granted.length === 0) return granted
    this.#noteDeadline(subscription)
    this.#turn.changed(queue)
    return granted
  }

  // Claimable leases are kept for a limited number of queues. Beyond that number of queues, the leases of the queue
  // that was added first are dropped.
  #noteClaimable(queue: Queue): void {
    this.#claimable.delete(queue)
    this.#claimable.add(queue)
    if (this.#claimable.size <= CLAIMABLE_QUEUES_MAX) return
    for (const oldest of this.#claimable) {
      oldest.former.forget()
      this.#claimable.delete(oldest)
      break
    }
  }

  // --- purge and delete ---

  /** Ends all leases of the queue, which is being purged. */
  endLeases(queue: Queue): void {
    for (const subscription of queue.subscriptions) {
      const lost: LostRange[] = []
      const tags = [...subscription.held()].map(({ tag }) => tag).sort((a, b) => a - b)
      for (const tag of tags) if (subscription.end(tag, this.#lease)) addLost(lost, tag, this.#lease.offset)
      this.#lose(subscription, LOSS.purged, lost)
    }
  }

  #lose(subscription: Subscription, reason: Loss, lost: readonly LostRange[]): void {
    if (lost.length === 0) return
    this.#observer?.lost(subscription, reason, lost)
    subscription.consumer.lost(subscription, reason, lost)
  }

  /** Ends all subscriptions of the queue, which is being deleted, with `error`. */
  endSubscriptions(queue: Queue, error: SluiceError): void {
    for (const subscription of queue.subscriptions) {
      queue.detach(subscription)
      subscription.takeAll(this.#lease, () => {})
      subscription.consumer.ended(subscription, error)
    }
    this.#claimable.delete(queue)
  }
}

function endingOfSettle({ outcome, invalid }: SettleItem): Ending {
  if (outcome === OUTCOME.release) return 'release'
  if (outcome === OUTCOME.deadLetter) return invalid === true ? 'invalid' : 'rejected'
  return 'retry'
}

function endingOfLoss(endReason: EndReason, { started, alone }: Lease): Ending {
  if ((endReason === 'started' && started) || (endReason === 'alone' && alone)) return 'retry'
  if (endReason === 'suspects' && started) return 'suspect'
  return endReason === 'unattributed' || endReason === 'alone' ? 'unattributed' : 'release'
}

function processingTimeoutMs(subscription: Subscription): number {
  return subscription.processingTimeoutMs ?? subscription.queue.options.processingTimeoutMs
}
