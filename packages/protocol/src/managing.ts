/**
 * Requests about single messages and consumers, and the answer to PEEK.
 *
 * PEEK { name, state?, from?, limit?, filter? } → MESSAGES. REDRIVE { name, from?, limit?, offsets?, filter?, to?,
 * dryRun?, force? } → { matched, redriven, guarded, barred, next, error? }. DISCARD { name, from?, limit?, offsets?,
 * filter?, dryRun? } → { matched, discarded, next, error? }. CANCEL { name, offset? | id? } → { offset }. RESCHEDULE { name, offset? | id?,
 * delayMs? | atMs? } → { offset, dueMs }. REPLAY { name, fromOffset? | fromMs?, untilMs?, limit?, cursor?, filter?, to?,
 * dryRun? } → { matched, replayed, cursor, error? }. HISTORY { name, offset, cursor? } → { events, complete, cursor }.
 * CONSUMERS { name, from? } → { consumers, next }. CLOSE_CONSUMER { name, id } → { messages }.
 * `next` and `cursor` are null on the last page. Otherwise the next request sends them as `from` or `cursor`.
 *
 * MESSAGES: u8 flags (1: there is a next page) · u8 0 · u16 0 · u32 count · u64 next offset · messages of u8 state ·
 *   u8 death · u16 attempts · u16 total attempts · u16 redrives · u64 offset · u64 published at · u64 time ·
 *   u64 expires at (0: never) · u16 reason bytes · u16 holder bytes · reason · holder · record.
 */
import {
  clipText,
  copyBytes,
  readText,
  readU16,
  readU32,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU64,
} from './bytes.js'
import { SluiceError, shown } from './errors.js'
import { need, u64 } from './handshake.js'
import { LIMITS } from './limits.js'
import { addressName, queueName, type QueueName } from './names.js'
import { onlyFields, whole, type Body } from './queues.js'
import { RECORD_HEADER_BYTES } from './record.js'

/** States of a message that is in its queue. */
export const MESSAGE_STATE = { ready: 1, scheduled: 2, leased: 3, dead: 4 } as const
export type MessageState = keyof typeof MESSAGE_STATE

/** Why a message is dead. */
export const DEATH = { rejected: 1, maxDeliveries: 2, overflow: 3, invalid: 4 } as const
export type Death = (typeof DEATH)[keyof typeof DEATH]
export type DeathName = keyof typeof DEATH

const STATE_NAMES = Object.keys(MESSAGE_STATE) as MessageState[]
const DEATH_NAMES = Object.keys(DEATH) as DeathName[]
/** Maximum length of a cursor. */
const CURSOR_BYTES_MAX = 128

export function deathName(death: number): DeathName | undefined {
  return DEATH_NAMES.find((name) => DEATH[name] === death)
}

/** Headers that the broker adds to a message that it moves or copies to another queue. All values are text. */
export const ORIGIN_HEADERS = {
  queue: 'sluice-origin-queue',
  offset: 'sluice-origin-offset',
  publishedMs: 'sluice-origin-published',
  reason: 'sluice-dead-reason',
  error: 'sluice-dead-error',
  diedMs: 'sluice-dead-at',
  attempts: 'sluice-attempts',
  redrives: 'sluice-redrives',
} as const

/** Maximum length of a number, a time, or the name of a death in an origin header. */
const ORIGIN_WORD_BYTES = 16

/** Maximum number of bytes that a move adds to a message. A later move replaces what an earlier move added. */
export const ORIGIN_BYTES_MAX =
  LIMITS.queueNameBytesMax +
  LIMITS.reasonBytesMax +
  Object.values(ORIGIN_HEADERS).reduce((sum, name) => sum + 3 + name.length + ORIGIN_WORD_BYTES, 0)

/** Maximum size of a record that a broker delivers, without the record header. A moved message can have this size. */
export const MOVED_BYTES_MAX = LIMITS.messageBytesMax + ORIGIN_BYTES_MAX

/** Conditions for messages. A message must meet all conditions that are set. */
export interface MessageFilter {
  /** Why a message is dead. */
  readonly reason?: DeathName | undefined
  /** Text that the error of a dead message contains. */
  readonly error?: string | undefined
  readonly key?: string | undefined
  readonly id?: string | undefined
  /** Header names and the values that they must have. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Minimum number of attempts since the last redrive. */
  readonly minAttempts?: number | undefined
  /** Minimum time since the message died, or, if the message is not dead, since it was published. */
  readonly olderThanMs?: number | undefined
  /** Maximum time since the message died, or, if the message is not dead, since it was published. */
  readonly youngerThanMs?: number | undefined
}

const FILTER_FIELDS = [
  'reason',
  'error',
  'key',
  'id',
  'headers',
  'minAttempts',
  'olderThanMs',
  'youngerThanMs',
] as const satisfies readonly (keyof MessageFilter)[]

/** `fields` are the conditions that the frame allows. @throws SluiceError INVALID_ARGUMENT */
export function messageFilter(
  frame: string,
  value: unknown,
  fields: readonly (keyof MessageFilter)[] = FILTER_FIELDS,
): MessageFilter {
  if (value === undefined) return {}
  if (typeof value !== 'object' || value === null || Array.isArray(value) || ArrayBuffer.isView(value))
    throw new SluiceError('INVALID_ARGUMENT', '`filter` must be a map.')
  const body = value as Body
  onlyFields(`The filter of ${frame}`, body, fields)
  const { reason, headers } = body
  if (reason !== undefined && !(DEATH_NAMES as unknown[]).includes(reason)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`reason\` is ${shown(reason)}; it must be one of ${DEATH_NAMES.join(', ')}.`,
    )
  }
  return {
    reason: reason as DeathName | undefined,
    // An empty value is refused, because it would select nothing or everything.
    error: optionalText('error', body['error'], 1, LIMITS.reasonBytesMax),
    key: optionalText('key', body['key'], 1, LIMITS.keyBytesMax),
    id: optionalText('id', body['id'], 1, LIMITS.idBytesMax),
    headers: headers === undefined ? undefined : headersOf(headers),
    minAttempts: optionalWhole('minAttempts', body['minAttempts'], LIMITS.maxDeliveriesMax),
    olderThanMs: optionalWhole('olderThanMs', body['olderThanMs'], LIMITS.delayMsMax),
    youngerThanMs: optionalWhole('youngerThanMs', body['youngerThanMs'], LIMITS.delayMsMax),
  }
}

/** Checks headers that a filter or a binding names. @throws SluiceError INVALID_ARGUMENT */
export function headersOf(value: unknown): Readonly<Record<string, string>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || ArrayBuffer.isView(value))
    throw new SluiceError('INVALID_ARGUMENT', '`headers` must be a map of text to text.')
  const entries = Object.entries(value)
  if (entries.length > LIMITS.headersMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`headers\` names ${entries.length} headers; at most ${LIMITS.headersMax} are allowed.`,
    )
  }
  const headers = Object.create(null) as Record<string, string>
  for (const [name, value] of entries) {
    if (!isText(name, 1, 255)) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `\`headers\` names ${shown(name)}; a header's name takes 1 to 255 bytes.`,
      )
    }
    if (!isText(value, 0, LIMITS.headersBytesMax)) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `\`headers\` has ${shown(value)} for ${shown(name)}; it must be text of at most ${LIMITS.headersBytesMax} bytes.`,
      )
    }
    headers[name] = value
  }
  return headers
}

function optionalText(name: string, value: unknown, min: number, max: number): string | undefined {
  if (value === undefined) return undefined
  if (!isText(value, min, max)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`${name}\` is ${shown(value)}; it must be text of ${min} to ${max} bytes.`,
    )
  }
  return value
}

function isText(value: unknown, min: number, max: number): value is string {
  if (typeof value !== 'string') return false
  const bytes = textBytes(value)
  return bytes >= min && bytes <= max
}

function optionalWhole(name: string, value: unknown, max: number): number | undefined {
  return value === undefined ? undefined : whole(name, value, max)
}

function optionalFlag(name: string, value: unknown): boolean {
  if (value !== undefined && typeof value !== 'boolean')
    throw new SluiceError('INVALID_ARGUMENT', `\`${name}\` is ${shown(value)}; it must be true or false.`)
  return value === true
}

function pageLimit(body: Body): number {
  return body['limit'] === undefined
    ? LIMITS.pageMessagesMax
    : whole('limit', body['limit'], LIMITS.pageMessagesMax, 1)
}

export interface PeekRequest {
  readonly name: QueueName
  /** State of the messages to return; undefined means any state. */
  readonly state: MessageState | undefined
  /** Offset at which the page begins. */
  readonly from: number
  readonly limit: number
  readonly filter: MessageFilter
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function peekRequest(body: Body): PeekRequest {
  onlyFields('PEEK', body, ['name', 'state', 'from', 'limit', 'filter'])
  const { state } = body
  if (state !== undefined && !(STATE_NAMES as unknown[]).includes(state)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`state\` is ${shown(state)}; it must be one of ${STATE_NAMES.join(', ')}.`,
    )
  }
  return {
    name: addressName(body['name']),
    state: state as MessageState | undefined,
    from: optionalWhole('from', body['from'], Number.MAX_SAFE_INTEGER) ?? 0,
    limit: pageLimit(body),
    filter: messageFilter('PEEK', body['filter']),
  }
}

/**
 * Selects dead messages that match the filter: among the messages at `offsets`, or among all messages from the offset
 * `from` on.
 */
export interface DeadSelection {
  readonly name: QueueName
  readonly from: number
  readonly limit: number
  /** Offsets in ascending order, without repetition. */
  readonly offsets: readonly number[] | undefined
  readonly filter: MessageFilter
  /** Whether the request only counts the messages, and changes nothing. */
  readonly dryRun: boolean
}

function deadSelection(frame: string, body: Body): DeadSelection {
  const { offsets } = body
  if (offsets !== undefined && (!Array.isArray(offsets) || offsets.length > LIMITS.pageMessagesMax)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`offsets\` must be a list of at most ${LIMITS.pageMessagesMax} offsets.`,
    )
  }
  return {
    name: addressName(body['name']),
    from: optionalWhole('from', body['from'], Number.MAX_SAFE_INTEGER) ?? 0,
    limit: pageLimit(body),
    offsets: offsets === undefined ? undefined : ascending(offsets),
    filter: messageFilter(frame, body['filter']),
    dryRun: optionalFlag('dryRun', body['dryRun']),
  }
}

function ascending(offsets: readonly unknown[]): number[] {
  const known = new Set(offsets.map((offset) => whole('offsets', offset, Number.MAX_SAFE_INTEGER)))
  return [...known].toSorted((a, b) => a - b)
}

export interface RedriveRequest extends DeadSelection {
  /** Target queue; undefined if each message returns to its own queue. */
  readonly to: QueueName | undefined
  /** Whether messages that have reached LIMITS.redrivesMax are included. */
  readonly force: boolean
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function redriveRequest(body: Body): RedriveRequest {
  onlyFields('REDRIVE', body, ['name', 'from', 'limit', 'offsets', 'filter', 'to', 'dryRun', 'force'])
  return {
    ...deadSelection('REDRIVE', body),
    to: body['to'] === undefined ? undefined : queueName(body['to']),
    force: optionalFlag('force', body['force']),
  }
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function discardRequest(body: Body): DeadSelection {
  onlyFields('DISCARD', body, ['name', 'from', 'limit', 'offsets', 'filter', 'dryRun'])
  return deadSelection('DISCARD', body)
}

/** One message: its offset, or its id. */
export interface MessageRef {
  readonly name: QueueName
  readonly offset: number | undefined
  readonly id: string | undefined
}

function messageRef(frame: string, body: Body): MessageRef {
  const offset = optionalWhole('offset', body['offset'], Number.MAX_SAFE_INTEGER)
  const id = optionalText('id', body['id'], 1, LIMITS.idBytesMax)
  if ((offset === undefined) === (id === undefined))
    throw new SluiceError('INVALID_ARGUMENT', `${frame} needs either \`offset\` or \`id\`.`)
  return { name: addressName(body['name']), offset, id }
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function cancelRequest(body: Body): MessageRef {
  onlyFields('CANCEL', body, ['name', 'offset', 'id'])
  return messageRef('CANCEL', body)
}

export interface RescheduleRequest extends MessageRef {
  readonly delayMs: number | undefined
  readonly atMs: number | undefined
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME, INVALID_DELAY */
export function rescheduleRequest(body: Body): RescheduleRequest {
  onlyFields('RESCHEDULE', body, ['name', 'offset', 'id', 'delayMs', 'atMs'])
  const { delayMs, atMs } = body
  if ((delayMs === undefined) === (atMs === undefined))
    throw new SluiceError('INVALID_ARGUMENT', 'RESCHEDULE needs either `delayMs` or `atMs`.')
  return {
    ...messageRef('RESCHEDULE', body),
    delayMs:
      delayMs === undefined ? undefined : whole('delayMs', delayMs, LIMITS.delayMsMax, 0, 'INVALID_DELAY'),
    atMs: atMs === undefined ? undefined : whole('atMs', atMs, 2 ** 48 - 1, 0, 'INVALID_DELAY'),
  }
}

export interface ReplayRequest {
  readonly name: QueueName
  readonly fromOffset: number | undefined
  /** Only messages published at or after this time. */
  readonly fromMs: number | undefined
  /** Only messages published before this time. */
  readonly untilMs: number | undefined
  readonly limit: number
  /** The place where an earlier page ended; opaque to clients. */
  readonly cursor: string | undefined
  readonly filter: MessageFilter
  readonly to: QueueName | undefined
  readonly dryRun: boolean
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function replayRequest(body: Body): ReplayRequest {
  onlyFields('REPLAY', body, [
    'name',
    'fromOffset',
    'fromMs',
    'untilMs',
    'limit',
    'cursor',
    'filter',
    'to',
    'dryRun',
  ])
  if (body['fromOffset'] !== undefined && body['fromMs'] !== undefined)
    throw new SluiceError('INVALID_ARGUMENT', '`fromOffset` and `fromMs` are mutually exclusive.')
  return {
    name: queueName(body['name']),
    fromOffset: optionalWhole('fromOffset', body['fromOffset'], Number.MAX_SAFE_INTEGER),
    fromMs: optionalWhole('fromMs', body['fromMs'], 2 ** 48 - 1),
    untilMs: optionalWhole('untilMs', body['untilMs'], 2 ** 48 - 1),
    limit: pageLimit(body),
    cursor: optionalText('cursor', body['cursor'], 1, CURSOR_BYTES_MAX),
    filter: messageFilter('REPLAY', body['filter']),
    to: body['to'] === undefined ? undefined : queueName(body['to']),
    dryRun: optionalFlag('dryRun', body['dryRun']),
  }
}

export interface HistoryRequest {
  readonly name: QueueName
  readonly offset: number
  readonly cursor: string | undefined
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function historyRequest(body: Body): HistoryRequest {
  onlyFields('HISTORY', body, ['name', 'offset', 'cursor'])
  return {
    name: addressName(body['name']),
    offset: whole('offset', body['offset'], Number.MAX_SAFE_INTEGER),
    cursor: optionalText('cursor', body['cursor'], 1, CURSOR_BYTES_MAX),
  }
}

/** One event of a message in the answer to HISTORY. */
export interface HistoryEvent {
  readonly event: HistoryEventName
  readonly atMs: number
  /** Number of attempts so far, for events that record it. */
  readonly attempts?: number
  /** When the message becomes due. */
  readonly dueMs?: number
  /** The error, the queue to which the message was moved, or the client that consumed or redrove the message. */
  readonly text?: string
}

export const HISTORY_EVENTS = {
  published: 'Accepted.',
  delivered:
    'Delivered to the consumer that `text` names. Recorded only if the queue keeps acknowledged messages for replay.',
  retried: 'The attempt failed; the message is due again at `dueMs`.',
  acked: 'Done.',
  dead: 'Became a dead letter; `text` has the reason.',
  moved: 'Moved to the queue that `text` names.',
  redriven: 'Redriven by the client that `text` names.',
  rescheduled: 'Its due time was changed to `dueMs`.',
  cancelled: 'Cancelled.',
  expired: 'Its time to live passed.',
  dropped: 'Dropped, to make room for newer messages.',
  duplicate: 'Not kept, because another message had the same id.',
  discarded: 'Deleted while dead.',
  purged: 'Removed by a purge.',
  groupMoved:
    'The group was created at, or moved to, the offset in `text`: it gets the message (again) unless the message is before it.',
  missed: 'Retention of the stream removed it before the group had finished it.',
} as const
export type HistoryEventName = keyof typeof HISTORY_EVENTS

export interface ConsumersRequest {
  readonly name: QueueName
  /** Lowest subscription id to return; consumers are returned in the order of their ids. */
  readonly from: number
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function consumersRequest(body: Body): ConsumersRequest {
  onlyFields('CONSUMERS', body, ['name', 'from'])
  return { name: addressName(body['name']), from: optionalWhole('from', body['from'], 0xffff_ffff) ?? 0 }
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function closeConsumerRequest(body: Body): { readonly name: QueueName; readonly id: number } {
  onlyFields('CLOSE_CONSUMER', body, ['name', 'id'])
  return { name: addressName(body['name']), id: whole('id', body['id'], 0xffff_ffff) }
}

/** A consumer of a queue in the answer to CONSUMERS. */
export interface ConsumerInfo {
  /** Id of its subscription. */
  readonly id: number
  /** Name of its client. */
  readonly client: string
  readonly peer: string
  /** With `single`, whether this consumer receives messages; otherwise true. */
  readonly active: boolean
  readonly sinceMs: number
  readonly creditMessages: number
  readonly creditBytes: number
  readonly leased: number
  readonly leasedBytes: number
  /** Leased messages that are being handled. */
  readonly started: number
  /** Start of its oldest lease; null if it has none. */
  readonly oldestLeaseMs: number | null
  readonly delivered: number
}

/** A message as MESSAGES shows it. Times are ms since the epoch. */
export interface PeekedMessage {
  readonly state: MessageState
  /** Reason for which the message is dead; undefined if it is not dead. */
  readonly death: DeathName | undefined
  /** Number of attempts since the last redrive. On the wire, this count and the next two are at most 65,535. */
  readonly attempts: number
  /** Number of all attempts, including those before a redrive. */
  readonly totalAttempts: number
  readonly redrives: number
  readonly offset: number
  readonly publishedAtMs: number
  /**
   * Time at which a ready message became ready, a scheduled message is due, a leased message was delivered, or a dead
   * message died.
   */
  readonly timeMs: number
  /** Time at which the message expires; 0 if it does not expire. */
  readonly expiresAtMs: number
  readonly reason: string
  /** Name of the client that has the lease. */
  readonly holder: string
  readonly record: Uint8Array
}

export interface PeekPage {
  readonly messages: readonly PeekedMessage[]
  /** Offset of the next page; undefined on the last page. */
  readonly next: number | undefined
}

/** Number of bytes of MESSAGES before its messages. */
export const PAGE_HEAD_BYTES = 16
/** Number of bytes of each message before its strings and its record. */
export const PEEKED_HEAD_BYTES = 44
// With forced redrives, the number of attempts of a message can exceed the largest u16.
const COUNT_MAX = 0xffff

/** Size of a message in MESSAGES, before its strings are truncated. */
export function peekedBytes({ reason, holder, record }: PeekedMessage): number {
  return PEEKED_HEAD_BYTES + textBytes(reason) + textBytes(holder) + record.length
}

/** Maximum size of a MESSAGES frame with one message, without the record, in bytes. */
export const MESSAGES_OVERHEAD_BYTES =
  12 + PAGE_HEAD_BYTES + PEEKED_HEAD_BYTES + LIMITS.reasonBytesMax + LIMITS.clientNameBytesMax

/**
 * Encodes a page and truncates its strings to their limits. If the page has a single message and the payload would be
 * larger than `payloadBytesMax`, the strings are truncated further, the reason first: a frame has room for the largest
 * record, but not always for the strings too.
 */
export function encodeMessages(page: PeekPage, payloadBytesMax = Infinity): Uint8Array {
  const { next } = page
  let size = PAGE_HEAD_BYTES
  let messages = page.messages.map((message) =>
    withTexts(message, LIMITS.reasonBytesMax, LIMITS.clientNameBytesMax),
  )
  for (const message of messages) size += peekedBytes(message)
  if (messages.length === 1 && size > payloadBytesMax) {
    const [{ reason, holder, record }] = messages as [PeekedMessage]
    const room = Math.max(payloadBytesMax - PAGE_HEAD_BYTES - PEEKED_HEAD_BYTES - record.length, 0)
    const holderBytes = Math.min(textBytes(holder), room)
    messages = [withTexts(messages[0]!, Math.min(textBytes(reason), room - holderBytes), holderBytes)]
    size = PAGE_HEAD_BYTES + peekedBytes(messages[0]!)
  }
  const bytes = new Uint8Array(size)
  bytes[0] = next === undefined ? 0 : 1
  writeU32(bytes, 4, messages.length)
  writeU64(bytes, 8, next ?? 0)
  let at = PAGE_HEAD_BYTES
  for (const message of messages) {
    bytes[at] = MESSAGE_STATE[message.state]
    bytes[at + 1] = message.death === undefined ? 0 : DEATH[message.death]
    writeU16(bytes, at + 2, Math.min(message.attempts, COUNT_MAX))
    writeU16(bytes, at + 4, Math.min(message.totalAttempts, COUNT_MAX))
    writeU16(bytes, at + 6, Math.min(message.redrives, COUNT_MAX))
    writeU64(bytes, at + 8, message.offset)
    writeU64(bytes, at + 16, message.publishedAtMs)
    writeU64(bytes, at + 24, message.timeMs)
    writeU64(bytes, at + 32, message.expiresAtMs)
    const reasonBytes = writeText(bytes, at + PEEKED_HEAD_BYTES, message.reason)
    const holderBytes = writeText(bytes, at + PEEKED_HEAD_BYTES + reasonBytes, message.holder)
    writeU16(bytes, at + 40, reasonBytes)
    writeU16(bytes, at + 42, holderBytes)
    at += PEEKED_HEAD_BYTES + reasonBytes + holderBytes
    bytes.set(message.record, at)
    at += message.record.length
  }
  return bytes
}

function withTexts(message: PeekedMessage, reasonBytesMax: number, holderBytesMax: number): PeekedMessage {
  return {
    ...message,
    reason: clipText(message.reason, reasonBytesMax),
    holder: clipText(message.holder, holderBytesMax),
  }
}

/** Copies the records. Checks their size, but not their layout. @throws SluiceError MALFORMED_FRAME */
export function decodeMessages(bytes: Uint8Array, start: number, end: number): PeekPage {
  need('MESSAGES', end - start, PAGE_HEAD_BYTES)
  const count = readU32(bytes, start + 4)
  const messages: PeekedMessage[] = []
  let at = start + PAGE_HEAD_BYTES
  for (let i = 0; i < count; i++) {
    need('MESSAGES', end - at, PEEKED_HEAD_BYTES)
    const reasonAt = at + PEEKED_HEAD_BYTES
    const holderAt = reasonAt + readU16(bytes, at + 40)
    const recordAt = holderAt + readU16(bytes, at + 42)
    need('MESSAGES', end - recordAt, RECORD_HEADER_BYTES)
    const recordEnd = recordAt + readU32(bytes, recordAt)
    if (recordEnd < recordAt + RECORD_HEADER_BYTES || recordEnd > end)
      throw new SluiceError(
        'MALFORMED_FRAME',
        `The record of message ${i} in MESSAGES does not fit its frame.`,
      )
    const state = STATE_NAMES.find((name) => MESSAGE_STATE[name] === bytes[at])
    if (state === undefined)
      throw new SluiceError('MALFORMED_FRAME', `MESSAGES has the unknown state ${bytes[at]}.`)
    messages.push({
      state,
      death: deathName(bytes[at + 1]!),
      attempts: readU16(bytes, at + 2),
      totalAttempts: readU16(bytes, at + 4),
      redrives: readU16(bytes, at + 6),
      offset: u64('MESSAGES', bytes, at + 8),
      publishedAtMs: u64('MESSAGES', bytes, at + 16),
      timeMs: u64('MESSAGES', bytes, at + 24),
      expiresAtMs: u64('MESSAGES', bytes, at + 32),
      reason: readText(bytes, reasonAt, holderAt),
      holder: readText(bytes, holderAt, recordAt),
      record: copyBytes(bytes, recordAt, recordEnd),
    })
    at = recordEnd
  }
  if (at !== end) throw new SluiceError('MALFORMED_FRAME', `MESSAGES has ${end - at} bytes too many.`)
  return { messages, next: bytes[start]! & 1 ? u64('MESSAGES', bytes, start + 8) : undefined }
}
