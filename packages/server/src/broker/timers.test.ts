import { expect, test } from 'vitest'
import { Timer } from '../queue/index.js'
import { Timers } from './timers.js'
import { expectSame } from '../../../../test/same.js'

test('timers are returned in the order of their deadlines after any arming, moving and disarming', () => {
  let seed = 7
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0
    return (seed >>> 8) % below
  }
  const timers = new Timers()
  const all = Array.from({ length: 200 }, () => new Timer(() => {}))
  const deadlines = new Map<Timer, number>()
  let shifted = 0
  for (let step = 0; step < 20_000; step++) {
    if (timers.size > 0 && random(5) === 0) {
      const nearest = Math.min(...deadlines.values())
      expectSame(timers.firstMs, nearest)
      const first = timers.shift()
      expectSame(deadlines.get(first), nearest)
      expectSame(first.deadlineMs, Infinity)
      expectSame(first.place, -1)
      deadlines.delete(first)
      shifted++
    } else {
      const timer = all[random(all.length)]!
      const deadlineMs = random(4) === 0 ? Infinity : random(1_000)
      timers.arm(timer, deadlineMs)
      if (deadlineMs === Infinity) deadlines.delete(timer)
      else deadlines.set(timer, deadlineMs)
    }
    expectSame(timers.size, deadlines.size)
  }
  expect(shifted).toBeGreaterThan(3_000)
})

test('there is no deadline if there is no timer', () => {
  const timers = new Timers()
  const timer = new Timer(() => {})
  expect(timers.firstMs).toBe(Infinity)
  timers.arm(timer, 5)
  timers.arm(timer, 5)
  expect([timers.size, timers.firstMs]).toEqual([1, 5])
  timers.arm(timer, Infinity)
  timers.arm(timer, Infinity)
  expect([timers.size, timers.firstMs]).toEqual([0, Infinity])
})
