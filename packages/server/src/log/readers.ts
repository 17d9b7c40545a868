/**
 * The segments that are open for reading, few at a time, those used last; all reads of the file log go through here.
 * A read that fails is tried again: no file descriptor, no memory and a disk that answers late are not damage. Whether
 * bytes are damaged is told by their checksums alone, and those are compared elsewhere.
 *
 * Invariant: a file is open for as long as somebody uses it, also when its segment is given back or the log closed
 * meanwhile, and is closed by whoever lets go of it last. A segment that is dropped has no reader here any more.
 */
import { SluiceError } from '@sluice/protocol'
import type { Notify } from './notices.js'
import type { Disk, DiskFile } from './log.js'
import { corrupt, segmentName } from './segment.js'

/** Segments that are kept open for reading. */
const READERS_OPEN_MAX = 32
/** Reads at once: a commit must always find a free thread in libuv's pool of four. */
const READS_MAX = 2
/** Pauses before a read that failed is tried again; after the last one it is given up with READ_FAILED. */
const RETRY_MS: readonly number[] = [10, 40, 160, 640]

/** A segment that is borrowed; every one that was acquired is released once. */
export interface Reader {
  /**
   * Like that of a `DiskFile`.
   * @throws SluiceError READ_FAILED after some tries, LOG_CORRUPT when the segment does not have its size
   */
  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array>
}

export interface ReadersOptions {
  readonly disk: Disk
  readonly notify: Notify
  readonly sleep: (ms: number) => Promise<void>
}

export class Readers {
  readonly #options: ReadersOptions
  /** The end of the map is what was used last. */
  readonly #open = new Map<number, SharedFile>()
  /** Segments whose last read failed: told once, until one succeeds. */
  readonly #failing = new Set<number>()
  #reads = 0
  readonly #waiting: (() => void)[] = []

  constructor(options: ReadersOptions) {
    this.#options = options
  }

  /** Its `read` rejects with LOG_CORRUPT when the segment does not have `segmentBytes`. */
  acquire(number: number, segmentBytes: number): Reader {
    let reader = this.#open.get(number)
    if (reader === undefined) reader = new SharedFile(this, number, segmentBytes)
    else this.#open.delete(number)
    reader.users++
    this.#open.set(number, reader)
    if (this.#open.size > READERS_OPEN_MAX) this.#closeIdle(1)
    return reader
  }

  release(reader: Reader): void {
    const shared = reader as SharedFile
    shared.users--
    if (shared.doomed) this.#doom(shared)
  }

  /** Lets go of a segment that is given back. @returns whether somebody still reads it */
  drop(number: number): boolean {
    this.#failing.delete(number)
    const reader = this.#open.get(number)
    if (reader === undefined) return false
    this.#doom(reader)
    return reader.users > 0
  }

  /** Closes what nobody uses; the rest is closed as it is released. No read is tried again. */
  close(): void {
    for (const reader of this.#open.values()) this.#doom(reader)
  }

  /** Opens the file of a segment. */
  async open(number: number, segmentBytes: number): Promise<DiskFile> {
    const name = segmentName(number)
    const opened = await this.#options.disk.open(name, {})
    if (opened.bytes === segmentBytes) return opened
    await opened.close()
    throw corrupt(name, opened.bytes, `the file has ${opened.bytes} bytes, not ${segmentBytes}`)
  }

  /** Runs `work`, a read in the segment, in its turn, until it succeeds or was tried often enough. */
  async patiently<T>(reader: SharedFile, work: () => Promise<T>): Promise<T> {
    const { number } = reader
    for (let tries = 0; ; tries++) {
      try {
        const result = await this.#inTurn(work)
        if (this.#failing.size > 0) this.#failing.delete(number)
        return result
      } catch (error) {
        if (error instanceof SluiceError) throw error
        const failure = readFailed(number, error)
        // Nothing comes back of a segment that was given back; who asks looks where the bytes are now.
        if (reader.doomed) throw failure
        if (!this.#failing.has(number)) {
          this.#failing.add(number)
          this.#options.notify('read-failed', `${failure.message} It is tried again.`)
        }
        if (tries === RETRY_MS.length) throw failure
        // Where a file descriptor is missing, some may be free from now on.
        this.#closeIdle(READERS_OPEN_MAX)
        await this.#options.sleep(RETRY_MS[tries]!)
        if (reader.doomed) throw failure
      }
    }
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    while (this.#reads >= READS_MAX) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    this.#reads++
    try {
      return await work()
    } finally {
      this.#reads--
      this.#waiting.shift()?.()
    }
  }

  // Up to `most` of those that nobody uses, the ones first that were used longest ago.
  #closeIdle(most: number): void {
    let closed = 0
    for (const candidate of this.#open.values()) {
      if (candidate.users > 0) continue
      this.#doom(candidate)
      if (++closed === most) return
    }
  }

  #doom(reader: SharedFile): void {
    reader.doomed = true
    if (this.#open.get(reader.number) === reader) this.#open.delete(reader.number)
    if (reader.users === 0) reader.close()
  }
}

class SharedFile implements Reader {
  readonly number: number
  users = 0
  /** The segment was given back, or the log closed: the last user closes the file. */
  doomed = false
  readonly #readers: Readers
  readonly #segmentBytes: number
  #file: Promise<DiskFile> | undefined

  constructor(readers: Readers, number: number, segmentBytes: number) {
    this.#readers = readers
    this.number = number
    this.#segmentBytes = segmentBytes
  }

  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    return this.#readers.patiently(this, async () => (await this.#opened()).read(position, length, into))
  }

  // What could not be opened is opened anew by the next try.
  #opened(): Promise<DiskFile> {
    if (this.#file === undefined) {
      const file = this.#readers.open(this.number, this.#segmentBytes)
      this.#file = file
      file.catch(() => {
        if (this.#file === file) this.#file = undefined
      })
    }
    return this.#file
  }

  close(): void {
    // A file that was only read loses nothing when closing it fails.
    this.#file?.then((file) => file.close()).catch(() => undefined)
    this.#file = undefined
  }
}

function readFailed(number: number, cause: unknown): SluiceError {
  const why = cause instanceof Error ? cause.message : String(cause)
  return new SluiceError('READ_FAILED', `${segmentName(number)} could not be read: ${why}.`, {
    cause,
    retryAfterMs: 1_000,
  })
}
