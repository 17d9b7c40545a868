/**
 * What a log's directory is found to hold when it is opened: the look at names and headers, and the search for the
 * last entry. It makes a new log, cuts off what was not finished, and refuses whatever the decision tables refuse.
 *
 * Invariant: one row of each table decides, and what a row refuses is left as it is. All that is done can be cut short
 * at any point and begun again. The file log asks once, in `open`.
 */
import { DIRECTORY_ROWS, TAIL_ROWS, theRow } from './decisions.js'
import type { DirectoryFacts, DirectoryRow, TailRow } from './decisions.js'
import {
  ENTRY_ALIGN_BYTES,
  ENTRY_HEADER_BYTES,
  entryCrcOf,
  entryPaddedBytes,
  readEntryHeader,
  recordsAreIntact,
  resemblesEntry,
} from './entry.js'
import type { Fuse, Notify } from './fuse.js'
import type { Disk, DiskFile } from './log.js'
import {
  EntryWalker,
  FILL_BYTES,
  META_DRAFT_NAME,
  META_NAME,
  SEGMENT_DRAFT_NAME,
  SEGMENT_HEADER_BYTES,
  corrupt,
  decodeLogMeta,
  encodeLogMeta,
  fillWithZeros,
  findLaterEntry,
  isBlank,
  readSegmentHeader,
  segmentName,
  segmentNumber,
} from './segment.js'
import type { LogMeta, OpenSegment, SegmentHeader } from './segment.js'

export interface SurveyOptions {
  readonly disk: Disk
  readonly fuse: Fuse
  readonly notify: Notify
  readonly now: () => number
  readonly random32: () => number
  /** For a new log. */
  readonly segmentBytes: number
}

/** Which rows were met; none while it was not decided. */
export interface SurveyRows {
  directory?: DirectoryRow
  tail?: TailRow
}

/** Where the log goes on. The files of `active` and `spares` are open and are the caller's. */
export interface Found {
  readonly segmentBytes: number
  readonly salt: number
  /** Oldest segment. */
  readonly first: number
  /** Newest segment in use, or the first one when none is. */
  readonly active: OpenSegment
  /** Whether the active segment has an entry, and so its header. */
  readonly begun: boolean
  /** Unused segments, numbered from the active one on without a gap. */
  readonly spares: readonly OpenSegment[]
  /** Byte of the active segment behind its last entry. */
  readonly at: number
  readonly nextLsn: number
  readonly lastCrc: number
  readonly checkpoint: number | undefined
  readonly cutBytes: number
}

interface Newest {
  readonly meta: LogMeta
  readonly first: number
  /** Newest segment in use, or the first one when none is. */
  readonly number: number
  readonly header: SegmentHeader | undefined
}

interface EntrySpan {
  readonly at: number
  readonly end: number
  readonly lsn: number
  readonly crc: number
}

/** What the next entry must say, and where in its segment it goes. */
interface NextEntry {
  readonly at: number
  readonly lsn: number
  readonly previousCrc: number
}

export class Survey {
  readonly rows: SurveyRows = {}
  readonly #options: SurveyOptions
  readonly #disk: Disk
  /** The newest segment in use and those behind it. */
  readonly #files = new Map<number, DiskFile>()

  constructor(options: SurveyOptions) {
    this.#options = options
    this.#disk = options.disk
  }

  /** Once. When it rejects nothing stays open. @throws SluiceError LOG_CORRUPT, LOG_FAILED, NOT_SUPPORTED */
  async find(): Promise<Found> {
    try {
      // A name that this process can see may not be on disk yet, when the last one was killed.
      await this.#options.fuse.durably('The directory of the log', () => this.#disk.syncDirectory())
      return await this.#surveyTail(await this.#surveyDirectory())
    } catch (error) {
      await Promise.all([...this.#files.values()].map((file) => file.close()))
      throw error
    }
  }

  /** Decides by names, the small file and headers; creates a new log; opens the newest segment and those behind. */
  async #surveyDirectory(): Promise<Newest> {
    const files = this.#files
    const names = await this.#disk.list()
    for (const draft of [META_DRAFT_NAME, SEGMENT_DRAFT_NAME]) {
      if (names.includes(draft)) await this.#disk.remove(draft)
    }
    const numbers = names
      .map((name) => segmentNumber(name))
      .filter((number) => number !== undefined)
      .sort((a, b) => a - b)
    const first = numbers[0] ?? 1
    const gap = numbers.findIndex((number, index) => number !== first + index)

    let meta: LogMeta | undefined
    if (names.includes(META_NAME)) {
      const file = await this.#disk.open(META_NAME, {})
      try {
        meta = decodeLogMeta(await file.read(0, file.bytes))
      } finally {
        await file.close()
      }
    }
    const metaFact = meta !== undefined ? 'valid' : names.includes(META_NAME) ? 'damaged' : 'missing'

    // From the newest down to the first that is in use; all that are older are taken to be, and are read later.
    const unused: { number: number; header: SegmentHeader | undefined }[] = []
    let newest: { number: number; header: SegmentHeader } | undefined
    for (const number of gap < 0 ? [...numbers].reverse() : []) {
      const file = await this.#disk.open(segmentName(number), { durable: true })
      files.set(number, file)
      const header = readSegmentHeader(await file.read(0, Math.min(file.bytes, SEGMENT_HEADER_BYTES)))
      if (header?.number === number) {
        newest = { number, header }
        break
      }
      unused.push({ number, header })
    }

    let filesFact: DirectoryFacts['files']
    if (numbers.length === 0) filesFact = 'none'
    else if (newest !== undefined) filesFact = 'used'
    else if (first !== 1) filesFact = 'headless'
    else if (meta === undefined && (await areBlank(files.values()))) filesFact = 'blank'
    else filesFact = 'unstarted'

    const known = meta ?? newest?.header
    const wrongSize = [...files].find(([, { bytes }]) => known !== undefined && bytes !== known.segmentBytes)
    const isForeign = ({ header }: { header: SegmentHeader | undefined }): boolean =>
      header !== undefined &&
      known !== undefined &&
      (header.salt !== known.salt || header.segmentBytes !== known.segmentBytes)
    const foreign = [...unused, ...(newest === undefined ? [] : [newest])].find(isForeign)
    // A recycled file keeps its old header until it is used again; what it names was given back before.
    const displaced = unused.find(({ header }) => header !== undefined && header.number >= first)

    const row = theRow(DIRECTORY_ROWS, {
      meta: metaFact,
      files: filesFact,
      numbers: gap < 0 ? 'consecutive' : 'gap',
      sizes: wrongSize === undefined ? 'right' : 'wrong',
      headers: foreign !== undefined ? 'foreign' : displaced !== undefined ? 'displaced' : 'agree',
    })
    this.rows.directory = row
    switch (row) {
      case 'gap':
        throw corrupt(segmentName(first + gap), 0, 'the segment is missing between others')
      case 'wrong-size': {
        const [number, { bytes }] = wrongSize!
        throw corrupt(segmentName(number), bytes, `the file has ${bytes} bytes, not ${known!.segmentBytes}`)
      }
      case 'foreign':
        throw corrupt(segmentName(foreign!.number), 0, 'the segment belongs to another log')
      case 'displaced': {
        const { number, header } = displaced!
        throw corrupt(segmentName(number), 0, `the file holds segment ${header!.number}`)
      }
      case 'segments-lost':
        throw corrupt(META_NAME, 0, 'the log has no segments')
      case 'salt-lost':
        throw corrupt(META_NAME, 0, 'neither this file nor a segment says which log it is')
      case 'head-lost':
        throw corrupt(segmentName(first), 0, 'the headers of all segments are damaged')
      case 'create-again':
        for (const [number, file] of files) {
          await file.close()
          files.delete(number)
          await this.#disk.remove(segmentName(number))
        }
        return { meta: await this.#create(), first, number: 1, header: undefined }
      case 'create':
        return { meta: await this.#create(), first, number: 1, header: undefined }
      case 'rebuild-meta': {
        const { salt, segmentBytes, createdMs } = newest!.header
        await this.#writeMeta({ salt, segmentBytes, createdMs })
        this.#options.notify(
          'meta-rebuilt',
          `${META_NAME} was ${metaFact} and was written again from a segment.`,
        )
        return { meta: { salt, segmentBytes, createdMs }, first, ...newest! }
      }
      case 'ordinary':
        return { meta: meta!, first, number: newest?.number ?? first, header: newest?.header }
    }
  }

  /** The segment comes first: when the small file is there, so is a segment, and its absence means damage. */
  async #create(): Promise<LogMeta> {
    const { fuse, random32, now, segmentBytes } = this.#options
    const meta = { salt: random32() >>> 0, segmentBytes, createdMs: now() }
    await fuse.durably('The first segment', async () => {
      const draft = await this.#disk.open(SEGMENT_DRAFT_NAME, { create: true })
      try {
        await fillWithZeros(draft, segmentBytes, () => false)
      } finally {
        await draft.close()
      }
      await this.#disk.rename(SEGMENT_DRAFT_NAME, segmentName(1))
      await this.#disk.syncDirectory()
      this.#files.set(1, await this.#disk.open(segmentName(1), { durable: true }))
    })
    await this.#writeMeta(meta)
    return meta
  }

  async #writeMeta(meta: LogMeta): Promise<void> {
    await this.#options.fuse.durably(META_NAME, async () => {
      const file = await this.#disk.open(META_DRAFT_NAME, { create: true })
      try {
        await file.write(0, encodeLogMeta(meta))
        await file.sync()
      } finally {
        await file.close()
      }
      await this.#disk.rename(META_DRAFT_NAME, META_NAME)
      await this.#disk.syncDirectory()
    })
  }

  /** Walks the newest segment, cuts what was not finished, and makes the last entry durable beyond doubt. */
  async #surveyTail({ meta, first, number, header }: Newest): Promise<Found> {
    const { segmentBytes, salt } = meta
    const active = { number, file: this.#files.get(number)! }
    const spares = [...this.#files]
      .filter(([other]) => other > number)
      .sort(([a], [b]) => a - b)
      .map(([other, file]) => ({ number: other, file }))

    const last = header === undefined ? undefined : await lastEntry(active, header, meta)
    const expected: NextEntry =
      last === undefined
        ? { at: SEGMENT_HEADER_BYTES, lsn: header?.firstLsn ?? 1, previousCrc: header?.previousCrc ?? 0 }
        : { at: last.end, lsn: last.lsn + 1, previousCrc: last.crc }
    const { at, lsn, previousCrc } = expected

    const behindBytes = await unfinishedBytes(active, at, expected, meta)
    const [next] = spares
    const nextBytes =
      next === undefined ? 0 : await unfinishedBytes(next, SEGMENT_HEADER_BYTES, expected, meta)

    let later: { name: string; at: number; lsn: number } | undefined
    for (const { number: other, file } of [active, ...spares]) {
      const from = other === number ? at : SEGMENT_HEADER_BYTES
      const entry = await findLaterEntry(file, from, segmentBytes, other * segmentBytes, salt, lsn)
      later ??= entry === undefined ? undefined : { name: segmentName(other), ...entry }
    }

    const row = theRow(TAIL_ROWS, {
      entries: last === undefined ? 'none' : 'some',
      behind: behindBytes === 0 ? 'nothing' : 'unfinished',
      next: nextBytes === 0 ? 'nothing' : 'unfinished',
      later: later === undefined ? 'none' : 'found',
    })
    this.rows.tail = row
    if (row === 'later-entry') {
      const { name, at: laterAt, lsn: laterLsn } = later!
      throw corrupt(
        segmentName(number),
        at,
        `entry ${lsn} cannot be read, and entry ${laterLsn} is whole behind it, at byte ${laterAt} of ${name}`,
      )
    }
    await this.#options.fuse.durably(`The end of ${segmentName(number)}`, async () => {
      // The first sector goes first: without its header the rest is nothing, should this be cut short too.
      await writeZeros(active.file, at, behindBytes)
      if (next !== undefined) await writeZeros(next.file, SEGMENT_HEADER_BYTES, nextBytes)
      // What can be read may be in memory only: of a process that was killed, or after a write that failed.
      if (last !== undefined) {
        const from = last.at === SEGMENT_HEADER_BYTES ? 0 : last.at
        await active.file.write(from, await active.file.read(from, last.end - from))
      }
    })
    const cutBytes = behindBytes + nextBytes
    if (cutBytes > 0) {
      this.#options.notify(
        'cut',
        `Entry ${lsn} was not finished: ${cutBytes} bytes were cut off at byte ${at} of ${segmentName(number)}.`,
      )
    }
    return {
      segmentBytes,
      salt,
      first,
      active,
      begun: last !== undefined,
      spares,
      at,
      nextLsn: lsn,
      lastCrc: previousCrc,
      checkpoint: header?.checkpoint,
      cutBytes,
    }
  }
}

/** The last valid entry of the segment, its records included. */
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
  // The header may have reached the disk and the records not: then the last entry is as torn as any.
  return lastBytes === undefined || recordsAreIntact(lastBytes, 0) ? last : beforeLast
}

/** How much is left at byte `from` of the entry that is expected next; 0 when nothing is. */
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

async function areBlank(files: Iterable<DiskFile>): Promise<boolean> {
  for (const file of files) if (!(await isBlank(file))) return false
  return true
}

async function writeZeros(file: DiskFile, at: number, bytes: number): Promise<void> {
  for (let done = 0; done < bytes;) {
    const piece = done === 0 ? ENTRY_ALIGN_BYTES : Math.min(FILL_BYTES, bytes - done)
    await file.write(at + done, new Uint8Array(piece))
    done += piece
  }
}
