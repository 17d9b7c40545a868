import { expect, it } from 'vitest'
import { Heartbeat } from './heartbeat.js'

it('pings before half the interval passes without sending', () => {
  const heartbeat = new Heartbeat(1000, 0)
  expect(heartbeat.tickMs).toBe(250)
  expect(heartbeat.tick(250)).toBe('quiet')
  expect(heartbeat.tick(500)).toBe('ping')
  heartbeat.sent(500)
  heartbeat.heard(510)
  expect(heartbeat.tick(750)).toBe('quiet')
  expect(heartbeat.tick(1000)).toBe('ping')
})

it('suspects a peer after a silence of twice the interval, and clears it when bytes arrive', () => {
  const heartbeat = new Heartbeat(1000, 0)
  for (let at = 250; at < 2000; at += 250) expect(heartbeat.tick(at)).not.toBe('suspect')
  expect(heartbeat.tick(2000)).toBe('suspect')
  expect(heartbeat.judge(2000)).toBe(true)
  heartbeat.heard(2001)
  expect(heartbeat.judge(2002)).toBe(false)
})

it('does not count a stall of its own process as silence of the peer', () => {
  const heartbeat = new Heartbeat(1000, 0)
  expect(heartbeat.tick(250)).toBe('quiet')
  // No timer fired for ten seconds.
  expect(heartbeat.tick(10_500)).toBe('ping')
  for (let at = 10_750; at < 12_000; at += 250) expect(heartbeat.tick(at)).not.toBe('suspect')
  expect(heartbeat.tick(12_000)).toBe('suspect')
})
