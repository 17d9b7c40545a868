/**
 * The payloads of the frames that open, use and end a subscription.
 *
 * SUBSCRIBE_OK: u32 subscription id · u32 queue number · granted claims, of u32 index · u32 tag · u16 attempt · u16 0.
 * UNSUBSCRIBE: u32 subscription id.
 * The claims of SUBSCRIBE: for each u64 offset · u32 queue number · u32 boot · u32 subscription id · u32 tag ·
 *   u32 record bytes · u16 attempt · u16 0.
 * CREDIT: u32 subscription id · u32 messages · u32 bytes · u8 flags (1 limit given, 2 drain) · u8 0 · u16 0 · u64 limit.
 * DELIVER: u32 subscription id · u32 first tag · u64 first offset · u64 published at, ms · u32 count · u16 attempt ·
 *   u8 flags (1 redelivered, 2 alone, 4 scattered) · u8 0 · records. One run: consecutive tags and consecutive offsets.
 *   Scattered: only the tags are consecutive. Before each record are its u64 offset · u64 published at, ms. The head has
 *   these two fields of the first message.
 * STARTED, STARTING: u32 subscription id · ranges of u32 first tag · u32 count.
 * SETTLE: u32 subscription id · items of u32 first tag · u32 count · u8 outcome · u8 flags (1 delay given, 2 invalid,
 *   4 pause key) · u16 reason length · u48 delay, ms · u16 0 · reason.
 * EXTEND: u32 subscription id · u32 first tag · u32 count · u48 duration, ms (0: that of the subscription) · u16 0.
 * SETTLE_OK: u32 subscription id · ranges that were stale. It answers SETTLE and EXTEND.
 * LEASES_LOST: u32 subscription id · u8 reason · u8 0 · u16 0 · ranges of messages that no longer belong to the consumer:
 *   u32 first tag · u32 count · u64 first offset. A range has consecutive tags and consecutive offsets.
 * DRAINED: u32 subscription id · u64 deliveries of this subscription so far.
 *
 * Tags wrap around at 2^32: the range (first, count) means first, first + 1, … modulo 2^32. All ranges of one frame
 * together name at most LIMITS.creditMessagesMax tags.
 */
import { durationText } from './units.js'
import {
  clipText,
  readText,
  readU16,
  readU32,
  readU48,
  readU64,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from './bytes.js'
import { SluiceError } from './errors.js'
import { exact, need, u64 } from './handshake.js'
import { LIMITS } from './limits.js'
import { MESSAGE_OVERHEAD_BYTES } from './producing.js'

export const OUTCOME = { ack: 1, retry: 2, release: 3, deadLetter: 4 } as const
export type Outcome = (typeof OUTCOME)[keyof typeof OUTCOME]

export const DELIVER_FLAG = { redelivered: 1, alone: 2, scattered: 4 } as const
/** Number of bytes before each record of a scattered delivery. */
export const SCATTERED_BYTES = 16
export const DELIVER_HEADER_BYTES = 32
const DELIVER_COUNT_AT = 24

export interface Credit {
  readonly subscriptionId: number
  /** Maximum number of unsettled messages; 0 stops deliveries. */
  readonly messages: number
  /** Maximum size of the records of unsettled messages, in bytes; a larger message is delivered alone. */
  readonly bytes: number
  /**
   * Maximum number of messages that are ever delivered, counted from the start of the subscription; undefined means no
   * limit.
   */
  readonly limit: number | undefined
  /** Whether the broker answers DRAINED and stops deliveries once no further message can be delivered at the moment. */
  readonly drain: boolean
}

export function encodeCredit(credit: Credit): Uint8Array {
  const bytes = new Uint8Array(24)
  writeU32(bytes, 0, credit.subscriptionId)
  writeU32(bytes, 4, credit.messages)
  writeU32(bytes, 8, credit.bytes)
  bytes[12] = (credit.limit === undefined ? 0 : 1) | (credit.drain ? 2 : 0)
  writeU64(bytes, 16, credit.limit ?? 0)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME, INVALID_ARGUMENT */
export function decodeCredit(bytes: Uint8Array, start: number, end: number): Credit {
  exact('CREDIT', end - start, 24)
  const messages = readU32(bytes, start + 4)
  if (messages > LIMITS.creditMessagesMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `A credit of ${messages} messages is too large; at most ${LIMITS.creditMessagesMax} are allowed.`,
    )
  }
  const flags = bytes[start + 12]!
  if (flags > 3) throw new SluiceError('MALFORMED_FRAME', `CREDIT has unknown flags ${flags}.`)
  const limit = u64('CREDIT', bytes, start + 16)
  return {
    subscriptionId: readU32(bytes, start),
    messages,
    bytes: readU32(bytes, start + 8),
    limit: flags & 1 ? limit : undefined,
    drain: (flags & 2) !== 0,
  }
}

/** The head of a delivery, before its records. */
export interface DeliverHead {
  readonly subscriptionId: number
  readonly firstTag: number
  readonly firstOffset: number
  readonly publishedAtMs: number
  readonly count: number
  readonly attempt: number
  readonly flags: number
}

/** Writes the 32 bytes before the records; returns the position after them. */
export function writeDeliverHead(bytes: Uint8Array, at: number, head: DeliverHead): number {
  writeU32(bytes, at, head.subscriptionId)
  writeU32(bytes, at + 4, head.firstTag)
  writeU64(bytes, at + 8, head.firstOffset)
  writeU64(bytes, at + 16, head.publishedAtMs)
  writeU32(bytes, at + DELIVER_COUNT_AT, head.count)
  writeU16(bytes, at + 28, head.attempt)
  bytes[at + 30] = head.flags
  bytes[at + 31] = 0
  return at + DELIVER_HEADER_BYTES
}

/** Corrects the count in the head at `at`, after a message has been added. */
export function writeDeliverCount(bytes: Uint8Array, at: number, count: number): void {
  writeU32(bytes, at + DELIVER_COUNT_AT, count)
}

/** Writes the 16 bytes before a record of a scattered delivery; returns the position after them. */
export function writeScatteredHead(
  bytes: Uint8Array,
  at: number,
  offset: number,
  publishedAtMs: number,
): number {
  writeU64(bytes, at, offset)
  writeU64(bytes, at + 8, publishedAtMs)
  return at + SCATTERED_BYTES
}

/** Reads the offset from the 16 bytes at `at`, before a record of a scattered delivery. */
export function scatteredOffset(bytes: Uint8Array, at: number): number {
  return readU64(bytes, at)
}

/** Reads the publish time from the 16 bytes at `at`, before a record of a scattered delivery. */
export function scatteredPublishedAtMs(bytes: Uint8Array, at: number): number {
  return readU64(bytes, at + 8)
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeDeliverHead(bytes: Uint8Array, start: number, end: number): DeliverHead {
  need('DELIVER', end - start, DELIVER_HEADER_BYTES)
  return {
    subscriptionId: readU32(bytes, start),
    firstTag: readU32(bytes, start + 4),
    firstOffset: u64('DELIVER', bytes, start + 8),
    publishedAtMs: u64('DELIVER', bytes, start + 16),
    count: readU32(bytes, start + DELIVER_COUNT_AT),
    attempt: readU16(bytes, start + 28),
    flags: bytes[start + 30]!,
  }
}

/** A range of consecutive tags, modulo 2^32. */
export interface TagRange {
  readonly firstTag: number
  readonly count: number
}

export interface SettleItem extends TagRange {
  readonly outcome: Outcome
  /** For `retry`: the delay until the next attempt, instead of the queue's back-off. */
  readonly delayMs?: number | undefined
  /** For `retry` and `deadLetter`: a description of the failure, as text. */
  readonly reason?: string | undefined
  /** For `deadLetter`: the body is not valid for its queue, so no further attempt can succeed. */
  readonly invalid?: boolean | undefined
  /** For `retry`: no message of the same key is delivered until the retry is due. */
  readonly pauseKey?: boolean | undefined
}

export const SETTLE_HEAD_BYTES = 4
export const SETTLE_ITEM_BYTES = 20

/** Encodes SETTLE. Truncates each reason to LIMITS.reasonBytesMax. */
export function encodeSettle(subscriptionId: number, items: readonly SettleItem[]): Uint8Array {
  const reasons = items.map(({ reason }) =>
    reason === undefined ? undefined : clipText(reason, LIMITS.reasonBytesMax),
  )
  let size = SETTLE_HEAD_BYTES
  for (const reason of reasons) size += SETTLE_ITEM_BYTES + (reason === undefined ? 0 : textBytes(reason))
  const bytes = new Uint8Array(size)
  writeU32(bytes, 0, subscriptionId)
  let at = SETTLE_HEAD_BYTES
  for (const [index, item] of items.entries()) {
    writeU32(bytes, at, item.firstTag)
    writeU32(bytes, at + 4, item.count)
    bytes[at + 8] = item.outcome
    bytes[at + 9] =
      (item.delayMs === undefined ? 0 : 1) |
      (item.invalid === true ? 2 : 0) |
      (item.pauseKey === true ? 4 : 0)
    writeU48(bytes, at + 12, item.delayMs ?? 0)
    const reason = reasons[index]
    const reasonBytes = reason === undefined ? 0 : writeText(bytes, at + SETTLE_ITEM_BYTES, reason)
    writeU16(bytes, at + 10, reasonBytes)
    at += SETTLE_ITEM_BYTES + reasonBytes
  }
  return bytes
}

/**
 * Decodes all items. The whole frame is checked before anything is returned, so that no part of a malformed frame is applied.
 * @throws SluiceError MALFORMED_FRAME, INVALID_ARGUMENT
 */
export function decodeSettle(
  bytes: Uint8Array,
  start: number,
  end: number,
): { subscriptionId: number; items: SettleItem[] } {
  need('SETTLE', end - start, SETTLE_HEAD_BYTES)
  const items: SettleItem[] = []
  let tags = 0
  let at = start + SETTLE_HEAD_BYTES
  while (at < end) {
    if (items.length === LIMITS.rangesMax)
      throw new SluiceError('MALFORMED_FRAME', `SETTLE has more than ${LIMITS.rangesMax} items.`)
    need('SETTLE', end - at, SETTLE_ITEM_BYTES)
    const count = readU32(bytes, at + 4)
    const outcome = bytes[at + 8]!
    const flags = bytes[at + 9]!
    const reasonBytes = readU16(bytes, at + 10)
    const delayMs = readU48(bytes, at + 12)
    if (outcome < OUTCOME.ack || outcome > OUTCOME.deadLetter)
      throw new SluiceError('MALFORMED_FRAME', `SETTLE has the unknown outcome ${outcome}.`)
    if (flags > 7) throw new SluiceError('MALFORMED_FRAME', `SETTLE has unknown flags ${flags}.`)
    tags += count
    checkRange('SETTLE', count, tags)
    if (reasonBytes > LIMITS.reasonBytesMax) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `A reason of ${reasonBytes} bytes is too long; at most ${LIMITS.reasonBytesMax} are allowed.`,
      )
    }
    if (delayMs > LIMITS.delayMsMax) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `A delay of ${durationText(delayMs)} is too long; at most ${durationText(LIMITS.delayMsMax)} is allowed.`,
      )
    }
    const reasonAt = at + SETTLE_ITEM_BYTES
    need('SETTLE', end - reasonAt, reasonBytes)
    items.push({
      firstTag: readU32(bytes, at),
      count,
      outcome: outcome as Outcome,
      delayMs: flags & 1 ? delayMs : undefined,
      reason: reasonBytes === 0 ? undefined : readText(bytes, reasonAt, reasonAt + reasonBytes),
      ...(flags & 2 ? { invalid: true } : {}),
      ...(flags & 4 ? { pauseKey: true } : {}),
    })
    at = reasonAt + reasonBytes
  }
  return { subscriptionId: readU32(bytes, start), items }
}

export interface Extend extends TagRange {
  readonly subscriptionId: number
  /** New processing timeout, which starts now; 0 means the processing timeout of the subscription. */
  readonly durationMs: number
}

export function encodeExtend(extend: Extend): Uint8Array {
  const bytes = new Uint8Array(20)
  writeU32(bytes, 0, extend.subscriptionId)
  writeU32(bytes, 4, extend.firstTag)
  writeU32(bytes, 8, extend.count)
  writeU48(bytes, 12, extend.durationMs)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME, INVALID_ARGUMENT */
export function decodeExtend(bytes: Uint8Array, start: number, end: number): Extend {
  exact('EXTEND', end - start, 20)
  const count = readU32(bytes, start + 8)
  checkRange('EXTEND', count, count)
  const durationMs = readU48(bytes, start + 12)
  const { processingTimeoutMsMin, delayMsMax } = LIMITS
  if (durationMs !== 0 && (durationMs < processingTimeoutMsMin || durationMs > delayMsMax)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `The duration of EXTEND is ${durationText(durationMs)}; it must be from ${durationText(processingTimeoutMsMin)} to ${durationText(delayMsMax)}.`,
    )
  }
  return {
    subscriptionId: readU32(bytes, start),
    firstTag: readU32(bytes, start + 4),
    count,
    durationMs,
  }
}

export const RANGES_HEAD_BYTES = 4
export const RANGE_BYTES = 8

/** Encodes STARTED, STARTING, and SETTLE_OK with the stale ranges. */
export function encodeRanges(subscriptionId: number, ranges: readonly TagRange[]): Uint8Array {
  const bytes = new Uint8Array(RANGES_HEAD_BYTES + ranges.length * RANGE_BYTES)
  writeU32(bytes, 0, subscriptionId)
  let at = RANGES_HEAD_BYTES
  for (const range of ranges) {
    writeU32(bytes, at, range.firstTag)
    writeU32(bytes, at + 4, range.count)
    at += RANGE_BYTES
  }
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeRanges(
  frame: string,
  bytes: Uint8Array,
  start: number,
  end: number,
): { subscriptionId: number; ranges: TagRange[] } {
  need(frame, end - start, RANGES_HEAD_BYTES)
  const rangesBytes = end - start - RANGES_HEAD_BYTES
  if (rangesBytes % RANGE_BYTES !== 0)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `The ranges of ${frame} have ${rangesBytes} bytes; the size must be a multiple of 8.`,
    )
  // Each range has at least one tag. One item of SETTLE can be stale in many ranges, so a smaller limit is not
  // possible.
  if (rangesBytes / RANGE_BYTES > LIMITS.creditMessagesMax)
    throw new SluiceError('MALFORMED_FRAME', `${frame} has more than ${LIMITS.creditMessagesMax} ranges.`)
  const ranges: TagRange[] = []
  let tags = 0
  for (let at = start + RANGES_HEAD_BYTES; at < end; at += RANGE_BYTES) {
    const count = readU32(bytes, at + 4)
    tags += count
    checkRange(frame, count, tags)
    ranges.push({ firstTag: readU32(bytes, at), count })
  }
  return { subscriptionId: readU32(bytes, start), ranges }
}

/** Why the broker ended leases. */
export const LOSS = { processingTimeout: 1, purged: 2, groupMoved: 3, retention: 4 } as const
export type Loss = (typeof LOSS)[keyof typeof LOSS]

/** A range of messages with consecutive tags and consecutive offsets. */
export interface LostRange extends TagRange {
  readonly firstOffset: number
}

export interface LeasesLost {
  readonly subscriptionId: number
  /** One of LOSS, or a reason that only a later version knows. */
  readonly reason: number
  readonly ranges: readonly LostRange[]
}

const LEASES_LOST_HEAD_BYTES = 8
const LOST_RANGE_BYTES = 16

export function encodeLeasesLost({ subscriptionId, reason, ranges }: LeasesLost): Uint8Array {
  const bytes = new Uint8Array(LEASES_LOST_HEAD_BYTES + ranges.length * LOST_RANGE_BYTES)
  writeU32(bytes, 0, subscriptionId)
  bytes[4] = reason
  let at = LEASES_LOST_HEAD_BYTES
  for (const { firstTag, count, firstOffset } of ranges) {
    writeU32(bytes, at, firstTag)
    writeU32(bytes, at + 4, count)
    writeU64(bytes, at + 8, firstOffset)
    at += LOST_RANGE_BYTES
  }
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeLeasesLost(bytes: Uint8Array, start: number, end: number): LeasesLost {
  need('LEASES_LOST', end - start, LEASES_LOST_HEAD_BYTES)
  const rangesBytes = end - start - LEASES_LOST_HEAD_BYTES
  if (rangesBytes % LOST_RANGE_BYTES !== 0)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `The ranges of LEASES_LOST have ${rangesBytes} bytes; the size must be a multiple of ${LOST_RANGE_BYTES}.`,
    )
  const ranges: LostRange[] = []
  let tags = 0
  for (let at = start + LEASES_LOST_HEAD_BYTES; at < end; at += LOST_RANGE_BYTES) {
    const count = readU32(bytes, at + 4)
    tags += count
    checkRange('LEASES_LOST', count, tags)
    ranges.push({ firstTag: readU32(bytes, at), count, firstOffset: u64('LEASES_LOST', bytes, at + 8) })
  }
  return { subscriptionId: readU32(bytes, start), reason: bytes[start + 4]!, ranges }
}

// Ranges are walked tag by tag, so each count and the sum of the counts are first checked against the largest credit.
function checkRange(frame: string, count: number, tags: number): void {
  if (count === 0 || count > LIMITS.creditMessagesMax) {
    throw new SluiceError(
      'MALFORMED_FRAME',
      `${frame} has a range of ${count} tags; it must have 1 to ${LIMITS.creditMessagesMax}.`,
    )
  }
  if (tags > LIMITS.creditMessagesMax) {
    throw new SluiceError(
      'MALFORMED_FRAME',
      `${frame} names ${tags} tags; at most ${LIMITS.creditMessagesMax} are allowed.`,
    )
  }
}

/** A lease of an earlier connection, for a message that the client still handles. */
export interface Claim {
  readonly offset: number
  /** Number of the queue, from the SUBSCRIBE_OK of the subscription that had the lease. */
  readonly queueNumber: number
  readonly boot: number
  readonly subscriptionId: number
  readonly tag: number
  readonly attempt: number
  /** Size of the record in bytes; it counts against the byte credit. */
  readonly bytes: number
}

const CLAIM_BYTES = 32

export function encodeClaims(claims: readonly Claim[]): Uint8Array {
  const bytes = new Uint8Array(claims.length * CLAIM_BYTES)
  let at = 0
  for (const { offset, queueNumber, boot, subscriptionId, tag, attempt, bytes: recordBytes } of claims) {
    writeU64(bytes, at, offset)
    writeU32(bytes, at + 8, queueNumber)
    writeU32(bytes, at + 12, boot)
    writeU32(bytes, at + 16, subscriptionId)
    writeU32(bytes, at + 20, tag)
    writeU32(bytes, at + 24, recordBytes)
    writeU16(bytes, at + 28, attempt)
    at += CLAIM_BYTES
  }
  return bytes
}

/** @throws SluiceError INVALID_ARGUMENT */
export function decodeClaims(bytes: Uint8Array): Claim[] {
  const { length } = bytes
  const { claimsMax, messageBytesMax } = LIMITS
  if (length % CLAIM_BYTES !== 0)
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`claims\` has ${length} bytes; the size must be a multiple of ${CLAIM_BYTES}.`,
    )
  if (length > claimsMax * CLAIM_BYTES)
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`claims\` has ${length / CLAIM_BYTES} claims; at most ${claimsMax} are allowed.`,
    )
  const claims: Claim[] = []
  for (let at = 0; at < length; at += CLAIM_BYTES) {
    const recordBytes = readU32(bytes, at + 24)
    const offset = readU64(bytes, at)
    if (!Number.isSafeInteger(offset) || recordBytes > messageBytesMax + MESSAGE_OVERHEAD_BYTES)
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `A claim names offset ${offset} and a size of ${recordBytes} bytes; a message has at most ${messageBytesMax + MESSAGE_OVERHEAD_BYTES} bytes.`,
      )
    claims.push({
      offset,
      queueNumber: readU32(bytes, at + 8),
      boot: readU32(bytes, at + 12),
      subscriptionId: readU32(bytes, at + 16),
      tag: readU32(bytes, at + 20),
      attempt: readU16(bytes, at + 28),
      bytes: recordBytes,
    })
  }
  return claims
}

/** A claim that was granted: the message is leased again. */
export interface Granted {
  /** Index of the claim in SUBSCRIBE. */
  readonly index: number
  readonly tag: number
  /** Identifies the attempt in a later claim. */
  readonly attempt: number
}

export interface Subscribed {
  readonly subscriptionId: number
  /** Identifies the queue until it is deleted. */
  readonly queueNumber: number
  /** The granted claims, in the order of the claims. */
  readonly granted: readonly Granted[]
}

const SUBSCRIBED_HEAD_BYTES = 8
const GRANTED_BYTES = 12

export function encodeSubscribed({ subscriptionId, queueNumber, granted }: Subscribed): Uint8Array {
  const bytes = new Uint8Array(SUBSCRIBED_HEAD_BYTES + granted.length * GRANTED_BYTES)
  writeU32(bytes, 0, subscriptionId)
  writeU32(bytes, 4, queueNumber)
  let at = SUBSCRIBED_HEAD_BYTES
  for (const { index, tag, attempt } of granted) {
    writeU32(bytes, at, index)
    writeU32(bytes, at + 4, tag)
    writeU16(bytes, at + 8, attempt)
    at += GRANTED_BYTES
  }
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeSubscribed(bytes: Uint8Array, start: number, end: number): Subscribed {
  need('SUBSCRIBE_OK', end - start, SUBSCRIBED_HEAD_BYTES)
  const grantedBytes = end - start - SUBSCRIBED_HEAD_BYTES
  if (grantedBytes % GRANTED_BYTES !== 0 || grantedBytes > LIMITS.claimsMax * GRANTED_BYTES)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `The grants of SUBSCRIBE_OK have ${grantedBytes} bytes; the size must be a multiple of ${GRANTED_BYTES}, and at most ${LIMITS.claimsMax * GRANTED_BYTES}.`,
    )
  const granted: Granted[] = []
  for (let at = start + SUBSCRIBED_HEAD_BYTES; at < end; at += GRANTED_BYTES) {
    const index = readU32(bytes, at)
    // The indexes must ascend, so that no claim is granted twice.
    if (index >= LIMITS.claimsMax || index <= (granted.at(-1)?.index ?? -1))
      throw new SluiceError('MALFORMED_FRAME', `SUBSCRIBE_OK grants claim ${index} out of order.`)
    granted.push({ index, tag: readU32(bytes, at + 4), attempt: readU16(bytes, at + 8) })
  }
  return { subscriptionId: readU32(bytes, start), queueNumber: readU32(bytes, start + 4), granted }
}

/** Encodes UNSUBSCRIBE. */
export function encodeSubscriptionId(subscriptionId: number): Uint8Array {
  const bytes = new Uint8Array(4)
  writeU32(bytes, 0, subscriptionId)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeSubscriptionId(frame: string, bytes: Uint8Array, start: number, end: number): number {
  exact(frame, end - start, 4)
  return readU32(bytes, start)
}

export function encodeDrained(subscriptionId: number, delivered: number): Uint8Array {
  const bytes = new Uint8Array(12)
  writeU32(bytes, 0, subscriptionId)
  writeU64(bytes, 4, delivered)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeDrained(
  bytes: Uint8Array,
  start: number,
  end: number,
): { subscriptionId: number; delivered: number } {
  exact('DRAINED', end - start, 12)
  return { subscriptionId: readU32(bytes, start), delivered: u64('DRAINED', bytes, start + 4) }
}
