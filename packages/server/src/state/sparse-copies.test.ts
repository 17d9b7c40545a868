/** Copies of batches that leave out records: which records they have, what they count, and what is delivered from them. */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  OUTCOME,
  QUEUE_OPTION_DEFAULTS,
  batchAttributes,
  batchType,
  isSparse,
  queueName,
  readBatchHeader,
  readRecordOptions,
  recordSize,
  sealBatch,
  slotOfIndex,
  sparseBytes,
  stampBatch,
  writeSparse,
  type QueueOptions,
} from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { entryBatches } from '../log/entry.js'
import { MemoryLog } from '../log/memory-log.js'
import { Arrivals, FACT, FactBuffer, Queue, RETAINED, readFacts } from '../queue/index.js'
import { Bench, CALLER, Q, batchOf, type Message, type Worker } from '../testing/bench.js'
import { PageTree } from './page-tree.js'
import { Replay } from './replay.js'
import { Segments } from './segments.js'
import { State } from './state.js'

const SEGMENT = 64 * 1024
const SMALL = { segmentBytes: SEGMENT, checkpointBytes: 16 * 1024 }

/** What each message of a test says about itself. */
const message = (number: number, more: Partial<Message> = {}): Message => ({
  bodyBytes: 100 + (number % 7) * 40,
  headers: { number: String(number) },
  ...more,
})

/** Publishes messages whose numbers are their offsets. Returns the offset after the last. */
async function publish(
  bench: Bench,
  batches: readonly number[],
  more: (number: number) => Partial<Message> = () => ({}),
): Promise<number> {
  let next = 0
  for (const count of batches) {
    const base = next
    await bench.publish(Array.from({ length: count }, (_, i) => message(base + i, more(base + i))))
    next += count
  }
  return next
}

/** A worker that also checks that each record is the one that was published at its offset. */
async function consume(bench: Bench): Promise<Worker> {
  const worker = bench.consume(60_000)
  const deliver = worker.deliver.bind(worker)
  worker.deliver = (subscription, delivery) => {
    let at = delivery.start
    for (let i = 0; i < delivery.count; i++) {
      const { headers } = readRecordOptions(delivery.bytes, at)
      expect(headers).toEqual({ number: String(delivery.run.offset + i) })
      at += recordSize(delivery.bytes, at)
    }
    expect(at).toBe(delivery.end)
    deliver(subscription, delivery)
  }
  await bench.settle()
  expect(worker.endings).toEqual([])
  return worker
}

/** Acknowledges every message that `keeps` does not want; the others return to the queue. */
async function thin(bench: Bench, keeps: (offset: number) => boolean): Promise<number[]> {
  const worker = await consume(bench)
  const kept = worker.offsets.filter(keeps)
  for (const { offset, tag } of worker.got) {
    if (keeps(offset)) continue
    bench.broker.turn.begin()
    bench.broker.leases.settle(worker.subscription, [{ firstTag: tag, count: 1, outcome: OUTCOME.ack }])
  }
  worker.leave()
  await bench.settle()
  return kept.sort((a, b) => a - b)
}

async function left(bench: Bench): Promise<number[]> {
  const worker = await consume(bench)
  worker.leave()
  await bench.settle()
  return worker.offsets.toSorted((a, b) => a - b)
}

/** Lets the broker copy everything that it wants to copy. */
async function rest(bench: Bench): Promise<void> {
  for (let i = 0; i < 600; i++) await bench.pass(100)
}

/** Numbers of copied batches in the log: those that are whole, and those without some of their records. */
async function copies(bench: Bench): Promise<{ whole: number; sparse: number }> {
  let whole = 0
  let sparse = 0
  const { firstPosition } = bench.log.usage()
  for await (const { bytes } of bench.log.read(firstPosition)) {
    for (const at of entryBatches(bytes, 0)) {
      if (batchType(bytes, at) !== BATCH_TYPE.messages) continue
      if ((batchAttributes(bytes, at) & BATCH_ATTRIBUTE.relocated) === 0) continue
      if (isSparse(bytes, at)) sparse++
      else whole++
    }
  }
  return { whole, sparse }
}

/** Bytes that the log may use at rest, besides twice the bytes that are needed. */
const SLACK = 7 * SEGMENT

async function expectSmall(bench: Bench): Promise<void> {
  await rest(bench)
  const { liveBytes, logBytes, writtenBytes } = bench.broker.usage()
  expect(logBytes).toBeLessThan(2 * liveBytes + SLACK)
  for (let i = 0; i < 20; i++) await bench.pass(10_000)
  expect(bench.broker.usage().writtenBytes).toBe(writtenBytes)
  bench.broker.audit()
}

describe('a batch with few messages left', () => {
  it.each([
    ['of ten', Array.from({ length: 300 }, () => 10)],
    ['of a hundred', Array.from({ length: 40 }, () => 100)],
    ['in two chunks each', Array.from({ length: 5 }, () => 1_000)],
    ['in three or four chunks each', [2_500, 2_500]],
  ])('is copied without the others: batches %s', async (_, batches) => {
    const bench = await new Bench({ ...SMALL, segmentBytes: 2 << 20 }).open()
    bench.ensure()
    const end = await publish(bench, batches)
    const kept = await thin(bench, (offset) => offset % 97 === 5)
    expect(kept.length).toBeGreaterThan(end / 120)
    const before = bench.broker.usage().liveBytes
    await bench.fill(24 << 20)
    const after = bench.broker.usage().liveBytes
    expect(after).toBeLessThan(before / 4)
    expect((await copies(bench)).sparse).toBeGreaterThan(0)
    expect(await left(bench)).toEqual(kept)
    bench.broker.audit()
    await bench.crash()
    expect(bench.broker.usage().liveBytes).toBe(after)
    expect(await left(bench)).toEqual(kept)
    bench.broker.audit()
  })

  it('is copied again when more of them are gone, and is freed with the last', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    await publish(
      bench,
      Array.from({ length: 60 }, () => 50),
    )
    let live = Infinity
    for (const step of [2, 8, 48]) {
      const kept = await thin(bench, (offset) => offset % step === 1)
      await rest(bench)
      await bench.fill(1 << 20)
      expect(bench.broker.usage().liveBytes).toBeLessThan(live / 2)
      live = bench.broker.usage().liveBytes
      expect(await left(bench)).toEqual(kept)
      await bench.crash()
      expect(await left(bench)).toEqual(kept)
      bench.broker.audit()
    }
    await thin(bench, () => false)
    expect(bench.broker.usage().liveBytes).toBe(0)
    await expectSmall(bench)
  })

  it.each([
    ['keys', {}, (n: number) => ({ key: `k${n}` })],
    ['pending ids', { unique: 'pending' }, (n: number) => ({ id: `i${n}` })],
    ['ids of a window', { dedupWindowMs: 60_000_000 }, (n: number) => ({ id: `i${n}` })],
    ['priorities', {}, (n: number) => ({ priority: n % 5 })],
    ['sizes', { maxBytes: 1 << 30 }, () => ({})],
    ['times to live', {}, () => ({ ttlMs: 10_000_000_000 })],
  ] as [string, Partial<QueueOptions>, (n: number) => Partial<Message>][])(
    'keeps the rest of its messages as they are, with %s',
    async (_, options, more) => {
      const bench = await new Bench(SMALL).open()
      bench.ensure(options)
      await publish(
        bench,
        Array.from({ length: 40 }, () => 70),
        more,
      )
      const kept = await thin(bench, (offset) => offset % 31 === 5 || offset % 70 < 2)
      await rest(bench)
      await bench.fill(1 << 20)
      expect((await copies(bench)).sparse).toBeGreaterThan(10)
      expect(await left(bench)).toEqual(kept)
      await bench.crash()
      bench.broker.audit()
      expect(await left(bench)).toEqual(kept)
      // An id that is remembered is still found.
      const { duplicates } = bench.put([message(kept[0]!, more(kept[0]!))])
      expect(duplicates?.size ?? 0).toBe('id' in more(0) ? 1 : 0)
    },
  )

  it('of the maximum size leaves its large records behind', async () => {
    const bench = await new Bench({
      segmentBytes: 4 << 20,
      checkpointBytes: 1 << 20,
      messageBytesMax: 950_000,
    }).open()
    bench.ensure()
    for (let i = 0; i < 40; i++)
      await bench.publish(
        Array.from({ length: 5 }, (_, j) => message(i * 5 + j, { bodyBytes: j === 2 ? 900_000 : 20_000 })),
      )
    // A worker holds at most 16 MiB.
    let kept: number[] = []
    for (let i = 0; i < 4; i++) kept = await thin(bench, (offset) => offset % 5 === 3)
    expect(kept).toHaveLength(40)
    await rest(bench)
    expect(bench.broker.usage().liveBytes).toBeLessThan(12 << 20)
    await bench.fill(20 << 20)
    expect(bench.broker.usage().liveBytes).toBeLessThan(40 * 21_000)
    await bench.crash()
    expect(await left(bench)).toEqual(kept)
  })
})

it('what copies would leave out is estimated as if it were counted afresh', () => {
  let withGone = 0
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 1_500 }), { minLength: 1, maxLength: 12 }),
      fc.array(fc.tuple(fc.nat(8_000), fc.integer({ min: 1, max: 400 }), fc.boolean()), { maxLength: 60 }),
      (counts, removals) => {
        const use = new Segments(1 << 20, new PageTree())
        const definition = {
          name: 'q',
          createdAtMs: 0,
          paused: false,
          idsFrom: 0,
          options: QUEUE_OPTION_DEFAULTS,
        }
        const queue = new Queue(1, definition, use, new Arrivals())
        queue.open(1)
        let position = 4_096
        const batches = counts.map((count) => {
          const at = { offset: queue.next, count, position }
          queue.append(count, position, 5, count * 100)
          position += BATCH_HEADER_BYTES + count * 100
          return at
        })
        for (const [offset, count, isCopied] of removals) {
          queue.remove(offset, count)
          const batch = batches.find((one) => offset >= one.offset && offset < one.offset + one.count)
          if (!isCopied || batch === undefined) continue
          const live = queue.chunks.neededAt(batch.offset, batch.count, batch.position)
          if (live === 0) continue
          queue.relocateFact(batch.offset, batch.count, position, BATCH_HEADER_BYTES + live * 100)
          batch.position = position
          position += BATCH_HEADER_BYTES + live * 100
        }
        const afresh = new Segments(1 << 20, new PageTree())
        queue.chunks.addUses(afresh)
        expect(use.liveBytes).toBe(afresh.liveBytes)
        expect(use.sparableBytes).toBeCloseTo(afresh.sparableBytes, 3)
        if (use.sparableBytes > 1) withGone++
      },
    ),
  )
  expect(withGone).toBeGreaterThan(30)
})

it('loses no message in a crash at any entry while batches are copied', async () => {
  const bench = await new Bench({
    segmentBytes: 16 * 1024,
    checkpointBytes: 4 * 1024,
    keepsSnapshots: true,
  }).open()
  bench.ensure()
  await publish(
    bench,
    Array.from({ length: 40 }, () => 20),
  )
  const kept = await thin(bench, (offset) => offset % 20 === 3)
  bench.snapshots.length = 0
  await rest(bench)
  expect((await copies(bench)).sparse).toBeGreaterThan(20)
  const snapshots = bench.snapshots.splice(0)
  let checked = 0
  const seen = new Set<number>()
  for (const snapshot of snapshots) {
    await bench.restart(snapshot)
    expect(await left(bench)).toEqual(kept)
    seen.add((await copies(bench)).sparse)
    bench.broker.audit()
    checked++
  }
  expect(checked).toBeGreaterThan(5)
  expect(seen.size).toBeGreaterThan(3)
})

it('writes the facts about the messages that it leaves out before the copy', async () => {
  const bench = await new Bench({ segmentBytes: 16 * 1024, checkpointBytes: 4 * 1024 }).open()
  const entries: Uint8Array[] = []
  const append = bench.log.append.bind(bench.log)
  bench.log.append = (position, lsn, entry) => {
    entries.push(entry.slice())
    return append(position, lsn, entry)
  }
  bench.ensure()
  await publish(
    bench,
    Array.from({ length: 60 }, () => 20),
  )
  await thin(bench, (offset) => offset % 5 === 3)
  const worker = await consume(bench)
  // A batch is read from disk between the settles of one turn and the end of that turn.
  let inTurn = 0
  for (const offset of worker.offsets.filter((offset) => offset % 20 !== 3)) {
    bench.now += 5
    bench.broker.turn.tick()
    bench.endTurns()
    worker.settle(offset, OUTCOME.ack)
    const { liveBytes } = bench.broker.usage()
    await new Promise(setImmediate)
    if (bench.broker.usage().liveBytes < liveBytes) inTurn++
  }
  expect(inTurn).toBeGreaterThan(3)
  await bench.settle()
  const gone = new Set<number>()
  let leftOut = 0
  for (const bytes of entries) {
    for (const at of entryBatches(bytes, 0)) {
      const { type, length, baseOffset, count } = readBatchHeader(bytes, at)
      if (type === BATCH_TYPE.facts)
        readFacts(bytes, at + BATCH_HEADER_BYTES, at + length, (fact) => {
          for (let i = 0; i < fact.count; i++) if (fact.kind === FACT.ack) gone.add(fact.offset + i)
        })
      else if (type === BATCH_TYPE.messages && isSparse(bytes, at)) {
        for (let index = 0; index < count; index++) {
          if (slotOfIndex(bytes, at, index) !== -1) continue
          expect(gone).toContain(baseOffset + index)
          leftOut++
        }
      }
    }
  }
  expect(leftOut).toBeGreaterThan(100)
})

describe('retained messages', () => {
  const other = queueName('other')

  /** Replays all retained messages to another queue, and returns their number. */
  async function replayed(bench: Bench): Promise<number> {
    bench.ensure({}, other)
    const page = await bench.answer(
      bench.broker.replays.page(
        {
          name: Q,
          fromOffset: 0,
          fromMs: undefined,
          untilMs: undefined,
          limit: 10_000,
          cursor: undefined,
          filter: {},
          to: other,
          dryRun: false,
        },
        CALLER,
      ),
    )
    bench.broker.catalog.delete(other)
    await bench.settle()
    return page.replayed
  }

  it('are in each copy until they are released', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure({ retainAgeMs: 3_600_000 })
    const end = await publish(
      bench,
      Array.from({ length: 40 }, () => 50),
    )
    const kept = await thin(bench, (offset) => offset % 50 === 7)
    for (let i = 0; i < 4; i++) await bench.fill(1 << 20)
    expect(await copies(bench)).toMatchObject({ whole: 40, sparse: 0 })
    expect(await replayed(bench)).toBe(end - kept.length)
    await bench.pass(3_700_000)
    await rest(bench)
    await bench.fill(1 << 20)
    expect((await copies(bench)).sparse).toBeGreaterThan(20)
    expect(await replayed(bench)).toBe(0)
    expect(await left(bench)).toEqual(kept)
    await bench.crash()
    expect(await left(bench)).toEqual(kept)
    bench.broker.audit()
  })

  it('of a queue that did not retain before are left out, and not replayed after a crash', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    await publish(
      bench,
      Array.from({ length: 40 }, () => 50),
    )
    const kept = await thin(bench, (offset) => offset % 50 === 7)
    await rest(bench)
    expect((await copies(bench)).sparse).toBeGreaterThan(5)
    bench.ensure({ retainAgeMs: 3_600_000 })
    await bench.settle()
    await bench.crash()
    expect(await replayed(bench)).toBe(0)
    expect(await left(bench)).toEqual(kept)
  })

  it('are those that were acknowledged while the queue retained, whatever its options are in recovery', () => {
    const state = new State(new MemoryLog())
    const replay = new Replay(state)
    // The queue was set to retain while a checkpoint was written, so the definition is newer than the acknowledgements.
    const definition = { name: 'q', createdAtMs: 1, paused: false, idsFrom: 0 }
    const queue = state.addQueue(1, {
      ...definition,
      options: { ...QUEUE_OPTION_DEFAULTS, retainAgeMs: 60_000 },
    })
    const batch = batchOf(
      Array.from({ length: 20 }, () => ({})),
      1,
    )
    stampBatch(batch, 0, 1, 0, 5, 0)
    replay.apply(batch, 0, 512)
    const facts = new FactBuffer()
    facts.gone('ack', 0, 4)
    facts.gone('ack', 4, 2, RETAINED)
    facts.gone('ack', 6, 3)
    facts.gone('ack', 9, 1, RETAINED)
    facts.gone('ack', 10, 5)
    const acks = new Uint8Array(BATCH_HEADER_BYTES + facts.length)
    acks.set(facts.bytes, BATCH_HEADER_BYTES)
    sealBatch(acks, 0, acks.length, { type: BATCH_TYPE.facts, queueId: 1, count: 5, timeMs: 6 })
    replay.apply(acks, 0, 4_096)
    const indexes = [4, 5, 9, 15, 16, 17, 18, 19]
    const sparse = new Uint8Array(sparseBytes(batch, 0, indexes))
    writeSparse(sparse, 0, batch, 0, indexes, sparse.length, BATCH_ATTRIBUTE.relocated)
    replay.apply(sparse, 0, 8_192)
    const retained = Array.from({ length: 20 }, (_, offset) => offset).filter((offset) =>
      queue.isRetained(offset),
    )
    expect(retained).toEqual([4, 5, 9])
    expect(queue.stateOf(19)).toBe('ready')
  })
})

describe('a batch with most of its messages left', () => {
  it('is copied whole', async () => {
    const bench = await new Bench(SMALL).open()
    bench.ensure()
    const batches = Array.from({ length: 60 }, () => 50)
    await publish(bench, batches)
    const kept = await thin(bench, (offset) => offset % 50 !== 7)
    const { liveBytes } = bench.broker.usage()
    // Other messages between them become garbage, so that they are copied.
    for (let i = 0; i < 8; i++) await bench.fill(1 << 20)
    expect(await copies(bench)).toEqual({ whole: 60, sparse: 0 })
    expect(bench.broker.usage().liveBytes).toBe(liveBytes)
    await bench.crash()
    expect(await left(bench)).toEqual(kept)
  })
})
