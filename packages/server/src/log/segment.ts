/**
 * The files of a log: their names, the header of a segment, `log.meta`, the zeros of an unused segment, and how entries
 * are found in a segment. A segment is in use if its header has the number that is in its file name. The log scan
 * decides what to do with each file.
 */
import {
  SluiceError,
  crc32,
  readU16,
  readU32,
  readU48,
  readU64,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from '@sluice/protocol'
import {
  ENTRY_ALIGN_BYTES,
  ENTRY_HEADER_BYTES,
  ENTRY_MAGIC,
  checkEntry,
  entryCrcOf,
  entryLength,
  entryLsn,
  entryPaddedBytes,
  readEntryHeader,
} from './entry.js'
import type { EntryFault } from './entry.js'
import type { DiskFile } from './log.js'

/** Size of a segment header, in bytes: a block of the file system, so that entries share no block with the header. */
export const SEGMENT_HEADER_BYTES = 4096
export const LOG_VERSION = 2
export const META_NAME = 'log.meta'
/** An unfinished file; the next start removes it. */
export const META_DRAFT_NAME = 'log.meta.draft'
export const SEGMENT_DRAFT_NAME = 'segment.draft'

/** Size of a segment in bytes: a multiple of `SEGMENT_HEADER_BYTES`, not necessarily a power of two. */
export const SEGMENT_BYTES_MIN = 16 * 1024
export const SEGMENT_BYTES_MAX = 1024 * 1024 * 1024
export const SEGMENT_BYTES_DEFAULT = 64 * 1024 * 1024

const SEGMENT_MAGIC = 0x47_53_4c_53
const META_MAGIC = 0x4d_4c_4c_53
const HEADER_CRC_AT = 60
const META_BYTES = 512
const FLAG_CHECKPOINT = 1

/** The header of a segment. Its fields are in the first 64 bytes; the rest is zero. */
export interface SegmentHeader {
  readonly number: number
  readonly salt: number
  readonly segmentBytes: number
  readonly firstLsn: number
  /** CRC of the last entry before this segment; 0 in the first segment of the log. */
  readonly previousCrc: number
  readonly checkpoint: number | undefined
  readonly createdMs: number
}

export interface LogMeta {
  readonly salt: number
  readonly segmentBytes: number
  readonly createdMs: number
}

/** A segment whose file is open for durable writes. */
export interface OpenSegment {
  readonly number: number
  readonly file: DiskFile
}

/** The error for a damaged file. */
export function corrupt(name: string, at: number, what: string): SluiceError {
  return new SluiceError('LOG_CORRUPT', `The log is damaged in ${name} at byte ${at}: ${what}.`)
}

export function segmentName(number: number): string {
  return `${String(number).padStart(20, '0')}.segment`
}

/** Number of the segment with this file name; undefined for other names. */
export function segmentNumber(name: string): number | undefined {
  const digits = /^(\d{20})\.segment$/.exec(name)?.[1]
  if (digits === undefined) return undefined
  const number = Number(digits)
  return Number.isSafeInteger(number) && number > 0 ? number : undefined
}

/**
 * u32 magic · u16 version · u16 0 · u64 number · u32 salt · u32 previous CRC · u64 segment bytes · u64 first lsn ·
 * u64 checkpoint · u48 created · u8 flags (1: there is a checkpoint) · u8 0 · u32 0 · u32 CRC of these 60 bytes.
 */
export function writeSegmentHeader(bytes: Uint8Array, header: SegmentHeader): void {
  bytes.fill(0, 0, SEGMENT_HEADER_BYTES)
  writeU32(bytes, 0, SEGMENT_MAGIC)
  writeU16(bytes, 4, LOG_VERSION)
  writeU64(bytes, 8, header.number)
  writeU32(bytes, 16, header.salt)
  writeU32(bytes, 20, header.previousCrc)
  writeU64(bytes, 24, header.segmentBytes)
  writeU64(bytes, 32, header.firstLsn)
  writeU64(bytes, 40, header.checkpoint ?? 0)
  writeU48(bytes, 48, header.createdMs)
  bytes[54] = header.checkpoint === undefined ? 0 : FLAG_CHECKPOINT
  writeU32(bytes, HEADER_CRC_AT, crc32(bytes, 0, HEADER_CRC_AT))
}

/**
 * The header at the start of `bytes`; undefined when it is not whole.
 * @throws SluiceError NOT_SUPPORTED when it is whole and has an unknown version
 */
export function readSegmentHeader(bytes: Uint8Array): SegmentHeader | undefined {
  if (!sealedWith(bytes, SEGMENT_MAGIC)) return undefined
  return {
    number: readU64(bytes, 8),
    salt: readU32(bytes, 16),
    previousCrc: readU32(bytes, 20),
    segmentBytes: readU64(bytes, 24),
    firstLsn: readU64(bytes, 32),
    checkpoint: bytes[54]! & FLAG_CHECKPOINT ? readU64(bytes, 40) : undefined,
    createdMs: readU48(bytes, 48),
  }
}

/** u32 magic · u16 version · u16 0 · u64 segment bytes · u32 salt · u32 0 · u48 created · zeros · u32 CRC at 60. */
export function encodeLogMeta(meta: LogMeta): Uint8Array {
  const bytes = new Uint8Array(META_BYTES)
  writeU32(bytes, 0, META_MAGIC)
  writeU16(bytes, 4, LOG_VERSION)
  writeU64(bytes, 8, meta.segmentBytes)
  writeU32(bytes, 16, meta.salt)
  writeU48(bytes, 24, meta.createdMs)
  writeU32(bytes, HEADER_CRC_AT, crc32(bytes, 0, HEADER_CRC_AT))
  return bytes
}

/** The content of `log.meta`; undefined when it is damaged. @throws SluiceError NOT_SUPPORTED */
export function decodeLogMeta(bytes: Uint8Array): LogMeta | undefined {
  if (!sealedWith(bytes, META_MAGIC)) return undefined
  const meta = { segmentBytes: readU64(bytes, 8), salt: readU32(bytes, 16), createdMs: readU48(bytes, 24) }
  return segmentBytesFit(meta.segmentBytes) ? meta : undefined
}

/**
 * Returns the position for an entry of at most `bytes` after an entry that ends at `next`: `next` if the entry fits in
 * the segment, otherwise the position of the first entry of the next segment. A shorter entry may be appended there,
 * but not a longer one.
 * @throws RangeError when no segment is large enough
 */
export function placeEntry(next: number, bytes: number, segmentBytes: number): number {
  const padded = entryPaddedBytes(bytes)
  if (padded > segmentBytes - SEGMENT_HEADER_BYTES) {
    throw new RangeError(`An entry of ${bytes} bytes does not fit in a segment of ${segmentBytes} bytes.`)
  }
  const segment = Math.floor(next / segmentBytes)
  const at = next - segment * segmentBytes
  // After an entry that ended with its segment, `next` is the first byte of the next segment.
  if (at < SEGMENT_HEADER_BYTES) return segment * segmentBytes + SEGMENT_HEADER_BYTES
  return at + padded <= segmentBytes ? next : (segment + 1) * segmentBytes + SEGMENT_HEADER_BYTES
}

export function segmentBytesFit(bytes: number): boolean {
  return bytes >= SEGMENT_BYTES_MIN && bytes <= SEGMENT_BYTES_MAX && bytes % SEGMENT_HEADER_BYTES === 0
}

function sealedWith(bytes: Uint8Array, magic: number): boolean {
  if (bytes.length < HEADER_CRC_AT + 4 || readU32(bytes, 0) !== magic) return false
  if (readU32(bytes, HEADER_CRC_AT) !== crc32(bytes, 0, HEADER_CRC_AT)) return false
  const version = readU16(bytes, 4)
  if (version !== LOG_VERSION) {
    const what = `The log has format ${version}; this broker reads format ${LOG_VERSION}.`
    const advice =
      version < LOG_VERSION
        ? 'Drain its queues with the version of Sluice that wrote it, and start this version with another data directory.'
        : 'Start a version of Sluice that reads it.'
    throw new SluiceError('NOT_SUPPORTED', `${what} ${advice}`)
  }
  return true
}

/** Size of one read, in bytes: large enough to hide the cost of a call, and cheap to discard. */
const WINDOW_BYTES = 2 * 1024 * 1024

/**
 * Walks the chain of entries in one segment. `at` and `end` are bytes in the file. `at` moves past each returned entry.
 * After a fault it stays at the bytes that are not the next entry.
 */
export class EntryWalker {
  at: number
  /** LSN and previous CRC of the next entry. Unknown at the start of a walk from the middle of a segment. */
  lsn: number | undefined
  previousCrc: number | undefined
  readonly #file: Pick<DiskFile, 'read'>
  readonly #segmentStart: number
  readonly #salt: number
  #window: Uint8Array = new Uint8Array(0)
  #windowAt = 0

  constructor(
    file: Pick<DiskFile, 'read'>,
    from: {
      readonly at: number
      /** Position of the segment's first byte. */
      readonly segmentStart: number
      readonly salt: number
      readonly lsn: number | undefined
      readonly previousCrc: number | undefined
    },
  ) {
    this.#file = file
    this.at = from.at
    this.#segmentStart = from.segmentStart
    this.#salt = from.salt
    this.lsn = from.lsn
    this.previousCrc = from.previousCrc
  }

  /**
   * Returns the next entry with its padding or, if the bytes at its place are not this entry, their fault. Returns
   * undefined if the bytes must be read first; `next` reads them.
   */
  peek(end: number): Uint8Array | EntryFault | undefined {
    if (this.at + ENTRY_ALIGN_BYTES > end) return 'length'
    const at = this.at - this.#windowAt
    const available = Math.min(this.#window.length, end - this.#windowAt) - at
    const verdict = checkEntry(this.#window, at, available, {
      lsn: this.lsn,
      previousCrc: this.previousCrc,
      position: this.#segmentStart + this.at,
      salt: this.#salt,
    })
    if (verdict === 'short') {
      const bytes = available < ENTRY_HEADER_BYTES ? 0 : entryPaddedBytes(entryLength(this.#window, at))
      return this.at + bytes > end ? 'length' : undefined
    }
    if (verdict !== 'valid') return verdict
    const padded = entryPaddedBytes(entryLength(this.#window, at))
    if (padded > available) return this.at + padded > end ? 'length' : undefined
    const entry = this.#window.subarray(at, at + padded)
    this.at += padded
    this.lsn = entryLsn(entry, 0) + 1
    this.previousCrc = entryCrcOf(entry, 0)
    return entry
  }

  async next(end: number): Promise<Uint8Array | EntryFault> {
    for (;;) {
      const found = this.peek(end)
      if (found !== undefined) return found
      const at = this.at - this.#windowAt
      const known = this.#window.length - at >= ENTRY_HEADER_BYTES
      const wanted = known ? entryPaddedBytes(entryLength(this.#window, at)) : 0
      this.#window = await this.#file.read(this.at, Math.min(end - this.at, Math.max(WINDOW_BYTES, wanted)))
      this.#windowAt = this.at
    }
  }
}

export interface LaterEntry {
  /** Byte in the file at which the entry starts. */
  readonly at: number
  readonly lsn: number
}

/**
 * Searches `[from, end)` for a whole entry with an LSN above `lsn` and the right position. Such an entry proves that
 * the bytes before it were once durable. Old entries of a recycled file have another position and are skipped.
 */
export async function findLaterEntry(
  file: DiskFile,
  from: number,
  end: number,
  segmentStart: number,
  salt: number,
  lsn: number,
): Promise<LaterEntry | undefined> {
  for (let at = from; at + ENTRY_ALIGN_BYTES <= end; at += WINDOW_BYTES) {
    const window = await file.read(at, Math.min(WINDOW_BYTES, end - at))
    for (let inner = 0; inner + ENTRY_HEADER_BYTES <= window.length; inner += ENTRY_ALIGN_BYTES) {
      if (readU32(window, inner) !== ENTRY_MAGIC) continue
      const header = readEntryHeader(window, inner)
      const position = segmentStart + at + inner
      if (header.position !== position || header.lsn <= lsn || header.length > end - at - inner) continue
      const whole =
        header.length <= window.length - inner
          ? window.subarray(inner)
          : await file.read(at + inner, header.length)
      const expected = { lsn: undefined, previousCrc: undefined, position, salt }
      if (checkEntry(whole, 0, whole.length, expected) === 'valid') {
        return { at: at + inner, lsn: header.lsn }
      }
    }
  }
  return undefined
}

/**
 * Number of bytes that are written and synced at once. An entry that is appended in the meantime waits for at most one
 * such write.
 */
export const FILL_BYTES = 1024 * 1024

/**
 * Fills a segment with durable zeros, piece by piece, so that appends can run between the pieces. Returns false when
 * stopped.
 */
export async function fillWithZeros(
  file: DiskFile,
  segmentBytes: number,
  isStopped: () => boolean,
): Promise<boolean> {
  const zeros = new Uint8Array(Math.min(FILL_BYTES, segmentBytes))
  for (let at = 0; at < segmentBytes; at += FILL_BYTES) {
    if (isStopped()) return false
    await file.write(at, zeros.subarray(0, segmentBytes - at))
    if (isStopped()) return false
    await file.sync()
  }
  return true
}

/** Whether every byte of the file is zero, as in a prepared segment that was never used. */
export async function isBlank(file: DiskFile): Promise<boolean> {
  const zeros = new Uint8Array(Math.min(WINDOW_BYTES, file.bytes))
  for (let at = 0; at < file.bytes; at += WINDOW_BYTES) {
    const window = await file.read(at, Math.min(WINDOW_BYTES, file.bytes - at))
    if (Buffer.compare(window, zeros.subarray(0, window.length)) !== 0) return false
  }
  return true
}
