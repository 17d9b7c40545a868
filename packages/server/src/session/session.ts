/**
 * One connection of Sluice's protocol: its stages, its deadlines, and the parts that handle its frames (frames.ts). A
 * session receives bytes and sends frames. A session has no socket and no clock, so that the simulator can drive it.
 *
 * Invariant: an error ends only the request, the channel or the connection, according to its scope, and affects no
 * other client.
 */
import {
  FRAME_HEADER_BYTES,
  FrameDecoder,
  GOODBYE_REASON,
  OP,
  SluiceError,
  decodeControl,
  decodeGoodbye,
  encodeGoodbye,
  writeFrameHeader,
  type Frame,
  type Stage,
} from '@sluice/protocol'
import type { Broker } from '../broker/broker.js'
import type { Peer, Transport } from '../net/peer.js'
import { encodeAnswer, errorPayload, type Answer } from './answers.js'
import { Consuming, type Connection } from './consuming.js'
import { handlerOf, type Receiver } from './frames.js'
import { Handshake, greeting } from './handshake.js'
import { Liveness } from './liveness.js'
import { LongRequests } from './long-requests.js'
import type { OutboxTransport } from './outbox.js'
import { Outboxes } from './outboxes.js'
import { Producing } from './producing.js'
import { Reading } from './reading.js'
import { Replying } from './replying.js'
import { handle, handleLong, isLong, type AnswerOf, type RequestName } from './requests.js'
import type { SessionSettings } from './settings.js'
import { Unread } from './unread.js'

export class Session implements Peer, Connection, Receiver {
  readonly #broker: Broker
  readonly #transport: Transport
  readonly #settings: SessionSettings
  readonly #decoder: FrameDecoder
  readonly #outboxes: Outboxes
  readonly #onClosed: (session: Session, why: SluiceError | undefined) => void
  readonly producing: Producing
  readonly consuming: Consuming
  readonly replying: Replying
  readonly #handshake: Handshake
  readonly #liveness: Liveness
  readonly #unread: Unread
  readonly #reading: Reading
  #stage: Exclude<Stage, 'any'> | 'closed' = 'handshake'
  readonly #longRequests = new LongRequests((correlation, answer) =>
    this.#longRequestDone(correlation, answer),
  )
  /** Whether the client has sent GOODBYE, or the broker is closing this connection. */
  #saidGoodbye = false
  /** Whether GOODBYE said that the client will not reconnect. */
  #hasLeft = false
  /** Largest frame that the client accepts. */
  #frameBytesMax = 0

  constructor(
    broker: Broker,
    transport: Transport,
    settings: SessionSettings,
    nowMs: number,
    onClosed: (session: Session, why: SluiceError | undefined) => void,
  ) {
    this.#broker = broker
    this.#transport = transport
    this.#settings = settings
    this.#onClosed = onClosed
    this.#handshake = new Handshake(broker, settings, nowMs)
    this.#liveness = new Liveness(transport, settings.heartbeatMs, nowMs)
    const outgoing: OutboxTransport = {
      write: (bytes, written) => {
        this.#liveness.sent(this.#broker.turn.nowMs)
        transport.write(bytes, written)
      },
    }
    const outboxes = new Outboxes(outgoing, () => this.#bytesSent())
    const unread = new Unread(outboxes, settings)
    const reading = new Reading(broker, transport, settings.inFlightBytesMax)
    this.#outboxes = outboxes
    this.#unread = unread
    this.#reading = reading
    this.consuming = new Consuming(broker, this, outboxes, unread, reading, settings.subscriptionsMax)
    this.replying = new Replying(broker, this, outboxes, unread)
    this.producing = new Producing(broker, this, outboxes.gated, reading, this.consuming)
    this.#decoder = new FrameDecoder((opcode, flags, channel, correlation, bytes, start, end) =>
      this.#frame({ opcode, flags, channel, correlation, bytes, start, end }),
    )
  }

  get address(): string {
    return this.#transport.address
  }

  /** The label that the client has chosen; empty before HELLO. */
  get label(): string {
    return this.#handshake.label
  }

  get isOpen(): boolean {
    return this.#stage === 'open'
  }

  /** Memory held for a partly received frame. */
  get heldBytes(): number {
    return this.#decoder.capacityBytes
  }

  /** Handles the next bytes from the client. */
  receive(chunk: Uint8Array, nowMs: number): void {
    if (this.#stage === 'closed') return
    this.#liveness.received(nowMs)
    this.#broker.turn.begin()
    try {
      this.#decoder.push(chunk)
    } catch (error) {
      this.#failed(error)
    }
  }

  /** Called when the transport is closed, so that nothing more reaches the client. */
  disconnected(): void {
    this.#close(undefined)
  }

  /** Called when the client sends no more bytes. After GOODBYE the client still reads its outstanding answers. */
  inputEnded(): void {
    if (this.#stage === 'open' && this.#saidGoodbye) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Refuses a connection beyond the limit. When HELLO arrives, it is answered with this error. */
  refuse(error: SluiceError): void {
    this.#handshake.refuse(error)
  }

  /** Checks deadlines. `stallMs` is the delay of this call, which does not count against the client. */
  tick(nowMs: number, stallMs: number): void {
    if (this.#stage === 'closed') return
    if (this.#stage === 'handshake') {
      const late = this.#handshake.overdue(nowMs, stallMs)
      if (late !== undefined) this.fail(late)
      return
    }
    // While reading is paused, nothing can be received from the client.
    if (this.#reading.isPaused) this.#liveness.received(nowMs)
    const late = this.#liveness.overdue(nowMs, stallMs) ?? this.#unread.overdue(nowMs, stallMs)
    if (late === undefined) this.#liveness.beat(nowMs)
    else this.fail(late)
  }

  /**
   * Called when the broker is stopping. Sends GOODBYE and delivers nothing more, but frames of the client are still
   * handled.
   */
  goodbye(text: string): void {
    if (this.#stage !== 'open') {
      this.end()
      return
    }
    this.consuming.stop()
    this.#outboxes.gated.frame(OP.GOODBYE, 0, 0, encodeGoodbye(GOODBYE_REASON.stopping, text))
    this.#broker.noteOutput(this)
  }

  /** Whether no message is leased and no answer is outstanding, so that the connection can be closed without loss. */
  get isIdle(): boolean {
    return this.consuming.isIdle && this.#longRequests.unanswered === 0 && this.#outboxes.isEmpty
  }

  /** Closes once all answers have been sent. No attempt is charged to messages that are being handled. */
  end(): void {
    this.#saidGoodbye = true
    if (this.#stage === 'open' && (this.#longRequests.unanswered > 0 || !this.#outboxes.gated.isEmpty)) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Sends the error and closes. The error need not wait for an entry to be durable, because it confirms nothing. */
  fail(error: SluiceError): void {
    if (this.#stage === 'closed') return
    const payload = errorPayload(error, 'connection')
    const bytes = this.#stage === 'handshake' ? greeting(OP.ERROR, payload) : frameBytes(OP.ERROR, payload)
    // A peer that speaks another protocol could not read the error.
    if (this.#decoder.isOurs) this.#transport.write(bytes, () => {})
    this.#close(error)
    this.#transport.end()
  }

  /**
   * Recounts the queued frames and bytes, and compares the result with the counters.
   * @throws Error naming what differs
   */
  invariants(): void {
    this.#outboxes.invariants()
    this.#unread.invariants()
  }

  // --- Output ---

  endTurn(gate: number): void {
    this.#outboxes.endTurn(gate)
    if (this.#stage !== 'open') return
    this.#unread.count()
    const error = this.#unread.overflow(this.#broker.messageBytesMax)
    if (error !== undefined) this.fail(error)
  }

  sendDurable(durableLsn: number): boolean {
    const hasMore = this.#outboxes.sendDurable(durableLsn)
    if (this.#stage !== 'open') return false
    if (!hasMore && this.#saidGoodbye) this.end()
    else this.#reading.answered(this.#outboxes.gated.inFlightBytes)
    return hasMore
  }

  // --- frames ---

  #frame(frame: Frame): void {
    const { channel, correlation } = frame
    try {
      const stage = this.#stage
      handlerOf(frame, stage, stage === 'handshake' ? this.#handshake.step : stage)(this, frame)
    } catch (error) {
      this.#failed(error, channel, correlation)
    }
  }

  // A SluiceError is answered. Any other error is a defect of the broker, after which nothing may be confirmed.
  #failed(error: unknown, channel = 0, correlation = 0): void {
    if (!(error instanceof SluiceError)) {
      this.#close(undefined)
      this.#transport.end()
      this.#broker.fail(error)
    } else if (error.scope === 'connection' || this.#stage !== 'open') {
      this.fail(error)
    } else {
      this.#outboxes.gated.frame(OP.ERROR, channel, correlation, errorPayload(error, error.scope))
      this.#broker.noteOutput(this)
    }
  }

  takeHello({ bytes, start, end }: Frame): void {
    this.#handshake.takeHello(bytes, start, end)
  }

  takeAuth({ bytes, start, end }: Frame): void {
    const agreed = this.#handshake.takeAuth(bytes, start, end)
    this.producing.begin(agreed)
    this.consuming.begin(agreed)
    this.#liveness.heartbeatMs = agreed.heartbeatMs
    this.#frameBytesMax = agreed.frameBytesMax
    this.#stage = 'open'
    this.#decoder.frameBytesMax = this.#settings.frameBytesMax
    this.#liveness.send(this.#handshake.welcome(agreed), this.#broker.turn.nowMs)
  }

  ping({ correlation }: Frame): void {
    this.#liveness.pong(correlation, this.#broker.turn.nowMs)
  }

  takeGoodbye({ bytes, start, end }: Frame): void {
    const { reason } = decodeGoodbye(bytes, start, end)
    this.#hasLeft = reason === GOODBYE_REASON.left
    this.consuming.leave()
    this.#saidGoodbye = true
    this.#broker.noteOutput(this)
  }

  reply({ channel, correlation }: Frame, opcode: number, payload: Uint8Array): void {
    this.#outboxes.gated.frame(opcode, channel, correlation, payload)
    this.#broker.noteOutput(this)
  }

  request(name: RequestName, { correlation, bytes, start, end }: Frame): void {
    const body = decodeControl(bytes, start, end)
    const payloadBytesMax = this.#frameBytesMax - FRAME_HEADER_BYTES
    const context = { broker: this.#broker, caller: this, payloadBytesMax }
    const encode = (answer: AnswerOf<RequestName>): Answer => encodeAnswer(name, answer, payloadBytesMax)
    if (!isLong(name, context, body)) {
      this.answer(correlation, handle(name, context, body, encode))
      return
    }
    this.#longRequests.add(correlation, () => handleLong(name, context, body, encode))
    this.#startLongRequest()
  }

  /** Writes the answer to a request. */
  answer(correlation: number, { opcode, payload }: Answer): void {
    this.#unread.wrote(payload.length)
    this.#outboxes.gated.frame(opcode, 0, correlation, payload)
    this.#broker.noteOutput(this)
    this.#reading.waitForDisk()
  }

  // A request that reads from disk takes several turns. Its answer then waits for an entry to be durable, like any
  // other answer.
  #startLongRequest(): void {
    if (!this.#unread.isOverSoft) this.#longRequests.next()
  }

  #longRequestDone(correlation: number, answer: () => Answer): void {
    this.#broker.turn.begin()
    try {
      // A change that failed half-way is a defect even if its client has disconnected.
      const written = answer()
      if (this.#stage === 'open') this.answer(correlation, written)
    } catch (error) {
      this.#failed(error, 0, correlation)
    }
    if (this.#stage !== 'open') return
    this.#broker.noteOutput(this)
    this.#startLongRequest()
  }

  // --- the connection ---

  #bytesSent(): void {
    if (this.#stage !== 'open') return
    this.#unread.count()
    this.#startLongRequest()
    if (!this.#unread.hasRead(this.#broker.turn.nowMs)) return
    this.consuming.resume()
    this.replying.resume()
  }

  #close(why: SluiceError | undefined): void {
    if (this.#stage === 'closed') return
    this.#stage = 'closed'
    this.#decoder.stop()
    this.#longRequests.clear()
    this.#outboxes.clear()
    this.#unread.clear()
    this.#reading.close()
    this.consuming.end(!this.#saidGoodbye)
    this.producing.end(this.#hasLeft)
    this.replying.end(this.#hasLeft)
    this.#onClosed(this, why)
  }
}

function frameBytes(opcode: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, 0, 0))
  return bytes
}
