/**
 * Reading the log from its beginning, for requests about what is done: page by page, each of which reads a bounded part
 * of it, and a cursor between the pages that says where the next one goes on.
 */
import { SluiceError } from '@sluice/protocol'
import type { Log, LogEntry } from './log.js'

/** Log that one page reads. */
export const READ_BYTES_MAX = 64 << 20

/** Entries from the one at `position` on, or from the oldest that is there. Segments in front can go meanwhile. */
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

/** The oldest position from which entries can be read up to `position`. */
export function segmentStart(position: number, log: Log): number {
  return Math.floor(position / log.segmentBytes) * log.segmentBytes
}

/** The numbers of a cursor; its text means something to the broker alone. @throws SluiceError INVALID_ARGUMENT */
export function numbersOf(cursor: string, count: number): number[] {
  const numbers = cursor.split(':').map((part) => (/^\d{1,16}$/.test(part) ? Number(part) : Number.NaN))
  if (numbers.length === count && numbers.every(Number.isSafeInteger)) return numbers
  throw new SluiceError('INVALID_ARGUMENT', 'The `cursor` is not one that an earlier page ended with.')
}
