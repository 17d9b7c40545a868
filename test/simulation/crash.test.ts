/**
 * Crash points: images of the disk that are taken when a run uses the disk. A new broker recovers from each image and
 * is compared with the log. By default two thirds of the images of eight runs are checked; in the long mode, all images of
 * many runs are checked.
 */
import { expect, test } from 'vitest'
import { IS_LONG, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { countCrashPoints } from '../crash-points.js'
import { CrashPoints, noCrashes } from './crash.js'
import { runWorld } from './world.js'

const SEEDS = seedsFrom(10_001, 8, 150)
const SHARE = IS_LONG || ONE_SEED !== undefined ? 1 : 0.65
const IMAGES_PER_RUN_LEAST = 600

test(
  `a broker recovers from ${SHARE * 100} % of the crash points of ${SEEDS.length} runs`,
  { timeout: TIMEOUT_MS },
  async (context) => {
    const counts = noCrashes()
    const begun = process.cpuUsage()
    for (const seed of SEEDS) {
      const points = new CrashPoints(seed, counts, SHARE)
      await runWorld({
        seed,
        file: 'test/simulation/crash.test.ts',
        onDiskUse: (world) => points.look(world),
      })
    }
    countCrashPoints(context, counts.images + counts.again + counts.interrupted)
    const { user, system } = process.cpuUsage(begun)
    console.log(
      `${JSON.stringify(counts)} in ${SEEDS.length} runs, ${Math.round((user + system) / 1e6)} s of processor time`,
    )
    // With few runs, as in a part of the long mode, a rare kind of image may not occur.
    if (ONE_SEED !== undefined || IS_LONG) return
    const { images } = counts
    expect(images).toBeGreaterThan(SEEDS.length * IMAGES_PER_RUN_LEAST * SHARE)
    // Each kind of image and of recovery must be frequent enough.
    expect(counts.withUnfinished).toBeGreaterThan(images * 0.05)
    expect(counts.torn).toBeGreaterThan(images * 0.02)
    expect(counts.afterStop).toBeGreaterThan(images * 0.005)
    expect(counts.fromCheckpoint).toBeGreaterThan(images * 0.5)
    expect(counts.again).toBeGreaterThan(images * 0.05)
    expect(counts.interrupted).toBeGreaterThan(images * 0.03)
    expect(counts.drained).toBeGreaterThan(images * 0.03)
    expect(counts.drainedMessages).toBeGreaterThan(images)
    expect(counts.resent).toBeGreaterThan(images * 0.05)
    expect(counts.messages).toBeGreaterThan(images * 50)
    expect(counts.batches).toBeGreaterThan(images)
    expect(counts.keys).toBeGreaterThan(images * 5)
    expect(counts.ids).toBeGreaterThan(images * 5)
    expect(counts.dead).toBeGreaterThan(images * 5)
    expect(counts.steps).toBeGreaterThan(0)
  },
)
