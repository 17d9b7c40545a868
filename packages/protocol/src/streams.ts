/**
 * Streams in control frames: options with their defaults and bounds, requests, and answers.
 *
 * ENSURE { name, kind: 'stream', options?, update? } → { created, stream }. GET { name, kind: 'stream' } → { stream }.
 * LIST { kind: 'stream', after? } → { streams, more }. DELETE { name, kind: 'stream' } → { messages }. Without `kind`, these
 * frames are about queues.
 */
import { SluiceError, shown } from './errors.js'
import { groupName, queueName, type QueueName } from './names.js'
import { QUEUE_OPTIONS, onlyFields, optionsIn, updateOf, type Body, type ValueOf } from './queues.js'
import { LIMITS } from './limits.js'

export const KINDS = ['queue', 'stream', 'group'] as const
export type Kind = (typeof KINDS)[number]

/** The options of a stream. If 0 has a special meaning, `meaning` explains it. */
export const STREAM_OPTIONS = {
  retainAgeMs: {
    kind: 'number',
    default: 0,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'How long messages are kept; 0: not limited by age.',
  },
  retainBytes: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning:
      'Maximum bytes of messages that are kept, within one chunk of 1,024 messages; 0: not limited by bytes.',
  },
  retainMessages: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning:
      'Maximum number of messages that are kept, within one chunk of 1,024 messages; 0: not limited by number.',
  },
  waitForGroupsBytes: {
    kind: 'number',
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    meaning:
      'Retention keeps messages that are neither acknowledged nor dead in a group, until the stream has more bytes than this; 0: retention does not wait for groups.',
  },
  compact: {
    kind: 'choice',
    choices: ['none', 'key'],
    default: 'none',
    meaning:
      'key: keeps only the newest message of each key, and refuses messages without a key; none: keeps older ones too.',
  },
  tombstoneAgeMs: {
    kind: 'number',
    default: 86_400_000,
    min: 0,
    max: LIMITS.delayMsMax,
    meaning: 'With `compact`: how long the newest message of a key is kept if it has no body.',
  },
  dedupWindowMs: QUEUE_OPTIONS.dedupWindowMs,
  dedupMaxIds: QUEUE_OPTIONS.dedupMaxIds,
} as const

export type StreamOptionName = keyof typeof STREAM_OPTIONS
export type StreamOptions = {
  readonly [Name in StreamOptionName]: ValueOf<(typeof STREAM_OPTIONS)[Name]>
}

export const STREAM_OPTION_DEFAULTS = Object.fromEntries(
  Object.entries(STREAM_OPTIONS).map(([name, option]) => [name, option.default]),
) as StreamOptions

/** A stream in the answers to ENSURE, GET and LIST. */
export interface StreamInfo {
  readonly name: string
  readonly options: StreamOptions
  /** Number of messages that are kept, and the size of their records in bytes. */
  readonly messages: number
  readonly bytes: number
  /** Lower bound for the offset of the oldest message; `next` if the stream is empty. It can be up to 1,023 too low. */
  readonly first: number
  /** Offset of the next message. */
  readonly next: number
  /** Number of messages accepted since the stream was created; duplicates do not count. */
  readonly published: number
  /** Messages not kept, because another message had the same id. */
  readonly duplicates: number
  /**
   * The group that is furthest behind, if retention waits for it or has removed messages that it had not finished;
   * otherwise null.
   */
  readonly heldBy: string | null
  /** Bytes of the messages that are beyond the limits of retention and are kept for groups. */
  readonly heldBytes: number
  /** Number of messages that compaction has removed. */
  readonly compacted: number
  /** Number of open readers. */
  readonly readers: number
  readonly createdAtMs: number
}

export interface EnsureStreamRequest {
  readonly name: QueueName
  readonly options: Partial<StreamOptions>
  readonly update: boolean
}

/** Checks the options that are in force together. @throws SluiceError OPTION_CONFLICT */
export function checkStreamOptionsTogether({ retainBytes, waitForGroupsBytes }: StreamOptions): void {
  if (waitForGroupsBytes === 0 || waitForGroupsBytes > retainBytes) return
  throw new SluiceError(
    'OPTION_CONFLICT',
    `\`waitForGroupsBytes\` is ${waitForGroupsBytes} and \`retainBytes\` is ${retainBytes}: it must be greater, because it limits all that the stream keeps while retention waits.`,
  )
}

/** The kind that ENSURE, GET, LIST or DELETE is about. @throws SluiceError INVALID_ARGUMENT */
export function kindOf({ kind = 'queue' }: Body): Kind {
  if (KINDS.includes(kind as Kind)) return kind as Kind
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`kind\` is ${shown(kind)}; it must be one of ${KINDS.join(', ')}.`,
  )
}

/** ENSURE with the kind `stream`. @throws SluiceError INVALID_ARGUMENT, INVALID_OPTION, INVALID_NAME */
export function ensureStreamRequest(body: Body): EnsureStreamRequest {
  onlyFields('ENSURE', body, ['name', 'kind', 'options', 'update'])
  return {
    name: queueName(body['name']),
    options: optionsIn('stream', STREAM_OPTIONS, body['options']),
    update: updateOf(body),
  }
}

/** The body of GET and DELETE. @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function kindRequest(frame: string, body: Body): { readonly name: QueueName; readonly kind: Kind } {
  onlyFields(frame, body, ['name', 'kind'])
  const kind = kindOf(body)
  return { name: kind === 'group' ? groupName(body['name']) : queueName(body['name']), kind }
}

export interface ListRequest {
  readonly after: string
  readonly kind: Kind
  /** The stream whose groups are listed; undefined for all groups. */
  readonly stream: QueueName | undefined
}

/** The body of LIST. @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function listRequest(body: Body): ListRequest {
  const kind = kindOf(body)
  onlyFields('LIST', body, kind === 'group' ? ['after', 'kind', 'stream'] : ['after', 'kind'])
  const after = body['after'] ?? ''
  const stream = body['stream'] === undefined ? undefined : queueName(body['stream'])
  if (typeof after === 'string') return { after, kind, stream }
  throw new SluiceError('INVALID_ARGUMENT', '`after` must be the name of a queue, stream or group.')
}
