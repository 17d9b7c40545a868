/**
 * The product and the model side by side. Each method performs one operation on both and compares their answers. The
 * bench controls time, turns, chance, and crashes of the broker, which runs on a log in memory. It contains no rules.
 *
 * Answers are compared at once; deliveries are compared at the end of the turn, in the order in which they were made.
 */
import { crc32 } from 'node:zlib'
import {
  ORIGIN_HEADERS,
  OUTCOME,
  QUEUE_COUNTERS,
  addressName,
  bindingHeaders,
  headerMatch,
  isTopicAddress,
  readTopicAddress,
  readU32,
  recordBytes,
  topicPattern,
  type AtomicBatch,
  type DeadSelection,
  type Loss,
  type Placed,
  type QueueCounter,
  type QueueOptions,
  type RecordOptions,
  type SettleItem,
  type SluiceError,
  type TagRange,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Observer } from '../../packages/server/src/broker/observer.js'
import type { Producer } from '../../packages/server/src/state/producers.js'
import type { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import type { Consumer, QueueObserver, Subscription } from '../../packages/server/src/queue/index.js'
import type { Schedule } from '../../packages/server/src/queue/schedule.js'
import { originHeaders } from '../rules/message.js'
import type { RequiredHeaders } from '../rules/topic.js'
import { Model, redrivesOf } from './model.js'
import { batchOf, contentOf, rangesOf, recordOf, tagsOf } from './records.js'
import { same } from './same.js'
import {
  Difference,
  Refused,
  type Content,
  type ModelBinding,
  type ModelMessage,
  type ModelQueue,
  type ModelSettle,
  type ModelSubscription,
  type Transfer,
} from './state.js'

/**
 * The parts of the product that are compared. They are passed as an argument, because their path differs between tests
 * and builds.
 */
export interface Product {
  readonly Broker: typeof Broker
  readonly MemoryLog: typeof MemoryLog
  readonly Schedule: typeof Schedule
}

/** A planted bug, which shows that the comparison finds bugs. */
export interface Defect {
  readonly name: string
  /** Changes a broker that was just opened. */
  readonly install: (broker: Broker) => void
}

export interface BenchOptions {
  readonly segmentBytes?: number
  readonly checkpointBytes?: number
  readonly replayWindowOffsets?: number
  readonly defect?: Defect | undefined
  /** Called when a broker has opened, before its first turn. */
  readonly opened?: (broker: Broker) => void
  /** Called after each restart, before anything else happens. */
  readonly reopened?: () => void
  /** Called when all queues are compared, to compare streams and groups. */
  readonly compareOthers?: () => void
}

/** One subscription, in the product and in the model. */
export interface Pair {
  readonly number: number
  readonly product: Subscription
  readonly model: ModelSubscription
  readonly connection: Connection
  lastTag: number | undefined
}

export interface Connection {
  readonly number: number
  readonly consumer: Consumer
  pairs: Pair[]
}

interface Sent {
  readonly queue: string
  readonly contents: readonly Content[]
  readonly bytes: Uint8Array
  readonly step: Step | undefined
  /** The places of the batches; undefined if they were refused. */
  readonly placed: readonly Placed[] | undefined
  /** Whether the batches were refused but can be accepted later. */
  readonly isRetryable: boolean
}

type Step = Parameters<Broker['intake']['atomic']>[1]

export interface BenchProducer {
  readonly identity: string
  attached: Producer
  /** Number of the last batch. */
  number: number
  /** Highest confirmed number. */
  confirmed: number
  readonly sent: Map<number, Sent>
}

type Event =
  | {
      readonly kind: 'deliver'
      readonly pair: Pair
      readonly tag: number
      readonly offset: number
      readonly publishedMs: number
      readonly attempt: number
      readonly redelivered: boolean
      readonly alone: boolean
      readonly content: Content
    }
  | { readonly kind: 'drained'; readonly pair: Pair }
  | Change
  | Notice

/** A change of the product that the model makes too, at the same place among the deliveries. */
interface Change {
  readonly kind: 'changed'
  readonly apply: () => void
}

/** The product noticed that a message is due or has expired. */
interface Notice {
  readonly kind: 'noticed'
  readonly what: 'ready' | 'expired'
  readonly queue: string
  readonly offset: number
}

/** Number of batches that a producer may send again, counted back from its last batch. */
export const RESENDABLE = 8

/** The caller of an operator's requests. */
export const OPERATOR = { label: 'an operator', isOpen: true }

/** Maximum number of deadlines that are met one by one while time passes; after that, time jumps to the end. */
const STEPS_MAX = 24
/** Number of times that turns are run until none is left before an answer counts as missing. */
const WAIT_ROUNDS_MAX = 100
/**
 * Number of messages beyond lowered limits that one turn evicts. The number is low, so that evicting even a small
 * excess takes several turns.
 */
const EXCESS_MAX = 4
/**
 * Number of due messages that one turn makes ready. The number is low, so that making even a few messages ready takes
 * several turns.
 */
const DUE_MAX = 2

const UNKNOWN: Pick<Pair, 'number'> = { number: -1 }

export class Bench {
  readonly model: Model
  log: MemoryLog
  broker!: Broker
  nowMs = 1_700_000_000_000
  connections: Connection[] = []
  producers: BenchProducer[] = []
  /** Number of times that each thing was compared or happened. */
  readonly counts = new Map<string, number>()
  readonly #product: Product
  readonly #options: BenchOptions
  readonly #pairs = new Map<Subscription, Pair>()
  #events: Event[] = []
  #lost: string[] = []
  #ended: string[] = []
  #deleted: string[] = []
  #turns: (() => void)[] = []
  #fatal: unknown
  /** Whether the last refused request can be accepted later. */
  #isRetryable = false
  #chance = 0.5
  #numbers = 0
  #bodies = 0
  /** Number of restarts of the broker; turns from before a restart are dropped. */
  #life = 0

  constructor(product: Product, options: BenchOptions = {}) {
    this.#product = product
    this.#options = options
    this.model = new Model(this.nowMs, EXCESS_MAX, (name) => this.broker.catalog.queue(name).hasMoreExpired)
    // The bound is low, so that a few scheduled messages already fill the near part of a schedule.
    product.Schedule.nearMax = 8
    const segmentBytes = options.segmentBytes ?? 256 * 1024
    // As in a replicated log, an entry is smaller than a segment.
    this.log = new product.MemoryLog({ segmentBytes, entryBytesMax: (segmentBytes / 4) * 3 })
  }

  count(name: string, by = 1): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + by)
  }

  // --- the broker's life ---

  async open(): Promise<void> {
    const life = ++this.#life
    this.#turns = []
    this.#fatal = undefined
    const opening = this.#product.Broker.open({
      log: this.log,
      now: () => this.nowMs,
      random: () => this.#chance,
      defer: (endTurn) => {
        if (life === this.#life) this.#turns.push(endTurn)
      },
      onFatal: (error) => {
        this.#fatal ??= error
      },
      messageBytesMax: 4 * 1024,
      excessMax: EXCESS_MAX,
      dueMax: DUE_MAX,
      observer: this.#observer(),
      checkpointBytes: this.#options.checkpointBytes ?? 32 * 1024,
      ...(this.#options.replayWindowOffsets === undefined
        ? {}
        : { replayWindowOffsets: this.#options.replayWindowOffsets }),
    })
    const opened = async (): Promise<void> => {
      this.broker = await opening
      this.#options.defect?.install(this.broker)
      this.#options.opened?.(this.broker)
    }
    await this.wait(opened())
    for (const producer of this.producers)
      producer.attached = this.broker.producers.attach(producer.identity, producer.confirmed)
    this.begin()
  }

  /** Makes the model follow a change of the product, at its place among the deliveries of this turn. */
  changed(apply: () => void): void {
    this.#events.push({ kind: 'changed', apply })
  }

  /**
   * Kills the process, and starts another one after `downMs`. `lostTurn` makes requests that the dying process accepts
   * but does not write.
   */
  async crash(downMs = 0, lostTurn?: () => void): Promise<void> {
    await this.endTurn()
    if (lostTurn !== undefined) {
      this.begin()
      lostTurn()
      this.count('turns lost')
    }
    this.count('crashes')
    await this.#reopen(true, downMs)
  }

  /** Stops the broker in an orderly way, and starts another one after `downMs`. */
  async close(downMs = 0): Promise<void> {
    await this.endTurn()
    this.begin()
    await this.wait(this.broker.close())
    this.count('orderly closes')
    await this.#reopen(false, downMs)
  }

  async #reopen(isCrash: boolean, downMs: number): Promise<void> {
    this.nowMs += downMs
    this.model.nowMs = this.nowMs
    this.log = this.log.reopened()
    const { checkpoint, firstPosition } = await this.log.open()
    if (checkpoint !== undefined) this.count('restarts from state pages')
    if (firstPosition > this.log.segmentBytes * 2) this.count('restarts on a truncated log')
    this.connections = []
    this.#pairs.clear()
    this.#events = []
    this.#lost = []
    this.#ended = []
    this.model.restart(isCrash)
    await this.open()
    this.#follow()
    this.#options.reopened?.()
    for (const { name, counters } of this.model.queues.values()) {
      // Neither counter survives a restart exactly, so the broker's values are adopted.
      const { released, redelivered } = this.broker.catalog.queue(name).counts
      Object.assign(counters, { released, redelivered })
    }
    await this.endTurn()
  }

  /** Sets the number in [0, 1) from which back-offs of this operation are drawn. */
  chance(number: number): void {
    this.#chance = number
    this.model.chance = number
  }

  /** Opens a turn, in which the following operations happen. */
  begin(): void {
    this.model.nowMs = this.nowMs
    this.broker.turn.begin()
  }

  // Notes each message that the product makes ready or removes because its time has come.
  #observer(): Observer {
    const note =
      (what: Notice['what']) =>
      ({ name }: { readonly name: string }, offset: number): void =>
        void this.#events.push({ kind: 'noticed', what, queue: name, offset })
    const noted: Pick<Observer, keyof QueueObserver | 'deleted'> = {
      deleted: ({ name }) => void this.#deleted.push(name),
      becameReady: note('ready'),
      expired: note('expired'),
    }
    const ignore = (): void => {}
    return new Proxy(noted, { get: (_, name) => Reflect.get(noted, name) ?? ignore }) as Observer
  }

  // Ends turns until no turn is left. As in a server, a turn ends when everything that arrived is processed.
  async #run(): Promise<void> {
    do {
      for (const turn of this.#turns.splice(0)) {
        turn()
        this.model.turnEnded()
      }
      if (this.#fatal !== undefined) throw new Error('the broker failed', { cause: this.#fatal })
      await new Promise(setImmediate)
    } while (this.#turns.length > 0)
  }

  async wait<T>(promise: Promise<T>): Promise<T> {
    const outcomes: PromiseSettledResult<T>[] = []
    void Promise.allSettled([promise]).then((settled) => outcomes.push(...settled))
    for (let round = 0; outcomes.length === 0 && round < WAIT_ROUNDS_MAX; round++) await this.#run()
    const [outcome] = outcomes
    if (outcome === undefined) throw new Difference('the broker never answers')
    if (outcome.status === 'rejected') throw outcome.reason
    return outcome.value
  }

  /** Ends the turn, and compares all deliveries and the counts of all queues. */
  async endTurn(): Promise<void> {
    await this.#run()
    const arrivals = await this.#arrivals()
    for (const event of this.#events.splice(0)) {
      if (event.kind === 'noticed') {
        this.#noticed(event)
        continue
      }
      if (event.kind === 'changed') {
        event.apply()
        continue
      }
      if (event.kind === 'drained') {
        this.model.quiet(event.pair.model.queue)
        event.pair.model.draining = false
        event.pair.model.limit = event.pair.model.delivered
        this.count('drains')
        continue
      }
      const { queue } = event.pair.model
      if (event.offset >= queue.next) while (queue.next <= event.offset && this.#arrive(arrivals, queue));
      // Redriven messages return one by one, and each of them can precede others of its key.
      while (this.model.returning.length > 0 && !this.model.isNext(queue, event.offset)) this.model.returned()
      this.#compareDelivery(event)
    }
    while (this.model.returning.length > 0) this.model.returned()
    while (arrivals.length > 0) this.#arrive(arrivals, arrivals[0]!.transfer.to)
    for (const queue of this.model.queues.values()) {
      this.model.quiet(queue)
      for (const subscription of queue.subscriptions) {
        if (subscription.draining && !queue.paused)
          throw new Difference(`a drain of ${queue.name} was not answered`)
      }
    }
    const sides = [
      ['leases lost', this.#lost.splice(0), this.model.lost.splice(0).map((one) => this.#nameOf(one))],
      [
        'subscriptions ended',
        this.#ended.splice(0),
        this.model.ended.splice(0).map((one) => this.#numberOf(one)),
      ],
    ] as const
    for (const [what, product, model] of sides) {
      same(what, product.toSorted(), model.toSorted())
      this.count(what, product.length)
    }
    this.compareQueues()
  }

  // Makes the model follow what the product noticed, up to the first other event. A leased message that expired stays
  // in the list until the request that ended its lease is compared.
  #follow(): void {
    while (this.#events.length > 0) {
      const [event] = this.#events as [Event]
      if (event.kind === 'changed') {
        this.#events.shift()
        event.apply()
        continue
      }
      if (event.kind !== 'noticed') return
      if (this.#messageOf(event)?.state === 'leased') return
      this.#events.shift()
      this.#noticed(event)
    }
  }

  #messageOf({ queue, offset }: Notice): ModelMessage | undefined {
    return this.model.queues.get(queue)?.messages.find((message) => message.offset === offset)
  }

  // The message is already gone if a request ended its lease after it had expired. It is already ready if the product let
  // it wait for a due message that then left.
  #noticed(event: Notice): void {
    const message = this.#messageOf(event)
    if (message === undefined) return
    const queue = this.model.queue(event.queue)
    if (event.what === 'expired') this.model.swept(queue, message)
    else if (message.state === 'scheduled') this.model.arrived(queue, message)
  }

  #nameOf({ subscription, tag }: { subscription: ModelSubscription; tag: number }): string {
    return `${this.#numberOf(subscription)} tag ${tag}`
  }

  pairOf(subscription: ModelSubscription): Pair | undefined {
    return [...this.#pairs.values()].find(({ model }) => model === subscription)
  }

  #numberOf(subscription: ModelSubscription): string {
    const { number } = this.pairOf(subscription) ?? UNKNOWN
    return `subscription ${number}`
  }

  #compareDelivery(event: Event & { kind: 'deliver' }): void {
    const { pair, tag, offset, attempt, redelivered, alone, content } = event
    this.count('deliveries')
    if (attempt > 1) this.count('deliveries of a further attempt')
    if (redelivered) this.count('deliveries marked redelivered')
    if (alone) this.count('deliveries alone')
    if (pair.lastTag !== undefined && (tag - pair.lastTag - 1) >>> 0 > 0x7fff_ffff)
      throw new Difference(`tag ${tag} follows tag ${pair.lastTag}`)
    pair.lastTag = tag
    const message = this.model.delivered(pair.model, offset, tag, attempt, redelivered, alone)
    same(`published at, of message ${offset}`, event.publishedMs, message.publishedMs)
    same(`record of message ${offset}`, content, message.content)
  }

  // The messages that arrived from other queues, as the product shows them in their new queue.
  async #arrivals(): Promise<{ transfer: Transfer; content: Content }[]> {
    const { transfers } = this.model
    const arrivals: { transfer: Transfer; content: Content }[] = []
    for (const to of new Set(transfers.map((transfer) => transfer.to))) {
      const expected = transfers.filter((transfer) => transfer.to === to)
      const page = await this.wait(
        this.broker.operator.peek(
          { name: addressName(to.name), state: undefined, from: to.next, limit: 1000, filter: {} },
          OPERATOR,
        ),
      )
      for (const [index, { offset, record }] of page.messages.entries()) {
        same(`offset of a message that came to ${to.name}`, offset, to.next + index)
        const content = contentOf(record, 0)
        // Each message has a unique body, and is in one queue at a time, or in several groups.
        const at = expected.findIndex(
          ({ message, from }) =>
            message.content.body === content.body && content.headers[ORIGIN_HEADERS.queue] === from.name,
        )
        if (at === -1)
          throw new Difference(
            `message ${offset} of ${to.name} came from no queue: ${JSON.stringify(content)}`,
          )
        const [transfer] = expected.splice(at, 1)
        this.#compareOrigin(transfer!, content)
        arrivals.push({ transfer: transfer!, content })
      }
      if (expected.length > 0)
        throw new Difference(
          `${expected.length} messages did not come to ${to.name}, first ${expected[0]!.message.offset} of ${expected[0]!.from.name}`,
        )
    }
    return arrivals
  }

  #compareOrigin({ message, from, kind }: Transfer, content: Content): void {
    const { headers, ...rest } = content
    const origin = Object.values(ORIGIN_HEADERS) as string[]
    const own = (all: Readonly<Record<string, string>>): object =>
      Object.fromEntries(Object.entries(all).filter(([name]) => !origin.includes(name)))
    same(
      `record of message ${message.offset} of ${from.name}, in its new queue`,
      { ...rest, headers: own(headers) },
      {
        ...message.content,
        // A moved message replaces no other message, even if it did so when it was published.
        replaces: false,
        delayMs: undefined,
        atMs: undefined,
        ttlMs: undefined,
        size: content.size,
        headers: own(message.content.headers),
      },
    )
    same(
      `origin of message ${message.offset} of ${from.name}`,
      Object.fromEntries(origin.map((name) => [name, headers[name]])),
      Object.fromEntries(
        originHeaders({
          queue: from.name,
          offset: message.offset,
          publishedMs: message.publishedMs,
          attempts: message.earlier.attempts + message.attempts,
          redrives: redrivesOf(message) + (kind === 'redriven' ? 1 : 0),
          dead: {
            death: message.death!,
            diedMs: message.diedMs,
            error: message.reason ?? headers[ORIGIN_HEADERS.error]!,
          },
        }),
      ),
    )
    this.count(`messages ${kind} to another queue`)
  }

  // Makes the model move the next message that arrived in this queue. Returns false if there is none.
  #arrive(arrivals: { transfer: Transfer; content: Content }[], queue: ModelQueue): boolean {
    const at = arrivals.findIndex(({ transfer }) => transfer.to === queue)
    if (at === -1) return false
    const [{ transfer, content }] = arrivals.splice(at, 1) as [{ transfer: Transfer; content: Content }]
    this.model.transferred(transfer, content)
    return true
  }

  compareQueues(): void {
    const { broker, model } = this
    for (const queue of model.queues.values()) {
      if (queue.limits !== undefined || queue.group !== undefined) continue
      // Unlike `info` of the broker, this does not change the broker's state.
      const info = broker.catalog.queue(queue.name).info(this.nowMs)
      const states = { ready: 0, scheduled: 0, leased: 0, dead: 0 }
      for (const { state } of queue.messages) states[state]++
      const counters = Object.fromEntries(
        Object.keys(QUEUE_COUNTERS).map((name) => [name, info[name as QueueCounter]]),
      )
      same(
        `info of ${queue.name}`,
        {
          ready: info.ready,
          scheduled: info.scheduled,
          leased: info.leased,
          dead: info.dead,
          paused: info.paused,
          rateUntilMs: info.rateUntilMs,
          heldKeys: info.heldKeys,
          consumers: info.consumers,
          published: info.published,
          acked: info.acked,
          ...counters,
        },
        {
          ...states,
          paused: queue.paused,
          rateUntilMs: model.rateUntilMs(queue),
          heldKeys: queue.line.heldKeys,
          consumers: queue.subscriptions.length,
          published: queue.next - queue.counters.duplicates,
          acked: queue.acked,
          ...queue.counters,
        },
      )
      same(`options of ${queue.name}`, info.options, queue.options)
      if (queue.messages.length === 0) same(`bytes of ${queue.name}`, info.bytes, 0)
      const oldestMs = model.oldestReadyMs(queue)
      same(
        `oldest ready message of ${queue.name}`,
        info.oldestReadyMs,
        oldestMs === Infinity ? null : Math.max(0, this.nowMs - oldestMs),
      )
      this.count('infos')
    }
    this.#options.compareOthers?.()
    broker.audit()
    this.#compareBindings()
    this.count('audits')
  }

  /** Compares the info of a queue. The info does not count expired messages, and reading it does not sweep any. */
  look(name: string): void {
    this.both(
      `info of ${name}`,
      () => this.broker.catalog.info(addressName(name)),
      () => {
        const queue = this.model.queue(name)
        const isDue = ({ state, lineMs }: ModelMessage): boolean =>
          state === 'ready' || (state === 'scheduled' && lineMs <= this.nowMs)
        const due = queue.messages.filter(isDue).length
        const scheduled = queue.messages.filter((one) => one.state === 'scheduled' && !isDue(one)).length
        return { queue, due, scheduled, stale: this.model.stale(queue).length }
      },
      ({ ready, scheduled, expired }, { queue, due, stale, ...rest }) =>
        same(
          `info of ${name}`,
          [ready, scheduled, expired],
          [due - stale, rest.scheduled, queue.counters.expired + stale],
        ),
    )
  }

  /** Compares the answers of both sides, or their refusals. Returns undefined if both sides refused. */
  both<T, U>(
    what: string,
    product: () => T,
    model: (answer: T | undefined) => U,
    compare: (answer: T, expected: U) => void,
  ): T | undefined {
    this.begin()
    let answer: T | undefined
    let code: string | undefined
    try {
      answer = product()
    } catch (error) {
      code = codeOf(error)
      this.#isRetryable = (error as SluiceError).retryable
    }
    return this.#judge(what, answer, code, model, compare)
  }

  #judge<T, U>(
    what: string,
    answer: T | undefined,
    code: string | undefined,
    model: (answer: T | undefined) => U,
    compare: (answer: T, expected: U) => void,
  ): T | undefined {
    this.#follow()
    let expected: U
    try {
      expected = model(answer)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      if (code === undefined || !error.codes.includes(code))
        throw new Difference(`${what}: ${code ?? 'accepted'}, expected ${error.message}`)
      this.count('refusals')
      this.count(`refused ${code}`)
      return undefined
    }
    if (code !== undefined) throw new Difference(`${what}: refused with ${code}, expected an acceptance`)
    compare(answer!, expected)
    this.count('answers')
    return answer
  }

  async bothLater<T, U>(
    what: string,
    product: () => Promise<T>,
    model: (answer: T | undefined) => U,
    compare: (answer: T, expected: U) => void,
  ): Promise<T | undefined> {
    await this.endTurn()
    this.begin()
    let answer: T | undefined
    let code: string | undefined
    try {
      answer = await this.wait(product())
    } catch (error) {
      code = codeOf(error)
    }
    const agreed = this.#judge(what, answer, code, model, compare)
    await this.endTurn()
    return agreed
  }

  // --- queues ---

  ensure(name: string, options: Partial<QueueOptions>, update = false): void {
    this.both(
      `ensure ${name}`,
      () => this.broker.catalog.ensure({ name: addressName(name), options, update }),
      () => this.model.ensure(name, options, update),
      ({ created }, expected) => same(`created ${name}`, created, expected),
    )
  }

  delete(name: string): void {
    this.both(
      `delete ${name}`,
      () => this.broker.catalog.delete(addressName(name)),
      () => this.model.delete(name),
      (answer, expected) => same(`messages deleted with ${name}`, answer, expected),
    )
    this.#deleted = []
    this.forgetClosed()
  }

  /** Forgets the subscriptions that ended with their queue. */
  forgetClosed(): void {
    for (const connection of this.connections)
      connection.pairs = connection.pairs.filter(({ model }) => model.isOpen)
  }

  /** A call that names the queue, as a session reports it. */
  use(name: string): void {
    this.begin()
    this.broker.unused.usedName(name)
    this.model.used(name)
  }

  purge(name: string): void {
    this.both(
      `purge ${name}`,
      () => this.broker.catalog.purge(addressName(name)),
      () => this.model.purge(name),
      (answer, expected) => same(`messages purged of ${name}`, answer, expected),
    )
  }

  pause(name: string, paused: boolean): void {
    this.both(
      `${paused ? 'pause' : 'resume'} ${name}`,
      () =>
        paused ? this.broker.catalog.pause(addressName(name)) : this.broker.catalog.resume(addressName(name)),
      () => this.model.pause(name, paused),
      (answer, expected) => same(`whether ${name} changed`, answer, expected),
    )
  }

  // --- topics ---

  bind(pattern: string, target: string, required: RequiredHeaders | undefined): void {
    const request = { pattern: topicPattern(pattern), target: addressName(target), match: required }
    this.both(
      `bind ${target} to ${pattern}`,
      () => this.broker.topics.bind(request),
      () => this.model.bind(pattern, target, required),
      ({ changed }, expected) => same('whether the binding is new', changed, expected),
    )
    this.#compareBindings()
  }

  unbind(pattern: string, target: string, required: RequiredHeaders | undefined): void {
    const request = { pattern: topicPattern(pattern), target: addressName(target), match: required }
    this.both(
      `unbind ${target} from ${pattern}`,
      () => this.broker.topics.unbind(request),
      () => this.model.unbind(pattern, target, required),
      ({ changed }, expected) => same('whether there was a binding', changed, expected),
    )
    this.#compareBindings()
  }

  #compareBindings(): void {
    const { bindings, more } = this.broker.topics.list({ pattern: undefined, target: undefined, after: 0 })
    same('whether there are more bindings', more, false)
    const shown = ({ pattern, queue, required }: ModelBinding): object => ({
      pattern,
      target: queue.name,
      headers: required === undefined ? undefined : bindingHeaders(required),
    })
    same(
      'bindings',
      bindings.map(({ pattern, target, headers }) => ({
        pattern,
        target,
        headers: headers === undefined ? undefined : bindingHeaders(headerMatch(headers)!),
      })),
      this.model.bindings.map(shown),
    )
    this.count('bindings compared', bindings.length)
  }

  // The order in which the product checks the targets. Only evictions depend on it, so the model adopts it. A step checks
  // them in the order of the bindings.
  #targetOrder(address: string, bytes: Uint8Array, isStep = false): string[] {
    try {
      const targets = this.broker.topics.targetsOf(address, { bytes, at: 0, end: bytes.length }, 0xff)
      const sorted = isStep
        ? targets
        : targets.toSorted(
            ({ queue: { options: a } }, { queue: { options: b } }) =>
              a.ttlMs - b.ttlMs || Number(a.maxBytes > 0) - Number(b.maxBytes > 0),
          )
      return sorted.map(({ queue }) => queue.name)
    } catch {
      return []
    }
  }

  // --- time ---

  /**
   * Lets time pass. With `inSteps`, the broker meets each of its deadlines on the way, as it would with its own timer.
   */
  async pass(ms: number, inSteps: boolean): Promise<void> {
    await this.endTurn()
    const target = this.nowMs + ms
    for (
      let step = inSteps ? 0 : STEPS_MAX;
      step < STEPS_MAX && this.broker.turn.nextDeadline < target;
      step++
    ) {
      if (this.broker.turn.nextDeadline > this.nowMs) this.nowMs = this.broker.turn.nextDeadline
      await this.tick()
    }
    this.nowMs = target
    await this.tick()
  }

  async tick(): Promise<void> {
    this.#tick()
    await this.endTurn()
    this.model.ticked()
  }

  #tick(): void {
    this.model.nowMs = this.nowMs
    this.broker.turn.tick()
    this.#follow()
    const unused = this.model.deleteUnused()
    same('unused queues that were deleted', this.#deleted.splice(0).toSorted(), unused.toSorted())
    this.count('unused queues deleted', unused.length)
    this.model.tick()
    this.count('ticks')
  }

  // --- producing ---

  content(options: RecordOptions, bytes: number): Content {
    const body = `${++this.#bodies}`.padEnd(bytes, '.')
    return {
      priority: options.priority ?? 0,
      key: options.key,
      id: options.id,
      replaces: options.replaces === true,
      delayMs: options.delayMs,
      atMs: options.atMs,
      ttlMs: options.ttlMs,
      headers: options.headers ?? {},
      body,
      size: recordBytes(recordOf({ ...options, headers: options.headers ?? {} }), body.length),
    }
  }

  addProducer(): BenchProducer {
    const identity = (this.producers.length + 1).toString(16).padStart(32, '0')
    const attached = this.broker.producers.attach(identity, 0)
    const producer = { identity, attached, number: 0, confirmed: 0, sent: new Map<number, Sent>() }
    this.producers.push(producer)
    return producer
  }

  publish(producer: BenchProducer, queue: string, contents: readonly Content[]): Placed | undefined {
    const number = ++producer.number
    const bytes = batchOf(contents, number)
    return this.#publish(producer, number, {
      queue,
      contents,
      bytes,
      step: undefined,
      placed: undefined,
      isRetryable: false,
    })
  }

  #publish(producer: BenchProducer, number: number, sent: Sent): Placed | undefined {
    const { queue, contents, bytes } = sent
    const order = isTopicAddress(queue) ? this.#targetOrder(queue, bytes) : []
    const placed = this.both(
      `publish to ${queue}`,
      () => this.#send(producer, queue, bytes),
      (answer) => {
        if (!isTopicAddress(queue)) return this.model.publish(queue, contents, answer === undefined)
        const { name, drops } = readTopicAddress(queue)
        const targets = this.model.publishToTopic(name, contents, drops, order, answer === undefined)
        this.count(targets === 0 ? 'topic publishes without targets' : 'topic publishes')
        return { base: targets, duplicates: new Map<number, number>() }
      },
      (answer, expected) => this.#comparePlaced(queue, contents, answer, expected),
    )
    const isRetryable = placed === undefined && this.#isRetryable
    this.#remember(producer, number, {
      ...sent,
      placed: placed === undefined ? undefined : [placed],
      isRetryable,
    })
    return placed
  }

  #send({ attached }: BenchProducer, to: string, bytes: Uint8Array): Placed {
    const sent = bytes.slice()
    if (!isTopicAddress(to)) return this.broker.intake.publish(attached, to, sent, 0, sent.length, RESENDABLE)
    const batch = { bytes: sent, at: 0, end: sent.length }
    const baseOffset = this.broker.topics.publish(attached, to, batch, RESENDABLE)
    return { baseOffset, duplicates: undefined }
  }

  #comparePlaced(
    queue: string,
    contents: readonly Content[],
    { baseOffset, duplicates }: Placed,
    expected: { readonly base: number; readonly duplicates: ReadonlyMap<number, number> },
  ): void {
    same(`base offset in ${queue}`, baseOffset, expected.base)
    same(`duplicates in ${queue}`, [...(duplicates ?? [])], [...expected.duplicates])
    this.count('messages published', contents.length)
    this.count('duplicates', expected.duplicates.size)
  }

  #remember(producer: BenchProducer, number: number, sent: Sent): void {
    if (sent.placed !== undefined) producer.confirmed = Math.max(producer.confirmed, number)
    producer.sent.set(number, sent)
    for (const old of producer.sent.keys()) if (old <= producer.number - RESENDABLE) producer.sent.delete(old)
  }

  /** Sends a batch or an atomic step again, byte for byte. */
  resend(producer: BenchProducer, number: number): void {
    const sent = producer.sent.get(number)
    if (sent === undefined) return
    const { queue, bytes, step, placed } = sent
    if (placed === undefined) {
      // If the refusal was not final, the broker treats the batch as a new one.
      if (sent.isRetryable) this.#publish(producer, number, sent)
      return
    }
    this.both(
      `publish to ${queue} again`,
      () =>
        step === undefined
          ? [this.#send(producer, queue, bytes)]
          : this.broker.intake.atomic(producer.attached, step, RESENDABLE),
      () => placed,
      (answer, expected) =>
        same('answer to a batch that was sent again', shownPlaces(answer), shownPlaces(expected)),
    )
    this.count('batches sent again')
  }

  atomic(
    producer: BenchProducer,
    acks: readonly { readonly pair: Pair; readonly tag: number }[],
    batches: readonly { readonly queue: string; readonly contents: readonly Content[] }[],
  ): readonly Placed[] | undefined {
    const number = ++producer.number
    const encoded = batches.map(({ queue, contents }): AtomicBatch => {
      const bytes = batchOf(contents, number)
      return { queue, bytes, at: 0, end: bytes.length }
    })
    let crc = number
    for (const { bytes } of encoded) crc = crc32(bytes, crc)
    const step: Step = {
      number,
      crc,
      acks: acks.map(({ pair, tag }) => ({ subscription: pair.product, firstTag: tag, count: 1 })),
      batches: encoded,
    }
    const order = encoded.flatMap(({ queue, bytes }) =>
      isTopicAddress(queue) ? this.#targetOrder(queue, bytes, true) : [],
    )
    const placed = this.both(
      'atomic step',
      () => this.broker.intake.atomic(producer.attached, step, RESENDABLE),
      (answer) =>
        this.model.atomic(
          acks.map(({ pair, tag }) => ({ subscription: pair.model, tag })),
          batches,
          order,
          answer === undefined,
        ),
      (answer, expected) => {
        same('batches of an atomic step', answer.length, expected.length)
        for (const [index, { queue, contents }] of batches.entries())
          this.#comparePlaced(queue, contents, answer[index]!, expected[index]!)
      },
    )
    if (placed !== undefined) {
      this.count('atomic steps')
      if (batches.some(({ queue }) => isTopicAddress(queue))) this.count('atomic steps with topics')
      this.#remember(producer, number, {
        queue: 'several queues',
        contents: [],
        bytes: new Uint8Array(0),
        step,
        placed,
        isRetryable: false,
      })
    }
    return placed
  }

  // --- consuming ---

  connect(): Connection {
    const number = ++this.#numbers
    const ranges = (subscription: Subscription, _reason: Loss, lost: readonly TagRange[]): void => {
      const pair = this.#pairs.get(subscription) ?? UNKNOWN
      for (const tag of tagsOf(lost)) this.#lost.push(`subscription ${pair.number} tag ${tag}`)
    }
    const consumer: Consumer = {
      label: `client ${number}`,
      address: `127.0.0.1:${number}`,
      isReady: true,
      deliver: (subscription, { run, firstTag, count, bytes, start }) => {
        const pair = this.#pairs.get(subscription)
        if (pair === undefined) throw new Difference('a message was delivered to an unknown subscription')
        let at = start
        for (let index = 0; index < count; index++) {
          const { attempt, redelivered, alone, publishedAtMs: publishedMs } = run
          this.#events.push({
            kind: 'deliver',
            pair,
            tag: (firstTag + index) >>> 0,
            offset: run.offset + index,
            publishedMs,
            attempt,
            redelivered,
            alone,
            content: contentOf(bytes, at),
          })
          at += readU32(bytes, at)
        }
      },
      drained: (subscription) => {
        const pair = this.#pairs.get(subscription)
        if (pair !== undefined) this.#events.push({ kind: 'drained', pair })
      },
      ended: (subscription) => {
        this.#ended.push(`subscription ${(this.#pairs.get(subscription) ?? UNKNOWN).number}`)
      },
      lost: ranges,
    }
    const connection = { number, consumer, pairs: [] }
    this.connections.push(connection)
    return connection
  }

  subscribe(
    connection: Connection,
    name: string,
    messages: number,
    bytes: number,
    limit?: number,
    processingTimeoutMs?: number,
  ): Pair | undefined {
    let model: ModelSubscription | undefined
    const product = this.both(
      `subscribe to ${name}`,
      () =>
        this.broker.leases.subscribe(
          { queue: addressName(name), messages, bytes, limit, processingTimeoutMs },
          connection.pairs.length + 1,
          connection.consumer,
        ),
      () => {
        model = this.model.subscribe(
          name,
          messages,
          bytes,
          limit,
          processingTimeoutMs,
          connection.consumer.label,
        )
      },
      () => {},
    )
    if (product === undefined || model === undefined) return undefined
    const pair: Pair = { number: ++this.#numbers, product, model, connection, lastTag: undefined }
    connection.pairs.push(pair)
    this.#pairs.set(product, pair)
    return pair
  }

  credit(
    { product, model }: Pair,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void {
    this.begin()
    this.broker.leases.credit(product, messages, bytes, limit, drain)
    model.creditMessages = messages
    model.creditBytes = bytes
    model.limit = limit ?? Infinity
    model.draining = drain
  }

  started({ product, model }: Pair, tags: readonly number[]): void {
    this.begin()
    this.broker.leases.started(product, rangesOf(tags))
    this.model.started(model, tags)
  }

  starting({ product, model }: Pair, tags: readonly number[]): void {
    this.begin()
    this.broker.leases.starting(product, rangesOf(tags))
    this.model.starting(model, tags)
  }

  extend({ product, model }: Pair, tags: readonly number[], durationMs: number): void {
    this.begin()
    const stale: number[] = []
    for (const { firstTag, count } of rangesOf(tags))
      stale.push(...tagsOf(this.broker.leases.extend(product, firstTag, count, durationMs)))
    same('stale tags of an extension', stale, this.model.extend(model, tags, durationMs))
    this.count('extensions')
  }

  settle({ product, model }: Pair, items: readonly ModelSettle[]): void {
    this.begin()
    const encoded = items.flatMap(({ tags, outcome, delayMs, reason, invalid, pauseKey }) =>
      rangesOf(tags).map((range): SettleItem => ({
        ...range,
        outcome: OUTCOME[outcome],
        delayMs,
        reason,
        ...(invalid ? { invalid } : {}),
        ...(pauseKey === true ? { pauseKey } : {}),
      })),
    )
    const stale = tagsOf(this.broker.leases.settle(product, encoded))
    same('stale tags of a settle', stale, this.model.settle(model, items))
    for (const { tags, outcome } of items) this.count(`messages settled with ${outcome}`, tags.length)
    this.count('stale tags', stale.length)
  }

  unsubscribe(pair: Pair): void {
    this.begin()
    this.broker.leases.unsubscribe(pair.product, 'normal')
    this.model.unsubscribe(pair.model)
    this.#forget(pair)
  }

  closeConsumer(pair: Pair): void {
    const { name } = pair.model.queue
    this.both(
      `close a consumer of ${name}`,
      () => this.broker.leases.closeConsumer(addressName(name), pair.product.id),
      () => {
        this.model.ended.push(pair.model)
        return this.model.unsubscribe(pair.model)
      },
      ({ messages }, expected) => same('messages of a closed consumer', messages, expected),
    )
    this.#forget(pair)
  }

  disconnect(connection: Connection): void {
    this.begin()
    this.broker.leases.disconnect(connection.pairs.map(({ product }) => product))
    this.model.disconnect(connection.pairs.map(({ model }) => model))
    connection.pairs = []
    this.connections = this.connections.filter((other) => other !== connection)
    this.count('connections lost')
  }

  #forget(pair: Pair): void {
    const { connection } = pair
    connection.pairs = connection.pairs.filter((other) => other !== pair)
  }

  compareConsumers(name: string): void {
    this.both(
      `consumers of ${name}`,
      () => this.broker.catalog.consumers({ name: addressName(name), from: 0 }).consumers,
      () => this.model.queue(name),
      (answer, queue) => {
        const pairs = queue.subscriptions.map((subscription) => this.pairOf(subscription)!)
        const held = ({ model }: Pair): ModelMessage[] => [...model.held.values()]
        const active = this.model.active(queue)
        same(
          `consumers of ${name}`,
          answer
            .map(({ id, client, peer, active, leased, leasedBytes, started, delivered, creditMessages }) => ({
              id,
              client,
              peer,
              active,
              leased,
              leasedBytes,
              started,
              delivered,
              creditMessages,
            }))
            .toSorted((a, b) => a.id - b.id),
          pairs
            .map((pair) => ({
              id: pair.product.id,
              client: pair.connection.consumer.label,
              peer: pair.connection.consumer.address,
              active: !queue.options.single || pair.model === active,
              leased: held(pair).length,
              leasedBytes: held(pair).reduce((sum, { content }) => sum + content.size, 0),
              started: held(pair).filter(({ lease }) => lease!.deadlineMs !== undefined).length,
              delivered: pair.model.delivered,
              creditMessages: pair.model.creditMessages,
            }))
            .toSorted((a, b) => a.id - b.id),
        )
      },
    )
  }

  // --- single messages ---

  cancel(name: string, offset: number | undefined, id: string | undefined): void {
    this.both(
      `cancel ${id ?? offset} of ${name}`,
      () => this.broker.operator.cancel({ name: addressName(name), offset, id }),
      (answer) => this.model.cancel(name, offset, id, answer?.offset),
      (answer, expected) => same('offset of the cancelled message', answer.offset, expected),
    )
  }

  reschedule(
    name: string,
    offset: number | undefined,
    id: string | undefined,
    delayMs: number | undefined,
    atMs: number | undefined,
  ): void {
    this.both(
      `reschedule ${id ?? offset} of ${name}`,
      () => this.broker.operator.reschedule({ name: addressName(name), offset, id, delayMs, atMs }),
      (answer) => this.model.reschedule(name, offset, id, delayMs, atMs, answer?.offset),
      (answer, expected) => same('the rescheduled message', answer, expected),
    )
  }

  async redrive(
    request: Omit<DeadSelection, 'name'> & {
      readonly name: string
      readonly to: string | undefined
      readonly force: boolean
    },
  ): Promise<void> {
    const { name, to, ...rest } = request
    const named = { ...rest, name: addressName(name), to: to === undefined ? undefined : addressName(to) }
    await this.bothLater(
      `redrive of ${name}`,
      () => this.broker.operator.redrive(named, OPERATOR),
      (answer) => this.#page(answer?.next ?? null, () => this.model.redrive(named, answer?.next ?? null)),
      ({ matched, redriven, guarded }, expected) =>
        same(`redrive of ${name}`, { matched, redriven, guarded }, expected),
    )
  }

  async discard(request: Omit<DeadSelection, 'name'> & { readonly name: string }): Promise<void> {
    const named = { ...request, name: addressName(request.name) }
    await this.bothLater(
      `discard of ${request.name}`,
      () => this.broker.operator.discard(named, OPERATOR),
      (answer) => this.#page(answer?.next ?? null, () => this.model.discard(named, answer?.next ?? null)),
      ({ matched, discarded }, expected) =>
        same(`discard of ${request.name}`, { matched, discarded }, expected),
    )
  }

  #page<T>(next: number | null, model: () => T): T {
    if (next !== null) this.count('pages that were not the last')
    return model()
  }

  // --- the end ---

  /** Empties every queue, and checks that nothing is left. */
  async drain(): Promise<void> {
    for (const connection of this.connections) for (const pair of connection.pairs) this.unsubscribe(pair)
    this.connections = []
    await this.endTurn()
    const queues = (): ModelQueue[] =>
      [...this.model.queues.values()].filter(({ limits }) => limits === undefined)
    for (const { name } of queues()) {
      this.pause(name, false)
      this.subscribe(this.connect(), name, 10_000, 1 << 24)
    }
    const left = (): ModelMessage[] =>
      queues().flatMap(({ messages, group }) => [
        ...messages.filter(({ state }) => state !== 'dead'),
        ...(group?.waiting ?? []),
      ])
    for (let round = 0; left().length > 0; round++) {
      if (round > 1000) throw new Difference(`${left().length} messages are never delivered`)
      await this.endTurn()
      for (const connection of this.connections) {
        for (const pair of connection.pairs) {
          const tags = [...pair.model.held.keys()]
          if (tags.length === 0) continue
          this.settle(pair, [{ tags, outcome: 'ack', delayMs: undefined, reason: undefined, invalid: false }])
          this.count('messages drained', tags.length)
        }
      }
      await this.endTurn()
      const dues = [
        ...left().flatMap(({ state, lineMs }) => (state === 'scheduled' ? [lineMs] : [])),
        ...[...this.model.queues.values()].flatMap((queue) => [
          ...queue.line.holdEnds,
          this.model.rateUntilMs(queue) ?? Infinity,
        ]),
      ].filter((dueMs) => dueMs < Infinity)
      await this.pass(dues.length === 0 ? 1 : Math.max(1, Math.min(...dues) - this.nowMs), false)
    }
    for (const { name, messages } of queues()) {
      const all = { name, from: 0, limit: 1000, offsets: undefined, filter: {}, dryRun: false }
      for (let round = 0; messages.length > 0 && round < 1000; round++) {
        await this.discard(all)
        if (this.model.queue(name).messages.length === 0) break
      }
      same(`messages left in ${name}`, this.model.queue(name).messages.length, 0)
      this.count('queues drained')
    }
    await this.endTurn()
  }
}

function codeOf(error: unknown): string {
  if (
    error instanceof Error &&
    'code' in error &&
    typeof error.code === 'string' &&
    error.name === 'SluiceError'
  )
    return error.code
  throw error
}

function shownPlaces(places: readonly Placed[]): unknown {
  return places.map(({ baseOffset, duplicates }) => ({ baseOffset, duplicates: [...(duplicates ?? [])] }))
}
