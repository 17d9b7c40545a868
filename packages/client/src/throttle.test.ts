import { expect, test } from 'vitest'
import { Throttle } from './throttle.js'

test('reports the first event at once, and later ones together after the interval', () => {
  const ration = new Throttle(100)
  expect([0, 1, 50, 99].map((ms) => ration.take(ms))).toEqual([1, 0, 0, 0])
  expect([100, 101, 200].map((ms) => ration.take(ms))).toEqual([4, 0, 2])
})
