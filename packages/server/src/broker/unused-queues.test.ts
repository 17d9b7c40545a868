/** Queues that are deleted when they are not used. */
import { OUTCOME, queueName, readRequest, topicPattern } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, batchOf } from '../testing/bench.js'
import { schedule } from '../testing/schedules.js'

const EXPIRES_MS = 10_000

async function opened(expiresMs = EXPIRES_MS): Promise<Bench> {
  const bench = await new Bench().open()
  bench.ensure({ expiresMs })
  await bench.settle()
  return bench
}

const exists = (bench: Bench, name = Q): boolean =>
  bench.broker.catalog.list('', 1_000).queues.some((queue) => queue.name === name)

describe('an unused queue', () => {
  it('is deleted with its messages at its time, and not a millisecond before', async () => {
    const bench = await opened()
    await bench.publish([{}, {}, {}])
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    expect(bench.broker.turn.nextDeadline).toBe(bench.now + 1)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
    await bench.crash()
    expect(exists(bench)).toBe(false)
    bench.broker.audit()
  })

  it('is kept by a call that names it, from the time of the call', async () => {
    const bench = await opened()
    await bench.pass(6_000)
    bench.broker.turn.begin()
    bench.broker.unused.usedName(Q)
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is kept by a consumer, and from the end of the consumer for its time', async () => {
    const bench = await opened()
    const worker = bench.consume(10)
    await bench.pass(EXPIRES_MS * 3 + 1_234)
    expect(exists(bench)).toBe(true)
    worker.leave()
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is kept by a reader, and from the end of the reader for its time', async () => {
    const bench = await new Bench().open()
    bench.ensure({ expiresMs: EXPIRES_MS, retainAgeMs: 3_600_000 })
    await bench.publish([{}, {}])
    const worker = bench.consume(10)
    await bench.settle()
    worker.ackAll()
    worker.leave()
    const sink = { isReady: true, deliverRead: () => {}, readAt: () => {}, readEnded: () => {} }
    const { readers } = bench.broker
    // The reader has credit for one of the two messages, and waits for more credit.
    const request = readRequest({ name: Q, messages: 1, bytes: 1_000 })
    const { reader } = readers.open(request, 1, sink)
    await bench.pass(EXPIRES_MS * 3 + 1_234)
    expect(exists(bench)).toBe(true)
    readers.close(reader)
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is not kept by a listing of all queues', async () => {
    const bench = await opened()
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('gets its whole time again when the broker starts', async () => {
    const bench = await opened()
    await bench.pass(EXPIRES_MS - 1)
    bench.now += 24 * 3_600_000
    await bench.crash()
    await bench.settle()
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('does not count time that the clock has skipped', async () => {
    const bench = await opened()
    await bench.pass(4_000)
    bench.now += 3_600_000
    bench.broker.leases.clockStepped(3_600_000)
    await bench.settle()
    expect(exists(bench)).toBe(true)
    await bench.pass(5_999)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('follows a change of the option', async () => {
    const bench = await opened()
    await bench.pass(6_000)
    bench.ensure({ expiresMs: 0 })
    await bench.pass(EXPIRES_MS * 10)
    expect(exists(bench)).toBe(true)
    bench.ensure({ expiresMs: EXPIRES_MS })
    await bench.pass(5_000)
    bench.ensure({ expiresMs: 6_000 })
    await bench.pass(999)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is forgotten when it is deleted, and a queue with its name begins anew', async () => {
    const bench = await opened()
    await bench.pass(5_000)
    bench.broker.catalog.delete(Q)
    bench.ensure({ expiresMs: EXPIRES_MS })
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
    await bench.pass(EXPIRES_MS)
  })

  it('leaves dead messages at home when it was their dead-letter queue', async () => {
    const bench = await opened()
    const home = queueName('home')
    bench.ensure({ deadLetter: Q, maxDeliveries: 1 }, home)
    await bench.pass(EXPIRES_MS)
    expect(exists(bench)).toBe(false)
    expect(exists(bench, home)).toBe(true)
  })

  it('is kept by a dead message of another queue, from the time of its arrival', async () => {
    const bench = await opened()
    const home = queueName('home')
    bench.ensure({ deadLetter: Q, maxDeliveries: 1 }, home)
    await bench.publish([{}], home)
    const worker = bench.consume(10, { name: home })
    await bench.pass(EXPIRES_MS - 1)
    worker.settle(0, OUTCOME.deadLetter)
    await bench.settle()
    await bench.pass(EXPIRES_MS - 1)
    expect(exists(bench)).toBe(true)
    expect(bench.info().ready).toBe(1)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is kept by a tick of a schedule that names the queue', async () => {
    const bench = await opened()
    schedule(bench, 'beat', { everyMs: EXPIRES_MS - 1_000 })
    for (let beat = 1; beat <= 5; beat++) {
      await bench.pass(EXPIRES_MS - 1_000)
      expect(bench.info().ready).toBe(beat)
    }
  })

  it('is not kept by messages that are published to a topic', async () => {
    const bench = await opened()
    const { topics, turn } = bench.broker
    topics.bind({ pattern: topicPattern('orders'), target: Q, match: undefined })
    await bench.pass(EXPIRES_MS - 1)
    turn.begin()
    const bytes = batchOf([{}], 1)
    expect(topics.publish(bench.producer(), '#orders', { bytes, at: 0, end: bytes.length }, 0)).toBe(1)
    await bench.pass(1)
    expect(exists(bench)).toBe(false)
  })

  it('is deleted in a later turn if very many queues are due at once', async () => {
    const bench = await new Bench().open()
    const count = 600
    for (let index = 0; index < count; index++)
      bench.ensure({ expiresMs: EXPIRES_MS }, queueName(`q${index}`))
    const left = (): number => bench.broker.catalog.list('', count).queues.length
    await bench.pass(EXPIRES_MS)
    expect(left()).toBe(count - 256)
    await bench.pass(1)
    expect(left()).toBe(count - 512)
    await bench.pass(1)
    expect(left()).toBe(0)
  })
})
