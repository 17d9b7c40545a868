/** Groups of streams: what enters, what a group keeps across restarts, and what retention and moves change. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LOSS,
  OUTCOME,
  batchLength,
  batchType,
  queueName,
  type GroupInfo,
  type GroupOptions,
  type QueueName,
  type StreamPlace,
} from '@sluice/protocol'
import { describe, expect, it, vi } from 'vitest'
import { runs } from '../../../../test/amount.js'
import { replaced } from '../../../../test/simulation/defects.js'
import { CHUNK_MESSAGES, FACT, GroupContents, Queue, readFacts, type KeyWords } from '../queue/index.js'
import { entryBatches } from '../log/entry.js'
import type { MemoryLog } from '../log/memory-log.js'
import { Line } from '../queue/line.js'
import { Bench, type Message, type Worker } from '../testing/bench.js'
import { share, upTo } from '../testing/sharing.js'
import { Feeds } from './feeds.js'
import { GROUPS_MAX } from './groups.js'

const CLICKS = queueName('clicks')
const A = 'clicks@a' as QueueName
const B = 'clicks@b' as QueueName
const FAILED = queueName('failed')
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }

async function opened(): Promise<Bench> {
  const bench = await new Bench(SMALL).open()
  ensureStream(bench)
  return bench
}

function ensureStream(bench: Bench, options: object = {}): void {
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name: CLICKS, options, update: true })
}

function ensure(
  bench: Bench,
  name: QueueName,
  options: Partial<GroupOptions> = {},
  from: StreamPlace = 'first',
): void {
  bench.broker.turn.begin()
  bench.broker.groups.ensure({ name, options, update: true, from })
}

function info(bench: Bench, name: QueueName = A): GroupInfo {
  bench.broker.turn.begin()
  return bench.broker.groups.info(name)
}

async function publish(bench: Bench, count: number, message: Message = { bodyBytes: 20 }): Promise<void> {
  for (let left = count; left > 0; left -= 100) {
    await bench.publish(
      upTo(Math.min(left, 100)).map(() => message),
      CLICKS,
    )
    await bench.pass(1)
  }
}

const move = (bench: Bench, to: StreamPlace, name: QueueName = A): GroupInfo => {
  bench.broker.turn.begin()
  return bench.broker.groups.move({ name, to }).group
}

async function drained(bench: Bench, name: QueueName): Promise<number[]> {
  const offsets: number[] = []
  for (let got = await bench.drain(name); got.length > 0; got = await bench.drain(name)) offsets.push(...got)
  return offsets
}

const refused = (code: string, message: string): object =>
  expect.objectContaining({ code, message: expect.stringContaining(message) as unknown })

describe('a group', () => {
  it('gets each message of its stream once, whatever other groups do', async () => {
    const bench = await opened()
    ensure(bench, A)
    await publish(bench, 3000)
    ensure(bench, B)
    await bench.fill(100_000)
    expect(info(bench)).toMatchObject({ position: 0, lag: 3000, missed: 0, leased: 0 })
    expect(await drained(bench, A)).toEqual(upTo(3000))
    expect(info(bench)).toMatchObject({ position: 3000, lag: 0, lagMs: null })
    expect(info(bench, B)).toMatchObject({ position: 0, lag: 3000 })
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(info(bench)).toMatchObject({ position: 3000, lag: 0 })
    await publish(bench, 50)
    expect(await drained(bench, A)).toEqual(upTo(3050, 3000))
    expect(await drained(bench, B)).toEqual(upTo(3050))
    bench.broker.audit()
  })

  it('that is created while its stream is beyond its limits writes the release that it causes', async () => {
    const bench = await opened()
    ensureStream(bench, { retainMessages: 1 })
    await publish(bench, CHUNK_MESSAGES - 24)
    await bench.publish(
      upTo(50).map(() => ({ bodyBytes: 20 })),
      CLICKS,
    )
    const stream = (): Queue => bench.broker.catalog.queue(CLICKS)
    expect(stream().firstKept).toBe(0)
    ensure(bench, A)
    await bench.settle()
    expect([stream().firstKept, info(bench).position]).toEqual([CHUNK_MESSAGES, CHUNK_MESSAGES])
    await bench.crash()
    expect([stream().firstKept, info(bench).position]).toEqual([CHUNK_MESSAGES, CHUNK_MESSAGES])
    bench.broker.audit()
  })

  it('far behind takes no memory for the messages that it has not reached', async () => {
    const bench = await opened()
    ensure(bench, A)
    await publish(bench, 20 * CHUNK_MESSAGES)
    await bench.fill(100_000)
    const chunks = (): number => [...bench.broker.catalog.queue(A).heldChunks()].length
    expect(chunks()).toBe(0)
    const worker = bench.consume(10, { name: A })
    await bench.settle()
    expect(worker.offsets).toEqual(upTo(10))
    expect(chunks()).toBeLessThanOrEqual(2)
    worker.ackAll()
    worker.leave()
    await bench.settle()
    await bench.fill(100_000)
    await bench.crash()
    expect(chunks()).toBeLessThanOrEqual(2)
    expect(await drained(bench, A)).toEqual(upTo(20 * CHUNK_MESSAGES, 10))
    expect(chunks()).toBeLessThanOrEqual(1)
    bench.broker.audit()
  })

  it('retries, dead-letters and redrives, and keeps all of it across a restart', async () => {
    const bench = await opened()
    ensure(bench, A, { maxDeliveries: 2, retryInitialMs: 100, retryMaxMs: 100 })
    await publish(bench, 10)
    const worker = bench.consume(3, { name: A })
    await bench.settle()
    worker.settle(0, OUTCOME.ack)
    worker.settle(1, OUTCOME.retry, { reason: 'no' })
    worker.settle(2, OUTCOME.deadLetter, { reason: 'bad' })
    worker.leave()
    await bench.settle()
    for (let restarts = 0; restarts < 3; restarts++) {
      expect(info(bench)).toMatchObject({ position: 1, dead: 1 })
      bench.broker.audit()
      await bench.fill(restarts * 50_000)
      await bench.crash()
    }
    await bench.pass(1000)
    expect((await bench.drain(A)).sort((a, b) => a - b)).toEqual([1, ...upTo(10, 3)])
    expect(await bench.redrive({ name: A })).toMatchObject({ redriven: 1 })
    expect(await bench.drain(A)).toEqual([2])
    expect(info(bench)).toMatchObject({ position: 10, lag: 0, dead: 0 })
  })

  it('copies its dead messages to another queue', async () => {
    const bench = await opened()
    bench.ensure({}, FAILED)
    ensure(bench, A, { deadLetter: FAILED })
    ensure(bench, B)
    await publish(bench, 3)
    await bench.kill('bad', A)
    await bench.pass(100)
    expect(bench.info(FAILED)).toMatchObject({ ready: 3 })
    expect(info(bench)).toMatchObject({ dead: 0, lag: 0 })
    expect(info(bench, B)).toMatchObject({ lag: 3 })
    bench.broker.turn.begin()
    expect(() => ensure(bench, B, { deadLetter: CLICKS })).toThrow(refused('DEAD_LETTER_CYCLE', 'clicks'))
  })

  it('delivers the messages of a key in order, one at a time, also after a restart', async () => {
    const bench = await opened()
    ensure(bench, A)
    for (let i = 0; i < 40; i++)
      await bench.publish(
        [{ key: 'a' }, { key: 'b' }, {}].map((each) => ({ ...each, bodyBytes: 10 })),
        CLICKS,
      )
    for (let restarts = 0; restarts < 2; restarts++) {
      const worker = bench.consume(1000, { name: A })
      await bench.settle()
      const offsets = worker.offsets.toSorted((a, b) => a - b)
      expect(offsets).toEqual([0, 1, ...upTo(40).map((at) => at * 3 + 2)].sort((a, b) => a - b))
      worker.leave()
      await bench.settle()
      bench.broker.audit()
      await bench.fill(50_000)
      await bench.crash()
    }
    const worker = bench.consume(1000, { name: A })
    const seen: number[] = []
    for (let round = 0; round < 60; round++) {
      await bench.settle()
      seen.push(...worker.offsets)
      worker.ackAll()
    }
    expect(seen.filter((offset) => offset % 3 === 0)).toEqual(upTo(40).map((at) => at * 3))
    expect(seen.filter((offset) => offset % 3 === 1)).toEqual(upTo(40).map((at) => at * 3 + 1))
    expect(info(bench)).toMatchObject({ lag: 0 })
  })

  it('whose keys are blocked reads on, up to a limit', async () => {
    const before = Feeds.heldMax
    Feeds.heldMax = 1500
    try {
      const bench = await opened()
      ensure(bench, A)
      await publish(bench, 3000, { key: 'a', bodyBytes: 10 })
      await publish(bench, 10, { key: 'b', bodyBytes: 10 })
      const worker = bench.consume(1000, { name: A })
      await bench.settle()
      expect(worker.takeOffsets()).toEqual([0])
      const held = bench.broker.catalog.queue(A).live
      expect(held).toBeGreaterThanOrEqual(1500)
      expect(held).toBeLessThan(1500 + CHUNK_MESSAGES)
      worker.leave()
      await bench.settle()
      expect(await drainedKeyed(bench, 3000)).toEqual(upTo(3000))
    } finally {
      Feeds.heldMax = before
    }
  })

  it('moves without taking each message out of its line', async () => {
    const bench = await opened()
    ensure(bench, A)
    for (const key of ['a', 'b']) await publish(bench, 500, { key, bodyBytes: 10 })
    const worker = bench.consume(1000, { name: A })
    await bench.settle()
    expect(worker.offsets).toEqual([0, 500])
    worker.settle(500, OUTCOME.retry, { delayMs: 5_000 })
    await bench.settle()
    expect(bench.broker.catalog.queue(A).live).toBe(1000)
    const { leased } = info(bench)
    expect(leased).toBeGreaterThan(0)
    const leave = vi.spyOn(Line.prototype, 'leave')
    try {
      expect(move(bench, 'last')).toMatchObject({ lag: 0, leased: 0 })
      expect(leave).not.toHaveBeenCalled()
    } finally {
      leave.mockRestore()
    }
    expect(worker.tagsLost.reduce((sum, { count }) => sum + count, 0)).toBe(leased)
    bench.broker.audit()
    move(bench, 'first')
    await bench.settle()
    bench.broker.audit()
    worker.leave()
    await bench.settle()
    expect(await drainedKeyed(bench, 1000)).toHaveLength(1000)
    bench.broker.audit()
  })

  it('loses what retention removes: leases end, and what was not done counts as missed', async () => {
    const bench = await opened()
    ensure(bench, A)
    ensure(bench, B)
    await publish(bench, 3 * CHUNK_MESSAGES)
    const worker = bench.consume(100, { name: A })
    await bench.settle()
    for (const offset of upTo(10)) worker.settle(offset, OUTCOME.ack)
    worker.settle(10, OUTCOME.deadLetter)
    worker.settle(11, OUTCOME.retry, { delayMs: 5_000 })
    await bench.settle()
    ensureStream(bench, { retainMessages: 1 })
    await bench.pass(10)
    expect(worker.tagsLost.reduce((sum, { count }) => sum + count, 0)).toBeGreaterThanOrEqual(88)
    expect([...worker.lossReasons]).toEqual([LOSS.retention])
    worker.leave()
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(info(bench)).toMatchObject({
        missed: 2 * CHUNK_MESSAGES - 11,
        dead: 0,
        acked: 10,
        discarded: 1,
      })
      expect(info(bench, B)).toMatchObject({ missed: 2 * CHUNK_MESSAGES, position: 2 * CHUNK_MESSAGES })
      bench.broker.audit()
      await bench.crash()
    }
    expect(await drained(bench, A)).toEqual(upTo(3 * CHUNK_MESSAGES, 2 * CHUNK_MESSAGES))
    expect(await drained(bench, B)).toEqual(upTo(3 * CHUNK_MESSAGES, 2 * CHUNK_MESSAGES))
  })

  it('writes that it lost messages only if it did', async () => {
    const bench = await opened()
    await publish(bench, 10)
    ensure(bench, A)
    await bench.drain(A)
    await bench.crash()
    await bench.settle()
    const kinds: number[] = []
    for (const { bytes } of bench.log.entries)
      for (const at of entryBatches(bytes, 0))
        if (batchType(bytes, at) === BATCH_TYPE.facts)
          readFacts(bytes, at + BATCH_HEADER_BYTES, at + batchLength(bytes, at), ({ kind }) =>
            kinds.push(kind),
          )
    expect(kinds).toContain(FACT.enter)
    expect(kinds).not.toContain(FACT.miss)
  })

  it('gets what is published after retention has removed all messages', async () => {
    const bench = await opened()
    ensureStream(bench, { retainAgeMs: 1000 })
    ensure(bench, A)
    await publish(bench, 10)
    await bench.pass(2000)
    await bench.pass(10)
    expect(info(bench)).toMatchObject({ position: 10, lag: 0, missed: 10 })
    await publish(bench, 5)
    expect(info(bench)).toMatchObject({ position: 10, lag: 5 })
    await bench.crash()
    expect(await drained(bench, A)).toEqual(upTo(15, 10))
  })

  it('delivers a redriven message after the earlier ones of its key, even if they enter later', async () => {
    const bench = await opened()
    ensure(bench, A)
    await bench.publish([{ key: 'a', bodyBytes: 10 }], CLICKS)
    await publish(bench, 300)
    await bench.publish([{ key: 'a', bodyBytes: 10 }], CLICKS)
    await bench.pass(10)
    const worker = bench.consume(1, { name: A })
    await bench.settle()
    worker.settle(0, OUTCOME.deadLetter)
    worker.leave()
    await bench.settle()
    await bench.redrive({ name: A })
    const offsets = await drained(bench, A)
    expect(offsets.filter((offset) => offset === 0 || offset === 301)).toEqual([301, 0])
  })

  it('starts at a place, and moves to one', async () => {
    const bench = await opened()
    await publish(bench, 1500)
    const atMs = bench.now
    await bench.pass(10)
    await publish(bench, 1500)
    ensure(bench, A, {}, { timeMs: atMs + 5 })
    ensure(bench, B, {}, 'last')
    await bench.settle()
    await bench.crash()
    expect(info(bench, B)).toMatchObject({ position: 3000, lag: 0 })
    expect(await drained(bench, A)).toEqual(upTo(3000, 1500))
    expect(move(bench, 1234)).toMatchObject({ position: 1234, lag: 1766 })
    await bench.settle()
    await bench.crash()
    expect(await drained(bench, A)).toEqual(upTo(3000, 1234))
    expect(() => move(bench, 3001)).toThrow(refused('MESSAGE_NOT_FOUND', 'its next offset is 3000'))
    move(bench, 'first')
    const worker = bench.consume(100, { name: A })
    await bench.settle()
    for (const offset of upTo(50)) worker.settle(offset, OUTCOME.deadLetter)
    await bench.settle()
    move(bench, 30)
    expect(worker.tagsLost.reduce((sum, { count }) => sum + count, 0)).toBeGreaterThanOrEqual(50)
    expect([...worker.lossReasons]).toEqual([LOSS.groupMoved])
    worker.leave()
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(info(bench)).toMatchObject({ position: 30, dead: 30, lag: 2970 })
      bench.broker.audit()
      await bench.crash()
    }
    expect(await drained(bench, A)).toEqual(upTo(3000, 30))
    expect(info(bench)).toMatchObject({ dead: 30 })
    expect(move(bench, 'last', B)).toMatchObject({ position: 3000 })
    ensureStream(bench, { retainMessages: 1 })
    await bench.pass(10)
    expect(() => move(bench, 5)).toThrow(refused('MESSAGE_NOT_FOUND', 'its first offset is 2048'))
    expect(info(bench)).toMatchObject({ dead: 0, discarded: 30, missed: 0 })
  })

  it('moves to the first message at a time, and keeps the dead messages before it', async () => {
    const bench = await opened()
    await publish(bench, 100)
    await bench.pass(10)
    const timeMs = bench.now
    await publish(bench, 100)
    ensure(bench, A, {}, { timeMs })
    expect(info(bench)).toMatchObject({ position: 100, lag: 100 })
    move(bench, 'first')
    const worker = bench.consume(200, { name: A })
    await bench.settle()
    for (const offset of [98, 99, 100, 101]) worker.settle(offset, OUTCOME.deadLetter)
    await bench.settle()
    expect(move(bench, { timeMs })).toMatchObject({ position: 100, lag: 100, dead: 2 })
    worker.leave()
    await bench.settle()
    await bench.crash()
    expect(info(bench)).toMatchObject({ position: 100, lag: 100, dead: 2 })
    expect(await drained(bench, A)).toEqual(upTo(200, 100))
    expect(info(bench)).toMatchObject({ dead: 2 })
    const laterMs = bench.now + 1000
    expect(move(bench, { timeMs: laterMs })).toMatchObject({ position: 200, lag: 0 })
    await publish(bench, 10)
    await bench.pass(2000)
    await publish(bench, 10)
    expect(await drained(bench, A)).toEqual(upTo(220, 210))
  })

  it('moves to a time in a chunk that must be read from disk', async () => {
    const bench = await opened()
    for (let at = 0; at < 40; at++) {
      await publish(bench, 100)
      await bench.pass(10)
    }
    await bench.fill(100_000)
    await bench.crash()
    const stream = bench.broker.catalog.queue(CLICKS)
    expect(stream.isCold(1500)).toBe(true)
    const request = { name: A, to: { timeMs: stream.chunks.summaryAt(2048).firstMs - 5 } }
    ensure(bench, A)
    expect(bench.broker.groups.mustRead({ name: A, ...request.to })).toBe(true)
    const caller = { label: 'test', isOpen: true }
    const { groups } = bench.broker
    await groups.whenRead(A, request.to, caller, () => groups.move(request))
    expect(info(bench)).toMatchObject({ position: 2000, lag: 2000 })
    expect(bench.broker.groups.mustRead({ name: A, ...request.to })).toBe(false)
    expect(await drained(bench, A)).toEqual(upTo(4000, 2000))
  })

  it('is whole after a crash, even if it moved back while a checkpoint was written', async () => {
    const bench = await new Bench(SMALL).open()
    // The pages of these queues come before those of the group, so the group changes while they are written.
    const others = upTo(100).map((at) => queueName(`other${at}`))
    for (const other of others) bench.ensure({}, other)
    ensureStream(bench)
    await publish(bench, 20)
    ensure(bench, A)
    await bench.settle()
    const turn = async (): Promise<void> => {
      bench.now++
      bench.broker.turn.tick()
      await new Promise(setImmediate)
      bench.endTurns()
    }
    const crashes: { log: MemoryLog; lag: number }[] = []
    for (let round = 0; round < 25; round++) {
      for (const other of others) bench.put([{ bodyBytes: 10 }], other)
      const worker = bench.consume(10, { name: A })
      for (let turns = 0; turns < 3; turns++) await turn()
      worker.leave()
      move(bench, round % 10)
      for (let turns = 0; turns < 3; turns++) await turn()
      crashes.push({ log: bench.log.reopened(), lag: 20 - (round % 10) })
    }
    for (const { log, lag } of crashes) {
      await bench.restart(log)
      bench.broker.audit()
      expect(info(bench)).toMatchObject({ lag })
    }
  })

  it('delivers in order after a move, even if a key still has a dead message', async () => {
    const bench = await opened()
    ensure(bench, A)
    const keyed = { key: 'a', bodyBytes: 10 }
    await bench.publish([keyed, keyed, { bodyBytes: 10 }], CLICKS)
    await bench.pass(10)
    const worker = bench.consume(1, { name: A })
    await bench.settle()
    worker.settle(0, OUTCOME.deadLetter)
    worker.leave()
    await bench.settle()
    move(bench, 1)
    expect(await drained(bench, A)).toEqual([1, 2])
  })

  it('passes over batches of which the stream keeps nothing, even if the log has freed them', async () => {
    const bench = await opened()
    ensureStream(bench, { retainAgeMs: 1000 })
    await publish(bench, 100, { bodyBytes: 200 })
    await bench.pass(2000)
    await bench.pass(10)
    ensureStream(bench, { retainAgeMs: 0 })
    await publish(bench, 4 * CHUNK_MESSAGES)
    await bench.fill(200_000)
    await bench.crash()
    await bench.fill(200_000)
    await bench.crash()
    expect(bench.broker.catalog.queue(CLICKS).isCold(0)).toBe(true)
    ensure(bench, A)
    expect(await drained(bench, A)).toEqual(upTo(4 * CHUNK_MESSAGES + 100, 100))
  })

  it('marks after a crash what may have been delivered, and nothing else', async () => {
    const bench = await opened()
    ensure(bench, A)
    await publish(bench, 3 * CHUNK_MESSAGES)
    bench.consume(10, { name: A })
    await bench.settle()
    await bench.crash()
    const worker = bench.consume(3 * CHUNK_MESSAGES, { name: A })
    await bench.settle()
    const marked = worker.got.filter(({ redelivered }) => redelivered).map(({ offset }) => offset)
    expect(marked.slice(0, 10)).toEqual(upTo(10))
    expect(marked.length).toBeLessThanOrEqual(CHUNK_MESSAGES)
  })

  it('has a history of each of its messages', async () => {
    const bench = await opened()
    ensure(bench, A, { retryInitialMs: 100, retryMaxMs: 100 })
    await bench.settle()
    await publish(bench, 2 * CHUNK_MESSAGES)
    const history = async (offset: number, name = A): Promise<string[]> => {
      bench.broker.turn.begin()
      const request = { name, offset, cursor: undefined }
      const { events } = await bench.broker.history.page(request, { label: 'test', isOpen: true })
      return events.map(({ event, text }) => (event === 'groupMoved' ? `${event} ${text}` : event))
    }
    const worker = bench.consume(4, { name: A })
    await bench.settle()
    worker.settle(0, OUTCOME.ack)
    worker.settle(1, OUTCOME.retry)
    worker.settle(2, OUTCOME.deadLetter, { reason: 'bad' })
    worker.leave()
    await bench.settle()
    expect(await history(0)).toEqual(['published', 'acked'])
    expect(await history(0, CLICKS)).toEqual(['published'])
    move(bench, 0)
    await bench.settle()
    move(bench, 3)
    await bench.settle()
    expect(await history(0)).toEqual(['published', 'acked', 'groupMoved 0', 'groupMoved 3'])
    expect(await history(1)).toEqual(['published', 'retried', 'groupMoved 0', 'groupMoved 3'])
    ensureStream(bench, { retainMessages: 1 })
    await bench.pass(10)
    expect(await history(2)).toEqual(['published', 'dead', 'groupMoved 0', 'groupMoved 3'])
    expect(await history(3)).toEqual(['published', 'groupMoved 0', 'groupMoved 3', 'missed'])
    await expect(history(9999)).rejects.toThrow('The stream clicks has no message 9999 yet')
  })

  it('is refused beyond the number of groups of a stream', async () => {
    const bench = await opened()
    for (let at = 0; at < GROUPS_MAX; at++) ensure(bench, `clicks@g${at}` as QueueName)
    expect(() => ensure(bench, A)).toThrow(
      refused('TOO_MANY_QUEUES', 'The stream clicks has 256 groups; at most 256 are allowed.'),
    )
    expect(() => info(bench)).toThrow(refused('QUEUE_NOT_FOUND', 'There is no group "clicks@a".'))
    ensure(bench, 'clicks@g0' as QueueName)
    bench.broker.turn.begin()
    bench.broker.groups.delete('clicks@g7' as QueueName)
    ensure(bench, A)
    await bench.settle()
    bench.broker.audit()
  })

  it('is refused what it cannot do', async () => {
    const bench = await opened()
    ensure(bench, A)
    expect(() => bench.put([{}], A)).toThrow(
      refused('WRONG_KIND', 'clicks@a is a group: publish to its stream clicks.'),
    )
    bench.ensure({}, FAILED)
    expect(() => share(bench, [{}], [{ name: A }, { name: FAILED }])).toThrow(refused('WRONG_KIND', 'group'))
    expect(() => ensure(bench, 'failed@a' as QueueName)).toThrow(refused('WRONG_KIND', 'failed is a queue'))
    expect(() => ensure(bench, 'no@a' as QueueName)).toThrow(refused('QUEUE_NOT_FOUND', 'no'))
    bench.broker.turn.begin()
    expect(() => bench.broker.catalog.purge(A)).toThrow(refused('WRONG_KIND', 'cannot be purged'))
    expect(bench.broker.groups.list(CLICKS, '', 10).groups.map(({ name }) => name)).toEqual([A])
    expect(bench.broker.catalog.list('', 10).queues.map(({ name }) => name)).toEqual([FAILED])
    expect(bench.broker.groups.delete(A)).toBe(0)
    ensure(bench, A)
    await publish(bench, 10)
    await bench.drain(A)
    bench.broker.turn.begin()
    bench.broker.streams.delete(CLICKS)
    expect(bench.broker.groups.list(undefined, '', 10).groups).toEqual([])
    await bench.settle()
    bench.broker.audit()
    await bench.crash()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
  })
})

/** Acknowledges messages of one key, one after another. */
async function drainedKeyed(bench: Bench, count: number): Promise<number[]> {
  const worker = bench.consume(1000, { name: A })
  const seen: number[] = []
  for (let round = 0; round < 2 * count && seen.length < count; round++) {
    await bench.settle()
    seen.push(...worker.offsets.filter((offset) => offset < count))
    worker.ackAll()
  }
  return seen
}

/** What a group of the model knows of each message that is not done. */
interface Model {
  readonly pending: Set<number>
  readonly dead: Set<number>
  missed: number
  acked: number
  discarded: number
}

/** Compares groups with a model, in histories of settles, moves, retention, copies and restarts. Returns what happened. */
async function compare(seeds: number): Promise<Readonly<Record<string, number>>> {
  const seen = { missed: 0, discarded: 0, moves: 0, restarts: 0, acked: 0, dead: 0 }
  for (let seed = 1; seed <= seeds; seed++) {
    let state = seed * 7919
    const random = (below: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    const bench = await opened()
    bench.ensure({}, FAILED)
    const kept: number[] = []
    const models = new Map<QueueName, Model>()
    let next = 0
    let first = 0
    const workers = new Map<QueueName, Worker>()
    const model = (name: QueueName): Model => models.get(name)!
    for (const name of [A, B]) {
      ensure(bench, name, {
        retryInitialMs: 1,
        retryMaxMs: 1,
        maxDeliveries: 'unlimited',
        keyConcurrency: 50,
      })
      models.set(name, { pending: new Set(), dead: new Set(), missed: 0, acked: 0, discarded: 0 })
    }
    await bench.settle()
    for (let step = 0; step < 40; step++) {
      const name = random(2) === 0 ? A : B
      const what = random(20)
      if (what < 7) {
        const batches = random(4) === 0 ? 4 : 1
        for (let batch = 0; batch < batches; batch++) {
          const messages = upTo(1 + random(random(3) === 0 ? 300 : 30)).map(() => {
            const offset = next++
            kept.push(offset)
            for (const { pending } of models.values()) pending.add(offset)
            return random(3) === 0 ? { key: `k${random(20)}`, bodyBytes: 10 } : { bodyBytes: 10 + random(60) }
          })
          if (random(4) === 0) share(bench, messages, [{ name: CLICKS }, { name: FAILED }])
          else bench.put(messages, CLICKS)
          await bench.settle()
        }
      } else if (what < 13) {
        let worker = workers.get(name)
        if (worker === undefined) workers.set(name, (worker = bench.consume(1 + random(200), { name })))
        await bench.settle()
        for (const { offset, tag } of [...worker.subscription.held()]) {
          if (random(3) === 0) continue
          expect(model(name).pending.has(offset), `seed ${seed}: ${offset} was delivered to ${name}`).toBe(
            true,
          )
          const outcome = [OUTCOME.ack, OUTCOME.ack, OUTCOME.deadLetter, OUTCOME.retry][random(4)]!
          bench.broker.turn.begin()
          bench.broker.leases.settle(worker.subscription, [{ firstTag: tag, count: 1, outcome }])
          if (outcome === OUTCOME.retry) continue
          model(name).pending.delete(offset)
          if (outcome === OUTCOME.ack) {
            model(name).acked++
            seen.acked++
          } else {
            model(name).dead.add(offset)
            seen.dead++
          }
        }
        await bench.settle()
        if (random(3) === 0) {
          worker.leave()
          workers.delete(name)
          await bench.settle()
        }
      } else if (what < 15) {
        await bench.crash()
        workers.clear()
        seen.restarts++
      } else if (what < 17) {
        await bench.fill(random(60_000))
        if (random(3) === 0) await bench.drain(FAILED)
      } else if (what < 18) ensureStream(bench, { retainMessages: random(3) === 0 ? 0 : 1 + random(300) })
      else if (what < 19) {
        const to = first + random(next - first + 1)
        move(bench, to, name)
        seen.moves++
        const { pending, dead } = model(name)
        pending.clear()
        for (const offset of kept) if (offset >= to) pending.add(offset)
        for (const offset of dead) if (offset >= to) dead.delete(offset)
        await bench.settle()
      }
      await bench.pass(1 + random(5))
      bench.broker.turn.begin()
      ;({ first } = bench.broker.streams.info(CLICKS))
      while (kept.length > 0 && kept[0]! < first) kept.shift()
      for (const [each, { pending, dead }] of models) {
        for (const offset of pending) {
          if (offset >= first) continue
          pending.delete(offset)
          model(each).missed++
          seen.missed++
        }
        for (const offset of dead) {
          if (offset >= first) continue
          dead.delete(offset)
          model(each).discarded++
          seen.discarded++
        }
        const { dead: deadCount, missed, acked, discarded, lag } = info(bench, each)
        expect(
          { dead: deadCount, missed, acked, discarded, lag },
          `seed ${seed}, step ${step}, ${each}`,
        ).toEqual({
          dead: dead.size,
          missed: model(each).missed,
          acked: model(each).acked,
          discarded: model(each).discarded,
          lag: pending.size,
        })
      }
      bench.broker.audit()
    }
    for (const worker of workers.values()) worker.leave()
    await bench.pass(10)
    for (const [name, { pending }] of models) {
      const left: number[] = []
      for (let round = 0; round < 100 && left.length < pending.size; round++)
        left.push(...(await bench.drain(name)))
      expect(
        left.sort((a, b) => a - b),
        `seed ${seed}, ${name}`,
      ).toEqual([...pending].sort((a, b) => a - b))
    }
  }
  return seen
}

it('agrees with a model across settles, moves, retention, copies and restarts', async () => {
  const seen = await compare(runs(10, 400))
  for (const [what, count] of Object.entries(seen)) expect(count, what).toBeGreaterThan(10)
})

it.each<[string, () => () => void]>([
  [
    'skips the first message of each chunk',
    () =>
      replaced(Queue.prototype, (before) => ({
        enter(this: Queue, end: number, keys: KeyWords | undefined, isSkipped: boolean): void {
          const { next } = this
          if (isSkipped || next % CHUNK_MESSAGES !== 0 || end === next + 1)
            return before.enter.call(this, end, keys, isSkipped)
          before.enter.call(this, next + 1, undefined, true)
          before.enter.call(this, end, keys?.subarray(2), false)
        },
      })),
  ],
  [
    'also removes its acknowledged messages from other groups',
    () =>
      replaced(Queue.prototype, (before) => ({
        ack(this: Queue, offset: number, count: number, nowMs: number, bytes?: number): void {
          before.ack.call(this, offset, count, nowMs, bytes)
          for (const group of this.source?.groups ?? []) if (group !== this) group.remove(offset, count)
        },
      })),
  ],
  [
    'does not count what retention removes',
    () =>
      replaced(GroupContents.prototype, (before) => ({
        missFact(this: GroupContents, end: number): void {
          before.missFact.call(this, end, 0)
        },
      })),
  ],
])('a group that %s is found', async (_, plant) => {
  const remove = plant()
  try {
    await expect(compare(20)).rejects.toThrow(/seed|clicks@/)
  } finally {
    remove()
  }
})
