import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Fifo } from './fifo.js'
import { runs } from '../../../test/amount.js'

it('holds what an array holds, for any sequence of operations', () => {
  const numRuns = runs(20, 600)
  let steps = 0
  const step = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ kind: fc.constant('push'), count: fc.integer({ min: 1, max: 900 }) }),
    },
    {
      weight: 6,
      arbitrary: fc.record({ kind: fc.constant('shift'), count: fc.integer({ min: 1, max: 900 }) }),
    },
    {
      weight: 3,
      arbitrary: fc.record({ kind: fc.constant('take'), count: fc.integer({ min: 1, max: 900 }) }),
    },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('pop'), count: fc.integer({ min: 1, max: 5 }) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('keepOdd'), count: fc.constant(1) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('drain'), count: fc.constant(1) }) },
  )
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 40 }), (story) => {
      const fifo = new Fifo<number>()
      let model: number[] = []
      let last = 0
      for (const { kind, count } of story) {
        steps++
        if (kind === 'push') {
          for (let i = 0; i < count; i++, last++) {
            fifo.push(last)
            model.push(last)
          }
        } else if (kind === 'take') expect(fifo.take(count)).toEqual(model.splice(0, count))
        else if (kind === 'shift') {
          const shifted = Array.from({ length: count }, () => fifo.shift())
          expect(shifted.filter((item) => item !== undefined)).toEqual(model.splice(0, count))
        } else if (kind === 'pop') for (let i = 0; i < count; i++) expect(fifo.pop()).toBe(model.pop())
        if (kind === 'keepOdd') {
          model = model.filter((item) => item % 2 === 1)
          fifo.replace([...fifo].filter((item) => item % 2 === 1))
        } else if (kind === 'drain') {
          expect(fifo.drain()).toEqual(model)
          model = []
        }
        expect(fifo.length).toBe(model.length)
        expect([fifo.at(0), fifo.at(7), fifo.at(model.length)]).toEqual([model[0], model[7], undefined])
      }
      expect([...fifo]).toEqual(model)
    }),
    { numRuns },
  )
  expect(steps).toBeGreaterThanOrEqual(10 * numRuns)
})

it('keeps its order when free slots are dropped', () => {
  const fifo = new Fifo<number>()
  for (let i = 0; i < 5000; i++) fifo.push(i)
  for (let i = 0; i < 4000; i++) expect(fifo.shift()).toBe(i)
  for (let i = 5000; i < 6000; i++) fifo.push(i)
  expect([...fifo]).toEqual(Array.from({ length: 2000 }, (_, index) => index + 4000))
})
