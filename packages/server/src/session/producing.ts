/**
 * The producing half of a connection: PUBLISH and ATOMIC, and their answers. Called by the session with each such
 * frame, from the handshake on.
 *
 * Invariant: each batch or atomic step whose number can be read gets one answer under that number, or its error ends
 * the connection. At most `inFlightBatchesMax` batches and atomic steps are unanswered at a time.
 */
import {
  OP,
  PUBLISH_NAME_AT,
  SluiceError,
  atomicNumber,
  decodeAtomic,
  encodeAtomicOk,
  encodePublishErr,
  isTopicAddress,
  publishBatchStart,
  publishNumber,
  readText,
  type Frame,
  type Placed,
} from '@sluice/protocol'
import type { Broker, Output } from '../broker/broker.js'
import type { Producer } from '../state/producers.js'
import { faultOf } from './answers.js'
import { Confirms } from './confirms.js'
import type { Consuming } from './consuming.js'
import type { Agreement } from './handshake.js'
import type { Outbox } from './outbox.js'
import type { Reading } from './reading.js'

export class Producing {
  readonly #broker: Broker
  readonly #connection: Output
  readonly #outbox: Outbox
  readonly #reading: Reading
  readonly #consuming: Consuming
  readonly #confirms = new Confirms()
  #producer: Producer | undefined
  #inFlightBatchesMax = 0

  /** `connection` sends the frames in `outbox` at the end of a turn. */
  constructor(broker: Broker, connection: Output, outbox: Outbox, reading: Reading, consuming: Consuming) {
    this.#broker = broker
    this.#connection = connection
    this.#outbox = outbox
    this.#reading = reading
    this.#consuming = consuming
  }

  /** Called when the handshake is done. @throws SluiceError PRODUCER_UNKNOWN, TOO_MANY_CONNECTIONS */
  begin({ identity, acceptedNumber, inFlightBatchesMax }: Agreement): void {
    this.#producer = this.#broker.producers.attach(identity, acceptedNumber)
    this.#inFlightBatchesMax = inFlightBatchesMax
  }

  /** Called when the connection is closed. `hasLeft` says that the client will not reconnect. */
  end(hasLeft: boolean): void {
    if (this.#producer !== undefined) this.#broker.producers.detach(this.#producer, hasLeft)
  }

  /** The correlation of PUBLISH and ATOMIC is the distance from their number down to the lowest unanswered number. */
  publish({ correlation: unanswered, bytes, start, end }: Frame): void {
    const batchAt = publishBatchStart(bytes, start, end)
    // A refusal names the batch number. An error before the number is known ends the connection.
    const number = publishNumber(bytes, batchAt)
    this.#checkWindow(unanswered)
    try {
      const nameAt = start + PUBLISH_NAME_AT
      const to = this.#broker.catalog.queueAt(bytes, nameAt, batchAt) ?? readText(bytes, nameAt, batchAt)
      if (typeof to !== 'string' && to.options.expiresMs > 0) this.#broker.unused.used(to)
      const placed =
        typeof to === 'string' && isTopicAddress(to)
          ? this.#toTopic(to, bytes, batchAt, end, unanswered)
          : this.#broker.intake.publish(this.#producer!, to, bytes, batchAt, end, unanswered)
      // A confirm that shares an earlier frame is sent together with that frame.
      if (this.#confirms.write(this.#outbox, number, placed)) this.#broker.noteOutput(this.#connection)
      this.#accepted(end - start)
    } catch (error) {
      this.#refuse(number, error)
    }
  }

  // The answer has the number of targets where that of a queue has the base offset.
  #toTopic(address: string, bytes: Uint8Array, at: number, end: number, unanswered: number): Placed {
    const batch = { bytes, at, end }
    const baseOffset = this.#broker.topics.publish(this.#producer!, address, batch, unanswered)
    return { baseOffset, duplicates: undefined }
  }

  atomic({ correlation: unanswered, bytes, start, end }: Frame): void {
    const number = atomicNumber(bytes, start, end)
    this.#checkWindow(unanswered)
    try {
      const { crc, acks, batches } = decodeAtomic(bytes, start, end)
      const ranges = acks.map(({ channel, subscriptionId, firstTag, count }) => ({
        subscription: this.#consuming.subscription(channel, subscriptionId),
        firstTag,
        count,
      }))
      const step = { number, crc, acks: ranges, batches }
      for (const { queue } of batches) this.#broker.unused.usedName(queue)
      const places = this.#broker.intake.atomic(this.#producer!, step, unanswered)
      this.#outbox.frame(OP.ATOMIC_OK, 0, 0, encodeAtomicOk(number, places))
      this.#broker.noteOutput(this.#connection)
      this.#accepted(end - start)
    } catch (error) {
      this.#refuse(number, error)
    }
  }

  #checkWindow(unanswered: number): void {
    if (unanswered >= this.#inFlightBatchesMax)
      throw tooManyInFlight(unanswered + 1, this.#inFlightBatchesMax)
  }

  // Records that the last frame answers a batch of `bytes`.
  #accepted(bytes: number): void {
    this.#outbox.answers(bytes)
    this.#reading.accepted(this.#outbox.inFlightBytes)
  }

  #refuse(number: number, error: unknown): void {
    if (!(error instanceof SluiceError) || error.scope !== 'request') throw error
    this.#outbox.frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(number, faultOf(error)))
    this.#broker.noteOutput(this.#connection)
  }
}

// This is a separate function so that the text does not enlarge the code that runs for each batch.
function tooManyInFlight(batches: number, most: number): SluiceError {
  return new SluiceError(
    'IN_FLIGHT_EXCEEDED',
    `${batches} batches are unanswered; at most ${most} are allowed.`,
  )
}
