import { describe, expect, it } from 'vitest'
import { LIMITS } from '@sluice/protocol'
import { Bucket, rateOf } from './rate.js'

describe('bucket', () => {
  it('gives a burst at first, and then one token at a time', () => {
    const bucket = new Bucket({ messages: 3, perMs: 1_000 }, 5_000)
    expect(bucket.available(5_000)).toBe(3)
    bucket.take(3, 5_000)
    expect(bucket.available(5_000)).toBe(0)
    // A third of a second, rounded up to the next millisecond.
    expect(bucket.nextMs).toBe(5_334)
    expect([bucket.available(5_333), bucket.available(5_334)]).toEqual([0, 1])
    bucket.take(1, 5_334)
    expect(bucket.nextMs).toBe(5_667)
  })

  it('loses nothing to rounding: in any time it gives exactly what has arrived', () => {
    const rate = { messages: 7, perMs: 1_000 }
    const bucket = new Bucket(rate, 0)
    bucket.take(7, 0)
    let taken = 0
    let wrong = 0
    for (let nowMs = 0; nowMs <= 1_000_000; nowMs += 13) {
      const count = bucket.available(nowMs)
      bucket.take(count, nowMs)
      taken += count
      if (taken !== Math.floor((nowMs * 7) / 1_000)) wrong++
    }
    expect([taken, wrong]).toEqual([6_999, 0])
  })

  it('holds no more than one burst, however long it was not used', () => {
    const bucket = new Bucket({ messages: 2, perMs: 10 }, 0)
    bucket.take(2, 0)
    expect(bucket.available(1e12)).toBe(2)
  })

  it('is exact at the largest rate', () => {
    const bucket = new Bucket({ messages: LIMITS.rateMessagesMax, perMs: LIMITS.ratePerMsMax }, 1.9e12)
    bucket.take(LIMITS.rateMessagesMax, 1.9e12)
    expect(bucket.nextMs - 1.9e12).toBe(LIMITS.ratePerMsMax / LIMITS.rateMessagesMax)
    expect(bucket.available(bucket.nextMs - 1)).toBe(0)
    expect(bucket.available(bucket.nextMs)).toBe(1)
  })

  it('stays as it is while time stands still or goes back', () => {
    const bucket = new Bucket({ messages: 1, perMs: 100 }, 1_000)
    bucket.take(1, 1_000)
    expect(bucket.available(900)).toBe(0)
    expect(bucket.nextMs).toBe(1_100)
  })
})

it('no rate is no limit', () => {
  expect(rateOf(0, 1_000)).toBeUndefined()
  expect(rateOf(5, 1_000)).toEqual({ messages: 5, perMs: 1_000 })
})
