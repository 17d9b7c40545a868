/** Sizes, durations and times in text. */
import { durationText, sizeText } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { ahead, duration, moment, rounded, size } from './units.js'

test.each([
  ['0', 0],
  ['1500', 1_500],
  ['10mb', 10_000_000],
  ['10MB', 10_000_000],
  ['64MiB', 64 * 1024 ** 2],
  ['64mib', 64 * 1024 ** 2],
  ['1gb', 1e9],
  ['3TiB', 3 * 1024 ** 4],
  ['7b', 7],
  ['1g', 1e9],
  ['500K', 500_000],
  ['1.5gb', 1_500_000_000],
  ['0.5KiB', 512],
] as const)('the size %s', (text, bytes) => {
  expect(size(text)).toBe(bytes)
})

test.each(['', 'mb', '1.2345kb', '1.5', '.5mb', '-1', '10 mb', '10mi', '5ib', '1e3', '9999999999999tb'])(
  '%j is not a size',
  (text) => {
    expect(size(text)).toBeUndefined()
  },
)

test('a size is written so that it is parsed to the same value', () => {
  const texts = [0, 1, 1_500, 1e7, 1024, 1_024_000, 64 * 1024 ** 2, 5e12, 123_456_789].map(sizeText)
  expect(texts).toEqual(['0B', '1B', '1500B', '10MB', '1KiB', '1000KiB', '64MiB', '5TB', '123456789B'])
  expect(texts.map(size)).toEqual([0, 1, 1_500, 1e7, 1024, 1_024_000, 64 * 1024 ** 2, 5e12, 123_456_789])
})

test.each([
  ['0', 0],
  ['250ms', 250],
  ['30s', 30_000],
  ['1.5h', 5_400_000],
  ['1d12h', 129_600_000],
  ['1h0m30s5ms', 3_630_005],
] as const)('the duration %s', (text, ms) => {
  expect(duration(text)).toBe(ms)
})

test.each(['', '30', '00', '1.5', 's', '5S', '5 s', '-5s', '1e3s', '12h1d', '1s2s', '1h30', '1h,30m'])(
  '%j is not a duration',
  (text) => {
    expect(duration(text)).toBeUndefined()
  },
)

test('durations are exact as settings, and rounded down as ages', () => {
  expect([0, 1, 90_000, 300_000, 86_400_000].map(durationText)).toEqual(['0', '1ms', '90s', '5m', '1d'])
  const ages = [-5, 0, 999, 1_999, 119_000, 7_199_999, 36_000_000, 40_000_000, 90_000_000, 3e9]
  expect(ages.map(rounded)).toEqual([
    '0ms',
    '0ms',
    '999ms',
    '1s',
    '1m59s',
    '1h59m',
    '10h',
    '11h',
    '1d1h',
    '34d',
  ])
})

test('a time ahead is rounded up to the second', () => {
  expect([1, 999, 1_001, 3_599_950, 28_799_999, 8_640_000_000 - 40].map(ahead)).toEqual([
    '1ms',
    '999ms',
    '2s',
    '1h',
    '8h',
    '100d',
  ])
})

describe('moments', () => {
  test('have a zone, or use the time zone of this machine', () => {
    expect(moment('2030-05-01T10:00Z')?.toISOString()).toBe('2030-05-01T10:00:00.000Z')
    expect(moment('2030-05-01t10:00:30.5+02:00')?.toISOString()).toBe('2030-05-01T08:00:30.500Z')
    expect(moment('2030-05-01 10:00')).toEqual(new Date(2030, 4, 1, 10))
    expect(moment('2030-05-01')).toEqual(new Date(2030, 4, 1))
    expect(moment('2028-02-29')).toEqual(new Date(2028, 1, 29))
  })

  test.each(['', '2030', '2030-02-30', '2030-13-01', '2030-05-01T25:00', '01.05.2030', 'yesterday', '1e3'])(
    'are not %j',
    (text) => {
      expect(moment(text)).toBeUndefined()
    },
  )
})
