import { expect } from 'vitest'

/** `expect(actual).toBe(expected)` for loops over thousands of values: a call of `expect` takes microseconds. */
export function expectSame(actual: unknown, expected: unknown, message?: string): void {
  if (!Object.is(actual, expected)) expect(actual, message).toBe(expected)
}
