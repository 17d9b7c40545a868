/** Requests about single messages, including across restarts: redrive and peek. */
import { LIMITS, queueName, readRecordOptions } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { emptyLocation } from '../queue/index.js'
import { Bench, CALLER, Q, isSettledSoon, type Message } from '../testing/bench.js'

const OTHER = queueName('other')
const HOUR = 3_600_000
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }

const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

it('other input is served while a request about many messages runs', async () => {
  const COUNT = 2_000
  const filter = { key: 'none' }
  const dead = { name: Q, from: 0, limit: COUNT, offsets: undefined, filter: {}, dryRun: false }
  const bench = await new Bench().open()
  bench.ensure()
  bench.ensure({}, OTHER)
  await bench.publish(many(COUNT))
  const turnsOf = async (request: Promise<unknown>): Promise<number> => {
    let turns = 0
    for (; !(await isSettledSoon(request)); turns++) {
      bench.put([{}], OTHER)
      bench.endTurns()
    }
    return turns
  }
  const { operator } = bench.broker
  const peek = { name: Q, from: 0, limit: 10, state: undefined, filter }
  expect(await turnsOf(operator.peek(peek, CALLER))).toBeGreaterThanOrEqual(3)
  await bench.kill()
  await bench.kill()
  expect(await turnsOf(operator.discard({ ...dead, filter }, CALLER))).toBeGreaterThanOrEqual(3)
  expect(await turnsOf(operator.discard(dead, CALLER))).toBeGreaterThanOrEqual(3)
  expect(bench.info()).toMatchObject({ dead: 0, discarded: COUNT })
  expect(bench.info(OTHER).ready).toBeGreaterThanOrEqual(9)
})

describe('redrive', () => {
  it('refuses more than ten redrives of a message unless `force` is set, and counts the redrives across restarts', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{ ttlMs: HOUR }])
    for (let time = 1; time <= LIMITS.redrivesMax; time++) {
      await bench.kill()
      if (time % 4 === 0) await bench.crash()
      const dry = await bench.redrive({ dryRun: true })
      expect(bench.info()).toMatchObject({ dead: 1, redriven: time - 1 })
      expect(dry).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
      expect(await bench.redrive()).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
    }
    await bench.kill()
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      expect(await bench.redrive()).toEqual({ matched: 1, redriven: 0, guarded: 1, barred: 0, next: null })
      expect(bench.info()).toMatchObject({ dead: 1, redriven: 10 })
      expect(bench.broker.catalog.queue(Q).redriveHistory(0)).toEqual({ redrives: 10, attempts: 10 })
    }
    expect(await bench.redrive({ force: true })).toEqual({
      matched: 1,
      redriven: 1,
      guarded: 0,
      barred: 0,
      next: null,
    })
    await bench.crash()
    expect(bench.info()).toMatchObject({ dead: 0, ready: 1, redriven: 11, acked: 0 })
    expect(bench.broker.catalog.queue(Q).redriveHistory(0)).toEqual({ redrives: 11, attempts: 11 })
    // A redriven message has no time to live.
    await bench.pass(10 * HOUR)
    const worker = bench.consume()
    await bench.settle()
    expect(worker.got).toMatchObject([{ offset: 0, attempt: 1, redelivered: true }])
    bench.broker.audit()
  })

  it('acts once on each message, even if another redrive or a discard runs at the same time', async () => {
    const bench = await new Bench().open()
    bench.ensure({ keyConcurrency: 10 })
    bench.ensure({}, OTHER)
    const filter = { key: 'a' }
    const all = { name: Q, from: 0, limit: 1000, offsets: undefined, filter, dryRun: false }
    const ways = {
      redrive: () => bench.redrive({ filter }),
      carry: () => bench.redrive({ filter, to: OTHER }),
      discard: () => bench.broker.operator.discard(all, CALLER),
    }
    for (const one of Object.values(ways)) {
      for (const other of Object.values(ways)) {
        const before = bench.info()
        await bench.publish(many(3, { key: 'a' }))
        await bench.kill()
        await Promise.all([one(), other()])
        await bench.settle()
        await bench.drain()
        const { dead, redriven, discarded } = bench.info()
        expect(dead).toBe(0)
        expect(redriven + discarded - before.redriven - before.discarded).toBe(3)
        bench.broker.audit()
      }
    }
  })

  it('to another queue moves the messages, and continues their counts there', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    bench.ensure({}, OTHER)
    await bench.publish([
      { key: 'a', delayMs: 5 },
      { key: 'b', headers: { mine: 'yes' } },
    ])
    await bench.pass(10)
    await bench.kill('because')
    await bench.redrive()
    await bench.kill('because')
    expect(await bench.redrive({ to: OTHER, filter: { key: 'b' } })).toMatchObject({
      matched: 1,
      redriven: 1,
    })
    for (const from of ['memory', 'facts', 'pages']) {
      if (from === 'pages') await bench.fill(300_000)
      if (from !== 'memory') expect(await bench.crash()).toBe(from === 'pages')
      expect(bench.info()).toMatchObject({ dead: 1, redriven: 3, moved: 0, acked: 0, published: 2 })
      expect(bench.info(OTHER)).toMatchObject({ ready: 1, published: 1 })
    }
    const peek = { name: OTHER, state: undefined, from: 0, limit: 10, filter: {} }
    const [message] = (await bench.broker.operator.peek(peek, CALLER)).messages
    expect(message).toMatchObject({ state: 'ready', redrives: 2, attempts: 0 })
    expect(readRecordOptions(message!.record, 0)).toMatchObject({
      key: 'b',
      headers: {
        mine: 'yes',
        'sluice-origin-queue': 'q',
        'sluice-origin-offset': '1',
        'sluice-dead-reason': 'rejected',
        'sluice-dead-error': 'because',
        'sluice-redrives': '2',
        'sluice-attempts': '2',
      },
    })
  })

  it('that fails halfway reports its progress, and can continue with the rest', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await bench.kill()
    bench.log.refusedFrom = 7
    const failed = await bench.redrive({ to: OTHER })
    expect(failed).toMatchObject({ matched: 7, redriven: 7, next: 7, error: { code: 'DISK_LOW' } })
    await expect(bench.redrive({ to: OTHER })).rejects.toMatchObject({ code: 'DISK_LOW' })
    bench.log.refusedFrom = Infinity
    expect(await bench.redrive({ to: OTHER })).toEqual({
      matched: 13,
      redriven: 13,
      guarded: 0,
      barred: 0,
      next: null,
    })
    expect(await bench.origins(OTHER)).toEqual(Array.from({ length: 20 }, (_, i) => i))
    bench.broker.audit()
  })

  it('skips messages whose id is pending in a queue with unique pending ids', async () => {
    const bench = await new Bench().open()
    bench.ensure({ unique: 'pending' })
    await bench.publish([{ id: 'x' }, { id: 'y' }, {}])
    await bench.kill()
    // A dead message is not pending, so another message with its id is accepted.
    expect((await bench.publish([{ id: 'x' }])).duplicates).toBeUndefined()
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      const offsets = [0]
      expect(await bench.redrive({ offsets })).toEqual({
        matched: 1,
        redriven: 0,
        guarded: 1,
        barred: 1,
        next: null,
      })
      expect(await bench.redrive({ offsets, force: true })).toMatchObject({
        redriven: 0,
        guarded: 1,
        barred: 1,
      })
    }
    expect(await bench.redrive()).toEqual({ matched: 3, redriven: 2, guarded: 1, barred: 1, next: null })
    expect(bench.put([{ id: 'y' }]).duplicates).toEqual(new Map([[0, 1]]))
    bench.broker.operator.cancel({ name: Q, offset: undefined, id: 'x' })
    expect(await bench.redrive()).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
    bench.broker.audit()
  })

  it('makes only the first of several messages with the same unique id ready, and a dry run counts only the first', async () => {
    const bench = await new Bench().open()
    bench.ensure({ unique: 'pending' })
    bench.ensure({}, OTHER)
    for (const id of ['x', 'x', 'y', 'x']) {
      await bench.publish([{ id }])
      await bench.kill()
    }
    const all = { matched: 4, redriven: 4, guarded: 0, barred: 0, next: null }
    // In the other queue, ids need not be unique.
    expect(await bench.redrive({ to: OTHER, dryRun: true })).toEqual(all)
    const result = { matched: 4, redriven: 2, guarded: 2, barred: 2, next: null }
    expect(await bench.redrive({ dryRun: true })).toEqual(result)
    expect(bench.info()).toMatchObject({ dead: 4 })
    expect(await bench.redrive()).toEqual(result)
    expect(bench.info()).toMatchObject({ dead: 2, ready: 2 })
  })
})

describe('peek', () => {
  it('reports damage if the batch at the position of the message is another one', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish(many(3))
    await bench.publish(many(2))
    const queue = bench.broker.catalog.queue(Q)
    const elsewhere = emptyLocation()
    queue.locate(4, elsewhere)
    const peek = { name: Q, state: undefined, from: 1, limit: 1, filter: {} }
    expect(await bench.broker.operator.peek(peek, CALLER)).toMatchObject({ messages: [{ offset: 1 }] })
    const locate = queue.locate.bind(queue)
    queue.locate = (offset, location) => {
      locate(offset, location)
      location.batchPosition = elsewhere.batchPosition
    }
    await expect(bench.broker.operator.peek(peek, CALLER)).rejects.toMatchObject({
      code: 'CORRUPT',
      scope: 'request',
      message: `The batch at position ${elsewhere.batchPosition} of the log is not the batch of the queue q that was written there.`,
    })
  })

  it('shows messages in their current state, and changes nothing', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{ ttlMs: 5_000 }, { delayMs: 5_000 }, { delayMs: 5_000, ttlMs: 1 }, {}])
    // Time passes, but no timer fires.
    bench.now += 6_000
    const entries = bench.log.entries.length
    bench.broker.turn.begin()
    const { messages } = await bench.broker.operator.peek(
      { name: Q, state: undefined, from: 0, limit: 10, filter: {} },
      CALLER,
    )
    expect(messages.map(({ offset, state }) => [offset, state])).toEqual([
      [1, 'ready'],
      [3, 'ready'],
    ])
    await bench.settle()
    expect(bench.log.entries.length).toBe(entries)
  })
})
