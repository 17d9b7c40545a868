/** Requests that read queues and change nothing. */
import { queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, type Message } from '../testing/bench.js'
import type { ConsumersResult } from './catalog.js'

const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

describe('reading queues', () => {
  it('writes nothing, and counts messages that are due or expired at the time of the request', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([
      {},
      { ttlMs: 5_000, key: 'a' },
      { delayMs: 5_000 },
      { delayMs: 5_000, ttlMs: 1 },
      { key: 'b' },
    ])
    const worker = bench.consume(1)
    await bench.settle()
    bench.now += 6_000
    const entries = bench.log.entries.length
    bench.broker.turn.begin()
    for (let i = 0; i < 3; i++) {
      expect(bench.broker.catalog.info(Q)).toMatchObject({ ready: 2, scheduled: 0, leased: 1, expired: 2 })
      expect(bench.broker.catalog.list('', 10).queues[0]).toEqual(bench.broker.catalog.info(Q))
      expect(bench.broker.catalog.ensure({ name: Q, options: {}, update: false }).queue).toEqual(
        bench.broker.catalog.info(Q),
      )
    }
    expect(bench.endTurns()).toBe(0)
    await bench.settle()
    expect(bench.log.entries.length).toBe(entries)
    expect(worker.got).toHaveLength(1)
    const shown = bench.broker.catalog.info(Q)
    // The queue has the same counts once its timers have run.
    await bench.pass(0)
    const { oldestReadyMs } = bench.broker.catalog.info(Q)
    expect({ ...bench.broker.catalog.info(Q), oldestReadyMs: 0 }).toEqual({ ...shown, oldestReadyMs: 0 })
    expect(oldestReadyMs).toBe(6_000)
    bench.broker.audit()
  })

  it('neither delivers due messages nor ends overdue leases, because only timers do', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{}, { delayMs: 5_000 }, { delayMs: 5_000, key: 'a' }, { ttlMs: 5_000, key: 'a' }])
    const worker = bench.consume(10, { timeoutMs: 5_000 })
    await bench.settle()
    worker.start(0)
    await bench.settle()
    expect(worker.takeOffsets()).toEqual([0, 3])
    bench.now += 6_000
    bench.broker.turn.begin()
    const queue = bench.broker.catalog.queue(Q)
    const { nextDeadline } = bench.broker.turn
    for (let i = 0; i < 3; i++) {
      expect(bench.broker.catalog.info(Q)).toMatchObject({ ready: 2, scheduled: 0, leased: 2 })
      expect(bench.broker.catalog.list('', 10).queues).toHaveLength(1)
      expect(queue.facts.isEmpty).toBe(true)
      expect(queue.active).toBe(false)
      expect(bench.broker.turn.nextDeadline).toBe(nextDeadline)
      expect(bench.endTurns()).toBe(0)
    }
    expect(worker.takeOffsets()).toEqual([])
    expect(worker.tagsLost).toEqual([])
    await bench.pass(0)
    expect(worker.takeOffsets()).toEqual([1])
    expect(worker.tagsLost).toHaveLength(1)
    bench.broker.audit()
  })

  it('lists the queues in order of name, page by page, while queues are created and deleted', async () => {
    const bench = await new Bench().open()
    const names = (after: string, limit: number): string[] =>
      bench.broker.catalog.list(after, limit).queues.map(({ name }) => name)
    for (const name of ['b', 'd', 'a']) bench.ensure({}, queueName(name))
    expect(names('', 2)).toEqual(['a', 'b'])
    expect(bench.broker.catalog.list('', 2).more).toBe(true)
    expect(names('b', 2)).toEqual(['d'])
    bench.ensure({}, queueName('c'))
    bench.broker.catalog.delete(queueName('d'))
    expect(names('b', 2)).toEqual(['c'])
    expect(bench.broker.catalog.list('b', 2).more).toBe(false)
    expect(names('c', 2)).toEqual([])
  })
})

describe('consumers', () => {
  it('are returned in pages that scan a limited number of lease slots', async () => {
    const bench = await new Bench().open()
    bench.ensure({})
    const workers = [bench.consume(3), bench.consume(3), bench.consume(3)]
    for (let i = 0; i < 3; i++) {
      await bench.publish(many(3))
      await bench.settle()
      await bench.pass(10)
    }
    const oldest = workers.map(({ subscription }) => subscription.oldestLeaseMs)
    // Simulates that the first two workers once held a large number of messages.
    for (const { subscription } of workers.slice(0, 2)) subscription.nextTag(1 << 17)
    const pages: number[] = []
    const found: (number | null)[] = []
    for (let from: number | null = 0; from !== null;) {
      const page: ConsumersResult = bench.broker.catalog.consumers({ name: Q, from })
      pages.push(page.consumers.length)
      found.push(...page.consumers.map(({ oldestLeaseMs }) => oldestLeaseMs))
      from = page.next
    }
    expect(pages).toEqual([1, 1, 1])
    expect(found).toEqual(oldest)
    expect(oldest.every((ms) => ms !== null)).toBe(true)
    const [first] = workers
    first!.ackAll()
    await bench.settle()
    expect(first!.subscription.oldestLeaseMs).toBe(null)
  })
})
