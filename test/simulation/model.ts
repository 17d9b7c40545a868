/**
 * What the broker must do, in plain Maps: it is told every command that the broker takes, in that order, with what the
 * broker answered at once, and every message at the moment at which it is handed out, and says where that is wrong.
 * It shares no code with the broker; the numbers are those of the invariants in the design.
 *
 * After a restart it begins from what the log says; see ledger.ts. What leaves the broker is judged in witness.ts.
 */
import { readU32, type QueueInfo, type QueueOptions, type SettleItem, type TagRange } from '@sluice/protocol'
import type { ErrorCode } from '@sluice/protocol'
import { sameBytes, splitRecords, type Attempt } from './attempts.js'
import type { LedgerState } from './ledger.js'
import { Violation } from './trace.js'

export interface ModelMessage {
  readonly offset: number
  readonly record: Uint8Array
  readonly publishedMs: number
  state: 'ready' | 'scheduled' | 'leased' | 'dead'
  /** Eligible since: the time of publishing, or the due time of a retry; a release keeps it. */
  sinceMs: number
  attempts: number
  /** A delivery must say that it is not the first; it may say so. */
  mustMark: boolean
  mayMark: boolean
  /** A delivery of it left the broker. */
  left: boolean
  /** It was being handled, among others, when a connection died: it goes alone until it is settled. */
  isSuspect: boolean
}

export interface ModelQueue {
  readonly id: number
  readonly name: string
  options: QueueOptions
  next: number
  purged: number
  /** All that is not gone, by offset. */
  readonly live: Map<number, ModelMessage>
  readonly subscriptions: Set<ModelSubscription>
  /** One more than the highest offset that was handed out in this boot. */
  handedBelow: number
}

/** What the model needs of a connection. */
export interface ModelConsumer {
  readonly isReady: boolean
}

export interface ModelSubscription {
  readonly id: number
  readonly queue: ModelQueue
  /** Whose it is: the connection. */
  readonly consumer: ModelConsumer
  messages: number
  bytes: number
  limit: number
  draining: boolean
  delivered: number
  lastTag: number
  readonly held: Map<number, ModelMessage>
  heldBytes: number
  readonly started: Set<number>
  /** Every tag that was ever granted, with the offset of its message, for what comes late. */
  readonly granted: Map<number, number>
  /** Attempts that were charged with the settle of a tag; of those that were retried and did not die. */
  readonly charged: Map<number, number>
}

interface ModelProducer {
  readonly accepted: Map<number, { readonly base: number; readonly queueId: number; readonly crc: number }>
  /** Of this boot. */
  readonly refused: Map<number, ErrorCode>
  /** Results below this are not asked for any more. */
  told: number
}

/** What the model cannot know by itself. */
export interface ModelView {
  /** When the broker means to hand the message out again. */
  dueMs(queueId: number, offset: number): number | undefined
  /** Publishes may be refused for want of space now. */
  diskMayBeLow(): boolean
}

export class Model {
  readonly queues = new Map<number, ModelQueue>()
  readonly names = new Map<string, ModelQueue>()
  readonly subscriptions = new Map<object, ModelSubscription>()
  /** Messages that were refused at least once; after a restart the broker may take them. */
  readonly judgedAnew = new Set<string>()
  readonly #byId = new Map<number, ModelSubscription>()
  readonly #producers = new Map<string, ModelProducer>()
  readonly #view: ModelView
  /** How many messages were being handled on a connection when it died. */
  readonly #blamed = new WeakMap<ModelConsumer, number>()
  /** What was checked, for tests that want to know. */
  readonly counts = {
    dispatched: 0,
    order: 0,
    stale: 0,
    retried: 0,
    released: 0,
    died: 0,
    acked: 0,
    charged: 0,
    suspected: 0,
    drained: 0,
    repeated: 0,
    calm: 0,
    duplicates: 0,
  }

  constructor(view: ModelView) {
    this.#view = view
  }

  // --- restart ---

  /** The broker has recovered to this state of the log. Nothing that was only in memory is left. */
  recover(state: LedgerState, afterCrash: boolean, nowMs: number): void {
    const before = new Map(this.queues)
    this.queues.clear()
    this.names.clear()
    this.subscriptions.clear()
    for (const saved of state.queues.values()) {
      const old = before.get(saved.id)
      const queue: ModelQueue = {
        id: saved.id,
        name: saved.name,
        options: saved.options as unknown as QueueOptions,
        next: saved.next,
        purged: saved.purged,
        live: new Map(),
        subscriptions: new Set(),
        handedBelow: 0,
      }
      for (const [offset, message] of saved.live) {
        const left = old?.live.get(offset)?.left ?? false
        const sinceMs = message.dueMs ?? message.timeMs
        queue.live.set(offset, {
          offset,
          record: message.record,
          publishedMs: message.timeMs,
          state:
            message.dead !== undefined
              ? 'dead'
              : message.dueMs !== undefined && message.dueMs > nowMs
                ? 'scheduled'
                : 'ready',
          sinceMs,
          attempts: message.attempts,
          // 22: after an unclean stop every unsettled older message is marked.
          mustMark: afterCrash || left || message.attempts > 0,
          mayMark: afterCrash || offset < saved.redeliveredBelow || message.attempts > 0,
          left,
          isSuspect: false,
        })
      }
      this.queues.set(queue.id, queue)
      this.names.set(queue.name, queue)
    }
    for (const producer of this.#producers.values()) {
      producer.refused.clear()
      producer.accepted.clear()
    }
    for (const saved of state.producers.values()) {
      const producer = this.#producer(saved.identity)
      for (const [number, { base, queueId, crc }] of saved.accepted)
        producer.accepted.set(number, { base, queueId, crc })
    }
  }

  // --- producing ---

  published(attempt: Attempt, unanswered: number, answer: number | ErrorCode, nowMs: number): void {
    const { identity, number } = attempt
    const producer = this.#producer(identity)
    producer.told = Math.max(producer.told, number - unanswered)
    const crc = readU32(attempt.batch, 44)
    const known = producer.accepted.get(number)
    const refused = producer.refused.get(number)
    const isOld = number < producer.told
    const what = `batch ${number} of ${identity} for ${attempt.queue}`
    // 3: one number, one result.
    if (typeof answer === 'number') {
      if (known !== undefined) {
        if (known.crc !== crc || known.base !== answer)
          throw new Violation(3, `${what} is answered ${answer}; it was accepted at ${known.base}`)
        this.counts.duplicates++
        return
      }
      if (refused !== undefined && !isOld)
        throw new Violation(3, `${what} is accepted and was refused with ${refused}`)
      if (isOld) throw new Violation(3, `${what} is accepted although it is older than its window`)
      if (attempt.expects !== undefined)
        throw new Violation(21, `${what} is accepted and deserves ${attempt.expects.join()}`)
      this.#accept(attempt, answer, nowMs)
      producer.accepted.set(number, { base: answer, queueId: this.names.get(attempt.queue)!.id, crc })
      return
    }
    const allowed: ErrorCode[] = [...(attempt.expects ?? [])]
    if (isOld) allowed.push('UNKNOWN_OUTCOME')
    if (known !== undefined) {
      if (known.crc !== crc) allowed.push('NUMBER_REUSED')
      // What is known is answered, whatever became of its queue.
      else if (!isOld)
        throw new Violation(3, `${what} is refused with ${answer} and was accepted at ${known.base}`)
    } else if (refused !== undefined) {
      allowed.push(refused)
    } else {
      if (!this.names.has(attempt.queue)) allowed.push('QUEUE_NOT_FOUND')
      if (this.#view.diskMayBeLow()) allowed.push('DISK_LOW')
    }
    if (!allowed.includes(answer))
      throw new Violation(
        3,
        `${what} is refused with ${answer}; it deserves ${allowed.join() || 'to be taken'}`,
      )
    if (answer !== 'UNKNOWN_OUTCOME' && answer !== 'NUMBER_REUSED' && known === undefined)
      producer.refused.set(number, answer)
    for (const name of attempt.names) this.judgedAnew.add(name)
  }

  /**
   * A producer that never had a batch accepted has left. Its refusals go with it: no byte of it is under way any more,
   * so whoever did not hear of a refusal cannot tell that the batch is judged anew.
   */
  forgotten(identity: string): void {
    const producer = this.#producer(identity)
    if (producer.accepted.size > 0)
      throw new Violation(3, `producer ${identity} is forgotten, and had batches accepted`)
    producer.refused.clear()
    producer.told = 0
  }

  #accept(attempt: Attempt, base: number, nowMs: number): void {
    const queue = this.names.get(attempt.queue)
    if (queue === undefined)
      throw new Violation(2, `${attempt.queue} takes a batch, and there is no such queue`)
    // 5: offsets are dense.
    if (base !== queue.next)
      throw new Violation(5, `${queue.name} gives offset ${base}; its next one is ${queue.next}`)
    for (const record of attempt.records) {
      queue.live.set(queue.next, {
        offset: queue.next,
        record,
        publishedMs: nowMs,
        state: 'ready',
        sinceMs: nowMs,
        attempts: 0,
        mustMark: false,
        mayMark: false,
        left: false,
        isSuspect: false,
      })
      queue.next++
    }
  }

  #producer(identity: string): ModelProducer {
    let producer = this.#producers.get(identity)
    if (producer === undefined) {
      producer = { accepted: new Map(), refused: new Map(), told: 0 }
      this.#producers.set(identity, producer)
    }
    return producer
  }

  // --- consuming ---

  subscribed(
    key: object,
    id: number,
    queueName: string,
    consumer: ModelConsumer,
    messages: number,
    bytes: number,
    limit: number | undefined,
  ): void {
    const queue = this.#named(queueName)
    // 7: a tag from another life must not mean anything in this one.
    if (this.#byId.has(id)) throw new Violation(7, `two subscriptions have the id ${id}`)
    const subscription: ModelSubscription = {
      id,
      queue,
      consumer,
      messages,
      bytes,
      limit: limit ?? Infinity,
      draining: false,
      delivered: 0,
      lastTag: -1,
      held: new Map(),
      heldBytes: 0,
      started: new Set(),
      granted: new Map(),
      charged: new Map(),
    }
    this.subscriptions.set(key, subscription)
    this.#byId.set(id, subscription)
    queue.subscriptions.add(subscription)
  }

  credited(key: object, messages: number, bytes: number, limit: number | undefined, drain: boolean): void {
    const subscription = this.#subscription(key)
    subscription.messages = messages
    subscription.bytes = bytes
    subscription.limit = limit ?? Infinity
    subscription.draining = drain
  }

  /** A run was handed out, at this moment. */
  dispatched(
    key: object,
    run: { offset: number; publishedAtMs: number; attempt: number; redelivered: boolean; alone: boolean },
    firstTag: number,
    count: number,
    records: Uint8Array,
    nowMs: number,
  ): void {
    const subscription = this.#subscription(key)
    const { queue } = subscription
    const parts = splitRecords(records, 0, records.length)
    if (parts.length !== count)
      throw new Violation(2, `a run of ${count} messages of ${queue.name} carries ${parts.length} records`)
    for (let i = 0; i < count; i++) {
      const offset = run.offset + i
      const what = `offset ${offset} of ${queue.name}`
      const message = queue.live.get(offset)
      this.counts.dispatched++
      // 2: what is delivered was published there, byte for byte.
      if (message === undefined) throw new Violation(2, `${what} is handed out and is not there`)
      if (!sameBytes(message.record, parts[i]!))
        throw new Violation(2, `${what} is handed out with other bytes`)
      if (run.publishedAtMs !== message.publishedMs)
        throw new Violation(2, `${what} was published at ${message.publishedMs}, not ${run.publishedAtMs}`)
      // 7, 11: one owner at a time, and nothing early.
      if (message.state === 'leased') throw new Violation(7, `${what} is handed out and belongs to another`)
      if (message.state === 'scheduled')
        throw new Violation(11, `${what} is handed out at ${nowMs} and is due at ${message.sinceMs}`)
      if (message.state === 'dead') throw new Violation(6, `${what} is handed out and is dead`)
      // 12: none that comes before it is passed over.
      const first = firstReady(queue)!
      this.counts.order++
      if (first !== message)
        throw new Violation(
          12,
          `${what} (since ${message.sinceMs}) passes over offset ${first.offset} (since ${first.sinceMs})`,
        )
      // 10: the attempt is one more than was charged.
      if (run.attempt !== message.attempts + 1)
        throw new Violation(10, `${what} is attempt ${run.attempt}; ${message.attempts} were charged`)
      // 22: every repeat is marked, and nothing else is.
      if (message.mustMark && !run.redelivered)
        throw new Violation(22, `${what} is handed out again without the mark`)
      if (run.redelivered && !message.mayMark)
        throw new Violation(22, `${what} is marked as redelivered and never was out`)
      if (run.redelivered) this.counts.repeated++
      if (run.alone !== message.isSuspect || (run.alone && count > 1))
        throw new Violation(
          'O8',
          `${what} goes alone: ${run.alone}, in a run of ${count}; it is a suspect: ${message.isSuspect}`,
        )
      this.#grant(subscription, message, (firstTag + i) >>> 0, parts[i]!.length)
    }
  }

  #grant(subscription: ModelSubscription, message: ModelMessage, tag: number, bytes: number): void {
    const { queue } = subscription
    const what = `offset ${message.offset} of ${queue.name}`
    // 14: within the credit, or alone.
    if (subscription.held.size >= subscription.messages)
      throw new Violation(14, `${what} exceeds a credit of ${subscription.messages} messages`)
    if (subscription.delivered >= subscription.limit)
      throw new Violation(14, `${what} exceeds a limit of ${subscription.limit} deliveries`)
    if (subscription.held.size > 0 && subscription.heldBytes + bytes > subscription.bytes) {
      throw new Violation(
        14,
        `${what} of ${bytes} bytes exceeds a credit of ${subscription.bytes} bytes, of which ${subscription.heldBytes} are held`,
      )
    }
    if (subscription.held.has(tag) || tag <= subscription.lastTag)
      throw new Violation(7, `${what} has tag ${tag} after ${subscription.lastTag}`)
    subscription.lastTag = tag
    subscription.held.set(tag, message)
    subscription.heldBytes += bytes
    subscription.granted.set(tag, message.offset)
    subscription.delivered++
    message.state = 'leased'
    message.mustMark = true
    message.mayMark = true
    queue.handedBelow = Math.max(queue.handedBelow, message.offset + 1)
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
        // 7: a stale settle changes nothing, and is told; one that holds is not.
        if (message === undefined) {
          expectedStale++
          if (!staleTags.has(tag))
            throw new Violation(7, `tag ${tag} of subscription ${subscription.id} is stale and was settled`)
          continue
        }
        if (staleTags.has(tag) && !named.has(tag)) {
          // Named twice in one frame: the first wins, the second is stale.
          const again =
            items.flatMap(({ firstTag, count }) => ((tag - firstTag) >>> 0 < count ? [1] : [])).length > 1
          if (!again)
            throw new Violation(
              7,
              `tag ${tag} of subscription ${subscription.id} is held and was called stale`,
            )
        }
        named.add(tag)
        this.#settle(subscription, tag, message, item, nowMs)
      }
    }
    this.counts.stale += expectedStale
    const told = stale.reduce((sum, { count }) => sum + count, 0)
    if (told !== expectedStale) throw new Violation(7, `${told} tags are called stale; ${expectedStale} are`)
  }

  #settle(
    subscription: ModelSubscription,
    tag: number,
    message: ModelMessage,
    item: SettleItem,
    nowMs: number,
  ): void {
    const { queue } = subscription
    this.#letGo(subscription, tag, message)
    switch (item.outcome) {
      case 1:
        queue.live.delete(message.offset)
        this.counts.acked++
        return
      case 2:
        this.#retry(queue, message, item.delayMs, nowMs)
        if (message.attempts > 0) subscription.charged.set(tag, message.attempts)
        return
      case 3:
        message.state = 'ready'
        this.counts.released++
        return
      case 4:
        this.#die(message)
    }
  }

  #letGo(subscription: ModelSubscription, tag: number, message: ModelMessage): void {
    subscription.held.delete(tag)
    subscription.started.delete(tag)
    subscription.heldBytes -= message.record.length
  }

  #retry(queue: ModelQueue, message: ModelMessage, delayMs: number | undefined, nowMs: number): void {
    const { maxDeliveries, retryInitialMs, retryMaxMs } = queue.options
    // 10: past the last try means dead.
    if (message.attempts + 1 >= maxDeliveries) {
      this.#die(message)
      return
    }
    message.attempts++
    message.isSuspect = false
    this.counts.retried++
    const dueMs = this.#view.dueMs(queue.id, message.offset)
    const what = `offset ${message.offset} of ${queue.name} after attempt ${message.attempts}`
    if (dueMs === undefined) throw new Violation(6, `${what} does not come back`)
    if (delayMs !== undefined) {
      if (dueMs !== nowMs + delayMs)
        throw new Violation(11, `${what} comes back at ${dueMs}, not at ${nowMs} + ${delayMs}`)
    } else {
      const nominal = Math.min(retryInitialMs * 2 ** (message.attempts - 1), retryMaxMs)
      const waitMs = dueMs - nowMs
      if (waitMs < Math.floor(nominal * 0.8) || waitMs > Math.min(Math.ceil(nominal * 1.2), retryMaxMs)) {
        throw new Violation(11, `${what} waits ${waitMs} ms; its back-off is ${nominal} ms`)
      }
    }
    message.sinceMs = dueMs
    message.state = dueMs <= nowMs ? 'ready' : 'scheduled'
  }

  #die(message: ModelMessage): void {
    message.state = 'dead'
    message.attempts = 0
    message.isSuspect = false
    this.counts.died++
  }

  started(key: object, ranges: readonly TagRange[]): void {
    const subscription = this.#subscription(key)
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (subscription.held.has(tag)) subscription.started.add(tag)
      }
    }
  }

  /** To be told after the broker has done it. */
  unsubscribed(key: object, blame: 'nobody' | 'started' | 'suspects', nowMs: number): void {
    const subscription = this.#subscription(key)
    const { queue, started, consumer } = subscription
    if (blame !== 'nobody') this.#judgeBlame(consumer, blame)
    for (const [tag, message] of [...subscription.held]) {
      const wasStarted = started.has(tag)
      this.#letGo(subscription, tag, message)
      if (blame === 'started' && wasStarted) {
        this.counts.charged++
        this.#retry(queue, message, undefined, nowMs)
        continue
      }
      if (blame === 'suspects' && wasStarted) {
        this.counts.suspected++
        message.isSuspect = true
      }
      message.state = 'ready'
    }
    queue.subscriptions.delete(subscription)
    this.subscriptions.delete(key)
  }

  // O8: exactly one that was being handled is charged; of several none is, and they are suspects.
  #judgeBlame(consumer: ModelConsumer, blame: 'started' | 'suspects'): void {
    let started = this.#blamed.get(consumer)
    if (started === undefined) {
      started = 0
      for (const subscription of this.subscriptions.values())
        if (subscription.consumer === consumer) started += subscription.started.size
      this.#blamed.set(consumer, started)
    }
    if ((blame === 'started') !== (started === 1))
      throw new Violation(
        'O8',
        `${started} messages were being handled when a connection died, and the blame goes to ${blame}`,
      )
  }

  drained(key: object): void {
    const subscription = this.#subscription(key)
    if (!subscription.draining)
      throw new Violation(16, `subscription ${subscription.id} is drained and did not ask`)
    const waiting = this.#handedNext(subscription)
    if (waiting !== undefined)
      throw new Violation(
        16,
        `subscription ${subscription.id} is drained while offset ${waiting.offset} of ${subscription.queue.name} can go`,
      )
    subscription.draining = false
    subscription.limit = subscription.delivered
    this.counts.drained++
  }

  // --- queues ---

  ensured(id: number, info: QueueInfo): void {
    const known = this.names.get(info.name)
    if (known === undefined) {
      const queue: ModelQueue = {
        id,
        name: info.name,
        options: info.options,
        next: 0,
        purged: 0,
        live: new Map(),
        subscriptions: new Set(),
        handedBelow: 0,
      }
      if (this.queues.has(id)) throw new Violation(5, `queue ${info.name} has the id ${id} of another`)
      this.queues.set(id, queue)
      this.names.set(info.name, queue)
    } else {
      known.options = info.options
    }
    this.counted(info)
  }

  deleted(name: string, messages: number): void {
    const queue = this.#named(name)
    if (messages !== queue.live.size)
      throw new Violation(6, `${name} is deleted with ${messages} messages; it had ${queue.live.size}`)
    for (const subscription of queue.subscriptions) this.#end(subscription)
    this.queues.delete(queue.id)
    this.names.delete(name)
  }

  #end(ended: ModelSubscription): void {
    for (const [key, subscription] of this.subscriptions)
      if (subscription === ended) this.subscriptions.delete(key)
  }

  purged(name: string, messages: number): void {
    const queue = this.#named(name)
    for (const subscription of queue.subscriptions) {
      subscription.held.clear()
      subscription.started.clear()
      subscription.heldBytes = 0
    }
    let count = 0
    for (const [offset, { state }] of queue.live) {
      if (state === 'dead') continue
      queue.live.delete(offset)
      count++
    }
    queue.purged += count
    if (messages !== count)
      throw new Violation(6, `a purge of ${name} removes ${messages} messages; there were ${count}`)
  }

  /** 6: each message is in one state, and the broker counts the same. */
  counted(info: QueueInfo): void {
    const queue = this.#named(info.name)
    const counts = { ready: 0, scheduled: 0, leased: 0, dead: 0 }
    for (const { state } of queue.live.values()) counts[state]++
    const told = { ready: info.ready, scheduled: info.scheduled, leased: info.leased, dead: info.dead }
    const acked = queue.next - queue.live.size - queue.purged
    if (
      JSON.stringify(told) !== JSON.stringify(counts) ||
      info.published !== queue.next ||
      info.purged !== queue.purged ||
      info.acked !== acked ||
      info.consumers !== queue.subscriptions.size
    ) {
      throw new Violation(
        6,
        `${queue.name} counts ${JSON.stringify(info)}; there are ${JSON.stringify({ ...counts, published: queue.next, purged: queue.purged, acked, consumers: queue.subscriptions.size })}`,
      )
    }
  }

  // --- time ---

  /** The broker looked at the time: what is due is ready. */
  ticked(nowMs: number): void {
    for (const queue of this.queues.values()) {
      for (const message of queue.live.values()) {
        if (message.state === 'scheduled' && message.sinceMs <= nowMs) message.state = 'ready'
      }
    }
  }

  /** Nothing is under way in the broker. 16: then nothing that could be handed out is waiting. */
  calm(nowMs: number): void {
    this.counts.calm++
    for (const queue of this.queues.values()) {
      for (const subscription of queue.subscriptions) {
        const waiting = this.#handedNext(subscription)
        if (waiting !== undefined)
          throw new Violation(
            16,
            `offset ${waiting.offset} of ${queue.name} waits, and subscription ${subscription.id} has credit for it`,
          )
        if (subscription.draining && subscription.consumer.isReady)
          throw new Violation(16, `subscription ${subscription.id} waits to be told that it is drained`)
      }
      for (const message of queue.live.values()) {
        // 11: in time, too.
        if (message.state === 'scheduled' && message.sinceMs < nowMs - TIMER_SLACK_MS)
          throw new Violation(
            11,
            `offset ${message.offset} of ${queue.name} was due at ${message.sinceMs}, it is ${nowMs}`,
          )
      }
    }
  }

  #handedNext(subscription: ModelSubscription): ModelMessage | undefined {
    if (
      !subscription.consumer.isReady ||
      subscription.held.size >= subscription.messages ||
      subscription.delivered >= subscription.limit
    )
      return undefined
    const first = firstReady(subscription.queue)
    if (first === undefined) return undefined
    const fits =
      subscription.held.size === 0 || subscription.heldBytes + first.record.length <= subscription.bytes
    return fits ? first : undefined
  }

  /** 8, 17: with everything on disk, the log says what was done. */
  agreesWith(state: LedgerState): void {
    if (state.queues.size !== this.queues.size)
      throw new Violation(17, `the log has ${state.queues.size} queues, there are ${this.queues.size}`)
    for (const queue of this.queues.values()) {
      const saved = state.queues.get(queue.id)
      if (saved === undefined || saved.name !== queue.name)
        throw new Violation(17, `the log does not have queue ${queue.name}`)
      if (saved.next !== queue.next || saved.purged !== queue.purged || saved.live.size !== queue.live.size) {
        throw new Violation(
          17,
          `of ${queue.name} the log has ${saved.live.size} of ${saved.next} messages, there are ${queue.live.size} of ${queue.next}`,
        )
      }
      for (const [offset, message] of queue.live) {
        const written = saved.live.get(offset)
        const what = `offset ${offset} of ${queue.name}`
        if (written === undefined || !sameBytes(written.record, message.record))
          throw new Violation(17, `the log does not have ${what}`)
        if (
          (written.dead !== undefined) !== (message.state === 'dead') ||
          written.attempts !== message.attempts
        ) {
          throw new Violation(
            17,
            `the log has ${what} with ${written.attempts} attempts, dead ${written.dead !== undefined}; it has ${message.attempts} and is ${message.state}`,
          )
        }
        if (message.attempts > 0 && written.dueMs !== message.sinceMs)
          throw new Violation(17, `the log has ${what} due at ${written.dueMs}, not ${message.sinceMs}`)
      }
    }
  }

  /** The subscription with this id, also when it is over. */
  subscriptionById(id: number): ModelSubscription | undefined {
    return this.#byId.get(id)
  }

  #subscription(key: object): ModelSubscription {
    const subscription = this.subscriptions.get(key)
    if (subscription === undefined)
      throw new Violation(7, 'a subscription is used that was never made, or is over')
    return subscription
  }

  #named(name: string): ModelQueue {
    const queue = this.names.get(name)
    if (queue === undefined) throw new Violation(6, `the broker speaks of queue ${name}, which there is not`)
    return queue
  }
}

/** How late a timer may be; the world looks at it at least every 50 ms. */
const TIMER_SLACK_MS = 120

/**
 * What goes first: eligible since, then offset. Messages that were never tried go by offset alone: their times ascend
 * with it, but for a clock that was set back between two lives.
 */
function firstReady(queue: ModelQueue): ModelMessage | undefined {
  let plain: ModelMessage | undefined
  let tried: ModelMessage | undefined
  for (const message of queue.live.values()) {
    if (message.state !== 'ready') continue
    if (message.attempts === 0) {
      if (plain === undefined || message.offset < plain.offset) plain = message
    } else if (
      tried === undefined ||
      message.sinceMs < tried.sinceMs ||
      (message.sinceMs === tried.sinceMs && message.offset < tried.offset)
    ) {
      tried = message
    }
  }
  if (plain === undefined || tried === undefined) return plain ?? tried
  const isTried =
    tried.sinceMs < plain.sinceMs || (tried.sinceMs === plain.sinceMs && tried.offset < plain.offset)
  return isTried ? tried : plain
}
