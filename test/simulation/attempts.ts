/**
 * What producers ever tried to publish, byte for byte: the one place that knows what a message was meant to be. A
 * record's payload begins with its name, so that a delivery can be traced back to whoever sent it.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  readU16,
  readU32,
  recordBytes,
  sealBatch,
  writeRecordHead,
  type ErrorCode,
  type RecordOptions,
} from '@sluice/protocol'
import { Violation } from './trace.js'

export interface Attempt {
  /** Sixteen bytes in hex. */
  readonly identity: string
  readonly number: number
  readonly queue: string
  readonly batch: Uint8Array
  readonly records: readonly Uint8Array[]
  /** Of each message; unique in a run. */
  readonly names: readonly string[]
  /** The refusals that it deserves; undefined: it is to be taken. */
  readonly expects: readonly ErrorCode[] | undefined
}

export interface RecordDraft {
  readonly name: string
  readonly padding: number
  readonly options?: RecordOptions
}

const encoder = new TextEncoder()

/** A batch as a client seals it. */
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
  })
  return { batch, records }
}

/** The name that a record's payload begins with. */
export function nameOf(record: Uint8Array): string {
  const start = 8 + readU16(record, 6)
  const end = record.indexOf(0x7c, start)
  return Buffer.from(record.subarray(start, end === -1 ? record.length : end)).toString('latin1')
}

/** Cuts a records region into its records. */
export function splitRecords(bytes: Uint8Array, start: number, end: number): Uint8Array[] {
  const records: Uint8Array[] = []
  for (let at = start; at < end;) {
    const size = readU32(bytes, at)
    if (size < 8 || at + size > end)
      throw new Violation(2, `a record of ${size} bytes does not fit the ${end - at} that are left`)
    records.push(new Uint8Array(bytes.subarray(at, at + size)))
    at += size
  }
  return records
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0
}

export class Attempts {
  readonly #byNumber = new Map<string, Attempt[]>()
  readonly #byName = new Map<string, { readonly attempt: Attempt; readonly index: number }>()

  add(attempt: Attempt): void {
    const key = `${attempt.identity}:${attempt.number}`
    const same = this.#byNumber.get(key)
    if (same === undefined) this.#byNumber.set(key, [attempt])
    else same.push(attempt)
    for (const [index, name] of attempt.names.entries()) {
      if (this.#byName.has(name)) throw new Error(`two messages have the name ${name}`)
      this.#byName.set(name, { attempt, index })
    }
  }

  /** The attempt that these bytes are. @throws Violation 21 when nobody sent them like this */
  matching(identity: string, number: number, batch: Uint8Array): Attempt {
    const found = this.#byNumber
      .get(`${identity}:${number}`)
      ?.find((attempt) => sameBytes(attempt.batch, batch))
    if (found === undefined)
      throw new Violation(21, `batch ${number} of ${identity} came in bytes that were not sent`)
    return found
  }

  /** Whether the record is one that was attempted on that queue, byte for byte. */
  knows(queue: string, record: Uint8Array): boolean {
    const found = this.#byName.get(nameOf(record))
    return (
      found !== undefined &&
      found.attempt.queue === queue &&
      sameBytes(found.attempt.records[found.index]!, record)
    )
  }
}
