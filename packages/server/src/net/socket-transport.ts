/**
 * The transport of a peer over a TCP socket. The peer pauses and resumes reading, and the listener suspends reading
 * from a busy socket until the next turn. The socket is read only while it is neither paused nor resting.
 */
import type { Socket } from 'node:net'
import type { Transport } from './peer.js'

/** Maximum time that a closed connection has to flush its last bytes. */
const LINGER_MS = 1_000

export class SocketTransport implements Transport {
  readonly address: string
  readonly #socket: Socket
  #isPaused = false
  #isEnded = false
  #isResting = false

  constructor(socket: Socket) {
    this.#socket = socket
    this.address = `${socket.remoteAddress ?? ''}:${socket.remotePort ?? 0}`
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

  /** Stops reading until the next turn. */
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
    // Further input is read and dropped, because closing a socket with unread input would reset the connection, and
    // the last sent bytes would be lost.
    this.#isResting = false
    this.resume()
    // The socket is destroyed after a while, because the client may never close its side.
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref()
  }
}
