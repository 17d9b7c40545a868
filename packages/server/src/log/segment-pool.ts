/**
 * The segment pool: the segments in the directory, from the oldest to the newest prepared one, and the number of
 * further segments for which the disk has room. `FileLog` owns it. After `open`, only the pool creates, renames and
 * removes files.
 *
 * Invariant: segment numbers have no gap, not even on disk after a power cut. Renames and removals run one at a time,
 * each durable before the next, and a file is written to only when its name is durable. Failing to prepare a segment
 * does not fail the log: `hasRoomFor` returns false, and an append waits in `take`.
 */
import type { FailStop } from './fail-stop.js'
import type { Disk } from './log.js'
import { NoticeLimit, repeated } from './notices.js'
import type { Notify } from './notices.js'
import type { Readers } from './readers.js'
import { SEGMENT_DRAFT_NAME, SEGMENT_HEADER_BYTES, fillWithZeros, segmentName } from './segment.js'
import type { OpenSegment } from './segment.js'

export interface SegmentPoolOptions {
  readonly disk: Disk
  readonly failStop: FailStop
  readonly notify: Notify
  /** The readers, which drop each freed segment. A file that is still being read is not recycled. */
  readonly readers: Readers
  readonly now: () => number
  readonly sleep: (ms: number) => Promise<void>
  readonly segmentBytes: number
  /** Default: see `defaultReserveBytes`. */
  readonly reserveBytes: number | undefined
  /** Default: see `defaultLowFreeBytes`. */
  readonly lowFreeBytes: number | undefined
}

/** 5 % of the file system or 1 GiB, whichever is more, but at most a tenth of the file system and at most 16 GiB. */
export function defaultLowFreeBytes(totalBytes: number): number {
  return Math.floor(Math.min(Math.max(totalBytes / 20, 2 ** 30), totalBytes / 10, 16 * 2 ** 30))
}

/**
 * Four segments, but at most a third of the file system and at least one segment. Copying a segment and freeing it
 * takes two segments, the checkpoint in between takes the third, and settles use the fourth in the meantime.
 */
export function defaultReserveBytes(segmentBytes: number, totalBytes: number): number {
  return Math.max(segmentBytes, Math.min(4 * segmentBytes, Math.floor(totalBytes / 3)))
}

/**
 * Publishes are refused below the low mark (`lowFreeBytes`) or without the whole reserve. They are accepted again above
 * this multiple of the mark and of the reserve. Without this margin, each freed segment would be filled at once, and
 * live batches would be copied again to free the next one.
 */
const LOW_CLEARS_AT = 1.2
const SPACE_INTERVAL_MS = 1_000
const PREPARE_RETRY_MS = 250
/** Number of segments that are prepared in advance. With recycled segments there can be more, up to `SPARES_MAX`. */
const SPARES_WANTED = 1
const SPARES_MAX = 2

export class SegmentPool {
  readonly #options: SegmentPoolOptions
  readonly #disk: Disk
  readonly #failStop: FailStop
  readonly #segmentBytes: number
  /** Number of zero bytes written into new segments. */
  filledBytes = 0

  #first: number
  /** Number of the newest spare, or of the active segment if there is no spare. */
  #newest: number
  /** Prepared segments, numbered up to `#newest`. */
  #spares: OpenSegment[]

  #preparing: Promise<void> | undefined
  #prepareFailed = false
  #draftExists = false
  /** The last of the queued renames and removals. Each is durable before the next starts. */
  #directory: Promise<void> = Promise.resolve()
  #waiting: (() => void)[] = []
  #isStuck = false
  #onStuck: (() => void)[] = []

  #freeBytes = 0
  #lowFreeBytes = 0
  #reserveBytes: number
  /** Whether free space is below the low mark. */
  #low = false
  /** Whether the bytes of the last call of `hasRoomFor` would have used part of the reserve. */
  #short = false
  #refuses = false
  readonly #lowNotices = new NoticeLimit()
  readonly #stuckNotices = new NoticeLimit()
  #lowWasNotified = false
  #spaceAtMs = 0
  #spaceRefresh: Promise<void> | undefined

  /** `first` is the oldest segment and `active` the one that is written to; `spares` follow `active` without a gap. */
  constructor(options: SegmentPoolOptions, first: number, active: number, spares: readonly OpenSegment[]) {
    this.#options = options
    this.#disk = options.disk
    this.#failStop = options.failStop
    this.#segmentBytes = options.segmentBytes
    this.#reserveBytes = options.reserveBytes ?? options.segmentBytes
    this.#first = first
    this.#newest = active + spares.length
    this.#spares = [...spares]
  }

  /** Number of the oldest segment. */
  get first(): number {
    return this.#first
  }

  /** Reads the free space and starts to prepare segments. */
  async start(): Promise<void> {
    await this.#refreshSpace()
    this.#prepareAhead()
  }

  // ------------------------------------------------------------------------------------------------------ spares

  /** Returns the next segment to write to; waits while the disk is full. The caller closes the file. */
  async take(): Promise<OpenSegment> {
    let spare: OpenSegment | undefined
    while ((spare = this.#spares[0]) === undefined) {
      this.#prepareAhead()
      await this.#preparing
      if (this.#failStop.failure !== undefined) throw this.#failStop.failure
      if (this.#failStop.closed) throw new Error('The log was closed while an entry waited for a segment.')
      if (this.#spares.length > 0) continue
      this.#isStuck = true
      for (const notifyStuck of this.#onStuck.splice(0)) notifyStuck()
      let wake: () => void
      const woken = new Promise<void>((resolve) => (wake = resolve))
      this.#waiting.push(wake!)
      await Promise.race([woken, this.#options.sleep(PREPARE_RETRY_MS)])
    }
    this.#isStuck = false
    if (this.#failStop.failure !== undefined) throw this.#failStop.failure
    this.#spares.shift()
    this.#prepareAhead()
    return spare
  }

  /** Resolves as soon as an append waits for a segment that could not be prepared. */
  stuck(): Promise<void> {
    if (this.#isStuck) return Promise.resolve()
    return new Promise((resolve) => this.#onStuck.push(resolve))
  }

  /** Makes an append that waits in `take` check again. */
  wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** Prepares a segment in the background if there are too few spares; one at a time. */
  #prepareAhead(): void {
    if (this.#preparing !== undefined || this.#spares.length >= SPARES_WANTED || this.#failStop.stopped)
      return
    this.#preparing = this.#prepare().finally(() => {
      this.#preparing = undefined
      // The spare may already have been taken. On a full disk, `take` and `hasRoomFor` start the next try.
      if (!this.#prepareFailed) this.#prepareAhead()
    })
  }

  /** Never rejects: `hasRoomFor` reports a full disk, and the next append reports a failed sync of the directory. */
  async #prepare(): Promise<void> {
    try {
      if (!(await this.#fillDraft())) return
      await this.#inDirectory(async () => {
        if (this.#failStop.stopped) return
        const number = this.#newest + 1
        await this.#disk.rename(SEGMENT_DRAFT_NAME, segmentName(number))
        this.#draftExists = false
        await this.#addSpare(number)
      })
    } catch (error) {
      if (this.#failStop.failure !== undefined) return
      if (!this.#prepareFailed) this.#stuckNotices.add()
      this.#prepareFailed = true
      const count = this.#stuckNotices.take(this.#options.now())
      if (count > 0) {
        const why = error instanceof Error ? error.message : String(error)
        this.#options.notify('no-segment', `No segment could be prepared: ${why}.${repeated(count)}`)
      }
      // Removes the partly filled file, because other files may need the last bytes of the disk.
      if (this.#draftExists && !this.#failStop.stopped) {
        await this.#disk.remove(SEGMENT_DRAFT_NAME).then(
          () => (this.#draftExists = false),
          () => undefined,
        )
      }
    }
    if (!this.#failStop.stopped) await this.#refreshSpace()
  }

  /** Returns false when the log was stopped. */
  async #fillDraft(): Promise<boolean> {
    if (this.#draftExists) await this.#disk.remove(SEGMENT_DRAFT_NAME)
    const file = await this.#disk.open(SEGMENT_DRAFT_NAME, { create: true })
    this.#draftExists = true
    try {
      const isFilled = await fillWithZeros(file, this.#segmentBytes, () => this.#failStop.stopped)
      if (isFilled) this.filledBytes += this.#segmentBytes
      return isFilled
    } finally {
      await file.close()
    }
  }

  /** Adds segment `number`, whose file already has its name. The name must be durable before any write to the file. */
  async #addSpare(number: number): Promise<void> {
    await this.#syncDirectory()
    const file = await this.#disk.open(segmentName(number), { durable: true })
    this.#spares.push({ number, file })
    this.#newest = number
    this.#prepareFailed = false
    this.wake()
  }

  // ----------------------------------------------------------------------------------------------------- freeing

  /** Frees segments, the oldest first, until `isFree` returns false for one. */
  freeWhile(isFree: (number: number) => boolean): Promise<void> {
    return this.#inDirectory(async () => {
      while (isFree(this.#first)) {
        if (this.#failStop.stopped) return
        await this.#free(this.#first)
      }
    })
  }

  async #free(number: number): Promise<void> {
    // New readers are refused from now on. An active reader needs the old bytes, so a file with a reader is not
    // recycled.
    this.#first = number + 1
    const isRead = this.#options.readers.drop(number)
    const target = this.#newest + 1
    let recycled = false
    try {
      if (!isRead && this.#spares.length < SPARES_MAX) {
        // On a full disk a rename can fail for lack of room in the directory; a removal cannot.
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
      await this.#syncDirectory()
      this.#prepareFailed = false
      await this.#refreshSpace()
      this.#prepareAhead()
    }
  }

  // ------------------------------------------------------------------------------------------------------- space

  /** Whether `bytes` fit after byte `at` of segment `number` and in later segments, besides the whole reserve. */
  hasRoomFor(bytes: number, number: number, at: number, nowMs: number): boolean {
    if (this.#failStop.stopped) return false
    const sinceMs = nowMs - this.#spaceAtMs
    if (this.#spaceRefresh === undefined && (sinceMs >= SPACE_INTERVAL_MS || sinceMs < 0)) {
      this.#spaceRefresh = this.#refreshSpace()
        .then(() => this.#prepareAhead())
        .finally(() => {
          this.#spaceRefresh = undefined
        })
    }
    this.#short = !this.#hasRoom(bytes, number, at)
    this.#decide(nowMs)
    return !this.#refuses
  }

  #hasRoom(bytes: number, number: number, at: number): boolean {
    const left = this.#segmentBytes - at
    const creatable = this.#prepareFailed
      ? 0
      : Math.max(0, Math.floor((this.#freeBytes - this.#lowFreeBytes) / this.#segmentBytes))
    // If segment `number` is not prepared yet and the current append waits for it, `#newest - number` is -1.
    const segments = this.#newest - number + creatable
    const room = (bytes <= left ? left : 0) + segments * (this.#segmentBytes - SEGMENT_HEADER_BYTES)
    return bytes + this.#reserveBytes * (this.#refuses ? LOW_CLEARS_AT : 1) <= room
  }

  /** Updates `#refuses`, and notifies the operator of a change. */
  #decide(nowMs: number): void {
    const refuses = this.#low || this.#short
    if (refuses && !this.#refuses) this.#lowNotices.add()
    this.#refuses = refuses
    if (!refuses) {
      if (this.#lowWasNotified)
        this.#options.notify('disk-ok', `${this.#freeBytes} bytes are free: publishes are accepted.`)
      this.#lowWasNotified = false
      return
    }
    const count = this.#lowWasNotified ? 0 : this.#lowNotices.take(nowMs)
    if (count === 0) return
    this.#lowWasNotified = true
    const why = this.#low
      ? `less than ${this.#lowFreeBytes}`
      : `and the reserve of ${this.#reserveBytes} bytes for settles and copies is incomplete`
    this.#options.notify(
      'disk-low',
      `${this.#freeBytes} bytes are free, ${why}: publishes are refused.${repeated(count)}`,
    )
  }

  /** Number of bytes that fit, starting at byte `at` of segment `number`, before the disk is full. */
  room(number: number, at: number): number {
    const creatable = this.#prepareFailed ? 0 : Math.floor(this.#freeBytes / this.#segmentBytes)
    const segments = this.#newest - number + creatable
    return this.#segmentBytes - at + segments * (this.#segmentBytes - SEGMENT_HEADER_BYTES)
  }

  async #refreshSpace(): Promise<void> {
    this.#spaceAtMs = this.#options.now()
    let space: { freeBytes: number; totalBytes: number }
    try {
      space = await this.#disk.space()
    } catch {
      // Keeps the last known numbers. If they are too high, preparing a segment fails.
      return
    }
    this.#freeBytes = space.freeBytes
    this.#lowFreeBytes = this.#options.lowFreeBytes ?? defaultLowFreeBytes(space.totalBytes)
    this.#reserveBytes =
      this.#options.reserveBytes ?? defaultReserveBytes(this.#segmentBytes, space.totalBytes)
    this.#low = this.#freeBytes < this.#lowFreeBytes * (this.#refuses ? LOW_CLEARS_AT : 1)
    this.#decide(this.#spaceAtMs)
  }

  // ----------------------------------------------------------------------------------------------------- closing

  /**
   * Waits for running work and closes the spares. `FailStop.close` must be called first, so that no new work starts.
   */
  async close(): Promise<void> {
    await this.#preparing
    await this.#spaceRefresh
    await this.#directory
    for (const { file } of this.#spares.splice(0)) await file.close()
  }

  /** Runs `work` after all earlier work on the directory. */
  #inDirectory(work: () => Promise<void>): Promise<void> {
    const done = this.#directory.then(work)
    this.#directory = done.catch(() => undefined)
    return done
  }

  #syncDirectory(): Promise<void> {
    return this.#failStop.durably('The directory of the log', () => this.#disk.syncDirectory())
  }
}
