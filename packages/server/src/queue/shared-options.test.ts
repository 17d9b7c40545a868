import { expect, test } from 'vitest'
import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import { SharedOptions } from './shared-options.js'

test('equal texts share one object, and other texts do not', () => {
  const shared = new SharedOptions()
  const plain = shared.parse('{"ttlMs":1}')
  const other = shared.parse('{"ttlMs":2}')
  expect([plain, other]).toEqual([1, 2].map((ttlMs) => ({ ...QUEUE_OPTION_DEFAULTS, ttlMs })))
  // The first look-up of each text finds it in the map, and the second compares it with the text that was read last.
  for (let times = 0; times < 2; times++) expect(shared.parse('{"ttlMs":1}')).toBe(plain)
  for (let times = 0; times < 2; times++) expect(shared.parse('["name"]\n{"ttlMs":2}'.slice(9))).toBe(other)
})
