/**
 * A log in memory, for tests of the broker. Its positions, order and refusals are those of the log on files.
 * `beforeAppend` delays or fails an append, and `reopened` returns the log as the next process finds it.
 */
import { SluiceError } from '@sluice/protocol'
import {
  ENTRY_ALIGN_BYTES,
  checkEntry,
  entryCrcOf,
  entryLength,
  entryLsn,
  entryPaddedBytes,
} from './entry.js'
import type { Log, LogBounds, LogEntry, LogUsage } from './log.js'
import { SEGMENT_HEADER_BYTES } from './segment.js'

export interface MemoryLogOptions {
  /** Default 1 MiB. */
  readonly segmentBytes?: number
  /** A multiple of 512. Default: what fits in a segment. */
  readonly entryBytesMax?: number
  readonly salt?: number
  /** Maximum number of segments; default: unlimited. An entry that needs another segment waits until one is freed. */
  readonly segmentsMax?: number
  /** Bytes that `hasRoomFor` reserves for entries that must not be refused; default 0. */
  readonly reserveBytes?: number
  /** Runs before each entry becomes durable. If it rejects, the write failed, which ends the log. */
  readonly beforeAppend?: (entry: LogEntry) => Promise<void> | void
}

interface Stored {
  entries: LogEntry[]
  firstSegment: number
  /** The active segment, which is never truncated. */
  lastSegment: number
  nextPosition: number
  nextLsn: number
  lastCrc: number
  checkpoint: number | undefined
}

export class MemoryLog implements Log {
  readonly segmentBytes: number
  readonly entryBytesMax: number
  /** Number of further calls of `hasRoomFor` that may succeed; later calls are refused. */
  refusedFrom = Infinity
  readonly #options: MemoryLogOptions
  readonly #salt: number
  readonly #stored: Stored
  #checkpoint: number | undefined
  /** Position of the next entry. While an entry is being appended, this is the end of that entry. */
  #writePosition: number
  #writtenBytes = 0
  #appending = false
  #failure: SluiceError | undefined
  #closed = false
  /** Resolve functions of the promises that `stuck` has returned. */
  readonly #onStuck: (() => void)[] = []
  /** Resumes the append that waits for a segment. */
  #resume: (() => void) | undefined

  constructor(options: MemoryLogOptions = {}, stored?: Stored) {
    this.segmentBytes = options.segmentBytes ?? 1024 * 1024
    const most = this.segmentBytes - SEGMENT_HEADER_BYTES
    this.entryBytesMax = options.entryBytesMax ?? most
    if (this.entryBytesMax > most || this.entryBytesMax % ENTRY_ALIGN_BYTES !== 0) {
      throw new RangeError(
        `entryBytesMax is ${this.entryBytesMax}; it must be a multiple of ${ENTRY_ALIGN_BYTES} and at most ${most}.`,
      )
    }
    this.#options = options
    this.#salt = options.salt ?? 0x5a17
    const first = this.segmentBytes + SEGMENT_HEADER_BYTES
    this.#stored = stored ?? {
      entries: [],
      firstSegment: 1,
      lastSegment: 1,
      nextPosition: first,
      nextLsn: 1,
      lastCrc: 0,
      checkpoint: undefined,
    }
    this.#checkpoint = this.#stored.checkpoint
    this.#writePosition = this.#stored.nextPosition
  }

  /** The log as the next process finds it: it has every entry whose append resolved, and no other entry. */
  reopened(options: MemoryLogOptions = this.#options): MemoryLog {
    return new MemoryLog(
      { ...options, segmentBytes: this.segmentBytes, entryBytesMax: this.entryBytesMax, salt: this.#salt },
      { ...this.#stored, entries: [...this.#stored.entries] },
    )
  }

  /** Durable entries, without truncated ones. */
  get entries(): readonly LogEntry[] {
    return this.#stored.entries
  }

  open(): Promise<LogBounds> {
    return Promise.resolve({
      firstPosition: this.#firstPosition(),
      nextPosition: this.#stored.nextPosition,
      nextLsn: this.#stored.nextLsn,
      lastCrc: this.#stored.lastCrc,
      salt: this.#salt,
      checkpoint: this.#stored.checkpoint,
      cutBytes: 0,
    })
  }

  async *read(position: number): AsyncGenerator<LogEntry> {
    // Continues by position, because a truncation between two reads changes the indexes.
    for (let from = position; ;) {
      const entry = this.#stored.entries[this.#indexFrom(from)]
      if (entry === undefined) return
      yield entry
      from = entry.position + entry.bytes.length
    }
  }

  hasRoomFor(bytes: number): boolean {
    if (this.#failure !== undefined || this.refusedFrom-- <= 0) return false
    const { segmentsMax, reserveBytes } = this.#options
    if (segmentsMax === undefined) return true
    const segments = segmentsMax - (this.#stored.lastSegment - this.#stored.firstSegment + 1)
    const left = this.#left()
    const room =
      (bytes <= left ? left : 0) + Math.max(0, segments) * (this.segmentBytes - SEGMENT_HEADER_BYTES)
    return bytes + (reserveBytes ?? 0) <= room
  }

  room(): number {
    const { segmentsMax = Infinity } = this.#options
    const segments = segmentsMax - (this.#stored.lastSegment - this.#stored.firstSegment + 1)
    return this.#left() + Math.max(0, segments) * (this.segmentBytes - SEGMENT_HEADER_BYTES)
  }

  stuck(): Promise<void> {
    if (this.#resume !== undefined) return Promise.resolve()
    return new Promise((resolve) => this.#onStuck.push(resolve))
  }

  async append(position: number, lsn: number, entry: Uint8Array): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    if (this.#closed) throw new Error('The log is closed.')
    if (this.#appending) throw new Error('Another entry is being appended.')
    if (entry.length % ENTRY_ALIGN_BYTES !== 0) throw new RangeError('An entry must be padded to 512 bytes.')
    if (entry.length > this.entryBytesMax) {
      throw new RangeError(`An entry has ${entry.length} bytes; entryBytesMax is ${this.entryBytesMax}.`)
    }
    if (position !== this.#writePosition && position !== this.#nextSegmentStart()) {
      throw new RangeError(`Position ${position} is not the place of the next entry.`)
    }
    if (position === this.#writePosition && entry.length > this.#left()) {
      throw new RangeError(`An entry of ${entry.length} bytes does not fit in the rest of its segment.`)
    }
    const verdict = checkEntry(entry, 0, entry.length, {
      lsn: this.#stored.nextLsn,
      previousCrc: this.#stored.lastCrc,
      position,
      salt: this.#salt,
    })
    if (verdict !== 'valid' || lsn !== this.#stored.nextLsn) {
      throw new Error(`Entry ${lsn} does not continue the log (${verdict}).`)
    }
    if (entryPaddedBytes(entryLength(entry, 0)) !== entry.length) {
      throw new RangeError(
        `Entry ${lsn} has ${entry.length} bytes; its header gives ${entryLength(entry, 0)}.`,
      )
    }
    this.#appending = true
    this.#writePosition = position + entry.length
    const stored: LogEntry = { position, lsn: entryLsn(entry, 0), bytes: entry.slice() }
    try {
      if (position % this.segmentBytes === SEGMENT_HEADER_BYTES) await this.#segmentFor(position)
      await this.#options.beforeAppend?.(stored)
    } catch (cause) {
      this.#failure = new SluiceError('LOG_FAILED', `Writing entry ${lsn} failed.`, { cause })
      throw this.#failure
    } finally {
      this.#appending = false
    }
    if (position % this.segmentBytes === SEGMENT_HEADER_BYTES) {
      this.#stored.lastSegment = Math.floor(position / this.segmentBytes)
      this.#stored.checkpoint = this.#checkpoint
    }
    this.#stored.entries.push(stored)
    this.#writtenBytes += entry.length
    this.#stored.nextPosition = this.#writePosition
    this.#stored.nextLsn = lsn + 1
    this.#stored.lastCrc = entryCrcOf(entry, 0)
  }

  async #segmentFor(position: number): Promise<void> {
    const { segmentsMax = Infinity } = this.#options
    const number = Math.floor(position / this.segmentBytes)
    while (number - this.#stored.firstSegment >= segmentsMax) {
      for (const notifyStuck of this.#onStuck.splice(0)) notifyStuck()
      await new Promise<void>((resolve) => (this.#resume = resolve))
      this.#resume = undefined
      if (this.#closed) throw new Error('The log was closed while an entry waited for a segment.')
    }
  }

  readRange(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    const entries = this.#stored.entries
    const out = into?.fill(0) ?? new Uint8Array(length)
    const end = position + length
    const segment = Math.floor(position / this.segmentBytes)
    let filled = position
    for (let index = Math.max(0, this.#indexFrom(position + 1) - 1); filled < end; index++) {
      const entry = entries[index]
      if (entry === undefined || entry.position >= end) break
      const from = Math.max(filled, entry.position)
      const to = Math.min(end, entry.position + entry.bytes.length)
      if (to <= from) continue
      out.set(entry.bytes.subarray(from - entry.position, to - entry.position), from - position)
      filled = to
    }
    // A full segment has zeros after its last entry, as a file does.
    const isFull = segment >= this.#stored.firstSegment && segment < this.#stored.lastSegment
    if (filled < end && !isFull) {
      return Promise.reject(new RangeError(`There are no durable bytes at position ${filled}.`))
    }
    return Promise.resolve(out)
  }

  markCheckpoint(position: number): void {
    this.#checkpoint = position
  }

  truncateBefore(position: number): Promise<void> {
    const stored = this.#stored
    const segment = Math.min(Math.floor(position / this.segmentBytes), stored.lastSegment)
    if (segment > stored.firstSegment) {
      stored.firstSegment = segment
      stored.entries = stored.entries.filter((entry) => entry.position >= segment * this.segmentBytes)
      this.#resume?.()
    }
    return Promise.resolve()
  }

  usage(): LogUsage {
    const segments = this.#stored.lastSegment - this.#stored.firstSegment + 1
    return {
      segments,
      bytes: segments * this.segmentBytes,
      firstPosition: this.#firstPosition(),
      writtenBytes: this.#writtenBytes,
    }
  }

  close(): Promise<void> {
    this.#closed = true
    this.#resume?.()
    return Promise.resolve()
  }

  /** Index of the first entry at or after `position`. */
  #indexFrom(position: number): number {
    const { entries } = this.#stored
    let low = 0
    let high = entries.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (entries[middle]!.position < position) low = middle + 1
      else high = middle
    }
    return low
  }

  #firstPosition(): number {
    return this.#stored.firstSegment * this.segmentBytes + SEGMENT_HEADER_BYTES
  }

  /** Bytes from the write position to the end of its segment. */
  #left(): number {
    const into = this.#writePosition % this.segmentBytes
    return into === 0 ? 0 : this.segmentBytes - into
  }

  #nextSegmentStart(): number {
    const segment = Math.ceil(this.#writePosition / this.segmentBytes)
    return segment * this.segmentBytes + SEGMENT_HEADER_BYTES
  }
}
