import { expect, test } from 'vitest'
import { REASON_HEAD_BYTES, Reasons } from './reasons.js'

const long = (number: number): string => `Error ${number}: ${'é'.repeat(500)}`

test('a shared text is kept once, and forgotten with the last message that has it', () => {
  const reasons = new Reasons()
  const text = long(1)
  const kept = Array.from({ length: 1_000 }, () => reasons.keep(long(1)))
  expect(new Set(kept)).toEqual(new Set([text]))
  const { bytes } = reasons
  expect(bytes).toBeGreaterThan(text.length)
  expect(bytes).toBeLessThan(2_000)
  for (const one of kept.slice(1)) reasons.forget(one)
  expect(reasons.bytes).toBe(bytes)
  reasons.forget(kept[0]!)
  expect(reasons.bytes).toBe(0)
})

test('short texts are kept in full, even if there are many', () => {
  const reasons = new Reasons(0)
  for (let number = 0; number < 5_000; number++) {
    const text = `${number} ${'x'.repeat(REASON_HEAD_BYTES - 6)}`.slice(0, REASON_HEAD_BYTES)
    expect(reasons.keep(text)).toBe(text)
  }
  expect(reasons.keep('')).toBe('')
  expect(reasons.bytes).toBe(0)
})

test('beyond the limit only the beginning of a long text is kept, and no character is split', () => {
  const reasons = new Reasons(10_000)
  const kept = Array.from({ length: 100 }, (_, number) => reasons.keep(long(number)))
  const whole = kept.filter((text, number) => text === long(number))
  expect(whole.length).toBe(8)
  expect(reasons.bytes).toBeLessThanOrEqual(10_000)
  for (const [number, text] of kept.entries()) {
    if (number < 8) continue
    expect(Buffer.byteLength(text)).toBeLessThanOrEqual(REASON_HEAD_BYTES)
    expect(Buffer.byteLength(text)).toBeGreaterThan(REASON_HEAD_BYTES - 2)
    expect(long(number).startsWith(text)).toBe(true)
  }
  // A text that is kept in full is kept in full for every message that shares it, and forgetting a text makes room for
  // others.
  expect(reasons.keep(long(0))).toBe(long(0))
  for (const text of kept) reasons.forget(text)
  reasons.forget(long(0))
  expect(reasons.bytes).toBe(0)
  expect(reasons.keep(long(99))).toBe(long(99))
})
