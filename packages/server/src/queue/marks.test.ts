import fc from 'fast-check'
import { expect, it } from 'vitest'
import { CHUNK_MESSAGES } from './bits.js'
import { MARK, Marks, type Mark } from './marks.js'

const OTHERS = [MARK.out, MARK.waiting, MARK.due, MARK.seen, MARK.behind, MARK.returned, MARK.first] as const
const range = fc
  .tuple(fc.integer({ min: 0, max: CHUNK_MESSAGES }), fc.integer({ min: 0, max: CHUNK_MESSAGES }))
  .map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const)
const steps = fc.array(
  fc.record({ mark: fc.constantFrom<Mark>(MARK.gone, ...OTHERS), isAdded: fc.boolean(), range }),
  { minLength: 5, maxLength: 25 },
)

it('marks behave like sets of numbers, both as bits and as a list', () => {
  let compared = 0
  fc.assert(
    fc.property(steps, fc.nat(20), range, (list, listAt, [from, to]) => {
      const marks = new Marks()
      const gone = new Set<number>()
      const sets = new Map(OTHERS.map((mark) => [mark, new Set<number>()]))
      for (const [
        number,
        {
          mark,
          isAdded,
          range: [start, end],
        },
      ] of list.entries()) {
        if (number === listAt) marks.list()
        let added = 0
        for (let at = start; at < end; at++) {
          const set = mark === MARK.gone ? gone : sets.get(mark)!
          if (!isAdded && mark !== MARK.gone) set.delete(at)
          else if (mark === MARK.gone || !gone.has(at)) {
            if (!set.has(at)) added++
            set.add(at)
          }
        }
        if (isAdded || mark === MARK.gone) {
          let count = 0
          // Only live messages have other marks.
          for (let at = start; at < end; at++)
            if (mark === MARK.gone || !marks.has(MARK.gone, at)) count += marks.add(mark, at, at + 1)
          expect(count).toBe(added)
        } else marks.delete(mark, start, end)
      }
      const isFree = (at: number): boolean => !gone.has(at) && !sets.get(MARK.out)!.has(at)
      const all = Array.from({ length: to - from }, (_, at) => from + at)
      expect(marks.countGone(from, to)).toBe(all.filter((at) => gone.has(at)).length)
      expect(marks.firstFree(from, to)).toBe(all.find(isFree) ?? to)
      expect(marks.firstTaken(from, to)).toBe(all.find((at) => !isFree(at)) ?? to)
      expect(marks.firstLive(from, to)).toBe(all.find((at) => !gone.has(at)) ?? to)
      const liveEnd = all.find((at) => gone.has(at)) ?? to
      const live = all.filter((at) => at < liveEnd)
      const seen = sets.get(MARK.seen)!
      expect(marks.firstSeen(true, from, liveEnd)).toBe(live.find((at) => seen.has(at)) ?? liveEnd)
      expect(marks.firstSeen(false, from, liveEnd)).toBe(live.find((at) => !seen.has(at)) ?? liveEnd)
      let wrong = 0
      for (let at = 0; at < CHUNK_MESSAGES; at++) {
        if (marks.has(MARK.gone, at) !== gone.has(at)) wrong++
        if (gone.has(at)) continue
        for (const mark of OTHERS) if (marks.has(mark, at) !== sets.get(mark)!.has(at)) wrong++
        compared++
      }
      expect(wrong).toBe(0)
    }),
    { numRuns: 150 },
  )
  expect(compared).toBeGreaterThan(10_000)
})
