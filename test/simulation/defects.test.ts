/**
 * H1: every planted bug is found, within few seeds. `pnpm test` begins with the seed that is known to find it; the long
 * mode searches from the first seed on.
 */
import { expect, test } from 'vitest'
import { IS_LONG, TIMEOUT_MS } from '../amount.js'
import { CrashPoints, noCrashes } from './crash.js'
import type { Defect } from './defect.js'
import { DEFECTS } from './defects.js'
import { SimulationFailure } from './trace.js'
import { runWorld } from './world.js'

const SEEDS_MAX = 24
/** A share of the crash points of each run is looked at. */
const SHARE = 0.05

/** By a defect's name, where it is not the first seed. An entry that is out of date costs time, no more. */
const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a failed write is called a success': 4,
  'a settle of another is not called stale': 2,
  'a retry does not count': 4,
  'a producer is not known again after a restart': 4,
  'what an atomic step acknowledges is written in the next entry': 8,
  'what a consumer has is replaced': 2,
  'a dead letter is moved and does not leave its home': 7,
  'a dead letter leaves its home and is there until the restart': 7,
  'a lease can be claimed after the next one': 21,
  'what another consumer has is granted to the one that claims it': 3,
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

test('as many were found as were planted', () => {
  expect(DEFECTS.length).toBeGreaterThanOrEqual(30)
  expect(new Set(found).size).toBe(DEFECTS.length)
})
