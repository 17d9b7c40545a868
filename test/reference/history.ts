/**
 * Random histories: a seed determines the options of some queues and a sequence of operations by producers, consumers
 * and an operator, with clock movement, crashes and restarts between them. Each operation draws from its own random
 * source, so that leaving out some operations does not change what the remaining ones do.
 */
import {
  DEATH,
  MESSAGE_STATE,
  OUTCOME,
  queueName,
  type DeadSelection,
  type DeathName,
  type MessageFilter,
  type MessageState,
  type QueueOptions,
  type RecordOptions,
} from '@sluice/protocol'
import { Chance } from '../simulation/chance.js'
import {
  Bench,
  RESENDABLE,
  type BenchProducer,
  type Connection,
  type Defect,
  type Pair,
  type Product,
} from './bench.js'
import { compareExplain } from './explain.js'
import { compareHistory, comparePeek } from './pages.js'
import { batchOf } from './records.js'
import { replay } from './replay.js'
import type { RequiredHeaders } from '../rules/topic.js'
import type { Content, ModelSettle } from './state.js'

const DEATHS = Object.keys(DEATH) as DeathName[]
const STATES = Object.keys(MESSAGE_STATE) as MessageState[]

export interface HistoryOptions {
  readonly seed: number
  readonly operations: number
  /** Runs only the operations with these numbers; default: all. */
  readonly only?: readonly number[] | undefined
  readonly defect?: Defect | undefined
  /** Called with each operation before it runs. */
  readonly trace?: ((line: string) => void) | undefined
}

export interface HistoryResult {
  /** Number of times that each thing was compared or happened. */
  readonly counts: ReadonlyMap<string, number>
  /** The first difference; undefined if both sides agreed. */
  readonly failure: HistoryFailure | undefined
}

export interface HistoryFailure {
  /** Number of the operation that showed the difference. */
  readonly at: number
  readonly error: unknown
}

/** A queue whose messages only use up space in the log. */
const FILLER = 'filler'
const KEYS = ['a', 'b', 'c', 'd']
const LEVELS = ['a', 'b']
/** With more bindings than this, a history removes bindings instead of adding some. */
const BINDINGS_MAX = 12
const IDS = ['i1', 'i2', 'i3', 'i4', 'i5', 'i6', 'i7', 'i8']
const PRIORITIES = [0, 0, 0, 1, 5, 31]
const DELAYS = [0, 1, 100, 1_000, 5_000, 60_000, 3_600_000]
const TTLS = [1, 100, 1_000, 10_000, 600_000, 7_200_000]
const TIMES = [0, 0, 1, 10, 100, 500, 999, 1_000, 1_001, 5_000, 60_000, 600_000, 3_600_000, 18_000_000]
/** If a queue has more messages than this, the history consumes from it instead of publishing to it. */
const CROWD = 40

/** The operations, each with its weight. */
const WEIGHTS = [
  ['publish', 26],
  ['settle', 26],
  ['pass', 12],
  ['subscribe', 7],
  ['started', 9],
  ['starting', 4],
  ['atomic', 5],
  ['credit', 4],
  ['disconnect', 4],
  ['cancel', 3],
  ['reschedule', 3],
  ['redrive', 3],
  ['update', 2],
  ['resend', 2],
  ['extend', 2],
  ['unsubscribe', 2],
  ['discard', 1],
  ['peek', 2],
  ['consumers', 1],
  ['pause', 1],
  ['resume', 2],
  ['crash', 1],
  ['purge', 1],
  ['fill', 2],
  ['bind', 2],
  ['unbind', 1],
  ['topic', 5],
  ['rare', 1],
] as const
type OperationName = (typeof WEIGHTS)[number][0]
const WEIGHTS_TOTAL = WEIGHTS.reduce((sum, [, weight]) => sum + weight, 0)

export function runHistory(product: Product, options: HistoryOptions): Promise<HistoryResult> {
  return runOperations(new History(product, options), options)
}

/** A history, whose operations are run in order. */
interface Operations {
  readonly counts: HistoryResult['counts']
  begin(): Promise<void>
  operation(number: number): Promise<void>
  end(): Promise<void>
}

/** Runs the operations that the options name, until one fails. */
export async function runOperations(
  history: Operations,
  { operations, only }: HistoryOptions,
): Promise<HistoryResult> {
  let at = -1
  try {
    await history.begin()
    for (const number of only ?? Array.from({ length: operations }, (_, number) => number)) {
      at = number
      await history.operation(number)
    }
    at = operations
    await history.end()
  } catch (error) {
    return { counts: history.counts, failure: { at, error } }
  }
  return { counts: history.counts, failure: undefined }
}

class History {
  readonly #bench: Bench
  readonly #options: HistoryOptions
  readonly #names: readonly string[]
  #chance: Chance

  constructor(product: Product, options: HistoryOptions) {
    this.#options = options
    this.#chance = new Chance(options.seed)
    this.#names = Array.from({ length: this.#chance.int(2, 4) }, (_, index) => `q${index}`)
    this.#bench = new Bench(product, {
      checkpointBytes: this.#chance.pick([8, 16, 64]) * 1024,
      replayWindowOffsets: new Chance(~options.seed).pick([5, 40, 1_000]),
      defect: options.defect,
    })
  }
  get counts(): ReadonlyMap<string, number> {
    const counts = new Map(this.#bench.counts)
    for (const [event, count] of this.#bench.model.events) counts.set(`event: ${event}`, count)
    return counts
  }

  #trace(line: string): void {
    this.#options.trace?.(line)
  }

  async begin(): Promise<void> {
    await this.#bench.open()
    // Dead-letter queues are created first.
    for (const name of this.#names.toReversed()) this.#ensureNew(name)
    this.#bench.ensure(FILLER, {})
    for (let count = this.#chance.int(1, 3); count > 0; count--) this.#bench.addProducer()
    await this.#bench.endTurn()
  }

  async end(): Promise<void> {
    this.#trace('drain')
    await this.#bench.drain()
  }

  async operation(number: number): Promise<void> {
    this.#chance = new Chance(Math.imul(this.#options.seed, 0x1_0001) + number + 1)
    this.#bench.chance(this.#chance.pick([0, 0.25, 0.5, 0.999]))
    const name = this.#pickOperation()
    this.#bench.count('operations')
    this.#bench.count(`operation: ${name}`)
    this.#prefix = `${number} ${name}`
    await this.#operations[name]()
    // Several operations can arrive in one turn, before anything is delivered.
    const isBusy = this.#bench.model.transfers.length > 0 || this.#bench.model.ended.length > 0
    if (isBusy || this.#chance.hit(0.75)) await this.#bench.endTurn()
    else this.#bench.compareQueues()
  }

  #prefix = ''

  #say(...what: unknown[]): void {
    if (this.#options.trace === undefined) return
    const text = what.map((one) => (typeof one === 'string' ? one : JSON.stringify(one)))
    this.#trace(`${this.#prefix} ${text.join(' ')}  @${this.#bench.nowMs - 1_700_000_000_000}`)
  }

  #pickOperation(): OperationName {
    let at = this.#chance.int(0, WEIGHTS_TOTAL - 1)
    for (const [name, weight] of WEIGHTS) {
      at -= weight
      if (at < 0) return name
    }
    throw new Error('weights do not add up')
  }

  // --- choices ---

  #ensureNew(name: string): void {
    const options = this.#queueOptions(name)
    this.#trace(`ensure ${name} ${JSON.stringify(options)}`)
    this.#bench.ensure(name, options)
  }

  #queueOptions(name: string): Partial<QueueOptions> {
    const chance = this.#chance
    const retryInitialMs = chance.pick([0, 100, 1_000, 5_000])
    const options: { -readonly [Name in keyof QueueOptions]?: QueueOptions[Name] } = {
      maxDeliveries: chance.pick([1, 2, 3, 5, 10]),
      retryInitialMs,
      retryMaxMs: retryInitialMs + chance.pick([0, 1_000, 300_000]),
      processingTimeoutMs: chance.pick([100, 1_000, 60_000, 1_800_000]),
    }
    if (chance.hit(0.25)) options.ttlMs = chance.pick(TTLS)
    if (chance.hit(0.4)) options.keyConcurrency = chance.int(2, 3)
    if (chance.hit(0.4)) options.onFail = 'skip'
    if (chance.hit(0.35)) options.unique = 'pending'
    else if (chance.hit(0.8)) options.dedupWindowMs = chance.pick([0, 500, 10_000, 600_000])
    if (chance.hit(0.25)) options.dedupMaxIds = chance.pick([2, 4, 6])
    if (chance.hit(0.4)) {
      if (chance.hit(0.6)) options.maxMessages = chance.pick([3, 8, 20])
      if (options.maxMessages === undefined || chance.hit(0.3))
        options.maxBytes = chance.pick([200, 600, 2_000])
      options.overflow = chance.pick(['reject', 'drop-oldest', 'dead-letter'] as const)
    }
    const behind = this.#names.filter((other) => other > name)
    if (behind.length > 0 && chance.hit(0.4)) options.deadLetter = chance.pick(behind)
    if (chance.hit(0.15)) options.single = true
    const retains = chance.hit(0.3)
    if (retains) options.retainAgeMs = chance.pick([60_000, 3_600_000])
    else if (chance.hit(0.3)) options.expiresMs = chance.pick([1_000, 60_000, 600_000])
    if (chance.hit(0.15)) {
      options.rateMessages = chance.pick([0, 1, 3, 7])
      options.ratePerMs = chance.pick([10, 1_000, 5_000])
    }
    if (chance.hit(0.3)) {
      options.keyRateMessages = chance.pick([0, 1, 1, 2, 3])
      options.keyRatePerMs = chance.pick([1, 100, 1_000, 60_000])
    }
    return options
  }

  #message(): RecordOptions {
    const chance = this.#chance
    const options: { -readonly [Name in keyof RecordOptions]: RecordOptions[Name] } = {
      priority: chance.pick(PRIORITIES),
    }
    if (chance.hit(0.5)) options.key = chance.pick(KEYS)
    if (chance.hit(0.3)) {
      options.id = chance.pick(IDS)
      if (chance.hit(0.3)) options.replaces = true
    }
    if (chance.hit(0.15)) options.delayMs = chance.pick(DELAYS)
    else if (chance.hit(0.07))
      options.atMs = this.#bench.nowMs + chance.pick([-60_000, -1, 0, 1, 1_000, 60_000])
    else if (chance.hit(0.01)) options.atMs = this.#bench.nowMs - 60_001
    if (chance.hit(0.15)) options.ttlMs = chance.pick(TTLS)
    if (chance.hit(0.2)) options.headers = { color: chance.pick(['red', 'blue']) }
    return options
  }

  #contents(): Content[] {
    const count = this.#chance.hit(0.5) ? 1 : this.#chance.int(2, 6)
    return Array.from({ length: count }, () =>
      this.#bench.content(this.#message(), this.#chance.hit(0.05) ? 1_000 : this.#chance.int(4, 60)),
    )
  }

  #topicName(): string {
    return Array.from({ length: this.#chance.int(1, 3) }, () => this.#chance.pick(LEVELS)).join('.')
  }

  #pattern(): string {
    const levels = [...LEVELS, '*', '#', '#']
    return Array.from({ length: this.#chance.int(1, 3) }, () => this.#chance.pick(levels)).join('.')
  }

  #required(): RequiredHeaders | undefined {
    if (this.#chance.hit(0.6)) return undefined
    const headers = this.#chance.pick([{ color: 'red' }, { color: 'blue' }, { color: 'red', size: 'x' }])
    return { kind: this.#chance.pick(['all', 'any'] as const), headers }
  }

  #name(): string {
    return this.#chance.hit(0.005) ? 'missing' : this.#chance.pick(this.#names)
  }

  /** The name of an existing queue. */
  #existing(): string {
    const names = this.#names.filter((name) => this.#bench.model.queues.has(name))
    return names.length === 0 ? 'missing' : this.#chance.pick(names)
  }

  #producer(): BenchProducer {
    return this.#chance.pick(this.#bench.producers)
  }

  #pairs(): Pair[] {
    return this.#bench.connections.flatMap(({ pairs }) => pairs)
  }

  #pair(): Pair | undefined {
    const pairs = this.#pairs()
    return pairs.length === 0 ? undefined : this.#chance.pick(pairs)
  }

  /** A subscription that holds messages, or any subscription if none does. */
  #holder(): Pair | undefined {
    const holders = this.#pairs().filter(({ model }) => model.held.size > 0)
    return holders.length === 0 ? this.#pair() : this.#chance.pick(holders)
  }

  #connection(): Connection {
    const { connections } = this.#bench
    return connections.length === 0 || (connections.length < 4 && this.#chance.hit(0.4))
      ? this.#bench.connect()
      : this.#chance.pick(connections)
  }

  /** Some of the tags that a subscription holds, and sometimes a stale one. */
  #tags(pair: Pair, share: number): number[] {
    const tags = [...pair.model.held.keys()].filter(() => this.#chance.hit(share))
    if (this.#chance.hit(0.03) && pair.lastTag !== undefined)
      tags.push((pair.lastTag + this.#chance.int(-5, 2)) >>> 0)
    return [...new Set(tags)]
  }

  #offset(name: string): number {
    const messages = this.#bench.model.queues.get(name)?.messages ?? []
    if (messages.length === 0 || this.#chance.hit(0.1))
      return this.#chance.int(0, this.#bench.model.queues.get(name)?.next ?? 0)
    return this.#chance.pick(messages).offset
  }

  #filter(): MessageFilter {
    const chance = this.#chance
    return {
      reason: chance.hit(0.15) ? chance.pick(DEATHS) : undefined,
      error: chance.hit(0.1) ? chance.pick(['bo', 'bad', 'x']) : undefined,
      key: chance.hit(0.15) ? chance.pick(KEYS) : undefined,
      id: chance.hit(0.1) ? chance.pick(IDS) : undefined,
      headers: chance.hit(0.1) ? { color: 'red' } : undefined,
      minAttempts: chance.hit(0.1) ? chance.int(0, 3) : undefined,
      olderThanMs: chance.hit(0.1) ? chance.pick(TIMES) : undefined,
      youngerThanMs: chance.hit(0.1) ? chance.pick(TIMES) : undefined,
    }
  }

  #deadSelection(name: string): Omit<DeadSelection, 'name'> & { readonly name: string } {
    const chance = this.#chance
    const messages = this.#bench.model.queues.get(name)?.messages ?? []
    const offsets = messages.map(({ offset }) => offset).filter(() => chance.hit(0.3))
    return {
      name,
      from: chance.hit(0.2) ? this.#offset(name) : 0,
      limit: chance.pick([1, 2, 5, 1000]),
      offsets: chance.hit(0.15) ? offsets : undefined,
      filter: chance.hit(0.5) ? this.#filter() : {},
      dryRun: chance.hit(0.1),
    }
  }

  #settleItem(pair: Pair): ModelSettle {
    const chance = this.#chance
    const outcome = chance.pick([
      'ack',
      'ack',
      'ack',
      'ack',
      'retry',
      'retry',
      'release',
      'deadLetter',
    ] as const)
    return {
      tags: this.#tags(pair, chance.pick([0.2, 0.6, 1])),
      outcome,
      delayMs: outcome === 'retry' && chance.hit(0.4) ? chance.pick(DELAYS) : undefined,
      reason:
        outcome === 'retry' || outcome === 'deadLetter'
          ? chance.pick([undefined, 'boom', 'bad body'])
          : undefined,
      invalid: outcome === 'deadLetter' && chance.hit(0.3),
      pauseKey: outcome === 'retry' && chance.hit(0.3),
    }
  }

  // --- operations ---

  readonly #operations: Readonly<Record<OperationName, () => Promise<void>>> = {
    publish: async (): Promise<void> => {
      const name = this.#name()
      const messages = this.#bench.model.queues.get(name)?.messages ?? []
      if (messages.filter(({ state }) => state !== 'dead').length > CROWD) return this.#consume(name)
      if (messages.length > CROWD) return this.#operations.discard()
      const contents = this.#contents()
      // A publish can arrive when a message is already due but its timer has not fired yet.
      const lateMs = this.#chance.hit(0.05) ? this.#chance.pick(TIMES) : 0
      if (lateMs > 0) {
        await this.#bench.endTurn()
        this.#bench.nowMs += lateMs
      }
      this.#say(name, contents.map(brief), lateMs > 0 ? `${lateMs} ms late` : '')
      this.#bench.publish(this.#producer(), name, contents)
      if (lateMs > 0) await this.#bench.tick()
    },

    topic: async (): Promise<void> => {
      const contents = this.#contents()
      const name = this.#topicName()
      const targets = [...this.#bench.model.targetsOf(name, contents).keys()]
      const crowded = targets.find((queue) => this.#bench.model.queue(queue).messages.length > CROWD)
      if (crowded !== undefined) return this.#consume(crowded)
      const address = (this.#chance.hit(0.3) ? '#?' : '#') + name
      this.#say(address, contents.map(brief))
      this.#bench.publish(this.#producer(), address, contents)
    },

    bind: async (): Promise<void> => {
      if (this.#bench.model.bindings.length > BINDINGS_MAX) return this.#operations.unbind()
      const [pattern, target] = [this.#pattern(), this.#name()]
      const required = this.#required()
      this.#say(pattern, target, required ?? '')
      this.#bench.bind(pattern, target, required)
    },

    unbind: async (): Promise<void> => {
      const { bindings } = this.#bench.model
      if (bindings.length === 0) return this.#operations.bind()
      const { pattern, queue, required } = this.#chance.pick(bindings)
      const other = this.#chance.hit(0.2) ? this.#required() : required
      this.#say(pattern, queue.name, other ?? '')
      this.#bench.unbind(pattern, queue.name, other)
    },

    resend: async (): Promise<void> => {
      const producer = this.#producer()
      const number = producer.number - this.#chance.int(0, RESENDABLE - 1)
      this.#say(number)
      this.#bench.resend(producer, number)
    },

    atomic: async (): Promise<void> => {
      const acks: { pair: Pair; tag: number }[] = []
      for (const pair of this.#pairs())
        if (this.#chance.hit(0.5)) acks.push(...this.#tags(pair, 0.3).map((tag) => ({ pair, tag })))
      const first = this.#names
        .filter(() => this.#chance.hit(0.4))
        .map((queue) => ({ queue, contents: this.#contents() }))
      // A step can have several batches for one queue, with batches for other queues between them.
      const again = first.filter(() => this.#chance.hit(0.3))
      const batches = [...first, ...again.map(({ queue }) => ({ queue, contents: this.#contents() }))]
      const reached = new Set(batches.map(({ queue }) => queue))
      if (this.#chance.hit(0.4)) {
        const contents = this.#contents()
        const name = this.#topicName()
        for (const queue of this.#bench.model.targetsOf(name, contents).keys()) reached.add(queue)
        const address = (this.#chance.hit(0.5) ? '#?' : '#') + name
        batches.splice(this.#chance.int(0, batches.length), 0, { queue: address, contents })
      }
      // A crowded queue is consumed instead, so that it does not grow without bound.
      const crowded = [...reached].some(
        (queue) => (this.#bench.model.queues.get(queue)?.messages.length ?? 0) > CROWD,
      )
      if (crowded || (acks.length === 0 && batches.length === 0)) return
      this.#say(
        acks.map(({ pair, tag }) => `${pair.number}:${tag}`),
        batches.map(({ queue, contents }) => [queue, contents.map(brief)]),
      )
      this.#bench.atomic(this.#producer(), acks, batches)
    },

    subscribe: async (): Promise<void> => {
      const name = this.#name()
      const { queues } = this.#bench.model
      if ((queues.get(name)?.subscriptions.length ?? 0) >= 3) return this.#operations.unsubscribe()
      const chance = this.#chance
      const messages = chance.pick([1, 2, 5, 20])
      const bytes = chance.pick([0, 100, 300, 1 << 20, 1 << 20])
      const limit = chance.hit(0.1) ? chance.int(0, 5) : undefined
      const timeoutMs = chance.hit(0.2) ? chance.pick([100, 1_000, 60_000]) : undefined
      const pair = this.#bench.subscribe(this.#connection(), name, messages, bytes, limit, timeoutMs)
      this.#say(name, {
        number: pair?.number,
        connection: pair?.connection.number,
        messages,
        bytes,
        limit,
        timeoutMs,
      })
    },

    credit: async (): Promise<void> => {
      const pair = this.#pair()
      if (pair === undefined) return
      const messages = this.#chance.pick([0, 1, 3, 20])
      const bytes = this.#chance.pick([0, 100, 1 << 20])
      const limit = this.#chance.hit(0.2) ? pair.model.delivered + this.#chance.int(0, 3) : undefined
      const drain = this.#chance.hit(0.2)
      this.#say(pair.number, { messages, bytes, limit, drain })
      this.#bench.credit(pair, messages, bytes, limit, drain)
    },

    started: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return
      const tags = this.#tags(pair, this.#chance.pick([0.1, 0.5, 1]))
      this.#say(pair.number, tags)
      this.#bench.started(pair, tags)
    },

    starting: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return
      const tags = this.#tags(pair, this.#chance.pick([0.5, 1]))
      this.#say(pair.number, tags)
      this.#bench.starting(pair, tags)
    },

    extend: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return
      const tags = this.#tags(pair, 0.5)
      const durationMs = this.#chance.pick([0, 100, 5_000, 3_600_000])
      this.#say(pair.number, tags, durationMs)
      this.#bench.extend(pair, tags, durationMs)
    },

    settle: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return this.#operations.subscribe()
      const items: ModelSettle[] = []
      const named = new Set<number>()
      for (let count = this.#chance.int(1, 3); count > 0; count--) {
        const item = this.#settleItem(pair)
        const tags = item.tags.filter((tag) => !named.has(tag))
        for (const tag of tags) named.add(tag)
        if (tags.length > 0) items.push({ ...item, tags })
      }
      this.#say(pair.number, items)
      this.#bench.settle(pair, items)
    },

    unsubscribe: async (): Promise<void> => {
      const pair = this.#pair()
      if (pair === undefined) return
      this.#say(pair.number)
      this.#bench.unsubscribe(pair)
    },

    disconnect: async (): Promise<void> => {
      const { connections } = this.#bench
      if (connections.length === 0) return
      const connection = this.#chance.pick(connections)
      this.#say(connection.number)
      this.#bench.disconnect(connection)
    },

    pass: async (): Promise<void> => {
      const ms = this.#chance.pick(TIMES)
      const inSteps = this.#chance.hit(0.7)
      this.#say(`${ms} ms`, inSteps ? 'in steps' : 'at once')
      await this.#bench.pass(ms, inSteps)
    },

    cancel: async (): Promise<void> => {
      const name = this.#name()
      const [offset, id] = this.#chance.hit(0.6)
        ? [this.#offset(name), undefined]
        : [undefined, this.#chance.pick(IDS)]
      this.#say(name, offset ?? id)
      this.#bench.cancel(name, offset, id)
    },

    reschedule: async (): Promise<void> => {
      const name = this.#name()
      const [offset, id] = this.#chance.hit(0.6)
        ? [this.#offset(name), undefined]
        : [undefined, this.#chance.pick(IDS)]
      const [delayMs, atMs] = this.#chance.hit(0.6)
        ? [this.#chance.pick(DELAYS), undefined]
        : [undefined, this.#bench.nowMs + this.#chance.pick([-60_001, -60_000, 0, 100, 60_000])]
      this.#say(name, offset ?? id, { delayMs, atMs })
      this.#bench.reschedule(name, offset, id, delayMs, atMs)
    },

    redrive: async (): Promise<void> => {
      const name = this.#name()
      const others = this.#names.filter((other) => other !== name)
      const to = this.#chance.hit(0.3) ? this.#chance.pick(others) : undefined
      const request = { ...this.#deadSelection(name), to, force: this.#chance.hit(0.2) }
      this.#say(request)
      await this.#bench.redrive(request)
    },

    discard: async (): Promise<void> => {
      const request = this.#deadSelection(this.#name())
      this.#say(request)
      await this.#bench.discard(request)
    },

    update: async (): Promise<void> => {
      const missing = this.#names.find((other) => !this.#bench.model.queues.has(other))
      if (missing !== undefined) {
        this.#say('ensure again', missing)
        this.#ensureNew(missing)
        return
      }
      const name = this.#existing()
      const { unique, dedupWindowMs, ...others } = this.#queueOptions(name)
      const all = Object.entries(others).filter(() => this.#chance.hit(0.3))
      const options: Record<string, unknown> = Object.fromEntries(all)
      const queue = this.#bench.model.queues.get(name)
      if (queue?.options.unique === 'window' && dedupWindowMs !== undefined)
        options['dedupWindowMs'] = dedupWindowMs
      // The exact bytes of a queue are unknown if it had no byte limit until now.
      if (queue?.options.maxBytes === 0) delete options['maxBytes']
      if (queue?.options.unique === 'window' && this.#chance.hit(0.3)) {
        this.#say(name, 'forget ids')
        this.#bench.ensure(name, { dedupWindowMs: 0 }, true)
        options['dedupWindowMs'] = 600_000
      }
      if (this.#chance.hit(0.05)) options['unique'] = unique ?? 'window'
      if (this.#chance.hit(0.1)) options['deadLetter'] = this.#chance.pick(['', ...this.#names])
      const update = this.#chance.hit(0.9)
      this.#say(name, options, update)
      this.#bench.ensure(name, options, update)
    },

    peek: async (): Promise<void> => {
      const name = this.#existing()
      const state = this.#chance.hit(0.5) ? this.#chance.pick(STATES) : undefined
      const filter = this.#chance.hit(0.3) ? this.#filter() : {}
      const limit = this.#chance.pick([1, 3, 1000])
      this.#say(name, state ?? 'all', limit, filter)
      if (name === 'missing') return
      await comparePeek(this.#bench, name, state, limit, filter)
      await this.#lookBack(name)
      for (let looks = 0; looks < 3; looks++) await compareExplain(this.#bench, name, this.#offset(name))
    },

    consumers: async (): Promise<void> => {
      const name = this.#name()
      this.#say(name)
      if (this.#chance.hit(0.7)) this.#bench.use(name)
      this.#bench.compareConsumers(name)
      if (this.#chance.hit(0.5)) this.#bench.look(name)
      if (this.#chance.hit(0.7)) await this.#replay()
    },

    pause: async (): Promise<void> => {
      const name = this.#name()
      this.#say(name)
      this.#bench.pause(name, true)
    },

    resume: async (): Promise<void> => {
      const paused = [...this.#bench.model.queues.values()].filter((queue) => queue.paused)
      const name = paused.length > 0 ? this.#chance.pick(paused).name : this.#name()
      this.#say(name)
      this.#bench.pause(name, false)
    },

    purge: async (): Promise<void> => {
      const name = this.#name()
      this.#say(name)
      this.#bench.purge(name)
    },

    crash: async (): Promise<void> => {
      const kind = this.#chance.pick(['crash', 'close', 'lost turn'])
      const downMs = this.#chance.hit(0.3) ? this.#chance.pick(TIMES) : 0
      this.#say(kind, `${downMs} ms down`)
      await this.#bench.endTurn()
      if (kind === 'close') await this.#bench.close(downMs)
      else await this.#bench.crash(downMs, kind === 'lost turn' ? () => this.#loseTurn() : undefined)
    },

    /** Writes so many bytes that segments of the log are created and freed. */
    fill: async (): Promise<void> => {
      this.#say()
      this.#bench.purge(FILLER)
      const contents = Array.from({ length: 24 }, () => this.#bench.content({}, 3_500))
      this.#bench.publish(this.#producer(), FILLER, contents)
    },

    rare: async (): Promise<void> => {
      if (this.#chance.hit(0.3)) return this.#redriveOften()
      const pair = this.#pair()
      if (pair !== undefined && this.#chance.hit(0.7)) {
        this.#say('close consumer', pair.number)
        this.#bench.closeConsumer(pair)
        return
      }
      const name = this.#name()
      this.#say('delete', name)
      this.#bench.delete(name)
    },
  }

  /** Compares the history of some messages of the queue, in any state. */
  async #lookBack(name: string): Promise<void> {
    const { next } = this.#bench.model.queue(name)
    for (let count = this.#chance.int(1, 4); count > 0; count--) {
      const isNew = this.#chance.hit(0.6)
      await compareHistory(this.#bench, name, this.#chance.int(isNew ? Math.max(0, next - 30) : 0, next))
    }
  }

  async #replay(): Promise<void> {
    const { queues } = this.#bench.model
    const retaining = [...queues.values()].filter(({ options }) => options.retainAgeMs > 0)
    const names = this.#names.filter((name) => queues.has(name))
    if (retaining.length === 0) return
    const chance = this.#chance
    const { name } = chance.pick(retaining)
    const to = chance.pick(names)
    // Queues must not grow without bound.
    if (queues.get(to)!.messages.length > CROWD) return
    const disturbed = chance.pick([0, 0.2, 0.6])
    this.#say('replay', name, to, disturbed)
    await replay(this.#bench, name, to, () =>
      chance.hit(disturbed) ? chance.pick(['crash', 'lost'] as const) : 'nothing',
    )
  }

  /** Makes a message dead and redrives it, again and again, until the broker refuses to redrive it once more. */
  async #redriveOften(): Promise<void> {
    const queues = [...this.#bench.model.queues.values()].filter(
      ({ options, messages }) =>
        options.deadLetter === '' &&
        messages.some(({ state, earlier }) => state === 'dead' && earlier.redrives < 10),
    )
    if (queues.length === 0) return
    const queue = this.#chance.pick(queues)
    const { offset, earlier } = queue.messages.find(({ state }) => state === 'dead')!
    this.#say('redrive often', queue.name, offset)
    const request = {
      name: queue.name,
      from: 0,
      limit: 1,
      offsets: [offset],
      filter: {},
      dryRun: false,
      to: undefined,
      force: false,
    }
    for (let time = earlier.redrives; time <= 10; time++) {
      await this.#bench.redrive(request)
      const holder = this.#pairs().find(({ model }) =>
        [...model.held.values()].some((message) => model.queue === queue && message.offset === offset),
      )
      if (holder === undefined) return
      const tag = [...holder.model.held].find(([, message]) => message.offset === offset)![0]
      this.#bench.settle(holder, [{ ...ackOf([tag]), outcome: 'deadLetter', reason: 'boom' }])
      await this.#bench.endTurn()
    }
  }

  /** Consumes everything that can be delivered. */
  async #consume(name: string): Promise<void> {
    this.#say('consume', name)
    await this.#bench.endTurn()
    this.#bench.pause(name, false)
    const pair = this.#bench.subscribe(this.#bench.connect(), name, 1_000, 1 << 20)
    await this.#bench.endTurn()
    if (pair === undefined) return
    const tags = [...pair.model.held.keys()]
    if (tags.length > 0) this.#bench.settle(pair, [ackOf(tags)])
    this.#bench.unsubscribe(pair)
    for (const holder of this.#pairs().filter(({ model }) => model.queue.name === name))
      if (holder.model.held.size > 0) this.#bench.settle(holder, [ackOf([...holder.model.held.keys()])])
  }

  /** Makes requests that the broker accepts and then loses, because it dies before the turn ends. */
  #loseTurn(): void {
    const { broker, producers } = this.#bench
    for (let count = this.#chance.int(1, 4); count > 0; count--) {
      const name = this.#existing()
      const pair = this.#holder()
      try {
        if (this.#chance.hit(0.4)) {
          const { attached, number } = this.#chance.pick(producers)
          const bytes = batchOf(this.#contents(), number + count)
          broker.intake.publish(attached, name, bytes, 0, bytes.length, RESENDABLE)
        } else if (pair !== undefined && this.#chance.hit(0.7)) {
          for (const firstTag of this.#tags(pair, 0.5))
            broker.leases.settle(pair.product, [{ firstTag, count: 1, outcome: OUTCOME.ack }])
        } else broker.catalog.purge(queueName(name))
      } catch (error) {
        if (!(error instanceof Error && error.name === 'SluiceError')) throw error
      }
    }
  }
}

function ackOf(tags: readonly number[]): ModelSettle {
  return { tags, outcome: 'ack', delayMs: undefined, reason: undefined, invalid: false }
}

function brief({ headers, size, body, ...rest }: Content): object {
  return {
    ...rest,
    ...(Object.keys(headers).length > 0 ? { headers } : {}),
    body: body.replace(/\.+$/, ''),
    size,
  }
}

export type RunHistory = (product: Product, options: HistoryOptions) => Promise<HistoryResult>

/** The command that runs a history again, of queues or of streams. */
export function commandOf({ seed, operations, only }: HistoryOptions, isOfStreams = false): string {
  const length = only === undefined ? `--operations ${operations}` : `--only ${only.join(',')}`
  const kind = isOfStreams ? ' --streams' : ''
  return `npx tsc -b test && node test/dist/reference/run.js${kind} --seed ${seed} ${length}`
}

/** Maximum number of runs in a search for a shorter history. */
const SHRINK_RUNS_MAX = 600

/** The description of a difference, without its numbers. */
export function kindOf(failure: HistoryFailure | undefined): string {
  return failure?.error instanceof Error ? failure.error.message.replaceAll(/\d+/g, '#').slice(0, 60) : ''
}

/** The shortest version of the history, with operations left out, that still shows the same kind of difference. */
export async function shrink(
  product: Product,
  options: HistoryOptions,
  run: RunHistory = runHistory,
): Promise<HistoryOptions> {
  const { failure } = await run(product, options)
  if (failure === undefined) return options
  const kind = kindOf(failure)
  const fails = async (only: readonly number[]): Promise<boolean> =>
    kindOf((await run(product, { ...options, only })).failure) === kind
  let only = (options.only ?? Array.from({ length: options.operations }, (_, number) => number)).filter(
    (number) => number <= failure.at,
  )
  if (!(await fails(only))) return options
  let runs = 0
  for (let part = Math.ceil(only.length / 2); part >= 1; part = part === 1 ? 0 : Math.ceil(part / 2)) {
    for (let from = only.length - part; from > -part && runs < SHRINK_RUNS_MAX; from -= part, runs++) {
      const less = only.filter((_, index) => index < from || index >= from + part)
      if (less.length < only.length && (await fails(less))) only = less
    }
  }
  return { ...options, only }
}
