/** A peer on a socket: sends any bytes and keeps every frame that it receives. */
import {
  FrameDecoder,
  LIMITS,
  OP,
  decodeFault,
  decodeHelloOk,
  decodePublishErr,
  encodePreface,
  type Fault,
  type Hello,
  type HelloOk,
} from '@sluice/protocol'
import { connect, type Socket } from 'node:net'
import { authFrame, frame, helloFrame } from './frames.js'

export interface Frame {
  readonly opcode: number
  readonly channel: number
  readonly correlation: number
  readonly payload: Uint8Array
}

export class Peer {
  readonly socket: Socket
  readonly frames: Frame[] = []
  /** Resolves with the time at which the connection closed. */
  readonly closed: Promise<number>
  receivedBytes = 0
  #isClosed = false
  #taken = 0
  readonly #waiters = new Set<() => void>()

  private constructor(port: number) {
    this.socket = connect({ host: '127.0.0.1', port, noDelay: true })
    const decoder = new FrameDecoder((opcode, _flags, channel, correlation, bytes, start, end) => {
      this.frames.push({ opcode, channel, correlation, payload: new Uint8Array(bytes.subarray(start, end)) })
    })
    decoder.frameBytesMax = LIMITS.frameBytesMax
    this.socket.on('data', (chunk) => {
      this.receivedBytes += chunk.length
      decoder.push(chunk)
      this.#tell()
    })
    // A broker may reset the connection; 'close' follows the error.
    this.socket.on('error', () => undefined)
    this.closed = new Promise((resolve) => {
      this.socket.once('close', () => {
        this.#isClosed = true
        resolve(performance.now())
        this.#tell()
      })
    })
  }

  static connect(port: number): Promise<Peer> {
    const peer = new Peer(port)
    return new Promise((resolve, reject) => {
      peer.socket.once('connect', () => resolve(peer))
      peer.socket.once('error', reject)
    })
  }

  /** Connects and completes the handshake. */
  static async open(port: number, hello: Partial<Hello> = {}): Promise<Peer> {
    const peer = await Peer.connect(port)
    await peer.handshake(hello)
    return peer
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  send(...parts: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts))
  }

  async handshake(hello: Partial<Hello> = {}): Promise<HelloOk> {
    this.send(encodePreface(), helloFrame(hello), authFrame())
    const { payload } = await this.frame(OP.HELLO_OK)
    return decodeHelloOk(payload, 0, payload.length)
  }

  /**
   * The next frame with one of these opcodes; earlier frames are skipped. Rejects if the connection ends before one
   * arrives.
   */
  frame(...opcodes: readonly number[]): Promise<Frame> {
    return this.#next((frame) => opcodes.includes(frame.opcode))
  }

  async #next(accepts: (frame: Frame) => boolean): Promise<Frame> {
    for (;;) {
      while (this.#taken < this.frames.length) {
        const frame = this.frames[this.#taken++]!
        if (accepts(frame)) return frame
      }
      if (this.#isClosed)
        throw new Error(
          `the connection was closed after ${this.frames.length} frames, without the expected one`,
        )
      await new Promise<void>((resolve) => this.#waiters.add(resolve))
    }
  }

  /** The content of the next ERROR or PUBLISH_ERR. */
  async fault(): Promise<Fault> {
    const { opcode, payload } = await this.frame(OP.ERROR, OP.PUBLISH_ERR)
    return opcode === OP.ERROR
      ? decodeFault(payload, 0, payload.length)
      : decodePublishErr(payload, 0, payload.length).fault
  }

  /** Whether the broker still answers on this connection. */
  async answers(): Promise<boolean> {
    const correlation = 0x7e57
    this.send(frame(OP.PING, 0, correlation))
    try {
      await this.#next((answer) => answer.opcode === OP.PONG && answer.correlation === correlation)
      return true
    } catch {
      return false
    }
  }

  #tell(): void {
    const waiters = [...this.#waiters]
    this.#waiters.clear()
    for (const resolve of waiters) resolve()
  }

  async dispose(): Promise<void> {
    this.socket.destroy()
    await this.closed
  }
}
