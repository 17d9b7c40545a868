/**
 * Space comes back by copying what is still live in the oldest segment forward and truncating the prefix. A copied
 * batch keeps its header, so its offsets, times and checksum; only its place changes.
 */
import { BATCH_ATTRIBUTE, BATCH_TYPE, readBatchHeader } from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import type { State } from './state.js'

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
    const live = segments.liveBytesBefore(this.retainedFrom)
    return bytes - kept - 2 * live - SLACK_SEGMENTS * this.#log.segmentBytes
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
      () => {
        // The segment cannot be read whole: it stays where it is, and deliveries from it say so by themselves.
        this.#reading = false
        this.#finish()
      },
    )
  }

  /** Nothing is copied any more, also not what is being read. */
  stop(): void {
    this.#stopped = true
    this.#finish()
  }

  #begin(): boolean {
    if (!this.#isWanted) return false
    const { firstPosition } = this.#log.usage()
    const start = this.#state.segments.oldestLive(Math.max(firstPosition, this.before))
    const active = Math.floor(this.#tail.position / this.#log.segmentBytes) * this.#log.segmentBytes
    if (start >= active || start >= this.retainedFrom) return false
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
