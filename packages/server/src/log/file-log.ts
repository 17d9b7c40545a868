/**
 * The log on files: segments of one size that are prepared before use. One write is in flight at a time, and is durable
 * before the next one starts.
 *
 * Invariant: `open` finds the entries whose append resolved, in order, and at most one more entry, whose append was in
 * progress. Any other content is refused with an error that names file and position, and never repaired by guessing.
 * The first failed write or sync ends the log, and no other write follows it. docs/STORAGE.md has the decision tables.
 */
import {
  ENTRY_HEADER_BYTES,
  entryCrcOf,
  entryLength,
  entryPaddedBytes,
  readEntryHeader,
  recordsAreIntact,
} from './entry.js'
import type { ScanRows } from './decisions.js'
import { FailStop } from './fail-stop.js'
import type { Disk, Log, LogBounds, LogEntry, LogUsage } from './log.js'
import type { LogNotice, Notify } from './notices.js'
import { Readers } from './readers.js'
import type { Reader } from './readers.js'
import { scanLog } from './scan.js'
import {
  EntryWalker,
  SEGMENT_BYTES_DEFAULT,
  SEGMENT_HEADER_BYTES,
  corrupt,
  readSegmentHeader,
  segmentBytesFit,
  segmentName,
  writeSegmentHeader,
} from './segment.js'
import type { OpenSegment, SegmentHeader } from './segment.js'
import { SegmentPool } from './segment-pool.js'

export interface FileLogOptions {
  readonly disk: Disk
  /** Size of the segments of a new log, in bytes; an existing log keeps its segment size. Default: 64 MiB. */
  readonly segmentBytes?: number
  /** Bytes that `hasRoomFor` reserves for settles, state pages and relocation. Default: see `defaultReserveBytes`. */
  readonly reserveBytes?: number
  /** Free bytes of the file system below which `hasRoomFor` returns false. Default: see `defaultLowFreeBytes`. */
  readonly lowFreeBytes?: number
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** A random u32: the salt of a new log. */
  readonly random32: () => number
  /** Waits between tries. Default: a timer. */
  readonly sleep?: (ms: number) => Promise<void>
  readonly onNotice?: (notice: LogNotice) => void
}

export class FileLog implements Log {
  /** Rows of the decision tables that `open` matched, for tests. */
  readonly recovery: ScanRows = {}

  readonly #options: FileLogOptions
  readonly #notify: Notify
  readonly #failStop: FailStop
  readonly #readers: Readers
  #segmentBytes: number
  #salt = 0
  #opened = false
  /** Undefined until `open` has found the end of the log. */
  #pool: SegmentPool | undefined

  /** The segment that entries are written to. */
  #active: OpenSegment | undefined
  /** Whether the active segment's header is on disk. It is written with the first entry. */
  #headerWritten = false

  #writtenBytes = 0
  /** Place of the next entry: segment and byte. During an append it is after the durable end. */
  #nextSegment = 1
  #nextAt = SEGMENT_HEADER_BYTES
  /** End of the last durable entry. */
  #durableSegment = 1
  #durableAt = SEGMENT_HEADER_BYTES
  #nextLsn = 1
  #lastCrc = 0
  #checkpoint: number | undefined
  #appending: Promise<void> | undefined

  constructor(options: FileLogOptions) {
    this.#options = options
    this.#notify = (kind, text) => options.onNotice?.({ kind, text })
    // An append that waits for a segment must fail when the log stops.
    this.#failStop = new FailStop(this.#notify, () => this.#pool?.wake())
    this.#readers = new Readers({
      disk: options.disk,
      notify: this.#notify,
      sleep: options.sleep ?? sleepFor,
    })
    this.#segmentBytes = options.segmentBytes ?? SEGMENT_BYTES_DEFAULT
    if (!segmentBytesFit(this.#segmentBytes)) {
      throw new RangeError(`A segment cannot have ${this.#segmentBytes} bytes.`)
    }
  }

  get segmentBytes(): number {
    return this.#segmentBytes
  }

  /** Only the size of a segment limits the size of an entry. */
  get entryBytesMax(): number {
    return this.#segmentBytes - SEGMENT_HEADER_BYTES
  }

  async open(): Promise<LogBounds> {
    if (this.#opened) throw new Error('The log is already open.')
    this.#opened = true
    const { disk, now, random32, sleep, reserveBytes, lowFreeBytes } = this.#options
    const shared = { disk, now, failStop: this.#failStop, notify: this.#notify }
    try {
      const end = await scanLog({ ...shared, random32, segmentBytes: this.#segmentBytes }, this.recovery)
      const { segmentBytes, salt, first, active, at, nextLsn, lastCrc, checkpoint, cutBytes } = end
      this.#segmentBytes = segmentBytes
      this.#salt = salt
      this.#active = active
      this.#headerWritten = end.headerWritten
      this.#nextSegment = active.number
      this.#nextAt = at
      this.#durableSegment = active.number
      this.#durableAt = at
      this.#nextLsn = nextLsn
      this.#lastCrc = lastCrc
      this.#checkpoint = checkpoint
      this.#pool = new SegmentPool(
        {
          ...shared,
          readers: this.#readers,
          sleep: sleep ?? sleepFor,
          segmentBytes,
          reserveBytes,
          lowFreeBytes,
        },
        first,
        active.number,
        end.spares,
      )
      await this.#pool.start()
      return {
        firstPosition: first * segmentBytes + SEGMENT_HEADER_BYTES,
        nextPosition: active.number * segmentBytes + at,
        nextLsn,
        lastCrc,
        salt,
        checkpoint,
        cutBytes,
      }
    } catch (error) {
      await this.close()
      throw error
    }
  }

  // --------------------------------------------------------------------------------------------------- appending

  append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    if (this.#failStop.failure !== undefined) return Promise.reject(this.#failStop.failure)
    try {
      this.#checkAppend(position, lsn, entry)
    } catch (error) {
      return Promise.reject(error)
    }
    this.#nextSegment = Math.floor(position / this.#segmentBytes)
    this.#nextAt = (position % this.#segmentBytes) + entry.length
    const appending = this.#write(position % this.#segmentBytes, entry).finally(() => {
      this.#appending = undefined
    })
    this.#appending = appending
    return appending
  }

  #checkAppend(position: number, lsn: number, entry: Uint8Array): void {
    this.#mustBeOpen()
    if (this.#appending !== undefined) throw new Error('Another entry is being appended.')
    const header = readEntryHeader(entry, 0)
    const segment = Math.floor(position / this.#segmentBytes)
    const at = position % this.#segmentBytes
    const next = segment === this.#nextSegment + 1 && at === SEGMENT_HEADER_BYTES
    if (!next && (segment !== this.#nextSegment || at !== this.#nextAt)) {
      throw new RangeError(`Position ${position} is not the place of the next entry.`)
    }
    if (at + entry.length > this.#segmentBytes) {
      throw new RangeError(`An entry of ${entry.length} bytes does not fit in the rest of its segment.`)
    }
    if (
      entry.length !== entryPaddedBytes(header.length) ||
      entryLength(entry, 0) < ENTRY_HEADER_BYTES ||
      lsn !== this.#nextLsn ||
      header.lsn !== lsn ||
      header.position !== position ||
      header.previousCrc !== this.#lastCrc
    ) {
      // An entry that does not continue the chain would be durable but unreadable.
      throw new Error(`Entry ${lsn} does not continue the log after entry ${this.#nextLsn - 1}.`)
    }
  }

  async #write(at: number, entry: Uint8Array): Promise<void> {
    const { number, file } =
      this.#active?.number === this.#nextSegment ? this.#active : await this.#activateNext()
    let from = at
    let bytes = entry
    if (!this.#headerWritten) {
      from = 0
      bytes = new Uint8Array(SEGMENT_HEADER_BYTES + entry.length)
      writeSegmentHeader(bytes, {
        number,
        salt: this.#salt,
        segmentBytes: this.#segmentBytes,
        firstLsn: this.#nextLsn,
        previousCrc: this.#lastCrc,
        checkpoint: this.#checkpoint,
        createdMs: this.#options.now(),
      })
      bytes.set(entry, SEGMENT_HEADER_BYTES)
    }
    // The file is open with O_DSYNC (`durable` in directory-scan.ts and in `SegmentPool.#addSpare`). When the write
    // resolves, the bytes are on disk.
    await this.#failStop.durably(`Segment ${segmentName(number)}`, () => file.write(from, bytes))
    this.#writtenBytes += bytes.length
    this.#headerWritten = true
    this.#durableSegment = this.#nextSegment
    this.#durableAt = this.#nextAt
    this.#nextLsn++
    this.#lastCrc = entryCrcOf(entry, 0)
  }

  async #activateNext(): Promise<OpenSegment> {
    const full = this.#active
    const next = await this.#mustBeOpen().take()
    this.#active = next
    this.#headerWritten = false
    // Every write to the full segment was durable, so an error of `close` loses nothing.
    await full?.file.close().catch(() => undefined)
    return next
  }

  // ------------------------------------------------------------------------------------------------------- space

  hasRoomFor(bytes: number, nowMs: number): boolean {
    return this.#pool?.hasRoomFor(bytes, this.#nextSegment, this.#nextAt, nowMs) ?? false
  }

  room(): number {
    return this.#pool?.room(this.#nextSegment, this.#nextAt) ?? 0
  }

  stuck(): Promise<void> {
    return this.#mustBeOpen().stuck()
  }

  markCheckpoint(position: number): void {
    this.#checkpoint = position
  }

  async truncateBefore(position: number): Promise<void> {
    if (this.#failStop.failure !== undefined) throw this.#failStop.failure
    await this.#mustBeOpen().freeWhile(
      (number) => number < this.#durableSegment && (number + 1) * this.#segmentBytes <= position,
    )
  }

  usage(): LogUsage {
    const first = this.#pool?.first ?? 1
    const segments = this.#durableSegment - first + 1
    return {
      segments,
      bytes: segments * this.#segmentBytes,
      firstPosition: first * this.#segmentBytes + SEGMENT_HEADER_BYTES,
      writtenBytes: this.#writtenBytes + (this.#pool?.filledBytes ?? 0),
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
        const header = readSegmentHeader(await reader.read(0, SEGMENT_HEADER_BYTES))
        if (header?.number !== number || header.salt !== this.#salt) {
          throw corrupt(segmentName(number), 0, 'the header of the segment is damaged')
        }
        if (lsn !== undefined && (header.firstLsn !== lsn || header.previousCrc !== previousCrc)) {
          throw corrupt(
            segmentName(number),
            0,
            `the segment begins with entry ${header.firstLsn} and does not continue the previous segment, which ends before entry ${lsn}`,
          )
        }
        if (at === SEGMENT_HEADER_BYTES) {
          lsn = header.firstLsn
          previousCrc = header.previousCrc
        }
        const from = { at, segmentStart: number * this.#segmentBytes, salt: this.#salt, lsn, previousCrc }
        let walker = new EntryWalker(reader, from)
        for (;;) {
          // The end is computed for each entry, because appends move the durable end while a reader is active.
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
            // The entry at the requested position cannot be read: it is damaged, the segment ends here, or no entry
            // begins here. A walk from the start of the segment shows which of these is the case.
            walker = await this.#walkTo(reader, header, number, entryAt)
            continue
          }
          if (!isLast && (await this.#endsHere(number, walker.lsn, walker.previousCrc))) break
          throw corrupt(segmentName(number), entryAt, `entry ${walker.lsn} cannot be read (${found})`)
        }
        lsn = walker.lsn
        previousCrc = walker.previousCrc
      } finally {
        this.#readers.release(reader)
      }
      number++
      at = SEGMENT_HEADER_BYTES
    }
  }

  /** Returns a walker at `at` that has walked from the first entry, and so knows which entry is next. */
  async #walkTo(reader: Reader, header: SegmentHeader, number: number, at: number): Promise<EntryWalker> {
    const walker = new EntryWalker(reader, {
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
    if (walker.at > at) throw new RangeError(`No entry begins at byte ${at} of ${segmentName(number)}.`)
    return walker
  }

  /**
   * Whether segment `number` ends before entry `lsn`. It does if the header of the next segment names this entry as its
   * first.
   */
  async #endsHere(number: number, lsn: number, previousCrc: number | undefined): Promise<boolean> {
    const reader = this.#acquire(number + 1)
    try {
      const header = readSegmentHeader(await reader.read(0, SEGMENT_HEADER_BYTES))
      if (header?.number !== number + 1) {
        throw corrupt(segmentName(number + 1), 0, 'the header of the segment is damaged')
      }
      return header.firstLsn === lsn && header.previousCrc === previousCrc
    } finally {
      this.#readers.release(reader)
    }
  }

  async readRange(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    const number = Math.floor(position / this.#segmentBytes)
    const at = position % this.#segmentBytes
    const end = number === this.#durableSegment ? this.#durableAt : this.#segmentBytes
    const isInside = length >= 0 && at >= SEGMENT_HEADER_BYTES && at + length <= end
    if (!isInside || number > this.#durableSegment) {
      throw new RangeError(
        `The ${length} bytes at position ${position} are not in a durable part of the log.`,
      )
    }
    const reader = this.#acquire(number)
    try {
      return await reader.read(at, length, into)
    } finally {
      this.#readers.release(reader)
    }
  }

  #acquire(number: number): Reader {
    if (number < this.#mustBeOpen().first) throw new RangeError(`Segment ${number} was freed.`)
    return this.#readers.acquire(number, this.#segmentBytes)
  }

  // ----------------------------------------------------------------------------------------------------- closing

  async close(): Promise<void> {
    this.#failStop.close()
    // An append in progress completes, unless it waits for a segment.
    await this.#appending?.catch(() => undefined)
    try {
      await this.#pool?.close()
    } finally {
      this.#readers.close()
      const active = this.#active
      this.#active = undefined
      await active?.file.close()
    }
  }

  #mustBeOpen(): SegmentPool {
    if (this.#pool === undefined || this.#failStop.closed) throw new Error('The log is not open.')
    return this.#pool
  }
}

// The timer keeps the process alive. Otherwise the process could exit while an append waits for a segment or before a
// read is retried.
function sleepFor(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
