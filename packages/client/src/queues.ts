/** Queues at the broker: definition, operation, and operator calls for single messages and consumers. */
import {
  HISTORY_EVENTS,
  LIMITS,
  OP,
  SluiceError,
  type ConsumerInfo as WireConsumerInfo,
  type HistoryEventName,
  type MessageState,
  type QueueInfo as WireQueueInfo,
  type QueueOptionName,
} from '@sluice/protocol'
import { durationMs, type Duration } from './duration.js'
import { explanationOf, type Explanation } from './explanation.js'
import { onlyKnown, queueOf, timeMs, whole, type CallOptions, type QueueRef } from './options.js'
import { settingsOf, wireOptions } from './option-paths.js'
import { messagesAnswer, type MessagePage } from './peeked.js'
import { RESULT, type Body, type Repeat, type Requests } from './requests.js'
import {
  CALL_OPTIONS,
  FILTER_FIELDS,
  cutShort,
  filterField,
  malformed,
  messagesWere,
  refFields,
  walk,
  withoutUndefined,
  type MessageFilter,
  type MessageRef,
  type Pace,
  type SoFar,
  type Step,
} from './selection.js'

/** Options of a queue. An option that is not set keeps its value, or gets its default when the queue is created. */
export interface QueueOptions {
  /** Number of failed attempts after which a message is dead, 1 to 65,535, or `'unlimited'`. Default 10. */
  readonly maxDeliveries?: number | 'unlimited'
  /** Delay before the second attempt, doubled for each further attempt up to `max`. Default: `initial` 1 s, `max` 5 min. */
  readonly retry?: { readonly initial?: Duration; readonly max?: Duration }
  /** How long a message may be handled before its lease is lost and it is delivered again, from 100 ms. Default 30 min. */
  readonly processingTimeout?: Duration
  /** Time to live of messages published without `ttl`; 0 means that they do not expire. Default 0. */
  readonly ttl?: Duration
  /** Maximum number of messages of one key that are leased at the same time, 1 to 65,535. Default 1. */
  readonly keyConcurrency?: number
  /**
   * Whether a failed message blocks its key until the message is done (`'block'`), or later messages of the key pass
   * it (`'skip'`). Default `'block'`.
   */
  readonly onFail?: 'block' | 'skip'
  /**
   * How long an `id` is remembered. `'window'`: for `dedupWindow`. `'pending'`: as long as its message is scheduled,
   * ready, leased or waiting for a retry. Cannot be changed once the queue exists. Default `'window'`.
   */
  readonly unique?: 'window' | 'pending'
  /** How long an id is remembered after its message was accepted; 0 means not at all. Default 10 min. */
  readonly dedupWindow?: Duration
  /**
   * Maximum number of ids that are remembered; when it is reached, messages with a new id are refused with DEDUP_FULL.
   * Default 1,000,000.
   */
  readonly dedupMaxIds?: number
  /** Maximum number of messages that are scheduled, ready or leased; 0 means no limit. Default 0. */
  readonly maxMessages?: number
  /** Maximum total size of the messages that are scheduled, ready or leased, in bytes; 0 means no limit. Default 0. */
  readonly maxBytes?: number
  /**
   * What happens at `maxMessages` or `maxBytes`. `'reject'`: new messages are refused with QUEUE_FULL. `'drop-oldest'`:
   * the oldest message of the lowest priority is dropped to make room. `'dead-letter'`: that message becomes a dead
   * letter instead. Default `'reject'`.
   */
  readonly overflow?: 'reject' | 'drop-oldest' | 'dead-letter'
  /** Queue to which dead messages are moved; null means that they stay in their queue. Default null. */
  readonly deadLetter?: QueueRef | null
  /**
   * Whether only one consumer at a time gets messages; another consumer takes over when the current one leaves or is
   * idle. Default false.
   */
  readonly single?: boolean
  /** Keeps acknowledged messages for `replay`: up to this age, up to this number of bytes, or both; 0 means not set. Default: none are kept. */
  readonly retain?: { readonly age?: Duration; readonly bytes?: number }
  /**
   * Deletes the queue, with its messages, after it has had no consumer and no call for this long, from 1 s; 0 means never.
   * Default 0.
   */
  readonly expires?: Duration
  /**
   * Maximum rate at which messages of the queue are delivered, to all consumers together, and at most `messages` in one
   * burst. Deliveries after a retry or a release count too. null means no limit. Default null.
   */
  readonly rate?: RateLimit | null
  /**
   * Maximum rate at which messages of one key are delivered. A key at its limit does not delay other keys. null means no
   * limit. Default null.
   */
  readonly keyRate?: RateLimit | null
}

/** A number of messages, 1 to 1,000,000, and the period for which it counts, 1 ms to 30 days. Default of `per`: 1 s. */
export interface RateLimit {
  readonly messages: number
  readonly per?: Duration
}

/** Options of `queues.ensure`. */
export interface EnsureOptions extends QueueOptions {
  /** Changes the options of a queue that exists, instead of rejecting with QUEUE_CONFLICT. Default false. */
  readonly update?: boolean
}

/** All options of a queue. Durations are in milliseconds, sizes in bytes; 0 has the meaning that `QueueOptions` gives. */
export interface QueueSettings {
  readonly maxDeliveries: number | 'unlimited'
  readonly retry: { readonly initial: number; readonly max: number }
  readonly processingTimeout: number
  readonly ttl: number
  readonly keyConcurrency: number
  readonly onFail: 'block' | 'skip'
  readonly unique: 'window' | 'pending'
  readonly dedupWindow: number
  readonly dedupMaxIds: number
  readonly maxMessages: number
  readonly maxBytes: number
  readonly overflow: 'reject' | 'drop-oldest' | 'dead-letter'
  /** Name of the queue to which dead messages are moved; null means that they stay in their queue. */
  readonly deadLetter: string | null
  readonly single: boolean
  readonly retain: { readonly age: number; readonly bytes: number }
  readonly expires: number
  readonly rate: { readonly messages: number; readonly per: number } | null
  readonly keyRate: { readonly messages: number; readonly per: number } | null
}

/**
 * The state of a queue at the time of the call. Counts are numbers of messages, except `consumers`; fields that end in
 * `Ms` are durations.
 */
export interface QueueInfo extends Omit<WireQueueInfo, 'options' | 'createdAtMs' | 'rateUntilMs'> {
  readonly options: QueueSettings
  readonly createdAt: Date
  /** If the queue is at its `rate`: when the next message may be delivered; otherwise null. */
  readonly rateUntil: Date | null
}

/** A consumer of a queue, its credit, and its unsettled messages. */
export interface ConsumerInfo extends Omit<WireConsumerInfo, 'sinceMs' | 'oldestLeaseMs'> {
  readonly subscribedAt: Date
  /** When its oldest unsettled message was delivered; null if it has none. */
  readonly oldestLeaseAt: Date | null
}

/** Options of `queues.peek`. */
export interface PeekOptions extends MessageFilter {
  /** Only messages in this state. Default: any state. */
  readonly state?: MessageState
  /** Offset at which the page begins. Default 0. */
  readonly from?: number
  /** Maximum number of messages in the page, 1 to 1,000. Default 1,000; large messages make the page shorter. */
  readonly limit?: number
}

/** Options of `queues.replay`. */
export interface ReplayOptions extends MessageFilter, Pace {
  /** Offset at which the replay starts, or the earliest time of publishing. Default: the oldest message that is kept. */
  readonly from?: number | Date
  /** Only messages published before this time. Default: now. */
  readonly until?: Date
  /** Queue or stream to which the copies are published. Default: the same one. */
  readonly to?: QueueRef
  /** Continues where an earlier call with the same options ended: `progress.cursor` of its error. */
  readonly cursor?: string
  /** Publishes nothing, and counts the messages that match. Default false. */
  readonly dryRun?: boolean
}

/**
 * Result of a replay. With `dryRun` nothing is published, and `matched` is the number of messages that would be
 * published.
 */
export interface Replayed {
  /** Messages selected. */
  readonly matched: number
  /** Number of selected messages that were published again. */
  readonly replayed: number
}

/** An event of a message. */
export interface HistoryEvent {
  readonly event: HistoryEventName
  readonly at: Date
  /** Number of attempts so far, for events that record it. */
  readonly attempts?: number
  /** When the message is due, for events that record it. */
  readonly due?: Date
  /** The error, the queue to which the message was moved, or the client that consumed or redrove the message. */
  readonly text?: string
}

/** What happened to a message, oldest first. */
export interface History {
  readonly events: HistoryEvent[]
  /** False if earlier events are no longer in the log. */
  readonly complete: boolean
}

/** When a message is due: after a delay from now, or at a time. A number in `at` is milliseconds since the epoch. */
export type Due = { readonly delay: Duration } | { readonly at: Date | number }

/**
 * `sluice.queues`. Every call may reject with INVALID_NAME, TIMEOUT, ABORTED or CLOSED, besides the errors that its own
 * description names.
 */
export class Queues {
  readonly #requests: Requests

  /** @internal */
  constructor(requests: Requests) {
    this.#requests = requests
  }

  /**
   * Creates the queue if it does not exist. If it exists, only the options that are set are compared with its options.
   *
   * @throws SluiceError QUEUE_CONFLICT when the queue exists with other options and `update` is not true; INVALID_OPTION naming
   * the option; OPTION_CONFLICT, OPTION_FIXED, DEAD_LETTER_CYCLE, QUEUE_NOT_FOUND of the `deadLetter` queue,
   * TOO_MANY_QUEUES
   * @example
   * await sluice.queues.ensure('orders', { maxDeliveries: 5, retry: { initial: '1s', max: '1m' }, deadLetter: 'failed' })
   */
  async ensure(
    queue: QueueRef,
    options: EnsureOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly created: boolean; readonly queue: QueueInfo }> {
    const { name } = queueOf(queue)
    const { update, ...named } = options
    const body = withoutUndefined({ name, options: wireOptions('queue', OPTION_PATHS, named), update })
    const result = await this.#call(OP.ENSURE, body, 'again', call)
    if (typeof result['created'] !== 'boolean') throw malformed('ENSURE')
    return { created: result['created'], queue: queueInfo('ENSURE', result['queue']) }
  }

  /** Resolves with the state and the options of a queue. @throws SluiceError QUEUE_NOT_FOUND */
  async get(queue: QueueRef, call?: CallOptions): Promise<QueueInfo> {
    const result = await this.#call(OP.GET, { name: queueOf(queue).name }, 'again', call)
    return queueInfo('GET', result['queue'])
  }

  /** Resolves with all queues, ordered by name. The deadline applies to each page. */
  async list(call?: CallOptions): Promise<QueueInfo[]> {
    const all: QueueInfo[] = []
    let body: Body = {}
    for (;;) {
      const { queues, more } = await this.#call(OP.LIST, body, 'again', call)
      if (!Array.isArray(queues)) throw malformed('LIST')
      for (const queue of queues) all.push(queueInfo('LIST', queue))
      if (more !== true) return all
      const after = all.at(-1)?.name
      // A page without a new queue would make this loop endless.
      if (queues.length === 0 || after === undefined || after === body['after']) throw malformed('LIST')
      body = { after }
    }
  }

  /**
   * Deletes the queue and all its messages, including dead ones. Resolves with the number of deleted messages.
   * @throws SluiceError QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  delete(queue: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    return this.#removal('DELETE', { name: queueOf(queue).name }, call)
  }

  /**
   * Removes all messages that are scheduled, ready or leased, but not dead ones. Resolves with the number of removed
   * messages.
   * @throws SluiceError QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  purge(queue: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    return this.#removal('PURGE', { name: queueOf(queue).name }, call)
  }

  // Sends a request that removes messages. It is not repeated after a lost connection, because a second request could
  // remove messages that were published in the meantime.
  async #removal(
    frame: 'DELETE' | 'PURGE' | 'CLOSE_CONSUMER',
    body: Body,
    call: CallOptions | undefined,
  ): Promise<{ readonly messages: number }> {
    const { messages } = await this.#call(OP[frame], body, 'once', call)
    if (typeof messages !== 'number') throw malformed(frame)
    return { messages }
  }

  /**
   * Stops deliveries until `resume`. Publishing and settling continue. `changed` is false if the queue was paused already.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  pause(queue: QueueRef, call?: CallOptions): Promise<{ readonly changed: boolean }> {
    return this.#setPaused('PAUSE', queue, call)
  }

  /**
   * Ends a pause. `changed` is false if the queue was not paused.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  resume(queue: QueueRef, call?: CallOptions): Promise<{ readonly changed: boolean }> {
    return this.#setPaused('RESUME', queue, call)
  }

  async #setPaused(
    frame: 'PAUSE' | 'RESUME',
    queue: QueueRef,
    call: CallOptions | undefined,
  ): Promise<{ readonly changed: boolean }> {
    const { changed } = await this.#call(OP[frame], { name: queueOf(queue).name }, 'again', call)
    if (typeof changed !== 'boolean') throw malformed(frame)
    return { changed }
  }

  /**
   * Reads one page of the messages that match, in the order of their offsets, without taking a lease.
   *
   * @param options `state` and the filter; `from` and `limit` select the page. The `next` of a page is the `from` of
   * the page after it.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT
   * @example
   * const { messages, next } = await sluice.queues.peek('orders', { state: 'scheduled', key: 'customer-7', limit: 20 })
   */
  async peek<Input>(
    queue: QueueRef<Input, unknown>,
    options: PeekOptions = {},
    call?: CallOptions,
  ): Promise<MessagePage<Input>> {
    onlyKnown('queues.peek', options, [...FILTER_FIELDS, 'state', 'from', 'limit'])
    if (call !== undefined) onlyKnown('queues', call, CALL_OPTIONS)
    const { name } = queueOf(queue)
    const { state, from, limit, ...filter } = options
    const body = withoutUndefined({ name, state, from, limit, ...filterField(filter) })
    return this.#requests.send(OP.PEEK, body, 'again', call, messagesAnswer<Input>(name))
  }

  /**
   * Cancels a message that is scheduled or ready, even if it is behind other messages of its key.
   *
   * @param ref The `offset`, or the `id`. An `id` is known if the queue has `unique: 'pending'`, if the message was
   * published with `delay` or `at`, or as long as the id is remembered for `dedupWindow`.
   * @throws SluiceError MESSAGE_LEASED when a consumer has the message; MESSAGE_NOT_FOUND when the message is gone, dead or
   * unknown; QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   * @example
   * await sluice.queues.cancel('reminders', { id: 'invoice-7' })
   */
  async cancel(queue: QueueRef, ref: MessageRef, call?: CallOptions): Promise<{ readonly offset: number }> {
    const body = { name: queueOf(queue).name, ...refFields('queues.cancel', ref) }
    const { offset } = await this.#call(OP.CANCEL, body, 'once', call)
    return { offset: wholeIn('CANCEL', offset) }
  }

  /**
   * Changes the due time of a message that is scheduled or ready. Its number of attempts stays the same. If its time to
   * live counts from the due time, the message expires later or earlier accordingly.
   *
   * @param ref Like the `ref` of `cancel`.
   * @throws SluiceError INVALID_DELAY, AT_IN_THE_PAST when `at` is more than a minute in the past; otherwise as
   * `cancel`
   * @example
   * const { due } = await sluice.queues.reschedule('reminders', { id: 'invoice-7' }, { delay: '2d' })
   */
  async reschedule(
    queue: QueueRef,
    ref: MessageRef,
    when: Due,
    call?: CallOptions,
  ): Promise<{ readonly offset: number; readonly due: Date }> {
    onlyKnown('queues.reschedule', when, ['delay', 'at'])
    const { delay, at } = when as { readonly delay?: Duration; readonly at?: Date | number }
    if ((delay === undefined) === (at === undefined)) {
      throw new SluiceError(
        'OPTION_CONFLICT',
        '`queues.reschedule` takes either a `delay` or a time in `at`.',
      )
    }
    const body = withoutUndefined({
      name: queueOf(queue).name,
      ...refFields('queues.reschedule', ref),
      delayMs: delay === undefined ? undefined : durationMs(delay, 'delay', 'INVALID_DELAY'),
      atMs: at === undefined ? undefined : timeMs('at', at, 'INVALID_DELAY'),
    })
    const { offset, dueMs } = await this.#call(OP.RESCHEDULE, body, 'once', call)
    return { offset: wholeIn('RESCHEDULE', offset), due: new Date(wholeIn('RESCHEDULE', dueMs)) }
  }

  /**
   * Resolves with the consumers of a queue, their credit and their unsettled messages. The deadline applies to each page.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  async consumers(queue: QueueRef, call?: CallOptions): Promise<ConsumerInfo[]> {
    const { name } = queueOf(queue)
    const all: ConsumerInfo[] = []
    for (let from = 0; ;) {
      const { consumers, next } = await this.#call(
        OP.CONSUMERS,
        from === 0 ? { name } : { name, from },
        'again',
        call,
      )
      if (!Array.isArray(consumers)) throw malformed('CONSUMERS')
      for (const consumer of consumers) all.push(consumerInfo(consumer))
      if (next === null || next === undefined) return all
      // A page that makes no progress would make this loop endless.
      if (wholeIn('CONSUMERS', next) <= from) throw malformed('CONSUMERS')
      from = next as number
    }
  }

  /**
   * Closes a consumer: its worker or iterator ends with CONSUMER_CLOSED, and its messages return to the queue.
   * Resolves with the number of these messages.
   *
   * @param id The `id` that `consumers` returns.
   * @throws SluiceError CONSUMER_NOT_FOUND, QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  async closeConsumer(
    queue: QueueRef,
    id: number,
    call?: CallOptions,
  ): Promise<{ readonly messages: number }> {
    const body = { name: queueOf(queue).name, id: whole('id', id, 0, 0xffff_ffff) }
    return this.#removal('CLOSE_CONSUMER', body, call)
  }

  /**
   * Publishes again the acknowledged messages that the queue retains; see `retain`. From a stream, it
   * publishes all messages that the stream keeps. The call works page by page. An error or the signal can end it early.
   * Messages that were published before that stay published: the error has `outcome: 'partial'`, and `progress` has the
   * counts and the `cursor` at which to continue.
   *
   * @param options `from`, `until` and the filter; `to`; `rate`, in messages per second; `limit`; `dryRun`; `cursor`.
   * @param call `timeout` is the deadline of each page.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT; CONNECTION_LOST with `outcome: 'unknown'`
   * @example
   * await sluice.queues.replay('orders', { from: new Date('2026-05-01'), key: 'customer-7', to: 'orders-check' })
   */
  async replay(queue: QueueRef, options: ReplayOptions = {}, call?: CallOptions): Promise<Replayed> {
    const known = ['from', 'until', 'to', 'limit', 'rate', 'dryRun', 'cursor']
    onlyKnown('queues.replay', options, [...FILTER_FIELDS, ...known])
    const { from, until, to, limit, rate, dryRun, cursor, ...filter } = options
    const body = withoutUndefined({
      name: queueOf(queue).name,
      fromOffset: typeof from === 'number' ? whole('from', from, 0, Number.MAX_SAFE_INTEGER) : undefined,
      fromMs:
        from === undefined || typeof from === 'number'
          ? undefined
          : timeMs('from', from, 'INVALID_ARGUMENT', 'an offset, or a Date'),
      untilMs: until === undefined ? undefined : timeMs('until', until, 'INVALID_ARGUMENT', 'a Date'),
      to: to === undefined ? undefined : queueOf(to).name,
      dryRun,
      ...filterField(filter),
    })
    const done = { matched: 0, replayed: 0 }
    let place = cursor
    const pace = withoutUndefined({ limit, rate: dryRun === true ? undefined : rate })
    const take = async (limit: number): Promise<Step<string>> => {
      const page = withoutUndefined({ cursor: place, limit })
      // The request is not repeated after a lost connection, because a second request could publish a page twice.
      const answer = await this.#call(
        OP.REPLAY,
        { ...body, ...page },
        dryRun === true ? 'again' : 'answered',
        call,
      )
      const error = cutShort('REPLAY', answer)
      const matched = wholeIn('REPLAY', answer['matched'])
      done.matched += matched
      done.replayed += wholeIn('REPLAY', answer['replayed'])
      const next = cursorIn('REPLAY', answer, place)
      if (next !== undefined) place = next
      return { matched, next, error }
    }
    const soFar = (): SoFar => ({
      progress:
        dryRun === true || done.replayed === 0
          ? undefined
          : { ...done, ...(place === undefined ? {} : { cursor: place }) },
      text: `Before that, ${messagesWere(done.replayed)} published again.`,
    })
    await walk<string>(pace, call, take, soFar)
    return done
  }

  /**
   * Resolves with the history of the message at an offset, as far as its events are still in the log.
   *
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND
   * @example
   * const { events } = await sluice.queues.history('orders', 4711)
   */
  async history(queue: QueueRef, offset: number, call?: CallOptions): Promise<History> {
    const body = { name: queueOf(queue).name, offset: whole('offset', offset, 0, Number.MAX_SAFE_INTEGER) }
    const all: HistoryEvent[] = []
    let cursor: string | undefined
    for (;;) {
      const place = cursor === undefined ? {} : { cursor }
      const answer = await this.#call(OP.HISTORY, { ...body, ...place }, 'again', call)
      const { events, complete } = answer
      if (!Array.isArray(events) || typeof complete !== 'boolean') throw malformed('HISTORY')
      for (const event of events) all.push(historyEvent(event))
      cursor = cursorIn('HISTORY', answer, cursor)
      if (cursor === undefined) return { events: all, complete }
    }
  }

  /**
   * Resolves with the reasons why a message is not delivered or, without `offset`, why the queue delivers nothing. The most
   * important reason is the first. Changes nothing.
   *
   * @throws SluiceError QUEUE_NOT_FOUND, CORRUPT
   * @example
   * const { deliverable, reasons } = await sluice.queues.explain('orders', { offset: 4711 })
   * console.log(deliverable, reasons[0].text)
   */
  async explain(
    queue: QueueRef,
    options: { readonly offset?: number } = {},
    call?: CallOptions,
  ): Promise<Explanation> {
    onlyKnown('queues.explain', options, ['offset'])
    const { name } = queueOf(queue)
    const { offset } = options
    const place = offset === undefined ? {} : { offset: whole('offset', offset, 0, Number.MAX_SAFE_INTEGER) }
    return explanationOf(name, await this.#call(OP.EXPLAIN, { name, ...place }, 'again', call))
  }

  async #call(opcode: number, body: Body, repeat: Repeat, call: CallOptions | undefined): Promise<Body> {
    if (call !== undefined) onlyKnown('queues', call, CALL_OPTIONS)
    return this.#requests.send(opcode, body, repeat, call, RESULT)
  }
}

/** The path of each queue option in `QueueOptions`, by its name on the wire. Wire names that end in Ms are durations. */
const OPTION_PATHS = {
  maxDeliveries: ['maxDeliveries'],
  retryInitialMs: ['retry', 'initial'],
  retryMaxMs: ['retry', 'max'],
  processingTimeoutMs: ['processingTimeout'],
  ttlMs: ['ttl'],
  keyConcurrency: ['keyConcurrency'],
  onFail: ['onFail'],
  unique: ['unique'],
  dedupWindowMs: ['dedupWindow'],
  dedupMaxIds: ['dedupMaxIds'],
  maxMessages: ['maxMessages'],
  maxBytes: ['maxBytes'],
  overflow: ['overflow'],
  deadLetter: ['deadLetter'],
  single: ['single'],
  retainAgeMs: ['retain', 'age'],
  retainBytes: ['retain', 'bytes'],
  expiresMs: ['expires'],
  rateMessages: ['rate', 'messages'],
  ratePerMs: ['rate', 'per'],
  keyRateMessages: ['keyRate', 'messages'],
  keyRatePerMs: ['keyRate', 'per'],
} as const satisfies Record<QueueOptionName, readonly [keyof QueueOptions, string?]>

function queueInfo(frame: string, value: unknown): QueueInfo {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { options, createdAtMs, rateUntilMs, ...rest } = value as WireQueueInfo
  if (typeof rest.name !== 'string' || rest.name.length > LIMITS.queueNameBytesMax) throw malformed(frame)
  if (typeof options !== 'object' || options === null) throw malformed(frame)
  return {
    ...rest,
    rateUntil: typeof rateUntilMs === 'number' ? new Date(rateUntilMs) : null,
    createdAt: new Date(wholeIn(frame, createdAtMs)),
    options: settingsOf(OPTION_PATHS, options) as QueueSettings,
  }
}

function consumerInfo(value: unknown): ConsumerInfo {
  if (typeof value !== 'object' || value === null) throw malformed('CONSUMERS')
  const { sinceMs, oldestLeaseMs, ...rest } = value as WireConsumerInfo
  wholeIn('CONSUMERS', rest.id)
  return {
    ...rest,
    subscribedAt: new Date(wholeIn('CONSUMERS', sinceMs)),
    oldestLeaseAt: oldestLeaseMs === null ? null : new Date(wholeIn('CONSUMERS', oldestLeaseMs)),
  }
}

function historyEvent(value: unknown): HistoryEvent {
  if (typeof value !== 'object' || value === null) throw malformed('HISTORY')
  const { event, atMs, attempts, dueMs, text } = value as Body
  if (typeof event !== 'string' || !Object.hasOwn(HISTORY_EVENTS, event)) throw malformed('HISTORY')
  return withoutUndefined({
    event,
    at: new Date(wholeIn('HISTORY', atMs)),
    attempts: attempts === undefined ? undefined : wholeIn('HISTORY', attempts),
    due: dueMs === undefined ? undefined : new Date(wholeIn('HISTORY', dueMs)),
    text: typeof text === 'string' ? text : undefined,
  }) as unknown as HistoryEvent
}

/**
 * The cursor of the next page. A cursor that makes no progress is refused, because the same page would be requested
 * endlessly.
 */
function cursorIn(frame: string, { cursor }: Body, before: string | undefined): string | undefined {
  if (cursor === null || cursor === undefined) return undefined
  if (typeof cursor !== 'string' || cursor === before) throw malformed(frame)
  return cursor
}

function wholeIn(frame: string, value: unknown): number {
  if (!Number.isSafeInteger(value)) throw malformed(frame)
  return value as number
}
