/**
 * Every batch that a producer ever tried to publish, byte for byte. This is the record of what each message should be.
 * The payload of each record starts with the message's name, so that a delivery can be traced back to its producer.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  SCATTERED_BYTES,
  decodeDeliverHead,
  readU16,
  readU32,
  readU64,
  recordBytes,
  sealBatch,
  writeRecordHead,
  type DeliverHead,
  type Duplicates,
  type ErrorCode,
  type RecordOptions,
} from '@sluice/protocol'
import { crc32 } from 'node:zlib'
import type { HistoryEvent } from '../checker/history.js'
import { laneOf } from './characters.js'
import { Violation } from './trace.js'
import { contentOf } from './record.js'

export interface Attempt {
  /** Sixteen bytes in hex. */
  readonly identity: string
  readonly number: number
  readonly queue: string
  readonly batch: Uint8Array
  readonly records: readonly Uint8Array[]
  /** The name of each message, unique in a run. */
  readonly names: readonly string[]
  /** Options of each message. */
  readonly options: readonly (RecordOptions | undefined)[]
  /** The batch's number minus the number of the batch that it follows; 0: it follows no batch. */
  readonly follows: number
  /** Whether the messages are independent: if they are refused together, each is sent again in its own batch. */
  readonly isSplit: boolean
  /** Refusals that are allowed for this batch; undefined: it must be accepted. */
  readonly expects: readonly ErrorCode[] | undefined
}

export interface RecordDraft {
  readonly name: string
  readonly padding: number
  readonly options?: RecordOptions
}

const encoder = new TextEncoder()

/** A batch, sealed as a client seals it. */
export function buildBatch(
  number: number,
  drafts: readonly RecordDraft[],
  atomic: boolean,
): { batch: Uint8Array; records: Uint8Array[] } {
  const records = drafts.map(({ name, padding, options }) => {
    const payload = encoder.encode(`${name}|${'.'.repeat(padding)}`)
    const record = new Uint8Array(recordBytes(options, payload.length))
    record.set(payload, writeRecordHead(record, 0, options, CONTENT_TYPE.bytes, payload.length))
    return record
  })
  return { batch: packBatch(number, records, atomic), records }
}

/** A batch of these records. */
export function packBatch(
  number: number,
  records: readonly Uint8Array[],
  atomic: boolean,
  follows = 0,
): Uint8Array {
  const length = records.reduce((sum, record) => sum + record.length, BATCH_HEADER_BYTES)
  const batch = new Uint8Array(length)
  let at = BATCH_HEADER_BYTES
  for (const record of records) {
    batch.set(record, at)
    at += record.length
  }
  sealBatch(batch, 0, length, {
    type: BATCH_TYPE.messages,
    attributes: atomic ? BATCH_ATTRIBUTE.atomic : 0,
    count: records.length,
    batchNumber: number,
    follows,
  })
  return batch
}

/**
 * The name of a message in a queue, as clients see it: its own name, and for a copy also the queue and the checksum of
 * the record.
 */
export function messageName(queue: string, record: Uint8Array): string {
  const isCopy = contentOf(record).headers.some(([name]) => name === 'sluice-origin-queue')
  return isCopy ? `${nameOf(record)} in ${queue} as ${crc32(record)}` : nameOf(record)
}

/** The name at the start of a record's payload. */
export function nameOf(record: Uint8Array): string {
  const start = 8 + readU16(record, 6)
  const end = record.indexOf(0x7c, start)
  return Buffer.from(record.subarray(start, end === -1 ? record.length : end)).toString('latin1')
}

/** Splits a records region into records. */
export function splitRecords(bytes: Uint8Array, start: number, end: number): Uint8Array[] {
  const records: Uint8Array[] = []
  for (let at = start; at < end;) {
    const size = readU32(bytes, at)
    if (size < 8 || at + size > end)
      throw new Violation(2, `a record of ${size} bytes does not fit the remaining ${end - at}`)
    records.push(new Uint8Array(bytes.subarray(at, at + size)))
    at += size
  }
  return records
}

/** The messages of a DELIVER frame, which are either consecutive or each preceded by an offset and a time. */
export function deliveredIn(
  bytes: Uint8Array,
  start: number,
  end: number,
): DeliverHead & { readonly messages: { readonly offset: number; readonly record: Uint8Array }[] } {
  const head = decodeDeliverHead(bytes, start, end)
  const at = start + DELIVER_HEADER_BYTES
  if ((head.flags & DELIVER_FLAG.scattered) === 0) {
    const messages = splitRecords(bytes, at, end).map((record, i) => ({
      offset: head.firstOffset + i,
      record,
    }))
    return { ...head, messages }
  }
  const messages = []
  for (let next = at; next < end;) {
    const recordAt = next + SCATTERED_BYTES
    const recordEnd = recordAt + 8 > end ? end : recordAt + readU32(bytes, recordAt)
    messages.push({ offset: readU64(bytes, next), record: splitRecords(bytes, recordAt, recordEnd)[0]! })
    next = recordEnd
  }
  if (messages[0]?.offset !== head.firstOffset || readU64(bytes, at + 8) !== head.publishedAtMs)
    throw new Violation(2, 'the head of a scattered delivery differs from its first message')
  return { ...head, messages }
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0
}

const SEQUENCE_STEP = 100_000

/** Adds the attempt to the history. `from` is the number of messages in earlier attempts with the same number. */
export function remember(attempt: Attempt, producer: string, history: HistoryEvent[], from = 0): void {
  const { queue, names, records, options, number } = attempt
  for (const [index, message] of names.entries()) {
    history.push({
      kind: 'attempt',
      queue,
      message,
      producer,
      body: String(crc32(records[index]!)),
      sequence: number * SEQUENCE_STEP + from + index,
      lane: laneOf(options[index]),
    })
  }
}

/** Adds the offsets of an accepted attempt to the history. */
export function accepted(
  { names }: Attempt,
  base: number,
  duplicates: Duplicates | undefined,
  history: HistoryEvent[],
): void {
  for (const [index, message] of names.entries()) {
    if ((duplicates?.get(index) ?? base + index) !== base + index)
      history.push({ kind: 'outcome', message, outcome: 'duplicate' })
    else history.push({ kind: 'outcome', message, outcome: 'ok', offset: base + index })
  }
}

export class Attempts {
  readonly #byNumber = new Map<string, Attempt[]>()
  readonly #byName = new Map<string, { readonly attempt: Attempt; readonly index: number }>()
  /** Records that were copied from another queue, by queue and message name. */
  readonly #copies = new Map<string, Uint8Array[]>()

  /** Adds an attempt. `isAgain`: its messages were already in an earlier attempt, which was refused. */
  add(attempt: Attempt, isAgain = false): void {
    const key = `${attempt.identity}:${attempt.number}`
    const same = this.#byNumber.get(key)
    if (same === undefined) this.#byNumber.set(key, [attempt])
    else same.push(attempt)
    if (isAgain) return
    for (const [index, name] of attempt.names.entries()) {
      if (this.#byName.has(name)) throw new Error(`two messages have the name ${name}`)
      this.#byName.set(name, { attempt, index })
    }
  }

  /** The attempt with exactly these bytes. @throws Violation 21 if no client sent them */
  matching(identity: string, number: number, batch: Uint8Array): Attempt {
    const found = this.#byNumber
      .get(`${identity}:${number}`)
      ?.find((attempt) => sameBytes(attempt.batch, batch))
    if (found === undefined)
      throw new Violation(21, `batch ${number} of ${identity} arrived with bytes that no client sent`)
    return found
  }

  /** Called when the broker copies a message from another queue to `queue`, as `record`. */
  addCopy(queue: string, record: Uint8Array): void {
    const key = `${queue}:${nameOf(record)}`
    this.#copies.set(key, [...(this.#copies.get(key) ?? []), record])
  }

  /** Returns whether this record, byte for byte, was sent to that queue or copied to it from another queue. */
  knows(queue: string, record: Uint8Array): boolean {
    const found = this.#byName.get(nameOf(record))
    if (found?.attempt.queue === queue && sameBytes(found.attempt.records[found.index]!, record)) return true
    return this.#copies.get(`${queue}:${nameOf(record)}`)?.some((copy) => sameBytes(copy, record)) === true
  }
}
