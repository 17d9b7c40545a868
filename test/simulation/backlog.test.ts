/**
 * Runs with long backlogs, many of whose chunks are cold, and crash points of these runs. By default half of the crash
 * points are checked; in the long mode, all of them. `SLUICE_SEED=n` runs one seed.
 */
import { describe, expect, test } from 'vitest'
import { IS_LONG, leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { countCrashPoints } from '../crash-points.js'
import { BacklogPoints, noBacklogCounts } from './backlog-points.js'
import { runBacklog } from './backlog.js'

const FILE = 'test/simulation/backlog.test.ts'
const SEEDS = seedsFrom(1, 3, 60)
const SHARE = IS_LONG || ONE_SEED !== undefined ? 1 : 0.5

const MUST_HAPPEN_IN = 12
/** Minimum number of occurrences of each event in MUST_HAPPEN_IN runs. */
const MUST_HAPPEN: Readonly<Record<string, number>> = {
  'made cold': 150,
  'read back': 150,
  'cold when calm': 30,
  'cold after a start': 20,
  'changes of cold chunks': 40,
  'leases claimed': 4_000,
  'relocated batches': 100,
  directories: 400,
  peeked: 50_000,
  published: 250_000,
  delivered: 60_000,
  drained: 50_000,
  'options changed': 130,
  'purged long': 30,
  deleted: 8,
  'settled 1': 15_000,
  'settled 2': 80,
  'settled 3': 80,
  'settled 4': 80,
  'rests with ready messages': 12,
  'rests with scheduled messages': 6,
  'rests with dead messages': 10,
  'rests with retained messages': 4,
  'rests with cold chunks': 2,
  replayed: 400,
  'retained and replayed': 300,
  'made cold as retained': 30,
  'read back as retained': 200,
}

const total = new Map<string, number>()
const counts = noBacklogCounts()

describe(`a broker with long backlogs recovers from ${SHARE * 100} % of its crash points`, () => {
  test.each(SEEDS)('seed %i', { timeout: TIMEOUT_MS }, async (seed) => {
    const points = new BacklogPoints(seed, counts, SHARE)
    const before = counts.images
    const report = await runBacklog({ seed, file: FILE, onDiskUse: (world) => points.look(world) })
    for (const [what, count] of report.counts) total.set(what, (total.get(what) ?? 0) + count)
    expect(counts.images - before).toBeGreaterThan(500 * SHARE)
  })

  test('and chunks were cold in them', (context) => {
    countCrashPoints(context, counts.images + counts.again + counts.interrupted)
    console.log(`${JSON.stringify({ ...counts, ...Object.fromEntries(total) })} in ${SEEDS.length} runs`)
    if (ONE_SEED !== undefined) return
    const missing = Object.entries(MUST_HAPPEN)
      .map(([what, least]) => [what, leastIn(SEEDS.length, least, MUST_HAPPEN_IN)] as const)
      .filter(([what, least]) => (total.get(what) ?? 0) < least)
    expect(missing.map(([what, least]) => `${what}: ${total.get(what) ?? 0} of ${least}`)).toEqual([])
    const { images } = counts
    expect(images).toBeGreaterThan(SEEDS.length * 1_000 * SHARE)
    expect(counts.withCold).toBeGreaterThan(images * 0.2)
    expect(counts.coldChunks).toBeGreaterThan(images * 0.4)
    expect(counts.messages).toBeGreaterThan(images * 1_000)
    expect(counts.retained).toBeGreaterThan(images * 10)
    expect(counts.withUnfinished).toBeGreaterThan(images * 0.03)
    expect(counts.torn).toBeGreaterThan(images * 0.02)
    expect(counts.fromCheckpoint).toBeGreaterThan(images * 0.5)
    expect(counts.again).toBeGreaterThan(images * 0.03)
    expect(counts.interrupted).toBeGreaterThan(images * 0.02)
    expect(counts.drainedMessages).toBeGreaterThan(images * 5)
  })
})
