/** Histories of single messages, from the log. */
import { OUTCOME, type HistoryEvent } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, CALLER, Q } from '../testing/bench.js'

type Page = Awaited<ReturnType<Bench['broker']['history']['page']>>

const HOUR = 3_600_000

describe('history', () => {
  const events = async (bench: Bench, offset: number): Promise<[HistoryEvent['event'], ...number[]][]> => {
    bench.broker.turn.begin()
    const { events, complete, cursor } = await bench.broker.history.page(
      { name: Q, offset, cursor: undefined },
      CALLER,
    )
    expect([complete, cursor]).toEqual([true, null])
    return events.map(({ event, atMs, attempts }) => [
      event,
      atMs,
      ...(attempts === undefined ? [] : [attempts]),
    ])
  }

  it('continues within an entry that has more events of the message than fit in a page', async () => {
    const bench = await new Bench().open()
    bench.ensure({})
    await bench.publish([{}, {}])
    bench.broker.turn.begin()
    const times = Array.from({ length: 1_500 }, (_, i) => bench.now + HOUR + i)
    for (const atMs of times) {
      bench.broker.operator.reschedule({ name: Q, offset: 1, id: undefined, delayMs: undefined, atMs })
      bench.broker.operator.reschedule({ name: Q, offset: 0, id: undefined, delayMs: HOUR, atMs: undefined })
    }
    const entries = bench.log.entries.length
    await bench.settle()
    expect(bench.log.entries).toHaveLength(entries + 1)
    bench.broker.turn.begin()
    bench.broker.catalog.purge(Q)
    await bench.settle()
    const found: HistoryEvent[] = []
    const cursors: string[] = []
    for (let cursor: string | undefined | null; cursor !== null;) {
      if (cursors.length === 1) await bench.crash()
      const page: Page = await bench.broker.history.page({ name: Q, offset: 1, cursor }, CALLER)
      expect([page.complete, page.events.length > 0]).toEqual([true, true])
      found.push(...page.events)
      cursor = page.cursor
      if (page.cursor !== null) cursors.push(page.cursor)
    }
    // Both cursors name the same entry. Each also has the number of the entry's events that are in earlier pages.
    expect(cursors).toHaveLength(2)
    expect(new Set(cursors.map((cursor) => cursor.slice(0, cursor.lastIndexOf(':')))).size).toBe(1)
    expect(found.map(({ event }) => event)).toEqual([
      'published',
      ...times.map(() => 'rescheduled'),
      'purged',
    ])
    expect(found.slice(1, -1).map(({ dueMs }) => dueMs)).toEqual(times)
  })

  it('has a purge only if the purge removed the message, and not if the message was a duplicate or already gone', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a' }, { id: 'a' }, {}])
    const worker = bench.consume(2)
    await bench.settle()
    worker.settle(2, OUTCOME.ack)
    await bench.settle()
    bench.broker.turn.begin()
    expect(bench.broker.catalog.purge(Q)).toBe(1)
    await bench.settle()
    const t = bench.now
    expect(await events(bench, 0)).toEqual([
      ['published', t],
      ['purged', t],
    ])
    expect(await events(bench, 1)).toEqual([['duplicate', t]])
    expect(await events(bench, 2)).toEqual([
      ['published', t],
      ['acked', t],
    ])
  })

  it('has the events in the order in which they happened', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR, dedupWindowMs: HOUR, maxDeliveries: 2 })
    const t = bench.now
    await bench.publish([{ id: 'a', delayMs: 1_000 }, { id: 'a' }])
    bench.broker.turn.begin()
    bench.broker.operator.reschedule({ name: Q, offset: 0, id: undefined, delayMs: 100, atMs: undefined })
    const worker = bench.consume(10, { label: 'w' })
    await bench.settle()
    await bench.pass(100)
    worker.settle(0, OUTCOME.retry, { delayMs: 100, reason: 'once' })
    await bench.settle()
    await bench.pass(100)
    worker.settle(0, OUTCOME.retry, { delayMs: 100, reason: 'twice' })
    await bench.settle()
    await bench.pass(50)
    await bench.redrive()
    await bench.pass(50)
    worker.settle(0, OUTCOME.ack)
    await bench.settle()
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      expect(await events(bench, 0)).toEqual([
        ['published', t],
        ['rescheduled', t],
        ['delivered', t + 100],
        ['retried', t + 100, 1],
        ['delivered', t + 200],
        ['dead', t + 200, 2],
        ['redriven', t + 250],
        ['delivered', t + 250],
        ['acked', t + 300],
      ])
      // A duplicate was never in the queue.
      expect(await events(bench, 1)).toEqual([['duplicate', t]])
      await expect(events(bench, 2)).rejects.toMatchObject({ code: 'MESSAGE_NOT_FOUND' })
    }
  })
})
