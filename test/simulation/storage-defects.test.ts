/**
 * Every planted bug of the tree of pages, of cold chunks and of retention must be found within a few seeds. `pnpm test` starts with
 * the seed that is known to find the bug; the long mode searches from the first seed.
 */
import { expect, test } from 'vitest'
import { IS_LONG, TIMEOUT_MS } from '../amount.js'
import { BacklogPoints, noBacklogCounts } from './backlog-points.js'
import { runBacklog } from './backlog.js'
import type { Defect } from './defect.js'
import { STORAGE_DEFECTS } from './storage-defects.js'
import { SimulationFailure } from './trace.js'

const SEEDS_MAX = 40
/** The share of each run's crash points that is checked. */
const SHARE = 0.03

/** For each defect that the first seed does not find: a seed that finds it. An outdated entry only costs time. */
const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'a chunk that was relocated leaves memory before its page is written again': 9,
  'the chunks whose leases can be claimed are not read after a restart': 8,
  'the chunks whose leases can be claimed are counted, and not their messages': 8,
  'a cold chunk is taken back from the page before its newest one': 2,
  'the release of retained messages is not written': 13,
  'the end of retention releases one message too many': 19,
  'an acknowledged message is not retained if it is the last of its batch': 2,
  'retained messages do not keep their batch in the log': 2,
}

const found: string[] = []

async function firstFailure(defect: Defect): Promise<unknown> {
  const restore = defect.install!()
  try {
    const seeds = Array.from({ length: SEEDS_MAX }, (_, i) => i + 1)
    const known = KNOWN_SEEDS[defect.name]
    if (!IS_LONG && known !== undefined) seeds.unshift(known)
    for (const seed of seeds) {
      const points = new BacklogPoints(seed, noBacklogCounts(), SHARE)
      try {
        await runBacklog({ seed, onDiskUse: (world) => points.look(world) })
      } catch (error) {
        if (IS_LONG || seed !== (known ?? 1)) console.log(`  ${JSON.stringify(defect.name)}: ${seed},`)
        return error
      }
    }
    return undefined
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
