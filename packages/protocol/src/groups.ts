/**
 * Groups of streams in control frames: options, requests, and answers. The name of a group is `stream@group`.
 *
 * ENSURE { name, kind: 'group', options?, update?, from? | fromMs? } → { created, group }. GET { name, kind: 'group' } →
 * { group }. LIST { kind: 'group', stream?, after? } → { groups, more }. DELETE { name, kind: 'group' } → { messages }. MOVE
 * { name, to? | toMs? } → { group }. SUBSCRIBE and the requests about messages and consumers take the name of a group like
 * that of a queue.
 */
import { SluiceError, shown } from './errors.js'
import { groupName, type QueueName } from './names.js'
import {
  QUEUE_OPTIONS,
  onlyFields,
  optionsIn,
  updateOf,
  whole,
  type Body,
  type QueueOptions,
} from './queues.js'

/** The options of a group: those of a queue that do not concern how messages are accepted or stored. */
export const GROUP_OPTIONS = {
  maxDeliveries: QUEUE_OPTIONS.maxDeliveries,
  retryInitialMs: QUEUE_OPTIONS.retryInitialMs,
  retryMaxMs: QUEUE_OPTIONS.retryMaxMs,
  processingTimeoutMs: QUEUE_OPTIONS.processingTimeoutMs,
  keyConcurrency: QUEUE_OPTIONS.keyConcurrency,
  onFail: QUEUE_OPTIONS.onFail,
  deadLetter: QUEUE_OPTIONS.deadLetter,
  single: QUEUE_OPTIONS.single,
  rateMessages: QUEUE_OPTIONS.rateMessages,
  ratePerMs: QUEUE_OPTIONS.ratePerMs,
  keyRateMessages: QUEUE_OPTIONS.keyRateMessages,
  keyRatePerMs: QUEUE_OPTIONS.keyRatePerMs,
} as const

export type GroupOptionName = keyof typeof GROUP_OPTIONS
export type GroupOptions = Pick<QueueOptions, GroupOptionName>

/** A place in a stream: its first message that is kept, its end, an offset, or the first message from a time on. */
export type StreamPlace = 'first' | 'last' | number | { readonly timeMs: number }

/** A group in the answers to ENSURE, GET, LIST and MOVE. Counts are numbers of messages unless their name says otherwise. */
export interface GroupInfo {
  readonly name: string
  readonly stream: string
  readonly options: GroupOptions
  readonly paused: boolean
  /** Every message below this offset is done, dead or missed. */
  readonly position: number
  /** Messages of the stream that are not done. An offset whose message is a duplicate counts until the group reaches it. */
  readonly lag: number
  /** Time since the oldest of them was published; null if there is none. It can be too long by the span of 1,024 messages. */
  readonly lagMs: number | null
  /** Messages that retention removed before they were acknowledged or dead. */
  readonly missed: number
  /** Acknowledged messages. A message that the group was moved back to counts again. */
  readonly acked: number
  /** Dead messages that were deleted, by an operator or because retention removed them. */
  readonly discarded: number
  readonly scheduled: number
  readonly leased: number
  readonly dead: number
  readonly consumers: number
  readonly createdAtMs: number
}

export interface EnsureGroupRequest {
  readonly name: QueueName
  readonly options: Partial<GroupOptions>
  readonly update: boolean
  readonly from: StreamPlace
}

export interface MoveRequest {
  readonly name: QueueName
  readonly to: StreamPlace
}

/** ENSURE with the kind `group`. @throws SluiceError INVALID_ARGUMENT, INVALID_OPTION, INVALID_NAME */
export function ensureGroupRequest(body: Body): EnsureGroupRequest {
  onlyFields('ENSURE', body, ['name', 'kind', 'options', 'update', 'from', 'fromMs'])
  return {
    name: groupName(body['name']),
    options: optionsIn('group', GROUP_OPTIONS, body['options']),
    update: updateOf(body),
    from: placeIn(body, 'from', 'fromMs'),
  }
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function moveRequest(body: Body): MoveRequest {
  onlyFields('MOVE', body, ['name', 'to', 'toMs'])
  if (body['to'] === undefined && body['toMs'] === undefined)
    throw new SluiceError('INVALID_ARGUMENT', 'MOVE needs `to` or `toMs`.')
  return { name: groupName(body['name']), to: placeIn(body, 'to', 'toMs') }
}

function placeIn(body: Body, place: string, time: string): StreamPlace {
  const [at, timeMs] = [body[place], body[time]]
  if (timeMs !== undefined) {
    if (at !== undefined)
      throw new SluiceError('INVALID_ARGUMENT', `\`${place}\` and \`${time}\` are mutually exclusive.`)
    return { timeMs: whole(time, timeMs, Number.MAX_SAFE_INTEGER) }
  }
  if (at === undefined || at === 'first') return 'first'
  if (at === 'last') return 'last'
  if (typeof at === 'number') return whole(place, at, Number.MAX_SAFE_INTEGER)
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`${place}\` is ${shown(at)}; it must be first, last or an offset.`,
  )
}
