import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { backoffMs } from './backoff.js'

test('doubles the wait after each attempt, give or take a fifth, up to the maximum', () => {
  let checked = 0
  for (let attempts = 1; attempts < 60; attempts++) {
    for (const chance of [0, 0.5, 0.999_999]) {
      const nominal = Math.min(1_000 * 2 ** (attempts - 1), 300_000)
      const waitMs = backoffMs(QUEUE_OPTION_DEFAULTS, attempts, chance)
      expect(waitMs).toBeGreaterThanOrEqual(Math.floor(nominal * 0.8))
      expect(waitMs).toBeLessThanOrEqual(Math.min(Math.ceil(nominal * 1.2), 300_000))
      checked++
    }
  }
  expect(checked).toBe(177)
})
