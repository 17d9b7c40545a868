/**
 * Requests of one connection that read from disk and take several turns. One request runs at a time. The session
 * starts the next request when the client has read most of the earlier answers, because all answers at once could
 * exceed the limit of unread bytes of a connection.
 */
import { SluiceError } from '@sluice/protocol'
import type { Answer } from './answers.js'

interface LongRequest {
  readonly correlation: number
  readonly work: () => Promise<Answer>
}

/** Maximum number of unanswered long requests of one connection. */
const WORKING_MAX = 16

export class LongRequests {
  /** Number of requests without an answer. */
  unanswered = 0
  #isWorking = false
  readonly #waiting: LongRequest[] = []
  readonly #finished: (correlation: number, answer: () => Answer) => void

  /** `finished` is called for each request, with a function that returns its answer or throws its error. */
  constructor(finished: (correlation: number, answer: () => Answer) => void) {
    this.#finished = finished
  }

  /** @throws SluiceError TOO_MANY_REQUESTS */
  add(correlation: number, work: () => Promise<Answer>): void {
    if (this.unanswered >= WORKING_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${WORKING_MAX} requests that read from disk are unanswered on this connection; no more are allowed.`,
      )
    }
    this.unanswered++
    this.#waiting.push({ correlation, work })
  }

  /** Starts the next request, unless a request is running. */
  next(): void {
    if (this.#isWorking) return
    const next = this.#waiting.shift()
    if (next === undefined) return
    const { correlation, work } = next
    this.#isWorking = true
    work().then(
      (answer) => this.#done(correlation, () => answer),
      (error: unknown) =>
        this.#done(correlation, () => {
          throw error
        }),
    )
  }

  /** Drops the requests that have not been started. */
  clear(): void {
    this.#waiting.length = 0
  }

  #done(correlation: number, answer: () => Answer): void {
    this.unanswered--
    this.#isWorking = false
    this.#finished(correlation, answer)
  }
}
