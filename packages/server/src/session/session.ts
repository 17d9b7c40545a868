/**
 * One connection: its stages, its frames, its subscriptions. Bytes in, broker calls, frames out; no socket and no
 * clock of its own, so that the simulator can drive it.
 *
 * Errors end what their scope says: the request, the channel, or the connection. Nobody else notices.
 */
import {
  DURABILITY,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  GOODBYE_REASON,
  LIMITS,
  MECHANISM,
  MESSAGE_OVERHEAD_BYTES,
  OP,
  OPCODES,
  PROTOCOL_VERSION,
  SluiceError,
  atomicNumber,
  clipText,
  copyBytes,
  decodeAtomic,
  decodeAuth,
  decodeControl,
  decodeCredit,
  decodeExtend,
  decodeGoodbye,
  decodeHello,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  encodeAtomicOk,
  encodeControl,
  encodeDrained,
  encodeFault,
  encodeGoodbye,
  encodeHelloOk,
  encodeLeasesLost,
  encodePreface,
  encodePublishErr,
  encodeRanges,
  encodeSubscribed,
  publishBatchStart,
  publishOkItemBytes,
  readText,
  subscribeRequest,
  u64,
  writeFrameHeader,
  writePublishOkItem,
  writeU32,
  type Hello,
  type LostRange,
  type Loss,
  type Opcode,
  type OpcodeName,
  type Placed,
  durationText,
} from '@sluice/protocol'
import type { Broker, Output } from '../broker/broker.js'
import { fittedRecord } from '../broker/origin.js'
import type { Producer } from '../state/producers.js'
import type { Consumer, Run, Subscription } from '../queue/index.js'
import { DELIVERY_OVERHEAD_BYTES, Deliveries } from './deliveries.js'
import { Outbox, type OutboxTransport } from './outbox.js'
import { REQUESTS, isLong, type Answer, type RequestName } from './requests.js'

/** What a session needs of the connection under it. */
export interface Transport extends OutboxTransport {
  readonly peer: string
  /** Stops and resumes the bytes that come in. */
  pause(): void
  resume(): void
  /** Sends what was written, then closes. */
  end(): void
}

export interface SessionSettings {
  readonly serverVersion: string
  readonly frameBytesMax: number
  /** Used unless the client asks for a shorter one. */
  readonly heartbeatMs: number
  readonly handshakeMs: number
  readonly inFlightBatches: number
  readonly inFlightBytes: number
  /** Beyond so many unread bytes a connection gets no deliveries. */
  readonly outboundBytesSoft: number
  /** Beyond so many more, or after `stalledMs` without progress above the soft bound, it is closed. */
  readonly outboundBytesHard: number
  readonly stalledMs: number
  readonly subscriptionsMax: number
  readonly outbound: Outbound
}

/** What all connections that share it have not read: while it is over its bound, each gets only what it reads at once. */
export interface Outbound {
  bytes: number
  readonly bytesMax: number
}

export const SESSION_DEFAULTS: SessionSettings = {
  serverVersion: '',
  frameBytesMax: LIMITS.frameBytesDefault,
  heartbeatMs: LIMITS.heartbeatMsDefault,
  handshakeMs: LIMITS.handshakeMsMax,
  inFlightBatches: LIMITS.inFlightBatchesDefault,
  inFlightBytes: LIMITS.inFlightBytesDefault,
  outboundBytesSoft: 1 << 20,
  outboundBytesHard: 8 << 20,
  stalledMs: 10_000,
  subscriptionsMax: 4_096,
  outbound: { bytes: 0, bytesMax: Infinity },
}

type Stage = 'hello' | 'auth' | 'open' | 'closed'

/** Frames that a client may send. */
type ClientOpcode = {
  [Name in OpcodeName]: (typeof OPCODES)[Name]['sender'] extends 'server' ? never : Name
}[OpcodeName]

type Handler = (
  session: Session,
  channel: number,
  correlation: number,
  bytes: Uint8Array,
  start: number,
  end: number,
) => void

export class Session implements Output, Consumer {
  readonly #broker: Broker
  readonly #transport: Transport
  readonly #settings: SessionSettings
  readonly #decoder: FrameDecoder
  /** What waits at the gate, and deliveries that need not: they tell of nothing that is not on disk. */
  readonly #outbox: Outbox
  readonly #freeOutbox: Outbox
  readonly #onClosed: (session: Session, why: SluiceError | undefined) => void
  readonly #subscriptions = new Map<number, Subscription>()
  #stage: Stage = 'hello'
  #hello: Hello | undefined
  #producer: Producer | undefined
  #heartbeatMs: number
  #inFlightBatches = 0
  /**
   * Requests that take several turns and are not answered yet. One is done at a time, once what was answered before is
   * mostly read: all of them together would be more than may be unread, of a peer that had no time to read.
   */
  #working = 0
  #isWorking = false
  readonly #waiting: { readonly correlation: number; readonly work: () => Promise<Answer> }[] = []
  #refusal: SluiceError | undefined
  /** The client said that it is done; or the broker stops and hands out nothing more. */
  #saidGoodbye = false
  /** The client never comes back. */
  #hasLeft = false
  #isStopping = false
  /** Times in ms: begun, last byte heard, last byte sent, since when too much is unread (0: it is not). */
  #begunMs: number
  #heardMs: number
  #spokeMs: number
  #stalledSinceMs = 0
  /** Its part of what all connections have not read. */
  #outboundBytes = 0
  /** Frames that went past the outboxes and that the transport has not passed on. */
  #urgentUnread = 0
  #isCongested = false
  #isPaused = false
  #waitsForDisk = false
  /** Most that was written at once: it may be more than is kept else, and more than a message may have by now. */
  #largestBytes = 0
  /** Largest record, alone in its frame, that the client accepts. */
  #recordBytesMax = 0
  /** The PUBLISH_OK that was written last: its page, and where its payload begins and ends there. */
  #okPage = NO_PAGE
  #okAt = 0
  #okEnd = 0
  readonly #deliveries = new Deliveries()

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
    this.#heartbeatMs = settings.heartbeatMs
    this.#begunMs = nowMs
    this.#heardMs = nowMs
    this.#spokeMs = nowMs
    const outgoing: OutboxTransport = {
      write: (bytes, written) => {
        this.#spokeMs = this.#broker.nowMs
        transport.write(bytes, written)
      },
    }
    this.#outbox = new Outbox(outgoing, () => this.#progressed())
    this.#freeOutbox = new Outbox(outgoing, () => this.#progressed())
    this.#decoder = new FrameDecoder((opcode, flags, channel, correlation, bytes, start, end) => {
      this.#frame(opcode, flags, channel, correlation, bytes, start, end)
    })
  }

  get peer(): string {
    return this.#transport.peer
  }

  /** The label that the client gave itself; '' before the handshake. */
  get label(): string {
    return this.#hello?.name ?? ''
  }

  get isOpen(): boolean {
    return this.#stage === 'open'
  }

  /** Whether it takes deliveries: it has read most of what was sent to it. */
  get isReady(): boolean {
    return !this.#isCongested && !this.#isStopping && this.#stage === 'open'
  }

  /** Largest frame that the client accepts. */
  get #frameBytesMax(): number {
    return this.#hello!.frameBytesMax
  }

  get #outstandingBytes(): number {
    return this.#outbox.outstandingBytes + this.#freeOutbox.outstandingBytes
  }

  /** Bytes of half-received frames that this connection keeps. */
  get heldBytes(): number {
    return this.#decoder.capacityBytes
  }

  /** The next bytes from the peer. */
  receive(chunk: Uint8Array, nowMs: number): void {
    if (this.#stage === 'closed') return
    this.#heardMs = nowMs
    this.#broker.beginTurn()
    try {
      this.#decoder.push(chunk)
    } catch (error) {
      this.#failed(error)
    }
  }

  /** The transport is gone; whoever the peer was, it hears nothing any more. */
  disconnected(): void {
    this.#close(undefined)
  }

  /** The peer sends no more bytes. After GOODBYE it still reads the answers that are under way. */
  peerEnded(): void {
    if (this.#stage === 'open' && this.#saidGoodbye) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Answers HELLO, once it comes, with this error: the connection has no place here. */
  refuse(error: SluiceError): void {
    this.#refusal = error
  }

  /** Judges deadlines. `stallMs` is how late this call comes: nobody is blamed for what this process slept through. */
  tick(nowMs: number, stallMs: number): void {
    if (this.#stage === 'closed') return
    // What is not read because of the disk cannot be heard either.
    this.#heardMs = this.#isPaused ? nowMs : Math.min(nowMs, this.#heardMs + stallMs)
    this.#begunMs = Math.min(nowMs, this.#begunMs + stallMs)
    // Whose unread bytes use up what all connections share has to read them, even if there is nothing to deliver.
    if (this.#outboundBytes > this.#softBytes) this.#congested()
    // What waits for the disk cannot be read yet.
    if (this.#outbox.unreadBytes + this.#freeOutbox.unreadBytes === 0) this.#stalledSinceMs &&= nowMs
    if (this.#stalledSinceMs > 0) this.#stalledSinceMs = Math.min(nowMs, this.#stalledSinceMs + stallMs)
    if (this.#stage !== 'open') {
      if (nowMs - this.#begunMs > this.#settings.handshakeMs) {
        this.fail(
          this.#refusal ??
            new SluiceError(
              'HANDSHAKE_TIMEOUT',
              `The handshake was not finished within ${durationText(this.#settings.handshakeMs)}.`,
            ),
        )
      }
      return
    }
    if (nowMs - this.#heardMs > this.#heartbeatMs * 2) {
      this.fail(
        new SluiceError(
          'HEARTBEAT_TIMEOUT',
          `Nothing was heard for ${durationText(Math.round(nowMs - this.#heardMs))}; the heartbeat is ${durationText(this.#heartbeatMs)}.`,
        ),
      )
      return
    }
    if (this.#stalledSinceMs > 0 && nowMs - this.#stalledSinceMs > this.#settings.stalledMs) {
      this.fail(
        new SluiceError(
          'SLOW_CONSUMER',
          `${this.#outstandingBytes} bytes were not read for ${durationText(this.#settings.stalledMs)}.`,
        ),
      )
      return
    }
    if (nowMs - this.#spokeMs >= this.#heartbeatMs / 2) this.#urgent(OP.PING, 0)
  }

  /** The broker stops: tells the client, hands out nothing more, and still takes what the client has to say. */
  goodbye(text: string): void {
    if (this.#stage !== 'open') {
      this.end()
      return
    }
    this.#isStopping = true
    this.#outbox.frame(OP.GOODBYE, 0, 0, encodeGoodbye(GOODBYE_REASON.stopping, text))
    this.#broker.hold(this)
  }

  /** It holds no lease and waits for nothing: closing it takes nothing from anybody. */
  get isIdle(): boolean {
    for (const subscription of this.#subscriptions.values()) if (subscription.unsettled > 0) return false
    return this.#working === 0 && this.#outbox.isEmpty && this.#freeOutbox.isEmpty
  }

  /** Closes once everything that is held has gone out. Nobody is charged for what was being handled. */
  end(): void {
    this.#saidGoodbye = true
    if (this.#stage === 'open' && (this.#working > 0 || !this.#outbox.isEmpty)) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Ends the connection with an error that the client is told, past the gate: nothing in it was promised. */
  fail(error: SluiceError): void {
    if (this.#stage === 'closed') return
    const payload = encodeFault({ ...faultOf(error), scope: 'connection' })
    const greeting = this.#stage === 'hello' || this.#stage === 'auth' ? encodePreface() : NO_BYTES
    const bytes = new Uint8Array(greeting.length + FRAME_HEADER_BYTES + payload.length)
    bytes.set(greeting)
    bytes.set(payload, writeFrameHeader(bytes, greeting.length, payload.length, OP.ERROR, 0, 0))
    // A peer that speaks another protocol is not answered in this one.
    if (this.#decoder.isOurs) this.#transport.write(bytes, () => {})
    this.#close(error)
    this.#transport.end()
  }

  // --- Output ---

  endTurn(gate: number): void {
    this.#outbox.endTurn(gate)
    this.#freeOutbox.endTurn(0)
    if (this.#stage === 'open') this.#countOutbound()
    const { outboundBytesSoft, outboundBytesHard } = this.#settings
    // One message may be larger than all that is kept else.
    const messageBytes = Math.max(this.#broker.messageBytesMax, this.#largestBytes) + MESSAGE_OVERHEAD_BYTES
    const most = Math.max(outboundBytesSoft, messageBytes) + outboundBytesHard
    if (this.#outstandingBytes > most) {
      this.fail(
        new SluiceError(
          'SLOW_CONSUMER',
          `${this.#outstandingBytes} bytes are unread; at most ${most} are kept.`,
        ),
      )
    }
  }

  release(durableLsn: number): boolean {
    this.#freeOutbox.release(durableLsn)
    const holds = this.#outbox.release(durableLsn)
    if (this.#stage !== 'open') return false
    if (!holds && this.#saidGoodbye) this.end()
    else if (this.#isPaused && this.#outbox.inFlightBytes <= this.#settings.inFlightBytes / 2)
      this.#resumeReading()
    return holds
  }

  // --- Consumer ---

  deliver(
    subscription: Subscription,
    run: Run,
    firstTag: number,
    count: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    // It may overtake confirms, but neither the answer to SUBSCRIBE nor a delivery that waits.
    const outbox = run.durable && this.#outbox.barriers === 0 ? this.#freeOutbox : this.#outbox
    if (end - start > this.#largestBytes) this.#largestBytes = end - start
    if (end - start > this.#recordBytesMax) {
      // Every agreed frame has room for a batch and for the largest message: this is one that was moved.
      const record = fittedRecord(copyBytes(bytes, start, end), this.#recordBytesMax)
      this.#deliveries.write(outbox, subscription, run, firstTag, count, record, 0, record.length)
    } else this.#deliveries.write(outbox, subscription, run, firstTag, count, bytes, start, end)
    this.#broker.hold(this)
    this.#countOutbound()
    if (this.#outstandingBytes > this.#softBytes) this.#congested()
  }

  lost(subscription: Subscription, reason: Loss, ranges: readonly LostRange[]): void {
    const { id: subscriptionId, channel } = subscription
    this.#outbox.frame(OP.LEASES_LOST, channel, 0, encodeLeasesLost({ subscriptionId, reason, ranges }))
    this.#broker.hold(this)
  }

  drained(subscription: Subscription): void {
    this.#outbox.frame(
      OP.DRAINED,
      subscription.channel,
      0,
      encodeDrained(subscription.id, subscription.delivered),
    )
    this.#broker.hold(this)
  }

  ended(subscription: Subscription, error: SluiceError): void {
    this.#subscriptions.delete(subscription.channel)
    this.#error(error, subscription.channel, 0, 'channel')
  }

  // --- frames ---

  #frame(
    opcode: number,
    flags: number,
    channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    try {
      const kind = KINDS[opcode]
      if (kind === undefined)
        throw new SluiceError('UNKNOWN_OPCODE', `No frame kind has the number ${opcode}.`)
      const { name, isEmpty, handler } = kind
      if (flags !== 0)
        throw new SluiceError(
          'MALFORMED_FRAME',
          `${name} has the frame flags ${flags}; this version has none.`,
        )
      if (handler === undefined || !this.#expects(name)) {
        throw new SluiceError(
          'UNEXPECTED_FRAME',
          `The frame ${name} may not be sent by a client at the stage ${this.#stage}.`,
        )
      }
      if (isEmpty && end !== start) {
        throw new SluiceError('MALFORMED_FRAME', `${name} has ${end - start} bytes; it must have none.`)
      }
      handler(this, channel, correlation, bytes, start, end)
    } catch (error) {
      this.#failed(error, channel, correlation)
    }
  }

  #expects(name: OpcodeName): boolean {
    if (name === 'HELLO') return this.#stage === 'hello'
    if (name === 'AUTH') return this.#stage === 'auth'
    return this.#stage === 'open'
  }

  // Bad input is answered; anything else is a defect of ours, after which nothing may be confirmed.
  #failed(error: unknown, channel = 0, correlation = 0): void {
    if (!(error instanceof SluiceError)) {
      this.#close(undefined)
      this.#transport.end()
      this.#broker.fail(error)
    } else if (error.scope === 'connection' || this.#stage !== 'open') {
      this.fail(error)
    } else {
      this.#error(error, channel, correlation, error.scope)
    }
  }

  #error(error: SluiceError, channel: number, correlation: number, scope: SluiceError['scope']): void {
    this.#outbox.frame(OP.ERROR, channel, correlation, encodeFault({ ...faultOf(error), scope }))
    this.#broker.hold(this)
  }

  takeHello(bytes: Uint8Array, start: number, end: number): void {
    const hello = decodeHello(bytes, start, end)
    if (this.#refusal !== undefined) {
      this.#hello = hello
      throw this.#refusal
    }
    if (hello.versionMin > PROTOCOL_VERSION || hello.versionMax < PROTOCOL_VERSION) {
      this.#hello = hello
      throw new SluiceError(
        'PROTOCOL_VERSION',
        `The client speaks versions ${hello.versionMin} to ${hello.versionMax}; this broker speaks ${PROTOCOL_VERSION}.`,
      )
    }
    const least = Math.max(this.#broker.messageBytesMax, LIMITS.batchBytesMax) + MESSAGE_OVERHEAD_BYTES
    if (hello.frameBytesMax < least) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `The client takes frames of ${hello.frameBytesMax} bytes; messages of this broker need ${least}.`,
        { scope: 'connection' },
      )
    }
    this.#hello = hello
    this.#recordBytesMax = hello.frameBytesMax - DELIVERY_OVERHEAD_BYTES
    this.#stage = 'auth'
  }

  takeAuth(bytes: Uint8Array, start: number, end: number): void {
    const auth = decodeAuth(bytes, start, end)
    if (auth.mechanism !== MECHANISM.anonymous || auth.identity !== '' || auth.secret.length > 0) {
      throw new SluiceError(
        'AUTH_FAILED',
        `The authentication mechanism ${auth.mechanism} is not offered; this broker has no users.`,
      )
    }
    const hello = this.#hello!
    const { heartbeatMs, frameBytesMax, inFlightBytes, serverVersion } = this.#settings
    this.#inFlightBatches = Math.min(hello.inFlightBatches || Infinity, this.#settings.inFlightBatches)
    this.#producer = this.#broker.attachProducer(
      Buffer.from(hello.producer).toString('hex'),
      hello.acceptedNumber,
    )
    this.#heartbeatMs =
      hello.heartbeatMs === 0
        ? heartbeatMs
        : Math.max(LIMITS.heartbeatMsMin, Math.min(hello.heartbeatMs, heartbeatMs))
    this.#stage = 'open'
    this.#decoder.frameBytesMax = frameBytesMax
    const ok = encodeHelloOk({
      version: PROTOCOL_VERSION,
      features: 0,
      frameBytesMax,
      heartbeatMs: this.#heartbeatMs,
      messageBytesMax: this.#broker.messageBytesMax,
      inFlightBatches: this.#inFlightBatches,
      inFlightBytes,
      boot: this.#broker.boot,
      durability: DURABILITY.disk,
      serverVersion,
    })
    const preface = encodePreface()
    const greeting = new Uint8Array(preface.length + FRAME_HEADER_BYTES + ok.length)
    greeting.set(preface)
    greeting.set(ok, writeFrameHeader(greeting, preface.length, ok.length, OP.HELLO_OK, 0, 0))
    this.#send(greeting)
  }

  ping(correlation: number): void {
    this.#urgent(OP.PONG, correlation)
    if (this.#urgentUnread <= URGENT_UNREAD_MAX) return
    this.fail(
      new SluiceError(
        'SLOW_CONSUMER',
        `${this.#urgentUnread} answers to PING are unread; at most ${URGENT_UNREAD_MAX} are kept.`,
      ),
    )
  }

  takeGoodbye(bytes: Uint8Array, start: number, end: number): void {
    const { reason } = decodeGoodbye(bytes, start, end)
    this.#hasLeft = reason === GOODBYE_REASON.left
    // Its leases end here, and nothing that it was handling is held against anybody.
    this.#unsubscribeAll(false)
    this.#saidGoodbye = true
    this.#broker.hold(this)
  }

  publish(correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const batchAt = publishBatchStart(bytes, start, end)
    // What has no number that can be told cannot be refused under it.
    const number = u64('The batch of PUBLISH', bytes, batchAt + 24)
    this.#checkWindow(correlation)
    try {
      const nameAt = start + 1
      const to = this.#broker.queueAt(bytes, nameAt, batchAt) ?? readText(bytes, nameAt, batchAt)
      const placed = this.#broker.publish(this.#producer!, to, bytes, batchAt, end, correlation)
      this.#confirm(number, placed)
      this.#took(end - start)
    } catch (error) {
      this.#refuse(number, error)
    }
  }

  atomic(correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const number = atomicNumber(bytes, start, end)
    this.#checkWindow(correlation)
    try {
      const { crc, acks, batches } = decodeAtomic(bytes, start, end)
      const ranges = acks.map(({ channel, subscriptionId, firstTag, count }) => ({
        subscription: this.#subscription(channel, subscriptionId),
        firstTag,
        count,
      }))
      const step = { number, crc, acks: ranges, batches }
      const places = this.#broker.atomic(this.#producer!, step, correlation)
      this.#outbox.frame(OP.ATOMIC_OK, 0, 0, encodeAtomicOk(number, places))
      this.#broker.hold(this)
      this.#took(end - start)
    } catch (error) {
      this.#refuse(number, error)
    }
  }

  #checkWindow(unanswered: number): void {
    if (unanswered >= this.#inFlightBatches) throw tooManyInFlight(unanswered + 1, this.#inFlightBatches)
  }

  // What was written last answers so many bytes of the producer's.
  #took(bytes: number): void {
    this.#outbox.answers(bytes)
    if (this.#outbox.inFlightBytes > this.#settings.inFlightBytes || this.#broker.isBehind)
      this.#pauseReading()
  }

  #refuse(number: number, error: unknown): void {
    if (!(error instanceof SluiceError) || error.scope !== 'request') throw error
    this.#outbox.frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(number, faultOf(error)))
    this.#broker.hold(this)
  }

  // Confirms of one turn share a frame for as long as nothing else comes between them.
  #confirm(batchNumber: number, { baseOffset, duplicates }: Placed): void {
    const outbox = this.#outbox
    const bytes = publishOkItemBytes(duplicates)
    const fits = this.#okEnd - this.#okAt + bytes <= CONFIRMS_BYTES_MAX
    let at = fits ? outbox.extend(this.#okPage, this.#okEnd, bytes) : -1
    if (at === -1) {
      at = outbox.begin(OP.PUBLISH_OK, 0, 0, bytes)
      this.#okPage = outbox.page
      this.#okAt = at
      this.#broker.hold(this)
    }
    this.#okEnd = writePublishOkItem(outbox.bytes, at, batchNumber, baseOffset, duplicates)
    writeU32(outbox.bytes, this.#okAt - FRAME_HEADER_BYTES, this.#okEnd - this.#okAt)
  }

  subscribe(channel: number, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const request = subscribeRequest(decodeControl(bytes, start, end))
    if (this.#isStopping)
      throw new SluiceError('SHUTTING_DOWN', 'The broker is stopping.', { scope: 'request' })
    if (channel === 0)
      throw new SluiceError(
        'INVALID_ARGUMENT',
        'A subscription needs a channel from 1 to 65535; 0 is the connection itself.',
      )
    if (this.#subscriptions.has(channel))
      throw new SluiceError('CHANNEL_IN_USE', `A subscription is open on channel ${channel}.`)
    if (this.#subscriptions.size >= this.#settings.subscriptionsMax) {
      throw new SluiceError(
        'TOO_MANY_SUBSCRIPTIONS',
        `The connection has ${this.#subscriptions.size} subscriptions; it may have ${this.#settings.subscriptionsMax}.`,
      )
    }
    const subscription = this.#broker.subscribe(
      request.queue,
      channel,
      this,
      request.messages,
      request.bytes,
      request.limit,
      request.processingTimeoutMs,
    )
    this.#subscriptions.set(channel, subscription)
    const { id: subscriptionId, queue } = subscription
    const granted = this.#broker.claim(subscription, request.claims)
    const payload = encodeSubscribed({ subscriptionId, queueNumber: queue.id, granted })
    this.#outbox.frame(OP.SUBSCRIBE_OK, channel, correlation, payload)
    this.#broker.hold(this)
  }

  credit(channel: number, bytes: Uint8Array, start: number, end: number): void {
    const credit = decodeCredit(bytes, start, end)
    const subscription = this.#subscription(channel, credit.subscriptionId)
    // A subscription that ended while this was under way: its end was told already.
    if (subscription === undefined) return
    this.#broker.credit(subscription, credit.messages, credit.bytes, credit.limit, credit.drain)
    // Nothing is handed out any more, so nothing more can come.
    if (this.#isStopping && credit.drain) subscription.answerDrain()
  }

  started(channel: number, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, ranges } = decodeRanges('STARTED', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.started(subscription, ranges)
  }

  starting(channel: number, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, ranges } = decodeRanges('STARTING', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.starting(subscription, ranges)
  }

  settle(channel: number, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, items } = decodeSettle(bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    const stale = subscription === undefined ? items : this.#broker.settle(subscription, items)
    this.#outbox.frame(OP.SETTLE_OK, channel, correlation, encodeRanges(subscriptionId, stale))
    this.#broker.hold(this)
    this.#waitForDisk()
  }

  extend(channel: number, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, firstTag, count, durationMs } = decodeExtend(bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    const stale =
      subscription === undefined
        ? [{ firstTag, count }]
        : this.#broker.extend(subscription, firstTag, count, durationMs)
    this.#outbox.frame(OP.SETTLE_OK, channel, correlation, encodeRanges(subscriptionId, stale))
    this.#broker.hold(this)
  }

  unsubscribe(channel: number, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const subscriptionId = decodeSubscriptionId('UNSUBSCRIBE', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription === undefined) {
      throw new SluiceError(
        'SUBSCRIPTION_NOT_FOUND',
        `No subscription ${subscriptionId} is open on channel ${channel}.`,
      )
    }
    this.#broker.unsubscribe(subscription, 'nobody')
    this.#subscriptions.delete(channel)
    this.answer(correlation, { opcode: OP.RESULT, payload: encodeControl({}) })
  }

  request(name: RequestName, correlation: number, bytes: Uint8Array, start: number, end: number): void {
    const body = decodeControl(bytes, start, end)
    const asker = {
      broker: this.#broker,
      caller: this,
      payloadBytesMax: this.#frameBytesMax - FRAME_HEADER_BYTES,
    }
    if (!isLong(name)) {
      this.answer(correlation, REQUESTS[name](asker, body))
      return
    }
    this.#checkWorking()
    this.#working++
    this.#waiting.push({ correlation, work: () => REQUESTS[name](asker, body) })
    this.#workOn()
  }

  /** Writes the answer to a request. */
  answer(correlation: number, { opcode, payload }: Answer): void {
    if (payload.length > this.#largestBytes) this.#largestBytes = payload.length
    this.#outbox.frame(opcode, 0, correlation, payload)
    this.#broker.hold(this)
    this.#waitForDisk()
  }

  #checkWorking(): void {
    if (this.#working < WORKING_MAX) return
    throw new SluiceError(
      'TOO_MANY_REQUESTS',
      `${WORKING_MAX} requests that read from disk are running on this connection; another has to wait.`,
    )
  }

  // What has to read takes turns of its own; its answer is held like any other once it is there.
  #workOn(): void {
    if (this.#isWorking || this.#outstandingBytes > this.#softBytes) return
    const next = this.#waiting.shift()
    if (next === undefined) return
    const { correlation, work } = next
    this.#isWorking = true
    work().then(
      (answer) => this.#worked(() => this.answer(correlation, answer), correlation),
      (error: unknown) =>
        this.#worked(() => {
          throw error
        }, correlation),
    )
  }

  #worked(answer: () => void, correlation: number): void {
    this.#working--
    this.#isWorking = false
    if (this.#stage !== 'open') return
    this.#broker.beginTurn()
    try {
      answer()
    } catch (error) {
      this.#failed(error, 0, correlation)
    }
    this.#broker.hold(this)
    this.#workOn()
  }

  #subscription(channel: number, id: number): Subscription | undefined {
    const subscription = this.#subscriptions.get(channel)
    return subscription?.id === id ? subscription : undefined
  }

  // --- the connection ---

  // Heartbeats do not wait at the gate: a slow disk must not look like a dead peer.
  #urgent(opcode: number, correlation: number): void {
    const bytes = new Uint8Array(FRAME_HEADER_BYTES)
    writeFrameHeader(bytes, 0, 0, opcode, 0, correlation)
    this.#send(bytes)
  }

  #send(bytes: Uint8Array): void {
    this.#spokeMs = this.#broker.nowMs
    this.#urgentUnread++
    this.#transport.write(bytes, () => {
      this.#urgentUnread--
    })
  }

  #countOutbound(): void {
    const { outbound } = this.#settings
    outbound.bytes += this.#outstandingBytes - this.#outboundBytes
    this.#outboundBytes = this.#outstandingBytes
  }

  // Beyond so many unread bytes it gets no deliveries.
  get #softBytes(): number {
    const { outbound, outboundBytesSoft } = this.#settings
    return outbound.bytes > outbound.bytesMax ? 0 : outboundBytesSoft
  }

  #congested(): void {
    if (this.#isCongested) return
    this.#isCongested = true
    this.#stalledSinceMs = this.#broker.nowMs
  }

  #progressed(): void {
    if (this.#stage !== 'open') return
    this.#countOutbound()
    this.#workOn()
    if (!this.#isCongested) return
    this.#stalledSinceMs = this.#broker.nowMs
    if (this.#outstandingBytes > this.#softBytes / 2) return
    this.#isCongested = false
    this.#stalledSinceMs = 0
    for (const subscription of this.#subscriptions.values()) this.#broker.ready(subscription.queue)
  }

  // What makes facts is read no faster than the disk takes them.
  #waitForDisk(): void {
    if (!this.#broker.isBehind) return
    this.#pauseReading()
    this.#resumeReading()
  }

  #pauseReading(): void {
    if (this.#isPaused) return
    this.#isPaused = true
    this.#transport.pause()
  }

  #resumeReading(): void {
    if (this.#broker.isBehind) {
      if (this.#waitsForDisk) return
      this.#waitsForDisk = true
      this.#broker.whenNotBehind(() => {
        this.#waitsForDisk = false
        this.#resumeReading()
      })
      return
    }
    if (this.#stage === 'closed') return
    this.#isPaused = false
    this.#transport.resume()
  }

  #unsubscribeAll(connectionDied: boolean): void {
    const isStopping = this.#isStopping
    if (connectionDied) this.#broker.disconnect(this.#subscriptions.values(), isStopping)
    else
      for (const subscription of this.#subscriptions.values())
        this.#broker.unsubscribe(subscription, 'nobody', isStopping)
    this.#subscriptions.clear()
  }

  #close(why: SluiceError | undefined): void {
    if (this.#stage === 'closed') return
    this.#stage = 'closed'
    this.#decoder.stop()
    this.#waiting.length = 0
    this.#outbox.clear()
    this.#freeOutbox.clear()
    this.#settings.outbound.bytes -= this.#outboundBytes
    this.#outboundBytes = 0
    this.#unsubscribeAll(!this.#saidGoodbye)
    this.#broker.forget(this)
    if (this.#producer !== undefined) this.#broker.detachProducer(this.#producer, this.#hasLeft)
    this.#onClosed(this, why)
  }
}

const NO_BYTES = new Uint8Array(0)
const NO_PAGE = -1
/** Confirms that share a frame; one with many duplicates goes alone, and fits every agreed frame. */
const CONFIRMS_BYTES_MAX = 64 << 10
/** Requests that take several turns, at a time on one connection. */
const WORKING_MAX = 16
/** Answers to PING that are kept for a peer that does not read; nobody else asks so often. */
const URGENT_UNREAD_MAX = 10_000

function requestHandler(name: RequestName): Handler {
  return (session, _channel, correlation, bytes, start, end) =>
    session.request(name, correlation, bytes, start, end)
}

// A client's frame without a handler, or a handler without a frame, does not compile.
const HANDLERS: { readonly [Name in ClientOpcode]: Handler } = {
  HELLO: (session, _channel, _correlation, bytes, start, end) => session.takeHello(bytes, start, end),
  AUTH: (session, _channel, _correlation, bytes, start, end) => session.takeAuth(bytes, start, end),
  PING: (session, _channel, correlation) => session.ping(correlation),
  PONG: () => {},
  GOODBYE: (session, _channel, _correlation, bytes, start, end) => session.takeGoodbye(bytes, start, end),
  PUBLISH: (session, _channel, correlation, bytes, start, end) =>
    session.publish(correlation, bytes, start, end),
  ATOMIC: (session, _channel, correlation, bytes, start, end) =>
    session.atomic(correlation, bytes, start, end),
  SUBSCRIBE: (session, channel, correlation, bytes, start, end) =>
    session.subscribe(channel, correlation, bytes, start, end),
  CREDIT: (session, channel, _correlation, bytes, start, end) => session.credit(channel, bytes, start, end),
  STARTED: (session, channel, _correlation, bytes, start, end) => session.started(channel, bytes, start, end),
  STARTING: (session, channel, _correlation, bytes, start, end) =>
    session.starting(channel, bytes, start, end),
  SETTLE: (session, channel, correlation, bytes, start, end) =>
    session.settle(channel, correlation, bytes, start, end),
  EXTEND: (session, channel, correlation, bytes, start, end) =>
    session.extend(channel, correlation, bytes, start, end),
  UNSUBSCRIBE: (session, channel, correlation, bytes, start, end) =>
    session.unsubscribe(channel, correlation, bytes, start, end),
  ...(Object.fromEntries(
    Object.keys(REQUESTS).map((name) => [name, requestHandler(name as RequestName)]),
  ) as Record<RequestName, Handler>),
}

interface Kind {
  readonly name: OpcodeName
  readonly isEmpty: boolean
  /** None: no client may send it. */
  readonly handler: Handler | undefined
}

// By number: with names alone, finding the handler was a fiftieth of what a broker does for single messages.
const KINDS: (Kind | undefined)[] = []
for (const [name, { code, layout }] of Object.entries(OPCODES) as [OpcodeName, Opcode][]) {
  const handler = (HANDLERS as Partial<Record<OpcodeName, Handler>>)[name]
  KINDS[code] = { name, isEmpty: layout === 'empty', handler }
}

// Apart from where it is thrown, so that its text is no part of the path of each batch.
function tooManyInFlight(batches: number, most: number): SluiceError {
  return new SluiceError('IN_FLIGHT_EXCEEDED', `${batches} batches are unanswered; at most ${most} may be.`)
}

function faultOf(error: SluiceError): {
  code: SluiceError['code']
  scope: SluiceError['scope']
  retryable: boolean
  retryAfterMs: number
  message: string
} {
  const { code, scope, retryable, retryAfterMs } = error
  return { code, scope, retryable, retryAfterMs, message: clipText(error.message, LIMITS.reasonBytesMax) }
}
