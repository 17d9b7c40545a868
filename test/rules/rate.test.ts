import { expect, test } from 'vitest'
import { RateLimit } from './rate.js'

test('a burst, then one message at a time', () => {
  const limit = new RateLimit(3, 1_000)
  for (let i = 0; i < 3; i++) {
    expect(limit.nextMs(100)).toBe(100)
    limit.take(100)
  }
  expect(limit.nextMs(100)).toBe(434)
  limit.take(434)
  expect(limit.nextMs(434)).toBe(767)
  expect(limit.nextMs(5_000)).toBe(5_000)
  for (let i = 0; i < 3; i++) limit.take(5_000)
  expect(limit.nextMs(5_000)).toBe(5_334)
})

test('no limit', () => {
  expect(RateLimit.of(0, 1_000)).toBeUndefined()
})
