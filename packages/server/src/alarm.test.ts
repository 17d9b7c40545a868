import { TIMER_PART_MS_MAX } from '@sluice/protocol'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { Alarm } from './alarm.js'

beforeEach(() => {
  vi.useFakeTimers()
})

afterEach(() => {
  vi.useRealTimers()
})

class Rig {
  nextDeadline = Infinity
  readonly tickedMs: number[] = []
  readonly alarm = new Alarm(() => Date.now())

  tick(): void {
    this.tickedMs.push(Date.now())
    this.nextDeadline = Infinity
    this.alarm.arm()
  }
}

test('the alarm ticks at the deadline, even after the deadline has changed', () => {
  const rig = new Rig()
  const startMs = Date.now()
  rig.nextDeadline = startMs + 100
  rig.alarm.start(rig)
  rig.nextDeadline = startMs + 50
  rig.alarm.arm()
  vi.advanceTimersByTime(1_000)
  expect(rig.tickedMs).toEqual([startMs + 50])
  expect(vi.getTimerCount()).toBe(0)
})

test('a deadline beyond the longest timer is reached in parts', () => {
  const rig = new Rig()
  rig.nextDeadline = Date.now() + 2 * TIMER_PART_MS_MAX
  rig.alarm.start(rig)
  vi.advanceTimersByTime(TIMER_PART_MS_MAX)
  expect(rig.tickedMs).toHaveLength(1)
})

test('the alarm sets no timer before its start or after its stop', () => {
  const rig = new Rig()
  rig.nextDeadline = Date.now() + 100
  rig.alarm.arm()
  expect(vi.getTimerCount()).toBe(0)
  rig.alarm.start(rig)
  expect(vi.getTimerCount()).toBe(1)
  rig.alarm.stop()
  rig.nextDeadline += 100
  rig.alarm.arm()
  expect(vi.getTimerCount()).toBe(0)
})
