/** Replays across pages, windows, crashes and copies of batches, and the segments that the log retains for them. */
import { OUTCOME, queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, CALLER, Q, isSettledSoon, type Message } from '../testing/bench.js'
import { CHUNK_MESSAGES } from '../queue/index.js'
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
  const page = bench.broker.replays.page({ ...defaults, ...request }, CALLER)
  // A long page lets other turns run in between.
  while (!(await isSettledSoon(page))) bench.endTurns()
  const result = await page
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

  it('by age keeps messages until they have reached that age, without keeping other parts of the log', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    await work(bench, 300)
    await bench.fill(600_000)
    expect(bench.info().retainedBytes).toBe(300 * 908)
    expect(await bench.crash()).toBe(true)
    await bench.fill(600_000)
    expect(bench.info().retainedBytes).toBe(300 * 908)
    expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 300, cursor: null })
    const { bytes } = bench.log.usage()
    expect(bytes).toBeLessThan(3 * 300 * 908 + 6 * SMALL.segmentBytes)

    await bench.pass(HOUR)
    await bench.fill(200_000)
    expect(bench.log.usage().bytes).toBeLessThan(bytes - 200 * 908)
    expect(bench.info().retainedBytes).toBe(0)
    expect(await replay(bench, { dryRun: true })).toEqual({ matched: 0, replayed: 0, cursor: null })
    expect(await bench.crash()).toBe(true)
    expect(bench.info().retainedBytes).toBe(0)
  })

  it('by bytes keeps at most one chunk of messages too much', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainBytes: 200_000 })
    await work(bench, 2_500)
    const retained = (): number => bench.info().retainedBytes
    expect(retained()).toBeGreaterThanOrEqual(200_000)
    expect(retained()).toBeLessThan(200_000 + 1_024 * 908)
    const before = retained()
    const { matched } = await replay(bench, { dryRun: true })
    expect(matched * 908).toBe(before)
    expect(await bench.crash()).toBe(true)
    expect(retained()).toBe(before)
    expect((await replay(bench, { dryRun: true })).matched).toBe(matched)
    bench.ensure({ retainBytes: 0 })
    await bench.settle()
    expect(retained()).toBe(0)
    expect(await bench.crash()).toBe(true)
    expect(retained()).toBe(0)
  })

  it('by bytes releases batch by batch if a chunk has many bytes', async () => {
    const bench = await new Bench({
      segmentBytes: 8 << 20,
      checkpointBytes: 1 << 20,
      messageBytesMax: 1 << 20,
    }).open()
    bench.ensure({ retainBytes: 4 << 20 })
    const worker = bench.consume()
    for (let i = 0; i < 24; i++) {
      await bench.publish([{ bodyBytes: 1_000_000 }])
      worker.ackAll()
      await bench.pass(25)
    }
    expect(bench.info().retainedBytes).toBeGreaterThanOrEqual(4 << 20)
    expect(bench.info().retainedBytes).toBeLessThanOrEqual((16 << 20) + 2_000_000)
    const before = bench.info().retainedBytes
    expect(await bench.crash()).toBe(true)
    expect(bench.info().retainedBytes).toBe(before)
  })

  it('releases a bounded number of chunks in one turn, however many are beyond the limits', async () => {
    const chunks = 200
    const filled = async (): Promise<Bench> => {
      const bench = await new Bench({ segmentBytes: 1 << 20, checkpointBytes: 64 * 1024 }).open()
      bench.ensure({ retainAgeMs: HOUR })
      for (let i = 0; i < chunks; i++) {
        await bench.publish(many(CHUNK_MESSAGES, { bodyBytes: 4 }))
        const worker = bench.consume(CHUNK_MESSAGES)
        await bench.settle()
        worker.ackAll()
        worker.leave()
        await bench.pass(25)
      }
      expect(bench.info().retainedBytes).toBe(chunks * CHUNK_MESSAGES * 12)
      return bench
    }
    const ends: ((bench: Bench) => void)[] = [
      (bench) => bench.ensure({ retainAgeMs: 0, retainBytes: 1 }),
      (bench) => (bench.now += 2 * HOUR),
    ]
    for (const end of ends) {
      const bench = await filled()
      const left = (): number => bench.info().retainedBytes / 12 / CHUNK_MESSAGES
      end(bench)
      let turns = 0
      for (let before = left(); before > 1; before = left(), turns++) {
        bench.now += 10
        bench.broker.turn.tick()
        bench.endTurns()
        expect(before - left()).toBeLessThanOrEqual(64)
        if (turns > 20) throw new Error(`${left()} chunks are left after ${turns} turns`)
      }
      expect(turns).toBeGreaterThan(2)
      await bench.settle()
      bench.broker.audit()
    }
  })

  it('leaves no fraction of a byte behind when the last message is released', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: 1_000 })
    for (const count of [1_001, 1_003, 1_007])
      await bench.publish(Array.from({ length: count }, (_, i) => ({ bodyBytes: (i * i) % 11 })))
    for (const share of [3, 7, 1]) {
      const worker = bench.consume(10_000)
      await bench.settle()
      for (const { offset } of worker.got) if (offset % share === 0) worker.settle(offset, OUTCOME.ack)
      worker.leave()
      await bench.settle()
    }
    expect(bench.info().ready).toBe(0)
    expect(bench.info().retainedBytes).toBeGreaterThan(3_011 * 8)
    await bench.pass(2_000)
    expect(bench.broker.catalog.queue(Q).retainedBytes).toBe(0)
  })

  it('that ends with a change of the options has ended after a crash too, whichever entry was the last', async () => {
    const seen = { changed: 0, released: 0 }
    for (let bodyBytes = 0; bodyBytes < 120; bodyBytes += 10) {
      const options = { entryBytesMax: 4_096, messageBytesMax: 512, keepsSnapshots: true }
      const bench = await new Bench({ ...SMALL, ...options }).open()
      bench.ensure({ retainAgeMs: HOUR })
      bench.ensure({}, OTHER)
      await bench.publish(many(10))
      await bench.drain()
      const from = bench.snapshots.length
      // The open entry is almost full when the options change.
      bench.put([{ bodyBytes }], OTHER)
      for (let i = 0; i < 7; i++) bench.put([{ bodyBytes: 430 }], OTHER)
      bench.ensure({ retainAgeMs: 0 })
      await bench.settle()
      for (const snapshot of [...bench.snapshots.slice(from), bench.log]) {
        await bench.restart(snapshot.reopened(SMALL))
        const { options: found, retainedBytes } = bench.info()
        if (retainedBytes === 0) seen.released++
        if (found.retainAgeMs !== 0) continue
        seen.changed++
        expect(retainedBytes).toBe(0)
      }
    }
    expect(seen.changed).toBeGreaterThanOrEqual(12)
    // Some crashes were between the release and the change.
    expect(seen.released).toBeGreaterThan(seen.changed)
  })

  it('begins with a change of the options, also after a crash while a checkpoint has written only a part of the queue', async () => {
    const bench = await new Bench({
      segmentBytes: 128 * 1024,
      checkpointBytes: 32 * 1024,
      keepsSnapshots: true,
    }).open()
    bench.ensure()
    bench.ensure({}, OTHER)
    // Batches of one message, so that the page of each chunk takes a slice of the checkpoint.
    for (let i = 0; i < 3_000; i++) {
      bench.put([{ bodyBytes: 4 }])
      if (i % 100 === 0) await bench.settle()
    }
    const worker = bench.consume(10_000)
    await bench.settle()
    const ack = (...offsets: number[]): void => {
      for (const offset of offsets) worker.settle(offset, OUTCOME.ack)
    }
    await bench.fill(100_000)
    ack(5, 1_030, 2_060)
    await bench.settle()
    const queue = bench.broker.catalog.queue(Q)
    const chunk = queue.heldChunk(0)!
    const before = chunk.pagePosition
    for (let i = 0; i < 2_000 && chunk.pagePosition === before; i++) {
      bench.put([{ bodyBytes: 700 }], OTHER)
      bench.now += 25
      bench.broker.turn.tick()
      bench.endTurns()
      await new Promise(setImmediate)
    }
    const { definitionPosition } = queue
    // The page of the chunk is already written, and the definition is not.
    expect(definitionPosition).toBeLessThan(chunk.pagePosition)
    ack(100, 101, 102)
    bench.endTurns()
    bench.ensure({ retainAgeMs: HOUR })
    ack(200)
    await bench.settle()
    expect(queue.definitionPosition).toBeGreaterThan(chunk.pagePosition)
    const from = bench.snapshots.length
    for (let i = 0; i < 40; i++) {
      bench.put([{ bodyBytes: 700 }], OTHER)
      await bench.pass(25)
    }
    for (const snapshot of bench.snapshots.slice(from)) {
      await bench.restart(snapshot.reopened({ segmentBytes: 128 * 1024 }))
      expect(bench.info().retainedBytes).toBe(12)
    }
  })

  it('keeps acknowledged messages of a chunk that has a dead message, and no messages that ended in another way', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: HOUR })
    await bench.publish(many(100, { bodyBytes: 100 }))
    const worker = bench.consume(100)
    await bench.settle()
    for (let offset = 0; offset < 100; offset++)
      worker.settle(offset, offset % 10 === 0 ? OUTCOME.deadLetter : OUTCOME.ack)
    await bench.settle()
    for (let round = 0; round < 3; round++) {
      expect(bench.info()).toMatchObject({ dead: 10, retainedBytes: 90 * 108 })
      expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 90 })
      await bench.fill(300_000)
      await bench.crash()
    }
    await bench.pass(HOUR)
    expect(bench.info()).toMatchObject({ dead: 10, retainedBytes: 0 })
  })

  it('ends when the options change, and starts again for messages that are acknowledged after they are set again', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    await work(bench, 50)
    bench.ensure({ retainAgeMs: HOUR })
    await work(bench, 50)
    expect(bench.info().retainedBytes).toBe(50 * 908)
    bench.ensure({ retainAgeMs: 0 })
    expect(bench.info().retainedBytes).toBe(0)
    bench.ensure({ retainAgeMs: HOUR })
    await work(bench, 20)
    await bench.fill(300_000)
    expect(await bench.crash()).toBe(true)
    expect(bench.info().retainedBytes).toBe(20 * 908)
    expect(await replay(bench, { dryRun: true })).toMatchObject({ matched: 20 })
    bench.broker.catalog.delete(Q)
    await bench.settle()
  })

  it('keeps many messages out of memory, and finds them by offset and by time', async () => {
    const bench = await new Bench({ segmentBytes: 1 << 20, checkpointBytes: 64 * 1024 }).open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    const times: number[] = []
    for (let i = 0; i < 100; i++) {
      times.push(bench.now)
      await bench.publish(many(100, { bodyBytes: 10 }))
      await bench.drain()
      await bench.pass(1_000)
    }
    await bench.fill(1 << 20)
    const { chunks } = bench.broker.catalog.queue(Q)
    expect(chunks.retention!.numbers.length).toBe(10)
    expect(chunks.retention!.inMemoryCount).toBeLessThan(3)
    for (const restart of [false, true]) {
      if (restart) await bench.crash()
      expect(await replay(bench, { to: OTHER, fromMs: times[57]!, limit: 3 })).toMatchObject({ replayed: 3 })
      expect((await bench.origins(OTHER)).slice(-3)).toEqual([5_700, 5_701, 5_702])
      const range = { fromMs: times[20]!, untilMs: times[80]!, dryRun: true, limit: 10_000 }
      expect(await replay(bench, range)).toMatchObject({ matched: 6_000, cursor: null })
      expect(await replay(bench, { fromOffset: 9_990, dryRun: true })).toMatchObject({ matched: 10 })
    }
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
      expect(cursor ?? '1:2').toMatch(/^\d+:\d+$/)
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

  it('of a queue that is deleted during a page ends with an error, and reports what was replayed', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(900))
    await bench.drain()
    bench.broker.turn.begin()
    const from = { fromOffset: 0, fromMs: undefined, untilMs: undefined, cursor: undefined }
    const request = { name: Q, ...from, limit: 1_000, filter: {}, to: OTHER, dryRun: false }
    const page = bench.broker.replays.page(request, CALLER)
    while (bench.info(OTHER).published === 0) await new Promise(setImmediate)
    bench.broker.turn.begin()
    bench.broker.catalog.delete(Q)
    bench.ensure({ retainAgeMs: HOUR })
    const result = await bench.answer(page)
    expect(result.error).toMatchObject({ code: 'QUEUE_NOT_FOUND', message: 'The queue q was deleted.' })
    expect(result.replayed).toBe(bench.info(OTHER).published)
    expect(result.replayed).toBeLessThan(900)
    expect(result.cursor).toBe(`${result.replayed}:900`)
  })

  it('skips messages that expired or wait, with a crash before a page', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR, ttlMs: HOUR })
    bench.ensure({}, OTHER)
    for (const count of [1, 5, 6, 4, 8]) await bench.publish(many(count))
    await bench.drain()
    await bench.publish(Array.from({ length: 10 }, () => ({ ttlMs: 1 })))
    await bench.pass(1_000)
    await bench.publish(many(3))
    await bench.drain()
    await bench.publish(many(2))
    let replayed = 0
    let pages = 0
    for (let cursor: string | null | undefined; cursor !== null && pages < 50; pages++) {
      if (pages % 2 === 1) await bench.crash()
      const page: ReplayResult = await replay(bench, { to: OTHER, limit: 5, cursor })
      replayed += page.replayed
      cursor = page.cursor
    }
    expect(replayed).toBe(27)
    expect(await bench.origins(OTHER)).toEqual([...Array.from({ length: 24 }, (_, i) => i), 34, 35, 36])
    expect(pages).toBe(6)
  })

  it('ends with the connection of its client', async () => {
    const bench = await new Bench().open()
    bench.ensure({ retainAgeMs: HOUR })
    bench.ensure({}, OTHER)
    await bench.publish(many(20))
    await bench.drain()
    const request = { name: Q, fromOffset: undefined, fromMs: undefined, untilMs: undefined, limit: 1_000 }
    const caller = { label: '', isOpen: true }
    const all = { ...request, cursor: undefined, filter: {}, to: OTHER, dryRun: false }
    const gone = bench.broker.replays.page(all, caller)
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
