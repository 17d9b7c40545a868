/**
 * One connection: its stages, its frames, its subscriptions. Bytes in, broker calls, frames out; no socket and no
 * clock of its own, so that the simulator can drive it.
 *
 * Errors end what their scope says: the request, the channel, or the connection. Nobody else notices.
 */
import {
  FRAME_HEADER_BYTES,
  FrameDecoder,
  GOODBYE_REASON,
  LIMITS,
  OP,
  OPCODES,
  PUBLISH_NAME_AT,
  SluiceError,
  atomicNumber,
  clipText,
  copyBytes,
  decodeAtomic,
  decodeControl,
  decodeCredit,
  decodeExtend,
  decodeGoodbye,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  encodeAtomicOk,
  encodeDrained,
  encodeFault,
  encodeGoodbye,
  encodeLeasesLost,
  encodePublishErr,
  encodeRanges,
  encodeSubscribed,
  publishBatchStart,
  publishNumber,
  readText,
  subscribeRequest,
  writeFrameHeader,
  type Frame,
  type LostRange,
  type Loss,
  type Opcode,
  type OpcodeName,
  type Stage,
} from '@sluice/protocol'
import type { Broker, Output } from '../broker/broker.js'
import { fittedRecord } from '../broker/origin.js'
import type { Producer } from '../state/producers.js'
import type { Peer, Transport } from '../net/peer.js'
import type { Consumer, Delivery, Subscription } from '../queue/index.js'
import { encodeAnswer, result, type Answer } from './answers.js'
import { Confirms } from './confirms.js'
import { DELIVERY_OVERHEAD_BYTES, Deliveries } from './deliveries.js'
import { Handshake, greeting, unexpectedFrame } from './handshake.js'
import { Liveness } from './liveness.js'
import { LongRequests } from './long-requests.js'
import { Outbox, type OutboxTransport } from './outbox.js'
import { Reading } from './reading.js'
import { REQUEST_NAMES, handle, handleLong, isLong, type AnswerOf, type RequestName } from './requests.js'
import type { SessionSettings } from './settings.js'
import { Unread } from './unread.js'

/** Frames that a client may send. */
type ClientOpcode = {
  [Name in OpcodeName]: (typeof OPCODES)[Name]['sender'] extends 'server' ? never : Name
}[OpcodeName]

type Handler = (session: Session, frame: Frame) => void

export class Session implements Peer, Output, Consumer {
  readonly #broker: Broker
  readonly #transport: Transport
  readonly #settings: SessionSettings
  readonly #decoder: FrameDecoder
  /** What waits at the gate, and deliveries that need not: they tell of nothing that is not on disk. */
  readonly #outbox: Outbox
  readonly #freeOutbox: Outbox
  readonly #onClosed: (session: Session, why: SluiceError | undefined) => void
  readonly #subscriptions = new Map<number, Subscription>()
  readonly #handshake: Handshake
  readonly #liveness: Liveness
  readonly #unread: Unread
  readonly #reading: Reading
  #stage: Exclude<Stage, 'any'> | 'closed' = 'handshake'
  #producer: Producer | undefined
  #inFlightBatches = 0
  readonly #longRequests = new LongRequests((correlation, answer) => this.#finished(correlation, answer))
  /** The client said that it is done; or the broker stops and delivers nothing more. */
  #saidGoodbye = false
  /** The client never comes back. */
  #hasLeft = false
  #isStopping = false
  /** Largest frame that the client accepts, and the largest record that is alone in one. */
  #frameBytesMax = 0
  #recordBytesMax = 0
  readonly #confirms = new Confirms()
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
    this.#handshake = new Handshake(broker, settings, nowMs)
    this.#liveness = new Liveness(transport, settings.heartbeatMs, nowMs)
    this.#reading = new Reading(broker, transport, settings.inFlightBytes)
    const outgoing: OutboxTransport = {
      write: (bytes, written) => {
        this.#liveness.spoke(this.#broker.turn.nowMs)
        transport.write(bytes, written)
      },
    }
    this.#outbox = new Outbox(outgoing, () => this.#progressed())
    this.#freeOutbox = new Outbox(outgoing, () => this.#progressed())
    this.#unread = new Unread(this.#outbox, this.#freeOutbox, settings)
    this.#decoder = new FrameDecoder((frame) => this.#frame(frame))
  }

  get peer(): string {
    return this.#transport.peer
  }

  /** The label that the client gave itself; '' before the handshake. */
  get label(): string {
    return this.#handshake.label
  }

  get isOpen(): boolean {
    return this.#stage === 'open'
  }

  /** Whether it takes deliveries: it has read most of what was sent to it. */
  get isReady(): boolean {
    return !this.#unread.isCongested && !this.#isStopping && this.#stage === 'open'
  }

  /** Bytes of half-received frames that this connection keeps. */
  get heldBytes(): number {
    return this.#decoder.capacityBytes
  }

  /** The next bytes from the peer. */
  receive(chunk: Uint8Array, nowMs: number): void {
    if (this.#stage === 'closed') return
    this.#liveness.heard(nowMs)
    this.#broker.turn.begin()
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
  inputEnded(): void {
    if (this.#stage === 'open' && this.#saidGoodbye) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Answers HELLO, once it comes, with this error: the connection has no place here. */
  refuse(error: SluiceError): void {
    this.#handshake.refuse(error)
  }

  /** Judges deadlines. `stallMs` is how late this call comes: no peer is blamed for what this process slept through. */
  tick(nowMs: number, stallMs: number): void {
    if (this.#stage === 'closed') return
    if (this.#stage === 'handshake') {
      const late = this.#handshake.overdue(nowMs, stallMs)
      if (late !== undefined) this.fail(late)
      return
    }
    // What is not read because of the disk cannot be heard either.
    if (this.#reading.isPaused) this.#liveness.heard(nowMs)
    const late = this.#liveness.overdue(nowMs, stallMs) ?? this.#unread.overdue(nowMs, stallMs)
    if (late === undefined) this.#liveness.beat(nowMs)
    else this.fail(late)
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
    return this.#longRequests.unanswered === 0 && this.#outbox.isEmpty && this.#freeOutbox.isEmpty
  }

  /** Closes once everything that is held has gone out. Nobody is charged for what was being handled. */
  end(): void {
    this.#saidGoodbye = true
    if (this.#stage === 'open' && (this.#longRequests.unanswered > 0 || !this.#outbox.isEmpty)) return
    this.#close(undefined)
    this.#transport.end()
  }

  /** Ends the connection with an error that the client is told, past the gate: nothing in it was promised. */
  fail(error: SluiceError): void {
    if (this.#stage === 'closed') return
    const payload = encodeFault({ ...faultOf(error), scope: 'connection' })
    const bytes = this.#stage === 'handshake' ? greeting(OP.ERROR, payload) : frameBytes(OP.ERROR, payload)
    // A peer that speaks another protocol is not answered in this one.
    if (this.#decoder.isOurs) this.#transport.write(bytes, () => {})
    this.#close(error)
    this.#transport.end()
  }

  /** Counts what it holds anew and compares. @throws Error naming what differs */
  invariants(): void {
    this.#outbox.invariants()
    this.#freeOutbox.invariants()
    this.#unread.invariants()
  }

  // --- Output ---

  endTurn(gate: number): void {
    this.#outbox.endTurn(gate)
    this.#freeOutbox.endTurn(0)
    if (this.#stage !== 'open') return
    this.#unread.count()
    const error = this.#unread.overflow(this.#broker.messageBytesMax)
    if (error !== undefined) this.fail(error)
  }

  release(durableLsn: number): boolean {
    this.#freeOutbox.release(durableLsn)
    const holds = this.#outbox.release(durableLsn)
    if (this.#stage !== 'open') return false
    if (!holds && this.#saidGoodbye) this.end()
    else this.#reading.answered(this.#outbox.inFlightBytes)
    return holds
  }

  // --- Consumer ---

  deliver(subscription: Subscription, delivery: Delivery): void {
    const { run, bytes, start, end } = delivery
    // It may overtake confirms, but neither the answer to SUBSCRIBE nor a delivery that waits.
    const outbox = run.durable && this.#outbox.barriers === 0 ? this.#freeOutbox : this.#outbox
    this.#unread.wrote(end - start)
    if (end - start > this.#recordBytesMax) {
      // Every agreed frame has room for a batch and for the largest message: this is one that was moved.
      const record = fittedRecord(copyBytes(bytes, start, end), this.#recordBytesMax)
      this.#deliveries.write(outbox, subscription, {
        ...delivery,
        bytes: record,
        start: 0,
        end: record.length,
      })
    } else this.#deliveries.write(outbox, subscription, delivery)
    this.#broker.hold(this)
    this.#unread.delivered(this.#broker.turn.nowMs)
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

  #frame(frame: Frame): void {
    const { opcode, flags, channel, correlation } = frame
    try {
      const kind = KINDS[opcode]
      if (kind === undefined)
        throw new SluiceError('UNKNOWN_OPCODE', `No frame kind has the number ${opcode}.`)
      const { name, stage, isEmpty, handler } = kind
      if (flags !== 0)
        throw new SluiceError(
          'MALFORMED_FRAME',
          `${name} has the frame flags ${flags}; this version has none.`,
        )
      if (handler === undefined || stage !== this.#stage) {
        throw unexpectedFrame(name, this.#stage === 'handshake' ? this.#handshake.step : this.#stage)
      }
      const payloadBytes = frame.end - frame.start
      if (isEmpty && payloadBytes !== 0) {
        throw new SluiceError('MALFORMED_FRAME', `${name} has ${payloadBytes} bytes; it must have none.`)
      }
      handler(this, frame)
    } catch (error) {
      this.#failed(error, channel, correlation)
    }
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

  takeHello({ bytes, start, end }: Frame): void {
    this.#handshake.takeHello(bytes, start, end)
  }

  takeAuth({ bytes, start, end }: Frame): void {
    const agreed = this.#handshake.takeAuth(bytes, start, end)
    this.#producer = this.#broker.producers.attach(agreed.identity, agreed.acceptedNumber)
    this.#inFlightBatches = agreed.inFlightBatches
    this.#liveness.heartbeatMs = agreed.heartbeatMs
    this.#frameBytesMax = agreed.frameBytesMax
    this.#recordBytesMax = agreed.frameBytesMax - DELIVERY_OVERHEAD_BYTES
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
    // Its leases end here, and nothing that it was handling is held against anybody.
    this.#unsubscribeAll(false)
    this.#saidGoodbye = true
    this.#broker.hold(this)
  }

  publish({ correlation, bytes, start, end }: Frame): void {
    const batchAt = publishBatchStart(bytes, start, end)
    // What has no number that can be told cannot be refused under it.
    const number = publishNumber(bytes, batchAt)
    this.#checkWindow(correlation)
    try {
      const nameAt = start + PUBLISH_NAME_AT
      const to = this.#broker.catalog.queueAt(bytes, nameAt, batchAt) ?? readText(bytes, nameAt, batchAt)
      const placed = this.#broker.intake.publish(this.#producer!, to, bytes, batchAt, end, correlation)
      // One that shares a frame is held with it.
      if (this.#confirms.write(this.#outbox, number, placed)) this.#broker.hold(this)
      this.#took(end - start)
    } catch (error) {
      this.#refuse(number, error)
    }
  }

  atomic({ correlation, bytes, start, end }: Frame): void {
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
      const places = this.#broker.intake.atomic(this.#producer!, step, correlation)
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

  // What was written last answers this many bytes of the producer's.
  #took(bytes: number): void {
    this.#outbox.answers(bytes)
    this.#reading.accepted(this.#outbox.inFlightBytes)
  }

  #refuse(number: number, error: unknown): void {
    if (!(error instanceof SluiceError) || error.scope !== 'request') throw error
    this.#outbox.frame(OP.PUBLISH_ERR, 0, 0, encodePublishErr(number, faultOf(error)))
    this.#broker.hold(this)
  }

  subscribe({ channel, correlation, bytes, start, end }: Frame): void {
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
    const subscription = this.#broker.leases.subscribe(request, channel, this)
    this.#subscriptions.set(channel, subscription)
    const { id: subscriptionId, queue } = subscription
    const granted = this.#broker.leases.claim(subscription, request.claims)
    const payload = encodeSubscribed({ subscriptionId, queueNumber: queue.id, granted })
    this.#outbox.frame(OP.SUBSCRIBE_OK, channel, correlation, payload)
    this.#broker.hold(this)
  }

  credit({ channel, bytes, start, end }: Frame): void {
    const credit = decodeCredit(bytes, start, end)
    const subscription = this.#subscription(channel, credit.subscriptionId)
    // A subscription that ended while this was under way: its end was told already.
    if (subscription === undefined) return
    this.#broker.leases.credit(subscription, credit.messages, credit.bytes, credit.limit, credit.drain)
    // Nothing is handed out any more, so nothing more can come.
    if (this.#isStopping && credit.drain) subscription.answerDrain()
  }

  started({ channel, bytes, start, end }: Frame): void {
    const { subscriptionId, ranges } = decodeRanges('STARTED', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.leases.started(subscription, ranges)
  }

  starting({ channel, bytes, start, end }: Frame): void {
    const { subscriptionId, ranges } = decodeRanges('STARTING', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.leases.starting(subscription, ranges)
  }

  settle({ channel, correlation, bytes, start, end }: Frame): void {
    const { subscriptionId, items } = decodeSettle(bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    const stale = subscription === undefined ? items : this.#broker.leases.settle(subscription, items)
    this.#outbox.frame(OP.SETTLE_OK, channel, correlation, encodeRanges(subscriptionId, stale))
    this.#broker.hold(this)
    this.#reading.waitForDisk()
  }

  extend({ channel, correlation, bytes, start, end }: Frame): void {
    const { subscriptionId, firstTag, count, durationMs } = decodeExtend(bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    const stale =
      subscription === undefined
        ? [{ firstTag, count }]
        : this.#broker.leases.extend(subscription, firstTag, count, durationMs)
    this.#outbox.frame(OP.SETTLE_OK, channel, correlation, encodeRanges(subscriptionId, stale))
    this.#broker.hold(this)
  }

  unsubscribe({ channel, correlation, bytes, start, end }: Frame): void {
    const subscriptionId = decodeSubscriptionId('UNSUBSCRIBE', bytes, start, end)
    const subscription = this.#subscription(channel, subscriptionId)
    if (subscription === undefined) {
      throw new SluiceError(
        'SUBSCRIPTION_NOT_FOUND',
        `No subscription ${subscriptionId} is open on channel ${channel}.`,
      )
    }
    this.#broker.leases.unsubscribe(subscription, 'nobody')
    this.#subscriptions.delete(channel)
    this.answer(correlation, result({}))
  }

  request(name: RequestName, { correlation, bytes, start, end }: Frame): void {
    const body = decodeControl(bytes, start, end)
    const payloadBytesMax = this.#frameBytesMax - FRAME_HEADER_BYTES
    const context = { broker: this.#broker, caller: this, payloadBytesMax }
    const encode = (answer: AnswerOf<RequestName>): Answer => encodeAnswer(name, answer, payloadBytesMax)
    if (!isLong(name)) {
      this.answer(correlation, handle(name, context, body, encode))
      return
    }
    this.#longRequests.add(correlation, () => handleLong(name, context, body, encode))
    this.#workOn()
  }

  /** Writes the answer to a request. */
  answer(correlation: number, { opcode, payload }: Answer): void {
    this.#unread.wrote(payload.length)
    this.#outbox.frame(opcode, 0, correlation, payload)
    this.#broker.hold(this)
    this.#reading.waitForDisk()
  }

  // What has to read takes turns of its own; its answer is held like any other once it is there.
  #workOn(): void {
    if (!this.#unread.isOverSoft) this.#longRequests.next()
  }

  #finished(correlation: number, answer: () => Answer): void {
    this.#broker.turn.begin()
    try {
      // A change can fail half-way after its client has left, and that is a defect as well.
      const written = answer()
      if (this.#stage === 'open') this.answer(correlation, written)
    } catch (error) {
      this.#failed(error, 0, correlation)
    }
    if (this.#stage !== 'open') return
    this.#broker.hold(this)
    this.#workOn()
  }

  #subscription(channel: number, id: number): Subscription | undefined {
    const subscription = this.#subscriptions.get(channel)
    return subscription?.id === id ? subscription : undefined
  }

  // --- the connection ---

  #progressed(): void {
    if (this.#stage !== 'open') return
    this.#unread.count()
    this.#workOn()
    if (!this.#unread.eased(this.#broker.turn.nowMs)) return
    for (const subscription of this.#subscriptions.values()) this.#broker.leases.ready(subscription)
  }

  #unsubscribeAll(connectionDied: boolean): void {
    const isStopping = this.#isStopping
    if (connectionDied) this.#broker.leases.disconnect(this.#subscriptions.values(), isStopping)
    else
      for (const subscription of this.#subscriptions.values())
        this.#broker.leases.unsubscribe(subscription, 'nobody', isStopping)
    this.#subscriptions.clear()
  }

  #close(why: SluiceError | undefined): void {
    if (this.#stage === 'closed') return
    this.#stage = 'closed'
    this.#decoder.stop()
    this.#longRequests.clear()
    this.#outbox.clear()
    this.#freeOutbox.clear()
    this.#unread.clear()
    this.#reading.close()
    this.#unsubscribeAll(!this.#saidGoodbye)
    this.#broker.replays.forget(this)
    if (this.#producer !== undefined) this.#broker.producers.detach(this.#producer, this.#hasLeft)
    this.#onClosed(this, why)
  }
}

// A client's frame without a handler, or a handler without a frame, does not compile.
const HANDLERS: { readonly [Name in ClientOpcode]: Handler } = {
  HELLO: (session, frame) => session.takeHello(frame),
  AUTH: (session, frame) => session.takeAuth(frame),
  PING: (session, frame) => session.ping(frame),
  PONG: () => {},
  GOODBYE: (session, frame) => session.takeGoodbye(frame),
  PUBLISH: (session, frame) => session.publish(frame),
  ATOMIC: (session, frame) => session.atomic(frame),
  SUBSCRIBE: (session, frame) => session.subscribe(frame),
  CREDIT: (session, frame) => session.credit(frame),
  STARTED: (session, frame) => session.started(frame),
  STARTING: (session, frame) => session.starting(frame),
  SETTLE: (session, frame) => session.settle(frame),
  EXTEND: (session, frame) => session.extend(frame),
  UNSUBSCRIBE: (session, frame) => session.unsubscribe(frame),
  ...(Object.fromEntries(REQUEST_NAMES.map((name) => [name, requestHandler(name)])) as Record<
    RequestName,
    Handler
  >),
}

function requestHandler(name: RequestName): Handler {
  return (session, frame) => session.request(name, frame)
}

interface Kind {
  readonly name: OpcodeName
  /** The one stage at which it is legal; `any` is for frames of the broker. */
  readonly stage: Stage
  readonly isEmpty: boolean
  /** None: no client may send it. */
  readonly handler: Handler | undefined
}

// By number: with names alone, finding the handler was a fiftieth of what a broker does for single messages.
const KINDS: (Kind | undefined)[] = []
for (const [name, { code, stage, layout }] of Object.entries(OPCODES) as [OpcodeName, Opcode][]) {
  const handler = (HANDLERS as Partial<Record<OpcodeName, Handler>>)[name]
  KINDS[code] = { name, stage, isEmpty: layout === 'empty', handler }
}

// Apart from where it is thrown, so that its text is no part of the path of each batch.
function tooManyInFlight(batches: number, most: number): SluiceError {
  return new SluiceError('IN_FLIGHT_EXCEEDED', `${batches} batches are unanswered; at most ${most} may be.`)
}

function frameBytes(opcode: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, 0, 0))
  return bytes
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
