/**
 * Batches. A batch is sent as a unit, and stored as it was received. It has one queue, one producer and one number. Its
 * checksum protects the records all the way from the producer to the disk and back.
 *
 * Header, 48 bytes: u32 length (header included) · u8 type · u8 attributes · u16 version · u32 queue id* · u32 count ·
 * u64 base offset* · u64 batch number · u48 time* · u16 follows · u32 producer id* · u32 records CRC. The broker fills
 * in the fields marked `*`, in which a producer sends 0. It stores 0 as `follows`.
 */
import { readU16, readU32, readU48, readU64, writeU16, writeU32, writeU48, writeU64 } from './bytes.js'
import { crc32 } from './checksum.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'

export const BATCH_HEADER_BYTES = 48
export const BATCH_VERSION = 1

const TYPE_AT = 4
const ATTRIBUTES_AT = 5
const VERSION_AT = 6
const QUEUE_ID_AT = 8
const COUNT_AT = 12
const BASE_OFFSET_AT = 16
const NUMBER_AT = 24
const TIME_AT = 32
const FOLLOWS_AT = 38
const PRODUCER_ID_AT = 40
const RECORDS_CRC_AT = 44

/** Type of a batch. A producer sends only `messages`. The broker writes the other types to its log. */
export const BATCH_TYPE = { messages: 1, facts: 2, page: 3, boot: 4, directory: 5, close: 6 } as const

/**
 * `atomic`: all or none of the messages are accepted. `relocated`: the broker has copied the batch to the end of the
 * log, with its original header. `traits`: set by the broker if a record has a priority, a delay, a due time, a time to
 * live, a key or an id, or if its queue has `ttlMs` or `maxBytes`. `sparse`: the copy leaves out records; see sparse.ts.
 */
export const BATCH_ATTRIBUTE = { atomic: 1, relocated: 2, traits: 4, sparse: 8, topic: 16 } as const

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
  /** Number of the batch minus the number of the batch that it follows; 0 if it follows none. */
  readonly follows?: number
}

/**
 * Writes the header and the checksum of a batch whose records are already in `bytes[at + 48, end)`.
 */
export function sealBatch(bytes: Uint8Array, at: number, end: number, stamp: BatchStamp): void {
  writeU32(bytes, at, end - at)
  bytes[at + TYPE_AT] = stamp.type
  bytes[at + ATTRIBUTES_AT] = stamp.attributes ?? 0
  writeU16(bytes, at + VERSION_AT, BATCH_VERSION)
  writeU32(bytes, at + QUEUE_ID_AT, stamp.queueId ?? 0)
  writeU32(bytes, at + COUNT_AT, stamp.count ?? 0)
  writeU64(bytes, at + BASE_OFFSET_AT, stamp.baseOffset ?? 0)
  writeU64(bytes, at + NUMBER_AT, stamp.batchNumber ?? 0)
  writeU48(bytes, at + TIME_AT, stamp.timeMs ?? 0)
  writeU16(bytes, at + FOLLOWS_AT, stamp.follows ?? 0)
  writeU32(bytes, at + PRODUCER_ID_AT, stamp.producerId ?? 0)
  writeU32(bytes, at + RECORDS_CRC_AT, crc32(bytes, at + BATCH_HEADER_BYTES, end))
}

/** In a batch from a producer, fills in the header fields that only the broker knows. `follows` becomes 0. */
export function stampBatch(
  bytes: Uint8Array,
  at: number,
  queueId: number,
  baseOffset: number,
  timeMs: number,
  producerId: number,
): void {
  writeU32(bytes, at + QUEUE_ID_AT, queueId)
  writeU64(bytes, at + BASE_OFFSET_AT, baseOffset)
  writeU48(bytes, at + TIME_AT, timeMs)
  writeU16(bytes, at + FOLLOWS_AT, 0)
  writeU32(bytes, at + PRODUCER_ID_AT, producerId)
}

export function writeBatchAttributes(bytes: Uint8Array, at: number, attributes: number): void {
  bytes[at + ATTRIBUTES_AT] = attributes
}

export function writeBatchLength(bytes: Uint8Array, at: number, length: number): void {
  writeU32(bytes, at, length)
}

export function writeRecordsCrc(bytes: Uint8Array, at: number, crc: number): void {
  writeU32(bytes, at + RECORDS_CRC_AT, crc)
}

export function readBatchHeader(bytes: Uint8Array, at: number): BatchHeader {
  return {
    length: batchLength(bytes, at),
    type: batchType(bytes, at),
    attributes: batchAttributes(bytes, at),
    version: batchVersion(bytes, at),
    queueId: batchQueueId(bytes, at),
    count: batchCount(bytes, at),
    baseOffset: batchBaseOffset(bytes, at),
    batchNumber: batchNumber(bytes, at),
    timeMs: batchTimeMs(bytes, at),
    producerId: readU32(bytes, at + PRODUCER_ID_AT),
    recordsCrc: batchRecordsCrc(bytes, at),
  }
}

// Each of these functions reads one field of the header of the batch at `at`.

export function batchLength(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at)
}

export function batchType(bytes: Uint8Array, at: number): number {
  return bytes[at + TYPE_AT]!
}

export function batchAttributes(bytes: Uint8Array, at: number): number {
  return bytes[at + ATTRIBUTES_AT]!
}

function batchVersion(bytes: Uint8Array, at: number): number {
  return readU16(bytes, at + VERSION_AT)
}

export function batchQueueId(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + QUEUE_ID_AT)
}

export function batchCount(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + COUNT_AT)
}

export function batchBaseOffset(bytes: Uint8Array, at: number): number {
  return readU64(bytes, at + BASE_OFFSET_AT)
}

export function batchNumber(bytes: Uint8Array, at: number): number {
  return readU64(bytes, at + NUMBER_AT)
}

export function batchTimeMs(bytes: Uint8Array, at: number): number {
  return readU48(bytes, at + TIME_AT)
}

/** Number of the batch minus the number of the batch that it follows; 0 if it follows none. */
export function batchFollows(bytes: Uint8Array, at: number): number {
  return readU16(bytes, at + FOLLOWS_AT)
}

export function batchRecordsCrc(bytes: Uint8Array, at: number): number {
  return readU32(bytes, at + RECORDS_CRC_AT)
}

/** Whether the checksum of the batch at `[at, end)`, which is not sparse, matches its records. */
export function recordsMatchCrc(bytes: Uint8Array, at: number, end: number): boolean {
  return batchRecordsCrc(bytes, at) === crc32(bytes, at + BATCH_HEADER_BYTES, end)
}

/**
 * Checks a batch from a producer: lengths, type, version, number and checksum, but not the layout of the records.
 * @throws SluiceError BATCH_MALFORMED, BATCH_TOO_LARGE, BATCH_CORRUPT
 */
export function checkBatch(bytes: Uint8Array, at: number, end: number): void {
  const got = end - at
  if (got < BATCH_HEADER_BYTES) throw cutOff(got)
  const length = batchLength(bytes, at)
  if (length !== got) throw otherLength(length, got)
  const type = batchType(bytes, at)
  if (type !== BATCH_TYPE.messages) throw otherType(type)
  const version = batchVersion(bytes, at)
  if (version !== BATCH_VERSION) throw otherVersion(version)
  const attributes = batchAttributes(bytes, at)
  if (attributes & ~BATCH_ATTRIBUTE.atomic) throw otherAttributes(attributes)
  const count = batchCount(bytes, at)
  if (count === 0 || count > LIMITS.batchCountMax) throw countOutOfRange(count)
  if (count > 1 && length > LIMITS.batchBytesMax) throw tooLong(count, length)
  const number = batchNumber(bytes, at)
  if (number === 0 || !Number.isSafeInteger(number)) throw numberOutOfRange(number)
  if (!recordsMatchCrc(bytes, at, end)) throw corrupt(number)
}

// The errors are made outside `checkBatch`. If they were made inside it, V8 would format a number that several errors
// contain, even when no error occurs. With batches of one message, this took a fourteenth of the broker's time.

function cutOff(got: number): SluiceError {
  return malformed(
    `A batch of ${got} bytes is shorter than its header, which has ${BATCH_HEADER_BYTES} bytes.`,
  )
}

function otherLength(length: number, got: number): SluiceError {
  return malformed(`The header of a batch gives a length of ${length} bytes; ${got} arrived.`)
}

function otherType(type: number): SluiceError {
  return malformed(`A producer may not send batch type ${type}.`)
}

function otherVersion(version: number): SluiceError {
  return malformed(`Batch version ${version} is unknown; this broker reads version ${BATCH_VERSION}.`)
}

function otherAttributes(attributes: number): SluiceError {
  return malformed(`A producer may not set batch attributes ${attributes}.`)
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
  return malformed(`Batch number ${number} is out of range; numbers start at 1 and stay below 2^53.`)
}

function corrupt(number: number): SluiceError {
  return new SluiceError('BATCH_CORRUPT', `The checksum of batch ${number} does not match its records.`)
}

function malformed(what: string): SluiceError {
  return new SluiceError('BATCH_MALFORMED', what)
}
