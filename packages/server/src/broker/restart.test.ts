/** State that must survive a restart, wherever the log ends. */
import { OUTCOME, queueName, type Placed, type QueueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Broker } from './broker.js'
import { Bench, CALLER, Q, batchOf, type Message } from '../testing/bench.js'

const DEAD = queueName('dead')
const HOUR = 3_600_000

/** Segments and checkpoints are small, so that a test has several segments and several checkpoints. */
const SMALL = { segmentBytes: 128 * 1024, checkpointBytes: 16 * 1024 }

const repeated = (count: number, message: Message): Message[] => Array.from({ length: count }, () => message)

/** Whether the segment that contains `position` was freed. */
function isGone(bench: Bench, position: number): boolean {
  return bench.log.usage().firstPosition > position
}

describe('a queue', () => {
  it('stays paused after two restarts with a checkpoint between them', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    await bench.fill(200_000)
    // The queue has been idle since the log was opened, so only the pause makes its page dirty.
    expect(await bench.crash()).toBe(true)
    await bench.fill(200_000)
    expect(await bench.crash()).toBe(true)
    const pausedAt = bench.broker.endPosition
    expect(bench.broker.catalog.pause(Q)).toBe(true)
    expect(bench.broker.catalog.pause(Q)).toBe(false)
    await bench.settle()
    await bench.crash()
    expect(bench.info().paused).toBe(true)
    await bench.fill(400_000)
    expect(isGone(bench, pausedAt)).toBe(true)
    expect(await bench.crash()).toBe(true)
    expect(bench.info().paused).toBe(true)

    await bench.publish([{}])
    expect(await bench.order()).toEqual([])
    expect(bench.broker.catalog.resume(Q)).toBe(true)
    expect(await bench.order()).toEqual([0])
  })

  it('keeps the time to live of earlier messages when its option changes', async () => {
    const bench = await new Bench().open()
    bench.ensure({ ttlMs: 60_000 })
    await bench.publish([{}, { ttlMs: 5_000 }])
    bench.ensure({ ttlMs: 1_000 })
    await bench.publish([{}])
    bench.ensure({ ttlMs: 0 })
    await bench.publish([{}])
    await bench.crash()
    await bench.pass(2_000)
    expect(await bench.order()).toEqual([0, 1, 3])
    await bench.pass(4_000)
    expect(await bench.order()).toEqual([0, 3])
    await bench.crash()
    await bench.pass(55_000)
    expect(await bench.order()).toEqual([3])
    expect(bench.info()).toMatchObject({ expired: 3, ready: 1 })
    bench.broker.audit()
  })

  it('counts the bytes of all messages if `maxBytes` is set after some of them', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish(repeated(10, { bodyBytes: 1 }))
    bench.ensure({ maxBytes: 1 << 20 })
    await bench.publish(repeated(3, { bodyBytes: 1000 }))
    const worker = bench.consume()
    await bench.settle()
    for (let offset = 0; offset < 12; offset++) worker.settle(offset, OUTCOME.ack)
    await bench.settle()
    expect(bench.info().bytes).toBe(1008)
    await bench.crash()
    expect(bench.info().bytes).toBe(1008)
    const again = bench.consume()
    await bench.settle()
    again.ackAll()
    expect(bench.info().bytes).toBe(0)
  })

  it('removes at once expired messages whose facts are larger than one segment', async () => {
    const bench = await new Bench({ segmentBytes: 128 * 1024 }).open()
    bench.ensure({ ttlMs: 1_000 })
    // Only every other message expires, because consecutive expired messages would share one fact.
    const batch = Array.from({ length: 1_000 }, (_, i) => ({
      bodyBytes: 1,
      ...(i % 2 === 0 ? {} : { ttlMs: HOUR }),
    }))
    for (let i = 0; i < 18; i++) await bench.publish(batch)
    const { writtenBytes } = bench.broker.usage()
    await bench.pass(10_000)
    expect(bench.broker.usage().writtenBytes - writtenBytes).toBeGreaterThan(128 * 1024)
    expect(bench.info()).toMatchObject({ expired: 9_000, ready: 9_000 })
    await bench.crash()
    expect(bench.info()).toMatchObject({ expired: 9_000, ready: 9_000 })
    bench.broker.audit()
  })

  it('removes messages that expired while the broker was down, at the first tick', async () => {
    const bench = await new Bench({ segmentBytes: 256 * 1024 }).open()
    bench.ensure({ ttlMs: 1_000 })
    for (let i = 0; i < 18; i++) await bench.publish(repeated(1_000, { bodyBytes: 1 }))
    bench.now += 10_000
    await bench.crash()
    await bench.pass(0)
    expect(bench.info()).toMatchObject({ expired: 18_000, ready: 0 })
    await bench.crash()
    expect(bench.info()).toMatchObject({ expired: 18_000, ready: 0 })
  })
})

describe('ids', () => {
  it('of the window are all known after a crash while their page is being written', async () => {
    const bench = await new Bench({ segmentBytes: 256 * 1024, checkpointBytes: 24 * 1024 }).open()
    bench.ensure({ unique: 'window', dedupWindowMs: HOUR })
    let ids = 0
    for (let i = 0; i < 60; i++) {
      bench.put(Array.from({ length: 700 }, () => ({ id: `id ${ids++}`, bodyBytes: 120 })))
      // Each entry has many batches, so that checkpoints begin and end between batches whose ids are in the same page.
      bench.endTurns()
      await Promise.resolve()
      if (i % 15 === 14) await bench.settle()
    }
    expect(await bench.crash()).toBe(true)
    let duplicates = 0
    for (let from = 0; from < ids; from += 700) {
      const placed = bench.put(
        Array.from({ length: 700 }, (_, i) => ({ id: `id ${from + i}`, bodyBytes: 1 })),
      )
      for (const [index, offset] of placed.duplicates!) if (offset === from + index) duplicates++
    }
    expect(duplicates).toBe(42_000)
  })

  it('of pending messages are known after a restart, as long as the messages are pending', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ unique: 'pending' })
    const { baseOffset } = await bench.publish([
      { id: 'ready' },
      { id: 'later', delayMs: HOUR },
      { id: 'done' },
    ])
    expect(baseOffset).toBe(0)
    const worker = bench.consume()
    await bench.settle()
    worker.settle(2, OUTCOME.ack)
    await bench.settle()
    const again = async (): Promise<void> => {
      const { baseOffset, duplicates } = await bench.publish([
        { id: 'ready' },
        { id: 'later' },
        { id: 'done' },
      ])
      expect(duplicates).toEqual(
        new Map([
          [0, 0],
          [1, 1],
        ]),
      )
      bench.broker.operator.cancel({ name: Q, offset: baseOffset + 2, id: undefined })
      await bench.settle()
    }
    await bench.crash()
    await again()
    await bench.fill(400_000)
    expect(await bench.crash()).toBe(true)
    await again()
    expect(bench.info()).toMatchObject({ duplicates: 4, ready: 1, scheduled: 1 })
    bench.broker.audit()
  })

  it('of a message that was acknowledged and published again in one turn belong to the new message', async () => {
    const bench = await new Bench().open()
    bench.ensure({ unique: 'pending' })
    await bench.publish([{ id: 'x' }])
    const worker = bench.consume()
    await bench.settle()
    worker.settle(0, OUTCOME.ack)
    // The fact of the acknowledgement follows this batch.
    expect(bench.put([{ id: 'x' }])).toEqual({ baseOffset: 1, duplicates: undefined })
    await bench.settle()
    await bench.crash()
    expect(bench.put([{ id: 'x' }]).duplicates).toEqual(new Map([[0, 1]]))
  })
})

describe('a producer that sends a batch again', () => {
  const duplicatesOf = async (bench: Bench): Promise<Uint8Array> => {
    bench.ensure({ unique: 'window', dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a' }])
    const bytes = batchOf([{ id: 'a' }, { id: 'b' }, { id: 'b' }], ++bench.number)
    expect(bench.send(bytes)).toEqual({
      baseOffset: 1,
      duplicates: new Map([
        [0, 0],
        [2, 2],
      ]),
    })
    await bench.settle()
    return bytes
  }

  it('gets the same duplicates, from the facts before the batch', async () => {
    const bench = await new Bench().open()
    const bytes = await duplicatesOf(bench)
    expect(await bench.crash()).toBe(false)
    expect(bench.send(bytes)).toEqual({
      baseOffset: 1,
      duplicates: new Map([
        [0, 0],
        [2, 2],
      ]),
    })
    expect(bench.info()).toMatchObject({ published: 2, duplicates: 2, ready: 2 })
  })

  it('gets the same duplicates, from the page of its numbers', async () => {
    const bench = await new Bench(SMALL).open()
    const bytes = await duplicatesOf(bench)
    const publishedBefore = bench.broker.endPosition
    bench.broker.catalog.purge(Q)
    await bench.fill(400_000)
    expect(isGone(bench, publishedBefore)).toBe(true)
    expect(await bench.crash()).toBe(true)
    expect(bench.send(bytes)).toEqual({
      baseOffset: 1,
      duplicates: new Map([
        [0, 0],
        [2, 2],
      ]),
    })
    expect(bench.info()).toMatchObject({ published: 2, duplicates: 2, ready: 0 })
  })

  // Each duplicate takes 24 bytes of facts in the entry of the batch, and the batch can take half of an entry.
  it('can have duplicates in a batch as long as their facts fit in a quarter of an entry', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a', bodyBytes: 0 }])
    const most = Math.floor(bench.log.entryBytesMax / 4 / 24)
    const tooMany = batchOf(repeated(most + 1, { id: 'a', bodyBytes: 0 }), ++bench.number)
    expect(() => bench.send(tooMany)).toThrow(expect.objectContaining({ code: 'BATCH_TOO_LARGE' }))
    const bytes = batchOf(repeated(most, { id: 'a', bodyBytes: 0 }), ++bench.number)
    const placed = bench.send(bytes)
    expect(placed.duplicates?.size).toBe(most)
    await bench.settle()
    await bench.crash()
    expect(bench.send(bytes)).toEqual(placed)
    expect(bench.info()).toMatchObject({ published: 1, ready: 1 })
  })

  const P = queueName('p')

  it.each(['facts', 'page'])(
    'gets the same answer to an atomic step with duplicates, from its %s',
    async (from) => {
      const bench = await new Bench(SMALL).open()
      bench.ensure({ unique: 'window', dedupWindowMs: HOUR })
      bench.ensure({}, P)
      await bench.publish([{ id: 'a' }])
      await bench.publish([{}], P)
      const worker = bench.consume()
      await bench.settle()
      const number = ++bench.number
      const batches = [
        { queue: P, bytes: batchOf([{}], number) },
        { queue: Q, bytes: batchOf([{ id: 'b' }, { id: 'a' }, { id: 'b' }], number) },
      ].map(({ queue, bytes }) => ({ queue, bytes, at: 0, end: bytes.length }))
      const acks = [{ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 }]
      const places = [
        { baseOffset: 1, duplicates: undefined },
        {
          baseOffset: 1,
          duplicates: new Map([
            [1, 0],
            [2, 1],
          ]),
        },
      ]
      expect(bench.atomic({ number, crc: 5, acks, batches })).toEqual(places)
      await bench.settle()
      const before = bench.broker.endPosition
      if (from === 'page') {
        bench.broker.catalog.purge(Q)
        bench.broker.catalog.purge(P)
        await bench.fill(400_000)
      }
      expect(await bench.crash()).toBe(from === 'page')
      expect(isGone(bench, before)).toBe(from === 'page')
      // The subscription that held the acknowledged message has ended, but the step is still known.
      const ended = [{ subscription: undefined, firstTag: worker.tagOf(0), count: 1 }]
      expect(bench.atomic({ number, crc: 5, acks: ended, batches })).toEqual(places)
      expect(() => bench.atomic({ number, crc: 6, acks: ended, batches })).toThrow(
        expect.objectContaining({ code: 'NUMBER_REUSED' }),
      )
      expect(bench.info()).toMatchObject({ published: 2, duplicates: 2 })
      bench.broker.audit()
    },
  )

  it('gets one effect and one answer for an atomic step with several batches for one queue, after any crash', async () => {
    const bench = await new Bench({ keepsSnapshots: true }).open()
    const options = { dedupWindowMs: HOUR, maxMessages: 6, overflow: 'drop-oldest', ttlMs: HOUR } as const
    bench.ensure(options)
    bench.ensure({}, P)
    await bench.publish([{ id: 'a' }, {}, {}, {}])
    const worker = bench.consume(1)
    await bench.settle()
    const number = ++bench.number
    const batches = [
      { queue: Q, bytes: batchOf([{ id: 'b' }, { id: 'a' }], number) },
      { queue: P, bytes: batchOf([{}], number) },
      { queue: Q, bytes: batchOf([{ id: 'c' }, { id: 'b' }, { id: 'c' }, {}], number) },
      { queue: P, bytes: batchOf([{}, {}], number) },
      { queue: Q, bytes: batchOf([{ id: 'c' }], number) },
    ].map(({ queue, bytes }) => ({ queue, bytes, at: 0, end: bytes.length }))
    const acks = [{ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 }]
    const places = [
      { baseOffset: 4, duplicates: new Map([[1, 0]]) },
      { baseOffset: 0, duplicates: undefined },
      {
        baseOffset: 6,
        duplicates: new Map([
          [1, 4],
          [2, 6],
        ]),
      },
      { baseOffset: 1, duplicates: undefined },
      { baseOffset: 10, duplicates: new Map([[0, 6]]) },
    ]
    const images = bench.snapshots.length
    expect(bench.atomic({ number, crc: 5, acks, batches })).toEqual(places)
    await bench.settle()
    const after = { published: 7, duplicates: 4, acked: 1, ready: 6, dropped: 0 }
    expect(bench.info()).toMatchObject({ ...after, ready: 5, leased: 1 })
    expect(bench.info(P)).toMatchObject({ published: 3, ready: 3 })
    const snapshots = [...bench.snapshots.slice(images), bench.log.reopened()]
    let with1 = 0
    for (const snapshot of snapshots) {
      await bench.restart(snapshot)
      const before = bench.info()
      expect(before).toMatchObject(before.published === 7 ? after : { published: 4, duplicates: 0, acked: 0 })
      expect(bench.info(P).published).toBe(before.published === 7 ? 3 : 0)
      if (before.published === 7) with1++
      // If the step had no effect before the crash, it has no effect afterwards, because its lease is lost.
      const again = { number, crc: 5, acks: [{ ...acks[0]!, subscription: undefined }], batches }
      if (before.published === 7) expect(bench.atomic(again)).toEqual(places)
      else expect(() => bench.atomic(again)).toThrow(expect.objectContaining({ code: 'LEASE_LOST' }))
      expect(bench.info()).toMatchObject({ published: before.published, duplicates: before.duplicates })
      bench.broker.audit()
    }
    expect([with1 > 0, with1 < snapshots.length]).toEqual([true, true])
  })

  it('can replace messages of other batches in an atomic step as if all were in one batch, after any crash', async () => {
    const bench = await new Bench({ keepsSnapshots: true }).open()
    bench.ensure({ dedupWindowMs: HOUR, maxMessages: 4, maxBytes: 1_000 })
    await bench.publish([{ id: 'waits' }, {}])
    await bench.settle()
    const number = ++bench.number
    const last = (id: string): Message => ({ id, replaces: true })
    const batches = [
      [{ id: 'a' }, last('waits'), last('b')],
      [last('a'), { id: 'b' }, last('waits')],
      [last('a')],
    ].map((messages) => {
      const bytes = batchOf(messages, number)
      return { queue: Q, bytes, at: 0, end: bytes.length }
    })
    const places = [
      {
        baseOffset: 2,
        duplicates: new Map([
          [0, 8],
          [1, 7],
        ]),
      },
      {
        baseOffset: 5,
        duplicates: new Map([
          [0, 8],
          [1, 4],
          [2, 7],
        ]),
      },
      { baseOffset: 8, duplicates: undefined },
    ]
    const images = bench.snapshots.length
    const step = { number, crc: 5, acks: [], batches }
    expect(bench.atomic(step)).toEqual(places)
    await bench.settle()
    const after = { published: 5, duplicates: 4, cancelled: 1, ready: 4 }
    expect(bench.info()).toMatchObject(after)
    for (const snapshot of [...bench.snapshots.slice(images), bench.log.reopened()]) {
      await bench.restart(snapshot)
      const isDone = bench.info().published === 5
      expect(bench.info()).toMatchObject(isDone ? after : { published: 2, duplicates: 0, cancelled: 0 })
      expect(bench.atomic(step)).toEqual(places)
      expect(bench.info()).toMatchObject(after)
      // The window contains the ids of the accepted messages.
      const again = await bench.publish([{ id: 'a' }, { id: 'waits' }, { id: 'b' }])
      expect([...again.duplicates!.values()]).toEqual([8, 7, 4])
      bench.broker.audit()
    }
  })

  it('gets an error for an atomic step whose batches together do not fit in a queue', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: HOUR, maxMessages: 3, dedupMaxIds: 2 })
    const step = (...all: Message[][]): Parameters<Bench['atomic']>[0] => {
      const number = ++bench.number
      const batches = all.map((messages) => {
        const bytes = batchOf(messages, number)
        return { queue: Q, bytes, at: 0, end: bytes.length }
      })
      return { number, crc: 5, acks: [], batches }
    }
    expect(() => bench.atomic(step([{}, {}], [{}, {}]))).toThrow(
      expect.objectContaining({ code: 'QUEUE_FULL', retryable: false }),
    )
    expect(() => bench.atomic(step([{ id: 'a' }], [{ id: 'b' }], [{ id: 'c' }]))).toThrow(
      expect.objectContaining({ code: 'DEDUP_FULL' }),
    )
    expect(bench.info()).toMatchObject({ published: 0 })
    expect(bench.atomic(step([{ id: 'a' }], [{ id: 'b' }, { id: 'a' }], [{}]))).toHaveLength(3)
    expect(bench.info()).toMatchObject({ published: 3, duplicates: 1, ready: 3 })
  })

  it('gets the same answer to an atomic step with more duplicates than fit in the text of one fact', async () => {
    const bench = await new Bench({ segmentBytes: 64 << 20 }).open()
    bench.ensure({ unique: 'window', dedupWindowMs: HOUR })
    const bytes = batchOf(repeated(20_000, { id: 'a', bodyBytes: 1 }), 1)
    const step = { number: 1, crc: 5, acks: [], batches: [{ queue: Q, bytes, at: 0, end: bytes.length }] }
    const placed = bench.atomic(step)
    expect(placed[0]?.duplicates?.size).toBe(19_999)
    await bench.settle()
    await bench.crash()
    expect(bench.atomic(step)).toEqual(placed)
    expect(bench.info()).toMatchObject({ published: 1, ready: 1, duplicates: 19_999 })
  })

  it('cannot use the number of an atomic step for a batch, or the number of a batch for an atomic step', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    const step = (number: number, crc: number): unknown => {
      const bytes = batchOf([{}], number)
      return bench.atomic({ number, crc, acks: [], batches: [{ queue: Q, bytes, at: 0, end: bytes.length }] })
    }
    const reused = expect.objectContaining({ code: 'NUMBER_REUSED' })
    step(1, 5)
    // The producer still waits for number 1.
    bench.send(batchOf([{}], 2), Q, undefined, 1)
    for (const restarts of [false, true]) {
      await bench.settle()
      if (restarts) await bench.crash()
      expect(bench.producer().highest).toBe(2)
      expect(() => bench.send(batchOf([{}], 1), Q, undefined, 1)).toThrow(reused)
      expect(() => step(2, 5)).toThrow(reused)
    }
    expect(bench.info().published).toBe(2)
  })

  describe('with more unanswered duplicates than fit in a page', () => {
    // The results in a page take at most a quarter of an entry, and each duplicate is counted as 40 bytes.
    const batches = Array.from({ length: 60 }, (_, i) =>
      batchOf(repeated(1_000, { id: 'a', bodyBytes: 1 }), i + 1),
    )
    const flood = async (): Promise<{ bench: Bench; last: Placed }> => {
      const bench = await new Bench({ segmentBytes: 256 * 1024, checkpointBytes: 64 * 1024 }).open()
      bench.ensure({ unique: 'window', dedupWindowMs: HOUR })
      let last: Placed = { baseOffset: -1, duplicates: undefined }
      for (const [i, bytes] of batches.entries()) {
        last = bench.send(bytes, Q, undefined, i)
        await bench.settle()
      }
      return { bench, last }
    }

    it('gets the newest answer again', async () => {
      const { bench, last } = await flood()
      expect(last.duplicates?.size).toBe(1_000)
      expect(bench.send(batches[59]!, Q, undefined, 59)).toEqual(last)
      expect(await bench.crash()).toBe(true)
      expect(bench.send(batches[59]!, Q, undefined, 59)).toEqual(last)
      expect(bench.info()).toMatchObject({ published: 1, ready: 1, duplicates: 59_999 })
    })

    // The number of the oldest batch is still in its slot of the window, but its duplicates are forgotten, so it must
    // not be answered.
    it('gets an unknown outcome for the oldest batch', async () => {
      const { bench } = await flood()
      for (const restarts of [false, true]) {
        if (restarts) await bench.crash()
        for (const number of [1, 30, 58])
          expect(() => bench.send(batches[number - 1]!, Q, undefined, number - 1)).toThrow(
            expect.objectContaining({ code: 'UNKNOWN_OUTCOME' }),
          )
      }
    })
  })
})

describe('a dead message with a dead-letter queue', () => {
  const dies = async (bench: Bench, name: QueueName = Q): Promise<void> => {
    const worker = bench.consume(1, { name })
    await bench.settle()
    const [{ offset } = { offset: -1 }] = worker.got
    worker.settle(offset, OUTCOME.deadLetter, { reason: 'no' })
    await bench.settle()
    worker.leave()
    await bench.settle()
  }

  // The bytes of a message that was just delivered are in memory. The bytes of a message that is evicted to make room
  // are on disk.
  it.each(['attempts', 'overflow'])(
    'is in exactly one of the two queues, wherever the log ends: %s',
    async (how) => {
      const bench = await new Bench({ keepsSnapshots: true }).open()
      bench.ensure({}, DEAD)
      bench.ensure({ deadLetter: DEAD, unique: 'pending', maxMessages: 1, overflow: 'dead-letter' })
      await bench.publish([{ id: 'x', key: 'k' }])
      await bench.crash()
      const published = bench.snapshots.length
      if (how === 'attempts') {
        const worker = bench.consume()
        await bench.settle()
        worker.settle(0, OUTCOME.retry, { delayMs: 0 })
        await bench.settle()
        worker.settle(0, OUTCOME.deadLetter, { reason: 'no' })
      } else bench.put([{ id: 'y', key: 'k' }])
      await bench.settle()
      bench.snapshots.push(bench.log.reopened())
      const seen = new Set<string>()
      for (const log of bench.snapshots.slice(published)) {
        const next = new Bench()
        await next.restart(log)
        const home = next.info()
        const there = next.info(DEAD)
        const alive = next.broker.catalog.queue(Q).stateOf(0) === 'ready' ? 1 : 0
        seen.add(`alive ${alive}, dead ${home.dead}, moved ${there.ready}`)
        expect(alive + home.dead + there.ready).toBe(1)
        // A broker that starts from this state completes the move.
        await next.settle()
        expect(next.info()).toMatchObject({ dead: 0, moved: 1 - alive })
        expect(next.info(DEAD)).toMatchObject({ ready: 1 - alive })
        next.broker.audit()
      }
      const all = ['alive 0, dead 0, moved 1', 'alive 0, dead 1, moved 0', 'alive 1, dead 0, moved 0']
      expect([...seen].sort()).toEqual(how === 'attempts' ? [all[0], all[2]] : all)
    },
  )

  it('is moved when its dead-letter queue is created', async () => {
    const bench = await new Bench().open()
    bench.ensure({}, DEAD)
    bench.ensure({ deadLetter: DEAD })
    await bench.publish([{}, {}])
    bench.broker.catalog.delete(DEAD)
    await dies(bench)
    expect(bench.info()).toMatchObject({ dead: 1, moved: 0 })
    bench.ensure({}, DEAD)
    await bench.settle()
    expect(bench.info()).toMatchObject({ dead: 0, moved: 1 })
    expect(bench.info(DEAD)).toMatchObject({ ready: 1 })
    bench.broker.catalog.delete(DEAD)
    await dies(bench)
    await bench.crash()
    expect(bench.info()).toMatchObject({ dead: 1, moved: 1 })
    bench.ensure({}, DEAD)
    await bench.settle()
    expect(bench.info()).toMatchObject({ dead: 0, moved: 2 })
    expect(bench.info(DEAD)).toMatchObject({ ready: 1 })
  })

  it('is no longer listed to be moved after a redrive or a discard, however often it dies', async () => {
    const bench = await new Bench().open()
    const other = queueName('other')
    bench.ensure({}, DEAD)
    bench.ensure({}, other)
    bench.ensure({ deadLetter: DEAD })
    bench.broker.catalog.delete(DEAD)
    const { moving } = bench.broker.catalog.queue(Q)
    const all = { name: Q, from: 0, limit: 1000, offsets: undefined, filter: {}, dryRun: false }
    await bench.publish(repeated(3, {}))
    for (let death = 1; death <= 20; death++) {
      await bench.kill()
      expect(bench.info()).toMatchObject({ dead: 3 })
      expect(moving.length).toBeLessThanOrEqual(6)
      await bench.redrive({ offsets: [1], force: true })
    }
    await bench.kill()
    await bench.redrive({ offsets: [0], to: other })
    await bench.answer(bench.broker.operator.discard({ ...all, offsets: [1] }, CALLER))
    expect(moving.length).toBeLessThanOrEqual(2)
    bench.broker.audit()
    bench.ensure({}, DEAD)
    await bench.settle()
    expect(bench.info()).toMatchObject({ dead: 0, moved: 1, discarded: 1 })
    expect(await bench.origins(DEAD)).toEqual([2])
    bench.broker.catalog.delete(DEAD)
    await bench.publish(repeated(1_000, {}))
    await bench.kill()
    expect(moving).toHaveLength(1_000)
    await bench.answer(bench.broker.operator.discard(all, CALLER))
    expect(bench.info()).toMatchObject({ dead: 0, discarded: 1_001 })
    expect(moving).toHaveLength(0)
  })
})

describe('the log', () => {
  it('frees the space of drained messages even if nothing more is published', async () => {
    // The bytes that the drain appends are too few to make a checkpoint due.
    const bench = await new Bench({ segmentBytes: 128 * 1024, checkpointBytes: 1 << 24 }).open()
    bench.ensure()
    for (let i = 0; i < 150; i++) await bench.publish(repeated(20, { bodyBytes: 900 }))
    const filled = bench.log.usage()
    expect(filled.segments).toBeGreaterThan(20)
    const worker = bench.consume(60_000)
    await bench.settle()
    expect(worker.got).toHaveLength(3_000)
    const isTooMuch = (): boolean =>
      bench.log.usage().bytes > 2 * bench.broker.usage().liveBytes + 6 * 128 * 1024
    let tooMuchMs = 0
    let longestMs = 0
    for (let offset = 0; offset < 3_000; offset += 60) {
      for (let i = offset; i < offset + 60; i++) worker.settle(i, OUTCOME.ack)
      await bench.pass(200)
      tooMuchMs = isTooMuch() ? tooMuchMs + 200 : 0
      longestMs = Math.max(longestMs, tooMuchMs)
    }
    expect(longestMs).toBeLessThan(6_000)
    for (let i = 0; i < 30; i++) await bench.pass(200)
    expect(bench.log.usage().segments).toBeLessThanOrEqual(5)
    // No message was copied; only acknowledgements, a few pages and the ends of segments were written.
    expect(bench.broker.usage().writtenBytes - filled.writtenBytes).toBeLessThan(300_000)
    expect(await bench.crash()).toBe(true)
    expect(bench.info()).toMatchObject({ ready: 0, acked: 3_000 })
    bench.broker.audit()
    await bench.publish([{}])
    expect(await bench.order()).toEqual([3_000])
  })
})

describe('ids that were forgotten by a change of the window', () => {
  it.each([
    ['from the facts', 1 << 30],
    ['from pages', 16 * 1024],
  ])('are not known after a restart either, %s', async (_name, checkpointBytes) => {
    const bench = await new Bench({ segmentBytes: 128 * 1024, checkpointBytes }).open()
    const isDuplicate = async (id: string): Promise<boolean> =>
      (await bench.publish([{ id }])).duplicates !== undefined
    bench.ensure({ dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a' }, { id: 'b' }])
    await bench.fill(checkpointBytes > 1 << 20 ? 0 : 100_000)
    bench.ensure({ dedupWindowMs: 0 })
    await bench.publish([{ id: 'none' }])
    bench.ensure({ dedupWindowMs: HOUR })
    expect(await isDuplicate('a')).toBe(false)
    await bench.crash()
    expect(await isDuplicate('none')).toBe(false)
    expect(await isDuplicate('a')).toBe(true)
    expect(await isDuplicate('b')).toBe(false)
    await bench.fill(checkpointBytes > 1 << 20 ? 0 : 200_000)
    await bench.crash()
    for (const id of ['none', 'a', 'b']) expect(await isDuplicate(id)).toBe(true)
    expect(bench.info().duplicates).toBe(4)
  })

  it('are the ids that had left the shorter window, whether their expiry was processed or not', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: 1_000 })
    await bench.publish([{ id: 'old' }])
    await bench.pass(600)
    await bench.publish([{ id: 'new' }])
    bench.now += 500
    bench.ensure({ dedupWindowMs: HOUR })
    expect((await bench.publish([{ id: 'old' }, { id: 'new' }])).duplicates).toEqual(new Map([[1, 1]]))
    await bench.crash()
    expect((await bench.publish([{ id: 'old' }, { id: 'new' }])).duplicates?.size).toBe(2)
  })
})

describe('counters', () => {
  it('of released and of redelivered messages continue after a stop and after a crash', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish(repeated(5, {}))
    const counted = (): object => {
      const { released, redelivered } = bench.info()
      return { released, redelivered }
    }
    const worker = bench.consume(3)
    await bench.settle()
    worker.leave()
    const again = bench.consume(5)
    await bench.settle()
    expect(counted()).toEqual({ released: 3, redelivered: 3 })
    // The counters are written with the next fact of their queue.
    again.settle(0, OUTCOME.ack)
    await bench.settle()
    await bench.crash()
    expect(counted()).toEqual({ released: 3, redelivered: 3 })
    const third = bench.consume(2)
    await bench.settle()
    third.leave()
    await bench.settle()
    expect(counted()).toEqual({ released: 5, redelivered: 5 })
    await bench.broker.close()
    await bench.crash()
    expect(counted()).toEqual({ released: 5, redelivered: 5 })
    const { writtenBytes } = bench.broker.usage()
    await bench.pass(10_000)
    await bench.pass(10_000)
    expect(bench.broker.usage().writtenBytes - writtenBytes).toBeLessThanOrEqual(4096)
  })
})

describe('a clock that is behind the log at start', () => {
  it('continues from the time of the log, so order, delays, retries, ids and times to live are unchanged', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: 1_000, retryInitialMs: 500, retryMaxMs: 500, keyConcurrency: 1 })
    await bench.publish([{ key: 'k' }, { key: 'k' }, { delayMs: 500 }, { ttlMs: 2_000 }, { id: 'i' }])
    const worker = bench.consume(1)
    await bench.settle()
    expect(worker.offsets).toEqual([0])
    worker.settle(0, OUTCOME.retry)
    worker.leave()
    await bench.settle()
    const stoppedAt = bench.now
    bench.now -= HOUR
    await bench.crash()
    expect(bench.now).toBe(stoppedAt)
    expect((await bench.publish([{ id: 'i' }])).duplicates?.size).toBe(1)
    await bench.publish([{ key: 'k' }, {}])
    expect(await bench.order()).toEqual([3, 4, 7])
    await bench.pass(600)
    expect(await bench.order()).toEqual([3, 4, 7, 0, 2])
    const all = bench.consume()
    await bench.settle()
    for (const offset of [0, 1, 6]) {
      all.settle(offset, OUTCOME.ack)
      await bench.settle()
    }
    expect(all.offsets).toEqual([3, 4, 7, 0, 2, 1, 6])
    all.leave()
    await bench.pass(500)
    expect((await bench.publish([{ id: 'i' }])).duplicates).toBeUndefined()
    await bench.pass(1_000)
    expect(await bench.order()).not.toContain(3)
    expect(bench.info().expired).toBe(1)
    bench.broker.audit()
  })

  it('is ignored until it reaches the time of the log, even without the option `continueFrom`', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{ key: 'k' }])
    const publishedMs = bench.broker.turn.nowMs
    const broker = await Broker.open({
      log: bench.log.reopened(),
      now: () => publishedMs - HOUR,
      random: () => 0.5,
      defer: () => {},
      onFatal: () => {},
      messageBytesMax: 1024,
    })
    expect(broker.turn.nowMs).toBe(publishedMs)
    broker.turn.begin()
    expect(broker.turn.nowMs).toBe(publishedMs)
  })
})

describe('a clock that is set forward', () => {
  it('makes scheduled messages due, and does not shorten the processing timeouts of messages being handled', async () => {
    const bench = await new Bench().open()
    bench.ensure({ processingTimeoutMs: 1_000 })
    await bench.publish([{}, {}, { delayMs: 600_000 }])
    const worker = bench.consume(2)
    await bench.settle()
    worker.start(0)
    await bench.pass(400)
    bench.now += HOUR
    bench.broker.leases.clockStepped(HOUR)
    await bench.settle()
    expect(bench.info()).toMatchObject({ scheduled: 0, ready: 1, leased: 2 })
    expect(worker.tagsLost).toEqual([])
    worker.start(1)
    await bench.pass(599)
    expect(worker.tagsLost).toEqual([])
    await bench.pass(1)
    expect(worker.tagsLost).toEqual([{ firstTag: worker.tagOf(0), count: 1, firstOffset: 0 }])
    await bench.pass(400)
    expect(worker.tagsLost).toHaveLength(2)
    bench.broker.audit()
  })
})
