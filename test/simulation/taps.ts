/**
 * Observes a broker for the model and the ledger: every command with its answer, the messages that each queue finds due
 * or expired, the moves of dead messages, and every appended entry. It changes nothing.
 */
import {
  OP,
  SluiceError,
  readU64,
  type Claim,
  type Granted,
  type Loss,
  type LostRange,
  type MessageRef,
  type Placed,
  type QueueInfo,
  type QueueOptions,
  type RescheduleRequest,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { AtomicStep, EndReason } from '../../packages/server/src/broker/commands.js'
import type { Observer } from '../../packages/server/src/broker/observer.js'
import type { Log, LogBounds, LogEntry, LogUsage } from '../../packages/server/src/log/log.js'
import type { Delivery, Queue, Subscription } from '../../packages/server/src/queue/index.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { Producer } from '../../packages/server/src/state/producers.js'
import { compareCounts } from './agreement.js'
import type { Attempts } from './attempts.js'
import type { EntrySummary, LedgerState } from './ledger.js'
import type { Model } from './model.js'
import { Violation } from './trace.js'
import type { Conversation } from './witness.js'

/** The receiver of the observations. `guard` keeps errors of the receiver's checks out of the broker. */
export interface Listening {
  readonly model: Model
  readonly attempts: Attempts
  /** The durable state of the log. */
  readonly durable: LedgerState
  guard(work: () => void): void
  /** Called when the queue is being purged or deleted. */
  removed(queue: string): void
}

/** The receiver of the log's observations. */
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
  readonly counts = { coldReads: 0, truncations: 0, checkpoints: 0, largeEntries: 0 }
  bounds: LogBounds | undefined

  constructor(inner: Log, to: LogListening) {
    this.inner = inner
    this.#to = to
  }

  get segmentBytes(): number {
    return this.inner.segmentBytes
  }

  get entryBytesMax(): number {
    return this.inner.entryBytesMax
  }

  async open(): Promise<LogBounds> {
    this.bounds = await this.inner.open()
    this.#to.guard(() => this.#to.ledger.recovered(this.bounds!.nextLsn - 1))
    return this.bounds
  }

  read(position: number): AsyncIterable<LogEntry> {
    return this.inner.read(position)
  }

  hasRoomFor(bytes: number, nowMs: number): boolean {
    return this.inner.hasRoomFor(bytes, nowMs)
  }

  room(): number {
    return this.inner.room()
  }

  stuck(): Promise<void> {
    return this.inner.stuck()
  }

  async append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    this.#to.guard(() => {
      if (entry.length > this.entryBytesMax)
        throw new Violation(
          'entryBytesMax',
          `entry ${lsn} has ${entry.length} of ${this.entryBytesMax} bytes`,
        )
      this.counts.largeEntries += entry.length > this.entryBytesMax / 2 ? 1 : 0
      const { acked, atomics } = this.#to.ledger.begin(entry, position)
      for (const { identity, number } of atomics)
        this.#to.model.publishing.stepWritten(identity, number, acked)
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

/**
 * Forwards the observations of a broker once `attach` has been called. The earlier start of the broker is checked by its
 * result instead.
 */
export class Taps implements Observer {
  /** The promise of the next RESULT: what must be on disk when the RESULT is sent. */
  promise: (() => string | undefined) | undefined
  #broker: Broker | undefined
  #to: Listening | undefined
  /** Messages of a queue that is being purged. */
  #alive: readonly { readonly offset: number }[] = []

  attach(broker: Broker, to: Listening): void {
    this.#broker = broker
    this.#to = to
  }

  #tell(tell: (model: Model, nowMs: number, to: Listening) => void): void {
    const to = this.#to
    if (to !== undefined) to.guard(() => tell(to.model, this.#broker!.turn.nowMs, to))
  }

  published(
    producer: Producer,
    bytes: Uint8Array,
    at: number,
    end: number,
    unanswered: number,
    answer: Placed | SluiceError,
  ): void {
    this.#tell((model, nowMs, { attempts }) => {
      const batch = new Uint8Array(bytes.subarray(at, end))
      const attempt = attempts.matching(producer.identity, readU64(batch, 24), batch)
      model.publishing.published(attempt, unanswered, answer, nowMs)
    })
  }

  stepped(
    producer: Producer,
    { number, crc, acks, batches }: AtomicStep,
    unanswered: number,
    answer: readonly Placed[] | SluiceError,
  ): void {
    this.#tell((model, nowMs, { attempts }) => {
      const found = batches.map(({ bytes, at, end }) =>
        attempts.matching(producer.identity, number, new Uint8Array(bytes.subarray(at, end))),
      )
      const named = acks.map(({ subscription: key, firstTag, count }) => ({ key, firstTag, count }))
      model.publishing.stepped(producer.identity, number, crc, named, found, unanswered, answer, nowMs)
    })
  }

  detached({ connections, id, identity }: Producer): void {
    if (connections === 0 && id === 0) this.#tell((model) => model.publishing.results.forgotten(identity))
  }

  subscribed(subscription: Subscription, messages: number, bytes: number, limit: number | undefined): void {
    const { id, queue, consumer, processingTimeoutMs } = subscription
    this.#tell((model) =>
      model.consuming.subscribed(
        subscription,
        id,
        queue.name,
        consumer,
        messages,
        bytes,
        limit,
        processingTimeoutMs,
      ),
    )
  }

  credited(
    subscription: Subscription,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void {
    this.#tell((model) => model.consuming.credited(subscription, messages, bytes, limit, drain))
  }

  delivered(subscription: Subscription, { run, firstTag, count, bytes, start, end }: Delivery): void {
    this.#tell((model, nowMs) =>
      model.consuming.dispatched(subscription, run, firstTag, count, bytes.subarray(start, end), nowMs),
    )
  }

  settled(subscription: Subscription, items: readonly SettleItem[], stale: readonly TagRange[]): void {
    this.#tell((model, nowMs) => model.consuming.settled(subscription, items, stale, nowMs))
  }

  started(subscription: Subscription, ranges: readonly TagRange[]): void {
    this.#tell((model, nowMs) => model.consuming.started(subscription, ranges, nowMs))
  }

  starting(subscription: Subscription, ranges: readonly TagRange[]): void {
    this.#tell((model) => model.consuming.starting(subscription, ranges))
  }

  extended(
    subscription: Subscription,
    firstTag: number,
    count: number,
    durationMs: number,
    stale: readonly TagRange[],
  ): void {
    this.#tell((model, nowMs) =>
      model.consuming.extended(subscription, firstTag, count, durationMs, stale, nowMs),
    )
  }

  claimed(subscription: Subscription, claims: readonly Claim[], granted: readonly Granted[]): void {
    const counted = (tag: number): number => subscription.bytesOf(tag)
    this.#tell((model, nowMs) => model.consuming.claimed(subscription, claims, granted, counted, nowMs))
  }

  lost(subscription: Subscription, _reason: Loss, ranges: readonly LostRange[]): void {
    this.#tell((model, nowMs) => model.consuming.lost(subscription, ranges, nowMs))
  }

  drained(subscription: Subscription): void {
    this.#tell((model) => model.consuming.drained(subscription))
  }

  unsubscribed(subscription: Subscription, endReason: EndReason, isStopping: boolean): void {
    this.#tell((model, nowMs) => model.consuming.unsubscribed(subscription, endReason, isStopping, nowMs))
  }

  ensured({ id, name }: Queue, info: QueueInfo): void {
    this.#tell((model, nowMs) => model.ensured(id, info, nowMs))
    this.#promise(({ durable }) =>
      durable.lastQueueId < id ? `queue ${name} is reported as created but is not on disk` : undefined,
    )
  }

  optionsChanged({ id }: Queue, options: QueueOptions): void {
    this.#tell((model, nowMs) => model.changed(id, options, nowMs))
  }

  setPaused({ name }: Queue, paused: boolean, changed: boolean): void {
    this.#tell((model) => model.setPaused(name, paused, changed))
  }

  deleted({ id, name }: Queue, messages: number): void {
    this.#tell((model) => model.deleted(name, messages))
    this.#to?.removed(name)
    this.#promise(({ durable }) =>
      durable.queues.has(id) ? `queue ${name} is reported as deleted but is on disk` : undefined,
    )
  }

  purging({ name }: Queue): void {
    const messages = this.#to?.model.state.names.get(name)?.live.values() ?? []
    this.#alive = [...messages].filter(({ state }) => state !== 'dead')
    this.#tell((model) => model.consuming.purging())
  }

  purged({ id, name }: Queue, messages: number): void {
    this.#tell((model) => model.purged(name, messages))
    this.#to?.removed(name)
    const alive = this.#alive
    this.#promise(({ durable }) => {
      const saved = durable.queues.get(id)
      for (const { offset } of alive)
        if (saved?.live.has(offset) === true)
          return `offset ${offset} of ${name} is reported as purged but is on disk`
      return undefined
    })
  }

  counted(info: QueueInfo): void {
    this.#tell((model, nowMs) => compareCounts(model.state.named(info.name), info, nowMs))
  }

  cancelled(ref: MessageRef, answer: { readonly offset: number } | SluiceError): void {
    this.#tell((model, nowMs) => model.cancelled(ref, answer, nowMs))
    if (answer instanceof SluiceError || this.#broker === undefined) return
    const { id } = this.#broker.catalog.queue(ref.name)
    this.#promise(({ durable }) =>
      durable.queues.get(id)?.live.has(answer.offset) === true
        ? `offset ${answer.offset} of ${ref.name} is reported as cancelled but is on disk`
        : undefined,
    )
  }

  rescheduled(
    request: RescheduleRequest,
    answer: { readonly offset: number; readonly dueMs: number } | SluiceError,
  ): void {
    this.#tell((model, nowMs) => model.rescheduled(request, answer, nowMs))
  }

  moved(
    { id }: Queue,
    offset: number,
    isRedrive: boolean,
    target: Queue,
    targetOffset: number,
    reason: string,
  ): void {
    this.#tell((model, nowMs) =>
      model.moved(id, offset, isRedrive, { id: target.id, base: targetOffset }, reason, nowMs),
    )
  }

  redriven({ id }: Queue, offset: number): void {
    this.#tell((model, nowMs) => model.redriven(id, offset, nowMs))
  }

  discarded({ id }: Queue, offset: number): void {
    this.#tell((model) => model.discarded(id, offset))
  }

  looked({ id }: Queue): void {
    this.#tell((model, nowMs) => model.looked(id, nowMs))
  }

  caughtUp({ id, hasMoreExpired }: Queue): void {
    this.#tell((model, nowMs) => model.settledTime(id, hasMoreExpired, nowMs))
  }

  becameReady({ id }: Queue, offset: number): void {
    this.#tell((model) => model.becameReady(id, offset))
  }

  expired({ id }: Queue, offset: number): void {
    this.#tell((model, nowMs) => model.expired(id, offset, nowMs))
  }

  #promise(broken: (to: Listening) => string | undefined): void {
    const to = this.#to
    if (to !== undefined) this.promise = () => broken(to)
  }

  /** Records the promise of each RESULT of the session. */
  tapAnswers(session: Session, conversation: Conversation): void {
    const answer = session.answer.bind(session)
    session.answer = (correlation, given) => {
      if (given.opcode === OP.RESULT)
        conversation.promises.push({ correlation, broken: this.promise ?? ((): undefined => undefined) })
      this.promise = undefined
      answer(correlation, given)
    }
  }
}
