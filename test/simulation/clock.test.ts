/**
 * A broker process that is stopped for hours delivers nothing early, delays nothing forever, and charges no consumer
 * for that time.
 */
import { describe, expect, test } from 'vitest'
import { ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { runWorld } from './world.js'

describe('a broker whose process is stopped from time to time', () => {
  test(
    'delivers nothing early, and charges no consumer for the time that it was stopped',
    { timeout: TIMEOUT_MS },
    async () => {
      const total = new Map<string, number>()
      const seeds = seedsFrom(5_001, 8, 1_000)
      for (const seed of seeds) {
        const { counts } = await runWorld({
          seed,
          onlyStalls: true,
          lives: 1,
          steps: 3000,
          file: 'test/simulation/clock.test.ts',
        })
        for (const [what, count] of counts) total.set(what, (total.get(what) ?? 0) + count)
      }
      if (ONE_SEED !== undefined) return
      expect(total.get('broker stalled')).toBeGreaterThan(3 * seeds.length)
      expect(total.get('retried')).toBeGreaterThan(8 * seeds.length)
      expect(total.get('order')).toBeGreaterThan(200 * seeds.length)
      // In rare cases the world holds back a peer's packets for two heartbeats, and the broker closes the session. The
      // world checks each such close: the peer must have been silent for that long while the broker was awake.
      expect(total.get('session closed: HEARTBEAT_TIMEOUT') ?? 0).toBeLessThanOrEqual(
        Math.ceil(seeds.length / 10),
      )
    },
  )
})
