import { BATCH_HEADER_BYTES, QUEUE_OPTION_DEFAULTS, type QueueOptions } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { Admission } from './admission.js'
import { Arrivals } from './arrivals.js'
import { Chunk, DEATH, type Traits } from './chunk.js'
import { FACT, readFacts, type Fact } from './facts.js'
import { Keys } from './keys.js'
import { emptyRun } from './run.js'
import { MARK } from './marks.js'
import { decodeChunkPage, encodeChunkPage } from './chunk-page.js'
import type { AppendedBatch, QueueDefinition } from './contents.js'
import { Queue } from './queue.js'
import { CountedUse } from '../testing/log-use.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

function definition(options: Partial<QueueOptions> = {}): QueueDefinition {
  const seed = [1, 2, 3, 4]
  const all = { ...QUEUE_OPTION_DEFAULTS, ...options }
  return { name: 'q', options: all, createdAtMs: 0, paused: false, seed, idsFrom: 0 }
}

/** Options of the messages of a batch. Some have a priority, some a delay, and some a time to live. */
function traitsOf(seed: number, count: number, now: number): Traits {
  const traits = {
    priorities: new Uint8Array(count),
    dues: new Float64Array(count),
    expiries: new Float64Array(count),
    isKeyed: false,
    keys: new Uint32Array(0),
    hasIds: false,
    replaces: new Uint8Array(count),
    ids: new Uint32Array(0),
    sizes: undefined,
  }
  for (let i = 0; i < count; i++) {
    traits.priorities[i] = [0, 0, 3, 31][(seed + i * 7) % 4]!
    if ((seed + i) % 5 === 0) traits.dues[i] = now + 1 + (i % 40)
    if ((seed + i * 3) % 6 === 0) traits.expiries[i] = (traits.dues[i] || now) + 5 + (i % 70)
  }
  return traits
}

interface Message {
  readonly offset: number
  readonly priority: number
  /** Time at which the message expires; 0 if it does not expire. */
  readonly expiry: number
  readonly position: number
  state: 'ready' | 'leased' | 'scheduled' | 'dead' | 'gone'
  since: number
  attempts: number
  delivered: boolean
  returned: boolean
}

/** Makes room for a batch of `count` messages. */
function makeRoom(queue: Queue, count: number, nowMs: number): void {
  const admission = new Admission(queue)
  admission.look(count, 0, undefined)
  admission.makeRoom(nowMs, Infinity)
}

/** Delivery order: by priority, then by the time at which a message became eligible, then by offset. */
function isBefore(a: Message, b: Message): boolean {
  if (a.priority !== b.priority) return a.priority > b.priority
  return a.since < b.since || (a.since === b.since && a.offset < b.offset)
}

/** A simple model of a queue: a list of messages, which is searched as a whole. */
class Model {
  messages: Message[] = []
  now = 1_000
  maxDeliveries: number = 4

  next(): Message | undefined {
    let best: Message | undefined
    for (const message of this.messages) {
      if (message.state !== 'ready' || this.isExpired(message)) continue
      if (best === undefined || isBefore(message, best)) best = message
    }
    return best
  }

  /** Like `next`, but faster for many calls. Between the calls only leases may happen. */
  nextOfMany(): () => Message | undefined {
    const ready = this.messages.filter((message) => message.state === 'ready' && !this.isExpired(message))
    ready.sort((a, b) => (isBefore(a, b) ? -1 : 1))
    let taken = 0
    return () => {
      while (ready[taken]?.state === 'leased') taken++
      return ready[taken]
    }
  }

  advance(ms: number): void {
    this.now += ms
    for (const message of this.messages) {
      if (message.state === 'scheduled' && message.since <= this.now) message.state = 'ready'
    }
  }

  isExpired(message: Message): boolean {
    return message.expiry !== 0 && message.expiry <= this.now
  }

  /** Removes expired messages that could be delivered. */
  sweep(): void {
    for (const message of this.messages) {
      if (message.state === 'ready' && this.isExpired(message)) message.state = 'gone'
    }
  }

  count(state: Message['state']): number {
    return this.messages.filter((message) => message.state === state).length
  }
}

type Step =
  | { readonly kind: 'append'; readonly count: number; readonly traits: number }
  | { readonly kind: 'lease'; readonly max: number; readonly take: number }
  | {
      readonly kind: 'settle'
      readonly how: 'ack' | 'retry' | 'release' | 'dead'
      readonly pick: number
      readonly delay: number
    }
  | { readonly kind: 'ackMany'; readonly count: number }
  | { readonly kind: 'drop'; readonly count: number }
  | { readonly kind: 'thin'; readonly every: number; readonly how: 'retry' | 'release' | 'dead' | 'keep' }
  | { readonly kind: 'advance'; readonly ms: number }
  | { readonly kind: 'purge' }
  | { readonly kind: 'restart' }

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant('append' as const),
        count: fc.oneof(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 500, max: 1500 })),
        // With 0 the messages are plain. With another number, the options of each message depend on this number and on
        // its index.
        traits: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 1000 })),
      }),
    },
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant('lease' as const),
        max: fc.integer({ min: 1, max: 700 }),
        take: fc.integer({ min: 1, max: 700 }),
      }),
    },
    {
      weight: 8,
      arbitrary: fc.record({
        kind: fc.constant('settle' as const),
        how: fc.constantFrom('ack' as const, 'retry' as const, 'release' as const, 'dead' as const),
        pick: fc.nat(),
        delay: fc.integer({ min: 0, max: 50 }),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant('ackMany' as const),
        count: fc.integer({ min: 1, max: 900 }),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({ kind: fc.constant('advance' as const), ms: fc.integer({ min: 0, max: 60 }) }),
    },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant('drop' as const), count: fc.integer({ min: 1, max: 40 }) }),
    },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constant('thin' as const),
        every: fc.integer({ min: 2, max: 1_100 }),
        how: fc.constantFrom('retry' as const, 'release' as const, 'dead' as const, 'keep' as const),
      }),
    },
    { weight: 1, arbitrary: fc.constant({ kind: 'purge' as const }) },
    { weight: 1, arbitrary: fc.constant({ kind: 'restart' as const }) },
  ),
  { minLength: 10, maxLength: 60, size: 'max' },
)

/** Runs queue and model side by side, and compares every delivered message. */
class Pair {
  use = new CountedUse()
  queue = new Queue(1, definition({ maxDeliveries: 4 }), this.use, new Arrivals(4))
  readonly model = new Model()
  readonly leased: { message: Message; since: number }[] = []
  dispatched = 0
  dropped = 0
  #position = 0

  constructor() {
    this.queue.open(this.model.now)
  }

  apply(step: Step): void {
    const { queue, model } = this
    if (step.kind === 'append') {
      const position = (this.#position += 512)
      const traits = step.traits === 0 ? undefined : traitsOf(step.traits, step.count, model.now)
      for (let i = 0; i < step.count; i++) {
        const dueMs = traits?.dues[i] ?? 0
        model.messages.push({
          priority: traits?.priorities[i] ?? 0,
          expiry: traits?.expiries[i] ?? 0,
          offset: queue.next + i,
          position,
          state: dueMs === 0 ? 'ready' : 'scheduled',
          since: dueMs === 0 ? model.now : dueMs,
          attempts: 0,
          delivered: false,
          returned: false,
        })
      }
      queue.append(step.count, position, model.now, step.count * 100, traits)
    } else if (step.kind === 'lease') this.#lease(step.max, step.take)
    else if (step.kind === 'settle') this.#settle(step.how, step.pick, step.delay)
    else if (step.kind === 'ackMany') this.#ackMany(step.count)
    else if (step.kind === 'drop') this.#drop(step.count)
    else if (step.kind === 'thin') this.#thin(step.every, step.how)
    else if (step.kind === 'advance') {
      model.advance(step.ms)
      queue.advance(model.now)
    } else if (step.kind === 'purge') {
      const expected = queue.live - queue.deadCount
      expect(queue.purge(model.now)).toBe(expected)
      for (const message of model.messages) if (message.state !== 'dead') message.state = 'gone'
      this.leased.length = 0
    } else this.#restart()
  }

  // `next` returns the message that the model expects, once for each message of the run.
  #lease(max: number, take: number, next?: () => Message | undefined): boolean {
    const run = emptyRun()
    if (!this.queue.nextRun(max, this.model.now, run)) {
      expect(this.model.next()).toBeUndefined()
      return false
    }
    expectSame(run.count > 0 && run.count <= max, true)
    const count = Math.min(run.count, take)
    next ??= count > 16 ? this.model.nextOfMany() : () => this.model.next()
    for (let i = 0; i < count; i++) {
      const message = next()
      expectSame(message?.offset, run.offset + i)
      expectSame(run.batchPosition, message!.position)
      expectSame(run.attempt, message!.attempts + 1)
      expectSame(run.redelivered, message!.delivered)
      message!.state = 'leased'
      message!.delivered = true
      this.leased.push({ message: message!, since: run.sinceMs })
      this.dispatched++
    }
    this.queue.lease(run, count, this.model.now, '')
    return true
  }

  #settle(how: 'ack' | 'retry' | 'release' | 'dead', pick: number, delay: number): void {
    if (this.leased.length === 0) return
    const [{ message, since }] = this.leased.splice(pick % this.leased.length, 1) as [
      { message: Message; since: number },
    ]
    const { queue, model } = this
    if (how === 'ack') {
      queue.ack(message.offset, 1, model.now)
      message.state = 'gone'
    } else if (how === 'release') {
      queue.release(message.offset, since, model.now)
      message.state = model.isExpired(message) ? 'gone' : 'ready'
    } else if (how === 'dead') {
      queue.deadLetter(message.offset, DEATH.rejected, model.now, 'no such customer')
      message.state = 'dead'
    } else {
      queue.retry(message.offset, model.now + delay, model.now, '')
      message.attempts++
      if (message.attempts >= model.maxDeliveries) message.state = 'dead'
      else if (model.isExpired(message)) message.state = 'gone'
      else {
        message.returned = true
        message.since = model.now + delay
        message.state = delay === 0 ? 'ready' : 'scheduled'
      }
    }
  }

  #ackMany(most: number): void {
    // Settles a run of consecutive offsets, because one call of `ack` takes such a run.
    const first = this.leased[0]
    if (first === undefined) return
    let count = 1
    while (count < most && this.leased[count]?.message.offset === first.message.offset + count) count++
    for (const { message } of this.leased.splice(0, count)) message.state = 'gone'
    this.queue.ack(first.message.offset, count, this.model.now)
  }

  // Lowers `maxMessages`, so that `count` messages must be dropped to make room for a new one.
  #drop(count: number): void {
    const { queue, model } = this
    queue.catchUp(model.now)
    model.sweep()
    const maxMessages = Math.max(1, queue.live - queue.deadCount - count + 1)
    queue.applyOptions({ ...queue.options, maxMessages, overflow: 'drop-oldest' }, model.now)
    makeRoom(queue, 1, model.now)
    const waiting = model.messages.filter(({ state }) => state === 'ready' || state === 'scheduled')
    waiting.sort((a, b) => a.priority - b.priority || a.offset - b.offset)
    for (const message of waiting.slice(0, count)) {
      expectSame(queue.stateOf(message.offset), undefined)
      message.state = 'gone'
      this.dropped++
    }
    const next = waiting[count]
    if (next !== undefined) expect(queue.stateOf(next.offset)).toBe(next.state)
  }

  // Delivers all ready messages, and acknowledges all except every nth.
  #thin(every: number, how: 'retry' | 'release' | 'dead' | 'keep'): void {
    const next = this.model.nextOfMany()
    while (this.#lease(1_024, 1_024, next));
    const others = this.leased.splice(0)
    for (const one of others) {
      if (one.message.offset % every !== 0) {
        this.leased.push(one)
        this.#settle('ack', this.leased.length - 1, 0)
      } else if (how === 'keep') this.leased.push(one)
      else {
        this.leased.push(one)
        this.#settle(how, this.leased.length - 1, 50)
      }
    }
  }

  // Loses all volatile state: rebuilds the queue from its pages, as recovery does.
  #restart(): void {
    const old = this.queue
    const use = new CountedUse()
    const queue = new Queue(1, definition(old.options), use, new Arrivals(4))
    queue.next = old.next
    Object.assign(queue.counts, old.counts)
    queue.redeliveredBelow = old.deliveredBelow
    for (const chunk of old.chunks)
      queue.restore(decodeChunkPage(encodeChunkPage(chunk, old.keys), 0, queue.keys))
    queue.open(this.model.now)
    this.queue = queue
    this.use = use
    this.leased.length = 0
    let highest = -1
    for (const message of this.model.messages) if (message.delivered) highest = message.offset
    for (const message of this.model.messages) {
      if (message.state === 'leased') message.state = message.since <= this.model.now ? 'ready' : 'scheduled'
      if (message.offset <= highest) message.delivered = true
    }
  }

  check(): void {
    const { queue, model } = this
    // The comparison follows a sweep, so that no expired message is left that could be delivered.
    this.apply({ kind: 'advance', ms: 3_000 })
    model.sweep()
    let held = 0
    // The leases of this test belong to no subscription, but the audit counts those of subscriptions.
    queue.subscriptions = [{ unsettled: (held = this.leased.length) } as never]
    queue.audit()
    queue.subscriptions = []
    expect(held).toBe(model.count('leased'))
    expect(queue.ready).toBe(model.count('ready'))
    expect(queue.scheduled).toBe(model.count('scheduled'))
    expect(queue.leased).toBe(model.count('leased'))
    expect(queue.deadCount).toBe(model.count('dead'))
    expect(queue.live).toBe(model.messages.length - model.count('gone'))
    // A batch counts in full until its last message is gone.
    const batches = new Map<number, { messages: number; isLive: boolean }>()
    for (const { position, state } of model.messages) {
      const batch = batches.get(position) ?? { messages: 0, isLive: false }
      batches.set(position, { messages: batch.messages + 1, isLive: batch.isLive || state !== 'gone' })
    }
    for (const [position, { messages, isLive }] of batches)
      expectSame(
        this.use.live.get(position) ?? 0,
        isLive ? BATCH_HEADER_BYTES + messages * 100 : 0,
        `live at ${position}`,
      )
  }
}

describe('queue against a plain model', () => {
  it('delivers, returns and counts messages as the model does', () => {
    const numRuns = runs(40, 5_000)
    let dispatched = 0
    let dropped = 0
    let stepsRun = 0
    fc.assert(
      fc.property(steps, (list) => {
        const pair = new Pair()
        for (const step of list) {
          pair.apply(step)
          stepsRun++
        }
        pair.check()
        dispatched += pair.dispatched
        dropped += pair.dropped
      }),
      { numRuns },
    )
    expect(stepsRun).toBeGreaterThan(20 * numRuns)
    expect(dispatched).toBeGreaterThan(100 * numRuns)
    expect(dropped).toBeGreaterThan(7 * numRuns)
  }, 120_000)

  it('delivers the remaining messages in order after any history', () => {
    const numRuns = runs(20, 600)
    let drained = 0
    fc.assert(
      fc.property(steps, (list) => {
        const pair = new Pair()
        for (const step of list) pair.apply(step)
        pair.apply({ kind: 'advance', ms: 10_000 })
        for (let i = pair.model.messages.length + 1; i > 0 && pair.queue.ready > 0; i--) {
          pair.apply({ kind: 'lease', max: 64, take: 64 })
          pair.apply({ kind: 'ackMany', count: 64 })
        }
        expect(pair.queue.ready).toBe(0)
        pair.check()
        drained += pair.dispatched
      }),
      { numRuns },
    )
    expect(drained).toBeGreaterThan(250 * numRuns)
  })
})

/** Returns the record bytes that an admission counts for a batch of one message. @throws SluiceError if the queue refuses it */
function admitted(queue: Queue, recordsBytes: number): number {
  const admission = new Admission(queue)
  const { bytes } = admission.look(1, recordsBytes, undefined)
  admission.check()
  return bytes
}

describe('queue', () => {
  const make = (): { queue: Queue; use: CountedUse } => {
    const use = new CountedUse()
    const queue = new Queue(1, definition(), use, new Arrivals(4))
    queue.open(0)
    return { queue, use }
  }

  it('drops chunks whose messages are all gone', () => {
    const { queue } = make()
    const run = emptyRun()
    for (let i = 0; i < 300; i++) queue.append(1000, i * 512, 1, 100_000)
    let chunksBefore = 0
    for (const _ of queue.chunks) chunksBefore++
    expect(chunksBefore).toBe(293)
    while (queue.nextRun(100_000, 1, run)) {
      queue.lease(run, run.count, 1, '')
      queue.ack(run.offset, run.count, 1)
    }
    let chunksAfter = 0
    for (const _ of queue.chunks) chunksAfter++
    expect(chunksAfter).toBe(1)
    expect(queue.live).toBe(0)
    expect(queue.bytes).toBeCloseTo(0)
  })

  it('delivers suspects alone until they are settled', () => {
    const { queue } = make()
    queue.append(10, 512, 1, 1_000)
    const run = emptyRun()
    expect(queue.nextRun(10, 1, run)).toBe(true)
    queue.lease(run, 10, 1, '')
    for (const offset of [3, 4, 7]) queue.suspects.add(offset)
    for (let offset = 0; offset < 10; offset++) queue.release(offset, -1, 1)
    const runs: [number, number, boolean][] = []
    while (queue.nextRun(10, 1, run)) {
      runs.push([run.offset, run.count, run.alone])
      queue.lease(run, run.count, 1, '')
    }
    expect(runs).toEqual([
      [0, 3, false],
      [3, 1, true],
      [4, 1, true],
      [5, 2, false],
      [7, 1, true],
      [8, 2, false],
    ])
    queue.ack(3, 1, 1)
    for (const offset of [4, 7]) queue.release(offset, -1, 1)
    queue.nextRun(10, 1, run)
    expect([run.offset, run.count, run.alone]).toEqual([4, 1, true])
    queue.lease(run, 1, 1, '')
    queue.retry(4, 1, 1, '')
    queue.nextRun(10, 1, run)
    expect([run.offset, run.alone]).toEqual([4, false])
  })

  it.each([300, 'unlimited'] as const)('counts attempts beyond 255, maximum %s', (maxDeliveries) => {
    const { queue } = make()
    queue.applyOptions({ ...queue.options, maxDeliveries }, 1)
    queue.append(2, 512, 1, 200)
    const run = emptyRun()
    const TRIES = 299
    for (let attempt = 1; attempt <= TRIES; attempt++) {
      queue.nextRun(1, 1, run)
      expect([run.offset, run.attempt]).toEqual([0, attempt])
      queue.lease(run, 1, 1, '')
      queue.facts.clear()
      queue.retry(0, 1, 1, 'busy')
    }
    const facts: Fact[] = []
    const read = (): Fact => {
      const { bytes } = queue.facts
      readFacts(bytes, 0, bytes.length, (fact) => facts.push(fact))
      return facts.pop()!
    }
    expect(read()).toMatchObject({ kind: FACT.retry, attempts: 299, count: 1, offset: 0, text: 'busy' })
    const restored = decodeChunkPage(encodeChunkPage(queue.chunkAt(0)!, queue.keys), 0, queue.keys)
    expect([restored.attemptsAt(0), restored.dueAt(0), restored.attemptsAt(1)]).toEqual([299, 1, 0])
    if (maxDeliveries === 'unlimited') {
      for (let attempt = 300; attempt <= 66_000; attempt++) {
        queue.nextRun(1, 1, run)
        queue.lease(run, 1, 1, '')
        queue.retry(0, 1, 1, '')
        queue.facts.clear()
      }
      queue.nextRun(1, 1, run)
      expect([run.attempt, queue.attemptsOf(0), queue.deadCount]).toEqual([65_535, 65_535, 0])
      return
    }
    queue.nextRun(1, 1, run)
    queue.lease(run, 1, 1, '')
    queue.facts.clear()
    queue.retry(0, 1, 1, 'busy')
    expect(read()).toMatchObject({
      kind: FACT.dead,
      attempts: 300,
      death: DEATH.maxDeliveries,
      text: 'busy',
    })
    expect(queue.deadAt(0)).toMatchObject({ attempts: 300, death: DEATH.maxDeliveries, isMoving: false })
    const page = decodeChunkPage(encodeChunkPage(queue.chunkAt(0)!, queue.keys), 0, queue.keys)
    expect(page.dead!.get(0)).toMatchObject({ attempts: 300, timeMs: 1, reason: 'busy', isMoving: false })
  })

  it('delivers returned messages without searching all messages that were delivered since', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    // Priorities alternate, so that the search cannot skip a chunk.
    const COUNT = 8_192
    queue.append(COUNT, 512, 1, COUNT * 100, {
      ...traitsOf(1, COUNT, 1),
      priorities: Uint8Array.from({ length: COUNT }, (_, at) => (at % 2 === 0 ? 1 : 0)),
      dues: new Float64Array(COUNT),
      expiries: new Float64Array(COUNT),
    })
    for (let offset = 0; offset < COUNT; offset += 2) {
      expect(queue.nextRun(16, 1, run)).toBe(true)
      queue.lease(run, 1, 1, '')
    }
    const looks = vi.spyOn(Chunk.prototype, 'priorityAt')
    queue.append(1, 1_024, 1, 100, {
      ...traitsOf(1, 1, 1),
      priorities: Uint8Array.of(1),
      dues: new Float64Array(1),
    })
    for (let i = 0; i < 500; i++) {
      queue.release(4, -1, 1)
      queue.release(2, -1, 1)
      for (const expected of [2, 4, COUNT]) {
        queue.nextRun(1, 1, run)
        expectSame(run.offset, expected)
        if (expected !== COUNT) queue.lease(run, 1, 1, '')
      }
    }
    expect(looks.mock.calls.length).toBeLessThan(COUNT + 500 * 20)
    looks.mockRestore()
  })

  it.each([
    ['oldest first', (at: number) => at],
    ['newest first', (at: number) => 1_999 - at],
  ] as const)('inserts returning messages into the line of their key in few steps, %s', (_, offsetOf) => {
    const queue = new Queue(1, definition({ keyConcurrency: 2_000 }), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const COUNT = 2_000
    for (let offset = 0; offset < COUNT + 10; offset++)
      queue.append(1, 512 + offset, 1, 100, {
        ...traitsOf(1, 1, 1),
        priorities: new Uint8Array(1),
        dues: new Float64Array(1),
        expiries: new Float64Array(1),
        isKeyed: true,
        keys: Uint32Array.of(7, 7),
      })
    for (let offset = 0; offset < COUNT; offset++) {
      queue.nextRun(1, 1, run)
      queue.lease(run, 1, 1, '')
    }
    const steps = vi.spyOn(Chunk.prototype, 'nextAt')
    const stepsBack = vi.spyOn(Chunk.prototype, 'previousAt')
    for (let at = 0; at < COUNT; at++) queue.release(offsetOf(at), 1, 1)
    expect(steps.mock.calls.length + stepsBack.mock.calls.length).toBeLessThan(COUNT * 5)
    steps.mockRestore()
    stepsBack.mockRestore()
    for (let offset = 0; offset < COUNT; offset++) {
      queue.nextRun(1, 1, run)
      expectSame(run.offset, offset)
      queue.lease(run, 1, 1, '')
    }
  })

  it('finds messages to drop without repeated searches while messages of lower priorities are leased', () => {
    const options = { maxMessages: 5_000, overflow: 'drop-oldest' } as const
    const queue = new Queue(1, definition(options), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const publish = (count: number, priority: number): void => {
      makeRoom(queue, count, 1)
      queue.append(count, 512, 1, count * 100, {
        ...traitsOf(1, count, 1),
        priorities: new Uint8Array(count).fill(priority),
        dues: new Float64Array(count),
        expiries: new Float64Array(count),
      })
    }
    for (const priority of [0, 1, 2]) {
      publish(1, priority)
      queue.nextRun(1, 1, run)
      queue.lease(run, 1, 1, '')
    }
    publish(4_997, 5)
    const looks = vi.spyOn(Chunk.prototype, 'priorityAt')
    for (let i = 0; i < 2_000; i++) publish(1, 5)
    // All searches together visit each message at most once per priority.
    expect(looks.mock.calls.length).toBeLessThan(32 * 7_000)
    looks.mockRestore()
    expect(queue.counts.dropped).toBe(2_000)
    // Returned messages are dropped next, lowest priority first.
    queue.release(2, -1, 1)
    queue.release(0, -1, 1)
    publish(2, 5)
    expect([0, 1, 2].map((offset) => queue.stateOf(offset))).toEqual([undefined, 'leased', undefined])
  })

  it.each([1, 10])('releases the room of removed messages when %d messages of a chunk are left', (left) => {
    const all = { ...definition({ unique: 'pending', maxBytes: 1e12, ttlMs: 1e9 }) }
    const queue = new Queue(1, all, new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const COUNT = 3 * 1_024
    for (let offset = 0; offset < COUNT; offset++) {
      queue.append(1, 512 + offset, 1, 100, {
        priorities: Uint8Array.of(offset % 3),
        dues: Float64Array.of(0),
        expiries: Float64Array.of(2 ** 41),
        isKeyed: true,
        keys: Uint32Array.of(offset, 1),
        hasIds: true,
        replaces: Uint8Array.of(0),
        ids: Uint32Array.of(offset, 1, 1, 1),
        sizes: Uint32Array.of(100),
      })
    }
    const stays = (offset: number): boolean => offset % 1_024 < left
    while (queue.nextRun(1_024, 1, run)) {
      queue.lease(run, run.count, 1, '')
      for (let offset = run.offset; offset < run.offset + run.count; offset++) {
        if (stays(offset)) queue.deadLetter(offset, DEATH.rejected, 1, 'no')
        else queue.ack(offset, 1, 1)
      }
    }
    expect(queue.deadCount).toBe(3 * left)
    const pages: number[] = []
    for (const chunk of queue.chunks) {
      expect(chunk.marks.areListed).toBe(true)
      expect(chunk.columns.room).toBeLessThanOrEqual(4 * left)
      expect(chunk.batches.room).toBeLessThanOrEqual(4 * left)
      pages.push(encodeChunkPage(chunk, queue.keys).length)
      const keys = new Keys()
      const restored = decodeChunkPage(encodeChunkPage(chunk, queue.keys), 0, keys)
      expect([...restored.liveIndexes()]).toEqual([...chunk.liveIndexes()])
      expect(restored.columns.room).toBeLessThanOrEqual(4 * left)
      for (const index of restored.liveIndexes()) {
        const what = [restored.idAt(index), restored.expiryAt(index), restored.sizeAt(index)]
        expect(what).toEqual([chunk.idAt(index), chunk.expiryAt(index), chunk.sizeAt(index)])
        expect(keys.low(restored.keyAt(index))).toBe(chunk.base + index)
        expect(restored.priorityAt(index)).toBe(chunk.priorityAt(index))
      }
    }
    // The pages on disk are small too.
    expect(pages).toHaveLength(3)
    expect(Math.max(...pages)).toBeLessThan(150 + 150 * left)
    for (const chunk of queue.chunks)
      for (const offset of [...chunk.liveIndexes()].map((index) => chunk.base + index))
        queue.discard(offset, 1)
    expect([queue.live, queue.keys.size, queue.bytes]).toEqual([0, 0, 0])
  })

  it('uses little room for the newest chunk when few of its messages are left', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    for (let offset = 0; offset < 1_000; offset++) {
      const traits = { ...traitsOf(1, 1, 1), priorities: Uint8Array.of(7) }
      queue.append(1, 512 + offset, 1, 100, { ...traits, dues: new Float64Array(1) })
      if (!queue.nextRun(1, 1, run)) continue
      queue.lease(run, 1, 1, '')
      if (offset % 500 === 7) queue.release(offset, run.sinceMs, 1)
      else queue.ack(run.offset, 1, 1)
    }
    const chunk = queue.chunkAt(0)!
    expect(chunk.columns.room).toBeLessThanOrEqual(64)
    expect(chunk.batches.room).toBeLessThanOrEqual(64)
    expect(queue.ready).toBe(2)
  })

  it.each(['ack', 'dead'] as const)('counts the real bytes of the remaining messages after %s', (how) => {
    const { queue } = make()
    const LARGE = 1_000_000
    // At first the queue does not need the sizes of single records, and knows only the total of the batch.
    queue.append(1_000, 512, 1, LARGE + 999 * 50)
    queue.applyOptions({ ...queue.options, maxBytes: 1_500_000 }, 1)
    const run = emptyRun()
    queue.nextRun(1_000, 1, run)
    queue.lease(run, 1_000, 1, '')
    if (how === 'ack') queue.ack(1, 999, 1, 999 * 50)
    else for (let offset = 1; offset < 1_000; offset++) queue.deadLetter(offset, DEATH.rejected, 1, '', 50)
    expect(queue.bytes - queue.deadBytes).toBe(LARGE)
    expect(() => admitted(queue, 600_000)).toThrow(
      'The queue q holds 1000000 bytes, and 600000 more arrived; it holds at most 1500000.',
    )
    queue.ack(0, 1, 1, LARGE)
    expect(queue.bytes - queue.deadBytes).toBe(0)
    expect(admitted(queue, 600_000)).toBe(600_000)
  })

  it('accepts a chunk whose first messages are missing', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.appendFact(batch(5_000, 10), 512)
    queue.open(1)
    const run = emptyRun()
    expect(queue.nextRun(100, 1, run)).toBe(true)
    expect([run.offset, run.count]).toEqual([5_000, 10])
    expect(queue.live).toBe(10)
    queue.lease(run, 10, 1, '')
    queue.ack(5_000, 10, 1)
    expect(queue.nextRun(100, 1, run)).toBe(false)
  })

  it('ignores, during recovery, facts that the page of a chunk already contains', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.appendFact(batch(0, 10), 512)
    const chunk = queue.chunkAt(0)!
    chunk.pagePosition = 5_000
    queue.appliedFrom = 4_000
    queue.remove(0, 5, 1)
    queue.purgeFact(10, 1)
    queue.appendFact(batch(10, 5), 4_000)
    expect(queue.live).toBe(10)
    queue.appliedFrom = 6_000
    queue.remove(0, 5, 1)
    expect(queue.live).toBe(5)
  })
})

function batch(baseOffset: number, count: number): AppendedBatch {
  return { baseOffset, count, timeMs: 1, length: BATCH_HEADER_BYTES + count * 100 }
}

describe('audits', () => {
  const filled = (): Queue => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    queue.append(40, 512, 1, 4_000, traitsOf(6, 40, 1))
    queue.append(10, 9_000, 1, 1_000)
    queue.audit()
    return queue
  }
  const chunkOf = (queue: Queue): Chunk => queue.chunkAt(0)!

  it.each<[string, (queue: Queue) => void, string]>([
    ['one live message too many', (queue) => chunkOf(queue).live++, 'chunk 0: live is 51, counted 50'],
    ['a message in two states', (queue) => chunkOf(queue).marks.add(MARK.due, 41, 42), 'in two states'],
    ['a priority without its bit', (queue) => (chunkOf(queue).priorityMask = 1), 'is not in the mask'],
    ['a late expiry', (queue) => (chunkOf(queue).earliestExpiryMs = 1_000_000), 'expires at'],
    ['a plain message that is not counted', (queue) => chunkOf(queue).marks.add(MARK.out, 41, 42), 'line: '],
    ['a waiting message that is in no queue', wait, 'line: '],
    ['a dead message that is not counted', (queue) => queue.deadCount++, 'queue q: live 50/50, dead 1/0'],
  ])('report %s', (_, damage, text) => {
    const queue = filled()
    damage(queue)
    expect(() => queue.audit()).toThrow(text)
  })

  function wait(queue: Queue): void {
    const { marks } = chunkOf(queue)
    marks.add(MARK.out, 45, 46)
    marks.add(MARK.waiting, 45, 46)
  }
})
