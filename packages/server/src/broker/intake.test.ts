/** Batches without a producer. New messages in such a batch must have the same results as with `publish`. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  SluiceError,
  batchLength,
  batchQueueId,
  batchType,
  queueName,
  type QueueOptions,
} from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { entryBatches } from '../log/entry.js'
import { FACT, FactBuffer, readFacts, type Queue } from '../queue/index.js'
import { Bench, Q, batchOf, type Message } from '../testing/bench.js'
import type { BatchBytes } from './commands.js'
import type { Arrival, FactsBefore, Taken } from './intake.js'

const OTHER = queueName('other')
const SECOND_MS = 1_000

function batch(messages: readonly Message[]): BatchBytes {
  const bytes = batchOf(messages, 0)
  return { bytes, at: 0, end: bytes.length }
}

function take(
  bench: Bench,
  messages: readonly Message[],
  arrival: Arrival = 'new',
  queue: Queue = bench.broker.catalog.queue(Q),
  before?: FactsBefore,
): Taken {
  bench.broker.turn.begin()
  return bench.broker.intake.take(queue, batch(messages), arrival, before)
}

async function opened(options: Partial<QueueOptions> = {}, bench = new Bench()): Promise<Bench> {
  await bench.open()
  bench.ensure(options)
  await bench.settle()
  return bench
}

function failing(code: string): SluiceError {
  return expect.objectContaining({ code }) as SluiceError
}

/** Returns what the entry contains: the kinds of facts, and `messages` for a batch of messages, each with its queue. */
function contentsOf(bench: Bench, lsn: number): string[] {
  const { bytes } = bench.log.entries.find((entry) => entry.lsn === lsn)!
  const found: string[] = []
  const names = new Map<number, string>(Object.entries(FACT).map(([name, kind]) => [kind, name]))
  for (const at of entryBatches(bytes, 0)) {
    const of = batchQueueId(bytes, at)
    if (batchType(bytes, at) === BATCH_TYPE.messages) found.push(`messages ${of}`)
    if (batchType(bytes, at) !== BATCH_TYPE.facts) continue
    readFacts(bytes, at + BATCH_HEADER_BYTES, at + batchLength(bytes, at), ({ kind }) =>
      found.push(`${names.get(kind)} ${of}`),
    )
  }
  return found
}

/** Returns the fact that message 0 has left `queue`, as a caller of `take` would write it. */
function moveFrom(queue: Queue): FactsBefore {
  const facts = new FactBuffer()
  facts.move('move', 0, Q)
  return { queue, facts }
}

describe('a batch without a producer', () => {
  it('gets the next offsets, and is durable when the entry of its gate is', async () => {
    const bench = await opened()
    await bench.publish([{}, {}])
    const { baseOffset, duplicates, gate } = take(bench, [{}, {}, {}])
    expect({ baseOffset, duplicates }).toEqual({ baseOffset: 2, duplicates: undefined })
    expect(bench.log.entries.at(-1)!.lsn).toBe(gate - 1)
    const without = bench.log.reopened()
    await bench.settle()
    expect(contentsOf(bench, gate)).toEqual(['messages 1'])
    await bench.crash()
    expect(await bench.order()).toEqual([0, 1, 2, 3, 4])
    await bench.restart(without)
    expect(await bench.order()).toEqual([0, 1])
  })

  it('does not change the answers to a producer, before or after a restart', async () => {
    const bench = await opened({ dedupWindowMs: SECOND_MS })
    take(bench, [{ id: 'a' }, { id: 'a' }])
    const bytes = batchOf([{ id: 'a' }, { id: 'b' }], 1)
    const answer = bench.send(bytes, Q)
    expect(answer).toEqual({ baseOffset: 2, duplicates: new Map([[0, 0]]) })
    take(bench, [{ id: 'b' }])
    await bench.settle()
    expect(bench.send(bytes, Q)).toEqual(answer)
    await bench.crash()
    expect(bench.send(bytes, Q)).toEqual(answer)
    expect(bench.broker.catalog.queue(Q).next).toBe(5)
  })

  it('wakes the consumers of its queue', async () => {
    const bench = await opened()
    const worker = bench.consume()
    await bench.settle()
    take(bench, [{}])
    await bench.settle()
    expect(worker.offsets).toEqual([0])
  })
})

describe('new messages', () => {
  it('are duplicates of known messages, and of each other', async () => {
    const bench = await opened({ dedupWindowMs: 60 * SECOND_MS })
    await bench.publish([{ id: 'a' }])
    const { baseOffset, duplicates, gate } = take(bench, [{ id: 'b' }, { id: 'a' }, { id: 'b' }])
    expect(baseOffset).toBe(1)
    expect([...duplicates!]).toEqual([
      [1, 0],
      [2, 1],
    ])
    await bench.settle()
    expect(contentsOf(bench, gate)).toEqual(['duplicate 1', 'duplicate 1', 'messages 1'])
    expect(bench.info()).toMatchObject({ ready: 2, duplicates: 2 })
    await bench.crash()
    expect(bench.info()).toMatchObject({ ready: 2, duplicates: 2 })
    expect(await bench.order()).toEqual([0, 1])
  })

  it('replace waiting messages in the entry of the batch', async () => {
    const bench = await opened({ unique: 'pending' })
    await bench.publish([{ id: 'a' }])
    const { duplicates, gate } = take(bench, [{ id: 'a', replaces: true }])
    expect([...duplicates!]).toEqual([[0, 1]])
    await bench.settle()
    expect(contentsOf(bench, gate)).toEqual(['cancel 1', 'replace 1', 'messages 1'])
    await bench.crash()
    expect(await bench.order()).toEqual([1])
  })

  it('make room in a queue that drops its oldest messages', async () => {
    const bench = await opened({ maxMessages: 2, overflow: 'drop-oldest' })
    await bench.publish([{}, {}])
    take(bench, [{}])
    await bench.settle()
    expect(await bench.order()).toEqual([1, 2])
  })

  it.each<[string, Partial<QueueOptions>, readonly Message[], (bench: Bench) => void]>([
    ['QUEUE_FULL', { maxMessages: 2 }, [{}, {}], () => {}],
    ['DEDUP_FULL', { dedupWindowMs: SECOND_MS, dedupMaxIds: 1 }, [{ id: 'x' }, { id: 'y' }], () => {}],
    ['MESSAGE_TOO_LARGE', {}, [{ bodyBytes: 1025 }], () => {}],
    ['INVALID_TTL', {}, [{ ttlMs: LIMITS.delayMsMax + 1 }], () => {}],
    ['AT_IN_THE_PAST', {}, [{ atMs: 1 }], () => {}],
    ['DISK_LOW', { ttlMs: SECOND_MS }, [{}], (bench) => (bench.log.refusedFrom = 0)],
    [
      'MEMORY_FULL',
      {},
      [{}],
      (bench) => (bench.broker.memoryFull = { usedBytes: 2 << 20, budgetBytes: 1 << 20 }),
    ],
    ['QUEUE_NOT_FOUND', {}, [{}], (bench) => bench.broker.catalog.delete(Q)],
  ])('that are refused leave nothing behind: %s', async (code, options, messages, prepare) => {
    const bench = await opened(options)
    bench.ensure({}, OTHER)
    // After this time, `atMs: 1` is too far in the past.
    await bench.pass(LIMITS.atPastMsMax)
    await bench.publish([{}])
    const before = moveFrom(bench.broker.catalog.queue(OTHER))
    const { length } = before.facts
    const queue = bench.broker.catalog.queue(Q)
    prepare(bench)
    await bench.settle()
    const entries = bench.log.entries.length
    const { next, live } = queue
    expect(() => take(bench, messages, 'new', queue, before)).toThrow(failing(code))
    expect(before.facts.length).toBe(length)
    expect({ next: queue.next, live: queue.live }).toEqual({ next, live })
    await bench.settle()
    expect(bench.log.entries).toHaveLength(entries)
    bench.broker.audit()
  })

  it('are not written to a deleted queue whose name another queue has', async () => {
    const bench = await opened()
    const queue = bench.broker.catalog.queue(Q)
    bench.broker.catalog.delete(Q)
    bench.ensure()
    for (const arrival of ['new', 'replayed', 'moved'] as const)
      expect(() => take(bench, [{}], arrival, queue)).toThrow(failing('QUEUE_NOT_FOUND'))
    expect(bench.broker.catalog.queue(Q).next).toBe(0)
  })

  it('are accepted, refused and delivered as published ones, for random queues and batches', async () => {
    const time = fc.option(fc.constantFrom(1, 500, 5_000), { nil: undefined })
    const id = fc.option(fc.constantFrom('a', 'b', 'c'), { nil: undefined })
    const message = fc.record({
      id,
      key: id,
      priority: fc.constantFrom(0, 0, 3),
      delayMs: time,
      ttlMs: time,
      bodyBytes: fc.constantFrom(0, 50, 50, 50, 1_100),
    })
    const replaces = fc.boolean()
    const batches = fc.array(fc.tuple(fc.array(message, { minLength: 1, maxLength: 5 }), replaces), {
      minLength: 1,
      maxLength: 6,
    })
    const limits = fc.record({
      maxMessages: fc.constantFrom(0, 0, 4),
      maxBytes: fc.constantFrom(0, 0, 400),
      ttlMs: fc.constantFrom(0, 2_000),
    })
    const ids = fc.constantFrom<Partial<QueueOptions>>(
      {},
      { unique: 'pending' },
      { dedupWindowMs: 3_000, dedupMaxIds: 2 },
    )
    const overflow = fc.constantFrom<QueueOptions['overflow']>('reject', 'drop-oldest', 'dead-letter')
    let accepted = 0
    let refused = 0
    let duplicates = 0
    await fc.assert(
      fc.asyncProperty(batches, limits, ids, overflow, async (given, most, known, how) => {
        const isLimited = most.maxMessages + most.maxBytes > 0
        const options = { ...most, ...known, ...(isLimited ? { overflow: how } : {}) }
        const [one, two] = [await opened(options), await opened(options)]
        for (const [messages, replaces] of given) {
          const sent = messages.map((sent) => (sent.id === undefined ? sent : { ...sent, replaces }))
          const answers = [() => one.put(sent), () => take(two, sent)].map((work) => {
            try {
              const { baseOffset, duplicates } = work()
              return { baseOffset, duplicates: [...(duplicates ?? [])] }
            } catch (error) {
              return (error as SluiceError).code
            }
          })
          expect(answers[1]).toEqual(answers[0])
          const [answer] = answers
          if (typeof answer === 'string') refused++
          else {
            accepted++
            duplicates += answer!.duplicates.length
          }
          await one.pass(700)
          await two.pass(700)
        }
        expect(two.info()).toEqual(one.info())
        await one.crash()
        await two.crash()
        expect(two.info()).toEqual(one.info())
        expect(await two.order()).toEqual(await one.order())
        two.broker.audit()
      }),
      { numRuns: 40 },
    )
    expect(Math.min(accepted, refused, duplicates)).toBeGreaterThan(5)
  })
})

describe('messages that were accepted before', () => {
  it.each(['replayed', 'moved'] as const)(
    'are not checked for sizes, limits and ids: %s',
    async (arrival) => {
      const options = { maxMessages: 1, overflow: 'drop-oldest', dedupWindowMs: SECOND_MS, dedupMaxIds: 1 }
      const bench = await opened(options as Partial<QueueOptions>)
      await bench.publish([{ id: 'a' }])
      expect(take(bench, [{ id: 'a', bodyBytes: 2_000 }, { id: 'b' }], arrival)).toMatchObject({
        baseOffset: 1,
        duplicates: undefined,
      })
      await bench.settle()
      expect(await bench.order()).toEqual([0, 1, 2])
      await bench.crash()
      expect(await bench.order()).toEqual([0, 1, 2])
      bench.broker.audit()
    },
  )

  it.each(['replayed', 'moved'] as const)('have the time to live of the queue: %s', async (arrival) => {
    const bench = await opened({ ttlMs: SECOND_MS })
    const { gate } = take(bench, [{}], arrival)
    await bench.settle()
    expect(contentsOf(bench, gate)).toEqual(['ttl 1', 'messages 1'])
    await bench.crash()
    await bench.pass(SECOND_MS + 1)
    expect(bench.info()).toMatchObject({ ready: 0, expired: 1 })
  })

  it('need memory only if they do not leave another queue', async () => {
    const bench = await opened()
    bench.broker.memoryFull = { usedBytes: 2 << 20, budgetBytes: 1 << 20 }
    expect(() => take(bench, [{}], 'replayed')).toThrow(failing('MEMORY_FULL'))
    expect(take(bench, [{}], 'moved').baseOffset).toBe(0)
    bench.log.refusedFrom = 0
    expect(() => take(bench, [{}], 'moved')).toThrow(failing('DISK_LOW'))
    expect(bench.broker.catalog.queue(Q).next).toBe(1)
  })

  it('are refused if their records are damaged', async () => {
    const bench = await opened()
    const whole = batch([{}])
    const damaged = { ...whole, end: whole.end - 1 }
    const queue = bench.broker.catalog.queue(Q)
    expect(() => bench.broker.intake.take(queue, damaged, 'moved')).toThrow(failing('BATCH_MALFORMED'))
  })
})

describe('the facts of the caller', () => {
  it('precede the facts of the batch, in the same entry, after earlier facts of their queue', async () => {
    const bench = await opened({ ttlMs: SECOND_MS })
    bench.ensure({}, OTHER)
    const other = bench.broker.catalog.queue(OTHER)
    await bench.publish([{}], OTHER)
    bench.broker.operator.cancel({ name: OTHER, offset: 0, id: undefined })
    const before = moveFrom(other)
    const { gate } = take(bench, [{}], 'new', undefined, before)
    expect(before.facts.isEmpty).toBe(true)
    await bench.settle()
    expect(contentsOf(bench, gate)).toEqual(['cancel 2', 'move 2', 'ttl 1', 'messages 1'])
  })

  it('precede a plain batch, in an entry that begins with them if the open entry is full', async () => {
    const bench = await opened({}, new Bench({ segmentBytes: 64 << 10 }))
    bench.ensure({}, OTHER)
    const other = bench.broker.catalog.queue(OTHER)
    await bench.settle()
    let moved = 0
    const gates = new Set<number>()
    // The batches of one turn fill several segments.
    for (let index = 0; index < 40; index++) {
      const bodyBytes = 4_000 + 13 * index
      gates.add(take(bench, [{ bodyBytes }], 'moved', undefined, moveFrom(other)).gate)
    }
    await bench.settle()
    for (const gate of gates) {
      const contents = contentsOf(bench, gate)
      expect(contents.length % 2).toBe(0)
      contents.forEach((what, index) => expect(what).toBe(index % 2 === 0 ? 'move 2' : 'messages 1'))
      moved += contents.length / 2
    }
    expect(gates.size).toBeGreaterThan(2)
    expect(moved).toBe(40)
  })
})

describe('a dead message that its dead-letter queue refuses', () => {
  it('stays in its queue, and is moved when the log has room again', async () => {
    const bench = await opened()
    bench.ensure({}, OTHER)
    bench.ensure({ deadLetter: OTHER })
    await bench.publish([{}, {}])
    bench.log.refusedFrom = 0
    await bench.kill()
    expect(bench.info()).toMatchObject({ dead: 2, moved: 0 })
    bench.log.refusedFrom = Infinity
    await bench.pass(SECOND_MS)
    expect(bench.info()).toMatchObject({ dead: 0, moved: 2 })
    expect(await bench.origins(OTHER)).toEqual([0, 1])
  })

  it('stays in its queue and delays no other message, if it would always be refused', async () => {
    const bench = await opened()
    bench.ensure({}, OTHER)
    bench.ensure({ deadLetter: OTHER })
    await bench.publish([{}, {}, {}])
    const { intake } = bench.broker
    const accept = intake.take.bind(intake)
    let calls = 0
    intake.take = (...request) => {
      if (++calls === 2) throw new SluiceError('BATCH_MALFORMED', 'The record is damaged.')
      return accept(...request)
    }
    await bench.kill()
    expect(bench.info()).toMatchObject({ dead: 1, moved: 2 })
    expect(await bench.origins(OTHER)).toEqual([0, 2])
    await bench.crash()
    bench.broker.audit()
  })
})
