/**
 * One connection to a broker, from dialling to its end: handshake, heartbeat, frames in both directions, and the answers
 * to requests. It does not dial again; the link does.
 *
 * Invariant: a connection ends exactly once, with `lost`. No bytes from the peer make it throw.
 */
import {
  decodeFault,
  decodeGoodbye,
  decodeHelloOk,
  encodeAuth,
  encodeGoodbye,
  encodeHello,
  encodePreface,
  exact,
  faultError,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  GOODBYE_REASON,
  LIMITS,
  MECHANISM,
  OP,
  opcodeName,
  PROTOCOL_VERSION,
  SluiceError,
  writeFrameHeader,
  type Fault,
  type HelloOk,
  durationText,
} from '@sluice/protocol'
import { Heartbeat } from './heartbeat.js'
import type { Dial, Transport } from './transport.js'
import type { Address } from './url.js'
import { Waiters } from './waiters.js'

/**
 * Waits for the answer to one request. Either `answered` or `failed` is called; if `answered` throws, `failed` is
 * called too.
 */
export interface Reply {
  /** Opcode of the only frame that answers the request. */
  readonly expects: number
  /** Deadline of the wait, by `performance.now()`; Infinity when something else ends the wait. */
  readonly deadlineMs: number
  answered(bytes: Uint8Array, start: number, end: number): void
  failed(error: SluiceError): void
}

/** A subscription or a reader, as the connection knows it. */
export interface ChannelSink {
  delivered(bytes: Uint8Array, start: number, end: number): void
  drained(bytes: Uint8Array, start: number, end: number): void
  /** Called when messages no longer belong to the subscription. */
  leasesLost(bytes: Uint8Array, start: number, end: number): void
  /** Called when the position of a reader has changed without a delivery. */
  readAt(bytes: Uint8Array, start: number, end: number): void
  /** Called when the broker has ended the subscription. */
  ended(error: SluiceError): void
  /** Called when the connection has ended, which also ends the subscription. */
  lost(error: SluiceError): void
  /** @throws Error naming what differs */
  invariants(): void
}

export interface ConnectionEvents {
  opened(ok: HelloOk): void
  publishOk(bytes: Uint8Array, start: number, end: number): void
  publishErr(bytes: Uint8Array, start: number, end: number): void
  atomicOk(bytes: Uint8Array, start: number, end: number): void
  /** Called for a reply to a request. */
  answered(bytes: Uint8Array, start: number, end: number): void
  /** Called for an error that belongs to no request. */
  stray(error: SluiceError): void
  /** Called when the broker accepts no new work on this connection and is about to close it. */
  stopping(text: string): void
  /** Called when the socket accepts bytes again. */
  writable(): void
  /**
   * Called when the connection has ended. `error` has the reason; waiting requests have failed with CONNECTION_LOST.
   */
  lost(error: SluiceError): void
}

export interface Introduction {
  readonly name: string
  readonly heartbeatMs: number
  readonly producer: Uint8Array
  readonly acceptedNumber: number
  readonly inFlightBatchesMax: number
}

type State = 'dialling' | 'greeting' | 'open' | 'ended'

const SMALL_BYTES = 16 * 1024

export class Connection {
  readonly #channels = new Map<number, ChannelSink>()
  #lastChannel = 0
  /** The broker's part of the handshake; set once the connection is open. */
  ok!: HelloOk
  readonly #address: Address
  readonly #events: ConnectionEvents
  readonly #introduction: Introduction
  readonly #transport: Transport
  readonly #decoder: FrameDecoder
  readonly #replies = new Map<number, Reply>()
  readonly #idle = new Waiters()
  /** Frames that wait for the next write: whole chunks, followed by `#smallEnd` bytes in `#small`. */
  #chunks: Uint8Array[] = []
  #small = Buffer.allocUnsafeSlow(SMALL_BYTES)
  #smallEnd = 0
  #state: State = 'dialling'
  #flowing = true
  #stopping = false
  #lastCorrelation = 0
  #heartbeat: Heartbeat | undefined
  #heartbeatTimer: NodeJS.Timeout | undefined
  readonly #handshakeTimer: NodeJS.Timeout

  constructor(dial: Dial, address: Address, introduction: Introduction, events: ConnectionEvents) {
    this.#address = address
    this.#introduction = introduction
    this.#events = events
    this.#decoder = new FrameDecoder((opcode, _flags, channel, correlation, bytes, start, end) =>
      this.#frame(opcode, channel, correlation, bytes, start, end),
    )
    this.#handshakeTimer = setTimeout(() => {
      const code = this.#state === 'dialling' ? 'UNREACHABLE' : 'HANDSHAKE_TIMEOUT'
      this.fail(
        new SluiceError(
          code,
          `${this.#address.text} did not finish the handshake within ${durationText(LIMITS.handshakeMsMax)}.`,
        ),
      )
    }, LIMITS.handshakeMsMax)
    this.#transport = dial(address, {
      opened: () => this.#guard(() => this.#greet()),
      data: (chunk) => this.#data(chunk),
      drained: () => this.#guard(() => this.#drained()),
      closed: (error) => this.#closed(error),
    })
  }

  get stopping(): boolean {
    return this.#stopping
  }

  get open(): boolean {
    return this.#state === 'open'
  }

  /** Whether new work may be sent: the connection is open, the broker is not stopping, and the socket accepts bytes. */
  get takesWork(): boolean {
    return this.#state === 'open' && this.#flowing && !this.#stopping
  }

  /** Adds one frame to the outbox; `flush` sends it. */
  send(opcode: number, channel: number, correlation: number, payload: Uint8Array): void {
    if (this.#state === 'ended') return
    const size = FRAME_HEADER_BYTES + payload.length
    if (this.#smallEnd + size > SMALL_BYTES) this.#closeSmall()
    if (size > SMALL_BYTES) {
      const chunk = Buffer.allocUnsafeSlow(size)
      chunk.set(payload, writeFrameHeader(chunk, 0, payload.length, opcode, channel, correlation))
      this.#chunks.push(chunk)
      return
    }
    const at = writeFrameHeader(this.#small, this.#smallEnd, payload.length, opcode, channel, correlation)
    this.#small.set(payload, at)
    this.#smallEnd = at + payload.length
  }

  /** Adds whole frames to the outbox without a copy: the bytes must not change as long as this connection exists. */
  sendFrames(frames: Uint8Array): void {
    if (this.#state === 'ended') return
    this.#closeSmall()
    this.#chunks.push(frames)
  }

  /** Sends a frame that the broker answers. On an ended connection the reply fails at once. */
  request(opcode: number, channel: number, payload: Uint8Array, reply: Reply): void {
    if (this.#state === 'ended') {
      reply.failed(this.#lostError())
      return
    }
    const correlation = this.#newCorrelation()
    this.#replies.set(correlation, reply)
    this.send(opcode, channel, correlation, payload)
  }

  #newCorrelation(): number {
    do this.#lastCorrelation = (this.#lastCorrelation + 1) >>> 0
    while (this.#lastCorrelation === 0 || this.#replies.has(this.#lastCorrelation))
    return this.#lastCorrelation
  }

  /**
   * Returns a channel number for a subscription. The number is in use until `closeChannel`. @throws SluiceError
   * TOO_MANY_SUBSCRIPTIONS
   */
  openChannel(sink: ChannelSink): number {
    if (this.#channels.size === LIMITS.channelMax) {
      throw new SluiceError(
        'TOO_MANY_SUBSCRIPTIONS',
        `The connection has ${LIMITS.channelMax} subscriptions; it can have no more.`,
      )
    }
    do this.#lastChannel = (this.#lastChannel % LIMITS.channelMax) + 1
    while (this.#channels.has(this.#lastChannel))
    this.#channels.set(this.#lastChannel, sink)
    return this.#lastChannel
  }

  closeChannel(channel: number): void {
    this.#channels.delete(channel)
  }

  /** Writes the whole outbox to the socket, in one write. */
  flush(): void {
    if (this.#state === 'ended') return
    this.#closeSmall()
    if (this.#chunks.length === 0) return
    const chunks = this.#chunks
    this.#chunks = []
    this.#heartbeat?.sent(performance.now())
    if (!this.#transport.write(chunks)) this.#flowing = false
  }

  /** Fails the requests whose deadline has passed; returns the next deadline. */
  sweep(nowMs: number): number {
    let nextMs = Infinity
    for (const [correlation, reply] of this.#replies) {
      if (reply.deadlineMs > nowMs) {
        nextMs = Math.min(nextMs, reply.deadlineMs)
        continue
      }
      this.#replies.delete(correlation)
      reply.failed(
        new SluiceError('TIMEOUT', `${this.#address.text} did not answer in time.`, { outcome: 'unknown' }),
      )
    }
    this.#notifyIdle()
    return nextMs
  }

  /** Resolves when no request waits for an answer, or the connection has ended. */
  idle(): Promise<void> {
    if (this.#replies.size === 0 || this.#state === 'ended') return Promise.resolve()
    return this.#idle.wait()
  }

  #notifyIdle(): void {
    if (this.#replies.size === 0) this.#idle.notify()
  }

  /** Checks the invariants of the connection and its subscriptions. @throws Error naming what differs */
  invariants(): void {
    if (this.#idle.any && this.#replies.size === 0)
      throw new Error('connection: no request waits for an answer, but a waiter was not notified')
    for (const sink of this.#channels.values()) sink.invariants()
  }

  /** Sends GOODBYE, and closes the socket once everything is sent. */
  goodbye(): void {
    if (this.#state !== 'open') {
      this.fail(new SluiceError('CLOSED', 'The client was closed.'))
      return
    }
    this.send(OP.GOODBYE, 0, 0, encodeGoodbye(GOODBYE_REASON.left, ''))
    this.flush()
    this.#end(new SluiceError('CLOSED', 'The client was closed.'), () => this.#transport.end())
  }

  /** Ends the connection at once. */
  fail(error: SluiceError): void {
    this.#end(error, () => this.#transport.destroy())
  }

  #end(error: SluiceError, close: () => void): void {
    if (this.#state === 'ended') return
    this.#state = 'ended'
    this.#decoder.stop()
    this.#chunks = []
    this.#smallEnd = 0
    clearTimeout(this.#handshakeTimer)
    clearInterval(this.#heartbeatTimer)
    close()
    const lost = this.#lostError(error)
    for (const reply of this.#replies.values()) reply.failed(lost)
    this.#replies.clear()
    this.#notifyIdle()
    for (const sink of this.#channels.values()) sink.lost(lost)
    this.#channels.clear()
    this.#events.lost(error)
  }

  // A request whose answer never came may have taken effect.
  #lostError(cause?: SluiceError): SluiceError {
    return new SluiceError('CONNECTION_LOST', `The connection to ${this.#address.text} was lost.`, {
      cause,
      outcome: 'unknown',
    })
  }

  #closeSmall(): void {
    if (this.#smallEnd === 0) return
    // This copies exactly these bytes, because the socket keeps the copy until the peer reads it.
    this.#chunks.push(Buffer.from(this.#small.subarray(0, this.#smallEnd)))
    this.#smallEnd = 0
  }

  #guard(step: () => void): void {
    if (this.#state === 'ended') return
    try {
      step()
    } catch (error) {
      this.fail(incomprehensible(error))
    }
  }

  #greet(): void {
    this.#state = 'greeting'
    const { name, heartbeatMs, producer, acceptedNumber, inFlightBatchesMax } = this.#introduction
    this.#chunks.push(encodePreface())
    this.send(
      OP.HELLO,
      0,
      0,
      encodeHello({
        versionMin: PROTOCOL_VERSION,
        versionMax: PROTOCOL_VERSION,
        features: 0,
        frameBytesMax: LIMITS.frameBytesMax,
        heartbeatMs,
        producer,
        acceptedNumber,
        inFlightBatchesMax,
        name,
      }),
    )
    this.send(
      OP.AUTH,
      0,
      0,
      encodeAuth({ mechanism: MECHANISM.anonymous, identity: '', secret: new Uint8Array(0) }),
    )
    this.flush()
  }

  #data(chunk: Uint8Array): void {
    this.#heartbeat?.heard(performance.now())
    this.#guard(() => this.#decoder.push(chunk))
  }

  #drained(): void {
    this.#flowing = true
    if (this.#state === 'open') this.#events.writable()
  }

  #closed(error: Error | undefined): void {
    const { text } = this.#address
    const reason = error && (error.message || (error as NodeJS.ErrnoException).code)
    if (this.#state === 'open') {
      const why = reason ?? 'the broker closed it'
      this.fail(
        new SluiceError('CONNECTION_LOST', `The connection to ${text} was lost: ${why}.`, { cause: error }),
      )
      return
    }
    // Before the handshake is complete no request has been sent, so nothing can have taken effect.
    const what =
      this.#state === 'dialling'
        ? `No broker answers at ${text}`
        : `The process at ${text} closed the connection before the handshake was complete`
    const why = reason === undefined ? '' : ` (${reason})`
    this.fail(new SluiceError('UNREACHABLE', `${what}${why}.`, { cause: error }))
  }

  #frame(
    opcode: number,
    channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (this.#state === 'greeting') {
      if (opcode === OP.HELLO_OK) this.#welcome(decodeHelloOk(bytes, start, end))
      else if (opcode === OP.ERROR) this.fail(faultError(decodeFault(bytes, start, end)))
      else throw unexpected(opcode, 'before HELLO_OK')
      return
    }
    switch (opcode) {
      case OP.DELIVER:
        // The sink is undefined if the subscription has ended while the delivery was under way.
        this.#channels.get(channel)?.delivered(bytes, start, end)
        return
      case OP.PUBLISH_OK:
        this.#events.publishOk(bytes, start, end)
        return
      case OP.PUBLISH_ERR:
        this.#events.publishErr(bytes, start, end)
        return
      case OP.ATOMIC_OK:
        this.#events.atomicOk(bytes, start, end)
        return
      case OP.ANSWER:
        this.#events.answered(bytes, start, end)
        return
      case OP.REPLIED:
      case OP.SETTLE_OK:
      case OP.SUBSCRIBE_OK:
      case OP.READ_OK:
      case OP.RESULT:
      case OP.MESSAGES:
        this.#answer(opcode, correlation, bytes, start, end)
        return
      case OP.DRAINED:
        this.#channels.get(channel)?.drained(bytes, start, end)
        return
      case OP.LEASES_LOST:
        this.#channels.get(channel)?.leasesLost(bytes, start, end)
        return
      case OP.READ_AT:
        this.#channels.get(channel)?.readAt(bytes, start, end)
        return
      case OP.PING:
        exact('PING', end - start, 0)
        this.send(OP.PONG, 0, correlation, EMPTY)
        this.flush()
        return
      case OP.PONG:
        exact('PONG', end - start, 0)
        return
      case OP.ERROR:
        this.#fault(channel, correlation, decodeFault(bytes, start, end))
        return
      case OP.GOODBYE:
        this.#stopping = true
        this.#events.stopping(decodeGoodbye(bytes, start, end).text)
        return
      default:
        throw unexpected(opcode, 'on an open connection')
    }
  }

  #answer(opcode: number, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const reply = this.#replies.get(correlation)
    // The reply is undefined if the deadline of the request has passed.
    if (reply === undefined) return
    if (reply.expects !== opcode) throw unexpected(opcode, `as the answer to request ${correlation}`)
    this.#replies.delete(correlation)
    try {
      reply.answered(bytes, start, end)
    } catch (error) {
      // The connection is about to end, and then fails all listed replies. This reply is no longer in the list.
      reply.failed(incomprehensible(error))
      throw error
    }
    this.#notifyIdle()
  }

  #fault(channel: number, correlation: number, fault: Fault): void {
    const error = faultError(fault)
    if (fault.scope === 'connection') {
      this.fail(error)
      return
    }
    const reply = this.#replies.get(correlation)
    this.#replies.delete(correlation)
    const sink = fault.scope === 'channel' ? this.#channels.get(channel) : undefined
    reply?.failed(error)
    sink?.ended(error)
    this.#notifyIdle()
    if (reply === undefined && sink === undefined) this.#events.stray(error)
  }

  #welcome(ok: HelloOk): void {
    checkWelcome(ok)
    this.ok = ok
    this.#state = 'open'
    // This is the limit that the client named in HELLO. HELLO_OK has the limit of the broker.
    this.#decoder.frameBytesMax = LIMITS.frameBytesMax
    clearTimeout(this.#handshakeTimer)
    this.#heartbeat = new Heartbeat(ok.heartbeatMs, performance.now())
    this.#heartbeatTimer = setInterval(() => this.#beat(), this.#heartbeat.tickMs)
    // The socket keeps the process alive, so this timer does not have to.
    this.#heartbeatTimer.unref()
    this.#events.opened(ok)
  }

  #beat(): void {
    const heartbeat = this.#heartbeat!
    const verdict = heartbeat.tick(performance.now())
    if (verdict === 'ping') {
      this.send(OP.PING, 0, this.#newCorrelation(), EMPTY)
      this.flush()
    } else if (verdict === 'suspect') {
      // The check phase follows a poll of the sockets, so bytes that waited in the socket are received first.
      setImmediate(() => {
        if (this.#state !== 'open' || !heartbeat.judge(performance.now())) return
        this.fail(
          new SluiceError(
            'HEARTBEAT_TIMEOUT',
            `Nothing was received from ${this.#address.text} for ${durationText(this.ok.heartbeatMs * 2)}.`,
          ),
        )
      })
    }
  }
}

const EMPTY = new Uint8Array(0)

function incomprehensible(error: unknown): SluiceError {
  return error instanceof SluiceError
    ? error
    : new SluiceError('CONNECTION_LOST', 'The client failed to process a frame of the broker.', {
        cause: error,
      })
}

function unexpected(opcode: number, where: string): SluiceError {
  const name = opcodeName(opcode)
  if (name === undefined) {
    return new SluiceError('UNKNOWN_OPCODE', `The broker sent a frame with the unknown opcode ${opcode}.`)
  }
  return new SluiceError('UNEXPECTED_FRAME', `The broker sent ${name} ${where}.`)
}

// Invalid limits would make publishes wait without end, or let the peer send frames of any length.
function checkWelcome(ok: HelloOk): void {
  if (ok.version !== PROTOCOL_VERSION) {
    throw new SluiceError(
      'PROTOCOL_VERSION',
      `The broker chose version ${ok.version} of the protocol; this client speaks version ${PROTOCOL_VERSION}.`,
    )
  }
  within('frameBytesMax', ok.frameBytesMax, LIMITS.frameBytesMin, LIMITS.frameBytesMax)
  within('heartbeatMs', ok.heartbeatMs, LIMITS.heartbeatMsMin, LIMITS.heartbeatMsMax)
  within('inFlightBatchesMax', ok.inFlightBatchesMax, 1, 0xffff_ffff)
  within('inFlightBytesMax', ok.inFlightBytesMax, 1, 0xffff_ffff)
  within('messageBytesMax', ok.messageBytesMax, 1, 0xffff_ffff)
}

function within(name: string, value: number, min: number, max: number): void {
  if (value >= min && value <= max) return
  throw new SluiceError(
    'MALFORMED_FRAME',
    `HELLO_OK gives ${value} as ${name}; it must be from ${min} to ${max}.`,
  )
}
