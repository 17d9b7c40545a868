/**
 * The state of single messages of one chunk, except what is in the batch table. Each message that needs this state has
 * a row of 32-bit words. A column exists only if some message needs it. The table is dense if most messages from some
 * index on have a row: then each column is an array, and one access finds a word. Otherwise it is sparse: the rows are
 * in one array, in the order of their indexes, and the first word of each row is its index. A message without a row has
 * 0 in all columns.
 *
 * Rows are removed only by `pack`, which keeps the rows of some messages, and by `restart`, which removes all rows.
 */
import { CHUNK_MESSAGES } from './bits.js'
import { ID_WORDS } from './hash.js'

/** Columns by name. Each has one word; a number that can reach 2^32 takes two columns. */
export const COLUMN = {
  /** Priority in the low 5 bits; the bits above them have the number of attempts that have been charged so far. */
  charge: 0,
  /** Time at which the message is or was due, ms; 0 if it has no due time. */
  due: 1,
  dueHigh: 2,
  /** Time at which the message expires, ms; 0 if it does not expire. */
  expiry: 3,
  expiryHigh: 4,
  /** Slot of the key, plus 1; 0 if the message has no key. */
  key: 5,
  /** Volatile: neighbours in the line of a key. */
  next: 6,
  nextHigh: 7,
  previous: 8,
  previousHigh: 9,
  /** Hash of the id, if the id must be known while the message is pending. */
  id: 10,
  id1: 11,
  id2: 12,
  id3: 13,
  /** Volatile: neighbours in the list of pending messages with the same id. */
  nextSameId: 14,
  nextSameIdHigh: 15,
  previousSameId: 16,
  previousSameIdHigh: 17,
  /** Size of the record; 0 if it is not known. */
  size: 18,
} as const
export type ColumnName = keyof typeof COLUMN
type Column = (typeof COLUMN)[ColumnName]

const COLUMNS = Object.keys(COLUMN).length
const ROWS_FIRST = 4
/** Factor by which the room of a dense table grows for a message beyond its end. */
const ROWS_GROWTH = 4
const WORD_2 = 2 ** 32
const NO_WORDS = new Uint32Array(0)
const NO_ARRAYS: readonly Uint32Array[] = Array.from({ length: COLUMNS }, () => NO_WORDS)
const ID_MASK = (2 ** ID_WORDS - 1) << COLUMN.id

/**
 * The columns of a table, and their places in a sparse row. There is one object for each combination of columns in use.
 */
interface Layout {
  readonly mask: number
  readonly columns: readonly number[]
  /** Number of words of a sparse row; the first word is the index of the message. */
  readonly width: number
  /** Place in the row, by column; 0 if the column does not exist. */
  readonly at: Uint8Array
}

const LAYOUTS = new Map<number, Layout>()

function layoutOf(mask: number): Layout {
  const known = LAYOUTS.get(mask)
  if (known !== undefined) return known
  const at = new Uint8Array(COLUMNS)
  const columns: number[] = []
  for (let column = 0; column < COLUMNS; column++)
    if ((mask >>> column) & 1) at[column] = columns.push(column)
  const layout = { mask, columns, width: 1 + columns.length, at }
  LAYOUTS.set(mask, layout)
  return layout
}

export class Columns {
  #layout = layoutOf(0)
  /** In a dense table, the words by column, for the rows from `#first` on; empty if the column does not exist. */
  #arrays = NO_ARRAYS.slice()
  /** In a dense table, the index of the first row. */
  #first = 0
  /** Number of rows in use. */
  #rows = 0
  /** Number of rows that there is room for. */
  #room = 0
  /** Whether the table is sparse: its rows are in `#words`, in the order of their indexes, which need not be consecutive. */
  #isSparse = false
  #words = NO_WORDS

  /** Number of rows that there is room for. */
  get room(): number {
    return this.#room
  }

  /** Whether the column exists: it was reserved, or some message had a value in it. */
  has(column: Column): boolean {
    return (this.#layout.mask & (1 << column)) !== 0
  }

  /** Whether any of the columns in this bit mask exists. */
  hasAny(columns: number): boolean {
    return (this.#layout.mask & columns) !== 0
  }

  get(column: Column, index: number): number {
    const words = this.#arrays[column]!
    const row = index - this.#first
    if (row >= 0 && row < words.length) return words[row]!
    return this.#isSparse ? this.#getSparse(column, index) : 0
  }

  /** Reads a number that is stored in two columns. */
  getWide(low: Column, high: Column, index: number): number {
    return this.get(low, index) + this.get(high, index) * WORD_2
  }

  /** Whether these are the four words of the message's id. */
  isId(index: number, h0: number, h1: number, h2: number, h3: number): boolean {
    return (
      this.get(COLUMN.id, index) === h0 &&
      this.get(COLUMN.id1, index) === h1 &&
      this.get(COLUMN.id2, index) === h2 &&
      this.get(COLUMN.id3, index) === h3
    )
  }

  set(column: Column, index: number, word: number): void {
    const words = this.#arrays[column]!
    const row = index - this.#first
    if (row >= 0 && row < words.length) {
      words[row] = word
      if (row >= this.#rows) this.#rows = row + 1
    } else this.#setSlowly(column, index, word)
  }

  /** Writes a number below 2^53 to two columns. The high column is created when a number needs it. */
  setWide(low: Column, high: Column, index: number, value: number): void {
    if (value < WORD_2) {
      this.set(low, index, value)
      if (this.has(high)) this.set(high, index, 0)
      return
    }
    this.#extend(this.#layout.mask | (1 << low) | (1 << high))
    const highWord = Math.floor(value / WORD_2)
    this.set(low, index, value - highWord * WORD_2)
    this.set(high, index, highWord)
  }

  /** Sets the four words of an id. */
  setId(index: number, words: Uint32Array, at: number): void {
    this.#extend(this.#layout.mask | ID_MASK)
    for (let word = 0; word < ID_WORDS; word++)
      this.set((COLUMN.id + word) as typeof COLUMN.id, index, words[at + word]!)
  }

  /** Creates these columns, and room for the first `count` messages, at once. */
  reserve(columns: readonly ColumnName[], count: number): void {
    let { mask } = this.#layout
    for (const name of columns) mask |= 1 << COLUMN[name]
    this.#extend(mask)
    if (this.#rows === 0 && count > this.#room) this.#resize(powerOf2(count))
  }

  /** Empties the table and reuses its room, because all messages below `index` are gone. */
  restart(index: number): void {
    if (this.#isSparse) this.#rebuild([], false, index, this.#room)
    for (const column of this.#layout.columns) this.#arrays[column]!.fill(0, 0, this.#rows)
    this.#rows = 0
    this.#first = index
  }

  /** Keeps only the rows of these messages, whose indexes are in order. Returns false if none of these messages has a row. */
  pack(indexes: readonly number[]): boolean {
    const kept: number[] = []
    for (const index of indexes) {
      const row = this.#isSparse ? this.#find(index) : index - this.#first
      if (row >= 0 && row < this.#rows && this.#hasWords(row)) kept.push(row, index)
    }
    const rows = kept.length / 2
    const first = kept[1] ?? 0
    const span = rows === 0 ? 0 : kept.at(-1)! - first + 1
    const isSparse = span > rows * 2
    this.#rebuild(kept, isSparse, first, isSparse ? rows : span)
    return rows > 0
  }

  // Rebuilds the table with `room` rows. `kept` has two numbers for each row to keep: the row and its index.
  #rebuild(kept: readonly number[], isSparse: boolean, first: number, room: number): void {
    const { columns, width, at } = this.#layout
    const arrays = NO_ARRAYS.slice()
    const words = isSparse ? new Uint32Array(room * width) : NO_WORDS
    if (!isSparse) for (const column of columns) arrays[column] = new Uint32Array(room)
    for (let place = 0; place < kept.length; place += 2) {
      const row = kept[place]!
      const index = kept[place + 1]!
      const to = (place / 2) * width
      if (isSparse) words[to] = index
      for (const column of columns) {
        const word = this.#word(column, row)
        if (isSparse) words[to + at[column]!] = word
        else arrays[column]![index - first] = word
      }
    }
    this.#arrays = arrays
    this.#words = words
    this.#room = room
    this.#first = first
    this.#isSparse = isSparse
    this.#rows = isSparse || kept.length === 0 ? kept.length / 2 : kept.at(-1)! - first + 1
  }

  #word(column: number, row: number): number {
    return this.#isSparse
      ? this.#words[row * this.#layout.width + this.#layout.at[column]!]!
      : this.#arrays[column]![row]!
  }

  // Whether any word of the row is not 0.
  #hasWords(row: number): boolean {
    return this.#layout.columns.some((column) => this.#word(column, row) !== 0)
  }

  #getSparse(column: Column, index: number): number {
    const at = this.#layout.at[column]!
    const row = at === 0 ? -1 : this.#find(index)
    return row < 0 ? 0 : this.#words[row * this.#layout.width + at]!
  }

  // Row of the message in a sparse table. If it has no row, -1 minus the place at which its row would be inserted.
  #find(index: number): number {
    const words = this.#words
    const { width } = this.#layout
    let low = 0
    let high = this.#rows
    while (low < high) {
      const middle = (low + high) >>> 1
      if (words[middle * width]! < index) low = middle + 1
      else high = middle
    }
    return low < this.#rows && words[low * width] === index ? low : -1 - low
  }

  // Sets a word that has no place in an array yet.
  #setSlowly(column: Column, index: number, word: number): void {
    if (!this.has(column)) {
      if (word === 0) return
      this.#extend(this.#layout.mask | (1 << column))
    }
    const row = this.#rowFor(index)
    if (this.#isSparse) this.#words[row * this.#layout.width + this.#layout.at[column]!] = word
    else this.#arrays[column]![row] = word
  }

  // The row of the message, created if absent.
  #rowFor(index: number): number {
    if (!this.#isSparse) {
      const row = index - this.#first
      const room = this.#room
      const more = Math.max(ROWS_FIRST, room * ROWS_GROWTH)
      if (row >= 0 && (row < room || (row < more && this.#rows * 2 >= room))) {
        if (row >= room) this.#resize(more)
        if (row >= this.#rows) this.#rows = row + 1
        return row
      }
      this.#rebuild(this.#all(), true, 0, this.#rows)
    }
    const row = this.#find(index)
    if (row >= 0) return row
    if (this.#rows === this.#room) {
      if (this.#isDenseUntil(index)) {
        const first = this.#words[0]!
        this.#rebuild(this.#all(), false, first, powerOf2(index - first + 1))
        this.#rows = index - first + 1
        return index - first
      }
      this.#resize(Math.max(1, this.#rows * 2))
    }
    return this.#insertRow(-1 - row, index)
  }

  // All rows and their indexes, in the form that `#rebuild` takes.
  #all(): number[] {
    const rows: number[] = []
    for (let row = 0; row < this.#rows; row++)
      rows.push(row, this.#isSparse ? this.#words[row * this.#layout.width]! : this.#first + row)
    return rows
  }

  // Whether the message comes after all rows, and most messages up to it have a row.
  #isDenseUntil(index: number): boolean {
    if (this.#rows === 0) return false
    const last = this.#words[(this.#rows - 1) * this.#layout.width]!
    return last < index && index - this.#words[0]! < this.#rows * 2
  }

  #insertRow(row: number, index: number): number {
    const { width } = this.#layout
    this.#words.copyWithin((row + 1) * width, row * width, this.#rows * width)
    this.#words.fill(0, row * width, (row + 1) * width)
    this.#words[row * width] = index
    this.#rows++
    return row
  }

  #resize(rows: number): void {
    const room = (this.#room = Math.min(rows, CHUNK_MESSAGES))
    if (this.#isSparse) this.#words = copyOf(this.#words, room * this.#layout.width)
    else for (const column of this.#layout.columns) this.#arrays[column] = copyOf(this.#arrays[column]!, room)
  }

  #extend(mask: number): void {
    const before = this.#layout
    if (mask === before.mask) return
    const { columns, width, at } = (this.#layout = layoutOf(mask))
    if (!this.#isSparse) {
      for (const column of columns)
        if (before.at[column] === 0) this.#arrays[column] = new Uint32Array(this.#room)
      return
    }
    const words = new Uint32Array(this.#room * width)
    for (let row = 0; row < this.#rows; row++) {
      words[row * width] = this.#words[row * before.width]!
      for (const column of before.columns)
        words[row * width + at[column]!] = this.#words[row * before.width + before.at[column]!]!
    }
    this.#words = words
  }
}

function copyOf(words: Uint32Array, length: number): Uint32Array<ArrayBuffer> {
  const copy = new Uint32Array(length)
  copy.set(words)
  return copy
}

function powerOf2(least: number): number {
  return 2 ** Math.ceil(Math.log2(least))
}
