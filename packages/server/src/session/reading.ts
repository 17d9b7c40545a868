/**
 * Decides when a connection is read. Reading is paused while too many bytes of its batches are unanswered, and while
 * the disk is behind. Called when a command has written facts, and when answers were sent.
 */

/** Input that can be paused, for example a socket. */
export interface Source {
  pause(): void
  resume(): void
}

/** The state of the disk on which reading depends. */
export interface DiskBacklog {
  /** Whether too many bytes wait for the disk, so that reading from connections must pause. */
  readonly isBehind: boolean
  /** Calls `ready` once the disk is no longer behind. */
  whenNotBehind(ready: () => void): void
}

export class Reading {
  isPaused = false
  readonly #backlog: DiskBacklog
  readonly #source: Source
  readonly #inFlightBytesMax: number
  #waitsForDisk = false
  #isClosed = false

  constructor(backlog: DiskBacklog, source: Source, inFlightBytesMax: number) {
    this.#backlog = backlog
    this.#source = source
    this.#inFlightBytesMax = inFlightBytesMax
  }

  /** Called when a batch was accepted. `inFlightBytes` is the total size of the batches that are unanswered now. */
  accepted(inFlightBytes: number): void {
    if (inFlightBytes > this.#inFlightBytesMax || this.#backlog.isBehind) this.#pause()
  }

  /** Called when answers were sent. `inFlightBytes` is the total size of the batches that are unanswered now. */
  answered(inFlightBytes: number): void {
    if (this.isPaused && inFlightBytes <= this.#inFlightBytesMax / 2) this.#resume()
  }

  /** Called when a command has written facts. Pauses reading while the disk is behind. */
  waitForDisk(): void {
    if (!this.#backlog.isBehind) return
    this.#pause()
    // Reading resumes when the disk is no longer behind.
    this.#resume()
  }

  /** Called when the connection is closed. Reading is never resumed. */
  close(): void {
    this.#isClosed = true
  }

  #pause(): void {
    if (this.isPaused) return
    this.isPaused = true
    this.#source.pause()
  }

  #resume(): void {
    if (this.#isClosed) return
    if (this.#backlog.isBehind) {
      if (this.#waitsForDisk) return
      this.#waitsForDisk = true
      this.#backlog.whenNotBehind(() => {
        this.#waitsForDisk = false
        this.#resume()
      })
      return
    }
    this.isPaused = false
    this.#source.resume()
  }
}
