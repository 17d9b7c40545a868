/**
 * Every planted bug must be found within a few seeds. `pnpm test` starts with the seed that is known to find the bug;
 * the long mode searches from the first seed.
 */
import { expect, test } from 'vitest'
import { IS_LONG, TIMEOUT_MS } from '../amount.js'
import { CrashPoints, noCrashes } from './crash.js'
import type { Defect } from './defect.js'
import { DEFECTS } from './defects.js'
import { SimulationFailure } from './trace.js'
import { runWorld } from './world.js'

const SEEDS_MAX = 24
/** The share of each run's crash points that is checked. */
const SHARE = 0.05

/** For each defect that the first seed does not find: a seed that finds it. An outdated entry only costs time. */
const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a failed write is reported as a success': 4,
  'a settle of another consumer is not reported as stale': 2,
  'a retry is not charged': 4,
  'an expired message that is left keeps its id': 2,
  'a producer is unknown after a restart': 4,
  'the acks of an atomic step are written in the next entry': 8,
  'a leased message is replaced': 2,
  'a dead letter is copied and stays in its old queue': 7,
  'a dead letter leaves its old queue and is in the new one until the restart': 7,
  'a lease can be claimed after a later lease of its message': 21,
  'a message that another consumer holds is granted to a claim': 3,
}

const found: string[] = []

async function firstFailure(defect: Defect): Promise<unknown> {
  const restore = defect.install?.()
  try {
    return await failureOf(defect)
  } finally {
    restore?.()
  }
}

async function failureOf(defect: Defect): Promise<unknown> {
  const seeds = Array.from({ length: SEEDS_MAX }, (_, i) => i + 1)
  const known = KNOWN_SEEDS[defect.name]
  if (!IS_LONG && known !== undefined) seeds.unshift(known)
  for (const seed of seeds) {
    const points = new CrashPoints(seed, noCrashes(), SHARE)
    try {
      await runWorld({ seed, defect, onDiskUse: (world) => points.look(world) })
    } catch (error) {
      if (IS_LONG || seed !== (known ?? 1)) console.log(`  ${JSON.stringify(defect.name)}: ${seed},`)
      return error
    }
  }
  return undefined
}

test.each(DEFECTS)('found: $name', { timeout: TIMEOUT_MS }, async (defect) => {
  const failure = await firstFailure(defect)
  expect(failure, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(SimulationFailure)
  found.push(defect.name)
})

test('every planted defect is found', () => {
  expect(DEFECTS.length).toBeGreaterThanOrEqual(30)
  expect(new Set(found).size).toBe(DEFECTS.length)
})
