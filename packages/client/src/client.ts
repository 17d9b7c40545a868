/**
 * The client publishes messages, consumes messages and sends requests over one link to the broker. On a new
 * connection, the producer sends its unanswered batches first (see `Link`), and then the consumers subscribe.
 */
import { durationText, isTopicAddress, SluiceError, Timer } from '@sluice/protocol'
import { nextTurn } from './awaiting.js'
import { ClientSession } from './client-session.js'
import type { Connection } from './connection.js'
import { Consumers } from './consumers.js'
import { DeadLetters } from './dead.js'
import { Deadlines } from './deadlines.js'
import { parseDuration, type Duration } from './duration.js'
import { Events, type SluiceEvents } from './events.js'
import { Link } from './link.js'
import type { Message } from './message.js'
import {
  closeTimeoutMs,
  failsOffline,
  workerSettings,
  streamSettings,
  onlyKnown,
  pullSettings,
  queueOf,
  recordOptions,
  SEND_OPTIONS,
  timeoutOf,
  type BatchConsumeOptions,
  type BatchMessage,
  type CallOptions,
  type ConsumeOptions,
  type MessagesOptions,
  type PublishAllOptions,
  type PublishAllResult,
  type PublishOptions,
  type PullOptions,
  type QueueRef,
  type SendOptions,
  type Settings,
} from './options.js'
import { noConnection } from './outcomes.js'
import { Producer } from './producer.js'
import { publishBatchToQueue, publishEach } from './publishing.js'
import { Queues } from './queues.js'
import type { RequestCall } from './replies.js'
import { Requests } from './requests.js'
import { checkBody, type Schema } from './schema.js'
import type { Dispatch, Receipt } from './sending.js'
import { Schedules } from './schedules.js'
import type { MessageIterator } from './stream.js'
import { Groups } from './stream-groups.js'
import { readSettings, Streams, type MessageReader, type ReadOptions } from './streams.js'
import { Subscribers, type SubscribeOptions, type Subscriber } from './subscriber.js'
import { StepDraft, type Transaction } from './transaction.js'
import {
  isTopic,
  publishBatchToTopic,
  publishToTopic,
  Topics,
  type Routed,
  type Topic,
  type TopicBatchOptions,
  type TopicPublishAllOptions,
  type TopicPublishOptions,
} from './topics.js'
import type { Dial } from './transport.js'
import { Turn } from './turn.js'
import type { BatchHandler, Handler, Worker } from './worker.js'

let check: (sluice: Sluice) => void

/** Checks the invariants of a client, for tests. They hold between two turns. @throws Error naming what differs */
export function checkInvariants(sluice: Sluice): void {
  check(sluice)
}

/**
 * A client of one broker. Made by `connect`, or by `createClient` before there is a connection.
 *
 * It keeps one connection. When the connection is lost, the client dials until it succeeds, sends unconfirmed publishes
 * again, and subscribes again. The broker accepts no publish twice. The client ends when `close` is called, or when the
 * broker refuses it permanently (AUTH_FAILED, PROTOCOL_VERSION).
 */
export class Sluice {
  static {
    check = (sluice) => {
      sluice.#producer.invariants()
      sluice.#link.connection?.invariants()
    }
  }

  /** Queues at the broker: create, list, delete, pause, and calls for single messages and consumers. */
  readonly queues: Queues
  /** Streams at the broker: create, list, delete. */
  readonly streams: Streams
  /** Groups of streams at the broker: create, list, move, delete. */
  readonly groups: Groups
  /** Dead letters: list, get, redrive, delete. */
  readonly dead: DeadLetters
  readonly request: RequestCall
  /** Topics: the bindings that route their messages to queues. */
  readonly topics: Topics
  /** Schedules at the broker: create, list, pause, run, delete. */
  readonly schedules: Schedules
  readonly #settings: Settings
  readonly #events = new Events()
  readonly #deadlines = new Deadlines()
  readonly #turn: Turn
  readonly #producer: Producer
  readonly #session: ClientSession
  readonly #consumers: Consumers
  readonly #subscribers: Subscribers
  readonly #requests: Requests
  readonly #link: Link
  /**
   * Whether `connect` is under way. If the client ends during that time, `connect` rejects with the error, and no event
   * is emitted.
   */
  #isConnecting = false
  #closing: Promise<void> | undefined
  #closed: SluiceError | undefined

  /** @internal */
  constructor(settings: Settings, dial: Dial) {
    this.#settings = settings
    this.#turn = new Turn(
      () => this.#producer.flush(this.#link.connection),
      () => this.#link.connection?.flush(),
    )
    this.#producer = new Producer(
      settings,
      this.#deadlines,
      () => this.#turn.schedule(),
      () => this.#turn.sendAhead(),
    )
    const events = this.#events
    const link = new Link(settings, dial, this.#producer, {
      opened: (connection) => this.#opened(connection),
      connected: (event) => events.emit('connected', event),
      disconnected: (event) => events.emit('disconnected', event),
      reconnecting: (event) => events.emit('reconnecting', event),
      notice: (event) => events.emit('notice', event),
      answered: (bytes, start, end) => this.#session.replies.answered(bytes, start, end),
      stray: (error) => events.emit('error', error),
      writable: () => this.#turn.schedule(),
      refused: (error) => this.#shut(error),
    })
    this.#link = link
    this.#deadlines.add((nowMs) => link.connection?.sweep(nowMs) ?? Infinity)
    this.#session = new ClientSession({
      turn: this.#turn,
      deadlines: this.#deadlines,
      timeoutMs: settings.timeoutMs,
      producer: this.#producer,
      events,
      isClosed: () => this.#closed !== undefined,
      connection: () => link.connection,
      renews: (event) => this.#subscribers.renews(event),
    })
    const { replies } = this.#session
    this.request = (queue, body, options) => replies.request(queue, body, options)
    this.#consumers = new Consumers(this.#session, () => link.serving)
    this.#requests = new Requests(this.#session)
    this.queues = new Queues(this.#requests)
    this.streams = new Streams(this.#requests)
    this.groups = new Groups(this.#requests)
    this.dead = new DeadLetters(this.#requests)
    this.topics = new Topics(this.#requests)
    this.schedules = new Schedules(this.#requests, (body, options) => this.#producer.record(body, options))
    this.#subscribers = new Subscribers({
      queues: this.queues,
      topics: this.topics,
      isConnected: () => link.serving !== undefined,
      consume: (ref, options, handler) => this.consume(ref, options, handler),
      resubscribed: (event) => events.emit('resubscribed', event),
      report: (error) => events.emit('error', error),
    })
  }

  /** Whether there is a connection to the broker now. */
  get connected(): boolean {
    return this.#link.connection !== undefined
  }

  /**
   * Calls `listener` for each event of this name, until the returned function is called. If one of the events
   * `waiting`, `handlerError`, `leaseLost`, `missed` and `error` is emitted without a listener, Node prints a warning. Emitting
   * an event never throws, even if a listener fails.
   *
   * @throws SluiceError INVALID_ARGUMENT for an unknown event
   */
  on<Name extends keyof SluiceEvents>(
    name: Name,
    listener: (payload: SluiceEvents[Name]) => void,
  ): () => void {
    return this.#events.on(name, listener)
  }

  /** Removes a listener that `on` added. */
  off<Name extends keyof SluiceEvents>(name: Name, listener: (payload: SluiceEvents[Name]) => void): void {
    this.#events.off(name, listener)
  }

  /**
   * Publishes one message. Resolves when it is durable. Messages published in one turn of the event loop are sent
   * together, but the broker accepts or refuses each message by itself. Beyond `maxInFlight`, a publish waits for its
   * turn; `maxWaitingBytes` limits the memory of the publishes that wait.
   *
   * @param body A `Uint8Array` stays bytes, and a string stays text. Anything else must be plain data: undefined properties
   * are omitted, and `toJSON` is called.
   * @throws SluiceError INVALID_NAME, INVALID_BODY, MESSAGE_TOO_LARGE, QUEUE_NOT_FOUND; for an option INVALID_PRIORITY,
   * INVALID_DELAY, AT_IN_THE_PAST, INVALID_TTL, INVALID_KEY, INVALID_ID, INVALID_HEADERS, OPTION_CONFLICT,
   * INVALID_ARGUMENT; QUEUE_FULL, DEDUP_FULL, DISK_LOW, MEMORY_FULL, TOO_MANY_WAITING, which are `retryable`; OFFLINE;
   * TIMEOUT and ABORTED, with `outcome: 'unknown'` if the message was sent; CLOSED
   * @example
   * const { offset } = await sluice.publish('orders', { total: 12 })
   */
  publish<Input>(
    ref: Topic<Input, unknown>,
    body: NoInfer<Input>,
    options?: TopicPublishOptions,
  ): Promise<Routed>
  publish<Input>(
    ref: QueueRef<Input, unknown>,
    body: NoInfer<Input>,
    options?: PublishOptions,
  ): Promise<Receipt>
  publish(ref: QueueRef | Topic, body: unknown, options?: TopicPublishOptions): Promise<Receipt | Routed> {
    try {
      // The producer has checked the name of each queue in its lanes, so the name is not checked again here.
      if (typeof ref === 'string' && !isTopicAddress(ref)) return this.#publish(ref, body, options)
      if (isTopic(ref))
        return publishToTopic(this.#producer, ref, body, options ?? {}, this.#dispatch(options))
      const { name, schema } = queueOf(ref)
      if (schema !== undefined) return this.#publishChecked(name, schema, body, options)
      return this.#publish(name, body, options)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  #publish(name: string, body: unknown, options: PublishOptions | undefined): Promise<Receipt> {
    const { timeoutMs } = this.#settings
    if (options === undefined) return this.#producer.publish(name, body, undefined, timeoutMs, undefined)
    return this.#producer.publish(
      name,
      body,
      recordOptions(options),
      timeoutOf(options, timeoutMs),
      options.signal,
      this.#mayFailOffline(options, name),
    )
  }

  #dispatch(options: SendOptions = {}, queue?: string): Dispatch {
    return {
      timeoutMs: timeoutOf(options, this.#settings.timeoutMs),
      signal: options.signal,
      failsOffline: this.#mayFailOffline(options, queue),
    }
  }

  /** Whether a call fails if the connection is lost before the call is sent. @throws SluiceError OFFLINE */
  #mayFailOffline(options: SendOptions, queue?: string): boolean {
    if (!failsOffline(options)) return false
    if (this.#link.serving === undefined) throw noConnection().with({ queue })
    return true
  }

  async #publishChecked(
    name: string,
    schema: Schema,
    body: unknown,
    options: PublishOptions | undefined,
  ): Promise<Receipt> {
    await checkBody(schema, body, 'body')
    return this.#publish(name, body, options)
  }

  /**
   * Publishes messages to one queue: either all messages are accepted or none of them. Resolves with their receipts, in
   * the order of the messages.
   *
   * @throws SluiceError BATCH_TOO_LARGE above 1 MiB or 65,535 messages; otherwise as `publish`
   * @example
   * await sluice.publishBatch('orders', [{ body: { total: 12 }, key: 'a' }, { body: { total: 7 } }])
   */
  publishBatch<Input>(
    ref: Topic<Input, unknown>,
    messages: readonly BatchMessage<NoInfer<Input>>[],
    options?: TopicBatchOptions,
  ): Promise<Routed>
  publishBatch<Input>(
    ref: QueueRef<Input, unknown>,
    messages: readonly BatchMessage<NoInfer<Input>>[],
    options?: SendOptions,
  ): Promise<Receipt[]>
  async publishBatch(
    ref: QueueRef | Topic,
    messages: readonly BatchMessage[],
    options: TopicBatchOptions = {},
  ): Promise<Receipt[] | Routed> {
    if (!Array.isArray(messages)) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        '`publishBatch` takes an array of messages; `publishAll` takes any iterable.',
      )
    }
    if (isTopic(ref))
      return publishBatchToTopic(this.#producer, ref, messages, options, this.#dispatch(options))
    const to = queueOf(ref)
    return publishBatchToQueue(this.#producer, to, messages, options, () => this.#dispatch(options, to.name))
  }

  /**
   * Publishes every message that an iterable or async iterable yields, each by itself. Resolves when the last one is
   * durable. `publishAll` reads only while fewer than `concurrency` messages are unconfirmed, so memory is bounded for
   * any number of messages. A message that is refused because the broker is full (QUEUE_FULL, DEDUP_FULL, DISK_LOW,
   * MEMORY_FULL) is published again after a pause, until it is accepted. Refused messages keep their order, but
   * messages that were already sent after a refused message may be accepted before it.
   *
   * Do not change a message after it was yielded: it may be published again.
   *
   * @throws SluiceError As `publish`, for the first message that fails for any other reason: nothing more is read, and
   * the call rejects once no message is unconfirmed. ABORTED when `signal` is aborted. The call also rejects with an
   * error that the iterable or `onProgress` throws.
   * @example
   * const { published } = await sluice.publishAll('orders', orders.map((body) => ({ body })))
   */
  publishAll<Input>(
    ref: Topic<Input, unknown>,
    messages: Iterable<BatchMessage<NoInfer<Input>>> | AsyncIterable<BatchMessage<NoInfer<Input>>>,
    options?: TopicPublishAllOptions,
  ): Promise<PublishAllResult>
  publishAll<Input>(
    ref: QueueRef<Input, unknown>,
    messages: Iterable<BatchMessage<NoInfer<Input>>> | AsyncIterable<BatchMessage<NoInfer<Input>>>,
    options?: PublishAllOptions,
  ): Promise<PublishAllResult>
  async publishAll(
    ref: QueueRef | Topic,
    messages: Iterable<BatchMessage> | AsyncIterable<BatchMessage>,
    options: TopicPublishAllOptions = {},
  ): Promise<PublishAllResult> {
    return publishEach(this.#producer, ref, messages, options, this.#settings)
  }

  /**
   * Acknowledges messages and publishes messages to any queues and topics, all or nothing. `fill` adds the
   * acknowledgements and publishes, which are sent after it has ended. Resolves when all of them are durable, with the
   * receipts of the publishes to queues in order.
   *
   * The acknowledged messages count as settled when the step is sent. A refused step has no effect: its messages can be
   * settled again if their leases are not lost, and if a handler throws, its message is delivered again as usual.
   *
   * @param fill May be async. If it throws, the step has no effect, and `atomic` rejects with what it threw.
   * @throws SluiceError LEASE_LOST, ALREADY_SETTLED for a message; QUEUE_NOT_FOUND, QUEUE_FULL, DEDUP_FULL, DISK_LOW
   * for a publish; UNROUTABLE for a topic; TRANSACTION_TOO_LARGE; TIMEOUT and ABORTED, with `outcome: 'unknown'` if the step was sent; CLOSED;
   * otherwise as `publish`
   * @example
   * sluice.consume('orders', async (message) => {
   * await sluice.atomic((tx) => {
   * tx.ack(message)
   * tx.publish('shipments', { order: message.body })
   * })
   * })
   */
  async atomic(fill: (tx: Transaction) => unknown, options: SendOptions = {}): Promise<Receipt[]> {
    onlyKnown('atomic', options, SEND_OPTIONS)
    const timeoutMs = timeoutOf(options, this.#settings.timeoutMs)
    if (typeof fill !== 'function')
      throw new SluiceError(
        'INVALID_ARGUMENT',
        '`atomic` needs a function that adds acknowledgements and publishes.',
      )
    const producer = this.#producer
    const draft = new StepDraft(this.#session, (body, record) => producer.record(body, record))
    let receipts: Promise<Receipt[]>
    try {
      await fill(draft)
      const step = await draft.complete()
      if (step === undefined) return []
      receipts = producer.perform(step, timeoutMs, options.signal, this.#mayFailOffline(options))
    } catch (error) {
      draft.abandon()
      throw error
    }
    // From here on, the step reopens its messages if it is refused.
    return receipts
  }

  /**
   * Calls `handler` for each message of the queue, or, with `batch`, for several at a time, until the worker is closed.
   *
   * If the queue has a schema, the body is the output of the schema. A message whose body does not match becomes a dead
   * letter, and no handler gets it.
   *
   * @param options `concurrency`, default 1; `prefetch`, default twice the number of messages that all handlers can
   * have at once; `prefetchBytes`, default 16 MiB; `processingTimeout`; `ordering: 'key'`; `batch`; `missing`;
   * `signal` closes the worker. If the queue does not exist or is deleted, the client emits `waiting` and the worker
   * waits for the queue; with `missing: 'fail'` the worker ends, and `worker.closed` rejects.
   * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT, OPTION_CONFLICT, CLOSED
   * @example
   * const worker = sluice.consume('orders', { concurrency: 16 }, async (message) => ship(message.body))
   * @example
   * sluice.consume('events', { batch: { size: 500, wait: '200ms' } }, async (messages) => {
   * await insert(messages.map(({ body }) => body))
   * })
   */
  consume<Output>(ref: QueueRef<unknown, Output>, handler: Handler<Output>): Worker
  consume<Output>(
    ref: QueueRef<unknown, Output>,
    options: BatchConsumeOptions,
    handler: BatchHandler<Output>,
  ): Worker
  consume<Output>(ref: QueueRef<unknown, Output>, options: ConsumeOptions, handler: Handler<Output>): Worker
  consume<Output>(
    ref: QueueRef<unknown, Output>,
    second: ConsumeOptions | BatchConsumeOptions | Handler<Output>,
    third?: Handler<Output> | BatchHandler<Output>,
  ): Worker {
    const options = typeof second === 'function' ? {} : second
    const handler = typeof second === 'function' ? second : third
    if (typeof handler !== 'function') {
      throw new SluiceError('INVALID_ARGUMENT', '`consume` needs a handler function.')
    }
    const to = queueOf(ref)
    const settings = workerSettings(options)
    this.#refuseWhenClosed()
    return this.#consumers.work(to, settings, handler, options.signal)
  }

  /**
   * Calls `handler` for each message that is published to a topic that matches the pattern, from now on. The broker keeps
   * the messages in a temporary queue of this subscriber, and they are settled as in `consume`. If the queue is gone after a
   * long time without a connection, it is made again, and the client emits `resubscribed`.
   *
   * @param options Those of `consume`, except `batch` and `missing`; `headers`; `expires`, default 1 min.
   * @throws SluiceError INVALID_PATTERN, INVALID_ARGUMENT, CLOSED
   * @example
   * const subscriber = sluice.subscribe('orders.#', async (message) => update(message.body))
   * await subscriber.ready
   */
  subscribe<Output>(
    pattern: string | Topic<unknown, Output>,
    handler: Handler<Output>,
    options: SubscribeOptions = {},
  ): Subscriber {
    if (typeof handler !== 'function')
      throw new SluiceError('INVALID_ARGUMENT', '`subscribe` needs a handler function.')
    this.#refuseWhenClosed()
    return this.#subscribers.add(pattern, handler as Handler, options)
  }

  /**
   * Iterates over the messages of the queue; the loop settles each message by calling its methods. Leaving the loop
   * releases all messages that were not yielded. If the queue has a schema, messages that do not match it become dead
   * letters and are not yielded.
   *
   * @param options `prefetch`, default 10; `prefetchBytes`, default 16 MiB; `processingTimeout`; `missing`, as for `consume`;
   * `signal` ends the iteration.
   * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT, CLOSED; while iterating CONSUMER_CLOSED, ABORTED, and with
   * `missing: 'fail'` QUEUE_NOT_FOUND, QUEUE_DELETED
   * @example
   * for await (const message of sluice.messages('orders', { prefetch: 10 })) await message.ack()
   */
  messages<Output>(ref: QueueRef<unknown, Output>, options: MessagesOptions = {}): MessageIterator<Output> {
    const to = queueOf(ref)
    const settings = streamSettings(options)
    this.#refuseWhenClosed()
    return this.#consumers.iterate(to, settings, options.signal)
  }

  /**
   * Pulls up to `max` messages. Resolves as soon as a message is ready, with all messages that are ready at that time,
   * or with an empty array after `wait`. If the queue has a schema, messages that do not match it become dead letters
   * and are not returned.
   *
   * @param options `max`, default 1; `wait`, default 0; `processingTimeout`; `signal`. The deadline is `wait` plus `timeout`.
   * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT, QUEUE_NOT_FOUND, TIMEOUT, ABORTED, CLOSED
   * @example
   * for (const message of await sluice.pull('orders', { max: 10, wait: '20s' })) await message.ack()
   */
  async pull<Output>(ref: QueueRef<unknown, Output>, options: PullOptions = {}): Promise<Message<Output>[]> {
    const to = queueOf(ref)
    const settings = pullSettings(options, this.#settings.timeoutMs)
    this.#refuseWhenClosed()
    return this.#consumers.pull(to, settings)
  }

  /**
   * Iterates over the messages of a stream in the order of their offsets. Nothing is settled, and other readers and
   * consumers are not affected. A queue with `retain` can be read too: its acknowledged messages, without `follow`.
   *
   * @param options `from`, default `'first'`; `follow`, default false; `filter`; `prefetch`, default 4,096;
   * `prefetchBytes`, default 16 MiB; `signal`.
   * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT, CLOSED; while iterating QUEUE_NOT_FOUND, QUEUE_DELETED,
   * MESSAGE_NOT_FOUND for an offset after the end, OPTION_CONFLICT, ABORTED, and INVALID_BODY for a body that does not match
   * the schema
   * @example
   * for await (const { offset, body } of sluice.read('clicks', { from: 'first', follow: true })) console.log(offset, body)
   */
  read<Output>(ref: QueueRef<unknown, Output>, options: ReadOptions = {}): MessageReader<Output> {
    const to = queueOf(ref)
    const settings = readSettings(options)
    this.#refuseWhenClosed()
    return this.#consumers.read(to, settings, options.signal, (event) => this.#events.emit('missed', event))
  }

  /**
   * Closes all workers and iterators, waits for running handlers and unconfirmed publishes, and then disconnects.
   * Messages without a handler return to their queue. A second call waits for the close that is already under way.
   *
   * `close` does not wait for messages that `messages` yielded or `pull` returned. These messages can be settled until
   * the client is closed. After that they return to their queue, and settling them rejects with LEASE_LOST.
   *
   * `close` does not wait for a handler that awaits `close` itself. Unless that handler has settled its message, the
   * message returns to the queue.
   *
   * @param options `timeout`, default: the timeout of the client. When it passes, the client closes without waiting any
   * longer, and unconfirmed publishes reject with CLOSED. With 0 the client closes at once, without an error.
   * @throws SluiceError TIMEOUT, INVALID_ARGUMENT
   */
  async close(options: { readonly timeout?: Duration } = {}): Promise<void> {
    const timeoutMs = closeTimeoutMs(options, this.#settings.timeoutMs)
    if (this.#closing === undefined) {
      this.#closing = this.#closed === undefined ? this.#close(timeoutMs) : Promise.resolve()
      this.#closing.catch(() => {})
    }
    await this.#ending(this.#closing)
  }

  // This runs in each call of `close`, because only the stack of a call shows which function awaits it.
  async #ending(closing: Promise<void>): Promise<void> {
    await nextTurn()
    for (const worker of this.#consumers.workers) worker.excuse()
    try {
      await closing
    } catch (error) {
      throw (error as SluiceError).with({})
    }
  }

  async #close(timeoutMs: number): Promise<void> {
    if (timeoutMs === 0) {
      for (const worker of this.#consumers.workers) void worker.close({ timeout: 0 })
      // Sends the settles that are gathered so far.
      this.#turn.flushAll()
      this.#shut(new SluiceError('CLOSED', 'The client was closed.'))
      return
    }
    let timer: Timer | undefined
    const overdue = new Promise<boolean>((resolve) => {
      timer = new Timer(() => resolve(false), timeoutMs)
    })
    const { workers } = this.#consumers
    const inTime = await Promise.race([this.#drain(timeoutMs), overdue])
    timer?.cancel()
    const handlers = workers.reduce((sum, worker) => sum + worker.runningHandlers, 0)
    const publishes = this.#producer.pending
    this.#shut(new SluiceError('CLOSED', 'The client was closed.'))
    if (inTime) return
    throw new SluiceError(
      'TIMEOUT',
      `The client was closed after ${durationText(timeoutMs)}, with ${handlers} handlers running and ${publishes} publishes unconfirmed.`,
    )
  }

  async #drain(timeoutMs: number): Promise<boolean> {
    const closing = [
      ...this.#subscribers.close(timeoutMs),
      ...this.#consumers.close(new SluiceError('CLOSED', 'The client was closed.'), timeoutMs),
    ]
    const outcomes = await Promise.allSettled(closing)
    // This also sends settles outside of workers, such as the settles of pulled messages.
    this.#turn.flushAll()
    await Promise.all([this.#producer.idle(), this.#link.connection?.idle()])
    return outcomes.every(({ status }) => status === 'fulfilled')
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #refuseWhenClosed(): void {
    if (this.#closed !== undefined) throw this.#closed.with({})
    if (this.#closing !== undefined) throw new SluiceError('CLOSED', 'The client was closed.')
  }

  /**
   * Resolves when there is a connection to the broker. The client dials whether or not this is called.
   *
   * @param options `timeout`, default none: rejects with UNREACHABLE when it passes, while the client continues to dial.
   * `signal` ends the wait with ABORTED.
   * @throws SluiceError AUTH_FAILED, PROTOCOL_VERSION, which end the client; UNREACHABLE, ABORTED, CLOSED
   * @example
   * const sluice = createClient()
   * sluice.on('reconnecting', ({ error }) => console.log(error.message))
   * await sluice.ready()
   */
  async ready(options: CallOptions = {}): Promise<void> {
    onlyKnown('ready', options, ['timeout', 'signal'])
    const { timeout, signal } = options
    const timeoutMs = timeout === undefined ? Infinity : parseDuration(timeout, 'timeout')
    this.#refuseWhenClosed()
    await this.#link.untilOpen(timeoutMs, signal)
  }

  /** Starts to dial. @internal */
  start(): void {
    this.#link.start()
  }

  /** Dials until there is a connection, for `connectTimeoutMs` at most. Without one, the client is closed. @internal */
  async open(signal: AbortSignal | undefined): Promise<void> {
    this.#isConnecting = true
    try {
      await this.#link.open(signal)
    } catch (error) {
      this.#shut(error as SluiceError)
      throw error
    } finally {
      this.#isConnecting = false
    }
  }

  // Attaches everything that waited for a connection.
  #opened(connection: Connection): void {
    this.#session.replies.attach(connection)
    this.#consumers.attach(connection)
    this.#requests.attach(connection)
    this.#turn.schedule()
  }

  /** Ends the client: it no longer dials, accepts calls, or waits. */
  #shut(error: SluiceError): void {
    if (this.#closed !== undefined) return
    this.#closed = error
    const end = this.#link.stop()
    this.#consumers.fail(error)
    this.#producer.close(error)
    this.#requests.close(error)
    this.#session.replies.close(error)
    this.#deadlines.stop()
    end(error)
    if (error.code !== 'CLOSED' && !this.#isConnecting) this.#events.emit('error', error)
  }
}
