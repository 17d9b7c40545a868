/** Messages of one queue that are sent together, in one PUBLISH frame. */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  FRAME_HEADER_BYTES,
  LIMITS,
  isTopicAddress,
  OP,
  PUBLISH_NAME_AT,
  recordSize,
  sealBatch,
  viewBytes,
  writeFrameHeader,
  writePublishHead,
  type Duplicates,
  type SluiceErrorNames,
  type SluiceError,
} from '@sluice/protocol'
import { receipt, Sending, type Receipt, type Resolve } from './sending.js'

/** Maximum size of a PUBLISH frame without its records, in bytes. */
export const ENVELOPE_BYTES =
  FRAME_HEADER_BYTES + PUBLISH_NAME_AT + LIMITS.queueNameBytesMax + BATCH_HEADER_BYTES

/** A queue or the address of a topic that the client publishes to, and its open batch, which further messages may join. */
export interface Lane {
  readonly queue: string
  openBatch: Batch | undefined
  /**
   * The leader: number of the batch that the next batch of this queue follows. Meaningless once the leader is
   * answered.
   */
  leader: number
}

/**
 * Caller `i` waits for message `i`. An atomic batch has one caller, at index 0. Until the batch is sent, its records begin
 * at `recordsAt`.
 */
export class Batch extends Sending {
  readonly queue: string
  /** The lane of the batch; undefined for a batch that was never open. */
  readonly lane: Lane | undefined
  readonly atomic: boolean
  readonly recordsAt: number
  readonly isBound = false
  /** Number of this batch minus the number of the batch that it follows; 0 if it follows none. */
  follows = 0

  constructor(queue: string, atomic: boolean, bytes: Buffer, lane?: Lane) {
    const recordsAt = writePublishHead(bytes, FRAME_HEADER_BYTES, queue) + BATCH_HEADER_BYTES
    super(bytes, recordsAt)
    this.queue = queue
    this.lane = lane
    this.atomic = atomic
    this.recordsAt = recordsAt
  }

  get names(): SluiceErrorNames {
    return isTopicAddress(this.queue) ? {} : { queue: this.queue }
  }

  compact(): boolean {
    if (this.live === 0) return false
    let from = this.recordsAt
    let to = this.recordsAt
    let kept = 0
    for (let i = 0; i < this.count; i++) {
      const size = recordSize(this.bytes, from)
      if (this.resolves[i] !== undefined) {
        this.bytes.copyWithin(to, from, from + size)
        to += size
        this.resolves[kept] = this.resolves[i]
        this.deadlines[kept] = this.deadlines[i]!
        kept++
      }
      from += size
    }
    this.resolves.length = this.deadlines.length = kept
    this.count = kept
    this.end = to
    this.withdrawn = 0
    return true
  }

  obstacle(): SluiceError | undefined {
    return undefined
  }

  protected write(frames: Buffer, at: number, unansweredBelow: number): void {
    frames.set(viewBytes(this.bytes, 0, this.end), at)
    writeFrameHeader(frames, at, this.end - FRAME_HEADER_BYTES, OP.PUBLISH, 0, unansweredBelow)
    sealBatch(frames, at + this.recordsAt - BATCH_HEADER_BYTES, at + this.end, {
      type: BATCH_TYPE.messages,
      attributes: this.atomic ? BATCH_ATTRIBUTE.atomic : 0,
      count: this.count,
      batchNumber: this.number,
      follows: this.follows,
    })
  }

  get maySplit(): boolean {
    return !this.atomic && this.callers > 1
  }

  /**
   * Splits the batch, so that its messages are sent again one by one. Returns a batch for each message that a caller
   * still waits for.
   */
  split(): Batch[] {
    const singles: Batch[] = []
    let at = this.at + this.recordsAt
    for (let i = 0; i < this.callers; i++) {
      const size = recordSize(this.bytes, at)
      const resolve = this.resolves[i]
      if (resolve !== undefined) singles.push(this.#single(at, at + size, resolve, this.deadlines[i]!))
      at += size
    }
    return singles
  }

  #single(from: number, to: number, resolve: Resolve, deadlineMs: number): Batch {
    const one = new Batch(this.queue, false, Buffer.allocUnsafeSlow(this.recordsAt + to - from))
    one.open = false
    one.count = 1
    this.bytes.copy(one.bytes, one.end, from, to)
    one.end += to - from
    one.addCaller(resolve, deadlineMs)
    if (this.failsOffline?.has(resolve) === true) one.failsOffline = new Set([resolve])
    const watch = this.watches?.get(resolve)
    if (watch !== undefined) {
      watch.sending = one
      one.watches = new Map([[resolve, watch]])
    }
    return one
  }

  protected unwritten(): void {
    this.bytes = Buffer.from(this.bytes.subarray(this.at, this.at + this.end))
    this.at = 0
  }

  hadNoEffect(): void {}

  /**
   * Called when the broker has accepted the batch. Resolves the promises of its callers. For a topic, the base offset is the
   * number of targets, and each receipt has it as its offset.
   */
  confirm(baseOffset: number, duplicates: Duplicates | undefined): void {
    const { resolves } = this
    const perMessage = isTopicAddress(this.queue) ? 0 : 1
    if (this.atomic) {
      const resolve = resolves[0]
      if (resolve === undefined) return
      const receipts: Receipt[] = []
      for (let i = 0; i < this.count; i++) receipts.push(receipt(baseOffset, i * perMessage, duplicates))
      resolve(receipts)
      return
    }
    for (let i = 0; i < resolves.length; i++) {
      const resolve = resolves[i]
      if (resolve !== undefined) resolve(receipt(baseOffset, i * perMessage, duplicates))
    }
  }
}
