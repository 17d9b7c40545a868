/**
 * What the log takes on disk: checkpoints, copies of what is still live, and giving back the segments in front. Called
 * once a turn; each call does a little.
 *
 * Invariant: a segment goes only when nothing that recovery could need stands in it, and only once the facts that made
 * it so are durable. After a crash they may not have happened, and then the segment is needed.
 */
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import { Checkpoints } from './checkpoint.js'
import { Relocation } from './relocation.js'
import type { State } from './state.js'

/** What holds the oldest segment of the log, and so all that the log takes. */
export interface Holder {
  /**
   * `writing`: there is no other one. `messages` that are not done; `retained`, ones that are done and kept by their queue;
   * `checkpoint`: of what stands in it there is no later copy yet. `nothing`: it is about to be given back.
   */
  readonly by: 'writing' | 'messages' | 'retained' | 'checkpoint' | 'nothing'
  /** A queue whose oldest message is there, or that retains what is there, as far as that is known. */
  readonly queue: string | undefined
}

/**
 * How long the log takes too much before a checkpoint is made for it, and then the next. It costs the rest of a segment, and
 * mostly making another one: done at once, that took a tenth of the rate at which a backlog is drained.
 */
const PATIENCE_MS = 5_000
/** How often the use of the log is looked at; earlier once so much of a segment was appended, which settles could use up. */
const LOOK_MS = 20
const LOOK_SEGMENTS = 1 / 4
/** How often it is looked at what queues retain. */
const LOOK_RETAINED_MS = 1_000
/** Of a segment: how much more room than copying needs is kept for it. */
const MARGIN = 1 / 4
/** Pages that take such a share of a segment are written anew with each checkpoint, to give back what they hold. */
const CHEAP_PAGES = 1 / 4
/** How long after a segment could not be given back it is tried again. */
const RETRY_MS = 1_000

export class Space {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #checkpoints: Checkpoints
  readonly #relocation: Relocation
  readonly #wake: () => void
  #lookedMs = 0
  #lookedBytes = 0
  #nextLookMs = 0
  /** Until then the next checkpoint may still come by itself, unless one came since its floor was seen. */
  #patientUntilMs = Infinity
  #seenFloor = 0
  #retainedLookedMs = 0
  /** When the next of what is retained is retained for long enough. */
  #retainedUntilMs = Infinity
  /** Neither the state nor live messages need the segments before this start, and what says so is durable. */
  #doneBefore = 0
  /** The next such start: what says so is durable with `gate`. */
  #done: { readonly before: number; readonly gate: number } | undefined
  #truncating = false
  #retryMs = 0

  /**
   * `floor`: nothing before this position is needed for the state as recovered. `wake` asks for another turn.
   */
  constructor(log: Log, tail: Tail, state: State, checkpointBytes: number, floor: number, wake: () => void) {
    this.#log = log
    this.#tail = tail
    this.#state = state
    this.#checkpoints = new Checkpoints(log, tail, state, checkpointBytes, floor)
    this.#relocation = new Relocation(log, tail, state, wake)
    this.#wake = wake
  }

  /** All facts that are applied must be in the open entry. */
  step(nowMs: number): void {
    if (this.#checkpoints.step(nowMs)) this.#wake()
    if (this.#relocation.isRunning) this.#relocation.step(nowMs)
    const { segmentBytes } = this.#log
    const isEarly = this.#tail.appendedBytes - this.#lookedBytes < segmentBytes * LOOK_SEGMENTS
    if (isEarly && nowMs < this.#lookedMs + LOOK_MS) {
      this.#nextLookMs = this.#lookedMs + LOOK_MS
      return
    }
    this.#lookedMs = nowMs
    this.#lookedBytes = this.#tail.appendedBytes
    if (nowMs >= this.#retainedLookedMs + LOOK_RETAINED_MS) this.#lookAtRetained(nowMs)
    const { firstPosition } = this.#log.usage()
    const firstStart = Math.floor(firstPosition / segmentBytes) * segmentBytes
    const live = this.#state.segments.oldestLive(firstPosition)
    const needed = Math.min(live, this.#tail.position - segmentBytes)
    const wanted = Math.min(needed, this.#relocation.retainedFrom)
    const isScarce = !this.#log.reserve(this.#tail.pendingBytes + this.upkeepBytes, nowMs)
    this.#relocation.isScarce = isScarce
    this.#checkpoints.isScarce = isScarce
    this.#relocation.markFrees = this.#checkpoints.markFrees
    this.#wantFloor(wanted, nowMs)
    this.#checkpoints.isFilling = isScarce && this.#relocation.isCopying
    // Pages that stand in front of everything live would be all that holds their segments. Where they are many, they are
    // not written anew as long as the log does not take too much: each checkpoint would write all of them.
    const isCheap = this.#state.segments.pages.bytes <= segmentBytes * CHEAP_PAGES
    const evacuates = isCheap || this.#relocation.excessBytes > 0
    this.#checkpoints.evacuateBefore = Math.max(this.#relocation.before, evacuates ? needed : 0)
    const before = Math.floor(Math.min(this.#checkpoints.floor, live) / segmentBytes) * segmentBytes
    if (this.#done === undefined && before > Math.max(this.#doneBefore, firstStart))
      this.#done = { before, gate: this.#tail.gate }
    this.#noteDone()
    // Whether something is still retained says the clock: that waits for nothing to be durable.
    if (this.#firstAfter(this.#doneBefore) > firstStart && !this.#truncating && nowMs >= this.#retryMs) {
      // What was settled since it was looked at last may be retained.
      this.#lookAtRetained(nowMs)
      const floor = this.#firstAfter(this.#doneBefore)
      if (floor > firstStart) this.#truncate(floor)
    }
    if (!this.#relocation.isRunning) this.#relocation.step(nowMs)
    this.#look()
    this.#nextLookMs = this.#nextAfter(nowMs, wanted)
  }

  /** When `step` has something to do next although nothing happens, ms since the epoch; Infinity when it has not. */
  get nextDeadline(): number {
    return this.#nextLookMs
  }

  #nextAfter(nowMs: number, wantedFloor: number): number {
    const lookAgainMs = this.#retainedLookedMs + LOOK_RETAINED_MS
    // What was settled since is not in what was looked at.
    let nextMs = this.#state.segments.retainsMore ? lookAgainMs : Math.max(this.#retainedUntilMs, lookAgainMs)
    nextMs = Math.min(nextMs, this.#relocation.nextStepMs(nowMs))
    if (
      this.#relocation.excessBytes > 0 &&
      this.#hasNextSegment &&
      this.#checkpoints.freesEnoughUpTo(wantedFloor)
    )
      nextMs = Math.min(nextMs, Math.max(this.#patientUntilMs, nowMs + LOOK_MS))
    // Connections wait, and the room may come from elsewhere.
    if (this.isExhausted) nextMs = Math.min(nextMs, nowMs + RETRY_MS)
    return nowMs < this.#retryMs ? Math.min(nextMs, this.#retryMs) : nextMs
  }

  // What nothing but the last checkpoint holds goes with the next one; only what is held otherwise has to be copied.
  #wantFloor(floor: number, nowMs: number): void {
    // The segment that ends early takes the room of another one.
    const { isScarce, excessBytes } = this.#relocation
    const isWanted = this.#hasNextSegment && (excessBytes > 0 || (isScarce && this.#checkpoints.markFrees))
    this.#relocation.freedBytes = isWanted ? Math.max(0, floor - this.#checkpoints.floor) : 0
    if (!isWanted || this.#checkpoints.floor > this.#seenFloor) {
      this.#seenFloor = this.#checkpoints.floor
      this.#patientUntilMs = nowMs + PATIENCE_MS
    }
    if (isScarce) this.#patientUntilMs = nowMs
    this.#checkpoints.wantedFloor = isWanted && nowMs >= this.#patientUntilMs ? floor : 0
  }

  get #hasNextSegment(): boolean {
    const { segmentBytes } = this.#log
    const left = segmentBytes - (this.#tail.position % segmentBytes)
    return this.#log.room() - left >= this.#tail.pendingBytes + segmentBytes - SEGMENT_HEADER_BYTES
  }

  /** What a checkpoint writes at most. */
  get upkeepBytes(): number {
    return this.#state.segments.upkeepBytes
  }

  /**
   * What is left is needed to give space back, and space is being given back: whoever brings more has to wait for that.
   * Where nothing can be given back, settles may use it up.
   */
  isExhausted = false

  #look(): void {
    const { firstPosition } = this.#log.usage()
    const comesBack =
      this.#truncating ||
      (this.#done !== undefined && this.#firstAfter(this.#done.before) > firstPosition) ||
      this.#checkpoints.isUnderWay ||
      // It is about to begin, or to end the segment so that it counts. One that frees nothing when it counts, because
      // messages or what is retained stand in front, does neither.
      this.#checkpoints.freesEnoughUpTo(this.#checkpoints.wantedFloor) ||
      this.#relocation.isCopying
    const needed = this.#relocation.copyBytes + this.#log.segmentBytes * MARGIN
    this.isExhausted = this.#relocation.isScarce && comesBack && this.#log.room() < needed
  }

  /** Looks at every queue. */
  holder(): Holder {
    const { firstPosition } = this.#log.usage()
    const { segmentBytes } = this.#log
    const number = Math.floor(firstPosition / segmentBytes)
    const isThere = (position: number): boolean => Math.floor(position / segmentBytes) === number
    const { segments, queues, queuesById } = this.#state
    if (isThere(this.#tail.position)) return { by: 'writing', queue: undefined }
    if (isThere(segments.oldestLive(firstPosition))) {
      for (const { name, chunks } of queues.values())
        if (isThere(chunks.oldestPosition)) return { by: 'messages', queue: name }
      return { by: 'messages', queue: undefined }
    }
    if (isThere(this.#relocation.retainedFrom)) {
      const queueId = segments.retainerOf(firstPosition)
      return { by: 'retained', queue: queueId === undefined ? undefined : queuesById.get(queueId)?.name }
    }
    return { by: isThere(this.#checkpoints.floor) ? 'checkpoint' : 'nothing', queue: undefined }
  }

  /** Entries up to `lsn` are durable. Returns whether there is something to do now. */
  durable(lsn: number): boolean {
    const isMarked = this.#checkpoints.durable(lsn)
    return isMarked || (this.#done !== undefined && lsn >= this.#done.gate)
  }

  /** Nothing is copied any more, also not what is being read. */
  stop(): void {
    this.#relocation.stop()
  }

  #lookAtRetained(nowMs: number): void {
    this.#retainedLookedMs = nowMs
    const { oldest, untilMs } = this.#state.segments.oldestRetained(this.#state.queuesById, nowMs)
    this.#relocation.retainedFrom = oldest
    this.#retainedUntilMs = untilMs
  }

  #noteDone(): void {
    if (this.#done === undefined || this.#tail.durableLsn < this.#done.gate) return
    this.#doneBefore = this.#done.before
    this.#done = undefined
  }

  /** Start of the oldest segment that stays, when those before `start` go unless they are retained. */
  #firstAfter(start: number): number {
    return Math.min(start, this.#relocation.retainedFrom)
  }

  #truncate(floor: number): void {
    this.#truncating = true
    const done = (): void => {
      this.#truncating = false
      this.#wake()
    }
    this.#log.truncateBefore(floor).then(
      () => {
        this.#state.segments.forgetBefore(floor)
        done()
      },
      () => {
        // What could not be given back is still there and is tried again; the log says why by itself.
        this.#retryMs = this.#lookedMs + RETRY_MS
        done()
      },
    )
  }
}
