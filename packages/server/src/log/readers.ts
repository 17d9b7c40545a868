/**
 * The segments that are open for reading: a limited number, the most recently used ones. All reads of the file log go
 * through this class. A failed read is retried, because a lack of file descriptors or memory, or a slow disk, is not
 * damage. Only a wrong file size or a wrong checksum proves damage. This class compares the size, and its callers
 * compare checksums.
 *
 * Invariant: a file stays open while a reader uses it, even after its segment was freed or the log was closed; the last
 * user closes the file. A dropped segment cannot be acquired again.
 */
import { SluiceError } from '@sluice/protocol'
import type { Notify } from './notices.js'
import type { Disk, DiskFile } from './log.js'
import { corrupt, segmentName } from './segment.js'

/** Maximum number of segments that are kept open for reading. */
const READERS_OPEN_MAX = 32
/** Maximum number of concurrent reads: an append must always find a free thread in libuv's pool of four. */
const READS_MAX = 2
/** Pause before each retry of a failed read. After the last retry the read fails with READ_FAILED. */
const RETRY_MS: readonly number[] = [10, 40, 160, 640]

/** An acquired segment. The caller releases it once. */
export interface Reader {
  /**
   * Reads in the same way as `DiskFile.read`.
   * @throws SluiceError READ_FAILED after several tries, LOG_CORRUPT when the file has the wrong size
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
  /** Least recently used first. */
  readonly #open = new Map<number, SharedFile>()
  /**
   * Segments whose last read failed. The operator is notified when a segment is added, and not for its further
   * failures.
   */
  readonly #failing = new Set<number>()
  #reads = 0
  readonly #waiting: (() => void)[] = []

  constructor(options: ReadersOptions) {
    this.#options = options
  }

  /**
   * Returns a reader of segment `number`. Its first `read` opens the file, and rejects with LOG_CORRUPT if the size of
   * the file is not `segmentBytes`.
   */
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

  /** Drops a freed segment. Returns whether a reader still uses it. */
  drop(number: number): boolean {
    this.#failing.delete(number)
    const reader = this.#open.get(number)
    if (reader === undefined) return false
    this.#doom(reader)
    return reader.users > 0
  }

  /** Closes unused files now, and files in use when they are released. Failed reads are no longer retried. */
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

  /** Runs `work`, a read of the segment, with retries. */
  async withRetries<T>(reader: SharedFile, work: () => Promise<T>): Promise<T> {
    const { number } = reader
    for (let tries = 0; ; tries++) {
      try {
        const result = await this.#withinLimit(work)
        if (this.#failing.size > 0) this.#failing.delete(number)
        return result
      } catch (error) {
        if (error instanceof SluiceError) throw error
        const failure = readFailed(number, error)
        // A freed segment cannot be read again. The caller looks up the new position of the bytes.
        if (reader.doomed) throw failure
        if (!this.#failing.has(number)) {
          this.#failing.add(number)
          this.#options.notify('read-failed', `${failure.message} The broker tries again.`)
        }
        if (tries === RETRY_MS.length) throw failure
        // Frees file descriptors, because the read may have failed for lack of one.
        this.#closeIdle(READERS_OPEN_MAX)
        await this.#options.sleep(RETRY_MS[tries]!)
        if (reader.doomed) throw failure
      }
    }
  }

  async #withinLimit<T>(work: () => Promise<T>): Promise<T> {
    while (this.#reads >= READS_MAX) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    this.#reads++
    try {
      return await work()
    } finally {
      this.#reads--
      this.#waiting.shift()?.()
    }
  }

  // Closes up to `most` unused files, the least recently used first.
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
  /**
   * Set when the segment was freed, the log was closed, or the file descriptor was needed. The last user closes the
   * file.
   */
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
    return this.#readers.withRetries(this, async () => (await this.#opened()).read(position, length, into))
  }

  // A failed open is forgotten, so that the next try opens the file again.
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
    // If closing a file that was only read fails, nothing is lost.
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
