/** Claims: which leases of an earlier connection are granted again, and what happens to them afterwards. */
import { OUTCOME, type Claim, type Granted } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, type Message, type Worker } from '../testing/bench.js'

const HOUR = 3_600_000

async function opened(options: Parameters<Bench['ensure']>[0] = {}): Promise<Bench> {
  const bench = await new Bench().open()
  bench.ensure({ retryInitialMs: 1_000, ...options })
  return bench
}

/** Returns the claim that the client of this worker makes for the message. */
function claimOf(bench: Bench, worker: Worker, offset: number, changes: Partial<Claim> = {}): Claim {
  const delivered = worker.got.findLast((one) => one.offset === offset)!
  const { id: subscriptionId, queue } = worker.subscription
  const lease = { queueNumber: queue.id, boot: bench.broker.boot, subscriptionId, tag: delivered.tag }
  return { offset, ...lease, attempt: delivered.attempt, bytes: 100, ...changes }
}

function claim(bench: Bench, worker: Worker, ...claims: Claim[]): Granted[] {
  bench.broker.turn.begin()
  return bench.broker.leases.claim(worker.subscription, claims)
}

/** Returns a worker that holds these messages and has started the messages at the offsets `started`. */
async function working(bench: Bench, messages: readonly Message[], ...started: number[]): Promise<Worker> {
  await bench.publish(messages)
  const worker = bench.consume()
  await bench.settle()
  worker.start(...started)
  return worker
}

const settle = (bench: Bench, worker: Worker, tag: number, outcome: 1 | 2 | 3 | 4): unknown => {
  bench.broker.turn.begin()
  return bench.broker.leases.settle(worker.subscription, [{ firstTag: tag, count: 1, outcome }])
}

describe('a claim within one boot', () => {
  it('leases the message again, charges its attempt once, and keeps its deadline', async () => {
    const bench = await opened({ processingTimeoutMs: 10_000 })
    const first = await working(bench, [{}], 0)
    await bench.pass(6_000)
    first.die()
    expect(bench.info()).toMatchObject({ scheduled: 1, leased: 0 })
    const next = bench.consume()
    const granted = claim(bench, next, claimOf(bench, first, 0))
    expect(granted).toEqual([{ index: 0, tag: 0, attempt: 2 }])
    expect(bench.info()).toMatchObject({ scheduled: 0, leased: 1 })
    expect(next.subscription).toMatchObject({ unsettled: 1, startedCount: 1, delivered: 0 })
    bench.broker.audit()
    await bench.pass(3_999)
    expect(next.tagsLost).toEqual([])
    await bench.pass(1)
    expect(next.tagsLost).toMatchObject([{ firstOffset: 0 }])
    await bench.pass(1_200)
    // The lost connection and the timeout together count as one failed attempt.
    expect(next.got).toMatchObject([{ offset: 0, attempt: 2 }])
  })

  it('gives a lease that can be settled, and that counts as started if the new connection is lost too', async () => {
    const bench = await opened({ maxDeliveries: 3 })
    const first = await working(bench, [{}, {}], 0)
    first.die()
    const next = bench.consume(1)
    const [granted] = claim(bench, next, claimOf(bench, first, 0))
    await bench.settle()
    // The claimed message uses up the credit.
    expect(next.got).toEqual([])
    next.die()
    expect(bench.broker.catalog.queue(Q).attemptsOf(0)).toBe(1)
    const last = bench.consume()
    const lease = { subscriptionId: next.subscription.id, tag: granted!.tag, attempt: granted!.attempt }
    const again = claim(bench, last, claimOf(bench, first, 0, lease))
    expect(again).toHaveLength(1)
    expect(settle(bench, last, again[0]!.tag, OUTCOME.ack)).toEqual([])
    await bench.settle()
    await bench.crash()
    expect(bench.info()).toMatchObject({ acked: 1, ready: 1 })
    expect(bench.broker.catalog.queue(Q).stateOf(0)).toBeUndefined()
  })

  it('clears the suspicion of the claimed messages, and of no other message', async () => {
    const bench = await opened()
    const first = await working(bench, [{}, {}], 0, 1)
    first.die()
    const next = bench.consume()
    const [granted] = claim(bench, next, claimOf(bench, first, 0))
    expect(granted).toMatchObject({ attempt: 1 })
    settle(bench, next, granted!.tag, OUTCOME.release)
    await bench.settle()
    expect(next.got).toMatchObject([{ offset: 0, alone: false, redelivered: true }])
    next.settle(0, OUTCOME.ack)
    await bench.settle()
    expect(next.got.at(-1)).toMatchObject({ offset: 1, alone: true })
  })

  it('is refused once the message has been leased, changed or removed', async () => {
    const spoil: Readonly<Record<string, (bench: Bench) => void | Promise<void>>> = {
      'it is leased': async (bench) => {
        bench.consume()
        await bench.settle()
      },
      'it was leased': async (bench) => {
        const other = bench.consume()
        await bench.settle()
        other.settle(0, OUTCOME.release)
        other.leave()
        await bench.settle()
      },
      'it was purged': (bench) => void bench.broker.catalog.purge(Q),
      'it was rescheduled': (bench) =>
        void bench.broker.operator.reschedule({
          name: Q,
          offset: 0,
          delayMs: 5,
          atMs: undefined,
          id: undefined,
        }),
      'it was cancelled': (bench) => void bench.broker.operator.cancel({ name: Q, offset: 0, id: undefined }),
      'its queue was created again': async (bench) => {
        bench.broker.catalog.delete(Q)
        bench.ensure()
        await bench.publish([{}, {}])
      },
      'it expired': (bench) => bench.pass(HOUR),
    }
    let refused = 0
    for (const [name, becomes] of Object.entries(spoil)) {
      const bench = await opened()
      const first = await working(bench, [{ ttlMs: 60_000 }, {}], 0, 1)
      first.die()
      await bench.settle()
      bench.broker.turn.begin()
      await becomes(bench)
      expect(claim(bench, bench.consume(), claimOf(bench, first, 0)), name).toEqual([])
      bench.broker.audit()
      refused++
    }
    expect(refused).toBe(7)
  })

  it('is refused if it names another lease or queue, if there is no credit, and when it is repeated', async () => {
    const bench = await opened()
    const first = await working(bench, [{}, {}, {}], 0, 1)
    first.die()
    const one = claimOf(bench, first, 0)
    const next = bench.consume(2)
    for (const changes of [
      { tag: 77 },
      { subscriptionId: 77 },
      { queueNumber: 77 },
      { boot: 77 },
      { offset: 9 },
    ])
      expect(claim(bench, next, { ...one, ...changes })).toEqual([])
    const others = [1, 2].map((offset) => claimOf(bench, first, offset))
    expect(claim(bench, next, one, one, ...others)).toMatchObject([{ index: 0 }, { index: 2 }])
    bench.broker.audit()
  })

  it('holds the key of its message, and is refused when the key is in use', async () => {
    const bench = await opened()
    const first = await working(bench, [{ key: 'a' }, { key: 'b' }, { key: 'a' }, { key: 'b' }], 0, 1)
    first.die()
    const other = bench.consume(1)
    const [granted] = claim(bench, other, claimOf(bench, first, 0))
    const next = bench.consume()
    await bench.settle()
    // No other message of the key `a` is delivered while the claimed message is leased.
    expect(next.offsets).toEqual([1])
    settle(bench, other, granted!.tag, OUTCOME.ack)
    await bench.settle()
    expect([...next.offsets, ...other.offsets].toSorted((a, b) => a - b)).toEqual([1, 2])
    bench.broker.audit()
  })

  it('is granted in a paused queue, and refused if another consumer of a queue with `single` is active', async () => {
    const bench = await opened()
    const first = await working(bench, [{}], 0)
    first.die()
    bench.broker.catalog.pause(Q)
    expect(claim(bench, bench.consume(), claimOf(bench, first, 0))).toHaveLength(1)
    const single = await opened({ single: true })
    const active = await working(single, [{}, {}], 0, 1)
    const waiting = single.consume()
    active.die()
    await single.settle()
    expect(waiting.got.length).toBeGreaterThan(0)
    expect(claim(single, single.consume(), claimOf(single, active, 1))).toEqual([])
  })
})

describe('a claim across a restart', () => {
  it('is granted after a crash and after a clean stop, with a new deadline', async () => {
    for (const isOrderly of [false, true]) {
      const bench = await opened({ processingTimeoutMs: 10_000 })
      const first = await working(bench, [{}, {}], 0)
      const one = claimOf(bench, first, 0)
      if (isOrderly) {
        bench.broker.turn.begin()
        bench.broker.leases.unsubscribe(first.subscription, 'normal', true)
        await Promise.all([bench.broker.close(), bench.settle()])
      }
      await bench.pass(isOrderly ? 0 : 6_000)
      await bench.crash()
      const next = bench.consume(1)
      expect(claim(bench, next, one)).toEqual([{ index: 0, tag: 0, attempt: 1 }])
      await bench.pass(9_999)
      expect(bench.info()).toMatchObject({ leased: 1 })
      await bench.pass(1)
      expect(next.tagsLost).toMatchObject([{ firstOffset: 0 }])
      bench.broker.audit()
    }
  })

  it('counts the message size that the broker knows, not the size in the claim', async () => {
    const bench = await opened()
    const first = await working(bench, [{ bodyBytes: 100 }, { bodyBytes: 100 }], 0, 1)
    const claims = [0, 1].map((offset) => claimOf(bench, first, offset, { bytes: 60_000 }))
    const bytes = bench.info().bytes
    await bench.crash()
    const next = bench.consume(2)
    const granted = claim(bench, next, ...claims)
    expect(granted).toHaveLength(2)
    settle(bench, next, granted[0]!.tag, OUTCOME.ack)
    await bench.settle()
    expect(bench.info()).toMatchObject({ leased: 1, bytes: bytes / 2 })
  })

  it('stays within the credit in bytes', async () => {
    const bench = await opened()
    const first = await working(bench, [{ bodyBytes: 100 }, { bodyBytes: 100 }], 0, 1)
    const claims = [0, 1].map((offset) => claimOf(bench, first, offset, { bytes: 8 }))
    await bench.crash()
    const next = bench.consume(2)
    next.subscription.setCredit(2, 150, undefined, false)
    expect(claim(bench, next, ...claims)).toMatchObject([{ index: 0 }])
  })

  it('is refused if the subscription had ended before the restart, with and without checkpoints', async () => {
    for (const checkpoints of [false, true]) {
      const bench = await new Bench({ segmentBytes: 64 << 10, checkpointBytes: 16 << 10 }).open()
      bench.ensure()
      const first = await working(bench, [{}, {}], 0, 1)
      const one = claimOf(bench, first, 0)
      first.die()
      const second = bench.consume()
      await bench.settle()
      expect(second.got[0]).toMatchObject({ offset: 0, attempt: 1 })
      const two = claimOf(bench, second, 0)
      if (checkpoints) await bench.fill(200 << 10)
      expect(await bench.crash()).toBe(checkpoints)
      const next = bench.consume(0)
      next.subscription.creditMessages = 10
      expect(claim(bench, next, one)).toEqual([])
      expect(claim(bench, next, two)).toHaveLength(1)
    }
  })

  it('is refused if it names another attempt or a boot before the previous one, or if the message was leased in this boot', async () => {
    const bench = await opened()
    const first = await working(bench, [{}, {}], 0)
    const one = claimOf(bench, first, 0)
    await bench.crash()
    const other = bench.consume(1)
    await bench.settle()
    expect(claim(bench, bench.consume(0), { ...one, attempt: 2 })).toEqual([])
    other.settle(0, OUTCOME.release)
    other.leave()
    await bench.settle()
    const next = bench.consume(0)
    next.subscription.creditMessages = 10
    expect(claim(bench, next, one)).toEqual([])
    await bench.crash()
    const last = bench.consume(0)
    last.subscription.creditMessages = 10
    expect(claim(bench, last, one)).toEqual([])
    expect(bench.info()).toMatchObject({ ready: 2 })
  })
})
