/**
 * Queues in control frames: options with their defaults and bounds, requests, and answers.
 *
 * ENSURE { name, kind?, options?, update? } → { created, queue }. GET { name, kind? } → { queue }. LIST { after?, kind? }
 * → { queues, more }. DELETE { name, kind? } → { messages }; the answers for streams are in streams.ts. PURGE { name } → { messages }. PAUSE, RESUME { name } → { changed }.
 * SUBSCRIBE { queue, messages, bytes, limit?, processingTimeoutMs?, claims? } → SUBSCRIBE_OK. UNSUBSCRIBE → RESULT { }.
 *
 * The error for an unknown field names the field. Requests about single messages and consumers are in managing.ts.
 */
import { durationText } from './units.js'
import { decodeClaims, type Claim } from './consuming.js'
import { SluiceError, shown, type ErrorCode } from './errors.js'
import { LIMITS } from './limits.js'
import { addressName, queueName, type QueueName } from './names.js'

interface NumberOption {
  readonly kind: 'number'
  readonly default: number
  readonly min: number
  readonly max: number
  /** Smallest value other than 0; undefined if it is `min`. */
  readonly least?: number
  /** A word that is accepted instead of a number. */
  readonly word?: 'unlimited'
  readonly meaning: string
}

interface ChoiceOption {
  readonly kind: 'choice'
  readonly choices: readonly string[]
  readonly default: string
  readonly meaning: string
}

interface FlagOption {
  readonly kind: 'flag'
  readonly default: boolean
  readonly meaning: string
}

/** The name of another queue, or '' for none. */
interface NameOption {
  readonly kind: 'name'
  readonly default: string
  readonly meaning: string
}

export type QueueOption = NumberOption | ChoiceOption | FlagOption | NameOption

/**
 * The options of a queue. Durations are in milliseconds, and sizes in bytes. If 0 has a special meaning, `meaning`
 * explains it.
 */
export const QUEUE_OPTIONS = {
  maxDeliveries: {
    kind: 'number',
    default: 10,
    min: 1,
    max: LIMITS.maxDeliveriesMax,
    word: 'unlimited',
    meaning: 'Number of failed attempts after which a message is dead.',
  },
  retryInitialMs: {
    kind: 'number',
    default: 1_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'Wait before the second attempt; it doubles with each further attempt.',
  },
  retryMaxMs: {
    kind: 'number',
    default: 300_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'Longest wait between two attempts.',
  },
  processingTimeoutMs: {
    kind: 'number',
    default: 1_800_000,
    min: LIMITS.processingTimeoutMsMin,
    max: LIMITS.delayMsMax,
    meaning: 'How long a message may be handled before its lease ends and it is retried.',
  },
  ttlMs: {
    kind: 'number',
    default: 0,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'Time to live of messages that set no time to live; 0: messages do not expire.',
  },
  keyConcurrency: {
    kind: 'number',
    default: 1,
    min: 1,
    max: LIMITS.keyConcurrencyMax,
    meaning: 'Maximum number of messages of one key that are leased at a time.',
  },
  onFail: {
    kind: 'choice',
    choices: ['block', 'skip'],
    default: 'block',
    meaning:
      'Whether a failed message blocks its key until it is done, or lets later messages of the key pass.',
  },
  unique: {
    kind: 'choice',
    choices: ['window', 'pending'],
    default: 'window',
    meaning:
      'How long an id is remembered: for `dedupWindowMs`, or while its message is pending. Fixed at creation.',
  },
  dedupWindowMs: {
    kind: 'number',
    default: 600_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'How long an id is remembered after its message was accepted; 0: not at all.',
  },
  dedupMaxIds: {
    kind: 'number',
    default: 1_000_000,
    min: 1,
    max: LIMITS.dedupMaxIdsMax,
    meaning:
      'Maximum number of ids that are remembered; messages with further ids are refused, and no id is forgotten early.',
  },
  maxMessages: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning: 'Maximum number of messages that are scheduled, ready or leased; 0: no limit.',
  },
  maxBytes: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning: 'Maximum total size of messages that are scheduled, ready or leased, in bytes; 0: no limit.',
  },
  overflow: {
    kind: 'choice',
    choices: ['reject', 'drop-oldest', 'dead-letter'],
    default: 'reject',
    meaning: 'At a limit: refuse new messages, drop the oldest, or dead-letter the oldest.',
  },
  deadLetter: {
    kind: 'name',
    default: '',
    meaning: 'Queue that dead messages are moved to; without it, dead messages stay in their queue.',
  },
  single: {
    kind: 'flag',
    default: false,
    meaning:
      'One consumer at a time receives messages; another consumer takes over when that one leaves or is idle.',
  },
  retainAgeMs: {
    kind: 'number',
    default: 0,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'How long acknowledged messages are kept for replay; 0: not by age.',
  },
  retainBytes: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning:
      'Maximum bytes of acknowledged messages kept for replay, within one chunk of 1,024 messages; 0: only `retainAgeMs` applies.',
  },
  expiresMs: {
    kind: 'number',
    default: 0,
    min: 0,
    least: LIMITS.expiresMsMin,
    max: LIMITS.delayMsMax,
    meaning:
      'The queue is deleted, with its messages, after it has had no consumer and no call for this long; 0: never.',
  },
  rateMessages: {
    kind: 'number',
    default: 0,
    min: 0,
    max: LIMITS.rateMessagesMax,
    meaning: 'Maximum number of deliveries per `ratePerMs`, and of deliveries in one burst; 0: no limit.',
  },
  ratePerMs: {
    kind: 'number',
    default: 1_000,
    min: 1,
    max: LIMITS.ratePerMsMax,
    meaning: 'Period of `rateMessages`.',
  },
  keyRateMessages: {
    kind: 'number',
    default: 0,
    min: 0,
    max: LIMITS.rateMessagesMax,
    meaning:
      'Maximum number of deliveries of one key per `keyRatePerMs`, and of its deliveries in one burst; 0: no limit.',
  },
  keyRatePerMs: {
    kind: 'number',
    default: 1_000,
    min: 1,
    max: LIMITS.ratePerMsMax,
    meaning: 'Period of `keyRateMessages`.',
  },
} as const satisfies Record<string, QueueOption>

export type QueueOptionName = keyof typeof QUEUE_OPTIONS

export type ValueOf<Option extends QueueOption> = Option extends { readonly kind: 'number' }
  ? number | (Option extends { readonly word: infer Word } ? Word : never)
  : Option extends { readonly choices: readonly (infer Choice)[] }
    ? Choice
    : Option extends { readonly kind: 'flag' }
      ? boolean
      : string

export type QueueOptions = { readonly [Name in QueueOptionName]: ValueOf<(typeof QUEUE_OPTIONS)[Name]> }

export const QUEUE_OPTION_DEFAULTS = Object.fromEntries(
  Object.entries(QUEUE_OPTIONS).map(([name, option]) => [name, option.default]),
) as QueueOptions

/**
 * Checks the options that are set, each by itself and against each other.
 * @throws SluiceError INVALID_ARGUMENT, INVALID_OPTION, INVALID_NAME, OPTION_CONFLICT
 */
export function queueOptions(named: unknown): Partial<QueueOptions> {
  const known = optionsIn('queue', QUEUE_OPTIONS, named) as Partial<QueueOptions>
  checkOptionsTogether(known)
  if (known.unique === 'pending' && known.dedupWindowMs !== undefined) {
    throw new SluiceError(
      'OPTION_CONFLICT',
      '`dedupWindowMs` has no effect with `unique` of "pending": an id is remembered while its message is pending.',
    )
  }
  return known
}

/**
 * Checks the options that are set, each by itself. `kind` is a queue or a stream.
 * @throws SluiceError INVALID_ARGUMENT, INVALID_OPTION, INVALID_NAME
 */
export function optionsIn(
  kind: string,
  table: Readonly<Record<string, QueueOption>>,
  named: unknown,
): Record<string, unknown> {
  const options: Record<string, unknown> = {}
  if (named === undefined) return options
  if (typeof named !== 'object' || named === null || Array.isArray(named) || ArrayBuffer.isView(named)) {
    throw new SluiceError('INVALID_ARGUMENT', '`options` must be a map of option names to values.')
  }
  for (const [name, value] of Object.entries(named)) {
    if (!Object.hasOwn(table, name)) {
      throw new SluiceError(
        'INVALID_OPTION',
        `There is no ${kind} option ${shown(name)}; there are ${Object.keys(table).join(', ')}.`,
      )
    }
    checkOption(kind, name, table[name]!, value)
    options[name] = value
  }
  return options
}

function checkOption(kind: string, name: string, option: QueueOption, value: unknown): void {
  let must: string
  if (option.kind === 'number') {
    const { min, max, least = min, word } = option
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) {
      if (value === 0 || value >= least) return
    }
    if (word !== undefined && value === word) return
    const zero = least === min ? '' : '0, or '
    must = `${zero}a whole number from ${least} to ${max}${word === undefined ? '' : `, or "${word}"`}`
  } else if (option.kind === 'choice') {
    if ((option.choices as readonly unknown[]).includes(value)) return
    must = `one of ${option.choices.join(', ')}`
  } else if (option.kind === 'flag') {
    if (typeof value === 'boolean') return
    must = 'true or false'
  } else {
    if (value !== '') queueName(value)
    return
  }
  throw new SluiceError(
    'INVALID_OPTION',
    `The ${kind} option \`${name}\` is ${shown(value)}; it must be ${must}.`,
  )
}

/**
 * Checks options against each other. Missing options are not compared.
 * @throws SluiceError OPTION_CONFLICT
 */
export function checkOptionsTogether(options: Partial<QueueOptions>): void {
  const { retryInitialMs, retryMaxMs, overflow, maxMessages, maxBytes } = options
  if (retryInitialMs !== undefined && retryMaxMs !== undefined && retryInitialMs > retryMaxMs) {
    throw new SluiceError(
      'OPTION_CONFLICT',
      `\`retryInitialMs\` is ${durationText(retryInitialMs)}, above \`retryMaxMs\` of ${durationText(retryMaxMs)}.`,
    )
  }
  if (overflow !== undefined && overflow !== 'reject' && maxMessages === 0 && maxBytes === 0) {
    throw new SluiceError(
      'OPTION_CONFLICT',
      `\`overflow\` is "${overflow}", and neither \`maxMessages\` nor \`maxBytes\` is set: nothing can overflow.`,
    )
  }
}

/**
 * Counters of a queue. Each counts events since the queue was created. After a crash of the broker, the last two can be
 * too low; the others are exact.
 */
export const QUEUE_COUNTERS = {
  purged: 'Removed by a purge.',
  expired: 'Expired before they were handled.',
  dropped: 'Dropped at a limit, to make room for newer messages.',
  cancelled: 'Cancelled by id or offset.',
  duplicates: 'Not kept, because another message had the same id.',
  moved: 'Dead, and moved to another queue.',
  discarded: 'Dead, and deleted.',
  redriven: 'Dead, and redriven.',
  released: 'Released without an attempt, by a consumer or because the consumer ended.',
  redelivered: 'Delivered again.',
} as const

export type QueueCounter = keyof typeof QUEUE_COUNTERS
export type QueueCounts = { readonly [Name in QueueCounter]: number }

/** A queue in the answers to GET and LIST. Counts are numbers of messages unless their name says otherwise. */
export interface QueueInfo extends QueueCounts {
  readonly name: string
  readonly options: QueueOptions
  /** Whether the queue is paused: nothing is delivered until it is resumed. */
  readonly paused: boolean
  readonly ready: number
  /** Messages that are not due yet, including retries. */
  readonly scheduled: number
  readonly leased: number
  readonly dead: number
  /** Size of the records of all messages that are in the queue, in bytes. */
  readonly bytes: number
  readonly consumers: number
  /** Time since the oldest ready message was published or became due; null if none is ready. */
  readonly oldestReadyMs: number | null
  /** Number of messages accepted since the queue was created; duplicates do not count. */
  readonly published: number
  /** Number of messages acknowledged since the queue was created. */
  readonly acked: number
  /** Bytes of the records of acknowledged messages that are kept for replay. */
  readonly retainedBytes: number
  /** If the queue is at its rate: the time from which the next message may be delivered; otherwise null. */
  readonly rateUntilMs: number | null
  /** Number of keys that are held: at `keyRateMessages`, or paused by a retry. */
  readonly heldKeys: number
  readonly createdAtMs: number
}

export interface EnsureRequest {
  readonly name: QueueName
  readonly options: Partial<QueueOptions>
  readonly update: boolean
}

export interface SubscribeRequest {
  readonly queue: QueueName
  readonly messages: number
  readonly bytes: number
  readonly limit: number | undefined
  /** Replaces the processing timeout of the queue. */
  readonly processingTimeoutMs: number | undefined
  /** Leases of an earlier connection whose messages the client still handles. */
  readonly claims: readonly Claim[]
}

export type Body = { readonly [name: string]: unknown }

/** @throws SluiceError INVALID_ARGUMENT, INVALID_OPTION, INVALID_NAME, OPTION_CONFLICT */
export function ensureRequest(body: Body): EnsureRequest {
  onlyFields('ENSURE', body, ['name', 'kind', 'options', 'update'])
  return {
    name: queueName(body['name']),
    options: queueOptions(body['options']),
    update: updateOf(body),
  }
}

/** @throws SluiceError INVALID_ARGUMENT */
export function updateOf({ update = false }: Body): boolean {
  if (typeof update === 'boolean') return update
  throw new SluiceError('INVALID_ARGUMENT', '`update` must be true or false.')
}

/** The body of PURGE, PAUSE and RESUME. @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function nameRequest(frame: string, body: Body): QueueName {
  onlyFields(frame, body, ['name'])
  return addressName(body['name'])
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function subscribeRequest(body: Body): SubscribeRequest {
  onlyFields('SUBSCRIBE', body, ['queue', 'messages', 'bytes', 'limit', 'processingTimeoutMs', 'claims'])
  const { processingTimeoutMs } = body
  return {
    queue: addressName(body['queue']),
    messages: whole('messages', body['messages'], LIMITS.creditMessagesMax),
    bytes: whole('bytes', body['bytes'], LIMITS.creditBytesMax),
    limit: body['limit'] === undefined ? undefined : whole('limit', body['limit'], Number.MAX_SAFE_INTEGER),
    processingTimeoutMs:
      processingTimeoutMs === undefined
        ? undefined
        : whole('processingTimeoutMs', processingTimeoutMs, LIMITS.delayMsMax, LIMITS.processingTimeoutMsMin),
    claims: claimsOf(body['claims']),
  }
}

function claimsOf(claims: unknown): readonly Claim[] {
  if (claims === undefined) return []
  if (!(claims instanceof Uint8Array))
    throw new SluiceError('INVALID_ARGUMENT', `\`claims\` is ${shown(claims)}; it must be bytes.`)
  return decodeClaims(claims)
}

/** @throws SluiceError INVALID_ARGUMENT */
export function onlyFields(frame: string, body: Body, known: readonly string[]): void {
  for (const name of Object.keys(body)) {
    if (!known.includes(name)) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `${frame} has no field ${shown(name)}; it has ${known.join(', ') || 'none'}.`,
      )
    }
  }
}

/** @throws SluiceError INVALID_ARGUMENT, or `code` */
export function whole(
  name: string,
  value: unknown,
  max: number,
  min = 0,
  code: ErrorCode = 'INVALID_ARGUMENT',
): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new SluiceError(
      code,
      `\`${name}\` is ${shown(value)}; it must be a whole number from ${min} to ${max}.`,
    )
  }
  return value
}
