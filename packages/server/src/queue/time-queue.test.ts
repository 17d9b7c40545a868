import fc from 'fast-check'
import { expect, it, vi } from 'vitest'
import { TimeQueue } from './time-queue.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

type Entry = readonly [timeMs: number, offset: number]

const entry = fc.tuple(fc.integer({ min: 0, max: 8 }), fc.integer({ min: 0, max: 40 }))
const step = fc.oneof(
  { weight: 20, arbitrary: fc.record({ push: entry }) },
  // Consecutive offsets have the same time, as when a batch adds them.
  {
    weight: 10,
    arbitrary: fc.record({ run: fc.tuple(entry, fc.integer({ min: 1, max: 30 })) }),
  },
  { weight: 20, arbitrary: fc.record({ pop: fc.integer({ min: 1, max: 20 }) }) },
  { weight: 5, arbitrary: fc.record({ keep: fc.integer({ min: 2, max: 5 }) }) },
  { weight: 1, arbitrary: fc.constant({ clear: true }) },
)

const inOrder = (a: Entry, b: Entry): number => a[0] - b[0] || a[1] - b[1]

it('returns entries by time and offset, whatever the order in which they were added', () => {
  const numRuns = runs(120, 4_000)
  let popped = 0
  let inRuns = 0
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
      const queue = new TimeQueue()
      let expected: Entry[] = []
      const push = (timeMs: number, offset: number): void => {
        queue.push(timeMs, offset)
        expected.push([timeMs, offset])
      }
      for (const step of steps) {
        if ('push' in step) push(...step.push)
        else if ('run' in step) {
          const [[timeMs, offset], count] = step.run
          for (let i = 0; i < count; i++) push(timeMs, offset + i)
        } else if ('pop' in step) {
          for (let i = 0; i < step.pop && queue.size > 0; i++) {
            queue.pop()
            expected.shift()
            popped++
          }
        } else if ('keep' in step) {
          const isKept = (timeMs: number, offset: number): boolean => (timeMs + offset) % step.keep !== 0
          queue.keep(isKept)
          expected = expected.filter(([timeMs, offset]) => isKept(timeMs, offset))
        } else {
          queue.clear()
          expected = []
        }
        expected.sort(inOrder)
        expectSame(queue.size, expected.length)
        expectSame(queue.firstTime, expected[0]?.[0] ?? Infinity)
        if (expected.length === 0) continue
        const [timeMs, offset] = expected[0]!
        expectSame(queue.firstOffset, offset)
        const run = queue.firstRun(12)
        expect(run).toBeLessThanOrEqual(Math.min(12, expected.length))
        // Entries with the same time and offset are interchangeable.
        const next = [...new Set(expected.map(String))].slice(0, run)
        expect(next).toEqual(Array.from({ length: run }, (_, i) => String([timeMs, offset + i])))
        if (run > 1) inRuns++
        const all: Entry[] = []
        queue.forEach((...each) => all.push(each))
        expect(all.sort(inOrder)).toEqual(expected)
      }
    }),
    { numRuns },
  )
  expect(popped).toBeGreaterThan(2.5 * numRuns)
  expect(inRuns).toBeGreaterThan(1.25 * numRuns)
})

it('stays in order after it has grown, been emptied and wrapped around', () => {
  const queue = new TimeQueue()
  const taken: number[] = []
  for (let i = 0; i < 10_000; i++) {
    queue.push(i, i)
    if (i % 3 === 2) {
      taken.push(queue.firstOffset)
      queue.pop()
    }
  }
  while (queue.size > 0) {
    taken.push(queue.firstOffset)
    queue.pop()
  }
  expect(taken).toEqual(Array.from({ length: 10_000 }, (_, i) => i))
  queue.push(1, 1)
  expect([queue.firstTime, queue.firstOffset, queue.size]).toEqual([1, 1, 1])
})

it('copies at most one page when it grows, however many entries it has', () => {
  const sizes: number[] = []
  const Counted = new Proxy(Float64Array, {
    construct: (target, [length]: [number]) => {
      sizes.push(length)
      return new target(length)
    },
  })
  vi.stubGlobal('Float64Array', Counted)
  const queue = new TimeQueue()
  try {
    for (let i = 0; i < 100_000; i++) queue.push(i, i)
  } finally {
    vi.unstubAllGlobals()
  }
  expect(sizes.length).toBeGreaterThan(40)
  expect(Math.max(...sizes)).toBe(4096)
  let popped = 0
  for (; queue.size > 0; popped++) {
    if (queue.firstOffset !== popped) throw new Error(`${queue.firstOffset} follows ${popped - 1}`)
    queue.pop()
  }
  expect(popped).toBe(100_000)
})
