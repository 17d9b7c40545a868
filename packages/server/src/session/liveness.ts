/**
 * Heartbeats of a connection: the times at which bytes were last received and sent, the PING that is sent during
 * silence, and the deadline for a silent client. Called by the session for each chunk, write and tick.
 *
 * Invariant: heartbeats do not wait for entries to be durable, because a broker with a slow disk must not look dead
 * to its clients.
 */
import { FRAME_HEADER_BYTES, OP, SluiceError, durationText, writeFrameHeader } from '@sluice/protocol'
import type { OutboxTransport } from './outbox.js'

/** Maximum number of unread answers to PING. Only a client that does not read can exceed it. */
const URGENT_UNREAD_MAX = 10_000

export class Liveness {
  /** Half of the time after which a silent connection is closed. */
  heartbeatMs: number
  readonly #transport: OutboxTransport
  #receivedMs: number
  #sentMs: number
  /** Number of writes that bypassed the outboxes and that the client has not read yet. */
  #urgentUnread = 0

  constructor(transport: OutboxTransport, heartbeatMs: number, nowMs: number) {
    this.#transport = transport
    this.heartbeatMs = heartbeatMs
    this.#receivedMs = nowMs
    this.#sentMs = nowMs
  }

  /** Called when bytes have arrived, and while no bytes can arrive because reading is paused. */
  received(nowMs: number): void {
    this.#receivedMs = nowMs
  }

  /** Called when bytes are being sent. */
  sent(nowMs: number): void {
    this.#sentMs = nowMs
  }

  /** Returns HEARTBEAT_TIMEOUT after two heartbeats of silence. For `stallMs` see `Session.tick`. */
  overdue(nowMs: number, stallMs: number): SluiceError | undefined {
    this.#receivedMs = Math.min(nowMs, this.#receivedMs + stallMs)
    if (nowMs - this.#receivedMs <= this.heartbeatMs * 2) return undefined
    return new SluiceError(
      'HEARTBEAT_TIMEOUT',
      `Nothing was received for ${durationText(Math.round(nowMs - this.#receivedMs))}; at most two heartbeats of ${durationText(this.heartbeatMs)} are allowed.`,
    )
  }

  /** Sends PING if nothing has been sent for half a heartbeat. */
  beat(nowMs: number): void {
    if (nowMs - this.#sentMs >= this.heartbeatMs / 2) this.#frame(OP.PING, 0, nowMs)
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

  /** Sends bytes at once. These bytes confirm nothing, so they need not wait for an entry to be durable. */
  send(bytes: Uint8Array, nowMs: number): void {
    this.#sentMs = nowMs
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
