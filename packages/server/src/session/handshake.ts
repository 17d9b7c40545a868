/**
 * The handshake of a connection: HELLO, then AUTH, within a deadline. It owns the content of HELLO, the agreement of
 * both sides, and the error with which a connection is refused. The session calls it with each of the two frames.
 *
 * Invariant: the handshake does not change the broker. The session changes the broker, with the agreement that
 * `takeAuth` returns.
 */
import {
  DURABILITY,
  FRAME_HEADER_BYTES,
  LIMITS,
  MECHANISM,
  MESSAGE_OVERHEAD_BYTES,
  OP,
  PROTOCOL_VERSION,
  SluiceError,
  decodeAuth,
  decodeHello,
  durationText,
  encodeHelloOk,
  encodePreface,
  writeFrameHeader,
  type Hello,
} from '@sluice/protocol'
import type { SessionSettings } from './settings.js'

/** Properties of the broker that determine HELLO_OK. */
export interface Host {
  readonly messageBytesMax: number
  readonly inFlightBatchesMax: number
  readonly boot: number
}

/** The values on which both sides have agreed. */
export interface Agreement {
  /**
   * Identity of the client's producer, in hexadecimal, and the highest batch number that the client knows to be
   * confirmed.
   */
  readonly identity: string
  readonly acceptedNumber: number
  /** Largest frame that the client accepts. */
  readonly frameBytesMax: number
  readonly heartbeatMs: number
  readonly inFlightBatchesMax: number
}

export class Handshake {
  /** The frame that must arrive next. */
  step: 'hello' | 'auth' = 'hello'
  readonly #host: Host
  readonly #settings: SessionSettings
  #hello: Hello | undefined
  #refusal: SluiceError | undefined
  #startedMs: number

  constructor(host: Host, settings: SessionSettings, nowMs: number) {
    this.#host = host
    this.#settings = settings
    this.#startedMs = nowMs
  }

  /** The label that the client has chosen; empty before HELLO. */
  get label(): string {
    return this.#hello?.name ?? ''
  }

  /** Refuses the connection: when HELLO arrives, it is answered with this error. */
  refuse(error: SluiceError): void {
    this.#refusal = error
  }

  /** @throws SluiceError the refusal, UNEXPECTED_FRAME, PROTOCOL_VERSION, INVALID_ARGUMENT, MALFORMED_FRAME */
  takeHello(bytes: Uint8Array, start: number, end: number): void {
    if (this.step !== 'hello') throw unexpectedFrame('HELLO', this.step)
    const hello = decodeHello(bytes, start, end)
    this.#hello = hello
    if (this.#refusal !== undefined) throw this.#refusal
    if (hello.versionMin > PROTOCOL_VERSION || hello.versionMax < PROTOCOL_VERSION) {
      throw new SluiceError(
        'PROTOCOL_VERSION',
        `The client speaks versions ${hello.versionMin} to ${hello.versionMax}; this broker speaks ${PROTOCOL_VERSION}.`,
      )
    }
    const least = Math.max(this.#host.messageBytesMax, LIMITS.batchBytesMax) + MESSAGE_OVERHEAD_BYTES
    if (hello.frameBytesMax < least) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `The client accepts frames of ${hello.frameBytesMax} bytes; messages of this broker need ${least}.`,
        { scope: 'connection' },
      )
    }
    this.step = 'auth'
  }

  /** @throws SluiceError UNEXPECTED_FRAME, AUTH_FAILED, MALFORMED_FRAME */
  takeAuth(bytes: Uint8Array, start: number, end: number): Agreement {
    if (this.step !== 'auth') throw unexpectedFrame('AUTH', this.step)
    const auth = decodeAuth(bytes, start, end)
    if (auth.mechanism !== MECHANISM.anonymous || auth.identity !== '' || auth.secret.length > 0) {
      throw new SluiceError(
        'AUTH_FAILED',
        `The authentication mechanism ${auth.mechanism} is not offered; this broker has no user accounts.`,
      )
    }
    const { producer, acceptedNumber, frameBytesMax, heartbeatMs, inFlightBatchesMax } = this.#hello!
    const offered = this.#settings
    return {
      identity: Buffer.from(producer).toString('hex'),
      acceptedNumber,
      frameBytesMax,
      heartbeatMs:
        heartbeatMs === 0
          ? offered.heartbeatMs
          : Math.max(LIMITS.heartbeatMsMin, Math.min(heartbeatMs, offered.heartbeatMs)),
      inFlightBatchesMax: Math.min(
        inFlightBatchesMax || Infinity,
        offered.inFlightBatchesMax,
        this.#host.inFlightBatchesMax,
      ),
    }
  }

  /** Returns the first bytes that the broker sends: its preface and HELLO_OK. */
  welcome({ heartbeatMs, inFlightBatchesMax }: Agreement): Uint8Array {
    const { frameBytesMax, inFlightBytesMax, serverVersion } = this.#settings
    const { messageBytesMax, boot } = this.#host
    const ok = encodeHelloOk({
      version: PROTOCOL_VERSION,
      features: 0,
      frameBytesMax,
      heartbeatMs,
      messageBytesMax,
      inFlightBatchesMax,
      inFlightBytesMax,
      boot,
      durability: DURABILITY.disk,
      serverVersion,
    })
    return greeting(OP.HELLO_OK, ok)
  }

  /** Once the deadline has passed, returns HANDSHAKE_TIMEOUT or the refusal. For `stallMs` see `Session.tick`. */
  overdue(nowMs: number, stallMs: number): SluiceError | undefined {
    this.#startedMs = Math.min(nowMs, this.#startedMs + stallMs)
    const { handshakeMs } = this.#settings
    if (nowMs - this.#startedMs <= handshakeMs) return undefined
    return (
      this.#refusal ??
      new SluiceError(
        'HANDSHAKE_TIMEOUT',
        `The handshake was not finished within ${durationText(handshakeMs)}.`,
      )
    )
  }
}

/** Returns the preface and one frame. */
export function greeting(opcode: number, payload: Uint8Array): Uint8Array {
  const preface = encodePreface()
  const bytes = new Uint8Array(preface.length + FRAME_HEADER_BYTES + payload.length)
  bytes.set(preface)
  bytes.set(payload, writeFrameHeader(bytes, preface.length, payload.length, opcode, 0, 0))
  return bytes
}

export function unexpectedFrame(name: string, stage: string): SluiceError {
  return new SluiceError(
    'UNEXPECTED_FRAME',
    `The frame ${name} may not be sent by a client at the stage ${stage}.`,
  )
}
