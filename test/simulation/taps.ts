/**
 * Listens in on the seams of a broker: every command that reaches it, with its answer, and every entry that it
 * appends, are told to the model and the ledger. Nothing is changed on the way.
 */
import { SluiceError, readU64 } from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log, LogBounds, LogEntry } from '../../packages/server/src/log/log.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { Attempts } from './attempts.js'
import type { Ledger } from './ledger.js'
import type { Model } from './model.js'
import type { Conversation } from './witness.js'

/** What the taps report to. `guard` keeps what they find wrong from going through the broker. */
export interface Listening {
  readonly model: Model
  readonly ledger: Ledger
  readonly attempts: Attempts
  guard(work: () => void): void
  /** A queue is emptied or deleted, now. */
  removed(queue: string): void
}

export class TappedLog implements Log {
  readonly inner: Log
  readonly #to: Listening
  readonly counts = { coldReads: 0, truncations: 0, checkpoints: 0 }
  bounds: LogBounds | undefined

  constructor(inner: Log, to: Listening) {
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

  reserve(bytes: number): boolean {
    return this.inner.reserve(bytes)
  }

  async append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    this.#to.guard(() => this.#to.ledger.begin(entry, position))
    await this.inner.append(position, lsn, entry)
    this.#to.guard(() => this.#to.ledger.finish())
  }

  readRange(position: number, length: number): Promise<Uint8Array> {
    this.counts.coldReads++
    return this.inner.readRange(position, length)
  }

  markCheckpoint(position: number): void {
    this.counts.checkpoints++
    this.inner.markCheckpoint(position)
  }

  truncateBefore(position: number): Promise<void> {
    this.counts.truncations++
    return this.inner.truncateBefore(position)
  }

  usage(): { segments: number; bytes: number; firstPosition: number } {
    return this.inner.usage()
  }

  close(): Promise<void> {
    return this.inner.close()
  }
}

/** A promise that the next RESULT makes. */
interface Owed {
  promise: (() => string | undefined) | undefined
}

export function tapBroker(broker: Broker, to: Listening): Owed {
  const { model, ledger, attempts } = to
  const owed: Owed = { promise: undefined }

  const publish = broker.publish.bind(broker)
  broker.publish = (producer, queueName, bytes, at, end, unanswered) => {
    const batch = new Uint8Array(bytes.subarray(at, end))
    const tell = (answer: number | SluiceError): void =>
      to.guard(() => {
        const attempt = attempts.matching(producer.identity, readU64(batch, 24), batch)
        model.published(attempt, unanswered, typeof answer === 'number' ? answer : answer.code, broker.nowMs)
      })
    try {
      const base = publish(producer, queueName, bytes, at, end, unanswered)
      tell(base)
      return base
    } catch (error) {
      if (error instanceof SluiceError) tell(error)
      throw error
    }
  }

  const detachProducer = broker.detachProducer.bind(broker)
  broker.detachProducer = (producer) => {
    detachProducer(producer)
    if (producer.connections === 0 && producer.id === 0) to.guard(() => model.forgotten(producer.identity))
  }

  const subscribe = broker.subscribe.bind(broker)
  broker.subscribe = (name, channel, consumer, messages, bytes, limit) => {
    const subscription = subscribe(name, channel, consumer, messages, bytes, limit)
    to.guard(() => model.subscribed(subscription, subscription.id, name, consumer, messages, bytes, limit))
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
    to.guard(() => model.started(subscription, ranges))
  }

  const unsubscribe = broker.unsubscribe.bind(broker)
  broker.unsubscribe = (subscription, blame) => {
    unsubscribe(subscription, blame)
    to.guard(() => model.unsubscribed(subscription, blame, broker.nowMs))
  }

  const ensure = broker.ensure.bind(broker)
  broker.ensure = (request) => {
    const answer = ensure(request)
    const { id } = broker.queue(request.name)
    to.guard(() => model.ensured(id, answer.queue))
    owed.promise = () =>
      ledger.durable.lastQueueId < id
        ? `queue ${request.name} is said to be there and is not on disk`
        : undefined
    return answer
  }

  const remove = broker.delete.bind(broker)
  broker.delete = (name) => {
    const { id } = broker.queue(name)
    const messages = remove(name)
    to.guard(() => model.deleted(name, messages))
    to.removed(name)
    owed.promise = () =>
      ledger.durable.queues.has(id) ? `queue ${name} is said to be deleted and is on disk` : undefined
    return messages
  }

  const purge = broker.purge.bind(broker)
  broker.purge = (name) => {
    const { id, next } = broker.queue(name)
    const messages = purge(name)
    to.guard(() => model.purged(name, messages))
    to.removed(name)
    owed.promise = () => {
      for (const [offset, { dead }] of ledger.durable.queues.get(id)?.live ?? []) {
        if (offset < next && dead === undefined)
          return `offset ${offset} of ${name} is said to be purged and is on disk`
      }
      return undefined
    }
    return messages
  }

  const info = broker.info.bind(broker)
  broker.info = (name) => {
    const answer = info(name)
    to.guard(() => model.counted(answer))
    return answer
  }

  const list = broker.list.bind(broker)
  broker.list = (after, limit) => {
    const answer = list(after, limit)
    to.guard(() => {
      for (const queue of answer.queues) model.counted(queue)
    })
    return answer
  }

  const tick = broker.tick.bind(broker)
  broker.tick = () => {
    tick()
    to.guard(() => model.ticked(broker.nowMs))
  }
  return owed
}

export function tapSession(
  session: Session,
  broker: Broker,
  conversation: Conversation,
  owed: Owed,
  to: Listening,
): void {
  const deliver = session.deliver.bind(session)
  session.deliver = (subscription, run, firstTag, count, bytes, start, end) => {
    to.guard(() =>
      to.model.dispatched(subscription, run, firstTag, count, bytes.subarray(start, end), broker.nowMs),
    )
    deliver(subscription, run, firstTag, count, bytes, start, end)
  }

  const drained = session.drained.bind(session)
  session.drained = (subscription) => {
    to.guard(() => to.model.drained(subscription))
    drained(subscription)
  }

  const result = session.result.bind(session)
  session.result = (correlation, body) => {
    conversation.promises.push(owed.promise ?? ((): undefined => undefined))
    owed.promise = undefined
    result(correlation, body)
  }
}
