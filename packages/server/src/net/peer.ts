/**
 * The two sides of a connection: the bytes below and the protocol above. The listener knows no more of a protocol than
 * `Peer`; a protocol knows no more of a socket than `Transport`. `Session` is the peer of Sluice's own protocol.
 */
import type { SluiceError } from '@sluice/protocol'

/** What a protocol needs of the connection under it. */
export interface Transport {
  /** Address and port of the other side. */
  readonly peer: string
  /** `bytes` stay untouched until `written` is called. */
  write(bytes: Uint8Array, written: () => void): void
  /** Stops and resumes the bytes that come in. */
  pause(): void
  resume(): void
  /** Sends what was written, then closes. */
  end(): void
}

/**
 * One connection, as a protocol sees it. Each call is in a turn of the broker, which `receive` begins itself. Once it has
 * closed, calls do nothing.
 */
export interface Peer {
  /** The label that the client gave itself; '' as long as it is not known. */
  readonly label: string
  /** Bytes of half-received input that it keeps. */
  readonly heldBytes: number
  /** It holds no lease and waits for nothing: closing it takes nothing from its client. */
  readonly isIdle: boolean
  /** The next bytes. */
  receive(chunk: Uint8Array, nowMs: number): void
  /** The other side sends no more bytes. */
  inputEnded(): void
  /** The transport is gone. */
  disconnected(): void
  /** The connection has no place: it is told this error as soon as the protocol allows, and closed. */
  refuse(error: SluiceError): void
  /** Judges deadlines. `stallMs` is how late this call comes: no client is blamed for what this process slept through. */
  tick(nowMs: number, stallMs: number): void
  /** The broker stops: tells the client, delivers nothing more, and still takes what the client has to say. */
  goodbye(text: string): void
  /** Closes once everything that is held has gone out. */
  end(): void
  /** Tells the client this error and closes. */
  fail(error: SluiceError): void
}

/**
 * A protocol takes over a connection that was accepted. `onClosed` is called once, with the error that ended it, when
 * the connection counts no more; the transport may still flush.
 */
export type NewPeer = (
  transport: Transport,
  nowMs: number,
  onClosed: (peer: Peer, why: SluiceError | undefined) => void,
) => Peer
