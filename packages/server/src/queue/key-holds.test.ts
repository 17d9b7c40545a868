import { describe, expect, it } from 'vitest'
import { KeyHolds, PAUSED_KEYS_MAX } from './key-holds.js'

/** Ends all holds that are over, and returns the keys with the times at which their holds ended. */
function endedAt(holds: KeyHolds, nowMs: number, max = Infinity): [low: number, untilMs: number][] {
  const ended: [number, number][] = []
  holds.continue(nowMs, max, (low, _, untilMs) => ended.push([low, untilMs]))
  holds.audit()
  return ended
}

describe('holds of keys', () => {
  it('hold a key that has used up its rate until its next token', () => {
    const holds = new KeyHolds({ messages: 2, perMs: 1_000 })
    holds.take(1, 0, 100)
    expect(holds.heldUntil(1, 0)).toBe(0)
    holds.take(1, 0, 150)
    expect(holds.heldUntil(1, 0)).toBe(600)
    expect([holds.held, holds.heldAt(599), holds.heldAt(600)]).toEqual([1, 1, 0])
    expect(endedAt(holds, 599)).toEqual([])
    expect(endedAt(holds, 700)).toEqual([[1, 600]])
    expect([holds.held, holds.heldUntil(1, 0)]).toEqual([0, 0])
  })

  it('end the hold of one key early when it is asked for, exactly once', () => {
    const holds = new KeyHolds({ messages: 1, perMs: 10 })
    for (const low of [1, 2, 3]) holds.take(low, 9, 0)
    expect(holds.end(2, 9, 9)).toBe(0)
    expect(holds.end(2, 9, 10)).toBe(10)
    expect(holds.end(2, 9, 10)).toBe(0)
    // The key is held again before its old item has left the heap.
    holds.take(2, 9, 10)
    expect(endedAt(holds, 10)).toEqual([
      [1, 10],
      [3, 10],
    ])
    expect(endedAt(holds, 20)).toEqual([[2, 20]])
  })

  it('end in the order of time, at most `max` at once', () => {
    const holds = new KeyHolds({ messages: 1, perMs: 100 })
    for (const [low, nowMs] of [
      [5, 3],
      [4, 1],
      [3, 2],
    ] as const)
      holds.take(low, 0, nowMs)
    expect(endedAt(holds, 200, 2)).toEqual([
      [4, 101],
      [3, 102],
    ])
    expect(holds.nextEndMs).toBe(103)
    expect(endedAt(holds, 200)).toEqual([[5, 103]])
  })

  it('last as long as the longer of a pause and the rate', () => {
    const holds = new KeyHolds({ messages: 1, perMs: 100 })
    holds.take(1, 0, 0)
    holds.pause(1, 0, 250, 10)
    expect([holds.heldUntil(1, 0), holds.isPaused(1, 0)]).toEqual([250, true])
    holds.pause(1, 0, 50, 20)
    expect(holds.heldUntil(1, 0)).toBe(250)
    expect(endedAt(holds, 249)).toEqual([])
    expect(endedAt(holds, 250)).toEqual([[1, 250]])
    // A pause that is already over changes nothing.
    holds.pause(1, 0, 250, 250)
    expect(holds.held).toBe(0)
    const none = new KeyHolds(undefined)
    none.take(1, 0, 0)
    expect(none.size).toBe(0)
    none.pause(1, 0, 7, 0)
    expect([none.heldUntil(1, 0), none.isPaused(1, 0)]).toEqual([7, true])
  })

  it('forget a key when its bucket is full again and its pause is over', () => {
    const holds = new KeyHolds({ messages: 2, perMs: 1_000 })
    for (let low = 0; low < 5_000; low++) holds.take(low, low, low % 100)
    holds.pause(7, 7, 5_000, 0)
    expect(holds.size).toBe(5_000)
    let looks = 0
    for (let nowMs = 0; holds.size > 1 && nowMs < 3_000; nowMs = Math.max(nowMs + 1, holds.nextMs), looks++)
      endedAt(holds, nowMs)
    expect(looks).toBeLessThan(300)
    expect(holds.size).toBe(1)
    expect(endedAt(holds, 5_000)).toEqual([[7, 5_000]])
    expect([holds.size, holds.nextMs]).toEqual([0, Infinity])
    // The keys start again with a full bucket.
    holds.take(7, 7, 5_000)
    expect(holds.held).toBe(0)
  })

  it('keep a key that is used again and again', () => {
    const holds = new KeyHolds({ messages: 2, perMs: 100 })
    for (let nowMs = 0; nowMs < 10_000; nowMs += 50) {
      holds.take(1, 0, nowMs)
      endedAt(holds, nowMs)
      expect(holds.size).toBe(1)
    }
    expect(holds.held).toBe(0)
  })

  it('follow a change of the rate: every bucket is full, and a hold that was due to the rate ends', () => {
    const holds = new KeyHolds({ messages: 1, perMs: 1_000 })
    for (const low of [1, 2, 3]) holds.take(low, 0, 0)
    holds.take(4, 0, -900)
    holds.pause(2, 0, 400, 0)
    holds.changeRate({ messages: 5, perMs: 1_000 }, 200)
    // The hold of key 4 had ended before, and no call had noticed.
    expect(endedAt(holds, 200)).toEqual([
      [4, 100],
      [1, 200],
      [3, 200],
    ])
    for (let i = 0; i < 4; i++) holds.take(1, 0, 200)
    expect(holds.heldUntil(1, 0)).toBe(0)
    holds.take(1, 0, 200)
    expect(holds.heldUntil(1, 0)).toBe(400)
    holds.changeRate(undefined, 300)
    expect(endedAt(holds, 300)).toEqual([[1, 300]])
    expect(endedAt(holds, 400)).toEqual([[2, 400]])
  })

  it('pause a limited number of keys', () => {
    const holds = new KeyHolds(undefined)
    for (let low = 0; low < PAUSED_KEYS_MAX; low++) holds.pause(low, 0, 1_000, 0)
    holds.pause(PAUSED_KEYS_MAX, 0, 1_000, 0)
    expect(holds.size).toBe(PAUSED_KEYS_MAX)
    expect(holds.heldUntil(PAUSED_KEYS_MAX, 0)).toBe(0)
    // A key that is paused can be paused for longer, and a pause that is over makes room.
    holds.pause(3, 0, 2_000, 0)
    expect(holds.heldUntil(3, 0)).toBe(2_000)
    for (let nowMs = 1_000; holds.size > 1; nowMs++) holds.continue(nowMs, Infinity, () => {})
    holds.pause(PAUSED_KEYS_MAX, 0, 9_000, 1_500)
    expect(holds.heldUntil(PAUSED_KEYS_MAX, 0)).toBe(9_000)
  })
})
