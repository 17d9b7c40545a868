/**
 * Checks what consumers receive and do: each delivery when it is made, claims, settles, deadlines, and which messages
 * are charged when a connection dies.
 */
import type { Claim, Granted, SettleItem, TagRange } from '@sluice/protocol'
import { activeOf, fits, hasRoom } from '../rules/credit.js'
import {
  CLEARED,
  endReasonFor,
  deadlineAfterExtension,
  deadlineAfterStarted,
  deadlineAfterStarting,
  leaseEndFor,
  suspicionAfter,
  type EndReason,
} from '../rules/lease.js'
import { isExpired } from '../rules/message.js'
import { sameBytes, splitRecords } from './attempts.js'
import { creditText, endAnnouncement, endLease, leaseName, loadOf, sizeOf, timeoutOf } from './leases.js'
import type { Outcomes } from './outcomes.js'
import type { ModelConsumer, ModelMessage, ModelQueue, ModelState, ModelSubscription } from './state.js'
import { Violation } from './trace.js'

const REJECTED = 1
const INVALID = 4
const SUPERSEDED_MAX = 300

/** `normal`: the subscription ended in an orderly way. */
export type ModelEndReason = 'normal' | EndReason

export class Consuming {
  /** Leases of messages that another consumer received later. */
  readonly superseded: Claim[] = []
  readonly #state: ModelState
  readonly #outcomes: Outcomes
  readonly #byId = new Map<number, ModelSubscription>()
  /** For each message, the last of its leases that reached a consumer, across all restarts of the broker. */
  readonly #holders = new Map<
    string,
    { readonly lease: string; readonly claim: Claim; readonly order: number }
  >()
  /** Number of leases that were granted. */
  #leases = 0
  /** Leases that their consumers settled. */
  readonly #settledLeases = new Set<string>()
  /** The end reason of each connection that died. */
  readonly #endReasons = new WeakMap<ModelConsumer, ModelEndReason>()
  /** Leases that a purge in progress has ended. */
  #purged: Map<ModelSubscription, Set<number>> | undefined

  constructor(state: ModelState, outcomes: Outcomes) {
    this.#state = state
    this.#outcomes = outcomes
  }

  subscribed(
    key: object,
    id: number,
    queueName: string,
    consumer: ModelConsumer,
    messages: number,
    bytes: number,
    limit: number | undefined,
    processingTimeoutMs?: number,
  ): void {
    const queue = this.#state.named(queueName)
    // Invariant 7: a tag from before a restart must mean nothing after it.
    if (this.#byId.has(id)) throw new Violation(7, `two subscriptions have the id ${id}`)
    const subscription: ModelSubscription = {
      id,
      queue,
      consumer,
      processingTimeoutMs,
      creditMessages: messages,
      creditBytes: bytes,
      limit: limit ?? Infinity,
      draining: false,
      delivered: 0,
      lastTag: -1,
      held: new Map(),
      heldBytes: 0,
      holdsSuspect: false,
      started: new Map(),
      granted: new Map(),
      charged: new Map(),
      precharged: new Set(),
      sizes: new Map(),
    }
    this.#state.subscriptions.set(key, subscription)
    this.#byId.set(id, subscription)
    queue.subscriptions.add(subscription)
  }

  /** Called when the subscription claimed leases and the broker granted the leases in `granted`. */
  claimed(
    key: object,
    claims: readonly Claim[],
    granted: readonly Granted[],
    countedBytes: (tag: number) => number,
    nowMs: number,
  ): void {
    const { boot } = this.#state
    const subscription = this.#subscription(key)
    const { queue } = subscription
    this.#state.counts.claims += claims.length
    const active = activeOf(queue.subscriptions) ?? subscription
    if (queue.options.single && granted.length > 0 && subscription !== active)
      throw new Violation(
        'single consumer',
        `${queue.name} grants a claim to a subscription that is not active`,
      )
    for (const { index, tag, attempt } of granted) {
      const claim = claims[index]!
      const lease = leaseName(claim.subscriptionId, claim.tag)
      const message = queue.live.get(claim.offset)
      const what = `the claim of ${lease} on offset ${claim.offset} of ${queue.name}`
      // Invariant 7: no consumer holds the message, and no other consumer has received it since the claimed lease.
      if (claim.queueNumber !== queue.id || message === undefined)
        throw new Violation(7, `${what} is granted, but the message does not exist`)
      if (message.state === 'leased' || message.state === 'dead')
        throw new Violation(7, `${what} is granted while the message is ${message.state}`)
      const holder = this.#holders.get(messageKey(queue.id, claim.offset))
      if (holder?.lease !== lease)
        throw new Violation(7, `${what} is granted; its last holder was ${holder?.lease}`)
      if (claim.boot === boot && message.former?.lease !== lease)
        throw new Violation(7, `${what} is granted; the last lease is ${message.former?.lease}`)
      if (attempt !== message.attempts + 1)
        throw new Violation(10, `${what} is attempt ${attempt}; ${message.attempts} were charged`)
      // Invariant 14: deliveries stay within the credit. After a restart a lease counts its estimated bytes until it ends.
      const bytes = countedBytes(tag)
      if (claim.boot === boot && bytes !== message.former!.bytes)
        throw new Violation(14, `${what} counts ${bytes} bytes; it counted ${message.former!.bytes} before`)
      const counted = { bytes, isSuspect: false }
      if (
        subscription.held.size >= subscription.creditMessages ||
        !fits(subscription, loadOf(subscription), counted)
      )
        throw new Violation(14, `${what} of ${bytes} bytes exceeds ${creditText(subscription)}`)
      if (subscription.held.has(tag) || tag <= subscription.lastTag)
        throw new Violation(7, `${what} has tag ${tag} after ${subscription.lastTag}`)
      subscription.lastTag = tag
      subscription.held.set(tag, message)
      subscription.heldBytes += bytes
      subscription.sizes.set(tag, bytes)
      subscription.granted.set(tag, { offset: message.offset, attempt, order: this.#leases++ })
      const deadlineMs = message.former?.deadlineMs ?? Infinity
      subscription.started.set(tag, deadlineMs === Infinity ? nowMs + timeoutOf(subscription) : deadlineMs)
      if (message.former?.isCharged === true) subscription.precharged.add(tag)
      if (claim.boot === boot) this.#state.counts['claims granted']++
      else this.#state.counts['claims granted after a restart']++
      queue.line.retake(message, nowMs)
      const ofKey = queue.line.keyOf(message)
      if (ofKey !== undefined && ofKey.leased > queue.options.keyConcurrency)
        throw new Violation(13, `${what} is one of ${ofKey.leased} leased messages of its key`)
      message.former = undefined
      Object.assign(message, CLEARED)
      message.mustMark = true
      message.mayMark = true
    }
  }

  /**
   * Called when the frame that grants a lease has left the broker. From now on the lease's consumer has the message,
   * and the previous holder has lost it.
   */
  sent(subscriptionId: number, tag: number): void {
    const { boot } = this.#state
    const subscription = this.#byId.get(subscriptionId)
    const granted = subscription?.granted.get(tag)
    if (subscription === undefined || granted === undefined) return
    const { queue } = subscription
    // The values are those at delivery, because the frame can wait for the disk, and the attempt can end before the
    // frame is sent.
    const { offset, attempt, order } = granted
    const key = messageKey(queue.id, offset)
    const before = this.#holders.get(key)
    const message = queue.live.get(offset)
    const claim = {
      ...{ offset, queueNumber: queue.id, boot, subscriptionId, tag },
      ...{ attempt, bytes: message?.record.length ?? 8 },
    }
    const holder = { lease: leaseName(subscriptionId, tag), claim, order }
    // The frame of an ended lease can leave after the frame of the next lease, through another connection.
    const isOutrun = before !== undefined && before.order > order
    const loser = isOutrun ? holder : before
    // A consumer does not claim a message that it settled itself.
    if (loser !== undefined && !this.#settledLeases.has(loser.lease)) {
      this.superseded.push(loser.claim)
      if (this.superseded.length > SUPERSEDED_MAX) this.superseded.shift()
    }
    if (!isOutrun) this.#holders.set(key, holder)
  }

  credited(key: object, messages: number, bytes: number, limit: number | undefined, drain: boolean): void {
    const subscription = this.#subscription(key)
    subscription.creditMessages = messages
    subscription.creditBytes = bytes
    subscription.limit = limit ?? Infinity
    subscription.draining = drain
  }

  /** Called when the broker delivers a run of messages. */
  dispatched(
    key: object,
    run: {
      offset: number
      publishedAtMs: number
      attempt: number
      redelivered: boolean
      alone: boolean
      sinceMs: number
    },
    firstTag: number,
    count: number,
    records: Uint8Array,
    nowMs: number,
  ): void {
    const subscription = this.#subscription(key)
    const { queue } = subscription
    if (queue.paused)
      throw new Violation('pause', `${queue.name} delivers offset ${run.offset} while it is paused`)
    // With `single`, messages go only to the subscription that holds some, or else to the first one with credit left.
    if (queue.options.single && subscription !== activeOf(queue.subscriptions))
      throw new Violation(
        'single consumer',
        `${queue.name} delivers offset ${run.offset} to a subscription that is not active`,
      )
    const parts = splitRecords(records, 0, records.length)
    if (parts.length !== count)
      throw new Violation(2, `a run of ${count} messages of ${queue.name} has ${parts.length} records`)
    for (let i = 0; i < count; i++) {
      const offset = run.offset + i
      const what = `offset ${offset} of ${queue.name}`
      const message = queue.live.get(offset)
      this.#state.counts.dispatched++
      // Invariant 2: a delivered message was published to this queue, byte for byte.
      if (message === undefined) throw new Violation(2, `${what} is delivered but does not exist`)
      if (!sameBytes(message.record, parts[i]!))
        throw new Violation(2, `${what} is delivered with other bytes`)
      if (run.publishedAtMs !== message.publishedMs)
        throw new Violation(2, `${what} was published at ${message.publishedMs}, not ${run.publishedAtMs}`)
      // Invariants 7 and 11: a message has one holder at a time, and is not delivered before its due time.
      if (message.state === 'leased')
        throw new Violation(7, `${what} is delivered while another consumer holds it`)
      const due = queue.line.firstDue(queue.lookedMs - 1)
      if (due !== undefined)
        throw new Violation(12, `${what} is delivered, but offset ${due.offset} was due at ${due.lineMs}`)
      if (message.state === 'scheduled')
        throw new Violation(11, `${what} is delivered at ${nowMs} but is due at ${message.lineMs}`)
      if (message.state === 'dead') throw new Violation(6, `${what} is delivered but is dead`)
      if (isExpired(message, nowMs))
        throw new Violation(
          'time to live',
          `${what} is delivered at ${nowMs} but expired at ${message.expiresMs}`,
        )
      this.#judgeOrder(queue, message, run.sinceMs, what)
      // Invariant 10: the number of the attempt is one more than the number of charged attempts.
      if (run.attempt !== message.attempts + 1)
        throw new Violation(10, `${what} is attempt ${run.attempt}; ${message.attempts} were charged`)
      // Invariant 22: every redelivery is marked, and no first delivery is.
      if (message.mustMark && !run.redelivered)
        throw new Violation(22, `${what} is delivered again without the mark`)
      if (run.redelivered && !message.mayMark)
        throw new Violation(22, `${what} is marked as redelivered at its first delivery`)
      if (run.redelivered) {
        this.#state.counts.repeated++
        queue.counts.redelivered++
      }
      // A suspect is the only message of its consumer.
      if (run.alone !== message.isSuspect || (run.alone && count > 1))
        throw new Violation(
          'suspects',
          `${what} is delivered alone: ${run.alone}, in a run of ${count}; it is a suspect: ${message.isSuspect}`,
        )
      if (subscription.holdsSuspect || (run.alone && subscription.held.size > 0))
        throw new Violation(
          'suspects',
          `${what} is delivered while its consumer holds a suspect, or is itself a suspect and its consumer holds others`,
        )
      this.#grant(subscription, message, (firstTag + i) >>> 0, parts[i]!.length, nowMs)
      if (run.alone) {
        this.#state.counts.alone++
        subscription.holdsSuspect = true
      }
    }
  }

  // Invariants 12 and 13: no message is delivered before an earlier one in the line, or before its key allows it.
  #judgeOrder(queue: ModelQueue, message: ModelMessage, runSinceMs: number, what: string): void {
    const sinceMs = queue.line.eligibleSince(message)
    const { priority, key } = message.content
    if (sinceMs === undefined) {
      const { leased, retrying } = queue.line.keyOf(message)!
      throw new Violation(
        13,
        `${what} is delivered before others of its key; ${leased} of them are leased, ${retrying} wait for a retry`,
      )
    }
    const first = queue.line.first(queue.live.values())!
    this.#state.counts.order++
    if (key !== undefined) this.#state.counts.keyed++
    if (priority > 0) this.#state.counts.prioritized++
    if (first !== message)
      throw new Violation(
        12,
        `${what} (priority ${priority}, since ${sinceMs}) is delivered before offset ${first.offset} (priority ${first.content.priority}, since ${queue.line.eligibleSince(first)})`,
      )
    if (runSinceMs !== -1 && runSinceMs !== sinceMs)
      throw new Violation(12, `${what} has been eligible since ${sinceMs}; the broker reports ${runSinceMs}`)
  }

  #grant(
    subscription: ModelSubscription,
    message: ModelMessage,
    tag: number,
    bytes: number,
    nowMs: number,
  ): void {
    const { queue } = subscription
    const what = `offset ${message.offset} of ${queue.name}`
    // Invariant 14: the message is within the credit, or it is the only one that the subscription holds.
    if (!this.#hasRoom(subscription) || !fits(subscription, loadOf(subscription), message))
      throw new Violation(14, `${what} of ${bytes} bytes exceeds ${creditText(subscription)}`)
    if (subscription.held.has(tag) || tag <= subscription.lastTag)
      throw new Violation(7, `${what} has tag ${tag} after ${subscription.lastTag}`)
    subscription.lastTag = tag
    subscription.held.set(tag, message)
    subscription.heldBytes += bytes
    subscription.granted.set(tag, {
      offset: message.offset,
      attempt: message.attempts + 1,
      order: this.#leases++,
    })
    subscription.delivered++
    message.former = undefined
    queue.line.take(message, nowMs)
    const key = queue.line.keyOf(message)
    if (key !== undefined && key.leased > queue.options.keyConcurrency)
      throw new Violation(13, `${what} is one of ${key.leased} leased messages of its key`)
    message.mustMark = true
    message.mayMark = true
  }

  settled(key: object, items: readonly SettleItem[], stale: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    const staleTags = new Set<number>()
    for (const { firstTag, count } of stale)
      for (let i = 0; i < count; i++) staleTags.add((firstTag + i) >>> 0)
    let expectedStale = 0
    const named = new Set<number>()
    for (const item of items) {
      for (let i = 0; i < item.count; i++) {
        const tag = (item.firstTag + i) >>> 0
        const message = subscription.held.get(tag)
        // Invariant 7: a stale settle changes nothing and is reported; a valid settle is not reported.
        if (message === undefined) {
          expectedStale++
          if (!staleTags.has(tag))
            throw new Violation(7, `tag ${tag} of subscription ${subscription.id} is stale but was settled`)
          continue
        }
        if (staleTags.has(tag) && !named.has(tag)) {
          // A tag that is named twice in one frame counts the first time and is stale the second time.
          const again =
            items.flatMap(({ firstTag, count }) => ((tag - firstTag) >>> 0 < count ? [1] : [])).length > 1
          if (!again)
            throw new Violation(
              7,
              `tag ${tag} of subscription ${subscription.id} is held but was reported as stale`,
            )
        }
        named.add(tag)
        this.#settledLeases.add(leaseName(subscription.id, tag))
        this.#settle(subscription, tag, message, item, nowMs)
      }
    }
    this.#state.counts.stale += expectedStale
    const reported = stale.reduce((sum, { count }) => sum + count, 0)
    if (reported !== expectedStale)
      throw new Violation(7, `${reported} tags are reported as stale; ${expectedStale} tags are stale`)
  }

  #settle(
    subscription: ModelSubscription,
    tag: number,
    message: ModelMessage,
    item: SettleItem,
    nowMs: number,
  ): void {
    const { queue } = subscription
    const isCharged = endLease(subscription, tag, message)
    switch (item.outcome) {
      case 1:
        this.#outcomes.ack(queue, message, nowMs)
        return
      case 2:
        this.#outcomes.retry(queue, message, item.delayMs, nowMs, isCharged)
        if (queue.live.has(message.offset) && message.attempts > 0)
          subscription.charged.set(tag, message.attempts)
        return
      case 3:
        this.#outcomes.release(queue, message, nowMs)
        this.#state.counts.released++
        return
      case 4: {
        const death = item.invalid === true ? INVALID : REJECTED
        queue.line.settled(message, nowMs)
        this.#outcomes.die(queue, message, message.attempts + (isCharged ? 0 : 1), death, nowMs)
      }
    }
  }

  started(key: object, ranges: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (!subscription.held.has(tag)) continue
        const before = subscription.started.get(tag)
        subscription.started.set(tag, deadlineAfterStarted(before, nowMs, timeoutOf(subscription)))
      }
    }
    endAnnouncement(subscription)
  }

  /**
   * Called when the consumer announces that it may handle any of these messages next; none of them has a deadline yet.
   */
  starting(key: object, ranges: readonly TagRange[]): void {
    const subscription = this.#subscription(key)
    endAnnouncement(subscription)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (!subscription.held.has(tag)) continue
        const before = subscription.started.get(tag)
        if (before === undefined) this.#state.counts.announced++
        subscription.started.set(tag, deadlineAfterStarting(before))
      }
    }
  }

  extended(
    key: object,
    firstTag: number,
    count: number,
    durationMs: number,
    stale: readonly TagRange[],
    nowMs: number,
  ): void {
    const subscription = this.#subscription(key)
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      const isStale = stale.some((range) => (tag - range.firstTag) >>> 0 < range.count)
      if (isStale === subscription.held.has(tag))
        throw new Violation(7, `tag ${tag} of subscription ${subscription.id} is extended: ${!isStale}`)
      if (isStale) continue
      this.#state.counts.extended++
      const before = subscription.started.get(tag)
      const deadlineMs = deadlineAfterExtension(before, nowMs, durationMs, timeoutOf(subscription))
      if (deadlineMs !== undefined) subscription.started.set(tag, deadlineMs)
    }
  }

  /** Called when the broker notifies the subscription that it has lost these leases. */
  lost(key: object, ranges: readonly TagRange[], nowMs: number): void {
    const subscription = this.#subscription(key)
    const { queue } = subscription
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const message = subscription.held.get(tag)
        const what = `tag ${tag} of subscription ${subscription.id}`
        if (message === undefined) throw new Violation(7, `${what} is reported as lost but was not held`)
        if (this.#purged !== undefined) {
          const purged = this.#purged.get(subscription) ?? new Set()
          this.#purged.set(subscription, purged.add(tag))
          continue
        }
        const deadlineMs = subscription.started.get(tag)
        if (deadlineMs === undefined || deadlineMs > nowMs)
          throw new Violation('deadline', `${what} is lost at ${nowMs}; its deadline is ${deadlineMs}`)
        this.#state.counts['timed out']++
        const isCharged = endLease(subscription, tag, message)
        this.#outcomes.retry(queue, message, undefined, nowMs, isCharged)
      }
    }
  }

  /** Called after the broker has ended the subscription. */
  unsubscribed(key: object, endReason: ModelEndReason, isStopping: boolean, nowMs: number): void {
    const subscription = this.#subscription(key)
    const { queue, started, consumer, holdsSuspect } = subscription
    if (endReason !== 'normal') this.#judgeEndReason(consumer, endReason)
    for (const [tag, message] of [...subscription.held]) {
      const wasStarted = started.has(tag)
      const deadlineMs = started.get(tag) ?? Infinity
      const bytes = sizeOf(subscription, tag, message)
      const wasCharged = endLease(subscription, tag, message)
      const end = endReason === 'normal' ? 'released' : leaseEndFor(endReason, wasStarted, holdsSuspect)
      const isCharged = end === 'charged'
      const lease = leaseName(subscription.id, tag)
      if (!isStopping) message.former = { lease, bytes, deadlineMs, isCharged: isCharged || wasCharged }
      // The message that was being handled is charged, or else the message that was delivered alone.
      if (isCharged) {
        this.#state.counts.charged++
        this.#outcomes.retry(queue, message, undefined, nowMs, wasCharged)
        continue
      }
      const suspicion = suspicionAfter(end, message)
      if (end !== 'released' && suspicion.isSuspect) this.#state.counts.suspected++
      Object.assign(message, suspicion)
      this.#outcomes.release(queue, message, nowMs)
    }
    queue.subscriptions.delete(subscription)
    this.#state.subscriptions.delete(key)
  }

  // If a single message was being handled, it is charged; if several messages were being handled, no message is charged
  // and all of them become suspects.
  #judgeEndReason(consumer: ModelConsumer, endReason: ModelEndReason): void {
    let must = this.#endReasons.get(consumer)
    if (must === undefined) {
      let started = 0
      let held = 0
      for (const subscription of this.#state.subscriptions.values()) {
        if (subscription.consumer !== consumer) continue
        started += subscription.started.size
        held += subscription.held.size
      }
      must = endReasonFor(started, held)
      this.#endReasons.set(consumer, must)
    }
    if (endReason !== must)
      throw new Violation(
        'suspects',
        `the end reason of a dead connection is ${endReason}; it must be ${must}`,
      )
  }

  drained(key: object): void {
    const subscription = this.#subscription(key)
    if (!subscription.draining)
      throw new Violation(16, `subscription ${subscription.id} is drained but did not ask for it`)
    const waiting = this.nextFor(subscription)
    if (waiting !== undefined)
      throw new Violation(
        16,
        `subscription ${subscription.id} is drained while offset ${waiting.offset} of ${subscription.queue.name} can be delivered`,
      )
    subscription.draining = false
    subscription.limit = subscription.delivered
    this.#state.counts.drained++
  }

  nextFor(subscription: ModelSubscription): ModelMessage | undefined {
    const { queue } = subscription
    if (queue.paused || !subscription.consumer.isReady || !this.#hasRoom(subscription)) return undefined
    const first = queue.line.first(queue.live.values())
    return first !== undefined && fits(subscription, loadOf(subscription), first) ? first : undefined
  }

  #hasRoom(subscription: ModelSubscription): boolean {
    const { options, subscriptions } = subscription.queue
    return hasRoom(subscription, loadOf(subscription), options.single, subscriptions)
  }

  /** The subscription with this id, even if it has ended. */
  subscriptionById(id: number): ModelSubscription | undefined {
    return this.#byId.get(id)
  }

  #subscription(key: object): ModelSubscription {
    const subscription = this.#state.subscriptions.get(key)
    if (subscription === undefined)
      throw new Violation(7, 'the broker uses a subscription that does not exist or has ended')
    return subscription
  }

  /** Called when a purge starts, which notifies every holder. */
  purging(): void {
    this.#purged = new Map()
  }

  /** Called when the purge of this queue is complete. By then every holder must have been notified. */
  purged(queue: ModelQueue): void {
    const notified = this.#purged!
    this.#purged = undefined
    for (const subscription of queue.subscriptions) {
      if (subscription.held.size !== (notified.get(subscription)?.size ?? 0))
        throw new Violation(
          'purge',
          `subscription ${subscription.id} holds ${subscription.held.size} messages that are purged, but is notified of ${notified.get(subscription)?.size ?? 0}`,
        )
      subscription.held.clear()
      subscription.started.clear()
      subscription.sizes.clear()
      subscription.heldBytes = 0
      subscription.holdsSuspect = false
    }
  }
}

function messageKey(queueId: number, offset: number): string {
  return `${queueId}:${offset}`
}
