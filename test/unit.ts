/** Runs before each file of the project `unit`: a unit test that opens a socket or starts a process fails. */
import { ChildProcess } from 'node:child_process'
import { Server, Socket } from 'node:net'

function refuse(what: string): () => never {
  return () => {
    throw new Error(`A unit test ${what}. Add its file to INTEGRATION or FAULT in vitest.config.ts.`)
  }
}

Object.defineProperty(Socket.prototype, 'connect', { value: refuse('opens a socket') })
Object.defineProperty(Server.prototype, 'listen', { value: refuse('opens a socket') })
Object.defineProperty(ChildProcess.prototype, 'spawn', { value: refuse('starts a process') })
