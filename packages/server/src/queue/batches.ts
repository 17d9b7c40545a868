/**
 * The batches that hold the messages of one chunk, oldest first. Each has the index of its first message, its position
 * in the log, its time of publication, and its size in the log. Most positions and times are less than 2^32 above those
 * of the first batch, and few batches are as large as 64 KiB. While all batches of the chunk are within these limits, a
 * batch takes 12 bytes, and otherwise 20. The size matters, because ten million messages in batches of one need ten
 * million entries.
 *
 * A row is the part of a batch that is in this chunk. In a shared batch, which several queues use, a row also has the
 * index in the batch at which it begins, because the header of the batch has no offset of this queue. Instead of the size
 * of the batch it has its share (see shares.ts), and the number of its messages that were needed when the batch was
 * written. A table with such a row takes 24 bytes for each row.
 *
 * The whole table is in one array of 16-bit words, as in a page. A client that publishes to 10,000 queues in turn
 * misses the CPU cache for each queue: one array costs one miss, and eight arrays would cost eight.
 *
 * Words: the first eight are the index, position and time of the first batch, in the wide form. Positions and times in the
 * narrow form are relative to these. The eight words are followed by the words of each batch:
 *   narrow: first index · 2 of position · 2 of time · bytes    wide: first index · 4 of position · 3 of time · 2 of bytes
 *   shared: like wide, and then the index in the batch plus 1, or 0 in the row of a batch that is not shared · number of
 *   needed messages minus 1 in the low 10 bits, the scale of the share above them
 */
import { readU16, writeU16 } from '@sluice/protocol'
import { CHUNK_MESSAGES } from './bits.js'
import { REFER_BYTES } from './facts.js'

const BATCHES_FIRST = 2
/** A page with at most this many batches is copied word by word, because a view of the table would cost more than the copy. */
const COPIED_BY_WORD = 16
const NARROW = 6
const WIDE = 10
const SHARED = 12
/** Number of words before the words of the first batch. */
const AHEAD = 8
const FIRST = 0
const POSITION = 1
const TIME_NARROW = 3
const TIME_WIDE = 5
const BYTES_NARROW = 5
const BYTES_WIDE = 8
const INDEX_SHARED = 10
const NEEDED_SHARED = 11
/** Number of bits for the number of messages of a row, minus 1. */
const NEEDED_BITS = 10
const NEEDED_MASK = 2 ** NEEDED_BITS - 1
const WORD = 0x1_0000
/** Shared by all empty tables. Never changed. */
const NO_WORDS: Uint16Array = new Uint16Array(AHEAD + BATCHES_FIRST * NARROW)
const WORD_2 = 2 ** 32
const WORD_3 = 2 ** 48
/** The index in the batch of a row whose batch is not shared. */
export const NOT_SHARED = -1

/** The form of the rows of a table. */
export type BatchForm = 'narrow' | 'wide' | 'shared'
const WIDTH = { narrow: NARROW, wide: WIDE, shared: SHARED } as const

export class BatchTable {
  count = 0
  /** Number of batches that there is room for. */
  room = 0
  /** Number of words of one batch. */
  #width = NARROW
  #words = NO_WORDS

  get isNarrow(): boolean {
    return this.#width === NARROW
  }

  /** Whether the table may have rows of shared batches. */
  get hasShared(): boolean {
    return this.#width === SHARED
  }

  get form(): BatchForm {
    return this.isNarrow ? 'narrow' : this.hasShared ? 'shared' : 'wide'
  }

  /** Size of the table in a page. */
  get pageBytes(): number {
    return (this.isNarrow ? AHEAD + this.count * NARROW : this.count * this.#width) * 2
  }

  /** Adds a batch that counts `bytes`: its size, or its share if `share` is called next. Its first message has the index `first`, above all indexes in the table. */
  push(first: number, position: number, timeMs: number, bytes: number): void {
    const batch = this.count++
    if (this.count > this.room) this.#grow()
    if (batch === 0) {
      this.#words[FIRST] = first
      this.#setWide(0, position, timeMs)
    }
    this.#words[AHEAD + batch * this.#width] = first
    this.#set(batch, position, timeMs)
    if (this.isNarrow && bytes >= WORD) this.#widen(WIDE)
    const at = AHEAD + batch * this.#width
    if (this.isNarrow) this.#words[at + BYTES_NARROW] = bytes
    else {
      this.#setPair(at + BYTES_WIDE, bytes)
      // The words can be those of an earlier row.
      if (this.hasShared) this.#words[at + INDEX_SHARED] = 0
    }
  }

  /**
   * Makes the newest row that of a shared batch. Its first message has this index in the batch. `needed` of its messages
   * are needed, and its share has this scale.
   */
  share(index: number, needed: number, scale: number): void {
    if (!this.hasShared) this.#widen(SHARED)
    this.#words[AHEAD + (this.count - 1) * SHARED + INDEX_SHARED] = index + 1
    this.#setNeeded(this.count - 1, needed, scale)
  }

  #setNeeded(batch: number, needed: number, scale: number): void {
    this.#words[AHEAD + batch * SHARED + NEEDED_SHARED] = (needed - 1) | (scale << NEEDED_BITS)
  }

  /** Number of the row's messages that were needed when its shared batch was written. */
  sharedNeeded(batch: number): number {
    return (this.#words[AHEAD + batch * SHARED + NEEDED_SHARED]! & NEEDED_MASK) + 1
  }

  /** The scale of the row's share; 0 if the batch is not shared. */
  scale(batch: number): number {
    return this.isShared(batch) ? this.#words[AHEAD + batch * SHARED + NEEDED_SHARED]! >>> NEEDED_BITS : 0
  }

  /** The part of the row's share that belongs to `messages` of its messages. The batch must be shared. */
  shareOf(batch: number, messages: number): number {
    return ((this.bytes(batch) - REFER_BYTES) * messages) / this.sharedNeeded(batch)
  }

  /** Index of the row's first message in its shared batch; `NOT_SHARED` if the batch is not shared. */
  sharedIndex(batch: number): number {
    return this.hasShared ? this.#words[AHEAD + batch * SHARED + INDEX_SHARED]! - 1 : NOT_SHARED
  }

  /**
   * Removes the batches that hold none of the messages at `indexes`, which are in ascending order. The batch before a
   * removed one takes over its indexes. The first and the last batch are always kept: each may reach into a
   * neighbouring chunk, and then it must be found in both chunks.
   */
  keep(indexes: readonly number[]): void {
    const last = this.count - 1
    let kept = 1
    let newest = 0
    for (const index of indexes) {
      const batch = this.find(index)
      if (batch === newest || batch === last) continue
      newest = batch
      this.#copy(batch, kept++)
    }
    if (last > 0) this.#copy(last, kept++)
    this.count = kept
  }

  #copy(batch: number, to: number): void {
    const width = this.#width
    this.#words.copyWithin(AHEAD + to * width, AHEAD + batch * width, AHEAD + (batch + 1) * width)
  }

  /** Releases unused room, once no more batches can follow. */
  trim(): void {
    this.room = Math.max(this.count, BATCHES_FIRST)
    this.#words = this.#words.slice(0, AHEAD + this.room * this.#width)
  }

  /** Index of the first message of the batch. */
  first(batch: number): number {
    return this.#words[AHEAD + batch * this.#width]!
  }

  position(batch: number): number {
    const at = AHEAD + batch * this.#width
    return this.isNarrow ? this.#widePosition(0) + this.#pair(at + POSITION) : this.#widePosition(at)
  }

  timeMs(batch: number): number {
    const at = AHEAD + batch * this.#width
    return this.isNarrow ? this.#wideTime(0) + this.#pair(at + TIME_NARROW) : this.#wideTime(at)
  }

  /**
   * Bytes that the batch counts: its size in the log, even if it reaches into the next chunk. If it is shared, the share of
   * the row.
   */
  bytes(batch: number): number {
    const at = AHEAD + batch * this.#width
    return this.isNarrow ? this.#words[at + BYTES_NARROW]! : this.#pair(at + BYTES_WIDE)
  }

  isShared(batch: number): boolean {
    return this.hasShared && this.#words[AHEAD + batch * SHARED + INDEX_SHARED] !== 0
  }

  /** Sets the position and the size of a batch, which never grows, or the position and the share of a row. */
  move(batch: number, position: number, bytes: number): void {
    this.#set(batch, position, this.timeMs(batch))
    const at = AHEAD + batch * this.#width
    if (this.isNarrow) this.#words[at + BYTES_NARROW] = bytes
    else this.#setPair(at + BYTES_WIDE, bytes)
  }

  /** Like `move`, for a row of a shared batch. `needed` of its messages are needed. */
  moveShared(batch: number, position: number, share: number, needed: number, scale: number): void {
    this.move(batch, position, share)
    this.#setNeeded(batch, needed, scale)
  }

  /** Number of the batch that holds the message at `index`. */
  find(index: number): number {
    const words = this.#words
    const width = this.#width
    let low = 0
    let high = this.count - 1
    while (low < high) {
      const middle = (low + high + 1) >>> 1
      if (words[AHEAD + middle * width]! <= index) low = middle
      else high = middle - 1
    }
    return low
  }

  /** Index of the first message of the first batch at or after `timeMs`; `CHUNK_MESSAGES` if all batches are earlier. */
  since(timeMs: number): number {
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.timeMs(middle) < timeMs) low = middle + 1
      else high = middle
    }
    return low === this.count ? CHUNK_MESSAGES : this.first(low)
  }

  /** Position in the log of the batch that holds the message at `index`. */
  positionAt(index: number): number {
    return this.position(this.find(index))
  }

  /** Time of the batch that holds the message at `index`. */
  timeAt(index: number): number {
    return this.timeMs(this.find(index))
  }

  /** Writes the words into a page. The wide form omits the words before the first batch. Returns the end. */
  encode(bytes: Uint8Array, at: number): number {
    const end = at + this.pageBytes
    if (this.count <= COPIED_BY_WORD) {
      let word = this.isNarrow ? 0 : AHEAD
      for (let to = at; to < end; to += 2) writeU16(bytes, to, this.#words[word++]!)
      return end
    }
    const written = bytes.subarray(at, end)
    written.set(this.#pageWords)
    littleEndian(written)
    return end
  }

  /** Fills an empty table with the `count` batches that `encode` wrote. Returns the end. */
  decode(bytes: Uint8Array, at: number, count: number, form: BatchForm): number {
    this.#width = WIDTH[form]
    this.count = count
    this.room = Math.max(count, BATCHES_FIRST)
    this.#words = new Uint16Array(AHEAD + this.room * this.#width)
    const end = at + this.pageBytes
    if (count <= COPIED_BY_WORD) {
      let word = this.isNarrow ? 0 : AHEAD
      for (let from = at; from < end; from += 2) this.#words[word++] = readU16(bytes, from)
      return end
    }
    this.#pageWords.set(bytes.subarray(at, end))
    littleEndian(this.#pageWords)
    return end
  }

  // The words of a page, as bytes. Reading ten million batches word by word took 0.3 s longer at each start.
  get #pageWords(): Uint8Array {
    const { buffer, byteOffset } = this.#words
    return new Uint8Array(buffer, byteOffset + (this.isNarrow ? 0 : AHEAD * 2), this.pageBytes)
  }

  #set(batch: number, position: number, timeMs: number): void {
    const at = AHEAD + batch * this.#width
    if (!this.isNarrow) {
      this.#setWide(at, position, timeMs)
      return
    }
    const positionAbove = position - this.#widePosition(0)
    const timeAbove = timeMs - this.#wideTime(0)
    if (positionAbove >= 0 && positionAbove < WORD_2 && timeAbove >= 0 && timeAbove < WORD_2) {
      this.#setPair(at + POSITION, positionAbove)
      this.#setPair(at + TIME_NARROW, timeAbove)
      return
    }
    this.#widen(WIDE)
    this.#setWide(AHEAD + batch * WIDE, position, timeMs)
  }

  // Changes a narrow table to another form, or a wide table to the shared form.
  #widen(width: typeof WIDE | typeof SHARED): void {
    const wide = new Uint16Array(AHEAD + this.room * width)
    for (let batch = 0; batch < this.count; batch++) wide[AHEAD + batch * width] = this.first(batch)
    const positions = Array.from({ length: this.count }, (_, batch) => this.position(batch))
    const times = positions.map((_, batch) => this.timeMs(batch))
    const bytes = positions.map((_, batch) => this.bytes(batch))
    this.#width = width
    this.#words = wide
    for (let batch = 0; batch < this.count; batch++) {
      this.#setWide(AHEAD + batch * width, positions[batch]!, times[batch]!)
      this.#setPair(AHEAD + batch * width + BYTES_WIDE, bytes[batch]!)
    }
  }

  #grow(): void {
    const words = this.#words
    this.room = Math.min(Math.max(BATCHES_FIRST, this.room * 2), CHUNK_MESSAGES)
    this.#words = new Uint16Array(AHEAD + this.room * this.#width)
    if (words !== NO_WORDS) this.#words.set(words)
  }

  #widePosition(at: number): number {
    return (
      this.#pair(at + POSITION) +
      this.#words[at + POSITION + 2]! * WORD_2 +
      this.#words[at + POSITION + 3]! * WORD_3
    )
  }

  #wideTime(at: number): number {
    return this.#pair(at + TIME_WIDE) + this.#words[at + TIME_WIDE + 2]! * WORD_2
  }

  #setWide(at: number, position: number, timeMs: number): void {
    this.#setPair(at + POSITION, position % WORD_2)
    this.#setPair(at + POSITION + 2, Math.floor(position / WORD_2))
    this.#setPair(at + TIME_WIDE, timeMs % WORD_2)
    this.#words[at + TIME_WIDE + 2] = Math.floor(timeMs / WORD_2)
  }

  #pair(at: number): number {
    return this.#words[at]! + this.#words[at + 1]! * WORD
  }

  #setPair(at: number, value: number): void {
    this.#words[at] = value & 0xffff
    this.#words[at + 1] = value >>> 16
  }
}

const IS_BIG_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 0

/** Converts words between the byte order of this machine and that of pages. */
function littleEndian(bytes: Uint8Array): void {
  if (!IS_BIG_ENDIAN) return
  for (let at = 0; at < bytes.length; at += 2) {
    const first = bytes[at]!
    bytes[at] = bytes[at + 1]!
    bytes[at + 1] = first
  }
}
