import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Timer, TIMER_PART_MS_MAX } from './timer.js'

const DAY = 86_400_000

beforeEach(() => {
  vi.useFakeTimers()
})

afterEach(() => {
  vi.useRealTimers()
})

describe('a timer', () => {
  it('fires once, when its whole length has passed and not before, for any length', () => {
    for (const waitMs of [1, 1_000, TIMER_PART_MS_MAX, TIMER_PART_MS_MAX + 1, 2 ** 32, 300 * DAY]) {
      let fired = 0
      const timer = new Timer(() => fired++, waitMs)
      vi.advanceTimersByTime(waitMs - 1)
      expect([waitMs, fired]).toEqual([waitMs, 0])
      vi.advanceTimersByTime(1)
      expect([waitMs, fired]).toEqual([waitMs, 1])
      vi.advanceTimersByTime(waitMs * 2)
      expect([waitMs, fired]).toEqual([waitMs, 1])
      timer.cancel()
    }
  })

  it('waits its whole length again when it is restarted, before and after it has fired', () => {
    let fired = 0
    const timer = new Timer(() => fired++, 60 * DAY)
    vi.advanceTimersByTime(59 * DAY)
    timer.restart()
    vi.advanceTimersByTime(59 * DAY)
    expect(fired).toBe(0)
    vi.advanceTimersByTime(DAY)
    expect(fired).toBe(1)
    timer.restart()
    vi.advanceTimersByTime(60 * DAY)
    expect(fired).toBe(2)
  })

  it('does not fire when it is cancelled in any part of its wait', () => {
    let fired = 0
    const timers = [new Timer(() => fired++, 100 * DAY), new Timer(() => fired++, 100 * DAY)]
    timers[0]!.cancel()
    vi.advanceTimersByTime(80 * DAY)
    timers[1]!.cancel()
    vi.advanceTimersByTime(100 * DAY)
    expect(fired).toBe(0)
    expect(vi.getTimerCount()).toBe(0)
  })

  it('never fires if its length is Infinity', () => {
    let fired = 0
    const timer = new Timer(() => fired++, Infinity)
    vi.advanceTimersByTime(100 * DAY)
    expect(fired).toBe(0)
    timer.cancel()
  })
})
