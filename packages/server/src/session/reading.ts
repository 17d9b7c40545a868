/**
 * Whether bytes of the peer are read: not while too many bytes of batches wait for their answers, nor while the disk is
 * behind. Called by the session when it has accepted something that is written to the log, and when answers went out.
 */

/** Bytes that can be stopped: a socket. */
export interface Source {
  pause(): void
  resume(): void
}

/** The disk, as far as it says when to stop reading. */
export interface Behind {
  /** So much waits for the disk that connections should not be read from. */
  readonly isBehind: boolean
  /** Calls back once that is over. */
  whenNotBehind(ready: () => void): void
}

export class Reading {
  isPaused = false
  readonly #disk: Behind
  readonly #source: Source
  readonly #inFlightBytesMax: number
  #waitsForDisk = false
  #isClosed = false

  constructor(disk: Behind, source: Source, inFlightBytesMax: number) {
    this.#disk = disk
    this.#source = source
    this.#inFlightBytesMax = inFlightBytesMax
  }

  /** A batch was accepted; `inFlightBytes` of batches are unanswered now. */
  accepted(inFlightBytes: number): void {
    if (inFlightBytes > this.#inFlightBytesMax || this.#disk.isBehind) this.#pause()
  }

  /** Answers went out; `inFlightBytes` of batches are unanswered now. */
  answered(inFlightBytes: number): void {
    if (this.isPaused && inFlightBytes <= this.#inFlightBytesMax / 2) this.#resume()
  }

  /** What makes facts is read no faster than the disk takes them. */
  waitForDisk(): void {
    if (!this.#disk.isBehind) return
    this.#pause()
    this.#resume()
  }

  /** The connection is closed; what still comes is not the session's. */
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
