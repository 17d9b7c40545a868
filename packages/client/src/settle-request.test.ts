import { decodeSettle, LIMITS, OUTCOME, type SettleItem } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { SettleRequest } from './settle-request.js'

const frames = (request: SettleRequest, frameBytesMax: number = LIMITS.frameBytesDefault): SettleItem[][] =>
  request.encode(7, frameBytesMax).map((payload) => {
    expect(payload.length + 12).toBeLessThanOrEqual(frameBytesMax)
    return decodeSettle(payload, 0, payload.length).items
  })

const ack = (request: SettleRequest, tag: number): void =>
  request.add(tag, 1, OUTCOME.ack, undefined, undefined)

const message = (tag: number) => ({ tag, queue: 'q', offset: tag + 100 })

describe('a request of settles', () => {
  it('has one range for a run of acknowledgements, in any order', () => {
    const tags = Array.from({ length: 1000 }, (_, i) => (0xffff_ff00 + i) >>> 0)
    const orders = [
      tags,
      tags.toReversed(),
      tags.toSorted((a, b) => ((a * 7919) % 1009) - ((b * 7919) % 1009)),
    ]
    for (const order of orders) {
      const request = new SettleRequest(() => {})
      for (const tag of order) ack(request, tag)
      expect(frames(request)).toMatchObject([[{ firstTag: 0xffff_ff00, count: 1000 }]])
    }
    expect(orders.length).toBe(3)
  })

  it('separates settles that differ in outcome, delay or reason', () => {
    const request = new SettleRequest(() => {})
    ack(request, 1)
    request.add(2, 1, OUTCOME.retry, 5, undefined)
    request.add(3, 1, OUTCOME.retry, 5, undefined)
    request.add(4, 1, OUTCOME.deadLetter, undefined, 'why')
    request.add(5, 1, OUTCOME.release, undefined, undefined)
    request.add(6, 2, OUTCOME.release, undefined, undefined)
    ack(request, 8)
    expect(frames(request)[0]!.map(({ firstTag, count, outcome }) => [firstTag, count, outcome])).toEqual([
      [1, 1, OUTCOME.ack],
      [2, 1, OUTCOME.retry],
      [3, 1, OUTCOME.retry],
      [4, 1, OUTCOME.deadLetter],
      [5, 3, OUTCOME.release],
      [8, 1, OUTCOME.ack],
    ])
  })

  it('separates retries that pause their key from the others', () => {
    const request = new SettleRequest(() => {})
    for (const tag of [1, 2, 3, 4, 5])
      request.add(tag, 1, OUTCOME.retry, undefined, undefined, tag === 3 ? 'pauseKey' : undefined)
    const ranges = frames(request)[0]!.map(({ firstTag, count, pauseKey }) => [firstTag, count, pauseKey])
    expect(ranges).toEqual([
      [1, 2, undefined],
      [3, 1, true],
      [4, 2, undefined],
    ])
    // Settled out of order, they are merged in the same way.
    const mixed = new SettleRequest(() => {})
    for (const tag of [5, 3, 4, 1, 2])
      mixed.add(tag, 1, OUTCOME.retry, undefined, undefined, tag === 3 ? 'pauseKey' : undefined)
    expect(frames(mixed)[0]!.map(({ firstTag, count, pauseKey }) => [firstTag, count, pauseKey])).toEqual(
      ranges,
    )
  })

  it('uses several frames when one would have too many tags, ranges or bytes', () => {
    const many = new SettleRequest(() => {})
    for (let tag = 0; tag < LIMITS.creditMessagesMax + 10; tag++) ack(many, tag)
    expect(frames(many).map((items) => items.map(({ count }) => count))).toEqual([
      [LIMITS.creditMessagesMax],
      [10],
    ])
    const scattered = new SettleRequest(() => {})
    for (let i = 0; i < LIMITS.rangesMax + 1; i++) ack(scattered, i * 2)
    expect(frames(scattered).map((items) => items.length)).toEqual([LIMITS.rangesMax, 1])
    const wordy = new SettleRequest(() => {})
    for (let i = 0; i < 40; i++)
      wordy.add(i, 1, OUTCOME.deadLetter, undefined, 'x'.repeat(LIMITS.reasonBytesMax))
    const parts = frames(wordy, LIMITS.frameBytesMin)
    expect(parts.length).toBeGreaterThan(2)
    expect(parts.flat().length).toBe(40)
  })

  it('answers each waiter for its own tag, before and after the answer arrives', async () => {
    const request = new SettleRequest(() => {})
    ack(request, 1)
    ack(request, 2)
    const early = [request.answer(message(1)), request.answer(message(2))]
    request.stale([{ firstTag: 2, count: 5 }])
    request.finish(undefined)
    request.finish(undefined)
    const settled = await Promise.allSettled([
      ...early,
      request.answer(message(1)),
      request.answer(message(2)),
    ])
    expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'rejected'])
  })
})
