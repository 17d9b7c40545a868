import fc from 'fast-check'
import { expect, it } from 'vitest'
import { NumberRing } from './number-ring.js'
import { runs } from '../../../test/amount.js'
import { expectSame } from '../../../test/same.js'

it('holds what a Map of ascending numbers holds, for any order of deletions', () => {
  const step = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ add: fc.integer({ min: 1, max: 3 }), times: fc.integer({ min: 1, max: 40 }) }),
    },
    { weight: 5, arbitrary: fc.record({ remove: fc.double({ min: 0, max: 1, noNaN: true }) }) },
    { weight: 2, arbitrary: fc.record({ removeFirst: fc.integer({ min: 1, max: 90 }) }) },
    { weight: 1, arbitrary: fc.constant({ clear: true }) },
  )
  let largest = 0
  const begins = fc.constantFrom(0, 1, 2 ** 31 - 20, 2 ** 32 - 20, 2 ** 52)
  fc.assert(
    fc.property(begins, fc.array(step, { maxLength: 600, size: 'max' }), (begin, steps) => {
      const ring = new NumberRing<string>()
      const map = new Map<number, string>()
      let last = begin
      const remove = (number: number | undefined): void => {
        if (number === undefined) return
        ring.delete(number)
        map.delete(number)
      }
      for (const step of steps) {
        if ('add' in step) {
          for (let i = 0; i < step.times; i++) {
            last += step.add
            ring.add(last, `at ${last}`)
            map.set(last, `at ${last}`)
          }
        } else if ('remove' in step) remove([...map.keys()][Math.floor(step.remove * map.size)])
        else if ('removeFirst' in step)
          for (let i = 0; i < step.removeFirst; i++) remove(map.keys().next().value)
        else {
          ring.clear()
          map.clear()
        }
        largest = Math.max(largest, map.size)
        expectSame(ring.size, map.size)
        expectSame(ring.lowest, map.keys().next().value)
        for (const number of [begin - 1, begin, last - 65, last - 1, last, last + 1, last + 64])
          expectSame(ring.get(number), map.get(number))
      }
      expect([...ring.values()]).toEqual([...map.values()])
      ring.delete(last + 5)
      expect(ring.size).toBe(map.size)
    }),
    { numRuns: runs(15, 600) },
  )
  expect(largest).toBeGreaterThan(64)
})

it('can be emptied during an iteration', () => {
  const ring = new NumberRing<number>()
  for (let number = 10; number < 200; number++) ring.add(number, number)
  const seen: number[] = []
  for (const number of ring.values()) {
    seen.push(number)
    ring.delete(number)
    ring.delete(number + 1)
  }
  expect(seen).toEqual(Array.from({ length: 95 }, (_, index) => 10 + 2 * index))
  expect([ring.size, ring.lowest]).toEqual([0, undefined])
})
