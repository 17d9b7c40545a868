import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Column, Links } from './column.js'

it('holds what was put in, however far apart', () => {
  let wide = 0
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 52 }),
      fc.array(
        fc.oneof(
          { weight: 30, arbitrary: fc.integer({ min: 0, max: 2 ** 32 - 1 }) },
          { weight: 1, arbitrary: fc.integer({ min: -(2 ** 40), max: 2 ** 52 }) },
          { weight: 1, arbitrary: fc.constantFrom(0, -1, 2 ** 32 - 1, 2 ** 32) },
        ),
        { minLength: 1, maxLength: 40 },
      ),
      fc.array(fc.tuple(fc.nat(39), fc.integer({ min: 0, max: 2 ** 33 }))),
      (first, distances, changes) => {
        const column = new Column()
        const values: number[] = []
        const put = (index: number, value: number): void => {
          let capacity = 2
          while (capacity < Math.max(values.length, index + 1)) capacity *= 2
          column.set(index, value, capacity)
          values[index] = value
        }
        for (const [index, distance] of distances.entries())
          put(index, Math.max(0, first + (index && distance)))
        for (const [index, distance] of changes) if (index < values.length) put(index, first + distance)
        expect(values.map((_, index) => column.get(index))).toEqual(values)
        if (values.some((value) => value - first >= 2 ** 32 || value < first)) wide++
      },
    ),
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
