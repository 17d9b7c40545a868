import { SluiceError, type ScheduleTiming } from '@sluice/protocol'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ticksOf, type Ticks } from './schedule-times.js'

const ms = (text: string): number => Date.parse(text)
const NOW = ms('2026-01-01T00:00:00Z')
const cron = (text: string, timeZone = 'UTC'): Ticks => ticksOf({ cron: text, timeZone }, NOW)

function take(ticks: Ticks, from: string, count: number): string[] {
  const found: string[] = []
  for (let at = ms(from); found.length < count;) {
    at = ticks.after(at)
    if (at === Infinity) break
    found.push(new Date(at).toISOString().replace('.000', ''))
  }
  return found
}

function codeOf(timing: ScheduleTiming): string {
  try {
    ticksOf(timing, NOW)
    return 'accepted'
  } catch (error) {
    if (error instanceof SluiceError) return error.code
    throw error
  }
}

describe('the ticks of a cron expression', () => {
  it('has five fields, six fields, or a name', () => {
    expect(take(cron('0 3 * * *'), '2026-01-01T00:00Z', 2)).toEqual([
      '2026-01-01T03:00:00Z',
      '2026-01-02T03:00:00Z',
    ])
    expect(take(cron('*/20 * * * * *'), '2026-01-01T00:00:05Z', 3)).toEqual([
      '2026-01-01T00:00:20Z',
      '2026-01-01T00:00:40Z',
      '2026-01-01T00:01:00Z',
    ])
    expect(take(cron('@daily', 'Asia/Tokyo'), '2026-01-01T00:00Z', 1)).toEqual(['2026-01-01T15:00:00Z'])
  })

  it('either day matches when both days are set, as in cron', () => {
    expect(take(cron('0 0 13 * FRI'), '2026-02-01T00:00Z', 3)).toEqual([
      '2026-02-06T00:00:00Z',
      '2026-02-13T00:00:00Z',
      '2026-02-20T00:00:00Z',
    ])
  })

  it('fires once after the gap for a local time that is skipped', () => {
    const berlin = (text: string): string[] => take(cron(text, 'Europe/Berlin'), '2026-03-28T12:00Z', 2)
    expect(berlin('30 2 * * *')).toEqual(['2026-03-29T01:00:00Z', '2026-03-30T00:30:00Z'])
    expect(berlin('0,30 2 * * *')).toEqual(['2026-03-29T01:00:00Z', '2026-03-30T00:00:00Z'])
    expect(berlin('0 3 * * *')).toEqual(['2026-03-29T01:00:00Z', '2026-03-30T01:00:00Z'])
    expect(take(cron('30 2 * * *', 'America/New_York'), '2026-03-07T12:00Z', 2)).toEqual([
      '2026-03-08T07:00:00Z',
      '2026-03-09T06:30:00Z',
    ])
  })

  it('fires once for a local time that occurs twice', () => {
    const expected = ['2026-10-25T00:30:00Z', '2026-10-26T01:30:00Z']
    expect(take(cron('30 2 * * *', 'Europe/Berlin'), '2026-10-24T12:00Z', 2)).toEqual(expected)
    // Also when the search starts between the two.
    expect(take(cron('30 2 * * *', 'Europe/Berlin'), '2026-10-25T00:45Z', 1)).toEqual(expected.slice(1))
  })

  it('follows the time that passes when an expression has a wildcard or a step', () => {
    const half = take(cron('*/30 * * * *', 'Europe/Berlin'), '2026-10-24T23:30Z', 4)
    expect(half).toEqual([
      '2026-10-25T00:00:00Z',
      '2026-10-25T00:30:00Z',
      '2026-10-25T01:00:00Z',
      '2026-10-25T01:30:00Z',
    ])
  })

  it.each([
    ['', 'INVALID_CRON'],
    ['* * * *', 'INVALID_CRON'],
    ['* * * * * * 2030', 'INVALID_CRON'],
    ['2026-01-01T00:00:00', 'INVALID_CRON'],
    ['61 * * * *', 'INVALID_CRON'],
    ['*/0 * * * *', 'INVALID_CRON'],
    ['5-1 * * * *', 'INVALID_CRON'],
    ['0.5 * * * * *', 'INVALID_CRON'],
    ['a b c d e', 'INVALID_CRON'],
    ['@sometimes', 'INVALID_CRON'],
    ['@midnight', 'accepted'],
    ['0 0 30 2 *', 'CRON_NEVER_FIRES'],
    ['0 0 31 4,6,9,11 *', 'CRON_NEVER_FIRES'],
    ['0 0 29 2 *', 'accepted'],
  ])('%j is %s', (text, code) => {
    expect(codeOf({ cron: text, timeZone: 'UTC' })).toBe(code)
  })

  it.each(['', 'Mars/Olympus', '+02:00', 'Europe/Berlin ', '../etc'])(
    'refuses the time zone %j',
    (timeZone) => {
      expect(codeOf({ cron: '* * * * *', timeZone })).toBe('UNKNOWN_TIME_ZONE')
    },
  )

  it('names the expression and the reason in the error', () => {
    expect(() => cron('61 * * * *')).toThrow('`cron` is "61 * * * *": Invalid value for minute: 61.')
  })
})

describe('the ticks of an interval and of a single time', () => {
  it('are whole intervals from the start', () => {
    const ticks = ticksOf({ everyMs: 1_500, startMs: 10_000 }, NOW)
    expect([0, 9_999, 10_000, 10_001, 11_500, 13_000].map((at) => ticks.after(at))).toEqual([
      10_000, 10_000, 11_500, 11_500, 13_000, 14_500,
    ])
    expect(ticks.latest(10_000, 14_499)).toBe(13_000)
  })

  it('is one time, and then none', () => {
    const ticks = ticksOf({ atMs: 5_000 }, NOW)
    expect([ticks.after(4_999), ticks.after(5_000), ticks.latest(5_000, 9_000)]).toEqual([
      5_000,
      Infinity,
      5_000,
    ])
  })
})

const EXPRESSIONS = [
  '*/7 * * * *',
  '30 2 * * *',
  '0,30 1-3 * * *',
  '15 * * * *',
  '*/13 5 * * * *',
  '0 0 1 * *',
  '45 23 * * SUN',
  '0 12 L * *',
]
const ZONES = [
  'UTC',
  'Europe/Berlin',
  'America/New_York',
  'Australia/Lord_Howe',
  'Asia/Kathmandu',
  'Africa/Cairo',
]

const timing = fc.oneof(
  fc.record({
    cron: fc.constantFrom(...EXPRESSIONS),
    timeZone: fc.constantFrom(...ZONES),
  }),
  fc.record({
    everyMs: fc.integer({ min: 1_000, max: 10_000_000 }),
    startMs: fc.integer({ min: NOW, max: NOW + 1e9 }),
  }),
)
const time = fc.integer({ min: NOW, max: NOW + 2 * 365 * 86_400_000 })

describe('all ticks', () => {
  it('are one increasing sequence, whatever the time from which it is searched', () => {
    fc.assert(
      fc.property(timing, time, fc.nat(10_000_000), (timing, from, step) => {
        const ticks = ticksOf(timing, NOW)
        const next = ticks.after(from)
        expect(next).toBeGreaterThan(from)
        expect(ticks.after(next - 1)).toBe(next)
        const between = from + (step % (next - from))
        expect(ticks.after(between)).toBe(next)
      }),
      { numRuns: 300 },
    )
  })

  it('has a latest tick, whatever the number of ticks up to it', () => {
    fc.assert(
      fc.property(timing, time, fc.integer({ min: 0, max: 40 }), (timing, from, exponent) => {
        const ticks = ticksOf(timing, NOW)
        const first = ticks.after(from)
        const until = first + 2 ** exponent
        const latest = ticks.latest(first, until)
        expect(latest).toBeGreaterThanOrEqual(first)
        expect(latest).toBeLessThanOrEqual(until)
        expect(ticks.after(latest)).toBeGreaterThan(until)
        expect(ticks.after(latest - 1)).toBe(latest)
      }),
      { numRuns: 200 },
    )
  })

  it('of a year are as many as the year has days or hours, in each zone', () => {
    for (const timeZone of ZONES) {
      const local = new Intl.DateTimeFormat('en-CA', { timeZone, dateStyle: 'short' })
      const daily = cron('30 2 * * *', timeZone)
      const days: string[] = []
      for (let at = daily.after(NOW); days.length < 365; at = daily.after(at)) days.push(local.format(at))
      expect(new Set(days).size).toBe(365)
      expect((ms(`${days[364]}`) - ms(`${days[0]}`)) / 86_400_000).toBe(364)
    }
    const hourly = cron('0 * * * *', 'Europe/Berlin')
    let hours = 0
    for (let at = hourly.after(NOW); at < NOW + 365 * 86_400_000; at = hourly.after(at)) hours++
    expect(hours).toBe(365 * 24 - 1)
  })
})
