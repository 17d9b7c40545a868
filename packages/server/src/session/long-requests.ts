/**
 * Requests of one connection that read from disk and take several turns. One is done at a time, and the session says
 * when the next one may begin: once the answers before it are mostly read. All of them together would be more than may be
 * unread, of a peer that had no time to read.
 */
import { SluiceError } from '@sluice/protocol'
import type { Answer } from './answers.js'

interface LongRequest {
  readonly correlation: number
  readonly work: () => Promise<Answer>
}

/** Requests that take several turns, at a time on one connection. */
const WORKING_MAX = 16

export class LongRequests {
  /** Requests without an answer. */
  unanswered = 0
  #isWorking = false
  readonly #waiting: LongRequest[] = []
  readonly #finished: (correlation: number, answer: () => Answer) => void

  /** `finished` is called with what returns the answer, or throws the error, of one request. */
  constructor(finished: (correlation: number, answer: () => Answer) => void) {
    this.#finished = finished
  }

  /** @throws SluiceError TOO_MANY_REQUESTS */
  add(correlation: number, work: () => Promise<Answer>): void {
    if (this.unanswered >= WORKING_MAX) {
      throw new SluiceError(
        'TOO_MANY_REQUESTS',
        `${WORKING_MAX} requests that read from disk are running on this connection; another has to wait.`,
      )
    }
    this.unanswered++
    this.#waiting.push({ correlation, work })
  }

  /** Begins with the next one, unless one is being done. */
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

  /** None of those that wait is wanted any more. */
  clear(): void {
    this.#waiting.length = 0
  }

  #done(correlation: number, answer: () => Answer): void {
    this.unanswered--
    this.#isWorking = false
    this.#finished(correlation, answer)
  }
}
