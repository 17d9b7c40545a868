/**
 * Crash points (R5): images of the disk at the moments at which a run uses it, each recovered by a new broker and
 * compared. 20,000 of them here; `SLUICE_LONG=1`: 1,000,000. `SLUICE_SEED=n` takes those of one run.
 */
import { expect, test } from 'vitest'
import { CrashPoints, noCrashes } from './crash.js'
import { IS_LONG, ONE_SEED } from './seeds.js'
import { runWorld } from './world.js'

const WANTED = IS_LONG ? 1_000_000 : 20_000
const FIRST_SEED = 10_001
const IMAGES_PER_RUN_LEAST = 200

test(
  `a broker recovers from each of ${WANTED} crash points`,
  { timeout: IS_LONG ? 12 * 3600_000 : 900_000 },
  async () => {
    const counts = noCrashes()
    const isFull = (): boolean => ONE_SEED === undefined && counts.images >= WANTED
    const begun = process.cpuUsage()
    let runs = 0
    for (let seed = ONE_SEED ?? FIRST_SEED; ; seed++) {
      const points = new CrashPoints(seed, counts, 1, isFull)
      await runWorld({
        seed,
        file: 'test/simulation/crash.test.ts',
        onDiskUse: (world) => points.look(world),
      })
      runs++
      if (ONE_SEED !== undefined || isFull()) break
      expect(counts.images, `seed ${seed}`).toBeGreaterThan(runs * IMAGES_PER_RUN_LEAST)
    }
    const { user, system } = process.cpuUsage(begun)
    console.log(
      `${JSON.stringify(counts)} in ${runs} runs, ${Math.round((user + system) / 1e6)} s of processor time`,
    )
    if (ONE_SEED !== undefined) return
    expect(counts.images).toBe(WANTED)
    // Each kind of image and of recovery has its share.
    expect(counts.withUnfinished).toBeGreaterThan(WANTED * 0.05)
    expect(counts.torn).toBeGreaterThan(WANTED * 0.02)
    expect(counts.afterStop).toBeGreaterThan(WANTED * 0.005)
    expect(counts.fromCheckpoint).toBeGreaterThan(WANTED * 0.5)
    expect(counts.again).toBeGreaterThan(WANTED * 0.05)
    expect(counts.interrupted).toBeGreaterThan(WANTED * 0.03)
    expect(counts.drained).toBeGreaterThan(WANTED * 0.03)
    expect(counts.drainedMessages).toBeGreaterThan(WANTED)
    expect(counts.resent).toBeGreaterThan(WANTED * 0.05)
    expect(counts.messages).toBeGreaterThan(WANTED * 50)
    expect(counts.batches).toBeGreaterThan(WANTED)
    expect(counts.keys).toBeGreaterThan(WANTED * 5)
    expect(counts.ids).toBeGreaterThan(WANTED * 5)
    expect(counts.dead).toBeGreaterThan(WANTED * 5)
    expect(counts.steps).toBeGreaterThan(WANTED * 0.002)
  },
)
