/** A peer that sends whatever bytes a test wants and keeps every frame that comes back. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  LIMITS,
  MECHANISM,
  OP,
  PROTOCOL_VERSION,
  decodeFault,
  decodeHelloOk,
  decodePublishErr,
  encodeAuth,
  encodeHello,
  encodePreface,
  recordBytes,
  sealBatch,
  textBytes,
  writeFrameHeader,
  writeRecordHead,
  writeText,
  type BatchStamp,
  type Fault,
  type Hello,
  type HelloOk,
  type RecordOptions,
} from '@sluice/protocol'
import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'

export interface Frame {
  readonly opcode: number
  readonly channel: number
  readonly correlation: number
  readonly payload: Uint8Array
}

export class Peer {
  readonly socket: Socket
  readonly frames: Frame[] = []
  /** Resolves with the time at which the connection was gone. */
  readonly closed: Promise<number>
  receivedBytes = 0
  #isClosed = false
  #taken = 0
  readonly #waiters = new Set<() => void>()

  private constructor(port: number) {
    this.socket = connect({ host: '127.0.0.1', port, noDelay: true })
    const decoder = new FrameDecoder(({ opcode, channel, correlation, bytes, start, end }) => {
      this.frames.push({ opcode, channel, correlation, payload: new Uint8Array(bytes.subarray(start, end)) })
    })
    decoder.frameBytesMax = LIMITS.frameBytesMax
    this.socket.on('data', (chunk) => {
      this.receivedBytes += chunk.length
      decoder.push(chunk)
      this.#tell()
    })
    // A reset is one way to be shown the door; 'close' follows.
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

  /** Connected and through the handshake. */
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

  /** The next frame of this kind; what came before it is passed over. Rejects when the connection ends without one. */
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
          `the connection was closed after ${this.frames.length} frames, without the one waited for`,
        )
      await new Promise<void>((resolve) => this.#waiters.add(resolve))
    }
  }

  /** The next ERROR or PUBLISH_ERR. */
  async fault(): Promise<Fault> {
    const { opcode, payload } = await this.frame(OP.ERROR, OP.PUBLISH_ERR)
    return opcode === OP.ERROR
      ? decodeFault(payload, 0, payload.length)
      : decodePublishErr(payload, 0, payload.length).fault
  }

  /** Whether the broker still answers here. */
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

export function frame(
  opcode: number,
  channel: number,
  correlation: number,
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
  return bytes
}

export function helloFrame(hello: Partial<Hello> = {}): Uint8Array {
  const payload = encodeHello({
    versionMin: PROTOCOL_VERSION,
    versionMax: PROTOCOL_VERSION,
    features: 0,
    frameBytesMax: LIMITS.frameBytesMax,
    heartbeatMs: LIMITS.heartbeatMsDefault,
    producer: randomBytes(16),
    acceptedNumber: 0,
    inFlightBatches: LIMITS.inFlightBatchesDefault,
    name: 'peer',
    ...hello,
  })
  return frame(OP.HELLO, 0, 1, payload)
}

export function authFrame(mechanism: number = MECHANISM.anonymous): Uint8Array {
  return frame(OP.AUTH, 0, 2, encodeAuth({ mechanism, identity: '', secret: new Uint8Array(0) }))
}

export interface RecordOf {
  readonly payload: Uint8Array
  readonly options?: RecordOptions
}

/** A batch whose checksum is right, whatever its header says. */
export function batch(
  batchNumber: number,
  records: readonly RecordOf[],
  stamp: Partial<BatchStamp> = {},
): Uint8Array {
  const sizes = records.map(({ payload, options }) => recordBytes(options, payload.length))
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + sizes.reduce((sum, size) => sum + size, 0))
  let at = BATCH_HEADER_BYTES
  records.forEach(({ payload, options }, index) => {
    bytes.set(payload, writeRecordHead(bytes, at, options, CONTENT_TYPE.bytes, payload.length))
    at += sizes[index]!
  })
  sealBatch(bytes, 0, bytes.length, {
    type: BATCH_TYPE.messages,
    count: records.length,
    batchNumber,
    ...stamp,
  })
  return bytes
}

/** `unanswered`: how many numbers below its own still are. */
export function publishFrame(queue: string, batchBytes: Uint8Array, unanswered = 0): Uint8Array {
  const payload = new Uint8Array(1 + textBytes(queue) + batchBytes.length)
  payload[0] = writeText(payload, 1, queue)
  payload.set(batchBytes, 1 + payload[0])
  return frame(OP.PUBLISH, 0, unanswered, payload)
}
