import { expect, test } from 'vitest'
import { SharedOptions } from './shared-options.js'

test('equal texts share one object, wherever they start, and other texts do not', () => {
  const shared = new SharedOptions()
  const plain = shared.parse('{"ttlMs":1}')
  const other = shared.parse('{"ttlMs":2}')
  expect([plain, other]).toEqual([{ ttlMs: 1 }, { ttlMs: 2 }])
  // The first look-up of each text finds it in the map, and the second compares it with the text that was read last.
  for (const text of ['{"ttlMs":1}', '{"ttlMs":2}', '["name"]\n{"ttlMs":1}'])
    for (let times = 0; times < 2; times++)
      expect(shared.parse(text, text.indexOf('{'))).toBe(text.endsWith('1}') ? plain : other)
  // The end of a text is compared only if the lengths are equal.
  expect([shared.parse('1'), shared.parse('21'), shared.parse('1')]).toEqual([1, 21, 1])
})
