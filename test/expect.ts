/**
 * Runs before each test file. Assertions are plain objects instead of proxies, and each call of `expect` copies only the
 * field of its state that changes, so that it takes a third of the time. The compiler finds a matcher whose name is
 * misspelt.
 */
import { beforeEach, chai, expect } from 'vitest'

chai.config.useProxy = false

/** The state of each `expect`. Each call copies the own fields of a state, and changes only `assertionCalls`. */
const states = (globalThis as unknown as Record<symbol, Map<unknown, object>>)[Symbol.for('matchers-object')]!

beforeEach(() => {
  const state = states.get(expect)!
  const assertionCalls = { value: 0, writable: true, enumerable: true, configurable: true }
  states.set(expect, Object.create(state, { assertionCalls }))
  return () => void states.set(expect, state)
})
