/**
 * First half of the log scan: reads the file names, `log.meta` and the segment headers, picks the row of
 * `DIRECTORY_ROWS`, and acts on it: creates a log, rebuilds `log.meta`, continues, or refuses.
 *
 * Invariant: exactly one row decides, and a refused directory is left unchanged, except that drafts are removed. A
 * crash at any point leaves a state in which the next start can repeat the scan. Called by `scanLog`.
 */
import type { SluiceError } from '@sluice/protocol'
import { DIRECTORY_ROWS, decidingRow } from './decisions.js'
import type { DirectoryFacts, DirectoryRow, ScanRows } from './decisions.js'
import type { FailStop } from './fail-stop.js'
import type { Disk, DiskFile } from './log.js'
import type { Notify } from './notices.js'
import {
  META_DRAFT_NAME,
  META_NAME,
  SEGMENT_DRAFT_NAME,
  SEGMENT_HEADER_BYTES,
  corrupt,
  decodeLogMeta,
  encodeLogMeta,
  fillWithZeros,
  isBlank,
  readSegmentHeader,
  segmentName,
  segmentNumber,
} from './segment.js'
import type { LogMeta, SegmentHeader } from './segment.js'

export interface ScanOptions {
  readonly disk: Disk
  readonly failStop: FailStop
  readonly notify: Notify
  readonly now: () => number
  readonly random32: () => number
  /** Size of the segments of a new log. */
  readonly segmentBytes: number
}

/** Files of the newest segment in use and of all later segments, by number. The caller closes them. */
export type OpenFiles = Map<number, DiskFile>

export interface NewestSegment {
  readonly meta: LogMeta
  /** Oldest segment. */
  readonly first: number
  /** Newest segment in use, or the first segment if none is in use. */
  readonly number: number
  /** Undefined when no segment is in use. */
  readonly header: SegmentHeader | undefined
}

interface UsedSegment {
  readonly number: number
  readonly header: SegmentHeader
}

interface UnusedSegment {
  readonly number: number
  /** A recycled file keeps the header of its earlier number until it is used again. */
  readonly header: SegmentHeader | undefined
}

interface Contents {
  readonly metaState: DirectoryFacts['meta']
  readonly meta: LogMeta | undefined
  readonly first: number
  readonly count: number
  /** Lowest segment number that is missing between two others. If a number is missing, no segment is opened. */
  readonly missing: number | undefined
  readonly newest: UsedSegment | undefined
  /** Segments after the newest segment in use. */
  readonly unused: readonly UnusedSegment[]
}

/** An example of each kind of unacceptable segment. */
interface Misfits {
  readonly wrongSize:
    | { readonly number: number; readonly bytes: number; readonly expected: number }
    | undefined
  readonly foreign: UnusedSegment | undefined
  readonly displaced: UsedSegment | undefined
}

type RefusedRow = Exclude<DirectoryRow, 'create' | 'create-again' | 'rebuild-meta' | 'ordinary'>

const REFUSALS: Readonly<Record<RefusedRow, (contents: Contents, misfits: Misfits) => SluiceError>> = {
  gap: ({ missing }) =>
    corrupt(segmentName(missing!), 0, 'the segment is missing, but earlier and later ones exist'),
  'wrong-size': (_, { wrongSize }) => {
    const { number, bytes, expected } = wrongSize!
    return corrupt(segmentName(number), bytes, `the file has ${bytes} bytes, not ${expected}`)
  },
  foreign: (_, { foreign }) => corrupt(segmentName(foreign!.number), 0, 'the segment belongs to another log'),
  displaced: (_, { displaced }) =>
    corrupt(
      segmentName(displaced!.number),
      0,
      `the header of the file is that of segment ${displaced!.header.number}`,
    ),
  'segments-lost': () => corrupt(META_NAME, 0, 'the log has no segments'),
  'salt-lost': () => corrupt(META_NAME, 0, 'neither this file nor a segment header identifies the log'),
  'head-lost': ({ first }) => corrupt(segmentName(first), 0, 'the headers of all segments are damaged'),
}

/**
 * Fills `files`, and sets `rows.directory` before acting on the row. @throws SluiceError LOG_CORRUPT, LOG_FAILED,
 * NOT_SUPPORTED
 */
export async function scanDirectory(
  options: ScanOptions,
  files: OpenFiles,
  rows: ScanRows,
): Promise<NewestSegment> {
  const contents = await readContents(options.disk, files)
  const misfits = findMisfits(contents, files)
  const row = decidingRow(DIRECTORY_ROWS, await factsOf(contents, misfits, files))
  rows.directory = row
  switch (row) {
    case 'create':
      return create(options, files)
    case 'create-again':
      for (const [number, file] of files) {
        await file.close()
        files.delete(number)
        await options.disk.remove(segmentName(number))
      }
      return create(options, files)
    case 'rebuild-meta':
      return rebuildMeta(options, contents)
    case 'ordinary': {
      const { meta, first, newest } = contents
      return { meta: meta!, first, number: newest?.number ?? first, header: newest?.header }
    }
    default:
      throw REFUSALS[row](contents, misfits)
  }
}

// ------------------------------------------------------------------------------------------------------- reading

async function readContents(disk: Disk, files: OpenFiles): Promise<Contents> {
  const names = await disk.list()
  for (const draft of [META_DRAFT_NAME, SEGMENT_DRAFT_NAME]) {
    if (names.includes(draft)) await disk.remove(draft)
  }
  const numbers = names
    .map((name) => segmentNumber(name))
    .filter((number) => number !== undefined)
    .sort((a, b) => a - b)
  const first = numbers[0] ?? 1
  const gap = numbers.findIndex((number, index) => number !== first + index)

  const meta = names.includes(META_NAME) ? await readMeta(disk) : undefined
  return {
    metaState: meta !== undefined ? 'valid' : names.includes(META_NAME) ? 'damaged' : 'missing',
    meta,
    first,
    count: numbers.length,
    missing: gap < 0 ? undefined : first + gap,
    ...(await readHeaders(disk, gap < 0 ? numbers.toReversed() : [], files)),
  }
}

async function readMeta(disk: Disk): Promise<LogMeta | undefined> {
  const file = await disk.open(META_NAME, {})
  try {
    return decodeLogMeta(await file.read(0, file.bytes))
  } finally {
    await file.close()
  }
}

/**
 * Reads headers from the newest file back to the newest segment in use. Older segments are assumed to be in use and are
 * read later.
 */
async function readHeaders(
  disk: Disk,
  newestFirst: readonly number[],
  files: OpenFiles,
): Promise<Pick<Contents, 'newest' | 'unused'>> {
  const unused: UnusedSegment[] = []
  for (const number of newestFirst) {
    const file = await disk.open(segmentName(number), { durable: true })
    files.set(number, file)
    const header = readSegmentHeader(await file.read(0, Math.min(file.bytes, SEGMENT_HEADER_BYTES)))
    if (header?.number === number) return { newest: { number, header }, unused }
    unused.push({ number, header })
  }
  return { newest: undefined, unused }
}

// ------------------------------------------------------------------------------------------------------- judging

function findMisfits({ meta, first, newest, unused }: Contents, files: OpenFiles): Misfits {
  const known = meta ?? newest?.header
  const displaced = ({ number, header }: UnusedSegment): UsedSegment[] =>
    // A lower number is that of a freed segment: the header is from before the file was recycled.
    header !== undefined && header.number >= first ? [{ number, header }] : []
  if (known === undefined) {
    return { wrongSize: undefined, foreign: undefined, displaced: unused.flatMap(displaced)[0] }
  }
  const { salt, segmentBytes } = known
  const wrongSize = [...files].find(([, { bytes }]) => bytes !== segmentBytes)
  return {
    wrongSize: wrongSize && { number: wrongSize[0], bytes: wrongSize[1].bytes, expected: segmentBytes },
    foreign: [...unused, ...(newest === undefined ? [] : [newest])].find(
      ({ header }) => header !== undefined && (header.salt !== salt || header.segmentBytes !== segmentBytes),
    ),
    displaced: unused.flatMap(displaced)[0],
  }
}

async function factsOf(contents: Contents, misfits: Misfits, files: OpenFiles): Promise<DirectoryFacts> {
  const { wrongSize, foreign, displaced } = misfits
  return {
    meta: contents.metaState,
    files: await filesFact(contents, files),
    numbers: contents.missing === undefined ? 'consecutive' : 'gap',
    sizes: wrongSize === undefined ? 'right' : 'wrong',
    headers: foreign !== undefined ? 'foreign' : displaced !== undefined ? 'displaced' : 'agree',
  }
}

async function filesFact(
  { count, newest, first, meta }: Contents,
  files: OpenFiles,
): Promise<DirectoryFacts['files']> {
  if (count === 0) return 'none'
  if (newest !== undefined) return 'used'
  if (first !== 1) return 'headless'
  if (meta !== undefined) return 'unstarted'
  for (const file of files.values()) if (!(await isBlank(file))) return 'unstarted'
  return 'blank'
}

// -------------------------------------------------------------------------------------------------------- acting

/** Creates the segment before `log.meta`, so that a `log.meta` without a segment always means damage. */
async function create(options: ScanOptions, files: OpenFiles): Promise<NewestSegment> {
  const { disk, failStop, random32, now, segmentBytes } = options
  const meta = { salt: random32() >>> 0, segmentBytes, createdMs: now() }
  await failStop.durably('The first segment', async () => {
    const draft = await disk.open(SEGMENT_DRAFT_NAME, { create: true })
    try {
      await fillWithZeros(draft, segmentBytes, () => false)
    } finally {
      await draft.close()
    }
    await disk.rename(SEGMENT_DRAFT_NAME, segmentName(1))
    await disk.syncDirectory()
    files.set(1, await disk.open(segmentName(1), { durable: true }))
  })
  await writeMeta(options, meta)
  return { meta, first: 1, number: 1, header: undefined }
}

async function rebuildMeta(
  options: ScanOptions,
  { newest, first, metaState }: Contents,
): Promise<NewestSegment> {
  const { salt, segmentBytes, createdMs } = newest!.header
  const meta = { salt, segmentBytes, createdMs }
  await writeMeta(options, meta)
  options.notify('meta-rebuilt', `${META_NAME} was ${metaState} and was rebuilt from a segment header.`)
  return { meta, first, ...newest! }
}

async function writeMeta({ disk, failStop }: ScanOptions, meta: LogMeta): Promise<void> {
  await failStop.durably(META_NAME, async () => {
    const file = await disk.open(META_DRAFT_NAME, { create: true })
    try {
      await file.write(0, encodeLogMeta(meta))
      await file.sync()
    } finally {
      await file.close()
    }
    await disk.rename(META_DRAFT_NAME, META_NAME)
    await disk.syncDirectory()
  })
}
