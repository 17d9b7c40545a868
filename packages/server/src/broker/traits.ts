/**
 * What the records of a batch ask for beside being delivered: priority, a time before which and one after which they
 * are not. Read from the records themselves, in service and in recovery, so nothing of it is written twice.
 */
import {
  BATCH_HEADER_BYTES,
  LIMITS,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  SluiceError,
  readU32,
  readU48,
} from '@sluice/protocol'
import type { Traits } from '../queue/index.js'

/** An `at` that is so long past, at most, means now. */
const AT_TOLERANCE_MS = 60_000

const scratch = {
  priorities: new Uint8Array(LIMITS.batchCountMax),
  dues: new Float64Array(LIMITS.batchCountMax),
  expiries: new Float64Array(LIMITS.batchCountMax),
}

/**
 * The traits of the batch at `at`, whose records have passed `checkRecords`; valid until the next call. `timeMs` is
 * when it was published.
 */
export function readTraits(bytes: Uint8Array, at: number, count: number, timeMs: number): Traits {
  let record = at + BATCH_HEADER_BYTES
  for (let index = 0; index < count; index++) {
    const flags = bytes[record + 4]!
    let next = record + RECORD_HEADER_BYTES
    let dueMs = 0
    if (flags & RECORD_FLAG.delay) {
      const delayMs = readU48(bytes, next)
      if (delayMs > 0) dueMs = timeMs + delayMs
      next += 6
    }
    if (flags & RECORD_FLAG.at) {
      const atMs = readU48(bytes, next)
      if (atMs > timeMs) dueMs = atMs
      next += 6
    }
    scratch.priorities[index] = bytes[record + 5]! & 31
    scratch.dues[index] = dueMs
    // The time to live begins when the message is due.
    scratch.expiries[index] = flags & RECORD_FLAG.ttl ? (dueMs || timeMs) + readU48(bytes, next) : 0
    record += readU32(bytes, record)
  }
  return scratch
}

/**
 * Checks the times that the records of the batch at `at` ask for.
 * @throws SluiceError INVALID_ARGUMENT naming the option, its value and its limit
 */
export function checkTraits(bytes: Uint8Array, at: number, count: number, nowMs: number): void {
  let record = at + BATCH_HEADER_BYTES
  for (let index = 0; index < count; index++) {
    const flags = bytes[record + 4]!
    let next = record + RECORD_HEADER_BYTES
    if (flags & RECORD_FLAG.delay) {
      checkTime('delay', index, readU48(bytes, next), 0, LIMITS.delayMsMax)
      next += 6
    }
    if (flags & RECORD_FLAG.at) {
      checkTime('at', index, readU48(bytes, next), nowMs - AT_TOLERANCE_MS, nowMs + LIMITS.delayMsMax)
      next += 6
    }
    if (flags & RECORD_FLAG.ttl) checkTime('ttl', index, readU48(bytes, next), 1, LIMITS.delayMsMax)
    record += readU32(bytes, record)
  }
}

function checkTime(option: string, index: number, valueMs: number, minMs: number, maxMs: number): void {
  if (valueMs >= minMs && valueMs <= maxMs) return
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`${option}\` of message ${index} is ${valueMs} ms; it must be from ${minMs} to ${maxMs} ms.`,
  )
}
