import fc from 'fast-check'
import { expect, it } from 'vitest'
import { CHUNK_MESSAGES } from './bits.js'
import { COLUMN, Columns } from './columns.js'
import { runs } from '../../../../test/amount.js'

const WIDE = [
  [COLUMN.due, COLUMN.dueHigh],
  [COLUMN.next, COLUMN.nextHigh],
] as const

const NARROW = [
  COLUMN.charge,
  COLUMN.key,
  COLUMN.size,
  COLUMN.id,
  COLUMN.id1,
  COLUMN.id2,
  COLUMN.id3,
] as const

type Step =
  | { readonly kind: 'set'; readonly column: 0 | 5 | 18; readonly index: number; readonly value: number }
  | { readonly kind: 'wide'; readonly which: 0 | 1; readonly index: number; readonly value: number }
  | { readonly kind: 'id'; readonly index: number; readonly value: number }
  | { readonly kind: 'run'; readonly from: number; readonly count: number }
  | { readonly kind: 'pack'; readonly every: number }

// Indexes are near each other, like those of arriving messages, or anywhere in the chunk.
const index = fc.oneof(fc.nat(40), fc.nat(CHUNK_MESSAGES - 1))
const word = fc.oneof(fc.nat(3), fc.integer({ min: 0, max: 2 ** 32 - 1 }))
const steps = fc.array<Step>(
  fc.oneof(
    fc.record({ kind: fc.constant('set' as const), column: fc.constantFrom(0, 5, 18), index, value: word }),
    fc.record({
      kind: fc.constant('wide' as const),
      which: fc.constantFrom(0, 1),
      index,
      value: fc.oneof(word, fc.integer({ min: 0, max: 2 ** 53 - 1 }), fc.constantFrom(2 ** 32, 2 ** 40)),
    }),
    fc.record({ kind: fc.constant('id' as const), index, value: word }),
    fc.record({ kind: fc.constant('run' as const), from: index, count: fc.nat(300) }),
    fc.record({ kind: fc.constant('pack' as const), every: fc.integer({ min: 1, max: 400 }) }),
  ),
  { maxLength: 40 },
)

it('columns hold the same values as a plain map, whichever messages have a row', () => {
  const numRuns = runs(100, 3_000)
  let compared = 0
  fc.assert(
    fc.property(steps, (list) => {
      const columns = new Columns()
      const plain = new Map<number, number[]>()
      const put = (at: number, column: number, value: number): void => {
        const row = plain.get(at) ?? Array.from({ length: 30 }, () => 0)
        row[column] = value
        plain.set(at, row)
      }
      for (const step of list) {
        if (step.kind === 'set') {
          columns.set(step.column, step.index, step.value)
          put(step.index, step.column, step.value)
        } else if (step.kind === 'wide') {
          const [low, high] = WIDE[step.which]
          columns.setWide(low, high, step.index, step.value)
          put(step.index, low, step.value)
        } else if (step.kind === 'id') {
          columns.setId(step.index, Uint32Array.of(step.value, 0, 9, 1), 0)
          for (const [at, value] of [step.value, 0, 9, 1].entries()) put(step.index, COLUMN.id + at, value)
        } else if (step.kind === 'run') {
          for (let at = step.from; at < Math.min(step.from + step.count, CHUNK_MESSAGES); at++) {
            columns.set(COLUMN.key, at, at + 1)
            put(at, COLUMN.key, at + 1)
          }
        } else {
          const kept = [...plain.keys()].filter((at) => at % step.every === 0).sort((a, b) => a - b)
          for (const at of plain.keys()) if (at % step.every !== 0) plain.delete(at)
          const isAny = kept.some((at) => plain.get(at)!.some((value) => value !== 0))
          expect(columns.pack(kept)).toBe(isAny)
          expect(columns.room).toBeLessThanOrEqual(2 * kept.length)
        }
      }
      const wrong: unknown[] = []
      for (let at = 0; at < CHUNK_MESSAGES; at++) {
        const row = plain.get(at)
        for (const column of NARROW) {
          const found = columns.get(column, at)
          const expected = row?.[column] ?? 0
          if (found !== expected) wrong.push([at, column, found, expected])
        }
        for (const [low, high] of WIDE) {
          const found = columns.getWide(low, high, at)
          const expected = row?.[low] ?? 0
          if (found !== expected) wrong.push([at, low, found, expected])
        }
        compared++
      }
      expect(wrong).toEqual([])
    }),
    { numRuns },
  )
  expect(compared).toBe(numRuns * CHUNK_MESSAGES)
})

it('columns take room in proportion to their contents', () => {
  const columns = new Columns()
  expect(columns.room).toBe(0)
  columns.set(COLUMN.key, 1_000, 7)
  expect(columns.room).toBe(1)
  for (let at = 0; at < CHUNK_MESSAGES; at++) columns.set(COLUMN.key, at, at + 1)
  expect(columns.room).toBe(CHUNK_MESSAGES)
  columns.pack([5, 900])
  expect(columns.room).toBe(2)
  columns.restart(950)
  columns.set(COLUMN.key, 951, 7)
  expect([columns.get(COLUMN.key, 900), columns.get(COLUMN.key, 951), columns.room]).toEqual([0, 7, 2])
})
