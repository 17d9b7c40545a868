/** Shared batches: what each target does with its part, what is refused, and what operators see. */
import { BATCH_HEADER_BYTES, OUTCOME, type QueueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, CALLER, batchOf, type BenchOptions, type Message } from '../testing/bench.js'
import { drained, named, numbered, peeked, queueOf, read, share, upTo } from '../testing/sharing.js'
import { TARGETS_MAX, WORK_MAX } from './shared-intake.js'

const [A, B, C] = named(3) as [QueueName, QueueName, QueueName]
const ALL = [{ name: A }, { name: B }, { name: C }]
const HOUR = 3_600_000

async function opened(options: BenchOptions = {}): Promise<Bench> {
  const bench = await new Bench(options).open()
  for (const { name } of ALL) bench.ensure({}, name)
  return bench
}

const messages = (count: number, more: Message = {}): Message[] =>
  upTo(count).map((number) => numbered(number, more))

/** Publishes as the default producer. */
function publish(bench: Bench, bytes: Uint8Array, names: readonly QueueName[]): number {
  bench.broker.turn.begin()
  const targets = names.map((name) => ({ queue: queueOf(bench, name), ranges: undefined }))
  const batch = { bytes, at: 0, end: bytes.length }
  return bench.broker.sharedIntake.publish(bench.producer(), () => targets, batch, 0)
}

describe('the targets of a shared batch', () => {
  it('get the chosen records at their next offsets, in order', async () => {
    const bench = await opened()
    await bench.publish(messages(3), B)
    const ranges = [
      { index: 1, count: 1 },
      { index: 4, count: 3 },
      { index: 9, count: 1 },
    ]
    expect(share(bench, messages(10), [{ name: A }, { name: B, ranges }])).toBe(2)
    await bench.settle()
    const expected = [0, 1, 2, 1, 4, 5, 6, 9].map((number, offset) => [offset, number])
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(await peeked(bench, B)).toEqual(expected)
      expect(bench.info(B)).toMatchObject({ ready: 8, published: 8 })
      const one = bench.info(A).bytes / 10
      expect(bench.info(B).bytes).toBe(one * 8)
      bench.broker.audit()
      await bench.crash()
    }
    expect(await drained(bench, B)).toEqual(expected)
    expect(await drained(bench, A)).toEqual(upTo(10).map((at) => [at, at]))
    expect(bench.info(B).bytes).toBe(0)
    expect(bench.broker.usage().liveBytes).toBe(0)
  })

  it('apply their own time to live, priorities and limits', async () => {
    const bench = await opened()
    bench.ensure({ ttlMs: 1_000 }, A)
    bench.ensure({ ttlMs: 5_000, maxBytes: 100_000 }, B)
    bench.ensure({ maxMessages: 4, overflow: 'drop-oldest' }, C)
    await bench.publish(messages(3), C)
    const batch = upTo(4).map((number) => numbered(number + 10, number === 2 ? { priority: 5 } : {}))
    share(bench, batch, ALL)
    await bench.settle()
    await bench.crash()
    bench.broker.audit()
    expect(bench.info(C)).toMatchObject({ ready: 4, dropped: 3 })
    await bench.pass(1_500)
    expect([A, B, C].map((name) => bench.info(name).ready)).toEqual([0, 4, 4])
    expect(bench.info(A).expired).toBe(4)
    expect((await drained(bench, C)).map(([, number]) => number)).toEqual([12, 10, 11, 13])
    await bench.pass(5_000)
    expect(bench.info(B)).toMatchObject({ ready: 0, expired: 4, bytes: 0 })
    expect(bench.broker.usage().liveBytes).toBe(0)
    bench.broker.audit()
  })

  it('know the sizes of the chosen records', async () => {
    const bench = await opened()
    bench.ensure({ maxBytes: 10_000, overflow: 'drop-oldest' }, B)
    const sized = upTo(6).map((number) => numbered(number, { bodyBytes: number * 100 }))
    const sizeOf = (number: number): number => batchOf([sized[number]!], 0).length - BATCH_HEADER_BYTES
    const ranges = [
      { index: 1, count: 2 },
      { index: 4, count: 1 },
    ]
    share(bench, sized, [{ name: A }, { name: B, ranges }, { name: C, ranges }])
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      for (const name of [B, C]) expect(bench.info(name).bytes).toBe(sizeOf(1) + sizeOf(2) + sizeOf(4))
      await bench.crash()
    }
    const reader = await read(bench, B)
    reader.settle(1, OUTCOME.ack)
    await bench.settle()
    expect(bench.info(B).bytes).toBe(sizeOf(1) + sizeOf(4))
    bench.broker.audit()
  })

  it('find their own duplicates and replacements', async () => {
    const bench = await new Bench().open()
    bench.ensure({ dedupWindowMs: HOUR }, A)
    bench.ensure({ unique: 'pending' }, B)
    bench.ensure({ dedupWindowMs: 0 }, C)
    await bench.publish([numbered(100, { id: 'x' })], A)
    await bench.publish([numbered(101, { id: 'y', delayMs: HOUR })], B)
    const batch = [
      numbered(0),
      numbered(1, { id: 'x' }),
      numbered(2, { id: 'y', replaces: true }),
      numbered(3, { id: 'z' }),
      numbered(4, { id: 'z' }),
    ]
    share(bench, batch, [{ name: A }, { name: B, ranges: [{ index: 2, count: 3 }] }, { name: C }])
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      const found = await Promise.all([A, B, C].map((name) => peeked(bench, name)))
      expect(found[0]).toEqual([
        [0, 100],
        [1, 0],
        [3, 2],
        [4, 3],
      ])
      expect(found[1]).toEqual([
        [1, 2],
        [2, 3],
      ])
      expect(found[2]).toHaveLength(5)
      expect(bench.info(A)).toMatchObject({ duplicates: 2 })
      expect(bench.info(B)).toMatchObject({ duplicates: 1, cancelled: 1 })
      bench.broker.audit()
      await bench.crash()
    }
    // The ids are known in both queues after the restart.
    await bench.publish([numbered(5, { id: 'z' })], A)
    await bench.publish([numbered(6, { id: 'z' })], B)
    expect([A, B].map((name) => bench.info(name).duplicates)).toEqual([3, 2])
  })

  it('keep the order of a key', async () => {
    const bench = await opened()
    share(bench, messages(4, { key: 'k' }), [{ name: A, ranges: [{ index: 1, count: 3 }] }, { name: B }])
    await bench.settle()
    await bench.crash()
    const reader = await read(bench, A)
    expect(reader.numbers).toEqual([[0, 1]])
    reader.settle(0, OUTCOME.ack)
    await bench.settle()
    expect(reader.numbers.at(-1)).toEqual([1, 2])
  })

  it('can be deleted and purged without the others', async () => {
    const bench = await opened()
    share(bench, messages(5), ALL)
    await bench.settle()
    bench.broker.turn.begin()
    bench.broker.catalog.purge(A)
    bench.broker.catalog.delete(B)
    await bench.settle()
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(await peeked(bench, A)).toEqual([])
    expect(await drained(bench, C)).toEqual(upTo(5).map((at) => [at, at]))
    expect(bench.broker.usage().liveBytes).toBe(0)
  })
})

describe('a shared batch that is refused', () => {
  it.each<[string, QueueName | undefined, string, (bench: Bench) => void]>([
    ['QUEUE_FULL', B, 'The queue q1 holds 0 messages', (bench) => bench.ensure({ maxMessages: 3 }, B)],
    [
      'DEDUP_FULL',
      B,
      'The queue q1 remembers 0 ids',
      (bench) => bench.ensure({ dedupWindowMs: HOUR, dedupMaxIds: 1 }, B),
    ],
    // The next refusals are not those of a target.
    [
      'DISK_LOW',
      undefined,
      'The log has no room',
      (bench) => {
        bench.log.refusedFrom = 0
      },
    ],
    [
      'MEMORY_FULL',
      undefined,
      'The broker uses 2 MiB of its memory budget of 1 MiB',
      (bench) => {
        bench.broker.memoryFull = { usedBytes: 2 << 20, budgetBytes: 1 << 20 }
      },
    ],
  ])('changes nothing: %s', async (code, queue, text, prepare) => {
    const bench = await opened()
    bench.ensure({ maxMessages: 5, overflow: 'drop-oldest' }, A)
    await bench.publish(messages(5), A)
    prepare(bench)
    await bench.settle()
    const { position } = bench.log.entries.at(-1)!
    const batch = upTo(4).map((number) => numbered(number, { id: String(number) }))
    expect(() => share(bench, batch, ALL)).toThrow(
      expect.objectContaining({ code, queue, message: expect.stringContaining(text) }),
    )
    await bench.settle()
    expect(bench.log.entries.at(-1)!.position).toBe(position)
    expect([A, B, C].map((name) => bench.info(name).ready)).toEqual([5, 0, 0])
    bench.broker.audit()
  })

  it('because the target was deleted, names the target', async () => {
    const bench = await opened()
    bench.broker.turn.begin()
    const targets = [A, B].map((name) => ({ queue: queueOf(bench, name), ranges: undefined }))
    bench.broker.catalog.delete(B)
    const bytes = batchOf(messages(1), 0)
    const { sharedIntake } = bench.broker
    expect(() => sharedIntake.take(targets, { bytes, at: 0, end: bytes.length }, 'new')).toThrow(
      'There is no queue "q1".',
    )
    expect(bench.info(A).ready).toBe(0)
  })

  it('has too many targets', async () => {
    const names = named(TARGETS_MAX + 1)
    const bench = await new Bench({ queuesMax: 2_000 }).open()
    for (const name of names) bench.ensure({}, name)
    const targets = names.map((name) => ({ name }))
    expect(() => share(bench, messages(1), targets)).toThrow(
      expect.objectContaining({
        code: 'BATCH_TOO_LARGE',
        message: 'A batch has 1025 target queues; it may have at most 1024.',
      }),
    )
    expect(share(bench, messages(1), targets.slice(1))).toBe(TARGETS_MAX)
    bench.broker.audit()
  })

  it('has too many messages whose options must be read', async () => {
    const bench = await opened({ segmentBytes: 4 << 20 })
    // Three queues: 65,538 messages, and 65,535.
    const count = WORK_MAX / 3 + 2 / 3
    const keyed = messages(count, { key: 'k', bodyBytes: 0 })
    expect(() => share(bench, keyed, ALL)).toThrow(
      expect.objectContaining({
        code: 'BATCH_TOO_LARGE',
        message: expect.stringContaining(
          'A batch of 21846 messages for 3 queues takes more than 65536 steps',
        ),
      }),
    )
    expect(share(bench, keyed.slice(1), ALL)).toBe(3)
    expect(share(bench, messages(count, { bodyBytes: 0 }), ALL)).toBe(3)
    bench.broker.audit()
  })

  it('does not fit in an entry with its facts', async () => {
    const bench = await opened({ entryBytesMax: 16 * 1024 })
    // 2 KiB of facts have room for 85 ranges.
    const ranges = (count: number): { index: number; count: number }[] =>
      upTo(count).map((at) => ({ index: at * 2, count: 1 }))
    const batch = messages(100)
    expect(() =>
      share(bench, batch, [
        { name: A, ranges: ranges(45) },
        { name: B, ranges: ranges(41) },
      ]),
    ).toThrow(
      "The facts about which queues have which records of a batch for several queues take 2064 bytes; an entry of this broker's log allows at most 2048 bytes.",
    )
    expect(
      share(bench, batch, [
        { name: A, ranges: ranges(45) },
        { name: B, ranges: ranges(40) },
      ]),
    ).toBe(2)
    await bench.settle()
    bench.broker.audit()
  })
})

describe('a producer', () => {
  it('gets the first answer again for the same number, also after a restart', async () => {
    const bench = await opened()
    const bytes = batchOf(messages(2), 1)
    expect(publish(bench, bytes, [A, B, C])).toBe(3)
    expect(publish(bench, bytes, [A])).toBe(3)
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      await bench.crash()
      expect(publish(bench, bytes, [A])).toBe(3)
      expect(bench.info(A).ready).toBe(2)
      await bench.fill(200_000)
    }
    expect(publish(bench, batchOf(messages(1), 2), [A])).toBe(1)
  })

  it('gets a refusal, and may send the batch again', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 }, B)
    await bench.publish(messages(1), B)
    const bytes = batchOf(messages(1), 2)
    expect(() => publish(bench, bytes, [A, B])).toThrow(expect.objectContaining({ code: 'QUEUE_FULL' }))
    await drained(bench, B)
    expect(publish(bench, bytes, [A, B])).toBe(2)
  })
})

describe('a message of a shared batch', () => {
  const part = [{ index: 3, count: 4 }]

  it('has a history in each queue', async () => {
    const bench = await opened()
    await bench.publish(messages(2), B)
    share(bench, messages(10), [{ name: A }, { name: B, ranges: part }])
    await bench.settle()
    const t = bench.now
    const reader = await read(bench, B)
    reader.settle(4, OUTCOME.deadLetter)
    await bench.settle()
    const history = async (name: QueueName, offset: number): Promise<unknown> => {
      bench.broker.turn.begin()
      const page = await bench.broker.history.page({ name, offset, cursor: undefined }, CALLER)
      return [page.complete, page.events.map(({ event, atMs }) => [event, atMs])]
    }
    expect(await history(B, 4)).toEqual([
      true,
      [
        ['published', t],
        ['dead', t],
      ],
    ])
    expect(await history(B, 5)).toEqual([true, [['published', t]]])
    expect(await history(A, 9)).toEqual([true, [['published', t]]])
  })

  it('moves to a dead-letter queue, and is redriven', async () => {
    const bench = await opened()
    bench.ensure({ deadLetter: C }, B)
    share(bench, messages(10), [{ name: A }, { name: B, ranges: part }])
    await bench.settle()
    const reader = await read(bench, B)
    reader.settle(2, OUTCOME.deadLetter)
    await bench.settle()
    reader.leave()
    expect(await peeked(bench, C)).toEqual([[0, 5]])
    bench.ensure({ deadLetter: '' }, B)
    const again = await read(bench, B)
    again.settle(1, OUTCOME.deadLetter)
    again.leave()
    await bench.settle()
    await bench.crash()
    bench.broker.audit()
    expect(await bench.redrive({ name: B })).toMatchObject({ redriven: 1 })
    expect((await drained(bench, B)).sort(([a], [b]) => a - b)).toEqual([
      [0, 3],
      [1, 4],
      [3, 6],
    ])
    bench.broker.audit()
  })

  it('can be replayed, page by page', async () => {
    const bench = await opened()
    bench.ensure({ retainAgeMs: HOUR }, B)
    const ranges = [
      { index: 1, count: 2 },
      { index: 5, count: 4 },
    ]
    share(bench, messages(10), [{ name: A }, { name: B, ranges }])
    await bench.settle()
    await drained(bench, B)
    const numbers: number[] = []
    const request = { name: B, fromOffset: 1, fromMs: undefined, untilMs: undefined, limit: 2, filter: {} }
    for (let cursor: string | undefined; ;) {
      bench.broker.turn.begin()
      const page = await bench.broker.replays.page({ ...request, cursor, to: C, dryRun: false }, CALLER)
      await bench.settle()
      numbers.push(...(await drained(bench, C)).map(([, number]) => number))
      if (page.cursor === null) break
      cursor = page.cursor
      if (numbers.length === 2) await bench.crash()
    }
    expect(numbers).toEqual([2, 5, 6, 7, 8])
  })
})

it('is copied into the log once, with the size that is counted', async () => {
  const bench = await opened()
  const bytes = batchOf(messages(20), 0)
  const before = bench.broker.usage()
  share(bench, messages(20), ALL)
  await bench.settle()
  const after = bench.broker.usage()
  expect(after.recordBytes - before.recordBytes).toBe(bytes.length - BATCH_HEADER_BYTES)
  expect(after.liveBytes - before.liveBytes).toBe(
    3 * (24 + Math.ceil((bytes.length + BATCH_HEADER_BYTES) / 3)),
  )
})
