/**
 * Writes DELIVER frames. A long run of messages with consecutive offsets gets its own frame. Shorter runs are written
 * as scattered messages, which share a frame while no other frame comes between them. Sharing is faster, because a
 * frame takes the receiver several times as long as a message.
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
import type { Delivery, Run } from '../queue/index.js'
import type { Outbox } from './outbox.js'

/** Minimum number of messages in a run that gets its own frame; a shorter run is cheaper in a shared frame. */
const RUN_MESSAGES_MIN = 16
/** Maximum payload of a shared frame. */
const SCATTERED_FRAME_BYTES = 64 << 10
/** Maximum number of bytes besides the record in a frame with one message. */
export const DELIVERY_OVERHEAD_BYTES = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES + SCATTERED_BYTES

/** The subscription or reader that gets a delivery. */
interface Recipient {
  readonly id: number
  readonly channel: number
}

export class Deliveries {
  /** The head of the last DELIVER frame. */
  readonly #head = {
    subscriptionId: 0,
    firstTag: 0,
    firstOffset: 0,
    publishedAtMs: 0,
    count: 0,
    attempt: 0,
    flags: 0,
  }
  /** Place of the last shared frame. */
  #outbox: Outbox | undefined
  #bufferNumber = -1
  #payloadAt = 0
  #end = 0

  write(outbox: Outbox, recipient: Recipient, delivery: Delivery): void {
    const { run, count, bytes, start, end } = delivery
    const scatteredBytes = DELIVER_HEADER_BYTES + count * SCATTERED_BYTES + end - start
    if (count < RUN_MESSAGES_MIN && scatteredBytes <= SCATTERED_FRAME_BYTES) {
      for (let i = 0, at = start; i < count; i++) at = this.#scattered(outbox, recipient, delivery, i, at)
      return
    }
    this.#describe(recipient, delivery, 0, count, flagsOf(run))
    const at = this.#begin(outbox, recipient.channel, end - start)
    outbox.bytes.set(viewBytes(bytes, start, end), at)
  }

  // Writes the message at `index` of the delivery. The record of the message starts at `start`. Returns the end of
  // that record.
  #scattered(outbox: Outbox, recipient: Recipient, delivery: Delivery, index: number, start: number): number {
    const { run, firstTag, bytes } = delivery
    const head = this.#head
    const end = start + recordSize(bytes, start)
    const length = SCATTERED_BYTES + end - start
    const flags = flagsOf(run) | DELIVER_FLAG.scattered
    const joins =
      this.#outbox === outbox &&
      head.subscriptionId === recipient.id &&
      (head.firstTag + head.count) >>> 0 === (firstTag + index) >>> 0 &&
      head.attempt === run.attempt &&
      head.flags === flags &&
      !run.alone &&
      this.#end - this.#payloadAt + length <= SCATTERED_FRAME_BYTES
    let at = joins ? outbox.extend(this.#bufferNumber, this.#end, length) : -1
    if (at === -1) {
      this.#describe(recipient, delivery, index, 1, flags)
      at = this.#begin(outbox, recipient.channel, length)
      this.#outbox = outbox
      this.#bufferNumber = outbox.bufferNumber
      this.#payloadAt = at - DELIVER_HEADER_BYTES
      this.#end = at + length
    } else {
      head.count++
      this.#end = at + length
      writeDeliverCount(outbox.bytes, this.#payloadAt, head.count)
      writeFrameLength(outbox.bytes, this.#payloadAt - FRAME_HEADER_BYTES, this.#end - this.#payloadAt)
    }
    const recordAt = writeScatteredHead(outbox.bytes, at, run.offset + index, run.publishedAtMs)
    outbox.bytes.set(viewBytes(bytes, start, end), recordAt)
    return end
  }

  // Sets the head of a frame whose first message is at `index`.
  #describe(
    recipient: Recipient,
    { run, firstTag }: Delivery,
    index: number,
    count: number,
    flags: number,
  ): void {
    const head = this.#head
    head.subscriptionId = recipient.id
    head.firstTag = (firstTag + index) >>> 0
    head.firstOffset = run.offset + index
    head.publishedAtMs = run.publishedAtMs
    head.count = count
    head.attempt = run.attempt
    head.flags = flags
  }

  // Starts a frame whose records take `bytes`; returns the index at which the records must be written.
  #begin(outbox: Outbox, channel: number, bytes: number): number {
    const at = outbox.begin(OP.DELIVER, channel, 0, DELIVER_HEADER_BYTES + bytes)
    return writeDeliverHead(outbox.bytes, at, this.#head)
  }
}

function flagsOf(run: Run): number {
  return (run.redelivered ? DELIVER_FLAG.redelivered : 0) | (run.alone ? DELIVER_FLAG.alone : 0)
}
