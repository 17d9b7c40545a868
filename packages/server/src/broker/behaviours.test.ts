/** Behaviours of queues as a client sees them: limits, ids, keys, times, and slow, lost or many consumers. */
import { OUTCOME, queueName } from '@sluice/protocol'
import { describe, expect, it, vi } from 'vitest'
import { Bench, Q, batchOf, type Message } from '../testing/bench.js'

const HOUR = 3_600_000

const many = (count: number, message: (index: number) => Message = () => ({})): Message[] =>
  Array.from({ length: count }, (_, i) => message(i))

const failing = (code: string, retryable: boolean): unknown => expect.objectContaining({ code, retryable })

async function opened(options: Parameters<Bench['ensure']>[0] = {}): Promise<Bench> {
  const bench = await new Bench().open()
  bench.ensure(options)
  return bench
}

describe('limits', () => {
  it('drop the oldest message of the lowest priority, and never a leased one', async () => {
    const bench = await opened({ maxMessages: 6, overflow: 'drop-oldest' })
    const priorities = [3, 0, 0, 1, 0, 1]
    await bench.publish(priorities.map((priority) => ({ priority })))
    // The worker holds message 0, which has the highest priority, and message 3.
    const worker = bench.consume(2)
    await bench.settle()
    expect(worker.offsets).toEqual([0, 3])
    const dropped: number[] = []
    let left = [1, 2, 4, 5]
    for (let i = 0; i < 4; i++) {
      await bench.publish([{ priority: 2 }])
      const queue = bench.broker.catalog.queue(Q)
      dropped.push(...left.filter((offset) => queue.stateOf(offset) === undefined))
      left = left.filter((offset) => queue.stateOf(offset) !== undefined)
    }
    expect(dropped).toEqual([1, 2, 4, 5])
    expect(bench.info()).toMatchObject({ leased: 2, ready: 4, dropped: 4 })
    expect(bench.broker.catalog.queue(Q).stateOf(3)).toBe('leased')
    // Scheduled messages are dropped in the same way as ready messages.
    await bench.publish([{ delayMs: HOUR }])
    expect(bench.info()).toMatchObject({ leased: 2, ready: 3, scheduled: 1, dropped: 5 })
    await bench.publish(many(4, () => ({ priority: 4 })))
    expect(bench.info()).toMatchObject({ leased: 2, ready: 4, scheduled: 0, dropped: 9 })
    // Dropping all messages that are not leased would not make enough room, so no message is dropped, and the error
    // is retryable.
    expect(() => bench.put(many(5))).toThrow(failing('QUEUE_FULL', true))
    await bench.settle()
    expect(bench.info()).toMatchObject({ leased: 2, ready: 4, dropped: 9 })
    await bench.crash()
    expect(bench.info()).toMatchObject({ ready: 6, dropped: 9, published: 15 })
    bench.broker.audit()
  })

  it('turn the oldest messages into dead letters that keep their attempts', async () => {
    const bench = await opened({ maxMessages: 2, overflow: 'dead-letter', maxDeliveries: 3 })
    await bench.publish(many(2))
    const worker = bench.consume(1)
    await bench.settle()
    worker.settle(0, OUTCOME.retry, { delayMs: HOUR, reason: 'not yet' })
    worker.leave()
    await bench.publish([{}])
    await bench.publish([{}])
    for (const restarts of [false, true]) {
      if (restarts) await bench.crash()
      expect(bench.info()).toMatchObject({ dead: 2, ready: 2, scheduled: 0, dropped: 0 })
      const queue = bench.broker.catalog.queue(Q)
      // The number 3 means a death by overflow.
      expect(queue.deadAt(0)).toMatchObject({ death: 3, attempts: 1, reason: '' })
      expect(queue.deadAt(1)).toMatchObject({ death: 3, attempts: 0 })
      expect(await bench.order()).toEqual([2, 3])
    }
    bench.broker.audit()
  })

  it.each(['reject', 'drop-oldest', 'dead-letter'] as const)(
    'refuse with a final error a batch that is too large even for an empty queue: %s',
    async (overflow) => {
      const bench = await opened({ maxMessages: 3, maxBytes: 2_000, overflow })
      expect(() => bench.put(many(4))).toThrow(failing('QUEUE_FULL', false))
      expect(() => bench.put(many(3, () => ({ bodyBytes: 900 })))).toThrow(failing('QUEUE_FULL', false))
      await bench.publish(many(3))
      const worker = bench.consume()
      await bench.settle()
      expect(worker.offsets).toEqual([0, 1, 2])
      expect(() => bench.put([{}])).toThrow(failing('QUEUE_FULL', true))
      worker.ackAll()
      await bench.publish([{}])
      expect(bench.info()).toMatchObject({ published: 4, leased: 1 })
    },
  )

  // If the error were retryable, the producer would send such a batch again until the queue is empty.
  it('refuse with a final error a batch that is too large for an empty queue, even if this queue is not empty', async () => {
    const bench = await opened({ maxMessages: 3 })
    await bench.publish([{}])
    expect(() => bench.put(many(4))).toThrow(failing('QUEUE_FULL', false))
  })

  it('count neither duplicates nor messages that the atomic step acknowledges', async () => {
    const bench = await opened({ maxMessages: 2, dedupWindowMs: HOUR })
    await bench.publish([{ id: 'a' }, { id: 'b' }])
    expect(bench.put([{ id: 'a' }]).duplicates?.size).toBe(1)
    expect(() => bench.put([{ id: 'c' }])).toThrow(failing('QUEUE_FULL', true))
    const worker = bench.consume()
    await bench.settle()
    const number = ++bench.number
    const bytes = batchOf([{ id: 'c' }], number)
    const acks = [{ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 }]
    const step = { number, crc: 1, acks, batches: [{ queue: Q, bytes, at: 0, end: bytes.length }] }
    expect(bench.atomic(step)).toEqual([{ baseOffset: 3, duplicates: undefined }])
    await bench.settle()
    expect(bench.info()).toMatchObject({ acked: 1, leased: 2, duplicates: 1 })
  })
})

describe('a message that replaces', () => {
  const one = (id: string, more: Message = {}): Message => ({ id, replaces: true, ...more })
  const own = (...offsets: [index: number, offset: number][]): Map<number, number> => new Map(offsets)

  for (const unique of ['window', 'pending'] as const) {
    const options = unique === 'window' ? { unique, dedupWindowMs: HOUR } : { unique }

    it(`replaces a waiting message, with unique ${unique}`, async () => {
      const bench = await opened(options)
      expect(await bench.publish([one('a', { delayMs: HOUR })])).toEqual({
        baseOffset: 0,
        duplicates: undefined,
      })
      // The first publish replaces a scheduled message, and the second publish replaces a ready message.
      expect(await bench.publish([one('a')])).toEqual({ baseOffset: 1, duplicates: own([0, 1]) })
      expect(await bench.publish([{}, one('a')])).toEqual({ baseOffset: 2, duplicates: own([1, 3]) })
      expect(bench.info()).toMatchObject({
        ready: 2,
        scheduled: 0,
        cancelled: 2,
        duplicates: 0,
        published: 4,
      })
      expect(await bench.order()).toEqual([2, 3])
      // Without `replaces` the newest message with the id is kept, and the published message is its duplicate.
      expect(await bench.publish([{ id: 'a' }])).toEqual({ baseOffset: 4, duplicates: own([0, 3]) })
      bench.broker.audit()
    })

    it(`is a duplicate of a leased message, with unique ${unique}`, async () => {
      const bench = await opened({ ...options, maxDeliveries: 1 })
      await bench.publish([{ id: 'a' }])
      const worker = bench.consume()
      await bench.settle()
      expect(await bench.publish([one('a')])).toEqual({ baseOffset: 1, duplicates: own([0, 0]) })
      worker.settle(0, OUTCOME.ack)
      await bench.settle()
      const after = await bench.publish([one('a')])
      // Only a window remembers the ids of messages that are gone.
      expect(after.duplicates).toEqual(unique === 'window' ? own([0, 0]) : undefined)
      bench.broker.audit()
    })

    it(`can be replaced by a later message of its batch, with unique ${unique}`, async () => {
      const bench = await opened(options)
      await bench.publish([{ id: 'a', delayMs: HOUR }])
      expect(await bench.publish([one('a'), { id: 'b' }, one('a'), { id: 'a' }, one('b')])).toEqual({
        baseOffset: 1,
        duplicates: own([0, 3], [2, 3], [3, 3], [1, 5]),
      })
      expect(bench.info()).toMatchObject({ ready: 2, scheduled: 0, cancelled: 1, duplicates: 3 })
      expect(await bench.order()).toEqual([3, 5])
      bench.broker.audit()
    })

    it(`gets the same answer after a crash, and is in one entry with its facts, with unique ${unique}`, async () => {
      const bench = await new Bench({ keepsSnapshots: true }).open()
      bench.ensure(options)
      await bench.publish([{ id: 'a', delayMs: HOUR }])
      const number = ++bench.number
      const batch = batchOf([{ id: 'x' }, one('a', { delayMs: 5 })], number)
      const placed = { baseOffset: 1, duplicates: own([1, 2]) }
      expect(bench.send(batch)).toEqual(placed)
      const stepNumber = ++bench.number
      const bytes = batchOf([one('a', { delayMs: 7 })], stepNumber)
      const step = {
        number: stepNumber,
        crc: 1,
        acks: [],
        batches: [{ queue: Q, bytes, at: 0, end: bytes.length }],
      }
      const places = [{ baseOffset: 3, duplicates: own([0, 3]) }]
      expect(bench.atomic(step, 1)).toEqual(places)
      await bench.settle()
      await bench.crash()
      expect(bench.send(batch)).toEqual(placed)
      expect(bench.atomic(step, 1)).toEqual(places)
      expect(bench.info()).toMatchObject({
        scheduled: 1,
        ready: 1,
        cancelled: 2,
        duplicates: 0,
        published: 4,
      })
      expect(bench.broker.catalog.queue(Q).stateOf(3)).toBe('scheduled')
      bench.broker.audit()
      // After a crash at any point exactly one of the messages exists.
      for (const log of bench.snapshots) {
        await bench.restart(log)
        if (bench.broker.catalog.list('', 1).queues.length === 0) continue
        const { published, scheduled, cancelled } = bench.info()
        expect(scheduled).toBe(published === 0 ? 0 : 1)
        expect(cancelled).toBe(published === 0 ? 0 : published < 3 ? 0 : published < 4 ? 1 : 2)
      }
    })
  }

  it('needs no more room than the message that it replaces', async () => {
    const bench = await opened({ maxMessages: 2 })
    await bench.publish([{ id: 'a', delayMs: HOUR }, {}])
    expect(() => bench.put([{}])).toThrow(failing('QUEUE_FULL', true))
    expect((await bench.publish([one('a')])).duplicates).toEqual(own([0, 2]))
    bench.ensure({ maxMessages: 2, overflow: 'drop-oldest' })
    expect((await bench.publish([one('a')])).duplicates).toEqual(own([0, 3]))
    expect(bench.info()).toMatchObject({ ready: 2, dropped: 0, cancelled: 2 })
    expect(await bench.order()).toEqual([1, 3])
    bench.broker.audit()
  })

  it('replaces nothing in a queue that remembers no ids', async () => {
    const bench = await opened({ dedupWindowMs: 0 })
    await bench.publish([{ id: 'a', delayMs: HOUR }])
    expect((await bench.publish([one('a')])).duplicates).toBe(undefined)
    expect(bench.info()).toMatchObject({ ready: 1, scheduled: 1 })
  })
})

describe('a batch that follows a refused one', () => {
  const earlierRefused = failing('EARLIER_REFUSED', true)
  const send = (bench: Bench, number: number, follows: number, unanswered: number, options = {}): unknown =>
    bench.send(batchOf([options], number, follows), Q, undefined, unanswered)

  it('is refused, and so are later batches that follow one, until the first refused batch is accepted', async () => {
    const bench = await new Bench().open()
    bench.ensure({ maxMessages: 1 })
    send(bench, 1, 0, 0)
    expect(() => send(bench, 2, 0, 1)).toThrow(failing('QUEUE_FULL', true))
    bench.ensure({ maxMessages: 0 })
    expect(() => send(bench, 3, 1, 2)).toThrow(earlierRefused)
    expect(() => send(bench, 4, 1, 3)).toThrow(earlierRefused)
    expect(() => bench.atomic(step(5, 3), 4)).toThrow(earlierRefused)
    send(bench, 6, 0, 5)
    expect(bench.info()).toMatchObject({ published: 2 })
    // After a retryable refusal, each batch is checked again when it is sent again.
    send(bench, 2, 0, 1)
    send(bench, 3, 1, 2)
    expect(() => send(bench, 7, 3, 6)).toThrow(earlierRefused)
    expect(bench.info()).toMatchObject({ published: 4 })
    // The producer has received all answers, so the refusal of batch 4 is forgotten.
    send(bench, 8, 4, 0)
    await bench.settle()
  })

  it('is accepted if this broker never saw the refused batch', async () => {
    const bench = await new Bench().open()
    bench.ensure()
    send(bench, 5, 3, 4)
    expect(bench.info()).toMatchObject({ published: 1 })
    await bench.settle()
  })

  const step = (number: number, follows: number): Parameters<Bench['atomic']>[0] => {
    const bytes = batchOf([{}], number, follows)
    return { number, crc: 1, acks: [], batches: [{ queue: Q, bytes, at: 0, end: bytes.length }] }
  }
})

describe('ids', () => {
  it('beyond the limit of a queue are refused until older ids leave the window', async () => {
    const bench = await opened({ dedupWindowMs: 10_000, dedupMaxIds: 3 })
    await bench.publish([{ id: 'a' }, { id: 'b' }])
    await bench.pass(5_000)
    await bench.publish([{ id: 'c' }])
    expect(() => bench.put([{ id: 'd' }])).toThrow(failing('DEDUP_FULL', true))
    // A message with a known id and a message without an id are not refused.
    expect((await bench.publish([{ id: 'a' }, {}])).duplicates).toEqual(new Map([[0, 0]]))
    await bench.crash()
    expect(() => bench.put([{ id: 'd' }])).toThrow(failing('DEDUP_FULL', true))
    await bench.pass(5_000)
    expect((await bench.publish([{ id: 'd' }, { id: 'a' }])).duplicates).toBeUndefined()
    expect((await bench.publish([{ id: 'c' }])).duplicates).toEqual(new Map([[0, 2]]))
  })

  it('of pending messages count towards the limit of ids', async () => {
    const bench = await opened({ unique: 'pending', dedupMaxIds: 2 })
    await bench.publish([{ id: 'a' }, { id: 'b' }])
    expect(() => bench.put([{ id: 'c' }])).toThrow(failing('DEDUP_FULL', true))
    bench.broker.operator.cancel({ name: Q, offset: undefined, id: 'a' })
    expect((await bench.publish([{ id: 'c' }])).duplicates).toBeUndefined()
  })

  it('of messages that an atomic step acknowledges may be published again in the same step', async () => {
    const bench = await opened({ unique: 'pending' })
    await bench.publish([{ id: 'x' }])
    const worker = bench.consume()
    await bench.settle()
    const number = ++bench.number
    const bytes = batchOf([{ id: 'x' }], number)
    const acks = [{ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 }]
    const step = { number, crc: 1, acks, batches: [{ queue: Q, bytes, at: 0, end: bytes.length }] }
    expect(bench.atomic(step)).toEqual([{ baseOffset: 1, duplicates: undefined }])
    await bench.settle()
    await bench.crash()
    expect(bench.put([{ id: 'x' }]).duplicates).toEqual(new Map([[0, 1]]))
  })

  it('identify the message to cancel or reschedule', async () => {
    const bench = await opened()
    await bench.publish([{ id: 'later', delayMs: HOUR }, { id: 'never', delayMs: HOUR }, { id: 'now' }])
    const byId = (id: string) => ({ name: Q, offset: undefined, id })
    const at = bench.now + 5_000
    expect(bench.broker.operator.cancel(byId('never'))).toEqual({ offset: 1 })
    expect(() => bench.broker.operator.cancel(byId('never'))).toThrow(failing('MESSAGE_NOT_FOUND', false))
    expect(() => bench.broker.operator.cancel(byId('nobody'))).toThrow(failing('MESSAGE_NOT_FOUND', false))
    expect(bench.broker.operator.reschedule({ ...byId('later'), delayMs: 5_000, atMs: undefined })).toEqual({
      offset: 0,
      dueMs: at,
    })
    await bench.settle()
    // The id has left the window, but the delayed message can still be found by its id.
    await bench.crash()
    const again = { ...byId('later'), delayMs: undefined, atMs: at + 1_000 }
    expect(bench.broker.operator.reschedule(again)).toEqual({ offset: 0, dueMs: at + 1_000 })
    expect(await bench.order()).toEqual([2])
    await bench.pass(5_500)
    expect(await bench.order()).toEqual([2])
    const worker = bench.consume()
    await bench.pass(500)
    expect(worker.offsets).toEqual([2, 0])
    expect(() => bench.broker.operator.cancel(byId('later'))).toThrow(failing('MESSAGE_LEASED', false))
    expect(() => bench.broker.operator.reschedule(again)).toThrow(failing('MESSAGE_LEASED', false))
    expect(bench.info()).toMatchObject({ cancelled: 1, leased: 2 })
  })
})

describe('keys', () => {
  it('let later messages overtake a failed message while `onFail` is skip, and make them wait while it is block', async () => {
    const bench = await opened({ onFail: 'block' })
    await bench.publish([{ key: 'k' }, { key: 'k' }, { key: 'k' }, { key: 'other' }])
    const worker = bench.consume(1)
    await bench.settle()
    worker.settle(0, OUTCOME.retry, { delayMs: HOUR })
    worker.leave()
    expect(await bench.order()).toEqual([3])
    bench.ensure({ onFail: 'skip' })
    expect(await bench.order()).toEqual([1, 3])
    bench.broker.audit()
    bench.ensure({ onFail: 'block' })
    expect(await bench.order()).toEqual([3])
    await bench.crash()
    expect(await bench.order()).toEqual([3])
    bench.broker.audit()
    // When the failed message is due again, it precedes the messages that were never delivered.
    await bench.pass(HOUR)
    const again = bench.consume()
    await bench.settle()
    expect(new Set(again.offsets)).toEqual(new Set([0, 3]))
    bench.broker.audit()
  })

  it('let a message of higher priority be the next delivery if the last delivery made it eligible', async () => {
    const bench = await opened({ keyConcurrency: 2 })
    await bench.publish([
      { key: 'a', priority: 5 },
      { key: 'b', priority: 5 },
      { key: 'a', priority: 31 },
    ])
    const worker = bench.consume(10)
    await bench.settle()
    expect(worker.offsets).toEqual([0, 2, 1])
  })

  it('follow a change of `keyConcurrency`', async () => {
    const bench = await opened()
    await bench.publish(many(6, () => ({ key: 'k' })))
    const worker = bench.consume()
    await bench.settle()
    expect(worker.offsets).toEqual([0])
    bench.ensure({ keyConcurrency: 3 })
    await bench.settle()
    expect(worker.offsets).toEqual([0, 1, 2])
    bench.ensure({ keyConcurrency: 1 })
    worker.settle(1, OUTCOME.ack)
    await bench.settle()
    worker.settle(0, OUTCOME.ack)
    await bench.settle()
    expect(worker.offsets).toEqual([0, 1, 2])
    worker.settle(2, OUTCOME.ack)
    await bench.settle()
    expect(worker.offsets).toEqual([0, 1, 2, 3])
    bench.broker.audit()
  })

  it('make the next message eligible when its predecessor expires, however late the expiry is processed', async () => {
    const bench = await opened()
    await bench.publish([{ key: 'k', ttlMs: 1_000 }])
    await bench.pass(100)
    await bench.publish([{ key: 'k' }])
    // No command reads the queue in the meantime, and no timer runs.
    bench.now += 500
    await bench.publish([{}])
    bench.now += 300
    await bench.publish([{}])
    bench.now += 5_000
    await bench.publish([{}])
    // Message 0 expired at 1,000, and message 1 became eligible at that time. Message 2 became eligible at 600,
    // message 3 at 900, and message 4 at 5,900.
    expect(await bench.order()).toEqual([2, 3, 1, 4])
    expect(bench.info()).toMatchObject({ expired: 1 })
  })
})

describe('a message that is being handled', () => {
  it('is lost at its deadline, and its consumer is notified', async () => {
    const bench = await opened({ processingTimeoutMs: 10_000, retryInitialMs: 1_000 })
    await bench.publish(many(5))
    const worker = bench.consume()
    await bench.settle()
    worker.start(0, 1, 3)
    await bench.pass(6_000)
    worker.start(4)
    bench.broker.turn.begin()
    expect(bench.broker.leases.extend(worker.subscription, worker.tagOf(1), 1, 0)).toEqual([])
    await bench.pass(3_999)
    expect(worker.tagsLost).toEqual([])
    await bench.pass(1)
    // Message 2 was not started, 1 was extended, and 4 was started later.
    const lost = [0, 3].map((offset) => ({ firstTag: worker.tagOf(offset), count: 1 }))
    expect(worker.tagsLost).toEqual([
      { ...lost[0], firstOffset: 0 },
      { ...lost[1], firstOffset: 3 },
    ])
    expect(worker.settle(3, OUTCOME.ack)).toEqual([lost[1]])
    expect(bench.broker.leases.extend(worker.subscription, worker.tagOf(0), 1, 0)).toEqual([lost[0]])
    expect(bench.info()).toMatchObject({ leased: 3, scheduled: 2 })
    await bench.pass(1_000)
    expect(worker.got.slice(5)).toMatchObject([
      { offset: 0, attempt: 2, redelivered: true },
      { offset: 3, attempt: 2, redelivered: true },
    ])
    worker.tagsLost.length = 0
    await bench.pass(5_000)
    expect(worker.tagsLost).toEqual(
      [1, 4].map((offset) => ({ firstTag: worker.tagOf(offset), count: 1, firstOffset: offset })),
    )
    await bench.pass(HOUR)
    expect(bench.broker.catalog.queue(Q).stateOf(2)).toBe('leased')
  })

  it('has no deadline while it is only announced, and is no longer announced after a STARTED that omits it', async () => {
    const bench = await opened({ processingTimeoutMs: 1_000, maxDeliveries: 1 })
    await bench.publish(many(4))
    const worker = bench.consume()
    await bench.settle()
    worker.announce(0, 1, 2, 3)
    await bench.pass(HOUR)
    expect(bench.info()).toMatchObject({ leased: 4, dead: 0 })
    expect(worker.subscription.startedCount).toBe(4)
    worker.settle(0, OUTCOME.ack)
    worker.start(1)
    expect(worker.subscription.startedCount).toBe(1)
    await bench.pass(1_000)
    expect(worker.tagsLost).toMatchObject([{ firstOffset: 1, count: 1 }])
    await bench.pass(HOUR)
    expect(bench.info()).toMatchObject({ leased: 2, dead: 1 })
    // The next announcement replaces the previous one. A message that was extended counts as being handled.
    worker.announce(2)
    worker.announce(3)
    expect(worker.subscription.startedCount).toBe(1)
    bench.broker.turn.begin()
    bench.broker.leases.extend(worker.subscription, worker.tagOf(3), 1, 500)
    await bench.pass(500)
    expect(bench.info()).toMatchObject({ leased: 1, dead: 2 })
  })

  it('becomes a suspect if the latest announcement named it with others, but not if only an earlier one named it', async () => {
    const bench = await opened({ retryInitialMs: 1_000 })
    await bench.publish(many(3))
    const worker = bench.consume()
    await bench.settle()
    worker.announce(0)
    worker.announce(1, 2)
    worker.die()
    const next = bench.consume()
    await bench.settle()
    expect(next.got).toMatchObject([{ offset: 0, alone: false }])
    next.settle(0, OUTCOME.ack)
    await bench.settle()
    expect(next.got.at(-1)).toMatchObject({ offset: 1, alone: true, attempt: 1 })
  })

  it('has the processing timeout of its subscription, and consecutive lost messages are reported as one range', async () => {
    const bench = await opened({ processingTimeoutMs: HOUR, maxDeliveries: 1 })
    await bench.publish(many(4))
    const worker = bench.consume(10, { timeoutMs: 2_000 })
    await bench.settle()
    worker.start(0, 1, 2, 3)
    bench.broker.turn.begin()
    expect(bench.broker.leases.extend(worker.subscription, worker.tagOf(3), 1, 9_000)).toEqual([])
    await bench.pass(2_000)
    expect(worker.tagsLost).toEqual([{ firstTag: worker.tagOf(0), count: 3, firstOffset: 0 }])
    expect(bench.info()).toMatchObject({ dead: 3, leased: 1 })
    expect(bench.broker.catalog.queue(Q).deadAt(1)).toMatchObject({
      attempts: 1,
      reason: 'the processing timeout passed',
    })
    await bench.pass(7_000)
    expect(bench.info()).toMatchObject({ dead: 4, leased: 0 })
  })

  it('is charged an attempt if its connection is lost; several messages that were being handled become suspects', async () => {
    const bench = await opened()
    await bench.publish(many(3))
    const first = bench.consume()
    await bench.settle()
    first.start(1)
    first.die()
    const second = bench.consume()
    await bench.settle()
    expect(second.got).toMatchObject([
      { offset: 0, attempt: 1, alone: false },
      { offset: 2, attempt: 1, alone: false },
    ])
    second.start(0, 2)
    second.die()
    const third = bench.consume()
    await bench.settle()
    // Suspects are delivered one at a time, with no other message.
    expect(third.got).toMatchObject([{ offset: 0, attempt: 1, alone: true, redelivered: true }])
    await bench.pass(HOUR)
    expect(third.got).toHaveLength(1)
    third.settle(0, OUTCOME.ack)
    await bench.settle()
    expect(third.got.slice(1)).toMatchObject([{ offset: 2, attempt: 1, alone: true }])
    // A message that was delivered alone is charged an attempt even without STARTED.
    third.die()
    const fourth = bench.consume()
    await bench.pass(HOUR)
    expect(fourth.got).toMatchObject([
      { offset: 1, attempt: 2, alone: false },
      { offset: 2, attempt: 2, alone: false },
    ])
    bench.broker.audit()
  })

  it('becomes a suspect, like all messages of its consumer, after three lost connections without a started message', async () => {
    const bench = await opened()
    await bench.publish(many(2))
    for (let death = 0; death < 3; death++) {
      const worker = bench.consume()
      await bench.settle()
      expect(worker.got).toMatchObject([
        { offset: 0, attempt: 1, alone: false },
        { offset: 1, attempt: 1, alone: false },
      ])
      worker.die()
    }
    const worker = bench.consume()
    await bench.settle()
    expect(worker.got).toMatchObject([{ offset: 0, attempt: 1, alone: true }])
    worker.die()
    const next = bench.consume()
    await bench.settle()
    // The first suspect was charged an attempt, and the second follows.
    expect(next.got).toMatchObject([{ offset: 1, attempt: 1, alone: true }])
    expect(bench.info()).toMatchObject({ scheduled: 1, leased: 1 })
    next.settle(1, OUTCOME.ack)
    await bench.pass(HOUR)
    expect(next.got.slice(1)).toMatchObject([{ offset: 0, attempt: 2, alone: false }])
  })
})

describe('consumers', () => {
  it('of a queue with `single` take over in the order of their subscriptions', async () => {
    const bench = await opened({ single: true })
    const workers = ['a', 'b', 'c'].map((label) => bench.consume(2, { label }))
    await bench.publish(many(6))
    const [a, b, c] = workers as [(typeof workers)[0], (typeof workers)[0], (typeof workers)[0]]
    const got = (): number[][] => workers.map(({ offsets }) => offsets)
    const active = (): string[] =>
      bench.broker.catalog
        .consumers({ name: Q, from: 0 })
        .consumers.filter((each) => each.active)
        .map((each) => each.client)
    expect(got()).toEqual([[0, 1], [], []])
    expect(active()).toEqual(['a'])
    b.leave()
    await bench.settle()
    expect(active()).toEqual(['a'])
    a.settle(0, OUTCOME.ack)
    a.die()
    await bench.settle()
    expect(active()).toEqual(['c'])
    expect(got()).toEqual([[0, 1], [], [1, 2]])
    const d = bench.consume(2, { label: 'd' })
    await bench.settle()
    expect([d.offsets, active()]).toEqual([[], ['c']])
    c.leave()
    await bench.settle()
    expect([d.offsets, active()]).toEqual([[1, 2], ['d']])
    // Without `single`, all consumers get messages.
    const e = bench.consume(2, { label: 'e' })
    bench.ensure({ single: false })
    await bench.settle()
    expect([e.offsets, active()]).toEqual([
      [3, 4],
      ['d', 'e'],
    ])
  })

  it('of a queue with `single` block no other consumer while they are idle', async () => {
    const bench = await opened({ single: true })
    const [puller, worker] = ['puller', 'worker'].map((label) => bench.consume(1, { label }))
    const active = (): string[] =>
      bench.broker.catalog
        .consumers({ name: Q, from: 0 })
        .consumers.filter((each) => each.active)
        .map((each) => each.client)
    const credit = (limit: number, drain: boolean): void => {
      bench.broker.turn.begin()
      bench.broker.leases.credit(puller!.subscription, 1, 1 << 20, limit, drain)
    }
    credit(1, false)
    await bench.publish(many(4))
    expect([puller!.offsets, worker!.offsets, active()]).toEqual([[0], [], ['puller']])
    // The puller requests no more messages, but still handles one.
    credit(1, true)
    await bench.settle()
    expect([worker!.offsets, active()]).toEqual([[], ['puller']])
    puller!.settle(0, OUTCOME.ack)
    await bench.settle()
    expect([worker!.offsets, active()]).toEqual([[1], ['worker']])
    // The puller subscribed first, but the worker holds a message, so the puller must wait.
    credit(2, false)
    await bench.settle()
    expect([puller!.offsets, active()]).toEqual([[0], ['worker']])
    worker!.settle(1, OUTCOME.ack)
    await bench.settle()
    expect([puller!.offsets, worker!.offsets, active()]).toEqual([[0, 2], [1], ['puller']])
    puller!.settle(2, OUTCOME.ack)
    worker!.leave()
    await bench.settle()
    expect(active()).toEqual([])
  })

  it('that are closed are notified, and their messages go to others without a failed attempt', async () => {
    const bench = await opened()
    await bench.publish(many(3))
    const closed = bench.consume(2, { label: 'closed' })
    await bench.settle()
    closed.start(0, 1)
    const other = bench.consume(9, { label: 'other' })
    await bench.settle()
    expect([closed.offsets, other.offsets]).toEqual([[0, 1], [2]])
    bench.broker.turn.begin()
    const { id } = closed.subscription
    expect(bench.broker.leases.closeConsumer(Q, id)).toEqual({ messages: 2 })
    expect(closed.endings).toMatchObject([{ code: 'CONSUMER_CLOSED', scope: 'channel' }])
    await bench.settle()
    expect(other.got.slice(1)).toMatchObject([
      { offset: 0, attempt: 1, alone: false, redelivered: true },
      { offset: 1, attempt: 1, alone: false, redelivered: true },
    ])
    expect(() => bench.broker.leases.closeConsumer(Q, id)).toThrow(failing('CONSUMER_NOT_FOUND', false))
    expect(() => bench.broker.leases.closeConsumer(queueName('nothing'), id)).toThrow(
      failing('QUEUE_NOT_FOUND', false),
    )
    expect(bench.info()).toMatchObject({ consumers: 1, leased: 3, released: 2 })
  })
})

describe('a broker without memory', () => {
  it('refuses publishes, and continues everything else', async () => {
    const bench = await opened()
    await bench.publish(many(3))
    const worker = bench.consume()
    await bench.settle()
    bench.broker.memoryFull = { usedBytes: 200, budgetBytes: 230 }
    const before = bench.info()
    expect(() => bench.put(many(2))).toThrow(failing('MEMORY_FULL', true))
    expect(() => bench.put(many(2))).toThrow(/uses .* of its memory budget/)
    const acks = [{ subscription: worker.subscription, firstTag: worker.tagOf(0), count: 1 }]
    const number = ++bench.number
    const step = {
      number,
      crc: 1,
      acks,
      batches: [{ queue: Q, bytes: batchOf([{}], number), at: 0, end: batchOf([{}], number).length }],
    }
    expect(() => bench.atomic(step)).toThrow(failing('MEMORY_FULL', true))
    await bench.settle()
    expect(bench.info()).toEqual(before)
    worker.settle(0, OUTCOME.ack)
    worker.settle(1, OUTCOME.deadLetter)
    worker.settle(2, OUTCOME.release)
    await bench.settle()
    expect(bench.info()).toMatchObject({ acked: 1, dead: 1, leased: 1, published: 3 })
    bench.broker.memoryFull = undefined
    await bench.publish(many(2))
    expect(bench.info()).toMatchObject({ published: 5 })
    bench.broker.audit()
  })
})

describe('operations on thousands of messages', () => {
  it('remove consecutive expired messages as one run per chunk', async () => {
    const bench = await opened({})
    await bench.publish(
      many(3_000, (index) => (index === 2_000 ? { bodyBytes: 0 } : { ttlMs: 10, bodyBytes: 0 })),
    )
    const queue = bench.broker.catalog.queue(Q)
    const removals = vi.spyOn(queue, 'remove')
    await bench.pass(2_000)
    expect(removals).toHaveBeenCalledTimes(4)
    expect(bench.info()).toMatchObject({ ready: 1, expired: 2_999 })
    bench.broker.audit()
    await bench.crash()
    expect(bench.info()).toMatchObject({ ready: 1, expired: 2_999 })
    expect(await bench.drain()).toEqual([2_000])
  })

  it('forget all pending ids of a purged queue at once, and know the ids of later messages', async () => {
    const bench = await opened({ unique: 'pending', dedupMaxIds: 3_000 })
    const ids = many(3_000, (index) => ({ id: String(index), bodyBytes: 0 }))
    await bench.publish(ids.slice(0, 10))
    await bench.kill()
    await bench.publish(ids)
    const queue = bench.broker.catalog.queue(Q)
    const forgotten = vi.spyOn(queue.pending, 'done')
    bench.broker.turn.begin()
    expect(bench.broker.catalog.purge(Q)).toBe(3_000)
    expect(forgotten).not.toHaveBeenCalled()
    expect(queue.pending.count).toBe(0)
    expect((await bench.publish(ids)).duplicates).toBeUndefined()
    expect((await bench.publish(ids.slice(0, 2))).duplicates?.size).toBe(2)
    expect(bench.info()).toMatchObject({ ready: 3_000, dead: 10 })
    await bench.drain()
    expect(queue.pending.count).toBe(2_000)
    bench.broker.audit()
  })
})
