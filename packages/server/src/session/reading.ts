/**
 * Decides whether a connection is read. Reading is paused while too many bytes of its batches are unanswered, and while
 * the disk is behind. Called when a command has written facts, and when answers were sent.
 */

/** Input that can be paused: a socket. */
export interface Source {
  pause(): void
  resume(): void
}

/** The state of the disk on which reading depends. */
export interface Disk {
  /** So many bytes wait for the disk that connections must not be read. */
  readonly isBehind: boolean
  /** Calls `ready` once the disk is no longer behind. */
  whenNotBehind(ready: () => void): void
}

export class Reading {
  isPaused = false
  readonly #disk: Disk
  readonly #source: Source
  readonly #inFlightBytesMax: number
  #waitsForDisk = false
  #isClosed = false

  constructor(disk: Disk, source: Source, inFlightBytesMax: number) {
    this.#disk = disk
    this.#source = source
    this.#inFlightBytesMax = inFlightBytesMax
  }

  /** A batch was accepted. `inFlightBytes`: total size of the batches that are unanswered now. */
  accepted(inFlightBytes: number): void {
    if (inFlightBytes > this.#inFlightBytesMax || this.#disk.isBehind) this.#pause()
  }

  /** Answers were sent. `inFlightBytes`: total size of the batches that are unanswered now. */
  answered(inFlightBytes: number): void {
    if (this.isPaused && inFlightBytes <= this.#inFlightBytesMax / 2) this.#resume()
  }

  /** A command has written facts: pauses reading while the disk is behind. */
  waitForDisk(): void {
    if (!this.#disk.isBehind) return
    this.#pause()
    this.#resume()
  }

  /** The connection is closed, so reading is never resumed. */
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
    if (this.#disk.isBehind) {
      if (this.#waitsForDisk) return
      this.#waitsForDisk = true
      this.#disk.whenNotBehind(() => {
        this.#waitsForDisk = false
        this.#resume()
      })
      return
    }
    this.isPaused = false
    this.#source.resume()
  }
}
