/**
 * The consuming half of a connection: its subscriptions and readers by channel, their deliveries, and their credit and
 * settles. The broker calls it as the consumer of each subscription and as the sink of each reader. `frames.ts` decodes the
 * client's frames before they reach this class.
 *
 * Invariant: `#subscriptions` and `#readers` contain open ones only, and a frame for any other changes nothing. A channel
 * has one of them at most.
 */
import {
  OP,
  SluiceError,
  copyBytes,
  encodeDrained,
  encodeLeasesLost,
  encodeReadAt,
  type Credit,
  type Extend,
  type Loss,
  type LostRange,
  type ReadOpened,
  type ReadRequest,
  type SettleItem,
  type Subscribed,
  type SubscribeRequest,
  type TagRange,
} from '@sluice/protocol'
import type { Broker, Output } from '../broker/broker.js'
import { fittedRecord } from '../broker/origin.js'
import type { Reader, ReaderSink } from '../broker/reader.js'
import type { Consumer, Delivery, Subscription } from '../queue/index.js'
import { errorPayload } from './answers.js'
import { DELIVERY_OVERHEAD_BYTES, Deliveries } from './deliveries.js'
import type { Agreement } from './handshake.js'
import type { Outboxes } from './outboxes.js'
import type { Reading } from './reading.js'
import type { Unread } from './unread.js'

/** The connection of the consumers. It sends the frames in the outboxes at the end of a turn. */
export interface Connection extends Output {
  readonly label: string
  readonly address: string
}

export class Consuming implements Consumer, ReaderSink {
  readonly #broker: Broker
  readonly #connection: Connection
  readonly #outboxes: Outboxes
  readonly #unread: Unread
  readonly #reading: Reading
  readonly #subscriptionsMax: number
  readonly #subscriptions = new Map<number, Subscription>()
  readonly #readers = new Map<number, Reader>()
  readonly #deliveries = new Deliveries()
  /** Size of the largest record that fits in a frame. */
  #recordBytesMax = 0
  #isOpen = false
  /** Whether the broker is stopping and delivers nothing more. */
  #isStopping = false

  constructor(
    broker: Broker,
    connection: Connection,
    outboxes: Outboxes,
    unread: Unread,
    reading: Reading,
    subscriptionsMax: number,
  ) {
    this.#broker = broker
    this.#connection = connection
    this.#outboxes = outboxes
    this.#unread = unread
    this.#reading = reading
    this.#subscriptionsMax = subscriptionsMax
  }

  // --- the connection ---

  /** Called when the handshake is done. */
  begin({ frameBytesMax }: Agreement): void {
    this.#recordBytesMax = frameBytesMax - DELIVERY_OVERHEAD_BYTES
    this.#isOpen = true
  }

  /** Called when the broker is stopping. Nothing more is delivered, but settles are still accepted. */
  stop(): void {
    this.#isStopping = true
  }

  /** Called when the client has said GOODBYE. Its leases end, and no message is charged an attempt. */
  leave(): void {
    for (const subscription of this.#subscriptions.values())
      this.#broker.leases.unsubscribe(subscription, 'normal', this.#isStopping)
    this.#subscriptions.clear()
    this.#closeReaders()
  }

  /**
   * Called when the connection is closed. `isLost` says that the connection ended without GOODBYE, so that a message
   * that was being handled may be the reason.
   */
  end(isLost: boolean): void {
    this.#isOpen = false
    if (isLost) this.#broker.leases.disconnect(this.#subscriptions.values(), this.#isStopping)
    else this.leave()
    this.#subscriptions.clear()
    this.#closeReaders()
  }

  #closeReaders(): void {
    for (const reader of this.#readers.values()) this.#broker.readers.close(reader)
    this.#readers.clear()
  }

  /** Whether no message is leased to the client. */
  get isIdle(): boolean {
    for (const subscription of this.#subscriptions.values()) if (subscription.unsettled > 0) return false
    return true
  }

  /** Called when the client has read enough for deliveries to continue. */
  resume(): void {
    for (const subscription of this.#subscriptions.values()) this.#broker.leases.ready(subscription)
    for (const reader of this.#readers.values()) this.#broker.readers.ready(reader)
  }

  // --- Consumer ---

  get label(): string {
    return this.#connection.label
  }

  get address(): string {
    return this.#connection.address
  }

  get isReady(): boolean {
    return !this.#unread.isCongested && !this.#isStopping && this.#isOpen
  }

  deliver(subscription: Subscription, delivery: Delivery): void {
    this.#deliver(subscription, delivery)
  }

  #deliver(recipient: Subscription | Reader, delivery: Delivery): void {
    const { run, bytes, start, end } = delivery
    const outbox = this.#outboxes.forDelivery(run.ungated)
    this.#unread.wrote(end - start)
    if (end - start > this.#recordBytesMax) {
      // A frame of the agreed size has room for the largest message and for the largest batch of several messages (see
      // `Handshake.takeHello`), so this is a single message. Only origin headers, which a move adds, can make a message
      // too large.
      const record = fittedRecord(copyBytes(bytes, start, end), this.#recordBytesMax)
      this.#deliveries.write(outbox, recipient, {
        ...delivery,
        bytes: record,
        start: 0,
        end: record.length,
      })
    } else this.#deliveries.write(outbox, recipient, delivery)
    this.#broker.noteOutput(this.#connection)
    this.#unread.delivered(this.#broker.turn.nowMs)
  }

  lost({ id: subscriptionId, channel }: Subscription, reason: Loss, ranges: readonly LostRange[]): void {
    this.#send(OP.LEASES_LOST, channel, encodeLeasesLost({ subscriptionId, reason, ranges }))
  }

  drained({ id, channel, delivered }: Subscription): void {
    this.#send(OP.DRAINED, channel, encodeDrained(id, delivered))
  }

  ended({ channel }: Subscription, error: SluiceError): void {
    this.#subscriptions.delete(channel)
    this.#send(OP.ERROR, channel, errorPayload(error, 'channel'))
  }

  // --- ReaderSink ---

  deliverRead(reader: Reader, delivery: Delivery): void {
    this.#deliver(reader, delivery)
  }

  readAt({ id: readerId, channel, next: offset }: Reader, missed: number, isEnd: boolean): void {
    if (isEnd) this.#readers.delete(channel)
    this.#send(OP.READ_AT, channel, encodeReadAt({ readerId, isEnd, offset, missed }))
  }

  readEnded({ channel }: Reader, error: SluiceError): void {
    this.#readers.delete(channel)
    this.#send(OP.ERROR, channel, errorPayload(error, 'channel'))
  }

  #send(opcode: number, channel: number, payload: Uint8Array): void {
    this.#outboxes.gated.frame(opcode, channel, 0, payload)
    this.#broker.noteOutput(this.#connection)
  }

  // --- frames of the client ---

  /** Returns the open subscription with this id on this channel; undefined if it is not open. */
  subscription(channel: number, id: number): Subscription | undefined {
    const subscription = this.#subscriptions.get(channel)
    return subscription?.id === id ? subscription : undefined
  }

  /** @throws SluiceError SHUTTING_DOWN, INVALID_ARGUMENT, CHANNEL_IN_USE, TOO_MANY_SUBSCRIPTIONS, QUEUE_NOT_FOUND */
  subscribe(channel: number, request: SubscribeRequest): Subscribed {
    this.#checkChannel(channel)
    const { leases } = this.#broker
    const subscription = leases.subscribe(request, channel, this)
    this.#subscriptions.set(channel, subscription)
    const { id: subscriptionId, queue } = subscription
    const granted = leases.claim(subscription, request.claims)
    return { subscriptionId, queueNumber: queue.id, granted }
  }

  /**
   * @throws SluiceError SHUTTING_DOWN, INVALID_ARGUMENT, CHANNEL_IN_USE, TOO_MANY_SUBSCRIPTIONS, QUEUE_NOT_FOUND,
   * MESSAGE_NOT_FOUND, OPTION_CONFLICT
   */
  read(channel: number, request: ReadRequest): ReadOpened {
    this.#checkChannel(channel)
    const { reader, missed } = this.#broker.readers.open(request, channel, this)
    this.#readers.set(channel, reader)
    const { id: readerId, queue, next: offset, end } = reader
    return { readerId, queueNumber: queue.id, offset, end: end === Infinity ? queue.next : end, missed }
  }

  // @throws SluiceError SHUTTING_DOWN, INVALID_ARGUMENT, CHANNEL_IN_USE, TOO_MANY_SUBSCRIPTIONS
  #checkChannel(channel: number): void {
    if (this.#isStopping)
      throw new SluiceError('SHUTTING_DOWN', 'The broker is stopping.', { scope: 'request' })
    if (channel === 0)
      throw new SluiceError(
        'INVALID_ARGUMENT',
        'A subscription or a reader needs a channel from 1 to 65535; 0 is the connection itself.',
      )
    if (this.#subscriptions.has(channel) || this.#readers.has(channel))
      throw new SluiceError(
        'CHANNEL_IN_USE',
        `A subscription or a reader is already open on channel ${channel}.`,
      )
    const size = this.#subscriptions.size + this.#readers.size
    if (size >= this.#subscriptionsMax) {
      throw new SluiceError(
        'TOO_MANY_SUBSCRIPTIONS',
        `The connection has ${size} subscriptions and readers; at most ${this.#subscriptionsMax} are allowed.`,
      )
    }
  }

  #reader(channel: number, id: number): Reader | undefined {
    const reader = this.#readers.get(channel)
    return reader?.id === id ? reader : undefined
  }

  /** The credit of a reader is what the client gives back; a limit and a drain are not for readers. */
  credit(channel: number, { subscriptionId, messages, bytes, limit, drain }: Credit): void {
    const subscription = this.subscription(channel, subscriptionId)
    if (subscription === undefined) {
      // The subscription or reader may have ended. The client was notified of the end, or will be notified.
      const reader = this.#reader(channel, subscriptionId)
      if (reader !== undefined) this.#broker.readers.credit(reader, messages, bytes)
      return
    }
    this.#broker.leases.credit(subscription, messages, bytes, limit, drain)
    // A broker that stops delivers nothing more, so the drain is complete.
    if (this.#isStopping && drain) subscription.answerDrain()
  }

  started(channel: number, subscriptionId: number, ranges: readonly TagRange[]): void {
    const subscription = this.subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.leases.started(subscription, ranges)
  }

  starting(channel: number, subscriptionId: number, ranges: readonly TagRange[]): void {
    const subscription = this.subscription(channel, subscriptionId)
    if (subscription !== undefined) this.#broker.leases.starting(subscription, ranges)
  }

  /** Returns the ranges of stale tags. */
  settle(channel: number, subscriptionId: number, items: readonly SettleItem[]): readonly TagRange[] {
    const subscription = this.subscription(channel, subscriptionId)
    const stale = subscription === undefined ? items : this.#broker.leases.settle(subscription, items)
    this.#reading.waitForDisk()
    return stale
  }

  /** Returns the ranges of stale tags. */
  extend(channel: number, { subscriptionId, firstTag, count, durationMs }: Extend): readonly TagRange[] {
    const subscription = this.subscription(channel, subscriptionId)
    if (subscription === undefined) return [{ firstTag, count }]
    return this.#broker.leases.extend(subscription, firstTag, count, durationMs)
  }

  /** @throws SluiceError SUBSCRIPTION_NOT_FOUND */
  unsubscribe(channel: number, subscriptionId: number): void {
    const subscription = this.subscription(channel, subscriptionId)
    const reader = this.#reader(channel, subscriptionId)
    if (reader !== undefined) {
      this.#broker.readers.close(reader)
      this.#readers.delete(channel)
      return
    }
    if (subscription === undefined) {
      throw new SluiceError(
        'SUBSCRIPTION_NOT_FOUND',
        `No subscription ${subscriptionId} is open on channel ${channel}.`,
      )
    }
    this.#broker.leases.unsubscribe(subscription, 'normal')
    this.#subscriptions.delete(channel)
  }
}
