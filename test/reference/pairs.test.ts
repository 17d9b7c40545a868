/**
 * Runs every pair of queue features, in one queue, through one script, and compares the results with the model. A pair
 * counts only if both features made a difference.
 */
import type { QueueOptions, RecordOptions } from '@sluice/protocol'
import { afterAll, expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { Bench, type BenchProducer, type Pair } from './bench.js'
import { compareHistory, comparePeek } from './pages.js'
import { replay } from './replay.js'
import type { ModelSettle } from './state.js'

const Q = 'q'
const OTHER = 'other'
const ROUNDS = 6
const VARIANTS = [0, 1, 2] as const
type Variant = (typeof VARIANTS)[number]

interface Script {
  readonly bench: Bench
  readonly producer: BenchProducer
  readonly variant: Variant
  readonly round: number
}

interface Feature {
  readonly options?: (variant: Variant) => Partial<QueueOptions>
  readonly message?: (index: number, script: Script) => RecordOptions
  /** `before` runs before anything is delivered, `during` while some messages are leased. */
  readonly before?: (script: Script) => Promise<void>
  readonly during?: (script: Script, pair: Pair) => Promise<void>
  /** Name of the count that shows that the feature made a difference. */
  readonly witness: string
}

const all = { from: 0, limit: 1000, offsets: undefined, filter: {}, dryRun: false } as const

const FEATURES = {
  priority: {
    message: (index) => ({ priority: [0, 5, 31][index % 3] }),
    witness: 'event: priority passed',
  },
  delay: {
    message: (index, { bench, variant }) =>
      index % 2 === 0 ? {} : variant === 0 ? { atMs: bench.nowMs + 200 } : { delayMs: 200 },
    witness: 'event: delayed',
  },
  key: {
    options: (variant) => ({
      keyConcurrency: variant === 0 ? 2 : 1,
      onFail: variant === 1 ? 'skip' : 'block',
    }),
    message: (index) => ({ key: index % 4 < 2 ? 'a' : 'b' }),
    witness: 'event: key held back',
  },
  ttl: {
    options: (variant) => (variant === 0 ? { ttlMs: 1_000 } : {}),
    message: (index) => (index % 4 === 3 ? { ttlMs: 60 } : {}),
    witness: 'event: expired',
  },
  retry: {
    options: (variant) => ({ maxDeliveries: variant + 2, retryInitialMs: variant * 100, retryMaxMs: 400 }),
    witness: 'event: further attempt',
  },
  dedup: {
    options: (variant) => (variant === 0 ? { unique: 'pending' } : { dedupWindowMs: 400 }),
    message: (index) => ({ id: `id ${index % 5}` }),
    witness: 'duplicates',
  },
  overflow: {
    options: (variant) => ({
      maxMessages: 6,
      overflow: (['reject', 'drop-oldest', 'dead-letter'] as const)[variant],
    }),
    witness: 'overflown',
  },
  retain: {
    options: () => ({ retainAgeMs: 3_600_000 }),
    before: async ({ bench, round }) => {
      if (round % 2 === 1) return
      let pages = round
      await replay(bench, Q, OTHER, () => (['nothing', 'crash', 'lost'] as const)[pages++ % 3]!)
    },
    during: async ({ bench, round }) => {
      if (round % 2 === 1) await replay(bench, Q, round % 4 === 1 ? OTHER : Q)
    },
    witness: 'messages replayed',
  },
  atomic: {
    during: async ({ bench, producer }, pair) => {
      const tags = [...pair.model.held.keys()].slice(0, 2)
      const acks = tags.map((tag) => ({ pair, tag }))
      const contents = [bench.content({ id: 'id 1', key: 'a', priority: 5 }, 20)]
      bench.atomic(producer, acks, [
        { queue: OTHER, contents },
        { queue: Q, contents },
      ])
      await bench.endTurn()
    },
    witness: 'atomic steps',
  },
  pause: {
    before: async ({ bench }) => {
      bench.pause(Q, true)
      const pair = bench.subscribe(bench.connect(), Q, 5, 1 << 20)!
      await bench.endTurn()
      await bench.pass(30, true)
      bench.unsubscribe(pair)
      bench.pause(Q, false)
    },
    witness: 'event: held by pause',
  },
  redrive: {
    before: async ({ bench, variant, round }) => {
      const to = variant === 0 && round % 2 === 0 ? OTHER : undefined
      await bench.redrive({ ...all, name: Q, to, force: variant === 1 })
    },
    witness: 'event: redriven',
  },
} as const satisfies Record<string, Feature>

type FeatureName = keyof typeof FEATURES
const NAMES = Object.keys(FEATURES) as FeatureName[]

const checksOf = new Map<string, number>()

async function play(names: readonly FeatureName[], variant: Variant): Promise<ReadonlyMap<string, number>> {
  const features: readonly Feature[] = names.map((name) => FEATURES[name])
  const bench = new Bench({ Broker, MemoryLog, Schedule })
  await bench.open()
  bench.ensure(OTHER, {})
  bench.ensure(Q, Object.assign({}, ...features.map((feature) => feature.options?.(variant) ?? {})) as object)
  const producer = bench.addProducer()
  for (let round = 0; round < ROUNDS; round++) {
    const script = { bench, producer, variant, round }
    bench.chance(round / ROUNDS)
    for (const from of [0, 4]) {
      const contents = [from, from + 1, from + 2, from + 3].map((index) =>
        bench.content(
          Object.assign({}, ...features.map((one) => one.message?.(index, script) ?? {})) as object,
          30,
        ),
      )
      bench.publish(producer, Q, contents)
      if (round % 2 === 0) await bench.endTurn()
    }
    for (const feature of features) await feature.before?.(script)
    await bench.endTurn()
    for (const step of [0, 1, 2]) {
      const pair = bench.subscribe(bench.connect(), Q, 4, 1 << 20)!
      await bench.endTurn()
      bench.started(pair, [...pair.model.held.keys()].slice(0, step))
      for (const feature of features) await feature.during?.(script, pair)
      bench.settle(pair, settles([...pair.model.held.keys()], step))
      await bench.endTurn()
      bench.disconnect(pair.connection)
      await comparePeek(bench, Q, undefined, 5, {})
      await compareHistory(bench, Q, round * 5 + step * 2)
      await bench.pass([30, 90, 250][step]!, round % 3 === 0)
    }
    if (round === 2) await bench.crash()
    if (round === 4) await bench.close()
  }
  await bench.drain()
  const counts = new Map(bench.counts)
  for (const [event, count] of bench.model.events) counts.set(`event: ${event}`, count)
  counts.set('overflown', (counts.get('event: overflow') ?? 0) + (counts.get('refused QUEUE_FULL') ?? 0))
  return counts
}

// Settles three messages with different outcomes, which change from step to step. The other messages stay leased until
// the connection ends.
function settles(tags: readonly number[], step: number): ModelSettle[] {
  const outcomes = (
    [
      ['ack', 'retry', 'deadLetter'],
      ['deadLetter', 'ack', 'release'],
      ['retry', 'deadLetter', 'ack'],
    ] as const
  )[step]!
  return outcomes.flatMap((outcome, index) =>
    tags[index] === undefined
      ? []
      : [{ tags: [tags[index]], outcome, delayMs: undefined, reason: 'no luck', invalid: false }],
  )
}

const CHECKED = [
  'answers',
  'refusals',
  'deliveries',
  'infos',
  'audits',
  'messages peeked',
  'messages replayed',
  'complete histories',
]

async function check(...names: readonly FeatureName[]): Promise<{ checks: number; idle: FeatureName[] }> {
  const totals = new Map<string, number>()
  for (const variant of VARIANTS) {
    for (const [name, count] of await play(names, variant)) totals.set(name, (totals.get(name) ?? 0) + count)
  }
  const checks = CHECKED.reduce((sum, name) => sum + (totals.get(name) ?? 0), 0)
  checksOf.set(names.join(' × '), checks)
  return { checks, idle: names.filter((name) => (totals.get(FEATURES[name].witness) ?? 0) === 0) }
}

const PAIRS = NAMES.flatMap((one, index) => NAMES.slice(index + 1).map((other) => [one, other] as const))

test.each(NAMES)('%s alone', async (name) => {
  const { checks, idle } = await check(name)
  expect(idle, 'features that made no difference').toEqual([])
  expect(checks).toBeGreaterThan(0)
})

test.each(PAIRS)('%s and %s', async (one, other) => {
  const { checks, idle } = await check(one, other)
  expect(idle, 'features that made no difference').toEqual([])
  expect(checks).toBeGreaterThan(0)
})

afterAll(() => {
  const width = Math.max(...NAMES.map((name) => name.length)) + 2
  const cell = (value: string | number): string => String(value).padStart(width)
  const rows = NAMES.map((row, index) =>
    [row.padEnd(width), ...NAMES.slice(0, index + 1).map((column) => cell(countOf(column, row)))].join(''),
  )
  console.log(['checks of each pair', ' '.repeat(width) + NAMES.map(cell).join(''), ...rows].join('\n'))
})

function countOf(one: string, other: string): number {
  return checksOf.get(one === other ? one : `${one} × ${other}`) ?? 0
}

test('all pairs were checked', () => {
  expect(checksOf.size).toBe(NAMES.length + (NAMES.length * (NAMES.length - 1)) / 2)
})
