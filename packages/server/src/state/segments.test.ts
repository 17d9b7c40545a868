/** Counts of retained messages per segment, for a queue that retains messages in many segments. */
import { expect, it } from 'vitest'
import type { Queue } from '../queue/index.js'
import { PageTree } from './page-tree.js'
import { Segments } from './segments.js'
import { expectSame } from '../../../../test/same.js'

const SEGMENT = 64 * 1024
const QUEUE = 3

/** A queue that retains messages for `retainAgeMs`; no other property is read. */
const retaining = (retainAgeMs: number): ReadonlyMap<number, Queue> =>
  new Map([[QUEUE, { retains: true, options: { retainAgeMs, retainBytes: 0 } } as Queue]])

it('counts up to 256 segments with retained messages of a queue, and merges neighbours beyond that', () => {
  const segments = new Segments(SEGMENT, new PageTree())
  const retain = (number: number): void => segments.retain(QUEUE, number * SEGMENT + 4096, 10, number * 1_000)
  for (let number = 1; number <= 256; number++) retain(number)
  expect(segments.retained(QUEUE).length).toBe(256)
  retain(257)
  const joined = segments.retained(QUEUE)
  expect(joined.length).toBe(129)
  // A merged pair has the number of the older segment and the later time, so that nothing is freed too early.
  expect(joined.slice(0, 2)).toEqual([
    [1, 2_000, 20],
    [3, 4_000, 20],
  ])
  expect(joined.at(-1)).toEqual([257, 257_000, 10])
  expect(segments.retainedBytes(QUEUE)).toBe(2_570)
  expect(segments.oldestRetained(retaining(500_000), 300_000)).toEqual({ oldest: SEGMENT, untilMs: 502_000 })
  expect(segments.oldestRetained(retaining(100_000), 101_500).oldest).toBe(SEGMENT)
  expect(segments.oldestRetained(retaining(100_000), 102_000).oldest).toBe(3 * SEGMENT)
  // The list stays short for any number of segments.
  for (let number = 258; number <= 10_000; number++) {
    retain(number)
    expectSame(segments.retained(QUEUE).length <= 256, true)
  }
  expect(segments.retainedBytes(QUEUE)).toBe(99_980)
})
