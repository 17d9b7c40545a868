/**
 * The transport of a peer over a TCP socket. Whether the socket is read depends on two callers: the peer, which pauses and
 * resumes, and the listener, which lets a busy socket rest until the next turn. It is read only when neither holds it.
 */
import type { Socket } from 'node:net'
import type { Transport } from './peer.js'

/** How long a closed connection may take to flush its last words. */
const LINGER_MS = 1_000

export class SocketTransport implements Transport {
  readonly peer: string
  readonly #socket: Socket
  #isPaused = false
  #isEnded = false
  #isResting = false

  constructor(socket: Socket) {
    this.#socket = socket
    this.peer = `${socket.remoteAddress ?? ''}:${socket.remotePort ?? 0}`
  }

  write(bytes: Uint8Array, written: () => void): void {
    if (this.#socket.writable) this.#socket.write(bytes, written)
  }

  pause(): void {
    this.#isPaused = true
    this.#socket.pause()
  }

  resume(): void {
    this.#isPaused = false
    if (!this.#isResting) this.#socket.resume()
  }

  /** Reads on in the next turn, unless it is paused then. */
  rest(): void {
    if (this.#isResting) return
    this.#isResting = true
    this.#socket.pause()
    setImmediate(() => {
      this.#isResting = false
      if (!this.#isPaused) this.#socket.resume()
    })
  }

  end(): void {
    if (this.#isEnded) return
    this.#isEnded = true
    this.#socket.end()
    // What comes is read and dropped: closing a socket with unread bytes resets it, and the last words are lost.
    this.#isResting = false
    this.resume()
    // A peer that does not close its side is not waited for.
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref()
  }
}
