/**
 * Whether the two sides of a connection still hear each other: when the peer was heard last, when it was last sent
 * something, and the heartbeats that fill the silence. Called by the session for each chunk, write and tick.
 *
 * Heartbeats do not wait at the gate: a slow disk must not look like a dead peer.
 */
import { FRAME_HEADER_BYTES, OP, SluiceError, durationText, writeFrameHeader } from '@sluice/protocol'
import type { OutboxTransport } from './outbox.js'

/** Answers to PING that are kept for a peer that does not read; nobody else asks so often. */
const URGENT_UNREAD_MAX = 10_000

export class Liveness {
  /** Half of the silence after which a peer is given up. */
  heartbeatMs: number
  readonly #transport: OutboxTransport
  #heardMs: number
  #spokeMs: number
  /** Writes that went past the outboxes and that the transport has not passed on. */
  #urgentUnread = 0

  constructor(transport: OutboxTransport, heartbeatMs: number, nowMs: number) {
    this.#transport = transport
    this.heartbeatMs = heartbeatMs
    this.#heardMs = nowMs
    this.#spokeMs = nowMs
  }

  /** Bytes of the peer came; or none could, because they are not read. */
  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  /** Bytes go to the peer. */
  spoke(nowMs: number): void {
    this.#spokeMs = nowMs
  }

  /**
   * The error with which the connection ends because the peer is silent, or undefined. `stallMs` is how late this call
   * comes: time that this process slept through does not count.
   */
  overdue(nowMs: number, stallMs: number): SluiceError | undefined {
    this.#heardMs = Math.min(nowMs, this.#heardMs + stallMs)
    if (nowMs - this.#heardMs <= this.heartbeatMs * 2) return undefined
    return new SluiceError(
      'HEARTBEAT_TIMEOUT',
      `Nothing was received for ${durationText(Math.round(nowMs - this.#heardMs))}; the heartbeat is ${durationText(this.heartbeatMs)}.`,
    )
  }

  /** Sends PING if nothing was sent for half a heartbeat. */
  beat(nowMs: number): void {
    if (nowMs - this.#spokeMs >= this.heartbeatMs / 2) this.#frame(OP.PING, 0, nowMs)
  }

  /** Answers PING. @throws SluiceError SLOW_CONSUMER */
  pong(correlation: number, nowMs: number): void {
    this.#frame(OP.PONG, correlation, nowMs)
    if (this.#urgentUnread <= URGENT_UNREAD_MAX) return
    throw new SluiceError(
      'SLOW_CONSUMER',
      `${this.#urgentUnread} answers to PING are unread; at most ${URGENT_UNREAD_MAX} are kept.`,
    )
  }

  /** Sends bytes that promise nothing of what is on disk. */
  send(bytes: Uint8Array, nowMs: number): void {
    this.#spokeMs = nowMs
    this.#urgentUnread++
    this.#transport.write(bytes, () => {
      this.#urgentUnread--
    })
  }

  #frame(opcode: number, correlation: number, nowMs: number): void {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES)
    writeFrameHeader(bytes, 0, 0, opcode, 0, correlation)
    this.send(bytes, nowMs)
  }
}
