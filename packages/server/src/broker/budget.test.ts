/**
 * The work of one turn for messages whose time has come does not grow with the number of these messages. The tests count
 * messages, not milliseconds.
 */
import { queueName, type QueueName, type QueueOptions } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Queue } from '../queue/index.js'
import { Schedule } from '../queue/schedule.js'
import { Bench, Q, type BenchOptions, type Message } from '../testing/bench.js'

const DUE_MAX = 8_192
const COUNT = 20_000
const STREAM = queueName('clicks')
/** Numbers of messages that are handled in the turns after all of `COUNT` messages have come to their time. */
const SLICES = [DUE_MAX, DUE_MAX, COUNT - 2 * DUE_MAX]

const refused = (code: string): Error => expect.objectContaining({ code }) as Error
const many = (count: number, message: (index: number) => Message): Message[] =>
  Array.from({ length: count }, (_, index) => ({ bodyBytes: 0, ...message(index) }))

interface Rig {
  readonly bench: Bench
  readonly queue: Queue
  /** Numbers of messages that became ready or expired since the last call. */
  readonly taken: () => { ready: number; expired: number }
}

async function rig(options: Partial<QueueOptions> = {}, more: BenchOptions = {}): Promise<Rig> {
  const bench = await new Bench({ segmentBytes: 8 << 20, ...more }).open()
  bench.ensure(options)
  const queue = bench.broker.catalog.queue(Q)
  let counts = { ready: 0, expired: 0 }
  queue.observer = { becameReady: () => counts.ready++, expired: () => counts.expired++ }
  const taken = (): typeof counts => {
    const before = counts
    counts = { ready: 0, expired: 0 }
    return before
  }
  return { bench, queue, taken }
}

/** Runs the turns that are due, and returns what `count` returns after each of them. */
async function turns(bench: Bench, count: () => number): Promise<number[]> {
  const counted = [count()]
  do {
    await new Promise(setImmediate)
    if (bench.endTurns() === 0) return counted
    counted.push(count())
  } while (counted.length < 100)
  throw new Error('the turns do not end')
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, each) => total + each, 0)
const positive = (count: number): boolean => count > 0

it('makes a limited number of due messages with keys ready in a turn, and keeps the order', async () => {
  const { bench, queue, taken } = await rig()
  const other = queueName('other')
  bench.ensure({}, other)
  const keyOf = (index: number): string => `k${index % 100}`
  await bench.publish(many(COUNT, (index) => ({ delayMs: 1_000, key: keyOf(index) })))
  const [worker, otherWorker] = [bench.consume(1_000), bench.consume(1, { name: other })]
  await bench.settle()
  bench.now += 1_000
  bench.broker.turn.tick()
  expect(taken().ready).toBe(DUE_MAX)
  expect(bench.info()).toMatchObject({ ready: COUNT, scheduled: 0 })
  // This message waits behind the others of its key, and it is counted as ready.
  bench.put(many(1, () => ({ key: keyOf(0) })))
  bench.put([{}], other)
  expect(bench.info()).toMatchObject({ ready: COUNT + 1, scheduled: 0 })
  bench.endTurns()
  // The turn handles one message more, because one arrived.
  expect([taken().ready, worker.offsets, otherWorker.offsets]).toEqual([DUE_MAX + 1, [], [0]])
  expect((await turns(bench, () => taken().ready)).filter(positive)).toEqual([COUNT - 2 * DUE_MAX])
  expect(worker.takeOffsets()).toEqual(Array.from({ length: 100 }, (_, index) => index))
  queue.audit()
  worker.leave()
  const last: number[] = []
  for (let drained = 1; drained > 0;) {
    const offsets = await bench.drain()
    last.push(...offsets)
    drained = offsets.length
  }
  expect(last.length).toBe(COUNT + 1)
  expect(last.filter((offset) => offset % 100 === 0)).toEqual([
    ...Array.from({ length: COUNT / 100 }, (_, index) => index * 100),
    COUNT,
  ])
})

it.each([
  ['with keys', (index: number) => ({ key: `k${index % 500}` })],
  ['without keys', () => ({})],
])('removes a limited number of expired messages %s in a turn, and counts all of them', async (_, more) => {
  const { bench, queue, taken } = await rig()
  await bench.publish(many(COUNT, (index) => ({ ttlMs: 500 + (index % 7), ...more(index) })))
  await bench.publish([{}])
  bench.now += 600
  bench.broker.turn.tick()
  const counted = await turns(bench, () => {
    expect(bench.info()).toMatchObject({ ready: 1, expired: COUNT })
    return taken().expired
  })
  expect(counted.filter(positive)).toEqual(SLICES)
  queue.audit()
})

it('removes a limited number of expired messages before a delivery', async () => {
  const { bench, queue, taken } = await rig()
  await bench.publish([{ ttlMs: 10, bodyBytes: 0 }])
  await bench.publish(many(COUNT, () => ({ ttlMs: 500 })))
  await bench.publish([{}])
  // The next search for expired messages is a second later.
  await bench.pass(10)
  expect(taken().expired).toBe(1)
  bench.now += 600
  const worker = bench.consume(1)
  const counted = await turns(bench, () => taken().expired)
  expect(counted.filter(positive)).toEqual(SLICES)
  expect(worker.offsets).toEqual([COUNT + 1])
  queue.audit()
})

it('decides as if all expired messages were gone, while some of them are left', async () => {
  const count = 50_000
  const { bench, queue, taken } = await rig({ maxMessages: count, unique: 'pending' })
  const old = many(count - 1, (index) => ({ ttlMs: 500, id: `id${index}`, key: `k${index % 10}` }))
  await bench.publish([{ priority: 1 }])
  for (const half of [old.slice(0, count / 2), old.slice(count / 2)]) await bench.publish(half)
  await expect(bench.publish([{}, {}])).rejects.toThrow(refused('QUEUE_FULL'))
  bench.now += 600
  bench.broker.turn.tick()
  expect([queue.hasMoreExpired, taken().expired]).toEqual([true, DUE_MAX])
  // There is room for as many messages as have expired, and their ids are free.
  const again = `id${count - 10}`
  expect(bench.put(many(1, () => ({ id: again }))).duplicates).toBeUndefined()
  expect(bench.put(many(10_000, () => ({ priority: 1 }))).baseOffset).toBe(count + 1)
  expect(bench.put(many(1, () => ({ id: again }))).duplicates).toEqual(new Map([[0, count]]))
  expect(queue.hasMoreExpired).toBe(true)
  const cancel = (offset: number): unknown => bench.broker.operator.cancel({ name: Q, offset, id: undefined })
  expect(() => cancel(count - 5)).toThrow(refused('MESSAGE_NOT_FOUND'))
  expect(() => bench.broker.operator.cancel({ name: Q, offset: undefined, id: `id${count - 9}` })).toThrow(
    refused('MESSAGE_NOT_FOUND'),
  )
  expect(bench.info()).toMatchObject({ ready: 10_002, expired: count - 1 })
  // Messages are delivered in the meantime.
  const worker = bench.consume(1)
  bench.endTurns()
  expect([worker.offsets, queue.hasMoreExpired]).toEqual([[0], true])
  await bench.settle()
  expect([queue.hasMoreExpired, queue.counts.expired]).toEqual([false, count - 1])
  queue.audit()
})

it('evicts no message while there are expired messages to remove', async () => {
  const { bench, queue } = await rig({ maxMessages: COUNT, overflow: 'drop-oldest' })
  await bench.publish([{}])
  await bench.publish(many(COUNT - 1, () => ({ ttlMs: 500 })))
  bench.now += 600
  bench.broker.turn.tick()
  bench.put(many(9_000, () => ({})))
  expect([queue.hasMoreExpired, queue.counts.dropped]).toEqual([true, 0])
  await bench.settle()
  expect(bench.info()).toMatchObject({ ready: 9_001, expired: COUNT - 1, dropped: 0 })
})

it('a purge counts expired messages that are left as expired', async () => {
  const { bench } = await rig()
  await bench.publish(many(COUNT, () => ({ ttlMs: 500 })))
  await bench.publish([{}])
  bench.now += 600
  bench.broker.turn.tick()
  expect(bench.broker.catalog.purge(Q)).toBe(1)
  expect(bench.info()).toMatchObject({ ready: 0, expired: COUNT, purged: 1 })
})

it('applies a change of `keyConcurrency` to a limited number of keys in a turn, and delivers nothing in between', async () => {
  const { bench, queue } = await rig()
  for (let i = 0; i < 2; i++) await bench.publish(many(COUNT, (index) => ({ key: `k${index}` })))
  const worker = bench.consume(COUNT + 100)
  await bench.settle()
  expect(worker.takeOffsets().length).toBe(COUNT)
  let reached = 0
  const count = (): number => {
    const before = reached
    const { keys } = queue
    reached = [...keys.slots()].filter((slot) => keys.changesOf(slot) === keys.changes).length
    return reached - before
  }
  bench.ensure({ keyConcurrency: 2 })
  const counted = await turns(bench, () => {
    if (queue.hasMoreDue) expect(worker.offsets).toEqual([])
    return count()
  })
  expect(counted.filter(positive)).toEqual(SLICES)
  expect(worker.offsets).toEqual(Array.from({ length: 100 }, (_, index) => COUNT + index))
  queue.audit()
})

it('delivers messages although the options change in each turn, before all keys follow the last change', async () => {
  const { bench, queue } = await rig({}, { dueMax: 10 })
  const count = 1_000
  await bench.publish(many(count, (index) => ({ key: `k${index}` })))
  let delivered = 0
  for (let turn = 0; turn < 100; turn++) {
    bench.ensure({ keyConcurrency: 1 + (turn % 2) })
    if (turn === 1) bench.consume(count)
    await new Promise(setImmediate)
    bench.endTurns()
    delivered = queue.leased
    queue.audit()
  }
  expect(delivered).toBe(count)
})

describe('in each turn more messages arrive than it may handle', () => {
  const dueMax = 10
  const arriving = 25
  const { nearMax } = Schedule
  // With the small number of other tests, the search for messages that are due soon would take most of the budget.
  beforeEach(() => void (Schedule.nearMax = 10_000))
  afterEach(() => void (Schedule.nearMax = nearMax))

  const scarce = async (options: Partial<QueueOptions> = {}): Promise<Rig> => rig(options, { dueMax })

  /** Runs this many turns of `turnMs`, in each of which messages arrive. Calls `each` after each turn. */
  async function arrive(
    { bench }: Rig,
    count: number,
    message: (index: number) => Message,
    each: () => void,
    turnMs = 1,
  ): Promise<void> {
    for (let turn = 0; turn < count; turn++) {
      bench.now += turnMs
      bench.put(many(arriving, message))
      bench.broker.turn.tick()
      bench.endTurns()
      each()
      await new Promise(setImmediate)
    }
  }

  it('delivers messages after a finite number of turns, although each arriving message waits behind those that are due', async () => {
    const made = await scarce()
    const { bench, queue } = made
    const keyOf = (index: number): string => `k${index % 50}`
    await bench.publish(many(100, (index) => ({ delayMs: 1_000, key: keyOf(index) })))
    const worker = bench.consume(60_000)
    await bench.settle()
    bench.now += 1_000
    bench.broker.turn.tick()
    expect(queue.hasMoreDue).toBe(true)
    const delivered: number[] = []
    await arrive(
      made,
      20,
      (index) => ({ key: keyOf(index) }),
      () => delivered.push(...worker.takeOffsets()),
    )
    expect(delivered.slice(0, 50)).toEqual(Array.from({ length: 50 }, (_, index) => index))
    queue.audit()
  })

  it('delivers delayed messages that become due as fast as they arrive', async () => {
    const made = await scarce()
    const worker = made.bench.consume(60_000)
    await arrive(
      made,
      60,
      () => ({ delayMs: 20 }),
      () => {},
    )
    // The messages of the last 20 turns are not due yet, and those of a few more turns are not ready yet.
    expect(worker.offsets.length).toBeGreaterThan(30 * arriving)
  })

  it('does not keep more and more expired messages', async () => {
    const made = await scarce({ ttlMs: 20 })
    const { queue } = made
    let most = 0
    await arrive(
      made,
      200,
      () => ({}),
      () => (most = Math.max(most, queue.live)),
      100,
    )
    // Expired messages are searched once a second, which is after ten turns.
    expect(most).toBeLessThan(30 * arriving)
  })
})

it('lets a limited number of messages enter groups in a turn, and groups take turns', async () => {
  const enteredMax = 256
  const stepMax = 128
  const bench = await new Bench({ segmentBytes: 8 << 20, enteredMax }).open()
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name: STREAM, options: {}, update: true })
  const groups = ['a', 'b', 'c'].map((name) => {
    const address = `${STREAM}@${name}` as QueueName
    bench.broker.groups.ensure({ name: address, options: {}, update: true, from: 'first' })
    return bench.broker.catalog.queue(address)
  })
  await bench.publish(
    many(2_000, () => ({ key: 'k' })),
    STREAM,
  )
  await bench.fill(100_000)
  const workers = groups.map(({ name }) => bench.consume(1_000, { name: name as QueueName }))
  const entered = (): number[] => groups.map(({ next }) => next)
  let last = entered()
  const behind: number[] = []
  const counted = await turns(bench, () => {
    const now = entered()
    const count = sum(now) - sum(last)
    last = now
    if (count > 0) behind.push(Math.max(...now) - Math.min(...now))
    return count
  })
  expect(Math.max(...counted)).toBeLessThan(enteredMax + stepMax)
  expect(last).toEqual([2_000, 2_000, 2_000])
  expect(Math.max(...behind)).toBeLessThan(enteredMax + stepMax)
  expect(workers.map(({ offsets }) => offsets)).toEqual([[0], [0], [0]])
  bench.broker.audit()
})
