/**
 * What a connection has not read, and what follows from it: beyond the soft bound it is congested and gets no
 * deliveries; if it then reads nothing for too long, or far more is unread, it is closed. Called by the session for
 * each delivery, at the end of each turn, when the transport has passed bytes on, and by its tick.
 *
 * Invariant: `outbound.bytes` has what this connection counted into it, until `clear`.
 */
import { MESSAGE_OVERHEAD_BYTES, SluiceError, durationText } from '@sluice/protocol'
import type { Outboxes } from './outboxes.js'
import type { SessionSettings } from './settings.js'

export class Unread {
  /** More is unread than may be; deliveries wait. */
  isCongested = false
  readonly #outboxes: Outboxes
  readonly #settings: SessionSettings
  /** Its part of what all connections have not read. */
  #countedBytes = 0
  /** Largest message or answer that was written: it may be more than is kept else, and more than a message may have by now. */
  #largestBytes = 0
  /** Since when it is congested and has read nothing, ms; 0: it is not. */
  #stalledSinceMs = 0

  constructor(outboxes: Outboxes, settings: SessionSettings) {
    this.#outboxes = outboxes
    this.#settings = settings
  }

  /** Bytes that wait for the disk or for the peer. */
  get bytes(): number {
    return this.#outboxes.outstandingBytes
  }

  get isOverSoft(): boolean {
    return this.bytes > this.#softBytes
  }

  // While all connections together have too much unread, each gets only what it reads at once.
  get #softBytes(): number {
    const { outbound, outboundBytesSoft } = this.#settings
    return outbound.bytes > outbound.bytesMax ? 0 : outboundBytesSoft
  }

  /** A message or an answer of `bytes` was written. */
  wrote(bytes: number): void {
    if (bytes > this.#largestBytes) this.#largestBytes = bytes
  }

  /** Deliveries were written: are there too many by now? */
  delivered(nowMs: number): void {
    this.count()
    if (this.bytes > this.#softBytes) this.#congest(nowMs)
  }

  /** Brings what all connections have not read up to date. */
  count(): void {
    const { outbound } = this.#settings
    const { bytes } = this
    outbound.bytes += bytes - this.#countedBytes
    this.#countedBytes = bytes
  }

  /** The peer has read something. Returns whether deliveries, which waited, can go on. */
  eased(nowMs: number): boolean {
    if (!this.isCongested) return false
    this.#stalledSinceMs = nowMs
    if (this.bytes > this.#softBytes / 2) return false
    this.isCongested = false
    this.#stalledSinceMs = 0
    return true
  }

  /** The error with which the connection ends because more is unread than is kept, or undefined. */
  overflow(messageBytesMax: number): SluiceError | undefined {
    const { outboundBytesSoft, outboundBytesHard } = this.#settings
    // One message may be larger than all that is kept else.
    const messageBytes = Math.max(messageBytesMax, this.#largestBytes) + MESSAGE_OVERHEAD_BYTES
    const most = Math.max(outboundBytesSoft, messageBytes) + outboundBytesHard
    if (this.bytes <= most) return undefined
    return new SluiceError('SLOW_CONSUMER', `${this.bytes} bytes are unread; at most ${most} are kept.`)
  }

  /**
   * The error with which the connection ends because it has read nothing for too long, or undefined. `stallMs` is how
   * late this call comes: time that this process slept through does not count.
   */
  overdue(nowMs: number, stallMs: number): SluiceError | undefined {
    // A peer whose unread bytes use up what all connections share has to read them, even if there is nothing to deliver.
    if (this.#countedBytes > this.#softBytes) this.#congest(nowMs)
    // What waits for the disk cannot be read yet.
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

  /** The connection is closed: it counts no more among all. */
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
        `unread: ${this.#countedBytes} bytes counted, of ${this.#settings.outbound.bytes} of all`,
      )
  }

  #congest(nowMs: number): void {
    if (this.isCongested) return
    this.isCongested = true
    this.#stalledSinceMs = nowMs
  }
}
