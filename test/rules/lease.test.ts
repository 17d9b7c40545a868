import { expect, test } from 'vitest'
import {
  CLEARED,
  endReasonFor,
  deadlineAfterAnnouncement,
  deadlineAfterExtension,
  deadlineAfterStarted,
  deadlineAfterStarting,
  leaseEndFor,
  suspicionAfter,
  type EndReason,
} from './lease.js'

test('a deadline begins with STARTED, and a second STARTED does not move it', () => {
  expect(deadlineAfterStarted(undefined, 10, 100)).toBe(110)
  expect(deadlineAfterStarted(Infinity, 10, 100)).toBe(110)
  expect(deadlineAfterStarted(50, 10, 100)).toBe(50)
})

test('an announced message has no deadline, and the next announcement replaces it; a running deadline stays', () => {
  expect(deadlineAfterStarting(undefined)).toBe(Infinity)
  expect(deadlineAfterStarting(50)).toBe(50)
  expect(deadlineAfterAnnouncement(Infinity)).toBeUndefined()
  expect(deadlineAfterAnnouncement(50)).toBe(50)
  expect(deadlineAfterAnnouncement(undefined)).toBeUndefined()
})

test('an extension moves the deadline of a message that is being handled', () => {
  expect(deadlineAfterExtension(50, 10, 30, 100)).toBe(40)
  expect(deadlineAfterExtension(50, 10, 0, 100)).toBe(110)
  expect(deadlineAfterExtension(Infinity, 10, 30, 100)).toBe(40)
  expect(deadlineAfterExtension(undefined, 10, 30, 100)).toBeUndefined()
})

test('the end reason of a dead connection', () => {
  const table: [started: number, held: number, endReason: EndReason][] = [
    [0, 0, 'unattributed'],
    [0, 1, 'alone'],
    [0, 2, 'unattributed'],
    [1, 1, 'started'],
    [1, 5, 'started'],
    [2, 2, 'suspects'],
    [3, 5, 'suspects'],
  ]
  for (const [started, held, endReason] of table)
    expect(endReasonFor(started, held), `${started} of ${held}`).toBe(endReason)
})

test('the end of each lease of a dead connection', () => {
  const ends = (endReason: EndReason): string[] =>
    [true, false].flatMap((isStarted) =>
      [true, false].map((isAlone) => leaseEndFor(endReason, isStarted, isAlone)),
    )
  expect(ends('started')).toEqual(['charged', 'charged', 'released', 'released'])
  expect(ends('suspects')).toEqual(['suspected', 'suspected', 'released', 'released'])
  expect(ends('alone').slice(2)).toEqual(['charged', 'unattributed'])
  expect(ends('unattributed').slice(2)).toEqual(['unattributed', 'unattributed'])
})

test('a message is a suspect after three unattributed deaths, or at once', () => {
  const once = suspicionAfter('unattributed', CLEARED)
  const twice = suspicionAfter('unattributed', once)
  expect([once, twice]).toEqual([
    { isSuspect: false, unattributedDeaths: 1 },
    { isSuspect: false, unattributedDeaths: 2 },
  ])
  const suspect = { isSuspect: true, unattributedDeaths: 0 }
  expect(suspicionAfter('unattributed', twice)).toEqual(suspect)
  expect(suspicionAfter('suspected', once)).toEqual(suspect)
})

test('a release keeps the suspicion, a charge clears it, and an unattributed death adds nothing to it', () => {
  const suspect = { isSuspect: true, unattributedDeaths: 0 }
  expect(suspicionAfter('released', suspect)).toEqual(suspect)
  expect(suspicionAfter('released', { isSuspect: false, unattributedDeaths: 2 })).toEqual({
    isSuspect: false,
    unattributedDeaths: 2,
  })
  expect(suspicionAfter('unattributed', suspect)).toEqual(suspect)
  expect(suspicionAfter('charged', suspect)).toEqual(CLEARED)
})
