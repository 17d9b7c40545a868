/**
 * The states of the messages of one chunk, as sets of indexes. While many messages are live, each set has 1,024 bits.
 * When few live messages are left in a full chunk, only the live messages are listed: a chunk with one dead message
 * takes the room of one message.
 *
 * Invariant: if a message is gone, none of its other marks is read.
 */
import {
  CHUNK_MESSAGES,
  CHUNK_WORDS,
  addBits,
  countRange,
  hasBit,
  removeBits,
  trailingZeros,
  wordMask,
} from './bits.js'

export const MARK = {
  gone: 0,
  /** The message is leased, scheduled, due or dead: it is not in the plain line. This mark and all that follow are volatile. */
  out: 1,
  /** The message is scheduled or due: it is in a time queue or in the line of a key. */
  waiting: 2,
  /** The message is in `waiting` and is due. */
  due: 3,
  /** The message was delivered and returned at least once since the broker started. */
  seen: 4,
  /**
   * The message returned after the cursor of the drop order had passed it; it is in the `#behind` queue of
   * `drop-order.ts`.
   */
  behind: 5,
  /** The message is plain and returned after the cursor of the line had passed it; it is in `returned.ts`. */
  returned: 6,
  /** The message is in the line of its key, before the messages that have not failed; see `key-lines.ts`. */
  first: 7,
} as const
export type Mark = (typeof MARK)[keyof typeof MARK]

const SETS = 8
/** A full chunk with this many live messages or fewer lists them. */
export const LISTED_MAX = 32
/** An entry of the list has the index from this bit upwards, and below it one bit for each set except `gone`. */
const INDEX_SHIFT = SETS - 1
const OUT_WORDS = MARK.out * CHUNK_WORDS
const SEEN_WORDS = MARK.seen * CHUNK_WORDS
const SEEN_FLAG = flagOf(MARK.seen)
const OUT_FLAG = flagOf(MARK.out)

export class Marks {
  /** The sets, one after another; undefined while nothing is marked, or when the live messages are listed. */
  #words: Uint32Array | undefined
  /** The list: an entry for each live message, in the order of indexes. */
  #list: number[] | undefined

  /** Whether no message was ever marked. */
  get areNone(): boolean {
    return this.#words === undefined && this.#list === undefined
  }

  get areListed(): boolean {
    return this.#list !== undefined
  }

  has(mark: Mark, index: number): boolean {
    if (this.#list === undefined)
      return this.#words !== undefined && hasBit(this.#words, mark * CHUNK_MESSAGES + index)
    const entry = this.#list[this.#place(index)]
    const isLive = entry !== undefined && entry >>> INDEX_SHIFT === index
    return mark === MARK.gone ? !isLive : isLive && (entry & flagOf(mark)) !== 0
  }

  /** Marks `[from, to)` and returns how many were not marked before. */
  add(mark: Mark, from: number, to: number): number {
    if (this.#list !== undefined)
      return mark === MARK.gone ? this.#drop(from, to) : this.#flag(mark, from, to)
    this.#words ??= new Uint32Array(SETS * CHUNK_WORDS)
    return addBits(this.#words, mark * CHUNK_MESSAGES + from, mark * CHUNK_MESSAGES + to)
  }

  /** Removes the mark from `[from, to)`, which are live. */
  delete(mark: Mark, from: number, to: number): void {
    const list = this.#list
    if (list === undefined) {
      if (this.#words !== undefined)
        removeBits(this.#words, mark * CHUNK_MESSAGES + from, mark * CHUNK_MESSAGES + to)
      return
    }
    for (let place = this.#place(from); place < list.length && list[place]! >>> INDEX_SHIFT < to; place++)
      list[place]! &= ~flagOf(mark)
  }

  /** Word `number` of the set `gone`. Must not be called while the messages are listed. */
  goneWord(number: number): number {
    return this.#words === undefined ? 0 : this.#words[number]!
  }

  /** Number of messages in `[from, to)` that are gone. */
  countGone(from: number, to: number): number {
    if (this.#list !== undefined) return to - from - (this.#place(to) - this.#place(from))
    return this.#words === undefined ? 0 : countRange(this.#words, from, to)
  }

  /** First index in `[from, to)` that is neither gone nor out; `to` if there is none. */
  firstFree(from: number, to: number): number {
    return this.#list === undefined
      ? this.#firstClear(OUT_WORDS, from, to)
      : this.#firstLive(OUT_FLAG, from, to)
  }

  /** First index in `[from, to)` that is not gone; `to` if there is none. */
  firstLive(from: number, to: number): number {
    return this.#list === undefined ? this.#firstClear(0, from, to) : this.#firstLive(0, from, to)
  }

  /** First index in `[from, to)` that is gone or out; `to` if there is none. */
  firstTaken(from: number, to: number): number {
    const list = this.#list
    const words = this.#words
    if (list !== undefined) {
      let index = from
      for (let place = this.#place(from); index < to; place++, index++) {
        const entry = list[place]
        if (entry === undefined || entry >>> INDEX_SHIFT !== index || (entry & OUT_FLAG) !== 0) break
      }
      return index
    }
    if (words === undefined) return to
    for (let index = from; index < to;) {
      const word = index >>> 5
      const taken = (words[word]! | words[OUT_WORDS + word]!) & wordMask(index, to)
      if (taken !== 0) return (word << 5) + trailingZeros(taken)
      index = (word + 1) << 5
    }
    return to
  }

  /**
   * First index in `[from, to)` whose mark `seen` is `isSeen`; `to` if there is none. All messages in the range must be
   * live.
   */
  firstSeen(isSeen: boolean, from: number, to: number): number {
    const list = this.#list
    const words = this.#words
    if (list !== undefined) {
      let place = this.#place(from)
      let index = from
      for (; index < to && ((list[place]! & SEEN_FLAG) !== 0) !== isSeen; place++) index++
      return index
    }
    if (words === undefined) return isSeen ? to : from
    for (let index = from; index < to;) {
      const word = index >>> 5
      const seen = words[SEEN_WORDS + word]!
      const found = (isSeen ? seen : ~seen) & wordMask(index, to)
      if (found !== 0) return (word << 5) + trailingZeros(found)
      index = (word + 1) << 5
    }
    return to
  }

  /** Indexes in `[0, end)` that are not gone, in order. */
  liveIndexes(end: number): number[] {
    const indexes: number[] = []
    if (this.#list !== undefined) {
      for (const entry of this.#list) indexes.push(entry >>> INDEX_SHIFT)
      return indexes
    }
    for (let from = 0; from < end; from += 32) {
      const gone = this.#words === undefined ? 0 : this.#words[from >>> 5]!
      for (let live = ~gone & wordMask(from, end); live !== 0; live &= live - 1)
        indexes.push(from + trailingZeros(live))
    }
    return indexes
  }

  /** Replaces the sets with a list. The chunk must be full, and few of its messages live. */
  list(): void {
    const words = this.#words
    if (words === undefined) return
    const list = this.liveIndexes(CHUNK_MESSAGES)
    for (let place = 0; place < list.length; place++) {
      const index = list[place]!
      let entry = index << INDEX_SHIFT
      for (let mark = 1; mark < SETS; mark++)
        if (hasBit(words, mark * CHUNK_MESSAGES + index)) entry |= flagOf(mark as Mark)
      list[place] = entry
    }
    // The copy has the exact length; the original has room to grow.
    this.#list = list.slice()
    this.#words = undefined
  }

  // Position in the list of the first entry with an index of at least `index`.
  #place(index: number): number {
    const list = this.#list!
    let low = 0
    let high = list.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (list[middle]! >>> INDEX_SHIFT < index) low = middle + 1
      else high = middle
    }
    return low
  }

  #drop(from: number, to: number): number {
    const list = this.#list!
    const start = this.#place(from)
    const end = this.#place(to)
    // A list is short, so a loop is faster than `splice` and `copyWithin`.
    let kept = start
    for (let place = end; place < list.length; place++) list[kept++] = list[place]!
    list.length = kept
    return end - start
  }

  #flag(mark: Mark, from: number, to: number): number {
    const list = this.#list!
    const flag = flagOf(mark)
    let added = 0
    for (let place = this.#place(from); place < list.length && list[place]! >>> INDEX_SHIFT < to; place++) {
      if ((list[place]! & flag) === 0) added++
      list[place]! |= flag
    }
    return added
  }

  // First index that is neither gone nor in the set whose words begin at `other`. If `other` is 0, only `gone` is checked.
  #firstClear(other: number, from: number, to: number): number {
    const words = this.#words
    if (words === undefined) return from
    for (let index = from; index < to;) {
      const word = index >>> 5
      const free = ~(words[word]! | words[other + word]!) & wordMask(index, to)
      if (free !== 0) return (word << 5) + trailingZeros(free)
      index = (word + 1) << 5
    }
    return to
  }

  // First index in the list without this flag.
  #firstLive(flag: number, from: number, to: number): number {
    const list = this.#list!
    for (let place = this.#place(from); place < list.length; place++) {
      const entry = list[place]!
      const index = entry >>> INDEX_SHIFT
      if (index >= to) return to
      if ((entry & flag) === 0) return index
    }
    return to
  }
}

function flagOf(mark: Mark): number {
  return (1 << mark) >>> 1
}
