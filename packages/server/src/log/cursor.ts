/**
 * Reads old parts of the log for the history of a message. Each page of an answer reads a bounded part of the log, and a
 * cursor says where the next page continues.
 */
import { SluiceError } from '@sluice/protocol'
import type { Log, LogEntry } from './log.js'

/** Maximum number of bytes of the log that one page reads. */
export const READ_BYTES_MAX = 64 << 20

/**
 * Entries from `position` on, or from the oldest entry if `position` was freed. Skips segments that are freed in the
 * meantime.
 */
export async function* entriesFrom(log: Log, position: number): AsyncGenerator<LogEntry, void> {
  for (let from = position; ;) {
    from = Math.max(from, log.usage().firstPosition)
    try {
      for await (const entry of log.read(from)) {
        yield entry
        from = entry.position + entry.bytes.length
      }
      return
    } catch (error) {
      if (from >= log.usage().firstPosition) throw error
    }
  }
}

/** Start of the segment that contains `position`. */
export function segmentStart(position: number, log: Log): number {
  return Math.floor(position / log.segmentBytes) * log.segmentBytes
}

/** Decodes the numbers in a cursor, which is opaque to clients. @throws SluiceError INVALID_ARGUMENT */
export function numbersOf(cursor: string, count: number): number[] {
  const numbers = cursor.split(':').map((part) => (/^\d{1,16}$/.test(part) ? Number(part) : Number.NaN))
  if (numbers.length === count && numbers.every(Number.isSafeInteger)) return numbers
  throw new SluiceError('INVALID_ARGUMENT', 'The `cursor` is not one that an earlier page returned.')
}
