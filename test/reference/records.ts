/** Converts messages of the reference tests to records and batches, and tags to ranges. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  readRecordOptions,
  readU16,
  readU32,
  sealBatch,
  writeRecordHead,
  type RecordOptions,
  type TagRange,
} from '@sluice/protocol'
import type { Content } from './state.js'

export function recordOf({
  priority,
  key,
  id,
  replaces,
  delayMs,
  atMs,
  ttlMs,
  headers,
}: RecordOptions): RecordOptions {
  const hasHeaders = headers !== undefined && Object.keys(headers).length > 0
  return { priority, key, id, replaces, delayMs, atMs, ttlMs, headers: hasHeaders ? headers : undefined }
}

/** The batch of these messages, as a producer sends it. */
export function batchOf(contents: readonly Content[], number: number): Uint8Array {
  const size = contents.reduce((sum, content) => sum + content.size, BATCH_HEADER_BYTES)
  const bytes = new Uint8Array(size)
  let at = BATCH_HEADER_BYTES
  for (const content of contents) {
    const { body } = content
    at = writeRecordHead(bytes, at, recordOf(content), CONTENT_TYPE.text, body.length)
    for (let index = 0; index < body.length; index++) bytes[at++] = body.charCodeAt(index)
  }
  sealBatch(bytes, 0, at, { type: BATCH_TYPE.messages, count: contents.length, batchNumber: number })
  return bytes
}

/** Reads the record at `at`. */
export function contentOf(bytes: Uint8Array, at: number): Content {
  const { priority, key, id, delayMs, atMs, ttlMs, headers } = readRecordOptions(bytes, at)
  const size = readU32(bytes, at)
  const start = at + RECORD_HEADER_BYTES + readU16(bytes, at + 6)
  return {
    priority: priority ?? 0,
    key,
    id,
    replaces: (bytes[at + 4]! & RECORD_FLAG.replaces) !== 0,
    delayMs,
    atMs,
    ttlMs,
    headers: { ...headers },
    body: String.fromCharCode(...bytes.subarray(start, at + size)),
    size,
  }
}

export function rangesOf(tags: readonly number[]): TagRange[] {
  const ranges: { firstTag: number; count: number }[] = []
  for (const tag of tags) {
    const last = ranges.at(-1)
    if (last !== undefined && (last.firstTag + last.count) >>> 0 === tag) last.count++
    else ranges.push({ firstTag: tag, count: 1 })
  }
  return ranges
}

export function tagsOf(ranges: readonly TagRange[]): number[] {
  return ranges.flatMap(({ firstTag, count }) =>
    Array.from({ length: count }, (_, index) => (firstTag + index) >>> 0),
  )
}
