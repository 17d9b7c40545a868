import { performance } from 'node:perf_hooks'
import { afterEach, expect, test, vi } from 'vitest'
import { Clock } from './clock.js'

afterEach(() => {
  vi.restoreAllMocks()
})

test('does not go back when it is drawn to a wall clock that did', () => {
  let monotonicMs = 0
  let wallMs = 1_000_000.02
  vi.spyOn(performance, 'now').mockImplementation(() => monotonicMs)
  vi.spyOn(Date, 'now').mockImplementation(() => wallMs)
  const clock = new Clock()
  wallMs = 500_000
  monotonicMs = 99.99
  expect(clock.now()).toBe(1_000_100)
  // Drawn back by 0.05 ms, which is more than what has passed since.
  monotonicMs = 100
  expect(clock.now()).toBe(1_000_100)
  monotonicMs = 101
  expect(clock.now()).toBe(1_000_100)
  monotonicMs = 102
  expect(clock.now()).toBe(1_000_101)
})
