/**
 * Control requests: each is one frame and is answered by one. They wait while there is no connection; those that may
 * be repeated are sent again when the connection was lost before the answer came.
 */
import { decodeControl, encodeControl, OP, SluiceError, type SluiceErrorNames } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import { fail as failCall } from './failure.js'
import { timeoutOf, type CallOptions } from './options.js'
import { aborted } from './outcomes.js'
import type { Session } from './session.js'

export type Body = { readonly [name: string]: unknown }

/** The frame that answers a request, and what it says. */
export interface Answer<Result> {
  readonly opcode: number
  /** @throws SluiceError MALFORMED_FRAME */
  read(bytes: Uint8Array, start: number, end: number): Result
}

export const RESULT: Answer<Body> = { opcode: OP.RESULT, read: decodeControl }

interface Pending {
  readonly deadlineMs: number
  readonly send: (connection: Connection) => void
  readonly fail: (error: SluiceError) => void
}

export class Requests {
  readonly #session: Session
  #waiting = new Set<Pending>()
  #closed: SluiceError | undefined

  constructor(session: Session) {
    this.#session = session
    session.deadlines.add((nowMs) => this.#sweep(nowMs))
  }

  /** `repeatable`: sent again when the connection was lost meanwhile. Rejects with a SluiceError. */
  send<Result>(
    opcode: number,
    body: Body,
    repeatable: boolean,
    call: CallOptions | undefined,
    answer: Answer<Result>,
  ): Promise<Result> {
    return new Promise((resolve) => {
      // A copy, whose stack has the line that called.
      if (this.#closed !== undefined) throw this.#closed.with({})
      const signal = call?.signal
      if (signal?.aborted === true) throw aborted(signal, false)
      const payload = encodeControl(body)
      const { turn, deadlines, timeoutMs, connection } = this.#session
      const deadlineMs = performance.now() + timeoutOf(call, timeoutMs)
      let sent = false
      const about = namesOf(body)
      const onAbort = (): void => {
        this.#waiting.delete(request)
        fail(aborted(signal!, sent))
      }
      let isOver = false
      const fail = (error: SluiceError): void => {
        // The answer to a call that was aborted may still come.
        if (isOver) return
        isOver = true
        removeAbortListener(signal, onAbort)
        failCall(resolve, error, about)
      }
      const request: Pending = {
        deadlineMs,
        fail,
        send: (connection) => {
          sent = true
          connection.request(opcode, 0, payload, {
            expects: answer.opcode,
            deadlineMs,
            answered: (bytes, start, end) => {
              const result = answer.read(bytes, start, end)
              removeAbortListener(signal, onAbort)
              isOver = true
              resolve(result)
            },
            failed: (error) => {
              // A broker that stops has done nothing: what it refuses goes to the next connection.
              const again = error.code === 'SHUTTING_DOWN' || (repeatable && error.code === 'CONNECTION_LOST')
              if (again && this.#closed === undefined && signal?.aborted !== true) this.#waiting.add(request)
              else fail(error)
            },
          })
        },
      }
      if (signal !== undefined) addAbortListener(signal, onAbort)
      deadlines.arm(deadlineMs)
      if (connection === undefined || connection.stopping) this.#waiting.add(request)
      else request.send(connection)
      turn.schedule()
    })
  }

  /** A connection is open: sends what has waited for one. */
  attach(connection: Connection): void {
    const waiting = this.#waiting
    this.#waiting = new Set()
    for (const request of waiting) request.send(connection)
  }

  #sweep(nowMs: number): number {
    let nextMs = Infinity
    for (const request of this.#waiting) {
      if (request.deadlineMs > nowMs) nextMs = Math.min(nextMs, request.deadlineMs)
      else {
        this.#waiting.delete(request)
        request.fail(
          new SluiceError('TIMEOUT', 'There was no connection before the deadline of the call passed.'),
        )
      }
    }
    return nextMs
  }

  /** Rejects what waits and everything that follows. */
  close(error: SluiceError): void {
    this.#closed = error
    for (const request of this.#waiting) request.fail(error)
    this.#waiting.clear()
  }
}

/** What a request is about, as its body names it. */
function namesOf({ name, queue, offset }: Body): SluiceErrorNames {
  const about = typeof name === 'string' ? name : queue
  return {
    queue: typeof about === 'string' ? about : undefined,
    offset: typeof offset === 'number' ? offset : undefined,
  }
}
