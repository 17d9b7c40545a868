/**
 * The supply of segments: which ones the directory has, from the oldest that was not given back to the newest that is
 * prepared, and how many more the disk has room for. Once the log is open, files get and lose their names only here.
 *
 * Invariant: the numbers from `first` to the newest have no gap, on disk either, whenever the power goes: renames and
 * removals go one by one, each durable before the next, and nothing is written to a file before its name is on disk.
 * That no segment can be prepared is no failure: `reserve` tells of it, and an entry waits in `take`.
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
  /** Told of each segment that is given back; one that is still read is not used again. */
  readonly readers: Readers
  readonly now: () => number
  readonly sleep: (ms: number) => Promise<void>
  readonly segmentBytes: number
  /** Default: see `defaultReserveBytes`. */
  readonly reserveBytes: number | undefined
  /** Default: see `defaultLowFreeBytes`. */
  readonly lowFreeBytes: number | undefined
}

/** First of 5 % of the file system and 1 GiB, whichever is more; but never over a tenth of it, nor over 16 GiB. */
export function defaultLowFreeBytes(totalBytes: number): number {
  return Math.min(Math.max(totalBytes / 20, 2 ** 30), totalBytes / 10, 16 * 2 ** 30)
}

/**
 * Four segments, but no more than a third of the file system and no less than one segment. To copy a segment forward and
 * to give it back takes two, and a third so that the checkpoint counts; the fourth is for settles meanwhile.
 */
export function defaultReserveBytes(segmentBytes: number, totalBytes: number): number {
  return Math.max(segmentBytes, Math.min(4 * segmentBytes, totalBytes / 3))
}

/**
 * Publishes are refused below the low mark, or when the reserve is not whole; they are accepted again above this many times
 * both. Else each segment that comes back would be filled at once, and what is live copied again for the next.
 */
const LOW_CLEARS_AT = 1.2
const SPACE_INTERVAL_MS = 1_000
const PREPARE_RETRY_MS = 250
/** Prepared ahead; recycled segments may make it more. */
const SPARES_WANTED = 1
const SPARES_MAX = 2

export class SegmentPool {
  readonly #options: SegmentPoolOptions
  readonly #disk: Disk
  readonly #failStop: FailStop
  readonly #segmentBytes: number
  /** Zeros that were written into new segments. */
  filledBytes = 0

  #first: number
  /** Prepared last, or taken last when there are no spares. */
  #newest: number
  /** Prepared, numbered up to `#newest`. */
  #spares: OpenSegment[]

  #preparing: Promise<void> | undefined
  #prepareFailed = false
  #draftExists = false
  /** Renames and removals go one by one, each made durable before the next. */
  #directory: Promise<void> = Promise.resolve()
  #waiting: (() => void)[] = []
  #isStuck = false
  #onStuck: (() => void)[] = []

  #freeBytes = 0
  #lowFreeBytes = 0
  #reserveBytes: number
  /** Too little is free. */
  #low = false
  /** The last request found the reserve not whole. */
  #short = false
  #refuses = false
  readonly #lowNotices = new NoticeLimit()
  readonly #stuckNotices = new NoticeLimit()
  #isLowTold = false
  #spaceAtMs = 0
  #spaceRefresh: Promise<void> | undefined

  /** `first` and `active` number the oldest segment and the one that is written; the spares follow the latter. */
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

  /** Oldest segment that was not given back. */
  get first(): number {
    return this.#first
  }

  /** Looks how much is free and begins to prepare. */
  async start(): Promise<void> {
    await this.#refreshSpace()
    this.#prepareAhead()
  }

  // ------------------------------------------------------------------------------------------------------- spares

  /** The next segment to write; waits for one, for as long as the disk is full. The caller closes its file. */
  async take(): Promise<OpenSegment> {
    let spare: OpenSegment | undefined
    while ((spare = this.#spares[0]) === undefined) {
      this.#prepareAhead()
      await this.#preparing
      if (this.#failStop.failure !== undefined) throw this.#failStop.failure
      if (this.#failStop.closed) throw new Error('the log was closed while an entry waited for a segment')
      if (this.#spares.length > 0) continue
      this.#isStuck = true
      for (const tell of this.#onStuck.splice(0)) tell()
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

  /** Resolves when an entry waits for a segment that could not be prepared. */
  stuck(): Promise<void> {
    if (this.#isStuck) return Promise.resolve()
    return new Promise((resolve) => this.#onStuck.push(resolve))
  }

  /** Lets whoever waits for a segment look again. */
  wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** Starts to prepare a segment when there are too few; one at a time, in the background. */
  #prepareAhead(): void {
    if (this.#preparing !== undefined || this.#spares.length >= SPARES_WANTED || this.#failStop.stopped)
      return
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
      // What was filled is given back: others may need the last bytes of the disk more.
      if (this.#draftExists && !this.#failStop.stopped) {
        await this.#disk.remove(SEGMENT_DRAFT_NAME).then(
          () => (this.#draftExists = false),
          () => undefined,
        )
      }
    }
    if (!this.#failStop.stopped) await this.#refreshSpace()
  }

  /** @returns false when stopped */
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

  /** The file has its new name. Nothing may be written to it before that name is on disk. */
  async #addSpare(number: number): Promise<void> {
    await this.#syncDirectory()
    const file = await this.#disk.open(segmentName(number), { durable: true })
    this.#spares.push({ number, file })
    this.#newest = number
    this.#prepareFailed = false
    this.wake()
  }

  // ------------------------------------------------------------------------------------------------- giving back

  /** Gives back the oldest segments, one after the other, while `isFree` says so of the oldest. */
  giveBackWhile(isFree: (number: number) => boolean): Promise<void> {
    return this.#inDirectory(async () => {
      while (isFree(this.#first)) {
        if (this.#failStop.stopped) return
        await this.#giveBack(this.#first)
      }
    })
  }

  /** One at a time and the oldest first, each durable before the next: no crash leaves a gap. */
  async #giveBack(number: number): Promise<void> {
    // Refuses new readers from here on; one that is under way keeps the old bytes, which recycling would change.
    this.#first = number + 1
    const isRead = this.#options.readers.drop(number)
    const target = this.#newest + 1
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
      await this.#syncDirectory()
      this.#prepareFailed = false
      await this.#refreshSpace()
      this.#prepareAhead()
    }
  }

  // -------------------------------------------------------------------------------------------------------- space

  /** Whether `bytes` have room behind `at` in segment `number` and in all that follow, the reserve left whole. */
  reserve(bytes: number, number: number, at: number, nowMs: number): boolean {
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
    // One less where the entry under way still waits for its segment: that is being prepared, or cannot be.
    const segments = this.#newest - number + creatable
    const room = (bytes <= left ? left : 0) + segments * (this.#segmentBytes - SEGMENT_HEADER_BYTES)
    return bytes + this.#reserveBytes * (this.#refuses ? LOW_CLEARS_AT : 1) <= room
  }

  /** Whether publishes are refused now; gives notice of it. */
  #decide(nowMs: number): void {
    const refuses = this.#low || this.#short
    if (refuses && !this.#refuses) this.#lowNotices.add()
    this.#refuses = refuses
    if (!refuses) {
      if (this.#isLowTold)
        this.#options.notify('disk-ok', `${this.#freeBytes} bytes are free: publishes are accepted.`)
      this.#isLowTold = false
      return
    }
    const count = this.#isLowTold ? 0 : this.#lowNotices.take(nowMs)
    if (count === 0) return
    this.#isLowTold = true
    const why = this.#low
      ? `less than ${this.#lowFreeBytes}`
      : `and the reserve of ${this.#reserveBytes} for settles and copies is not whole`
    this.#options.notify(
      'disk-low',
      `${this.#freeBytes} bytes are free, ${why}: publishes are refused.${repeated(count)}`,
    )
  }

  /** Bytes that can be written behind `at` in segment `number` and in all that follow, down to the last free byte. */
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
      // The numbers of a second ago are the best there are; what they permit wrongly, preparation refuses.
      return
    }
    this.#freeBytes = space.freeBytes
    this.#lowFreeBytes = this.#options.lowFreeBytes ?? defaultLowFreeBytes(space.totalBytes)
    this.#reserveBytes =
      this.#options.reserveBytes ?? defaultReserveBytes(this.#segmentBytes, space.totalBytes)
    this.#low = this.#freeBytes < this.#lowFreeBytes * (this.#refuses ? LOW_CLEARS_AT : 1)
    this.#decide(this.#spaceAtMs)
  }

  // ------------------------------------------------------------------------------------------------------ closing

  /** Waits for what is under way and closes the spares. The fuse was closed before, so that nothing else begins. */
  async close(): Promise<void> {
    await this.#preparing
    await this.#spaceRefresh
    await this.#directory
    for (const { file } of this.#spares.splice(0)) await file.close()
  }

  /** Runs `work` after all that was asked of the directory before. */
  #inDirectory(work: () => Promise<void>): Promise<void> {
    const done = this.#directory.then(work)
    this.#directory = done.catch(() => undefined)
    return done
  }

  #syncDirectory(): Promise<void> {
    return this.#failStop.durably('The directory of the log', () => this.#disk.syncDirectory())
  }
}
