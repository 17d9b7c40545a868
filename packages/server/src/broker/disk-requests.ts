/**
 * Requests that read from disk and therefore take several turns. Only a few requests run at a time, because each keeps
 * its results in memory until it is answered. The other requests wait, and requests beyond a limit are refused. Used by
 * `operator.ts`, `replays.ts` and `history.ts`.
 *
 * Invariant: after each wait a request calls `resume` before it reads any state, because other commands were handled
 * in the meantime.
 */
import { LIMITS, SluiceError, clipText, type Fault } from '@sluice/protocol'
import type { Turn } from './turn.js'

/**
 * Limits for all clients together: the maximum number of running requests, and the maximum number of running and
 * waiting requests.
 */
const RUNNING_MAX = 8
const REQUESTS_MAX = 256

/** Maximum number of messages that one page examines, whether they match or not. */
export const EXAMINED_MAX = 100_000
/** Number of messages that a request examines before other input is served; this takes about a millisecond. */
export const EXAMINED_IN_TURN = 512

/** The client that sent a request. */
export interface Caller {
  /** Label of the client, which the history of a message shows. */
  readonly label: string
  /** Whether the client is connected. A client that is not connected gets no answer. */
  readonly isOpen: boolean
}

/**
 * Why a page stopped early after it changed some messages. The message at the page's `next` or `cursor` is unchanged.
 */
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

  /**
   * Runs `work` as soon as the limit of running requests allows it.
   * @throws SluiceError TOO_MANY_REQUESTS; errors of `resume` and `work`
   */
  async run<Result>(caller: Caller, work: () => Promise<Result>): Promise<Result> {
    if (this.#running + this.#waiting.length >= REQUESTS_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${REQUESTS_MAX} requests that read from disk are running or waiting on this broker; no more are allowed. Try again when one has ended.`,
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

  /** Interrupts a long request so that other input is served. @throws SluiceError SHUTTING_DOWN, CONNECTION_LOST */
  async pause(caller: Caller): Promise<void> {
    await this.#turn.pass()
    this.resume(caller)
  }

  /** Begins a turn after a wait. @throws SluiceError SHUTTING_DOWN; CONNECTION_LOST when the caller is gone */
  resume(caller: Caller): void {
    this.#turn.beginAgain()
    if (!caller.isOpen) throw new SluiceError('CONNECTION_LOST', 'The client that sent the request is gone.')
  }
}

// Damage in the log ends only the request: it does not affect any channel of the client.
function ofRequest(error: unknown): unknown {
  if (!(error instanceof SluiceError)) return error
  if (error.code !== 'CORRUPT' && error.code !== 'LOG_CORRUPT') return error
  return new SluiceError('CORRUPT', error.message, { scope: 'request', cause: error })
}

/**
 * Returns the fault for the answer. An error that is not a SluiceError is a defect, after which nothing may be
 * confirmed.
 * @throws the defect
 */
export function cutFault(error: unknown): CutFault {
  if (!(error instanceof SluiceError)) throw error
  const { code, retryable, retryAfterMs, message } = error
  return { code, retryable, retryAfterMs, message: clipText(message, LIMITS.reasonBytesMax) }
}
