/** The limits of the broker. Each limit is tested at its value and just beyond it. docs/LIMITS.md lists the limits. */
import { BATCH_HEADER_BYTES, LIMITS, OUTCOME, queueName, type Placed } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import {
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SEGMENT_HEADER_BYTES,
  segmentBytesFit,
} from '../log/segment.js'
import { ALL_ENDED, ENDED_MAX, FORMER_LEASES_MAX, FormerLeases } from '../queue/former.js'
import { Bench, CALLER, Q, batchOf, type Message } from '../testing/bench.js'

const SEGMENT_BYTES = 64 << 10
const ENTRY_BYTES = SEGMENT_BYTES - SEGMENT_HEADER_BYTES

const refused = (code: string): Error => expect.objectContaining({ code }) as Error
const many = (count: number, message: (index: number) => Message): Message[] =>
  Array.from({ length: count }, (_, index) => message(index))

it('allows queues up to the limit, and one more for each queue that is deleted', async () => {
  const bench = await new Bench({ queuesMax: 2 }).open()
  const names = ['a', 'b', 'c'].map(queueName)
  bench.ensure({}, names[0])
  bench.ensure({}, names[1])
  expect(() => bench.ensure({}, names[2])).toThrow(refused('TOO_MANY_QUEUES'))
  bench.ensure({ maxMessages: 5 }, names[1])
  bench.broker.catalog.delete(names[0]!)
  await bench.settle()
  bench.ensure({}, names[2])
  expect(bench.info(names[1]).options.maxMessages).toBe(5)
  expect(() => bench.ensure({}, names[0])).toThrow(refused('TOO_MANY_QUEUES'))
})

it('remembers producers up to the limit, and forgets no connected producer', async () => {
  const most = 100
  const bench = await new Bench({ producersMax: most }).open()
  const identity = (index: number): string => index.toString(16).padStart(32, '0')
  const attach = (index: number): void => void bench.broker.producers.attach(identity(index), 0)
  for (let index = 0; index < most; index++) attach(index)
  attach(0)
  expect(() => attach(most)).toThrow(refused('TOO_MANY_CONNECTIONS'))
  const one = bench.broker.producers.attach(identity(7), 0)
  bench.broker.producers.detach(one)
  bench.broker.producers.detach(one)
  attach(most)
  expect(() => attach(7)).toThrow(refused('TOO_MANY_CONNECTIONS'))
})

it('evicts at most 1,024 excess messages in a turn, besides the messages evicted to make room for new messages', async () => {
  const bench = await new Bench().open()
  const other = queueName('other')
  for (const name of [Q, other]) {
    bench.ensure({}, name)
    await bench.publish(
      many(2_500, () => ({ bodyBytes: 0 })),
      name,
    )
    bench.ensure({ maxMessages: 10, overflow: 'drop-oldest' }, name)
  }
  const ready = (): number[] => [Q, other].map((name) => bench.info(name).ready)
  expect(ready()).toEqual([2_500, 2_500])
  bench.put(many(3, () => ({})))
  expect(ready()).toEqual([2_500 - 1_024, 2_500])
  // In the same turn, each batch makes room only for itself.
  bench.put(many(2, () => ({})))
  bench.put(
    many(2, () => ({})),
    other,
  )
  expect(ready()).toEqual([2_500 - 1_024, 2_500])
  await bench.settle()
  await bench.publish([{}], other)
  expect(ready()).toEqual([2_500 - 1_024, 2_500 - 1_024])
  await bench.publish([{}])
  await bench.publish([{}])
  expect(ready()).toEqual([10, 2_500 - 1_024])
  expect((await bench.drain())[0]).toBe(2_507 - 10)
})

it('makes at most 8,192 due messages ready in a turn, serves other queues in the meantime, and keeps the order', async () => {
  const bench = await new Bench().open()
  const other = queueName('other')
  bench.ensure()
  bench.ensure({}, other)
  const count = 20_000
  await bench.publish(
    many(count, (index) => ({ delayMs: 1_000, bodyBytes: 0, priority: index === count - 1 ? 1 : 0 })),
  )
  const [worker, otherWorker] = [bench.consume(3), bench.consume(3, { name: other })]
  await bench.settle()
  bench.now += 1_000
  bench.broker.turn.tick()
  const queue = bench.broker.catalog.queue(Q)
  expect(queue.scheduled).toBe(count - 8_192)
  // The counts include due messages that have not been made ready yet.
  expect(bench.info()).toMatchObject({ ready: count, scheduled: 0, oldestReadyMs: 0 })
  // The plain message is published later than the due times of the others. The message with options is checked, but
  // this check makes no more due messages ready.
  bench.now += 1
  bench.put([{}])
  bench.put([{ delayMs: 1 }])
  expect(queue.scheduled).toBe(count - 8_192 + 1)
  bench.put([{}], other)
  bench.endTurns()
  // The turn handles one message more, because one with options arrived.
  expect(queue.scheduled).toBe(count - 2 * 8_192)
  expect([worker.offsets, otherWorker.offsets]).toEqual([[], [0]])
  await bench.settle()
  expect(queue.scheduled).toBe(1)
  expect(worker.offsets).toEqual([count - 1, 0, 1])
  bench.broker.audit()
})

describe('with small entries', () => {
  it('a batch takes at most half of an entry', async () => {
    const bench = await new Bench({ segmentBytes: SEGMENT_BYTES }).open()
    bench.ensure()
    const bodiesBytes = ENTRY_BYTES / 2 - BATCH_HEADER_BYTES - 33 * 8
    const batch = (bytes: number): Message[] =>
      many(33, (index) => ({ bodyBytes: index === 0 ? bytes - 32 * 921 : 921 }))
    expect((await bench.publish(batch(bodiesBytes))).baseOffset).toBe(0)
    expect(() => bench.put(batch(bodiesBytes + 1))).toThrow(refused('BATCH_TOO_LARGE'))
    expect(bench.info().ready).toBe(33)
  })

  it('the facts about known ids of a batch take at most a quarter of an entry', async () => {
    const bench = await new Bench({ segmentBytes: SEGMENT_BYTES }).open()
    bench.ensure()
    const most = Math.floor(ENTRY_BYTES / 4 / 24)
    const ids = (count: number): Message[] => many(count, (index) => ({ id: String(index), bodyBytes: 0 }))
    await bench.publish(ids(most + 1))
    expect((await bench.publish(ids(most))).duplicates?.size).toBe(most)
    expect(() => bench.put(ids(most + 1))).toThrow(refused('BATCH_TOO_LARGE'))
  })

  it('an atomic step takes at most a quarter of an entry', async () => {
    const bench = await new Bench({ segmentBytes: SEGMENT_BYTES }).open()
    bench.ensure()
    const step = (bytes: number): readonly Placed[] => {
      const messages = many(16, (index) => ({ bodyBytes: index === 0 ? bytes - 15 * 946 : 946 }))
      const number = ++bench.number
      const batch = batchOf(messages, number)
      const batches = [{ queue: Q, bytes: batch, at: 0, end: batch.length }]
      return bench.atomic({ number, crc: 1, acks: [], batches })
    }
    // Two batch headers are counted: one for the step itself, and one for the batch that it publishes.
    const most = ENTRY_BYTES / 4 - 2 * BATCH_HEADER_BYTES - 16 * 8
    expect(step(most)).toHaveLength(1)
    expect(() => step(most + 1)).toThrow(refused('TRANSACTION_TOO_LARGE'))
    await bench.settle()
    expect(bench.info().ready).toBe(16)
  })
})

it('examines at most 100,000 messages for one page of a peek, whether they match or not', async () => {
  const bench = await new Bench({ segmentBytes: 8 << 20 }).open()
  bench.ensure()
  for (let i = 0; i < 4; i++) await bench.publish(many(25_000, () => ({ bodyBytes: 0 })))
  const peek = { name: Q, state: 'dead' as const, from: 0, limit: 10, filter: {} }
  expect(await bench.answer(bench.broker.operator.peek(peek, CALLER))).toEqual({
    messages: [],
    next: undefined,
  })
  await bench.publish([{}])
  expect(await bench.answer(bench.broker.operator.peek(peek, CALLER))).toEqual({
    messages: [],
    next: 100_000,
  })
  expect(await bench.answer(bench.broker.operator.peek({ ...peek, from: 100_000 }, CALLER))).toEqual({
    messages: [],
    next: undefined,
  })
})

it('keeps the newest claimable leases of a queue', () => {
  const former = new FormerLeases()
  const lease = { subscriptionId: 1, tag: 1, deadlineMs: Infinity, isCharged: false, bytes: 10 }
  for (let offset = 0; offset < FORMER_LEASES_MAX; offset++) former.add(offset, lease)
  expect([former.size, former.get(0)]).toEqual([FORMER_LEASES_MAX, lease])
  former.add(FORMER_LEASES_MAX, lease)
  expect([former.size, former.get(0), former.get(1)]).toEqual([FORMER_LEASES_MAX, undefined, lease])
})

it('remembers ended subscriptions of a queue up to the limit; beyond it, all subscriptions count as ended', () => {
  const former = new FormerLeases()
  for (let id = 1; id <= ENDED_MAX; id++) expect(former.end(id)).toBe(true)
  expect(former.ended).toHaveLength(ENDED_MAX)
  expect(former.end(ENDED_MAX + 1)).toBe(true)
  expect(former.ended).toEqual([ALL_ENDED])
  expect(former.end(ENDED_MAX + 2)).toBe(false)
})

it('keeps claimable leases for 64 queues; with another queue it forgets the leases of the first queue', async () => {
  const bench = await new Bench().open()
  const names = Array.from({ length: 65 }, (_, index) => queueName(`q${index}`))
  for (const [index, name] of names.entries()) {
    bench.ensure({}, name)
    await bench.publish([{}], name)
    const worker = bench.consume(1, { name })
    await bench.settle()
    worker.die()
    await bench.settle()
    const kept = names.slice(0, index + 1).map((each) => bench.broker.catalog.queue(each).former.size)
    expect(kept).toEqual(kept.map((_, at) => (index === 64 && at === 0 ? 0 : 1)))
  }
})

it('answers a history in pages of 32 KiB', async () => {
  const bench = await new Bench({ segmentBytes: 16 << 20 }).open()
  bench.ensure({ maxDeliveries: 100, retryInitialMs: 0 })
  await bench.publish([{}])
  const worker = bench.consume()
  const told = async (cursor?: string): Promise<[number, string | null]> => {
    const page = await bench.broker.history.page({ name: Q, offset: 0, cursor }, CALLER)
    return [page.events.length, page.cursor]
  }
  const retry = async (): Promise<void> => {
    await bench.settle()
    worker.settle(0, OUTCOME.retry, { delayMs: 0, reason: 'x'.repeat(LIMITS.reasonBytesMax - 64) })
    await bench.pass(1)
  }
  // Together with its 64 bytes of overhead, each event takes an eighth of a page.
  for (let tries = 0; tries < 7; tries++) await retry()
  expect(await told()).toEqual([8, null])
  for (let tries = 0; tries < 3; tries++) await retry()
  const [count, cursor] = await told()
  expect(count).toBeLessThan(11)
  expect(await told(cursor!)).toEqual([11 - count, null])
})

it('accepts segments of whole blocks within bounds', () => {
  for (const bytes of [SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX]) expect(segmentBytesFit(bytes)).toBe(true)
  for (const bytes of [SEGMENT_BYTES_MIN - 4096, SEGMENT_BYTES_MIN + 1, SEGMENT_BYTES_MAX + 4096])
    expect(segmentBytesFit(bytes)).toBe(false)
})
