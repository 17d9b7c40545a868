/**
 * Whether a log may still write, and the failure that ended it. All writes that must reach the disk go through
 * `durably`; background work checks `stopped` before each step.
 *
 * Invariant: the first failed write or sync stops the log permanently. After that no work starts, and every caller gets
 * the same failure: the state of the failed bytes is unknown, and a later sync that succeeds proves nothing about them.
 */
import { SluiceError } from '@sluice/protocol'
import type { Notify } from './notices.js'

export class FailStop {
  readonly #notify: Notify
  readonly #onStop: () => void
  #failure: SluiceError | undefined
  #closed = false

  /** `onStop` is called after a failure and after `close`; `stopped` is then already true. */
  constructor(notify: Notify, onStop: () => void) {
    this.#notify = notify
    this.#onStop = onStop
  }

  /** The error LOG_FAILED once a write has failed; always the same object. */
  get failure(): SluiceError | undefined {
    return this.#failure
  }

  get closed(): boolean {
    return this.#closed
  }

  get stopped(): boolean {
    return this.#closed || this.#failure !== undefined
  }

  /** Stops new work; `durably` still runs for the append in progress. */
  close(): void {
    this.#closed = true
    this.#onStop()
  }

  /** Runs a write that must reach the disk. The first failed write ends the log. */
  async durably<T>(what: string, work: () => Promise<T>): Promise<T> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      return await work()
    } catch (cause) {
      this.#failure ??= new SluiceError(
        'LOG_FAILED',
        `${what} could not be written: ${cause instanceof Error ? cause.message : String(cause)}.`,
        { cause },
      )
      this.#notify('failed', this.#failure.message)
      this.#onStop()
      throw this.#failure
    }
  }
}
