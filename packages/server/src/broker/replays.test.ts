/** Replays across pages, windows, crashes and copies of batches, and the segments that the log retains for them. */
import { OUTCOME, queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, CALLER, Q, type Message } from '../testing/bench.js'
import type { ReplayResult } from './replays.js'

const OTHER = queueName('other')
const HOUR = 3_600_000
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }

const many = (count: number, message: Message = {}): Message[] => Array.from({ length: count }, () => message)

type Replay = Partial<Parameters<Bench['broker']['replays']['page']>[0]>

async function replay(bench: Bench, request: Replay = {}): Promise<ReplayResult> {
  bench.broker.turn.begin()
  const from = { fromOffset: undefined, fromMs: undefined, untilMs: undefined, cursor: undefined }
  const defaults = { name: Q, ...from, limit: 1000, filter: {}, to: undefined, dryRun: false }
  const result = await bench.broker.replays.page({ ...defaults, ...request }, CALLER)
  await bench.settle()
  return result
}

describe('retention', () => {
  /** Publishes messages of about a kilobyte, and acknowledges each at once. */
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

  it('by age keeps the segments of messages until the messages have reached that age', async () => {
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

  it('by bytes keeps whole segments, and no more segments than needed', async () => {
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
    // The newest page of the queue predates the last release of segments, so recovery releases them again.
    await bench.pass(2_000)
    expect(retained()).toBe(before)
    const { matched } = await replay(bench, { dryRun: true })
    expect(matched).toBeGreaterThanOrEqual(220)
    expect(matched).toBeLessThan(400)
    bench.ensure({ retainBytes: 0 })
    await bench.fill(300_000)
    expect(retained()).toBe(0)
  })

  // Retention is checked once a second, and segments are freed within milliseconds.
  it('keeps a message that was the last live message in its segment', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    await bench.publish([{ key: 'first', priority: 1 }])
    const held = bench.consume(1)
    await bench.settle()
    const { firstPosition } = bench.log.usage()
    await bench.fill(2 * SMALL.segmentBytes)
    // The page of the message's chunk is rewritten from time to time, so the first segment is kept only for the
    // message itself.
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

  it('keeps one segment if `retainBytes` is less than the size of a segment', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainBytes: 100_000 })
    await work(bench, 150)
    expect(bench.info().retainedBytes).toBe(150 * 908)
    expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 150 })
  })
})

describe('replay', () => {
  it('into the same queue stops where the log ended when its first page was requested', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    for (let i = 0; i < 20; i++) await bench.publish([{}])
    await bench.drain()
    let replayed = 0
    let pages = 0
    for (let cursor: string | null | undefined; cursor !== null && pages < 50; pages++) {
      const page: ReplayResult = await replay(bench, { limit: 5, cursor })
      replayed += page.replayed
      cursor = page.cursor
      expect(cursor ?? '1:2:3:4:5:6:7').toMatch(/^\d+(:\d+){6}$/)
      // The copies are acknowledged, so they could be replayed too.
      expect(await bench.drain()).toHaveLength(page.replayed)
      if (pages === 1) await bench.crash()
    }
    expect(replayed).toBe(20)
    expect(pages).toBe(4)
    expect(bench.info()).toMatchObject({ published: 40, acked: 40 })
    await expect(replay(bench, { cursor: '1:2:3' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  it('that fails halfway reports its progress, and continues from there without repeating a message', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await bench.drain()
    bench.log.refusedFrom = 7
    const failed = await replay(bench, { to: OTHER })
    expect(failed).toMatchObject({ matched: 7, replayed: 7, error: { code: 'DISK_LOW', retryable: true } })
    const cursor = failed.cursor!
    // If a page makes no progress, its answer is the error.
    await expect(replay(bench, { to: OTHER, cursor })).rejects.toMatchObject({ code: 'DISK_LOW' })
    await bench.crash()
    expect(await replay(bench, { to: OTHER, cursor })).toEqual({ matched: 13, replayed: 13, cursor: null })
    expect(await bench.origins(OTHER)).toEqual(Array.from({ length: 20 }, (_, i) => i))
  })

  it('to a queue that does not exist is refused, even as a dry run, on a later page or with nothing to publish', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(4))
    await bench.drain()
    const notFound = { code: 'QUEUE_NOT_FOUND', message: expect.stringContaining('other') as string }
    const { cursor } = await replay(bench, { to: OTHER, limit: 2, dryRun: true })
    bench.broker.catalog.delete(OTHER)
    for (const dryRun of [true, false]) {
      for (const request of [{}, { cursor: cursor! }, { filter: { key: 'none' } }, { fromOffset: 4 }])
        await expect(replay(bench, { to: OTHER, dryRun, ...request })).rejects.toMatchObject(notFound)
    }
  })

  it.each([0, 1, 2, 3])(
    'covers one window after the other, with a crash before page %i',
    async (crashBefore) => {
      // Some batches have one message and other batches have several. Some batches cross the edge of a window, and
      // one window has no messages.
      const bench = await new Bench({ replayWindowOffsets: 8 }).open()
      bench.ensure({ retainAgeMs: HOUR, ttlMs: HOUR })
      bench.ensure({}, OTHER)
      for (const count of [1, 5, 6, 4, 8]) await bench.publish(many(count))
      await bench.drain()
      await bench.publish(Array.from({ length: 10 }, () => ({ ttlMs: 1 })))
      await bench.pass(1_000)
      await bench.publish(many(3))
      await bench.drain()
      let replayed = 0
      let pages = 0
      for (let cursor: string | null | undefined; cursor !== null && pages < 50; pages++) {
        if (pages % 4 === crashBefore) await bench.crash()
        const page: ReplayResult = await replay(bench, { to: OTHER, limit: 5, cursor })
        replayed += page.replayed
        cursor = page.cursor
      }
      expect(replayed).toBe(27)
      expect(await bench.origins(OTHER)).toEqual([...Array.from({ length: 24 }, (_, i) => i), 34, 35, 36])
      expect(pages).toBeGreaterThan(6)
    },
  )

  it('ends with the connection of its client, and then keeps no window', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await bench.drain()
    const request = { name: Q, fromOffset: undefined, fromMs: undefined, untilMs: undefined, limit: 5 }
    const all = { ...request, cursor: undefined, filter: {}, to: OTHER, dryRun: true }
    const caller = { label: '', isOpen: true }
    const pages = []
    for (let i = 0; i < 8; i++) pages.push(await bench.broker.replays.page(all, caller))
    // Unfinished replays count towards the limit until they are idle.
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

  it('includes acknowledged messages, but no messages that are pending or ended in another way', async () => {
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
    bench.broker.turn.begin()
    const selection = { name: Q, from: 0, limit: 10, offsets: undefined, filter: {}, dryRun: false }
    expect(await bench.broker.operator.discard(selection, CALLER)).toMatchObject({ discarded: 1 })
    await bench.settle()
    const request = { to: OTHER, limit: 1000 }
    expect(await replay(bench, request)).toEqual({ matched: 2, replayed: 2, cursor: null })
    expect(await bench.origins(OTHER)).toEqual([0, 5])
    await bench.crash()
    expect(await replay(bench, { ...request, fromOffset: 1 })).toMatchObject({ matched: 1 })
    expect(await replay(bench, { ...request, filter: { id: 'a' } })).toMatchObject({ matched: 1 })
    expect(await replay(bench, { ...request, fromMs: bench.now })).toMatchObject({ matched: 0 })
    expect(await replay(bench, { ...request, untilMs: bench.now })).toMatchObject({ matched: 2 })
    // The message that was leased at the crash is ready again.
    expect(bench.info()).toMatchObject({ ready: 1, discarded: 1, cancelled: 1, expired: 1, duplicates: 1 })
  })

  describe('of relocated messages', () => {
    const copiedTwice = async (): Promise<Bench> => {
      const bench = await new Bench(SMALL).open()
      bench.ensure({}, OTHER)
      bench.ensure()
      for (let i = 0; i < 20; i++) await bench.publish(many(10, { bodyBytes: 400 }))
      const held = bench.consume(200)
      await bench.settle()
      // The other half of each batch keeps the whole batch live.
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

    it('publishes each message once in one page', async () => {
      const bench = await copiedTwice()
      expect(await replay(bench, { to: OTHER })).toMatchObject({ cursor: null })
      const published = await bench.origins(OTHER)
      expect(new Set(published).size).toBe(published.length)
      // At least the messages whose acknowledgement is still in the log must be published.
      const late = Array.from({ length: 100 }, (_, i) => 2 * i + 1)
      expect(published).toEqual(expect.arrayContaining(late))
    })

    // Two copies of a batch can both be in the log, with the end of a page between them.
    it('publishes each message once in many pages', async () => {
      const bench = await copiedTwice()
      let pages = 0
      for (let cursor: string | null | undefined; cursor !== null; pages++) {
        const page: ReplayResult = await replay(bench, { to: OTHER, limit: 7, cursor })
        cursor = page.cursor
      }
      expect(pages).toBeGreaterThan(10)
      const published = await bench.origins(OTHER)
      expect(new Set(published).size).toBe(published.length)
    })
  })

  it('publishes each message once if both a batch and its copy are retained', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({}, OTHER)
    bench.ensure()
    await bench.publish(many(20, { bodyBytes: 900 }))
    const { firstPosition } = bench.log.usage()
    // The batch is copied while the original is still in the log, because the oldest segment is freed only when its
    // last facts are durable.
    let copies = 0
    for (let i = 0; i < 60 && copies === 0; i++) {
      await bench.fill(20_000)
      copies =
        bench.broker.catalog.queue(Q).chunks.oldestPosition > firstPosition + SMALL.segmentBytes ? 1 : 0
    }
    expect(copies).toBe(1)
    bench.ensure({ retainAgeMs: HOUR })
    await bench.drain()
    await bench.pass(1_000)
    expect(await replay(bench, { to: OTHER })).toEqual({ matched: 20, replayed: 20, cursor: null })
    expect(await bench.origins(OTHER)).toEqual(Array.from({ length: 20 }, (_, i) => i))
  })
})
