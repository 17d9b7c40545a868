/**
 * Random histories of streams and their groups: a seed determines a sequence of operations by producers, members of groups and
 * an operator, with retention, clock movement, crashes and restarts between them. Like the histories of queues (history.ts),
 * each operation draws from its own random source. Streams grow by leaps of a chunk, because retention removes whole chunks.
 */
import type { GroupOptions, RecordOptions, StreamOptions, StreamPlace } from '@sluice/protocol'
import { Chance } from '../simulation/chance.js'
import { Bench, RESENDABLE, type BenchProducer, type Pair, type Product } from './bench.js'
import { runOperations, type HistoryOptions, type HistoryResult } from './history.js'
import { comparePeek } from './pages.js'
import { CRONS, Schedules, type ScheduleWish } from './schedules.js'
import type { Content, ModelSettle } from './state.js'
import { CHUNK_MESSAGES, Streams } from './streams.js'

const STREAMS = ['s', 't']
const GROUPS = ['s@a', 's@b', 's@c', 't@a']
const QUEUES = ['dead', 'q']
/** Gets the messages of schedules, and none from other queues. */
const TICKED = 'ticked'
const SCHEDULES = ['x', 'y', 'z']
const KEYS = ['a', 'b', 'c', 'd', 'e']
const IDS = ['i1', 'i2', 'i3', 'i4', 'i5', 'i6']
const DELAYS = [0, 1, 100, 1_000, 60_000]
const TIMES = [1, 10, 100, 999, 1_001, 5_000, 60_000, 600_000, 3_600_000]
const TOPICS = ['a', 'a.b', 'b']
const PATTERNS = ['a', 'a.*', '#', 'b', 'tick']
/** A stream that keeps more messages than this gets a limit instead of a further chunk. */
const LONG = 2 * CHUNK_MESSAGES
/** If a group or queue has more messages than this to do, it gets no more. */
const CROWD = 300

/** The operations, each with its weight. */
const WEIGHTS = [
  ['publish', 16],
  ['topic', 3],
  ['leap', 4],
  ['settle', 26],
  ['pass', 12],
  ['subscribe', 9],
  ['started', 5],
  ['credit', 3],
  ['unsubscribe', 2],
  ['disconnect', 3],
  ['atomic', 4],
  ['resend', 1],
  ['redrive', 4],
  ['discard', 1],
  ['peek', 2],
  ['pause', 1],
  ['resume', 2],
  ['move', 3],
  ['limit', 3],
  ['change', 3],
  ['bind', 1],
  ['schedule', 4],
  ['runSchedule', 1],
  ['fill', 2],
  ['crash', 3],
  ['rare', 1],
] as const
type OperationName = (typeof WEIGHTS)[number][0]
const WEIGHTS_TOTAL = WEIGHTS.reduce((sum, [, weight]) => sum + weight, 0)

export function runStreamHistory(product: Product, options: HistoryOptions): Promise<HistoryResult> {
  return runOperations(new StreamHistory(product, options), options)
}

class StreamHistory {
  readonly #bench: Bench
  readonly #streams: Streams
  readonly #schedules: Schedules
  readonly #options: HistoryOptions
  #chance: Chance
  #prefix = 'begin'

  constructor(product: Product, options: HistoryOptions) {
    this.#options = options
    this.#chance = new Chance(options.seed)
    this.#bench = new Bench(product, {
      checkpointBytes: this.#chance.pick([8, 16, 64]) * 1024,
      defect: options.defect,
      opened: (broker) => this.#schedules.opened(broker),
      reopened: () => this.#streams.reopened(),
      compareOthers: () => {
        this.#streams.compare()
        this.#schedules.compare()
      },
    })
    this.#streams = new Streams(this.#bench)
    this.#schedules = new Schedules(this.#bench)
  }

  get counts(): ReadonlyMap<string, number> {
    const counts = new Map(this.#bench.counts)
    for (const [event, count] of this.#bench.model.events) counts.set(`event: ${event}`, count)
    return counts
  }

  #say(...what: unknown[]): void {
    if (this.#options.trace === undefined) return
    const text = what.map((one) => (typeof one === 'string' ? one : JSON.stringify(one)))
    this.#options.trace(`${this.#prefix} ${text.join(' ')}  @${this.#bench.nowMs - 1_700_000_000_000}`)
  }

  async begin(): Promise<void> {
    const bench = this.#bench
    await bench.open()
    for (const name of QUEUES) bench.ensure(name, {})
    bench.ensure('filler', {})
    bench.ensure(TICKED, { maxMessages: 20, unique: 'pending' })
    for (const name of STREAMS) this.#ensureStream(name)
    for (const name of GROUPS.slice(0, this.#chance.int(2, 4))) this.#ensureGroup(name)
    for (let count = this.#chance.int(1, 2); count > 0; count--) bench.addProducer()
    await bench.endTurn()
  }

  async end(): Promise<void> {
    this.#prefix = 'end'
    for (const name of this.#schedules.names) this.#schedules.delete(name)
    for (const { name } of this.#streams.groups) if (this.#backlog(name) > CROWD) this.#move(name, 'last')
    await this.#bench.endTurn()
    await this.#bench.drain()
  }

  async operation(number: number): Promise<void> {
    this.#chance = new Chance(Math.imul(this.#options.seed, 0x1_0003) + number + 1)
    this.#bench.chance(this.#chance.pick([0, 0.5, 0.999]))
    const name = this.#pickOperation()
    this.#bench.count('operations')
    this.#bench.count(`operation: ${name}`)
    this.#prefix = `${number} ${name}`
    await this.#operations[name]()
    await this.#bench.endTurn()
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

  #ensureStream(name: string): void {
    const options: Partial<StreamOptions> = {
      dedupWindowMs: this.#chance.pick([500, 10_000, 600_000]),
      ...this.#limit(),
    }
    this.#say('ensure', name, options)
    this.#streams.ensureStream(name, options)
  }

  #limit(): Partial<StreamOptions> {
    const chance = this.#chance
    return {
      retainAgeMs: chance.hit(0.3) ? chance.pick([1_000, 60_000, 3_600_000]) : 0,
      retainMessages: chance.hit(0.4) ? chance.pick([1, 500, 1_500]) : 0,
      retainBytes: chance.hit(0.3) ? chance.pick([20_000, 60_000]) : 0,
    }
  }

  #ensureGroup(name: string): void {
    const options = this.#groupOptions()
    const from = this.#place(name)
    this.#say('ensure', name, from, options)
    this.#streams.ensureGroup(name, options, from)
  }

  #groupOptions(): Partial<GroupOptions> {
    const chance = this.#chance
    const retryInitialMs = chance.pick([0, 100, 5_000])
    const options: { -readonly [Name in keyof GroupOptions]?: GroupOptions[Name] } = {
      maxDeliveries: chance.pick([1, 2, 3, 10]),
      retryInitialMs,
      retryMaxMs: retryInitialMs + chance.pick([0, 60_000]),
      processingTimeoutMs: chance.pick([100, 1_000, 1_800_000]),
    }
    if (chance.hit(0.4)) options.keyConcurrency = chance.int(1, 3)
    if (chance.hit(0.4)) options.onFail = chance.pick(['skip', 'block'] as const)
    if (chance.hit(0.3)) options.deadLetter = chance.pick(['', ...QUEUES])
    if (chance.hit(0.15)) options.single = chance.hit(0.5)
    if (chance.hit(0.15)) {
      options.rateMessages = chance.pick([0, 3, 7])
      options.ratePerMs = chance.pick([10, 1_000])
    }
    if (chance.hit(0.2)) {
      options.keyRateMessages = chance.pick([0, 1, 2])
      options.keyRatePerMs = chance.pick([1, 100, 1_000])
    }
    return options
  }

  #place(name: string): StreamPlace {
    const chance = this.#chance
    const stream = this.#bench.model.queues.get(name.slice(0, name.indexOf('@')))
    const { next = 0, messages = [] } = stream ?? {}
    const kind = chance.int(0, 9)
    if (kind < 2) return 'first'
    if (kind < 3) return 'last'
    if (kind < 4) return chance.int(0, next + 1)
    if (kind < 6) return { timeMs: this.#bench.nowMs - chance.pick([-100, 0, ...TIMES]) }
    // A place near the end of a chunk, or near the end of the stream.
    const nearEnd = Math.max(0, next - chance.int(0, 40))
    const chunkEnd = Math.floor(next / CHUNK_MESSAGES) * CHUNK_MESSAGES
    const at = chance.hit(0.5) ? Math.max(0, chunkEnd - chance.int(0, 20)) : nearEnd
    return Math.max(messages[0]?.offset ?? next, at)
  }

  #message(): RecordOptions {
    const chance = this.#chance
    const options: { -readonly [Name in keyof RecordOptions]: RecordOptions[Name] } = {}
    if (chance.hit(0.5)) options.key = chance.pick(KEYS)
    if (chance.hit(0.2)) options.id = chance.pick(IDS)
    if (chance.hit(0.1)) options.headers = { color: chance.pick(['red', 'blue']) }
    return options
  }

  #contents(countMax = 6): Content[] {
    const count = this.#chance.hit(0.5) ? 1 : this.#chance.int(2, countMax)
    return Array.from({ length: count }, () => this.#bench.content(this.#message(), this.#chance.int(4, 60)))
  }

  #scheduleWish(): ScheduleWish {
    const chance = this.#chance
    const missed = chance.pick(['skip', 'once', 'all'] as const)
    const kind = chance.int(0, 4)
    const everyMs = chance.pick(missed === 'all' ? [60_000, 600_000] : [1_000, 7_000, 60_000, 600_000])
    const startMs = chance.pick([undefined, 1_699_999_999_999, this.#bench.nowMs + 5_000])
    const { cron, timeZone } = missed === 'all' ? CRONS[2]! : chance.pick(CRONS)
    const timings = [
      { everyMs, startMs },
      { cron, timeZone },
      { atMs: this.#bench.nowMs + chance.pick([-60_001, -60_000, 0, 1, 5_000, 600_000]) },
    ]
    const content = this.#bench.content(
      {
        ...this.#message(),
        ...(chance.hit(0.1) ? { delayMs: 1_000 } : {}),
        ...(chance.hit(0.1) ? { priority: 5 } : {}),
      },
      chance.int(4, 60),
    )
    const to = chance.pick([TICKED, TICKED, 's', 't', '#tick', '#?tick'])
    return { timing: timings[Math.floor(kind / 2)]!, to, missed, content }
  }

  #stream(): string {
    const streams = this.#streams.all
    return streams.length === 0 || this.#chance.hit(0.005) ? 'missing' : this.#chance.pick(streams).name
  }

  #group(): string {
    const { groups } = this.#streams
    return groups.length === 0 || this.#chance.hit(0.01) ? 's@missing' : this.#chance.pick(groups).name
  }

  #consumable(): string {
    return this.#chance.hit(0.15) ? this.#chance.pick([...QUEUES, TICKED]) : this.#group()
  }

  #producer(): BenchProducer {
    return this.#chance.pick(this.#bench.producers)
  }

  #pairs(): Pair[] {
    return this.#bench.connections.flatMap(({ pairs }) => pairs)
  }

  /** A subscription that holds messages, or any subscription if none does. */
  #holder(): Pair | undefined {
    const pairs = this.#pairs()
    const holders = pairs.filter(({ model }) => model.held.size > 0)
    if (holders.length > 0) return this.#chance.pick(holders)
    return pairs.length === 0 ? undefined : this.#chance.pick(pairs)
  }

  #tags(pair: Pair, share: number): number[] {
    const tags = [...pair.model.held.keys()].filter(() => this.#chance.hit(share))
    if (this.#chance.hit(0.03) && pair.lastTag !== undefined)
      tags.push((pair.lastTag + this.#chance.int(-5, 2)) >>> 0)
    return [...new Set(tags)]
  }

  #settleItem(pair: Pair): ModelSettle {
    const chance = this.#chance
    const outcome = chance.pick(['ack', 'ack', 'ack', 'retry', 'retry', 'release', 'deadLetter'] as const)
    const isFailure = outcome === 'retry' || outcome === 'deadLetter'
    return {
      tags: this.#tags(pair, chance.pick([0.2, 0.6, 1])),
      outcome,
      delayMs: outcome === 'retry' && chance.hit(0.4) ? chance.pick(DELAYS) : undefined,
      reason: isFailure ? chance.pick([undefined, 'boom', 'bad body']) : undefined,
      invalid: outcome === 'deadLetter' && chance.hit(0.3),
      pauseKey: outcome === 'retry' && chance.hit(0.2),
    }
  }

  /** Number of messages of the group or queue that are not done. */
  #backlog(name: string): number {
    const { messages = [], group } = this.#bench.model.queues.get(name) ?? {}
    return messages.filter(({ state }) => state !== 'dead').length + (group?.waiting.length ?? 0)
  }

  #move(name: string, to: StreamPlace): void {
    this.#say('move', name, to)
    this.#streams.move(name, to)
  }

  #deadSelection(name: string): Parameters<Bench['discard']>[0] {
    const chance = this.#chance
    return {
      name,
      from: 0,
      limit: chance.pick([1, 3, 1000]),
      offsets: undefined,
      filter: chance.hit(0.3) ? { key: chance.pick(KEYS) } : {},
      dryRun: chance.hit(0.1),
    }
  }

  // --- operations ---

  readonly #operations: Readonly<Record<OperationName, () => Promise<void>>> = {
    publish: async (): Promise<void> => {
      const name = this.#chance.hit(0.97) ? this.#stream() : this.#group()
      const contents = this.#contents(this.#chance.pick([6, 40]))
      if (this.#chance.hit(0.03)) contents.push(this.#bench.content({ delayMs: 1_000 }, 10))
      this.#say(name, contents.length)
      this.#bench.publish(this.#producer(), name, contents)
    },

    topic: async (): Promise<void> => {
      const address = (this.#chance.hit(0.5) ? '#?' : '#') + this.#chance.pick(TOPICS)
      const contents = this.#contents()
      this.#say(address, contents.length)
      this.#bench.publish(this.#producer(), address, contents)
    },

    /** Publishes beyond the next end of a chunk. Most groups then continue near that place. */
    leap: async (): Promise<void> => {
      const name = this.#stream()
      const stream = this.#bench.model.queues.get(name)
      if (stream === undefined || stream.messages.length > LONG) return this.#operations.limit()
      const count = CHUNK_MESSAGES - (stream.next % CHUNK_MESSAGES) + this.#chance.int(0, 30)
      const isKeyed = this.#chance.hit(0.3)
      this.#say(name, count, isKeyed ? 'with keys' : '')
      for (let left = count; left > 0; left -= 400) {
        const contents = Array.from({ length: Math.min(left, 400) }, () =>
          this.#bench.content(isKeyed ? { key: this.#chance.pick(KEYS) } : {}, 6),
        )
        this.#bench.publish(this.#producer(), name, contents)
        await this.#bench.endTurn()
      }
      for (const { name: group } of this.#bench.model.groupsOf(stream)) {
        if (this.#chance.hit(0.25) && this.#backlog(group) <= LONG) continue
        const chunkEnd = Math.floor(stream.next / CHUNK_MESSAGES) * CHUNK_MESSAGES
        this.#move(
          group,
          Math.max(stream.messages[0]?.offset ?? stream.next, chunkEnd - this.#chance.int(0, 20)),
        )
      }
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
      for (const { outcome, tags } of items)
        if (pair.model.queue.group !== undefined)
          this.#bench.count(`settled in a group: ${outcome}`, tags.length)
    },

    pass: async (): Promise<void> => {
      const ms = this.#chance.pick(TIMES)
      const inSteps = this.#chance.hit(0.7)
      this.#say(`${ms} ms`, inSteps ? 'in steps' : 'at once')
      await this.#bench.pass(ms, inSteps)
      if (inSteps && ms > 5) {
        await this.#bench.pass(10, true)
        this.#streams.checkReleased()
      }
    },

    subscribe: async (): Promise<void> => {
      const name = this.#consumable()
      const { connections, model } = this.#bench
      if ((model.queues.get(name)?.subscriptions.length ?? 0) >= 3) return this.#operations.unsubscribe()
      const isNew = connections.length === 0 || (connections.length < 4 && this.#chance.hit(0.4))
      const connection = isNew ? this.#bench.connect() : this.#chance.pick(connections)
      const messages = this.#chance.pick([1, 3, 10, 40])
      const bytes = this.#chance.pick([100, 1 << 20, 1 << 20])
      const limit = this.#chance.hit(0.1) ? this.#chance.int(0, 5) : undefined
      const pair = this.#bench.subscribe(connection, name, messages, bytes, limit)
      this.#say(name, { number: pair?.number, connection: connection.number, messages, bytes, limit })
    },

    started: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return
      const tags = this.#tags(pair, 0.5)
      this.#say(pair.number, tags)
      this.#bench.started(pair, tags)
    },

    credit: async (): Promise<void> => {
      const pair = this.#holder()
      if (pair === undefined) return
      const messages = this.#chance.pick([0, 1, 5, 40])
      const drain = this.#chance.hit(0.2)
      this.#say(pair.number, messages, drain)
      this.#bench.credit(pair, messages, 1 << 20, undefined, drain)
    },

    unsubscribe: async (): Promise<void> => {
      const pair = this.#holder()
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

    atomic: async (): Promise<void> => {
      const acks: { pair: Pair; tag: number }[] = []
      for (const pair of this.#pairs())
        if (this.#chance.hit(0.5)) acks.push(...this.#tags(pair, 0.3).map((tag) => ({ pair, tag })))
      const batches = [{ queue: this.#stream(), contents: this.#contents() }]
      this.#say(
        acks.map(({ pair, tag }) => `${pair.number}:${tag}`),
        batches[0]!.queue,
      )
      this.#bench.atomic(this.#producer(), acks, batches)
    },

    resend: async (): Promise<void> => {
      const producer = this.#producer()
      const number = producer.number - this.#chance.int(0, RESENDABLE - 1)
      this.#say(number)
      this.#bench.resend(producer, number)
    },

    redrive: async (): Promise<void> => {
      const to = this.#chance.hit(0.2) ? 'q' : undefined
      const request = { ...this.#deadSelection(this.#group()), to, force: this.#chance.hit(0.2) }
      this.#say(request)
      await this.#bench.redrive(request)
    },

    discard: async (): Promise<void> => {
      const request = this.#deadSelection(this.#group())
      this.#say(request)
      await this.#bench.discard(request)
    },

    /** Only messages that have entered are shown, as all dead and leased ones have. */
    peek: async (): Promise<void> => {
      const name = this.#group()
      const state = this.#chance.pick(['dead', 'leased', 'scheduled'] as const)
      this.#say(name, state)
      if (!this.#bench.model.queues.has(name)) return
      await comparePeek(this.#bench, name, state, this.#chance.pick([1, 3, 1000]), {})
      this.#bench.compareConsumers(name)
    },

    pause: async (): Promise<void> => {
      const name = this.#group()
      this.#say(name)
      this.#bench.pause(name, true)
    },

    resume: async (): Promise<void> => {
      const paused = this.#streams.groups.filter((group) => group.paused)
      const name = paused.length > 0 ? this.#chance.pick(paused).name : this.#group()
      this.#say(name)
      this.#bench.pause(name, false)
    },

    move: async (): Promise<void> => {
      const name = this.#group()
      this.#move(name, this.#place(name))
    },

    limit: async (): Promise<void> => {
      const name = this.#stream()
      const options = { ...this.#limit(), ...(this.#chance.hit(0.4) ? { retainMessages: 1 } : {}) }
      const update = this.#chance.hit(0.9)
      this.#say(name, options, update)
      if (name !== 'missing') this.#streams.ensureStream(name, options, update)
    },

    change: async (): Promise<void> => {
      const missing = [...STREAMS, ...GROUPS].filter((name) => !this.#bench.model.queues.has(name))
      const name = missing[0]
      if (name !== undefined && this.#chance.hit(0.7)) {
        if (name.includes('@')) this.#ensureGroup(name)
        else this.#ensureStream(name)
        return
      }
      const group = this.#group()
      if (group === 's@missing') return
      const options = Object.fromEntries(
        Object.entries(this.#groupOptions()).filter(() => this.#chance.hit(0.4)),
      )
      const update = this.#chance.hit(0.9)
      this.#say(group, options, update)
      this.#streams.ensureGroup(group, options, 'first', update)
    },

    bind: async (): Promise<void> => {
      const { bindings } = this.#bench.model
      if (bindings.length > 4) {
        const { pattern, queue, required } = this.#chance.pick(bindings)
        this.#say('unbind', pattern, queue.name)
        this.#bench.unbind(pattern, queue.name, required)
        return
      }
      const pattern = this.#chance.pick(PATTERNS)
      const queue = pattern === 'tick' ? TICKED : this.#chance.pick(QUEUES)
      const target = pattern === '#' || this.#chance.hit(0.7) ? this.#stream() : queue
      this.#say(pattern, target)
      this.#bench.bind(pattern, target, undefined)
    },

    schedule: async (): Promise<void> => {
      const name = this.#chance.pick(SCHEDULES)
      const kind = this.#chance.int(0, 9)
      if (kind < 6) {
        const wish = this.#scheduleWish()
        const update = this.#chance.hit(0.8)
        const paused = this.#chance.hit(0.1) ? this.#chance.hit(0.5) : undefined
        this.#say(name, wish, update, paused)
        this.#schedules.ensure(name, wish, update, paused)
      } else if (kind < 9) {
        this.#say(kind === 6 ? 'pause' : 'resume', name)
        this.#schedules.pause(name, kind === 6)
      } else {
        this.#say('delete', name)
        this.#schedules.delete(name)
      }
    },

    runSchedule: async (): Promise<void> => {
      const name = this.#chance.pick(SCHEDULES)
      this.#say(name)
      this.#schedules.run(name)
    },

    fill: async (): Promise<void> => {
      this.#say()
      this.#bench.purge('filler')
      const contents = Array.from({ length: 24 }, () => this.#bench.content({}, 3_500))
      this.#bench.publish(this.#producer(), 'filler', contents)
    },

    crash: async (): Promise<void> => {
      const isClose = this.#chance.hit(0.3)
      const downMs = this.#chance.hit(0.3) ? this.#chance.pick(TIMES) : 0
      this.#say(isClose ? 'close' : 'crash', `${downMs} ms down`)
      if (isClose) await this.#bench.close(downMs)
      else await this.#bench.crash(downMs)
    },

    rare: async (): Promise<void> => {
      if (this.#chance.hit(0.2)) {
        const exists = this.#bench.model.queues.has(TICKED)
        this.#say(exists ? 'delete' : 'ensure', TICKED)
        if (exists) this.#bench.delete(TICKED)
        else this.#bench.ensure(TICKED, { maxMessages: 20, unique: 'pending' })
        return
      }
      const isGroup = this.#chance.hit(0.8)
      const name = isGroup ? this.#group() : this.#stream()
      this.#say('delete', name)
      if (isGroup) this.#streams.deleteGroup(name)
      else if (name !== 'missing') this.#streams.deleteStream(name)
    },
  }
}
