/**
 * The model of a broker, with an exact state: it uses lists that are searched from end to end and Maps of strings, but
 * no bytes and no disk. The rules are those of test/rules; the model shares no code with the server.
 *
 * The caller advances the time and reports each delivery, which the model checks; everything else follows from the
 * requests. Where the product may choose (which consumer, when expired messages are swept, the order in which dead
 * messages are routed), the model adopts the product's choice and checks that it is allowed.
 */
import {
  LIMITS,
  ORIGIN_HEADERS,
  QUEUE_OPTION_DEFAULTS,
  type DeadSelection,
  type DeathName,
  type HistoryEventName,
  type MessageFilter,
  type MessageState,
  type QueueOptions,
  isTopicAddress,
  readTopicAddress,
} from '@sluice/protocol'
import { isAccepted, isDedupFull, planIds, planRoom } from '../rules/admission.js'
import { activeOf, fits, hasRoom, type Load } from '../rules/credit.js'
import { RememberedIds } from '../rules/ids.js'
import {
  CLEARED,
  endReasonFor,
  deadlineAfterAnnouncement,
  deadlineAfterExtension,
  deadlineAfterStarted,
  deadlineAfterStarting,
  leaseEndFor,
  suspicionAfter,
} from '../rules/lease.js'
import { Line } from '../rules/line.js'
import {
  NO_EARLIER_LIVES,
  afterFailure,
  afterRelease,
  backoffMs,
  dueMsOf,
  expiryOf,
  isExpired,
  isOver,
  isTooFarPast,
  isWaiting,
  livesAfterRedrive,
  redrivesElsewhere,
  rescheduled,
} from '../rules/message.js'
import { changeOf } from '../rules/options.js'
import { RateLimit } from '../rules/rate.js'
import { hasHeaders, matchesTopic, type RequiredHeaders } from '../rules/topic.js'
import { isSameJson } from '../json.js'
import {
  Difference,
  Refused,
  type Content,
  type ModelBatch,
  type ModelBinding,
  type ModelEvent,
  type ModelMessage,
  type ModelPlaced,
  type ModelQueue,
  type ModelSettle,
  type ModelSubscription,
  type Transfer,
} from './state.js'

export class Model {
  #bindings: ModelBinding[] = []
  #nowMs = 0
  /** Number in [0, 1) that the broker's random source returns during this operation. */
  chance = 0.5
  readonly #excessMax: number
  readonly #hasMoreExpired: (queue: string) => boolean
  /** Number of messages beyond lowered limits that publishes can still evict in this turn. */
  #excessLeft: number
  readonly queues = new Map<string, ModelQueue>()
  /** Leases that the broker has ended since this list was last emptied. */
  lost: { readonly subscription: ModelSubscription; readonly tag: number }[] = []
  /** Subscriptions that the broker has ended since this list was last emptied. */
  ended: ModelSubscription[] = []
  transfers: Transfer[] = []
  /** Dead messages that are being redriven into their own queue and have not returned yet. */
  returning: { readonly queue: ModelQueue; readonly message: ModelMessage }[] = []
  /** Number of times that each thing happened, so that a test can assert that a history exercised what it should. */
  readonly events = new Map<string, number>()

  /** `hasMoreExpired` returns whether a queue of the product can have expired messages that it has not removed yet. */
  constructor(nowMs: number, excessMax: number, hasMoreExpired: (queue: string) => boolean) {
    this.#nowMs = nowMs
    this.#hasMoreExpired = hasMoreExpired
    this.#excessMax = excessMax
    this.#excessLeft = excessMax
  }

  get nowMs(): number {
    return this.#nowMs
  }

  /** Called before anything happens at this time. */
  set nowMs(nowMs: number) {
    this.#nowMs = nowMs
    for (const { line } of this.queues.values()) line.passTime(nowMs)
  }

  turnEnded(): void {
    this.#excessLeft = this.#excessMax
  }

  queue(name: string): ModelQueue {
    const queue = this.queues.get(name)
    if (queue === undefined) throw new Refused(['QUEUE_NOT_FOUND'])
    return queue
  }

  #note(queue: ModelQueue, offset: number, event: HistoryEventName, more: Partial<ModelEvent> = {}): void {
    const events = queue.history.get(offset) ?? []
    queue.history.set(offset, events)
    events.push({ event, atMs: this.nowMs, ...more })
  }

  #count(event: string): void {
    this.events.set(event, (this.events.get(event) ?? 0) + 1)
  }

  // --- queues ---

  ensure(name: string, named: Partial<QueueOptions>, update: boolean): boolean {
    const existing = this.queues.get(name)
    const before = existing?.options ?? QUEUE_OPTION_DEFAULTS
    const after: QueueOptions = { ...before, ...named }
    const differs = JSON.stringify(before) !== JSON.stringify(after)
    const codes: string[] = []
    if (after.retryInitialMs > after.retryMaxMs) codes.push('OPTION_CONFLICT')
    if (after.overflow !== 'reject' && after.maxMessages === 0 && after.maxBytes === 0)
      codes.push('OPTION_CONFLICT')
    if (after.unique === 'pending' && named.dedupWindowMs !== undefined) codes.push('OPTION_CONFLICT')
    if (existing !== undefined && differs && !update) codes.push('QUEUE_CONFLICT')
    if (existing !== undefined && after.unique !== before.unique) codes.push('OPTION_FIXED')
    if (this.#isCycle(name, after.deadLetter)) codes.push('DEAD_LETTER_CYCLE')
    if (named.deadLetter !== undefined && named.deadLetter !== '' && !this.queues.has(named.deadLetter))
      codes.push('QUEUE_NOT_FOUND')
    if (codes.length > 0) throw new Refused(codes)
    if (existing !== undefined) {
      // A longer time does not bring back messages whose retention was over before.
      for (const done of existing.done)
        if (done.atMs + before.retainAgeMs <= this.nowMs) done.isRetained = false
      if (before.expiresMs === 0) existing.usedMs = this.nowMs
      existing.options = after
      const { forgetsAfterMs, changesRules, changesRate, routesDead } = changeOf(before, after)
      if (forgetsAfterMs !== undefined) existing.remembered.forgetUntil(this.nowMs - forgetsAfterMs)
      if (changesRules) existing.line.changeRules(after, this.nowMs)
      if (changesRate) existing.rate = RateLimit.of(after.rateMessages, after.ratePerMs)
      if (routesDead) this.#moveWaiting(existing)
      return false
    }
    this.queues.set(name, {
      name,
      options: after,
      paused: false,
      messages: [],
      done: [],
      history: new Map(),
      next: 0,
      acked: 0,
      line: new Line<ModelMessage>(after),
      rate: RateLimit.of(after.rateMessages, after.ratePerMs),
      remembered: new RememberedIds(),
      counters: {
        purged: 0,
        expired: 0,
        dropped: 0,
        cancelled: 0,
        duplicates: 0,
        moved: 0,
        discarded: 0,
        redriven: 0,
        released: 0,
        redelivered: 0,
      },
      subscriptions: [],
      deliveredBelow: 0,
      usedMs: this.nowMs,
    })
    for (const queue of this.queues.values()) if (queue.options.deadLetter === name) this.#moveWaiting(queue)
    return true
  }

  #isCycle(name: string, deadLetter: string): boolean {
    for (let at = deadLetter, steps = 0; at !== '' && steps <= this.queues.size; steps++) {
      if (at === name) return true
      at = this.queues.get(at)?.options.deadLetter ?? ''
    }
    return false
  }

  delete(name: string): number {
    const queue = this.queue(name)
    this.queues.delete(name)
    for (const group of this.groupsOf(queue)) this.delete(group.name)
    for (const subscription of queue.subscriptions) {
      subscription.isOpen = false
      subscription.held.clear()
      this.ended.push(subscription)
    }
    return queue.messages.length
  }

  /** Deletes the queues that have had no consumer and no call for too long, and returns their names. */
  deleteUnused(): string[] {
    const unused = [...this.queues.values()].filter(
      ({ options: { expiresMs }, subscriptions, usedMs }) =>
        expiresMs > 0 && subscriptions.length === 0 && usedMs + expiresMs <= this.nowMs,
    )
    for (const { name } of unused) this.delete(name)
    // A dead message that has not moved yet stays in its queue.
    this.transfers = this.transfers.filter(({ from, to }) => !unused.includes(from) && !unused.includes(to))
    return unused.map(({ name }) => name)
  }

  /** Called when a call has named the queue. */
  used(name: string): void {
    const queue = this.queues.get(name)
    if (queue !== undefined) queue.usedMs = this.nowMs
  }

  /** Removes every message that is not dead; the leases of these messages are lost. */
  purge(name: string): number {
    const queue = this.queue(name)
    const purged = queue.messages.filter(({ state }) => state !== 'dead')
    for (const message of purged) {
      if (message.lease !== undefined) this.#lose(message)
      this.#note(queue, message.offset, 'purged')
      this.#remove(queue, message)
    }
    queue.counters.purged += purged.length
    return purged.length
  }

  pause(name: string, paused: boolean): boolean {
    const queue = this.queue(name)
    const changed = queue.paused !== paused
    queue.paused = paused
    return changed
  }

  // --- streams ---

  /** The groups of a stream. */
  groupsOf(stream: ModelQueue): ModelQueue[] {
    return [...this.queues.values()].filter(({ group }) => group?.stream === stream)
  }

  /** Called when the messages of the stream below `end` enter the group. */
  enter(queue: ModelQueue, end: number): void {
    const group = queue.group!
    for (const { content, offset, publishedMs } of group.waiting) {
      if (offset >= end) break
      const message = messageOf(content, offset, publishedMs, 0)
      const isNewKey = queue.messages.every((other) => other.content.key !== content.key)
      queue.messages.push(message)
      queue.line.appear(message, isNewKey)
    }
    group.waiting = group.waiting.filter(({ offset }) => offset >= end)
    queue.next = Math.max(queue.next, end)
  }

  /** The messages leave the group, because of retention or a move. Those that are leased return to the line first. */
  leaveGroup(queue: ModelQueue, messages: readonly ModelMessage[]): void {
    for (const message of messages) {
      if (message.lease === undefined) continue
      this.#lose(message)
      this.#endLease(message)
      queue.line.release(message, this.nowMs)
    }
    this.transfers = this.transfers.filter(({ message }) => !messages.includes(message))
    for (const message of messages) this.#remove(queue, message)
  }

  /** The group moves to `to`. Only its dead messages before that place stay. */
  move(queue: ModelQueue, to: number, fromMs: number): void {
    this.leaveGroup(
      queue,
      queue.messages.filter(({ state, offset }) => state !== 'dead' || offset >= to),
    )
    const group = queue.group!
    group.fromMs = fromMs
    group.waiting = group.stream.messages.filter(
      ({ offset, publishedMs }) => offset >= to && publishedMs >= fromMs,
    )
    queue.next = to
    queue.line = new Line<ModelMessage>(queue.options)
    queue.deliveredBelow = Math.min(queue.deliveredBelow, to)
  }

  // --- time ---

  /** Retries messages that were handled for too long. */
  tick(): void {
    for (const queue of this.queues.values()) {
      const overdue = queue.messages
        .flatMap((message) => {
          const deadlineMs = message.lease?.deadlineMs
          return deadlineMs === undefined || deadlineMs > this.nowMs ? [] : [{ message, deadlineMs }]
        })
        .toSorted((a, b) => a.deadlineMs - b.deadlineMs || a.message.offset - b.message.offset)
      for (const { message } of overdue) {
        this.#count('timeout')
        this.#lose(message)
        this.#retry(queue, message, this.#backoffMs(queue, message), undefined)
      }
    }
  }

  /** Called after a tick and the turns that follow it. @throws Difference if the product has not noticed that time passed */
  ticked(): void {
    for (const queue of this.queues.values()) {
      const due = queue.line.firstDue(this.nowMs)
      if (due !== undefined)
        throw new Difference(`message ${due.offset} of ${queue.name}, due at ${due.lineMs}, is not ready`)
      // The product looks for expired messages about once a second, at no fixed moment.
      for (const { offset, expiresMs, lineMs } of this.stale(queue)) {
        if (Math.max(expiresMs, lineMs) <= this.nowMs - 1000)
          throw new Difference(`${queue.name} still has message ${offset}, which expired at ${expiresMs}`)
      }
    }
  }

  /** Called when the product made a due message ready. @throws Difference unless it is the first one */
  arrived(queue: ModelQueue, message: ModelMessage): void {
    const first = queue.line.firstDue(this.nowMs)
    if (first !== message)
      throw new Difference(
        `message ${message.offset} of ${queue.name} becomes ready before ${shownOf(first)}: ${shownOf(message)}`,
      )
    this.#count('due')
    queue.line.arrive(message)
  }

  /** Messages that have expired and that the product has not removed yet. For all requests they are gone. */
  stale(queue: ModelQueue): ModelMessage[] {
    return queue.messages.filter((message) => this.#isOver(message))
  }

  #isOver(message: ModelMessage): boolean {
    return isOver(message, this.nowMs)
  }

  /** Called when the product removed an expired message. @throws Difference if the message has not expired */
  swept(queue: ModelQueue, message: ModelMessage): void {
    if (!this.#isOver(message))
      throw new Difference(`message ${message.offset} of ${queue.name} has not expired: ${shownOf(message)}`)
    this.#expire(queue, message)
  }

  // The time of removal is the time of the expiry, or the due time if that is later. It does not depend on when the
  // broker notices the expiry.
  #expire(queue: ModelQueue, message: ModelMessage): void {
    this.#count('expired')
    this.#note(queue, message.offset, 'expired')
    queue.counters.expired++
    this.#remove(queue, message, this.#overMs(queue, message))
  }

  #overMs(queue: ModelQueue, message: ModelMessage): number {
    const { state, expiresMs, lineMs } = message
    return state === 'leased'
      ? this.nowMs
      : Math.max(expiresMs, lineMs, queue.line.eligibleSince(message) ?? 0)
  }

  // --- the line ---

  #remove(queue: ModelQueue, message: ModelMessage, atMs = this.nowMs): void {
    queue.messages = queue.messages.filter((other) => other !== message)
    this.#leave(queue, message, atMs)
  }

  /** Removes the message from the line, or ends its lease. */
  #leave(queue: ModelQueue, message: ModelMessage, atMs = this.nowMs): void {
    if (message.state === 'leased') {
      this.#endLease(message)
      queue.line.settled(message, atMs)
    } else if (message.state !== 'dead') queue.line.leave(message, atMs)
    message.state = 'dead'
  }

  #endLease(message: ModelMessage): void {
    const { subscription, tag } = message.lease!
    subscription.held.delete(tag)
    message.lease = undefined
  }

  #lose(message: ModelMessage): void {
    const { subscription, tag } = message.lease!
    this.lost.push({ subscription, tag })
  }

  // --- producing ---

  /** Returns whether the binding is new. @throws Refused */
  bind(pattern: string, name: string, required: RequiredHeaders | undefined): boolean {
    const queue = this.queue(name)
    if (this.#bindingAt(pattern, queue, required) !== -1) return false
    this.#bindings.push({ pattern, queue, required })
    return true
  }

  /** Returns whether there was such a binding. @throws Refused */
  unbind(pattern: string, name: string, required: RequiredHeaders | undefined): boolean {
    const at = this.#bindingAt(pattern, this.queue(name), required)
    if (at !== -1) this.#bindings.splice(at, 1)
    return at !== -1
  }

  #bindingAt(pattern: string, queue: ModelQueue, required: RequiredHeaders | undefined): number {
    return this.#bindings.findIndex(
      (binding) =>
        binding.pattern === pattern &&
        binding.queue === queue &&
        isSameJson(binding.required ?? null, required ?? null),
    )
  }

  /** The bindings of existing queues, oldest first. */
  get bindings(): readonly ModelBinding[] {
    this.#bindings = this.#bindings.filter(({ queue }) => this.queues.get(queue.name) === queue)
    return this.#bindings
  }

  /** The queues that get some of these messages, each with its messages. */
  targetsOf(name: string, contents: readonly Content[]): Map<string, Content[]> {
    const matching = this.bindings.filter(({ pattern }) => matchesTopic(pattern, name))
    const targets = new Map<string, Content[]>()
    for (const content of contents) {
      const queues = new Set<string>()
      for (const { queue, required } of matching)
        if (hasHeaders(required, content.headers)) queues.add(queue.name)
      for (const queue of queues) targets.set(queue, [...(targets.get(queue) ?? []), content])
    }
    return targets
  }

  /**
   * Publishes to all targets of the topic or to none, in the order `order`, which matters only for evictions. Returns the
   * number of targets.
   * @throws Refused
   */
  publishToTopic(
    name: string,
    contents: readonly Content[],
    drops: boolean,
    order: readonly string[],
    isRefused: boolean,
  ): number {
    if (!drops && contents.some((content) => this.targetsOf(name, [content]).size === 0))
      throw new Refused(['UNROUTABLE'])
    const targets = this.targetsOf(name, contents)
    const names = [...targets.keys()].toSorted((a, b) => order.indexOf(a) - order.indexOf(b))
    const batches = names.map((queue) => ({ queue, contents: targets.get(queue)! }))
    // The times of all messages are checked, even of those that have no target.
    this.#publishAll(batches, [], isRefused, targets.size === 0 ? [] : this.#wrongTimes(contents))
    return targets.size
  }

  /** @throws Refused */
  publish(name: string, contents: readonly Content[], isRefused: boolean): ModelPlaced {
    return this.#publishAll([{ queue: name, contents }], [], isRefused)[0]!
  }

  /**
   * Performs the whole step or nothing. A batch can have the address of a topic in place of the name of a queue. Its
   * targets get their messages in the order `order`, which matters only for evictions, and its place is their number.
   * @throws Refused
   */
  atomic(
    acks: readonly { readonly subscription: ModelSubscription; readonly tag: number }[],
    batches: readonly ModelBatch[],
    order: readonly string[],
    isRefused: boolean,
  ): ModelPlaced[] {
    const codes: string[] = []
    const parts = batches.map((batch) => this.#partsOf(batch, order, codes))
    const done: ModelMessage[] = []
    for (const { subscription, tag } of acks) {
      const message = subscription.held.get(tag)
      if (message === undefined) codes.push('LEASE_LOST')
      else done.push(message)
    }
    const placed = this.#publishAll(parts.flat(), done, isRefused, codes, () => {
      for (const { subscription, tag } of acks) this.#ack(subscription.queue, subscription.held.get(tag)!)
    })
    let next = 0
    return batches.map(({ queue }, index): ModelPlaced => {
      const first = placed[next]
      const count = parts[index]!.length
      next += count
      return isTopicAddress(queue) ? { base: count, duplicates: new Map() } : first!
    })
  }

  // What queues get of a batch of a step. Adds the codes of possible refusals.
  #partsOf(batch: ModelBatch, order: readonly string[], codes: string[]): ModelBatch[] {
    if (!isTopicAddress(batch.queue)) return [batch]
    const { contents } = batch
    const { name, drops } = readTopicAddress(batch.queue)
    const targets = this.targetsOf(name, contents)
    if (!drops && contents.some((content) => this.targetsOf(name, [content]).size === 0))
      codes.push('UNROUTABLE')
    // The times of all messages are checked, even of those that have no target.
    if (targets.size > 0) codes.push(...this.#wrongTimes(contents))
    const names = [...targets.keys()].toSorted((a, b) => order.indexOf(a) - order.indexOf(b))
    return names.map((queue) => ({ queue, contents: targets.get(queue)! }))
  }

  /** `done` are the messages that the same step acknowledges: they count towards no limit, and their ids are free. */
  #publishAll(
    batches: readonly ModelBatch[],
    done: readonly ModelMessage[],
    isRefused: boolean,
    codes: string[] = [],
    first: () => void = () => {},
  ): ModelPlaced[] {
    const byQueue = new Map<string, Content[]>()
    for (const { queue, contents } of batches)
      byQueue.set(queue, [...(byQueue.get(queue) ?? []), ...contents])
    const plans = new Map<string, Plan>()
    let excessLeft = this.#excessLeft
    // Queues in which this step acknowledges a message evict before the others, in the order of those acknowledgements.
    const rank = (name: string): number => {
      const at = done.findIndex((message) => this.queues.get(name)?.messages.includes(message))
      return at === -1 ? done.length : at
    }
    const order = [...byQueue].toSorted(([a], [b]) => rank(a) - rank(b))
    for (const [name, contents] of order) {
      const queue = this.queues.get(name)
      if (queue === undefined) {
        codes.push('QUEUE_NOT_FOUND')
        continue
      }
      const plan = this.#judge(queue, contents, done, codes, excessLeft, isRefused)
      plans.set(name, plan)
      excessLeft -= plan.excess
    }
    if (isRefused) for (const name of byQueue.keys()) codes.push(...this.#whileExpiredAreLeft(name))
    if (codes.length > 0) throw new Refused(codes)
    this.#excessLeft = excessLeft
    first()
    for (const [name, { victims, replaced }] of plans) {
      const queue = this.queue(name)
      for (const message of replaced) {
        queue.counters.cancelled++
        this.#note(queue, message.offset, 'cancelled')
        this.#remove(queue, message)
        this.#count('replaced')
      }
      for (const victim of victims) {
        if (queue.options.overflow === 'dead-letter') this.#die(queue, victim, 'overflow', '')
        else {
          queue.counters.dropped++
          this.#note(queue, victim.offset, 'dropped')
          this.#remove(queue, victim)
        }
      }
    }
    const starts = new Map<string, number>()
    return batches.map(({ queue: name, contents }) => {
      const queue = this.queue(name)
      const base = queue.next
      const start = starts.get(name) ?? 0
      starts.set(name, start + contents.length)
      const duplicates = new Map<number, number>()
      for (const [index, content] of contents.entries()) {
        const firstOffset = plans.get(name)!.duplicates.get(start + index)
        if (firstOffset === queue.next) {
          duplicates.set(index, firstOffset)
          this.#append(queue, content)
        } else if (firstOffset !== undefined) {
          duplicates.set(index, firstOffset)
          queue.counters.duplicates++
          this.#note(queue, queue.next, 'duplicate')
          queue.next++
        } else this.#append(queue, content)
      }
      return { base, duplicates }
    })
  }

  // Refusals that the product may choose while it has expired messages that it has not removed. A batch removes as many
  // of them as it has messages. That is not enough if the limits were lowered, or if some of them have no ids.
  #whileExpiredAreLeft(name: string): string[] {
    const queue = this.queues.get(name)
    if (queue === undefined || !this.#hasMoreExpired(name)) return []
    const { maxMessages, maxBytes, unique } = queue.options
    const occupants = queue.messages.filter(({ state }) => state !== 'dead')
    const bytes = occupants.reduce((sum, message) => sum + message.bytes, 0)
    const isOverfull =
      (maxMessages > 0 && occupants.length > maxMessages) || (maxBytes > 0 && bytes > maxBytes)
    const codes = [...(isOverfull ? ['QUEUE_FULL'] : []), ...(unique === 'pending' ? ['DEDUP_FULL'] : [])]
    if (codes.length > 0) this.#count('may be refused while expired messages are left')
    return codes
  }

  #judge(
    queue: ModelQueue,
    contents: readonly Content[],
    done: readonly ModelMessage[],
    codes: string[],
    excessMax: number,
    isRefused: boolean,
  ): Plan {
    codes.push(...this.#wrongTimes(contents))
    if (queue.group !== undefined) codes.push('WRONG_KIND')
    if (queue.limits !== undefined && contents.some(isUnsupportedInStreams)) codes.push('OPTION_UNSUPPORTED')
    const live = queue.messages.filter((message) => !this.#isOver(message))
    const { maxMessages, maxBytes } = queue.options
    const mustSweep = maxMessages > 0 || maxBytes > 0 || contents.some(({ id }) => id !== undefined)
    if (!isRefused && mustSweep && live.length < queue.messages.length && !this.#hasMoreExpired(queue.name))
      throw new Difference(`${queue.name} was not swept before a publish`)
    const find = (at: number): ModelMessage | undefined => live.find(({ offset }) => offset === at)
    const ids = planIds(
      contents,
      queue.next,
      queue.options,
      (id) => this.#firstOffset(queue, id, done),
      (offset) => {
        const message = find(offset)
        return message !== undefined && isWaiting(message)
      },
    )
    if (isDedupFull(this.#knownIds(queue, done), ids.newIds, queue.options)) codes.push('DEDUP_FULL')
    const replaced = [...ids.replaced].map((offset) => find(offset)!)
    const sizes = contents.filter((_, index) => isAccepted(ids, queue.next, index)).map(({ size }) => size)
    const occupants = live.filter(
      (message) => message.state !== 'dead' && !done.includes(message) && !ids.replaced.has(message.offset),
    )
    const { isFull, evicted, excess } = planRoom(occupants, sizes, queue.options, excessMax)
    if (isFull) codes.push('QUEUE_FULL')
    else if (this.#hasMoreExpired(queue.name)) {
      // As long as the product can make room by removing expired messages, it evicts no others.
      this.#count('published while expired messages were left')
      return { duplicates: ids.duplicates, victims: [], excess: 0, replaced }
    } else if (evicted.length > 0) this.#count('overflow')
    if (excess > 0) this.#count(excess === excessMax ? 'part of an excess evicted' : 'excess evicted')
    return {
      duplicates: ids.duplicates,
      victims: evicted,
      excess,
      replaced,
    }
  }

  #wrongTimes(contents: readonly Content[]): string[] {
    const codes: string[] = []
    for (const { atMs, delayMs } of contents) {
      if (isTooFarPast(atMs, this.nowMs)) codes.push('AT_IN_THE_PAST')
      if (atMs !== undefined && atMs > this.nowMs + LIMITS.delayMsMax) codes.push('INVALID_DELAY')
      if (delayMs !== undefined && delayMs > LIMITS.delayMsMax) codes.push('INVALID_DELAY')
    }
    return codes
  }

  /** Offset of the message that makes a new message with this id a duplicate. */
  #firstOffset(queue: ModelQueue, id: string, done: readonly ModelMessage[]): number | undefined {
    if (queue.options.unique === 'pending')
      return queue.messages.find(
        (message) =>
          message.content.id === id &&
          message.state !== 'dead' &&
          !done.includes(message) &&
          !this.#isOver(message),
      )?.offset
    return this.#remembered(queue).find(id)?.offset
  }

  #remembered({ remembered, options }: ModelQueue): RememberedIds {
    remembered.forgetUntil(this.nowMs - options.dedupWindowMs)
    return remembered
  }

  /** Number of ids that make a new message a duplicate. */
  #knownIds(queue: ModelQueue, done: readonly ModelMessage[]): number {
    return queue.options.unique === 'window'
      ? this.#remembered(queue).size
      : this.#pendingIds(queue, done).size
  }

  #pendingIds({ messages }: ModelQueue, done: readonly ModelMessage[]): Set<string> {
    const pending = messages.filter(
      (message) => message.state !== 'dead' && !done.includes(message) && !this.#isOver(message),
    )
    return new Set(pending.flatMap(({ content: { id } }) => id ?? []))
  }

  #append(queue: ModelQueue, content: Content): ModelMessage {
    const lineMs = dueMsOf(content, this.nowMs)
    const expiresMs = expiryOf(content, queue.options.ttlMs, lineMs)
    const message = messageOf(content, queue.next++, this.nowMs, expiresMs, lineMs)
    this.#note(queue, message.offset, 'published')
    queue.messages.push(message)
    const { unique, dedupWindowMs } = queue.options
    if (content.id !== undefined && unique === 'window' && dedupWindowMs > 0)
      queue.remembered.remember(content.id, message.offset, this.nowMs)
    if (queue.limits === undefined) queue.line.add(message, this.nowMs)
    else {
      message.state = 'ready'
      for (const { group } of this.groupsOf(queue))
        if (message.publishedMs >= group!.fromMs) group!.waiting.push(message)
    }
    return message
  }

  // --- consuming ---

  subscribe(
    name: string,
    messages: number,
    bytes: number,
    limit: number | undefined,
    processingTimeoutMs: number | undefined,
    client: string,
  ): ModelSubscription {
    const queue = this.queue(name)
    const subscription: ModelSubscription = {
      queue,
      client,
      processingTimeoutMs,
      creditMessages: messages,
      creditBytes: bytes,
      limit: limit ?? Infinity,
      draining: false,
      delivered: 0,
      held: new Map(),
      isOpen: true,
    }
    queue.subscriptions.push(subscription)
    return subscription
  }

  active(queue: ModelQueue): ModelSubscription | undefined {
    return activeOf(queue.subscriptions)
  }

  /** Whether the subscription may receive any message now. */
  hasRoom(subscription: ModelSubscription): boolean {
    const { options, subscriptions } = subscription.queue
    return hasRoom(subscription, loadOf(subscription), options.single, subscriptions)
  }

  /** Whether the subscription may receive this message now. */
  #takes(subscription: ModelSubscription, message: ModelMessage): boolean {
    return this.hasRoom(subscription) && fits(subscription, loadOf(subscription), message)
  }

  /** The next eligible message. */
  head(queue: ModelQueue): ModelMessage | undefined {
    return queue.line.first(queue.messages)
  }

  /** Whether this message is the next one, ignoring expired messages. */
  isNext(queue: ModelQueue, offset: number): boolean {
    return (
      queue.line.first(queue.messages.filter((message) => !isExpired(message, this.nowMs)))?.offset === offset
    )
  }

  /**
   * Called when the product delivered `offset`. @throws Difference unless that is the next message, with the right mark
   */
  delivered(
    subscription: ModelSubscription,
    offset: number,
    tag: number,
    attempt: number,
    redelivered: boolean,
    alone: boolean,
  ): ModelMessage {
    const { queue } = subscription
    const what = `message ${offset} of ${queue.name}`
    if (!subscription.isOpen) throw new Difference(`${what} was delivered to a subscription that has ended`)
    if (queue.paused) throw new Difference(`${what} was delivered while the queue was paused`)
    if (!this.hasRoom(subscription))
      throw new Difference(`${what} was delivered to a subscription without room: ${shownOf(subscription)}`)
    const rateUntilMs = this.rateUntilMs(queue)
    if (rateUntilMs !== null)
      throw new Difference(`${what} was delivered, but the rate of the queue holds it until ${rateUntilMs}`)
    const due = queue.line.firstDue(this.nowMs)
    if (due !== undefined) throw new Difference(`${what} was delivered, but ${due.offset} is not ready yet`)
    const message = this.head(queue)
    if (message === undefined) throw new Difference(`${what} was delivered, but no message is eligible`)
    if (message.offset !== offset) {
      const other = queue.messages.find((one) => one.offset === offset)
      throw new Difference(
        `${what} was delivered before ${message.offset}: ${shownOf(other)} before ${shownOf(message)}`,
      )
    }
    if (isExpired(message, this.nowMs)) throw new Difference(`${what} has expired: ${shownOf(message)}`)
    const next = queue.group?.waiting[0]
    const isInOrder = message.isPlain && message.content.key === undefined
    if (next !== undefined && !isInOrder && next.publishedMs < queue.line.eligibleSince(message)!)
      throw new Difference(`${what} was delivered before ${next.offset} had entered: ${shownOf(message)}`)
    if (!this.#takes(subscription, message))
      throw new Difference(`${what} does not fit the credit: ${shownOf(subscription)} ${shownOf(message)}`)
    if (attempt !== message.attempts + 1)
      throw new Difference(`${what} was delivered as attempt ${attempt}, not ${message.attempts + 1}`)
    if (message.marked !== 'maybe' && redelivered !== (message.marked === 'yes'))
      throw new Difference(`${what}: redelivered is ${redelivered}, expected ${message.marked}`)
    if (alone !== message.isSuspect)
      throw new Difference(`${what}: alone is ${alone}, expected ${message.isSuspect}`)
    if (
      queue.messages.some(
        (one) =>
          one.offset < offset && one.content.priority < message.content.priority && one.state === 'ready',
      )
    )
      this.#count('priority passed')
    if (message.content.delayMs !== undefined || message.content.atMs !== undefined) this.#count('delayed')
    if (message.content.key !== undefined) this.#count('keyed')
    if (queue.messages.some((one) => one.state === 'ready' && queue.line.eligibleSince(one) === undefined))
      this.#count('key held back')
    if (message.content.ttlMs !== undefined || queue.options.ttlMs > 0) this.#count('with ttl')
    if (attempt > 1) this.#count('further attempt')
    if (alone) this.#count('alone')
    if (queue.options.retainAgeMs > 0) this.#note(queue, offset, 'delivered', { text: subscription.client })
    message.marked = 'yes'
    message.lease = { subscription, tag, atMs: this.nowMs, alone, deadlineMs: undefined }
    queue.line.take(message, this.nowMs)
    queue.rate?.take(this.nowMs)
    if (queue.line.heldUntil(message) !== undefined) this.#count('key at its rate')
    subscription.held.set(tag, message)
    subscription.delivered++
    queue.deliveredBelow = Math.max(queue.deliveredBelow, offset + 1)
    if (redelivered) queue.counters.redelivered++
    return message
  }

  /**
   * Called when the turn has ended. An expired head can stay until the product next looks for expired messages.
   * @throws Difference if an eligible message can still be delivered
   */
  quiet(queue: ModelQueue): void {
    const takers = (message: ModelMessage): ModelSubscription[] =>
      queue.subscriptions.filter((subscription) => this.#takes(subscription, message))
    const head = this.head(queue)
    if (queue.paused) {
      if (head !== undefined && takers(head).length > 0) this.#count('held by pause')
      return
    }
    if (!queue.subscriptions.some((subscription) => this.hasRoom(subscription))) return
    if (this.rateUntilMs(queue) !== null) {
      if (head !== undefined && takers(head).length > 0) this.#count('held by the rate')
      return
    }
    if (head === undefined && (queue.group?.waiting.length ?? 0) > 0)
      throw new Difference(`message ${queue.group!.waiting[0]!.offset} did not enter ${queue.name}`)
    if (head !== undefined && !isExpired(head, this.nowMs) && takers(head).length > 0)
      throw new Difference(
        `message ${head.offset} of ${queue.name} was not delivered: ${shownOf(head)}, to any of ${takers(head).map(shownOf).join(' ')}`,
      )
  }

  /** If the queue is at its rate: the time from which the next message may be delivered; otherwise null. */
  rateUntilMs({ rate }: ModelQueue): number | null {
    const nextMs = rate?.nextMs(this.nowMs) ?? this.nowMs
    return nextMs > this.nowMs ? nextMs : null
  }

  /** Publish or due time of the oldest ready message; Infinity if there is none. */
  oldestReadyMs(queue: ModelQueue): number {
    const ready = queue.messages.filter(({ state }) => state === 'ready')
    return Math.min(...ready.map(({ lineMs }) => lineMs))
  }

  started(subscription: ModelSubscription, tags: readonly number[]): void {
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease === undefined) continue
      const timeoutMs = this.#processingTimeoutMs(subscription)
      lease.deadlineMs = deadlineAfterStarted(lease.deadlineMs, this.nowMs, timeoutMs)
    }
    this.#endAnnouncement(subscription)
  }

  /** Announces messages: the consumer may handle any of them next, and none of them has a deadline yet. */
  starting(subscription: ModelSubscription, tags: readonly number[]): void {
    this.#endAnnouncement(subscription)
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease !== undefined) lease.deadlineMs = deadlineAfterStarting(lease.deadlineMs)
    }
  }

  // An announced message that has not been started by now is not being handled.
  #endAnnouncement({ held }: ModelSubscription): void {
    for (const { lease } of held.values()) lease!.deadlineMs = deadlineAfterAnnouncement(lease!.deadlineMs)
  }

  #processingTimeoutMs({ processingTimeoutMs, queue }: ModelSubscription): number {
    return processingTimeoutMs ?? queue.options.processingTimeoutMs
  }

  /** Returns the stale tags. */
  extend(subscription: ModelSubscription, tags: readonly number[], durationMs: number): number[] {
    const stale: number[] = []
    for (const tag of tags) {
      const lease = subscription.held.get(tag)?.lease
      if (lease === undefined) {
        stale.push(tag)
        continue
      }
      const timeoutMs = this.#processingTimeoutMs(subscription)
      lease.deadlineMs = deadlineAfterExtension(lease.deadlineMs, this.nowMs, durationMs, timeoutMs)
    }
    return stale
  }

  /** Returns the stale tags. */
  settle(subscription: ModelSubscription, items: readonly ModelSettle[]): number[] {
    const stale: number[] = []
    const { queue } = subscription
    for (const { tags, outcome, delayMs, reason, invalid, pauseKey } of items) {
      for (const tag of tags) {
        const message = subscription.held.get(tag)
        if (message === undefined) stale.push(tag)
        else if (outcome === 'ack') this.#ack(queue, message)
        else if (outcome === 'release') this.#release(queue, message)
        else if (outcome === 'retry') {
          const waitMs = delayMs ?? this.#backoffMs(queue, message)
          if (pauseKey === true) {
            queue.line.pauseKey(message, this.nowMs + waitMs, this.nowMs)
            if (queue.line.heldUntil(message) !== undefined) this.#count('key paused')
          }
          this.#retry(queue, message, waitMs, reason ?? '')
        } else {
          message.attempts++
          this.#die(queue, message, invalid ? 'invalid' : 'rejected', reason ?? '')
        }
      }
    }
    return stale
  }

  #ack(queue: ModelQueue, message: ModelMessage): void {
    queue.acked++
    this.#note(queue, message.offset, 'acked')
    this.#remove(queue, message)
    queue.done.push({ message, atMs: this.nowMs, isRetained: queue.options.retainAgeMs > 0 })
  }

  #release(queue: ModelQueue, message: ModelMessage): void {
    queue.counters.released++
    if (afterRelease(message, this.nowMs) === 'expired') {
      this.#expire(queue, message)
      return
    }
    this.#endLease(message)
    queue.line.release(message, this.nowMs)
  }

  /** Delay before the next attempt, if the current one fails. */
  #backoffMs({ options }: ModelQueue, { attempts }: ModelMessage): number {
    return backoffMs(options, attempts + 1, this.chance)
  }

  #retry(queue: ModelQueue, message: ModelMessage, delayMs: number, reason: string | undefined): void {
    message.attempts++
    Object.assign(message, CLEARED)
    const becomes = afterFailure(message, message.attempts, queue.options, this.nowMs)
    if (becomes === 'dead') {
      this.#die(queue, message, 'maxDeliveries', reason)
      return
    }
    if (becomes === 'expired') {
      this.#expire(queue, message)
      return
    }
    this.#count('retried')
    message.lineMs = this.nowMs + delayMs
    const { attempts } = message
    this.#note(queue, message.offset, 'retried', { attempts, dueMs: message.lineMs, ...textOf(reason) })
    message.isPlain = false
    this.#endLease(message)
    queue.line.retry(message, this.nowMs)
  }

  #die(queue: ModelQueue, message: ModelMessage, death: DeathName, reason: string | undefined): void {
    this.#count(`dead ${death}`)
    const { attempts } = message
    const tries = attempts > 0 ? { attempts } : {}
    this.#note(queue, message.offset, 'dead', { ...tries, ...textOf(reason) })
    message.death = death
    message.diedMs = this.nowMs
    message.reason = reason
    Object.assign(message, CLEARED)
    this.#leave(queue, message)
    message.isMoving = queue.options.deadLetter !== ''
    this.#move(queue, message)
  }

  // Routes a dead message to the dead-letter queue.
  #move(queue: ModelQueue, message: ModelMessage): void {
    const to = this.queues.get(queue.options.deadLetter)
    if (to !== undefined && message.isMoving) this.transfers.push({ kind: 'moved', from: queue, to, message })
  }

  // The dead-letter queue may have been created in the meantime, so dead messages that waited for it are routed.
  #moveWaiting(queue: ModelQueue): void {
    const onTheWay = this.transfers.map(({ message }) => message)
    for (const message of queue.messages)
      if (message.state === 'dead' && !onTheWay.includes(message)) this.#move(queue, message)
  }

  /** Ends the subscription in an orderly way, without charging a message. Returns the number of messages that it held. */
  unsubscribe(subscription: ModelSubscription): number {
    const held = [...subscription.held.values()]
    for (const message of held) this.#release(subscription.queue, message)
    this.#over(subscription)
    return held.length
  }

  #over(subscription: ModelSubscription): void {
    subscription.isOpen = false
    const { queue } = subscription
    queue.subscriptions = queue.subscriptions.filter((other) => other !== subscription)
    queue.usedMs = this.nowMs
  }

  /** Called when the connection died. */
  disconnect(subscriptions: readonly ModelSubscription[]): void {
    const held = subscriptions.flatMap(({ queue, held: messages }) =>
      [...messages.values()].map((message) => ({ queue, message, lease: message.lease! })),
    )
    const started = held.filter(({ lease }) => lease.deadlineMs !== undefined)
    const blame = endReasonFor(started.length, held.length)
    for (const { queue, message, lease } of held) {
      const end = leaseEndFor(blame, lease.deadlineMs !== undefined, lease.alone)
      if (end === 'charged') {
        this.#count('charged')
        this.#retry(queue, message, this.#backoffMs(queue, message), undefined)
        continue
      }
      Object.assign(message, suspicionAfter(end, message))
      if (message.isSuspect) this.#count('suspect')
      this.#release(queue, message)
    }
    for (const subscription of subscriptions) this.#over(subscription)
  }

  // --- single messages ---

  /**
   * Finds the message with this offset or id. If several messages have the id, `answer` is the offset of the message
   * that the product chose. `answer` is undefined if the product refused. @throws Refused
   */
  #find(
    queue: ModelQueue,
    offset: number | undefined,
    id: string | undefined,
    answer: number | undefined,
  ): ModelMessage {
    const live = queue.messages.filter((message) => !this.#isOver(message))
    let found = live.filter((message) => message.offset === offset)
    if (id !== undefined) {
      const withId = live.filter((message) => message.content.id === id && message.state !== 'dead')
      const known = this.#firstOffset(queue, id, [])
      const must = withId.filter(
        (message) =>
          message.offset === known ||
          (message.state === 'scheduled' &&
            message.attempts === 0 &&
            (message.content.delayMs ?? message.content.atMs) !== undefined &&
            queue.options.unique === 'window'),
      )
      const answered = withId.filter((message) => message.offset === answer)
      found = answered.length > 0 ? answered : must
      // The specification leaves open which of several messages with an id is meant, and whether an id that the window has
      // forgotten is found.
      if (answered.length === 0 && withId.some(({ state }) => state === 'leased'))
        throw new Refused(must.length === 0 ? ['MESSAGE_LEASED', 'MESSAGE_NOT_FOUND'] : ['MESSAGE_LEASED'])
    }
    const message = found.find(({ state }) => state !== 'dead')
    if (message === undefined) throw new Refused(['MESSAGE_NOT_FOUND'])
    if (message.state === 'leased') throw new Refused(['MESSAGE_LEASED'])
    return message
  }

  cancel(
    name: string,
    offset: number | undefined,
    id: string | undefined,
    answer: number | undefined,
  ): number {
    const queue = this.queue(name)
    const message = this.#find(queue, offset, id, answer)
    queue.counters.cancelled++
    this.#note(queue, message.offset, 'cancelled')
    this.#remove(queue, message)
    return message.offset
  }

  reschedule(
    name: string,
    offset: number | undefined,
    id: string | undefined,
    delayMs: number | undefined,
    atMs: number | undefined,
    answer: number | undefined,
  ): { offset: number; dueMs: number } {
    const codes: string[] = []
    if (isTooFarPast(atMs, this.nowMs)) codes.push('AT_IN_THE_PAST')
    const queue = this.queues.get(name)
    if (queue === undefined) throw new Refused([...codes, 'QUEUE_NOT_FOUND'])
    let message: ModelMessage | undefined
    try {
      message = this.#find(queue, offset, id, answer)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      codes.push(...error.codes)
    }
    if (message === undefined || codes.length > 0) throw new Refused(codes)
    const dueMs = dueMsOf({ delayMs, atMs }, this.nowMs)
    queue.line.leave(message, this.nowMs)
    Object.assign(message, rescheduled(message, dueMs))
    message.isPlain = false
    this.#note(queue, message.offset, 'rescheduled', { dueMs })
    queue.line.enter(message, this.nowMs)
    return { offset: message.offset, dueMs }
  }

  /** Messages in `state` with offsets in `[from, end)` that match the filter. */
  select(
    queue: ModelQueue,
    state: MessageState | undefined,
    from: number,
    end: number,
    filter: MessageFilter,
  ): ModelMessage[] {
    return queue.messages.filter((message) => {
      const { content, offset, attempts } = message
      const isDead = message.state === 'dead'
      const ageMs = this.nowMs - (isDead ? message.diedMs : message.publishedMs)
      return (
        offset >= from &&
        offset < end &&
        (state === undefined || message.state === state) &&
        (filter.reason === undefined || (isDead && message.death === filter.reason)) &&
        (filter.error === undefined || (isDead && (message.reason ?? '').includes(filter.error))) &&
        (filter.key === undefined || content.key === filter.key) &&
        (filter.id === undefined || content.id === filter.id) &&
        Object.entries(filter.headers ?? {}).every(([name, value]) => content.headers[name] === value) &&
        (filter.minAttempts === undefined || attempts >= filter.minAttempts) &&
        (filter.olderThanMs === undefined || ageMs >= filter.olderThanMs) &&
        (filter.youngerThanMs === undefined || ageMs <= filter.youngerThanMs)
      )
    })
  }

  #dead(
    queue: ModelQueue,
    { from, limit, offsets, filter }: DeadSelection,
    next: number | null,
  ): ModelMessage[] {
    const all = this.select(queue, 'dead', from, Infinity, filter).filter(
      ({ offset }) => offsets === undefined || offsets.includes(offset),
    )
    const page = all.filter(({ offset }) => next === null || offset < next)
    if (page.length > limit)
      throw new Difference(`the page has ${page.length} messages, but its limit is ${limit}`)
    return page
  }

  /** `next` is the offset at which the product's page ended; the product must not have skipped a message before it. */
  redrive(
    request: DeadSelection & { readonly to?: string | undefined; readonly force: boolean },
    next: number | null,
  ): { matched: number; redriven: number; guarded: number } {
    const queue = this.queue(request.name)
    const to = this.queue(request.to ?? request.name)
    const matched = this.#dead(queue, request, next)
    const allowed = this.#mayReturn(queue, to, matched, request)
    if (!request.dryRun) {
      for (const message of allowed) {
        this.#count('redriven')
        if (to !== queue) {
          this.transfers.push({ kind: 'redriven', from: queue, to, message })
          continue
        }
        this.returning.push({ queue, message })
      }
    }
    const guarded = matched.length - allowed.length
    return { matched: matched.length, redriven: allowed.length, guarded }
  }

  // Messages that may be redriven: they have not been redriven too often, and where ids are unique while pending, no
  // pending message has their id.
  #mayReturn(
    queue: ModelQueue,
    to: ModelQueue,
    matched: readonly ModelMessage[],
    { force }: { readonly force: boolean },
  ): ModelMessage[] {
    const pending = this.#pendingIds(queue, [])
    return matched.filter((message) => {
      const { id } = message.content
      const isBarred =
        to === queue && queue.options.unique === 'pending' && id !== undefined && pending.has(id)
      const redrives = redrivesOf(message)
      if (isBarred || (redrives >= LIMITS.redrivesMax && !force)) return false
      if (id !== undefined) pending.add(id)
      return true
    })
  }

  discard(request: DeadSelection, next: number | null): { matched: number; discarded: number } {
    const queue = this.queue(request.name)
    const matched = this.#dead(queue, request, next)
    if (!request.dryRun) {
      for (const message of matched) {
        queue.counters.discarded++
        this.#note(queue, message.offset, 'discarded')
        this.#remove(queue, message)
      }
    }
    return { matched: matched.length, discarded: matched.length }
  }

  /**
   * Called when the next message of `returning` has returned to its queue. The messages return one by one, and
   * deliveries can happen between them.
   */
  returned(): void {
    const { queue, message } = this.returning.shift()!
    queue.counters.redriven++
    this.#note(queue, message.offset, 'redriven')
    message.earlier = livesAfterRedrive(message.earlier, message.attempts)
    message.attempts = 0
    message.isPlain = false
    message.lineMs = this.nowMs
    message.expiresMs = 0
    message.marked = 'yes'
    message.death = undefined
    message.isMoving = false
    queue.line.enter(message, this.nowMs)
  }

  /**
   * Called when the product shows the message in its new queue: removes it from the old queue and adds it to the new
   * one.
   */
  transferred(transfer: Transfer, content: Content): void {
    this.#count(transfer.kind)
    const { from, to, message, kind } = transfer
    this.transfers = this.transfers.filter((other) => other !== transfer)
    from.counters[kind]++
    this.#note(from, message.offset, kind, kind === 'moved' ? { text: to.name } : {})
    this.#remove(from, message)
    to.usedMs = this.nowMs
    this.#append(to, content)
  }

  /** Called when the broker copied a retained message into this queue. */
  replayed(name: string, content: Content): void {
    this.#count('replayed')
    this.used(name)
    this.#append(this.queue(name), content)
  }

  // --- restarts ---

  /** Called when the broker restarts: leases end, no message is charged, and lines are built from the durable state. */
  restart(isCrash: boolean): void {
    this.turnEnded()
    this.lost = []
    this.ended = []
    for (const queue of this.queues.values()) {
      for (const subscription of queue.subscriptions) subscription.isOpen = false
      queue.subscriptions = []
      queue.usedMs = this.nowMs
      queue.line = new Line<ModelMessage>(queue.options)
      queue.rate = RateLimit.of(queue.options.rateMessages, queue.options.ratePerMs)
      for (const message of queue.messages) {
        Object.assign(message, CLEARED)
        message.lease = undefined
        if (isCrash) message.marked = 'yes'
        else if (message.marked === 'no' && message.offset < queue.deliveredBelow) message.marked = 'maybe'
        if (message.state === 'dead') continue
        message.sinceMs = message.lineMs
        if (message.isPlain || message.lineMs <= this.nowMs) message.state = 'ready'
        else queue.line.enter(message, this.nowMs)
      }
      queue.line.rebuild(queue.messages)
    }
  }
}

function isUnsupportedInStreams({ priority, delayMs, atMs, ttlMs }: Content): boolean {
  return priority > 0 || (delayMs ?? atMs ?? ttlMs) !== undefined
}

/** A message that is not in the line yet. */
function messageOf(
  content: Content,
  offset: number,
  publishedMs: number,
  expiresMs: number,
  lineMs = publishedMs,
): ModelMessage {
  return {
    offset,
    content,
    bytes: content.size,
    publishedMs,
    state: 'leased',
    lineMs,
    isPlain: lineMs === publishedMs,
    sinceMs: lineMs,
    expiresMs,
    attempts: 0,
    earlier: NO_EARLIER_LIVES,
    ...CLEARED,
    marked: 'no',
    lease: undefined,
    death: undefined,
    isMoving: false,
    diedMs: 0,
    reason: undefined,
  }
}

/** Number of redrives of a message, in all the queues that it was in. */
export function redrivesOf({ earlier, content }: ModelMessage): number {
  return earlier.redrives + redrivesElsewhere(content.headers[ORIGIN_HEADERS.redrives])
}

function loadOf({ held }: ModelSubscription): Load {
  const messages = [...held.values()]
  return {
    bytes: messages.reduce((sum, { bytes }) => sum + bytes, 0),
    isSuspect: messages.some(({ lease }) => lease!.alone),
  }
}

/** The reason that a consumer gave, if any. */
function textOf(reason: string | undefined): Partial<ModelEvent> {
  return reason === undefined || reason === '' ? {} : { text: reason }
}

interface Plan {
  /** Index among the contents for this queue → offset of the first message with the same id. */
  readonly duplicates: ReadonlyMap<number, number>
  readonly replaced: readonly ModelMessage[]
  readonly victims: readonly ModelMessage[]
  /** Number of victims that are evicted only because the queue was already over its limits. */
  readonly excess: number
}

function shownOf(value: ModelMessage | ModelSubscription | undefined): string {
  if (value === undefined) return 'unknown'
  if ('held' in value) {
    const { creditMessages, creditBytes, limit, delivered, held } = value
    return JSON.stringify({ creditMessages, creditBytes, limit, delivered, held: held.size })
  }
  const { offset, state, lineMs, sinceMs, expiresMs, attempts, isSuspect, content } = value
  const { priority, key, id, size } = content
  return JSON.stringify({
    offset,
    state,
    priority,
    key,
    id,
    lineMs,
    sinceMs,
    expiresMs,
    attempts,
    isSuspect,
    size,
  })
}
