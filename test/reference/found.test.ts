/**
 * Bugs that random histories found, each as the shortest script that shows the bug, and scripts for situations that
 * histories rarely reach.
 */
import { queueName } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { Bench, type Pair } from './bench.js'
import { comparePeek } from './pages.js'
import { same } from './same.js'
import type { ModelSettle } from './state.js'

async function opened(): Promise<Bench> {
  const bench = new Bench({ Broker, MemoryLog, Schedule })
  await bench.open()
  bench.addProducer()
  return bench
}

function publish(bench: Bench, queue: string, ...messages: readonly Parameters<Bench['content']>[0][]): void {
  bench.publish(
    bench.producers[0]!,
    queue,
    messages.map((options) => bench.content(options, 10)),
  )
}

async function consume(bench: Bench, queue: string, messages = 1): Promise<Pair> {
  const pair = bench.subscribe(bench.connect(), queue, messages, 10_000)!
  await bench.endTurn()
  return pair
}

function held({ model }: Pair): number[] {
  return [...model.held.keys()]
}

/** Settles every message that the consumer holds. */
function settle(bench: Bench, pair: Pair, outcome: ModelSettle['outcome']): void {
  bench.settle(pair, [{ tags: held(pair), outcome, delayMs: undefined, reason: 'no luck', invalid: false }])
}

/** The queue `dead` has two pending messages with the id `i`: one that was published, and one that died in `q`. */
async function withTwoPendingOfOneId(): Promise<Bench> {
  const bench = await opened()
  bench.ensure('dead', { unique: 'pending' })
  bench.ensure('q', { deadLetter: 'dead' })
  publish(bench, 'dead', { id: 'i' })
  publish(bench, 'q', { id: 'i' })
  settle(bench, await consume(bench, 'q'), 'deadLetter')
  await bench.endTurn()
  return bench
}

const all = {
  from: 0,
  limit: 1000,
  offsets: undefined,
  filter: {},
  dryRun: false,
  force: false,
  to: undefined,
}

type Script = () => Promise<void>

const MENDED: Readonly<Record<string, Script>> = {
  'a pending id survives a crash if its publish and the ack before it share a turn': async () => {
    const bench = await opened()
    bench.ensure('q', { unique: 'pending' })
    publish(bench, 'q', { id: 'i' })
    const pair = await consume(bench, 'q')
    settle(bench, pair, 'ack')
    publish(bench, 'q', { id: 'i' })
    await bench.crash()
    publish(bench, 'q', { id: 'i' })
    await bench.endTurn()
  },

  'a delayed message is found by its id, even if another message had the id when it was published':
    async () => {
      const bench = await opened()
      bench.ensure('q', { dedupWindowMs: 500 })
      publish(bench, 'q', { id: 'i', delayMs: 1 })
      await bench.pass(600, true)
      publish(bench, 'q', { id: 'i', delayMs: 60_000 })
      settle(bench, await consume(bench, 'q'), 'ack')
      await bench.pass(600, true)
      bench.cancel('q', undefined, 'i')
    },

  'if two pending messages have the same id, the second one counts once the first is acknowledged':
    async () => {
      const bench = await withTwoPendingOfOneId()
      settle(bench, await consume(bench, 'dead'), 'ack')
      publish(bench, 'dead', { id: 'i' })
    },
  'an expired message is swept if it is rescheduled to now after an attempt': async () => {
    const bench = await opened()
    bench.ensure('q', { retryInitialMs: 60_000 })
    publish(bench, 'q', { ttlMs: 1_000 })
    const pair = await consume(bench, 'q')
    settle(bench, pair, 'retry')
    bench.unsubscribe(pair)
    await bench.pass(2_000, true)
    bench.reschedule('q', 0, undefined, 0, undefined)
    await bench.pass(1_000, true)
    await bench.pass(1_500, true)
  },

  'a head becomes eligible when the last message before it expires, in any order of sweeping': async () => {
    const bench = await opened()
    bench.ensure('q', {})
    bench.pause('q', true)
    // The line is 1, 2, 0: the first two messages expire after 100 ms, and then message 0 is the head for 110 ms.
    const a = { key: 'a', ttlMs: 100 }
    publish(bench, 'q', { key: 'a', delayMs: 10, ttlMs: 200 }, a, a)
    await bench.pass(50, true)
    publish(bench, 'q', { key: 'a' }, { key: 'b', ttlMs: 120 }, { key: 'b' })
    await bench.pass(5_000, false)
    bench.pause('q', false)
    await consume(bench, 'q', 5)
  },

  'a message that was delivered alone is not charged while its connection holds another': async () => {
    const bench = await opened()
    bench.ensure('q', {})
    bench.ensure('other', {})
    publish(bench, 'q', {}, {})
    const pair = await consume(bench, 'q', 2)
    bench.started(pair, held(pair))
    bench.disconnect(pair.connection)
    publish(bench, 'other', {})
    const connection = bench.connect()
    bench.subscribe(connection, 'q', 2, 10_000)
    bench.subscribe(connection, 'other', 1, 10_000)
    await bench.endTurn()
    bench.disconnect(connection)
    await bench.endTurn()
  },

  'the oldest ready message can be behind the head of its key': async () => {
    const bench = await opened()
    bench.ensure('q', { retryInitialMs: 100, retryMaxMs: 100 })
    publish(bench, 'q', { key: 'a' }, { key: 'a' })
    const pair = await consume(bench, 'q')
    settle(bench, pair, 'retry')
    bench.unsubscribe(pair)
    await bench.pass(1_000, true)
  },

  'redrives are counted over all queues of a message': async () => {
    const bench = await opened()
    bench.ensure('q', {})
    bench.ensure('other', {})
    publish(bench, 'q', {})
    settle(bench, await consume(bench, 'q'), 'deadLetter')
    await bench.redrive({ ...all, name: 'q', to: 'other' })
    const pair = await consume(bench, 'other')
    for (let time = 2; time <= 11; time++) {
      settle(bench, pair, 'deadLetter')
      await bench.endTurn()
      await bench.redrive({ ...all, name: 'other' })
    }
  },

  'a dry run over named offsets ends after a few pages': async () => {
    const bench = await opened()
    bench.ensure('q', {})
    publish(bench, 'q', {}, {})
    settle(bench, await consume(bench, 'q', 2), 'deadLetter')
    await bench.endTurn()
    const request = { ...all, name: queueName('q'), limit: 1, offsets: [0, 1], dryRun: true }
    let matched = 0
    for (let from: number | null = 0, page = 0; from !== null && page < 5; page++) {
      const answer: Awaited<ReturnType<Broker['operator']['redrive']>> = await bench.broker.operator.redrive(
        { ...request, from },
        { label: 'a test', isOpen: true },
      )
      matched += answer.matched
      from = answer.next
    }
    same('messages that a dry run matched', matched, 2)
  },

  'a dry run of a redrive counts one message of each unique id': async () => {
    const bench = await opened()
    bench.ensure('q', { unique: 'pending' })
    const pair = await consume(bench, 'q')
    for (const id of ['i', 'i', 'j', 'i']) {
      publish(bench, 'q', { id })
      await bench.endTurn()
      settle(bench, pair, 'deadLetter')
      await bench.endTurn()
    }
    await bench.redrive({ ...all, name: 'q', dryRun: true })
    await bench.redrive({ ...all, name: 'q' })
  },

  'an id that an atomic step frees makes room for another id': async () => {
    const bench = await opened()
    bench.ensure('q', { unique: 'pending', dedupMaxIds: 1 })
    publish(bench, 'q', { id: 'i' })
    const pair = await consume(bench, 'q')
    const contents = [bench.content({ id: 'j' }, 10)]
    bench.atomic(bench.producers[0]!, [{ pair, tag: held(pair)[0]! }], [{ queue: 'q', contents }])
  },

  'if two pending messages have the same id, the second one counts in the step that acknowledges the first':
    async () => {
      const bench = await withTwoPendingOfOneId()
      const pair = await consume(bench, 'dead')
      const contents = [bench.content({ id: 'i' }, 10)]
      bench.atomic(bench.producers[0]!, [{ pair, tag: held(pair)[0]! }], [{ queue: 'dead', contents }])
    },
}

// Situations that random histories rarely reach: many attempts, many messages with one id, few messages left of many.
const FAR: Readonly<Record<string, (bench: Bench) => Promise<number>>> = {
  'more than 255 attempts, if they are unlimited': async (bench) => {
    bench.ensure('q', { maxDeliveries: 'unlimited', retryInitialMs: 0, retryMaxMs: 0 })
    publish(bench, 'q', {})
    for (let attempt = 1; attempt <= 300; attempt++) {
      const pair = await consume(bench, 'q')
      same(`messages delivered for attempt ${attempt}`, held(pair).length, 1)
      settle(bench, pair, 'retry')
      await bench.pass(1, false)
      bench.disconnect(pair.connection)
      if (attempt === 260) await bench.crash()
    }
    await comparePeek(bench, 'q', undefined, 5, {})
    settle(bench, await consume(bench, 'q'), 'deadLetter')
    await bench.endTurn()
    await comparePeek(bench, 'q', 'dead', 5, {})
    await bench.redrive({ ...all, name: 'q' })
    await bench.drain()
    return bench.model.events.get('further attempt') ?? 0
  },

  'many messages of one id, some of them leased': async (bench) => {
    bench.ensure('q', { dedupWindowMs: 0 })
    const alike = Array.from({ length: 100 }, () => ({ id: 'i', delayMs: 50 }))
    for (let round = 0; round < 3; round++) {
      publish(bench, 'q', ...alike)
      await bench.pass(round === 1 ? 60 : 1, false)
      const pair = await consume(bench, 'q', 30)
      for (let i = 0; i < 40; i++) bench.cancel('q', undefined, 'i')
      await bench.endTurn()
      settle(bench, pair, 'release')
      await bench.endTurn()
      for (let i = 0; i < 20; i++) bench.cancel('q', undefined, 'i')
      if (round === 1) await bench.crash()
    }
    await bench.drain()
    return bench.counts.get('messages drained') ?? 0
  },

  'a few messages left of each thousand, with priorities, and released messages': async (bench) => {
    bench.ensure('q', { maxMessages: 2_000, overflow: 'drop-oldest', keyConcurrency: 3 })
    for (let round = 0; round < 12; round++) {
      const messages = Array.from({ length: 250 }, (_, i) => ({
        priority: i % 3,
        ...(i % 50 === 7 ? { key: 'k' } : {}),
      }))
      publish(bench, 'q', ...messages)
      const pair = await consume(bench, 'q', 240)
      const tags = held(pair)
      const few = tags.filter((_, i) => i % 80 === 5)
      const others = tags.filter((_, i) => i % 80 !== 5)
      const outcome = (['deadLetter', 'retry', 'release'] as const)[round % 3]!
      const item = { delayMs: undefined, reason: 'no luck', invalid: false }
      bench.settle(pair, [
        { ...item, tags: others, outcome: 'ack' },
        { ...item, tags: few, outcome },
      ])
      await bench.endTurn()
      bench.disconnect(pair.connection)
      if (round === 6) await bench.crash()
    }
    await bench.redrive({ ...all, name: 'q' })
    await bench.drain()
    return bench.counts.get('messages drained') ?? 0
  },

  'priorities in a full queue': async (bench) => {
    bench.ensure('q', { maxMessages: 20, overflow: 'drop-oldest' })
    for (let round = 0; round < 30; round++) {
      publish(bench, 'q', ...Array.from({ length: 7 }, (_, i) => ({ priority: (i * 5 + round) % 4 })))
      const pair = await consume(bench, 'q', 3)
      publish(bench, 'q', ...Array.from({ length: 5 }, (_, i) => ({ priority: i % 4 })))
      settle(bench, pair, (['release', 'ack', 'retry'] as const)[round % 3]!)
      await bench.endTurn()
      bench.disconnect(pair.connection)
      if (round === 15) await bench.crash()
    }
    await bench.drain()
    return bench.model.events.get('overflow') ?? 0
  },
}

test.each(Object.entries(FAR))('%s', { timeout: 120_000 }, async (_name, script) => {
  // The script reached its situation, and no answer differed.
  expect(await script(await opened())).toBeGreaterThan(50)
})

test.each(Object.entries(MENDED))('%s', async (_name, script) => {
  await expect(script()).resolves.toBeUndefined()
})
