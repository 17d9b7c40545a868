/** The queue against a plain model: random histories, in which both deliver and count the same messages. */
import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Arrivals } from './arrivals.js'
import { DEATH } from './chunk.js'
import { emptyRun } from './run.js'
import { decodeChunkPage, encodeChunkPage } from './chunk-page.js'
import { Queue } from './queue.js'
import { CountedUse } from '../testing/log-use.js'
import { definition, makeRoom, traitsOf } from '../testing/queues.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

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

  /** Removes the ready messages that have expired. */
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
      expect(queue.purge()).toBe(expected)
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
    queue.restoreCounts({ ...old.counts })
    queue.redeliveredBelow = old.deliveredBelow
    for (const chunk of old.chunks) queue.restore(decodeChunkPage(encodeChunkPage(chunk, old), 0, queue))
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
