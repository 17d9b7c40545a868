/** A disconnected producer uses memory only for the results that it may still ask for. */
import { expect, test } from 'vitest'
import { entryLimits } from '../log/entry-limits.js'
import { Producer } from './producers.js'
import { expectSame } from '../../../../test/same.js'

const ENTRY_LIMITS = entryLimits(4 << 20)
const KNOWN_BYTES = 20

function withBatches(count: number, unanswered: number): Producer {
  const producer = new Producer(1, '00'.repeat(16), ENTRY_LIMITS)
  for (let number = 1; number <= count; number++) {
    expectSame(producer.resultOf(number, number, Math.min(unanswered, number - 1)), undefined)
    producer.accept(number, number * 10, number)
  }
  return producer
}

test('shrinks a large window to the unanswered batches when the producer disconnects', () => {
  const producer = withBatches(5_000, 4_095)
  expect(producer.windowBytes).toBe(4_096 * KNOWN_BYTES)
  producer.shrink()
  expect(producer.windowBytes).toBe(4_096 * KNOWN_BYTES)
  for (let number = 5_001; number <= 5_100; number++) {
    producer.resultOf(number, number, 3)
    producer.accept(number, number * 10, number)
  }
  expect(producer.windowBytes).toBe(4_096 * KNOWN_BYTES)
  producer.shrink()
  expect(producer.windowBytes).toBe(16 * KNOWN_BYTES)
  // The producer reconnects, resends the unanswered batches, and continues.
  for (let number = 5_097; number <= 5_100; number++)
    expectSame(producer.resultOf(number, number, number - 5_097)?.[0]!.baseOffset, number * 10)
  for (let number = 5_101; number <= 6_000; number++) {
    expect(producer.resultOf(number, number, number - 5_097)).toBeUndefined()
    producer.accept(number, number * 10, number)
  }
  for (let number = 5_097; number <= 6_000; number++)
    expectSame(producer.resultOf(number, number, number - 5_097)?.[0]!.baseOffset, number * 10)
})

test('keeps the highest number but no result of a producer that will resend nothing', () => {
  const producer = withBatches(5_000, 4_095)
  producer.dirty = false
  producer.forgetAll()
  producer.shrink()
  expect(producer.windowBytes).toBe(0)
  expect(producer).toMatchObject({ highest: 5_000, windowStart: 5_001, dirty: true })
  expect(() => producer.resultOf(5_000, 5_000, 0)).toThrow(/older than the window/)
  const page = producer.encodePage()
  expect(page.length).toBeLessThan(100)
  expect(Producer.decodePage(page, 0, page.length, ENTRY_LIMITS)).toMatchObject({
    highest: 5_000,
    windowStart: 5_001,
  })
})

test('takes no memory without results, and accepts batches again', () => {
  const producer = new Producer(1, '00'.repeat(16), ENTRY_LIMITS)
  expect(producer.windowBytes).toBe(0)
  const first = 2 ** 40
  expect(producer.resultOf(first, 7, 0)).toBeUndefined()
  producer.accept(first, 10, 7)
  expect(producer.windowBytes).toBe(16 * KNOWN_BYTES)
  expect(producer.resultOf(first, 7, 0)?.[0]!.baseOffset).toBe(10)
  // After a lost connection the producer may still resend.
  producer.shrink()
  expect(producer.resultOf(first, 7, 0)?.[0]!.baseOffset).toBe(10)
  producer.forgetAll()
  producer.shrink()
  const page = producer.encodePage()
  expect(Producer.decodePage(page, 0, page.length, ENTRY_LIMITS).windowBytes).toBe(0)
  expect(producer.windowBytes).toBe(0)
  expect(producer.resultOf(first + 1, 8, 0)).toBeUndefined()
  producer.accept(first + 1, 20, 8)
  expect(producer.resultOf(first + 1, 8, 0)?.[0]!.baseOffset).toBe(20)
})
