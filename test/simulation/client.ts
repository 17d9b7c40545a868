/**
 * A simulated client: the handshake, heartbeats, sending and receiving frames, and reconnects. It uses the protocol
 * package and none of the broker's code. A subclass decides what to do with an open connection.
 */
import {
  FrameDecoder,
  LIMITS,
  MECHANISM,
  OP,
  PRODUCER_IDENTITY_BYTES,
  PROTOCOL_VERSION,
  decodeFault,
  decodeHelloOk,
  encodeAuth,
  encodeGoodbye,
  encodeHello,
  encodePreface,
  FRAME_HEADER_BYTES,
  writeFrameHeader,
  type HelloOk,
} from '@sluice/protocol'
import type { HistoryEvent } from '../checker/history.js'
import type { Attempts } from './attempts.js'
import type { Chance } from './chance.js'
import type { Character } from './characters.js'
import type { Link, LinkEnd } from './link.js'
import type { Conversation } from './witness.js'

/** The parts of the world that a client uses. */
export interface Surroundings {
  readonly chance: Chance
  readonly attempts: Attempts
  readonly history: HistoryEvent[]
  readonly queueNames: readonly string[]
  readonly nowMs: number
  /** The current time of the broker's clock. */
  readonly brokerMs: number
  /** Whether the world causes no more trouble, so that the client can finish its open work. */
  readonly isHealing: boolean
  readonly heartbeatMs: number
  /** Maximum payload of one message, and maximum size of a batch, in bytes. */
  readonly messageBytesMax: number
  readonly batchBytesMax: number
  characterOf(queue: string): Character
  /** Opens a connection; undefined while the broker is down. */
  connect(client: Client): { link: Link; conversation: Conversation } | undefined
  count(what: string): void
}

export abstract class Client implements LinkEnd {
  readonly name: string
  readonly identity: Uint8Array
  protected readonly around: Surroundings
  link: Link | undefined
  protected conversation: Conversation | undefined
  protected isOpen = false
  /** Until this time the client's machine is stopped: it neither reads nor writes. */
  stalledUntilMs = 0
  #decoder: FrameDecoder | undefined
  #reconnectMs = 0
  #spokeMs = 0
  #heartbeatMs = 0
  #correlation = 0

  constructor(name: string, around: Surroundings) {
    this.name = name
    this.around = around
    this.identity = around.chance.bytes(PRODUCER_IDENTITY_BYTES)
  }

  get identityText(): string {
    return Buffer.from(this.identity).toString('hex')
  }

  /** Whether the client has no open work. */
  abstract get isDone(): boolean
  protected abstract opened(ok: HelloOk): void
  protected abstract frame(
    opcode: number,
    channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void
  protected abstract lost(): void
  /** Does at most one piece of work. */
  protected abstract work(): void

  protected get acceptedNumber(): number {
    return 0
  }

  protected get inFlightBatchesMax(): number {
    return 0
  }

  act(): void {
    if (this.link === undefined) {
      if (this.around.nowMs >= this.#reconnectMs) this.#connect()
    } else if (this.isOpen) {
      this.work()
    }
  }

  /** Sends a heartbeat after half an interval of silence. */
  tick(): void {
    if (this.isOpen && this.around.nowMs - this.#spokeMs >= this.#heartbeatMs / 2) this.send(OP.PING, 0, 0)
  }

  receive(bytes: Uint8Array): void {
    this.#decoder?.push(bytes)
  }

  closed(link: Link): void {
    if (link === this.link) this.abandon()
  }

  /** Abandons the connection without closing it, and reconnects later. */
  abandon(): void {
    if (this.link !== undefined) this.link.client = undefined
    this.link = undefined
    this.conversation = undefined
    this.isOpen = false
    this.#decoder?.stop()
    this.#reconnectMs = this.around.nowMs + (this.around.isHealing ? 5 : this.around.chance.skewed(400))
    this.lost()
  }

  protected send(opcode: number, channel: number, correlation: number, payload: Uint8Array = NO_BYTES): void {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
    bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
    this.sendBytes(bytes)
  }

  protected sendBytes(bytes: Uint8Array): void {
    this.link?.send(bytes)
    this.#spokeMs = this.around.nowMs
  }

  protected goodbye(): void {
    this.send(OP.GOODBYE, 0, 0, encodeGoodbye(0, ''))
    this.isOpen = false
  }

  /** A new correlation, unique on this connection. */
  protected nextCorrelation(): number {
    return ++this.#correlation
  }

  #connect(): void {
    const connection = this.around.connect(this)
    if (connection === undefined) return
    this.link = connection.link
    this.link.client = this
    this.conversation = connection.conversation
    this.#heartbeatMs = this.around.heartbeatMs
    this.#decoder = new FrameDecoder((opcode, _flags, channel, correlation, bytes, start, end) => {
      this.#frame(opcode, channel, correlation, bytes, start, end)
    })
    this.#decoder.frameBytesMax = LIMITS.frameBytesDefault
    this.sendBytes(encodePreface())
    const hello = encodeHello({
      versionMin: PROTOCOL_VERSION,
      versionMax: PROTOCOL_VERSION,
      features: 0,
      frameBytesMax: LIMITS.frameBytesDefault,
      heartbeatMs: this.around.heartbeatMs,
      producer: this.identity,
      acceptedNumber: this.acceptedNumber,
      inFlightBatchesMax: this.inFlightBatchesMax,
      name: this.name,
    })
    this.send(OP.HELLO, 0, 0, hello)
    this.send(OP.AUTH, 0, 0, encodeAuth({ mechanism: MECHANISM.anonymous, identity: '', secret: NO_BYTES }))
  }

  #frame(
    opcode: number,
    channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (opcode === OP.HELLO_OK) {
      const ok = decodeHelloOk(bytes, start, end)
      this.#heartbeatMs = ok.heartbeatMs
      this.isOpen = true
      this.opened(ok)
    } else if (opcode === OP.PING) {
      this.send(OP.PONG, 0, correlation)
    } else if (opcode === OP.ERROR && decodeFault(bytes, start, end).scope === 'connection') {
      this.around.count(`closed with ${decodeFault(bytes, start, end).code}`)
    } else if (opcode === OP.GOODBYE) {
      // The broker is stopping. Some clients say goodbye, others stay until they are disconnected.
      if (this.around.chance.hit(0.5)) this.goodbye()
    } else if (opcode !== OP.PONG) {
      this.frame(opcode, channel, correlation, bytes, start, end)
    }
  }
}

const NO_BYTES = new Uint8Array(0)
