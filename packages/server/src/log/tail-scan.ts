/**
 * Second half of the log scan: walks the newest segment to the last valid entry, picks the row of `TAIL_ROWS`, and cuts
 * off an unfinished entry or refuses.
 *
 * Invariant: exactly one row decides, and the tail of a refused log is left unchanged. A crash at any point leaves a
 * state in which the next start can repeat the scan. Called by `scanLog`.
 */
import { TAIL_ROWS, decidingRow } from './decisions.js'
import type { ScanRows, TailFacts } from './decisions.js'
import type { NewestSegment, OpenFiles } from './directory-scan.js'
import {
  ENTRY_ALIGN_BYTES,
  ENTRY_HEADER_BYTES,
  entryCrcOf,
  entryPaddedBytes,
  readEntryHeader,
  recordsAreIntact,
  resemblesEntry,
} from './entry.js'
import type { FailStop } from './fail-stop.js'
import type { DiskFile } from './log.js'
import type { Notify } from './notices.js'
import {
  EntryWalker,
  FILL_BYTES,
  SEGMENT_HEADER_BYTES,
  corrupt,
  findLaterEntry,
  segmentName,
} from './segment.js'
import type { LaterEntry, LogMeta, OpenSegment, SegmentHeader } from './segment.js'

/** The point at which the log continues. The caller owns the open files of `active` and `spares`. */
export interface LogEnd {
  readonly segmentBytes: number
  readonly salt: number
  /** Oldest segment. */
  readonly first: number
  /** Newest segment in use, or the first segment if none is in use. */
  readonly active: OpenSegment
  /** Whether the active segment has a header. It is written with the first entry. */
  readonly headerWritten: boolean
  /** Unused segments. Their numbers follow that of the active segment without a gap. */
  readonly spares: readonly OpenSegment[]
  /** First byte after the last entry in the active segment. */
  readonly at: number
  readonly nextLsn: number
  readonly lastCrc: number
  readonly checkpoint: number | undefined
  readonly cutBytes: number
}

interface EntrySpan {
  readonly at: number
  readonly end: number
  readonly lsn: number
  readonly crc: number
}

/** The place of the next entry in its segment, and the LSN and previous CRC that this entry must have. */
interface NextEntry {
  readonly at: number
  readonly lsn: number
  readonly previousCrc: number
}

interface Ending {
  readonly active: OpenSegment
  readonly spares: readonly OpenSegment[]
  readonly last: EntrySpan | undefined
  readonly next: NextEntry
  /** Number of bytes of an unfinished next entry in the active segment. */
  readonly activeBytes: number
  /** Number of bytes of an unfinished next entry at the start of the first spare. */
  readonly spareBytes: number
  /** A whole entry after the place of the next entry, which proves that durable bytes were lost. */
  readonly later: (LaterEntry & { readonly name: string }) | undefined
}

/** Sets `rows.tail` before acting on that row. @throws SluiceError LOG_CORRUPT, LOG_FAILED, NOT_SUPPORTED */
export async function scanTail(
  newest: NewestSegment,
  files: OpenFiles,
  { failStop, notify }: { readonly failStop: FailStop; readonly notify: Notify },
  rows: ScanRows,
): Promise<LogEnd> {
  const ending = await readEnding(newest, files)
  const { active, spares, last, next, activeBytes, spareBytes } = ending
  rows.tail = decidingRow(TAIL_ROWS, factsOf(ending))
  if (rows.tail === 'later-entry') throw laterEntryFound(ending)
  await failStop.durably(`The end of ${segmentName(active.number)}`, () => finishEnding(ending))
  const cutBytes = activeBytes + spareBytes
  if (cutBytes > 0) {
    notify(
      'cut',
      `Entry ${next.lsn} was not finished: ${cutBytes} bytes were cut off at byte ${next.at} of ${segmentName(active.number)}.`,
    )
  }
  return {
    segmentBytes: newest.meta.segmentBytes,
    salt: newest.meta.salt,
    first: newest.first,
    active,
    headerWritten: last !== undefined,
    spares,
    at: next.at,
    nextLsn: next.lsn,
    lastCrc: next.previousCrc,
    checkpoint: newest.header?.checkpoint,
    cutBytes,
  }
}

// ------------------------------------------------------------------------------------------------------- reading

async function readEnding({ meta, number, header }: NewestSegment, files: OpenFiles): Promise<Ending> {
  const active = { number, file: files.get(number)! }
  const spares = [...files]
    .filter(([other]) => other > number)
    .sort(([a], [b]) => a - b)
    .map(([other, file]) => ({ number: other, file }))

  const last = header === undefined ? undefined : await lastEntry(active, header, meta)
  const next: NextEntry =
    last === undefined
      ? { at: SEGMENT_HEADER_BYTES, lsn: header?.firstLsn ?? 1, previousCrc: header?.previousCrc ?? 0 }
      : { at: last.end, lsn: last.lsn + 1, previousCrc: last.crc }
  const [spare] = spares
  return {
    active,
    spares,
    last,
    next,
    activeBytes: await unfinishedBytes(active, next.at, next, meta),
    spareBytes: spare === undefined ? 0 : await unfinishedBytes(spare, SEGMENT_HEADER_BYTES, next, meta),
    later: await findLater(active, spares, next, meta),
  }
}

/** The last intact entry of the segment: both its header and its records are valid. */
async function lastEntry(
  { number, file }: OpenSegment,
  header: SegmentHeader,
  { segmentBytes, salt }: LogMeta,
): Promise<EntrySpan | undefined> {
  const walker = new EntryWalker(file, {
    at: SEGMENT_HEADER_BYTES,
    segmentStart: number * segmentBytes,
    salt,
    lsn: header.firstLsn,
    previousCrc: header.previousCrc,
  })
  let last: EntrySpan | undefined
  let beforeLast: EntrySpan | undefined
  let lastBytes: Uint8Array | undefined
  for (;;) {
    const { at, lsn } = walker
    const entry = await walker.next(segmentBytes)
    if (typeof entry === 'string') break
    beforeLast = last
    last = { at, end: walker.at, lsn: lsn!, crc: entryCrcOf(entry, 0) }
    lastBytes = entry
  }
  // After a power cut, the header of the last entry can be on disk without its records: the entry is then torn.
  return lastBytes === undefined || recordsAreIntact(lastBytes, 0) ? last : beforeLast
}

/** Number of bytes from `from` on that are a remnant of the next entry; 0 when there is no remnant. */
async function unfinishedBytes(
  { number, file }: OpenSegment,
  from: number,
  { lsn, previousCrc }: NextEntry,
  { segmentBytes, salt }: LogMeta,
): Promise<number> {
  if (from + ENTRY_ALIGN_BYTES > segmentBytes) return 0
  const sector = await file.read(from, ENTRY_ALIGN_BYTES)
  const position = number * segmentBytes + from
  if (!resemblesEntry(sector, 0, { lsn, previousCrc, position, salt })) return 0
  const { length } = readEntryHeader(sector, 0)
  const padded = entryPaddedBytes(length)
  return length >= ENTRY_HEADER_BYTES && from + padded <= segmentBytes ? padded : ENTRY_ALIGN_BYTES
}

/** Searches the rest of the active segment and every spare for a later entry. */
async function findLater(
  active: OpenSegment,
  spares: readonly OpenSegment[],
  next: NextEntry,
  { segmentBytes, salt }: LogMeta,
): Promise<Ending['later']> {
  for (const segment of [active, ...spares]) {
    const { number, file } = segment
    const from = segment === active ? next.at : SEGMENT_HEADER_BYTES
    const found = await findLaterEntry(file, from, segmentBytes, number * segmentBytes, salt, next.lsn)
    if (found !== undefined) return { name: segmentName(number), ...found }
  }
  return undefined
}

function factsOf({ last, activeBytes, spareBytes, later }: Ending): TailFacts {
  return {
    entries: last === undefined ? 'none' : 'some',
    behind: activeBytes === 0 ? 'nothing' : 'unfinished',
    next: spareBytes === 0 ? 'nothing' : 'unfinished',
    later: later === undefined ? 'none' : 'found',
  }
}

// -------------------------------------------------------------------------------------------------------- acting

function laterEntryFound({ active, next, later }: Ending): Error {
  const { name, at, lsn } = later!
  return corrupt(
    segmentName(active.number),
    next.at,
    `entry ${next.lsn} cannot be read, and the later entry ${lsn} is whole at byte ${at} of ${name}`,
  )
}

/** Cuts off the unfinished entry, if there is one, and makes the last entry durable. */
async function finishEnding({ active, spares, last, next, activeBytes, spareBytes }: Ending): Promise<void> {
  // The first sector is cleared first: if clearing is interrupted, the rest of the entry has no header and is ignored.
  await writeZeros(active.file, next.at, activeBytes)
  if (spares[0] !== undefined) await writeZeros(spares[0].file, SEGMENT_HEADER_BYTES, spareBytes)
  // If the previous process was killed or its write failed, the last entry may be only in the page cache.
  if (last !== undefined) {
    const from = last.at === SEGMENT_HEADER_BYTES ? 0 : last.at
    await active.file.write(from, await active.file.read(from, last.end - from))
  }
}

async function writeZeros(file: DiskFile, at: number, bytes: number): Promise<void> {
  for (let done = 0; done < bytes;) {
    const piece = done === 0 ? ENTRY_ALIGN_BYTES : Math.min(FILL_BYTES, bytes - done)
    await file.write(at + done, new Uint8Array(piece))
    done += piece
  }
}
