/**
 * Space comes back by copying what is still live in the oldest segment forward and truncating the prefix. A copied
 * batch keeps its header, so its offsets, times and checksum; only its place changes.
 *
 * Invariant: at rest it comes to an end. What counts as live is what copying would copy, and pages what writing them anew
 * would write, so what is too much is what copying frees. And copying goes in passes, each from the oldest segment to
 * where the log ended when it began; the next one begins only when enough is new since.
 */
import { BATCH_ATTRIBUTE, BATCH_TYPE, SluiceError, readBatchHeader } from '@sluice/protocol'
import { DIRECTORY_HEAD_BYTES, PAGE_AT_BYTES, type State } from './state.js'
import { entryBatches } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import type { Tail } from '../log/tail.js'

/** Segments that may be spent on what is not live before anything is copied. */
const SLACK_SEGMENTS = 4
/** Copying may add this share to what is appended anyway, and this much a second when nothing is. */
const SHARE = 0.25
const IDLE_BYTES_PER_MS = 4096

export class Relocation {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
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
  /** Everything live before this position has been copied or is being copied. */
  before = 0
  /** Everything from here on stays where it is: something in it is retained. */
  retainedFrom = Infinity
  /** What the next checkpoint will free. */
  freedBytes = 0

  constructor(log: Log, tail: Tail, state: State) {
    this.#log = log
    this.#tail = tail
    this.#state = state
  }

  /** How many bytes more of the disk than it may be are spent on what is gone; 0 or less when it is not too much. */
  get excessBytes(): number {
    const { bytes } = this.#log.usage()
    const { segments } = this.#state
    const kept = this.retainedFrom === Infinity ? 0 : Math.max(0, this.#tail.position - this.retainedFrom)
    const { pages } = segments
    const listed = pages.bytes + DIRECTORY_HEAD_BYTES + pages.count * PAGE_AT_BYTES
    const needed = segments.liveBytesBefore(this.retainedFrom) + listed
    return bytes - kept - 2 * needed - SLACK_SEGMENTS * this.#log.segmentBytes
  }

  /** Bytes that came to the log and bytes that went, without what is copied and written to give space back. */
  get #news(): number {
    return this.#tail.addedBytes - this.#tail.upkeepBytes + this.#state.segments.goneBytes
  }

  /** Whether there is an excess that does not go with the next checkpoint. */
  get #isWanted(): boolean {
    return this.excessBytes > this.freedBytes
  }

  /** A segment is half done. */
  get isRunning(): boolean {
    return this.#entries !== undefined
  }

  /** Copies what the allowance permits, if it is wanted or running. */
  step(nowMs: number, wake: () => void): void {
    this.#refill(nowMs)
    if (this.#reading || this.#allowance <= 0) return
    if (this.#entries === undefined && !this.#begin()) return
    this.#reading = true
    void this.#entries!.next().then(
      (result) => {
        this.#reading = false
        if (this.#stopped) return
        if (result.done === true || result.value.position >= this.#segmentEnd) this.#finish()
        else this.#copy(result.value, nowMs)
        wake()
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

  /** When the next step can copy, ms since the epoch; Infinity when nothing is to be copied, or an entry is being read. */
  nextStepMs(nowMs: number): number {
    if (this.#reading || (!this.isRunning && this.#nextStart === Infinity)) return Infinity
    return nowMs + Math.max(1, Math.ceil(-this.#allowance / IDLE_BYTES_PER_MS))
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
    return start < this.#passEnd || this.#news - this.#passNews >= this.#log.segmentBytes ? start : Infinity
  }

  #begin(): boolean {
    const start = this.#nextStart
    if (start === Infinity) return false
    if (start >= this.#passEnd) {
      this.#passEnd = this.#tail.position
      this.#passNews = this.#news
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
      if (entry.bytes[at + 4] !== BATCH_TYPE.messages) continue
      const header = readBatchHeader(entry.bytes, at)
      const queue = this.#state.queuesById.get(header.queueId)
      if (queue === undefined) continue
      if (queue.liveAt(header.baseOffset, header.count, entry.position + at) === 0) continue
      const to = this.#tail.reserve(header.length, nowMs)
      this.#tail.bytes.set(entry.bytes.subarray(at, at + header.length), to)
      this.#tail.bytes[to + 5] = header.attributes | BATCH_ATTRIBUTE.relocated
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
