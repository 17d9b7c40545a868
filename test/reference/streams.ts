/**
 * Streams and groups, in the product and in the model. A group of the model is a queue, so all rules of queues apply to it.
 *
 * The product decides when messages enter a group and when retention removes them. The model adopts this and checks that it
 * is allowed: a message enters before a later one is delivered, and retention keeps what is within the limits.
 */
import {
  GROUP_OPTIONS,
  QUEUE_COUNTERS,
  STREAM_OPTION_DEFAULTS,
  groupName,
  queueName,
  streamOfGroup,
  type GroupOptions,
  type QueueCounter,
  type StreamOptions,
  type StreamPlace,
} from '@sluice/protocol'
import type { Queue } from '../../packages/server/src/queue/index.js'
import type { Bench } from './bench.js'
import { same } from './same.js'
import { Difference, Refused, type ModelMessage, type ModelQueue } from './state.js'

/** Retention removes whole chunks of this number of messages. */
export const CHUNK_MESSAGES = 1024

/** The product knows the bytes of a batch that reaches into two chunks, and estimates how they are divided. */
const BYTES_SLACK = 4_000

const NO_LIMITS = { retainAgeMs: 0, retainBytes: 0, retainMessages: 0, waitForGroupsBytes: 0 }

export class Streams {
  readonly #bench: Bench
  /** Groups of the product that are observed. */
  #watched = new WeakSet<Queue>()

  constructor(bench: Bench) {
    this.#bench = bench
  }

  get all(): ModelQueue[] {
    return [...this.#bench.model.queues.values()].filter(({ limits }) => limits !== undefined)
  }

  get groups(): ModelQueue[] {
    return [...this.#bench.model.queues.values()].filter(({ group }) => group !== undefined)
  }

  #product(name: string): Queue {
    return this.#bench.broker.catalog.queue(name)
  }

  // --- operations ---

  ensureStream(name: string, options: Partial<StreamOptions>, update = false): void {
    const queueOptions = Object.fromEntries(
      Object.entries(options).filter(([option]) => option !== 'retainMessages'),
    )
    const { broker, model } = this.#bench
    this.#bench.both(
      `ensure the stream ${name}`,
      () => broker.streams.ensure({ name: queueName(name), options, update }),
      () => {
        const existing = model.queues.get(name)
        const limits = { ...(existing?.limits ?? NO_LIMITS), ...options }
        if (existing !== undefined && existing.limits === undefined) throw new Refused(['WRONG_KIND'])
        const before = existing?.limits?.retainMessages ?? 0
        if (existing !== undefined && limits.retainMessages !== before && !update)
          throw new Refused(['QUEUE_CONFLICT'])
        const created = model.ensure(name, queueOptions, update)
        const { retainAgeMs, retainBytes } = model.queue(name).options
        const { retainMessages, waitForGroupsBytes } = limits
        model.queue(name).limits = { retainAgeMs, retainBytes, retainMessages, waitForGroupsBytes }
        return created
      },
      ({ created }, expected) => same(`created the stream ${name}`, created, expected),
    )
  }

  ensureGroup(name: string, options: Partial<GroupOptions>, from: StreamPlace, update = false): void {
    const { broker, model } = this.#bench
    const streamName = streamOfGroup(groupName(name))
    this.#bench.both(
      `ensure the group ${name}`,
      () => broker.groups.ensure({ name: groupName(name), options, update, from }),
      () => {
        if (model.queues.has(name)) return model.ensure(name, options, update)
        const stream = model.queue(streamName)
        if (stream.limits === undefined) throw new Refused(['WRONG_KIND'])
        const start = this.#startAt(stream, from)
        model.ensure(name, options, update)
        const group = model.queue(name)
        group.group = { stream, waiting: [], fromMs: 0, missed: 0 }
        model.move(group, start, timeOf(from))
        return true
      },
      ({ created }, expected) => same(`created the group ${name}`, created, expected),
    )
    this.watch()
  }

  move(name: string, to: StreamPlace): void {
    const { broker, model } = this.#bench
    this.#bench.both(
      `move ${name}`,
      () => broker.groups.move({ name: groupName(name), to }),
      () => {
        const group = model.queue(name)
        model.move(group, this.#startAt(group.group!.stream, to), timeOf(to))
      },
      () => {},
    )
    this.#bench.count('moves')
  }

  deleteGroup(name: string): void {
    const { broker, model } = this.#bench
    this.#bench.both(
      `delete ${name}`,
      () => broker.groups.delete(groupName(name)),
      () => model.delete(name),
      () => {},
    )
    this.#bench.forgetClosed()
  }

  deleteStream(name: string): void {
    const { broker, model } = this.#bench
    this.#bench.both(
      `delete the stream ${name}`,
      () => broker.streams.delete(queueName(name)),
      () => {
        const { length } = model.queue(name).messages
        model.delete(name)
        return length
      },
      (answer, expected) => {
        // The call can first remove messages that are beyond the limits.
        if (answer > expected)
          throw new Difference(`${answer} messages were deleted with ${name}, not ${expected}`)
      },
    )
    this.#bench.forgetClosed()
  }

  // The offset of a place. @throws Refused
  #startAt({ name, next, messages }: ModelQueue, place: StreamPlace): number {
    const product = this.#product(name)
    const { firstKept } = product
    if (place === 'first') return firstKept
    if (place === 'last') return next
    if (typeof place === 'object') {
      const kept = messages.filter(({ offset }) => offset >= firstKept)
      const exact = kept.find(({ publishedMs }) => publishedMs >= place.timeMs)?.offset ?? next
      const given = product.keptSince(place.timeMs)
      // A request reads a cold chunk first, which this bench does not. Then the messages before the time are passed over later.
      const isEarly = given < exact && product.isCold(given)
      if (!isEarly) same(`first offset of ${name} since ${place.timeMs}`, given, exact)
      return given
    }
    if (place > next || place < firstKept) throw new Refused(['MESSAGE_NOT_FOUND'])
    return place
  }

  // --- what enters, and what retention removes ---

  /** Observes the groups of the product, to learn when messages enter them and when retention removes messages. */
  watch(): void {
    for (const { name } of this.groups) {
      const product = this.#product(name)
      if (this.#watched.has(product)) continue
      this.#watched.add(product)
      const losing = product.losing.bind(product)
      const value = (end: number, nowMs: number): void => {
        const { next } = product
        losing(end, nowMs)
        const { missed } = product
        this.#bench.changed(() => this.#lost(name, missed, end, next))
      }
      Object.defineProperty(product, 'losing', { value })
      const enterFact = product.enterFact.bind(product)
      Object.defineProperty(product, 'enterFact', {
        value: (...fact: Parameters<Queue['enterFact']>): void => {
          enterFact(...fact)
          this.#bench.changed(() => this.#entered(name, fact[1]))
        },
      })
    }
  }

  #entered(name: string, end: number): void {
    const group = this.#bench.model.queues.get(name)
    if (group?.group !== undefined) this.#bench.model.enter(group, end)
  }

  // Retention removed all messages below `end` from the group. Before, `next` was the offset of the next message to enter. Of the
  // others, the product may count those that never enter the group: duplicates, and those from before its time.
  #lost(name: string, missed: number, end: number, next: number): void {
    const { model } = this.#bench
    const group = model.queues.get(name)
    if (group?.group === undefined) return
    const lost = group.messages.filter(({ offset, state }) => offset < end && state !== 'dead')
    const dead = group.messages.filter(({ offset, state }) => offset < end && state === 'dead')
    model.leaveGroup(group, [...lost, ...dead])
    group.counters.discarded += dead.length
    const unseen = group.group.waiting.filter(({ offset }) => offset < end).length
    const others = Math.max(0, Math.min(end, group.group.stream.next) - next - unseen)
    group.group.waiting = group.group.waiting.slice(unseen)
    group.next = Math.max(group.next, Math.min(end, group.group.stream.next))
    group.group.missed += lost.length + unseen
    this.#bench.count('messages missed', lost.length + unseen)
    this.#bench.count('messages missed after they had entered', lost.length)
    group.group.missed += Math.max(0, Math.min(others, missed - group.group.missed))
  }

  /** Called after a restart: the broker can have removed messages while it started. */
  reopened(): void {
    for (const { name } of this.groups) {
      const product = this.#product(name)
      const { firstKept } = this.#product(streamOfGroup(groupName(name)))
      this.#lost(name, product.missed, firstKept, 0)
      const group = this.#bench.model.queue(name)
      // Otherwise a redelivery would not be marked.
      if (group.messages.some(({ offset }) => offset >= product.next))
        throw new Difference(`${name} forgot that messages from ${product.next} on had entered`)
    }
    this.watch()
  }

  // --- comparisons ---

  compare(): void {
    for (const stream of this.all) this.#compareStream(stream)
    for (const group of this.groups) this.#compareGroup(group)
  }

  #compareStream(stream: ModelQueue): void {
    const { name, next, counters, limits, options } = stream
    const product = this.#product(name)
    const { firstKept } = product
    const gone = stream.messages.filter(({ offset }) => offset < firstKept)
    for (const message of gone) this.#checkRelease(stream, message)
    this.#bench.count('messages released by retention', gone.length)
    stream.messages = stream.messages.slice(gone.length)
    const { retainAgeMs, retainBytes } = product.options
    const { compact, tombstoneAgeMs, ...others } = product.stream!
    same(
      `the stream ${name}`,
      {
        next: product.next,
        kept: product.retainedMessages,
        duplicates: product.counts.duplicates,
        limits: { retainAgeMs, retainBytes, ...others },
        compaction: [compact, tombstoneAgeMs],
        window: [product.options.dedupWindowMs, product.options.dedupMaxIds],
      },
      {
        next,
        kept: stream.messages.length,
        duplicates: counters.duplicates,
        limits,
        // This world has no compaction.
        compaction: ['none', STREAM_OPTION_DEFAULTS.tombstoneAgeMs],
        window: [options.dedupWindowMs, options.dedupMaxIds],
      },
    )
    this.#bench.count('streams compared')
  }

  // Retention may remove a message that is too old, or that the newer messages exceed a limit without.
  #checkRelease({ name, messages, limits }: ModelQueue, { offset, publishedMs }: ModelMessage): void {
    const { retainAgeMs, retainBytes, retainMessages } = limits!
    if (retainAgeMs > 0 && publishedMs <= this.#bench.nowMs - retainAgeMs) {
      this.#bench.count('released by age')
      return
    }
    const newer = messages.filter((other) => other.offset > offset)
    const bytes = newer.reduce((sum, message) => sum + message.bytes, 0)
    if (retainMessages > 0 && newer.length >= retainMessages) this.#bench.count('released by number')
    else if (retainBytes > 0 && bytes >= retainBytes - BYTES_SLACK) this.#bench.count('released by bytes')
    else throw new Difference(`message ${offset} of ${name} was released within the limits`)
  }

  /** Called when time has passed in steps, so that the product has released what it must: at most one chunk is too much. */
  checkReleased(): void {
    const { nowMs } = this.#bench
    for (const { name, messages, limits } of this.all) {
      const { retainAgeMs, retainMessages } = limits!
      const what = `${name} keeps ${messages.length} messages, from ${messages[0]?.offset}`
      if (retainMessages > 0 && messages.length > retainMessages + CHUNK_MESSAGES) throw new Difference(what)
      const isIn = (at: number): boolean =>
        Math.floor(messages[0]!.offset / CHUNK_MESSAGES) === Math.floor(at / CHUNK_MESSAGES)
      const last = messages.findLast(({ offset }) => isIn(offset))
      if (retainAgeMs > 0 && last !== undefined && last.publishedMs <= nowMs - retainAgeMs)
        throw new Difference(`${what}, although ${last.offset} is from ${last.publishedMs}`)
      this.#bench.count('retention checked')
    }
  }

  #compareGroup(queue: ModelQueue): void {
    const { name, messages, group, counters } = queue
    const { nowMs, broker, model } = this.#bench
    const product = this.#product(name)
    const info = product.info(nowMs)
    const states = { ready: 0, scheduled: 0, leased: 0, dead: 0 }
    for (const { state } of messages) states[state]++
    const names = Object.keys(QUEUE_COUNTERS) as QueueCounter[]
    same(
      `info of ${name}`,
      {
        ready: info.ready,
        scheduled: info.scheduled,
        leased: info.leased,
        dead: info.dead,
        paused: info.paused,
        rateUntilMs: info.rateUntilMs,
        heldKeys: info.heldKeys,
        consumers: info.consumers,
        counters: Object.fromEntries(names.map((counter) => [counter, info[counter]])),
        options: info.options,
      },
      {
        ...states,
        paused: queue.paused,
        rateUntilMs: model.rateUntilMs(queue),
        heldKeys: queue.line.heldKeys,
        consumers: queue.subscriptions.length,
        counters: Object.fromEntries(names.map((counter) => [counter, counters[counter]])),
        options: queue.options,
      },
    )
    const behind = group!.stream.next - product.next
    const first = messages.find(({ state }) => state !== 'dead')?.offset ?? Infinity
    const { position, lag, missed, options } = broker.groups.info(groupName(name))
    same(
      `the group ${name}`,
      { position, lag, missed, options },
      {
        position: Math.min(first, product.next),
        lag: behind + states.ready + states.scheduled + states.leased,
        missed: group!.missed,
        options: Object.fromEntries(
          Object.keys(GROUP_OPTIONS).map((option) => [option, queue.options[option as keyof GroupOptions]]),
        ),
      },
    )
    this.#bench.count('groups compared')
    if (behind > CHUNK_MESSAGES) this.#bench.count('groups more than a chunk behind')
  }
}

function timeOf(place: StreamPlace): number {
  return typeof place === 'object' ? place.timeMs : 0
}
