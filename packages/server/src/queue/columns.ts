/**
 * What is known of single messages of one chunk beyond what their batch says: a table with a row of 32-bit words for
 * each message, and only the columns that any of them needs. It costs by what is in it. Where most messages from some
 * index on have a row, rows are side by side. Where few have one, rows are in the order of their indexes, and the first
 * word of each is its index. A message without a row has 0 in all columns.
 *
 * The owner says when rows may go: `pack` keeps those of the messages that it names.
 */
import { CHUNK_MESSAGES } from './bits.js'
import { ID_WORDS } from './hash.js'

/** Columns by name; each has one word, numbers beyond 2^32 take two. */
export const COLUMN = {
  /** Priority in the low 5 bits, above them the attempts that were charged so far. */
  charge: 0,
  /** Time at which the message is or was due, ms; 0: it has not to wait. */
  due: 1,
  dueHigh: 2,
  /** Time at which it expires, ms; 0: never. */
  expiry: 3,
  expiryHigh: 4,
  /** Slot of the key, plus 1; 0: it has none. */
  key: 5,
  /** Volatile: neighbours in the line of a key. */
  next: 6,
  nextHigh: 7,
  previous: 8,
  previousHigh: 9,
  /** Hash of the id that has to be known while the message is pending. */
  id: 10,
  id1: 11,
  id2: 12,
  id3: 13,
  /** Volatile: neighbours in the list of pending messages that have one id. */
  nextLike: 14,
  nextLikeHigh: 15,
  previousLike: 16,
  previousLikeHigh: 17,
  /** Size of the record; 0 where it is not known. */
  size: 18,
} as const
export type ColumnName = keyof typeof COLUMN
type Column = (typeof COLUMN)[ColumnName]

const COLUMNS = Object.keys(COLUMN).length
const ROWS_FIRST = 4
const WORD_2 = 2 ** 32
const NO_WORDS = new Uint32Array(0)
const ID_MASK = (2 ** ID_WORDS - 1) << COLUMN.id

/** Which columns there are, and where in a row. One object for each combination that occurs. */
interface Layout {
  /** Words of a row; the first one is its index. */
  readonly width: number
  /** Place in the row by column; 0: there is no such column. */
  readonly at: Uint8Array
}

const LAYOUTS = new Map<number, Layout>()

function layoutOf(mask: number): Layout {
  const known = LAYOUTS.get(mask)
  if (known !== undefined) return known
  const at = new Uint8Array(COLUMNS)
  let width = 1
  for (let column = 0; column < COLUMNS; column++) if ((mask >>> column) & 1) at[column] = width++
  const layout = { width, at }
  LAYOUTS.set(mask, layout)
  return layout
}

export class Columns {
  #mask = 0
  /** Of the layout: where each column is in a row, and the words of a row. */
  #at = layoutOf(0).at
  #width = layoutOf(0).width
  #words = NO_WORDS
  /** Rows in use. */
  #rows = 0
  /** Index that the first row is of, while they are not sparse. */
  #first = 0
  /** Rows are in the order of their indexes, with gaps between them. */
  #isSparse = false

  /** Rows that there is room for. */
  get room(): number {
    return this.#words.length / this.#width
  }

  /** Whether any message was given anything in this column. */
  has(column: Column): boolean {
    return this.#at[column] !== 0
  }

  get(column: Column, index: number): number {
    const place = this.place(column, index)
    return place < 0 ? 0 : this.#words[place]!
  }

  /** A number in two columns. */
  getWide(low: Column, high: Column, index: number): number {
    const place = this.place(low, index)
    if (place < 0) return 0
    const highAt = this.#at[high]!
    const number = this.#words[place]!
    return highAt === 0 ? number : number + this.#words[place - this.#at[low]! + highAt]! * WORD_2
  }

  /** Where the word is, for `wordAt`; negative where it is 0. Columns that always come together are side by side. */
  place(column: Column, index: number): number {
    const at = this.#at[column]!
    if (at === 0) return -1
    const row = this.#isSparse ? this.#find(index) : index - this.#first
    return row < 0 || row >= this.#rows ? -1 : row * this.#width + at
  }

  wordAt(place: number): number {
    return this.#words[place]!
  }

  set(column: Column, index: number, word: number): void {
    if (this.#at[column] === 0) {
      if (word === 0) return
      this.#extend(this.#mask | (1 << column))
    }
    const row = this.#rowFor(index)
    this.#words[row * this.#width + this.#at[column]!] = word
  }

  /** Sets a number below 2^53 in two columns, of which the high one is there once a number needs it. */
  setWide(low: Column, high: Column, index: number, value: number): void {
    if (value < WORD_2) {
      this.set(low, index, value)
      if (this.#at[high] !== 0) this.set(high, index, 0)
      return
    }
    this.#extend(this.#mask | (1 << low) | (1 << high))
    this.set(low, index, value % WORD_2)
    this.set(high, index, Math.floor(value / WORD_2))
  }

  /** Sets the four words of an id. */
  setId(index: number, words: Uint32Array, at: number): void {
    this.#extend(this.#mask | ID_MASK)
    const place = this.#rowFor(index) * this.#width + this.#at[COLUMN.id]!
    for (let word = 0; word < ID_WORDS; word++) this.#words[place + word] = words[at + word]!
  }

  /** There will be these columns, and rows of the first `count` messages: each is made once. */
  reserve(columns: readonly ColumnName[], count: number): void {
    let mask = this.#mask
    for (const name of columns) mask |= 1 << COLUMN[name]
    this.#extend(mask)
    if (this.#rows === 0 && count > this.room) this.#resize(powerOf2(count))
  }

  /** All messages below `index` are gone: the room serves the next ones. */
  restart(index: number): void {
    this.#words.fill(0, 0, this.#rows * this.#width)
    this.#rows = 0
    this.#first = index
    this.#isSparse = false
  }

  /** Keeps the rows of these messages, which come in order; false when nothing is known of any. */
  pack(indexes: Iterable<number>): boolean {
    const width = this.#width
    const kept: number[] = []
    for (const index of indexes) {
      const row = this.#isSparse ? this.#find(index) : index - this.#first
      if (row >= 0 && row < this.#rows && this.#says(row)) kept.push(row, index)
    }
    const rows = kept.length / 2
    const first = kept[1] ?? 0
    const span = rows === 0 ? 0 : kept.at(-1)! - first + 1
    const isSparse = span > rows * 2
    const words = new Uint32Array((isSparse ? rows : span) * width)
    for (let at = 0; at < kept.length; at += 2) {
      const from = kept[at]! * width
      const index = kept[at + 1]!
      const to = (isSparse ? at / 2 : index - first) * width
      for (let word = 1; word < width; word++) words[to + word] = this.#words[from + word]!
      if (isSparse) words[to] = index
    }
    this.#words = words
    this.#rows = isSparse ? rows : span
    this.#first = first
    this.#isSparse = isSparse
    return rows > 0
  }

  // Whether anything is in the row.
  #says(row: number): boolean {
    const end = (row + 1) * this.#width
    let word = row * this.#width + 1
    while (word < end && this.#words[word] === 0) word++
    return word < end
  }

  // Row of the message in a sparse table; of one that has none, -1 minus where it would be.
  #find(index: number): number {
    const words = this.#words
    const width = this.#width
    let low = 0
    let high = this.#rows
    while (low < high) {
      const middle = (low + high) >>> 1
      if (words[middle * width]! < index) low = middle + 1
      else high = middle
    }
    return low < this.#rows && words[low * width] === index ? low : -1 - low
  }

  // The row of the message; made if there is none.
  #rowFor(index: number): number {
    if (!this.#isSparse) {
      const row = index - this.#first
      if (row >= 0) {
        if (row < this.#rows) return row
        const { room } = this
        if (row < room || (row < Math.max(ROWS_FIRST, room * 2) && this.#rows * 2 >= room)) {
          if (row >= room) this.#resize(Math.max(ROWS_FIRST, room * 2))
          this.#rows = row + 1
          return row
        }
      }
      this.#number()
    }
    const row = this.#find(index)
    if (row >= 0) return row
    if (this.#rows === this.room) {
      if (this.#isDenseUntil(index)) {
        this.#spread(index)
        return index - this.#first
      }
      this.#resize(Math.max(1, this.#rows * 2))
    }
    return this.#open(-1 - row, index)
  }

  // Whether the message comes after all that have a row, and most up to it have one.
  #isDenseUntil(index: number): boolean {
    if (this.#rows === 0) return false
    const last = this.#words[(this.#rows - 1) * this.#width]!
    return last < index && index - this.#words[0]! < this.#rows * 2
  }

  #open(row: number, index: number): number {
    const width = this.#width
    this.#words.copyWithin((row + 1) * width, row * width, this.#rows * width)
    this.#words.fill(0, row * width, (row + 1) * width)
    this.#words[row * width] = index
    this.#rows++
    return row
  }

  // From each row at its index to rows that say their index.
  #number(): void {
    for (let row = 0; row < this.#rows; row++) this.#words[row * this.#width] = this.#first + row
    this.#isSparse = true
  }

  // The other way round, with a row for `last`.
  #spread(last: number): void {
    const width = this.#width
    const first = this.#words[0]!
    const words = new Uint32Array(powerOf2(last - first + 1) * width)
    for (let row = 0; row < this.#rows; row++) {
      const from = row * width
      words.set(this.#words.subarray(from, from + width), (this.#words[from]! - first) * width)
    }
    this.#words = words
    this.#first = first
    this.#rows = last - first + 1
    this.#isSparse = false
  }

  #resize(rows: number): void {
    const words = new Uint32Array(Math.min(rows, CHUNK_MESSAGES) * this.#width)
    words.set(this.#words.subarray(0, this.#rows * this.#width))
    this.#words = words
  }

  #extend(mask: number): void {
    if (mask === this.#mask) return
    const { at, width } = layoutOf(mask)
    const words = new Uint32Array(this.room * width)
    for (let row = 0; row < this.#rows; row++) words[row * width] = this.#words[row * this.#width]!
    for (let column = 0; column < COLUMNS; column++) {
      const from = this.#at[column]!
      if (from === 0) continue
      for (let row = 0; row < this.#rows; row++)
        words[row * width + at[column]!] = this.#words[row * this.#width + from]!
    }
    this.#mask = mask
    this.#at = at
    this.#width = width
    this.#words = words
  }
}

function powerOf2(least: number): number {
  return 2 ** Math.ceil(Math.log2(least))
}
