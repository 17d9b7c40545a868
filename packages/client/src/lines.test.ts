import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Lines } from './lines.js'
import { runs } from '../../../test/amount.js'
import { expectSame } from '../../../test/same.js'

interface Item {
  readonly key: string | undefined
  readonly id: number
}

const items = (keys: string): Item[] =>
  keys.split('').map((key, id) => ({ key: key === '-' ? undefined : key, id }))

const ids = (taken: readonly Item[]): number[] => taken.map(({ id }) => id)

describe('lines', () => {
  it('let every message go in order of arrival without `ordered`', () => {
    const lines = new Lines<Item>(false)
    for (const item of items('aab')) lines.add(item, 5)
    expect([lines.ready, lines.sinceMs]).toEqual([3, 5])
    expect(ids(lines.take(2))).toEqual([0, 1])
    expect(lines.at(0)!.id).toBe(2)
    expect(ids(lines.clear())).toEqual([2])
    expect(lines.ready).toBe(0)
  })

  it('hold a message back until the previous one of its key is done, and let others pass', () => {
    const lines = new Lines<Item>(true)
    const all = items('aab-a-')
    for (const item of all) lines.add(item, 1)
    expect(ids(lines.take(9))).toEqual([0, 2, 3, 5])
    expect(lines.ready).toBe(0)
    lines.done(all[2]!, 2)
    lines.done(all[3]!, 2)
    expect(lines.ready).toBe(0)
    lines.done(all[0]!, 3)
    lines.done(all[0]!, 3)
    expect([lines.ready, lines.sinceMs]).toEqual([1, 3])
    expect(ids(lines.take(9))).toEqual([1])
    lines.done(all[1]!, 4)
    expect(ids(lines.take(9))).toEqual([4])
  })

  it('free the key of a lost message, whether the message was waiting or with a handler', () => {
    const lines = new Lines<Item>(true)
    const all = items('aaabbcc')
    for (const item of all) lines.add(item, 1)
    expect(ids(lines.take(1))).toEqual([0])
    const lost = new Set([0, 1, 3, 6])
    expect(ids(lines.lose(({ id }) => lost.has(id), 2)).toSorted((a, b) => a - b)).toEqual([1, 3, 6])
    expect(ids(lines.take(9))).toEqual([5, 4, 2])
    lines.done(all[0]!, 3)
    expect(ids(lines.clear())).toEqual([])
  })

  it('never have two messages of a key with handlers, and keep each key in order', () => {
    const step = fc.oneof(
      fc.record({ add: fc.constantFrom('a', 'b', 'c', undefined) }),
      fc.record({ take: fc.integer({ min: 1, max: 4 }) }),
      fc.record({ done: fc.nat(9) }),
      fc.record({ lose: fc.integer({ min: 2, max: 5 }) }),
    )
    let checked = 0
    fc.assert(
      fc.property(fc.array(step, { minLength: 40, maxLength: 120 }), (steps) => {
        const lines = new Lines<Item>(true)
        let next = 0
        let waiting: Item[] = []
        let out: Item[] = []
        for (const step of steps) {
          if ('add' in step) {
            const item = { key: step.add, id: next++ }
            lines.add(item, 0)
            waiting.push(item)
          } else if ('take' in step) {
            for (const item of lines.take(step.take)) {
              const first = waiting.find(({ key }) => key === item.key)
              if (item.key !== undefined) expectSame(item, first)
              if (item.key !== undefined)
                expectSame(
                  out.some(({ key }) => key === item.key),
                  false,
                )
              waiting = waiting.filter((other) => other !== item)
              out.push(item)
              checked++
            }
          } else if ('done' in step) {
            const item = out[step.done % Math.max(1, out.length)]
            if (item !== undefined) lines.done(item, 0)
            out = out.filter((other) => other !== item)
          } else {
            const isLost = ({ id }: Item): boolean => id % step.lose === 0
            expect(lines.lose(isLost, 0).length).toBe(waiting.filter(isLost).length)
            waiting = waiting.filter((item) => !isLost(item))
            out = out.filter((item) => !isLost(item))
          }
          const keys = new Set(waiting.map(({ key }) => key).filter((key) => key !== undefined))
          for (const { key } of out) if (key !== undefined) keys.delete(key)
          expectSame(lines.ready, waiting.filter(({ key }) => key === undefined).length + keys.size)
        }
        expect(lines.clear().length).toBe(waiting.length)
      }),
      { numRuns: runs(150, 3_000) },
    )
    expect(checked).toBeGreaterThan(1000)
  })
})
