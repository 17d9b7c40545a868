import { expect, test } from 'vitest'
import { Suspects } from './suspects.js'

test('three unattributed deaths make a suspect, unless a settle clears them in between', () => {
  const suspects = new Suspects()
  suspects.addUnattributed(7)
  suspects.addUnattributed(7)
  expect(suspects.size).toBe(0)
  suspects.clear(5, 3)
  suspects.addUnattributed(7)
  suspects.addUnattributed(7)
  expect(suspects.has(7)).toBe(false)
  suspects.addUnattributed(7)
  expect([suspects.has(7), suspects.size]).toEqual([true, 1])
})

test('finds the first suspect of a run, and forgets suspects that were cleared', () => {
  const suspects = new Suspects()
  expect(suspects.firstIn(0, 10)).toBe(10)
  suspects.add(3)
  suspects.add(6)
  expect([suspects.firstIn(0, 10), suspects.firstIn(4, 10), suspects.firstIn(7, 10)]).toEqual([3, 6, 10])
  suspects.clear(0, 6)
  expect([suspects.has(3), suspects.has(6), suspects.size]).toEqual([false, true, 1])
  suspects.clearAll()
  expect(suspects.size).toBe(0)
})
