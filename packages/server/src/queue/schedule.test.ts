import fc from 'fast-check'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { CHUNK_MESSAGES } from './bits.js'
import { Chunks } from './chunks.js'
import { MARK } from './marks.js'
import { STEP, Schedule } from './schedule.js'
import { runs } from '../../../../test/amount.js'

const nearMax = Schedule.nearMax
beforeEach(() => {
  Schedule.nearMax = 8
})
afterEach(() => {
  Schedule.nearMax = nearMax
})

class Rig {
  readonly chunks = new Chunks()
  readonly schedule = new Schedule(this.chunks)
  readonly dues = new Map<number, number>()
  next = 0

  add(dueMs: number): void {
    const offset = this.next++
    const chunk = this.chunks.toFill(offset)
    chunk.append(offset - chunk.base + 1, offset * 100, 1, 100, 148)
    this.enter(offset, dueMs)
  }

  enter(offset: number, dueMs: number): void {
    const chunk = this.chunks.at(offset)!
    const index = offset - chunk.base
    chunk.setDue(index, 0, dueMs)
    chunk.marks.add(MARK.waiting, index, index + 1)
    this.dues.set(offset, dueMs)
    this.schedule.add(chunk, index, dueMs)
  }

  leave(offset: number): void {
    const chunk = this.chunks.at(offset)!
    const index = offset - chunk.base
    this.schedule.remove(chunk, index)
    chunk.marks.delete(MARK.waiting, index, index + 1)
    this.dues.delete(offset)
  }

  /** Offsets that are due, according to the schedule. */
  due(nowMs: number): number[] {
    const offsets: number[] = []
    for (let offset = this.schedule.takeDue(nowMs); offset !== -1; offset = this.schedule.takeDue(nowMs)) {
      if (offset === STEP) continue
      offsets.push(offset)
      this.leave(offset)
    }
    return offsets
  }

  /** Offsets that are due, found by checking every message. */
  expected(nowMs: number): number[] {
    return [...this.dues]
      .filter(([, dueMs]) => dueMs <= nowMs)
      .sort(([a, aMs], [b, bMs]) => aMs - bMs || a - b)
      .map(([offset]) => offset)
  }
}

const time = fc.oneof(fc.integer({ min: 1, max: 1_000 }), fc.integer({ min: 1, max: 20 }), fc.constant(77))
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ add: fc.array(time, { minLength: 1, maxLength: 20 }) }) },
  { weight: 2, arbitrary: fc.record({ cancel: fc.nat() }) },
  { weight: 2, arbitrary: fc.record({ move: fc.nat(), to: time }) },
  { weight: 2, arbitrary: fc.record({ pass: fc.integer({ min: 1, max: 200 }) }) },
)

it('returns each message when it is due and never earlier, even if there are many', () => {
  let came = 0
  let withLater = 0
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
      const rig = new Rig()
      // The offsets are in two chunks.
      rig.next = CHUNK_MESSAGES - 40
      let nowMs = 0
      for (const step of steps) {
        const waiting = [...rig.dues.keys()]
        if ('add' in step) for (const delayMs of step.add) rig.add(nowMs + delayMs)
        else if ('pass' in step) {
          nowMs += step.pass
          const expected = rig.expected(nowMs)
          expect(rig.due(nowMs)).toEqual(expected)
          came += expected.length
        } else if (waiting.length > 0) {
          const offset = waiting[('cancel' in step ? step.cancel : step.move) % waiting.length]!
          rig.leave(offset)
          if ('move' in step) rig.enter(offset, nowMs + step.to)
        }
        expect(rig.schedule.size).toBe(rig.dues.size)
        expect(rig.schedule.offsets()).toEqual(new Set(rig.dues.keys()))
        expect(rig.schedule.nextDeadline).toBeLessThanOrEqual(Math.min(Infinity, ...rig.dues.values()))
        expect(rig.schedule.nextDeadline).toBeGreaterThan(nowMs)
        if ([...rig.chunks].some(({ laterMs }) => laterMs !== Infinity)) withLater++
      }
      const expected = rig.expected(Infinity)
      expect(rig.due(1e9)).toEqual(expected)
      expect(rig.schedule.nextDeadline).toBe(Infinity)
    }),
    { numRuns: runs(100, 3_000) },
  )
  expect(came).toBeGreaterThan(1_000)
  expect(withLater).toBeGreaterThan(1_000)
})

it('returns messages in order, even if messages come and go while the horizon moves', () => {
  let taken = 0
  let cut = 0
  fc.assert(
    fc.property(
      fc.array(fc.tuple(step, fc.integer({ min: 0, max: 12 })), { minLength: 10, maxLength: 80 }),
      (steps) => {
        const rig = new Rig()
        rig.next = CHUNK_MESSAGES - 40
        let nowMs = 0
        for (const [step, calls] of steps) {
          const waiting = [...rig.dues.keys()]
          if ('add' in step) for (const delayMs of step.add) rig.add(nowMs + delayMs)
          else if ('pass' in step) nowMs += step.pass
          else if (waiting.length > 0) {
            const offset = waiting[('cancel' in step ? step.cancel : step.move) % waiting.length]!
            rig.leave(offset)
            if ('move' in step) rig.enter(offset, nowMs + step.to)
          }
          let offset = 0
          for (let call = 0; call < calls && offset !== -1; call++) {
            const [first = -1] = rig.expected(nowMs)
            offset = rig.schedule.takeDue(nowMs)
            expect(rig.schedule.stepCost).toBeLessThanOrEqual(16 + CHUNK_MESSAGES / 4)
            if (offset === STEP) continue
            expect(offset).toBe(first)
            if (offset === -1) break
            rig.leave(offset)
            taken++
          }
          if (offset === STEP) cut++
          expect(rig.schedule.size).toBe(rig.dues.size)
          expect(rig.schedule.offsets()).toEqual(new Set(rig.dues.keys()))
          expect(rig.schedule.nextDeadline).toBeLessThanOrEqual(Math.min(Infinity, ...rig.dues.values()))
        }
        const expected = rig.expected(Infinity)
        expect(rig.due(1e9)).toEqual(expected)
      },
    ),
    { numRuns: runs(100, 3_000) },
  )
  expect(taken).toBeGreaterThan(1_000)
  expect(cut).toBeGreaterThan(50)
})

it('has no deadline in the past when a message is added after all messages beyond the horizon have left', () => {
  const rig = new Rig()
  for (let dueMs = 100; dueMs < 120; dueMs++) rig.add(dueMs)
  expect([...rig.chunks].map(({ laterMs }) => laterMs < Infinity)).toEqual([true])
  for (const offset of rig.dues.keys()) rig.leave(offset)
  expect(rig.due(500)).toEqual([])
  rig.add(600)
  expect(rig.schedule.nextDeadline).toBe(600)
})

it('has no deadline in the past when all messages beyond the horizon leave while it moves', () => {
  const rig = new Rig()
  rig.next = CHUNK_MESSAGES - 40
  for (let dueMs = 100; dueMs < 200; dueMs++) rig.add(dueMs)
  for (const offset of rig.due(105)) expect(offset).toBeLessThan(CHUNK_MESSAGES)
  for (let offset = rig.schedule.takeDue(150); offset !== STEP; offset = rig.schedule.takeDue(150))
    rig.leave(offset)
  for (const offset of rig.dues.keys()) rig.leave(offset)
  let steps = 0
  for (; rig.schedule.nextDeadline < Infinity; steps++) expect(rig.schedule.takeDue(500)).toBe(STEP)
  expect(steps).toBeGreaterThan(0)
  rig.add(600)
  expect(rig.schedule.nextDeadline).toBe(600)
  expect(rig.due(600)).toHaveLength(1)
})
