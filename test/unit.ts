/**
 * Runs before each file of the project `unit`: a unit test that opens a socket or starts a process fails. Assertions
 * are plain objects instead of proxies, and each call of `expect` copies only the field of its state that changes, so
 * that it takes a third of the time. The compiler finds a matcher whose name is misspelt.
 */
import { ChildProcess } from 'node:child_process'
import { Server, Socket } from 'node:net'
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

function refuse(what: string): () => never {
  return () => {
    throw new Error(`A unit test ${what}. Add its file to INTEGRATION or FAULT in vitest.config.ts.`)
  }
}

Object.defineProperty(Socket.prototype, 'connect', { value: refuse('opens a socket') })
Object.defineProperty(Server.prototype, 'listen', { value: refuse('opens a socket') })
Object.defineProperty(ChildProcess.prototype, 'spawn', { value: refuse('starts a process') })
