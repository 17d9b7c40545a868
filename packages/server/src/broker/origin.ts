/**
 * The headers that say where a message comes from which was moved to another queue. The broker adds them to a copy of
 * the record; all else that the producer wrote is copied as bytes, because keys, ids and headers need not be text.
 *
 * A moved record is at most `ORIGIN_BYTES_MAX` larger than a published one. Where a connection agreed on frames with
 * less room, a delivery has fewer origin headers.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  ORIGIN_HEADERS,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  clipText,
  deathName,
  readText,
  readU16,
  sealBatch,
  viewBytes,
  writeU16,
  writeU32,
} from '@sluice/protocol'
import type { Dead } from '../queue/index.js'

/** Where a message comes from that is copied to another queue. */
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

/** Where the parts of a record begin; behind each is the next one. */
interface Layout {
  /** Key and id. */
  readonly keyAt: number
  readonly idAt: number
  readonly headersAt: number
  readonly payloadAt: number
}

/** What a copy does not ask for again. */
const DONE = RECORD_FLAG.delay | RECORD_FLAG.at | RECORD_FLAG.ttl | RECORD_FLAG.replaces
const ORIGIN_NAMES: ReadonlySet<string> = new Set(Object.values(ORIGIN_HEADERS))
/** Bytes of a header beside its name and its value. */
const HEADER_BYTES = 3

/** The record must have passed `checkRecords`. */
export function layoutOf(record: Uint8Array): Layout {
  const flags = record[4]!
  let keyAt = RECORD_HEADER_BYTES
  for (const flag of [RECORD_FLAG.delay, RECORD_FLAG.at, RECORD_FLAG.ttl]) if (flags & flag) keyAt += 6
  const idAt = flags & RECORD_FLAG.key ? keyAt + 1 + record[keyAt]! : keyAt
  const headersAt = flags & RECORD_FLAG.id ? idAt + 1 + record[idAt]! : idAt
  return { keyAt, idAt, headersAt, payloadAt: RECORD_HEADER_BYTES + readU16(record, 6) }
}

/** Calls `each` for every header of the record: where it begins, where its name and where its value ends. */
export function eachHeader(
  record: Uint8Array,
  { headersAt, payloadAt }: Layout,
  each: (at: number, nameEnd: number, end: number) => void,
): void {
  for (let at = headersAt; at < payloadAt;) {
    const nameEnd = at + 1 + record[at]!
    const end = nameEnd + 2 + readU16(record, nameEnd)
    each(at, nameEnd, end)
    at = end
  }
}

/**
 * A batch of one message: the record with headers that say where it comes from, and without the times that it asked
 * for, which have passed. What such headers said of an earlier move is replaced.
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

/** The record in at most `bytesMax` bytes, at the expense of its origin headers. */
export function fittedRecord(record: Uint8Array, bytesMax: number): Uint8Array {
  if (record.length <= bytesMax) return record
  const headers: Header[] = []
  eachHeader(record, layoutOf(record), (at, nameEnd, end) => {
    const name = readText(record, at + 1, nameEnd)
    if (ORIGIN_NAMES.has(name)) headers.push([name, readText(record, nameEnd + 2, end)])
  })
  return withOrigin(record, headers, 0, bytesMax)
}

/**
 * A copy of the record, behind `gap` bytes, with these headers behind its own in place of the origin headers that it
 * has. They give way from the last one on where they would exceed the limits of headers or make the record larger than
 * `bytesMax`; of the last one that fits in part, the beginning of an error's text is kept.
 */
function withOrigin(
  record: Uint8Array,
  headers: readonly Header[],
  gap: number,
  bytesMax: number,
): Uint8Array {
  const layout = layoutOf(record)
  const { keyAt, headersAt, payloadAt } = layout
  const kept: Uint8Array[] = []
  let headersBytes = 0
  eachHeader(record, layout, (at, nameEnd, end) => {
    if (ORIGIN_NAMES.has(readText(record, at + 1, nameEnd))) return
    kept.push(viewBytes(record, at, end))
    headersBytes += end - at
  })
  const fixedBytes = record.length - (keyAt - RECORD_HEADER_BYTES) - (payloadAt - headersAt)
  const room = Math.min(LIMITS.headersBytesMax, bytesMax - fixedBytes)
  for (const [name, value] of headers) {
    const valueRoom = room - headersBytes - HEADER_BYTES - name.length
    let bytes = Buffer.from(value)
    if (bytes.length > valueRoom && name === ORIGIN_HEADERS.error && valueRoom > 0)
      bytes = Buffer.from(clipText(value, valueRoom))
    if (kept.length === LIMITS.headersMax || bytes.length > valueRoom) break
    const header = new Uint8Array(HEADER_BYTES + name.length + bytes.length)
    header[0] = name.length
    header.set(Buffer.from(name), 1)
    writeU16(header, 1 + name.length, bytes.length)
    header.set(bytes, HEADER_BYTES + name.length)
    kept.push(header)
    headersBytes += header.length
  }
  const size = fixedBytes + headersBytes
  const copy = new Uint8Array(gap + size)
  writeU32(copy, gap, size)
  copy[gap + 4] = (record[4]! & ~DONE & ~RECORD_FLAG.headers) | (headersBytes > 0 ? RECORD_FLAG.headers : 0)
  copy[gap + 5] = record[5]!
  let at = gap + RECORD_HEADER_BYTES
  for (const part of [viewBytes(record, keyAt, headersAt), ...kept]) {
    copy.set(part, at)
    at += part.length
  }
  writeU16(copy, gap + 6, at - gap - RECORD_HEADER_BYTES)
  copy.set(viewBytes(record, payloadAt, record.length), at)
  return copy
}
