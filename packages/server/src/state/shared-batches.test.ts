/** Shared batches: in the log, in memory, after crashes, and when they are copied and freed. */
import { BATCH_HEADER_BYTES, OUTCOME, queueName, type QueueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import type { RecordRange } from '../broker/commands.js'
import { BatchTable } from '../queue/batches.js'
import { Chunks } from '../queue/chunks.js'
import { Contents } from '../queue/contents.js'
import { FactBuffer, REFER_BYTES } from '../queue/index.js'
import { Bench, CALLER, batchOf, type BenchOptions, type Message } from '../testing/bench.js'
import { drained, named, numbered, peeked, queueOf, read, share, upTo } from '../testing/sharing.js'
import { Segments } from './segments.js'
import { TIMEOUT_MS, runs, seedsFrom } from '../../../../test/amount.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { replaced } from '../../../../test/simulation/defects.js'

const OPTIONS: BenchOptions = {
  segmentBytes: 256 * 1024,
  checkpointBytes: 16 * 1024,
  messageBytesMax: 16 * 1024,
}
function isThere(bench: Bench, name: QueueName): boolean {
  try {
    queueOf(bench, name)
    return true
  } catch {
    return false
  }
}

async function opened(names: readonly QueueName[], options: BenchOptions = OPTIONS): Promise<Bench> {
  const bench = await new Bench(options).open()
  for (const name of names) bench.ensure({}, name)
  await bench.settle()
  return bench
}

/** Publishes this number of KiB to another queue, which is purged, so that the oldest segments are copied and freed. */
async function turnOver(bench: Bench, kib: number): Promise<void> {
  const other = queueName('other')
  bench.ensure({}, other)
  for (let done = 0; done < kib; done += 28) {
    bench.put(
      upTo(32).map(() => ({ bodyBytes: 880 })),
      other,
    )
    await bench.pass(25)
    bench.broker.catalog.purge(other)
  }
  await bench.pass(1_100)
}

/** Size of all entries. */
const logBytes = (bench: Bench): number => bench.log.entries.reduce((sum, { bytes }) => sum + bytes.length, 0)
const isInLog = (bench: Bench, bytes: Uint8Array): boolean =>
  bench.log.entries.some((entry) => Buffer.from(entry.bytes).includes(Buffer.from(bytes)))

const BODY_BYTES = 10 * 1024
const large = (): Message[] => upTo(10).map((number) => numbered(number, { bodyBytes: BODY_BYTES }))

describe('a batch that several queues share', () => {
  it.each([
    [3, 102],
    [100, 105],
    [1_000, 128],
  ])('takes the room of one batch for %i queues', async (count, kib) => {
    const names = named(count)
    const bench = await opened(names, { messageBytesMax: 16 * 1024, segmentBytes: 8 << 20 })
    const before = logBytes(bench)
    const targets = names.map((name) => ({ name }))
    expect(share(bench, large(), targets)).toBe(count)
    await bench.settle()
    expect(logBytes(bench) - before).toBeLessThan(kib * 1024)
    bench.broker.audit()
  })

  it.each([3, 100, 1_000])('stays until the last of %i queues is done with it', async (count) => {
    const names = named(count)
    const bench = await opened(names, { ...OPTIONS, segmentBytes: 512 * 1024 })
    share(
      bench,
      large(),
      names.map((name) => ({ name })),
    )
    await bench.settle()
    const live = bench.broker.usage().liveBytes
    const rest = names[count >> 1]!
    for (const name of names)
      if (name !== rest) expect((await drained(bench, name)).map(([, number]) => number)).toEqual(upTo(10))
    bench.broker.audit()
    // The row that is left counts its share, and the whole batch once the batch is copied.
    expect(bench.broker.usage().liveBytes).toBe(live / count)
    const left = batchOf(large(), 0).length + BATCH_HEADER_BYTES + REFER_BYTES
    expect(live).toBeGreaterThanOrEqual(left + (count - 1) * REFER_BYTES)
    expect(live).toBeLessThan(left + (count - 1) * REFER_BYTES + count)
    const firstSegment = (): number => bench.log.usage().firstPosition
    const first = firstSegment()
    await bench.fill(2 << 20)
    expect(firstSegment()).toBeGreaterThan(first)
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(left)
    const marker = batchOf([large()[7]!], 0).subarray(BATCH_HEADER_BYTES)
    expect(isInLog(bench, marker)).toBe(true)
    expect(await drained(bench, rest)).toEqual(upTo(10).map((at) => [at, at]))
    expect(bench.broker.usage().liveBytes).toBe(0)
    await bench.fill(3 << 20)
    expect(isInLog(bench, marker)).toBe(false)
    bench.broker.audit()
  })
})

describe('copies of a shared batch', () => {
  /** Acknowledges all messages except those with these numbers. */
  async function keep(bench: Bench, name: QueueName, numbers: readonly number[]): Promise<void> {
    const reader = await read(bench, name)
    for (const [offset, number] of reader.numbers)
      if (!numbers.includes(number)) reader.settle(offset, OUTCOME.ack)
    reader.leave()
    await bench.settle()
  }

  it('have the records that some queue needs, and no others', async () => {
    const names = named(4)
    const [a, b, c, d] = names as [QueueName, QueueName, QueueName, QueueName]
    const bench = await opened(names)
    // Queues b and c have only some records, at other offsets than queue a.
    const ranges = [
      { index: 3, count: 40 },
      { index: 60, count: 30 },
    ]
    const indexes = ranges.flatMap(({ index, count }) => upTo(index + count, index))
    for (let batch = 0; batch < 30; batch++) {
      share(
        bench,
        upTo(100).map((number) => numbered(batch * 100 + number, { bodyBytes: 200 })),
        [{ name: a }, { name: b, ranges }, { name: c, ranges }, { name: d }],
      )
      await bench.settle()
    }
    const before = bench.broker.usage().liveBytes
    const kept = {
      a: upTo(30).map((batch) => batch * 100 + 1),
      b: upTo(30).flatMap((batch) => [5, 70].map((number) => batch * 100 + number)),
      c: upTo(30).flatMap((batch) => [5, 80].map((number) => batch * 100 + number)),
    }
    await keep(bench, a, kept.a)
    await keep(bench, b, kept.b)
    await keep(bench, c, kept.c)
    await keep(bench, d, [])
    bench.broker.audit()
    await turnOver(bench, 3_000)
    bench.broker.audit()
    // Four records of 100 are left.
    expect(bench.broker.usage().liveBytes).toBeLessThan(before / 10)
    const check = async (): Promise<void> => {
      for (const [name, numbers] of [
        [a, kept.a],
        [b, kept.b],
        [c, kept.c],
      ] as const)
        expect((await peeked(bench, name)).map(([, number]) => number)).toEqual(numbers)
      const offsets = (await peeked(bench, b)).map(([offset]) => offset)
      expect(offsets).toEqual(kept.b.map((n) => Math.floor(n / 100) * 70 + indexes.indexOf(n % 100)))
    }
    await check()
    const after = bench.broker.usage().liveBytes
    await bench.crash()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(after)
    await check()
    // A sparse batch is copied again.
    await keep(bench, b, [])
    await turnOver(bench, 3_000)
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBeLessThan(after)
    expect((await peeked(bench, a)).map(([, number]) => number)).toEqual(kept.a)
    expect(await drained(bench, c)).toHaveLength(60)
    for (const name of names) await drained(bench, name)
    expect(bench.broker.usage().liveBytes).toBe(0)
  })

  it('does not look for needed records in queue after queue once all of them are needed', async () => {
    const names = named(50)
    const bench = await opened(names)
    const all = names.map((name) => ({ name }))
    for (let batch = 0; batch < 10; batch++)
      share(
        bench,
        upTo(100).map((number) => numbered(batch * 100 + number, { bodyBytes: 100 })),
        all,
      )
    await bench.settle()
    // The first queue needs one record of each batch, and the second one all others.
    await keep(
      bench,
      names[0]!,
      upTo(10).map((batch) => batch * 100),
    )
    await keep(
      bench,
      names[1]!,
      upTo(1_000).filter((number) => number % 100 > 0),
    )
    let looked = 0
    const remove = replaced(Chunks.prototype, (before) => ({
      neededIndexesAt(this: Chunks, offset, count, position) {
        looked++
        return before.neededIndexesAt.call(this, offset, count, position)
      },
    }))
    try {
      await turnOver(bench, 3_000)
    } finally {
      remove()
    }
    expect(looked).toBeGreaterThanOrEqual(20)
    // A batch can be in two chunks of each queue, and can be copied more than once.
    expect(looked).toBeLessThan(10 * 2 * 6)
    bench.broker.audit()
    expect(await drained(bench, names[2]!)).toEqual(upTo(1_000).map((at) => [at, at]))
  })
})

/**
 * Queues that get batches of their own and shared batches with random ranges, whose messages are consumed, purged,
 * copied and recovered. The number of each message is known by its queue and offset.
 */
class Scene {
  readonly bench: Bench
  readonly names = named(5)
  /** Numbers of the messages by offset, by the id of their queue. */
  readonly numbers = new Map<number, number[]>()
  /** Offsets of the messages that are gone, by the id of their queue. */
  readonly gone = new Map<number, Set<number>>()
  /** For each shared batch, its queues and the offsets after its messages. */
  readonly shared: (readonly (readonly [queueId: number, end: number])[])[] = []
  replayed = 0
  readonly #chance: Chance
  #number = 0

  constructor(bench: Bench, seed: number) {
    this.bench = bench
    this.#chance = new Chance(seed)
  }

  numbersOf(name: QueueName): number[] {
    const { id } = queueOf(this.bench, name)
    let numbers = this.numbers.get(id)
    if (numbers === undefined) this.numbers.set(id, (numbers = []))
    return numbers
  }

  goneIn(name: QueueName): Set<number> {
    const { id } = queueOf(this.bench, name)
    let gone = this.gone.get(id)
    if (gone === undefined) this.gone.set(id, (gone = new Set()))
    return gone
  }

  /** The messages that the model has. */
  expected(name: QueueName): [number, number][] {
    const gone = this.goneIn(name)
    return this.numbersOf(name)
      .map((number, offset): [number, number] => [offset, number])
      .filter(([offset]) => !gone.has(offset))
  }

  async check(): Promise<void> {
    this.bench.broker.audit()
    for (const name of this.names) expect(await peeked(this.bench, name)).toEqual(this.expected(name))
    await this.#checkRetained()
  }

  // Every retained message can be read.
  async #checkRetained(): Promise<void> {
    const { bench } = this
    const { name } = RETAINING
    const queue = queueOf(bench, name)
    const { retainedBytes } = queue
    expect(retainedBytes).toBeLessThan(2 * RETAINING.retainBytes + 100_000)
    bench.broker.turn.begin()
    const all = { name, fromOffset: undefined, fromMs: undefined, untilMs: undefined, cursor: undefined }
    const to = queueName('replayed')
    bench.ensure({}, to)
    const request = { ...all, limit: 1_000, filter: {}, to, dryRun: false }
    const page = await bench.answer(bench.broker.replays.page(request, CALLER))
    await bench.settle()
    const numbers = this.numbersOf(name)
    const replayed = await emptied(bench, to)
    expect(replayed).toHaveLength(page.replayed)
    const offsets = replayed.map(([, number]) => numbers.indexOf(number))
    expect(new Set(offsets).size).toBe(offsets.length)
    this.replayed += offsets.length
    for (const offset of offsets) expect(this.goneIn(name).has(offset)).toBe(true)
  }

  #messages(): Message[] {
    const chance = this.#chance
    const count = chance.hit(0.05) ? chance.int(500, 1_500) : chance.int(1, 30)
    return upTo(count).map(() => {
      const options: Message = chance.hit(0.9)
        ? {}
        : { priority: chance.int(0, 3), key: `k${chance.int(0, 4)}` }
      return numbered(this.#number++, { ...options, bodyBytes: chance.skewed(count > 100 ? 20 : 400) })
    })
  }

  #ranges(count: number): RecordRange[] | undefined {
    const chance = this.#chance
    if (chance.hit(0.5)) return undefined
    const ranges: RecordRange[] = []
    for (let index = chance.int(0, 2); index < count;) {
      const length = Math.min(count - index, 1 + chance.skewed(count))
      ranges.push({ index, count: length })
      index += length + chance.skewed(count)
    }
    return ranges.length === 0 ? undefined : ranges
  }

  share(): void {
    const messages = this.#messages()
    const first = this.#number - messages.length
    const targets = this.names
      .filter(() => this.#chance.hit(0.6))
      .map((name) => ({ name, ranges: this.#ranges(messages.length) }))
    if (targets.length === 0) return
    share(this.bench, messages, targets)
    const ends = targets.map(({ name, ranges = [{ index: 0, count: messages.length }] }) => {
      const numbers = this.numbersOf(name)
      for (const { index, count } of ranges) for (let i = 0; i < count; i++) numbers.push(first + index + i)
      return [queueOf(this.bench, name).id, numbers.length] as const
    })
    this.shared.push(ends)
  }

  async step(): Promise<void> {
    const { bench } = this
    const chance = this.#chance
    const name = chance.pick(this.names)
    const action = chance.int(1, 100)
    if (action <= 35) this.share()
    else if (action <= 51) {
      const messages = this.#messages()
      bench.put(messages, name)
      this.numbersOf(name).push(...upTo(this.#number, this.#number - messages.length))
    } else if (action <= 75) await this.#consume(name)
    else if (action <= 78) {
      bench.broker.turn.begin()
      const gone = this.goneIn(name)
      const dead = new Set(this.#dead(name))
      for (const [offset] of this.expected(name)) if (!dead.has(offset)) gone.add(offset)
      bench.broker.catalog.purge(name)
    } else if (action <= 81) {
      bench.broker.turn.begin()
      bench.broker.catalog.delete(name)
      bench.ensure(name === RETAINING.name ? { retainBytes: RETAINING.retainBytes } : {}, name)
    } else if (action <= 91) await turnOver(bench, chance.int(20, 1_200))
    await bench.settle()
  }

  #dead(name: QueueName): number[] {
    const queue = queueOf(this.bench, name)
    return this.expected(name).flatMap(([offset]) => (queue.deadAt(offset) === undefined ? [] : [offset]))
  }

  async #consume(name: QueueName): Promise<void> {
    const chance = this.#chance
    const reader = await read(this.bench, name, 1 + chance.skewed(2_000))
    const numbers = this.numbersOf(name)
    for (const [offset, number] of reader.numbers) {
      expect(number).toBe(numbers[offset])
      if (chance.hit(0.2)) continue
      const isAcked = chance.hit(0.95)
      reader.settle(offset, isAcked ? OUTCOME.ack : OUTCOME.deadLetter)
      if (isAcked) this.goneIn(name).add(offset)
    }
    reader.leave()
  }
}

const SCENE: BenchOptions = { segmentBytes: 128 * 1024, checkpointBytes: 16 * 1024 }

/** Keeps its acknowledged messages for replay, up to this number of bytes. */
const RETAINING = { name: named(5)[4]!, retainBytes: 20_000 }

async function scene(seed: number, steps: number, options: BenchOptions = SCENE): Promise<Scene> {
  const bench = await opened(named(5), options)
  bench.ensure({ retainBytes: RETAINING.retainBytes }, RETAINING.name)
  const made = new Scene(bench, seed)
  for (let step = 0; step < steps; step++) {
    await made.step()
    if (step % 10 === 9) await made.check()
    if (step % 40 !== 39) continue
    await bench.crash()
    await made.check()
  }
  return made
}

/** The offsets and numbers that a consumer gets until the queue is empty. */
async function emptied(bench: Bench, name: QueueName): Promise<[number, number][]> {
  const all: [number, number][] = []
  for (let got = await drained(bench, name); got.length > 0; got = await drained(bench, name))
    all.push(...got)
  return all
}

describe('at rest', () => {
  it('nothing is written, although facts are most of what small batches take', async () => {
    const names = named(40)
    const bench = await opened(names, SCENE)
    for (let round = 0; round < 500; round++) {
      share(
        bench,
        [numbered(round)],
        names.map((name) => ({ name })),
      )
      if (round % 10 === 0) await bench.pass(25)
    }
    await bench.settle()
    const { liveBytes } = bench.broker.usage()
    expect(liveBytes).toBeGreaterThan(4 * SCENE.segmentBytes!)
    // Every second queue is done, so that half of the facts are not needed.
    for (const name of names.filter((_, at) => at % 2 === 0)) await drained(bench, name)
    await turnOver(bench, 3_000)
    bench.broker.audit()
    // The log takes at most twice what is needed, plus four segments; an early checkpoint waits.
    expect(bench.broker.usage().logBytes).toBeLessThan(2 * liveBytes + 8 * SCENE.segmentBytes!)
    for (let second = 0; second < 120; second++) await bench.pass(1_000)
    const written = bench.broker.usage().writtenBytes
    for (let second = 0; second < 300; second++) await bench.pass(1_000)
    expect(bench.broker.usage().writtenBytes).toBe(written)
    bench.broker.audit()
    for (const name of names.filter((_, at) => at % 2 === 1))
      expect(await drained(bench, name)).toEqual(upTo(500).map((at) => [at, at]))
  })
})

describe('shared batches and batches of one queue', () => {
  it.each(seedsFrom(1, 3, 200))('give each queue its messages, seed %i', async (seed) => {
    const { bench, names, shared, replayed } = await scene(seed, 120)
    expect(shared.length).toBeGreaterThan(10)
    expect(replayed).toBeGreaterThan(0)
    for (const name of names) {
      await emptied(bench, name)
      bench.broker.turn.begin()
      bench.broker.catalog.delete(name)
    }
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
  })

  it(
    'are recovered as a whole, whichever entry of the log was the last before a kill',
    async () => {
      let copies = 0
      const remove = replaced(Segments.prototype, (before) => ({
        move(copy) {
          copies++
          before.move.call(this, copy)
        },
      }))
      try {
        const made = await scene(77, 40, { ...SCENE, keepsSnapshots: true })
        expect(copies).toBeGreaterThan(15)
        expect(await starts(made, runs(10, 1))).toBeGreaterThan(15)
      } finally {
        remove()
      }
    },
    TIMEOUT_MS,
  )
})

/**
 * Starts a broker on every `step`th snapshot. Expects that each queue has only its messages, that all or none of the
 * queues of a shared batch have messages of it, and that recovery is idempotent. Returns the number of starts.
 */
async function starts({ bench, numbers, shared }: Scene, step: number): Promise<number> {
  const { snapshots } = bench
  let checked = 0
  for (let at = 0; at < snapshots.length; at += step) {
    await bench.restart(snapshots[at]!.reopened())
    bench.broker.audit()
    const queues = named(5).filter((name) => isThere(bench, name))
    const ends = new Map(queues.map((name) => [queueOf(bench, name).id, queueOf(bench, name).next]))
    for (const targets of shared) {
      const known = targets.filter(([queueId]) => ends.has(queueId))
      expect(new Set(known.map(([queueId, end]) => ends.get(queueId)! >= end)).size).toBeLessThan(2)
    }
    const found = new Map<QueueName, [number, number][]>()
    for (const name of queues) {
      const messages = await peeked(bench, name)
      for (const [offset, number] of messages)
        expect(number).toBe(numbers.get(queueOf(bench, name).id)![offset])
      found.set(name, messages)
    }
    await bench.crash()
    bench.broker.audit()
    for (const [name, messages] of found) expect(await peeked(bench, name)).toEqual(messages)
    checked++
  }
  return checked
}

// Mistakes that the tests above must find.
describe('planted mistakes about shared batches', () => {
  it.each<[string, () => () => void]>([
    [
      'one row of a shared batch is not counted',
      () =>
        replaced(Segments.prototype, (before) => ({
          share(position, bytes, scale) {
            before.share.call(this, position, scale > 0 ? bytes - REFER_BYTES : bytes, scale)
          },
        })),
    ],
    [
      'a queue that leaves a shared batch does not release its row',
      () =>
        replaced(Chunks.prototype, (before) => ({
          removeUse(this: Chunks, chunk, batch, use) {
            if (!chunk.batches.isShared(batch)) before.removeUse.call(this, chunk, batch, use)
          },
        })),
    ],
    [
      'a copy of a shared batch does not take the shares of its rows along',
      () => replaced(Segments.prototype, () => ({ move() {} })),
    ],
    [
      'the scale of the shares in a segment is not known',
      () =>
        replaced(Segments.prototype, (before) => ({
          share(position, bytes) {
            before.share.call(this, position, bytes, 0)
          },
        })),
    ],
    [
      'a copy has the records that the first queue needs, without those that only others need',
      () =>
        replaced(Chunks.prototype, (before) => ({
          neededIndexesAt(this: Chunks, offset, count, position) {
            return before.neededIndexesAt.call(this, offset, count, position).slice(0, 1)
          },
        })),
    ],
    [
      'a row records the index in its queue, not in the batch',
      () =>
        replaced(BatchTable.prototype, (before) => ({
          share(_index, needed, scale) {
            before.share.call(this, 0, needed, scale)
          },
        })),
    ],
    [
      'recovery ignores which records a queue takes',
      () =>
        replaced(Contents.prototype, (before) => ({
          referFact(refers, ...rest) {
            const isService = this.appliedFrom === Infinity
            const wrong = refers.map((refer) => ({ ...refer, index: 0 }))
            before.referFact.call(this, isService ? refers : wrong, ...rest)
          },
        })),
    ],
  ])('found: %s', async (_what, plant) => {
    const remove = plant()
    try {
      await expect(scene(3, 120)).rejects.toBeInstanceOf(Error)
    } finally {
      remove()
    }
  })

  it('found: the facts before a copy have the wrong offset', async () => {
    const copied = async (plant: () => () => void): Promise<void> => {
      const bench = await opened(named(3))
      const all = named(3).map((name) => ({ name }))
      share(
        bench,
        upTo(40).map((number) => numbered(number)),
        all,
      )
      await bench.settle()
      const remove = plant()
      try {
        await bench.fill(4 << 20)
        // The batch was copied more than once, each time with the facts of the last copy.
        expect(queueOf(bench, named(3)[1]!).chunks.oldestPosition).toBeGreaterThan(2 << 20)
        await bench.crash()
        bench.broker.audit()
        expect(await drained(bench, named(3)[1]!)).toEqual(upTo(40).map((at) => [at, at]))
      } finally {
        remove()
      }
    }
    await copied(() => () => {})
    const plant = (): (() => void) =>
      replaced(FactBuffer.prototype, (before) => ({
        refer(refer) {
          before.refer.call(this, { ...refer, offset: refer.offset + 1 })
        },
      }))
    await expect(copied(plant)).rejects.toBeInstanceOf(Error)
  })
})
