/**
 * Every planted bug must be found within a few seeds. `pnpm test` starts with the seed that is known to find the bug;
 * the long mode searches from the first seed.
 */
import { expect, test } from 'vitest'
import { TIMEOUT_MS } from '../amount.js'
import { findDefect } from '../planted.js'
import { CrashPoints, noCrashes } from './crash.js'
import type { Defect } from './defect.js'
import { DEFECTS } from './defects.js'
import { SimulationFailure } from './trace.js'
import { runWorld } from './world.js'

const SEEDS_MAX = 24
/** The share of each run's crash points that is checked. */
const SHARE = 0.05

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
    return await findDefect(defect.name, { seedsMax: SEEDS_MAX, knownSeeds: KNOWN_SEEDS }, async (seed) => {
      const points = new CrashPoints(seed, noCrashes(), SHARE)
      try {
        await runWorld({ seed, defect, onDiskUse: (world) => points.look(world) })
        return undefined
      } catch (error) {
        return error
      }
    })
  } finally {
    restore?.()
  }
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
