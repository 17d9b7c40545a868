/** Streams whose retention waits for groups: what is kept, until when, and what is reported. */
import { OUTCOME, queueName, type GroupInfo, type QueueName, type StreamInfo } from '@sluice/protocol'
import { beforeEach, describe, expect, it } from 'vitest'
import { replaced } from '../../../../test/simulation/defects.js'
import { CHUNK_MESSAGES, GroupContents, type Queue } from '../queue/index.js'
import { Bench } from '../testing/bench.js'
import { upTo } from '../testing/sharing.js'

const CLICKS = queueName('clicks')
const A = 'clicks@a' as QueueName
const B = 'clicks@b' as QueueName
const HOUR_MS = 3_600_000

let notices: [event: string, details: object][]

beforeEach(() => {
  notices = []
})

async function opened(options: object): Promise<Bench> {
  const bench = await new Bench({
    segmentBytes: 256 * 1024,
    checkpointBytes: 64 * 1024,
    onNotice: (event, details) => notices.push([event, details]),
  }).open()
  ensure(bench, options)
  return bench
}

function ensure(bench: Bench, options: object): StreamInfo {
  bench.broker.turn.begin()
  return bench.broker.streams.ensure({ name: CLICKS, options, update: true }).stream
}

function group(bench: Bench, name: QueueName): void {
  bench.broker.turn.begin()
  bench.broker.groups.ensure({ name, options: {}, update: false, from: 'first' })
}

const infoOf = (bench: Bench, name: QueueName): GroupInfo => {
  bench.broker.turn.begin()
  return bench.broker.groups.info(name)
}

const stream = (bench: Bench): StreamInfo => {
  bench.broker.turn.begin()
  return bench.broker.streams.info(CLICKS)
}

async function publish(bench: Bench, count: number): Promise<void> {
  for (let left = count; left > 0; left -= 100) {
    await bench.publish(
      upTo(Math.min(left, 100)).map(() => ({ bodyBytes: 20 })),
      CLICKS,
    )
  }
  await bench.pass(1)
}

async function drain(bench: Bench, name: QueueName): Promise<void> {
  while ((await bench.drain(name)).length > 0);
}

describe('retention that waits for groups', () => {
  it('keeps what a group has not finished, and removes it soon after the group has finished it', async () => {
    const bench = await opened({ retainMessages: 1, waitForGroupsBytes: 1e9 })
    group(bench, A)
    group(bench, B)
    await publish(bench, 3 * CHUNK_MESSAGES)
    await drain(bench, B)
    for (let restarts = 0; restarts < 2; restarts++) {
      await bench.pass(2000)
      const { messages, heldBy, heldBytes, bytes } = stream(bench)
      expect({ messages, heldBy }).toEqual({ messages: 3 * CHUNK_MESSAGES, heldBy: A })
      expect(heldBytes).toBeCloseTo((bytes * 2) / 3, -1)
      expect(infoOf(bench, A)).toMatchObject({ lag: 3 * CHUNK_MESSAGES, missed: 0 })
      bench.broker.audit()
      await bench.fill(100_000)
      await bench.crash()
    }
    await drain(bench, A)
    await bench.pass(2000)
    expect(stream(bench)).toMatchObject({ messages: CHUNK_MESSAGES, heldBy: null, heldBytes: 0 })
    expect(infoOf(bench, A)).toMatchObject({ missed: 0, acked: 3 * CHUNK_MESSAGES })
    expect(notices.filter(([event]) => event === 'retention removed messages that a group missed')).toEqual(
      [],
    )
    bench.broker.audit()
  })

  it('waits by age too, for messages that are leased or wait for a retry, but not for dead ones', async () => {
    const bench = await opened({ retainAgeMs: 1000, waitForGroupsBytes: 1e9 })
    group(bench, A)
    await publish(bench, 3)
    const worker = bench.consume(3, { name: A })
    await bench.settle()
    worker.settle(0, OUTCOME.retry, { delayMs: HOUR_MS })
    worker.settle(1, OUTCOME.deadLetter)
    await bench.settle()
    await bench.pass(5000)
    expect(stream(bench)).toMatchObject({ messages: 3, heldBy: A })
    worker.settle(2, OUTCOME.ack)
    await bench.settle()
    await bench.pass(5000)
    expect(stream(bench)).toMatchObject({ messages: 3, heldBy: A })
    await bench.pass(HOUR_MS)
    await bench.settle()
    worker.ackAll()
    await bench.settle()
    await bench.pass(2000)
    expect(stream(bench)).toMatchObject({ messages: 0, heldBy: null })
    expect(infoOf(bench, A)).toMatchObject({ missed: 0, acked: 2, discarded: 1, dead: 0 })
  })

  it('goes on at its limit, and reports both once', async () => {
    const bench = await opened({ retainMessages: 1, waitForGroupsBytes: 100_000 })
    group(bench, A)
    for (let round = 0; round < 10; round++) {
      await publish(bench, CHUNK_MESSAGES)
      await bench.pass(2000)
      expect(stream(bench).bytes).toBeLessThanOrEqual(100_000)
    }
    const { first } = stream(bench)
    expect(first).toBeGreaterThan(CHUNK_MESSAGES)
    expect(infoOf(bench, A)).toMatchObject({ missed: first, position: first })
    const details = { stream: CLICKS, group: A, bytes: expect.any(Number) as number, bytesMax: 100_000 }
    expect(notices).toEqual([
      ['retention waits for a group', details],
      ['retention removed messages that a group missed', details],
    ])
    expect(stream(bench)).toMatchObject({ heldBy: A })
    bench.broker.audit()
  })

  it('ends when the group is deleted or moved, or when the option is unset', async () => {
    const bench = await opened({ retainMessages: 1, waitForGroupsBytes: 1e9 })
    const held = async (): Promise<void> => {
      await publish(bench, 2 * CHUNK_MESSAGES)
      await bench.pass(2000)
      expect(stream(bench)).toMatchObject({ heldBy: A })
    }
    const free = async (): Promise<void> => {
      await bench.pass(2000)
      expect(stream(bench)).toMatchObject({ heldBy: null, heldBytes: 0 })
      expect(stream(bench).messages).toBeLessThanOrEqual(CHUNK_MESSAGES)
    }
    group(bench, A)
    await held()
    bench.broker.turn.begin()
    bench.broker.groups.delete(A)
    await free()
    group(bench, A)
    await held()
    bench.broker.turn.begin()
    bench.broker.groups.move({ name: A, to: 'last' })
    await free()
    await held()
    ensure(bench, { waitForGroupsBytes: 0 })
    await free()
    expect(infoOf(bench, A).missed).toBeGreaterThan(0)
  })

  it('does not wait for a group whose time is still to come', async () => {
    const bench = await opened({ retainMessages: 1, waitForGroupsBytes: 1e9 })
    bench.broker.turn.begin()
    const from = { timeMs: bench.now + HOUR_MS }
    bench.broker.groups.ensure({ name: A, options: {}, update: false, from })
    await publish(bench, 2 * CHUNK_MESSAGES)
    await bench.pass(2000)
    expect(stream(bench)).toMatchObject({ messages: CHUNK_MESSAGES, heldBy: null })
    expect(infoOf(bench, A)).toMatchObject({ missed: 0 })
  })

  it('needs a limit above that of the bytes', async () => {
    const bench = await opened({})
    expect(() => ensure(bench, { retainBytes: 1000, waitForGroupsBytes: 1000 })).toThrow(
      expect.objectContaining({
        code: 'OPTION_CONFLICT',
        message: expect.stringContaining('`waitForGroupsBytes` is 1000 and `retainBytes` is 1000') as unknown,
      }),
    )
    expect(stream(bench).options).toMatchObject({ retainBytes: 0, waitForGroupsBytes: 0 })
  })

  it.each<[string, () => () => void]>([
    [
      'forgets messages that have not entered',
      () =>
        replaced(GroupContents.prototype as unknown as { countUnseen(): number }, () => ({
          countUnseen: () => 0,
        })),
    ],
    [
      'waits without a limit',
      () =>
        replaced(GroupContents.prototype as unknown as { isHeld(end: number): boolean }, (before) => ({
          isHeld(this: Queue, end: number): boolean {
            before.isHeld.call(this, end)
            return this.hold !== undefined
          },
        })),
    ],
  ])('that %s is found', async (_, plant) => {
    const remove = plant()
    try {
      const bench = await opened({ retainMessages: 1, waitForGroupsBytes: 100_000 })
      group(bench, A)
      await publish(bench, CHUNK_MESSAGES + 1)
      await bench.pass(2000)
      const isKept = infoOf(bench, A).position === 0
      await publish(bench, 4 * CHUNK_MESSAGES)
      await bench.pass(2000)
      expect(isKept && stream(bench).bytes <= 100_000).toBe(false)
    } finally {
      remove()
    }
  })
})
