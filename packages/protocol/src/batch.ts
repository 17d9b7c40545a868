/**
 * Batches: the unit that travels and is stored as it came. One queue, one producer, one number; the checksum covers
 * the records from the producer's hand to the disk and back.
 *
 * Header, 48 bytes: u32 length (header included) · u8 type · u8 attributes · u16 version · u32 queue id* · u32 count ·
 * u64 base offset* · u64 batch number · u48 time* · u16 follows · u32 producer id* · u32 records CRC. The broker stamps
 * `*`, where a producer sends 0, and stores 0 as `follows`.
 */
import { readU16, readU32, readU48, readU64, writeU16, writeU32, writeU48, writeU64 } from './bytes.js'
import { crc32 } from './checksum.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'

export const BATCH_HEADER_BYTES = 48
const FOLLOWS_AT = 38
export const BATCH_VERSION = 1

/** Type of a batch. Only `messages` travels; the others are facts that the broker writes to its log. */
export const BATCH_TYPE = { messages: 1, facts: 2, page: 3, boot: 4, directory: 5, close: 6 } as const

/** `atomic`: all or none of the messages are taken. `relocated`: copied forward by the broker, original header.
 * `traits`: stamped by the broker where a record has a priority, a delay, a time or a time to live. */
export const BATCH_ATTRIBUTE = { atomic: 1, relocated: 2, traits: 4 } as const

export interface BatchHeader {
  readonly length: number
  readonly type: number
  readonly attributes: number
  readonly version: number
  readonly queueId: number
  readonly count: number
  readonly baseOffset: number
  readonly batchNumber: number
  readonly timeMs: number
  readonly producerId: number
  readonly recordsCrc: number
}

export type BatchStamp = Partial<Omit<BatchHeader, 'length' | 'recordsCrc' | 'version'>> & {
  readonly type: number
  /** How far below its own number that of the batch is which it follows; 0: none. */
  readonly follows?: number
}

/**
 * Writes the header of the batch whose records already stand at `[at + 48, end)`, and their checksum.
 */
export function sealBatch(bytes: Uint8Array, at: number, end: number, stamp: BatchStamp): void {
  writeU32(bytes, at, end - at)
  bytes[at + 4] = stamp.type
  bytes[at + 5] = stamp.attributes ?? 0
  writeU16(bytes, at + 6, BATCH_VERSION)
  writeU32(bytes, at + 8, stamp.queueId ?? 0)
  writeU32(bytes, at + 12, stamp.count ?? 0)
  writeU64(bytes, at + 16, stamp.baseOffset ?? 0)
  writeU64(bytes, at + 24, stamp.batchNumber ?? 0)
  writeU48(bytes, at + 32, stamp.timeMs ?? 0)
  writeU16(bytes, at + FOLLOWS_AT, stamp.follows ?? 0)
  writeU32(bytes, at + 40, stamp.producerId ?? 0)
  writeU32(bytes, at + 44, crc32(bytes, at + BATCH_HEADER_BYTES, end))
}

/** Stamps what only the broker knows onto a batch that came from a producer; reserved bytes become 0. */
export function stampBatch(
  bytes: Uint8Array,
  at: number,
  queueId: number,
  baseOffset: number,
  timeMs: number,
  producerId: number,
): void {
  writeU32(bytes, at + 8, queueId)
  writeU64(bytes, at + 16, baseOffset)
  writeU48(bytes, at + 32, timeMs)
  writeU16(bytes, at + FOLLOWS_AT, 0)
  writeU32(bytes, at + 40, producerId)
}

export function readBatchHeader(bytes: Uint8Array, at: number): BatchHeader {
  return {
    length: readU32(bytes, at),
    type: bytes[at + 4]!,
    attributes: bytes[at + 5]!,
    version: readU16(bytes, at + 6),
    queueId: readU32(bytes, at + 8),
    count: readU32(bytes, at + 12),
    baseOffset: readU64(bytes, at + 16),
    batchNumber: readU64(bytes, at + 24),
    timeMs: readU48(bytes, at + 32),
    producerId: readU32(bytes, at + 40),
    recordsCrc: readU32(bytes, at + 44),
  }
}

/** How far below its own number that of the batch is which the batch at `at` follows; 0: none. */
export function batchFollows(bytes: Uint8Array, at: number): number {
  return readU16(bytes, at + FOLLOWS_AT)
}

/** Whether the checksum of the batch at `[at, end)` matches its records. */
export function batchIsIntact(bytes: Uint8Array, at: number, end: number): boolean {
  return readU32(bytes, at + 44) === crc32(bytes, at + BATCH_HEADER_BYTES, end)
}

/**
 * Checks all of a batch from a producer but its records' own layout: lengths, type, version, number, checksum.
 * @throws SluiceError BATCH_MALFORMED, BATCH_TOO_LARGE, BATCH_CORRUPT
 */
export function checkBatch(bytes: Uint8Array, at: number, end: number): void {
  const got = end - at
  if (got < BATCH_HEADER_BYTES) throw cutOff(got)
  const length = readU32(bytes, at)
  if (length !== got) throw otherLength(length, got)
  if (bytes[at + 4] !== BATCH_TYPE.messages) throw otherType(bytes[at + 4]!)
  const version = readU16(bytes, at + 6)
  if (version !== BATCH_VERSION) throw otherVersion(version)
  if (bytes[at + 5]! & ~BATCH_ATTRIBUTE.atomic) throw otherAttributes(bytes[at + 5]!)
  const count = readU32(bytes, at + 12)
  if (count === 0 || count > LIMITS.batchCountMax) throw countOutOfRange(count)
  if (count > 1 && length > LIMITS.batchBytesMax) throw tooLong(count, length)
  const number = readU64(bytes, at + 24)
  if (number === 0 || !Number.isSafeInteger(number)) throw numberOutOfRange(number)
  if (!batchIsIntact(bytes, at, end)) throw corrupt(number)
}

// Apart from the checks: V8 makes the text of a number that two of several errors name before it knows whether any is
// needed, and that was a fourteenth of what a broker does for a single message.

function cutOff(got: number): SluiceError {
  return malformed(`A batch of ${got} bytes is shorter than its header of ${BATCH_HEADER_BYTES}.`)
}

function otherLength(length: number, got: number): SluiceError {
  return malformed(`A batch says that it has ${length} bytes; ${got} came.`)
}

function otherType(type: number): SluiceError {
  return malformed(`Batch type ${type} is not one that a producer may send.`)
}

function otherVersion(version: number): SluiceError {
  return malformed(`Batch version ${version} is unknown; this broker reads ${BATCH_VERSION}.`)
}

function otherAttributes(attributes: number): SluiceError {
  return malformed(`Batch attributes ${attributes} are not ones that a producer may set.`)
}

function countOutOfRange(count: number): SluiceError {
  return new SluiceError(
    'BATCH_TOO_LARGE',
    `A batch has ${count} messages; it must have 1 to ${LIMITS.batchCountMax}.`,
  )
}

function tooLong(count: number, length: number): SluiceError {
  return new SluiceError(
    'BATCH_TOO_LARGE',
    `A batch of ${count} messages has ${length} bytes; at most ${LIMITS.batchBytesMax} are accepted.`,
  )
}

function numberOutOfRange(number: number): SluiceError {
  return malformed(`Batch number ${number} is out of range; numbers begin at 1 and stay below 2^53.`)
}

function corrupt(number: number): SluiceError {
  return new SluiceError('BATCH_CORRUPT', `The checksum of batch ${number} does not match its records.`)
}

function malformed(what: string): SluiceError {
  return new SluiceError('BATCH_MALFORMED', what)
}
