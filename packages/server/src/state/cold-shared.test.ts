/**
 * Chunks with rows of shared batches that leave memory: queues with and without retention, a stream and its group get random
 * batches, consume them, and are copied, purged, deleted and recovered, while almost no chunk may stay in memory.
 */
import { OUTCOME, queueName, readRecordOptions, recordSize, type QueueName } from '@sluice/protocol'
import { afterEach, describe, expect, it } from 'vitest'
import type { ReaderSink } from '../broker/reader.js'
import type { RecordRange } from '../broker/commands.js'
import { Queue } from '../queue/index.js'
import { Chunks } from '../queue/chunks.js'
import { Source } from '../queue/source.js'
import { Bench, type BenchOptions, type Message } from '../testing/bench.js'
import { drained, named, numbered, peeked, queueOf, read, share, upTo } from '../testing/sharing.js'
import { ColdChunks } from './cold-chunks.js'
import { PageTree } from './page-tree.js'
import { Replay } from './replay.js'
import { Segments } from './segments.js'
import { TIMEOUT_MS, runs, seedsFrom } from '../../../../test/amount.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { replaced } from '../../../../test/simulation/defects.js'

const OPTIONS: BenchOptions = { segmentBytes: 256 * 1024, checkpointBytes: 16 * 1024 }
const [PLAIN, OTHER, RETAINING] = named(3) as [QueueName, QueueName, QueueName]
const STREAM = queueName('stream')
const GROUP = 'stream@group' as QueueName
const QUEUES = [PLAIN, OTHER, RETAINING]
/** The retaining queue never keeps more bytes than this after a release. */
const RETAIN_BYTES = 60_000

const { headChunks, warmMax, warmBytesMax } = ColdChunks
const replayHead = Replay.headChunks
afterEach(() => {
  Object.assign(ColdChunks, { headChunks, warmMax, warmBytesMax })
  Replay.headChunks = replayHead
})

function limit(most: { headChunks: number; warmMax: number; warmBytesMax: number }): void {
  Object.assign(ColdChunks, most)
  Replay.headChunks = 1
}

/** The offsets and numbers of all messages of the stream. */
async function readStream(bench: Bench): Promise<[number, number][]> {
  const found: [number, number][] = []
  let isEnd = false
  const sink: ReaderSink = {
    isReady: true,
    deliverRead(_reader, { run, count, bytes, start }) {
      for (let i = 0, at = start; i < count; i++, at += recordSize(bytes, at))
        found.push([run.offset + i, Number(readRecordOptions(bytes, at).headers?.['number'])])
    },
    readAt(_reader, _missed, atEnd) {
      isEnd = atEnd
    },
    readEnded(_reader, error) {
      throw error
    },
  }
  const none = { fromMs: undefined, until: undefined, filter: undefined }
  const request = {
    name: STREAM,
    from: 'first',
    follow: false,
    messages: 65_535,
    bytes: 1 << 26,
    ...none,
  } as const
  bench.broker.turn.begin()
  bench.broker.readers.open(request, 1, sink)
  await bench.settle()
  expect(isEnd).toBe(true)
  return found
}

/** Publishes this number of KiB to a queue that is purged, so that the oldest segments are copied. */
async function turnOver(bench: Bench, kib: number): Promise<void> {
  const other = queueName('turnover')
  bench.ensure({}, other)
  for (let done = 0; done < kib; done += 28) {
    bench.put(
      upTo(32).map(() => ({ bodyBytes: 880 })),
      other,
    )
    await bench.pass(25)
    bench.broker.turn.begin()
    bench.broker.catalog.purge(other)
  }
  await bench.pass(1_100)
}

async function opened(options: BenchOptions = OPTIONS): Promise<Bench> {
  const bench = await new Bench(options).open()
  bench.ensure({}, PLAIN)
  bench.ensure({}, OTHER)
  bench.ensure({ retainBytes: RETAIN_BYTES }, RETAINING)
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name: STREAM, options: {}, update: true })
  bench.broker.groups.ensure({ name: GROUP, options: {}, update: true, from: 'first' })
  await bench.settle()
  return bench
}

function isThere(bench: Bench, name: QueueName): boolean {
  try {
    queueOf(bench, name)
    return true
  } catch {
    return false
  }
}

class Scene {
  readonly bench: Bench
  /** Numbers of the messages by offset, and the offsets that are gone. */
  readonly numbers = new Map<QueueName, number[]>()
  readonly gone = new Map<QueueName, Set<number>>()
  cold = 0
  checked = 0
  readonly #chance: Chance
  #number = 0

  constructor(bench: Bench, chance: Chance) {
    this.bench = bench
    this.#chance = chance
    for (const name of [...QUEUES, STREAM, GROUP]) this.#forget(name)
  }

  #forget(name: QueueName): void {
    this.numbers.set(name, [])
    this.gone.set(name, new Set())
  }

  expected(name: QueueName): [number, number][] {
    const gone = this.gone.get(name)!
    return this.numbers
      .get(name)!
      .map((number, offset): [number, number] => [offset, number])
      .filter(([offset]) => !gone.has(offset))
  }

  #ranges(count: number): RecordRange[] | undefined {
    const chance = this.#chance
    if (chance.hit(0.7)) return undefined
    const index = chance.int(0, count - 1)
    const first = { index, count: chance.int(1, count - index) }
    const end = index + first.count
    if (end + 1 >= count) return [first]
    return [first, { index: end + 1, count: count - end - 1 }]
  }

  share(count = 1 + this.#chance.skewed(500)): void {
    const chance = this.#chance
    const first = this.#number
    this.#number += count
    const messages: Message[] = upTo(count).map((at) =>
      numbered(first + at, { bodyBytes: chance.int(0, 40) }),
    )
    const names = [...QUEUES, STREAM].filter(() => chance.hit(0.7))
    if (names.length === 0) return
    const targets = names.map((name) => ({ name, ranges: this.#ranges(count) }))
    share(this.bench, messages, targets)
    for (const { name, ranges = [{ index: 0, count }] } of targets) {
      const to = name === STREAM ? [STREAM, GROUP] : [name]
      for (const { index, count: length } of ranges)
        for (const one of to) this.numbers.get(one)!.push(...upTo(first + index + length, first + index))
    }
  }

  async consume(name: QueueName): Promise<void> {
    const chance = this.#chance
    const reader = await read(this.bench, name, 1 + chance.skewed(3_000))
    for (const [offset, number] of reader.numbers) {
      expect(number).toBe(this.numbers.get(name)![offset])
      if (chance.hit(0.02)) continue
      reader.settle(offset, OUTCOME.ack)
      this.gone.get(name)!.add(offset)
    }
    expect(reader.endings).toEqual([])
    reader.leave()
    await this.bench.settle()
  }

  async step(): Promise<void> {
    const { bench } = this
    const chance = this.#chance
    const action = chance.int(1, 100)
    if (action <= 60) for (let batches = chance.int(1, 8); batches > 0; batches--) this.share()
    else if (action <= 75) await this.consume(chance.pick([...QUEUES, GROUP]))
    else if (action <= 77) {
      const name = chance.pick(QUEUES)
      bench.broker.turn.begin()
      for (const [offset] of this.expected(name)) this.gone.get(name)!.add(offset)
      bench.broker.catalog.purge(name)
    } else if (action <= 79) {
      bench.broker.turn.begin()
      bench.broker.catalog.delete(OTHER)
      bench.ensure({}, OTHER)
      this.#forget(OTHER)
    } else if (action <= 90) await turnOver(bench, chance.int(100, 900))
    else await bench.crash()
    await bench.settle()
    bench.broker.audit()
    this.cold += bench.broker.coldChunks()
  }

  /** Every queue has its messages, and the stream has all of its messages. */
  async check(): Promise<void> {
    const { bench } = this
    for (const name of QUEUES) expect(await peeked(bench, name)).toEqual(this.expected(name))
    expect(await readStream(bench)).toEqual(this.expected(STREAM))
    bench.broker.audit()
    this.checked++
  }

  /** Nothing is needed once every queue is drained and the stream is gone. */
  async end(): Promise<void> {
    const { bench } = this
    const rest: [number, number][] = []
    for (let got = await drained(bench, GROUP); got.length > 0; got = await drained(bench, GROUP))
      rest.push(...got)
    expect(rest.toSorted(([a], [b]) => a - b)).toEqual(this.expected(GROUP))
    bench.broker.turn.begin()
    bench.broker.streams.delete(STREAM)
    for (const name of QUEUES) bench.broker.catalog.delete(name)
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
  }
}

/** Plays a scene, and returns it with the number of copies that needed cold chunks. */
async function play(
  seed: number,
  steps: number,
  options?: BenchOptions,
): Promise<{ scene: Scene; copies: number }> {
  const chance = new Chance(seed)
  limit({
    headChunks: chance.int(0, 2),
    warmMax: chance.pick([1, 2, 8]),
    warmBytesMax: chance.pick([1, 4_096, 1 << 22]),
  })
  let copies = 0
  const remove = replaced(ColdChunks.prototype, (before) => ({
    whileWarm(this: ColdChunks, ranges, use) {
      copies++
      return before.whileWarm.call(this, ranges, use)
    },
  }))
  try {
    const scene = new Scene(await opened(options), chance)
    for (let step = 0; step < steps; step++) {
      await scene.step()
      if (step % 12 === 11) await scene.check()
    }
    return { scene, copies }
  } finally {
    remove()
  }
}

/**
 * Starts a broker on every `step`th snapshot. Expects that each message that it has is the one that was published at its
 * offset, and that another restart changes nothing. Returns the number of starts and of chunks that were cold.
 */
async function starts({ bench, numbers }: Scene, step: number): Promise<{ starts: number; cold: number }> {
  const { snapshots } = bench
  const seen = async (): Promise<[number, number][][]> => {
    const all = [await readStream(bench)]
    for (const name of QUEUES) if (isThere(bench, name)) all.push(await peeked(bench, name))
    bench.broker.audit()
    return all
  }
  let cold = 0
  let count = 0
  for (let at = 10; at < snapshots.length; at += step) {
    await bench.restart(snapshots[at]!.reopened())
    bench.broker.audit()
    cold += bench.broker.coldChunks()
    const before = await seen()
    for (const [offset, number] of before[0]!) expect(number).toBe(numbers.get(STREAM)![offset])
    const entered = await read(bench, GROUP, 2_000)
    for (const [offset, number] of entered.numbers) expect(number).toBe(numbers.get(GROUP)![offset])
    entered.leave()
    await bench.crash()
    bench.broker.audit()
    expect(await seen()).toEqual(before)
    count++
  }
  return { starts: count, cold }
}

/** A scene whose queues have long backlogs, which are copied while a queue and the group consume some of their messages. */
async function backlog(options: BenchOptions): Promise<Scene> {
  limit({ headChunks: 1, warmMax: 1, warmBytesMax: 1 })
  const scene = new Scene(await opened(options), new Chance(5))
  const { bench } = scene
  for (let batch = 0; batch < 60; batch++) {
    scene.share(200)
    if (batch % 5 === 0) await bench.settle()
  }
  await turnOver(bench, 100)
  expect(bench.broker.coldChunks()).toBeGreaterThan(10)
  const first = queueOf(bench, STREAM).chunks.oldestPosition
  for (let round = 0; round < 4; round++) {
    await scene.consume(GROUP)
    await scene.consume(PLAIN)
    await turnOver(bench, 1_500)
    bench.broker.audit()
  }
  expect(queueOf(bench, STREAM).chunks.oldestPosition).toBeGreaterThan(first + 2 * OPTIONS.segmentBytes!)
  await scene.consume(GROUP)
  await scene.check()
  return scene
}

describe('cold chunks with shared batches', () => {
  it.each(seedsFrom(1, 4, 200))(
    'keep what each queue has, seed %i',
    async (seed) => {
      const { scene, copies } = await play(seed, 60)
      expect(scene.cold).toBeGreaterThan(100)
      expect(copies).toBeGreaterThan(5)
      expect(scene.checked).toBe(5)
      await scene.end()
    },
    TIMEOUT_MS,
  )

  it('are not copied for a stream when the queues of its topic are done', async () => {
    const bench = await opened()
    let copies = 0
    const remove = replaced(Segments.prototype, (before) => ({
      move(copy) {
        copies++
        before.move.call(this, copy)
      },
    }))
    try {
      for (let batch = 0; batch < 100; batch++) {
        const messages = upTo(100).map((at) => numbered(batch * 100 + at, { bodyBytes: 300 }))
        share(bench, messages, [{ name: PLAIN }, { name: OTHER }, { name: STREAM }])
        await drained(bench, PLAIN)
        await drained(bench, OTHER)
        await bench.pass(100)
      }
      for (let second = 0; second < 60; second++) await bench.pass(1_000)
      const { liveBytes, logBytes } = bench.broker.usage()
      expect(logBytes).toBeGreaterThan(10 * OPTIONS.segmentBytes!)
      expect(liveBytes).toBeGreaterThan(0.9 * 100 * 100 * 300)
      expect(copies).toBe(0)
    } finally {
      remove()
    }
    bench.broker.audit()
    expect(await readStream(bench)).toEqual(upTo(10_000).map((at) => [at, at]))
  })

  it(
    'are recovered, whichever entry of the log was the last before a kill',
    async () => {
      const scene = await backlog({ ...OPTIONS, keepsSnapshots: true })
      const started = await starts(scene, runs(100, 3))
      expect(started.starts).toBeGreaterThan(3)
      expect(started.cold).toBeGreaterThan(15)
    },
    TIMEOUT_MS,
  )

  // Mistakes that the tests above must find.
  it.each<[string, () => () => void]>([
    [
      'a summary counts one share too few',
      () =>
        replaced(PageTree.prototype, (before) => ({
          summary(id, number) {
            const found = before.summary.call(this, id, number)
            if (found === undefined || found.scale === 0) return found
            return { ...found, uses: found.uses.map(([position, bytes]) => [position, bytes - 1] as const) }
          },
        })),
    ],
    [
      'a row in a group does not follow a copy',
      () =>
        replaced(Queue.prototype, () => ({
          relocateFact(this: Queue, offset, count, position, bytes, scale) {
            if (this.group === undefined)
              Source.prototype.relocateFact.call(this, offset, count, position, bytes, scale)
          },
        })),
    ],
    [
      'a copy counts as much for each row as the batch before it',
      () =>
        replaced(Segments.prototype, (before) => ({
          move(copy) {
            before.move.call(this, copy.scale === 0 ? copy : { ...copy, toBytes: copy.fromBytes })
          },
        })),
    ],
    [
      'rows of shared batches are taken for batches that reach into the next chunk',
      () =>
        replaced(Chunks.prototype, (before) => ({
          removeUse(this: Chunks, chunk, batch, use) {
            const isLast = batch + 1 === chunk.batches.count
            if (!isLast || !chunk.full) before.removeUse.call(this, chunk, batch, use)
          },
        })),
    ],
  ])('found: %s', async (_what, plant) => {
    const remove = plant()
    const some = async (): Promise<void> => {
      await backlog(OPTIONS)
      await play(2, 60)
    }
    try {
      await expect(some()).rejects.toBeInstanceOf(Error)
    } finally {
      remove()
    }
  })
})
