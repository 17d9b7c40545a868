/** Disk space of the log: it is freed without traffic, and an idle broker writes nothing. */
import { OUTCOME, SluiceError, queueName, type QueueName, type QueueOptions } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, type Message } from '../testing/bench.js'
import { named, share } from '../testing/sharing.js'

const SEGMENT = 128 * 1024
const SMALL = { segmentBytes: SEGMENT, checkpointBytes: 16 * 1024 }

const repeated = (count: number, message: Message): Message[] => Array.from({ length: count }, () => message)

/** Lets time pass, with due timers as the only events. Returns how many timers fired. */
async function rest(bench: Bench, forMs: number): Promise<number> {
  const untilMs = bench.now + forMs
  let woken = 0
  for (; bench.broker.turn.nextDeadline <= untilMs; woken++) {
    if (woken > 100_000) throw new Error('The broker does not become idle.')
    await bench.pass(Math.max(1, bench.broker.turn.nextDeadline - bench.now))
  }
  await bench.pass(untilMs - bench.now)
  return woken
}

/** Waits until the broker is idle, and expects that it then writes nothing and needs no timer. */
async function expectRest(bench: Bench): Promise<void> {
  await rest(bench, 120_000)
  const { writtenBytes } = bench.broker.usage()
  expect(bench.broker.turn.nextDeadline).toBe(Infinity)
  for (let i = 0; i < 50; i++) await bench.pass(1_000)
  expect(bench.broker.usage().writtenBytes).toBe(writtenBytes)
  bench.broker.audit()
}

describe('an idle broker writes nothing', () => {
  it('with batches of which one dead message is left', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    for (let i = 0; i < 400; i++) await bench.publish(repeated(100, { bodyBytes: 100 }))
    const worker = bench.consume(60_000)
    await bench.settle()
    bench.broker.turn.begin()
    const items = worker.got.map(({ offset, tag }) => ({
      firstTag: tag,
      count: 1,
      outcome: offset % 100 === 50 ? OUTCOME.deadLetter : OUTCOME.ack,
    }))
    bench.broker.leases.settle(worker.subscription, items)
    await bench.settle()
    expect(bench.info()).toMatchObject({ dead: 400, ready: 0 })
    // Each batch counts as a whole until it is copied. The copies have only the dead messages.
    expect(bench.broker.usage().liveBytes).toBeGreaterThan(400 * 100 * 100)
    await expectRest(bench)
    const { liveBytes, logBytes } = bench.broker.usage()
    expect(liveBytes).toBeLessThan(400 * 200 + 4 * SEGMENT)
    expect(logBytes).toBeLessThanOrEqual(7 * SEGMENT)
    await bench.crash()
    expect(bench.broker.usage().liveBytes).toBe(liveBytes)
    await expectRest(bench)
    expect(bench.info()).toMatchObject({ dead: 400, ready: 0 })
  })

  it('when one message in ten is due in a day', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    for (let i = 0; i < 200; i++)
      await bench.publish(
        Array.from({ length: 50 }, (_, j) => ({
          bodyBytes: 400,
          ...(j % 10 === 0 ? { delayMs: 86_400_000 } : {}),
        })),
      )
    const worker = bench.consume(60_000)
    await bench.settle()
    worker.ackAll()
    worker.leave()
    await bench.settle()
    const dueMs = bench.now + 80_000_000
    await rest(bench, 120_000)
    const { writtenBytes } = bench.broker.usage()
    expect(bench.broker.turn.nextDeadline).toBeGreaterThan(dueMs)
    await bench.pass(1_000_000)
    expect(bench.broker.usage().writtenBytes).toBe(writtenBytes)
  })

  it('with state pages that take many segments', async () => {
    const bench = await new Bench({ segmentBytes: SEGMENT / 4, checkpointBytes: 8 * 1024 }).open()
    for (let i = 0; i < 500; i++)
      bench.broker.catalog.ensure({ name: queueName(`q${i}`), options: {}, update: false })
    await bench.settle()
    bench.ensure()
    await bench.fill(250_000)
    await expectRest(bench)
    await bench.crash()
    await expectRest(bench)
  })
})

describe('space', () => {
  it('is freed without further traffic', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    for (let i = 0; i < 150; i++) await bench.publish(repeated(20, { bodyBytes: 900 }))
    expect(bench.log.usage().segments).toBeGreaterThan(20)
    bench.broker.catalog.purge(Q)
    await bench.settle()
    await rest(bench, 60_000)
    expect(bench.log.usage().segments).toBeLessThanOrEqual(5)
    await expectRest(bench)
  })

  it('of retained messages is freed when the retention ends', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: 600_000 })
    for (let i = 0; i < 150; i++) await bench.publish(repeated(20, { bodyBytes: 900 }))
    const worker = bench.consume(60_000)
    await bench.settle()
    worker.ackAll()
    await bench.settle()
    await rest(bench, 590_000)
    expect(bench.log.usage().segments).toBeGreaterThan(20)
    await rest(bench, 60_000)
    expect(bench.log.usage().segments).toBeLessThanOrEqual(6)
    expect(bench.info().retainedBytes).toBe(0)
    await expectRest(bench)
  })
})

describe('a disk that is full of retained messages', () => {
  // Each reserve makes settles run out of space at a different point in the checkpoint.
  it.each([3.125, 3.25, 3.5, 4])(
    'is drained message by message, with a reserve of %d segments',
    async (reserve) => {
      const bench = await new Bench({
        segmentBytes: SEGMENT,
        checkpointBytes: 32 * 1024,
        segmentsMax: 16,
        reserveBytes: reserve * SEGMENT,
      }).open()
      bench.ensure({ retainAgeMs: 3_600_000 })
      await expect(
        (async () => {
          for (;;) {
            await bench.publish(repeated(20, { bodyBytes: 900 }))
            await bench.pass(25)
          }
        })(),
      ).rejects.toThrow('The log has no room')
      const worker = bench.consume(20)
      await bench.settle()
      const drain = async (): Promise<void> => {
        for (let idle = 0; worker.got.length > 0; idle++) {
          if (idle === 100) return
          // The broker would not read from connections now.
          if (bench.broker.isBehind) await bench.pass(100)
          else {
            const { tag } = worker.got.shift()!
            bench.broker.turn.begin()
            bench.broker.leases.settle(worker.subscription, [
              { firstTag: tag, count: 1, outcome: OUTCOME.ack },
            ])
            await bench.pass(5)
            idle = 0
          }
        }
      }
      let isStuck = false
      void bench.log.stuck().then(() => (isStuck = true))
      await drain()
      // Settles wait before they use up the room that the release of retained messages needs.
      expect(bench.info().retainedBytes).toBeGreaterThan(0)
      await rest(bench, 3_700_000)
      await drain()
      expect(isStuck).toBe(false)
      expect(bench.info()).toMatchObject({ ready: 0, leased: 0 })
      await rest(bench, 3_700_000)
      expect(bench.log.usage().segments).toBeLessThanOrEqual(6)
      await bench.publish(repeated(20, { bodyBytes: 900 }))
      bench.broker.audit()
    },
  )
})

describe('a full disk', () => {
  const full = async (options: Partial<QueueOptions>): Promise<Bench> => {
    const bench = await new Bench({
      segmentBytes: SEGMENT,
      checkpointBytes: 32 * 1024,
      segmentsMax: 24,
      reserveBytes: 4 * SEGMENT,
    }).open()
    bench.ensure(options)
    await bench.publish(repeated(20, { bodyBytes: 900 }))
    return bench
  }
  const fillUp = async (bench: Bench, name: QueueName): Promise<number> => {
    for (let published = 0; ; published += 10) {
      try {
        await bench.publish(repeated(10, { bodyBytes: 900 }), name)
      } catch (error) {
        expect(error).toMatchObject({ code: 'DISK_LOW' })
        return published
      }
      await bench.pass(25)
    }
  }

  it('is drained message by message, although the oldest messages stay', async () => {
    const bench = await full({})
    const other = queueName('other')
    bench.ensure({}, other)
    const published = await fillUp(bench, other)
    const worker = bench.consume(1, { name: other })
    await bench.settle()
    let acked = 0
    for (let waits = 0; acked < published && waits < 100;) {
      if (bench.broker.isBehind) {
        waits++
        await bench.pass(1_000)
        continue
      }
      acked += worker.got.length
      worker.ackAll()
      await bench.pass(25)
    }
    expect(acked).toBe(published)
    expect(bench.info().ready).toBe(20)
    bench.broker.audit()
  })

  it('of shared batches is drained message by message, although one of their queues consumes nothing', async () => {
    const names = named(5)
    const bench = await full({})
    for (const name of names) bench.ensure({}, name)
    const targets = names.map((name) => ({ name }))
    let published = 0
    const fill = async (): Promise<void> => {
      for (;;) {
        share(bench, repeated(10, { bodyBytes: 900 }), targets)
        published += 10
        await bench.pass(25)
      }
    }
    await expect(fill()).rejects.toMatchObject({ code: 'DISK_LOW' })
    const [slow, ...others] = names as [QueueName, ...QueueName[]]
    const drain = async (name: QueueName, together: number): Promise<void> => {
      const worker = bench.consume(together, { name })
      await bench.settle()
      let acked = 0
      for (let waits = 0; acked < published && waits < 200;) {
        if (bench.broker.isBehind) {
          waits++
          await bench.pass(1_000)
          continue
        }
        acked += worker.got.length
        worker.ackAll()
        await bench.pass(25)
      }
      worker.leave()
      expect(acked).toBe(published)
    }
    for (const name of others) await drain(name, 10)
    bench.broker.audit()
    expect(bench.info(slow).ready).toBe(published)
    await drain(slow, 1)
    expect(await fillUp(bench, slow)).toBeGreaterThan(published / 2)
    bench.broker.audit()
  })

  it('of messages that are retained by bytes does not stop the connections, because no time ends the retention', async () => {
    const bench = await full({ retainBytes: 1 << 30 })
    const published = 20 + (await fillUp(bench, Q))
    const worker = bench.consume(1)
    await bench.settle()
    for (let idle = 0; worker.got.length > 0 && idle < 100; idle++) {
      if (bench.broker.isBehind) {
        await bench.pass(1_000)
        continue
      }
      // An operator can end the retention as long as requests are read.
      if (bench.info().acked === published - 500) bench.ensure({ retainBytes: 100_000 })
      worker.ackAll()
      await bench.pass(25)
      idle = 0
    }
    await bench.pass(60_000)
    expect(bench.info()).toMatchObject({ ready: 0, acked: published })
    await bench.publish([{}])
    bench.broker.audit()
  })
})

describe('more pages than the limit', () => {
  it('are refused in advance, with the number of pages in the error; the list need not fit in one segment', async () => {
    const pagesMax = 3_000
    const bench = await new Bench({
      segmentBytes: SEGMENT / 4,
      checkpointBytes: 16 * 1024,
      pagesMax,
    }).open()
    let refusal: unknown
    let queues = 0
    for (; refusal === undefined && queues < 5_000; queues++) {
      const name = queueName(`q${queues}`)
      try {
        bench.broker.turn.begin()
        bench.broker.catalog.ensure({ name, options: {}, update: false })
        await bench.publish([{}], name)
      } catch (error) {
        refusal = error
      }
    }
    expect(refusal).toBeInstanceOf(SluiceError)
    expect(String(refusal)).toMatch(/takes 30\d\d pages; at most 3000 are allowed/)
    expect(queues).toBeGreaterThanOrEqual(pagesMax / 4)
    // The existing queues continue to work, and a checkpoint lists all of them.
    await rest(bench, 120_000)
    expect(await bench.crash()).toBe(true)
    expect(bench.broker.status.queues).toBeGreaterThanOrEqual(pagesMax / 4)
    bench.broker.audit()
  })

  it('are not created by a dead letter: it stays in its queue until other queues are deleted', async () => {
    const bench = await new Bench({
      segmentBytes: 16 * 1024,
      checkpointBytes: 8 * 1024,
      pagesMax: 640,
    }).open()
    const dead = queueName('dead')
    bench.ensure({}, dead)
    bench.ensure({ deadLetter: dead })
    await bench.publish([{}])
    const worker = bench.consume(1)
    await bench.settle()
    let queues = 0
    const fill = async (): Promise<void> => {
      for (; queues < 5_000; queues++) {
        bench.ensure({}, queueName(`q${queues}`))
        await bench.publish([{}], queueName(`q${queues}`))
      }
    }
    await expect(fill()).rejects.toThrow(/pages; at most 640 are allowed/)
    worker.settle(0, OUTCOME.deadLetter)
    await bench.pass(5_000)
    expect([bench.info().dead, bench.info(dead).ready]).toEqual([1, 0])
    for (let i = 0; i < 20; i++) {
      bench.broker.turn.begin()
      bench.broker.catalog.delete(queueName(`q${i}`))
    }
    await bench.settle()
    await bench.pass(5_000)
    expect([bench.info().dead, bench.info(dead).ready]).toEqual([0, 1])
    await bench.publish([{}])
    await bench.crash()
    expect([bench.info().ready, bench.info(dead).ready]).toEqual([1, 1])
    bench.broker.audit()
  })
})

describe('the holder of the oldest segment', () => {
  const smaller = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }

  it('is reported with its queue, and usage counts accepted and written bytes', async () => {
    const bench = await new Bench(smaller).open()
    bench.ensure()
    expect(bench.broker.holder()).toEqual({ by: 'writing', queue: undefined })
    await bench.publish([{ bodyBytes: 900 }])
    const worker = bench.consume(1)
    await bench.settle()
    await bench.fill(smaller.segmentBytes)
    expect(bench.broker.holder()).toEqual({ by: 'messages', queue: Q })
    worker.ackAll()
    const seen = new Set<string>()
    for (let i = 0; i < 40; i++) {
      await bench.fill(4_000)
      seen.add(bench.broker.holder().by)
    }
    expect([...seen]).toContain('checkpoint')
    expect([...seen]).not.toContain('messages')
    const { recordBytes, writtenBytes, liveBytes } = bench.broker.usage()
    // The messages have 908 bytes each: first one, then 64, then 4 in each of 40 rounds.
    expect(recordBytes).toBe(225 * 908)
    expect(writtenBytes).toBeGreaterThan(recordBytes)
    expect(liveBytes).toBe(0)
  })
})

describe('a queue that is drained at once', () => {
  // The files of freed segments are used again only if the segments become free one at a time.
  it('frees one segment for each segment that it fills', async () => {
    const bench = await new Bench({ segmentBytes: SEGMENT }).open()
    bench.ensure()
    const worker = bench.consume(60_000)
    const freed: number[] = []
    let first = 0
    for (let i = 0; i < 450; i++) {
      await bench.publish(repeated(50, { bodyBytes: 100 }))
      worker.ackAll()
      bench.broker.turn.begin()
      bench.broker.leases.credit(worker.subscription, 60_000, 1 << 24, undefined, false)
      await bench.pass(20)
      const now = Math.floor(bench.log.usage().firstPosition / SEGMENT)
      if (now !== first) freed.push(now - first)
      first = now
    }
    expect(freed.length).toBeGreaterThan(20)
    expect(new Set(freed)).toEqual(new Set([1]))
  })
})
