/**
 * The payloads of the frames that open a reader and report its position. A reader gets the messages of a stream in the
 * order of their offsets and settles nothing. Its messages arrive in DELIVER frames.
 *
 * READ { name, from?, fromMs?, until?, follow?, filter?, messages, bytes } → READ_OK.
 * READ_OK: u32 reader id · u32 queue number · u64 offset · u64 end · u64 missed.
 * READ_AT: u32 reader id · u8 flags (1 end) · u8 0 · u16 0 · u64 offset · u64 missed.
 */
import { writeU32, writeU64, readU32 } from './bytes.js'
import { SluiceError, shown } from './errors.js'
import { exact, u64 } from './handshake.js'
import { LIMITS } from './limits.js'
import { messageFilter, type MessageFilter } from './managing.js'
import { queueName, type QueueName } from './names.js'
import { onlyFields, whole, type Body } from './queues.js'

/** Where a reader begins: at the first message that is kept, after the last message, or at an offset. */
export type ReadFrom = 'first' | 'last' | number

/** Conditions that a reader can have for its messages. */
export type ReadFilter = Pick<MessageFilter, 'key' | 'headers'>

export interface ReadRequest {
  readonly name: QueueName
  readonly from: ReadFrom
  /** Messages that were published earlier are left out. */
  readonly fromMs: number | undefined
  /** The reader ends before this offset. */
  readonly until: number | undefined
  /** Whether the reader waits for further messages when it has reached the end. */
  readonly follow: boolean
  readonly filter: ReadFilter | undefined
  /** Credit: the maximum number of messages, and of bytes of their records, that the client has not given back. */
  readonly messages: number
  readonly bytes: number
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME, OPTION_CONFLICT */
export function readRequest(body: Body): ReadRequest {
  onlyFields('READ', body, ['name', 'from', 'fromMs', 'until', 'follow', 'filter', 'messages', 'bytes'])
  const { from = 'first', fromMs, until, follow = false, filter } = body
  if (typeof follow !== 'boolean')
    throw new SluiceError('INVALID_ARGUMENT', `\`follow\` is ${shown(follow)}; it must be true or false.`)
  if (fromMs !== undefined && from === 'last')
    throw new SluiceError(
      'OPTION_CONFLICT',
      '`fromMs` has no effect with `from` of "last": the reader begins after all earlier messages.',
    )
  return {
    name: queueName(body['name']),
    from: readFrom(from),
    fromMs: fromMs === undefined ? undefined : whole('fromMs', fromMs, Number.MAX_SAFE_INTEGER),
    until: until === undefined ? undefined : whole('until', until, Number.MAX_SAFE_INTEGER),
    follow,
    filter: filter === undefined ? undefined : readFilter(filter),
    messages: whole('messages', body['messages'], LIMITS.creditMessagesMax, 1),
    bytes: whole('bytes', body['bytes'], LIMITS.creditBytesMax, 1),
  }
}

function readFrom(from: unknown): ReadFrom {
  if (from === 'first' || from === 'last') return from
  if (typeof from === 'number' && Number.isSafeInteger(from) && from >= 0) return from
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`from\` is ${shown(from)}; it must be "first", "last" or an offset.`,
  )
}

function readFilter(value: unknown): ReadFilter | undefined {
  const { key, headers } = messageFilter('READ', value, ['key', 'headers'])
  const hasHeaders = headers !== undefined && Object.keys(headers).length > 0
  return key === undefined && !hasHeaders ? undefined : { key, headers }
}

/** Where a reader begins and ends. */
export interface ReadOpened {
  readonly readerId: number
  /** Identifies the queue until it is deleted. */
  readonly queueNumber: number
  /** The reader gets no message before this offset. */
  readonly offset: number
  /** Without `follow`, the reader ends before this offset. With `follow`, the next offset of the stream at present. */
  readonly end: number
  /** Number of offsets from `from` to `offset` whose messages are no longer kept. */
  readonly missed: number
}

const READ_OK_BYTES = 32

export function encodeReadOk({ readerId, queueNumber, offset, end, missed }: ReadOpened): Uint8Array {
  const bytes = new Uint8Array(READ_OK_BYTES)
  writeU32(bytes, 0, readerId)
  writeU32(bytes, 4, queueNumber)
  writeU64(bytes, 8, offset)
  writeU64(bytes, 16, end)
  writeU64(bytes, 24, missed)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeReadOk(bytes: Uint8Array, start: number, end: number): ReadOpened {
  exact('READ_OK', end - start, READ_OK_BYTES)
  return {
    readerId: readU32(bytes, start),
    queueNumber: readU32(bytes, start + 4),
    offset: u64('READ_OK', bytes, start + 8),
    end: u64('READ_OK', bytes, start + 16),
    missed: u64('READ_OK', bytes, start + 24),
  }
}

/** A change of the position of a reader that is not a delivery. */
export interface ReadPosition {
  readonly readerId: number
  /** Whether the reader has ended, because it has reached its end. */
  readonly isEnd: boolean
  /** The reader continues at this offset. */
  readonly offset: number
  /** Number of offsets before `offset` that retention has removed before the reader got their messages. */
  readonly missed: number
}

const READ_AT_BYTES = 24
const END = 1

export function encodeReadAt({ readerId, isEnd, offset, missed }: ReadPosition): Uint8Array {
  const bytes = new Uint8Array(READ_AT_BYTES)
  writeU32(bytes, 0, readerId)
  bytes[4] = isEnd ? END : 0
  writeU64(bytes, 8, offset)
  writeU64(bytes, 16, missed)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeReadAt(bytes: Uint8Array, start: number, end: number): ReadPosition {
  exact('READ_AT', end - start, READ_AT_BYTES)
  return {
    readerId: readU32(bytes, start),
    isEnd: (bytes[start + 4]! & END) !== 0,
    offset: u64('READ_AT', bytes, start + 8),
    missed: u64('READ_AT', bytes, start + 16),
  }
}
