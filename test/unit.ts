/**
 * Runs before each file of the project `unit`: a unit test that opens a socket or starts a process fails. Assertions
 * are plain objects instead of proxies, which takes a quarter off the time of each call of `expect`; the compiler finds
 * a matcher whose name is misspelt.
 */
import { ChildProcess } from 'node:child_process'
import { Server, Socket } from 'node:net'
import { chai } from 'vitest'

chai.config.useProxy = false

function refuse(what: string): () => never {
  return () => {
    throw new Error(`A unit test ${what}. Add its file to INTEGRATION or FAULT in vitest.config.ts.`)
  }
}

Object.defineProperty(Socket.prototype, 'connect', { value: refuse('opens a socket') })
Object.defineProperty(Server.prototype, 'listen', { value: refuse('opens a socket') })
Object.defineProperty(ChildProcess.prototype, 'spawn', { value: refuse('starts a process') })
