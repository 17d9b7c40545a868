import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Column, Links } from './column.js'

it('holds what was put in, however large', () => {
  let wide = 0
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.nat(39),
          fc.oneof(
            { weight: 30, arbitrary: fc.integer({ min: 0, max: 2 ** 32 - 1 }) },
            { weight: 1, arbitrary: fc.integer({ min: 0, max: 2 ** 53 - 1 }) },
            { weight: 1, arbitrary: fc.constantFrom(0, 2 ** 32 - 1, 2 ** 32) },
          ),
        ),
      ),
      (changes) => {
        const column = new Column(40)
        const values: number[] = Array.from({ length: 40 }, () => 0)
        for (const [index, value] of changes) {
          column.set(index, value)
          values[index] = value
        }
        expect(values.map((_, index) => column.get(index))).toEqual(values)
        if (values.some((value) => value >= 2 ** 32)) wide++
      },
    ),
    { numRuns: 1_000 },
  )
  expect(wide).toBeGreaterThan(10)
})

it('links messages to others, near and far, before and behind', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 52 }),
      fc.array(
        fc.tuple(
          fc.nat(15),
          fc.oneof(fc.integer({ min: -50, max: 50 }), fc.integer({ min: -(2 ** 34), max: 2 ** 34 })),
        ),
      ),
      (base, steps) => {
        const links = new Links(base, 16)
        const expected = new Map<number, number>()
        for (const [index, distance] of steps) {
          const offset = distance === 0 || base + index + distance < 0 ? -1 : base + index + distance
          links.set(index, offset)
          expected.set(index, offset)
        }
        for (const [index, offset] of expected) expect(links.get(index)).toBe(offset)
      },
    ),
  )
})
