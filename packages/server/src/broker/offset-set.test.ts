import { expect, test } from 'vitest'
import { OffsetSet } from './offset-set.js'

const FLOOR = 1_000
const SIZE = 1 << 18

test('holds the added offsets within its bounds, across the edges of its pieces', () => {
  const set = new OffsetSet(FLOOR, SIZE)
  set.add(FLOOR - 10, 20)
  set.add(FLOOR + (1 << 16) - 3, 6)
  set.add(FLOOR + SIZE - 5, 100)
  const has = (...offsets: number[]): boolean[] => offsets.map((offset) => set.has(FLOOR + offset))
  expect(has(-1, 0, 9, 10)).toEqual([false, true, true, false])
  expect(has((1 << 16) - 4, (1 << 16) - 3, (1 << 16) + 2, (1 << 16) + 3)).toEqual([false, true, true, false])
  expect(has(SIZE - 6, SIZE - 5, SIZE - 1, SIZE)).toEqual([false, true, true, false])
  set.remove(FLOOR)
  set.remove(FLOOR + SIZE + 7)
  expect(has(0, 1)).toEqual([false, true])
})

test('can subtract another set', () => {
  const set = new OffsetSet(FLOOR, SIZE)
  const other = new OffsetSet(FLOOR, SIZE)
  set.add(FLOOR, 10)
  other.add(FLOOR + 5, 100_000)
  set.subtract(other)
  set.subtract(undefined)
  expect([4, 5, 9].map((offset) => set.has(FLOOR + offset))).toEqual([true, false, false])
})
