/** Compaction by key: what is removed and when, what is kept for groups and readers, and what a crash keeps. */
import { OUTCOME, queueName, type QueueName, type SluiceError, type StreamOptions } from '@sluice/protocol'
import { afterEach, describe, expect, it } from 'vitest'
import { runs } from '../../../../test/amount.js'
import { replaced } from '../../../../test/simulation/defects.js'
import { CHUNK_MESSAGES, FactBuffer, KeyTable, Queue } from '../queue/index.js'
import { ColdChunks } from '../state/cold-chunks.js'
import { Bench, type Message, type Worker } from '../testing/bench.js'
import { share, upTo } from '../testing/sharing.js'
import { Compaction } from './compaction.js'
import type { Reader, ReaderSink } from './reader.js'

const CLICKS = queueName('clicks')
const JOBS = queueName('jobs')
const A = 'clicks@a' as QueueName
const B = 'clicks@b' as QueueName
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }
const HOUR = 3_600_000
const DAY = 24 * HOUR

const { keysMax, tombstonesMax, changedMax } = Compaction
const { warmMax } = ColdChunks

afterEach(() => {
  Compaction.keysMax = keysMax
  Compaction.tombstonesMax = tombstonesMax
  Compaction.changedMax = changedMax
  ColdChunks.warmMax = warmMax
})

async function opened(options: Partial<StreamOptions> = {}, more: object = {}): Promise<Bench> {
  const bench = await new Bench({ ...SMALL, ...more }).open()
  ensure(bench, { compact: 'key', ...options })
  return bench
}

function ensure(bench: Bench, options: Partial<StreamOptions>): void {
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name: CLICKS, options, update: true })
}

function ensureGroup(bench: Bench, name: QueueName = A): void {
  bench.broker.turn.begin()
  const options = { maxDeliveries: 3, retryInitialMs: 50, retryMaxMs: 50 }
  bench.broker.groups.ensure({ name, options, update: true, from: 'first' })
}

const info = (bench: Bench): ReturnType<Bench['broker']['streams']['info']> => {
  bench.broker.turn.begin()
  return bench.broker.streams.info(CLICKS)
}

const groupInfo = (bench: Bench, name: QueueName = A): ReturnType<Bench['broker']['groups']['info']> => {
  bench.broker.turn.begin()
  return bench.broker.groups.info(name)
}

/** Reads a stream, and collects the offsets. */
class Offsets implements ReaderSink {
  readonly isReady = true
  readonly offsets: number[] = []
  missed = 0

  deliverRead(_reader: Reader, { run, count }: Parameters<ReaderSink['deliverRead']>[1]): void {
    for (let at = 0; at < count; at++) this.offsets.push(run.offset + at)
  }

  readAt(_reader: Reader, missed: number): void {
    this.missed += missed
  }

  readEnded(_reader: Reader, error: SluiceError): void {
    throw error
  }
}

function read(
  bench: Bench,
  messages = 65_535,
  from: 'first' | number = 'first',
): Offsets & { reader: Reader } {
  const sink = new Offsets() as Offsets & { reader: Reader }
  const none = { fromMs: undefined, until: undefined, filter: undefined }
  bench.broker.turn.begin()
  const request = { name: CLICKS, from, follow: true, messages, bytes: 1 << 26, ...none } as const
  const { reader, missed } = bench.broker.readers.open(request, 1, sink)
  sink.reader = reader
  sink.missed = missed
  return sink
}

async function kept(bench: Bench): Promise<number[]> {
  const sink = read(bench)
  await bench.settle()
  bench.broker.readers.close(sink.reader)
  return sink.offsets
}

/** Publishes messages with these keys. A key that begins with `-` has no body. */
async function publish(bench: Bench, keys: readonly string[]): Promise<void> {
  const message = (key: string): Message =>
    key.startsWith('-') ? { key: key.slice(1), bodyBytes: 0 } : { key, bodyBytes: 20 }
  for (let from = 0; from < keys.length; from += 100) {
    await bench.publish(keys.slice(from, from + 100).map(message), CLICKS)
    await bench.pass(1)
  }
}

/** Acknowledges all messages of a group. The messages of a key are delivered one by one. */
async function drained(bench: Bench, name: QueueName): Promise<void> {
  for (let got = await bench.drain(name); got.length > 0;) got = await bench.drain(name)
}

/** Lets a pass run that is due soon. */
async function compacted(bench: Bench): Promise<void> {
  await bench.pass(10_000)
  expect(bench.broker.isCompacting).toBe(false)
}

const refused = (code: string, message: string): object =>
  expect.objectContaining({ code, message: expect.stringContaining(message) as unknown })

describe('compaction', () => {
  it('keeps the newest message of each key, at its offset', async () => {
    const bench = await opened()
    await publish(bench, ['a', 'b', 'a', 'c', 'b', 'a'])
    expect(await kept(bench)).toEqual(upTo(6))
    await compacted(bench)
    for (let restarts = 0; restarts < 3; restarts++) {
      expect(await kept(bench)).toEqual([3, 4, 5])
      expect(info(bench)).toMatchObject({ messages: 3, compacted: 3, next: 6 })
      bench.broker.audit()
      await bench.fill(restarts * 50_000)
      await bench.crash()
    }
    await publish(bench, ['d', 'c', 'c'])
    await compacted(bench)
    expect(await kept(bench)).toEqual([4, 5, 6, 8])
    expect(info(bench)).toMatchObject({ messages: 4, compacted: 5, next: 9 })
  })

  it('spans chunks, cold or not, and leaves little of them', async () => {
    ColdChunks.warmMax = 2
    const bench = await opened()
    const keys = upTo(12 * CHUNK_MESSAGES).map((at) => `k${at % 100}`)
    await publish(bench, keys)
    await bench.fill(100_000)
    await compacted(bench)
    const newest = upTo(keys.length, keys.length - 100)
    expect(await kept(bench)).toEqual(newest)
    expect(info(bench).messages).toBe(100)
    expect(info(bench).first).toBeGreaterThanOrEqual(11 * CHUNK_MESSAGES)
    await bench.fill(300_000)
    expect(bench.broker.usage().logBytes).toBeLessThan(6 * SMALL.segmentBytes)
    await bench.crash()
    bench.broker.audit()
    expect(await kept(bench)).toEqual(newest)
  })

  it('goes on in parts when the table is full', async () => {
    Compaction.keysMax = 50
    const bench = await opened()
    await publish(
      bench,
      upTo(3_000).map((at) => `k${at % 1_000}`),
    )
    await compacted(bench)
    expect(await kept(bench)).toEqual(upTo(3_000, 2_000))
  })

  it('waits for a checkpoint when it has changed many chunks', async () => {
    Compaction.changedMax = 2
    const bench = await opened()
    const count = 10 * CHUNK_MESSAGES
    await publish(
      bench,
      upTo(count).map((at) => `k${at % 1_000}`),
    )
    await compacted(bench)
    expect(await kept(bench)).toEqual(upTo(count, count - 1_000))
    bench.broker.audit()
  })

  it('starts when half of the stream is new, and otherwise after a day', async () => {
    const bench = await opened()
    await publish(
      bench,
      upTo(1_000).map((at) => `k${at}`),
    )
    await compacted(bench)
    await publish(bench, ['k0', 'k1'])
    await bench.pass(HOUR)
    expect(info(bench)).toMatchObject({ messages: 1_002 })
    await bench.pass(DAY)
    expect(info(bench)).toMatchObject({ messages: 1_000, compacted: 2 })
    await publish(
      bench,
      upTo(1_100).map((at) => `k${at % 50}`),
    )
    await compacted(bench)
    expect(info(bench)).toMatchObject({ messages: 1_000, compacted: 1_102 })
  })

  it('reads and writes nothing at rest', async () => {
    const bench = await opened()
    await publish(
      bench,
      upTo(3_000).map((at) => `k${at % 10}`),
    )
    await compacted(bench)
    for (let day = 0; day < 5; day++) await bench.pass(DAY)
    const { writtenBytes } = bench.broker.usage()
    let passes = 0
    const remove = replaced(Compaction.prototype, (before) => ({
      note(this: Compaction, queue: Queue): void {
        before.note.call(this, queue)
        if (bench.broker.isCompacting) passes++
      },
    }))
    for (let day = 0; day < 20; day++) await bench.pass(DAY)
    remove()
    expect(passes).toBe(0)
    expect(bench.broker.usage().writtenBytes).toBe(writtenBytes)
    await bench.crash()
    await bench.pass(DAY)
    expect(await kept(bench)).toEqual(upTo(3_000, 2_990))
  })

  it('is set and unset on a stream that exists', async () => {
    const bench = await opened({ compact: 'none' })
    await bench.publish([{}, {}], CLICKS)
    await publish(bench, ['a', 'a', 'b'])
    await bench.pass(2 * DAY)
    expect(await kept(bench)).toEqual(upTo(5))
    ensure(bench, { compact: 'key' })
    await compacted(bench)
    // Messages without a key that are there already stay.
    expect(await kept(bench)).toEqual([0, 1, 3, 4])
    ensure(bench, { compact: 'none' })
    await bench.publish([{}], CLICKS)
    await publish(bench, ['b', 'b'])
    await bench.pass(2 * DAY)
    await bench.crash()
    await bench.pass(2 * DAY)
    expect(await kept(bench)).toEqual([0, 1, 3, 4, 5, 6, 7])
    expect(info(bench).options).toMatchObject({ compact: 'none', tombstoneAgeMs: DAY })
  })

  it('can be unset, or the stream deleted, while a pass runs', async () => {
    for (const how of ['unset', 'deleted'] as const) {
      const bench = await opened()
      await publish(
        bench,
        upTo(5 * CHUNK_MESSAGES).map((at) => `k${at % 10}`),
      )
      bench.now += 10_000
      bench.broker.turn.tick()
      for (let turns = 0; turns < 3; turns++) bench.endTurns()
      expect(bench.broker.isCompacting).toBe(true)
      bench.broker.turn.begin()
      if (how === 'deleted') bench.broker.streams.delete(CLICKS)
      else ensure(bench, { compact: 'none' })
      await bench.settle()
      expect(bench.broker.isCompacting).toBe(false)
      bench.broker.audit()
      if (how === 'deleted') continue
      expect((await kept(bench)).length).toBeGreaterThan(10)
      ensure(bench, { compact: 'key' })
      await compacted(bench)
      expect((await kept(bench)).length).toBe(10)
    }
  })

  it('works beside the limits of retention', async () => {
    const bench = await opened({ retainMessages: 2 * CHUNK_MESSAGES })
    await publish(
      bench,
      upTo(5 * CHUNK_MESSAGES).map((at) => `k${at}`),
    )
    await compacted(bench)
    expect((await kept(bench))[0]).toBe(3 * CHUNK_MESSAGES)
    const behind = read(bench, 65_535, CHUNK_MESSAGES)
    expect(behind.missed).toBe(2 * CHUNK_MESSAGES)
    expect(info(bench).compacted).toBe(0)
  })
})

describe('a message', () => {
  it('without a key is refused, also in a batch for several targets', async () => {
    const bench = await opened()
    bench.ensure({}, JOBS)
    const text = 'Message 1 has no `key`; the stream clicks keeps the newest message of each key.'
    expect(() => bench.put([{ key: 'a' }, {}], CLICKS)).toThrow(refused('KEY_REQUIRED', text))
    expect(() => bench.put([{}], CLICKS)).toThrow(refused('KEY_REQUIRED', 'Message 0 has no `key`'))
    expect(() => share(bench, [{ key: 'a' }, {}], [{ name: JOBS }, { name: CLICKS }])).toThrow(
      refused('KEY_REQUIRED', text),
    )
    expect(info(bench).next).toBe(0)
    expect(bench.info(JOBS).published).toBe(0)
    ensure(bench, { compact: 'none' })
    bench.put([{ key: 'a' }, {}], CLICKS)
  })

  it('of a shared batch is compacted like others', async () => {
    const bench = await opened()
    bench.ensure({}, JOBS)
    for (let round = 0; round < 3; round++) {
      share(bench, [{ key: 'a' }, { key: 'b' }, { key: `${round}` }], [{ name: JOBS }, { name: CLICKS }])
      await bench.settle()
    }
    await compacted(bench)
    expect(await kept(bench)).toEqual([2, 5, 6, 7, 8])
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(await kept(bench)).toEqual([2, 5, 6, 7, 8])
    expect(bench.info(JOBS).ready).toBe(9)
  })

  it('without a body removes the older ones, and is removed after `tombstoneAge`', async () => {
    const bench = await opened({ tombstoneAgeMs: 2 * HOUR })
    await publish(bench, ['a', 'b', '-a'])
    await compacted(bench)
    expect(await kept(bench)).toEqual([1, 2])
    await bench.pass(HOUR)
    expect(await kept(bench)).toEqual([1, 2])
    await bench.crash()
    await bench.pass(2 * HOUR)
    expect(await kept(bench)).toEqual([1])
    expect(info(bench)).toMatchObject({ messages: 1, compacted: 2 })
    // A newer message of the key makes the tombstone an ordinary older one.
    await publish(bench, ['-b', 'b'])
    await compacted(bench)
    expect(await kept(bench)).toEqual([4])
  })

  it('without a body stays as long as an older one of its key cannot be removed', async () => {
    const bench = await opened({ tombstoneAgeMs: 0 })
    ensureGroup(bench)
    await publish(bench, ['a', 'b'])
    const worker = bench.consume(10, { name: A })
    await bench.settle()
    expect(worker.offsets).toEqual([0, 1])
    worker.settle(1, OUTCOME.ack)
    await publish(bench, ['-a', '-b'])
    await compacted(bench)
    worker.settle(3, OUTCOME.ack)
    await bench.pass(DAY)
    await publish(bench, ['c'])
    await bench.pass(DAY)
    expect(await kept(bench)).toEqual([0, 2, 4])
    worker.ackAll()
    worker.leave()
    await publish(bench, ['c', 'c', 'c', 'c'])
    await drained(bench, A)
    await publish(bench, ['c', 'c'])
    await compacted(bench)
    expect(await kept(bench)).toEqual([10])
  })

  it('without a body is removed in parts if there are many', async () => {
    Compaction.tombstonesMax = 7
    const bench = await opened({ tombstoneAgeMs: 0 })
    await publish(
      bench,
      upTo(100).flatMap((at) => [`k${at}`, `-k${at}`, `l${at}`]),
    )
    await compacted(bench)
    await bench.pass(60_000)
    expect(await kept(bench)).toEqual(upTo(100).map((at) => 3 * at + 2))
  })
})

describe('a group', () => {
  it('does not stop at removed messages, and has not missed them', async () => {
    const bench = await opened()
    ensureGroup(bench)
    await publish(
      bench,
      upTo(3_000).map((at) => `k${at % 10}`),
    )
    await compacted(bench)
    expect(groupInfo(bench)).toMatchObject({ missed: 0, position: 0 })
    expect(await bench.drain(A)).toEqual(upTo(3_000, 2_990))
    expect(groupInfo(bench)).toMatchObject({ missed: 0, position: 3_000, lag: 0 })
    bench.broker.turn.begin()
    bench.broker.groups.move({ name: A, to: 5 })
    await bench.settle()
    await bench.crash()
    expect(await bench.drain(A)).toEqual(upTo(3_000, 2_990))
    expect(groupInfo(bench).missed).toBe(0)
  })

  it('keeps messages until it is done with them', async () => {
    const bench = await opened()
    ensureGroup(bench)
    ensureGroup(bench, B)
    await publish(bench, ['a', 'a', 'a', 'a'])
    const worker = bench.consume(10, { name: A })
    await bench.settle()
    // The messages of a key are delivered one by one.
    expect(worker.offsets).toEqual([0])
    worker.settle(0, OUTCOME.deadLetter, { reason: 'bad' })
    await bench.settle()
    await publish(bench, ['a'])
    worker.leave()
    await bench.settle()
    await compacted(bench)
    expect(await kept(bench)).toEqual(upTo(5))
    for (let restarts = 0; restarts < 2; restarts++) {
      bench.broker.audit()
      expect(groupInfo(bench)).toMatchObject({ dead: 1, missed: 0 })
      await bench.crash()
    }
    await drained(bench, A)
    await publish(bench, ['a', 'a', 'a', 'a', 'a', 'a'])
    await drained(bench, A)
    await compacted(bench)
    expect(await kept(bench)).toEqual([0, 10])
    expect(await bench.redrive({ name: A })).toMatchObject({ redriven: 1 })
    expect(await bench.drain(A)).toEqual([0])
    expect(await bench.drain(B)).toEqual([0])
  })
})

describe('a reader', () => {
  it('that is behind gets the newest messages, and has missed nothing', async () => {
    const bench = await opened()
    await publish(
      bench,
      upTo(3_000).map((at) => `k${at % 10}`),
    )
    const sink = read(bench, 5)
    await bench.settle()
    await compacted(bench)
    for (let times = 0; times < 3; times++) {
      bench.broker.turn.begin()
      bench.broker.readers.credit(sink.reader, 5, 1 << 26)
      await bench.settle()
    }
    expect(sink.offsets.slice(5).filter((offset) => offset >= 2_990)).toEqual(upTo(3_000, 2_990))
    expect(sink.missed).toBe(0)
    expect(read(bench, 1, 7).missed).toBe(0)
  })
})

// --- the comparison with a model ---

interface Stored {
  readonly key: string
  readonly isTombstone: boolean
  readonly timeMs: number
}

interface Seen {
  removed: number
  tombstones: number
  crashes: number
  held: number
  parts: number
}

/** Offset of the newest message of each key. */
function newestOf(stored: readonly Stored[]): Set<number> {
  return new Set(new Map(stored.map(({ key }, offset) => [key, offset])).values())
}

async function compare(seed: number, seen: Seen): Promise<void> {
  let state = seed * 2_654_435_761 + 1
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const ageMs = HOUR
  Compaction.keysMax = [10, keysMax][random(2)]!
  Compaction.tombstonesMax = [2, tombstonesMax][random(2)]!
  Compaction.changedMax = [4, changedMax][random(2)]!
  if (Compaction.keysMax === 10) seen.parts++
  const bench = await opened({ tombstoneAgeMs: ageMs }, { keepsSnapshots: true })
  const groups = upTo(random(3)).map((at) => [A, B][at]!)
  for (const name of groups) ensureGroup(bench, name)
  await bench.settle()
  const stored: Stored[] = []
  const workers: Worker[] = []
  const keys = 1 + random(30)
  const removed = new Set<number>()
  // No message that the model needs is missing, and nothing has come back.
  const check = async (what: string): Promise<number[]> => {
    const offsets = await kept(bench)
    const has = new Set(offsets)
    for (const offset of newestOf(stored)) {
      const { isTombstone, timeMs } = stored[offset]!
      const mayBeGone = isTombstone && bench.now >= timeMs + ageMs
      if (!mayBeGone) expect(has.has(offset), `${what}: ${offset} is the newest`).toBe(true)
    }
    expect(offsets, `${what}: order`).toEqual(offsets.toSorted((a, b) => a - b))
    for (const offset of offsets) expect(removed.has(offset), `${what}: ${offset} came back`).toBe(false)
    for (let offset = 0; offset < stored.length; offset++) if (!has.has(offset)) removed.add(offset)
    for (const name of groups) expect(groupInfo(bench, name).missed, `missed`).toBe(0)
    bench.broker.audit()
    return offsets
  }
  for (let step = 0; step < 30; step++) {
    const what = random(20)
    if (what < 9) {
      const count = 1 + random(random(8) === 0 ? 1_500 : 100)
      const names = upTo(count).map(() => `${random(6) === 0 ? '-' : ''}k${random(keys)}`)
      for (const name of names)
        stored.push({ key: name.replace('-', ''), isTombstone: name.startsWith('-'), timeMs: bench.now })
      await bench.publish(
        names.map((name) => ({ key: name.replace('-', ''), bodyBytes: name.startsWith('-') ? 0 : 10 })),
        CLICKS,
      )
    } else if (what < 12 && groups.length > 0) {
      const worker = bench.consume(1 + random(50), { name: groups[random(groups.length)]! })
      await bench.settle()
      for (const { offset } of worker.got) {
        const how = random(8)
        if (how < 5) worker.settle(offset, OUTCOME.ack)
        else if (how === 5) worker.settle(offset, OUTCOME.deadLetter, { reason: 'no' })
        else if (how === 6) worker.settle(offset, OUTCOME.retry, { reason: 'no' })
      }
      if (random(3) > 0) worker.leave()
      else workers.push(worker)
      await bench.settle()
    } else if (what < 14) await bench.pass([100, 10_000, HOUR, DAY][random(4)]!)
    else if (what < 15) await bench.fill(random(60_000))
    else if (what < 16) {
      // In the middle of a pass.
      bench.now += 10_000
      bench.broker.turn.tick()
      for (let turns = random(4); turns > 0; turns--) bench.endTurns()
      await bench.crash()
      workers.length = 0
      seen.crashes++
    } else if (what < 18 && bench.snapshots.length > 0) {
      const { snapshots } = bench
      const log = snapshots[Math.max(0, snapshots.length - 1 - random(30))]!
      const { next } = info(bench)
      await bench.restart(log)
      snapshots.length = 0
      workers.length = 0
      if (bench.broker.status.queues === 0) ensure(bench, { compact: 'key', tombstoneAgeMs: ageMs })
      for (const name of groups) ensureGroup(bench, name)
      const now = info(bench).next
      expect(now).toBeLessThanOrEqual(next)
      stored.length = now
      // What was removed in the lost part of the log can be there again.
      removed.clear()
      seen.crashes++
    }
    await check(`step ${step}`)
  }
  for (const worker of workers) worker.leave()
  await bench.settle()
  // Later passes remove what can be removed.
  stored.push({ key: 'end', isTombstone: false, timeMs: bench.now })
  await bench.publish([{ key: 'end' }], CLICKS)
  for (let passes = 0; passes < 3; passes++) await bench.pass(DAY)
  const offsets = await check('the end')
  const newest = newestOf(stored)
  const held = new Set<number>()
  for (const name of groups) {
    const group = bench.broker.catalog.queue(name)
    for (const { base, count } of group.heldChunks())
      for (let at = base; at < base + count; at++) if (group.stateOf(at) !== undefined) held.add(at)
  }
  const heldKeys = new Set([...held].map((offset) => stored[offset]!.key))
  for (const offset of offsets) {
    const { isTombstone, key } = stored[offset]!
    if (held.has(offset)) seen.held++
    else if (isTombstone) expect(heldKeys.has(key), `tombstone ${offset} stays`).toBe(true)
    else expect(newest.has(offset), `${offset} stays`).toBe(true)
  }
  seen.removed += removed.size
  for (const offset of newest) if (stored[offset]!.isTombstone && removed.has(offset)) seen.tombstones++
}

async function compareAll(count: number): Promise<Seen> {
  const seen = { removed: 0, tombstones: 0, crashes: 0, held: 0, parts: 0 }
  for (let seed = 1; seed <= count; seed++) {
    try {
      await compare(seed, seen)
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      })
    }
  }
  return seen
}

it('agrees with a Map across groups, parts, retries, copies and crashes at any entry', async () => {
  const seen = await compareAll(runs(10, 400))
  for (const [what, count] of Object.entries(seen)) expect(count, what).toBeGreaterThan(2)
})

it.each<[string, () => () => void]>([
  [
    'also removes the newest message',
    () =>
      replaced(Queue.prototype, (before) => ({
        withoutHeld(this: Queue, base: number, indexes: Uint32Array): void {
          before.withoutHeld.call(this, base, indexes)
          const last = this.next - 1 - base
          if (last < CHUNK_MESSAGES) indexes[last >>> 5]! |= 1 << (last & 31)
        },
      })),
  ],
  ['does not record what it removes', () => replaced(FactBuffer.prototype, () => ({ compact(): void {} }))],
  ['removes what a group has leased', () => replaced(Queue.prototype, () => ({ withoutHeld(): void {} }))],
  [
    'takes different keys for one',
    () =>
      replaced(KeyTable.prototype, (before) => ({
        find(this: KeyTable, hashes: Uint32Array, at: number): number {
          const found = before.find.call(this, hashes, at)
          return found === -1 && this.size > 3 ? 0 : found
        },
      })),
  ],
])('a compaction that %s is found', async (_, plant) => {
  const remove = plant()
  try {
    await expect(compareAll(10)).rejects.toThrow(/^seed /)
  } finally {
    remove()
  }
})
