/**
 * Random histories of streams and groups: the broker must behave as the model says, and each planted defect must be found.
 */
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { findDefect } from '../planted.js'
import { commandOf, shrink } from './history.js'
import { Difference } from './state.js'
import { STREAM_DEFECTS } from './stream-defects.js'
import { runStreamHistory } from './stream-history.js'

const PRODUCT = { Broker, MemoryLog, Schedule }
const OPERATIONS = 300
const SEEDS_MAX = 20
/** For each defect that the first seed does not find: a seed that finds it. */
const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a retry in a group does not hold back the later messages of its key': 3,
}

/** The minimum counts below are for this many seeds. */
const SEEN_IN = 20
const SEEN: Readonly<Record<string, number>> = {
  operations: 6_000,
  answers: 2_600,
  deliveries: 5_000,
  'messages drained': 1_000,
  'messages published': 120_000,
  'groups compared': 20_000,
  'groups more than a chunk behind': 900,
  'streams compared': 13_000,
  'retention checked': 400,
  'messages released by retention': 90_000,
  'released by age': 25_000,
  'released by number': 55_000,
  'messages missed': 25_000,
  'messages missed after they had entered': 5_000,
  moves: 230,
  'leases lost': 800,
  crashes: 60,
  'orderly closes': 25,
  'restarts from state pages': 45,
  'restarts on a truncated log': 6,
  'deliveries of a further attempt': 150,
  'deliveries marked redelivered': 1_200,
  'atomic steps': 110,
  duplicates: 280,
  'subscriptions ended': 12,
  'settled in a group: ack': 600,
  'settled in a group: retry': 350,
  'settled in a group: release': 220,
  'settled in a group: deadLetter': 240,
  'event: key held back': 2_400,
  'event: held by pause': 60,
  'event: held by the rate': 450,
  'event: timeout': 6,
  'event: redriven': 12,
  'messages moved to another queue': 60,
  'topic publishes': 30,
  'refused MESSAGE_NOT_FOUND': 4,
  'schedules compared': 9_000,
  'ticks that fired in time': 150,
  'ticks that fired late': 200,
  'ticks refused': 100,
  'ticks skipped': 4,
}

test('histories of streams', { timeout: TIMEOUT_MS }, async () => {
  const totals = new Map<string, number>()
  const seeds = seedsFrom(1, 3, 400)
  for (const seed of seeds) {
    const options = { seed, operations: OPERATIONS }
    const { counts, failure } = await runStreamHistory(PRODUCT, options)
    if (failure !== undefined) {
      const short = await shrink(PRODUCT, options, runStreamHistory)
      const trace: string[] = []
      await runStreamHistory(PRODUCT, { ...short, trace: (line) => trace.push(line) })
      throw new Error(
        `seed ${seed} failed at operation ${failure.at}; run it again: ${commandOf(short, true)}\n${trace.join('\n')}`,
        { cause: failure.error },
      )
    }
    for (const [name, count] of counts) totals.set(name, (totals.get(name) ?? 0) + count)
  }
  if (ONE_SEED !== undefined) return
  for (const [name, least] of Object.entries(SEEN))
    expect(totals.get(name) ?? 0, name).toBeGreaterThanOrEqual(leastIn(seeds.length, least, SEEN_IN))
})

const found: string[] = []

test.each(STREAM_DEFECTS)('found: $name', { timeout: TIMEOUT_MS }, async ({ name, plant }) => {
  const search = { seedsMax: SEEDS_MAX, knownSeeds: KNOWN_SEEDS }
  const difference = await findDefect(name, search, async (seed) => {
    const options = { seed, operations: OPERATIONS, defect: plant() }
    return (await runStreamHistory(PRODUCT, options)).failure?.error
  })
  expect(difference, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(Difference)
  found.push(name)
})

test('every planted defect is found', () => {
  expect(STREAM_DEFECTS.length).toBeGreaterThanOrEqual(8)
  expect(new Set(found).size).toBe(STREAM_DEFECTS.length)
})
