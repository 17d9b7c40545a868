/**
 * The broker: a deterministic state machine over one log. A command is checked against the state as it stands, its
 * facts are applied and put into the open entry, and whatever answers it waits at the gate until that entry is on
 * disk. There is no second, pending state: a failed write ends the process.
 *
 * Once a turn of the event loop `#endTurn` hands out what became ready, writes the open entry and lets answers go.
 */
import {
  ANY_PRIORITY,
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  MESSAGE_OVERHEAD_BYTES,
  OUTCOME,
  QUEUE_OPTION_DEFAULTS,
  RECORD_FLAG,
  SluiceError,
  checkBatch,
  checkRecords,
  clipText,
  readU32,
  readU64,
  sealBatch,
  stampBatch,
  type EnsureRequest,
  type Fault,
  type QueueInfo,
  type QueueName,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import { BLOCKS_DEFAULTS, Blocks, type BlocksOptions } from '../log/blocks.js'
import type { Log } from '../log/log.js'
import { Tail } from '../log/tail.js'
import {
  DEATH,
  FactBuffer,
  Subscription,
  TimeHeap,
  encodeDefinition,
  type Consumer,
  type Lease,
  type Queue,
} from '../queue/index.js'
import { CHUNK_MESSAGES } from '../queue/bits.js'
import { Dispatcher } from './dispatch.js'
import { Producer } from './producers.js'
import { recover } from './recovery.js'
import { Space } from './space.js'
import { checkTraits, readTraits } from './traits.js'
import { BOOT_AFTER_CLOSE, sameOptions, type State } from './state.js'

export interface BrokerOptions {
  readonly log: Log
  /** Milliseconds since the epoch; never goes back. */
  readonly now: () => number
  /** A number in [0, 1), for jitter. */
  readonly random: () => number
  /** Runs the end of a turn once everything that arrived together has been taken in. */
  readonly defer: (endTurn: () => void) => void
  /** The log failed: nothing may be answered any more, the process must end. */
  readonly onFatal: (error: unknown) => void
  readonly onNotice?: (event: string, details: object) => void
  readonly messageBytesMax?: number
  readonly queuesMax?: number
  readonly blocks?: Partial<BlocksOptions>
  /** A checkpoint begins after so many bytes of log. Default: half a segment. */
  readonly checkpointBytes?: number
}

/**
 * Something that holds answers back. Whatever it was given since the last turn ended waits for `gate`; what waits
 * for `durableLsn` or less may go. Returns whether it still holds anything.
 */
export interface Output {
  endTurn(gate: number): void
  release(durableLsn: number): boolean
}

/**
 * What a lost connection means for the messages that were being handled on it: nothing; a try, for the only one; or
 * suspicion, for several.
 */
export type Blame = 'nobody' | 'started' | 'suspects'

/** What records may ask for, and what this version refuses by name. */
const WITH_TRAITS = RECORD_FLAG.delay | RECORD_FLAG.at | RECORD_FLAG.ttl | ANY_PRIORITY
const NOT_BUILT = RECORD_FLAG.key | RECORD_FLAG.id

/** Producers whose numbers are remembered; a directory of pages must list them all in a part of a segment. */
const PRODUCERS_MAX = 100_000

/** How long after the last entry an empty one is put behind it. */
const IDLE_MS = 1_000
/** Timers that were replaced are cleared away once there are so many more than twice the queues. */
const TIMERS_SLACK = 64
/** Beyond so many bytes that wait for the disk, connections are not read from. */
const PENDING_BYTES_MAX = 32 << 20

export interface BrokerStatus {
  readonly queues: number
  readonly messages: number
  readonly entries: number
  readonly recoveryMs: number
  readonly cutBytes: number
  readonly boot: number
  readonly afterCrash: boolean
}

export class Broker {
  readonly messageBytesMax: number
  readonly boot: number
  readonly status: BrokerStatus
  /** Time of this turn, ms. */
  nowMs: number
  readonly #options: BrokerOptions
  readonly #log: Log
  readonly #state: State
  readonly #blocks: Blocks
  readonly #tail: Tail
  readonly #dispatcher: Dispatcher
  readonly #space: Space
  readonly #active: Queue[] = []
  readonly #withFacts: Queue[] = []
  readonly #facts = new FactBuffer()
  readonly #timers = new TimeHeap()
  /** Names of all queues, sorted; made when it is asked for. */
  #names: string[] | undefined
  /** With small segments reasons are cut: those of a whole chunk of dead messages stand in one page. */
  readonly #reasonBytesMax: number
  /** Those that hold something; in no particular order. */
  readonly #outputs = new Set<Output>()
  readonly #waitingForDisk: (() => void)[] = []
  readonly #lease: Lease = { offset: 0, bytes: 0, sinceMs: -1, started: false }
  #nextSubscription: number
  #turnIsDue = false
  #endedAtMs = 0
  #lastIsEmpty = true
  #failed = false
  #failure: unknown
  #stopped = false
  #closing: Promise<void> | undefined
  #idleWaiters: (() => void)[] = []

  /** Recovers from the log and begins a new boot; resolves when that is on disk. @throws SluiceError LOG_CORRUPT, LOG_FAILED */
  static async open(options: BrokerOptions): Promise<Broker> {
    const startedMs = options.now()
    const { log } = options
    const recovered = await recover(log)
    const { state, bounds } = recovered
    const messageBytesMax = options.messageBytesMax ?? LIMITS.messageBytesDefault
    if (
      messageBytesMax > LIMITS.messageBytesMax ||
      messageBytesMax + MESSAGE_OVERHEAD_BYTES > log.segmentBytes / 4
    ) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `Messages of ${messageBytesMax} bytes do not fit a quarter of a segment of ${log.segmentBytes} bytes.`,
      )
    }
    const afterCrash = !state.closed
    if (afterCrash) state.markAllDelivered()
    state.boot++
    const nowMs = options.now()
    let messages = 0
    for (const queue of state.queues.values()) {
      queue.open(nowMs)
      messages += queue.live
    }
    const status: BrokerStatus = {
      queues: state.queues.size,
      messages,
      entries: recovered.entries,
      recoveryMs: nowMs - startedMs,
      cutBytes: bounds.cutBytes,
      boot: state.boot,
      afterCrash,
    }
    const blocks = new Blocks(log, { ...BLOCKS_DEFAULTS, ...options.blocks })
    const tail = new Tail(log, bounds, blocks)
    tail.epoch = state.boot
    let floor = recovered.directory?.replayFrom ?? bounds.firstPosition
    for (const page of recovered.directory?.pages ?? []) floor = Math.min(floor, page.position)
    const space = new Space(log, tail, state, options.checkpointBytes ?? log.segmentBytes / 2, floor)
    const broker = new Broker(options, state, blocks, tail, space, status, nowMs, messageBytesMax)
    broker.#appendMark(BATCH_TYPE.boot, state.boot, afterCrash ? 0 : BOOT_AFTER_CLOSE)
    await broker.#untilIdle()
    if (broker.#failed) throw broker.#failure
    return broker
  }

  private constructor(
    options: BrokerOptions,
    state: State,
    blocks: Blocks,
    tail: Tail,
    space: Space,
    status: BrokerStatus,
    nowMs: number,
    messageBytesMax: number,
  ) {
    this.#options = options
    this.#log = options.log
    this.#state = state
    this.#blocks = blocks
    this.#tail = tail
    this.#dispatcher = new Dispatcher(blocks)
    this.#space = space
    tail.report({ durable: (lsn) => this.#durable(lsn), failed: (error) => this.fail(error) })
    this.messageBytesMax = messageBytesMax
    this.#reasonBytesMax = Math.floor(options.log.segmentBytes / 4 / CHUNK_MESSAGES)
    this.status = status
    this.boot = state.boot
    this.nowMs = nowMs
    // 4,096 boots apart before an id can come again, and a million subscriptions within each.
    this.#nextSubscription = ((state.boot % 4096) << 20) >>> 0
    for (const queue of state.queues.values()) this.#armTimer(queue)
  }

  /** So much waits for the disk that connections should not be read from. */
  get isBehind(): boolean {
    return this.#tail.pendingBytes > PENDING_BYTES_MAX
  }

  /** The next time at which `tick` has something to do, ms since the epoch; Infinity when there is none. */
  get nextDeadline(): number {
    const idleAt = this.#lastIsEmpty ? Infinity : this.#endedAtMs + IDLE_MS
    return Math.min(this.#timers.firstTime, idleAt)
  }

  /** Begins a turn: everything until its end happens at this time. */
  beginTurn(): void {
    this.nowMs = this.#options.now()
  }

  readonly #wake = (): void => this.wake()

  /** Something was taken in: the turn will be ended. */
  wake(): void {
    if (this.#turnIsDue || this.#failed || this.#stopped) return
    this.#turnIsDue = true
    this.#options.defer(() => this.#endTurn())
  }

  /** `output` was given something in this turn. */
  hold(output: Output): void {
    this.#outputs.add(output)
    this.wake()
  }

  /** Calls back once less waits for the disk. */
  whenNotBehind(resume: () => void): void {
    this.#waitingForDisk.push(resume)
  }

  /** Time passed: what was scheduled becomes ready. */
  tick(): void {
    this.beginTurn()
    while (this.#timers.firstTime <= this.nowMs) {
      const queue = this.#state.queuesById.get(this.#timers.firstOffset)
      this.#timers.pop()
      if (queue === undefined) continue
      queue.advance(this.nowMs)
      this.#armTimer(queue)
      this.#activate(queue)
    }
    this.wake()
  }

  // --- producing ---

  /**
   * The producer with this identity, known or new. A new one gets its id, and is written to the log, with its first batch.
   * @throws SluiceError PRODUCER_UNKNOWN when it was promised an answer that this log does not hold
   */
  attachProducer(identity: string, acceptedNumber: number): Producer {
    let producer = this.#state.producers.get(identity)
    if (acceptedNumber > (producer?.highest ?? 0)) {
      throw new SluiceError(
        'PRODUCER_UNKNOWN',
        `Batch ${acceptedNumber} of this producer was confirmed, but the highest number known of it is ${producer?.highest ?? 0}.`,
      )
    }
    if (producer === undefined) {
      this.#makeRoomForProducer()
      producer = new Producer(0, identity)
      this.#state.addProducer(producer)
    }
    producer.connections++
    producer.lastUsedMs = this.nowMs
    return producer
  }

  /** A connection of the producer is over; it may come back with what was not answered. */
  detachProducer(producer: Producer): void {
    producer.connections--
    producer.lastUsedMs = this.nowMs
    if (producer.connections > 0) return
    this.#state.removeProducer(producer)
    // Put in anew, it stands behind all that have been away for longer.
    if (producer.id !== 0) this.#state.addProducer(producer)
  }

  // Those that are away are kept until there are too many: then the one that is away longest goes.
  #makeRoomForProducer(): void {
    const { producers } = this.#state
    if (producers.size < Math.min(PRODUCERS_MAX, this.#log.segmentBytes / 64)) return
    for (const producer of producers.values()) {
      if (producer.connections > 0) continue
      this.#state.removeProducer(producer)
      return
    }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  queue(name: string): Queue {
    const queue = this.#state.queues.get(name)
    if (queue === undefined)
      throw new SluiceError('QUEUE_NOT_FOUND', `There is no queue ${JSON.stringify(name)}.`)
    return queue
  }

  /**
   * Takes the batch at `[at, end)` and returns its base offset. `unanswered` is how many numbers below its own the
   * producer still waits for. A refusal is remembered under the batch's number.
   * @throws SluiceError the refusal
   */
  publish(
    producer: Producer,
    queueName: string,
    bytes: Uint8Array,
    at: number,
    end: number,
    unanswered: number,
  ): number {
    checkBatch(bytes, at, end)
    const number = readU64(bytes, at + 24)
    const crc = readU32(bytes, at + 44)
    producer.forgetBelow(number - unanswered)
    const accepted = producer.acceptedAt(number, crc)
    if (accepted !== -1) return accepted
    if (number < producer.floor) {
      throw new SluiceError(
        'UNKNOWN_OUTCOME',
        `Batch ${number} is older than the window of its producer, which begins at ${producer.floor}.`,
        { outcome: 'unknown' },
      )
    }
    const refusal = producer.refusalOf(number)
    if (refusal !== undefined) throw new SluiceError(refusal.code, refusal.message, refusal)
    try {
      return this.#accept(producer, this.queue(queueName), bytes, at, end, number, crc)
    } catch (error) {
      // What can succeed later, unchanged, is judged anew when it comes again.
      if (error instanceof SluiceError && !error.retryable) producer.refuse(number, error satisfies Fault)
      throw error
    }
  }

  #accept(
    producer: Producer,
    queue: Queue,
    bytes: Uint8Array,
    at: number,
    end: number,
    number: number,
    crc: number,
  ): number {
    const length = end - at
    const count = readU32(bytes, at + 12)
    const checked = checkRecords(bytes, at + BATCH_HEADER_BYTES, end, count, this.messageBytesMax)
    if (typeof checked !== 'number') throw new SluiceError(checked.code, checked.message)
    if ((checked & NOT_BUILT) !== 0) throw optionNotSupported(checked)
    const hasTraits = (checked & WITH_TRAITS) !== 0
    if (hasTraits) checkTraits(bytes, at, count, this.nowMs)
    // With small segments less fits than the protocol allows.
    const most = this.#log.segmentBytes / 2
    if (length > most) {
      throw new SluiceError(
        'BATCH_TOO_LARGE',
        `A batch of ${count} messages has ${length} bytes; the segments of this broker take at most ${most}.`,
      )
    }
    if (!this.#log.reserve(this.#tail.pendingBytes + length)) {
      throw new SluiceError(
        'DISK_LOW',
        'The log has no room for more messages: too little disk space is free, or no further segment could be made. Consumers can go on.',
        { retryAfterMs: 1_000 },
      )
    }
    if (producer.id === 0) this.#declare(producer)
    const to = this.#tail.reserve(length, this.nowMs)
    this.#tail.bytes.set(bytes.subarray(at, end), to)
    const base = queue.next
    stampBatch(this.#tail.bytes, to, queue.id, base, this.nowMs, producer.id)
    if (hasTraits) this.#tail.bytes[to + 5] = bytes[at + 5]! | BATCH_ATTRIBUTE.traits
    const position = this.#tail.add(length)
    const traits = hasTraits ? readTraits(this.#tail.bytes, to, count, this.nowMs) : undefined
    queue.append(base, count, position, this.nowMs, length - BATCH_HEADER_BYTES, traits)
    if (hasTraits) this.#armTimer(queue)
    producer.accept(number, base, crc)
    producer.lastUsedMs = this.nowMs
    this.#activate(queue)
    this.wake()
    return base
  }

  #declare(producer: Producer): void {
    this.#state.declareProducer(producer)
    this.#facts.producer(producer.id, producer.identity)
    this.#appendFacts(0, this.#facts)
  }

  // --- consuming ---

  /** @throws SluiceError QUEUE_NOT_FOUND */
  subscribe(
    name: QueueName,
    channel: number,
    consumer: Consumer,
    messages: number,
    bytes: number,
    limit: number | undefined,
  ): Subscription {
    const queue = this.queue(name)
    const subscription = new Subscription(this.#nextSubscription, channel, queue, consumer)
    this.#nextSubscription = (this.#nextSubscription + 1) >>> 0
    subscription.setCredit(messages, bytes, limit, false)
    queue.subscriptions.push(subscription)
    this.#activate(queue)
    return subscription
  }

  credit(
    subscription: Subscription,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void {
    subscription.setCredit(messages, bytes, limit, drain)
    this.#activate(subscription.queue)
  }

  /** Settles what is still leased of the named tags; returns the ranges that were stale. */
  settle(subscription: Subscription, items: readonly SettleItem[]): TagRange[] {
    const stale: TagRange[] = []
    const queue = subscription.queue
    const lease = this.#lease
    for (const item of items) {
      const reason = clipText(item.reason ?? '', this.#reasonBytesMax)
      let runOffset = -1
      let runCount = 0
      for (let i = 0; i < item.count; i++) {
        const tag = (item.firstTag + i) >>> 0
        if (!subscription.take(tag, lease)) {
          addStale(stale, tag)
        } else if (item.outcome !== OUTCOME.ack) {
          this.#end(queue, lease, item, reason)
          // One item can name many messages, and each of their facts has the reason: they must not wait for the last.
          this.#noteFacts(queue)
        } else if (lease.offset === runOffset + runCount) {
          runCount++
        } else {
          if (runCount > 0) queue.ack(runOffset, runCount)
          runOffset = lease.offset
          runCount = 1
        }
      }
      if (runCount > 0) queue.ack(runOffset, runCount)
    }
    this.#changed(queue)
    return stale
  }

  #end(queue: Queue, lease: Lease, item: SettleItem, reason: string): void {
    if (item.outcome === OUTCOME.release) queue.release(lease.offset, lease.sinceMs, this.nowMs)
    else if (item.outcome === OUTCOME.deadLetter)
      queue.deadLetter(lease.offset, DEATH.rejected, this.nowMs, reason)
    else {
      const delayMs =
        item.delayMs ?? queue.backoffMs(queue.attemptsOf(lease.offset) + 1, this.#options.random())
      queue.retry(lease.offset, this.nowMs + delayMs, this.nowMs, reason)
    }
  }

  started(subscription: Subscription, ranges: readonly TagRange[]): void {
    for (const { firstTag, count } of ranges) {
      for (let i = 0; i < count; i++) subscription.start((firstTag + i) >>> 0)
    }
  }

  /** The subscription is over: what it holds is released, and what was being handled bears the blame that is due. */
  unsubscribe(subscription: Subscription, blame: Blame): void {
    const queue = subscription.queue
    subscription.takeAll(this.#lease, (lease) => {
      if (blame === 'started' && lease.started) {
        const delayMs = queue.backoffMs(queue.attemptsOf(lease.offset) + 1, this.#options.random())
        queue.retry(lease.offset, this.nowMs + delayMs, this.nowMs, 'the connection of its consumer was lost')
      } else {
        if (blame === 'suspects' && lease.started) queue.suspect(lease.offset)
        queue.release(lease.offset, lease.sinceMs, this.nowMs)
      }
    })
    const at = queue.subscriptions.indexOf(subscription)
    if (at !== -1) queue.subscriptions.splice(at, 1)
    this.#changed(queue)
  }

  /** A consumer that was not ready takes deliveries again. */
  resume(queue: Queue): void {
    this.#activate(queue)
  }

  // --- queues ---

  /** @throws SluiceError QUEUE_CONFLICT, TOO_MANY_QUEUES */
  ensure(request: EnsureRequest): { created: boolean; queue: QueueInfo } {
    const existing = this.#state.queues.get(request.name)
    const options = { ...(existing?.options ?? QUEUE_OPTION_DEFAULTS), ...request.options }
    if (options.retryInitialMs > options.retryMaxMs) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `\`retryInitialMs\` is ${options.retryInitialMs}, above \`retryMaxMs\` of ${options.retryMaxMs}.`,
      )
    }
    if (existing !== undefined) {
      if (!sameOptions(existing.options, options)) {
        if (!request.update) throw conflict(existing, request)
        existing.options = options
        existing.dirty = true
        this.#facts.ensure(encodeDefinition(existing))
        this.#appendFacts(existing.id, this.#facts)
      }
      return { created: false, queue: existing.info(this.nowMs) }
    }
    const queuesMax = this.#options.queuesMax ?? 100_000
    if (this.#state.queues.size >= queuesMax) {
      throw new SluiceError(
        'TOO_MANY_QUEUES',
        `There are ${this.#state.queues.size} queues; at most ${queuesMax} are allowed.`,
      )
    }
    const queue = this.#state.addQueue(this.#state.nextQueueId, {
      name: request.name,
      options,
      createdAtMs: this.nowMs,
    })
    queue.open(this.nowMs)
    this.#names = undefined
    this.#facts.ensure(encodeDefinition(queue))
    this.#appendFacts(queue.id, this.#facts)
    return { created: true, queue: queue.info(this.nowMs) }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  info(name: QueueName): QueueInfo {
    return this.queue(name).info(this.nowMs)
  }

  /** At most `limit` queues by name, those behind the name `after`; `more`: there are others behind them. */
  list(after: string, limit: number): { readonly queues: QueueInfo[]; readonly more: boolean } {
    const names = (this.#names ??= [...this.#state.queues.keys()].sort())
    let from = 0
    for (let to = names.length; from < to;) {
      const middle = (from + to) >>> 1
      if (names[middle]! <= after) from = middle + 1
      else to = middle
    }
    const page = names.slice(from, from + limit)
    return {
      queues: page.map((name) => this.queue(name).info(this.nowMs)),
      more: from + limit < names.length,
    }
  }

  /** Deletes the queue and all its messages; returns how many. @throws SluiceError QUEUE_NOT_FOUND */
  delete(name: QueueName): number {
    const queue = this.queue(name)
    const messages = queue.live
    queue.facts.clear()
    this.#facts.delete()
    this.#appendFacts(queue.id, this.#facts)
    const error = new SluiceError('QUEUE_DELETED', `The queue ${name} was deleted.`)
    for (const subscription of queue.subscriptions.splice(0)) {
      subscription.takeAll(this.#lease, () => {})
      subscription.consumer.ended(subscription, error)
    }
    this.#state.removeQueue(queue)
    this.#names = undefined
    return messages
  }

  /** Removes all that is scheduled, ready and leased; returns how many. @throws SluiceError QUEUE_NOT_FOUND */
  purge(name: QueueName): number {
    const queue = this.queue(name)
    for (const subscription of queue.subscriptions) subscription.takeAll(this.#lease, () => {})
    const messages = queue.purge()
    this.#changed(queue)
    return messages
  }

  // --- the turn ---

  /** Stops in order: writes down what was delivered, marks the end, and waits until all is on disk. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    if (this.#failed) return
    this.#endTurn()
    // Nothing may stand behind the mark of the end: no further turn, and no copy that is being read.
    this.#stopped = true
    this.#space.stop()
    for (const queue of this.#state.queues.values()) {
      if (queue.deliveredBelow > queue.redeliveredBelow) {
        queue.redeliveredBelow = queue.deliveredBelow
        queue.dirty = true
        queue.facts.delivered(queue.deliveredBelow)
        this.#noteFacts(queue)
      }
    }
    this.#flushFacts()
    this.#appendMark(BATCH_TYPE.close, 0, 0)
    await this.#untilIdle()
    if (!this.#failed) {
      this.#tail.sealEmpty(this.nowMs)
      await this.#untilIdle()
    }
    await this.#log.close()
  }

  /** What memory and disk hold, for people and tests. */
  usage(): {
    readonly blockBytes: number
    readonly liveBytes: number
    readonly logBytes: number
    readonly segments: number
  } {
    const { bytes, segments } = this.#log.usage()
    return {
      blockBytes: this.#blocks.memoryBytes,
      liveBytes: this.#state.segments.liveBytes,
      logBytes: bytes,
      segments,
    }
  }

  /** Counts everything anew and compares (invariant 6). @throws Error naming what differs */
  audit(): void {
    let live = 0
    for (const queue of this.#state.queues.values()) {
      queue.audit()
      live += queue.live
    }
    if (live !== this.#state.segments.liveMessages) {
      throw new Error(`segments hold ${this.#state.segments.liveMessages} live messages, queues ${live}`)
    }
  }

  #durable(lsn: number): void {
    this.#space.durable(lsn)
    this.#release(lsn)
    if (this.#waitingForDisk.length > 0 && !this.isBehind) {
      for (const resume of this.#waitingForDisk.splice(0)) resume()
    }
    if (this.#stopped) this.#tail.flush(this.nowMs)
    if (!this.#tail.isIdle) this.wake()
    else for (const waiter of this.#idleWaiters.splice(0)) waiter()
  }

  fail(error: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.#failure = error
    this.#outputs.clear()
    for (const waiter of this.#idleWaiters.splice(0)) waiter()
    this.#options.onFatal(error)
  }

  #endTurn(): void {
    this.#turnIsDue = false
    if (this.#failed || this.#stopped) return
    this.beginTurn()
    try {
      for (const queue of this.#active.splice(0)) {
        queue.active = false
        this.#dispatch(queue)
      }
      this.#flushFacts()
      this.#space.step(this.nowMs, this.#wake)
    } catch (error) {
      // A defect of ours: the state may be half changed, and must not be confirmed.
      this.fail(error)
      return
    }
    if (!this.#tail.isIdle) {
      this.#endedAtMs = this.nowMs
      this.#lastIsEmpty = false
    } else if (!this.#lastIsEmpty && this.nowMs >= this.#endedAtMs + IDLE_MS) {
      this.#lastIsEmpty = true
      this.#tail.sealEmpty(this.nowMs)
    }
    const { gate } = this.#tail
    for (const output of this.#outputs) output.endTurn(gate)
    this.#tail.flush(this.nowMs)
    this.#release(this.#tail.durableLsn)
  }

  #release(durableLsn: number): void {
    for (const output of this.#outputs) if (!output.release(durableLsn)) this.#outputs.delete(output)
  }

  #dispatch(queue: Queue): void {
    if (queue.loading || queue.subscriptions.length === 0) return
    let position: number
    try {
      position = this.#dispatcher.dispatch(queue, this.nowMs)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      this.#endSubscriptions(queue, error)
      return
    }
    if (position === -1) return
    queue.loading = true
    this.#blocks.load(position, true).then(
      () => {
        queue.loading = false
        this.#activate(queue)
      },
      (error: unknown) => {
        queue.loading = false
        if (queue.unreadablePosition !== position) {
          // It may have been purged meanwhile, and its segment given back: looked at once more.
          queue.unreadablePosition = position
          this.#activate(queue)
          return
        }
        this.#options.onNotice?.('stored messages could not be read', { queue: queue.name, position, error })
        const cause = error instanceof SluiceError ? error.message : 'They could not be read from disk.'
        this.#endSubscriptions(
          queue,
          new SluiceError('CORRUPT', `Messages of the queue ${queue.name} cannot be delivered. ${cause}`, {
            cause: error,
          }),
        )
      },
    )
  }

  // What is stored cannot be delivered: consumers are told, nothing is dropped, everything else goes on.
  #endSubscriptions(queue: Queue, error: SluiceError): void {
    this.#options.onNotice?.('subscriptions ended', { queue: queue.name, error: error.message })
    for (const subscription of [...queue.subscriptions]) {
      this.unsubscribe(subscription, 'nobody')
      subscription.consumer.ended(subscription, error)
    }
  }

  #activate(queue: Queue): void {
    if (queue.active || queue.subscriptions.length === 0) return
    queue.active = true
    this.#active.push(queue)
    this.wake()
  }

  // Facts of the queue may wait to be written, its line may have moved, and its next deadline with it.
  #changed(queue: Queue): void {
    this.#noteFacts(queue)
    this.#armTimer(queue)
    this.#activate(queue)
  }

  #noteFacts(queue: Queue): void {
    if (queue.facts.isEmpty) return
    // Many settles in one turn must not make a batch that fits no segment.
    if (queue.facts.length > this.#log.segmentBytes / 8) {
      this.#appendFacts(queue.id, queue.facts)
      return
    }
    if (queue.hasPendingFacts) return
    queue.hasPendingFacts = true
    this.#withFacts.push(queue)
    this.wake()
  }

  #armTimer(queue: Queue): void {
    const deadline = queue.nextDeadline
    if (deadline >= queue.armedMs && queue.armedMs > this.nowMs) return
    queue.armedMs = deadline
    if (deadline === Infinity) return
    // What a nearer deadline replaced stays until its time, and is set anew behind each nearer one.
    if (this.#timers.size > 2 * this.#state.queuesById.size + TIMERS_SLACK) this.#rearmAll()
    else this.#timers.push(deadline, queue.id)
  }

  #rearmAll(): void {
    this.#timers.clear()
    for (const queue of this.#state.queuesById.values()) {
      queue.armedMs = queue.nextDeadline
      if (queue.armedMs !== Infinity) this.#timers.push(queue.armedMs, queue.id)
    }
  }

  // Facts go to the log before anything that is computed from them leaves, at the latest at the end of the turn.
  #flushFacts(): void {
    for (const queue of this.#withFacts) {
      queue.hasPendingFacts = false
      if (!queue.facts.isEmpty) this.#appendFacts(queue.id, queue.facts)
    }
    this.#withFacts.length = 0
  }

  #appendFacts(queueId: number, facts: FactBuffer): void {
    const length = BATCH_HEADER_BYTES + facts.length
    const at = this.#tail.reserve(length, this.nowMs)
    this.#tail.bytes.set(facts.bytes, at + BATCH_HEADER_BYTES)
    sealBatch(this.#tail.bytes, at, at + length, {
      type: BATCH_TYPE.facts,
      queueId,
      count: facts.count,
      timeMs: this.nowMs,
    })
    this.#tail.add(length)
    facts.clear()
    this.wake()
  }

  #appendMark(type: number, count: number, attributes: number): void {
    const at = this.#tail.reserve(BATCH_HEADER_BYTES, this.nowMs)
    sealBatch(this.#tail.bytes, at, at + BATCH_HEADER_BYTES, { type, count, attributes, timeMs: this.nowMs })
    this.#tail.add(BATCH_HEADER_BYTES)
    this.#tail.flush(this.nowMs)
  }

  async #untilIdle(): Promise<void> {
    while (!this.#tail.isIdle && !this.#failed) {
      await new Promise<void>((resolve) => {
        this.#idleWaiters.push(resolve)
      })
    }
  }
}

function addStale(stale: TagRange[], tag: number): void {
  const last = stale.at(-1)
  if (last !== undefined && (last.firstTag + last.count) >>> 0 === tag) {
    stale[stale.length - 1] = { firstTag: last.firstTag, count: last.count + 1 }
  } else {
    stale.push({ firstTag: tag, count: 1 })
  }
}

function optionNotSupported(seen: number): SluiceError {
  const name = Object.entries(RECORD_FLAG).find(([, flag]) => seen & NOT_BUILT & flag)![0]
  return new SluiceError('NOT_SUPPORTED', `The message option \`${name}\` is not supported by this version.`)
}

function conflict(queue: Queue, request: EnsureRequest): SluiceError {
  const differing = Object.entries(request.options)
    .filter(([name, value]) => queue.options[name as keyof typeof queue.options] !== value)
    .map(
      ([name, value]) => `\`${name}\` is ${queue.options[name as keyof typeof queue.options]}, not ${value}`,
    )
  return new SluiceError(
    'QUEUE_CONFLICT',
    `The queue ${queue.name} exists with other options: ${differing.join(', ')}. Pass update to change them.`,
  )
}
