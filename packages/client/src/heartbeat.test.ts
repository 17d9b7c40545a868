import { expect, it } from 'vitest'
import { Heartbeat } from './heartbeat.js'

it('pings when half the interval would pass in silence', () => {
  const heartbeat = new Heartbeat(1000, 0)
  expect(heartbeat.tickMs).toBe(250)
  expect(heartbeat.tick(250)).toBe('quiet')
  expect(heartbeat.tick(500)).toBe('ping')
  heartbeat.sent(500)
  heartbeat.heard(510)
  expect(heartbeat.tick(750)).toBe('quiet')
  expect(heartbeat.tick(1000)).toBe('ping')
})

it('suspects a peer that was silent for twice the interval, and clears it when it speaks', () => {
  const heartbeat = new Heartbeat(1000, 0)
  for (let at = 250; at < 2000; at += 250) expect(heartbeat.tick(at)).not.toBe('suspect')
  expect(heartbeat.tick(2000)).toBe('suspect')
  expect(heartbeat.judge(2000)).toBe(true)
  heartbeat.heard(2001)
  expect(heartbeat.judge(2002)).toBe(false)
})

it('gives a stall of its own process back to the peer', () => {
  const heartbeat = new Heartbeat(1000, 0)
  expect(heartbeat.tick(250)).toBe('quiet')
  // Ten seconds in which no timer fired.
  expect(heartbeat.tick(10_500)).toBe('ping')
  for (let at = 10_750; at < 12_000; at += 250) expect(heartbeat.tick(at)).not.toBe('suspect')
  expect(heartbeat.tick(12_000)).toBe('suspect')
})
