import { expect, test } from 'vitest'
import {
  NO_EARLIER_LIVES,
  afterFailure,
  afterRelease,
  backoffBoundsMs,
  backoffMs,
  dueMsOf,
  expiryOf,
  isExpired,
  isListedById,
  isTooFarPast,
  isWaiting,
  livesAfterRedrive,
  originHeaders,
  redrivesElsewhere,
  rescheduled,
  type MessageOptions,
} from './message.js'

const NOW = 1_000_000
const PLAIN: MessageOptions = {
  priority: 0,
  key: undefined,
  id: undefined,
  replaces: false,
  delayMs: undefined,
  atMs: undefined,
  ttlMs: undefined,
}

test('a message is due at once, after its delay, or at its given time, and never in the past', () => {
  const due = (delayMs: number | undefined, atMs: number | undefined): number =>
    dueMsOf({ delayMs, atMs }, NOW)
  expect(due(undefined, undefined)).toBe(NOW)
  expect(due(0, undefined)).toBe(NOW)
  expect(due(500, undefined)).toBe(NOW + 500)
  expect(due(undefined, NOW + 700)).toBe(NOW + 700)
  expect(due(undefined, NOW - 700)).toBe(NOW)
})

test('a time more than a minute in the past is refused', () => {
  expect(isTooFarPast(undefined, NOW)).toBe(false)
  expect(isTooFarPast(NOW - 60_000, NOW)).toBe(false)
  expect(isTooFarPast(NOW - 60_001, NOW)).toBe(true)
})

test('the time to live starts when the message is due; the value of the message overrides the default of the queue', () => {
  expect(expiryOf(PLAIN, 0, NOW)).toBe(0)
  expect(expiryOf(PLAIN, 100, NOW)).toBe(NOW + 100)
  expect(expiryOf({ ...PLAIN, ttlMs: 30 }, 100, NOW + 5)).toBe(NOW + 35)
  expect(expiryOf({ ...PLAIN, ttlMs: 30 }, 0, NOW)).toBe(NOW + 30)
})

test('a message expires at its expiry time, and never without one', () => {
  expect(isExpired({ expiresMs: NOW + 1 }, NOW)).toBe(false)
  expect(isExpired({ expiresMs: NOW }, NOW)).toBe(true)
  expect(isExpired({ expiresMs: 0 }, NOW)).toBe(false)
})

test('only a scheduled or ready message is waiting', () => {
  const waiting = (['ready', 'scheduled', 'leased', 'dead'] as const).filter((state) => isWaiting({ state }))
  expect(waiting).toEqual(['ready', 'scheduled'])
})

test('an id is listed in a queue of unique pending ids, or while its message is delayed', () => {
  const content = { ...PLAIN, id: 'a' }
  expect(isListedById(content, 'pending', false)).toBe(true)
  expect(isListedById(content, 'window', true)).toBe(true)
  expect(isListedById(content, 'window', false)).toBe(false)
  expect(isListedById(PLAIN, 'pending', true)).toBe(false)
})

test('a reschedule also moves the expiry, unless an attempt has failed', () => {
  const message = { lineMs: NOW, expiresMs: NOW + 50, attempts: 0 }
  expect(rescheduled(message, NOW + 10)).toEqual({ lineMs: NOW + 10, expiresMs: NOW + 60 })
  expect(rescheduled(message, NOW - 10)).toEqual({ lineMs: NOW - 10, expiresMs: NOW + 40 })
  expect(rescheduled({ ...message, attempts: 1 }, NOW + 10)).toEqual({
    lineMs: NOW + 10,
    expiresMs: NOW + 50,
  })
  expect(rescheduled({ ...message, expiresMs: 0 }, NOW + 10)).toEqual({ lineMs: NOW + 10, expiresMs: 0 })
})

test('each redrive counts, and the attempts before all redrives add up', () => {
  const once = livesAfterRedrive(NO_EARLIER_LIVES, 3)
  expect(once).toEqual({ redrives: 1, attempts: 3 })
  expect(livesAfterRedrive(once, 2)).toEqual({ redrives: 2, attempts: 5 })
  expect(NO_EARLIER_LIVES).toEqual({ redrives: 0, attempts: 0 })
})

test('a released message expires if its time to live ended during the lease', () => {
  expect(afterRelease({ expiresMs: 0 }, NOW)).toBe('ready')
  expect(afterRelease({ expiresMs: NOW + 1 }, NOW)).toBe('ready')
  expect(afterRelease({ expiresMs: NOW }, NOW)).toBe('expired')
})

test('a message dies after its last attempt, even if it has expired; after an earlier failure it is retried or expires', () => {
  const fresh = { expiresMs: 0 }
  const stale = { expiresMs: NOW }
  expect(afterFailure(fresh, 2, { maxDeliveries: 3 }, NOW)).toBe('retried')
  expect(afterFailure(stale, 2, { maxDeliveries: 3 }, NOW)).toBe('expired')
  expect(afterFailure(fresh, 3, { maxDeliveries: 3 }, NOW)).toBe('dead')
  expect(afterFailure(stale, 3, { maxDeliveries: 3 }, NOW)).toBe('dead')
  expect(afterFailure(fresh, 1000, { maxDeliveries: 'unlimited' }, NOW)).toBe('retried')
})

test('the back-off doubles up to its maximum, with a jitter of a fifth', () => {
  const options = { retryInitialMs: 100, retryMaxMs: 1000 }
  const delays = [1, 2, 3, 4, 5].map((attempts) => backoffMs(options, attempts, 0.5))
  expect(delays).toEqual([100, 200, 400, 800, 1000])
  expect(backoffBoundsMs(options, 1)).toEqual({ least: 80, most: 120 })
  expect(backoffBoundsMs(options, 5)).toEqual({ least: 800, most: 1000 })
  expect(backoffBoundsMs({ retryInitialMs: 0, retryMaxMs: 1000 }, 7)).toEqual({ least: 0, most: 0 })
})

test('a copy names its origin', () => {
  const origin = { queue: 'orders', offset: 7, publishedMs: 1, attempts: 4, redrives: 2 }
  const replayed = {
    'sluice-origin-queue': 'orders',
    'sluice-origin-offset': '7',
    'sluice-origin-published': '1',
    'sluice-redrives': '2',
    'sluice-attempts': '4',
  }
  expect(Object.fromEntries(originHeaders({ ...origin, dead: undefined }))).toEqual(replayed)
  const dead = { death: 'rejected', diedMs: 9, error: 'no stock' }
  expect(Object.fromEntries(originHeaders({ ...origin, dead }))).toEqual({
    ...replayed,
    'sluice-dead-reason': 'rejected',
    'sluice-dead-at': '9',
    'sluice-dead-error': 'no stock',
  })
  expect(redrivesElsewhere('2')).toBe(2)
  expect(redrivesElsewhere(undefined)).toBe(0)
})
