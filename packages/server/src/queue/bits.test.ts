import fc from 'fast-check'
import { expect, it } from 'vitest'
import { CHUNK_MESSAGES, CHUNK_WORDS, addBits, countRange, hasBit, removeBits } from './bits.js'
import { runs } from '../../../../test/amount.js'
import { expectSame } from '../../../../test/same.js'

const range = fc
  .tuple(fc.integer({ min: 0, max: CHUNK_MESSAGES }), fc.integer({ min: 0, max: CHUNK_MESSAGES }))
  .map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const)

it('behaves like a set of numbers', () => {
  let compared = 0
  fc.assert(
    fc.property(
      fc.array(fc.record({ add: fc.boolean(), range }), { maxLength: 12 }),
      range,
      (steps, [from, to]) => {
        const words = new Uint32Array(CHUNK_WORDS)
        const set = new Set<number>()
        for (const step of steps) {
          const before = set.size
          for (let i = step.range[0]; i < step.range[1]; i++) {
            if (step.add) set.add(i)
            else set.delete(i)
          }
          if (step.add) expect(addBits(words, ...step.range)).toBe(set.size - before)
          else removeBits(words, ...step.range)
        }
        let count = 0
        for (let i = to - 1; i >= from; i--) {
          if (set.has(i)) count++
          expectSame(hasBit(words, i), set.has(i))
          compared++
        }
        expect(countRange(words, from, to)).toBe(count)
      },
    ),
    { numRuns: runs(100, 3_000) },
  )
  expect(compared).toBeGreaterThan(10_000)
})
