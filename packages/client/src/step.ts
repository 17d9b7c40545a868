/**
 * An atomic step: acknowledgements, and publishes to any queues and topics, in one ATOMIC frame. They take effect together or not
 * at all.
 *
 * Invariant: the step has pledged each message that it acknowledges, so that nothing else settles the message. The
 * message counts as settled when the frame is sent, and can be settled again if the step has no effect and the lease is
 * not lost.
 */
import {
  BATCH_ATTRIBUTE,
  ATOMIC_ACK_BYTES,
  ATOMIC_HEAD_BYTES,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  encodeAtomic,
  FRAME_HEADER_BYTES,
  isTopicAddress,
  LIMITS,
  OP,
  PUBLISH_NAME_AT,
  sealBatch,
  SluiceError,
  textBytes,
  writeFrameHeader,
  type AtomicAck,
  type AtomicBatch,
  type Placed,
  type SluiceErrorNames,
} from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { DeliveredMessage } from './message.js'
import { receipt, Sending, type Receipt } from './sending.js'

/** A message that a step publishes to a queue or to the address of a topic. */
export interface StepRecord {
  readonly queue: string
  readonly record: Uint8Array
}

interface StepBatch extends AtomicBatch {
  readonly count: number
  /** Number of the step minus the number of the batch that it follows; 0 if it follows none. */
  follows: number
}

export class Step extends Sending {
  readonly #messages: readonly DeliveredMessage[]
  /** The acknowledged messages, by their tags on the connection on which the step is sent. */
  #acks: readonly AtomicAck[]
  readonly #batches: readonly StepBatch[]
  /** For each record, the index of its batch and its index in the batch. */
  readonly #places: readonly (readonly [batch: number, index: number])[]
  #isOver = false

  /** @throws SluiceError TRANSACTION_TOO_LARGE */
  constructor(messages: readonly DeliveredMessage[], records: readonly StepRecord[]) {
    const acks = rangesOf(messages)
    const { batches, places } = batchesOf(records)
    limit('acknowledges', messages.length, 'messages', LIMITS.atomicAcksMax)
    limit('publishes', records.length, 'messages', LIMITS.atomicMessagesMax)
    limit('publishes', batches.length, 'batches', LIMITS.atomicBatchesMax)
    let bytes = FRAME_HEADER_BYTES + ATOMIC_HEAD_BYTES + acks.length * ATOMIC_ACK_BYTES
    for (const { queue, end } of batches) bytes += PUBLISH_NAME_AT + textBytes(queue) + end
    super(NO_BYTES, bytes)
    this.#messages = messages
    this.#acks = acks
    this.#batches = batches
    this.#places = places
    this.count = records.length
  }

  /** Names of the queues that the step publishes to. */
  get queues(): Iterable<string> {
    return this.#batches.map(({ queue }) => queue)
  }

  /**
   * Sets `follows` of each batch to the `distance` for its queue. Returns whether any batch of the step follows another
   * batch.
   */
  follow(distance: (queue: string) => number): boolean {
    let follows = false
    for (const batch of this.#batches) {
      batch.follows = distance(batch.queue)
      if (batch.follows > 0) follows = true
    }
    return follows
  }

  readonly maySplit = false

  // A step has no frame until it is sent. `bytes` also contains frames of other sendings, so it must not be changed.
  protected unwritten(): void {
    this.bytes = NO_BYTES
    this.at = 0
  }

  get isBound(): boolean {
    return this.#messages.length > 0
  }

  readonly names: SluiceErrorNames = {}

  compact(): boolean {
    return this.live > 0
  }

  obstacle(connection: Connection): SluiceError | undefined {
    for (const message of this.#messages) {
      const obstacle = message.obstacle(connection)
      if (obstacle !== undefined) return obstacle
    }
    // If the lease of a message was claimed on another connection, the message has another tag on that connection.
    const acks = rangesOf(this.#messages)
    this.end += (acks.length - this.#acks.length) * ATOMIC_ACK_BYTES
    this.#acks = acks
    return undefined
  }

  protected write(frames: Buffer, at: number, unansweredBelow: number): void {
    for (const { bytes, end, count, follows } of this.#batches) {
      sealBatch(bytes, 0, end, {
        type: BATCH_TYPE.messages,
        attributes: BATCH_ATTRIBUTE.atomic,
        count,
        batchNumber: this.number,
        follows,
      })
    }
    const payload = encodeAtomic(this.number, this.#acks, this.#batches)
    frames.set(payload, writeFrameHeader(frames, at, payload.length, OP.ATOMIC, 0, unansweredBelow))
    for (const message of this.#messages) message.sent()
  }

  /** Whether an answer has a valid place for each batch. */
  takes(places: readonly Placed[]): boolean {
    const known = ({ baseOffset }: Placed): boolean => Number.isSafeInteger(baseOffset)
    return places.length === this.#batches.length && places.every(known)
  }

  /** Called when the step took effect: resolves the promise of its caller. */
  confirm(places: readonly Placed[]): void {
    this.#isOver = true
    for (const message of this.#messages) message.accepted()
    const resolve = this.resolves[0]
    if (resolve === undefined) return
    const receipts: Receipt[] = []
    for (const [batch, index] of this.#places) {
      // For a topic, the broker answers with the number of targets.
      if (isTopicAddress(this.#batches[batch]!.queue)) continue
      const { baseOffset, duplicates } = places[batch]!
      receipts.push(receipt(baseOffset, index, duplicates))
    }
    resolve(receipts)
  }

  hadNoEffect(): void {
    if (this.#isOver) return
    this.#isOver = true
    for (const message of this.#messages) message.reopen()
  }
}

const NO_BYTES = Buffer.alloc(0)

function limit(does: string, count: number, what: string, max: number): void {
  if (count <= max) return
  throw new SluiceError(
    'TRANSACTION_TOO_LARGE',
    `An atomic step ${does} ${count} ${what}; at most ${max} are accepted.`,
  )
}

function rangesOf(messages: readonly DeliveredMessage[]): AtomicAck[] {
  const acks = messages.map((message) => message.acknowledgement())
  acks.sort((a, b) => a.channel - b.channel || a.subscriptionId - b.subscriptionId || a.firstTag - b.firstTag)
  const ranges: AtomicAck[] = []
  for (const ack of acks) {
    const last = ranges.at(-1)
    const joins =
      last !== undefined &&
      last.channel === ack.channel &&
      last.subscriptionId === ack.subscriptionId &&
      last.firstTag + last.count === ack.firstTag
    if (joins) ranges[ranges.length - 1] = { ...last, count: last.count + 1 }
    else ranges.push(ack)
  }
  return ranges
}

/** Puts the records of each queue into one batch, or, if they do not fit, into several in their order. */
function batchesOf(records: readonly StepRecord[]): {
  readonly batches: StepBatch[]
  readonly places: (readonly [number, number])[]
} {
  const drafts: { queue: string; records: Uint8Array[]; bytes: number }[] = []
  const byQueue = new Map<string, number>()
  const places = records.map(({ queue, record }): readonly [number, number] => {
    let at = byQueue.get(queue)
    if (at === undefined || drafts[at]!.bytes + record.length > LIMITS.batchBytesMax) {
      at = drafts.push({ queue, records: [], bytes: BATCH_HEADER_BYTES }) - 1
      byQueue.set(queue, at)
    }
    const draft = drafts[at]!
    draft.bytes += record.length
    return [at, draft.records.push(record) - 1]
  })
  const batches = drafts.map(({ queue, records, bytes: end }): StepBatch => {
    const bytes = new Uint8Array(end)
    let at = BATCH_HEADER_BYTES
    for (const record of records) {
      bytes.set(record, at)
      at += record.length
    }
    return { queue, bytes, at: 0, end, count: records.length, follows: 0 }
  })
  return { batches, places }
}
