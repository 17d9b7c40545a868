/**
 * The log on files: segments of one size, prepared before use, one write in flight, each durable before the next.
 *
 * Invariant: what `open` finds is the entries whose append resolved, in order, and at most one more whose append was
 * under way. Anything else that the files can hold is refused with file and position, never repaired by guessing. The
 * first write or sync that fails ends the log: no other is issued after it. docs/STORAGE.md has the decision tables.
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
  /** Bytes of a segment, for a new log; an old one keeps its own. Default 64 MiB. */
  readonly segmentBytes?: number
  /** Room that `reserve` leaves for settles, state pages and relocation. Default: see `defaultReserveBytes`. */
  readonly reserveBytes?: number
  /** Free bytes of the file system below which `reserve` refuses. Default: see `defaultLowFreeBytes`. */
  readonly lowFreeBytes?: number
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** A random u32: the salt of a new log. */
  readonly random32: () => number
  /** Waits before another segment is tried. Default: a timer. */
  readonly sleep?: (ms: number) => Promise<void>
  readonly onNotice?: (notice: LogNotice) => void
}

export class FileLog implements Log {
  /** Which rows of the decision tables `open` met; for tests and for a line in the operator's log. */
  readonly recovery: ScanRows = {}

  readonly #options: FileLogOptions
  readonly #notify: Notify
  readonly #failStop: FailStop
  readonly #readers: Readers
  #segmentBytes: number
  #salt = 0
  #opened = false
  /** There from when the log was found until the end. */
  #pool: SegmentPool | undefined

  /** The segment that is written. */
  #active: OpenSegment | undefined
  /** False until the active segment's header is on disk, which goes there with its first entry. */
  #begun = false

  /** Where the next entry goes: ahead of what is durable while an append is under way. */
  #writtenBytes = 0
  #headSegment = 1
  #headAt = SEGMENT_HEADER_BYTES
  /** Behind the last durable entry. */
  #durableSegment = 1
  #durableAt = SEGMENT_HEADER_BYTES
  #nextLsn = 1
  #lastCrc = 0
  #checkpoint: number | undefined
  #appending: Promise<void> | undefined

  constructor(options: FileLogOptions) {
    this.#options = options
    this.#notify = (kind, text) => options.onNotice?.({ kind, text })
    // Who waits for a segment is told that there will be none.
    this.#failStop = new FailStop(this.#notify, () => this.#pool?.wake())
    this.#readers = new Readers({
      disk: options.disk,
      notify: this.#notify,
      sleep: options.sleep ?? sleepFor,
    })
    this.#segmentBytes = options.segmentBytes ?? SEGMENT_BYTES_DEFAULT
    if (!segmentBytesFit(this.#segmentBytes)) {
      throw new RangeError(`a segment cannot have ${this.#segmentBytes} bytes`)
    }
  }

  get segmentBytes(): number {
    return this.#segmentBytes
  }

  async open(): Promise<LogBounds> {
    if (this.#opened) throw new Error('the log was opened before')
    this.#opened = true
    const { disk, now, random32, sleep, reserveBytes, lowFreeBytes } = this.#options
    const shared = { disk, now, failStop: this.#failStop, notify: this.#notify }
    try {
      const end = await scanLog({ ...shared, random32, segmentBytes: this.#segmentBytes }, this.recovery)
      const { segmentBytes, salt, first, active, at, nextLsn, lastCrc, checkpoint, cutBytes } = end
      this.#segmentBytes = segmentBytes
      this.#salt = salt
      this.#active = active
      this.#begun = end.begun
      this.#headSegment = active.number
      this.#headAt = at
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
    this.#headSegment = Math.floor(position / this.#segmentBytes)
    this.#headAt = (position % this.#segmentBytes) + entry.length
    const appending = this.#write(position % this.#segmentBytes, entry).finally(() => {
      this.#appending = undefined
    })
    this.#appending = appending
    return appending
  }

  #checkAppend(position: number, lsn: number, entry: Uint8Array): void {
    this.#mustBeOpen()
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
    const { number, file } =
      this.#active?.number === this.#headSegment ? this.#active : await this.#activateNext()
    let from = at
    let bytes = entry
    if (!this.#begun) {
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
    await this.#failStop.durably(`Segment ${segmentName(number)}`, () => file.write(from, bytes))
    this.#writtenBytes += bytes.length
    this.#begun = true
    this.#durableSegment = this.#headSegment
    this.#durableAt = this.#headAt
    this.#nextLsn++
    this.#lastCrc = entryCrcOf(entry, 0)
  }

  async #activateNext(): Promise<OpenSegment> {
    const full = this.#active
    const next = await this.#mustBeOpen().take()
    this.#active = next
    this.#begun = false
    // Every write to it was durable: there is nothing that closing it could lose.
    await full?.file.close().catch(() => undefined)
    return next
  }

  // ------------------------------------------------------------------------------------------------------- space

  reserve(bytes: number, nowMs: number): boolean {
    return this.#pool?.reserve(bytes, this.#headSegment, this.#headAt, nowMs) ?? false
  }

  room(): number {
    return this.#pool?.room(this.#headSegment, this.#headAt) ?? 0
  }

  stuck(): Promise<void> {
    return this.#mustBeOpen().stuck()
  }

  markCheckpoint(position: number): void {
    this.#checkpoint = position
  }

  async truncateBefore(position: number): Promise<void> {
    if (this.#failStop.failure !== undefined) throw this.#failStop.failure
    await this.#mustBeOpen().giveBackWhile(
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
            `the segment begins with entry ${header.firstLsn} and does not continue the one before it, which ends before entry ${lsn}`,
          )
        }
        if (at === SEGMENT_HEADER_BYTES) {
          lsn = header.firstLsn
          previousCrc = header.previousCrc
        }
        const from = { at, segmentStart: number * this.#segmentBytes, salt: this.#salt, lsn, previousCrc }
        let walker = new EntryWalker(reader, from)
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

  /** A walker that came to `at` from the start of the segment and so knows what must stand there. */
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
    if (walker.at > at) throw new RangeError(`no entry begins at byte ${at} of ${segmentName(number)}`)
    return walker
  }

  /** Whether the segment after `number` says that its first entry is the one that would be next here. */
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
      throw new RangeError(`${length} bytes at position ${position} are not in a durable part of the log`)
    }
    const reader = this.#acquire(number)
    try {
      return await reader.read(at, length, into)
    } finally {
      this.#readers.release(reader)
    }
  }

  #acquire(number: number): Reader {
    if (number < this.#mustBeOpen().first) throw new RangeError(`segment ${number} was given back`)
    return this.#readers.acquire(number, this.#segmentBytes)
  }

  // ----------------------------------------------------------------------------------------------------- closing

  async close(): Promise<void> {
    this.#failStop.close()
    // The entry under way is still written; only one that waits for a segment is not.
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
    if (this.#pool === undefined || this.#failStop.closed) throw new Error('the log is not open')
    return this.#pool
  }
}

// It keeps the process alive: while an entry waits for a segment, or a start for a read, nothing else may.
function sleepFor(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
