import { expect, test } from 'vitest'
import { activeOf, fits, hasRoom, type Credit } from './credit.js'

const EMPTY = { bytes: 0, isSuspect: false }

function subscription(held: number, more: Partial<Credit> = {}): Credit {
  return { creditMessages: 2, creditBytes: 100, limit: Infinity, delivered: 0, held: { size: held }, ...more }
}

test('the subscription that holds messages is active, or else the first with credit left', () => {
  const idle = subscription(0, { creditMessages: 0 })
  const done = subscription(0, { limit: 3, delivered: 3 })
  const first = subscription(0)
  const second = subscription(0)
  const holding = subscription(1, { creditMessages: 0 })
  expect(activeOf([idle, done, first, second])).toBe(first)
  expect(activeOf([idle, done, first, second, holding])).toBe(holding)
  expect(activeOf([idle, done])).toBeUndefined()
})

test('a subscription has room up to its credit and its limit', () => {
  const room = (one: Credit, load = EMPTY): boolean => hasRoom(one, load, false, [])
  expect(room(subscription(1))).toBe(true)
  expect(room(subscription(2))).toBe(false)
  expect(room(subscription(0, { creditMessages: 0 }))).toBe(false)
  expect(room(subscription(0, { limit: 1, delivered: 1 }))).toBe(false)
  expect(room(subscription(1), { bytes: 10, isSuspect: true })).toBe(false)
})

test('in a queue with one active subscription, no other subscription has room', () => {
  const first = subscription(0)
  const second = subscription(0)
  expect(hasRoom(first, EMPTY, true, [first, second])).toBe(true)
  expect(hasRoom(second, EMPTY, true, [first, second])).toBe(false)
  expect(hasRoom(second, EMPTY, false, [first, second])).toBe(true)
})

test('a message fits the byte credit or is delivered alone; a suspect is always delivered alone', () => {
  const load = { bytes: 60, isSuspect: false }
  expect(fits(subscription(1), load, { bytes: 40, isSuspect: false })).toBe(true)
  expect(fits(subscription(1), load, { bytes: 41, isSuspect: false })).toBe(false)
  expect(fits(subscription(1), load, { bytes: 1, isSuspect: true })).toBe(false)
  expect(fits(subscription(0), EMPTY, { bytes: 500, isSuspect: false })).toBe(true)
  expect(fits(subscription(0), EMPTY, { bytes: 500, isSuspect: true })).toBe(true)
})
