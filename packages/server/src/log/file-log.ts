/**
 * The log on files: segments of one size, prepared before use, one write in flight, each durable before the next.
 *
 * Invariant: what `open` finds is the entries whose append resolved, in order, and at most one more whose append was
 * under way. Anything else that the files can hold is refused with file and position, never repaired by guessing. The
 * first write or sync that fails ends the log: no other is issued after it. docs/STORAGE.md has the decision tables.
 */
import { SluiceError } from '@sluice/protocol'
import {
  ENTRY_ALIGN_BYTES,
  ENTRY_HEADER_BYTES,
  entryCrcOf,
  entryLength,
  entryPaddedBytes,
  readEntryHeader,
  recordsAreIntact,
  resemblesEntry,
} from './entry.js'
import type { Disk, DiskFile, Log, LogBounds, LogEntry } from './log.js'
import {
  EntryWalker,
  META_DRAFT_NAME,
  META_NAME,
  SEGMENT_BYTES_DEFAULT,
  SEGMENT_DRAFT_NAME,
  SEGMENT_HEADER_BYTES,
  decodeLogMeta,
  encodeLogMeta,
  findLaterEntry,
  isBlank,
  readSegmentHeader,
  segmentBytesFit,
  segmentName,
  segmentNumber,
  writeSegmentHeader,
} from './segment.js'
import type { LogMeta, SegmentHeader } from './segment.js'

export interface FileLogOptions {
  readonly disk: Disk
  /** Bytes of a segment, for a new log; an old one keeps its own. Default 64 MiB. */
  readonly segmentBytes?: number
  /** Room that `reserve` leaves for settles, state pages and relocation. Default one segment. */
  readonly reserveBytes?: number
  /** Free bytes of the file system below which `reserve` refuses. Default: see `defaultLowFreeBytes`. */
  readonly lowFreeBytes?: number
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** A random u32: the salt of a new log. */
  readonly random32: () => number
  /** Waits before another segment is tried. Default: a timer that does not keep the process alive. */
  readonly sleep?: (ms: number) => Promise<void>
  readonly onNotice?: (notice: LogNotice) => void
}

/** What an operator should hear of; the log goes on after each but `failed`. */
export interface LogNotice {
  readonly kind: 'meta-rebuilt' | 'cut' | 'disk-low' | 'disk-ok' | 'no-segment' | 'failed'
  readonly text: string
}

/** First of 5 % of the file system and 1 GiB, whichever is more; but never over a tenth of it, nor over 16 GiB. */
export function defaultLowFreeBytes(totalBytes: number): number {
  return Math.min(Math.max(totalBytes / 20, 2 ** 30), totalBytes / 10, 16 * 2 ** 30)
}

/** Below the low mark publishes are refused; they are taken again above this many times it. */
const LOW_CLEARS_AT = 1.2
const SPACE_INTERVAL_MS = 1_000
const PREPARE_RETRY_MS = 250
/** Written and synced at once, so that an entry never waits for more than this. */
const FILL_BYTES = 1024 * 1024
/** Prepared ahead; recycled segments may make it more. */
const SPARES_WANTED = 1
const SPARES_MAX = 2
/** Segments that are kept open for reading. */
const READERS_OPEN_MAX = 32

// ---------------------------------------------------------------------------------------------- decision tables

export interface DirectoryFacts {
  readonly meta: 'missing' | 'damaged' | 'valid'
  /**
   * `blank`: from number 1 on, and nothing but zeros (looked at only without valid meta). `unstarted`: from number 1
   * on, none in use. `headless`: from a higher number on, none in use. `used`: one or more in use.
   */
  readonly files: 'none' | 'blank' | 'unstarted' | 'headless' | 'used'
  readonly numbers: 'consecutive' | 'gap'
  /** Of the newest segment in use and those behind it, where the right size is known. */
  readonly sizes: 'right' | 'wrong'
  /** `foreign`: of another log. `displaced`: an unused file has the header of a segment that was not given back. */
  readonly headers: 'agree' | 'foreign' | 'displaced'
}

export interface TailFacts {
  readonly entries: 'none' | 'some'
  /** What stands where the next entry goes: nothing of it (zeros, old bytes), or damaged bytes of it. */
  readonly behind: 'nothing' | 'unfinished'
  /** The same for the start of the next, unused segment. */
  readonly next: 'nothing' | 'unfinished'
  /** Whether a whole entry with a higher number than the next one stands anywhere behind. */
  readonly later: 'none' | 'found'
}

type Row<Facts, Name> = { readonly row: Name } & { readonly [Key in keyof Facts]?: readonly Facts[Key][] }

export type DirectoryRow =
  | 'gap'
  | 'wrong-size'
  | 'foreign'
  | 'displaced'
  | 'create'
  | 'create-again'
  | 'segments-lost'
  | 'salt-lost'
  | 'head-lost'
  | 'rebuild-meta'
  | 'ordinary'

const ORDERLY = { numbers: ['consecutive'], sizes: ['right'], headers: ['agree'] } as const

/** A field that a row leaves out may have any value. Each combination of facts fits exactly one row. */
export const DIRECTORY_ROWS: readonly Row<DirectoryFacts, DirectoryRow>[] = [
  { row: 'gap', numbers: ['gap'] },
  { row: 'wrong-size', numbers: ['consecutive'], sizes: ['wrong'] },
  { row: 'foreign', numbers: ['consecutive'], sizes: ['right'], headers: ['foreign'] },
  { row: 'displaced', numbers: ['consecutive'], sizes: ['right'], headers: ['displaced'] },
  { row: 'create', ...ORDERLY, meta: ['missing'], files: ['none'] },
  { row: 'create-again', ...ORDERLY, meta: ['missing', 'damaged'], files: ['blank'] },
  { row: 'segments-lost', ...ORDERLY, meta: ['damaged', 'valid'], files: ['none'] },
  { row: 'salt-lost', ...ORDERLY, meta: ['missing', 'damaged'], files: ['unstarted', 'headless'] },
  { row: 'head-lost', ...ORDERLY, meta: ['valid'], files: ['headless'] },
  { row: 'rebuild-meta', ...ORDERLY, meta: ['missing', 'damaged'], files: ['used'] },
  { row: 'ordinary', ...ORDERLY, meta: ['valid'], files: ['blank', 'unstarted', 'used'] },
]

export type TailRow = 'later-entry' | 'clean' | 'bare' | 'torn' | 'torn-in-next'

export const TAIL_ROWS: readonly Row<TailFacts, TailRow>[] = [
  { row: 'later-entry', later: ['found'] },
  { row: 'clean', entries: ['some'], behind: ['nothing'], next: ['nothing'], later: ['none'] },
  { row: 'bare', entries: ['none'], behind: ['nothing'], next: ['nothing'], later: ['none'] },
  { row: 'torn', behind: ['unfinished'], later: ['none'] },
  { row: 'torn-in-next', behind: ['nothing'], next: ['unfinished'], later: ['none'] },
]

/** The rows that fit; every table is written so that it is one. */
export function matchingRows<Facts extends object, Name>(
  rows: readonly Row<Facts, Name>[],
  facts: Facts,
): Name[] {
  const fits = (row: Row<Facts, Name>): boolean =>
    (Object.keys(facts) as (keyof Facts)[]).every((key) => {
      const allowed = row[key] as readonly unknown[] | undefined
      return allowed === undefined || allowed.includes(facts[key])
    })
  return rows.filter(fits).map(({ row }) => row)
}

function theRow<Facts extends object, Name>(rows: readonly Row<Facts, Name>[], facts: Facts): Name {
  const names = matchingRows(rows, facts)
  const [name] = names
  if (name === undefined || names.length > 1) {
    throw new Error(`${names.length} rows fit ${JSON.stringify(facts)}`)
  }
  return name
}

// ------------------------------------------------------------------------------------------------------- the log

interface Spare {
  readonly number: number
  readonly file: DiskFile
}

interface Reader {
  readonly file: Promise<DiskFile>
  users: number
  /** The segment was given back, or the log closed: the last user closes the file. */
  doomed: boolean
}

interface Found {
  readonly meta: LogMeta
  /** Newest segment in use, or the first one when none is. */
  readonly number: number
  readonly header: SegmentHeader | undefined
}

interface EntrySpan {
  readonly at: number
  readonly end: number
  readonly lsn: number
  readonly crc: number
  readonly previousCrc: number
}

export class FileLog implements Log {
  /** Which rows of the decision tables `open` met; for tests and for a line in the operator's log. */
  recovery: { directory?: DirectoryRow; tail?: TailRow } = {}

  readonly #options: FileLogOptions
  readonly #disk: Disk
  readonly #sleep: (ms: number) => Promise<void>
  #segmentBytes: number
  #salt = 0
  #opened = false
  #closed = false
  #failure: SluiceError | undefined

  /** Oldest segment that was not given back. */
  #first = 1
  /** The segment that is written, and its file. */
  #active = 1
  #activeFile: DiskFile | undefined
  /** False until the active segment's header is on disk, which goes there with its first entry. */
  #begun = false
  /** Prepared, numbered from `#active + 1` on without a gap. */
  #spares: Spare[] = []

  /** Where the next entry goes: ahead of what is durable while an append is under way. */
  #headSegment = 1
  #headAt = SEGMENT_HEADER_BYTES
  /** Behind the last durable entry. */
  #durableSegment = 1
  #durableAt = SEGMENT_HEADER_BYTES
  #nextLsn = 1
  #lastCrc = 0
  #checkpoint: number | undefined
  #appending: Promise<void> | undefined

  #preparing: Promise<void> | undefined
  #prepareFailed = false
  #draftExists = false
  /** Renames and removals go one by one, each made durable before the next. */
  #directory: Promise<void> = Promise.resolve()
  #waiting: (() => void)[] = []

  #freeBytes = 0
  #lowFreeBytes = 0
  #low = false
  #spaceAtMs = 0
  #spaceRefresh: Promise<void> | undefined

  readonly #readers = new Map<number, Reader>()

  constructor(options: FileLogOptions) {
    this.#options = options
    this.#disk = options.disk
    this.#segmentBytes = options.segmentBytes ?? SEGMENT_BYTES_DEFAULT
    this.#sleep = options.sleep ?? sleepUnreferenced
    if (!segmentBytesFit(this.#segmentBytes)) {
      throw new RangeError(`a segment cannot have ${this.#segmentBytes} bytes`)
    }
  }

  get segmentBytes(): number {
    return this.#segmentBytes
  }

  // --------------------------------------------------------------------------------------------------- recovery

  async open(): Promise<LogBounds> {
    if (this.#opened) throw new Error('the log was opened before')
    this.#opened = true
    const files = new Map<number, DiskFile>()
    try {
      // A name that this process can see may not be on disk yet, when the last one was killed.
      await this.#durably('The directory of the log', () => this.#disk.syncDirectory())
      const found = await this.#surveyDirectory(files)
      const bounds = await this.#surveyTail(found, files)
      await this.#refreshSpace()
      this.#prepareAhead()
      return bounds
    } catch (error) {
      this.#closed = true
      await Promise.all([...files.values()].map((file) => file.close()))
      throw error
    }
  }

  /** Decides by names, the small file and headers; creates a new log; opens the newest segment and those behind. */
  async #surveyDirectory(files: Map<number, DiskFile>): Promise<Found> {
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
    this.recovery.directory = row
    this.#first = first
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
        return { meta: await this.#create(files), number: 1, header: undefined }
      case 'create':
        return { meta: await this.#create(files), number: 1, header: undefined }
      case 'rebuild-meta': {
        const { salt, segmentBytes, createdMs } = newest!.header
        await this.#writeMeta({ salt, segmentBytes, createdMs })
        this.#notice('meta-rebuilt', `${META_NAME} was ${metaFact} and was written again from a segment.`)
        return { meta: { salt, segmentBytes, createdMs }, ...newest! }
      }
      case 'ordinary':
        return { meta: meta!, number: newest?.number ?? first, header: newest?.header }
    }
  }

  /** The segment comes first: when the small file is there, so is a segment, and its absence means damage. */
  async #create(files: Map<number, DiskFile>): Promise<LogMeta> {
    const meta = {
      salt: this.#options.random32() >>> 0,
      segmentBytes: this.#segmentBytes,
      createdMs: this.#options.now(),
    }
    await this.#durably('The first segment', async () => {
      await this.#fillDraft()
      await this.#disk.rename(SEGMENT_DRAFT_NAME, segmentName(1))
      this.#draftExists = false
      await this.#disk.syncDirectory()
      files.set(1, await this.#disk.open(segmentName(1), { durable: true }))
    })
    await this.#writeMeta(meta)
    return meta
  }

  async #writeMeta(meta: LogMeta): Promise<void> {
    await this.#durably(META_NAME, async () => {
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
  async #surveyTail(found: Found, files: Map<number, DiskFile>): Promise<LogBounds> {
    const { meta, number, header } = found
    const { segmentBytes, salt } = meta
    this.#segmentBytes = segmentBytes
    this.#salt = salt
    const file = files.get(number)!
    const segmentStart = number * segmentBytes
    const spares = [...files].filter(([other]) => other > number).sort(([a], [b]) => a - b)

    let last: EntrySpan | undefined
    let beforeLast: EntrySpan | undefined
    const start = {
      at: SEGMENT_HEADER_BYTES,
      lsn: header?.firstLsn ?? 1,
      previousCrc: header?.previousCrc ?? 0,
    }
    if (header !== undefined) {
      const walker = new EntryWalker(file, { ...start, segmentStart, salt })
      let lastBytes: Uint8Array | undefined
      for (;;) {
        const { at, lsn, previousCrc } = walker
        const entry = await walker.next(segmentBytes)
        if (typeof entry === 'string') break
        beforeLast = last
        last = { at, end: walker.at, lsn: lsn!, crc: entryCrcOf(entry, 0), previousCrc: previousCrc! }
        lastBytes = entry
      }
      // The header may have reached the disk and the records not: then the last entry is as torn as any.
      if (lastBytes !== undefined && !recordsAreIntact(lastBytes, 0)) {
        start.at = last!.at
        start.lsn = last!.lsn
        start.previousCrc = last!.previousCrc
        last = beforeLast
      } else if (last !== undefined) {
        start.at = last.end
        start.lsn = last.lsn + 1
        start.previousCrc = last.crc
      }
    }
    const { at, lsn, previousCrc } = start

    const unfinished = async (place: DiskFile, from: number, position: number): Promise<number> => {
      if (from + ENTRY_ALIGN_BYTES > segmentBytes) return 0
      const sector = await place.read(from, ENTRY_ALIGN_BYTES)
      if (!resemblesEntry(sector, 0, { lsn, previousCrc, position, salt })) return 0
      const { length } = readEntryHeader(sector, 0)
      const padded = entryPaddedBytes(length)
      return length >= ENTRY_HEADER_BYTES && from + padded <= segmentBytes ? padded : ENTRY_ALIGN_BYTES
    }
    const behindBytes = await unfinished(file, at, segmentStart + at)
    const [next] = spares
    const nextBytes =
      next === undefined
        ? 0
        : await unfinished(next[1], SEGMENT_HEADER_BYTES, next[0] * segmentBytes + SEGMENT_HEADER_BYTES)

    let later: { name: string; at: number; lsn: number } | undefined
    for (const [other, place] of [[number, file] as const, ...spares]) {
      const from = other === number ? at : SEGMENT_HEADER_BYTES
      const entry = await findLaterEntry(place, from, segmentBytes, other * segmentBytes, salt, lsn)
      later ??= entry === undefined ? undefined : { name: segmentName(other), ...entry }
    }

    const row = theRow(TAIL_ROWS, {
      entries: last === undefined ? 'none' : 'some',
      behind: behindBytes === 0 ? 'nothing' : 'unfinished',
      next: nextBytes === 0 ? 'nothing' : 'unfinished',
      later: later === undefined ? 'none' : 'found',
    })
    this.recovery.tail = row
    if (row === 'later-entry') {
      const { name, at: laterAt, lsn: laterLsn } = later!
      throw corrupt(
        segmentName(number),
        at,
        `entry ${lsn} cannot be read, and entry ${laterLsn} is whole behind it, at byte ${laterAt} of ${name}`,
      )
    }
    await this.#durably(`The end of ${segmentName(number)}`, async () => {
      // The first sector goes first: without its header the rest is nothing, should this be cut short too.
      await writeZeros(file, at, behindBytes)
      if (next !== undefined) await writeZeros(next[1], SEGMENT_HEADER_BYTES, nextBytes)
      // What can be read may be in memory only: of a process that was killed, or after a write that failed.
      if (last !== undefined) {
        const from = last.at === SEGMENT_HEADER_BYTES ? 0 : last.at
        await file.write(from, await file.read(from, last.end - from))
      }
    })
    const cutBytes = behindBytes + nextBytes
    if (cutBytes > 0) {
      this.#notice(
        'cut',
        `Entry ${lsn} was not finished: ${cutBytes} bytes were cut off at byte ${at} of ${segmentName(number)}.`,
      )
    }

    this.#active = number
    this.#activeFile = file
    this.#begun = last !== undefined
    this.#spares = spares.map(([other, place]) => ({ number: other, file: place }))
    this.#headSegment = number
    this.#headAt = at
    this.#durableSegment = number
    this.#durableAt = at
    this.#nextLsn = lsn
    this.#lastCrc = previousCrc
    this.#checkpoint = header?.checkpoint
    return {
      firstPosition: this.#first * segmentBytes + SEGMENT_HEADER_BYTES,
      nextPosition: segmentStart + at,
      nextLsn: lsn,
      lastCrc: previousCrc,
      salt,
      checkpoint: header?.checkpoint,
      cutBytes,
    }
  }

  // --------------------------------------------------------------------------------------------------- appending

  place(bytes: number): number {
    const padded = entryPaddedBytes(bytes)
    if (padded > this.#segmentBytes - SEGMENT_HEADER_BYTES) {
      throw new RangeError(`an entry of ${bytes} bytes does not fit a segment of ${this.#segmentBytes}`)
    }
    return this.#headAt + padded <= this.#segmentBytes
      ? this.#headSegment * this.#segmentBytes + this.#headAt
      : (this.#headSegment + 1) * this.#segmentBytes + SEGMENT_HEADER_BYTES
  }

  append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    try {
      this.#checkAppend(position, lsn, entry)
    } catch (error) {
      return Promise.reject(error)
    }
    // Before anything is awaited, so that `place` already answers for the entry after this one.
    this.#headSegment = Math.floor(position / this.#segmentBytes)
    this.#headAt = (position % this.#segmentBytes) + entry.length
    const appending = this.#write(position % this.#segmentBytes, entry).finally(() => {
      this.#appending = undefined
    })
    this.#appending = appending
    return appending
  }

  #checkAppend(position: number, lsn: number, entry: Uint8Array): void {
    if (!this.#opened || this.#closed) throw new Error('the log is not open')
    if (this.#appending !== undefined) throw new Error('one entry at a time')
    const header = readEntryHeader(entry, 0)
    const segment = Math.floor(position / this.#segmentBytes)
    const at = position % this.#segmentBytes
    const next = segment === this.#headSegment + 1 && at === SEGMENT_HEADER_BYTES
    if (!next && (segment !== this.#headSegment || at !== this.#headAt)) {
      throw new RangeError(`position ${position} is not where the next entry goes`)
    }
    if (at + entry.length > this.#segmentBytes) {
      throw new RangeError(`an entry of ${entry.length} bytes does not fit the rest of its segment`)
    }
    if (
      entry.length !== entryPaddedBytes(header.length) ||
      entryLength(entry, 0) < ENTRY_HEADER_BYTES ||
      lsn !== this.#nextLsn ||
      header.lsn !== lsn ||
      header.position !== position ||
      header.previousCrc !== this.#lastCrc
    ) {
      // It would be durable and could never be read again.
      throw new Error(`entry ${lsn} does not continue the log after entry ${this.#nextLsn - 1}`)
    }
  }

  async #write(at: number, entry: Uint8Array): Promise<void> {
    if (this.#headSegment !== this.#active) await this.#activate()
    let from = at
    let bytes = entry
    if (!this.#begun) {
      from = 0
      bytes = new Uint8Array(SEGMENT_HEADER_BYTES + entry.length)
      writeSegmentHeader(bytes, {
        number: this.#active,
        salt: this.#salt,
        segmentBytes: this.#segmentBytes,
        firstLsn: this.#nextLsn,
        previousCrc: this.#lastCrc,
        checkpoint: this.#checkpoint,
        createdMs: this.#options.now(),
      })
      bytes.set(entry, SEGMENT_HEADER_BYTES)
    }
    await this.#durably(`Segment ${segmentName(this.#active)}`, () => this.#activeFile!.write(from, bytes))
    this.#begun = true
    this.#durableSegment = this.#headSegment
    this.#durableAt = this.#headAt
    this.#nextLsn++
    this.#lastCrc = entryCrcOf(entry, 0)
  }

  /** Makes the first spare the active segment; waits for one, for as long as the disk is full. */
  async #activate(): Promise<void> {
    let spare: Spare | undefined
    while ((spare = this.#spares[0]) === undefined) {
      this.#prepareAhead()
      await this.#preparing
      if (this.#failure !== undefined) throw this.#failure
      if (this.#closed) throw new Error('the log was closed while an entry waited for a segment')
      if (this.#spares.length > 0) continue
      let wake: () => void
      const woken = new Promise<void>((resolve) => (wake = resolve))
      this.#waiting.push(wake!)
      await Promise.race([woken, this.#sleep(PREPARE_RETRY_MS)])
    }
    if (this.#failure !== undefined) throw this.#failure
    this.#spares.shift()
    const full = this.#activeFile
    this.#active = spare.number
    this.#activeFile = spare.file
    this.#begun = false
    this.#prepareAhead()
    // Every write to it was durable: there is nothing that closing it could lose.
    await full?.close().catch(() => undefined)
  }

  /** Runs what must reach the disk. Its first failure is the log's last word. */
  async #durably<T>(what: string, work: () => Promise<T>): Promise<T> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      return await work()
    } catch (cause) {
      this.#failure ??= new SluiceError(
        'LOG_FAILED',
        `${what} could not be written: ${cause instanceof Error ? cause.message : String(cause)}.`,
        { cause },
      )
      this.#notice('failed', this.#failure.message)
      this.#wake()
      throw this.#failure
    }
  }

  // ------------------------------------------------------------------------------------------------------- space

  reserve(bytes: number): boolean {
    if (this.#failure !== undefined || this.#closed) return false
    const sinceMs = this.#options.now() - this.#spaceAtMs
    if (this.#spaceRefresh === undefined && (sinceMs >= SPACE_INTERVAL_MS || sinceMs < 0)) {
      this.#spaceRefresh = this.#refreshSpace()
        .then(() => this.#prepareAhead())
        .finally(() => {
          this.#spaceRefresh = undefined
        })
    }
    if (this.#low) return false
    const newest = this.#active + this.#spares.length
    const left = this.#segmentBytes - this.#headAt
    const creatable = this.#prepareFailed
      ? 0
      : Math.max(0, Math.floor((this.#freeBytes - this.#lowFreeBytes) / this.#segmentBytes))
    // One less where the entry under way still waits for its segment: that is being prepared, or cannot be.
    const segments = newest - this.#headSegment + creatable
    const room = (bytes <= left ? left : 0) + segments * (this.#segmentBytes - SEGMENT_HEADER_BYTES)
    return bytes + (this.#options.reserveBytes ?? this.#segmentBytes) <= room
  }

  async #refreshSpace(): Promise<void> {
    this.#spaceAtMs = this.#options.now()
    let space: { freeBytes: number; totalBytes: number }
    try {
      space = await this.#disk.space()
    } catch {
      // The numbers of a second ago are the best there are; what they permit wrongly, preparation refuses.
      return
    }
    this.#freeBytes = space.freeBytes
    this.#lowFreeBytes = this.#options.lowFreeBytes ?? defaultLowFreeBytes(space.totalBytes)
    const low = this.#freeBytes < this.#lowFreeBytes * (this.#low ? LOW_CLEARS_AT : 1)
    if (low === this.#low) return
    this.#low = low
    this.#notice(
      low ? 'disk-low' : 'disk-ok',
      low
        ? `${this.#freeBytes} bytes are free, less than ${this.#lowFreeBytes}: publishes are refused.`
        : `${this.#freeBytes} bytes are free: publishes are accepted.`,
    )
  }

  /** Starts to prepare a segment when there are too few; one at a time, in the background. */
  #prepareAhead(): void {
    if (this.#preparing !== undefined || this.#spares.length >= SPARES_WANTED || this.#stopped()) return
    this.#preparing = this.#prepare().finally(() => {
      this.#preparing = undefined
      // The spare may have been taken at once; a full disk is tried again when somebody asks.
      if (!this.#prepareFailed) this.#prepareAhead()
    })
  }

  /** Never rejects: a full disk is told by `reserve`, a directory that cannot be synced by the next append. */
  async #prepare(): Promise<void> {
    try {
      if (!(await this.#fillDraft())) return
      await this.#inDirectory(async () => {
        if (this.#stopped()) return
        const number = this.#active + this.#spares.length + 1
        await this.#disk.rename(SEGMENT_DRAFT_NAME, segmentName(number))
        this.#draftExists = false
        await this.#addSpare(number)
      })
    } catch (error) {
      if (this.#failure !== undefined) return
      if (!this.#prepareFailed) {
        this.#notice(
          'no-segment',
          `No segment could be prepared: ${error instanceof Error ? error.message : String(error)}.`,
        )
      }
      this.#prepareFailed = true
      // What was filled is given back: others may need the last bytes of the disk more.
      if (this.#draftExists && !this.#stopped()) {
        await this.#disk.remove(SEGMENT_DRAFT_NAME).then(
          () => (this.#draftExists = false),
          () => undefined,
        )
      }
    }
    if (!this.#stopped()) await this.#refreshSpace()
  }

  /** A segment of zeros, on disk. Piece by piece, so that entries get their turn. @returns false when stopped */
  async #fillDraft(): Promise<boolean> {
    if (this.#draftExists) await this.#disk.remove(SEGMENT_DRAFT_NAME)
    const file = await this.#disk.open(SEGMENT_DRAFT_NAME, { create: true })
    this.#draftExists = true
    try {
      const zeros = new Uint8Array(Math.min(FILL_BYTES, this.#segmentBytes))
      for (let at = 0; at < this.#segmentBytes; at += FILL_BYTES) {
        if (this.#stopped()) return false
        await file.write(at, zeros.subarray(0, this.#segmentBytes - at))
        if (this.#stopped()) return false
        await file.sync()
      }
      return true
    } finally {
      await file.close()
    }
  }

  /** The file has its new name. Nothing may be written to it before that name is on disk. */
  async #addSpare(number: number): Promise<void> {
    await this.#durably('The directory of the log', () => this.#disk.syncDirectory())
    const file = await this.#disk.open(segmentName(number), { durable: true })
    this.#spares.push({ number, file })
    this.#prepareFailed = false
    this.#wake()
  }

  markCheckpoint(position: number): void {
    this.#checkpoint = position
  }

  truncateBefore(position: number): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    if (!this.#opened || this.#closed) return Promise.reject(new Error('the log is not open'))
    return this.#inDirectory(async () => {
      while (this.#first < this.#durableSegment && (this.#first + 1) * this.#segmentBytes <= position) {
        if (this.#stopped()) return
        await this.#giveBack(this.#first)
      }
    })
  }

  /** One at a time and the oldest first, each durable before the next: no crash leaves a gap. */
  async #giveBack(number: number): Promise<void> {
    // Refuses new readers from here on; one that is under way keeps the old bytes, which recycling would change.
    this.#first = number + 1
    const reader = this.#readers.get(number)
    const isRead = reader !== undefined && reader.users > 0
    if (reader !== undefined) this.#doom(number, reader)
    const target = this.#active + this.#spares.length + 1
    let recycled = false
    try {
      if (!isRead && this.#spares.length < SPARES_MAX) {
        // On a full disk a directory may have no room for a rename, but always for a removal.
        recycled = await this.#disk.rename(segmentName(number), segmentName(target)).then(
          () => true,
          () => false,
        )
      }
      if (!recycled) await this.#disk.remove(segmentName(number))
    } catch (error) {
      this.#first = number
      throw error
    }
    if (recycled) await this.#addSpare(target)
    else {
      await this.#durably('The directory of the log', () => this.#disk.syncDirectory())
      this.#prepareFailed = false
      await this.#refreshSpace()
      this.#prepareAhead()
    }
  }

  usage(): { segments: number; bytes: number; firstPosition: number } {
    const segments = this.#durableSegment - this.#first + 1
    return {
      segments,
      bytes: segments * this.#segmentBytes,
      firstPosition: this.#first * this.#segmentBytes + SEGMENT_HEADER_BYTES,
    }
  }

  // ----------------------------------------------------------------------------------------------------- reading

  async *read(position: number): AsyncGenerator<LogEntry, void, undefined> {
    let number = Math.floor(position / this.#segmentBytes)
    let at = Math.max(position % this.#segmentBytes, SEGMENT_HEADER_BYTES)
    let lsn: number | undefined
    let previousCrc: number | undefined
    for (;;) {
      const isBehind = number === this.#durableSegment && at >= this.#durableAt
      if (number > this.#durableSegment || isBehind) return
      const reader = this.#acquire(number)
      try {
        const file = await reader.file
        const header = readSegmentHeader(await file.read(0, SEGMENT_HEADER_BYTES))
        if (header?.number !== number || header.salt !== this.#salt) {
          throw corrupt(segmentName(number), 0, 'the header of the segment is damaged')
        }
        if (lsn !== undefined && (header.firstLsn !== lsn || header.previousCrc !== previousCrc)) {
          throw corrupt(
            segmentName(number),
            0,
            `the segment begins with entry ${header.firstLsn} and does not continue the one before it, which ends before entry ${lsn}`,
          )
        }
        if (at === SEGMENT_HEADER_BYTES) {
          lsn = header.firstLsn
          previousCrc = header.previousCrc
        }
        const from = { at, segmentStart: number * this.#segmentBytes, salt: this.#salt, lsn, previousCrc }
        let walker = new EntryWalker(file, from)
        for (;;) {
          // Re-read each time: entries are appended, and the next segment begun, while a reader is on its way.
          const isLast = number === this.#durableSegment
          const end = isLast ? this.#durableAt : this.#segmentBytes
          if (isLast && walker.at >= end) return
          const entryAt = walker.at
          const found = walker.peek(end) ?? (await walker.next(end))
          if (typeof found !== 'string') {
            if (!recordsAreIntact(found, 0)) {
              throw corrupt(
                segmentName(number),
                entryAt,
                `the records of entry ${walker.lsn! - 1} are damaged`,
              )
            }
            yield { position: from.segmentStart + entryAt, lsn: walker.lsn! - 1, bytes: found }
            continue
          }
          if (walker.lsn === undefined) {
            // The first of all: is it damaged, or the segment full here, or no entry's place? Its start knows.
            walker = await this.#walkTo(file, header, number, entryAt)
            continue
          }
          if (!isLast && (await this.#endsHere(number, walker.lsn, walker.previousCrc))) break
          throw corrupt(segmentName(number), entryAt, `entry ${walker.lsn} cannot be read (${found})`)
        }
        lsn = walker.lsn
        previousCrc = walker.previousCrc
      } finally {
        this.#release(number, reader)
      }
      number++
      at = SEGMENT_HEADER_BYTES
    }
  }

  /** A walker that came to `at` from the start of the segment and so knows what must stand there. */
  async #walkTo(file: DiskFile, header: SegmentHeader, number: number, at: number): Promise<EntryWalker> {
    const walker = new EntryWalker(file, {
      at: SEGMENT_HEADER_BYTES,
      segmentStart: number * this.#segmentBytes,
      salt: this.#salt,
      lsn: header.firstLsn,
      previousCrc: header.previousCrc,
    })
    while (walker.at < at) {
      const found = await walker.next(this.#segmentBytes)
      if (typeof found === 'string') {
        throw corrupt(segmentName(number), walker.at, `entry ${walker.lsn} cannot be read (${found})`)
      }
    }
    if (walker.at > at) throw new RangeError(`no entry begins at byte ${at} of ${segmentName(number)}`)
    return walker
  }

  /** Whether the segment after `number` says that its first entry is the one that would be next here. */
  async #endsHere(number: number, lsn: number, previousCrc: number | undefined): Promise<boolean> {
    const reader = this.#acquire(number + 1)
    try {
      const header = readSegmentHeader(await (await reader.file).read(0, SEGMENT_HEADER_BYTES))
      if (header?.number !== number + 1) {
        throw corrupt(segmentName(number + 1), 0, 'the header of the segment is damaged')
      }
      return header.firstLsn === lsn && header.previousCrc === previousCrc
    } finally {
      this.#release(number + 1, reader)
    }
  }

  async readRange(position: number, length: number): Promise<Uint8Array> {
    const number = Math.floor(position / this.#segmentBytes)
    const at = position % this.#segmentBytes
    const end = number === this.#durableSegment ? this.#durableAt : this.#segmentBytes
    const isInside = length >= 0 && at >= SEGMENT_HEADER_BYTES && at + length <= end
    if (!isInside || number > this.#durableSegment) {
      throw new RangeError(`${length} bytes at position ${position} are not in a durable part of the log`)
    }
    const reader = this.#acquire(number)
    try {
      return await (await reader.file).read(at, length)
    } finally {
      this.#release(number, reader)
    }
  }

  #acquire(number: number): Reader {
    if (!this.#opened || this.#closed) throw new Error('the log is not open')
    if (number < this.#first) throw new RangeError(`segment ${number} was given back`)
    let reader = this.#readers.get(number)
    if (reader === undefined) {
      const file = this.#disk.open(segmentName(number), {}).then(async (opened) => {
        if (opened.bytes === this.#segmentBytes) return opened
        await opened.close()
        throw corrupt(
          segmentName(number),
          opened.bytes,
          `the file has ${opened.bytes} bytes, not ${this.#segmentBytes}`,
        )
      })
      reader = { file, users: 0, doomed: false }
      // Whoever asked hears of it; the next one tries again.
      file.catch(() => this.#readers.delete(number))
    } else {
      this.#readers.delete(number)
    }
    reader.users++
    // The end of the map is what was used last.
    this.#readers.set(number, reader)
    if (this.#readers.size > READERS_OPEN_MAX) {
      for (const [other, candidate] of this.#readers) {
        if (candidate.users > 0) continue
        this.#doom(other, candidate)
        break
      }
    }
    return reader
  }

  #release(number: number, reader: Reader): void {
    reader.users--
    if (reader.doomed) this.#doom(number, reader)
  }

  #doom(number: number, reader: Reader): void {
    reader.doomed = true
    if (this.#readers.get(number) === reader) this.#readers.delete(number)
    if (reader.users > 0) return
    // A file that was only read loses nothing when closing it fails.
    reader.file.then((file) => file.close()).catch(() => undefined)
  }

  // ----------------------------------------------------------------------------------------------------- closing

  async close(): Promise<void> {
    this.#closed = true
    this.#wake()
    await this.#appending?.catch(() => undefined)
    await this.#preparing
    await this.#spaceRefresh
    await this.#directory
    const files = [...this.#spares.map(({ file }) => file), this.#activeFile]
    this.#spares = []
    this.#activeFile = undefined
    for (const [number, reader] of this.#readers) this.#doom(number, reader)
    for (const file of files) await file?.close()
  }

  #stopped(): boolean {
    return this.#closed || this.#failure !== undefined
  }

  /** Runs `work` after all that was asked of the directory before. */
  #inDirectory(work: () => Promise<void>): Promise<void> {
    const done = this.#directory.then(work)
    this.#directory = done.catch(() => undefined)
    return done
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  #notice(kind: LogNotice['kind'], text: string): void {
    this.#options.onNotice?.({ kind, text })
  }
}

function corrupt(name: string, at: number, what: string): SluiceError {
  return new SluiceError('LOG_CORRUPT', `The log is damaged in ${name} at byte ${at}: ${what}.`)
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

function sleepUnreferenced(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref())
}
