/**
 * The two outboxes of a connection. Answers, and deliveries that depend on something that is not durable yet, wait in
 * `gated` for the entry of their turn. Other deliveries do not need to wait and go through `free`, unless a frame in
 * `gated` must precede them.
 *
 * Invariant: a delivery overtakes only answers to publishes and settles, never another delivery or SUBSCRIBE_OK.
 */
import { Outbox, type OutboxTransport } from './outbox.js'

export class Outboxes {
  readonly gated: Outbox
  readonly free: Outbox

  /** `written` is called each time the transport has sent some of the bytes. */
  constructor(transport: OutboxTransport, written: () => void) {
    this.gated = new Outbox(transport, written)
    this.free = new Outbox(transport, written)
  }

  get isEmpty(): boolean {
    return this.gated.isEmpty && this.free.isEmpty
  }

  /** Number of bytes that wait for the disk or for the client. */
  get outstandingBytes(): number {
    return this.gated.outstandingBytes + this.free.outstandingBytes
  }

  /** The part of `outstandingBytes` that waits only for the client. */
  get unreadBytes(): number {
    return this.gated.unreadBytes + this.free.unreadBytes
  }

  /** Returns the outbox for a delivery. `ungated`: everything on which the delivery depends is already on disk. */
  forDelivery(ungated: boolean): Outbox {
    return ungated && this.gated.barriers === 0 ? this.free : this.gated
  }

  /** Called at the end of a turn. The frames of the turn wait for the entry `gate`. */
  endTurn(gate: number): void {
    this.gated.endTurn(gate)
    this.free.endTurn(0)
  }

  /** Sends the frames whose entries are durable, and returns whether other frames still wait. */
  sendDurable(durableLsn: number): boolean {
    // An entry can become durable in the middle of a turn. The free frames of that turn still wait for its end.
    const hasFree = this.free.sendDurable(durableLsn)
    return this.gated.sendDurable(durableLsn) || hasFree
  }

  clear(): void {
    this.gated.clear()
    this.free.clear()
  }

  /** @throws Error naming what differs */
  invariants(): void {
    this.gated.invariants()
    this.free.invariants()
  }
}
