/**
 * A run: messages that were delivered in one frame. This file decodes, checks and splits runs. The broker uses the
 * word differently: there, a run is messages of one batch, and one frame can contain several such runs.
 */
import {
  checkRecords,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  MOVED_BYTES_MAX,
  recordSize,
  SCATTERED_BYTES,
  SluiceError,
  type DeliverHead,
} from '@sluice/protocol'
import { SHARED_BYTES } from './body.js'
import type { LeaseKeeper } from './lease.js'
import { recordsCopy } from './records.js'

/**
 * Maximum size of a part that contains several messages, in bytes (see `eachCopiedPart`). With the padding that
 * `recordsCopy` may put before it, a part is no larger than a shared buffer of bodies.
 */
const PART_BYTES = SHARED_BYTES - 8

/** The messages of a subscription. */
export type Run = RunOf<LeaseKeeper>

/** Messages with consecutive tags, and consecutive offsets unless the run is scattered. `keeper` is the part of the client that got them. */
export interface RunOf<Keeper> extends DeliverHead {
  /**
   * Number of bytes before each record. In a scattered run, these bytes are the offset and the publish time of the
   * record; otherwise the number is 0.
   */
  readonly gap: number
  readonly keeper: Keeper
  /** All records, each after its gap. */
  readonly records: Uint8Array
}

/** The run of a DELIVER frame whose head is `head`; its records are a view of `bytes`. @throws SluiceError MALFORMED_FRAME */
export function decodeRun<Keeper>(
  head: DeliverHead,
  bytes: Uint8Array,
  start: number,
  end: number,
  keeper: Keeper,
): RunOf<Keeper> {
  const { count, firstOffset, publishedAtMs, flags } = head
  const from = start + DELIVER_HEADER_BYTES
  const gap = flags & DELIVER_FLAG.scattered ? SCATTERED_BYTES : 0
  const found = checkRecords(bytes, from, end, count, MOVED_BYTES_MAX, gap)
  if (typeof found !== 'number') throw malformedDelivery(found.message)
  if (count === 0 || !Number.isSafeInteger(firstOffset + count) || !Number.isSafeInteger(publishedAtMs))
    throw malformedDelivery(
      `It has ${count} messages from offset ${firstOffset}, published at ${publishedAtMs}.`,
    )
  return { ...head, keeper, gap, records: bytes.subarray(from, end) }
}

/** Bytes of the records of a run. */
export function recordsBytes({ records, count, gap }: RunOf<unknown>): number {
  return records.length - count * gap
}

/** A run of the messages `[from, to)` of `run`. Their records are `records`. */
export function partOf<Keeper>(
  run: RunOf<Keeper>,
  from: number,
  to: number,
  records: Uint8Array,
): RunOf<Keeper> {
  return {
    ...run,
    firstTag: (run.firstTag + from) >>> 0,
    firstOffset: run.firstOffset + from,
    count: to - from,
    records,
  }
}

/**
 * Calls `each` with copies of parts of a run whose records are in a frame, which the next read overwrites. The records are
 * copied once, in parts small enough that the body of a message can be a view of its part. This takes 50 ns per message; a
 * second copy of each body would take 200 ns.
 */
export function eachCopiedPart<Keeper>(run: RunOf<Keeper>, each: (part: RunOf<Keeper>) => void): void {
  const { count, gap, records } = run
  let from = 0
  let fromAt = 0
  let at = 0
  for (let index = 0; index < count; index++) {
    const next = at + gap + recordSize(records, at + gap)
    if (next - fromAt > PART_BYTES && index > from) {
      each(partOf(run, from, index, recordsCopy(records, fromAt, at, gap)))
      from = index
      fromAt = at
    }
    at = next
  }
  if (from < count) each(partOf(run, from, count, recordsCopy(records, fromAt, at, gap)))
}

export function malformedDelivery(what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker sent a malformed delivery. ${what}`)
}
