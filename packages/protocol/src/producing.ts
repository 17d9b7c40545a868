/**
 * The payloads of PUBLISH, PUBLISH_OK and PUBLISH_ERR, and of ATOMIC and ATOMIC_OK.
 *
 * PUBLISH: u8 queue name length · queue name · batch (see batch.ts).
 * PUBLISH_OK: for each batch u64 number · u64 base offset · u32 duplicates, then for each duplicate
 *   u32 index in the batch · u64 offset of the message that was accepted first. Other messages have offset base + index.
 * PUBLISH_ERR: u64 number · fault (see handshake.ts). It also refuses an ATOMIC.
 * ATOMIC: u64 number · u32 CRC-32 of everything after it · u16 ranges · u16 batches · acknowledged ranges of
 *   u16 channel · u16 0 · u32 subscription id · u32 first tag · u32 count · batches, each after its queue name as in
 *   PUBLISH, or the address of a topic, and with the number of the ATOMIC. The length in the header of a batch shows where the next batch begins.
 * ATOMIC_OK: u64 number · u32 batches · for each u64 base offset · u32 duplicates · duplicates as in PUBLISH_OK.
 */
import { BATCH_HEADER_BYTES, batchCount, batchLength, batchNumber } from './batch.js'
import { readText, readU16, readU32, textBytes, writeText, writeU16, writeU32, writeU64 } from './bytes.js'
import { crc32 } from './checksum.js'
import { SluiceError } from './errors.js'
import { FRAME_HEADER_BYTES } from './frame.js'
import { decodeFault, encodeFault, exactNumber, need, u64, type Fault } from './handshake.js'
import { LIMITS } from './limits.js'
import { isTopicAddress, queueName } from './names.js'
import { RECORD_HEADER_BYTES } from './record.js'

/** Position of the queue's name in the payload of PUBLISH. The batch follows the name. */
export const PUBLISH_NAME_AT = 1

/** Maximum number of bytes that a PUBLISH frame and a batch header add to one record. */
export const MESSAGE_OVERHEAD_BYTES =
  FRAME_HEADER_BYTES + PUBLISH_NAME_AT + LIMITS.queueNameBytesMax + BATCH_HEADER_BYTES + RECORD_HEADER_BYTES

/** Size of a base offset and the number of duplicates, in bytes. */
export const PLACE_BYTES = 12
export const PUBLISH_OK_ITEM_BYTES = 8 + PLACE_BYTES
export const DUPLICATE_BYTES = 12

/** Bytes of one item of PUBLISH_OK. */
export function publishOkItemBytes(duplicates: Duplicates | undefined): number {
  return PUBLISH_OK_ITEM_BYTES + (duplicates === undefined ? 0 : duplicates.size * DUPLICATE_BYTES)
}

/** Writes one item; returns the position after it. */
export function writePublishOkItem(
  bytes: Uint8Array,
  at: number,
  batchNumber: number,
  baseOffset: number,
  duplicates?: Duplicates,
): number {
  writeU64(bytes, at, batchNumber)
  return writePlace(bytes, at + 8, baseOffset, duplicates)
}

function writePlace(
  bytes: Uint8Array,
  at: number,
  baseOffset: number,
  duplicates: Duplicates | undefined,
): number {
  writeU64(bytes, at, baseOffset)
  writeU32(bytes, at + 8, duplicates?.size ?? 0)
  let next = at + PLACE_BYTES
  for (const [index, first] of duplicates ?? []) {
    writeU32(bytes, next, index)
    writeU64(bytes, next + 4, first)
    next += DUPLICATE_BYTES
  }
  return next
}

/**
 * Duplicates of a batch: index in the batch → offset at which that message was accepted earlier. A message that
 * replaced an earlier message is listed with its own offset.
 */
export type Duplicates = ReadonlyMap<number, number>

/** The offsets of the messages of one batch. */
export interface Placed {
  readonly baseOffset: number
  readonly duplicates: Duplicates | undefined
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodePublishOk(
  bytes: Uint8Array,
  start: number,
  end: number,
  item: (batchNumber: number, baseOffset: number, duplicates: Duplicates | undefined) => void,
): void {
  let at = start
  while (at < end) {
    need('PUBLISH_OK', end - at, PUBLISH_OK_ITEM_BYTES)
    const batchNumber = u64('PUBLISH_OK', bytes, at)
    const baseOffset = u64('PUBLISH_OK', bytes, at + 8)
    const count = readU32(bytes, at + 16)
    at += PUBLISH_OK_ITEM_BYTES
    let duplicates: Map<number, number> | undefined
    if (count > 0) {
      duplicates = readDuplicates('PUBLISH_OK', bytes, at, end, count)
      at += count * DUPLICATE_BYTES
    }
    item(batchNumber, baseOffset, duplicates)
  }
}

function readDuplicates(
  frame: string,
  bytes: Uint8Array,
  start: number,
  end: number,
  count: number,
): Map<number, number> {
  need(frame, end - start, count * DUPLICATE_BYTES)
  const duplicates = new Map<number, number>()
  for (let at = start; at < start + count * DUPLICATE_BYTES; at += DUPLICATE_BYTES)
    duplicates.set(readU32(bytes, at), u64(frame, bytes, at + 4))
  return duplicates
}

export function encodePublishErr(batchNumber: number, fault: Fault): Uint8Array {
  const tail = encodeFault(fault)
  const bytes = new Uint8Array(8 + tail.length)
  writeU64(bytes, 0, batchNumber)
  bytes.set(tail, 8)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodePublishErr(
  bytes: Uint8Array,
  start: number,
  end: number,
): { batchNumber: number; fault: Fault } {
  need('PUBLISH_ERR', end - start, 8)
  return { batchNumber: u64('PUBLISH_ERR', bytes, start), fault: decodeFault(bytes, start + 8, end) }
}

/**
 * Returns the position of the batch, which follows the name of the queue. Checks that the batch header is complete, so
 * that a refusal can name the batch number.
 * @throws SluiceError MALFORMED_FRAME
 */
export function publishBatchStart(bytes: Uint8Array, start: number, end: number): number {
  need('PUBLISH', end - start, 1)
  const at = start + PUBLISH_NAME_AT + bytes[start]!
  if (at > end)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `The queue name of PUBLISH has ${bytes[start]} bytes; ${end - start - 1} arrived.`,
    )
  need('The batch of PUBLISH', end - at, BATCH_HEADER_BYTES)
  return at
}

/**
 * Returns the number of the batch at `at`, which a refusal names.
 * @throws SluiceError MALFORMED_FRAME
 */
export function publishNumber(bytes: Uint8Array, at: number): number {
  return exactNumber('The batch of PUBLISH', batchNumber(bytes, at))
}

/** Writes the fields before a batch in PUBLISH and in ATOMIC. Returns the position of the batch. */
export function writePublishHead(bytes: Uint8Array, at: number, queue: string): number {
  const nameBytes = writeText(bytes, at + PUBLISH_NAME_AT, queue)
  bytes[at] = nameBytes
  return at + PUBLISH_NAME_AT + nameBytes
}

/** A range of consecutive tags of one subscription, acknowledged by an atomic step. */
export interface AtomicAck {
  readonly channel: number
  readonly subscriptionId: number
  readonly firstTag: number
  readonly count: number
}

/** One batch of an atomic step: `bytes[at, end)`, for a queue or for the address of a topic. */
export interface AtomicBatch {
  readonly queue: string
  readonly bytes: Uint8Array
  readonly at: number
  readonly end: number
}

export interface Atomic {
  readonly number: number
  readonly crc: number
  readonly acks: readonly AtomicAck[]
  readonly batches: readonly AtomicBatch[]
}

export const ATOMIC_HEAD_BYTES = 16
export const ATOMIC_ACK_BYTES = 16

/**
 * Encodes ATOMIC. The batches must be sealed with `number`.
 * @throws SluiceError TRANSACTION_TOO_LARGE, INVALID_NAME
 */
export function encodeAtomic(
  number: number,
  acks: readonly AtomicAck[],
  batches: readonly AtomicBatch[],
): Uint8Array {
  checkAtMost('batches', batches.length, LIMITS.atomicBatchesMax)
  let acknowledged = 0
  for (const { count } of acks) acknowledged += count
  // Each range has at least one message, so the number of ranges fits its field too.
  checkAtMost('acknowledgements', Math.max(acknowledged, acks.length), LIMITS.atomicAcksMax)
  let size = ATOMIC_HEAD_BYTES + acks.length * ATOMIC_ACK_BYTES
  let messages = 0
  for (const { queue, bytes, at, end } of batches) {
    size += PUBLISH_NAME_AT + textBytes(isTopicAddress(queue) ? queue : queueName(queue)) + end - at
    messages += batchCount(bytes, at)
  }
  checkAtMost('messages', messages, LIMITS.atomicMessagesMax)
  const bytes = new Uint8Array(size)
  writeU64(bytes, 0, number)
  writeU16(bytes, 12, acks.length)
  writeU16(bytes, 14, batches.length)
  let next = ATOMIC_HEAD_BYTES
  for (const ack of acks) {
    writeU16(bytes, next, ack.channel)
    writeU32(bytes, next + 4, ack.subscriptionId)
    writeU32(bytes, next + 8, ack.firstTag)
    writeU32(bytes, next + 12, ack.count)
    next += ATOMIC_ACK_BYTES
  }
  for (const batch of batches) {
    next = writePublishHead(bytes, next, batch.queue)
    bytes.set(batch.bytes.subarray(batch.at, batch.end), next)
    next += batch.end - batch.at
  }
  writeU32(bytes, 8, crc32(bytes, 12, bytes.length))
  return bytes
}

function checkAtMost(what: string, count: number, max: number): void {
  if (count > max) {
    throw new SluiceError(
      'TRANSACTION_TOO_LARGE',
      `An atomic step has ${count} ${what}; at most ${max} are accepted.`,
    )
  }
}

/**
 * Returns the number of an ATOMIC, so that a refusal can name it. The number may be out of range. @throws SluiceError
 * MALFORMED_FRAME
 */
export function atomicNumber(bytes: Uint8Array, start: number, end: number): number {
  need('ATOMIC', end - start, ATOMIC_HEAD_BYTES)
  return u64('ATOMIC', bytes, start)
}

/**
 * Decodes an atomic step. Reads only the length, the count and the number of each batch, and checks nothing else in the
 * batches.
 * @throws SluiceError MALFORMED_FRAME, BATCH_MALFORMED, BATCH_CORRUPT, TRANSACTION_TOO_LARGE
 */
export function decodeAtomic(bytes: Uint8Array, start: number, end: number): Atomic {
  const number = atomicNumber(bytes, start, end)
  if (number === 0) {
    throw new SluiceError(
      'BATCH_MALFORMED',
      'The number 0 of an atomic step is out of range; numbers start at 1 and stay below 2^53.',
    )
  }
  const crc = readU32(bytes, start + 8)
  if (crc !== crc32(bytes, start + 12, end)) {
    throw new SluiceError(
      'BATCH_CORRUPT',
      `The checksum of the atomic step ${number} does not match its bytes.`,
    )
  }
  const ackCount = readU16(bytes, start + 12)
  const batchTotal = readU16(bytes, start + 14)
  checkAtMost('batches', batchTotal, LIMITS.atomicBatchesMax)
  let at = start + ATOMIC_HEAD_BYTES
  need('ATOMIC', end - at, ackCount * ATOMIC_ACK_BYTES)
  const acks: AtomicAck[] = []
  let acknowledged = 0
  for (let i = 0; i < ackCount; i++, at += ATOMIC_ACK_BYTES) {
    const count = readU32(bytes, at + 12)
    if (count === 0) throw new SluiceError('MALFORMED_FRAME', 'ATOMIC has a range of 0 tags.')
    acknowledged += count
    checkAtMost('acknowledgements', acknowledged, LIMITS.atomicAcksMax)
    acks.push({
      channel: readU16(bytes, at),
      subscriptionId: readU32(bytes, at + 4),
      firstTag: readU32(bytes, at + 8),
      count,
    })
  }
  const batches: AtomicBatch[] = []
  let messages = 0
  for (let i = 0; i < batchTotal; i++) {
    const batchAt = publishBatchStart(bytes, at, end)
    const queue = readText(bytes, at + PUBLISH_NAME_AT, batchAt)
    const length = batchLength(bytes, batchAt)
    if (length < BATCH_HEADER_BYTES || length > end - batchAt) {
      throw new SluiceError(
        'MALFORMED_FRAME',
        `The header of batch ${i} of ATOMIC gives a length of ${length} bytes; ${end - batchAt} are left.`,
      )
    }
    if (batchNumber(bytes, batchAt) !== number) {
      throw new SluiceError('BATCH_MALFORMED', `Batch ${i} of the atomic step ${number} has another number.`)
    }
    messages += batchCount(bytes, batchAt)
    checkAtMost('messages', messages, LIMITS.atomicMessagesMax)
    batches.push({ queue, bytes, at: batchAt, end: batchAt + length })
    at = batchAt + length
  }
  if (at !== end)
    throw new SluiceError('MALFORMED_FRAME', `ATOMIC has ${end - at} bytes after its last batch.`)
  return { number, crc, acks, batches }
}

export const ATOMIC_OK_HEAD_BYTES = 12

export function encodeAtomicOk(number: number, places: readonly Placed[]): Uint8Array {
  let size = ATOMIC_OK_HEAD_BYTES
  for (const { duplicates } of places) size += PLACE_BYTES + (duplicates?.size ?? 0) * DUPLICATE_BYTES
  const bytes = new Uint8Array(size)
  writeU64(bytes, 0, number)
  writeU32(bytes, 8, places.length)
  let at = ATOMIC_OK_HEAD_BYTES
  for (const { baseOffset, duplicates } of places) at = writePlace(bytes, at, baseOffset, duplicates)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeAtomicOk(
  bytes: Uint8Array,
  start: number,
  end: number,
): { readonly number: number; readonly places: readonly Placed[] } {
  need('ATOMIC_OK', end - start, ATOMIC_OK_HEAD_BYTES)
  const count = readU32(bytes, start + 8)
  let at = start + ATOMIC_OK_HEAD_BYTES
  need('ATOMIC_OK', end - at, count * PLACE_BYTES)
  const places: Placed[] = []
  for (let i = 0; i < count; i++) {
    need('ATOMIC_OK', end - at, PLACE_BYTES)
    const baseOffset = u64('ATOMIC_OK', bytes, at)
    const duplicateCount = readU32(bytes, at + 8)
    at += PLACE_BYTES
    const duplicates =
      duplicateCount === 0 ? undefined : readDuplicates('ATOMIC_OK', bytes, at, end, duplicateCount)
    at += duplicateCount * DUPLICATE_BYTES
    places.push({ baseOffset, duplicates })
  }
  if (at !== end) throw new SluiceError('MALFORMED_FRAME', `ATOMIC_OK has ${end - at} bytes too many.`)
  return { number: u64('ATOMIC_OK', bytes, start), places }
}
