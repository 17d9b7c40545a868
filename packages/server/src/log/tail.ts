/**
 * The end of the log: the open entry, which fills while the entry before it is being written, and the gate for which
 * every answer waits. Entries are built in place in a recent block, and written whole, one at a time.
 *
 * Invariants: at most one write is in flight; entries become durable in the order of their LSNs; after a failed write
 * nothing more is written or reported durable (invariant 20).
 */
import type { Blocks, Block } from './blocks.js'
import { ENTRY_HEADER_BYTES, entryPaddedBytes, sealEntry } from './entry.js'
import type { Log, LogBounds } from './log.js'
import { placeEntry } from './segment.js'

export interface TailEvents {
  /** Called when every entry up to `lsn` is on disk. */
  durable(lsn: number): void
  /** Called when a write failed. The broker must not send any further answer. */
  failed(error: unknown): void
}

interface Sealed {
  readonly lsn: number
  readonly position: number
  readonly bytes: Uint8Array
}

/** An entry starts in a new block when fewer bytes than this are left in the current one. */
const BLOCK_REST_BYTES = 256 << 10

export class Tail {
  /** Epoch of new entries: the boot number. */
  epoch = 0
  /** LSN of the open entry. Its header is written when it is sealed. */
  openLsn: number
  durableLsn: number
  /** Bytes of entries since the broker started, including padding. */
  appendedBytes = 0
  /** Total size of the batches that were added since the broker started, in bytes. */
  addedBytes = 0
  /** The part of `addedBytes` that is upkeep: state pages and copies of live batches. */
  upkeepBytes = 0
  /** Memory of the open entry, set by `reserve`, which returns the index of the next batch in it. */
  bytes: Uint8Array = new Uint8Array(0)

  readonly #log: Log
  readonly #blocks: Blocks
  #events: TailEvents | undefined
  readonly #salt: number
  #previousCrc: number
  /** Position of the entry after the last sealed one, if that entry fits in the segment. */
  #next: number
  #block: Block | undefined
  #openPosition = -1
  #openStart = 0
  #openEnd = 0
  #openLimit = 0
  #openBatches = 0
  /** Entries that wait for the write in flight, and their total size in bytes. */
  readonly #sealed: Sealed[] = []
  #sealedBytes = 0
  #writing = false
  #stopped = false

  constructor(log: Log, bounds: LogBounds, blocks: Blocks) {
    this.#log = log
    this.#blocks = blocks
    this.#salt = bounds.salt
    this.#previousCrc = bounds.lastCrc
    this.#next = bounds.nextPosition
    this.openLsn = bounds.nextLsn
    this.durableLsn = bounds.nextLsn - 1
    blocks.setDurable(bounds.nextPosition)
  }

  /** Sets the receiver of events, once, before the first entry. */
  report(events: TailEvents): void {
    this.#events = events
  }

  /** Once the entry with this LSN is durable, everything that was appended so far is durable. */
  get gate(): number {
    return this.#openBatches > 0 ? this.openLsn : this.openLsn - 1
  }

  /** Whether no entry is open, waiting or being written. */
  get isIdle(): boolean {
    return this.#openBatches === 0 && this.#sealed.length === 0 && !this.#writing
  }

  /** Bytes that are appended and not durable yet. */
  get pendingBytes(): number {
    return this.#sealedBytes + (this.#openPosition === -1 ? 0 : this.#openEnd - this.#openStart)
  }

  /** Position at which the open entry begins, or the next entry if no entry is open. */
  get position(): number {
    return this.#openPosition === -1 ? this.#next : this.#openPosition
  }

  /**
   * Makes room for a batch of `length` bytes in the open entry. Seals that entry first if the batch does not fit: the
   * entry is then full, because it reached `entryBytesMax`, the end of its segment, or the end of its block. The caller
   * writes the batch to `bytes` at the returned index, and then calls `add`.
   */
  reserve(length: number, nowMs: number): number {
    if (this.#openPosition !== -1 && this.#openEnd + length > this.#openLimit) this.seal(nowMs)
    if (this.#openPosition === -1) this.#begin(length)
    return this.#openEnd
  }

  /**
   * Adds the batch that was written at the index from `reserve` to the open entry. Returns the batch's position in the
   * log.
   */
  add(length: number): number {
    const position = this.#openPosition + (this.#openEnd - this.#openStart)
    this.#openEnd += length
    this.#openBatches++
    this.addedBytes += length
    // Deliveries may read the batch before it is durable, but they wait for the gate.
    this.#block!.used = this.#openEnd
    return position
  }

  /** Seals and writes the open entry if it has a batch and no write is in flight. */
  flush(nowMs: number): void {
    if (this.#openBatches > 0 && !this.#writing) this.seal(nowMs)
  }

  /** Seals an entry without batches. An open entry with batches must be sealed first. */
  sealEmpty(nowMs: number): void {
    if (this.#openPosition === -1) this.#begin(0)
    this.seal(nowMs)
  }

  /** Continues in the next segment, which then starts with an entry without batches. */
  endSegment(nowMs: number): void {
    if (this.#openBatches > 0) this.seal(nowMs)
    const { segmentBytes } = this.#log
    this.#next = Math.ceil(this.#next / segmentBytes) * segmentBytes
    this.sealEmpty(nowMs)
  }

  /** Closes the open entry, and writes it if no write is in flight. Later batches go to the next entry. */
  seal(nowMs: number): void {
    const block = this.#block!
    const length = this.#openEnd - this.#openStart
    const padded = entryPaddedBytes(length)
    block.bytes.fill(0, this.#openEnd, this.#openStart + padded)
    this.#previousCrc = sealEntry(block.bytes, this.#openStart, length, {
      lsn: this.openLsn,
      position: this.#openPosition,
      epoch: this.epoch,
      previousCrc: this.#previousCrc,
      timeMs: nowMs,
      salt: this.#salt,
      batches: this.#openBatches,
    })
    block.used = this.#openStart + padded
    this.#sealed.push({
      lsn: this.openLsn,
      position: this.#openPosition,
      bytes: block.bytes.subarray(this.#openStart, this.#openStart + padded),
    })
    this.#sealedBytes += padded
    this.#next = this.#openPosition + padded
    this.#openPosition = -1
    this.#openBatches = 0
    this.openLsn++
    this.appendedBytes += padded
    this.#write()
  }

  #begin(length: number): void {
    const needed = entryPaddedBytes(ENTRY_HEADER_BYTES + length)
    const { segmentBytes, entryBytesMax } = this.#log
    if (needed > entryBytesMax)
      throw new RangeError(`An entry needs ${needed} bytes; entryBytesMax of the log is ${entryBytesMax}.`)
    const position = placeEntry(this.#next, needed, segmentBytes)
    const segmentEnd = (Math.floor(position / segmentBytes) + 1) * segmentBytes
    let block = this.#block
    let start = block === undefined ? -1 : position - block.position
    if (
      block === undefined ||
      start !== block.used ||
      block.bytes.length - start < Math.max(needed, BLOCK_REST_BYTES)
    ) {
      block = this.#blocks.begin(position, needed)
      start = 0
    }
    this.#block = block
    this.bytes = block.bytes
    this.#openPosition = position
    this.#openStart = start
    this.#openEnd = start + ENTRY_HEADER_BYTES
    // All three bounds are multiples of the alignment, so a padded entry still fits.
    this.#openLimit = Math.min(block.bytes.length, start + Math.min(segmentEnd - position, entryBytesMax))
  }

  #write(): void {
    if (this.#writing || this.#stopped) return
    const entry = this.#sealed.shift()
    if (entry === undefined) return
    this.#sealedBytes -= entry.bytes.length
    this.#writing = true
    this.#log.append(entry.position, entry.lsn, entry.bytes).then(
      () => {
        this.#writing = false
        if (this.#stopped) return
        this.durableLsn = entry.lsn
        this.#blocks.setDurable(entry.position + entry.bytes.length)
        this.#write()
        this.#events?.durable(entry.lsn)
      },
      (error: unknown) => {
        this.#stopped = true
        this.#events?.failed(error)
      },
    )
  }
}
