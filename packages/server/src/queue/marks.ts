/**
 * What state each message of one chunk is in, as sets of indexes. As long as many messages are live it is a bit for each
 * of 1,024 in each set. When few of a full chunk are left, only those are listed: a chunk with one dead message in it
 * takes what one message takes.
 *
 * Invariant: a message that is gone is in no other set that anybody looks at.
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
  /** Volatile, as all that follow: leased, waiting for its time or its turn, or dead; not in the plain line. */
  out: 1,
  /** In a queue by time or in the line of a key, for its time or for its turn. */
  waiting: 2,
  /** Of these, those whose time has come. */
  ripe: 3,
  /** Delivered at least once since the broker started. */
  seen: 4,
  /** Among those that the line keeps because they came back behind the oldest that it looks for. */
  behind: 5,
  /** Among the plain ones that the line keeps because they came back before its cursor. */
  returned: 6,
} as const
export type Mark = (typeof MARK)[keyof typeof MARK]

const SETS = 7
/** A full chunk with no more live messages than these lists them. */
export const LISTED_MAX = 32
/** Of an entry in the list: the index in the bits from here on, below them a bit for each set but `gone`. */
const INDEX_SHIFT = SETS - 1
const OUT_WORDS = MARK.out * CHUNK_WORDS
const SEEN_WORDS = MARK.seen * CHUNK_WORDS
const SEEN_FLAG = flagOf(MARK.seen)
const OUT_FLAG = flagOf(MARK.out)

export class Marks {
  /** The sets one after the other; undefined while nothing is marked. */
  #words: Uint32Array | undefined
  /** In place of them, once the live messages are listed: an entry for each, by index. */
  #list: number[] | undefined

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

  /** Marks `[from, to)`; returns how many were not marked before. */
  add(mark: Mark, from: number, to: number): number {
    if (this.#list !== undefined)
      return mark === MARK.gone ? this.#drop(from, to) : this.#flag(mark, from, to)
    this.#words ??= new Uint32Array(SETS * CHUNK_WORDS)
    return addBits(this.#words, mark * CHUNK_MESSAGES + from, mark * CHUNK_MESSAGES + to)
  }

  /** Unmarks `[from, to)`, which are live. */
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

  /** Word `number` of the set of those that are gone, while they are not listed. */
  goneWord(number: number): number {
    return this.#words === undefined ? 0 : this.#words[number]!
  }

  /** How many of `[from, to)` are gone. */
  countGone(from: number, to: number): number {
    if (this.#list !== undefined) return to - from - (this.#place(to) - this.#place(from))
    return this.#words === undefined ? 0 : countRange(this.#words, from, to)
  }

  /** First index in `[from, to)` that is neither gone nor out, or `to`. */
  firstFree(from: number, to: number): number {
    return this.#list === undefined
      ? this.#firstClear(OUT_WORDS, from, to)
      : this.#firstLive(OUT_FLAG, from, to)
  }

  /** First index in `[from, to)` that is not gone, or `to`. */
  firstLive(from: number, to: number): number {
    return this.#list === undefined ? this.#firstClear(0, from, to) : this.#firstLive(0, from, to)
  }

  /** First index in `[from, to)` that is gone or out, or `to`. */
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

  /** Of messages `[from, to)`, which are live, the first that was seen, or that was not; `to`, if there is none. */
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

  /** Of `[0, end)`, those that are not gone, in order. */
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

  /** Lists what is live of a full chunk, of which that is little. */
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
    // As long as it is, not as long as it could become.
    this.#list = list.slice()
    this.#words = undefined
  }

  // Place of the first entry in the list that is not before `index`.
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
    // Mostly it is one of a few: `splice` and `copyWithin` take longer.
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

  // First index that is neither gone nor in the set whose words begin there; 0: the set of those that are gone.
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

  // First index in the list that has not this flag.
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
