/**
 * DELIVER frames, written into an outbox. Messages that stand side by side go as one run; what does not comes message
 * by message, and shares a frame for as long as nothing else comes between, because a frame costs its receiver several
 * times what a message does.
 */
import {
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  FRAME_HEADER_BYTES,
  OP,
  SCATTERED_BYTES,
  recordSize,
  viewBytes,
  writeDeliverCount,
  writeDeliverHead,
  writeFrameLength,
  writeScatteredHead,
} from '@sluice/protocol'
import type { Run, Subscription } from '../queue/index.js'
import type { Outbox } from './outbox.js'

/**
 * So many messages that stand side by side go as a run of their own rather than one by one: fewer are cheaper in a frame
 * that they share with others.
 */
const SIDE_BY_SIDE_MIN = 16
/** A scattered delivery is not made longer than this. */
const SCATTERED_FRAME_BYTES = 64 << 10
/** Bytes of the frame around the record of a message that is alone in it, at most. */
export const DELIVERY_OVERHEAD_BYTES = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES + SCATTERED_BYTES

export class Deliveries {
  /** The scattered delivery that was written last: where, and what the next message must be to join it. */
  #outbox: Outbox | undefined
  #page = -1
  #payloadAt = 0
  #end = 0
  #count = 0
  #subscription: Subscription | undefined
  #tag = 0
  #attempt = 0
  #flags = 0

  /** The first `count` messages of `run`, whose records are `bytes[start, end)`, under the tags from `firstTag`. */
  write(
    outbox: Outbox,
    subscription: Subscription,
    run: Run,
    firstTag: number,
    count: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const flags = (run.redelivered ? DELIVER_FLAG.redelivered : 0) | (run.alone ? DELIVER_FLAG.alone : 0)
    const scatteredBytes = DELIVER_HEADER_BYTES + count * SCATTERED_BYTES + end - start
    if (count < SIDE_BY_SIDE_MIN && scatteredBytes <= SCATTERED_FRAME_BYTES) {
      for (let i = 0, at = start; i < count; i++) {
        const size = recordSize(bytes, at)
        this.#scattered(outbox, subscription, run, i, (firstTag + i) >>> 0, flags, bytes, at, size)
        at += size
      }
      return
    }
    const at = begin(outbox, subscription, run, 0, firstTag, count, flags, end - start)
    outbox.bytes.set(viewBytes(bytes, start, end), at)
  }

  // The message at `index` of the run, whose record of `size` bytes is at `start`.
  #scattered(
    outbox: Outbox,
    subscription: Subscription,
    run: Run,
    index: number,
    tag: number,
    flags: number,
    bytes: Uint8Array,
    start: number,
    size: number,
  ): void {
    const length = SCATTERED_BYTES + size
    const joins =
      this.#outbox === outbox &&
      this.#subscription === subscription &&
      this.#tag === tag &&
      this.#attempt === run.attempt &&
      this.#flags === flags &&
      !run.alone &&
      this.#end - this.#payloadAt + length <= SCATTERED_FRAME_BYTES
    let at = joins ? outbox.extend(this.#page, this.#end, length) : -1
    if (at === -1) {
      at = begin(outbox, subscription, run, index, tag, 1, flags | DELIVER_FLAG.scattered, length)
      this.#outbox = outbox
      this.#page = outbox.page
      this.#payloadAt = at - DELIVER_HEADER_BYTES
      this.#count = 0
      this.#subscription = subscription
      this.#attempt = run.attempt
      this.#flags = flags
    }
    const recordAt = writeScatteredHead(outbox.bytes, at, run.offset + index, run.publishedAtMs)
    outbox.bytes.set(viewBytes(bytes, start, start + size), recordAt)
    this.#count++
    this.#end = at + length
    this.#tag = (tag + 1) >>> 0
    writeDeliverCount(outbox.bytes, this.#payloadAt, this.#count)
    writeFrameLength(outbox.bytes, this.#payloadAt - FRAME_HEADER_BYTES, this.#end - this.#payloadAt)
  }
}

// Writes the frame, whose first message is at `index` of the run, up to its records, which take `bytes`; returns where
// they go.
function begin(
  outbox: Outbox,
  subscription: Subscription,
  run: Run,
  index: number,
  firstTag: number,
  count: number,
  flags: number,
  bytes: number,
): number {
  const at = outbox.begin(OP.DELIVER, subscription.channel, 0, DELIVER_HEADER_BYTES + bytes)
  const { offset, publishedAtMs, attempt } = run
  return writeDeliverHead(
    outbox.bytes,
    at,
    subscription.id,
    firstTag,
    offset + index,
    publishedAtMs,
    count,
    attempt,
    flags,
  )
}
