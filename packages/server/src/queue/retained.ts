/** The retained messages of one chunk: see `Retention`. Their batches stay in the log. */
import {
  CHUNK_MESSAGES,
  CHUNK_WORDS,
  addBits,
  countRange,
  hasBit,
  nextBit,
  nextGap,
  removeBits,
} from './bits.js'

/**
 * A chunk with more retained bytes than this stays in memory. The limit of bytes then releases its messages batch by
 * batch, so the queue keeps at most this many bytes too much. With records of 16 KiB or more, the tables of such a chunk
 * take less than a thousandth of its bytes.
 */
export const RETAINED_EXCESS_BYTES_MAX = 16 << 20
export class Retained {
  count: number
  /** Record bytes of these messages. */
  bytes: number
  /** Time of the last acknowledgement. */
  newestMs: number
  readonly words: Uint32Array

  constructor(words = new Uint32Array(CHUNK_WORDS), bytes = 0, newestMs = 0) {
    this.words = words
    this.count = countRange(words, 0, CHUNK_MESSAGES)
    this.bytes = bytes
    this.newestMs = newestMs
  }

  has(index: number): boolean {
    return hasBit(this.words, index)
  }

  /** Number of retained messages in `[from, to)`. */
  countIn(from: number, to: number): number {
    return to <= from ? 0 : countRange(this.words, from, to)
  }

  /** Index of the first retained message at or after `index`; CHUNK_MESSAGES if there is none. */
  next(index: number): number {
    return nextBit(this.words, index)
  }

  /** Index of the first message at or after `index` that is not retained; at most `end`. */
  endFrom(index: number, end: number): number {
    return Math.min(end, nextGap(this.words, index))
  }

  /** The indexes of the retained messages, in order. */
  *indexes(): Generator<number, void> {
    for (let index = this.next(0); index < CHUNK_MESSAGES; index = this.next(index + 1)) yield index
  }

  /** Adds the messages in `[from, to)`, whose records have `bytes` bytes. They were acknowledged at `timeMs`. */
  add(from: number, to: number, bytes: number, timeMs: number): void {
    this.count += addBits(this.words, from, to)
    this.bytes += bytes
    this.newestMs = Math.max(this.newestMs, timeMs)
  }

  /** Releases the messages in `[from, to)`, and returns their record bytes. */
  release(from: number, to: number): number {
    const count = this.countIn(from, to)
    const bytes = count === this.count ? this.bytes : (this.bytes * count) / this.count
    removeBits(this.words, from, to)
    this.count -= count
    this.bytes -= bytes
    return bytes
  }
}
