/**
 * A broker on a log in memory, driven by a test: the test controls time and turns, publishes and consumes without a
 * socket, and can crash the process at any moment. A failure of the broker fails the test.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  OUTCOME,
  queueName,
  readRecordOptions,
  recordBytes,
  sealBatch,
  writeRecordHead,
  type Outcome,
  type PeekPage,
  type Placed,
  type QueueInfo,
  type QueueName,
  type QueueOptions,
  type RecordOptions,
  type RedriveRequest,
  type SettleItem,
  type SluiceError,
  type Loss,
  type LostRange,
  type TagRange,
} from '@sluice/protocol'
import { Broker, type BrokerOptions } from '../broker/broker.js'
import type { RedriveResult } from '../broker/operator.js'
import type { AtomicStep } from '../broker/commands.js'
import type { Producer } from '../state/producers.js'
import { MemoryLog } from '../log/memory-log.js'
import type { Consumer, Delivery, Subscription } from '../queue/index.js'
import { Schedule } from '../queue/schedule.js'

// The limit is small, so that a few scheduled messages exceed it.
Schedule.nearMax = 8

export const Q = queueName('q')

export type Message = RecordOptions & { readonly bodyBytes?: number }

/** Returns the bytes of a batch, which a test can send more than once. */
export function batchOf(messages: readonly Message[], number: number, follows = 0): Uint8Array {
  const size = ({ bodyBytes = 50 }: Message): number => bodyBytes
  const length = messages.reduce(
    (sum, message) => sum + recordBytes(message, size(message)),
    BATCH_HEADER_BYTES,
  )
  const bytes = new Uint8Array(length)
  let at = BATCH_HEADER_BYTES
  for (const message of messages)
    at = writeRecordHead(bytes, at, message, CONTENT_TYPE.bytes, size(message)) + size(message)
  sealBatch(bytes, 0, at, { type: BATCH_TYPE.messages, count: messages.length, batchNumber: number, follows })
  return bytes
}

export interface Delivered {
  readonly offset: number
  readonly tag: number
  readonly atMs: number
  readonly attempt: number
  readonly redelivered: boolean
  readonly alone: boolean
}

/** One subscription and its deliveries. */
export class Worker implements Consumer {
  readonly address = ''
  readonly isReady = true
  readonly label: string
  /** All deliveries, whether they are settled or not. */
  readonly got: Delivered[] = []
  readonly tagsLost: LostRange[] = []
  /** The reasons of these losses. */
  readonly lossReasons = new Set<Loss>()
  readonly endings: SluiceError[] = []
  subscription!: Subscription
  readonly #bench: Bench

  constructor(bench: Bench, label: string) {
    this.#bench = bench
    this.label = label
  }

  deliver(_subscription: Subscription, { run, firstTag, count }: Delivery): void {
    const { attempt, redelivered, alone } = run
    for (let i = 0; i < count; i++) {
      const tag = (firstTag + i) >>> 0
      this.got.push({ offset: run.offset + i, tag, atMs: this.#bench.now, attempt, redelivered, alone })
    }
  }

  lost(_subscription: Subscription, reason: Loss, ranges: readonly LostRange[]): void {
    this.tagsLost.push(...ranges)
    this.lossReasons.add(reason)
  }

  drained(): void {}

  ended(_subscription: Subscription, error: SluiceError): void {
    this.endings.push(error)
  }

  get offsets(): number[] {
    return this.got.map(({ offset }) => offset)
  }

  /** Returns the offsets of the messages that were delivered since the last call. */
  takeOffsets(): number[] {
    return this.got.splice(0).map(({ offset }) => offset)
  }

  /** Returns the tag of the last delivery of the message. */
  tagOf(offset: number): number {
    const delivered = this.got.findLast((delivered) => delivered.offset === offset)
    if (delivered === undefined) throw new Error(`message ${offset} was not delivered`)
    return delivered.tag
  }

  start(...offsets: number[]): void {
    this.#bench.broker.turn.begin()
    const ranges = offsets.map((offset) => ({ firstTag: this.tagOf(offset), count: 1 }))
    this.#bench.broker.leases.started(this.subscription, ranges)
  }

  announce(...offsets: number[]): void {
    this.#bench.broker.turn.begin()
    const ranges = offsets.map((offset) => ({ firstTag: this.tagOf(offset), count: 1 }))
    this.#bench.broker.leases.starting(this.subscription, ranges)
  }

  /** Settles the message, and returns the stale tags. */
  settle(offset: number, outcome: Outcome, more: Partial<SettleItem> = {}): TagRange[] {
    this.#bench.broker.turn.begin()
    const item = { firstTag: this.tagOf(offset), count: 1, outcome, ...more }
    return this.#bench.broker.leases.settle(this.subscription, [item])
  }

  ackAll(): void {
    const { broker } = this.#bench
    for (const firstTag of new Map(this.got.map(({ offset, tag }) => [offset, tag])).values()) {
      broker.turn.begin()
      broker.leases.settle(this.subscription, [{ firstTag, count: 1, outcome: OUTCOME.ack }])
    }
    this.got.length = 0
  }

  /** Simulates the loss of the worker's connection. */
  die(): void {
    this.#bench.broker.turn.begin()
    this.#bench.broker.leases.disconnect([this.subscription])
  }

  /** Ends the worker's subscription; no message is charged an attempt. */
  leave(): void {
    this.#bench.broker.turn.begin()
    this.#bench.broker.leases.unsubscribe(this.subscription, 'normal')
  }
}

/** The client that sends operator requests. */
export const CALLER = { label: 'operator', isOpen: true }

export interface BenchOptions {
  readonly segmentBytes?: number
  readonly entryBytesMax?: number
  /** Maximum size of a message, in bytes. Default: 1 KiB. */
  readonly messageBytesMax?: number
  readonly checkpointBytes?: number
  /** Returns a number in [0, 1). Default: always 0.5. */
  readonly random?: () => number
  readonly onNotice?: (event: string, details: object) => void
  readonly queuesMax?: number
  readonly pagesMax?: number
  readonly definitionsMax?: number
  readonly schedulesMax?: number
  readonly bindingsMax?: number
  readonly producersMax?: number
  /** Number of messages whose time has come that one turn handles. */
  readonly dueMax?: number
  readonly enteredMax?: number
  /** Whether the bench keeps a copy of the log from before each entry, as the next broker would find it. */
  readonly keepsSnapshots?: boolean
  /**
   * Number of segments that fit on the disk, and number of bytes that are reserved for facts that must not be
   * refused.
   */
  readonly segmentsMax?: number
  readonly reserveBytes?: number
}

/** Identity of the default producer. */
const IDENTITY = '00'.repeat(16)

export class Bench {
  log: MemoryLog
  now = 1_000_000
  broker!: Broker
  /** Copies of the log from before each entry; see `keepsSnapshots`. */
  readonly snapshots: MemoryLog[] = []
  /** Number of the last batch of the default producer. */
  number = 0
  readonly #more: Partial<BrokerOptions>
  readonly #producers = new Map<string, Producer>()
  #turns: (() => void)[] = []

  constructor({
    segmentBytes = 1 << 20,
    entryBytesMax,
    keepsSnapshots = false,
    segmentsMax,
    reserveBytes,
    ...more
  }: BenchOptions = {}) {
    this.#more = more
    this.log = new MemoryLog({
      segmentBytes,
      ...(entryBytesMax === undefined ? {} : { entryBytesMax }),
      ...(segmentsMax === undefined ? {} : { segmentsMax }),
      ...(reserveBytes === undefined ? {} : { reserveBytes }),
      ...(keepsSnapshots
        ? { beforeAppend: () => void this.snapshots.push(this.log.reopened({ segmentBytes })) }
        : {}),
    })
  }

  async open(): Promise<this> {
    this.#producers.clear()
    this.broker = await Broker.open({
      log: this.log,
      now: () => this.now,
      continueFrom: (timeMs) => {
        this.now = Math.max(this.now, timeMs)
      },
      random: () => 0.5,
      defer: (endTurn) => this.#turns.push(endTurn),
      onFatal: (error) => {
        throw error
      },
      messageBytesMax: 1024,
      ...this.#more,
    })
    return this
  }

  /** Ends turns until none is due. */
  async settle(): Promise<void> {
    // All continuations of promises run before the next turn, however many there are.
    do await new Promise(setImmediate)
    while (this.endTurns() > 0)
  }

  /** Ends turns until the request is answered. */
  async answer<Result>(request: Promise<Result>): Promise<Result> {
    while (!(await isSettledSoon(request))) this.endTurns()
    return request
  }

  /**
   * Ends the turns that are due, and returns the number of ended turns. The entries of these turns are not on disk
   * yet.
   */
  endTurns(): number {
    const turns = this.#turns.splice(0)
    for (const turn of turns) turn()
    return turns.length
  }

  async pass(ms: number): Promise<void> {
    this.now += ms
    this.broker.turn.tick()
    await this.settle()
  }

  /**
   * Simulates a crash: starts another broker on the durable part of the log. Returns whether the log has a checkpoint.
   */
  async crash(): Promise<boolean> {
    return this.restart(this.log.reopened())
  }

  /** Starts another broker on `log`, in place of the current broker. Returns whether the log has a checkpoint. */
  async restart(log: MemoryLog): Promise<boolean> {
    this.log = log
    this.#turns = []
    const { checkpoint } = await log.open()
    await this.open()
    return checkpoint !== undefined
  }

  ensure(options: Partial<QueueOptions> = {}, name: QueueName = Q): void {
    this.broker.turn.begin()
    this.broker.catalog.ensure({ name, options, update: true })
  }

  info(name: QueueName = Q): QueueInfo {
    this.broker.turn.begin()
    return this.broker.catalog.info(name)
  }

  producer(identity: string = IDENTITY): Producer {
    let producer = this.#producers.get(identity)
    if (producer === undefined) {
      producer = this.broker.producers.attach(identity, 0)
      this.#producers.set(identity, producer)
    }
    return producer
  }

  /** Publishes without ending the turn. */
  put(messages: readonly Message[], name: QueueName = Q): Placed {
    return this.send(batchOf(messages, ++this.number), name)
  }

  /** Publishes, and ends turns until none is due. */
  async publish(messages: readonly Message[], name: QueueName = Q): Promise<Placed> {
    const placed = this.put(messages, name)
    await this.settle()
    return placed
  }

  send(bytes: Uint8Array, name: QueueName = Q, identity: string = IDENTITY, unanswered = 0): Placed {
    this.broker.turn.begin()
    return this.broker.intake.publish(this.producer(identity), name, bytes, 0, bytes.length, unanswered)
  }

  atomic(step: AtomicStep, unanswered = 0): readonly Placed[] {
    this.broker.turn.begin()
    return this.broker.intake.atomic(this.producer(), step, unanswered)
  }

  consume(
    messages = 1_000,
    { name = Q, label = 'worker', timeoutMs }: { name?: QueueName; label?: string; timeoutMs?: number } = {},
  ): Worker {
    this.broker.turn.begin()
    const worker = new Worker(this, label)
    const request = { queue: name, messages, bytes: 1 << 24, processingTimeoutMs: timeoutMs }
    worker.subscription = this.broker.leases.subscribe(request, 1, worker)
    return worker
  }

  /** Delivers all messages that can be delivered, releases them, and returns their offsets in the order of delivery. */
  async order(name: QueueName = Q): Promise<number[]> {
    const worker = this.consume(60_000, { name })
    await this.settle()
    worker.leave()
    await this.settle()
    return worker.offsets
  }

  /** Dead-letters all ready messages. */
  async kill(reason = 'no', name: QueueName = Q): Promise<void> {
    const worker = this.consume(1_000, { name })
    await this.settle()
    for (const { offset } of worker.got) worker.settle(offset, OUTCOME.deadLetter, { reason })
    worker.leave()
    await this.settle()
  }

  /** Acknowledges all ready messages, and returns the offsets of these messages. */
  async drain(name: QueueName = Q): Promise<number[]> {
    const worker = this.consume(1_000, { name })
    await this.settle()
    const { offsets } = worker
    worker.ackAll()
    worker.leave()
    await this.settle()
    return offsets
  }

  async redrive(request: Partial<RedriveRequest> = {}): Promise<RedriveResult> {
    this.broker.turn.begin()
    const all = { name: Q, from: 0, limit: 1000, offsets: undefined, filter: {}, to: undefined }
    const result = await this.answer(
      this.broker.operator.redrive({ ...all, force: false, dryRun: false, ...request }, CALLER),
    )
    await this.settle()
    return result
  }

  /** Returns the offsets that the messages had in the queues from which they were moved. */
  async origins(name: QueueName): Promise<number[]> {
    this.broker.turn.begin()
    const peek = { name, state: undefined, limit: 1000, filter: {} }
    const found: number[] = []
    for (let from: number | undefined = 0; from !== undefined;) {
      const page: PeekPage = await this.answer(this.broker.operator.peek({ ...peek, from }, CALLER))
      for (const { record } of page.messages)
        found.push(Number(readRecordOptions(record, 0).headers?.['sluice-origin-offset']))
      from = page.next
    }
    return found
  }

  /** Publishes about this number of bytes to another queue, as another producer, and purges that queue. */
  async fill(bytes: number): Promise<void> {
    const other = queueName('fill')
    this.ensure({}, other)
    for (let done = 0; done < bytes; done += 1024) {
      this.send(batchOf([{ bodyBytes: 900 }], this.#filled++), other, 'ff'.repeat(16))
      // The broker checks its space every few milliseconds.
      await this.pass(25)
      if (this.#filled % 16 === 0) this.broker.catalog.purge(other)
    }
    this.broker.turn.begin()
    this.broker.catalog.purge(other)
    await this.pass(1_100)
  }

  #filled = 1
}

/** Returns whether the promise is settled within one turn of the event loop. */
export function isSettledSoon(promise: Promise<unknown>): Promise<boolean> {
  const settled = (): boolean => true
  return Promise.race([
    promise.then(settled, settled),
    new Promise<boolean>((resolve) => setImmediate(() => resolve(false))),
  ])
}
