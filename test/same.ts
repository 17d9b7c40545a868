import { expect } from 'vitest'

/**
 * Like `expect(actual).toBe(expected)`, but fast enough for thousands of values: `expect` is called only if they
 * differ.
 */
export function expectSame(actual: unknown, expected: unknown, message?: string): void {
  if (!Object.is(actual, expected)) expect(actual, message).toBe(expected)
}
