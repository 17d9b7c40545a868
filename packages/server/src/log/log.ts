/**
 * The two seams under the broker. `Log` stores entries, one group commit each, at positions that only grow; `Disk`
 * is what the file implementation needs of a file system. The simulator stands in for `Disk`, tests for either.
 *
 * A position is a place in the whole log ever written: segment number × segment size + byte in the segment. It names
 * the same bytes for as long as they exist, and no other bytes ever.
 */

export interface LogEntry {
  /** Where the entry's header begins. */
  readonly position: number
  readonly lsn: number
  /** The whole entry: header, batches, padding. Verified: header chain, entry CRC, and the records' own CRCs. */
  readonly bytes: Uint8Array
}

export interface LogBounds {
  /** Where the oldest entry that is still there begins; equals `nextPosition` when there is none. */
  readonly firstPosition: number
  /** Where the next entry would begin if it fits the active segment. */
  readonly nextPosition: number
  readonly nextLsn: number
  /** CRC of the last entry; 0 when there is none. */
  readonly lastCrc: number
  /** Random, kept for the life of the log: salts every entry's CRC, so that bytes of another log never fit. */
  readonly salt: number
  /** Position that was passed to `markCheckpoint` before the newest segment began; undefined when there is none. */
  readonly checkpoint: number | undefined
  /** Bytes of an unfinished entry that were cut off the end; 0 after a clean stop. */
  readonly cutBytes: number
}

export interface Log {
  /** Bytes of a segment, its header included. No entry is longer than `segmentBytes - SEGMENT_HEADER_BYTES`. */
  readonly segmentBytes: number
  /**
   * Finds the end of the log and cuts off an unfinished last entry.
   * @throws SluiceError LOG_CORRUPT naming file and position
   */
  open(): Promise<LogBounds>
  /** Every entry from the one that begins at `position` to the end, in order. @throws SluiceError LOG_CORRUPT */
  read(position: number): AsyncIterable<LogEntry>
  /** Whether `bytes`, all that is accepted and not yet appended, has room while the reserve for settles, state pages and relocation stays whole. */
  reserve(bytes: number, nowMs: number): boolean
  /** Bytes that can be written, the reserve included, before there is no segment for more; as far as is known. */
  room(): number
  /** Resolves when an entry waits for a segment that cannot be made, for want of space: now, or once one does. */
  stuck(): Promise<void>
  /**
   * Writes one whole entry at the position that `placeEntry` gives (see segment.ts) and resolves when it is durable. One at a time.
   * @throws SluiceError LOG_FAILED: the process must stop, nothing may be confirmed any more, nothing is retried
   */
  append(position: number, lsn: number, entry: Uint8Array): Promise<void>
  /**
   * Bytes from a durable part of the log; never across a segment's end. They go to `into`, which is of that length, or else
   * to memory of their own.
   */
  readRange(position: number, length: number, into?: Uint8Array): Promise<Uint8Array>
  /** Recorded in the header of each segment that begins from now on. */
  markCheckpoint(position: number): void
  /** Gives back the segments that end at or before `position`. Idempotent. */
  truncateBefore(position: number): Promise<void>
  usage(): LogUsage
  close(): Promise<void>
}

export interface LogUsage {
  /** Segments that hold entries or may still do so, and their bytes. */
  readonly segments: number
  readonly bytes: number
  /** Of the oldest. */
  readonly firstPosition: number
  /** What was written since it was opened, the zeros that new segments are filled with among it. */
  readonly writtenBytes: number
}

/** A file of a `Disk`. Reads and writes are whole or they fail; a short one is an error of the implementation's. */
export interface DiskFile {
  readonly bytes: number
  /** They go to `into`, which is of that length, or else to memory of their own. */
  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array>
  /** With `durable` at `open`: resolves when the bytes are on stable storage (O_DSYNC). */
  write(position: number, bytes: Uint8Array): Promise<void>
  /** fdatasync; after it all earlier writes and the size are durable. */
  sync(): Promise<void>
  close(): Promise<void>
}

/** One directory of files, named without a path. */
export interface Disk {
  list(): Promise<string[]>
  /** `create`: make it, empty; it must not exist. `durable`: each write returns only when it is on stable storage. */
  open(name: string, options: { readonly create?: boolean; readonly durable?: boolean }): Promise<DiskFile>
  rename(from: string, to: string): Promise<void>
  remove(name: string): Promise<void>
  /** Makes creations, renames and removals durable. */
  syncDirectory(): Promise<void>
  /** Free and total bytes of the file system. */
  space(): Promise<{ readonly freeBytes: number; readonly totalBytes: number }>
}
