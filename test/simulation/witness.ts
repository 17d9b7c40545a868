/**
 * Inspects every byte at the moment at which it leaves the broker, and compares it with what is on disk at that moment.
 * A confirm, a delivery or an answer that is sent before its entry is durable is found here, even if no client ever
 * reads it.
 */
import {
  FrameDecoder,
  LIMITS,
  OP,
  OUTCOME,
  decodeAtomicOk,
  decodeFault,
  decodeMessages,
  decodePublishErr,
  decodePublishOk,
  decodeRanges,
  decodeSubscribed,
  type Placed,
  type SettleItem,
} from '@sluice/protocol'
import { deliveredIn, type Attempts } from './attempts.js'
import type { Ledger } from './ledger.js'
import type { Model } from './model.js'
import { Violation } from './trace.js'

/** The open requests of one connection, which determine the answers that it may receive. */
export class Conversation {
  readonly identity: string
  /** Settles, by their correlation. */
  readonly settles = new Map<
    number,
    { readonly subscriptionId: number; readonly items: readonly SettleItem[] }
  >()
  /** Queues of PEEK requests, by correlation. */
  readonly peeks = new Map<number, string>()
  /** For each RESULT that the broker owes, in order: what must be on disk when the RESULT is sent. */
  readonly promises: { readonly correlation: number; readonly broken: () => string | undefined }[] = []

  constructor(identity: string) {
    this.identity = identity
  }
}

/** Frames that promise that something is on disk. */
const PROMISES: ReadonlySet<number> = new Set([
  OP.PUBLISH_OK,
  OP.ATOMIC_OK,
  OP.SETTLE_OK,
  OP.RESULT,
  OP.DELIVER,
  OP.MESSAGES,
  OP.LEASES_LOST,
])

export class Witness {
  readonly #ledger: Ledger
  readonly #model: Model
  readonly #attempts: Attempts
  /** Whether the log has failed, so that no promise may be sent any more. */
  isDead = false
  readonly counts = {
    confirmed: 0,
    'steps confirmed': 0,
    peeked: 0,
    'leases lost': 0,
    refused: 0,
    settled: 0,
    results: 0,
    delivered: 0,
    errors: new Map<string, number>(),
  }

  constructor(ledger: Ledger, model: Model, attempts: Attempts) {
    this.#ledger = ledger
    this.#model = model
    this.#attempts = attempts
  }

  /** Returns a function that inspects each write of the connection, in order. */
  watch(conversation: Conversation): (bytes: Uint8Array) => void {
    const decoder = new FrameDecoder((opcode, _flags, _channel, correlation, bytes, start, end) => {
      this.#frame(conversation, opcode, correlation, bytes, start, end)
    })
    decoder.frameBytesMax = LIMITS.frameBytesMax
    return (bytes) => decoder.push(bytes)
  }

  #frame(
    conversation: Conversation,
    opcode: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const isPromise = PROMISES.has(opcode)
    // Invariant 20: after a failed write no confirm leaves the broker.
    if (this.isDead && isPromise) throw new Violation(20, `frame ${opcode} left after the log had failed`)
    if (opcode === OP.PUBLISH_OK) {
      decodePublishOk(bytes, start, end, (number, baseOffset, duplicates) =>
        this.#confirmed(conversation, number, [{ baseOffset, duplicates }]),
      )
    } else if (opcode === OP.ATOMIC_OK) {
      const { number, places } = decodeAtomicOk(bytes, start, end)
      this.counts['steps confirmed']++
      this.#confirmed(conversation, number, places)
      this.#stepped(conversation, number)
    } else if (opcode === OP.PUBLISH_ERR) {
      this.counts.refused++
      this.#error(decodePublishErr(bytes, start, end).fault.code)
    } else if (opcode === OP.SETTLE_OK) {
      this.#settled(conversation, correlation, bytes, start, end)
    } else if (opcode === OP.DELIVER) {
      this.#delivered(bytes, start, end)
    } else if (opcode === OP.RESULT) {
      this.counts.results++
      const promise = conversation.promises.shift()
      if (promise?.correlation !== correlation)
        throw new Violation(21, `RESULT ${correlation} is sent; the next one must be ${promise?.correlation}`)
      const broken = promise.broken()
      if (broken !== undefined) throw new Violation(1, broken)
    } else if (opcode === OP.MESSAGES) {
      this.#peeked(conversation, correlation, bytes, start, end)
    } else if (opcode === OP.SUBSCRIBE_OK) {
      const { subscriptionId, granted } = decodeSubscribed(bytes, start, end)
      for (const { tag } of granted) this.#model.consuming.sent(subscriptionId, tag)
    } else if (opcode === OP.LEASES_LOST) {
      this.counts['leases lost']++
    } else if (opcode === OP.ERROR) {
      const { code, message } = decodeFault(bytes, start, end)
      this.#error(code)
      // The disk is honest: the broker must know every producer whose batches it confirmed, and read what it wrote.
      if (code === 'PRODUCER_UNKNOWN' || code === 'CORRUPT')
        throw new Violation(3, `the broker reports ${code}: ${message}`)
    }
  }

  #error(code: string): void {
    this.counts.errors.set(code, (this.counts.errors.get(code) ?? 0) + 1)
  }

  // Invariant 1: a confirmed batch is on disk.
  #confirmed({ identity }: Conversation, number: number, places: readonly Placed[]): void {
    this.counts.confirmed++
    const accepted = this.#ledger.durable.producers.get(identity)?.accepted.get(number)
    if (accepted === undefined)
      throw new Violation(1, `batch ${number} of ${identity} is confirmed but not on disk`)
    const is = JSON.stringify(places.map(({ baseOffset, duplicates }) => [baseOffset, ...(duplicates ?? [])]))
    const must = JSON.stringify(accepted.places.map(({ base, duplicates }) => [base, ...duplicates]))
    if (is !== must)
      throw new Violation(3, `batch ${number} of ${identity} is confirmed at ${is} but is at ${must}`)
  }

  // Invariants 8 and 9: the messages that the step acknowledged are gone from the disk.
  #stepped({ identity }: Conversation, number: number): void {
    for (const ack of this.#model.publishing.acksOf(identity, number)) {
      const [queueId, offset] = ack.split(':').map(Number) as [number, number]
      if (this.#ledger.durable.queues.get(queueId)?.live.has(offset) === true)
        throw new Violation(
          8,
          `step ${number} of ${identity} is confirmed, but its ack of ${ack} is not on disk`,
        )
    }
  }

  // Invariant 2: every message that a peek shows was published to the peeked queue.
  #peeked(
    conversation: Conversation,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const queue = conversation.peeks.get(correlation)
    conversation.peeks.delete(correlation)
    if (queue === undefined) throw new Violation(21, `MESSAGES ${correlation} answers no request`)
    let last = -1
    for (const { offset, record } of decodeMessages(bytes, start, end).messages) {
      this.counts.peeked++
      if (offset <= last) throw new Violation(5, `a page of ${queue} shows offset ${offset} after ${last}`)
      last = offset
      if (!this.#attempts.knows(queue, record))
        throw new Violation(
          2,
          `offset ${offset} of ${queue} is shown with bytes that no client published there`,
        )
    }
  }

  // Invariant 8: a confirmed settle is on disk.
  #settled(
    conversation: Conversation,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const { subscriptionId, ranges } = decodeRanges('SETTLE_OK', bytes, start, end)
    const asked = conversation.settles.get(correlation)
    if (asked === undefined || asked.subscriptionId !== subscriptionId)
      throw new Violation(21, `SETTLE_OK ${correlation} of subscription ${subscriptionId} answers no request`)
    conversation.settles.delete(correlation)
    const stale = new Set<number>()
    for (const { firstTag, count } of ranges) for (let i = 0; i < count; i++) stale.add((firstTag + i) >>> 0)
    const subscription = this.#model.consuming.subscriptionById(subscriptionId)
    for (const { firstTag, count, outcome } of asked.items) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        if (stale.has(tag)) continue
        this.counts.settled++
        const offset = subscription?.granted.get(tag)?.offset
        if (subscription === undefined || offset === undefined)
          throw new Violation(
            7,
            `tag ${tag} of subscription ${subscriptionId} is settled but was never granted`,
          )
        const message = this.#ledger.durable.queues.get(subscription.queue.id)?.live.get(offset)
        const what = `offset ${offset} of ${subscription.queue.name}`
        if (message !== undefined && outcome === OUTCOME.ack)
          throw new Violation(8, `the ack of ${what} is confirmed but not on disk`)
        // A dead message may have been redriven since.
        if (message === undefined || message.dead !== undefined || message.earlier !== undefined) continue
        if (outcome === OUTCOME.deadLetter)
          throw new Violation(8, `${what} is confirmed as dead but is not dead on disk`)
        const charged = subscription.charged.get(tag) ?? 0
        if (outcome === OUTCOME.retry && message.attempts < charged)
          throw new Violation(8, `the retry of ${what} is confirmed but not on disk`)
      }
    }
  }

  // Invariant 2: a delivered message is on disk, and was published to that queue, byte for byte.
  #delivered(bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, firstTag, count, messages } = deliveredIn(bytes, start, end)
    const subscription = this.#model.consuming.subscriptionById(subscriptionId)
    if (subscription === undefined)
      throw new Violation(7, `a delivery for subscription ${subscriptionId}, which does not exist`)
    const { queue } = subscription
    if (messages.length !== count)
      throw new Violation(2, `a delivery of ${count} messages has ${messages.length} records`)
    const saved = this.#ledger.durable.queues.get(queue.id)
    for (const [i, { offset, record }] of messages.entries()) {
      this.counts.delivered++
      const tag = (firstTag + i) >>> 0
      if (subscription.granted.get(tag)?.offset !== offset)
        throw new Violation(
          14,
          `offset ${offset} of ${queue.name} is delivered under tag ${tag}, which was not granted for it`,
        )
      if (!this.#attempts.knows(queue.name, record))
        throw new Violation(
          2,
          `offset ${offset} of ${queue.name} is delivered with bytes that no client published there`,
        )
      const isOnDisk =
        saved === undefined
          ? this.#ledger.durable.queues.size > 0 || this.#model.state.queues.get(queue.id) === undefined
          : saved.next > offset
      if (!isOnDisk) throw new Violation(2, `offset ${offset} of ${queue.name} is delivered but not on disk`)
      const message = queue.live.get(offset)
      if (message !== undefined) message.left = true
      this.#model.consuming.sent(subscriptionId, tag)
    }
  }
}
