import { describe, expect, test } from 'vitest'
import { dueTick, lastTick, retryMs, tickAfter } from './ticks.js'

describe('ticks', () => {
  const ticks = { startMs: 100, everyMs: 50 }

  test('follow a time', () => {
    expect([0, 99, 100, 149, 150].map((timeMs) => tickAfter(ticks, timeMs))).toEqual([
      100, 100, 150, 150, 200,
    ])
    expect([100, 149, 150].map((timeMs) => lastTick(ticks, timeMs))).toEqual([100, 100, 150])
    expect([99, 100].map((timeMs) => tickAfter({ startMs: 100, everyMs: Infinity }, timeMs))).toEqual([
      100,
      Infinity,
    ])
  })

  test('fire all, once or not at all if they were missed', () => {
    const due = (missed: 'skip' | 'once' | 'all', nowMs: number): unknown =>
      dueTick(ticks, missed, 100, nowMs)
    expect(due('all', 99)).toBeUndefined()
    expect(due('all', 210)).toEqual({ tickMs: 100, isSkipped: false })
    expect(due('once', 210)).toEqual({ tickMs: 200, isSkipped: false })
    expect(due('skip', 210)).toEqual({ tickMs: 200, isSkipped: false })
    const rare = { startMs: 100, everyMs: 1_000_000 }
    expect(dueTick(rare, 'skip', 100, 60_100)).toEqual({ tickMs: 100, isSkipped: false })
    expect(dueTick(rare, 'skip', 100, 60_101)).toEqual({ tickMs: 100, isSkipped: true })
  })

  test('are tried again after pauses that double', () => {
    expect([0, 1, 5, 6, 40].map(retryMs)).toEqual([1_000, 2_000, 32_000, 60_000, 60_000])
  })
})
