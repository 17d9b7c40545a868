/**
 * Frees space by copying the live batches of the oldest segments to the end of the log, so that those segments can be
 * truncated. A copied batch keeps its offsets, its time and its producer. If many of its messages are gone, their records
 * are left out of the copy. The copy of a shared batch is preceded by the `refer` facts about those rows that are still
 * needed.
 *
 * Invariant: every fact that was applied precedes a copy in the log. So after a crash, no message whose record was left
 * out is live again.
 *
 * Invariant: while the broker is idle, copying ends after some time. Copying writes at most the bytes that are live
 * afterwards, and page bytes are exactly the bytes that rewriting the pages would write. So copying can free the whole excess.
 * Shared batches can count less than their size, but not after they are copied (queue/shares.ts). The bytes that copies leave
 * out are known only after a pass; before that, they are estimated. Copying runs in passes. Each pass goes from
 * the oldest segment to the point at which the log ended when the pass started. The next pass starts only after
 * enough bytes have changed.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  SluiceError,
  batchAttributes,
  batchBaseOffset,
  batchCount,
  batchLength,
  batchQueueId,
  batchType,
  presentCount,
  readBatchHeader,
  sparseBytes,
  writeBatchAttributes,
  writeSparse,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import type { Log, LogEntry } from '../log/log.js'
import { SEGMENT_HEADER_BYTES } from '../log/segment.js'
import type { Tail } from '../log/tail.js'
import { FactBuffer, countedRows, sharesOf, type Queue, type Refer } from '../queue/index.js'
import { isAnyCold, type ColdChunks, type MessageRange } from './cold-chunks.js'
import { isSharedBatch, refersIn, writeReferFacts } from './shared-batches.js'
import type { State } from './state.js'

/** Dead bytes that are tolerated before anything is copied, in segments. */
const SLACK_SEGMENTS = 4
/**
 * Number of bytes that copies may append for each byte that is appended. While the log does not grow, each freed byte makes
 * room for an appended one, and the copies among these are the live share of the log. So copies may append somewhat more
 * than that share; otherwise the log would grow while traffic is heavy.
 */
const SHARE_MIN = 0.25
const SHARE_MAX = 0.75
const SHARE_OF_LIVE = 1.25
/** Number of bytes that copies may append in each millisecond, in addition to their share. */
const IDLE_BYTES_PER_MS = 4096
/** Maximum size of the entries that one step reads, in bytes. */
const STEP_BYTES = 256 << 10
/**
 * Part of a segment that one step reads at most while room is scarce, so that a checkpoint can take effect before the
 * copies of several segments have used up the room.
 */
const SCARCE_STEP = 1 / 16
/**
 * Another pass starts only after the bytes of this many segments have changed, or half as many bytes while room is
 * scarce.
 */
const CHANGED_SEGMENTS = 1
/**
 * Another pass also requires that this share of the bytes that the last pass wrote has changed. The share exceeds the
 * padding of the entries of a pass.
 */
const CHANGED_SHARE = 1 / 32
/**
 * Number of segments needed to copy a segment and free it: one for the copy, and one whose header has the position of
 * the new checkpoint, so that recovery finds it.
 */
const COPY_SEGMENTS = 2
/**
 * Records are left out of a copy if the copy is then smaller by at least this share. A whole copy moves memory; to leave
 * records out, each record is visited and a new checksum is computed.
 */
const SPARSE_SHARE = 1 / 8
/** The indexes for a whole copy, which does not need them. */
const ALL: readonly number[] = []
/** Maximum size of copies relative to the copied bytes, including the headers and padding of their entries. */
const PADDED = 1 + 1 / 8

export class Relocation {
  readonly #log: Log
  readonly #tail: Tail
  readonly #state: State
  readonly #cold: ColdChunks
  readonly #writeFacts: () => void
  readonly #wake: () => void
  #entries: AsyncIterator<LogEntry> | undefined
  #reading = false
  #stopped = false
  #segmentEnd = 0
  #allowance = 0
  #countedBytes = 0
  #countedMs = 0
  /** End of the log when this pass started. */
  #passEnd = 0
  /** Number of changed bytes when this pass started. */
  #passChangedBytes = -Infinity
  /** Number of upkeep bytes when this pass started. */
  #passUpkeepBytes = 0
  /** Part of `Segments.sparableBytes` that the last pass did not free: its estimate was too high. */
  #unfreeableBytes = 0
  /** Every live batch before this position has been copied or is being copied. */
  before = 0
  /** Bytes that the next checkpoint will free. */
  freedBytes = 0
  /** Whether publishes are refused for lack of room. In that case dead bytes are freed without delay. */
  isScarce = false
  /** Whether the start of the next segment will free an older segment. */
  markFrees = false

  /** `writeFacts` writes all applied facts to the open entry. `wake` asks for another turn. */
  constructor(
    log: Log,
    tail: Tail,
    state: State,
    cold: ColdChunks,
    writeFacts: () => void,
    wake: () => void,
  ) {
    this.#cold = cold
    this.#writeFacts = writeFacts
    this.#wake = wake
    this.#log = log
    this.#tail = tail
    this.#state = state
  }

  /** Bytes on disk beyond those that the log may use; 0 or less when the log does not use too much. */
  get excessBytes(): number {
    const { bytes } = this.#log.usage()
    const { segments } = this.#state
    const { segmentBytes } = this.#log
    const needed = segments.liveBytes * (1 - this.#sparableShare) + segments.upkeepBytes
    const excess = bytes - 2 * needed - SLACK_SEGMENTS * segmentBytes
    if (!this.isScarce) return excess
    // The more room is left, the more dead bytes are tolerated before live bytes are copied.
    const slack = Math.max(segmentBytes, (this.#log.room() - this.copyBytes) / 2)
    return Math.max(excess, bytes - needed - slack)
  }

  /** Estimated share of the live bytes that copies would leave out. */
  get #sparableShare(): number {
    const { liveBytes, sparableBytes } = this.#state.segments
    if (liveBytes === 0) return 0
    return Math.min(1, Math.max(0, sparableBytes - this.#unfreeableBytes) / liveBytes)
  }

  /** Room needed to copy a segment and free it, including the checkpoint. */
  get copyBytes(): number {
    const pages = this.#state.segments.upkeepBytes
    return COPY_SEGMENTS * this.#log.segmentBytes + pages + this.#tail.pendingBytes
  }

  /** Bytes that were appended, without copies and pages, plus bytes that stopped being live. */
  get #changedBytes(): number {
    return this.#tail.appendedBytes - this.#tail.upkeepBytes + this.#state.segments.goneBytes
  }

  /** Whether the excess is more than the next checkpoint frees. */
  get #isWanted(): boolean {
    return this.excessBytes > this.freedBytes
  }

  /** Whether a segment is partly copied. */
  get isRunning(): boolean {
    return this.#entries !== undefined
  }

  /** Whether a segment is partly copied or is to be copied next. */
  get isCopying(): boolean {
    return this.isRunning || this.#nextStart !== Infinity
  }

  /** Copies as much as the allowance permits, if copying is wanted or running. */
  step(nowMs: number): void {
    this.#refill(nowMs)
    this.#unfreeableBytes = Math.min(this.#unfreeableBytes, this.#state.segments.sparableBytes)
    if (this.#reading || (this.#allowance <= 0 && !this.isScarce)) return
    if (this.#entries === undefined && !this.#begin()) return
    this.#reading = true
    void this.#read(nowMs).then(
      () => {
        this.#reading = false
        this.#wake()
      },
      (error: unknown) => {
        // A segment that cannot be read is kept; deliveries from it report the error. If the read may succeed later,
        // the segment is copied later.
        this.#reading = false
        if (error instanceof SluiceError && error.code === 'READ_FAILED')
          this.before = Math.min(this.before, this.#segmentEnd - this.#log.segmentBytes)
        this.#finish()
      },
    )
  }

  // Reads several entries in one turn: a segment can have thousands of entries without a live batch.
  async #read(nowMs: number): Promise<void> {
    const scarceBytes = this.isScarce ? this.#log.segmentBytes * SCARCE_STEP : Infinity
    const stepBytes = Math.min(STEP_BYTES, scarceBytes)
    for (let left = stepBytes; left > 0 && (this.#allowance > 0 || this.isScarce);) {
      const result = await this.#entries!.next()
      if (this.#stopped) return
      if (result.done === true || result.value.position >= this.#segmentEnd) {
        this.#finish()
        return
      }
      await this.#copy(result.value, nowMs)
      if (this.#stopped) return
      left -= result.value.bytes.length
    }
  }

  /**
   * Time at which the next step can copy, in ms since the epoch; Infinity when there is nothing to copy or a read is in
   * progress.
   */
  nextStepMs(nowMs: number): number {
    if (this.#reading || !this.isCopying) return Infinity
    return this.isScarce ? nowMs : nowMs + Math.max(1, Math.ceil(-this.#allowance / IDLE_BYTES_PER_MS))
  }

  /** Stops copying, even if an entry is being read. */
  stop(): void {
    this.#stopped = true
    this.#finish()
  }

  /** Start of the segment that is copied next; Infinity when no segment is to be copied. */
  get #nextStart(): number {
    if (!this.#isWanted) return Infinity
    const { firstPosition } = this.#log.usage()
    const start = this.#state.segments.oldestLive(Math.max(firstPosition, this.before))
    const active = Math.floor(this.#tail.position / this.#log.segmentBytes) * this.#log.segmentBytes
    if (start >= active) return Infinity
    if (this.isScarce && !this.#fits(start)) return Infinity
    const { segmentBytes } = this.#log
    if (start < this.#passEnd) return start
    const fromSegments = CHANGED_SEGMENTS * segmentBytes * (this.isScarce ? 0.5 : 1)
    const fromPass = CHANGED_SHARE * (this.#tail.upkeepBytes - this.#passUpkeepBytes)
    return this.#changedBytes - this.#passChangedBytes >= fromSegments + fromPass ? start : Infinity
  }

  // Copies that do not fit would use up the room needed to free space. Copies that fit in the rest of the active
  // segment need only one more segment: the checkpoint ends the active segment in any case, so they take no room of
  // their own.
  #fits(start: number): boolean {
    const { segmentBytes } = this.#log
    const { segments } = this.#state
    const whole = segmentBytes - SEGMENT_HEADER_BYTES
    const left = segmentBytes - (this.#tail.position % segmentBytes)
    const copies = segments.copyBytesAt(start) * PADDED + segments.upkeepBytes + this.#tail.pendingBytes
    const needed = left + (copies <= left ? 1 : COPY_SEGMENTS) * whole
    return this.#log.room() + (this.markFrees ? whole : 0) >= needed
  }

  #begin(): boolean {
    const start = this.#nextStart
    if (start === Infinity) return false
    if (start >= this.#passEnd) {
      this.#passEnd = this.#tail.position
      this.#passChangedBytes = this.#changedBytes
      this.#passUpkeepBytes = this.#tail.upkeepBytes
    }
    this.#segmentEnd = start + this.#log.segmentBytes
    this.before = this.#segmentEnd
    this.#entries = this.#log.read(start)[Symbol.asyncIterator]()
    return true
  }

  #finish(): void {
    void this.#entries?.return?.()
    this.#entries = undefined
    const { segments } = this.#state
    // The pass is over: what it did not leave out cannot be left out.
    if (segments.oldestLive(this.before) >= this.#passEnd) this.#unfreeableBytes = segments.sparableBytes
  }

  // Copies the live batches of the entry. Waits only for cold chunks: all chunks of a batch must be in memory when it is
  // copied.
  async #copy(entry: LogEntry, nowMs: number): Promise<void> {
    let refers: readonly Refer[] = []
    for (const at of entryBatches(entry.bytes, 0)) {
      if (batchType(entry.bytes, at) !== BATCH_TYPE.messages) {
        refers = refersIn(entry.bytes, at)
        continue
      }
      const of = isSharedBatch(entry.bytes, at) ? refers : undefined
      const ranges = of === undefined ? this.#rangeOf(entry.bytes, at) : this.#rangesOf(of)
      if (isAnyCold(ranges)) {
        await this.#cold.whileWarm(ranges, () => this.#copyBatch(entry, at, of, nowMs))
        if (this.#stopped) return
      } else this.#copyBatch(entry, at, of, nowMs)
    }
  }

  // Copies the batch at `entry.bytes[at]`, or the shared batch with these facts.
  #copyBatch(entry: LogEntry, at: number, refers: readonly Refer[] | undefined, nowMs: number): void {
    if (this.#stopped) return
    if (refers !== undefined) this.#copyShared(refers, entry, at, nowMs)
    else this.#copyPlain(entry, at, nowMs)
  }

  #rangesOf(refers: readonly Refer[]): MessageRange[] {
    return refers.flatMap(({ queueId, offset, count }) => {
      const queue = this.#state.queuesById.get(queueId)
      return queue === undefined ? [] : [{ queue, offset, count }]
    })
  }

  #rangeOf(bytes: Uint8Array, at: number): MessageRange[] {
    const queue = this.#state.queuesById.get(batchQueueId(bytes, at))
    if (queue === undefined) return []
    return [{ queue, offset: batchBaseOffset(bytes, at), count: batchCount(bytes, at) }]
  }

  #copyPlain({ bytes, position }: LogEntry, at: number, nowMs: number): void {
    const { queueId, baseOffset, count, length } = readBatchHeader(bytes, at)
    const queue = this.#state.queuesById.get(queueId)
    if (queue === undefined) return
    const { chunks } = queue
    const needed = chunks.neededAt(baseOffset, count, position + at)
    if (needed === 0) return
    const isWhole = needed === presentCount(bytes, at)
    const kept = isWhole ? ALL : chunks.neededIndexesAt(baseOffset, count, position + at)
    const copyBytes = isWhole ? length : copyLength(bytes, at, kept, position + at)
    this.#writeFacts()
    const to = this.#append(bytes, at, kept, copyBytes, nowMs)
    queue.relocateFact(baseOffset, count, to, copyBytes)
  }

  #copyShared(refers: readonly Refer[], entry: LogEntry, at: number, nowMs: number): void {
    const from = entry.position + at
    const needed = this.#neededOf(refers, from)
    if (needed.length === 0) return
    const { queuesById } = this.#state
    const kept = neededIndexes(needed, queuesById, from, batchCount(entry.bytes, at))
    const copyBytes = copyLength(entry.bytes, at, kept, from)
    this.#writeFacts()
    const facts = new FactBuffer()
    for (const refer of needed) facts.refer(refer)
    const factsBytes = BATCH_HEADER_BYTES + facts.length
    // A crash keeps either the facts and the batch or no part of them.
    const to = this.#tail.reserve(factsBytes + copyBytes, nowMs)
    writeReferFacts(this.#tail.bytes, to, facts, nowMs)
    this.#tail.add(factsBytes)
    this.#count(factsBytes)
    const position = this.#append(entry.bytes, at, kept, copyBytes, nowMs)
    const shares = sharesOf(copyBytes, countedRows(needed))
    for (const { queueId, offset, count, isCounted } of needed) {
      const { bytes, scale } = isCounted ? shares.counted : shares.uncounted
      queuesById.get(queueId)!.relocateFact(offset, count, position, bytes, scale)
    }
  }

  // The facts about the rows of the shared batch at `from` that are needed.
  #neededOf(refers: readonly Refer[], from: number): Refer[] {
    const { queuesById } = this.#state
    const needed = refers.filter(({ queueId, offset, count }) => {
      const queue = queuesById.get(queueId)
      return queue !== undefined && queue.chunks.neededAt(offset, count, from) > 0
    })
    const isAnyRetaining = needed.some(({ queueId }) => queuesById.get(queueId)!.retains)
    return needed.map((refer) => {
      const isCounted = !isAnyRetaining || queuesById.get(refer.queueId)!.retains
      return { ...refer, isCounted }
    })
  }

  // Appends a copy of the batch at `bytes[at]`, and returns its position. If `length` is less than that of the batch, the
  // copy has only the records with these indexes.
  #append(bytes: Uint8Array, at: number, kept: readonly number[], length: number, nowMs: number): number {
    const to = this.#tail.reserve(length, nowMs)
    const target = this.#tail.bytes
    const attributes = batchAttributes(bytes, at) | BATCH_ATTRIBUTE.relocated
    if (length < batchLength(bytes, at)) writeSparse(target, to, bytes, at, kept, length, attributes)
    else {
      target.set(bytes.subarray(at, at + length), to)
      writeBatchAttributes(target, to, attributes)
    }
    this.#count(length)
    return this.#tail.add(length)
  }

  #count(bytes: number): void {
    this.#allowance -= bytes
    this.#tail.upkeepBytes += bytes
  }

  #refill(nowMs: number): void {
    const appended = this.#tail.appendedBytes - this.#countedBytes
    const passedMs = this.#countedMs === 0 ? 0 : nowMs - this.#countedMs
    this.#countedBytes = this.#tail.appendedBytes
    this.#countedMs = nowMs
    const { liveBytes, upkeepBytes } = this.#state.segments
    const live = (liveBytes + upkeepBytes) / this.#log.usage().bytes
    const share = Math.min(SHARE_MAX, Math.max(SHARE_MIN, live * SHARE_OF_LIVE))
    const most = this.#log.segmentBytes
    this.#allowance = Math.min(most, this.#allowance + appended * share + passedMs * IDLE_BYTES_PER_MS)
  }
}

// Size of a copy of the batch that needs the records with these indexes: that of the batch, or less if records are left
// out. @throws SluiceError CORRUPT
function copyLength(bytes: Uint8Array, at: number, kept: readonly number[], position: number): number {
  const length = batchLength(bytes, at)
  if (kept.length === presentCount(bytes, at)) return length
  const copyBytes = sparseBytes(bytes, at, kept)
  if (copyBytes === -1)
    throw new SluiceError(
      'CORRUPT',
      `The batch at position ${position} of the log lacks messages that are live or retained.`,
    )
  return length - copyBytes < length * SPARSE_SHARE ? length : copyBytes
}

// Indexes in the shared batch at `position` of the records that at least one queue needs, ascending. The batch has `count`
// records. The search ends as soon as every record is needed: usually the first few queues need all of them, and a thousand
// queues can have four million messages of one batch.
function neededIndexes(
  refers: readonly Refer[],
  queuesById: ReadonlyMap<number, Queue>,
  position: number,
  count: number,
): number[] {
  const isNeeded = new Uint8Array(count)
  let missing = count
  for (const refer of refers) {
    if (missing === 0) break
    const { chunks } = queuesById.get(refer.queueId)!
    for (const index of chunks.neededIndexesAt(refer.offset, refer.count, position)) {
      if (isNeeded[refer.index + index] === 1) continue
      isNeeded[refer.index + index] = 1
      missing--
    }
  }
  const indexes: number[] = []
  for (let index = 0; index < count; index++) if (isNeeded[index] === 1) indexes.push(index)
  return indexes
}
