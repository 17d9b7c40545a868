import { expect, test } from 'vitest'
import { PendingIds, RememberedIds } from './ids.js'

test('an id is remembered until its acceptance leaves the window', () => {
  const ids = new RememberedIds()
  ids.remember('a', 1, 100)
  ids.remember('b', 2, 200)
  ids.forgetUntil(99)
  expect(ids.size).toBe(2)
  ids.forgetUntil(100)
  expect([ids.find('a'), ids.find('b')?.offset, ids.size]).toEqual([undefined, 2, 1])
})

test('an id that is accepted again is remembered by its last acceptance', () => {
  const ids = new RememberedIds()
  ids.remember('a', 1, 100)
  ids.remember('a', 5, 300)
  ids.forgetUntil(200)
  expect(ids.find('a')).toMatchObject({ offset: 5, timeMs: 300 })
})

test('ids are forgotten in the order of acceptance, so some ids are remembered for longer after the clock was set back', () => {
  const ids = new RememberedIds()
  ids.remember('late', 1, 500)
  ids.remember('early', 2, 100)
  ids.forgetUntil(200)
  expect(ids.size).toBe(2)
  ids.forgetUntil(500)
  expect(ids.size).toBe(0)
})

test('a copy shares no mutable state', () => {
  const ids = new RememberedIds()
  ids.remember('a', 1, 100)
  const copy = ids.clone()
  ids.forgetUntil(100)
  expect([ids.size, copy.size]).toEqual([0, 1])
  expect([...copy.entries()]).toEqual([{ id: 'a', offset: 1, timeMs: 100 }])
})

test('a pending id refers to its oldest message', () => {
  const ids = new PendingIds()
  ids.add('a', 7)
  ids.add('a', 3)
  ids.add('b', 5)
  expect([ids.find('a'), ids.find('a', new Set([3])), ids.find('a', new Set([3, 7]))]).toEqual([
    3,
    7,
    undefined,
  ])
  expect([...ids.entries()]).toEqual([
    ['a', 3],
    ['b', 5],
  ])
  ids.done('a', 3)
  expect(ids.find('a')).toBe(7)
  ids.done('a', 7)
  expect(ids.find('a')).toBeUndefined()
})

test('ids of messages that leave in the same step do not count', () => {
  const ids = new PendingIds()
  ids.add('a', 3)
  ids.add('a', 7)
  ids.add('b', 5)
  expect(ids.sizeWithout(new Set())).toBe(2)
  expect(ids.sizeWithout(new Set([3]))).toBe(2)
  expect(ids.sizeWithout(new Set([3, 7]))).toBe(1)
})
