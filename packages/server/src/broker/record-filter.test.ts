/** Filters of records: the work for one record. What matches is tested in origin.test.ts and by the model of readers. */
import { LIMITS, writeRecordHead, recordBytes } from '@sluice/protocol'
import { expect, it } from 'vitest'
import { RecordFilter, FILTER_STEPS_MAX } from './record-filter.js'

type Headers = Record<string, string>

const headers = (count: number, name: (i: number) => string, value = 'v'): Headers =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [name(i), value]))

function record(own: Headers): Uint8Array {
  const bytes = new Uint8Array(recordBytes({ headers: own }, 0))
  writeRecordHead(bytes, 0, { headers: own }, 0, 0)
  return bytes
}

function stepsOf(wanted: Headers, own: Headers): { isMatch: boolean; steps: number } {
  const filter = new RecordFilter({ headers: wanted })
  const before = filter.steps
  const isMatch = filter.matches(record(own), 0)
  return { isMatch, steps: filter.steps - before }
}

it('walks the headers of a record once, however many are wanted', () => {
  const most = headers(LIMITS.headersMax, (i) => `h${10 + i}`)
  expect(stepsOf(most, most)).toEqual({ isMatch: true, steps: expect.any(Number) })
  expect(stepsOf(most, most).steps).toBeLessThan(LIMITS.headersMax * 10)
  expect(stepsOf({ ...most, h73: 'x' }, most).isMatch).toBe(false)
  expect(stepsOf({ h10: 'v' }, most).steps).toBeLessThanOrEqual(LIMITS.headersMax * 2 + 2)
})

it('counts the bytes that it compares', () => {
  const prefix = 'p'.repeat(200)
  const wanted = headers(64, (i) => prefix + (10 + i), '')
  const { isMatch, steps } = stepsOf(wanted, wanted)
  expect(isMatch).toBe(true)
  expect(steps).toBeGreaterThan((64 * 200) / 16)
  expect(steps).toBeLessThan(64 * 8 * 15)
  const large = { big: 'v'.repeat(16_000) }
  expect(stepsOf(large, large)).toEqual({ isMatch: true, steps: 1 + 1 + 2 + 1000 })
})

it('does not look at headers that are too few for the wanted ones', () => {
  const wanted = headers(5_000, (i) => `h${i}`)
  expect(stepsOf(wanted, { h0: 'v' })).toEqual({ isMatch: false, steps: 0 })
})

it('ends the turn of a request after a fixed amount of work, whatever the filter is', () => {
  const name = 'p'.repeat(200)
  const most = headers(LIMITS.headersMax, (i) => name + (10 + i))
  const filter = new RecordFilter({ headers: most })
  const bytes = record(most)
  let records = 0
  for (; !filter.endsTurn(); records++) filter.matches(bytes, 0)
  expect(records).toBeLessThanOrEqual(FILTER_STEPS_MAX / 4_000 + 1)
  expect(filter.endsTurn()).toBe(false)
})
