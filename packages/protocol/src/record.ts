/**
 * Records. A record is one message. It has the same bytes in a batch on the wire, in the log and in a delivery.
 *
 * Layout: u32 size (of the whole record) · u8 flags · u8 priority (low 5 bits) and content type (high 3 bits) ·
 * u16 options length · options · payload. The options are those that the flags name, in this order: delay u48, at u48,
 * ttl u48, key, id, headers. Key and id are u8 length + bytes. Headers fill the rest of the options: u8 name length, name,
 * u16 value length, value, repeated.
 */
import {
  isWellFormed,
  readText,
  readU16,
  readU32,
  readU48,
  textBytes,
  viewBytes,
  writeText,
  writeU16,
  writeU32,
  writeU48,
} from './bytes.js'
import { SluiceError, shown, type ErrorCode } from './errors.js'
import { LIMITS } from './limits.js'

export const RECORD_HEADER_BYTES = 8
/** Size of a header without its name and its value, in bytes. */
export const HEADER_OVERHEAD_BYTES = 3
/** Size of each of the options delay, at and ttl, in bytes. */
export const RECORD_TIME_BYTES = 6

const FLAGS_AT = 4
/** Position of the byte with the priority in its low bits and the content type in its high bits. */
const PRIORITY_AT = 5
const PRIORITY_MASK = 31
const CONTENT_TYPE_SHIFT = 5
const OPTIONS_LENGTH_AT = 6

/** `replaces`: a waiting message with the same id is cancelled. Bit 6 is ANY_PRIORITY in the result of `checkRecords`. */
export const RECORD_FLAG = { delay: 1, at: 2, ttl: 4, key: 8, id: 16, headers: 32, replaces: 128 } as const
const KNOWN_FLAGS = 63 | RECORD_FLAG.replaces
const TIME_FLAGS = [RECORD_FLAG.delay, RECORD_FLAG.at, RECORD_FLAG.ttl] as const

/** Tells a client how to decode the payload. The broker does not read the payload. */
export const CONTENT_TYPE = { bytes: 0, text: 1, msgpack: 2 } as const
export type ContentType = (typeof CONTENT_TYPE)[keyof typeof CONTENT_TYPE]

/** Options of a record. Times are milliseconds; `at` is since the epoch. */
export interface RecordOptions {
  readonly priority?: number | undefined
  readonly delayMs?: number | undefined
  readonly atMs?: number | undefined
  readonly ttlMs?: number | undefined
  readonly key?: string | undefined
  readonly id?: string | undefined
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Whether the message replaces a waiting message with the same id. This is a flag without bytes; `readRecordOptions` omits it. */
  readonly replaces?: boolean | undefined
}

/** Size of the record for a payload of `payloadBytes`. */
export function recordBytes(options: RecordOptions | undefined, payloadBytes: number): number {
  return RECORD_HEADER_BYTES + (options === undefined ? 0 : optionsBytes(options)) + payloadBytes
}

function optionsBytes(options: RecordOptions): number {
  let bytes = 0
  if (options.delayMs !== undefined) bytes += RECORD_TIME_BYTES
  if (options.atMs !== undefined) bytes += RECORD_TIME_BYTES
  if (options.ttlMs !== undefined) bytes += RECORD_TIME_BYTES
  if (options.key !== undefined) bytes += 1 + textBytes(options.key)
  if (options.id !== undefined) bytes += 1 + textBytes(options.id)
  if (options.headers !== undefined) bytes += headersBytes(options.headers)
  return bytes
}

function headersBytes(headers: Readonly<Record<string, string>>): number {
  let bytes = 0
  for (const name of Object.keys(headers))
    bytes += HEADER_OVERHEAD_BYTES + textBytes(name) + textBytes(headers[name]!)
  return bytes
}

/**
 * Writes the header and the options of a record whose payload has `payloadBytes` bytes. Returns the position of the
 * payload. The options must have passed `checkRecordOptions`.
 */
export function writeRecordHead(
  bytes: Uint8Array,
  at: number,
  options: RecordOptions | undefined,
  contentType: ContentType,
  payloadBytes: number,
): number {
  let flags = 0
  let next = at + RECORD_HEADER_BYTES
  if (options !== undefined) {
    if (options.delayMs !== undefined) {
      flags |= RECORD_FLAG.delay
      writeU48(bytes, next, options.delayMs)
      next += RECORD_TIME_BYTES
    }
    if (options.atMs !== undefined) {
      flags |= RECORD_FLAG.at
      writeU48(bytes, next, options.atMs)
      next += RECORD_TIME_BYTES
    }
    if (options.ttlMs !== undefined) {
      flags |= RECORD_FLAG.ttl
      writeU48(bytes, next, options.ttlMs)
      next += RECORD_TIME_BYTES
    }
    if (options.key !== undefined) {
      flags |= RECORD_FLAG.key
      next = writeShortText(bytes, next, options.key)
    }
    if (options.id !== undefined) {
      flags |= RECORD_FLAG.id
      next = writeShortText(bytes, next, options.id)
    }
    if (options.headers !== undefined) {
      flags |= RECORD_FLAG.headers
      for (const name of Object.keys(options.headers)) {
        next = writeHeader(bytes, next, name, options.headers[name]!)
      }
    }
  }
  if (options?.replaces === true) flags |= RECORD_FLAG.replaces
  writeU32(bytes, at, next - at + payloadBytes)
  bytes[at + FLAGS_AT] = flags
  bytes[at + PRIORITY_AT] = (options?.priority ?? 0) | (contentType << CONTENT_TYPE_SHIFT)
  writeU16(bytes, at + OPTIONS_LENGTH_AT, next - at - RECORD_HEADER_BYTES)
  return next
}

function writeHeader(bytes: Uint8Array, at: number, name: string, value: string): number {
  const lengthAt = writeShortText(bytes, at, name)
  const length = writeText(bytes, lengthAt + 2, value)
  writeU16(bytes, lengthAt, length)
  return lengthAt + 2 + length
}

function writeShortText(bytes: Uint8Array, at: number, text: string): number {
  const length = writeText(bytes, at + 1, text)
  // The length of a text of more than 255 bytes would overflow its byte, and readers could not find the end of the
  // record. The caller has checked the length.
  if (length > 255) throw new Error(`a text of ${length} bytes does not fit the u8 before it`)
  bytes[at] = length
  return at + 1 + length
}

/**
 * @throws SluiceError INVALID_PRIORITY, INVALID_DELAY, INVALID_TTL, INVALID_KEY, INVALID_ID, INVALID_HEADERS,
 * OPTION_CONFLICT: naming the option, its value and its limit
 */
export function checkRecordOptions(options: RecordOptions): void {
  const { priority, delayMs, atMs, ttlMs, key, id, headers } = options
  if (priority !== undefined) checkInteger('INVALID_PRIORITY', 'priority', priority, 0, LIMITS.priorityMax)
  if (delayMs !== undefined) checkInteger('INVALID_DELAY', 'delay', delayMs, 0, LIMITS.delayMsMax, ' ms')
  if (ttlMs !== undefined) checkInteger('INVALID_TTL', 'ttl', ttlMs, 1, LIMITS.delayMsMax, ' ms')
  if (atMs !== undefined) checkInteger('INVALID_DELAY', 'at', atMs, 0, 2 ** 48 - 1, ' ms')
  if (delayMs !== undefined && atMs !== undefined) {
    throw new SluiceError(
      'OPTION_CONFLICT',
      '`delay` and `at` are mutually exclusive; a message has one due time.',
    )
  }
  if (key !== undefined) checkText('INVALID_KEY', 'key', key, 1, LIMITS.keyBytesMax)
  if (id !== undefined) checkText('INVALID_ID', 'id', id, 1, LIMITS.idBytesMax)
  if (headers !== undefined) checkHeaders(headers)
  if (options.replaces === true && id === undefined) {
    throw new SluiceError('OPTION_CONFLICT', 'A message that replaces another must have an `id`.')
  }
}

function checkHeaders(headers: Readonly<Record<string, string>>): void {
  // `Object.keys` of a string, an array or a Map does not give header names.
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers) || headers instanceof Map)
    throw new SluiceError(
      'INVALID_HEADERS',
      `\`headers\` is ${shown(headers)}; it must be an object of text.`,
    )
  const names = Object.keys(headers)
  if (names.length > LIMITS.headersMax) {
    throw new SluiceError(
      'INVALID_HEADERS',
      `A message has ${names.length} headers; at most ${LIMITS.headersMax} are allowed.`,
    )
  }
  for (const name of names) {
    checkText('INVALID_HEADERS', 'header name', name, 1, 255)
    // The name in an error is not made for each valid header.
    if (!isText(headers[name], 0, LIMITS.headersBytesMax))
      checkText('INVALID_HEADERS', `header ${shown(name)}`, headers[name], 0, LIMITS.headersBytesMax)
  }
  const bytes = headersBytes(headers)
  if (bytes > LIMITS.headersBytesMax) {
    throw new SluiceError(
      'INVALID_HEADERS',
      `The headers take ${bytes} bytes; at most ${LIMITS.headersBytesMax} are allowed.`,
    )
  }
}

function checkInteger(
  code: ErrorCode,
  name: string,
  value: unknown,
  min: number,
  max: number,
  unit = '',
): void {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new SluiceError(
      code,
      `\`${name}\` is ${shown(value)}${unit}; it must be a whole number from ${min} to ${max}${unit}.`,
    )
  }
}

function isText(value: unknown, min: number, max: number): boolean {
  if (typeof value !== 'string') return false
  const bytes = textBytes(value)
  // Text that takes one byte per UTF-16 code unit is ASCII, and has no surrogates.
  return bytes >= min && bytes <= max && (bytes === value.length || isWellFormed(value))
}

function checkText(code: ErrorCode, name: string, value: unknown, min: number, max: number): void {
  if (typeof value !== 'string') {
    throw new SluiceError(code, `${name} has the type ${typeof value}; it must be text.`)
  }
  const bytes = textBytes(value)
  if (bytes < min || bytes > max) {
    throw new SluiceError(code, `${name} takes ${bytes} bytes; it must take ${min} to ${max}.`)
  }
  if (!isText(value, min, max)) {
    throw new SluiceError(
      code,
      `${name} is ${shown(value)}: it has an unpaired surrogate, which UTF-8 cannot represent.`,
    )
  }
}

/** Size of the whole record at `at`, in bytes. */
export function recordSize(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at)
}

/** The flags of the record at `at`: bits of RECORD_FLAG. */
export function recordFlags(bytes: Uint8Array, at: number): number {
  return bytes[at + FLAGS_AT]!
}

export function recordPriority(bytes: Uint8Array, at: number): number {
  return bytes[at + PRIORITY_AT]! & PRIORITY_MASK
}

/** The content type of a record that has passed `checkRecords`: one of CONTENT_TYPE. */
export function recordContentType(bytes: Uint8Array, at: number): number {
  return bytes[at + PRIORITY_AT]! >> CONTENT_TYPE_SHIFT
}

/** Position of the payload of the record at `at`, after its options. */
export function recordPayloadAt(bytes: Uint8Array, at: number): number {
  return at + RECORD_HEADER_BYTES + readU16(bytes, at + OPTIONS_LENGTH_AT)
}

/** Options of the record at `at`, which must have passed `checkRecords`. */
export function readRecordOptions(bytes: Uint8Array, at: number): RecordOptions {
  const flags = recordFlags(bytes, at)
  const end = recordPayloadAt(bytes, at)
  const options: { -readonly [Name in keyof RecordOptions]: RecordOptions[Name] } = {
    priority: recordPriority(bytes, at),
  }
  let next = at + RECORD_HEADER_BYTES
  if (flags & RECORD_FLAG.delay) {
    options.delayMs = readU48(bytes, next)
    next += RECORD_TIME_BYTES
  }
  if (flags & RECORD_FLAG.at) {
    options.atMs = readU48(bytes, next)
    next += RECORD_TIME_BYTES
  }
  if (flags & RECORD_FLAG.ttl) {
    options.ttlMs = readU48(bytes, next)
    next += RECORD_TIME_BYTES
  }
  if (flags & RECORD_FLAG.key) {
    options.key = readText(bytes, next + 1, next + 1 + bytes[next]!)
    next += 1 + bytes[next]!
  }
  if (flags & RECORD_FLAG.id) {
    options.id = readText(bytes, next + 1, next + 1 + bytes[next]!)
    next += 1 + bytes[next]!
  }
  if (flags & RECORD_FLAG.headers) {
    const headers: Record<string, string> = Object.create(null) as Record<string, string>
    while (next < end) {
      const name = readText(bytes, next + 1, next + 1 + bytes[next]!)
      next += 1 + bytes[next]!
      const length = readU16(bytes, next)
      headers[name] = readText(bytes, next + 2, next + 2 + length)
      next += 2 + length
    }
    options.headers = headers
  }
  return options
}

/** Positions of the parts of a record. Each part ends where the next one begins. */
export interface RecordLayout {
  /** Position of the key; without a key, of the part that follows. */
  readonly keyAt: number
  readonly idAt: number
  readonly headersAt: number
  readonly payloadAt: number
}

/** The layout of the record at `at`, which must have passed `checkRecords`. */
export function recordLayout(record: Uint8Array, at = 0): RecordLayout {
  const flags = recordFlags(record, at)
  let keyAt = at + RECORD_HEADER_BYTES
  for (const flag of TIME_FLAGS) if (flags & flag) keyAt += RECORD_TIME_BYTES
  const idAt = flags & RECORD_FLAG.key ? keyAt + 1 + record[keyAt]! : keyAt
  const headersAt = flags & RECORD_FLAG.id ? idAt + 1 + record[idAt]! : idAt
  return { keyAt, idAt, headersAt, payloadAt: recordPayloadAt(record, at) }
}

/** Positions of the parts of a header. The whole header is `[at, valueEnd)` of its record. */
export interface HeaderPlace {
  readonly at: number
  readonly nameAt: number
  readonly nameEnd: number
  readonly valueAt: number
  readonly valueEnd: number
}

/** The headers of a record, in their order. */
export function* recordHeaders(
  record: Uint8Array,
  { headersAt, payloadAt }: RecordLayout,
): Generator<HeaderPlace, void, undefined> {
  for (let at = headersAt; at < payloadAt;) {
    const nameAt = at + 1
    const nameEnd = nameAt + record[at]!
    const valueAt = nameEnd + 2
    const valueEnd = valueAt + readU16(record, nameEnd)
    yield { at, nameAt, nameEnd, valueAt, valueEnd }
    at = valueEnd
  }
}

/** The bytes of one header, as `copyRecord` takes them. */
export function encodeHeader(name: string, value: string): Uint8Array {
  const bytes = new Uint8Array(HEADER_OVERHEAD_BYTES + textBytes(name) + textBytes(value))
  writeHeader(bytes, 0, name, value)
  return bytes
}

/**
 * Returns a new array with `gap` bytes and then a copy of the record, with these headers instead of its own headers.
 * The copy has no times and replaces no message, because those options have had their effect.
 */
export function copyRecord(record: Uint8Array, headers: readonly Uint8Array[], gap: number): Uint8Array {
  const { keyAt, headersAt, payloadAt } = recordLayout(record)
  let optionsBytes = headersAt - keyAt
  for (const header of headers) optionsBytes += header.length
  const size = RECORD_HEADER_BYTES + optionsBytes + record.length - payloadAt
  const copy = new Uint8Array(gap + size)
  writeU32(copy, gap, size)
  const kept = recordFlags(record, 0) & (RECORD_FLAG.key | RECORD_FLAG.id)
  copy[gap + FLAGS_AT] = kept | (headers.length > 0 ? RECORD_FLAG.headers : 0)
  copy[gap + PRIORITY_AT] = record[PRIORITY_AT]!
  writeU16(copy, gap + OPTIONS_LENGTH_AT, optionsBytes)
  let at = gap + RECORD_HEADER_BYTES
  for (const part of [viewBytes(record, keyAt, headersAt), ...headers]) {
    copy.set(part, at)
    at += part.length
  }
  copy.set(viewBytes(record, payloadAt, record.length), at)
  return copy
}

/** The first fault that `checkRecords` found, and the record in which it found it. */
export interface RecordFault {
  readonly index: number
  readonly code: 'BATCH_MALFORMED' | 'MESSAGE_TOO_LARGE'
  readonly message: string
}

/**
 * Walks the records in `bytes[start, end)`, each preceded by `gap` other bytes, and checks every length in them against
 * the part that contains it. There must be exactly `count` records, and they must fill the range. Returns the union of
 * the flags of all records, with bit 6 set when any record has a priority. So the caller knows at once whether any
 * record has options or a priority.
 */
export function checkRecords(
  bytes: Uint8Array,
  start: number,
  end: number,
  count: number,
  messageBytesMax: number,
  gap = 0,
): RecordFault | number {
  let at = start
  let flagsSeen = 0
  for (let index = 0; index < count; index++) {
    at += gap
    if (end - at < RECORD_HEADER_BYTES)
      return malformed(index, `record header is cut off at byte ${at - start}`)
    const size = recordSize(bytes, at)
    if (size < RECORD_HEADER_BYTES || size > end - at) {
      return malformed(index, `record size ${size} does not fit the ${end - at} bytes that are left`)
    }
    if (size - RECORD_HEADER_BYTES > messageBytesMax) {
      return {
        index,
        code: 'MESSAGE_TOO_LARGE',
        message: `Message ${index} has ${size - RECORD_HEADER_BYTES} bytes; at most ${messageBytesMax} are accepted.`,
      }
    }
    const flags = recordFlags(bytes, at)
    if (recordPriority(bytes, at) > 0) flagsSeen |= ANY_PRIORITY
    if (recordContentType(bytes, at) > CONTENT_TYPE.msgpack)
      return malformed(index, 'content type is unknown')
    const optionsLength = readU16(bytes, at + OPTIONS_LENGTH_AT)
    if (flags !== 0 || optionsLength !== 0) {
      const fault = checkOptions(bytes, at, flags, optionsLength, size)
      if (fault !== undefined) return malformed(index, fault)
      flagsSeen |= flags
    }
    at += size
  }
  if (at !== end) return malformed(count, `${end - at} bytes follow the last record`)
  return flagsSeen
}

/** Bit in the result of `checkRecords`: some record has a priority other than 0. */
export const ANY_PRIORITY = 64

function malformed(index: number, what: string): RecordFault {
  return { index, code: 'BATCH_MALFORMED', message: `Record ${index} of the batch: ${what}.` }
}

function checkOptions(
  bytes: Uint8Array,
  at: number,
  flags: number,
  length: number,
  size: number,
): string | undefined {
  if (flags & ~KNOWN_FLAGS) return `flags ${flags} are unknown`
  if (length > size - RECORD_HEADER_BYTES)
    return `options of ${length} bytes do not fit a record of ${size} bytes`
  let next = at + RECORD_HEADER_BYTES
  const end = next + length
  if (flags & RECORD_FLAG.delay && flags & RECORD_FLAG.at) return 'delay and at are both set'
  if (flags & RECORD_FLAG.replaces && !(flags & RECORD_FLAG.id)) return 'it replaces a message but has no id'
  for (const flag of TIME_FLAGS) if (flags & flag) next += RECORD_TIME_BYTES
  if (next > end) return 'times are cut off'
  for (const flag of [RECORD_FLAG.key, RECORD_FLAG.id]) {
    if (!(flags & flag)) continue
    if (next >= end) return 'key or id is cut off'
    if (bytes[next] === 0) return 'key or id is empty'
    next += 1 + bytes[next]!
    if (next > end) return 'key or id is cut off'
  }
  if (flags & RECORD_FLAG.headers) {
    if (end - next > LIMITS.headersBytesMax)
      return `headers of ${end - next} bytes exceed ${LIMITS.headersBytesMax}`
    for (let headers = 0; next < end; headers++) {
      if (headers === LIMITS.headersMax) return `more than ${LIMITS.headersMax} headers`
      if (bytes[next] === 0) return 'a header has no name'
      next += 1 + bytes[next]!
      if (next + 2 > end) return 'a header is cut off'
      next += 2 + readU16(bytes, next)
      if (next > end) return 'a header is cut off'
    }
  }
  return next === end ? undefined : 'options are longer than the flags say'
}
