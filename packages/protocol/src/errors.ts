/**
 * The only table of error codes. Each code has a number on the wire, a scope, and a flag that says whether the same
 * call can succeed later. Numbers are never reused. Errors with numbers from 1000 on are raised locally and are never
 * sent.
 */

/** Scope of an error: it ends one request, one channel (subscription), or the connection. */
export type ErrorScope = 'request' | 'channel' | 'connection'

export interface ErrorKind {
  readonly number: number
  readonly scope: ErrorScope
  /** Whether the same call, unchanged, can succeed later. */
  readonly retryable: boolean
  readonly meaning: string
}

export const ERRORS = {
  PROTOCOL_VERSION: {
    number: 1,
    scope: 'connection',
    retryable: false,
    meaning: 'The peers share no protocol version.',
  },
  MALFORMED_FRAME: {
    number: 2,
    scope: 'connection',
    retryable: false,
    meaning: 'A frame does not have the layout of its kind.',
  },
  FRAME_TOO_LARGE: {
    number: 3,
    scope: 'connection',
    retryable: false,
    meaning: 'A frame is larger than agreed.',
  },
  UNKNOWN_OPCODE: {
    number: 4,
    scope: 'connection',
    retryable: false,
    meaning: 'No frame kind has this number.',
  },
  UNEXPECTED_FRAME: {
    number: 5,
    scope: 'connection',
    retryable: false,
    meaning: 'This frame may not be sent by this side or at this stage.',
  },
  AUTH_FAILED: {
    number: 6,
    scope: 'connection',
    retryable: false,
    meaning: 'The credentials were not accepted.',
  },
  HANDSHAKE_TIMEOUT: {
    number: 7,
    scope: 'connection',
    retryable: true,
    meaning: 'The handshake was not finished in time.',
  },
  HEARTBEAT_TIMEOUT: {
    number: 8,
    scope: 'connection',
    retryable: true,
    meaning: 'Nothing was received from the peer for two heartbeat intervals.',
  },
  SLOW_CONSUMER: {
    number: 9,
    scope: 'connection',
    retryable: true,
    meaning: 'The peer did not read what was sent to it.',
  },
  TOO_MANY_CONNECTIONS: {
    number: 10,
    scope: 'connection',
    retryable: true,
    meaning: 'The broker has reached its limit of connections.',
  },
  SHUTTING_DOWN: { number: 11, scope: 'connection', retryable: true, meaning: 'The broker is stopping.' },
  PRODUCER_UNKNOWN: {
    number: 12,
    scope: 'connection',
    retryable: false,
    meaning: 'The broker no longer knows the numbers of this producer.',
  },
  NOT_SUPPORTED: {
    number: 13,
    scope: 'request',
    retryable: false,
    meaning: 'This version does not support the named option or frame.',
  },
  INVALID_ARGUMENT: {
    number: 14,
    scope: 'request',
    retryable: false,
    meaning: 'A value is of the wrong kind or outside its bounds.',
  },
  INVALID_NAME: {
    number: 15,
    scope: 'request',
    retryable: false,
    meaning: 'A name is empty, too long or has characters that are not allowed in names.',
  },
  QUEUE_NOT_FOUND: { number: 16, scope: 'request', retryable: false, meaning: 'No queue has this name.' },
  QUEUE_CONFLICT: {
    number: 17,
    scope: 'request',
    retryable: false,
    meaning: 'The queue exists, but its options differ from the options in the request.',
  },
  QUEUE_DELETED: {
    number: 18,
    scope: 'channel',
    retryable: false,
    meaning: 'The queue was deleted while the subscription was open.',
  },
  TOO_MANY_QUEUES: {
    number: 19,
    scope: 'request',
    retryable: false,
    meaning: 'The broker has reached its limit of queues.',
  },
  MESSAGE_TOO_LARGE: {
    number: 20,
    scope: 'request',
    retryable: false,
    meaning: 'A message is larger than the broker accepts.',
  },
  BATCH_TOO_LARGE: {
    number: 21,
    scope: 'request',
    retryable: false,
    meaning: 'A batch has too many bytes or messages.',
  },
  BATCH_MALFORMED: {
    number: 22,
    scope: 'request',
    retryable: false,
    meaning: 'A batch, or a record in a batch, does not have the required layout.',
  },
  BATCH_CORRUPT: {
    number: 23,
    scope: 'request',
    retryable: true,
    meaning: 'The checksum of a batch does not match its records.',
  },
  UNKNOWN_OUTCOME: {
    number: 24,
    scope: 'request',
    retryable: false,
    meaning: 'A batch number is older than the window: the batch may or may not have been accepted.',
  },
  NUMBER_REUSED: {
    number: 25,
    scope: 'request',
    retryable: false,
    meaning: 'A batch number was already used for other bytes.',
  },
  DISK_LOW: {
    number: 26,
    scope: 'request',
    retryable: true,
    meaning: 'Too little disk space is left to accept messages; consumers can continue.',
  },
  MEMORY_FULL: {
    number: 27,
    scope: 'request',
    retryable: true,
    meaning: 'The memory budget of the broker is used up; consumers can continue.',
  },
  LEASE_LOST: {
    number: 28,
    scope: 'request',
    retryable: false,
    meaning: 'The message no longer belongs to the consumer that settles it.',
  },
  SUBSCRIPTION_NOT_FOUND: {
    number: 29,
    scope: 'request',
    retryable: false,
    meaning: 'No open subscription has this id on this connection.',
  },
  CHANNEL_IN_USE: {
    number: 30,
    scope: 'request',
    retryable: false,
    meaning: 'A subscription or a reader is already open on this channel.',
  },
  TOO_MANY_SUBSCRIPTIONS: {
    number: 31,
    scope: 'request',
    retryable: true,
    meaning: 'The connection has reached its limit of subscriptions and readers.',
  },
  IN_FLIGHT_EXCEEDED: {
    number: 32,
    scope: 'connection',
    retryable: false,
    meaning: 'The producer has more unanswered batches than agreed.',
  },
  CORRUPT: {
    number: 33,
    scope: 'channel',
    retryable: false,
    meaning: 'Stored bytes do not match their checksum and are not delivered.',
  },
  QUEUE_FULL: {
    number: 34,
    scope: 'request',
    retryable: true,
    meaning: 'The queue holds as many messages or bytes as its limits allow.',
  },
  DEDUP_FULL: {
    number: 35,
    scope: 'request',
    retryable: true,
    meaning: 'The queue has reached its limit of remembered ids; older ids must leave the window first.',
  },
  OPTION_CONFLICT: {
    number: 36,
    scope: 'request',
    retryable: false,
    meaning: 'Two of the given options contradict each other.',
  },
  DEAD_LETTER_CYCLE: {
    number: 37,
    scope: 'request',
    retryable: false,
    meaning: 'A queue would become its own dead-letter queue, directly or through others.',
  },
  OPTION_FIXED: {
    number: 38,
    scope: 'request',
    retryable: false,
    meaning: 'This queue option is fixed when the queue is created and cannot be changed.',
  },
  MESSAGE_NOT_FOUND: {
    number: 39,
    scope: 'request',
    retryable: false,
    meaning: 'No message with this offset or id is in the queue.',
  },
  MESSAGE_LEASED: {
    number: 40,
    scope: 'request',
    retryable: false,
    meaning: 'A consumer holds the message; it cannot be changed until it is settled.',
  },
  CONSUMER_NOT_FOUND: {
    number: 41,
    scope: 'request',
    retryable: false,
    meaning: 'No consumer of the queue has this id.',
  },
  CONSUMER_CLOSED: {
    number: 42,
    scope: 'channel',
    retryable: false,
    meaning: 'An operator closed the consumer.',
  },
  TRANSACTION_TOO_LARGE: {
    number: 43,
    scope: 'request',
    retryable: false,
    meaning: 'An atomic step has too many bytes, messages or acknowledgements.',
  },
  INVALID_OPTION: {
    number: 44,
    scope: 'request',
    retryable: false,
    meaning: 'A queue option is unknown, of the wrong kind or outside its bounds.',
  },
  INVALID_PRIORITY: {
    number: 45,
    scope: 'request',
    retryable: false,
    meaning: 'A priority is not a whole number from 0 to 31.',
  },
  INVALID_DELAY: {
    number: 46,
    scope: 'request',
    retryable: false,
    meaning: 'A delay, or the time in `at`, is negative or more than 100 years ahead.',
  },
  AT_IN_THE_PAST: {
    number: 47,
    scope: 'request',
    retryable: false,
    meaning: 'The time in `at` is more than a minute in the past.',
  },
  INVALID_TTL: {
    number: 48,
    scope: 'request',
    retryable: false,
    meaning: 'A time to live is not from 1 ms to 100 years.',
  },
  INVALID_KEY: {
    number: 49,
    scope: 'request',
    retryable: false,
    meaning: 'A key is not text of 1 to 255 bytes.',
  },
  INVALID_ID: {
    number: 50,
    scope: 'request',
    retryable: false,
    meaning: 'An id is not text of 1 to 255 bytes.',
  },
  INVALID_HEADERS: {
    number: 51,
    scope: 'request',
    retryable: false,
    meaning: 'Headers are not a map of text to text, are too many or take too many bytes.',
  },
  TOO_MANY_REQUESTS: {
    number: 52,
    scope: 'request',
    retryable: true,
    meaning: 'The connection or the broker has reached its limit of unanswered requests that read from disk.',
  },
  READ_FAILED: {
    number: 53,
    scope: 'request',
    retryable: true,
    meaning: 'The log could not be read, for a reason that may be temporary; it is not damaged.',
  },
  EARLIER_REFUSED: {
    number: 54,
    scope: 'request',
    retryable: true,
    meaning: 'An earlier batch for the same queue, which this batch follows, was refused.',
  },
  TOO_MANY_DEFINITIONS: {
    number: 55,
    scope: 'request',
    retryable: false,
    meaning: 'The broker has reached its limit of bindings and schedules.',
  },
  DEFINITION_TOO_LARGE: {
    number: 56,
    scope: 'request',
    retryable: false,
    meaning: 'A binding or schedule takes more bytes than the broker accepts.',
  },
  INVALID_TOPIC: {
    number: 57,
    scope: 'request',
    retryable: false,
    meaning:
      'The name of a topic is too long, has too many levels or an empty one, or has characters that are not allowed.',
  },
  INVALID_PATTERN: {
    number: 58,
    scope: 'request',
    retryable: false,
    meaning:
      'A pattern is too long, has too many levels or an empty one, or has characters that are not allowed.',
  },
  UNROUTABLE: {
    number: 59,
    scope: 'request',
    retryable: false,
    meaning: 'No binding matches the topic and the headers of a message.',
  },
  TOO_MANY_BINDINGS: {
    number: 60,
    scope: 'request',
    retryable: false,
    meaning: 'The broker has reached its limit of bindings, in all or for one pattern.',
  },
  TOO_MANY_TARGETS: {
    number: 61,
    scope: 'request',
    retryable: false,
    meaning:
      'More queues are bound to the topic than one publish can reach, or too many patterns branch on it.',
  },
  WRONG_KIND: {
    number: 62,
    scope: 'request',
    retryable: false,
    meaning: 'The name belongs to another kind than the call needs: a queue, a stream or a group.',
  },
  OPTION_UNSUPPORTED: {
    number: 63,
    scope: 'request',
    retryable: false,
    meaning: 'The target of a message does not support an option of the message.',
  },
  KEY_REQUIRED: {
    number: 64,
    scope: 'request',
    retryable: false,
    meaning: 'A message for a stream with `compact` has no key.',
  },
  SCHEDULE_NOT_FOUND: {
    number: 80,
    scope: 'request',
    retryable: false,
    meaning: 'There is no schedule with this name.',
  },
  SCHEDULE_CONFLICT: {
    number: 81,
    scope: 'request',
    retryable: false,
    meaning: 'The schedule exists, but it differs from the one in the request.',
  },
  INVALID_CRON: {
    number: 82,
    scope: 'request',
    retryable: false,
    meaning: 'A cron expression does not have five or six valid fields.',
  },
  CRON_NEVER_FIRES: {
    number: 83,
    scope: 'request',
    retryable: false,
    meaning: 'A cron expression has no tick, because its days do not exist in its months.',
  },
  UNKNOWN_TIME_ZONE: {
    number: 84,
    scope: 'request',
    retryable: false,
    meaning: 'A time zone is not a name of the IANA database.',
  },
  INVALID_INTERVAL: {
    number: 85,
    scope: 'request',
    retryable: false,
    meaning: 'The interval of a schedule is below one second or above 100 years.',
  },

  UNREACHABLE: {
    number: 1000,
    scope: 'connection',
    retryable: true,
    meaning: 'No broker answers at the address.',
  },
  CONNECTION_LOST: {
    number: 1001,
    scope: 'connection',
    retryable: true,
    meaning: 'The connection ended before the answer arrived.',
  },
  CLOSED: {
    number: 1002,
    scope: 'connection',
    retryable: false,
    meaning: 'The client, worker or iterator was closed.',
  },
  TIMEOUT: { number: 1003, scope: 'request', retryable: true, meaning: 'The deadline of the call passed.' },
  ABORTED: {
    number: 1004,
    scope: 'request',
    retryable: false,
    meaning: 'The signal of the call was aborted.',
  },
  INVALID_BODY: {
    number: 1005,
    scope: 'request',
    retryable: false,
    meaning: 'The body is not bytes, text or plain data, or cannot be decoded.',
  },
  INVALID_URL: {
    number: 1006,
    scope: 'connection',
    retryable: false,
    meaning: 'The address is not of the form sluice://host:port.',
  },
  ALREADY_SETTLED: {
    number: 1007,
    scope: 'request',
    retryable: false,
    meaning: 'The same consumer has already settled the message.',
  },
  TOO_MANY_WAITING: {
    number: 1008,
    scope: 'request',
    retryable: true,
    meaning: 'The client has reached its limit of memory for publishes that wait to be sent.',
  },
  OFFLINE: {
    number: 1009,
    scope: 'request',
    retryable: true,
    meaning: 'There is no connection, and the call does not wait for one.',
  },
  REQUEST_TIMEOUT: {
    number: 1010,
    scope: 'request',
    retryable: true,
    meaning: 'No reply to a request has arrived before its deadline.',
  },
  REQUEST_FAILED: {
    number: 1011,
    scope: 'request',
    retryable: false,
    meaning: 'The consumer of a request has made it a dead letter.',
  },
  NOT_A_REQUEST: {
    number: 1012,
    scope: 'request',
    retryable: false,
    meaning: 'The message is not a request, so it cannot be replied to.',
  },
  ALREADY_REPLIED: {
    number: 1013,
    scope: 'request',
    retryable: false,
    meaning: 'The same consumer has already replied to the message.',
  },
  DATA_DIR_LOCKED: {
    number: 1100,
    scope: 'request',
    retryable: false,
    meaning: 'Another broker uses the data directory.',
  },
  LOG_CORRUPT: {
    number: 1101,
    scope: 'request',
    retryable: false,
    meaning: 'The log is damaged before its end; the broker does not start with it.',
  },
  LOG_FAILED: {
    number: 1102,
    scope: 'request',
    retryable: false,
    meaning: 'A write or sync of the active segment failed; the process must stop.',
  },
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof ERRORS

const CODES = new Map<number, ErrorCode>()
for (const [code, { number }] of Object.entries(ERRORS)) {
  if (CODES.has(number)) throw new Error(`error number ${number} is defined twice`)
  CODES.set(number, code as ErrorCode)
}

/** Returns the code with this number on the wire, or undefined if this version does not know the number. */
export function errorCode(number: number): ErrorCode | undefined {
  return CODES.get(number)
}

/** The effect of a failed call; undefined if the call had no effect. */
export type Effect = 'unknown' | 'partial'

/** The counts of a call that acts on many messages and that failed part-way. */
export interface Progress {
  readonly matched: number
  readonly redriven?: number
  readonly guarded?: number
  readonly barred?: number
  readonly deleted?: number
  readonly replayed?: number
  /** For a replay: the `cursor` at which to continue. */
  readonly cursor?: string
}

/** The queue and the message that an error concerns, if any. */
export interface SluiceErrorNames {
  readonly queue?: string | undefined
  /** Offset of the message. */
  readonly offset?: number | undefined
}

export interface SluiceErrorOptions extends SluiceErrorNames {
  readonly cause?: unknown
  /** Overrides the scope in the table if the error ends more than an error of this code usually does. */
  readonly scope?: ErrorScope
  /** Milliseconds to wait before a retry; 0 if unspecified. */
  readonly retryAfterMs?: number
  /** `unknown`: the call may or may not have taken effect. `partial`: a part of the call took effect; see `progress`. */
  readonly outcome?: Effect
  readonly progress?: Progress
  /** Overrides the value in the table with the value that a newer peer sent. */
  readonly retryable?: boolean
}

// Characters that move a cursor or end a line and that JSON does not escape.
const UNESCAPED = /[\p{Cc}\p{Zl}\p{Zp}]/gu

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
}

/** Returns any value as a short text for an error message. Unlike `String`, it never throws. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 40)).replace(UNESCAPED, escaped)
  if (typeof value === 'function') return 'a function'
  if (typeof value !== 'object' || value === null) return String(value).slice(0, 40)
  return Array.isArray(value) ? 'a list' : ArrayBuffer.isView(value) ? 'bytes' : 'an object'
}

/**
 * Every error that the broker or a client raises on purpose. `message` names the refused value and the limit, if there
 * are any.
 */
export class SluiceError extends Error {
  readonly code: ErrorCode
  readonly scope: ErrorScope
  readonly retryable: boolean
  readonly retryAfterMs: number
  readonly outcome: Effect | undefined
  /** The progress of a call over many messages before it failed. */
  readonly progress: Progress | undefined
  /** The queue that the call concerns. */
  readonly queue: string | undefined
  /** The offset of the message that the call concerns. */
  readonly offset: number | undefined

  constructor(code: ErrorCode, message: string, options: SluiceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'SluiceError'
    this.code = code
    this.scope = options.scope ?? ERRORS[code].scope
    this.retryable = options.retryable ?? ERRORS[code].retryable
    this.retryAfterMs = options.retryAfterMs ?? 0
    this.outcome = options.outcome
    this.progress = options.progress
    this.queue = options.queue
    this.offset = options.offset
  }

  /** Returns a copy of the error with these names. */
  with(names: SluiceErrorNames): SluiceError {
    const { code, message, cause, scope, retryable, retryAfterMs, outcome, progress } = this
    const { queue = this.queue, offset = this.offset } = names
    const options = { cause, scope, retryable, retryAfterMs, queue, offset }
    const effect = { ...(outcome && { outcome }), ...(progress && { progress }) }
    return new SluiceError(code, message, { ...options, ...effect })
  }
}
