/**
 * Requests that read from disk and so take several turns. A few of all clients run at a time, because each holds what it
 * found until it is answered; the others wait in line, and past a bound they are refused.
 *
 * After each wait a request calls `resume` before it looks at anything: other commands were handled meanwhile.
 */
import { LIMITS, SluiceError, clipText, type Fault } from '@sluice/protocol'
import type { Turn } from './turn.js'

/** Requests of all clients that run at a time, and that are known. */
const RUNNING_MAX = 8
const REQUESTS_MAX = 256

/** The client that asks. */
export interface Caller {
  /** Label of the client, for the history of what it does. */
  readonly label: string
  /** False: its connection is over, and it gets no answer. */
  readonly isOpen: boolean
}

/** Why a page ended before its end, after it had done something. What is at its `next` or `cursor` was not done. */
export interface CutShort {
  readonly error?: CutFault
}

export type CutFault = Pick<Fault, 'code' | 'retryable' | 'retryAfterMs' | 'message'>

export class DiskRequests {
  readonly #turn: Turn
  #running = 0
  readonly #waiting: (() => void)[] = []

  constructor(turn: Turn) {
    this.#turn = turn
  }

  /** @throws SluiceError TOO_MANY_REQUESTS; what `resume` and `work` throw */
  async run<Result>(caller: Caller, work: () => Promise<Result>): Promise<Result> {
    if (this.#running + this.#waiting.length >= REQUESTS_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${REQUESTS_MAX} requests that read from disk are running on this broker; another has to wait.`,
        { retryAfterMs: 1_000 },
      )
    }
    if (this.#running < RUNNING_MAX) this.#running++
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      this.resume(caller)
      return await work()
    } catch (error) {
      throw ofRequest(error)
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#running--
      else next()
    }
  }

  /** Begins a turn after a wait. @throws SluiceError SHUTTING_DOWN; CONNECTION_LOST when the caller is gone */
  resume(caller: Caller): void {
    this.#turn.beginAgain()
    if (!caller.isOpen) throw new SluiceError('CONNECTION_LOST', 'The client that sent the request is gone.')
  }
}

// What is stored belongs to no channel of the client that looks at it: that it is damaged ends the request alone.
function ofRequest(error: unknown): unknown {
  if (!(error instanceof SluiceError)) return error
  if (error.code !== 'CORRUPT' && error.code !== 'LOG_CORRUPT') return error
  return new SluiceError('CORRUPT', error.message, { scope: 'request', cause: error })
}

/** What can be answered. Anything else is a defect, after which nothing may be confirmed. @throws the defect */
export function cutFault(error: unknown): CutFault {
  if (!(error instanceof SluiceError)) throw error
  const { code, retryable, retryAfterMs, message } = error
  return { code, retryable, retryAfterMs, message: clipText(message, LIMITS.reasonBytesMax) }
}
