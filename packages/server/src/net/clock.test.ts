import { performance } from 'node:perf_hooks'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { Clock, STEP_LASTS_MS, STEP_MS, type ClockChange } from './clock.js'
import { expectSame } from '../../../../test/same.js'

const START_MS = 1_700_000_000_000
const HOUR_MS = 3_600_000

let monotonicMs = 0
let wallMs = START_MS

beforeEach(() => {
  monotonicMs = 5_000
  wallMs = START_MS
  vi.spyOn(performance, 'now').mockImplementation(() => monotonicMs)
  vi.spyOn(Date, 'now').mockImplementation(() => wallMs)
})

afterEach(() => {
  vi.restoreAllMocks()
})

/**
 * Advances both clocks in steps, and checks the broker's clock after each step, as the server does. Returns the
 * changes.
 */
function pass(clock: Clock, ms: number, stepMs = 50): ClockChange[] {
  const changes: ClockChange[] = []
  for (let passedMs = 0; passedMs < ms; passedMs += stepMs) {
    monotonicMs += stepMs
    wallMs += stepMs
    const before = clock.now()
    const change = clock.look()
    if (change !== undefined) changes.push(change)
    expectSame(clock.now() >= before, true)
  }
  return changes
}

test('the time does not go back when it is corrected towards a wall clock that was set back', () => {
  monotonicMs = 0
  wallMs = 1_000_000.02
  const clock = new Clock()
  wallMs = 500_000
  monotonicMs = 99.99
  expect(clock.now()).toBe(1_000_100)
  // The correction sets the time back by 0.05 ms, but only 0.01 ms have passed since the last call.
  monotonicMs = 100
  expect(clock.now()).toBe(1_000_100)
  monotonicMs = 101
  expect(clock.now()).toBe(1_000_100)
  monotonicMs = 102
  expect(clock.now()).toBe(1_000_101)
})

describe('a small difference', () => {
  test.each([STEP_MS, -STEP_MS])('of %i ms is corrected gradually, and nothing is reported', (offMs) => {
    const clock = new Clock()
    wallMs += offMs
    expect(pass(clock, 10_000)).toEqual([])
    const gainedMs = clock.now() - START_MS - 10_000
    expect(Math.abs(gainedMs)).toBeLessThanOrEqual(10_000 * 0.0005 + 1)
    expect(Math.sign(gainedMs)).toBe(Math.sign(offMs))
    pass(clock, 3 * HOUR_MS, 1_000)
    expect(Math.abs(clock.now() - wallMs)).toBeLessThanOrEqual(1)
  })
})

describe('a wall clock that is set forward', () => {
  test('is followed in one step once the difference has lasted for some seconds, and reported once', () => {
    const clock = new Clock()
    wallMs += 600_000
    expect(pass(clock, STEP_LASTS_MS)).toEqual([])
    expect(clock.now()).toBe(START_MS + STEP_LASTS_MS)
    expect(pass(clock, 200)).toEqual([{ kind: 'stepped', byMs: 600_000 }])
    expect(clock.now()).toBe(wallMs)
    expect(pass(clock, 60_000)).toEqual([])
    expect(clock.now()).toBe(wallMs)
  })

  test('changes nothing when it is soon set back again', () => {
    const clock = new Clock()
    for (let time = 0; time < 5; time++) {
      wallMs += 2 * HOUR_MS
      expect(pass(clock, STEP_LASTS_MS - 500)).toEqual([])
      wallMs -= 2 * HOUR_MS
      expect(pass(clock, 1_000)).toEqual([])
    }
    expect(clock.now()).toBe(wallMs)
  })

  test('is followed after a suspension, during which the monotonic clock stops', () => {
    const clock = new Clock()
    pass(clock, 1_000)
    wallMs += 48 * HOUR_MS
    expect(pass(clock, STEP_LASTS_MS + 200)).toEqual([{ kind: 'stepped', byMs: 48 * HOUR_MS }])
    expect(clock.now()).toBe(wallMs)
  })
})

describe('a wall clock that is set back', () => {
  test('slows time by a tenth until it agrees with the wall clock', () => {
    const clock = new Clock()
    wallMs -= HOUR_MS
    expect(pass(clock, STEP_LASTS_MS + 200)).toEqual([{ kind: 'behind', byMs: HOUR_MS - 2 }])
    const before = clock.now()
    expect(pass(clock, 100_000, 100)).toEqual([])
    expect(clock.now() - before).toBeGreaterThanOrEqual(90_000 - 1)
    expect(clock.now() - before).toBeLessThanOrEqual(90_000 + 1)
    expect(pass(clock, 10 * HOUR_MS, 1_000)).toEqual([])
    expect(Math.abs(clock.now() - wallMs)).toBeLessThanOrEqual(STEP_MS / 2)
    // A second change is reported too.
    wallMs -= HOUR_MS
    expect(pass(clock, STEP_LASTS_MS + 200)).toHaveLength(1)
  })

  test('leads to a step if it is set far forward before the two times agree', () => {
    const clock = new Clock()
    wallMs -= HOUR_MS
    pass(clock, 60_000)
    wallMs += 3 * HOUR_MS
    const [change, ...others] = pass(clock, STEP_LASTS_MS + 200)
    expect(others).toEqual([])
    expect(change?.kind).toBe('stepped')
    expect(clock.now()).toBe(wallMs)
  })
})

describe('a log that is ahead of the wall clock', () => {
  test('moves the time forward to its newest entry', () => {
    const clock = new Clock()
    expect(clock.continueFrom(START_MS + HOUR_MS)).toBe(HOUR_MS)
    expect(clock.now()).toBe(START_MS + HOUR_MS)
    // The caller reports this difference, so `look` does not.
    expect(pass(clock, 60_000, 100)).toEqual([])
    expect(clock.now() - START_MS - HOUR_MS).toBeLessThanOrEqual(54_000 + 1)
  })

  test('moves the time even if the log is only a few milliseconds ahead, and never moves the time back', () => {
    const clock = new Clock()
    expect(clock.continueFrom(START_MS + 20)).toBe(20)
    expect(clock.now()).toBe(START_MS + 20)
    expect(clock.continueFrom(START_MS - HOUR_MS)).toBe(0)
    expect(clock.now()).toBe(START_MS + 20)
  })
})
