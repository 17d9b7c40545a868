/**
 * Every planted bug of the tree of pages, of cold chunks and of retention must be found within a few seeds. `pnpm test` starts with
 * the seed that is known to find the bug; the long mode searches from the first seed.
 */
import { expect, test } from 'vitest'
import { TIMEOUT_MS } from '../amount.js'
import { findDefect } from '../planted.js'
import { BacklogPoints, noBacklogCounts } from './backlog-points.js'
import { runBacklog } from './backlog.js'
import type { Defect } from './defect.js'
import { STORAGE_DEFECTS } from './storage-defects.js'
import { SimulationFailure } from './trace.js'

const SEEDS_MAX = 40
/** The share of each run's crash points that is checked. */
const SHARE = 0.03

const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a chunk with leased messages leaves memory': 3,
  'a chunk that was relocated leaves memory before its page is written again': 2,
  'the chunks whose leases can be claimed are not read after a restart': 22,
  'the chunks whose leases can be claimed are counted, and not their messages': 22,
  'a cold chunk is taken back from the page before its newest one': 2,
  'the release of retained messages is not written': 13,
  'the end of retention releases one message too many': 22,
  'an acknowledged message is not retained if it is the last of its batch': 2,
  'retained messages do not keep their batch in the log': 2,
}

const found: string[] = []

async function firstFailure(defect: Defect): Promise<unknown> {
  const restore = defect.install!()
  try {
    return await findDefect(defect.name, { seedsMax: SEEDS_MAX, knownSeeds: KNOWN_SEEDS }, async (seed) => {
      const points = new BacklogPoints(seed, noBacklogCounts(), SHARE)
      try {
        await runBacklog({ seed, onDiskUse: (world) => points.look(world) })
        return undefined
      } catch (error) {
        return error
      }
    })
  } finally {
    restore()
  }
}

test.each(STORAGE_DEFECTS)('found: $name', { timeout: TIMEOUT_MS }, async (defect) => {
  const failure = await firstFailure(defect)
  expect(failure, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(SimulationFailure)
  found.push(defect.name)
})

test('every planted defect is found', () => {
  expect(STORAGE_DEFECTS.length).toBeGreaterThanOrEqual(18)
  expect(new Set(found).size).toBe(STORAGE_DEFECTS.length)
})
