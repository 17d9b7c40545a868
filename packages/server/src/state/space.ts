/**
 * Limits the disk space of the log: writes checkpoints, copies live batches, and frees the oldest segments. The broker
 * calls `step` once per turn, and each call does a small part of the work.
 *
 * Invariant: a segment is freed only when recovery cannot need it, and only once the facts that made this true are
 * durable. A crash before that undoes the facts, and recovery then needs the segment.
 */
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import { Checkpoints } from './checkpoint.js'
import type { ColdChunks } from './cold-chunks.js'
import { Relocation } from './relocation.js'
import type { State } from './state.js'

/** Why the oldest segment of the log cannot be freed. All later segments wait for it. */
export interface Holder {
  /**
   * `writing`: it is the only segment. `messages`: it contains messages that are unsettled or retained.
   * `checkpoint`: its state pages have no later copy yet. `nothing`: it is being freed.
   */
  readonly by: 'writing' | 'messages' | 'checkpoint' | 'nothing'
  /**
   * Name of a queue whose oldest message is in the segment; undefined if no such queue is known.
   */
  readonly queue: string | undefined
}

/**
 * An early checkpoint starts only after the log has used too much space for this long. This is also the minimum pause
 * between two early checkpoints. An early checkpoint wastes the rest of a segment and usually needs a new segment.
 * Without this pause, draining a backlog was a tenth slower.
 */
const PATIENCE_MS = 5_000
/**
 * Interval at which space is checked. A check comes earlier once the fraction CHECK_SEGMENTS of a segment has been
 * appended, so that settles cannot use up the remaining room unnoticed.
 */
const CHECK_MS = 20
const CHECK_SEGMENTS = 1 / 4
/** Part of a segment that is kept free beyond the room that copying needs. */
const MARGIN = 1 / 4
/**
 * If all pages take at most this part of a segment, each checkpoint rewrites the old pages, which frees their segments.
 */
const CHEAP_PAGES = 1 / 4
/** Time after which freeing a segment is tried again. */
const RETRY_MS = 1_000

export class Space {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #checkpoints: Checkpoints
  readonly #relocation: Relocation
  readonly #wake: () => void
  #checkedMs = 0
  #checkedBytes = 0
  #nextCheckMs = 0
  /** An early checkpoint waits until this time. */
  #patientUntilMs = Infinity
  /** Low-water mark when the pause before an early checkpoint last began. */
  #seenLowWater = 0
  /**
   * Position before which neither the state nor live messages need a segment. The facts that made this true are
   * durable.
   */
  #doneBefore = 0
  /** The next value of `#doneBefore`. It applies once the entry `gate`, which holds its facts, is durable. */
  #done: { readonly before: number; readonly gate: number } | undefined
  #truncating = false
  #retryMs = 0

  /**
   * `lowWater`: the recovered state needs nothing before this position. `writeFacts` writes all applied facts to the open
   * entry. `wake` asks for another turn.
   */
  constructor(
    log: Log,
    tail: Tail,
    state: State,
    cold: ColdChunks,
    checkpointBytes: number,
    lowWater: number,
    writeFacts: () => void,
    wake: () => void,
  ) {
    this.#log = log
    this.#tail = tail
    this.#state = state
    this.#checkpoints = new Checkpoints(log, tail, state, cold, checkpointBytes, lowWater, wake)
    this.#relocation = new Relocation(log, tail, state, cold, writeFacts, wake)
    this.#wake = wake
  }

  /** Number of checkpoints that have begun since the broker started. */
  get checkpoints(): number {
    return this.#checkpoints.begun
  }

  /** Lets a checkpoint begin as soon as no other one is under way. */
  set isCheckpointWanted(isWanted: boolean) {
    this.#checkpoints.isWanted = isWanted
  }

  /** Must be called only while every applied fact is in the open entry. */
  step(nowMs: number): void {
    if (this.#checkpoints.step(nowMs)) this.#wake()
    if (this.#relocation.isRunning) this.#relocation.step(nowMs)
    const { segmentBytes } = this.#log
    const isEarly = this.#tail.appendedBytes - this.#checkedBytes < segmentBytes * CHECK_SEGMENTS
    if (isEarly && nowMs < this.#checkedMs + CHECK_MS) {
      this.#nextCheckMs = this.#checkedMs + CHECK_MS
      return
    }
    this.#checkedMs = nowMs
    this.#checkedBytes = this.#tail.appendedBytes
    const { firstPosition } = this.#log.usage()
    const firstStart = Math.floor(firstPosition / segmentBytes) * segmentBytes
    const live = this.#state.segments.oldestLive(firstPosition)
    const needed = Math.min(live, this.#tail.position - segmentBytes)
    const isScarce = !this.#log.hasRoomFor(this.#tail.pendingBytes + this.checkpointBytesMax, nowMs)
    this.#relocation.isScarce = isScarce
    this.#checkpoints.isScarce = isScarce
    this.#relocation.markFrees = this.#checkpoints.markFrees
    this.#wantLowWater(needed, nowMs)
    this.#checkpoints.isFilling = isScarce && this.#relocation.isCopying
    // Segments before the oldest live batch are kept only for their pages, so these pages are rewritten. If there are
    // many pages, this happens only while the log uses too much space: otherwise each checkpoint would write all of
    // them. If there are few, a checkpoint rewrites all pages of earlier segments: each segment that begins then frees
    // one, whose file is used again. If two became free at once, one would be deleted, and another created soon after.
    const isCheap = this.#state.segments.pages.bytes <= segmentBytes * CHEAP_PAGES
    const segmentStart = Math.floor(this.#tail.position / segmentBytes) * segmentBytes
    const evacuated = isCheap ? Math.min(live, segmentStart) : this.#relocation.excessBytes > 0 ? needed : 0
    this.#checkpoints.evacuateBefore = Math.max(this.#relocation.before, evacuated)
    const before = Math.floor(Math.min(this.#checkpoints.lowWater, live) / segmentBytes) * segmentBytes
    if (this.#done === undefined && before > Math.max(this.#doneBefore, firstStart))
      this.#done = { before, gate: this.#tail.gate }
    this.#confirmDone()
    if (this.#doneBefore > firstStart && !this.#truncating && nowMs >= this.#retryMs)
      this.#truncateBefore(this.#doneBefore)
    if (!this.#relocation.isRunning) this.#relocation.step(nowMs)
    this.#updateExhausted()
    this.#nextCheckMs = this.#nextAfter(nowMs, needed)
  }

  /**
   * Time at which `step` must be called even if nothing happens, in ms since the epoch; Infinity if no call is needed.
   */
  get nextDeadline(): number {
    return this.#nextCheckMs
  }

  #nextAfter(nowMs: number, wantedLowWater: number): number {
    let nextMs = this.#relocation.nextStepMs(nowMs)
    if (
      this.#relocation.excessBytes > 0 &&
      this.#hasNextSegment &&
      this.#checkpoints.freesEnoughUpTo(wantedLowWater)
    )
      nextMs = Math.min(nextMs, Math.max(this.#patientUntilMs, nowMs + CHECK_MS))
    // Connections wait for room, and other programs may free space on the disk.
    if (this.isExhausted) nextMs = Math.min(nextMs, nowMs + RETRY_MS)
    return nowMs < this.#retryMs ? Math.min(nextMs, this.#retryMs) : nextMs
  }

  // The next checkpoint frees the segments that only the last checkpoint needs; other segments must be copied.
  #wantLowWater(wanted: number, nowMs: number): void {
    // Ending a segment early takes the room of another segment.
    const { isScarce, excessBytes } = this.#relocation
    const isWanted = this.#hasNextSegment && (excessBytes > 0 || (isScarce && this.#checkpoints.markFrees))
    this.#relocation.freedBytes = isWanted ? Math.max(0, wanted - this.#checkpoints.lowWater) : 0
    if (!isWanted || this.#checkpoints.lowWater > this.#seenLowWater) {
      this.#seenLowWater = this.#checkpoints.lowWater
      this.#patientUntilMs = nowMs + PATIENCE_MS
    }
    if (isScarce) this.#patientUntilMs = nowMs
    this.#checkpoints.wantedLowWater = isWanted && nowMs >= this.#patientUntilMs ? wanted : 0
  }

  get #hasNextSegment(): boolean {
    const { segmentBytes } = this.#log
    const left = segmentBytes - (this.#tail.position % segmentBytes)
    return this.#log.room() - left >= this.#tail.pendingBytes + segmentBytes - SEGMENT_HEADER_BYTES
  }

  /** Maximum number of bytes that a checkpoint writes. */
  get checkpointBytesMax(): number {
    return this.#state.segments.upkeepBytes
  }

  /**
   * True while the remaining room is needed to free space, and space is being freed or will be freed when retention ends:
   * connections must wait. If nothing can be freed, this is false, and settles may use up the remaining room.
   */
  isExhausted = false

  #updateExhausted(): void {
    const { firstPosition } = this.#log.usage()
    const isFreeing =
      this.#truncating ||
      (this.#done !== undefined && this.#done.before > firstPosition) ||
      this.#checkpoints.isUnderWay ||
      // A checkpoint is about to start, or to end the segment so that it takes effect. It does neither if it would free
      // nothing, because live or retained messages keep older segments.
      this.#checkpoints.freesEnoughUpTo(this.#checkpoints.wantedLowWater) ||
      this.#relocation.isCopying
    const needed = this.#relocation.copyBytes + this.#log.segmentBytes * MARGIN
    const isShort = this.#relocation.isScarce && this.#log.room() < needed
    this.isExhausted = isShort && (isFreeing || this.#timeFrees())
  }

  // Whether time alone will free space. The release of retained messages is a fact, which needs room. Messages that are
  // retained by bytes alone are released only when others are acknowledged, so settles must not wait for them.
  #timeFrees(): boolean {
    for (const { nextReleaseMs } of this.#state.queues.values()) if (nextReleaseMs < Infinity) return true
    return false
  }

  /** Returns what keeps the oldest segment. Visits every queue. */
  holder(): Holder {
    const { firstPosition } = this.#log.usage()
    const { segmentBytes } = this.#log
    const number = Math.floor(firstPosition / segmentBytes)
    const isInOldest = (position: number): boolean => Math.floor(position / segmentBytes) === number
    const { segments, queues } = this.#state
    if (isInOldest(this.#tail.position)) return { by: 'writing', queue: undefined }
    if (isInOldest(segments.oldestLive(firstPosition))) {
      for (const { name, chunks } of queues.values())
        if (isInOldest(chunks.oldestPosition)) return { by: 'messages', queue: name }
      return { by: 'messages', queue: undefined }
    }
    return { by: isInOldest(this.#checkpoints.lowWater) ? 'checkpoint' : 'nothing', queue: undefined }
  }

  /** Called when entries up to `lsn` are durable. Returns whether `step` has something to do now. */
  durable(lsn: number): boolean {
    const isMarked = this.#checkpoints.durable(lsn)
    return isMarked || (this.#done !== undefined && lsn >= this.#done.gate)
  }

  /** Stops copying, even if an entry is being read. */
  stop(): void {
    this.#relocation.stop()
  }

  #confirmDone(): void {
    if (this.#done === undefined || this.#tail.durableLsn < this.#done.gate) return
    this.#doneBefore = this.#done.before
    this.#done = undefined
  }

  #truncateBefore(start: number): void {
    this.#truncating = true
    const done = (): void => {
      this.#truncating = false
      this.#wake()
    }
    this.#log.truncateBefore(start).then(
      () => {
        this.#state.segments.forgetBefore(start)
        done()
      },
      () => {
        // The segment still exists and is freed later; the log reports the cause.
        this.#retryMs = this.#checkedMs + RETRY_MS
        done()
      },
    )
  }
}
