import { expect, it } from 'vitest'
import { failuresAfterLoss, RECONNECT, reconnectDelayMs } from './reconnect.js'

it('doubles the pause up to its bound; half of each pause is random', () => {
  expect([1, 2, 3, 4].map((failures) => reconnectDelayMs(failures, 0))).toEqual([25, 50, 100, 200])
  expect([1, 2, 3, 4].map((failures) => reconnectDelayMs(failures, 0.999_999))).toEqual([50, 100, 200, 400])
  expect(reconnectDelayMs(8, 0.999_999)).toBe(RECONNECT.delayMsMax)
  expect(reconnectDelayMs(1e9, 0.999_999)).toBe(RECONNECT.delayMsMax)
  expect(reconnectDelayMs(1e9, 0)).toBe(RECONNECT.delayMsMax / 2)
})

it('starts at the shortest pause only after a stable connection', () => {
  expect(failuresAfterLoss(0, 0)).toBe(1)
  expect(failuresAfterLoss(5, 0)).toBe(6)
  expect(failuresAfterLoss(5, RECONNECT.stableMs - 1)).toBe(6)
  expect(failuresAfterLoss(5, RECONNECT.stableMs)).toBe(1)
})
