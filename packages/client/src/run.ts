/**
 * A run: messages that were delivered in one frame. This file decodes, checks and splits runs. The broker uses the
 * word differently: there, a run is messages of one batch, and one frame can contain several such runs.
 */
import {
  checkRecords,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  MOVED_BYTES_MAX,
  SCATTERED_BYTES,
  SluiceError,
  type DeliverHead,
} from '@sluice/protocol'
import type { LeaseKeeper } from './lease.js'

/** Messages with consecutive tags, and consecutive offsets unless the run is scattered. */
export interface Run extends DeliverHead {
  /**
   * Number of bytes before each record. In a scattered run, these bytes are the offset and the publish time of the
   * record; otherwise the number is 0.
   */
  readonly gap: number
  readonly keeper: LeaseKeeper
  /** All records, each after its gap. */
  readonly records: Uint8Array
}

/** The run of a DELIVER frame whose head is `head`; its records are a view of `bytes`. @throws SluiceError MALFORMED_FRAME */
export function decodeRun(
  head: DeliverHead,
  bytes: Uint8Array,
  start: number,
  end: number,
  keeper: LeaseKeeper,
): Run {
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
export function recordsBytes({ records, count, gap }: Run): number {
  return records.length - count * gap
}

/** A run of the messages `[from, to)` of `run`. Their records are `records`. */
export function partOf(run: Run, from: number, to: number, records: Uint8Array): Run {
  return {
    ...run,
    firstTag: (run.firstTag + from) >>> 0,
    firstOffset: run.firstOffset + from,
    count: to - from,
    records,
  }
}

export function malformedDelivery(what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker sent a malformed delivery. ${what}`)
}
