/** What people do with single messages, over restarts: bringing back the dead, replaying what was done, looking back. */
import { LIMITS, OUTCOME, queueName, readRecordOptions, type HistoryEvent } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, CALLER, Q, type Message } from '../testing/bench.js'
import type { ConsumersResult } from './catalog.js'
import type { RedriveResult } from './operator.js'
import type { ReplayResult } from './replays.js'

type Page = Awaited<ReturnType<Bench['broker']['history']['page']>>

const OTHER = queueName('other')
const HOUR = 3_600_000
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }

const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

/** What is ready dies. */
async function kill(bench: Bench, reason = 'no'): Promise<void> {
  const worker = bench.consume()
  await bench.settle()
  for (const { offset } of worker.got) worker.settle(offset, OUTCOME.deadLetter, { reason })
  worker.leave()
  await bench.settle()
}

/** What is ready is acknowledged. */
async function drain(bench: Bench): Promise<number[]> {
  const worker = bench.consume()
  await bench.settle()
  const { offsets } = worker
  worker.ackAll()
  worker.leave()
  await bench.settle()
  return offsets
}

type Redrive = Partial<Parameters<Bench['broker']['operator']['redrive']>[0]>

async function redrive(bench: Bench, request: Redrive = {}): Promise<RedriveResult> {
  bench.broker.beginTurn()
  const defaults = { name: Q, from: 0, limit: 1000, offsets: undefined, filter: {}, to: undefined }
  const result = await bench.broker.operator.redrive(
    { ...defaults, force: false, dryRun: false, ...request },
    CALLER,
  )
  await bench.settle()
  return result
}

type Replay = Partial<Parameters<Bench['broker']['replays']['page']>[0]>

async function replay(bench: Bench, request: Replay = {}): Promise<ReplayResult> {
  bench.broker.beginTurn()
  const from = { fromOffset: undefined, fromMs: undefined, untilMs: undefined, cursor: undefined }
  const defaults = { name: Q, ...from, limit: 1000, filter: {}, to: undefined, dryRun: false }
  const result = await bench.broker.replays.page({ ...defaults, ...request }, CALLER)
  await bench.settle()
  return result
}

/** Origins of what is in the other queue: the offsets that replayed messages had. */
async function origins(bench: Bench): Promise<number[]> {
  bench.broker.beginTurn()
  const peek = { name: OTHER, state: undefined, limit: 1000, filter: {} }
  const found: number[] = []
  for (let from: number | undefined = 0; from !== undefined;) {
    const page = await bench.broker.operator.peek({ ...peek, from }, CALLER)
    for (const { record } of page.messages)
      found.push(Number(readRecordOptions(record, 0).headers?.['sluice-origin-offset']))
    from = page.next
  }
  return found
}

describe('redrive', () => {
  it('stops at the tenth time unless it is forced, and counts over restarts', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{ ttlMs: HOUR }])
    for (let time = 1; time <= LIMITS.redrivesMax; time++) {
      await kill(bench)
      if (time % 4 === 0) await bench.crash()
      const dry = await redrive(bench, { dryRun: true })
      expect(bench.info()).toMatchObject({ dead: 1, redriven: time - 1 })
      expect(dry).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
      expect(await redrive(bench)).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
    }
    await kill(bench)
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      expect(await redrive(bench)).toEqual({ matched: 1, redriven: 0, guarded: 1, barred: 0, next: null })
      expect(bench.info()).toMatchObject({ dead: 1, redriven: 10 })
      expect(bench.broker.queue(Q).livesOf(0)).toEqual({ redrives: 10, attempts: 10 })
    }
    expect(await redrive(bench, { force: true })).toEqual({
      matched: 1,
      redriven: 1,
      guarded: 0,
      barred: 0,
      next: null,
    })
    await bench.crash()
    expect(bench.info()).toMatchObject({ dead: 0, ready: 1, redriven: 11, acked: 0 })
    expect(bench.broker.queue(Q).livesOf(0)).toEqual({ redrives: 11, attempts: 11 })
    // Its time to live was that of its first life.
    await bench.pass(10 * HOUR)
    const worker = bench.consume()
    await bench.settle()
    expect(worker.got).toMatchObject([{ offset: 0, attempt: 1, redelivered: true }])
    bench.broker.audit()
  })

  it('and deleting, asked for twice at once, happen once', async () => {
    const bench = await new Bench().open()
    bench.ensure({ keyConcurrency: 10 })
    bench.ensure({}, OTHER)
    const filter = { key: 'a' }
    const all = { name: Q, from: 0, limit: 1000, offsets: undefined, filter, dryRun: false }
    const ways = {
      redrive: () => redrive(bench, { filter }),
      carry: () => redrive(bench, { filter, to: OTHER }),
      discard: () => bench.broker.operator.discard(all, CALLER),
    }
    for (const one of Object.values(ways)) {
      for (const other of Object.values(ways)) {
        const before = bench.info()
        await bench.publish(many(3, { key: 'a' }))
        await kill(bench)
        await Promise.all([one(), other()])
        await bench.settle()
        await drain(bench)
        const { dead, redriven, discarded } = bench.info()
        expect(dead).toBe(0)
        expect(redriven + discarded - before.redriven - before.discarded).toBe(3)
        bench.broker.audit()
      }
    }
  })

  it('to another queue leaves none behind, and goes on counting there', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    bench.ensure({}, OTHER)
    await bench.publish([
      { key: 'a', delayMs: 5 },
      { key: 'b', headers: { mine: 'yes' } },
    ])
    await bench.pass(10)
    await kill(bench, 'because')
    await redrive(bench)
    await kill(bench, 'because')
    expect(await redrive(bench, { to: OTHER, filter: { key: 'b' } })).toMatchObject({
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

  it('that fails half-way says what it did, and goes on with the rest', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await kill(bench)
    bench.log.refusedFrom = 7
    const failed = await redrive(bench, { to: OTHER })
    expect(failed).toMatchObject({ matched: 7, redriven: 7, next: 7, error: { code: 'DISK_LOW' } })
    await expect(redrive(bench, { to: OTHER })).rejects.toMatchObject({ code: 'DISK_LOW' })
    bench.log.refusedFrom = Infinity
    expect(await redrive(bench, { to: OTHER })).toEqual({
      matched: 13,
      redriven: 13,
      guarded: 0,
      barred: 0,
      next: null,
    })
    expect(await origins(bench)).toEqual(Array.from({ length: 20 }, (_, i) => i))
    bench.broker.audit()
  })

  it('leaves those whose id is pending where only one with it may be', async () => {
    const bench = await new Bench().open()
    bench.ensure({ unique: 'pending' })
    await bench.publish([{ id: 'x' }, { id: 'y' }, {}])
    await kill(bench)
    // Dead ones do not count: both are taken.
    expect((await bench.publish([{ id: 'x' }])).duplicates).toBeUndefined()
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      const offsets = [0]
      expect(await redrive(bench, { offsets })).toEqual({
        matched: 1,
        redriven: 0,
        guarded: 1,
        barred: 1,
        next: null,
      })
      expect(await redrive(bench, { offsets, force: true })).toMatchObject({
        redriven: 0,
        guarded: 1,
        barred: 1,
      })
    }
    expect(await redrive(bench)).toEqual({ matched: 3, redriven: 2, guarded: 1, barred: 1, next: null })
    expect(bench.put([{ id: 'y' }]).duplicates).toEqual(new Map([[0, 1]]))
    bench.broker.operator.cancel({ name: Q, offset: undefined, id: 'x' })
    expect(await redrive(bench)).toEqual({ matched: 1, redriven: 1, guarded: 0, barred: 0, next: null })
    bench.broker.audit()
  })
})

describe('what is retained', () => {
  /** So many messages, a kilobyte each, done as they come. */
  const work = async (bench: Bench, messages: number): Promise<void> => {
    const worker = bench.consume()
    for (let i = 0; i < messages; i++) {
      await bench.publish([{ bodyBytes: 900 }])
      worker.ackAll()
      await bench.pass(25)
    }
    worker.leave()
    await bench.settle()
  }

  it('by age holds its segments until then', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    const { firstPosition } = bench.log.usage()
    await work(bench, 300)
    await bench.fill(300_000)
    const pinned = (): boolean => bench.log.usage().firstPosition === firstPosition
    expect(pinned()).toBe(true)
    expect(bench.info().retainedBytes).toBe(300 * 908)
    expect(await bench.crash()).toBe(true)
    await bench.fill(100_000)
    expect(pinned()).toBe(true)
    expect(bench.broker.holder()).toEqual({ by: 'retained', queue: Q })
    expect(bench.info().retainedBytes).toBe(300 * 908)
    expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 300, cursor: null })

    await bench.pass(HOUR)
    await bench.fill(200_000)
    expect(pinned()).toBe(false)
    expect(bench.info().retainedBytes).toBe(0)
    expect(await replay(bench, { dryRun: true })).toEqual({ matched: 0, replayed: 0, cursor: null })
  })

  it('by bytes holds whole segments, and no more than it takes', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainBytes: 200_000 })
    const { firstPosition } = bench.log.usage()
    await work(bench, 200)
    expect(bench.log.usage().firstPosition).toBe(firstPosition)
    await work(bench, 600)
    await bench.pass(2_000)
    const retained = (): number => bench.info().retainedBytes
    expect(bench.log.usage().firstPosition).toBeGreaterThan(firstPosition)
    expect(retained()).toBeGreaterThanOrEqual(200_000)
    expect(retained()).toBeLessThan(200_000 + SMALL.segmentBytes)
    const before = retained()
    expect(await bench.crash()).toBe(true)
    // What was let go since the page of the queue is let go again.
    await bench.pass(2_000)
    expect(retained()).toBe(before)
    const { matched } = await replay(bench, { dryRun: true })
    expect(matched).toBeGreaterThanOrEqual(220)
    expect(matched).toBeLessThan(400)
    bench.ensure({ retainBytes: 0 })
    await bench.fill(300_000)
    expect(retained()).toBe(0)
  })

  // What is retained is looked at once a second, segments are given back within a few milliseconds.
  it('stays where it was the last that was live in its segment', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    await bench.publish([{ key: 'first', priority: 1 }])
    const held = bench.consume(1)
    await bench.settle()
    const { firstPosition } = bench.log.usage()
    await bench.fill(2 * SMALL.segmentBytes)
    // The page of its chunk is written anew now and then; the message alone holds the first segment.
    for (let i = 0; i < 60; i++) {
      await work(bench, 1)
      await bench.fill(2_000)
    }
    expect(bench.log.usage().firstPosition).toBe(firstPosition)
    held.ackAll()
    for (let ms = 0; ms < 2_000; ms += 100) await bench.pass(100)
    expect(bench.log.usage().firstPosition).toBe(firstPosition)
    expect(await replay(bench, { filter: { key: 'first' } })).toMatchObject({ matched: 1 })
  })

  it('by less bytes than a segment is all in one', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainBytes: 100_000 })
    await work(bench, 150)
    expect(bench.info().retainedBytes).toBe(150 * 908)
    expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 150 })
  })
})

describe('replay', () => {
  it('into the same queue ends where the log ended when it began', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    for (let i = 0; i < 20; i++) await bench.publish([{}])
    await drain(bench)
    let replayed = 0
    let pages = 0
    for (let cursor: string | null | undefined; cursor !== null && pages < 50; pages++) {
      const page: ReplayResult = await replay(bench, { limit: 5, cursor })
      replayed += page.replayed
      cursor = page.cursor
      expect(cursor ?? '1:2:3:4:5:6:7').toMatch(/^\d+(:\d+){6}$/)
      // What comes is done, and could be replayed itself.
      expect(await drain(bench)).toHaveLength(page.replayed)
      if (pages === 1) await bench.crash()
    }
    expect(replayed).toBe(20)
    expect(pages).toBe(4)
    expect(bench.info()).toMatchObject({ published: 40, acked: 40 })
    await expect(replay(bench, { cursor: '1:2:3' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  it('that fails half-way says what it did, and goes on from there without doing it twice', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await drain(bench)
    bench.log.refusedFrom = 7
    const failed = await replay(bench, { to: OTHER })
    expect(failed).toMatchObject({ matched: 7, replayed: 7, error: { code: 'DISK_LOW', retryable: true } })
    const cursor = failed.cursor!
    // Where nothing was done there is nothing to tell.
    await expect(replay(bench, { to: OTHER, cursor })).rejects.toMatchObject({ code: 'DISK_LOW' })
    await bench.crash()
    expect(await replay(bench, { to: OTHER, cursor })).toEqual({ matched: 13, replayed: 13, cursor: null })
    expect(await origins(bench)).toEqual(Array.from({ length: 20 }, (_, i) => i))
  })

  it.each([0, 1, 2, 3])('goes over window after window, with a crash before page %i', async (crashBefore) => {
    // Batches of one, of several and over the edges of windows; and a window of which nothing is left.
    const bench = await new Bench({ replayWindowOffsets: 8 }).open()
    bench.ensure({ retainAgeMs: HOUR, ttlMs: HOUR })
    bench.ensure({}, OTHER)
    for (const count of [1, 5, 6, 4, 8]) await bench.publish(many(count))
    await drain(bench)
    await bench.publish(Array.from({ length: 10 }, () => ({ ttlMs: 1 })))
    await bench.pass(1_000)
    await bench.publish(many(3))
    await drain(bench)
    let replayed = 0
    let pages = 0
    for (let cursor: string | null | undefined; cursor !== null && pages < 50; pages++) {
      if (pages % 4 === crashBefore) await bench.crash()
      const page: ReplayResult = await replay(bench, { to: OTHER, limit: 5, cursor })
      replayed += page.replayed
      cursor = page.cursor
    }
    expect(replayed).toBe(27)
    expect(await origins(bench)).toEqual([...Array.from({ length: 24 }, (_, i) => i), 34, 35, 36])
    expect(pages).toBeGreaterThan(6)
  })

  it('ends with the connection of its client, and keeps nothing for it', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await drain(bench)
    const request = { name: Q, fromOffset: undefined, fromMs: undefined, untilMs: undefined, limit: 5 }
    const all = { ...request, cursor: undefined, filter: {}, to: OTHER, dryRun: true }
    const caller = { label: '', isOpen: true }
    const pages = []
    for (let i = 0; i < 8; i++) pages.push(await bench.broker.replays.page(all, caller))
    // Those that are under way keep their place until they are idle.
    await expect(bench.broker.replays.page(all, CALLER)).rejects.toMatchObject({ code: 'TOO_MANY_REQUESTS' })
    expect(await bench.broker.replays.page({ ...all, cursor: pages[0]!.cursor! }, caller)).toMatchObject({
      matched: 5,
    })
    bench.broker.replays.forget(caller)
    await bench.broker.replays.page(all, CALLER)
    await bench.pass(60_000)
    for (let i = 0; i < 8; i++) await bench.broker.replays.page(all, CALLER)
    bench.broker.replays.forget(CALLER)
    const gone = bench.broker.replays.page({ ...all, dryRun: false, limit: 1_000 }, caller)
    caller.isOpen = false
    await expect(gone).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    expect(bench.info(OTHER).published).toBe(0)
  })

  it('takes what was acknowledged, and nothing that went otherwise or is still there', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR, dedupWindowMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish([{ id: 'a' }, { id: 'a' }, { ttlMs: 10 }, { id: 'c', delayMs: HOUR }, {}, {}, {}])
    await bench.pass(20)
    bench.broker.operator.cancel({ name: Q, offset: undefined, id: 'c' })
    const worker = bench.consume()
    await bench.settle()
    worker.settle(0, OUTCOME.ack)
    worker.settle(4, OUTCOME.deadLetter)
    worker.settle(5, OUTCOME.retry, { delayMs: 0 })
    await bench.settle()
    worker.settle(5, OUTCOME.ack)
    await bench.settle()
    bench.broker.beginTurn()
    const selection = { name: Q, from: 0, limit: 10, offsets: undefined, filter: {}, dryRun: false }
    expect(await bench.broker.operator.discard(selection, CALLER)).toMatchObject({ discarded: 1 })
    await bench.settle()
    const request = { to: OTHER, limit: 1000 }
    expect(await replay(bench, request)).toEqual({ matched: 2, replayed: 2, cursor: null })
    expect(await origins(bench)).toEqual([0, 5])
    await bench.crash()
    expect(await replay(bench, { ...request, fromOffset: 1 })).toMatchObject({ matched: 1 })
    expect(await replay(bench, { ...request, filter: { id: 'a' } })).toMatchObject({ matched: 1 })
    expect(await replay(bench, { ...request, fromMs: bench.now })).toMatchObject({ matched: 0 })
    expect(await replay(bench, { ...request, untilMs: bench.now })).toMatchObject({ matched: 2 })
    // What was left leased has gone back; it is not settled.
    expect(bench.info()).toMatchObject({ ready: 1, discarded: 1, cancelled: 1, expired: 1, duplicates: 1 })
  })

  describe('of messages that were copied forward to make room', () => {
    const copiedTwice = async (): Promise<Bench> => {
      const bench = await new Bench(SMALL).open()
      bench.ensure({}, OTHER)
      bench.ensure()
      for (let i = 0; i < 20; i++) await bench.publish(many(10, { bodyBytes: 400 }))
      const held = bench.consume(200)
      await bench.settle()
      // Half of each batch keeps all of it alive.
      for (let offset = 0; offset < 200; offset += 2) held.settle(offset, OUTCOME.ack)
      await bench.settle()
      const { firstPosition } = bench.log.usage()
      await bench.fill(600_000)
      expect(bench.log.usage().firstPosition).toBeGreaterThan(firstPosition)
      bench.ensure({ retainAgeMs: HOUR })
      for (let offset = 1; offset < 200; offset += 2) held.settle(offset, OUTCOME.ack)
      held.leave()
      await bench.pass(1_000)
      return bench
    }

    it('says each message once in one page', async () => {
      const bench = await copiedTwice()
      expect(await replay(bench, { to: OTHER })).toMatchObject({ cursor: null })
      const said = await origins(bench)
      expect(new Set(said).size).toBe(said.length)
      // Those whose acknowledgement is still in the log, these at least.
      const late = Array.from({ length: 100 }, (_, i) => 2 * i + 1)
      expect(said).toEqual(expect.arrayContaining(late))
    })

    // Of two copies of a batch, both in the log, each is said if a page ends between them.
    it('says each message once in many pages', async () => {
      const bench = await copiedTwice()
      let pages = 0
      for (let cursor: string | null | undefined; cursor !== null; pages++) {
        const page: ReplayResult = await replay(bench, { to: OTHER, limit: 7, cursor })
        cursor = page.cursor
      }
      expect(pages).toBeGreaterThan(10)
      const said = await origins(bench)
      expect(new Set(said).size).toBe(said.length)
    })
  })

  it('says each message once where both the batch and a copy of it are retained', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({}, OTHER)
    bench.ensure()
    await bench.publish(many(20, { bodyBytes: 900 }))
    const { firstPosition } = bench.log.usage()
    // Copied forward while its old place is still there: the oldest segment waits for its last facts.
    let copies = 0
    for (let i = 0; i < 60 && copies === 0; i++) {
      await bench.fill(20_000)
      copies = bench.broker.queue(Q).oldestPosition > firstPosition + SMALL.segmentBytes ? 1 : 0
    }
    expect(copies).toBe(1)
    bench.ensure({ retainAgeMs: HOUR })
    await drain(bench)
    await bench.pass(1_000)
    expect(await replay(bench, { to: OTHER })).toEqual({ matched: 20, replayed: 20, cursor: null })
    expect(await origins(bench)).toEqual(Array.from({ length: 20 }, (_, i) => i))
  })
})

describe('history', () => {
  const events = async (bench: Bench, offset: number): Promise<[HistoryEvent['event'], ...number[]][]> => {
    bench.broker.beginTurn()
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

  it('goes on inside an entry that says more of the message than a page has room for', async () => {
    const bench = await new Bench().open()
    bench.ensure({})
    await bench.publish([{}, {}])
    bench.broker.beginTurn()
    const times = Array.from({ length: 1_500 }, (_, i) => bench.now + HOUR + i)
    for (const atMs of times) {
      bench.broker.operator.reschedule({ name: Q, offset: 1, id: undefined, delayMs: undefined, atMs })
      bench.broker.operator.reschedule({ name: Q, offset: 0, id: undefined, delayMs: HOUR, atMs: undefined })
    }
    const entries = bench.log.entries.length
    await bench.settle()
    expect(bench.log.entries).toHaveLength(entries + 1)
    bench.broker.beginTurn()
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
    // Each names the same entry, and how much of it was told.
    expect(cursors).toHaveLength(2)
    expect(new Set(cursors.map((cursor) => cursor.slice(0, cursor.lastIndexOf(':')))).size).toBe(1)
    expect(found.map(({ event }) => event)).toEqual([
      'published',
      ...times.map(() => 'rescheduled'),
      'purged',
    ])
    expect(found.slice(1, -1).map(({ dueMs }) => dueMs)).toEqual(times)
  })

  it('tells of a purge where it took the message, and not of a duplicate or of what was gone', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a' }, { id: 'a' }, {}])
    const worker = bench.consume(2)
    await bench.settle()
    worker.settle(2, OUTCOME.ack)
    await bench.settle()
    bench.broker.beginTurn()
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

  it('tells what happened in the order in which it did', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR, dedupWindowMs: HOUR, maxDeliveries: 2 })
    const t = bench.now
    await bench.publish([{ id: 'a', delayMs: 1_000 }, { id: 'a' }])
    bench.broker.beginTurn()
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
    await redrive(bench)
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
      // It was never there for anybody.
      expect(await events(bench, 1)).toEqual([['duplicate', t]])
      await expect(events(bench, 2)).rejects.toMatchObject({ code: 'MESSAGE_NOT_FOUND' })
    }
  })
})

describe('a request that reads', () => {
  it('waits for its turn, and is refused where too many wait', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish(many(3))
    const peek = { name: Q, state: undefined, from: 0, limit: 10, filter: {} }
    const outcomes = await Promise.allSettled(
      Array.from({ length: 300 }, () => bench.broker.operator.peek(peek, CALLER)),
    )
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused).toHaveLength(300 - 256)
    for (const outcome of refused)
      expect(outcome).toMatchObject({ reason: { code: 'TOO_MANY_REQUESTS', retryable: true } })
    expect((await bench.broker.operator.peek(peek, CALLER)).messages).toHaveLength(3)
  })

  it('shows what is there by now, and changes nothing', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    await bench.publish([{ ttlMs: 5_000 }, { delayMs: 5_000 }, { delayMs: 5_000, ttlMs: 1 }, {}])
    // Time passes, and no timer fires.
    bench.now += 6_000
    const entries = bench.log.entries.length
    bench.broker.beginTurn()
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

describe('what holds the oldest segment', () => {
  it('is told, with the queue that has a message there, and so is what was written for what was taken', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    expect(bench.broker.holder()).toEqual({ by: 'writing', queue: undefined })
    await bench.publish([{ bodyBytes: 900 }])
    const worker = bench.consume(1)
    await bench.settle()
    await bench.fill(SMALL.segmentBytes)
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
    // One, then 64, then 4 each time.
    expect(recordBytes).toBe(225 * 908)
    expect(writtenBytes).toBeGreaterThan(recordBytes)
    expect(liveBytes).toBe(0)
  })
})

describe('consumers', () => {
  it('come in pages that look at no more leases than one after another may', async () => {
    const bench = await new Bench().open()
    bench.ensure({})
    const workers = [bench.consume(3), bench.consume(3), bench.consume(3)]
    for (let i = 0; i < 3; i++) {
      await bench.publish(many(3))
      await bench.settle()
      await bench.pass(10)
    }
    const oldest = workers.map(({ subscription }) => subscription.oldestLeaseMs)
    // As if two of them had held very much once.
    for (const { subscription } of workers.slice(0, 2)) subscription.claimTag(1 << 17)
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
