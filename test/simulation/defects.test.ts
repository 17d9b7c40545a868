/** H1: every planted bug is found, within few seeds. */
import { expect, test } from 'vitest'
import { CrashPoints, noCrashes } from './crash.js'
import type { Defect } from './defect.js'
import { DEFECTS } from './defects.js'
import { SimulationFailure } from './trace.js'
import { runWorld } from './world.js'

const SEEDS_MAX = 24
/** A share of the crash points of each run is looked at. */
const SHARE = 0.05

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
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    const points = new CrashPoints(seed, noCrashes(), SHARE, () => false)
    try {
      await runWorld({ seed, defect, onDiskUse: (world) => points.look(world) })
    } catch (error) {
      return error
    }
  }
  return undefined
}

test.each(DEFECTS)('found: $name', { timeout: 300_000 }, async (defect) => {
  const failure = await firstFailure(defect)
  expect(failure, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(SimulationFailure)
  found.push(defect.name)
})

test('as many were found as were planted', () => {
  expect(DEFECTS.length).toBeGreaterThanOrEqual(30)
  expect(new Set(found).size).toBe(DEFECTS.length)
})
