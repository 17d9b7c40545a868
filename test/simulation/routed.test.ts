/**
 * Runs with topics, streams, readers, groups, an expiring queue, schedules and requests, and crash points of these runs. By
 * default a small share of the crash points is checked; in the long mode, all of them. Every planted bug must be found; by
 * default only those are planted that the first seed finds at once.
 * `SLUICE_SEED=n` runs one seed.
 */
import { describe, expect, test } from 'vitest'
import { IS_LONG, leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { countCrashPoints } from '../crash-points.js'
import { findDefect } from '../planted.js'
import { BacklogPoints, noBacklogCounts, type BacklogCounts } from './backlog-points.js'
import { runBacklog, type BacklogReport } from './backlog.js'
import { ROUTED_DEFECTS } from './routed-defects.js'
import { RoutedTraffic } from './routed-traffic.js'
import { SimulationFailure } from './trace.js'

const FILE = 'test/simulation/routed.test.ts'
const SEEDS = seedsFrom(1, 2, 200)
const SHARE = IS_LONG || ONE_SEED !== undefined ? 1 : 0.04
const DEFECT_SEEDS_MAX = 40
const DEFECT_SHARE = 0.03

const MUST_HAPPEN_IN = 30
/** Minimum number of occurrences of each event in MUST_HAPPEN_IN runs. */
const MUST_HAPPEN: Readonly<Record<string, number>> = {
  'published to topics': 2_000,
  published: 1_500,
  confirmed: 100_000,
  'shared batches': 1_500,
  'copies of shared batches': 1_500,
  'relocated batches': 2_500,
  bound: 400,
  unbound: 250,
  'unused queues deleted': 6,
  read: 60_000,
  'missed by readers': 3_000,
  'readers opened': 150,
  'delivered to groups': 50_000,
  'joined groups': 300,
  'moved groups': 400,
  'settled 1': 12_000,
  'settled 2': 700,
  'settled 3': 700,
  'settled 4': 700,
  ticks: 60,
  'schedules changed': 300,
  answered: 120,
  'requests timed out': 250,
}

const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a copied batch of a stream keeps its old place in the groups': 2,
  'a release reaches messages that arrive in the same turn': 17,
}

/** Planted bugs that take seconds to find. They are planted only in the long mode. */
const SLOW: ReadonlySet<string> = new Set([
  'a message that arrives in a queue is not a use of the queue',
  'the time of an unused queue is not set after a call',
  'a release reaches messages that arrive in the same turn',
  'a reader skips the first message of a chunk',
  'a copied batch of a stream keeps its old place in the groups',
])
const PLANTED = ROUTED_DEFECTS.filter(({ name }) => IS_LONG || !SLOW.has(name))

function run(seed: number, counts: BacklogCounts, share: number): Promise<BacklogReport> {
  const points = new BacklogPoints(seed, counts, share)
  return runBacklog({
    ...{ seed, file: FILE },
    traffic: (around) => new RoutedTraffic(around),
    onDiskUse: (world) => points.look(world),
  })
}

describe('a broker with topics, streams, groups and schedules', () => {
  test(`keeps its promises in ${SEEDS.length} runs`, { timeout: TIMEOUT_MS }, async (context) => {
    const total = new Map<string, number>()
    const counts = noBacklogCounts()
    for (const seed of SEEDS) {
      const report = await run(seed, counts, SHARE)
      for (const [what, count] of report.counts) total.set(what, (total.get(what) ?? 0) + count)
    }
    countCrashPoints(context, counts.images + counts.again + counts.interrupted)
    console.log(`${JSON.stringify({ ...counts, ...Object.fromEntries(total) })} in ${SEEDS.length} runs`)
    if (ONE_SEED !== undefined) return
    const missing = Object.entries(MUST_HAPPEN)
      .map(([what, least]) => [what, leastIn(SEEDS.length, least, MUST_HAPPEN_IN)] as const)
      .filter(([what, least]) => (total.get(what) ?? 0) < least)
    expect(missing.map(([what, least]) => `${what}: ${total.get(what) ?? 0} of ${least}`)).toEqual([])
    const { images } = counts
    expect(images).toBeGreaterThan(SEEDS.length * 700 * SHARE)
    expect(counts.fromCheckpoint).toBeGreaterThan(images * 0.4)
    expect(counts.retained).toBeGreaterThan(images * 100)
  })
})

describe('planted mistakes', () => {
  test.each(PLANTED)('found: $name', { timeout: TIMEOUT_MS }, async (defect) => {
    const restore = defect.install!()
    const search = { seedsMax: DEFECT_SEEDS_MAX, knownSeeds: KNOWN_SEEDS }
    try {
      const failure = await findDefect(defect.name, search, (seed) =>
        run(seed, noBacklogCounts(), DEFECT_SHARE).then(
          () => undefined,
          (error: unknown) => error,
        ),
      )
      expect(failure, `not found in ${DEFECT_SEEDS_MAX} seeds`).toBeInstanceOf(SimulationFailure)
    } finally {
      restore()
    }
  })
})
