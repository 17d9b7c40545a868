/**
 * The interface between a connection and its protocol. The listener knows a protocol only as a `Peer`, and a protocol
 * knows a socket only as a `Transport`. `Session` is the peer of Sluice's own protocol.
 */
import type { SluiceError } from '@sluice/protocol'

/** A connection, as its protocol sees it. */
export interface Transport {
  /** Address and port of the client. */
  readonly address: string
  /** Sends `bytes`, which must not be changed until `written` is called. */
  write(bytes: Uint8Array, written: () => void): void
  /** Stops reading until `resume`. */
  pause(): void
  resume(): void
  /** Sends the bytes that were already written, and then closes. */
  end(): void
}

/**
 * The protocol of one connection, as the listener sees it. `receive` starts a turn of the broker itself. The listener
 * starts a turn before the other calls, except `refuse` and the last `end` when the broker stops. After the peer has
 * closed, its methods have no effect.
 */
export interface Peer {
  /** The label that the client has chosen; empty until the label is known. */
  readonly label: string
  /** Memory held for a partly received frame. */
  readonly heldBytes: number
  /** Whether no message is leased and no answer is outstanding, so that the connection can be closed without loss. */
  readonly isIdle: boolean
  /** Handles the next bytes from the client. */
  receive(chunk: Uint8Array, nowMs: number): void
  /** Called when the client sends no more bytes. */
  inputEnded(): void
  /** Called when the transport is closed. */
  disconnected(): void
  /** Refuses a connection beyond the limit. Sends this error as soon as the protocol allows it, and then closes. */
  refuse(error: SluiceError): void
  /** Checks deadlines. `stallMs` is the delay of this call, which does not count against the client. */
  tick(nowMs: number, stallMs: number): void
  /**
   * Called when the broker is stopping. Notifies the client and delivers nothing more, but frames of the client are
   * still handled.
   */
  goodbye(text: string): void
  /** Closes once all answers have been sent. */
  end(): void
  /** Sends this error and closes. */
  fail(error: SluiceError): void
}

/**
 * Creates the peer of an accepted connection. `onClosed` is called once when the peer has closed, with the error that
 * closed the peer, if there was an error. The transport may still be flushing at that time.
 */
export type NewPeer = (
  transport: Transport,
  nowMs: number,
  onClosed: (peer: Peer, why: SluiceError | undefined) => void,
) => Peer
