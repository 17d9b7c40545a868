/** Streams: their declaration, the requests about them, and the options of `read`. */
import {
  LIMITS,
  OP,
  groupName,
  queueName,
  shown,
  SluiceError,
  type StreamInfo as WireStreamInfo,
  type StreamOptionName,
} from '@sluice/protocol'
import type { StandardSchemaV1 } from '@standard-schema/spec'
import type { Duration } from './duration.js'
import { settingsOf, wireOptions } from './option-paths.js'
import {
  checkedSchema,
  onlyKnown,
  prefetchBytes,
  queueOf,
  QueueValue,
  timeMs,
  whole,
  type CallOptions,
  type Queue,
  type QueueDeclaration,
  type QueueRef,
} from './options.js'
import type { StreamMessage } from './read-message.js'
import type { ReadSettings, ReadStart } from './reader.js'
import { RESULT, type Body, type Repeat, type Requests } from './requests.js'
import { CALL_OPTIONS, malformed, withoutUndefined } from './selection.js'

/** A stream, and the type of its bodies. Made by `stream`. */
export interface Stream<Input = unknown, Output = Input> extends Queue<Input, Output> {
  readonly kind: 'stream'
  /**
   * The group of the stream with this name, which is consumed like a queue; see `sluice.groups`.
   * @throws SluiceError INVALID_NAME
   */
  group(name: string): Queue<Input, Output>
}

class StreamValue extends QueueValue implements Stream {
  readonly kind = 'stream'

  group(name: string): Queue {
    return new QueueValue(groupName(`${this.name}@${name}`), this.schema)
  }
}

/**
 * Declares a stream as a plain value that modules share. Creates nothing at the broker; see `streams.ensure`.
 *
 * @param name Letters, digits and `. _ - : /`, 1 to 255 bytes, beginning with a letter, a digit or `_`.
 * @throws SluiceError INVALID_NAME, INVALID_ARGUMENT
 * @example
 * export const Clicks = stream<{ page: string }>('clicks')
 */
export function stream<Body = unknown>(name: string): Stream<Body>
export function stream<Schema extends StandardSchemaV1>(
  name: string,
  declaration: { readonly schema: Schema },
): Stream<StandardSchemaV1.InferInput<Schema>, StandardSchemaV1.InferOutput<Schema>>
export function stream<Body = unknown>(name: string, declaration?: QueueDeclaration): Stream<Body>
export function stream(name: string, declaration: QueueDeclaration = {}): Stream {
  const checked = queueName(name)
  onlyKnown('stream', declaration, ['schema'])
  return new StreamValue(checked, checkedSchema(declaration.schema))
}

/** Options of a stream. An option that is not set keeps its value, or gets its default when the stream is created. */
export interface StreamOptions {
  /**
   * How long messages are kept: up to this age, up to this total size in bytes, up to this number; 0 means not set. The
   * oldest messages are removed in chunks of 1,024. Default: all messages are kept.
   */
  readonly retention?: { readonly age?: Duration; readonly bytes?: number; readonly messages?: number }
  /**
   * Makes retention keep messages that are neither acknowledged nor dead in a group, until all messages of the stream
   * take more than this number of bytes. Default `null`: retention does not wait for groups.
   */
  readonly waitForGroups?: { readonly bytes: number } | null
  /**
   * `'key'`: keeps only the newest message of each key; older ones are removed some time after it was accepted, and messages
   * without a key are refused with KEY_REQUIRED. A message with an empty body (`new Uint8Array(0)`) deletes its key: it removes
   * the older messages, and is itself removed when it is older than `tombstoneAge`. Default `'none'`.
   */
  readonly compact?: 'none' | 'key'
  /** How long a message with an empty body is kept, so that readers see it. Default 24 h. */
  readonly tombstoneAge?: Duration
  /** How long an `id` is remembered after its message was accepted; 0 means not at all. Default 10 min. */
  readonly dedupWindow?: Duration
  /**
   * Maximum number of ids that are remembered; when it is reached, messages with a new id are refused with DEDUP_FULL.
   * Default 1,000,000.
   */
  readonly dedupMaxIds?: number
}

/** Options of `streams.ensure`. */
export interface EnsureStreamOptions extends StreamOptions {
  /** Changes the options of a stream that exists, instead of rejecting with QUEUE_CONFLICT. Default false. */
  readonly update?: boolean
}

/** All options of a stream. Durations are in milliseconds, sizes in bytes; 0 means not set. */
export interface StreamSettings {
  readonly retention: { readonly age: number; readonly bytes: number; readonly messages: number }
  readonly waitForGroups: { readonly bytes: number } | null
  readonly compact: 'none' | 'key'
  readonly tombstoneAge: number
  readonly dedupWindow: number
  readonly dedupMaxIds: number
}

/** The state of a stream at the time of the call. */
export interface StreamInfo extends Omit<WireStreamInfo, 'options' | 'createdAtMs'> {
  readonly options: StreamSettings
  readonly createdAt: Date
}

const OPTION_PATHS = {
  retainAgeMs: ['retention', 'age'],
  retainBytes: ['retention', 'bytes'],
  retainMessages: ['retention', 'messages'],
  waitForGroupsBytes: ['waitForGroups', 'bytes'],
  compact: ['compact'],
  tombstoneAgeMs: ['tombstoneAge'],
  dedupWindowMs: ['dedupWindow'],
  dedupMaxIds: ['dedupMaxIds'],
} as const satisfies Record<StreamOptionName, readonly [keyof StreamOptions, string?]>

/**
 * `sluice.streams`. Every call may reject with INVALID_NAME, TIMEOUT, ABORTED or CLOSED, besides the errors that its own
 * description names. Messages are published to a stream as to a queue, and read with `sluice.read`.
 */
export class Streams {
  readonly #requests: Requests

  /** @internal */
  constructor(requests: Requests) {
    this.#requests = requests
  }

  /**
   * Creates the stream if it does not exist. If it exists, only the options that are set are compared with its options.
   *
   * @throws SluiceError QUEUE_CONFLICT when the stream exists with other options and `update` is not true; WRONG_KIND when a
   * queue has this name; INVALID_OPTION naming the option; TOO_MANY_QUEUES
   * @example
   * await sluice.streams.ensure('clicks', { retention: { age: '7d', bytes: 50e9 } })
   */
  async ensure(
    stream: QueueRef,
    options: EnsureStreamOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly created: boolean; readonly stream: StreamInfo }> {
    const { update, ...named } = options
    const wired = wireOptions('stream', OPTION_PATHS, named)
    const result = await this.#call(OP.ENSURE, stream, 'again', call, { options: wired, update })
    if (typeof result['created'] !== 'boolean') throw malformed('ENSURE')
    return { created: result['created'], stream: streamInfo('ENSURE', result['stream']) }
  }

  /** Resolves with the state and the options of a stream. @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND */
  async get(stream: QueueRef, call?: CallOptions): Promise<StreamInfo> {
    const result = await this.#call(OP.GET, stream, 'again', call)
    return streamInfo('GET', result['stream'])
  }

  /** Resolves with all streams, ordered by name. The deadline applies to each page. */
  async list(call?: CallOptions): Promise<StreamInfo[]> {
    const all: StreamInfo[] = []
    for (let after: string | undefined; ;) {
      const { streams, more } = await this.#call(OP.LIST, undefined, 'again', call, { after })
      if (!Array.isArray(streams)) throw malformed('LIST')
      for (const stream of streams) all.push(streamInfo('LIST', stream))
      if (more !== true) return all
      const last = all.at(-1)?.name
      // A page without a new stream would make this loop endless.
      if (streams.length === 0 || last === after) throw malformed('LIST')
      after = last
    }
  }

  /**
   * Deletes the stream and all its messages; its readers end with QUEUE_DELETED. Resolves with the number of deleted
   * messages.
   * @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  async delete(stream: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    const { messages } = await this.#call(OP.DELETE, stream, 'once', call)
    if (typeof messages !== 'number') throw malformed('DELETE')
    return { messages }
  }

  async #call(
    opcode: number,
    stream: QueueRef | undefined,
    repeat: Repeat,
    call: CallOptions | undefined,
    fields: Body = {},
  ): Promise<Body> {
    if (call !== undefined) onlyKnown('streams', call, CALL_OPTIONS)
    const name = stream === undefined ? undefined : queueOf(stream).name
    const body = withoutUndefined({ name, kind: 'stream', ...fields })
    return this.#requests.send(opcode, body, repeat, call, RESULT)
  }
}

function streamInfo(frame: string, value: unknown): StreamInfo {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { options, createdAtMs, ...rest } = value as WireStreamInfo
  if (typeof rest.name !== 'string' || rest.name.length > LIMITS.queueNameBytesMax) throw malformed(frame)
  if (typeof options !== 'object' || options === null || !Number.isSafeInteger(createdAtMs))
    throw malformed(frame)
  const settings = settingsOf(OPTION_PATHS, options) as StreamSettings
  return { ...rest, createdAt: new Date(createdAtMs), options: settings }
}

/**
 * Where a reader begins: at the oldest message that is kept, after the newest message, at an offset, or at the first message
 * that was accepted at a time or later. A time is a Date, milliseconds since 1970, or text such as `2026-11-01T00:00Z`.
 */
export type ReadFrom =
  | 'first'
  | 'last'
  | { readonly offset: number; readonly time?: undefined }
  | { readonly time: Date | number | string; readonly offset?: undefined }

/** Options of `read`. */
export interface ReadOptions {
  /** Default `'first'`. */
  readonly from?: ReadFrom
  /** Waits for further messages at the end of the stream. Without it, the iteration ends there. Default false. */
  readonly follow?: boolean
  /** Yields only messages that have this key and all of these headers. */
  readonly filter?: { readonly key?: string; readonly headers?: Readonly<Record<string, string>> }
  /** Maximum number of messages that are buffered, 1 to 65,535. Default 4,096. */
  readonly prefetch?: number
  /** Maximum size of the buffered messages, in bytes. Default 16 MiB. */
  readonly prefetchBytes?: number
  /** Ends the iteration with ABORTED. */
  readonly signal?: AbortSignal
}

/**
 * Returned by `read`. Leaving a `for await` loop closes it. Across reconnects it yields each message once. If retention
 * removes messages before they are read, it continues after them, and the client emits `missed`.
 */
export interface MessageReader<Body>
  extends AsyncIterableIterator<StreamMessage<Body>, undefined>, AsyncDisposable {
  /** Iterates over arrays of messages that have arrived, instead of single messages. Default: at most 1,000 in each array. */
  batches(max?: number): AsyncGenerator<StreamMessage<Body>[], undefined>
}

const PREFETCH_DEFAULT = 4_096

/** @throws SluiceError INVALID_ARGUMENT */
export function readSettings(options: ReadOptions): ReadSettings {
  onlyKnown('read', options, ['from', 'follow', 'filter', 'prefetch', 'prefetchBytes', 'signal'])
  const { from = 'first', follow = false, filter, prefetch = PREFETCH_DEFAULT } = options
  if (typeof follow !== 'boolean')
    throw new SluiceError('INVALID_ARGUMENT', `\`follow\` is ${shown(follow)}; it must be true or false.`)
  if (filter !== undefined) onlyKnown('read.filter', filter, ['key', 'headers'])
  return {
    from: readStart(from),
    follow,
    filter,
    messages: whole('prefetch', prefetch, 1, LIMITS.creditMessagesMax),
    bytes: prefetchBytes(options.prefetchBytes),
  }
}

/** @internal */
export function readStart(from: ReadFrom): ReadStart {
  if (from === 'first' || from === 'last') return from
  if (typeof from === 'object' && from !== null) {
    onlyKnown('read.from', from, ['offset', 'time'])
    const { offset, time } = from
    if (offset !== undefined && time === undefined)
      return { offset: whole('from.offset', offset, 0, Number.MAX_SAFE_INTEGER) }
    if (time !== undefined && offset === undefined) return { timeMs: startMs(time) }
  }
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`from\` is ${shown(from)}; it must be 'first', 'last', { offset } or { time }.`,
  )
}

function startMs(time: Date | number | string): number {
  const expected = 'a Date, a whole number of milliseconds since 1970, or a time such as 2026-11-01T00:00Z'
  const ms = typeof time === 'string' ? Date.parse(time) : time
  return timeMs('from.time', Number.isNaN(ms) ? time : ms, 'INVALID_ARGUMENT', expected)
}
