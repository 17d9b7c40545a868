/**
 * Origin headers: they name the queue from which a message was moved and what happened to the message there. They are
 * added to a copy of the record; everything else is copied as bytes, because keys, ids and headers need not be valid
 * text.
 *
 * A moved record is at most `ORIGIN_BYTES_MAX` bytes larger than the published record. If the frames of a connection
 * are too small for a moved record, the record is delivered with fewer origin headers.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  HEADER_OVERHEAD_BYTES,
  LIMITS,
  ORIGIN_HEADERS,
  RECORD_HEADER_BYTES,
  clipText,
  copyRecord,
  deathName,
  encodeHeader,
  readText,
  recordHeaders,
  recordLayout,
  sealBatch,
  textBytes,
  viewBytes,
} from '@sluice/protocol'
import type { Dead } from '../queue/index.js'

/** Describes a message that is moved or copied, with its state in the queue that it comes from. */
export interface Origin {
  readonly queue: string
  readonly offset: number
  readonly publishedMs: number
  readonly attempts: number
  readonly redrives: number
  readonly dead: Dead | undefined
}

/** Name and value of a header. */
type Header = readonly [name: string, value: string]

const ORIGIN_NAMES: ReadonlySet<string> = new Set(Object.values(ORIGIN_HEADERS))

/**
 * Returns a batch of one message: a copy of the record, in which new origin headers replace the origin headers of an
 * earlier move. The copy has no delay, no time to live and no replacement, because these options have had their
 * effect.
 */
export function movedBatch(record: Uint8Array, origin: Origin): Uint8Array {
  const { dead } = origin
  const headers: Header[] = [
    [ORIGIN_HEADERS.queue, origin.queue],
    [ORIGIN_HEADERS.offset, String(origin.offset)],
    [ORIGIN_HEADERS.publishedMs, String(origin.publishedMs)],
    [ORIGIN_HEADERS.redrives, String(origin.redrives)],
    [ORIGIN_HEADERS.attempts, String(origin.attempts)],
  ]
  if (dead !== undefined) {
    headers.push([ORIGIN_HEADERS.reason, deathName(dead.death) ?? ''])
    headers.push([ORIGIN_HEADERS.diedMs, String(dead.timeMs)])
    headers.push([ORIGIN_HEADERS.error, clipText(dead.reason, LIMITS.reasonBytesMax)])
  }
  const batch = withOrigin(record, headers, BATCH_HEADER_BYTES, Infinity)
  sealBatch(batch, 0, batch.length, { type: BATCH_TYPE.messages, count: 1 })
  return batch
}

/** Returns the record without the origin headers that do not fit in `bytesMax` bytes. */
export function fittedRecord(record: Uint8Array, bytesMax: number): Uint8Array {
  if (record.length <= bytesMax) return record
  const headers: Header[] = []
  for (const { nameAt, nameEnd, valueAt, valueEnd } of recordHeaders(record, recordLayout(record))) {
    const name = readText(record, nameAt, nameEnd)
    if (ORIGIN_NAMES.has(name)) headers.push([name, readText(record, valueAt, valueEnd)])
  }
  return withOrigin(record, headers, 0, bytesMax)
}

/**
 * Returns a copy of the record, preceded by `gap` free bytes. Its origin headers are replaced by the first of
 * `headers`, as many as fit in the limits of headers and in `bytesMax`. The text of an error is truncated to fit.
 */
function withOrigin(
  record: Uint8Array,
  headers: readonly Header[],
  gap: number,
  bytesMax: number,
): Uint8Array {
  const layout = recordLayout(record)
  const { keyAt, headersAt, payloadAt } = layout
  const kept: Uint8Array[] = []
  let headersBytes = 0
  for (const { at, nameAt, nameEnd, valueEnd } of recordHeaders(record, layout)) {
    if (ORIGIN_NAMES.has(readText(record, nameAt, nameEnd))) continue
    kept.push(viewBytes(record, at, valueEnd))
    headersBytes += valueEnd - at
  }
  const fixedBytes = record.length - (keyAt - RECORD_HEADER_BYTES) - (payloadAt - headersAt)
  const room = Math.min(LIMITS.headersBytesMax, bytesMax - fixedBytes)
  for (const [name, value] of headers) {
    const valueRoom = room - headersBytes - HEADER_OVERHEAD_BYTES - name.length
    const mayBeCut = name === ORIGIN_HEADERS.error && valueRoom > 0
    const text = mayBeCut ? clipText(value, valueRoom) : value
    if (kept.length === LIMITS.headersMax || textBytes(text) > valueRoom) break
    const header = encodeHeader(name, text)
    kept.push(header)
    headersBytes += header.length
  }
  return copyRecord(record, kept, gap)
}
