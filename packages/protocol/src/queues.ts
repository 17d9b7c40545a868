/**
 * What control frames say about queues: options with their defaults and bounds, requests, and answers.
 *
 * ENSURE { name, options?, update? } → { created, queue }. GET { name } → { queue }. LIST { after? } → { queues, more }.
 * DELETE { name } → { messages }. PURGE { name } → { messages }. SUBSCRIBE { queue, messages, bytes, limit? } →
 * SUBSCRIBE_OK. UNSUBSCRIBE → RESULT { }. Unknown fields are refused by name.
 */
import { SluiceError, shown } from './errors.js'
import { LIMITS } from './limits.js'
import { queueName, type QueueName } from './names.js'

interface NumberOption {
  readonly default: number
  readonly min: number
  readonly max: number
  readonly meaning: string
}

/** The options of a queue, all whole numbers. Durations are milliseconds. */
export const QUEUE_OPTIONS = {
  maxDeliveries: {
    default: 10,
    min: 1,
    max: LIMITS.maxDeliveriesMax,
    meaning: 'Tries after which a message is dead.',
  },
  retryInitialMs: {
    default: 1_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'Wait before the second try; doubles with each further one.',
  },
  retryMaxMs: {
    default: 300_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'Longest wait between two tries.',
  },
} as const satisfies Record<string, NumberOption>

/** Names that later versions give a meaning to: refused by name until then, never accepted and ignored. */
export const QUEUE_OPTIONS_RESERVED = [
  'processingTimeoutMs',
  'ttlMs',
  'keyConcurrency',
  'onFail',
  'dedupWindowMs',
  'dedupMaxIds',
  'unique',
  'maxMessages',
  'maxBytes',
  'overflow',
  'deadLetter',
  'single',
  'retain',
] as const

export type QueueOptions = { readonly [Name in keyof typeof QUEUE_OPTIONS]: number }

export const QUEUE_OPTION_DEFAULTS: QueueOptions = {
  maxDeliveries: QUEUE_OPTIONS.maxDeliveries.default,
  retryInitialMs: QUEUE_OPTIONS.retryInitialMs.default,
  retryMaxMs: QUEUE_OPTIONS.retryMaxMs.default,
}

/**
 * Checks the options that were named.
 * @throws SluiceError INVALID_ARGUMENT, NOT_SUPPORTED
 */
export function queueOptions(named: unknown): Partial<QueueOptions> {
  if (named === undefined) return {}
  if (typeof named !== 'object' || named === null || Array.isArray(named) || ArrayBuffer.isView(named)) {
    throw new SluiceError('INVALID_ARGUMENT', '`options` must be a map of option names to values.')
  }
  const options: Partial<Record<keyof QueueOptions, number>> = {}
  for (const [name, value] of Object.entries(named)) {
    const option = (QUEUE_OPTIONS as Record<string, NumberOption>)[name]
    if (option === undefined || !Object.hasOwn(QUEUE_OPTIONS, name)) {
      if ((QUEUE_OPTIONS_RESERVED as readonly string[]).includes(name)) {
        throw new SluiceError(
          'NOT_SUPPORTED',
          `The queue option \`${name}\` is not supported by this version.`,
        )
      }
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `There is no queue option ${shown(name)}; there are ${Object.keys(QUEUE_OPTIONS).join(', ')}.`,
      )
    }
    if (typeof value !== 'number' || !Number.isInteger(value) || value < option.min || value > option.max) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `The queue option \`${name}\` is ${shown(value)}; it must be a whole number from ${option.min} to ${option.max}.`,
      )
    }
    options[name as keyof QueueOptions] = value
  }
  if (
    options.retryInitialMs !== undefined &&
    options.retryMaxMs !== undefined &&
    options.retryInitialMs > options.retryMaxMs
  ) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`retryInitialMs\` is ${options.retryInitialMs}, above \`retryMaxMs\` of ${options.retryMaxMs}.`,
    )
  }
  return options
}

/** What a queue holds at one moment, as GET and LIST tell it. Counts are messages unless named otherwise. */
export interface QueueInfo {
  readonly name: string
  readonly options: QueueOptions
  readonly ready: number
  /** Waiting for their time, retries included. */
  readonly scheduled: number
  readonly leased: number
  readonly dead: number
  /** Records of all messages that are not gone. */
  readonly bytes: number
  readonly consumers: number
  /** Age of the oldest ready message; null when none is ready. */
  readonly oldestReadyMs: number | null
  /** Since the queue was made: accepted, acknowledged, handed out again, given up. */
  readonly published: number
  readonly acked: number
  readonly redelivered: number
  readonly purged: number
  /** Their time to live was over before they were handled. */
  readonly expired: number
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
}

type Body = { readonly [name: string]: unknown }

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME, NOT_SUPPORTED */
export function ensureRequest(body: Body): EnsureRequest {
  onlyFields('ENSURE', body, ['name', 'options', 'update'])
  if (body['update'] !== undefined && typeof body['update'] !== 'boolean') {
    throw new SluiceError('INVALID_ARGUMENT', '`update` must be true or false.')
  }
  return {
    name: queueName(body['name']),
    options: queueOptions(body['options']),
    update: body['update'] === true,
  }
}

/** The body of GET, DELETE and PURGE. @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function nameRequest(frame: string, body: Body): QueueName {
  onlyFields(frame, body, ['name'])
  return queueName(body['name'])
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME, NOT_SUPPORTED */
export function subscribeRequest(body: Body): SubscribeRequest {
  onlyFields('SUBSCRIBE', body, ['queue', 'messages', 'bytes', 'limit'])
  return {
    queue: queueName(body['queue']),
    messages: whole('messages', body['messages'], LIMITS.creditMessagesMax),
    bytes: whole('bytes', body['bytes'], LIMITS.creditBytesMax),
    limit: body['limit'] === undefined ? undefined : whole('limit', body['limit'], Number.MAX_SAFE_INTEGER),
  }
}

/** @throws SluiceError INVALID_ARGUMENT */
export function onlyFields(frame: string, body: Body, known: readonly string[]): void {
  for (const name of Object.keys(body)) {
    if (!known.includes(name)) {
      const code = name === 'processingTimeoutMs' ? 'NOT_SUPPORTED' : 'INVALID_ARGUMENT'
      throw new SluiceError(
        code,
        `${frame} has no field ${shown(name)}; it has ${known.join(', ') || 'none'}.`,
      )
    }
  }
}

function whole(name: string, value: unknown, max: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`${name}\` is ${shown(value)}; it must be a whole number from 0 to ${max}.`,
    )
  }
  return value
}
