/**
 * The two storage interfaces of the broker. `Log` stores entries, one group commit each, at increasing positions.
 * `Disk` is the part of a file system that `FileLog` needs. The simulator implements `Disk`, and tests implement both.
 *
 * A position counts bytes over the whole history of the log: segment number × segment size + byte in the segment. A
 * position is never reused, not even after its segment was freed.
 */

export interface LogEntry {
  /** Position of the entry's header. */
  readonly position: number
  readonly lsn: number
  /**
   * The whole entry: header, batches and padding. The reader has verified its place in the chain, its CRC and the CRCs
   * of its records.
   */
  readonly bytes: Uint8Array
}

export interface LogBounds {
  /** Position of the oldest entry; equals `nextPosition` when the log has no entry. */
  readonly firstPosition: number
  /** Position of the next entry if that entry fits in the active segment. */
  readonly nextPosition: number
  readonly nextLsn: number
  /** CRC of the last entry; 0 when the log has no entry. */
  readonly lastCrc: number
  /**
   * A random number that belongs to this log. The CRC of every entry starts from it, so that entries of another log
   * never pass the check.
   */
  readonly salt: number
  /** Last position that was passed to `markCheckpoint` before the newest segment began; undefined if there was none. */
  readonly checkpoint: number | undefined
  /** Bytes of an unfinished entry that `open` cut off; 0 after a clean stop. */
  readonly cutBytes: number
}

export interface Log {
  /** Size of a segment in bytes, including its header. */
  readonly segmentBytes: number
  /**
   * Maximum size of an entry in bytes, including its header and padding: a multiple of ENTRY_ALIGN_BYTES, and at most
   * `segmentBytes - SEGMENT_HEADER_BYTES`. It must never decrease during the life of a log, because old batches and
   * pages are copied to new entries. See `entry-limits.ts` for the limits that follow from it.
   */
  readonly entryBytesMax: number
  /**
   * Finds the end of the log and cuts off an unfinished last entry.
   * @throws SluiceError LOG_CORRUPT with file and position
   */
  open(): Promise<LogBounds>
  /** Every entry from `position` to the durable end, in order. @throws SluiceError LOG_CORRUPT */
  read(position: number): AsyncIterable<LogEntry>
  /**
   * Whether the log has room for `bytes` besides the reserve for settles, state pages and relocation. `bytes` is the
   * total size of everything that has been accepted but not appended yet.
   */
  hasRoomFor(bytes: number, nowMs: number): boolean
  /**
   * Bytes that can be written until no segment is left, including the reserve. Computed from the last known free space.
   */
  room(): number
  /** Resolves as soon as an entry waits for a segment that cannot be created for lack of space. */
  stuck(): Promise<void>
  /**
   * Writes one whole entry at the position from `placeEntry` (see segment.ts); resolves when the entry is durable. Only
   * one append may be in progress.
   * @throws SluiceError LOG_FAILED: the process must stop without a retry or another confirmation
   */
  append(position: number, lsn: number, entry: Uint8Array): Promise<void>
  /**
   * Bytes from a durable part of the log, within one segment. Reads into `into`, which has that length, or into new memory.
   */
  readRange(position: number, length: number, into?: Uint8Array): Promise<Uint8Array>
  /** Records `position` in the header of every later segment. */
  markCheckpoint(position: number): void
  /** Frees the segments that end at or before `position`. Idempotent. */
  truncateBefore(position: number): Promise<void>
  usage(): LogUsage
  close(): Promise<void>
}

export interface LogUsage {
  /** Number of segments with entries, including the active one. */
  readonly segments: number
  /** Total size of these segments, in bytes. */
  readonly bytes: number
  /** Position of the first entry in the oldest segment. */
  readonly firstPosition: number
  /** Bytes written since `open`, including the zeros that fill new segments. */
  readonly writtenBytes: number
}

/** A file of a `Disk`. A read or write moves all bytes or rejects. */
export interface DiskFile {
  readonly bytes: number
  /** Reads into `into`, which has that length, or into new memory. */
  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array>
  /** Resolves when the bytes are on stable storage if the file was opened with `durable` (O_DSYNC). */
  write(position: number, bytes: Uint8Array): Promise<void>
  /** fdatasync: makes all earlier writes and the size durable. */
  sync(): Promise<void>
  close(): Promise<void>
}

/** One directory of files. Names have no path. */
export interface Disk {
  list(): Promise<string[]>
  /** `create`: creates an empty file, and fails if the file exists. `durable`: each write waits for stable storage. */
  open(name: string, options: { readonly create?: boolean; readonly durable?: boolean }): Promise<DiskFile>
  rename(from: string, to: string): Promise<void>
  remove(name: string): Promise<void>
  /** Makes all creations, renames and removals durable. */
  syncDirectory(): Promise<void>
  /** Free and total bytes of the file system. */
  space(): Promise<{ readonly freeBytes: number; readonly totalBytes: number }>
}
