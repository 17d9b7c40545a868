/** Chunks that leave memory after a checkpoint, and are read back when their messages are needed. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  OUTCOME,
  batchCount,
  batchType,
  queueName,
  type QueueName,
} from '@sluice/protocol'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { entryBatches } from '../log/entry.js'
import { CHUNK_MESSAGES, PAGE } from '../queue/index.js'
import type { MemoryLog } from '../log/memory-log.js'
import { Bench, CALLER, Q, type BenchOptions, type Message } from '../testing/bench.js'
import { ColdChunks } from './cold-chunks.js'
import { PageTree } from './page-tree.js'
import { Replay } from './replay.js'
import { runs } from '../../../../test/amount.js'
import { replaced } from '../../../../test/simulation/defects.js'

const OPTIONS = { segmentBytes: 256 * 1024, checkpointBytes: 16 * 1024 }
const CHUNKS = 14
/** Number of chunks that stay in memory although they could be cold; a batch can span two. */
const WARM = 2
const COUNT = CHUNKS * CHUNK_MESSAGES

const repeated = (count: number, message: Message): Message[] => Array.from({ length: count }, () => message)
const upTo = (end: number, from = 0): number[] => Array.from({ length: end - from }, (_, at) => from + at)

/** A queue with `COUNT` messages in batches of `size`, most of whose chunks are cold. */
async function filled(size = 100, options: BenchOptions = OPTIONS): Promise<Bench> {
  const bench = await new Bench(options).open()
  bench.ensure()
  for (let left = COUNT; left > 0; left -= size)
    await bench.publish(repeated(Math.min(size, left), { bodyBytes: 20 }))
  await bench.fill(40_000)
  expect(bench.broker.coldChunks()).toBeGreaterThanOrEqual(CHUNKS - 5 - WARM)
  bench.broker.audit()
  return bench
}

/** Recovers with another number of chunks at the head of each queue in memory. */
async function withHead(headChunks: number, recover: () => Promise<unknown>): Promise<void> {
  const before = Replay.headChunks
  Replay.headChunks = headChunks
  try {
    await recover()
  } finally {
    Replay.headChunks = before
  }
}

async function drainedOf(bench: Bench): Promise<number[]> {
  const offsets: number[] = []
  for (let got = await bench.drain(); got.length > 0; got = await bench.drain()) {
    offsets.push(...got)
    bench.broker.audit()
  }
  expect(bench.broker.coldChunks()).toBe(0)
  return offsets
}

async function drained(bench: Bench): Promise<number[]> {
  const offsets = await drainedOf(bench)
  expect(bench.broker.usage().liveBytes).toBe(0)
  return offsets
}

const { warmMax } = ColdChunks
beforeAll(() => {
  ColdChunks.warmMax = WARM
})
afterAll(() => {
  ColdChunks.warmMax = warmMax
})

describe('cold chunks', () => {
  it('are read before the broker explains one of their messages', async () => {
    const bench = await filled()
    const { operator, explainer } = bench.broker
    const queue = bench.broker.catalog.queue(Q)
    const offset = upTo(COUNT).find((offset) => queue.chunks.isCold(offset))!
    const request = { name: Q, offset, id: undefined }
    expect(operator.mustRead(request)).toBe(true)
    const answer = operator.whenRead(request, CALLER, () => explainer.explain(request))
    expect(await bench.answer(Promise.resolve(answer))).toEqual({ reasons: [{ code: 'noConsumer' }] })
    expect(queue.chunks.isCold(offset)).toBe(false)
  })

  it.each([7, 100, 1000, 1024])('are delivered in order, from batches of %i', async (size) => {
    const bench = await filled(size)
    const { ready, bytes, oldestReadyMs } = bench.info()
    expect(ready).toBe(COUNT)
    expect(bytes).toBe(COUNT * 28)
    expect(oldestReadyMs).toBeGreaterThan(0)
    expect(await drained(bench)).toEqual(upTo(COUNT))
    expect(bench.info()).toMatchObject({ ready: 0, acked: COUNT, bytes: 0 })
  })

  it('stay cold across a restart, which also keeps the changes to other chunks', async () => {
    const bench = await filled()
    const worker = bench.consume(1500)
    await bench.settle()
    worker.ackAll()
    worker.leave()
    await bench.settle()
    for (let restarts = 0; restarts < 3; restarts++) {
      await withHead(4, () => bench.crash())
      bench.broker.audit()
      expect(bench.info().ready).toBe(COUNT - 1500)
      await bench.fill(40_000)
      expect(bench.info().ready).toBe(COUNT - 1500)
      expect(bench.broker.coldChunks()).toBeGreaterThan(2)
    }
    expect(await drained(bench)).toEqual(upTo(COUNT, 1500))
  })

  it('are gone after a purge, without being read', async () => {
    const bench = await filled()
    bench.broker.turn.begin()
    expect(bench.broker.catalog.purge(Q)).toBe(COUNT)
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.coldChunks()).toBe(0)
    expect(bench.broker.usage().liveBytes).toBe(0)
    await bench.publish([{}])
    await bench.crash()
    bench.broker.audit()
    expect(await bench.drain()).toEqual([COUNT])
  })

  it('are gone when the queue is deleted', async () => {
    const bench = await filled()
    bench.broker.turn.begin()
    bench.broker.catalog.delete(Q)
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
    await bench.crash()
    bench.broker.audit()
  })

  it('are read for a peek, and leave memory again', async () => {
    const bench = await filled()
    bench.broker.turn.begin()
    const peek = { name: Q, state: undefined, limit: 5, filter: {}, from: 7 * CHUNK_MESSAGES - 2 }
    const page = await bench.answer(bench.broker.operator.peek(peek, CALLER))
    expect(page.messages.map(({ offset, state }) => [offset, state])).toEqual(
      upTo(7 * CHUNK_MESSAGES + 3, 7 * CHUNK_MESSAGES - 2).map((offset) => [offset, 'ready']),
    )
    bench.broker.audit()
    expect(await drained(bench)).toEqual(upTo(COUNT))
  })

  it('are read before one of their messages is cancelled or rescheduled', async () => {
    const bench = await filled()
    const { operator } = bench.broker
    const cancelled = { name: Q, offset: 6 * CHUNK_MESSAGES + 5, id: undefined }
    const moved = { name: Q, offset: 8 * CHUNK_MESSAGES, id: undefined, delayMs: 60_000, atMs: undefined }
    expect([operator.mustRead(cancelled), operator.mustRead(moved)]).toEqual([true, true])
    bench.broker.turn.begin()
    await bench.answer(
      Promise.resolve(operator.whenRead(cancelled, CALLER, () => operator.cancel(cancelled))),
    )
    bench.broker.turn.begin()
    await bench.answer(Promise.resolve(operator.whenRead(moved, CALLER, () => operator.reschedule(moved))))
    await bench.settle()
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(bench.info()).toMatchObject({ ready: COUNT - 2, scheduled: 1 })
    const offsets = await drainedOf(bench)
    expect(offsets).toEqual(
      upTo(COUNT).filter((offset) => offset !== cancelled.offset && offset !== moved.offset),
    )
    await bench.pass(60_000)
    expect(await bench.drain()).toEqual([moved.offset])
  })

  it('are copied forward when their segment is needed', async () => {
    const bench = await filled()
    // The messages of another queue are published and settled, so that the first segments are copied.
    const other = queueName('other')
    bench.ensure({}, other)
    for (let round = 0; round < 60; round++) {
      await bench.publish(repeated(100, { bodyBytes: 900 }), other)
      await bench.drain(other)
      await bench.pass(1_000)
    }
    await bench.fill(600_000)
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(await drained(bench)).toEqual(upTo(COUNT))
  })

  it('of one batch are copied together, although fewer chunks may stay in memory', async () => {
    ColdChunks.warmMax = 1
    const bench = await filled(7 * CHUNK_MESSAGES, { segmentBytes: 2 << 20, checkpointBytes: 16 * 1024 })
    const oldest = (): number => bench.broker.catalog.queue(Q).chunks.oldestPosition
    const first = oldest()
    let read = 0
    const remove = replaced(ColdChunks.prototype, (before) => ({
      whileWarm(this: ColdChunks, ranges, use) {
        read++
        return before.whileWarm.call(this, ranges, use)
      },
    }))
    try {
      await bench.fill(12 << 20)
    } finally {
      remove()
      ColdChunks.warmMax = WARM
    }
    expect(read).toBeGreaterThan(0)
    expect(oldest()).toBeGreaterThan(first + (2 << 20))
    bench.broker.audit()
    await bench.crash()
    expect(await drained(bench)).toEqual(upTo(COUNT))
  })

  it('of a stream enter a group, even if they were read before and became cold again', async () => {
    const bench = await new Bench(OPTIONS).open()
    const name = queueName('clicks')
    const group = 'clicks@a' as QueueName
    bench.broker.turn.begin()
    bench.broker.streams.ensure({ name, options: {}, update: true })
    for (let at = 0; at < 60; at++) {
      await bench.publish(repeated(100, { bodyBytes: 20 }), name)
      await bench.pass(10)
    }
    await bench.fill(40_000)
    const stream = bench.broker.catalog.queue(name)
    bench.broker.turn.begin()
    const { groups } = bench.broker
    groups.ensure({ name: group, options: {}, update: true, from: CHUNK_MESSAGES })
    for (const offset of [CHUNK_MESSAGES, 2 * CHUNK_MESSAGES]) {
      const place = { timeMs: stream.chunks.summaryAt(offset).firstMs + 1 }
      expect(groups.mustRead({ name: group, ...place })).toBe(true)
      await bench.answer(Promise.resolve(groups.whenRead(group, place, CALLER, () => {})))
      expect(stream.isCold(offset)).toBe(false)
    }
    // As after its page was written again.
    stream.makeCold(stream.heldChunk(CHUNK_MESSAGES)!)
    expect(stream.isCold(CHUNK_MESSAGES)).toBe(true)
    const offsets: number[] = []
    for (let got = await bench.drain(group); got.length > 0; got = await bench.drain(group))
      offsets.push(...got)
    expect(offsets).toEqual(upTo(6000, CHUNK_MESSAGES))
  })

  it('do not occur in a queue that drops its oldest messages', async () => {
    const bench = await new Bench(OPTIONS).open()
    bench.ensure({ maxMessages: 5_000, overflow: 'drop-oldest' })
    for (let i = 0; i < 100; i++) await bench.publish(repeated(100, { bodyBytes: 20 }))
    await bench.fill(40_000)
    expect(bench.broker.coldChunks()).toBe(0)
    expect((await bench.drain()).at(0)).toBe(5_000)
  })

  it('are dropped in order when the queue gets a limit', async () => {
    const bench = await filled()
    await bench.publish(repeated(10, { bodyBytes: 20, priority: 3 }))
    bench.ensure({ maxMessages: 2_000, overflow: 'drop-oldest' })
    for (let i = 0; i < 30; i++) {
      await bench.publish(repeated(10, { bodyBytes: 20 }))
      bench.broker.audit()
    }
    expect(bench.info().ready).toBe(2_000)
    // Messages with a higher priority are not dropped.
    const last = COUNT + 310
    const kept = [...upTo(COUNT + 10, COUNT), ...upTo(last, COUNT + 10)]
    const oldest = last - 2_000
    expect((await drainedOf(bench)).sort((a, b) => a - b)).toEqual([...upTo(COUNT, oldest), ...kept])
  })

  it('are copied forward without loss, whichever entry of the log was the last before a kill', async () => {
    const bench = await filled(1000, { ...OPTIONS, keepsSnapshots: true })
    const other = queueName('other')
    bench.ensure({}, other)
    const from = bench.snapshots.length
    for (let round = 0; round < 40; round++) {
      await bench.publish(repeated(100, { bodyBytes: 900 }), other)
      await bench.drain(other)
      await bench.pass(1_000)
    }
    const { snapshots } = bench
    const step = runs(5, 1)
    for (let at = from; at < snapshots.length; at += step) {
      await withHead(1, () => bench.restart(snapshots[at]!.reopened()))
      bench.broker.audit()
      expect(bench.info().ready).toBe(COUNT)
      if (at % 20 < step) expect(await drainedOf(bench)).toEqual(upTo(COUNT))
    }
  })

  it('leave no fraction of a byte behind', async () => {
    const bench = await new Bench(OPTIONS).open()
    bench.ensure()
    for (let i = 0; i < COUNT / 3; i++) {
      bench.put([{ bodyBytes: 20 }, { bodyBytes: 20 }, { bodyBytes: 21 }])
      if (i % 50 === 0) await bench.settle()
    }
    await bench.settle()
    await bench.fill(40_000)
    expect(bench.broker.coldChunks()).toBeGreaterThan(4)
    await drainedOf(bench)
    expect(bench.info().bytes).toBe(0)
  })

  it('are read at a start if leases of their messages can be claimed, even after a long drain', async () => {
    const bench = await new Bench({ segmentBytes: 1 << 20, checkpointBytes: 256 * 1024 }).open()
    bench.ensure()
    for (let i = 0; i < 90; i++) await bench.publish(repeated(CHUNK_MESSAGES, { bodyBytes: 20 }))
    await bench.fill(400_000)
    const drained = bench.consume(10_000)
    for (let left = 70 * CHUNK_MESSAGES; left > 0;) {
      await bench.settle()
      bench.broker.turn.begin()
      const got = drained.got.splice(0, Math.min(left, CHUNK_MESSAGES))
      left -= got.length
      const item = { firstTag: got[0]!.tag, count: got.length, outcome: OUTCOME.ack }
      bench.broker.leases.settle(drained.subscription, [item])
    }
    await bench.settle()
    const { subscription } = drained
    const claims = [drained.got[0]!, drained.got.at(-1)!].map(({ offset, tag, attempt }) => ({
      ...{ offset, tag, attempt, bytes: 28, boot: bench.broker.boot },
      ...{ queueNumber: subscription.queue.id, subscriptionId: subscription.id },
    }))
    const log = bench.log.reopened()
    const readRange = log.readRange.bind(log)
    let bytes = 0
    log.readRange = (position, length, into) => {
      bytes += length
      return readRange(position, length, into)
    }
    await bench.restart(log)
    const again = bench.consume(10_000)
    bench.broker.turn.begin()
    expect(bench.broker.leases.claim(again.subscription, claims)).toHaveLength(2)
    // For each drained chunk its page is read, and no more.
    expect(bytes).toBeLessThan(16 << 20)
  })

  it('are read at a start if leases of their messages can be claimed, behind chunks with few messages', async () => {
    const bench = await filled()
    const worker = bench.consume(1_000)
    for (let left = 5 * CHUNK_MESSAGES; left > 0;) {
      await bench.settle()
      bench.broker.turn.begin()
      const got = worker.got.splice(0, left)
      left -= got.length
      for (const { offset, tag } of got) {
        const outcome = offset % 500 === 0 ? OUTCOME.deadLetter : OUTCOME.ack
        bench.broker.leases.settle(worker.subscription, [{ firstTag: tag, count: 1, outcome }])
      }
    }
    await bench.fill(40_000)
    const { subscription } = worker
    const claims = worker.got.map(({ offset, tag, attempt }) => ({
      ...{ offset, tag, attempt, bytes: 28, boot: bench.broker.boot },
      ...{ queueNumber: subscription.queue.id, subscriptionId: subscription.id },
    }))
    await withHead(1, () => bench.crash())
    expect(bench.broker.coldChunks()).toBeGreaterThan(0)
    const again = bench.consume(1_000)
    bench.broker.turn.begin()
    expect(bench.broker.leases.claim(again.subscription, claims)).toHaveLength(claims.length)
  })

  it('make a cancel fail if the queue is deleted and created again during the read', async () => {
    const bench = await filled()
    await withHead(1, () => bench.crash())
    const readRange = bench.log.readRange.bind(bench.log)
    let open = (): void => {}
    const isOpen = new Promise<void>((resolve) => {
      open = resolve
    })
    bench.log.readRange = (position, length, into) => isOpen.then(() => readRange(position, length, into))
    const { operator, catalog } = bench.broker
    const ref = { name: Q, offset: 6 * CHUNK_MESSAGES, id: undefined }
    bench.broker.turn.begin()
    let refusal: unknown
    Promise.resolve(operator.whenRead(ref, CALLER, () => operator.cancel(ref))).catch((error: unknown) => {
      refusal = error
    })
    await bench.settle()
    bench.broker.turn.begin()
    catalog.delete(Q)
    bench.ensure()
    for (let i = 0; i < 70; i++) bench.put(repeated(100, { bodyBytes: 20 }))
    await bench.settle()
    open()
    await bench.settle()
    expect(refusal).toMatchObject({ code: 'QUEUE_NOT_FOUND' })
    expect(bench.info()).toMatchObject({ ready: 7_000, cancelled: 0 })
  })

  it('end only the consumers of their queue if they cannot be read', async () => {
    const bench = await filled()
    const other = queueName('other')
    bench.ensure({}, other)
    await bench.publish([{}, {}], other)
    await withHead(1, () => bench.crash())
    const pages = bench.log.entries.flatMap(({ bytes, position }) =>
      [...entryBatches(bytes, 0)]
        .filter((at) => batchType(bytes, at) === BATCH_TYPE.page && batchCount(bytes, at) === PAGE.chunk)
        .map((at) => position + at),
    )
    const readRange = bench.log.readRange.bind(bench.log)
    let isDamaged = true
    bench.log.readRange = async (position, length, into) => {
      const bytes = Uint8Array.from(await readRange(position, length, into))
      for (const page of isDamaged ? pages : []) {
        const at = page + BATCH_HEADER_BYTES + 9 - position
        if (at >= 0 && at < bytes.length) bytes[at]! ^= 1
      }
      return bytes
    }
    const worker = bench.consume(60_000)
    await bench.settle()
    expect(worker.offsets).toEqual(upTo(CHUNK_MESSAGES))
    expect(worker.endings.map(({ code }) => code)).toEqual(['CORRUPT'])
    expect(bench.info()).toMatchObject({ ready: COUNT, leased: 0, consumers: 0 })
    bench.broker.audit()
    expect(await bench.drain(other)).toEqual([0, 1])
    isDamaged = false
    // The damaged block is still in memory, so other messages evict it.
    for (let i = 0; i < 40; i++) await bench.publish(repeated(100, { bodyBytes: 1000 }), other)
    await bench.crash()
    expect(await drainedOf(bench)).toEqual(upTo(COUNT))
  })

  it('do not change what is recovered, whichever entry of the log was the last before a kill', async () => {
    const bench = await settledInPart()
    const step = runs(60, 1)
    expect(await compareStarts(bench, step)).toBeGreaterThan(bench.snapshots.length / step)
  })

  // Mistakes that the test above must find. They are planted while the broker recovers.
  it.each<[string, () => () => void]>([
    [
      'recovery skips the facts about cold chunks',
      () => replaced(Replay.prototype, () => ({ coldIn: () => [] })),
    ],
    [
      'recovery takes the page of a cold chunk for newer than it is',
      () =>
        replaced(PageTree.prototype, (before) => ({
          find(kind, id, number) {
            const page = before.find.call(this, kind, id, number)
            return page === undefined ? undefined : { ...page, position: Infinity }
          },
        })),
    ],
    [
      'a summary counts the first batch twice',
      () =>
        replaced(PageTree.prototype, (before) => ({
          summary(id, number) {
            const found = before.summary.call(this, id, number)
            return found === undefined ? undefined : { ...found, uses: [...found.uses, found.uses[0]!] }
          },
        })),
    ],
  ])('found: %s', async (_what, plant) => {
    const bench = await settledInPart()
    const remove = plant()
    try {
      await expect(compareStarts(bench, 25)).rejects.toBeInstanceOf(Error)
    } finally {
      remove()
    }
  })
})

/** A queue with cold chunks, of which a consumer has settled the first messages. */
async function settledInPart(): Promise<Bench> {
  const bench = await filled(500, { ...OPTIONS, keepsSnapshots: true })
  const worker = bench.consume(700)
  for (let i = 0; i < 6; i++) {
    await bench.settle()
    bench.broker.turn.begin()
    const items = worker.got
      .splice(0, 500)
      .map(({ tag, offset }) => ({ firstTag: tag, count: 1, outcome: outcomeOf(offset) }))
    bench.broker.leases.settle(worker.subscription, items)
  }
  await bench.settle()
  await bench.fill(400_000)
  return bench
}

/**
 * Starts a broker on every `step`th snapshot, with and without cold chunks, and expects the same queue and the same order
 * of deliveries. Returns how many chunks were cold.
 */
async function compareStarts(bench: Bench, step: number): Promise<number> {
  const { snapshots } = bench
  let cold = 0
  const seen = async (snapshot: MemoryLog, headChunks: number): Promise<unknown> => {
    await withHead(headChunks, () => bench.restart(snapshot.reopened()))
    bench.broker.audit()
    cold += bench.broker.coldChunks()
    if (bench.broker.status.queues === 0) return []
    const info = { ...bench.info(), oldestReadyMs: 0 }
    const offsets: number[] = []
    for (let got = await bench.drain(); got.length > 0; got = await bench.drain()) offsets.push(...got)
    bench.broker.audit()
    expect(bench.broker.coldChunks()).toBe(0)
    return [info, offsets]
  }
  for (let at = 0; at < snapshots.length; at += step)
    expect(await seen(snapshots[at]!, 1)).toEqual(await seen(snapshots[at]!, Infinity))
  return cold
}

/** Most messages are acknowledged. Some are tried again or die, so that their chunks are not cold. */
function outcomeOf(offset: number): typeof OUTCOME.ack | typeof OUTCOME.deadLetter | typeof OUTCOME.retry {
  if (offset % 97 === 0) return OUTCOME.deadLetter
  return offset % 31 === 0 ? OUTCOME.retry : OUTCOME.ack
}
