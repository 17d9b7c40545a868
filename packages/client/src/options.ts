/** Turns the options of each call into complete settings: checks names and bounds, applies defaults, converts units. */
import {
  checkRecordOptions,
  isWellFormed,
  LIMITS,
  addressName,
  queueName,
  shown,
  SluiceError,
  textBytes,
  type ErrorCode,
  type QueueName,
  type RecordOptions,
  durationText,
} from '@sluice/protocol'
import type { StandardSchemaV1 } from '@standard-schema/spec'
import { durationMs, parseDuration, type Duration } from './duration.js'
import { DEFAULT_URL, parseUrl, type Address } from './url.js'

/** Options of every call. */
export interface CallOptions {
  /** Deadline of the call. Default: the client's `timeout`. */
  readonly timeout?: Duration
  /** Ends the call early with ABORTED. */
  readonly signal?: AbortSignal
}

/** Options of `createClient`. */
export interface ClientOptions {
  /** Name of this client in the broker's lists and logs, at most 255 bytes. Default: none. */
  readonly name?: string
  /**
   * Maximum number of messages that are published and not confirmed; `publish` waits while this number is reached. 1 to
   * 10,000,000. Default 10,000.
   */
  readonly maxInFlight?: number
  /**
   * Maximum number of bytes that are published and not confirmed; `publish` waits while this number is reached. 1 to
   * 4,294,967,295. Default 16 MiB.
   */
  readonly maxInFlightBytes?: number
  /**
   * Maximum memory of publishes that wait to be sent. Each publish takes its bytes and 512 bytes more. When the memory
   * is used up, `publish` rejects with TOO_MANY_WAITING. From 1 byte to 1 TiB. Default 512 MiB.
   */
  readonly maxWaitingBytes?: number
  /** Deadline of each call. Default 30 s. */
  readonly timeout?: Duration
  /** Interval in which each side must send something, 100 ms to 5 min. Default 10 s. */
  readonly heartbeat?: Duration
}

/** Options of `connect`. */
export interface ConnectOptions extends ClientOptions {
  /** Time for which `connect` keeps trying when no broker answers; 0 means one attempt. Default 5 s. */
  readonly connectTimeout?: Duration
  /** Aborts `connect`; has no effect once connected. */
  readonly signal?: AbortSignal
}

export interface Settings {
  readonly address: Address
  readonly name: string
  readonly maxInFlight: number
  readonly maxInFlightBytes: number
  readonly maxWaitingBytes: number
  readonly timeoutMs: number
  readonly connectTimeoutMs: number
  readonly heartbeatMs: number
}

const TIMEOUT_MS_DEFAULT = 30_000
const CONNECT_TIMEOUT_MS_DEFAULT = 5_000
const MAX_IN_FLIGHT_DEFAULT = 10_000
const MAX_IN_FLIGHT_MAX = 10_000_000
const MAX_WAITING_BYTES_DEFAULT = 512 * 1024 * 1024
const MAX_WAITING_BYTES_MAX = 2 ** 40

const CLIENT_OPTIONS = [
  'name',
  'maxInFlight',
  'maxInFlightBytes',
  'maxWaitingBytes',
  'timeout',
  'heartbeat',
] as const
const CONNECT_OPTIONS = [...CLIENT_OPTIONS, 'connectTimeout', 'signal'] as const

/** @throws SluiceError INVALID_URL, INVALID_ARGUMENT, NOT_SUPPORTED */
export function connectSettings(
  url: string | undefined,
  options: ConnectOptions,
  call: 'connect' | 'createClient' = 'connect',
): Settings {
  onlyKnown(call, options, call === 'connect' ? CONNECT_OPTIONS : CLIENT_OPTIONS, ['tls'])
  const {
    name = '',
    maxInFlight,
    maxInFlightBytes,
    maxWaitingBytes,
    timeout,
    connectTimeout,
    heartbeat,
  } = options
  if (typeof name !== 'string' || textBytes(name) > LIMITS.clientNameBytesMax || !isWellFormed(name)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`name\` is ${shown(name)}; it must be text of at most ${LIMITS.clientNameBytesMax} bytes, without an unpaired surrogate.`,
    )
  }
  const fromEnvironment = process.env['SLUICE_URL']
  return {
    address: parseUrl(url ?? (fromEnvironment === '' ? undefined : fromEnvironment) ?? DEFAULT_URL),
    name,
    maxInFlight: whole('maxInFlight', maxInFlight ?? MAX_IN_FLIGHT_DEFAULT, 1, MAX_IN_FLIGHT_MAX),
    maxInFlightBytes: whole(
      'maxInFlightBytes',
      maxInFlightBytes ?? LIMITS.inFlightBytesDefault,
      1,
      0xffff_ffff,
    ),
    maxWaitingBytes: whole(
      'maxWaitingBytes',
      maxWaitingBytes ?? MAX_WAITING_BYTES_DEFAULT,
      1,
      MAX_WAITING_BYTES_MAX,
    ),
    timeoutMs: timeout === undefined ? TIMEOUT_MS_DEFAULT : parseDuration(timeout, 'timeout'),
    connectTimeoutMs:
      connectTimeout === undefined
        ? CONNECT_TIMEOUT_MS_DEFAULT
        : parseDuration(connectTimeout, 'connectTimeout'),
    heartbeatMs: whole(
      'heartbeat',
      heartbeat === undefined ? LIMITS.heartbeatMsDefault : parseDuration(heartbeat, 'heartbeat'),
      LIMITS.heartbeatMsMin,
      LIMITS.heartbeatMsMax,
    ),
  }
}

/** A queue, and the type of its bodies. Made by `queue`; a stream, which is published to like a queue, by `stream`. */
export interface Queue<Input = unknown, Output = Input> {
  /** Not set for a queue. The kind of a topic is another one, so that a topic is not taken for a queue. */
  readonly kind?: 'stream' | undefined
  readonly name: string
  readonly schema?: StandardSchemaV1<Input, Output> | undefined
}

/** Refers to a queue: by its name, or by a value that `queue` made. */
export type QueueRef<Input = unknown, Output = Input> = string | Queue<Input, Output>

/** What `queue` makes, and `stream` with more fields. */
export class QueueValue implements Queue {
  readonly name: QueueName
  readonly schema: StandardSchemaV1 | undefined

  constructor(name: QueueName, schema: StandardSchemaV1 | undefined) {
    this.name = name
    this.schema = schema
  }
}

/** Options of `queue`. */
export interface QueueDeclaration<Schema extends StandardSchemaV1 = StandardSchemaV1> {
  /**
   * Any Standard Schema (Zod, Valibot, ArkType, …). `publish` checks a body and sends it unchanged. A consumer gets the
   * output of the schema. A delivered message that does not match becomes a dead letter.
   */
  readonly schema?: Schema
}

/**
 * Declares a queue as a plain value that modules share. Creates nothing at the broker; see `queues.ensure`.
 *
 * @param name Letters, digits and `. _ - : /`, 1 to 255 bytes, beginning with a letter, a digit or `_`.
 * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT
 * @example
 * export const Orders = queue<{ total: number }>('orders')
 */
export function queue<Body = unknown>(name: string): Queue<Body>
export function queue<Schema extends StandardSchemaV1>(
  name: string,
  declaration: { readonly schema: Schema },
): Queue<StandardSchemaV1.InferInput<Schema>, StandardSchemaV1.InferOutput<Schema>>
export function queue<Body = unknown>(name: string, declaration?: QueueDeclaration): Queue<Body>
export function queue(name: string, declaration: QueueDeclaration = {}): Queue {
  const checked = queueName(name)
  onlyKnown('queue', declaration, ['schema'])
  return new QueueValue(checked, checkedSchema(declaration.schema))
}

/** @throws SluiceError INVALID_ARGUMENT */
export function checkedSchema(schema: StandardSchemaV1 | undefined): StandardSchemaV1 | undefined {
  if (schema !== undefined && typeof schema?.['~standard']?.validate !== 'function') {
    throw new SluiceError('INVALID_ARGUMENT', '`schema` must be a Standard Schema.')
  }
  return schema
}

/** Takes the name of a group too. @throws SluiceError INVALID_NAME, INVALID_ARGUMENT */
export function queueOf(ref: QueueRef): Queue {
  if (ref instanceof QueueValue) return ref
  if (typeof ref === 'object' && ref !== null) {
    if (ref.kind !== undefined && ref.kind !== 'stream') throw notAQueue(ref.name)
    return new QueueValue(addressName(ref.name), checkedSchema(ref.schema))
  }
  return new QueueValue(addressName(ref), undefined)
}

function notAQueue(name: string): SluiceError {
  return new SluiceError(
    'INVALID_ARGUMENT',
    `${shown(name)} is a topic; this call takes a queue. Publish to a topic with \`publish\`, \`publishBatch\`, \`publishAll\` or \`atomic\`.`,
  )
}

/** Options of one message. */
export interface MessageOptions {
  /**
   * Id for deduplication. A second message with the same id is not accepted while the id is remembered; see the option
   * `unique` of the queue. 1 to 255 bytes.
   */
  readonly id?: string
  /**
   * What happens when the broker knows a message with the same `id`. `'keep'`: this message is a duplicate. `'replace'`: if
   * the known message is scheduled or ready, it is cancelled and this one is accepted, with its own delay, in one step; if
   * it is leased, dead or done, this message is a duplicate. Default `'keep'`.
   */
  readonly onDuplicate?: 'keep' | 'replace'
  /** Messages of one key are handled one after the other; see `keyConcurrency`. 1 to 255 bytes. */
  readonly key?: string
  /** 0 to 31; messages of a higher priority are delivered first. Default 0. */
  readonly priority?: number
  /** Time from publishing until the earliest delivery; at most 100 years. Mutually exclusive with `at`. */
  readonly delay?: Duration
  /** Time of the earliest delivery; a number is milliseconds since the epoch. Mutually exclusive with `delay`. */
  readonly at?: Date | number
  /** Time to live, which starts when the message is due; at least 1 ms. Default: the queue's `ttl`. */
  readonly ttl?: Duration
  /**
   * Headers: at most 64 names with values, and at most 16 KiB in total. Takes an object, or a Map, Headers or
   * URLSearchParams without repeated names.
   */
  readonly headers?: Readonly<Record<string, string>> | HeaderEntries
}

/** Iterates over names and values, as a Map, `Headers` and `URLSearchParams` do. */
export interface HeaderEntries {
  entries(): Iterable<readonly [name: string, value: string]>
}

/** Options of calls that send messages. */
export interface SendOptions extends CallOptions {
  /**
   * What the call does while there is no connection to the broker. `'wait'`: it waits for a connection until its
   * deadline. `'fail'`: it fails immediately with OFFLINE. A message that was sent waits for its answer in either case.
   * Default `'wait'`.
   */
  readonly offline?: 'wait' | 'fail'
}

/** Options of `publish`. */
export interface PublishOptions extends MessageOptions, SendOptions {}

export const MESSAGE_OPTIONS = [
  'id',
  'onDuplicate',
  'key',
  'priority',
  'delay',
  'at',
  'ttl',
  'headers',
] as const
export const SEND_OPTIONS = ['timeout', 'signal', 'offline'] as const
const PUBLISH_OPTIONS = [...MESSAGE_OPTIONS, ...SEND_OPTIONS] as const
const BATCH_MESSAGE_OPTIONS = ['body', ...MESSAGE_OPTIONS] as const

/**
 * The options that are stored with the message; undefined if there are none.
 * @throws SluiceError INVALID_ARGUMENT, INVALID_PRIORITY, INVALID_DELAY, INVALID_TTL, INVALID_KEY, INVALID_ID,
 * INVALID_HEADERS, OPTION_CONFLICT
 */
export function recordOptions(
  options: MessageOptions,
  known: readonly string[] = PUBLISH_OPTIONS,
): RecordOptions | undefined {
  onlyKnown('publish', options, known)
  const { id, onDuplicate, key, priority, delay, at, ttl, headers } = options
  if (
    id === undefined &&
    onDuplicate === undefined &&
    key === undefined &&
    priority === undefined &&
    delay === undefined &&
    at === undefined &&
    ttl === undefined &&
    headers === undefined
  )
    return undefined
  if (onDuplicate !== undefined && onDuplicate !== 'keep' && onDuplicate !== 'replace') {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`onDuplicate\` is ${shown(onDuplicate)}; it must be "keep" or "replace".`,
    )
  }
  const record: RecordOptions = {
    id,
    key,
    priority,
    delayMs: delay === undefined ? undefined : durationMs(delay, 'delay', 'INVALID_DELAY'),
    atMs: at === undefined ? undefined : timeMs('at', at, 'INVALID_DELAY'),
    ttlMs: ttl === undefined ? undefined : durationMs(ttl, 'ttl', 'INVALID_TTL'),
    headers: headers === undefined ? undefined : plainHeaders(headers),
    replaces: onDuplicate === 'replace',
  }
  checkRecordOptions(record)
  return record
}

// A copy of the own properties, so that getters run once. @throws SluiceError INVALID_HEADERS
function plainHeaders(headers: unknown): Readonly<Record<string, string>> {
  if (typeof headers === 'object' && headers !== null) {
    const prototype: unknown = Object.getPrototypeOf(headers)
    if (prototype === Object.prototype || prototype === null) {
      const symbol = Object.getOwnPropertySymbols(headers)[0]
      if (symbol === undefined) return { ...headers }
      throw new SluiceError('INVALID_HEADERS', `The name of a header is ${shown(symbol)}; it must be text.`)
    }
    // This excludes arrays and Sets: iterating over them does not yield entries.
    const { entries, [Symbol.iterator]: iterator } = headers as Partial<HeaderEntries & Iterable<unknown>>
    if (entries !== undefined && (entries as unknown) === iterator)
      return collectedHeaders((headers as HeaderEntries).entries())
  }
  throw new SluiceError(
    'INVALID_HEADERS',
    `\`headers\` is ${shown(headers)}; it must be an object of text to text, or a Map, Headers or URLSearchParams.`,
  )
}

function collectedHeaders(entries: Iterable<readonly [string, string]>): Readonly<Record<string, string>> {
  const collected = Object.create(null) as Record<string, string>
  for (const [name, value] of entries) {
    if (typeof name !== 'string')
      throw new SluiceError('INVALID_HEADERS', `The name of a header is ${shown(name)}; it must be text.`)
    if (Object.hasOwn(collected, name))
      throw new SluiceError('INVALID_HEADERS', `The header ${shown(name)} is given twice.`)
    collected[name] = value
  }
  return collected
}

/** A message of `publishBatch`. */
export interface BatchMessage<Body = unknown> extends MessageOptions {
  readonly body: Body
}

/** Counts of the messages of `publishAll` that are confirmed so far. */
export interface PublishAllResult {
  /** Number of messages that the broker accepted. */
  readonly published: number
  /** Number of messages whose id the broker knew; they do not count in `published`. */
  readonly duplicates: number
}

/** Options of `publishAll`. */
export interface PublishAllOptions extends CallOptions {
  /** Maximum number of messages that are read and not confirmed, 1 to 10,000,000. Default: the client's `maxInFlight`. */
  readonly concurrency?: number
  /** Called after every 1,000 confirmed messages, and at the end. */
  readonly onProgress?: (progress: PublishAllResult) => void
}

/** @throws SluiceError INVALID_ARGUMENT */
export function publishAllConcurrency(options: PublishAllOptions, maxInFlight: number): number {
  const { concurrency, onProgress } = options
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`onProgress\` is ${shown(onProgress)}; it must be a function.`,
    )
  return whole('concurrency', concurrency ?? maxInFlight, 1, MAX_IN_FLIGHT_MAX)
}

/** @throws SluiceError INVALID_ARGUMENT */
export function batchRecordOptions(message: BatchMessage): RecordOptions | undefined {
  if (typeof message !== 'object' || message === null) {
    throw new SluiceError('INVALID_ARGUMENT', 'Each message of a batch must be an object with a `body`.')
  }
  return recordOptions(message, BATCH_MESSAGE_OPTIONS)
}

/** @throws SluiceError INVALID_ARGUMENT, and those of `recordOptions` */
export function batchRecords(
  messages: readonly BatchMessage[],
): { readonly body: unknown; readonly options: RecordOptions | undefined }[] {
  // `map` would skip the holes of an array.
  return Array.from(messages, (message) => ({ options: batchRecordOptions(message), body: message.body }))
}

/** Options of `consume`. */
export interface ConsumeOptions {
  /** Maximum number of handlers that run at the same time, 1 to 65,535. Default 1. */
  readonly concurrency?: number
  /**
   * Maximum number of unsettled messages of this consumer, including those in handlers, 1 to 65,535. Default: 2 ×
   * `concurrency` × `batch.size`.
   */
  readonly prefetch?: number
  /** Maximum number of bytes of unsettled messages; a larger message is delivered alone. Default 16 MiB. */
  readonly prefetchBytes?: number
  /** How long a message may be handled before its lease is lost, from 100 ms. Default: the queue's `processingTimeout`. */
  readonly processingTimeout?: Duration
  /**
   * `'key'`: this worker handles messages of one key one after the other, in their order, even if the queue's
   * `keyConcurrency` allows more; messages of other keys may pass them. Default: messages are handled in any order.
   */
  readonly ordering?: 'key'
  readonly batch?: undefined
  /**
   * What happens when the queue does not exist or is deleted. `'wait'`: the client emits `waiting`, and the worker
   * waits until the queue exists. `'fail'`: the worker ends. Default `'wait'`.
   */
  readonly missing?: 'wait' | 'fail'
  /** Closes the worker. */
  readonly signal?: AbortSignal
}

/** Options of `consume` with a handler that takes several messages at a time. */
export interface BatchConsumeOptions extends Omit<ConsumeOptions, 'batch'> {
  readonly batch: {
    /**
     * Maximum number of messages in one batch, 1 to 65,535. With `ordering: 'key'` no two messages of a batch have the
     * same key.
     */
    readonly size: number
    /**
     * Time for which the first message of a batch may wait for further messages. Default 0: a free handler gets the
     * messages that have arrived.
     */
    readonly wait?: Duration
  }
}

/** Options of `messages`. */
export interface MessagesOptions {
  /** Maximum number of unsettled messages of this iterator, 1 to 65,535. Default 10. */
  readonly prefetch?: number
  /** Maximum number of bytes of unsettled messages; a larger message is delivered alone. Default 16 MiB. */
  readonly prefetchBytes?: number
  /** How long a message may be handled before its lease is lost, from 100 ms. Default: the queue's `processingTimeout`. */
  readonly processingTimeout?: Duration
  /**
   * What happens when the queue does not exist or is deleted. `'wait'`: the client emits `waiting`, and the iterator
   * waits until the queue exists. `'fail'`: the iteration ends with an error. Default `'wait'`.
   */
  readonly missing?: 'wait' | 'fail'
  /** Ends the iteration with ABORTED. */
  readonly signal?: AbortSignal
}

/** Options of `pull`. */
export interface PullOptions extends CallOptions {
  /** Maximum number of messages, 1 to 65,535. Default 1. */
  readonly max?: number
  /** How long to wait for the first message. Default 0: only messages that are ready now. */
  readonly wait?: Duration
  /** How long a message may be handled before its lease is lost, from 100 ms. Default: the queue's `processingTimeout`. */
  readonly processingTimeout?: Duration
}

/** The settings of the subscription of a worker or an iterator. */
export interface ConsumerSettings {
  readonly concurrency: number
  readonly messages: number
  readonly bytes: number
  /** Undefined if the setting of the queue applies. */
  readonly processingTimeoutMs: number | undefined
  /** Whether the consumer waits for a queue that does not exist. */
  readonly waitsForQueue: boolean
}

const PREFETCH_BYTES_DEFAULT = 16 * 1024 * 1024
const MESSAGES_PREFETCH_DEFAULT = 10
const CONSUMER_OPTIONS = ['prefetch', 'prefetchBytes', 'processingTimeout', 'missing', 'signal'] as const

/** Settings of a worker, including the settings for the calls of its handlers. */
export interface WorkerSettings extends ConsumerSettings {
  /** Whether messages of one key are handled one after the other. */
  readonly ordered: boolean
  readonly batch: { readonly size: number; readonly waitMs: number } | undefined
}

/** @throws SluiceError INVALID_ARGUMENT, OPTION_CONFLICT */
export function workerSettings(options: ConsumeOptions | BatchConsumeOptions): WorkerSettings {
  onlyKnown('consume', options, [...CONSUMER_OPTIONS, 'concurrency', 'ordering', 'batch'])
  const max = LIMITS.creditMessagesMax
  const concurrency = whole('concurrency', options.concurrency ?? 1, 1, max)
  const batch = batchSettings(options.batch)
  const atATime = concurrency * (batch?.size ?? 1)
  const prefetch = whole('prefetch', options.prefetch ?? Math.min(atATime * 2, max), 1, max)
  if (batch !== undefined && prefetch < batch.size) {
    throw new SluiceError(
      'OPTION_CONFLICT',
      `\`prefetch\` is ${prefetch}, below the \`batch.size\` of ${batch.size}: a batch could never be full.`,
    )
  }
  const { ordering } = options
  if (ordering !== undefined && ordering !== 'key') {
    throw new SluiceError('INVALID_ARGUMENT', `\`ordering\` is ${shown(ordering)}; it must be "key".`)
  }
  return {
    ordered: ordering === 'key',
    batch,
    concurrency,
    messages: prefetch,
    bytes: prefetchBytes(options.prefetchBytes),
    processingTimeoutMs: processingTimeoutMs(options.processingTimeout),
    waitsForQueue: waitsForQueue(options.missing),
  }
}

function batchSettings(batch: BatchConsumeOptions['batch'] | undefined): WorkerSettings['batch'] {
  if (batch === undefined) return undefined
  onlyKnown('consume.batch', batch, ['size', 'wait'])
  return {
    size: whole('batch.size', batch.size, 1, LIMITS.creditMessagesMax),
    waitMs: batch.wait === undefined ? 0 : parseDuration(batch.wait, 'batch.wait'),
  }
}

/** @throws SluiceError INVALID_ARGUMENT */
export function streamSettings(options: MessagesOptions): ConsumerSettings {
  onlyKnown('messages', options, CONSUMER_OPTIONS)
  return {
    concurrency: 1,
    messages: whole('prefetch', options.prefetch ?? MESSAGES_PREFETCH_DEFAULT, 1, LIMITS.creditMessagesMax),
    bytes: prefetchBytes(options.prefetchBytes),
    processingTimeoutMs: processingTimeoutMs(options.processingTimeout),
    waitsForQueue: waitsForQueue(options.missing),
  }
}

/** Settings of a pull. */
export interface PullSettings {
  readonly max: number
  readonly waitMs: number
  /** Undefined if the setting of the queue applies. */
  readonly processingTimeoutMs: number | undefined
  /** How long the broker may take to answer after `waitMs`. */
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
}

/** @throws SluiceError INVALID_ARGUMENT */
export function pullSettings(options: PullOptions, timeoutMs: number): PullSettings {
  onlyKnown('pull', options, ['max', 'wait', 'processingTimeout', 'timeout', 'signal'])
  return {
    max: whole('max', options.max ?? 1, 1, LIMITS.creditMessagesMax),
    waitMs: options.wait === undefined ? 0 : parseDuration(options.wait, 'wait'),
    processingTimeoutMs: processingTimeoutMs(options.processingTimeout),
    timeoutMs: timeoutOf(options, timeoutMs),
    signal: options.signal,
  }
}

function waitsForQueue(missing: unknown): boolean {
  if (missing === undefined || missing === 'wait') return true
  if (missing === 'fail') return false
  throw new SluiceError('INVALID_ARGUMENT', `\`missing\` is ${shown(missing)}; it must be "wait" or "fail".`)
}

function processingTimeoutMs(value: Duration | undefined): number | undefined {
  if (value === undefined) return undefined
  const ms = parseDuration(value, 'processingTimeout')
  if (ms >= LIMITS.processingTimeoutMsMin) return ms
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`processingTimeout\` is ${durationText(ms)}; it must be at least ${durationText(LIMITS.processingTimeoutMsMin)}.`,
  )
}

export function prefetchBytes(value: number | undefined): number {
  return whole('prefetchBytes', value ?? PREFETCH_BYTES_DEFAULT, 1, LIMITS.creditBytesMax)
}

/**
 * A time as milliseconds since the epoch. `expected` describes the values that the caller accepts.
 * @throws SluiceError `code`
 */
export function timeMs(
  name: string,
  value: unknown,
  code: ErrorCode,
  expected = 'a Date, or a whole number of milliseconds since 1970',
): number {
  const ms = value instanceof Date ? value.getTime() : value
  if (typeof ms !== 'number' || !Number.isInteger(ms) || ms < 0 || ms >= 2 ** 48) {
    throw new SluiceError(code, `\`${name}\` is ${shown(value)}; it must be ${expected}.`)
  }
  return ms
}

/** Whether a call fails when there is no connection. @throws SluiceError INVALID_ARGUMENT */
export function failsOffline({ offline }: SendOptions): boolean {
  if (offline === undefined || offline === 'wait') return false
  if (offline === 'fail') return true
  throw new SluiceError('INVALID_ARGUMENT', `\`offline\` is ${shown(offline)}; it must be "wait" or "fail".`)
}

/** The timeout of the call, or the default. */
export function timeoutOf(options: CallOptions | undefined, defaultMs: number): number {
  return options?.timeout === undefined ? defaultMs : parseDuration(options.timeout, 'timeout')
}

/** The timeout of `close`, or the default. @throws SluiceError INVALID_ARGUMENT */
export function closeTimeoutMs(options: { readonly timeout?: Duration }, defaultMs: number): number {
  onlyKnown('close', options, ['timeout'])
  return timeoutOf(options, defaultMs)
}

/**
 * Refuses unknown options: a misspelt option must not be ignored silently.
 * @throws SluiceError INVALID_ARGUMENT, NOT_SUPPORTED for options of a later version
 */
export function onlyKnown(
  call: string,
  options: object,
  known: readonly string[],
  reserved: readonly string[] = [],
): void {
  if (typeof options !== 'object' || options === null) {
    throw new SluiceError('INVALID_ARGUMENT', `The options of \`${call}\` must be an object.`)
  }
  const { signal } = options as { readonly signal?: unknown }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new SluiceError('INVALID_ARGUMENT', `The \`signal\` of \`${call}\` is not an AbortSignal.`)
  }
  for (const name in options) {
    if (known.includes(name) || (options as Record<string, unknown>)[name] === undefined) continue
    if (reserved.includes(name)) {
      throw new SluiceError(
        'NOT_SUPPORTED',
        `The option \`${name}\` of \`${call}\` is not supported by this version.`,
      )
    }
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`${call}\` has no option ${shown(name)}; it has ${known.join(', ')}.`,
    )
  }
}

/** @throws SluiceError INVALID_ARGUMENT */
export function whole(name: string, value: unknown, min: number, max: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`${name}\` is ${shown(value)}; it must be a whole number from ${min} to ${max}.`,
    )
  }
  return value
}
