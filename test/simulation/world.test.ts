/**
 * Whole runs, one for each seed: a broker that ends and restarts several times, with hostile, slow and dying clients;
 * then the trouble stops, the queues are drained, and everything is checked. `SLUICE_SEED=n` runs one seed.
 */
import { describe, expect, test } from 'vitest'
import { leastIn, ONE_SEED, seedsFrom, seedsOf, TIMEOUT_MS } from '../amount.js'
import { CrashPoints, noCrashes } from './crash.js'
import { runWorld } from './world.js'

const FILE = 'test/simulation/world.test.ts'
const SEEDS = seedsOf([1, 20, 22, 23, 26, 27, 30, 32, 33, 34, 37, 39], 3_000)

const MUST_HAPPEN_IN = 60
/**
 * Minimum number of occurrences of each event in MUST_HAPPEN_IN runs: if an event is rarer, the runs test less than they
 * seem to.
 */
const MUST_HAPPEN: Readonly<Record<string, number>> = {
  // The log.
  'segments begun': 850,
  'segments recycled': 220,
  directories: 800,
  'state pages': 5000,
  'recovered from a checkpoint': 100,
  'relocated batches': 1000,
  'sparse copies': 120,
  truncations: 250,
  rests: 60,
  coldReads: 1000,
  largeEntries: 10,
  'torn tail cut': 3,
  'end power': 20,
  'end kill': 10,
  'end close': 10,
  'end fault': 10,
  'log failed': 10,
  'disk full': 5,
  'reads fail': 5,
  'log read-failed': 3,
  'clock set': 10,
  // Producers.
  'witnessed confirmed': 5000,
  resent: 500,
  duplicates: 200,
  split: 250,
  'kept behind': 400,
  'went again': 400,
  'refused sent again': 40,
  'in order': 20_000,
  'number reused': 200,
  'error NUMBER_REUSED': 20,
  'error UNKNOWN_OUTCOME': 50,
  'error BATCH_CORRUPT': 50,
  'error BATCH_MALFORMED': 50,
  'error BATCH_TOO_LARGE': 50,
  'error MESSAGE_TOO_LARGE': 50,
  'error INVALID_DELAY': 50,
  'error INVALID_TTL': 50,
  'error AT_IN_THE_PAST': 50,
  'error QUEUE_NOT_FOUND': 50,
  'error DISK_LOW': 3,
  // Consumers.
  order: 20_000,
  repeated: 5000,
  acked: 10_000,
  retried: 500,
  released: 500,
  died: 200,
  charged: 10,
  suspected: 10,
  alone: 3,
  stale: 100,
  'settled again': 40,
  drained: 30,
  // Keys, ids, times, limits, dead letters, steps.
  keyed: 1500,
  prioritized: 2000,
  'duplicate ids': 1000,
  'dedup full': 60,
  expired: 3000,
  'timed out': 10,
  extended: 40,
  'queue full': 400,
  dropped: 1000,
  overflowed: 500,
  excess: 250,
  'part of an excess': 60,
  moved: 150,
  carried: 3,
  redriven: 40,
  discarded: 15,
  cancelled: 25,
  replaced: 150,
  rescheduled: 20,
  steps: 250,
  'steps in the log': 250,
  'steps repeated': 8,
  'steps refused': 60,
  'step acks': 350,
  'further batches': 10,
  'step batches': 200,
  'witnessed steps confirmed': 250,
  'witnessed leases lost': 50,
  'witnessed peeked': 300,
  'error MESSAGE_LEASED': 5,
  'error LEASE_LOST': 30,
  // Queues and connections.
  'witnessed results': 2000,
  'error QUEUE_DELETED': 20,
  'error QUEUE_CONFLICT': 100,
  'session closed: HEARTBEAT_TIMEOUT': 10,
  'session closed: FRAME_TOO_LARGE': 10,
  'session closed: MALFORMED_FRAME': 10,
  'half open': 30,
  thawed: 5,
  'connection cut': 100,
  'broker stalled': 30,
  calm: 1000,
}

describe('a broker with failures on all sides', () => {
  test(`keeps its promises in ${SEEDS.length} runs`, { timeout: TIMEOUT_MS }, async () => {
    const total = new Map<string, number>()
    const checked = { runs: 0, events: 0, attempted: 0, confirmed: 0, delivered: 0 }
    for (const seed of SEEDS) {
      const { counts, events, history } = await runWorld({ seed, file: FILE })
      for (const [what, count] of counts) total.set(what, (total.get(what) ?? 0) + count)
      checked.runs++
      checked.events += events
      checked.attempted += history.attempted
      checked.confirmed += history.confirmed
      checked.delivered += history.delivered
    }
    expect(checked.runs).toBe(SEEDS.length)
    if (ONE_SEED !== undefined) return
    expect(checked.confirmed).toBeGreaterThan(300 * SEEDS.length)
    expect(checked.delivered).toBeGreaterThan(300 * SEEDS.length)
    expect(checked.events).toBeGreaterThan(2000 * SEEDS.length)
    const missing = Object.entries(MUST_HAPPEN)
      .map(([what, least]) => [what, leastIn(SEEDS.length, least, MUST_HAPPEN_IN)] as const)
      .filter(([what, least]) => (total.get(what) ?? 0) < least)
    expect(missing.map(([what, least]) => `${what}: ${total.get(what) ?? 0} of ${least}`)).toEqual([])
  })

  test('behaves identically for the same seed, observed or not', { timeout: TIMEOUT_MS }, async () => {
    const hashes = new Set<number>()
    let compared = 0
    for (const seed of seedsFrom(901, 4, 40)) {
      const first = await runWorld({ seed, file: FILE })
      const points = new CrashPoints(seed, noCrashes(), 0.02)
      const second = await runWorld({ seed, file: FILE, onDiskUse: (world) => points.look(world) })
      expect([second.hash, second.events], `seed ${seed}`).toEqual([first.hash, first.events])
      hashes.add(first.hash)
      compared++
    }
    expect(hashes.size).toBe(compared)
    expect(compared).toBeGreaterThan(ONE_SEED === undefined ? 3 : 0)
  })
})
