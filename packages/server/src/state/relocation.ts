/**
 * Space comes back by copying what is still live in the oldest segment forward and truncating the prefix. A copied
 * batch keeps its header, so its offsets, times and checksum; only its place changes.
 *
 * Invariant: at rest it comes to an end. What counts as live is what copying would copy, and pages what writing them anew
 * would write, so what is too much is what copying frees. And copying goes in passes, each from the oldest segment to
 * where the log ended when it began; the next one begins only when enough is new since.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_TYPE,
  SluiceError,
  batchType,
  readBatchHeader,
  writeBatchAttributes,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import type { Tail } from '../log/tail.js'
import type { State } from './state.js'

/** Segments that may be spent on what is not live before anything is copied. */
const SLACK_SEGMENTS = 4
/** Copying may add this share to what is appended anyway, and this much a second when nothing is. */
const SHARE = 0.25
const IDLE_BYTES_PER_MS = 4096
/** Bytes of entries that one step reads at most. */
const STEP_BYTES = 256 << 10
/**
 * What must be new before another pass begins: so much of a segment, half of that while room is scarce, and such a share of
 * what the last pass wrote. Padding of its own entries is less.
 */
const NEWS_SEGMENTS = 1
const NEWS_SHARE = 1 / 32
/** Segments that copying one forward takes until it is given back: its copy, and the one in which the directory counts. */
const COPY_SEGMENTS = 2
/** What copies take with the headers and the padding of their entries, at most. */
const PADDED = 1 + 1 / 8

export class Relocation {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #wake: () => void
  #entries: AsyncIterator<LogEntry> | undefined
  #reading = false
  #stopped = false
  #segmentEnd = 0
  #allowance = 0
  #countedBytes = 0
  #countedMs = 0
  /** Where the log ended when this pass began, and what was new until then. */
  #passEnd = 0
  #passNews = -Infinity
  #passUpkeep = 0
  /** Everything live before this position has been copied or is being copied. */
  before = 0
  /** Everything from here on stays where it is: something in it is retained. */
  retainedFrom = Infinity
  /** What the next checkpoint will free. */
  freedBytes = 0
  /** Publishes are refused for want of room: whatever is gone is given back, and without delay. */
  isScarce = false
  /** The next segment that begins gives another one back. */
  markFrees = false

  /** `wake` asks for another turn. */
  constructor(log: Log, tail: Tail, state: State, wake: () => void) {
    this.#wake = wake
    this.#log = log
    this.#tail = tail
    this.#state = state
  }

  /** How many bytes more of the disk than it may be are spent on what is gone; 0 or less when it is not too much. */
  get excessBytes(): number {
    const { bytes } = this.#log.usage()
    const { segments } = this.#state
    const kept = this.retainedFrom === Infinity ? 0 : Math.max(0, this.#tail.position - this.retainedFrom)
    const { segmentBytes } = this.#log
    const needed = segments.liveBytesBefore(this.retainedFrom) + segments.upkeepBytes
    const excess = bytes - kept - 2 * needed - SLACK_SEGMENTS * segmentBytes
    if (!this.isScarce) return excess
    // The more room there is, the more may be gone before all that is live is copied for it.
    const slack = Math.max(segmentBytes, (this.#log.room() - this.copyBytes) / 2)
    return Math.max(excess, bytes - kept - needed - slack)
  }

  /** Room that it takes to copy a segment and give it back, the checkpoint for it included. */
  get copyBytes(): number {
    const pages = this.#state.segments.upkeepBytes
    return COPY_SEGMENTS * this.#log.segmentBytes + pages + this.#tail.pendingBytes
  }

  /** Bytes that came to the log and bytes that went, without what is copied and written to give space back. */
  get #news(): number {
    return this.#tail.appendedBytes - this.#tail.upkeepBytes + this.#state.segments.goneBytes
  }

  /** Whether there is an excess that does not go with the next checkpoint. */
  get #isWanted(): boolean {
    return this.excessBytes > this.freedBytes
  }

  /** A segment is half done. */
  get isRunning(): boolean {
    return this.#entries !== undefined
  }

  /** A segment is half done, or there is one to begin with. */
  get isCopying(): boolean {
    return this.isRunning || this.#nextStart !== Infinity
  }

  /** Copies what the allowance permits, if it is wanted or running. */
  step(nowMs: number): void {
    this.#refill(nowMs)
    if (this.#reading || (this.#allowance <= 0 && !this.isScarce)) return
    if (this.#entries === undefined && !this.#begin()) return
    this.#reading = true
    void this.#read(nowMs).then(
      () => {
        this.#reading = false
        this.#wake()
      },
      (error: unknown) => {
        // The segment cannot be read whole: it stays where it is, and deliveries from it say so by themselves. For a
        // reason that may pass it is tried again.
        this.#reading = false
        if (error instanceof SluiceError && error.code === 'READ_FAILED')
          this.before = Math.min(this.before, this.#segmentEnd - this.#log.segmentBytes)
        this.#finish()
      },
    )
  }

  // Entries of which nothing is live cost no turn each: there can be thousands of them in a segment.
  async #read(nowMs: number): Promise<void> {
    for (let left = STEP_BYTES; left > 0 && (this.#allowance > 0 || this.isScarce);) {
      const result = await this.#entries!.next()
      if (this.#stopped) return
      if (result.done === true || result.value.position >= this.#segmentEnd) {
        this.#finish()
        return
      }
      this.#copy(result.value, nowMs)
      left -= result.value.bytes.length
    }
  }

  /** When the next step can copy, ms since the epoch; Infinity when nothing is to be copied, or an entry is being read. */
  nextStepMs(nowMs: number): number {
    if (this.#reading || !this.isCopying) return Infinity
    return this.isScarce ? nowMs : nowMs + Math.max(1, Math.ceil(-this.#allowance / IDLE_BYTES_PER_MS))
  }

  /** Nothing is copied any more, also not what is being read. */
  stop(): void {
    this.#stopped = true
    this.#finish()
  }

  /** Start of the segment that is copied next; Infinity when none is. */
  get #nextStart(): number {
    if (!this.#isWanted) return Infinity
    const { firstPosition } = this.#log.usage()
    const start = this.#state.segments.oldestLive(Math.max(firstPosition, this.before))
    const active = Math.floor(this.#tail.position / this.#log.segmentBytes) * this.#log.segmentBytes
    if (start >= active || start >= this.retainedFrom) return Infinity
    if (this.isScarce && !this.#fits(start)) return Infinity
    const { segmentBytes } = this.#log
    if (start < this.#passEnd) return start
    const fromNews = NEWS_SEGMENTS * segmentBytes * (this.isScarce ? 0.5 : 1)
    const fromPass = NEWS_SHARE * (this.#tail.upkeepBytes - this.#passUpkeep)
    return this.#news - this.#passNews >= fromNews + fromPass ? start : Infinity
  }

  // What would not fit would use up what gives space back. What fits the rest of the segment that is written takes only the
  // one that begins behind it: that rest would be lost when the checkpoint ends the segment.
  #fits(start: number): boolean {
    const { segmentBytes } = this.#log
    const { segments } = this.#state
    const whole = segmentBytes - SEGMENT_HEADER_BYTES
    const left = segmentBytes - (this.#tail.position % segmentBytes)
    const copies = segments.liveBytesAt(start) * PADDED + segments.upkeepBytes + this.#tail.pendingBytes
    const needed = left + (copies <= left ? 1 : COPY_SEGMENTS) * whole
    return this.#log.room() + (this.markFrees ? whole : 0) >= needed
  }

  #begin(): boolean {
    const start = this.#nextStart
    if (start === Infinity) return false
    if (start >= this.#passEnd) {
      this.#passEnd = this.#tail.position
      this.#passNews = this.#news
      this.#passUpkeep = this.#tail.upkeepBytes
    }
    this.#segmentEnd = start + this.#log.segmentBytes
    this.before = this.#segmentEnd
    this.#entries = this.#log.read(start)[Symbol.asyncIterator]()
    return true
  }

  #finish(): void {
    void this.#entries?.return?.()
    this.#entries = undefined
  }

  #copy(entry: LogEntry, nowMs: number): void {
    for (const at of entryBatches(entry.bytes, 0)) {
      if (batchType(entry.bytes, at) !== BATCH_TYPE.messages) continue
      const header = readBatchHeader(entry.bytes, at)
      const queue = this.#state.queuesById.get(header.queueId)
      if (queue === undefined) continue
      if (queue.chunks.liveAt(header.baseOffset, header.count, entry.position + at) === 0) continue
      const to = this.#tail.reserve(header.length, nowMs)
      this.#tail.bytes.set(entry.bytes.subarray(at, at + header.length), to)
      writeBatchAttributes(this.#tail.bytes, to, header.attributes | BATCH_ATTRIBUTE.relocated)
      const position = this.#tail.add(header.length)
      queue.relocateFact(header.baseOffset, header.count, position)
      this.#allowance -= header.length
      this.#tail.upkeepBytes += header.length
    }
  }

  #refill(nowMs: number): void {
    const appended = this.#tail.appendedBytes - this.#countedBytes
    const passedMs = this.#countedMs === 0 ? 0 : nowMs - this.#countedMs
    this.#countedBytes = this.#tail.appendedBytes
    this.#countedMs = nowMs
    const most = this.#log.segmentBytes
    this.#allowance = Math.min(most, this.#allowance + appended * SHARE + passedMs * IDLE_BYTES_PER_MS)
  }
}
