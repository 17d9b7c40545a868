import { LIMITS } from '@sluice/protocol'
import { expect, it } from 'vitest'
import { parseDuration } from './duration.js'

it('reads milliseconds and text with a unit', () => {
  const durations: [unknown, number][] = [
    [0, 0],
    [250, 250],
    [1.4, 1],
    ['250ms', 250],
    ['30s', 30_000],
    ['1.5s', 1500],
    ['5m', 300_000],
    ['2h', 7_200_000],
    ['7d', 604_800_000],
    ['36525d', LIMITS.delayMsMax],
  ]
  for (const [value, ms] of durations) expect(parseDuration(value)).toBe(ms)
  expect(durations.length).toBe(10)
})

it('refuses everything else, with the value in the error', () => {
  const refused: [unknown, string][] = [
    [-1, '-1'],
    [NaN, 'NaN'],
    [Infinity, 'Infinity'],
    ['', '""'],
    ['5', '"5"'],
    ['5 s', '"5 s"'],
    ['-5s', '"-5s"'],
    ['1e3s', '"1e3s"'],
    ['5S', '"5S"'],
    ['36526d', '"36526d"'],
    [null, 'null'],
    [undefined, 'undefined'],
    [{}, 'an object'],
    [5n, '5'],
    ['x'.repeat(1000), 'x'.repeat(40)],
  ]
  for (const [value, named] of refused) {
    expect(() => parseDuration(value, 'wait')).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(named) }),
    )
    expect(() => parseDuration(value, 'wait')).toThrow('`wait`')
  }
  expect(refused.length).toBe(15)
})
