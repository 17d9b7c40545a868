/**
 * A simulated consumer: several subscriptions, changing credit, every way to settle, late and repeated settles, atomic
 * steps, lease extensions, drains, and leaving with and without UNSUBSCRIBE.
 */
import {
  DELIVER_FLAG,
  OP,
  LIMITS,
  OUTCOME,
  decodeAtomicOk,
  decodeDrained,
  decodeLeasesLost,
  decodePublishErr,
  decodeRanges,
  decodeSubscribed,
  encodeClaims,
  encodeControl,
  encodeCredit,
  encodeExtend,
  encodeRanges,
  encodeSettle,
  encodeSubscriptionId,
  type Claim,
  type HelloOk,
  type Outcome,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { crc32 } from 'node:zlib'
import type { SettleEvent } from '../checker/history.js'
import { deliveredIn, messageName, type RecordDraft } from './attempts.js'
import { recordOptionsFor } from './characters.js'
import { Client } from './client.js'
import { Steps, type Step } from './steps.js'
import { Violation } from './trace.js'

const ACTIONS: Readonly<Record<Outcome, SettleEvent['action']>> = {
  1: 'ack',
  2: 'retry',
  3: 'release',
  4: 'deadLetter',
}
const HEALING_CREDIT = 64
const STEPS_MAX = 8
const CLAIMS_KEPT = 60

interface Held {
  readonly message: string
  /** The claim that the consumer would make for the message after a reconnect. */
  readonly claim: Claim
}

interface Pending {
  readonly held: Held
  readonly tag: number
  readonly outcome: Outcome
}

/** A message that an atomic step acknowledges. */
interface StepAck {
  readonly reader: Reader
  readonly tag: number
  readonly held: Held
}

interface Reader {
  readonly channel: number
  readonly queue: string
  /** Id of the subscription; -1 until the broker has assigned the id. */
  id: number
  queueNumber: number
  readonly claims: readonly (Claim & Held)[]
  readonly held: Map<number, Held>
  /** Tags that the consumer reported in STARTED. */
  readonly begun: Set<number>
  /** Settled tags, kept so that they can be settled again. */
  readonly settled: number[]
  credit: number
  isDrained: boolean
  isLeaving: boolean
}

export class Consumer extends Client {
  readonly #readers = new Map<number, Reader>()
  readonly #settles = new Map<number, { readonly reader: Reader; readonly pending: Pending[] }>()
  #channel = 0
  #boot = 0
  /** Messages that the consumer held on lost connections, by queue. */
  readonly #claims = new Map<string, (Claim & Held)[]>()
  readonly #readersMax: number
  readonly #steps: Steps<StepAck>
  /** Probability of an atomic step, and of starting a message, at each piece of work. */
  readonly #stepping: number
  readonly #starting: number
  /** Whether the consumer handles messages slowly. */
  readonly #isSlow: boolean

  get isDone(): boolean {
    return (
      this.#settles.size === 0 &&
      this.#steps.size === 0 &&
      [...this.#readers.values()].every(({ held }) => held.size === 0)
    )
  }

  constructor(...args: ConstructorParameters<typeof Client>) {
    super(...args)
    const { chance, history, attempts } = this.around
    this.#readersMax = chance.int(1, 3)
    this.#steps = new Steps(this.name, this.identityText, history, attempts)
    this.#stepping = chance.pick([0, 0.05, 0.3])
    this.#starting = chance.pick([0.02, 0.11, 0.4])
    this.#isSlow = chance.hit(0.3)
  }

  /** Whether the consumer is handling a message. */
  get isHandling(): boolean {
    return [...this.#readers.values()].some(({ begun, held }) => [...begun].some((tag) => held.has(tag)))
  }

  /** The lowest step number that the consumer may still send again. */
  get lowestUnanswered(): number {
    return this.#steps.lowestUnanswered
  }

  /** The steps that the consumer would send again to a new broker. */
  unanswered(): Step<unknown>[] {
    return [...this.#steps.unanswered()]
  }

  protected override get acceptedNumber(): number {
    return this.#steps.acceptedNumber
  }

  protected override get inFlightBatchesMax(): number {
    return LIMITS.inFlightBatchesDefault
  }

  protected opened({ boot }: HelloOk): void {
    this.#boot = boot
    for (const step of this.#steps.unanswered()) {
      this.around.count('step resent')
      this.#sendStep(step)
    }
  }

  protected lost(): void {
    for (const { reader, pending } of this.#settles.values())
      for (const one of pending) this.#note(reader, one, 'unknown')
    this.#settles.clear()
    for (const { id, queue, held } of this.#readers.values()) {
      if (id === -1) continue
      const claims = [
        ...(this.#claims.get(queue) ?? []),
        ...[...held.values()].map((one) => ({ ...one, ...one.claim })),
      ]
      this.#claims.set(queue, claims.slice(-CLAIMS_KEPT))
    }
    this.#readers.clear()
  }

  protected work(): void {
    const { chance, isHealing } = this.around
    if (isHealing) {
      this.#finish()
      return
    }
    const readers = [...this.#readers.values()].filter(({ id, isLeaving }) => id !== -1 && !isLeaving)
    if (this.#readers.size < this.#readersMax && chance.hit(readers.length === 0 ? 0.5 : 0.05)) {
      const [claimed] = this.#claims.keys()
      this.#subscribe(
        claimed !== undefined && chance.hit(0.7) ? claimed : chance.pick(this.around.queueNames),
        chance.int(0, 20),
        chance.skewed(20_000),
        chance.hit(0.1) ? chance.int(0, 30) : undefined,
      )
      return
    }
    if (readers.length === 0) return
    const reader = chance.pick(readers)
    if (this.#isSlow && [...reader.begun].some((tag) => reader.held.has(tag)) && chance.hit(0.95)) return
    const kind = chance.random()
    if (reader.isDrained || kind < 0.06) this.#credit(reader)
    else if (kind < 0.07) this.#extend(reader)
    else if (kind >= 0.21 && kind < 0.21 + this.#starting) this.#start(reader)
    else if (reader.held.size > 0 && this.#steps.size < STEPS_MAX && chance.hit(this.#stepping)) this.#step()
    else if (kind < 0.195) this.#unsubscribe(reader)
    else if (kind < 0.2) this.goodbye()
    else if (kind < 0.21 && reader.settled.length > 0) this.#settleAgain(reader)
    else if (reader.held.size > 0) this.#settle(reader)
  }

  /** Settles all messages that the consumer still holds. */
  #finish(): void {
    const { queueNames } = this.around
    for (const queue of queueNames) {
      if ([...this.#readers.values()].some((reader) => reader.queue === queue)) continue
      this.#subscribe(queue, HEALING_CREDIT, 0xffff_ffff, undefined)
      return
    }
    for (const reader of this.#readers.values()) {
      if (reader.id === -1 || reader.isLeaving) continue
      if (reader.credit !== HEALING_CREDIT || reader.isDrained) {
        reader.credit = HEALING_CREDIT
        reader.isDrained = false
        this.#sendCredit(reader, HEALING_CREDIT, 0xffff_ffff, undefined, false)
      }
      if (reader.held.size > 0)
        this.#send(
          reader,
          [...reader.held.keys()].map((tag) => ({ firstTag: tag, count: 1, outcome: OUTCOME.ack })),
        )
    }
  }

  #subscribe(queue: string, messages: number, bytes: number, limit: number | undefined): void {
    const channel = ++this.#channel
    const { chance, isHealing } = this.around
    // Some claims are kept and made a second time, when other consumers may already have the messages.
    const claims = isHealing || chance.hit(0.2) ? [] : (this.#claims.get(queue) ?? [])
    if (chance.hit(0.7)) this.#claims.delete(queue)
    this.#readers.set(channel, {
      channel,
      queue,
      id: -1,
      queueNumber: 0,
      claims,
      held: new Map(),
      begun: new Set(),
      settled: [],
      credit: messages,
      isDrained: false,
      isLeaving: false,
    })
    const isShort = !isHealing && !this.around.characterOf(queue).isPlain && chance.hit(0.2)
    const processingTimeoutMs = isShort ? chance.int(100, 1_500) : undefined
    this.send(
      OP.SUBSCRIBE,
      channel,
      this.nextCorrelation(),
      encodeControl({
        ...{ queue, messages, bytes, limit, processingTimeoutMs },
        ...(claims.length === 0 ? {} : { claims: encodeClaims(claims) }),
      }),
    )
  }

  #credit(reader: Reader): void {
    const { chance } = this.around
    const messages = chance.hit(0.2) ? 0 : chance.int(1, 40)
    const bytes = chance.hit(0.3) ? chance.skewed(3000) : 0xffff_ffff
    const drain = chance.hit(0.15)
    reader.credit = messages
    reader.isDrained = false
    this.#sendCredit(reader, messages, bytes, chance.hit(0.1) ? chance.int(0, 100) : undefined, drain)
  }

  #sendCredit(
    reader: Reader,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void {
    this.send(
      OP.CREDIT,
      reader.channel,
      0,
      encodeCredit({ subscriptionId: reader.id, messages, bytes, limit, drain }),
    )
  }

  /** Starts to handle one message, or sometimes several. */
  #start(reader: Reader): void {
    const { chance } = this.around
    const tags = [...reader.held.keys()]
    if (tags.length === 0) return
    const from = chance.int(0, tags.length - 1)
    const chosen = tags.slice(from, from + (chance.hit(0.7) ? 1 : chance.int(2, 5)))
    for (const tag of chosen) reader.begun.add(tag)
    const ranges: TagRange[] = chosen.map((firstTag) => ({ firstTag, count: 1 }))
    const opcode = chance.hit(0.3) ? OP.STARTING : OP.STARTED
    this.send(opcode, reader.channel, 0, encodeRanges(reader.id, ranges))
  }

  /** Extends the leases of some messages. */
  #extend(reader: Reader): void {
    const { chance } = this.around
    const [firstTag] = reader.held.keys()
    if (firstTag === undefined) return
    const correlation = this.nextCorrelation()
    this.#settles.set(correlation, { reader, pending: [] })
    this.conversation?.settles.set(correlation, { subscriptionId: reader.id, items: [] })
    const durationMs = chance.hit(0.3) ? 0 : chance.int(LIMITS.processingTimeoutMsMin, 2_000)
    const count = chance.int(1, 3)
    this.send(
      OP.EXTEND,
      reader.channel,
      correlation,
      encodeExtend({ subscriptionId: reader.id, firstTag, count, durationMs }),
    )
  }

  /** Acknowledges some messages of one or two subscriptions in an atomic step, and publishes their results. */
  #step(): void {
    const { chance, queueNames } = this.around
    const readers = [...this.#readers.values()].filter(
      ({ id, isLeaving, held }) => id !== -1 && !isLeaving && held.size > 0,
    )
    const acks: StepAck[] = []
    for (const reader of readers.slice(0, chance.int(1, 2))) {
      for (const [tag, held] of [...reader.held].slice(0, chance.int(1, 4))) acks.push({ reader, tag, held })
    }
    const ranges = acks.map(({ reader, tag: firstTag }) => ({
      channel: reader.channel,
      subscriptionId: reader.id,
      firstTag,
      count: 1,
    }))
    // Sometimes names a message that the consumer no longer holds.
    const late = chance.hit(0.08) ? readers[0]!.settled.at(-1) : undefined
    if (late !== undefined) {
      const { channel, id: subscriptionId } = readers[0]!
      ranges.push({ channel, subscriptionId, firstTag: late, count: 1 })
    }
    const queues = new Set<string>()
    for (let i = chance.int(0, 2); i > 0; i--)
      queues.add(chance.hit(0.03) ? 'nowhere' : chance.pick(queueNames))
    const number = this.#steps.nextNumber
    // A step can have several batches for one queue, with batches for other queues between them.
    const again = [...queues].filter(() => chance.hit(0.3))
    const batches = [...queues, ...again].map((queue, batch) => ({
      queue,
      drafts: this.#drafts(queue, number, batch),
    }))
    for (const { reader, tag } of acks) reader.held.delete(tag)
    this.around.count('step')
    this.#sendStep(this.#steps.make(ranges, acks, batches))
  }

  #drafts(queue: string, number: number, batch: number): RecordDraft[] {
    const { chance, brokerMs } = this.around
    return Array.from({ length: chance.int(1, 3) }, (_, i) => {
      const options =
        queue === 'nowhere' ? undefined : recordOptionsFor(this.around.characterOf(queue), chance, brokerMs)
      const name = `${this.name}:${number}:${batch}.${i}:s`
      return { name, padding: chance.skewed(200), ...(options === undefined ? {} : { options }) }
    })
  }

  #sendStep({ number, payload }: Step<StepAck>): void {
    this.send(OP.ATOMIC, 0, Math.max(0, number - this.#steps.lowestUnanswered), payload)
  }

  #unsubscribe(reader: Reader): void {
    reader.isLeaving = true
    this.send(OP.UNSUBSCRIBE, reader.channel, this.nextCorrelation(), encodeSubscriptionId(reader.id))
  }

  /** Settles some messages with any outcome, in ranges where their tags are consecutive. */
  #settle(reader: Reader): void {
    const { chance } = this.around
    const tags = [...reader.held.keys()]
    const from = chance.hit(0.7) ? 0 : chance.int(0, tags.length - 1)
    const chosen = tags.slice(from, from + chance.int(1, 16))
    const items: SettleItem[] = []
    for (let i = 0; i < chosen.length;) {
      const firstTag = chosen[i]!
      let count = 1
      while (i + count < chosen.length && chosen[i + count] === firstTag + count && chance.hit(0.8)) count++
      items.push(this.#item(firstTag, count))
      i += count
    }
    this.#send(reader, items)
  }

  #item(firstTag: number, count: number): SettleItem {
    const { chance } = this.around
    const kind = chance.random()
    if (kind < 0.62) return { firstTag, count, outcome: OUTCOME.ack }
    if (kind < 0.73)
      return { firstTag, count, outcome: OUTCOME.retry, reason: chance.hit(0.5) ? 'it failed' : undefined }
    if (kind < 0.84)
      return { firstTag, count, outcome: OUTCOME.retry, delayMs: chance.hit(0.3) ? 0 : chance.skewed(2000) }
    if (kind < 0.96) return { firstTag, count, outcome: OUTCOME.release }
    const invalid = chance.hit(0.3) ? true : undefined
    return { firstTag, count, outcome: OUTCOME.deadLetter, reason: 'no such customer', invalid }
  }

  /** Settles a tag that was settled before or never granted. This settle must change nothing. */
  #settleAgain(reader: Reader): void {
    const { chance } = this.around
    const firstTag = chance.hit(0.8) ? chance.pick(reader.settled) : chance.int(0, 10_000) + 1_000_000
    this.around.count('settled again')
    this.#send(reader, [{ firstTag, count: 1, outcome: chance.pick([1, 2, 3, 4] as const) }])
  }

  #send(reader: Reader, items: readonly SettleItem[]): void {
    const correlation = this.nextCorrelation()
    const pending: Pending[] = []
    for (const { firstTag, count, outcome } of items) {
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const held = reader.held.get(tag)
        if (held === undefined) continue
        reader.held.delete(tag)
        reader.settled.push(tag)
        pending.push({ held, tag, outcome })
      }
    }
    this.#settles.set(correlation, { reader, pending })
    this.conversation?.settles.set(correlation, { subscriptionId: reader.id, items })
    this.send(OP.SETTLE, reader.channel, correlation, encodeSettle(reader.id, items))
  }

  protected frame(
    opcode: number,
    channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const reader = this.#readers.get(channel)
    switch (opcode) {
      case OP.SUBSCRIBE_OK:
        if (reader !== undefined) this.#subscribed(reader, bytes, start, end)
        return
      case OP.DELIVER:
        this.#delivered(reader, bytes, start, end)
        return
      case OP.SETTLE_OK:
        this.#settled(correlation, decodeRanges('SETTLE_OK', bytes, start, end).ranges)
        return
      case OP.DRAINED:
        if (reader !== undefined && reader.id === decodeDrained(bytes, start, end).subscriptionId)
          reader.isDrained = true
        return
      case OP.LEASES_LOST:
        this.#leasesLost(reader, bytes, start, end)
        return
      case OP.ATOMIC_OK: {
        const { number, places } = decodeAtomicOk(bytes, start, end)
        const step = this.#steps.confirmed(number, places)
        // Invariant 3: each number has one answer.
        if (step === undefined)
          throw new Violation(
            3,
            `${this.name} receives an answer to step ${number}, which it does not wait for`,
          )
        for (const { reader: of, tag, held } of step.acks) {
          of.settled.push(tag)
          this.#note(of, { held, tag, outcome: OUTCOME.ack }, 'ok')
        }
        return
      }
      case OP.PUBLISH_ERR:
        this.#stepRefused(bytes, start, end)
        return
      case OP.RESULT:
        // The frame is the answer to UNSUBSCRIBE.
        for (const leaving of this.#readers.values()) {
          if (!leaving.isLeaving) continue
          this.#readers.delete(leaving.channel)
          return
        }
        return
      case OP.ERROR:
        // The queue does not exist or was deleted, or the subscription ended before UNSUBSCRIBE arrived.
        if (reader !== undefined) this.#readers.delete(channel)
        else
          for (const leaving of this.#readers.values())
            if (leaving.isLeaving) this.#readers.delete(leaving.channel)
        return
      default:
        throw new Violation(21, `${this.name} receives unexpected frame ${opcode}`)
    }
  }

  /** The step had no effect, so the consumer still holds the messages that it names. */
  #stepRefused(bytes: Uint8Array, start: number, end: number): void {
    const { batchNumber, fault } = decodePublishErr(bytes, start, end)
    this.around.count(`step refused with ${fault.code}`)
    const step = this.#steps.refused(batchNumber)
    if (step === undefined || fault.code === 'UNKNOWN_OUTCOME')
      throw new Violation(
        3,
        `${this.name} receives ${fault.code} for step ${batchNumber}, which it did not expect`,
      )
    for (const { reader, tag, held } of step.acks) {
      if (this.#readers.get(reader.channel) === reader) reader.held.set(tag, held)
      this.#note(reader, { held, tag, outcome: OUTCOME.ack }, 'fail')
    }
  }

  #subscribed(reader: Reader, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, queueNumber, granted } = decodeSubscribed(bytes, start, end)
    reader.id = subscriptionId
    reader.queueNumber = queueNumber
    for (const { index, tag, attempt } of granted) {
      const claimed = reader.claims[index]
      if (claimed === undefined || reader.held.has(tag))
        throw new Violation(7, `${this.name} is granted claim ${index} under tag ${tag}`)
      const { message, offset, bytes: recordBytes } = claimed
      const lease = {
        offset,
        queueNumber,
        boot: this.#boot,
        subscriptionId,
        tag,
        attempt,
        bytes: recordBytes,
      }
      reader.held.set(tag, { message, claim: lease })
      reader.begun.add(tag)
    }
  }

  #leasesLost(reader: Reader | undefined, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, ranges } = decodeLeasesLost(bytes, start, end)
    if (reader === undefined) return
    if (reader.id !== subscriptionId)
      throw new Violation(7, `${this.name} loses leases of subscription ${subscriptionId}`)
    for (const { firstTag, count } of ranges)
      for (let i = 0; i < count; i++) reader.held.delete((firstTag + i) >>> 0)
  }

  #delivered(reader: Reader | undefined, bytes: Uint8Array, start: number, end: number): void {
    const { subscriptionId, firstTag, flags, attempt, count, messages } = deliveredIn(bytes, start, end)
    if (reader === undefined) return
    if (reader.id !== subscriptionId)
      throw new Violation(
        7,
        `${this.name} receives a delivery for subscription ${subscriptionId}, which it does not have on that channel`,
      )
    if (messages.length !== count || attempt === 0)
      throw new Violation(2, `${this.name} receives ${messages.length} records of ${count}`)
    for (const [i, { offset, record }] of messages.entries()) {
      const tag = (firstTag + i) >>> 0
      // Invariants 7 and 14: a message that is held is not delivered again.
      if (reader.held.has(tag)) throw new Violation(7, `${this.name} holds tag ${tag} and receives it again`)
      const message = messageName(reader.queue, record)
      const { queueNumber, id } = reader
      const lease = { offset, queueNumber, boot: this.#boot, subscriptionId: id, tag, attempt }
      reader.held.set(tag, { message, claim: { ...lease, bytes: record.length } })
      this.around.history.push({
        kind: 'deliver',
        queue: reader.queue,
        message,
        consumer: `${this.name}/${subscriptionId}`,
        redelivered: (flags & DELIVER_FLAG.redelivered) !== 0,
        offset,
        body: String(crc32(record)),
      })
    }
  }

  #settled(correlation: number, stale: readonly TagRange[]): void {
    const settle = this.#settles.get(correlation)
    if (settle === undefined)
      throw new Violation(
        21,
        `${this.name} receives an answer to settle ${correlation}, which it did not send`,
      )
    this.#settles.delete(correlation)
    for (const one of settle.pending) {
      const isStale = stale.some(({ firstTag, count }) => (one.tag - firstTag) >>> 0 < count)
      this.#note(settle.reader, one, isStale ? 'fail' : 'ok')
    }
  }

  #note(reader: Reader, { held, outcome }: Pending, result: SettleEvent['outcome']): void {
    this.around.history.push({
      kind: 'settle',
      queue: reader.queue,
      message: held.message,
      consumer: `${this.name}/${reader.id}`,
      action: ACTIONS[outcome],
      outcome: result,
    })
  }
}
