/**
 * The bytes that a client has not read, and the limits on them. Above the soft bound the connection is congested and
 * gets no deliveries; it is closed above the hard bound, or if the client reads nothing for too long while it is
 * congested. Called by the session for each delivery, at the end of each turn, when the transport has sent bytes, and
 * at each tick.
 *
 * Invariant: `outbound.bytes` includes the `#countedBytes` of this connection until `clear`.
 */
import { MESSAGE_OVERHEAD_BYTES, SluiceError, durationText } from '@sluice/protocol'
import type { Outboxes } from './outboxes.js'
import type { SessionSettings } from './settings.js'

export class Unread {
  /** Whether deliveries wait because the unread bytes have exceeded the soft bound. */
  isCongested = false
  readonly #outboxes: Outboxes
  readonly #settings: SessionSettings
  /** The bytes of this connection that are counted in `outbound`. */
  #countedBytes = 0
  /**
   * Size of the largest delivery or answer so far. It can exceed the bounds. If the message limit was lowered, it can
   * also exceed that limit.
   */
  #largestBytes = 0
  /**
   * Time in ms since which the connection has been congested and nothing was read; 0 if the connection is not
   * congested.
   */
  #stalledSinceMs = 0

  constructor(outboxes: Outboxes, settings: SessionSettings) {
    this.#outboxes = outboxes
    this.#settings = settings
  }

  /** Number of bytes that wait for the disk or for the client. */
  get bytes(): number {
    return this.#outboxes.outstandingBytes
  }

  get isOverSoft(): boolean {
    return this.bytes > this.#softBytes
  }

  // While all connections together exceed their bound, each connection gets its next delivery when it has read the
  // previous delivery.
  get #softBytes(): number {
    const { outbound, outboundBytesSoft } = this.#settings
    return outbound.bytes > outbound.bytesMax ? 0 : outboundBytesSoft
  }

  /** Called when a delivery or an answer of this size was written. */
  wrote(bytes: number): void {
    if (bytes > this.#largestBytes) this.#largestBytes = bytes
  }

  /** Called when deliveries were written. The connection may now be congested. */
  delivered(nowMs: number): void {
    this.count()
    if (this.bytes > this.#softBytes) this.#congest(nowMs)
  }

  /** Updates the sum of unread bytes of all connections. */
  count(): void {
    const { outbound } = this.#settings
    const { bytes } = this
    outbound.bytes += bytes - this.#countedBytes
    this.#countedBytes = bytes
  }

  /** Called when the client has read something. Returns true if deliveries that waited can continue. */
  hasRead(nowMs: number): boolean {
    if (!this.isCongested) return false
    this.#stalledSinceMs = nowMs
    if (this.bytes > this.#softBytes / 2) return false
    this.isCongested = false
    this.#stalledSinceMs = 0
    return true
  }

  /** Returns SLOW_CONSUMER above the hard bound. */
  overflow(messageBytesMax: number): SluiceError | undefined {
    const { outboundBytesSoft, outboundBytesHard } = this.#settings
    // A single message can be larger than the soft bound.
    const messageBytes = Math.max(messageBytesMax, this.#largestBytes) + MESSAGE_OVERHEAD_BYTES
    const most = Math.max(outboundBytesSoft, messageBytes) + outboundBytesHard
    if (this.bytes <= most) return undefined
    return new SluiceError('SLOW_CONSUMER', `${this.bytes} bytes are unread; at most ${most} are kept.`)
  }

  /** Returns SLOW_CONSUMER if nothing was read for too long. For `stallMs` see `Session.tick`. */
  overdue(nowMs: number, stallMs: number): SluiceError | undefined {
    // A client whose unread bytes exceed the bound must read them even if there is nothing to deliver.
    if (this.#countedBytes > this.#softBytes) this.#congest(nowMs)
    // Bytes that wait for the disk cannot be read yet.
    if (this.#outboxes.unreadBytes === 0) this.#stalledSinceMs &&= nowMs
    if (this.#stalledSinceMs === 0) return undefined
    this.#stalledSinceMs = Math.min(nowMs, this.#stalledSinceMs + stallMs)
    const { stalledMs } = this.#settings
    if (nowMs - this.#stalledSinceMs <= stalledMs) return undefined
    return new SluiceError(
      'SLOW_CONSUMER',
      `${this.bytes} bytes were not read for ${durationText(stalledMs)}.`,
    )
  }

  /** Called when the connection is closed. Removes its bytes from the sum over all connections. */
  clear(): void {
    this.#settings.outbound.bytes -= this.#countedBytes
    this.#countedBytes = 0
  }

  /** @throws Error naming what differs */
  invariants(): void {
    if (this.isCongested !== this.#stalledSinceMs > 0)
      throw new Error(`unread: congested is ${this.isCongested}, since ${this.#stalledSinceMs}`)
    if (this.#countedBytes < 0 || this.#settings.outbound.bytes < this.#countedBytes)
      throw new Error(
        `unread: ${this.#countedBytes} bytes are counted here, ${this.#settings.outbound.bytes} for all connections`,
      )
  }

  #congest(nowMs: number): void {
    if (this.isCongested) return
    this.isCongested = true
    this.#stalledSinceMs = nowMs
  }
}
