/**
 * Single records: finding one by its offset, in memory or on disk, whether a filter chooses it, and the copy of it that
 * goes to another queue.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  ORIGIN_HEADERS,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  clipText,
  copyBytes,
  deathName,
  readRecordOptions,
  readU16,
  readU32,
  readU64,
  recordBytes,
  sealBatch,
  textBytes,
  writeRecordHead,
  type ContentType,
  type MessageFilter,
  type RecordOptions,
} from '@sluice/protocol'
import type { Blocks } from '../log/blocks.js'
import type { Dead, Queue } from '../queue/index.js'

export class Records {
  readonly #blocks: Blocks

  constructor(blocks: Blocks) {
    this.#blocks = blocks
  }

  /**
   * A copy of the record at `offset`, which is not gone; undefined when its block has to be loaded first.
   * @throws SluiceError CORRUPT
   */
  find(queue: Queue, offset: number): Uint8Array | undefined {
    const position = positionOf(queue, offset)
    const block = this.#blocks.findBatch(position)
    if (block === undefined) return undefined
    const batchAt = position - block.position
    let at = batchAt + BATCH_HEADER_BYTES
    for (let index = offset - readU64(block.bytes, batchAt + 16); index > 0; index--)
      at += readU32(block.bytes, at)
    return copyBytes(block.bytes, at, at + readU32(block.bytes, at))
  }

  /**
   * A copy of the record at `offset`, from wherever it is; undefined when the message is gone meanwhile.
   * @throws SluiceError CORRUPT; whatever the log's `readRange` throws
   */
  async read(queue: Queue, offset: number): Promise<Uint8Array | undefined> {
    for (let loads = 0; ; loads++) {
      if (queue.stateOf(offset) === undefined) return undefined
      const record = this.find(queue, offset)
      if (record !== undefined) return record
      const position = positionOf(queue, offset)
      try {
        await this.#blocks.load(position, false)
      } catch (error) {
        // It may have been relocated or be gone by now, and its segment given back.
        const isStill = queue.stateOf(offset) !== undefined && positionOf(queue, offset) === position
        if (isStill && loads > 0) throw error
      }
    }
  }
}

function positionOf(queue: Queue, offset: number): number {
  const chunk = queue.chunkAt(offset)!
  return chunk.batches.placeAt(offset - chunk.base)
}

/** What a filter can know of a message without its record. */
export interface Circumstances {
  readonly dead: Dead | undefined
  readonly attempts: number
  /** Died, or was published if it is not dead. */
  readonly timeMs: number
}

/** Whether the filter has to see records. */
export function needsRecord({ key, id, headers }: MessageFilter): boolean {
  return key !== undefined || id !== undefined || headers !== undefined
}

export function choosesAmong(
  filter: MessageFilter,
  { dead, attempts, timeMs }: Circumstances,
  nowMs: number,
): boolean {
  const { reason, error, minAttempts, olderThanMs, youngerThanMs } = filter
  if (reason !== undefined && (dead === undefined || deathName(dead.death) !== reason)) return false
  if (error !== undefined && dead?.reason.includes(error) !== true) return false
  if (minAttempts !== undefined && attempts < minAttempts) return false
  if (olderThanMs !== undefined && nowMs - timeMs < olderThanMs) return false
  return youngerThanMs === undefined || nowMs - timeMs <= youngerThanMs
}

export function choosesRecord(filter: MessageFilter, record: Uint8Array): boolean {
  const { key, id, headers } = filter
  const options = readRecordOptions(record, 0)
  if (key !== undefined && options.key !== key) return false
  if (id !== undefined && options.id !== id) return false
  for (const [name, value] of Object.entries(headers ?? {}))
    if (options.headers?.[name] !== value) return false
  return true
}

/** Where a message comes from that is copied to another queue. */
export interface Origin {
  readonly queue: string
  readonly offset: number
  readonly publishedMs: number
  readonly attempts: number
  readonly redrives: number
  readonly dead: Dead | undefined
}

/**
 * A batch of one message: the record with headers that say where it comes from, and without the times that it asked
 * for, which have passed. What such headers said of an earlier move is replaced.
 */
export function copiedBatch(record: Uint8Array, origin: Origin): Uint8Array {
  const { key, id, priority, headers = {} } = readRecordOptions(record, 0)
  const payloadAt = RECORD_HEADER_BYTES + readU16(record, 6)
  const payload = record.subarray(payloadAt)
  const options: RecordOptions = { key, id, priority, headers: withOrigin(headers, origin) }
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + recordBytes(options, payload.length))
  const contentType = (record[5]! >> 5) as ContentType
  bytes.set(payload, writeRecordHead(bytes, BATCH_HEADER_BYTES, options, contentType, payload.length))
  sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count: 1 })
  return bytes
}

function withOrigin(headers: Readonly<Record<string, string>>, origin: Origin): Record<string, string> {
  const { dead } = origin
  const added: [string, string][] = [
    [ORIGIN_HEADERS.queue, origin.queue],
    [ORIGIN_HEADERS.offset, String(origin.offset)],
    [ORIGIN_HEADERS.publishedMs, String(origin.publishedMs)],
    [ORIGIN_HEADERS.redrives, String(origin.redrives)],
    [ORIGIN_HEADERS.attempts, String(origin.attempts)],
  ]
  if (dead !== undefined) {
    added.push([ORIGIN_HEADERS.reason, deathName(dead.death) ?? ''])
    added.push([ORIGIN_HEADERS.diedMs, String(dead.timeMs)])
    added.push([ORIGIN_HEADERS.error, dead.reason])
  }
  const names = new Set<string>(Object.values(ORIGIN_HEADERS))
  const kept = Object.entries(headers).filter(([name]) => !names.has(name))
  const result = Object.create(null) as Record<string, string>
  let room: number = LIMITS.headersBytesMax
  let count: number = LIMITS.headersMax
  // What the producer wrote comes first; of what is added, the error's text gives way.
  for (const [name, value] of [...kept, ...added]) {
    const fits = clipText(value, Math.max(0, room - 3 - textBytes(name)))
    if (count === 0 || room < 3 + textBytes(name)) break
    result[name] = fits
    room -= 3 + textBytes(name) + textBytes(fits)
    count--
  }
  return result
}

/** How often a message was brought back, over all queues that it has been in. */
export function redrivesOf(queue: Queue, offset: number, record: Uint8Array): number {
  const here = queue.livesOf(offset).redrives
  if ((record[4]! & RECORD_FLAG.headers) === 0) return here
  const before = Number(readRecordOptions(record, 0).headers?.[ORIGIN_HEADERS.redrives] ?? 0)
  return here + (Number.isSafeInteger(before) && before > 0 ? before : 0)
}
