/**
 * Control requests: one frame each, with one frame as the answer. They wait while there is no connection.
 */
import { decodeControl, encodeControl, OP, SluiceError, type SluiceErrorNames } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import { fail as failCall } from './failure.js'
import { timeoutOf, type CallOptions } from './options.js'
import { aborted } from './outcomes.js'
import type { Session } from './session.js'

export type Body = { readonly [name: string]: unknown }

/** The frame that answers a request, and how it is read. */
export interface Answer<Result> {
  readonly opcode: number
  /** @throws SluiceError MALFORMED_FRAME */
  read(bytes: Uint8Array, start: number, end: number): Result
}

/**
 * What happens to a request that was sent when the connection is lost or the signal is aborted before the answer.
 * - `again`: it is sent on the next connection; an abort rejects at once.
 * - `once`: both reject with an unknown outcome.
 * - `answered`: like `once`, but an abort waits for the answer. For pages of a long call, which take about a second at
 *   most: the caller learns how far the call got.
 */
export type Repeat = 'again' | 'once' | 'answered'

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

  /** Sends a request with a body of msgpack. Rejects with a SluiceError. */
  async send<Result>(
    opcode: number,
    body: Body,
    repeat: Repeat,
    call: CallOptions | undefined,
    answer: Answer<Result>,
  ): Promise<Result> {
    return this.sendPayload(opcode, encodeControl(body), namesOf(opcode, body), repeat, call, answer)
  }

  /** Sends a request. `about` names what its errors concern. Rejects with a SluiceError. */
  sendPayload<Result>(
    opcode: number,
    payload: Uint8Array,
    about: SluiceErrorNames,
    repeat: Repeat,
    call: CallOptions | undefined,
    answer: Answer<Result>,
  ): Promise<Result> {
    return new Promise((resolve) => {
      // The copy has the stack of the caller.
      if (this.#closed !== undefined) throw this.#closed.with({})
      const signal = call?.signal
      if (signal?.aborted === true) throw aborted(signal, false)
      const { turn, deadlines, timeoutMs, connection } = this.#session
      const deadlineMs = performance.now() + timeoutOf(call, timeoutMs)
      let sent = false
      const onAbort = (): void => {
        const waits = this.#waiting.delete(request)
        if (sent && !waits && repeat === 'answered') return
        fail(aborted(signal!, sent))
      }
      let isOver = false
      const fail = (error: SluiceError): void => {
        // An aborted call may still get an error as its answer.
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
              // A stopping broker has not executed the request, so it is sent on the next connection.
              const again =
                error.code === 'SHUTTING_DOWN' || (repeat === 'again' && error.code === 'CONNECTION_LOST')
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

  /** Sends the requests that waited for a connection. */
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

  /** Rejects all waiting requests, and all later ones. */
  close(error: SluiceError): void {
    this.#closed = error
    for (const request of this.#waiting) request.fail(error)
    this.#waiting.clear()
  }
}

/** Requests whose `name` is not the name of a queue. */
const OF_SCHEDULES: ReadonlySet<number> = new Set([OP.SCHEDULE, OP.SCHEDULES, OP.UNSCHEDULE, OP.RUN_SCHEDULE])

/** The queue and the offset that a request concerns, for its error. */
function namesOf(opcode: number, { name, queue, offset }: Body): SluiceErrorNames {
  if (OF_SCHEDULES.has(opcode)) return {}
  const about = typeof name === 'string' ? name : queue
  return {
    queue: typeof about === 'string' ? about : undefined,
    offset: typeof offset === 'number' ? offset : undefined,
  }
}
