import { decodeSettle, LIMITS, OUTCOME, type SettleItem } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { SettleGroup } from './settlement.js'

const frames = (group: SettleGroup, frameBytesMax: number = LIMITS.frameBytesDefault): SettleItem[][] =>
  group.encode(7, frameBytesMax).map((payload) => {
    expect(payload.length + 12).toBeLessThanOrEqual(frameBytesMax)
    return decodeSettle(payload, 0, payload.length).items
  })

const ack = (group: SettleGroup, tag: number): void => group.add(tag, 1, OUTCOME.ack, undefined, undefined)

const message = (tag: number) => ({ tag, queue: 'q', offset: tag + 100 })

describe('a group of settles', () => {
  it('has one range for a run of acknowledgements, in any order', () => {
    const tags = Array.from({ length: 1000 }, (_, i) => (0xffff_ff00 + i) >>> 0)
    const orders = [
      tags,
      tags.toReversed(),
      tags.toSorted((a, b) => ((a * 7919) % 1009) - ((b * 7919) % 1009)),
    ]
    for (const order of orders) {
      const group = new SettleGroup(() => {})
      for (const tag of order) ack(group, tag)
      expect(frames(group)).toMatchObject([[{ firstTag: 0xffff_ff00, count: 1000 }]])
    }
    expect(orders.length).toBe(3)
  })

  it('separates settles that differ in outcome, delay or reason', () => {
    const group = new SettleGroup(() => {})
    ack(group, 1)
    group.add(2, 1, OUTCOME.retry, 5, undefined)
    group.add(3, 1, OUTCOME.retry, 5, undefined)
    group.add(4, 1, OUTCOME.deadLetter, undefined, 'why')
    group.add(5, 1, OUTCOME.release, undefined, undefined)
    group.add(6, 2, OUTCOME.release, undefined, undefined)
    ack(group, 8)
    expect(frames(group)[0]!.map(({ firstTag, count, outcome }) => [firstTag, count, outcome])).toEqual([
      [1, 1, OUTCOME.ack],
      [2, 1, OUTCOME.retry],
      [3, 1, OUTCOME.retry],
      [4, 1, OUTCOME.deadLetter],
      [5, 3, OUTCOME.release],
      [8, 1, OUTCOME.ack],
    ])
  })

  it('separates retries that pause their key from the others', () => {
    const group = new SettleGroup(() => {})
    for (const tag of [1, 2, 3, 4, 5])
      group.add(tag, 1, OUTCOME.retry, undefined, undefined, tag === 3 ? 'pauseKey' : undefined)
    const ranges = frames(group)[0]!.map(({ firstTag, count, pauseKey }) => [firstTag, count, pauseKey])
    expect(ranges).toEqual([
      [1, 2, undefined],
      [3, 1, true],
      [4, 2, undefined],
    ])
    // Settled out of order, they are merged in the same way.
    const mixed = new SettleGroup(() => {})
    for (const tag of [5, 3, 4, 1, 2])
      mixed.add(tag, 1, OUTCOME.retry, undefined, undefined, tag === 3 ? 'pauseKey' : undefined)
    expect(frames(mixed)[0]!.map(({ firstTag, count, pauseKey }) => [firstTag, count, pauseKey])).toEqual(
      ranges,
    )
  })

  it('uses several frames when one would have too many tags, ranges or bytes', () => {
    const many = new SettleGroup(() => {})
    for (let tag = 0; tag < LIMITS.creditMessagesMax + 10; tag++) ack(many, tag)
    expect(frames(many).map((items) => items.map(({ count }) => count))).toEqual([
      [LIMITS.creditMessagesMax],
      [10],
    ])
    const scattered = new SettleGroup(() => {})
    for (let i = 0; i < LIMITS.rangesMax + 1; i++) ack(scattered, i * 2)
    expect(frames(scattered).map((items) => items.length)).toEqual([LIMITS.rangesMax, 1])
    const wordy = new SettleGroup(() => {})
    for (let i = 0; i < 40; i++)
      wordy.add(i, 1, OUTCOME.deadLetter, undefined, 'x'.repeat(LIMITS.reasonBytesMax))
    const parts = frames(wordy, LIMITS.frameBytesMin)
    expect(parts.length).toBeGreaterThan(2)
    expect(parts.flat().length).toBe(40)
  })

  it('answers each waiter for its own tag, before and after the answer arrives', async () => {
    const group = new SettleGroup(() => {})
    ack(group, 1)
    ack(group, 2)
    const early = [group.answer(message(1)), group.answer(message(2))]
    group.stale([{ firstTag: 2, count: 5 }])
    group.finish(undefined)
    group.finish(undefined)
    const settled = await Promise.allSettled([...early, group.answer(message(1)), group.answer(message(2))])
    expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'rejected'])
  })
})
