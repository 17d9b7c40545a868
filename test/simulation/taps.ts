/**
 * Listens in on the seams of a broker: every command that reaches it, with its answer, what each queue notices of the
 * time, what becomes of its dead messages, and every entry that is appended, are told to the model and the ledger.
 * Nothing is changed on the way.
 */
import { OP, SluiceError, readU64, type Placed } from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log, LogBounds, LogEntry, LogUsage } from '../../packages/server/src/log/log.js'
import type { Queue } from '../../packages/server/src/queue/index.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { Attempts } from './attempts.js'
import type { EntrySummary, LedgerState } from './ledger.js'
import type { Model } from './model.js'
import type { Conversation } from './witness.js'

/** What the taps report to. `guard` keeps what they find wrong from going through the broker. */
export interface Listening {
  readonly model: Model
  readonly attempts: Attempts
  /** What is on disk. */
  readonly durable: LedgerState
  guard(work: () => void): void
  /** A queue is emptied or deleted, now. */
  removed(queue: string): void
}

/** What a log is listened to for. */
export interface LogListening {
  readonly model: Model
  readonly ledger: {
    begin(entry: Uint8Array, position: number): EntrySummary
    finish(): void
    recovered(lsn: number): void
  }
  guard(work: () => void): void
}

export class TappedLog implements Log {
  readonly inner: Log
  readonly #to: LogListening
  readonly counts = { coldReads: 0, truncations: 0, checkpoints: 0 }
  bounds: LogBounds | undefined

  constructor(inner: Log, to: LogListening) {
    this.inner = inner
    this.#to = to
  }

  get segmentBytes(): number {
    return this.inner.segmentBytes
  }

  async open(): Promise<LogBounds> {
    this.bounds = await this.inner.open()
    this.#to.guard(() => this.#to.ledger.recovered(this.bounds!.nextLsn - 1))
    return this.bounds
  }

  read(position: number): AsyncIterable<LogEntry> {
    return this.inner.read(position)
  }

  reserve(bytes: number, nowMs: number): boolean {
    return this.inner.reserve(bytes, nowMs)
  }

  room(): number {
    return this.inner.room()
  }

  stuck(): Promise<void> {
    return this.inner.stuck()
  }

  async append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    this.#to.guard(() => {
      const { acked, atomics } = this.#to.ledger.begin(entry, position)
      for (const { identity, number } of atomics) this.#to.model.stepWritten(identity, number, acked)
    })
    await this.inner.append(position, lsn, entry)
    this.#to.guard(() => this.#to.ledger.finish())
  }

  readRange(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    this.counts.coldReads++
    return this.inner.readRange(position, length, into)
  }

  markCheckpoint(position: number): void {
    this.counts.checkpoints++
    this.inner.markCheckpoint(position)
  }

  truncateBefore(position: number): Promise<void> {
    this.counts.truncations++
    return this.inner.truncateBefore(position)
  }

  usage(): LogUsage {
    return this.inner.usage()
  }

  close(): Promise<void> {
    return this.inner.close()
  }
}

/** What the next RESULT promises: what the disk must say when it goes out. */
export interface Owed {
  promise: (() => string | undefined) | undefined
}

export function tapBroker(broker: Broker, to: Listening): Owed {
  const { model, attempts } = to
  const owed: Owed = { promise: undefined }
  const { catalog } = broker
  const tapped = new WeakSet<Queue>()
  const tap = (name: string): void => {
    const queue = broker.queue(name)
    if (tapped.has(queue)) return
    tapped.add(queue)
    tapQueue(
      queue,
      broker,
      to,
      () => lastAppend,
      (appended) => (lastAppend = appended),
    )
  }
  // Where a copy went that another queue is about to be told of.
  let lastAppend: Appended | undefined
  for (const name of model.names.keys()) tap(name)

  /** Tells the answer of `work`, or how it was refused. */
  const telling = <Result>(work: () => Result, tell: (answer: Result | SluiceError) => void): Result => {
    let answer: Result
    try {
      answer = work()
    } catch (error) {
      if (error instanceof SluiceError) to.guard(() => tell(error))
      throw error
    }
    to.guard(() => tell(answer))
    return answer
  }

  const publish = broker.publish.bind(broker)
  broker.publish = (producer, queueName, bytes, at, end, unanswered) => {
    const batch = new Uint8Array(bytes.subarray(at, end))
    return telling(
      () => publish(producer, queueName, bytes, at, end, unanswered),
      (answer: Placed | SluiceError) => {
        const attempt = attempts.matching(producer.identity, readU64(batch, 24), batch)
        model.published(attempt, unanswered, answer, broker.nowMs)
      },
    )
  }

  const atomic = broker.atomic.bind(broker)
  broker.atomic = (producer, step, unanswered) => {
    const { number, crc, acks } = step
    const batches = step.batches.map(({ bytes, at, end }) => new Uint8Array(bytes.subarray(at, end)))
    return telling(
      () => atomic(producer, step, unanswered),
      (answer) => {
        const found = batches.map((batch) => attempts.matching(producer.identity, number, batch))
        const named = acks.map(({ subscription: key, firstTag, count }) => ({ key, firstTag, count }))
        model.stepped(producer.identity, number, crc, named, found, unanswered, answer, broker.nowMs)
      },
    )
  }

  const detachProducer = broker.detachProducer.bind(broker)
  broker.detachProducer = (producer) => {
    detachProducer(producer)
    if (producer.connections === 0 && producer.id === 0) to.guard(() => model.forgotten(producer.identity))
  }

  const subscribe = broker.subscribe.bind(broker)
  broker.subscribe = (name, channel, consumer, messages, bytes, limit, timeoutMs) => {
    const subscription = subscribe(name, channel, consumer, messages, bytes, limit, timeoutMs)
    to.guard(() =>
      model.subscribed(subscription, subscription.id, name, consumer, messages, bytes, limit, timeoutMs),
    )
    return subscription
  }

  const credit = broker.credit.bind(broker)
  broker.credit = (subscription, messages, bytes, limit, drain) => {
    credit(subscription, messages, bytes, limit, drain)
    to.guard(() => model.credited(subscription, messages, bytes, limit, drain))
  }

  const settle = broker.settle.bind(broker)
  broker.settle = (subscription, items) => {
    const stale = settle(subscription, items)
    to.guard(() => model.settled(subscription, items, stale, broker.nowMs))
    return stale
  }

  const started = broker.started.bind(broker)
  broker.started = (subscription, ranges) => {
    started(subscription, ranges)
    to.guard(() => model.started(subscription, ranges, broker.nowMs))
  }

  const starting = broker.starting.bind(broker)
  broker.starting = (subscription, ranges) => {
    starting(subscription, ranges)
    to.guard(() => model.starting(subscription, ranges))
  }

  const extend = broker.extend.bind(broker)
  broker.extend = (subscription, firstTag, count, durationMs) => {
    const stale = extend(subscription, firstTag, count, durationMs)
    to.guard(() => model.extended(subscription, firstTag, count, durationMs, stale, broker.nowMs))
    return stale
  }

  const unsubscribe = broker.unsubscribe.bind(broker)
  broker.unsubscribe = (subscription, blame, isStopping) => {
    unsubscribe(subscription, blame, isStopping)
    to.guard(() => model.unsubscribed(subscription, blame, isStopping === true, broker.nowMs))
  }

  const claim = broker.claim.bind(broker)
  broker.claim = (subscription, claims) => {
    const granted = claim(subscription, claims)
    const counted = (tag: number): number => subscription.bytesOf(tag)
    to.guard(() => model.claimed(subscription, claims, granted, counted, broker.nowMs))
    return granted
  }

  const ensure = catalog.ensure.bind(catalog)
  catalog.ensure = (request) => {
    const answer = ensure(request)
    const { id } = broker.queue(request.name)
    tap(request.name)
    to.guard(() => model.ensured(id, answer.queue, broker.nowMs))
    owed.promise = () =>
      to.durable.lastQueueId < id ? `queue ${request.name} is said to be there and is not on disk` : undefined
    return answer
  }

  const remove = catalog.delete.bind(catalog)
  catalog.delete = (name) => {
    const { id } = broker.queue(name)
    const messages = remove(name)
    to.guard(() => model.deleted(name, messages))
    to.removed(name)
    owed.promise = () =>
      to.durable.queues.has(id) ? `queue ${name} is said to be deleted and is on disk` : undefined
    return messages
  }

  const purge = catalog.purge.bind(catalog)
  catalog.purge = (name) => {
    const { id } = broker.queue(name)
    const alive = [...(model.names.get(name)?.live.values() ?? [])].filter(({ state }) => state !== 'dead')
    to.guard(() => model.purging())
    const messages = purge(name)
    to.guard(() => model.purged(name, messages))
    to.removed(name)
    owed.promise = () => {
      const saved = to.durable.queues.get(id)
      for (const { offset } of alive)
        if (saved?.live.has(offset) === true)
          return `offset ${offset} of ${name} is said to be purged and is on disk`
      return undefined
    }
    return messages
  }

  const pause = catalog.pause.bind(catalog)
  catalog.pause = (name) => {
    const changed = pause(name)
    to.guard(() => model.setPaused(name, true, changed))
    return changed
  }

  const resume = catalog.resume.bind(catalog)
  catalog.resume = (name) => {
    const changed = resume(name)
    to.guard(() => model.setPaused(name, false, changed))
    return changed
  }

  const cancel = broker.cancel.bind(broker)
  broker.cancel = (ref) => {
    const answer = telling(
      () => cancel(ref),
      (told) => model.cancelled(ref, told, broker.nowMs),
    )
    const { id } = broker.queue(ref.name)
    owed.promise = () =>
      to.durable.queues.get(id)?.live.has(answer.offset) === true
        ? `offset ${answer.offset} of ${ref.name} is said to be cancelled and is on disk`
        : undefined
    return answer
  }

  const reschedule = broker.reschedule.bind(broker)
  broker.reschedule = (request) =>
    telling(
      () => reschedule(request),
      (told) => model.rescheduled(request, told, broker.nowMs),
    )

  const info = catalog.info.bind(catalog)
  catalog.info = (name) => {
    const answer = info(name)
    to.guard(() => model.counted(answer, broker.nowMs))
    return answer
  }

  return owed
}

interface Appended {
  readonly id: number
  readonly base: number
}

function tapQueue(
  queue: Queue,
  broker: Broker,
  to: Listening,
  lastAppend: () => Appended | undefined,
  appended: (where: Appended) => void,
): void {
  const { model } = to
  const { id } = queue

  const advance = queue.advance.bind(queue)
  queue.advance = (nowMs) => {
    to.guard(() => model.looked(id, nowMs))
    advance(nowMs)
  }

  const settleTime = queue.settleTime.bind(queue)
  queue.settleTime = (nowMs) => {
    to.guard(() => model.looked(id, nowMs))
    settleTime(nowMs)
    to.guard(() => model.settledTime(id, nowMs))
  }

  const applyOptions = queue.applyOptions.bind(queue)
  queue.applyOptions = (options, nowMs) => {
    applyOptions(options, nowMs)
    to.guard(() => model.changed(id, options, nowMs))
  }

  const append = queue.append.bind(queue)
  queue.append = (base, ...rest) => {
    append(base, ...rest)
    appended({ id, base })
  }

  const moved = queue.moved.bind(queue)
  queue.moved = (offset, isRedrive, nowMs) => {
    const reason = queue.deadAt(offset)?.reason ?? ''
    moved(offset, isRedrive, nowMs)
    to.guard(() => model.moved(id, offset, isRedrive, lastAppend()!, reason, nowMs))
  }

  const redrive = queue.redrive.bind(queue)
  queue.redrive = (offset, nowMs, by) => {
    redrive(offset, nowMs, by)
    to.guard(() => model.redriven(id, offset, nowMs))
  }

  const discard = queue.discard.bind(queue)
  queue.discard = (offset, nowMs) => {
    discard(offset, nowMs)
    to.guard(() => model.discarded(id, offset))
  }

  const gone = queue.facts.gone.bind(queue.facts)
  queue.facts.gone = (kind, offset, count) => {
    gone(kind, offset, count)
    if (kind !== 'expire') return
    to.guard(() => {
      for (let i = 0; i < count; i++) model.expired(id, offset + i, broker.nowMs)
    })
  }
}

export function tapSession(
  session: Session,
  broker: Broker,
  conversation: Conversation,
  owed: Owed,
  to: Listening,
): void {
  const { model } = to
  const deliver = session.deliver.bind(session)
  session.deliver = (subscription, run, firstTag, count, bytes, start, end) => {
    to.guard(() =>
      model.dispatched(subscription, run, firstTag, count, bytes.subarray(start, end), broker.nowMs),
    )
    deliver(subscription, run, firstTag, count, bytes, start, end)
  }

  const lost = session.lost.bind(session)
  session.lost = (subscription, reason, ranges) => {
    to.guard(() => model.lost(subscription, ranges, broker.nowMs))
    lost(subscription, reason, ranges)
  }

  const drained = session.drained.bind(session)
  session.drained = (subscription) => {
    to.guard(() => model.drained(subscription))
    drained(subscription)
  }

  const answer = session.answer.bind(session)
  session.answer = (correlation, given) => {
    if (given.opcode === OP.RESULT)
      conversation.promises.push({ correlation, broken: owed.promise ?? ((): undefined => undefined) })
    owed.promise = undefined
    answer(correlation, given)
  }
}
