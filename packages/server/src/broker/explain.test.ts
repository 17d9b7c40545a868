import { OUTCOME, queueName, type ExplainReason, type QueueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, type Message } from '../testing/bench.js'
import { VISITED_MAX } from './explain.js'

const HOUR = 3_600_000

async function opened(options: Parameters<Bench['ensure']>[0] = {}): Promise<Bench> {
  const bench = await new Bench().open()
  bench.ensure(options)
  return bench
}

function explain(bench: Bench, offset?: number, name: QueueName = Q): readonly ExplainReason[] {
  bench.broker.turn.begin()
  return bench.broker.explainer.explain({ name, offset }).reasons
}

const codes = (bench: Bench, offset?: number): string[] => explain(bench, offset).map(({ code }) => code)
const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

describe('a message', () => {
  it('that is not in the queue', async () => {
    const bench = await opened()
    await bench.publish(many(2))
    await bench.drain()
    expect(explain(bench, 2)).toEqual([{ code: 'unpublished', next: 2 }])
    expect(explain(bench, 1)).toEqual([{ code: 'gone' }])
    await bench.publish([{ ttlMs: 10 }])
    bench.now += 10
    expect(explain(bench, 2)).toEqual([{ code: 'expired', sinceMs: bench.now }])
    expect(() => bench.broker.explainer.explain({ name: 'other' as never, offset: 0 })).toThrow('no queue')
  })

  it('that is dead, leased, scheduled or waits for a retry', async () => {
    const bench = await opened()
    await bench.publish([{}, {}, { delayMs: HOUR }, {}])
    const worker = bench.consume(10, { label: 'billing' })
    await bench.settle()
    worker.settle(0, OUTCOME.deadLetter, { reason: 'no such customer' })
    worker.settle(3, OUTCOME.retry, { delayMs: 500 })
    await bench.settle()
    const consumer = worker.subscription.id
    const { now } = bench
    expect(explain(bench, 0)).toEqual([
      { code: 'dead', death: 'rejected', attempts: 1, sinceMs: now, text: 'no such customer' },
    ])
    expect(explain(bench, 1)).toEqual([
      { code: 'leased', offset: 1, consumer, client: 'billing', sinceMs: now },
    ])
    expect(explain(bench, 2)).toEqual([{ code: 'scheduled', untilMs: now + HOUR }])
    expect(explain(bench, 3)).toEqual([{ code: 'retry', untilMs: now + 500, attempts: 1 }])
    bench.broker.catalog.pause(Q)
    expect(codes(bench, 3)).toEqual(['retry', 'paused'])
  })

  it('behind its key', async () => {
    const bench = await opened()
    await bench.publish([...many(4, { key: 'a' }), { key: 'b' }])
    const worker = bench.consume(1, { label: 'billing' })
    await bench.settle()
    const consumer = worker.subscription.id
    expect(explain(bench, 2)).toEqual([
      { code: 'keyLeased', offset: 0, consumer, client: 'billing', sinceMs: bench.now },
      { code: 'keyLine', offset: 1, count: 1 },
      {
        code: 'noCredit',
        consumer,
        client: 'billing',
        leased: 1,
        credit: 1,
        leasedBytes: 60,
        creditBytes: 1 << 24,
      },
    ])
    expect(codes(bench, 4)).toEqual(['noCredit'])
    worker.settle(0, OUTCOME.retry, { delayMs: 500, pauseKey: true })
    await bench.settle()
    expect(explain(bench, 1).slice(0, 2)).toEqual([
      { code: 'keyRetry', offset: 0, untilMs: bench.now + 500 },
      { code: 'keyPaused', untilMs: bench.now + 500 },
    ])
  })

  it('whose key has used up its rate', async () => {
    const bench = await opened({ keyRateMessages: 1, keyRatePerMs: HOUR })
    await bench.publish(many(3, { key: 'a' }))
    const worker = bench.consume()
    await bench.settle()
    worker.ackAll()
    await bench.settle()
    expect(explain(bench, 1)).toEqual([{ code: 'keyRate', untilMs: bench.now + HOUR }])
    expect(codes(bench, 2)).toEqual(['keyRate', 'keyLine'])
    expect(codes(bench)).toEqual(['keys', 'keyRate'])
  })
})

describe('a queue', () => {
  it('whose keys are held, even if more messages than a search visits precede those that are ready', async () => {
    const bench = await opened({ keyRateMessages: 1, keyRatePerMs: HOUR })
    await bench.publish([{ key: 'a' }])
    for (let left = VISITED_MAX; left > 0; left -= 1_024)
      await bench.publish(many(1_024, { key: 'b', delayMs: 100 * HOUR }))
    await bench.publish([{ key: 'a' }])
    const worker = bench.consume()
    await bench.settle()
    worker.ackAll()
    await bench.settle()
    expect(bench.info().ready).toBe(1)
    expect(explain(bench)).toEqual([{ code: 'keys' }])
  })

  it('that has nothing to deliver', async () => {
    const bench = await opened()
    expect(explain(bench)).toEqual([{ code: 'empty' }, { code: 'noConsumer' }])
    await bench.publish([{ delayMs: HOUR }])
    bench.consume()
    expect(explain(bench)).toEqual([{ code: 'empty', untilMs: bench.now + HOUR }])
  })

  it('that is paused, has no consumer, or is at its rate', async () => {
    const bench = await opened({ rateMessages: 1, ratePerMs: 100 })
    await bench.publish(many(3))
    expect(codes(bench)).toEqual(['noConsumer'])
    const worker = bench.consume()
    expect(codes(bench)).toEqual(['deliverable'])
    expect(codes(bench, 0)).toEqual(['deliverable'])
    expect(explain(bench, 1)).toEqual([{ code: 'line', offset: 0 }])
    await bench.settle()
    expect(explain(bench)).toEqual([{ code: 'queueRate', untilMs: bench.now + 100 }])
    bench.broker.catalog.pause(Q)
    expect(codes(bench)).toEqual(['paused', 'queueRate'])
    worker.leave()
    expect(codes(bench, 1)).toEqual(['paused', 'noConsumer', 'queueRate'])
  })

  it('whose consumers take nothing', async () => {
    const bench = await opened({ single: true })
    await bench.publish(many(4))
    const [first, second] = [bench.consume(1, { label: 'first' }), bench.consume(9, { label: 'second' })]
    await bench.settle()
    expect(codes(bench)).toEqual(['single', 'noCredit'])
    expect(explain(bench)[0]).toMatchObject({ client: 'first', consumer: first.subscription.id })
    bench.broker.turn.begin()
    bench.broker.leases.credit(first.subscription, 5, 1, undefined, false)
    expect(explain(bench)[1]).toMatchObject({
      code: 'noCredit',
      leased: 1,
      credit: 5,
      leasedBytes: 58,
      creditBytes: 1,
    })
    bench.broker.leases.credit(first.subscription, 5, 1 << 20, 1, false)
    expect(explain(bench)[1]).toMatchObject({ code: 'limit', client: 'first' })
    first.leave()
    expect(codes(bench)).toEqual(['deliverable'])
    await bench.settle()
    expect(second.takeOffsets()).toEqual([0, 1, 2, 3])
  })

  it('names ten consumers at most', async () => {
    const bench = await opened()
    for (let i = 0; i < 12; i++) bench.consume(0)
    await bench.publish(many(1))
    expect(codes(bench)).toEqual(Array(10).fill('noCredit'))
  })

  it('changes nothing when it is asked', async () => {
    const bench = await opened({ keyRateMessages: 1, keyRatePerMs: 100 })
    await bench.publish([{ key: 'a' }, { key: 'a' }, { ttlMs: 5 }, { delayMs: 5 }])
    bench.consume()
    await bench.settle()
    bench.now += 200
    const before = bench.info()
    for (const offset of [undefined, 0, 1, 2, 3, 9]) explain(bench, offset)
    expect(bench.info()).toEqual(before)
    bench.broker.audit()
  })
})

describe('a group', () => {
  const CLICKS = queueName('clicks')
  const GROUP = 'clicks@a' as QueueName

  async function openedGroup(): Promise<Bench> {
    const bench = await new Bench().open()
    bench.broker.turn.begin()
    bench.broker.streams.ensure({ name: CLICKS, options: {}, update: false })
    bench.broker.groups.ensure({ name: GROUP, options: {}, update: false, from: 'first' })
    return bench
  }

  const codesOf = (bench: Bench, offset?: number): string[] =>
    explain(bench, offset, GROUP).map(({ code }) => code)

  it('that has not reached its messages is not empty', async () => {
    const bench = await openedGroup()
    expect(codesOf(bench)).toEqual(['empty', 'noConsumer'])
    await bench.publish(many(5), CLICKS)
    expect(codesOf(bench)).toEqual(['noConsumer'])
    expect(codesOf(bench, 3)).toEqual(['noConsumer'])
    expect(explain(bench, 5, GROUP)).toEqual([{ code: 'unpublished', next: 5 }])
    const worker = bench.consume(1, { name: GROUP })
    expect(codesOf(bench)).toEqual(['deliverable'])
    expect(codesOf(bench, 0)).toEqual(['deliverable'])
    expect(explain(bench, 3, GROUP)).toEqual([{ code: 'line', offset: 0 }])
    await bench.settle()
    expect(codesOf(bench, 0)).toEqual(['leased'])
    expect(codesOf(bench, 3)).toEqual(['noCredit'])
    bench.broker.catalog.pause(GROUP)
    await bench.publish(many(1), CLICKS)
    expect(codesOf(bench, 5)).toEqual(['paused', 'noCredit'])
    worker.leave()
    bench.broker.catalog.resume(GROUP)
    await bench.settle()
    await bench.drain(GROUP)
    expect(codesOf(bench, 0)).toEqual(['gone'])
    expect(codesOf(bench)).toEqual(['empty', 'noConsumer'])
    bench.broker.audit()
  })

  it('reads on behind a key that is held', async () => {
    const bench = await openedGroup()
    await bench.publish(many(3, { key: 'a' }), CLICKS)
    const worker = bench.consume(1, { name: GROUP })
    await bench.settle()
    worker.leave()
    const other = bench.consume(9, { name: GROUP })
    await bench.settle()
    expect(other.offsets).toEqual([0])
    expect(codesOf(bench)).toEqual(['keys', 'keyLeased'])
    expect(codesOf(bench, 2)).toEqual(['keyLeased', 'keyLine'])
    await bench.publish([{ key: 'b' }], CLICKS)
    expect(other.offsets).toEqual([0, 3])
  })

  it('belongs to a stream, of which nothing is delivered', async () => {
    const bench = await openedGroup()
    expect(() => explain(bench, undefined, CLICKS)).toThrow(expect.objectContaining({ code: 'WRONG_KIND' }))
  })
})
