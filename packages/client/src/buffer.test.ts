import { CONTENT_TYPE, DELIVER_FLAG, recordBytes, writeRecordHead } from '@sluice/protocol'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { RunBuffer } from './buffer.js'
import { Isolation } from './isolation.js'
import type { LeaseKeeper } from './lease.js'
import type { Run } from './run.js'
import { expectSame } from '../../../test/same.js'

function runOf(firstTag: number, sizes: readonly number[], flags = 0): Run {
  const bytes = sizes.reduce((sum, size) => sum + recordBytes(undefined, size), 0)
  const records = new Uint8Array(bytes)
  let at = 0
  for (const size of sizes) at = writeRecordHead(records, at, undefined, CONTENT_TYPE.bytes, size) + size
  return {
    subscriptionId: 1,
    firstTag,
    firstOffset: firstTag,
    attempt: 1,
    flags,
    publishedAtMs: 0,
    count: sizes.length,
    gap: 0,
    keeper: {} as LeaseKeeper,
    records,
  }
}

it('returns each message once and in order, for any sequence of announcements, drops and takes', () => {
  let taken = 0
  let dropped = 0
  const sizes = fc.array(fc.oneof(fc.integer({ min: 0, max: 50 }), fc.constant(5000)), {
    minLength: 1,
    maxLength: 20,
  })
  const step = fc.oneof(
    fc.record({ kind: fc.constant('keep' as const), sizes }),
    fc.record({ kind: fc.constant('announce' as const), count: fc.integer({ min: 1, max: 30 }) }),
    fc.record({ kind: fc.constant('take' as const), count: fc.integer({ min: 1, max: 30 }) }),
    fc.record({ kind: fc.constant('hold' as const), count: fc.integer({ min: 1, max: 10 }) }),
    fc.record({ kind: fc.constant('drop' as const), every: fc.integer({ min: 2, max: 5 }) }),
    fc.record({ kind: fc.constant('unannounce' as const) }),
  )
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 40 }), (story) => {
      const buffer = new RunBuffer(new Isolation(), () => {})
      let model: { tag: number; bytes: number }[] = []
      let announced = 0
      let last = 0xffff_fff0
      for (const step of story) {
        if (step.kind === 'keep') {
          buffer.keep(runOf(last, step.sizes))
          for (const size of step.sizes) {
            model.push({ tag: last, bytes: recordBytes(undefined, size) })
            last = (last + 1) >>> 0
          }
        } else if (step.kind === 'announce') {
          const named = buffer
            .announce(step.count, false)
            .flatMap(({ firstTag, count }) =>
              Array.from({ length: count }, (_, index) => (firstTag + index) >>> 0),
            )
          expect(named).toEqual(model.slice(announced, announced + step.count).map(({ tag }) => tag))
          announced += named.length
        } else if (step.kind === 'take') {
          for (let i = 0; i < step.count && announced > 0; i++, announced--, taken++)
            expectSame(buffer.take().tag, model.shift()!.tag)
        } else if (step.kind === 'hold') {
          const held = announced === 0 ? Math.min(step.count, model.length) : 0
          taken += held
          for (let i = 0; i < held; i++) expect(buffer.takeUnannounced().tag).toBe(model.shift()!.tag)
        } else if (step.kind === 'drop') {
          const lost = model.filter((_, index) => index % step.every === 1)
          const elsewhere = (last + 7) >>> 0
          const tags = new Set([...lost.map(({ tag }) => tag), elsewhere])
          expect(buffer.drop(tags)).toEqual(lost.map(({ tag }) => tag))
          expect([...tags]).toEqual([elsewhere])
          announced -= model.slice(0, announced).filter((one) => lost.includes(one)).length
          model = model.filter((one) => !lost.includes(one))
          dropped += lost.length
        } else {
          buffer.unannounce()
          announced = 0
        }
        buffer.invariants()
        expectSame(buffer.count, model.length)
        expectSame(buffer.announced, announced)
        expectSame(
          buffer.bytes,
          model.reduce((sum, { bytes }) => sum + bytes, 0),
        )
        expectSame(buffer.firstTag, model[0]?.tag)
        expectSame(
          buffer.ranges().reduce((sum, { count }) => sum + count, 0),
          model.length,
        )
      }
      buffer.clear()
      expect([buffer.count, buffer.announced, buffer.bytes, buffer.firstTag]).toEqual([0, 0, 0, undefined])
    }),
    { numRuns: 200 },
  )
  expect(taken).toBeGreaterThan(50)
  expect(dropped).toBeGreaterThan(50)
})

it('announces a message that must be handled alone without any other', () => {
  const isolation = new Isolation()
  let woken = 0
  const buffer = new RunBuffer(isolation, () => woken++)
  buffer.push(runOf(1, [1, 1]))
  buffer.push(runOf(3, [1], DELIVER_FLAG.alone))
  buffer.push(runOf(4, [1]))
  expect(buffer.announce(10, false)).toEqual([{ firstTag: 1, count: 2 }])
  expect(buffer.isBlocked).toBe(true)
  buffer.take()
  buffer.take()
  isolation.leave(2)
  expect(woken).toBe(1)
  expect(buffer.announce(10, false)).toEqual([{ firstTag: 3, count: 1 }])
  buffer.take()
  expect(buffer.announce(10, false)).toEqual([])
  expect(buffer.isBlocked).toBe(true)
  isolation.leave(1)
  expect(woken).toBe(2)
  expect(buffer.announce(10, false)).toEqual([{ firstTag: 4, count: 1 }])
  expect(buffer.isBlocked).toBe(false)
})

it('finds wrong counts', () => {
  const spoilt: [(buffer: RunBuffer) => void, string][] = [
    [(buffer) => buffer.count++, 'counted 3 messages'],
    [(buffer) => buffer.bytes--, 'counted 3 messages'],
    [(buffer) => (buffer.announced = 4), '4 of 3 are announced'],
    [(buffer) => (buffer.announced = -1), '-1 of 3 are announced'],
  ]
  for (const [spoil, found] of spoilt) {
    const buffer = new RunBuffer(new Isolation(), () => {})
    buffer.keep(runOf(1, [1, 2, 3]))
    buffer.invariants()
    spoil(buffer)
    expect(() => buffer.invariants()).toThrow(found)
  }
  expect(spoilt).toHaveLength(4)
})
