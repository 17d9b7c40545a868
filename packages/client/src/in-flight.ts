/**
 * The sendings of a producer (batches and steps) that were sent and are unanswered, by number. This class limits how
 * much may be in flight, sends everything again on a new connection, and keeps refused sendings until they are sent
 * under new numbers.
 *
 * Invariant: each number is given to one sending, and always goes with the same bytes. A sending stays here, byte for byte,
 * until it is accepted, finally refused or given up, whether or not a caller still waits for it.
 */
import { LIMITS, writeFrameCorrelation, type HelloOk } from '@sluice/protocol'
import type { Connection } from './connection.js'
import { NumberRing } from './number-ring.js'
import { unknownOutcome } from './outcomes.js'
import type { Sending } from './sending.js'

const SMALLER_WINDOW = 'the broker now accepts fewer unanswered batches than were sent'

export class InFlight {
  readonly #messagesMax: number
  /** Byte limit of the client; the limit of the broker may be lower. */
  readonly #bytesSetting: number
  #bytesMax: number
  #batchesMax: number = LIMITS.inFlightBatchesDefault
  #lastNumber = 0
  #acceptedNumber = 0
  readonly #sent = new NumberRing<Sending>()
  #messages = 0
  #bytes = 0
  /**
   * Sendings that were sent on an earlier connection and are not sent yet on this connection, in descending order of
   * their numbers.
   */
  #again: Sending[] = []
  /**
   * Number of refused sendings. They are sent again under new numbers when all other sendings are answered, and nothing new
   * is sent before that. Until then they keep their numbers: after a reconnect they are sent before later sendings, because
   * a broker that forgot their refusal would otherwise accept the later sendings first.
   */
  #refused = 0
  /**
   * Set after a refusal: from then on, batches that may be split are sent one at a time, until one of them is accepted.
   */
  #isCautious = false
  /** Number of the last batch that may be split and was sent while cautious. */
  #probe = 0

  constructor(messagesMax: number, bytesMax: number) {
    this.#messagesMax = messagesMax
    this.#bytesSetting = bytesMax
    this.#bytesMax = bytesMax
  }

  get size(): number {
    return this.#sent.size
  }

  /** The highest number given so far. */
  get lastNumber(): number {
    return this.#lastNumber
  }

  /** The highest number that the broker has confirmed. */
  get acceptedNumber(): number {
    return this.#acceptedNumber
  }

  /** Whether some sending must be sent again before new work. */
  get isBehind(): boolean {
    return this.#again.length > 0 || this.#refused > 0
  }

  get(number: number): Sending | undefined {
    return this.#sent.get(number)
  }

  /** Iterates over the sendings by ascending number. */
  values(): IterableIterator<Sending> {
    return this.#sent.values()
  }

  /** Whether `sending` may be sent next. */
  admits(sending: Sending): boolean {
    // A sending is always admitted when nothing is in flight. Otherwise a message larger than the window would never be
    // sent.
    if (this.#sent.size === 0) return true
    return (
      this.unansweredBelow(this.#lastNumber + 1) < this.#batchesMax &&
      this.#messages + sending.count <= this.#messagesMax &&
      this.#bytes + sending.end <= this.#bytesMax &&
      !(this.#isCautious && this.#sent.get(this.#probe) !== undefined)
    )
  }

  /** Adds `sending`, which is sent now, and gives it its number. */
  add(sending: Sending): void {
    sending.number = ++this.#lastNumber
    if (this.#isCautious && sending.maySplit) this.#probe = sending.number
    this.#sent.add(sending.number, sending)
    this.#messages += sending.count
    this.#bytes += sending.end
  }

  /**
   * Distance from `number` down to the lowest unanswered number. It is the correlation of the frame that is sent under
   * `number`. The broker may forget all numbers below the lowest unanswered one.
   */
  unansweredBelow(number: number): number {
    const { lowest } = this.#sent
    return lowest === undefined || lowest > number ? 0 : number - lowest
  }

  accept(sending: Sending): void {
    this.forget(sending)
    if (sending.number === this.#probe) this.#isCautious = false
    if (sending.number > this.#acceptedNumber) this.#acceptedNumber = sending.number
  }

  /** Marks `sending` as refused. It is sent again: as a whole, or split into one batch for each message. */
  sendAgain(sending: Sending, goesAgain: 'split' | 'whole'): void {
    this.#mark(sending, goesAgain)
    this.#isCautious = true
  }

  #mark(sending: Sending, goesAgain: Sending['goesAgain']): void {
    if (sending.goesAgain !== undefined) this.#refused--
    sending.goesAgain = goesAgain
    if (goesAgain !== undefined) this.#refused++
  }

  forget(sending: Sending): void {
    if (sending.goesAgain !== undefined) this.#mark(sending, undefined)
    this.#sent.delete(sending.number)
    this.#messages -= sending.count
    this.#bytes -= sending.end
  }

  /** Applies the limits of a new connection, and sends all unanswered sendings again. */
  attach(connection: Connection, ok: HelloOk): void {
    this.#batchesMax = ok.inFlightBatchesMax
    this.#bytesMax = Math.min(this.#bytesSetting, ok.inFlightBytesMax)
    for (const sending of this.#sent.values()) {
      if (sending.end > ok.frameBytesMax)
        this.#giveUp(sending, 'the broker no longer accepts a frame as large as the one that was sent')
    }
    this.#again = [...this.#sent.values()].reverse()
    this.#resend(connection)
    // These steps name subscriptions of the earlier connection by number. Subscriptions that are opened later on this
    // connection may get the same numbers.
    for (const sending of this.#again.filter(({ isBound }) => isBound)) this.#giveUp(sending, SMALLER_WINDOW)
  }

  /** Sends the sendings that were not yet sent on this connection. Returns whether a new sending may follow. */
  resume(connection: Connection): boolean {
    if (this.#again.length > 0) this.#resend(connection)
    if (this.#again.length > 0 && !this.#giveUpAgain()) return false
    return this.#refused === 0 || this.#sent.size === this.#refused
  }

  // Sends the same bytes again, except for the correlation, which is the distance to the lowest unanswered number.
  #resend(connection: Connection): void {
    for (let sending = this.#again.at(-1); sending !== undefined; sending = this.#again.at(-1)) {
      if (this.#sent.get(sending.number) === undefined) {
        this.#again.pop()
        continue
      }
      const unansweredBelow = this.unansweredBelow(sending.number)
      // The window of the broker may be smaller than it was.
      if (unansweredBelow >= this.#batchesMax) return
      this.#again.pop()
      this.#mark(sending, undefined)
      const { bytes, at, end } = sending
      writeFrameCorrelation(bytes, at, unansweredBelow)
      connection.sendFrames(bytes.subarray(at, at + end))
    }
  }

  // Refused sendings stay in the window until the rest is answered. If the window of this connection is smaller, the
  // refused sendings can fill it. In that case the sendings that could not be sent again are given up. Returns whether
  // any were given up.
  #giveUpAgain(): boolean {
    const again = this.#again.filter(({ number }) => this.#sent.get(number) !== undefined)
    const unanswered = again.filter(({ goesAgain }) => goesAgain === undefined)
    if (this.#refused === 0 || this.#sent.size > this.#refused + unanswered.length) return false
    this.#again = []
    for (const sending of unanswered) this.#giveUp(sending, SMALLER_WINDOW)
    return true
  }

  #giveUp(sending: Sending, why: string): void {
    this.forget(sending)
    sending.refuse(unknownOutcome(why))
  }

  /**
   * Removes and returns the refused sendings in the order of their numbers, each with the way in which it is sent
   * again.
   */
  takeRefused(): { readonly sending: Sending; readonly goesAgain: 'split' | 'whole' }[] {
    const refused: { sending: Sending; goesAgain: 'split' | 'whole' }[] = []
    if (this.#refused === 0) return refused
    for (const sending of this.#sent.values()) {
      const { goesAgain } = sending
      if (goesAgain === undefined) continue
      this.forget(sending)
      refused.push({ sending, goesAgain })
    }
    return refused
  }

  /** Removes and returns all sendings. */
  drain(): Sending[] {
    const sent = [...this.#sent.values()]
    this.#sent.clear()
    this.#again = []
    this.#messages = 0
    this.#bytes = 0
    this.#refused = 0
    return sent
  }

  /** Makes numbers start again at 1, for a new producer identity. */
  restart(): void {
    this.#lastNumber = 0
    this.#acceptedNumber = 0
    this.#probe = 0
  }

  /** Counts everything again and compares the results. @throws Error naming what differs */
  invariants(): void {
    let count = 0
    let messages = 0
    let bytes = 0
    let refused = 0
    for (const sending of this.#sent.values()) {
      const { number } = sending
      count++
      messages += sending.count
      bytes += sending.end
      if (sending.goesAgain !== undefined) refused++
      if (this.#sent.get(number) !== sending || number > this.#lastNumber)
        throw new Error(`in flight: ${number} is sent; the last number is ${this.#lastNumber}`)
      if (sending.open || sending.waitingBytes > 0)
        throw new Error(`in flight: ${number} is sent, but it is still open or waiting`)
    }
    const kept = `${this.#sent.size} sent, ${this.#messages} messages, ${this.#bytes} bytes, ${this.#refused} refused`
    const counted = `${count} sent, ${messages} messages, ${bytes} bytes, ${refused} refused`
    if (kept !== counted) throw new Error(`in flight: ${kept}; counted ${counted}`)
    if (this.#acceptedNumber > this.#lastNumber)
      throw new Error(
        `in flight: ${this.#acceptedNumber} is accepted, above ${this.#lastNumber}, the last number`,
      )
  }
}
