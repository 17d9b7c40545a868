import { BATCH_HEADER_BYTES } from '@sluice/protocol'
import { describe, expect, it, vi } from 'vitest'
import { Admission } from './admission.js'
import { Arrivals } from './arrivals.js'
import { Chunk, DEATH } from './chunk.js'
import { FACT, readFacts, type Fact } from './facts.js'
import { Keys } from './keys.js'
import { emptyRun } from './run.js'
import { MARK } from './marks.js'
import { decodeChunkPage, encodeChunkPage } from './chunk-page.js'
import type { AppendedBatch } from './chunk.js'
import { Queue } from './queue.js'
import { CountedUse } from '../testing/log-use.js'
import { definition, makeRoom, traitsOf } from '../testing/queues.js'
import { expectSame } from '../../../../test/same.js'

/** Returns the record bytes that an admission counts for a batch of one message. @throws SluiceError if the queue refuses it */
function admitted(queue: Queue, recordsBytes: number): number {
  const admission = new Admission(queue, 0)
  const { bytes } = admission.look(1, recordsBytes, undefined)
  admission.check()
  return bytes
}

describe('queue', () => {
  const make = (): { queue: Queue; use: CountedUse } => {
    const use = new CountedUse()
    const queue = new Queue(1, definition(), use, new Arrivals(4))
    queue.open(0)
    return { queue, use }
  }

  it('drops chunks whose messages are all gone', () => {
    const { queue } = make()
    const run = emptyRun()
    for (let i = 0; i < 300; i++) queue.append(1000, i * 512, 1, 100_000)
    let chunksBefore = 0
    for (const _ of queue.chunks) chunksBefore++
    expect(chunksBefore).toBe(293)
    while (queue.nextRun(100_000, 1, run)) {
      queue.lease(run, run.count, 1, '')
      queue.ack(run.offset, run.count, 1)
    }
    let chunksAfter = 0
    for (const _ of queue.chunks) chunksAfter++
    expect(chunksAfter).toBe(1)
    expect(queue.live).toBe(0)
    expect(queue.bytes).toBeCloseTo(0)
  })

  it('delivers suspects alone until they are settled', () => {
    const { queue } = make()
    queue.append(10, 512, 1, 1_000)
    const run = emptyRun()
    expect(queue.nextRun(10, 1, run)).toBe(true)
    queue.lease(run, 10, 1, '')
    for (const offset of [3, 4, 7]) queue.suspects.add(offset)
    for (let offset = 0; offset < 10; offset++) queue.release(offset, -1, 1)
    const runs: [number, number, boolean][] = []
    while (queue.nextRun(10, 1, run)) {
      runs.push([run.offset, run.count, run.alone])
      queue.lease(run, run.count, 1, '')
    }
    expect(runs).toEqual([
      [0, 3, false],
      [3, 1, true],
      [4, 1, true],
      [5, 2, false],
      [7, 1, true],
      [8, 2, false],
    ])
    queue.ack(3, 1, 1)
    for (const offset of [4, 7]) queue.release(offset, -1, 1)
    queue.nextRun(10, 1, run)
    expect([run.offset, run.count, run.alone]).toEqual([4, 1, true])
    queue.lease(run, 1, 1, '')
    queue.retry(4, 1, 1, '')
    queue.nextRun(10, 1, run)
    expect([run.offset, run.alone]).toEqual([4, false])
  })

  it.each([300, 'unlimited'] as const)('counts attempts beyond 255, maximum %s', (maxDeliveries) => {
    const { queue } = make()
    queue.applyOptions({ ...queue.options, maxDeliveries }, 1)
    queue.append(2, 512, 1, 200)
    const run = emptyRun()
    const TRIES = 299
    for (let attempt = 1; attempt <= TRIES; attempt++) {
      queue.nextRun(1, 1, run)
      expect([run.offset, run.attempt]).toEqual([0, attempt])
      queue.lease(run, 1, 1, '')
      queue.facts.clear()
      queue.retry(0, 1, 1, 'busy')
    }
    const facts: Fact[] = []
    const read = (): Fact => {
      const { bytes } = queue.facts
      readFacts(bytes, 0, bytes.length, (fact) => facts.push(fact))
      return facts.pop()!
    }
    expect(read()).toMatchObject({ kind: FACT.retry, attempts: 299, count: 1, offset: 0, text: 'busy' })
    const restored = decodeChunkPage(encodeChunkPage(queue.chunkAt(0)!, queue), 0, queue)
    expect([restored.attemptsAt(0), restored.dueAt(0), restored.attemptsAt(1)]).toEqual([299, 1, 0])
    if (maxDeliveries === 'unlimited') {
      for (let attempt = 300; attempt <= 66_000; attempt++) {
        queue.nextRun(1, 1, run)
        queue.lease(run, 1, 1, '')
        queue.retry(0, 1, 1, '')
        queue.facts.clear()
      }
      queue.nextRun(1, 1, run)
      expect([run.attempt, queue.attemptsOf(0), queue.deadCount]).toEqual([65_535, 65_535, 0])
      return
    }
    queue.nextRun(1, 1, run)
    queue.lease(run, 1, 1, '')
    queue.facts.clear()
    queue.retry(0, 1, 1, 'busy')
    expect(read()).toMatchObject({
      kind: FACT.dead,
      attempts: 300,
      death: DEATH.maxDeliveries,
      text: 'busy',
    })
    expect(queue.deadAt(0)).toMatchObject({ attempts: 300, death: DEATH.maxDeliveries, isMoving: false })
    const page = decodeChunkPage(encodeChunkPage(queue.chunkAt(0)!, queue), 0, queue)
    expect(page.dead!.get(0)).toMatchObject({ attempts: 300, timeMs: 1, reason: 'busy', isMoving: false })
  })

  it('delivers returned messages without searching all messages that were delivered since', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    // Priorities alternate, so that the search cannot skip a chunk.
    const COUNT = 8_192
    queue.append(COUNT, 512, 1, COUNT * 100, {
      ...traitsOf(1, COUNT, 1),
      priorities: Uint8Array.from({ length: COUNT }, (_, at) => (at % 2 === 0 ? 1 : 0)),
      dues: new Float64Array(COUNT),
      expiries: new Float64Array(COUNT),
    })
    for (let offset = 0; offset < COUNT; offset += 2) {
      expect(queue.nextRun(16, 1, run)).toBe(true)
      queue.lease(run, 1, 1, '')
    }
    const looks = vi.spyOn(Chunk.prototype, 'priorityAt')
    queue.append(1, 1_024, 1, 100, {
      ...traitsOf(1, 1, 1),
      priorities: Uint8Array.of(1),
      dues: new Float64Array(1),
    })
    for (let i = 0; i < 500; i++) {
      queue.release(4, -1, 1)
      queue.release(2, -1, 1)
      for (const expected of [2, 4, COUNT]) {
        queue.nextRun(1, 1, run)
        expectSame(run.offset, expected)
        if (expected !== COUNT) queue.lease(run, 1, 1, '')
      }
    }
    expect(looks.mock.calls.length).toBeLessThan(COUNT + 500 * 20)
    looks.mockRestore()
  })

  it.each([
    ['oldest first', (at: number) => at],
    ['newest first', (at: number) => 1_999 - at],
  ] as const)('inserts returning messages into the line of their key in few steps, %s', (_, offsetOf) => {
    const queue = new Queue(1, definition({ keyConcurrency: 2_000 }), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const COUNT = 2_000
    for (let offset = 0; offset < COUNT + 10; offset++)
      queue.append(1, 512 + offset, 1, 100, {
        ...traitsOf(1, 1, 1),
        priorities: new Uint8Array(1),
        dues: new Float64Array(1),
        expiries: new Float64Array(1),
        isKeyed: true,
        keys: Uint32Array.of(7, 7),
      })
    for (let offset = 0; offset < COUNT; offset++) {
      queue.nextRun(1, 1, run)
      queue.lease(run, 1, 1, '')
    }
    const steps = vi.spyOn(Chunk.prototype, 'nextAt')
    const stepsBack = vi.spyOn(Chunk.prototype, 'previousAt')
    for (let at = 0; at < COUNT; at++) queue.release(offsetOf(at), 1, 1)
    expect(steps.mock.calls.length + stepsBack.mock.calls.length).toBeLessThan(COUNT * 5)
    steps.mockRestore()
    stepsBack.mockRestore()
    for (let offset = 0; offset < COUNT; offset++) {
      queue.nextRun(1, 1, run)
      expectSame(run.offset, offset)
      queue.lease(run, 1, 1, '')
    }
  })

  it('finds messages to drop without repeated searches while messages of lower priorities are leased', () => {
    const options = { maxMessages: 5_000, overflow: 'drop-oldest' } as const
    const queue = new Queue(1, definition(options), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const publish = (count: number, priority: number): void => {
      makeRoom(queue, count, 1)
      queue.append(count, 512, 1, count * 100, {
        ...traitsOf(1, count, 1),
        priorities: new Uint8Array(count).fill(priority),
        dues: new Float64Array(count),
        expiries: new Float64Array(count),
      })
    }
    for (const priority of [0, 1, 2]) {
      publish(1, priority)
      queue.nextRun(1, 1, run)
      queue.lease(run, 1, 1, '')
    }
    publish(4_997, 5)
    const looks = vi.spyOn(Chunk.prototype, 'priorityAt')
    for (let i = 0; i < 2_000; i++) publish(1, 5)
    // All searches together visit each message at most once per priority.
    expect(looks.mock.calls.length).toBeLessThan(32 * 7_000)
    looks.mockRestore()
    expect(queue.counts.dropped).toBe(2_000)
    // Returned messages are dropped next, lowest priority first.
    queue.release(2, -1, 1)
    queue.release(0, -1, 1)
    publish(2, 5)
    expect([0, 1, 2].map((offset) => queue.stateOf(offset))).toEqual([undefined, 'leased', undefined])
  })

  it.each([1, 10])('releases the room of removed messages when %d messages of a chunk are left', (left) => {
    const all = { ...definition({ unique: 'pending', maxBytes: 1e12, ttlMs: 1e9 }) }
    const queue = new Queue(1, all, new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    const COUNT = 3 * 1_024
    for (let offset = 0; offset < COUNT; offset++) {
      queue.append(1, 512 + offset, 1, 100, {
        priorities: Uint8Array.of(offset % 3),
        dues: Float64Array.of(0),
        expiries: Float64Array.of(2 ** 41),
        isKeyed: true,
        keys: Uint32Array.of(offset, 1),
        hasIds: true,
        replaces: Uint8Array.of(0),
        ids: Uint32Array.of(offset, 1, 1, 1),
        sizes: Uint32Array.of(100),
      })
    }
    const stays = (offset: number): boolean => offset % 1_024 < left
    while (queue.nextRun(1_024, 1, run)) {
      queue.lease(run, run.count, 1, '')
      for (let offset = run.offset; offset < run.offset + run.count; offset++) {
        if (stays(offset)) queue.deadLetter(offset, DEATH.rejected, 1, 'no')
        else queue.ack(offset, 1, 1)
      }
    }
    expect(queue.deadCount).toBe(3 * left)
    const pages: number[] = []
    for (const chunk of queue.chunks) {
      expect(chunk.marks.areListed).toBe(true)
      expect(chunk.columns.room).toBeLessThanOrEqual(4 * left)
      expect(chunk.batches.room).toBeLessThanOrEqual(4 * left)
      pages.push(encodeChunkPage(chunk, queue).length)
      const keys = new Keys()
      const restored = decodeChunkPage(encodeChunkPage(chunk, queue), 0, { keys, hasKeys: true })
      expect([...restored.liveIndexes()]).toEqual([...chunk.liveIndexes()])
      expect(restored.columns.room).toBeLessThanOrEqual(4 * left)
      for (const index of restored.liveIndexes()) {
        const what = [restored.idAt(index), restored.expiryAt(index), restored.sizeAt(index)]
        expect(what).toEqual([chunk.idAt(index), chunk.expiryAt(index), chunk.sizeAt(index)])
        expect(keys.low(restored.keyAt(index))).toBe(chunk.base + index)
        expect(restored.priorityAt(index)).toBe(chunk.priorityAt(index))
      }
    }
    // The pages on disk are small too.
    expect(pages).toHaveLength(3)
    expect(Math.max(...pages)).toBeLessThan(150 + 150 * left)
    for (const chunk of queue.chunks)
      for (const offset of [...chunk.liveIndexes()].map((index) => chunk.base + index)) queue.discard(offset)
    expect([queue.live, queue.keys.size, queue.bytes]).toEqual([0, 0, 0])
  })

  it('uses little room for the newest chunk when few of its messages are left', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    const run = emptyRun()
    for (let offset = 0; offset < 1_000; offset++) {
      const traits = { ...traitsOf(1, 1, 1), priorities: Uint8Array.of(7) }
      queue.append(1, 512 + offset, 1, 100, { ...traits, dues: new Float64Array(1) })
      if (!queue.nextRun(1, 1, run)) continue
      queue.lease(run, 1, 1, '')
      if (offset % 500 === 7) queue.release(offset, run.sinceMs, 1)
      else queue.ack(run.offset, 1, 1)
    }
    const chunk = queue.chunkAt(0)!
    expect(chunk.columns.room).toBeLessThanOrEqual(64)
    expect(chunk.batches.room).toBeLessThanOrEqual(64)
    expect(queue.ready).toBe(2)
  })

  it.each(['ack', 'dead'] as const)('counts the real bytes of the remaining messages after %s', (how) => {
    const { queue } = make()
    const LARGE = 1_000_000
    // At first the queue does not need the sizes of single records, and knows only the total of the batch.
    queue.append(1_000, 512, 1, LARGE + 999 * 50)
    queue.applyOptions({ ...queue.options, maxBytes: 1_500_000 }, 1)
    const run = emptyRun()
    queue.nextRun(1_000, 1, run)
    queue.lease(run, 1_000, 1, '')
    if (how === 'ack') queue.ack(1, 999, 1, 999 * 50)
    else for (let offset = 1; offset < 1_000; offset++) queue.deadLetter(offset, DEATH.rejected, 1, '', 50)
    expect(queue.bytes - queue.deadBytes).toBe(LARGE)
    expect(() => admitted(queue, 600_000)).toThrow(
      'The queue q holds 1000000 bytes, and 600000 more arrived; it holds at most 1500000.',
    )
    queue.ack(0, 1, 1, LARGE)
    expect(queue.bytes - queue.deadBytes).toBe(0)
    expect(admitted(queue, 600_000)).toBe(600_000)
  })

  it('accepts a chunk whose first messages are missing', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.appendFact(batch(5_000, 10), 512)
    queue.open(1)
    const run = emptyRun()
    expect(queue.nextRun(100, 1, run)).toBe(true)
    expect([run.offset, run.count]).toEqual([5_000, 10])
    expect(queue.live).toBe(10)
    queue.lease(run, 10, 1, '')
    queue.ack(5_000, 10, 1)
    expect(queue.nextRun(100, 1, run)).toBe(false)
  })

  it('ignores, during recovery, facts that the page of a chunk already contains', () => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.appendFact(batch(0, 10), 512)
    const chunk = queue.chunkAt(0)!
    chunk.pagePosition = 5_000
    queue.appliedFrom = 4_000
    queue.remove(0, 5, 1)
    queue.purgeFact(10)
    queue.appendFact(batch(10, 5), 4_000)
    expect(queue.live).toBe(10)
    queue.appliedFrom = 6_000
    queue.remove(0, 5, 1)
    expect(queue.live).toBe(5)
  })
})

function batch(baseOffset: number, count: number): AppendedBatch {
  return { baseOffset, count, timeMs: 1, length: BATCH_HEADER_BYTES + count * 100 }
}

describe('audits', () => {
  const filled = (): Queue => {
    const queue = new Queue(1, definition(), new CountedUse(), new Arrivals(4))
    queue.open(1)
    queue.append(40, 512, 1, 4_000, traitsOf(6, 40, 1))
    queue.append(10, 9_000, 1, 1_000)
    queue.audit()
    return queue
  }
  const chunkOf = (queue: Queue): Chunk => queue.chunkAt(0)!

  it.each<[string, (queue: Queue) => void, string]>([
    ['one live message too many', (queue) => chunkOf(queue).live++, 'chunk 0: live is 51, counted 50'],
    ['a message in two states', (queue) => chunkOf(queue).marks.add(MARK.due, 41, 42), 'in two states'],
    ['a priority without its bit', (queue) => (chunkOf(queue).priorityMask = 1), 'is not in the mask'],
    ['a late expiry', (queue) => (chunkOf(queue).earliestExpiryMs = 1_000_000), 'expires at'],
    ['a plain message that is not counted', (queue) => chunkOf(queue).marks.add(MARK.out, 41, 42), 'line: '],
    ['a waiting message that is in no queue', wait, 'line: '],
    ['a dead message that is not counted', (queue) => queue.deadCount++, 'queue q: live 50/50, dead 1/0'],
  ])('report %s', (_, damage, text) => {
    const queue = filled()
    damage(queue)
    expect(() => queue.audit()).toThrow(text)
  })

  function wait(queue: Queue): void {
    const { marks } = chunkOf(queue)
    marks.add(MARK.out, 45, 46)
    marks.add(MARK.waiting, 45, 46)
  }
})
