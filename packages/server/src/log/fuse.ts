/**
 * Whether a log may still write, and with what it ended. All that must reach the disk goes through `durably`; whoever
 * works in the background asks `stopped` before each step.
 *
 * Invariant: the first write or sync that fails blows the fuse for good. From then on no work is begun, and whoever
 * asks is told of that one failure: nothing is known of those bytes, and a later sync that succeeds proves nothing.
 */
import { SluiceError } from '@sluice/protocol'

/** What an operator should hear of; the log goes on after each but `failed`. */
export interface LogNotice {
  readonly kind: 'meta-rebuilt' | 'cut' | 'disk-low' | 'disk-ok' | 'no-segment' | 'read-failed' | 'failed'
  readonly text: string
}

export type Notify = (kind: LogNotice['kind'], text: string) => void

export class Fuse {
  readonly #notify: Notify
  readonly #onStop: () => void
  #failure: SluiceError | undefined
  #closed = false

  /** `onStop` is called when the fuse blows and when it is closed, after either can be seen here. */
  constructor(notify: Notify, onStop: () => void) {
    this.#notify = notify
    this.#onStop = onStop
  }

  /** LOG_FAILED, and always the same one, once something could not be written. */
  get failure(): SluiceError | undefined {
    return this.#failure
  }

  get closed(): boolean {
    return this.#closed
  }

  get stopped(): boolean {
    return this.#closed || this.#failure !== undefined
  }

  /** Nothing new is begun; what `durably` runs for an entry under way still may. */
  close(): void {
    this.#closed = true
    this.#onStop()
  }

  /** Runs what must reach the disk. Its first failure is the log's last word. */
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
