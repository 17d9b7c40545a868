/**
 * The model of the broker, in plain Maps. It receives every command in the order in which the broker executes them, with
 * the broker's answer, and every message at its delivery; it throws a Violation if an answer or a delivery is wrong. The
 * rules are those of test/rules; the model shares no code with the broker. Invariants are numbered as in
 * ARCHITECTURE.md.
 *
 * The model learns of due and expired messages when the broker notices them. Whenever the broker answers or is at rest,
 * the model checks that the broker noticed in time.
 *
 * After a restart the model continues from the state of the log; see ledger.ts. Frames that leave the broker are checked
 * in witness.ts.
 */
import {
  SluiceError,
  type ErrorCode,
  type MessageRef,
  type QueueInfo,
  type QueueOptions,
} from '@sluice/protocol'
import { PendingIds, RememberedIds } from '../rules/ids.js'
import { Line } from '../rules/line.js'
import { dueMsOf, isExpired, isOver, livesAfterRedrive, rescheduled } from '../rules/message.js'
import { changeOf } from '../rules/options.js'
import { compareCounts } from './agreement.js'
import { messageName } from './attempts.js'
import { Consuming } from './consuming.js'
import { noCounts, type LedgerState } from './ledger.js'
import { Outcomes } from './outcomes.js'
import { Publishing, type PublishingView } from './publishing.js'
import { DEATHS, copyOf, redrivesBefore } from './record.js'
import { recoverQueue } from './recovered.js'
import { ModelState, type ModelMessage, type ModelQueue } from './state.js'
import { Violation } from './trace.js'

/** Values that the model cannot derive. */
export interface ModelView extends PublishingView {
  /** Time at which the broker will deliver the message again. */
  dueMs(queueId: number, offset: number): number | undefined
  /** Called when the broker copied a message to `queue`, as `record`. */
  copied(queue: string, record: Uint8Array): void
}

export class Model {
  readonly state = new ModelState()
  readonly publishing: Publishing
  readonly consuming: Consuming
  /** Names of the messages whose due time was changed. */
  readonly rescheduledNames = new Set<string>()
  readonly #view: ModelView
  readonly #outcomes: Outcomes

  constructor(view: ModelView) {
    this.#view = view
    this.#outcomes = new Outcomes(this.state.counts, (queueId, offset) => view.dueMs(queueId, offset))
    this.publishing = new Publishing(this.state, this.#outcomes, view)
    this.consuming = new Consuming(this.state, this.#outcomes)
  }

  /**
   * Called when the broker has recovered to this state of the log; everything volatile is lost. `latestMs` is the
   * latest time that the broker has seen, before or after any restart.
   */
  recover(log: LedgerState, afterCrash: boolean, nowMs: number, latestMs = nowMs): void {
    const { state } = this
    const before = new Map(state.queues)
    this.publishing.turnEnded()
    state.queues.clear()
    state.names.clear()
    state.subscriptions.clear()
    for (const saved of log.queues.values())
      state.add(recoverQueue(saved, afterCrash, nowMs, latestMs, before.get(saved.id)))
    this.publishing.results.recover(log.producers.values())
  }

  /** Called when the broker answered ENSURE. For a new queue this is the first event. */
  ensured(id: number, info: QueueInfo, nowMs: number): void {
    const known = this.state.names.get(info.name)
    if (known === undefined) {
      const queue: ModelQueue = {
        id,
        name: info.name,
        options: info.options,
        paused: false,
        next: 0,
        acked: 0,
        counts: noCounts(),
        carried: 0,
        live: new Map(),
        line: new Line<ModelMessage>(info.options),
        remembered: new RememberedIds(),
        unsure: new Set(),
        pending: new PendingIds(),
        subscriptions: new Set(),
        expiring: new Set(),
        lookedMs: nowMs,
      }
      if (this.state.queues.has(id))
        throw new Violation(5, `queue ${info.name} has the id ${id} of another queue`)
      this.state.add(queue)
    } else if (JSON.stringify(known.options) !== JSON.stringify(info.options))
      throw new Violation(6, `${info.name} has other options than the model`)
    compareCounts(this.state.named(info.name), info, nowMs)
  }

  /** Called when the options of a queue have changed. */
  changed(id: number, options: QueueOptions, nowMs: number): void {
    const queue = this.state.numbered(id)
    const { changesRules, forgetsAfterMs } = changeOf(queue.options, options)
    this.#forgetIds(queue, nowMs)
    queue.options = options
    this.#forgetIds(queue, nowMs, forgetsAfterMs)
    if (!changesRules) return
    queue.line.changeRules(options, nowMs)
  }

  setPaused(name: string, paused: boolean, changed: boolean): void {
    const queue = this.state.named(name)
    if (changed !== (queue.paused !== paused))
      throw new Violation('pause', `${name} was paused: ${queue.paused}, and reports a change: ${changed}`)
    queue.paused = paused
  }

  deleted(name: string, messages: number): void {
    const queue = this.state.named(name)
    if (messages !== queue.live.size)
      throw new Violation(6, `${name} is deleted with ${messages} messages; it had ${queue.live.size}`)
    for (const [key, subscription] of this.state.subscriptions)
      if (subscription.queue === queue) this.state.subscriptions.delete(key)
    this.state.remove(queue)
  }

  purged(name: string, messages: number): void {
    const queue = this.state.named(name)
    this.consuming.purged(queue)
    let count = 0
    for (const message of [...queue.live.values()]) {
      if (message.state === 'dead') continue
      this.#outcomes.remove(queue, message)
      count++
    }
    queue.line.clear()
    queue.counts.purged += count
    if (messages !== count)
      throw new Violation(6, `a purge of ${name} removes ${messages} messages; there were ${count}`)
  }

  cancelled(ref: MessageRef, answer: { readonly offset: number } | SluiceError, nowMs: number): void {
    const message = this.#referred('cancel', ref, answer, nowMs)
    if (message === undefined) return
    const queue = this.state.named(ref.name)
    this.state.counts.cancelled++
    queue.counts.cancelled++
    queue.line.leave(message, nowMs)
    this.#outcomes.remove(queue, message)
  }

  rescheduled(
    ref: MessageRef & { readonly delayMs: number | undefined; readonly atMs: number | undefined },
    answer: { readonly offset: number; readonly dueMs: number } | SluiceError,
    nowMs: number,
  ): void {
    const message = this.#referred('reschedule', ref, answer, nowMs)
    if (message === undefined) return
    const queue = this.state.named(ref.name)
    const { dueMs } = answer as { readonly dueMs: number }
    const mustMs = dueMsOf(ref, nowMs)
    if (dueMs !== mustMs)
      throw new Violation(11, `offset ${message.offset} of ${ref.name} is due at ${dueMs}, not at ${mustMs}`)
    this.state.counts.rescheduled++
    this.rescheduledNames.add(messageName(ref.name, message.record))
    queue.line.leave(message, nowMs)
    Object.assign(message, rescheduled(message, dueMs))
    message.former = undefined
    message.isPlain = false
    queue.line.enter(message, nowMs)
  }

  // Checks which message a request refers to, or the reason for a refusal.
  #referred(
    what: string,
    { name, offset, id }: MessageRef,
    answer: { readonly offset: number } | SluiceError,
    nowMs: number,
  ): ModelMessage | undefined {
    const queue = this.state.names.get(name)
    let must: ErrorCode | number
    let message: ModelMessage | undefined
    if (queue === undefined) must = 'QUEUE_NOT_FOUND'
    else {
      const at = offset ?? this.#offsetOf(queue, id!, nowMs)
      message = at === undefined ? undefined : queue.live.get(at)
      if (message === undefined || message.state === 'dead' || isOver(message, nowMs))
        must = 'MESSAGE_NOT_FOUND'
      else must = message.state === 'leased' ? 'MESSAGE_LEASED' : message.offset
      // The broker may have forgotten the id.
      if (id !== undefined && queue.unsure.has(id) && answer instanceof SluiceError) must = answer.code
    }
    const is = answer instanceof SluiceError ? answer.code : answer.offset
    // A time too far in the past is refused before the message is looked up.
    if (is !== must && is !== 'AT_IN_THE_PAST')
      throw new Violation(
        'reference',
        `${what} of offset ${offset} or id ${id} in ${name}: ${is}, not ${must}`,
      )
    return answer instanceof SluiceError ? undefined : message
  }

  #offsetOf(queue: ModelQueue, id: string, nowMs: number): number | undefined {
    const over = [...queue.live.values()].filter((message) => isOver(message, nowMs))
    const pending = queue.pending.find(id, new Set(over.map(({ offset }) => offset)))
    if (pending !== undefined || queue.options.unique === 'pending') return pending
    return queue.remembered.find(id)?.offset
  }

  /** Called when a dead message is redriven in its own queue. Its attempts are reset. */
  redriven(id: number, offset: number, nowMs: number): void {
    const queue = this.state.numbered(id)
    const message = this.#deadAt(queue, offset, 'redriven')
    const { dead, earlier, content } = message
    const other =
      queue.options.unique === 'pending' && content.id !== undefined
        ? this.#offsetOf(queue, content.id, nowMs)
        : undefined
    if (other !== undefined)
      throw new Violation('ids', `offset ${offset} of ${queue.name} is redriven while ${other} has its id`)
    message.earlier = livesAfterRedrive(earlier, dead!.attempts)
    message.dead = undefined
    message.former = undefined
    message.attempts = 0
    message.lineMs = nowMs
    message.isPlain = false
    message.expiresMs = 0
    message.mustMark = true
    message.mayMark = true
    if (message.isListed) queue.pending.add(message.content.id!, offset)
    queue.counts.redriven++
    this.state.counts.redriven++
    queue.line.enter(message, nowMs)
  }

  discarded(id: number, offset: number): void {
    const queue = this.state.numbered(id)
    const message = this.#deadAt(queue, offset, 'discarded')
    queue.counts.discarded++
    this.state.counts.discarded++
    this.#outcomes.remove(queue, message)
  }

  /** Called when a dead message is now in another queue, because it was routed to the dead-letter queue or redriven. */
  moved(
    id: number,
    offset: number,
    isCarried: boolean,
    target: { readonly id: number; readonly base: number },
    reason: string,
    nowMs: number,
  ): void {
    const queue = this.state.numbered(id)
    const message = this.#deadAt(queue, offset, 'moved')
    const to = this.state.numbered(target.id)
    const what = `offset ${offset} of ${queue.name}`
    const { earlier, content } = message
    const dead = message.dead!
    if (!isCarried && (!dead.isMoving || queue.options.deadLetter !== to.name))
      throw new Violation(17, `${what} is moved to ${to.name}, which is not its dead-letter queue`)
    if (target.base !== to.next)
      throw new Violation(5, `${what} is at ${target.base} of ${to.name}, whose next one is ${to.next}`)
    this.#outcomes.remove(queue, message)
    if (isCarried) {
      queue.carried++
      queue.counts.redriven++
      this.state.counts.carried++
    } else {
      queue.counts.moved++
      this.state.counts.moved++
    }
    const record = copyOf(message.record, {
      queue: queue.name,
      offset,
      publishedMs: message.publishedMs,
      attempts: earlier.attempts + dead.attempts,
      redrives: earlier.redrives + redrivesBefore(content) + (isCarried ? 1 : 0),
      dead: { death: DEATHS[dead.death]!, diedMs: dead.timeMs, error: reason },
    })
    this.#outcomes.add(to, record, nowMs)
    this.#view.copied(to.name, record)
  }

  #deadAt(queue: ModelQueue, offset: number, what: string): ModelMessage {
    const message = queue.live.get(offset)
    if (message?.state !== 'dead')
      throw new Violation(6, `offset ${offset} of ${queue.name} is ${what} but was not dead`)
    return message
  }

  /** Called when the broker looks for due messages. They must become ready before the next delivery. */
  looked(id: number, nowMs: number): void {
    this.state.numbered(id).lookedMs = nowMs
  }

  /** Called when a due message becomes ready. */
  becameReady(id: number, offset: number): void {
    const queue = this.state.numbered(id)
    const message = queue.live.get(offset)
    // The broker may let a message wait for a due message that has left in the meantime.
    if (message?.state === 'ready') return
    const first = queue.line.firstDue(queue.lookedMs)
    if (message === undefined || first !== message)
      throw new Violation(
        12,
        `offset ${offset} of ${queue.name} becomes ready at ${queue.lookedMs} before offset ${first?.offset}`,
      )
    queue.line.arrive(message)
  }

  /**
   * Called when the broker has noticed that time has passed for the whole queue, so that expired messages are gone, unless
   * `hasMoreExpired` says that later turns remove some.
   */
  settledTime(id: number, hasMoreExpired: boolean, nowMs: number): void {
    const queue = this.state.numbered(id)
    if (hasMoreExpired) this.state.counts['sweeps cut']++
    if (queue.options.unique === 'window') this.#forgetIds(queue, nowMs)
    for (const message of hasMoreExpired ? [] : queue.live.values()) {
      if (message.state === 'ready' && isExpired(message, nowMs))
        throw new Violation(
          'time to live',
          `offset ${message.offset} of ${queue.name} expired at ${message.expiresMs} but is still there at ${nowMs}`,
        )
    }
  }

  #forgetIds(queue: ModelQueue, nowMs: number, windowMs = queue.options.dedupWindowMs): void {
    queue.remembered.forgetUntil(nowMs - windowMs)
    for (const id of queue.unsure) if (queue.remembered.find(id) === undefined) queue.unsure.delete(id)
  }

  /** Called when the broker noticed that a message has expired. */
  expired(id: number, offset: number, nowMs: number): void {
    const queue = this.state.numbered(id)
    const message = queue.live.get(offset)
    const what = `offset ${offset} of ${queue.name}`
    if (message === undefined || message.state === 'dead')
      throw new Violation(6, `${what} expires although it was gone or dead`)
    if (!isExpired(message, nowMs))
      throw new Violation('time to live', `${what} expires at ${nowMs}, not at ${message.expiresMs}`)
    if (message.state === 'leased') {
      queue.expiring.add(offset)
      return
    }
    if (message.state === 'scheduled' && message.lineMs > nowMs)
      throw new Violation('time to live', `${what} expires before it is due`)
    queue.line.leave(message, Math.max(message.expiresMs, message.lineMs))
    this.#outcomes.expire(queue, message)
  }

  /** Called when the broker is at rest. Invariant 16: no message that could be delivered or routed is still waiting. */
  calm(nowMs: number, hasRoom: boolean): void {
    this.state.counts.calm++
    for (const queue of this.state.queues.values()) {
      for (const subscription of queue.subscriptions) {
        const waiting = this.consuming.nextFor(subscription)
        // An expired message is noticed when it would be delivered.
        if (waiting !== undefined && !isExpired(waiting, nowMs))
          throw new Violation(
            16,
            `offset ${waiting.offset} of ${queue.name} waits while subscription ${subscription.id} has credit for it`,
          )
        if (subscription.draining && subscription.consumer.isReady)
          throw new Violation(16, `subscription ${subscription.id} is not notified that it is drained`)
        for (const [tag, deadlineMs] of subscription.started) {
          if (deadlineMs < nowMs - TIMER_SLACK_MS)
            throw new Violation(
              'deadline',
              `tag ${tag} of subscription ${subscription.id} has passed its deadline ${deadlineMs}; it is ${nowMs}`,
            )
        }
      }
      for (const { state, lineMs, offset, dead } of queue.live.values()) {
        // Invariant 11: each scheduled message becomes ready soon after it is due.
        if (state === 'scheduled' && lineMs < nowMs - TIMER_SLACK_MS)
          throw new Violation(11, `offset ${offset} of ${queue.name} was due at ${lineMs}; it is ${nowMs}`)
        if (hasRoom && dead?.isMoving === true && this.state.names.has(queue.options.deadLetter))
          throw new Violation(
            16,
            `offset ${offset} of ${queue.name} is dead but not in ${queue.options.deadLetter}`,
          )
      }
      if (queue.expiring.size > 0)
        throw new Violation('time to live', `${queue.name} expired leased messages`)
    }
  }

  /** Whether any message could be delivered if there were credit. */
  get hasEligible(): boolean {
    return [...this.state.queues.values()].some(({ line, live }) => line.first(live.values()) !== undefined)
  }
}

/** Maximum lateness of a timer; the world checks the timer at least every 50 ms. */
const TIMER_SLACK_MS = 120
