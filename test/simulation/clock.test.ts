/** R12: neither jumps of the wall clock nor a process that is stopped for hours make anything early, late for ever, or unfair. */
import { performance } from 'node:perf_hooks'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { Clock } from '../../packages/server/src/net/clock.js'
import { ONE_SEED, seedsFrom } from './seeds.js'
import { runWorld } from './world.js'

const HOUR_MS = 3_600_000

afterEach(() => {
  vi.restoreAllMocks()
})

describe("the broker's clock", () => {
  test('is not moved by jumps of the wall clock, only drawn after it slowly', () => {
    let monotonicMs = 5_000
    let wallMs = 1_700_000_000_000
    vi.spyOn(performance, 'now').mockImplementation(() => monotonicMs)
    vi.spyOn(Date, 'now').mockImplementation(() => wallMs)
    const clock = new Clock()
    let last = clock.now()
    let checked = 0
    for (const jumpMs of [HOUR_MS, -HOUR_MS, -HOUR_MS, 2 * HOUR_MS, 0]) {
      wallMs += jumpMs
      for (const stepMs of [0, 1, 50, 99, 100, 1000, 5 * 60_000]) {
        monotonicMs += stepMs
        wallMs += stepMs
        const now = clock.now()
        const passedMs = now - last
        expect(passedMs).toBeGreaterThanOrEqual(0)
        // Half a thousandth is gained or lost at most, and a millisecond by rounding.
        expect(Math.abs(passedMs - stepMs)).toBeLessThanOrEqual(stepMs * 0.0005 + 1)
        last = now
        checked++
      }
    }
    expect(checked).toBe(35)
  })
})

describe('a broker whose process is stopped now and then', () => {
  test('hands out nothing early, and blames nobody for its own sleep', { timeout: 600_000 }, async () => {
    const total = new Map<string, number>()
    const seeds = seedsFrom(5_001, 20, 50)
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
    expect(total.get('retried')).toBeGreaterThan(10 * seeds.length)
    expect(total.get('order')).toBeGreaterThan(200 * seeds.length)
    expect(total.get('session closed: HEARTBEAT_TIMEOUT') ?? 0).toBe(0)
  })
})
