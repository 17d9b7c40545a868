/**
 * The segments that are open for reading, few at a time, those used last; the file log's reads borrow them.
 *
 * Invariant: a file is open for as long as somebody uses it, also when its segment is given back or the log closed
 * meanwhile, and is closed by whoever lets go of it last. A segment that is dropped has no reader here any more.
 */
import type { Disk, DiskFile } from './log.js'
import { corrupt, segmentName } from './segment.js'

/** Segments that are kept open for reading. */
const READERS_OPEN_MAX = 32

interface SharedFile {
  readonly number: number
  readonly file: Promise<DiskFile>
  users: number
  /** The segment was given back, or the log closed: the last user closes the file. */
  doomed: boolean
}

/** A file that is borrowed; every one that was acquired is released once. */
export type Reader = Readonly<SharedFile>

export class Readers {
  readonly #disk: Disk
  /** The end of the map is what was used last. */
  readonly #open = new Map<number, SharedFile>()

  constructor(disk: Disk) {
    this.#disk = disk
  }

  /** Its `file` rejects with LOG_CORRUPT when the segment does not have `segmentBytes`. */
  acquire(number: number, segmentBytes: number): Reader {
    let reader = this.#open.get(number)
    if (reader === undefined) {
      const file = this.#disk.open(segmentName(number), {}).then(async (opened) => {
        if (opened.bytes === segmentBytes) return opened
        await opened.close()
        throw corrupt(
          segmentName(number),
          opened.bytes,
          `the file has ${opened.bytes} bytes, not ${segmentBytes}`,
        )
      })
      reader = { number, file, users: 0, doomed: false }
      // Whoever asked hears of it; the next one tries again.
      file.catch(() => this.#open.delete(number))
    } else {
      this.#open.delete(number)
    }
    reader.users++
    this.#open.set(number, reader)
    if (this.#open.size > READERS_OPEN_MAX) {
      for (const candidate of this.#open.values()) {
        if (candidate.users > 0) continue
        this.#doom(candidate)
        break
      }
    }
    return reader
  }

  release(reader: Reader): void {
    const shared: SharedFile = reader
    shared.users--
    if (shared.doomed) this.#doom(shared)
  }

  /** Lets go of a segment that is given back. @returns whether somebody still reads it */
  drop(number: number): boolean {
    const reader = this.#open.get(number)
    if (reader === undefined) return false
    this.#doom(reader)
    return reader.users > 0
  }

  /** Closes what nobody uses; the rest is closed as it is released. */
  close(): void {
    for (const reader of this.#open.values()) this.#doom(reader)
  }

  #doom(reader: SharedFile): void {
    reader.doomed = true
    if (this.#open.get(reader.number) === reader) this.#open.delete(reader.number)
    if (reader.users > 0) return
    // A file that was only read loses nothing when closing it fails.
    reader.file.then((file) => file.close()).catch(() => undefined)
  }
}
