/**
 * Known ids, for deduplication. Each id is kept as a keyed 128-bit hash (see hash.ts). In practice two ids never have the
 * same hash, and a client cannot construct two such ids.
 *
 * `IdWindow` remembers ids for a time after they were first accepted, in the order of acceptance. `PendingIds` knows
 * the ids of pending messages, that is, of messages that are neither gone nor dead. Neither forgets an id early to make
 * room, because callers check the limit before they add an id.
 */
import { readU32, readU64, writeU32, writeU64 } from '@sluice/protocol'
import type { Chunks } from './chunks.js'
import { ID_WORDS } from './hash.js'
import { HashIndex } from './hash-index.js'
import { NO_PAGES, PAGE, type Pages } from './pages.js'

const NONE = -1
/** Number of ids in one state page. */
const PAGE_IDS = 1024
const IDS_FIRST = 16
const PAGE_HEAD_BYTES = 16
const PAGE_ID_BYTES = 32

/** Up to `PAGE_IDS` ids that were accepted one after another. */
class IdPage {
  words = new Uint32Array(0)
  offsets = new Float64Array(0)
  times = new Float64Array(0)

  /** Makes room for at least this number of ids. */
  reserve(ids: number): void {
    let capacity = Math.max(IDS_FIRST, this.times.length)
    while (capacity < ids) capacity *= 2
    if (capacity === this.times.length) return
    const { words, offsets, times } = this
    this.words = new Uint32Array(capacity * ID_WORDS)
    this.offsets = new Float64Array(capacity)
    this.times = new Float64Array(capacity)
    this.words.set(words)
    this.offsets.set(offsets)
    this.times.set(times)
  }
}

/**
 * Ids in the order of acceptance: entry `n` is in page `n / PAGE_IDS`. A single table would need twice its room whenever
 * it grows.
 */
export class IdWindow extends HashIndex {
  /** Entries `[#first, #next)` are remembered. */
  #first = 0
  #next = 0
  /** Pages, starting with the page of entry `#first`. */
  #held: IdPage[] = []
  #heldFrom = 0
  readonly #queueId: number
  #pages: Pages
  /** Entries from here on are in no state page. */
  #cleanUntil = 0
  /** Ids that were accepted before this position of the log are in the restored pages. */
  restoredUntil = -1
  /** Pages that `restored` will add; only during recovery. */
  #read: Uint8Array[] | undefined

  constructor(pages: Pages = NO_PAGES, queueId = 0) {
    super()
    this.#pages = pages
    this.#queueId = queueId
  }

  protected override wordOf(entry: number): number {
    return this.#page(entry).words[(entry % PAGE_IDS) * ID_WORDS]!
  }

  protected override isHashOf(entry: number, h0: number, h1: number, h2: number, h3: number): boolean {
    const at = (entry % PAGE_IDS) * ID_WORDS
    const { words } = this.#page(entry)
    return words[at] === h0 && words[at + 1] === h1 && words[at + 2] === h2 && words[at + 3] === h3
  }

  #page(entry: number): IdPage {
    return this.#held[Math.floor(entry / PAGE_IDS) - this.#heldFrom]!
  }

  /** Number of remembered ids. */
  get count(): number {
    return this.size
  }

  /** Offset at which the id was accepted; -1 if it is not remembered. */
  find(words: Uint32Array, at: number): number {
    const entry = this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!)
    return entry === NONE ? NONE : this.#page(entry).offsets[entry % PAGE_IDS]!
  }

  /** Remembers that an id was accepted at `timeMs`, as the newest id. Replaces an older entry of the same id. */
  remember(words: Uint32Array, at: number, offset: number, timeMs: number): void {
    const older = this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!)
    if (older !== NONE) this.remove(older)
    this.#add(words, at, offset, timeMs)
  }

  #add(words: Uint32Array, at: number, offset: number, timeMs: number): void {
    const entry = this.#next++
    const page = this.#pageToFill(entry)
    const index = entry % PAGE_IDS
    for (let word = 0; word < ID_WORDS; word++) page.words[index * ID_WORDS + word] = words[at + word]!
    page.offsets[index] = offset
    page.times[index] = timeMs
    this.enter(entry)
  }

  #pageToFill(entry: number): IdPage {
    const number = Math.floor(entry / PAGE_IDS)
    if (this.#held.length === 0) this.#heldFrom = number
    let page = this.#held[number - this.#heldFrom]
    if (page === undefined) {
      this.#held.push((page = new IdPage()))
      this.#pages.created()
    }
    // The first page grows with its ids. Each further page has room for all its ids at once, because it will probably be full.
    page.reserve(this.#held.length === 1 ? (entry % PAGE_IDS) + 1 : PAGE_IDS)
    return page
  }

  /** Offset of the oldest remembered id; -1 if no id is remembered. */
  get oldestOffset(): number {
    return this.#first === this.#next ? NONE : this.#page(this.#first).offsets[this.#first % PAGE_IDS]!
  }

  /** Forgets ids that were accepted at `timeMs` or before. */
  forgetUntil(timeMs: number): void {
    while (this.#first < this.#next && this.#page(this.#first).times[this.#first % PAGE_IDS]! <= timeMs)
      this.#forgetFirst()
    this.#forgot()
  }

  /** Forgets the ids of messages below `offset`. */
  forgetBelow(offset: number): void {
    while (this.#first < this.#next && this.oldestOffset < offset) this.#forgetFirst()
    this.#forgot()
  }

  #forgetFirst(): void {
    if (this.#isCurrent(this.#first)) this.remove(this.#first)
    this.#first++
    if (this.#first % PAGE_IDS > 0) return
    this.#dropPage(this.#first / PAGE_IDS - 1)
    this.#held.shift()
    this.#heldFrom++
  }

  #forgot(): void {
    if (this.#first === this.#next) this.#dropPages()
    if (this.#cleanUntil < this.#first) this.#cleanUntil = this.#first
  }

  /** Called when the queue is deleted, and its pages with it. */
  drop(): void {
    for (let page = 0; page < this.#held.length; page++) this.#dropPage(this.#heldFrom + page)
    // Later changes are not reported any more.
    this.#pages = NO_PAGES
  }

  #dropPages(): void {
    for (let page = 0; page < this.#held.length; page++) this.#dropPage(this.#heldFrom + page)
    this.#held = []
  }

  #dropPage(page: number): void {
    this.#pages.removed(PAGE.ids, this.#queueId, page)
  }

  // If an id was accepted again after it was forgotten, only its newer entry is in the index.
  #isCurrent(entry: number): boolean {
    const at = (entry % PAGE_IDS) * ID_WORDS
    const { words } = this.#page(entry)
    return this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!) === entry
  }

  // --- state pages: u64 first entry · u32 count · u32 0 · entries of four u32 words, u64 offset, u64 time ---

  /**
   * Yields the numbers of the pages with entries that were not yet written to the log. Entries can be added while a
   * checkpoint waits between two pages, even to the page that was just written.
   */
  *pagesToWrite(): IterableIterator<number> {
    while (this.#cleanUntil < this.#next) yield Math.floor(Math.max(this.#cleanUntil, this.#first) / PAGE_IDS)
  }

  encodePage(page: number): Uint8Array {
    const first = Math.max(page * PAGE_IDS, this.#first)
    const end = Math.min((page + 1) * PAGE_IDS, this.#next)
    const { words, offsets, times } = this.#page(first)
    const bytes = new Uint8Array(PAGE_HEAD_BYTES + (end - first) * PAGE_ID_BYTES)
    writeU64(bytes, 0, first)
    writeU32(bytes, 8, end - first)
    let at = PAGE_HEAD_BYTES
    for (let entry = first; entry < end; entry++, at += PAGE_ID_BYTES) {
      const index = entry % PAGE_IDS
      for (let word = 0; word < ID_WORDS; word++)
        writeU32(bytes, at + word * 4, words[index * ID_WORDS + word]!)
      writeU64(bytes, at + 16, offsets[index]!)
      writeU64(bytes, at + 24, times[index]!)
    }
    return bytes
  }

  /** Called after the page was appended to the log with all its current entries. */
  pageWritten(page: number): void {
    this.#cleanUntil = Math.max(this.#cleanUntil, Math.min((page + 1) * PAGE_IDS, this.#next))
  }

  /** Number of the first state page that exists or will be written, and the number after that of the last. */
  get pageNumbers(): readonly [number, number] {
    return [this.#heldFrom, this.#heldFrom + this.#held.length]
  }

  /** Used in recovery: keeps the contents of a page until `restored` is called. */
  restorePage(bytes: Uint8Array, start: number, end: number, position: number): void {
    this.#read ??= []
    this.#read.push(bytes.slice(start, end))
    this.restoredUntil = Math.max(this.restoredUntil, position)
  }

  /**
   * Used in recovery: adds the ids of all pages that were passed to `restorePage`. The order of these calls does not
   * matter.
   */
  restored(): void {
    if (this.#read === undefined) return
    const read = this.#read.toSorted((a, b) => readU64(a, 0) - readU64(b, 0))
    this.#read = undefined
    const words = new Uint32Array(ID_WORDS)
    const pages = this.#pages
    // The restored pages are not new, so their creation is not reported.
    this.#pages = { ...NO_PAGES, removed: (kind, id, number) => pages.removed(kind, id, number) }
    for (const bytes of read) {
      const first = readU64(bytes, 0)
      const count = readU32(bytes, 8)
      // If pages before this one are missing, they were forgotten while the checkpoint was being written. So all older
      // pages were forgotten too.
      if (this.#first < this.#next && first > this.#next) this.forgetBelow(Infinity)
      if (this.#first === this.#next) this.#first = this.#next = first
      let at = PAGE_HEAD_BYTES
      for (let i = 0; i < count; i++, at += PAGE_ID_BYTES) {
        for (let word = 0; word < ID_WORDS; word++) words[word] = readU32(bytes, at + word * 4)
        // An old page can hold an id that was forgotten before a newer page accepted it again.
        this.remember(words, 0, readU64(bytes, at + 16), readU64(bytes, at + 24))
      }
    }
    this.#pages = pages
    this.#cleanUntil = this.#next
  }
}

/**
 * Ids of pending messages. The hashes are in the chunks. Several messages can have the same id if the deduplication
 * window has passed, if ids are not checked, or if one of the messages came from another queue. These messages form a
 * list in the order in which they became pending, and the index holds the first message of each list. Lists are doubly
 * linked through the chunks. The link back from the first message leads to the last.
 */
export class PendingIds extends HashIndex {
  readonly #chunks: Chunks

  constructor(chunks: Chunks) {
    super()
    this.#chunks = chunks
  }

  protected override wordOf(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.idWordAt(offset - chunk.base, 0)
  }

  protected override isHashOf(offset: number, h0: number, h1: number, h2: number, h3: number): boolean {
    const chunk = this.#chunks.at(offset)!
    return chunk.isId(offset - chunk.base, h0, h1, h2, h3)
  }

  /** Number of different ids. */
  get count(): number {
    return this.size
  }

  /** Offset of the first pending message with this id for which `isMeant` returns true; -1 if there is none. */
  find(words: Uint32Array, at: number, isMeant?: (offset: number) => boolean): number {
    let offset = this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!)
    if (isMeant !== undefined) while (offset !== NONE && !isMeant(offset)) offset = this.#next(offset)
    return offset
  }

  /** Adds the message at `offset`, which is pending. Its id is in its chunk. */
  add(offset: number): void {
    const first = this.#firstLike(offset)
    if (first === NONE) {
      this.enter(offset)
      return
    }
    const last = this.#lastOf(first)
    this.#setNext(last, offset)
    this.#setPrevious(offset, last)
    this.#setPrevious(first, offset)
  }

  /** Called when no message is pending any more. */
  clear(): void {
    this.removeAll()
  }

  /** Removes the message at `offset`, which is no longer pending but still in its chunk. */
  done(offset: number): void {
    const previous = this.#previous(offset)
    // Each message in a list of several has a previous message, so no other message has this id.
    if (previous === NONE) {
      this.remove(offset)
      return
    }
    const next = this.#next(offset)
    if (this.#next(previous) === NONE) {
      // The message is the first of its list, so its link back leads to the last.
      this.replace(offset, next)
      this.#setPrevious(next, previous === next ? NONE : previous)
    } else {
      this.#setNext(previous, next)
      if (next !== NONE) this.#setPrevious(next, previous)
      else {
        const first = this.#firstLike(offset)
        this.#setPrevious(first, previous === first ? NONE : previous)
      }
    }
    this.#setNext(offset, NONE)
    this.#setPrevious(offset, NONE)
  }

  #firstLike(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    const index = offset - chunk.base
    return this.lookUp(
      chunk.idWordAt(index, 0),
      chunk.idWordAt(index, 1),
      chunk.idWordAt(index, 2),
      chunk.idWordAt(index, 3),
    )
  }

  #lastOf(first: number): number {
    const last = this.#previous(first)
    return last === NONE ? first : last
  }

  #next(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.nextSameId(offset - chunk.base)
  }

  #previous(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.previousSameId(offset - chunk.base)
  }

  #setNext(offset: number, next: number): void {
    const chunk = this.#chunks.at(offset)!
    chunk.setNextSameId(offset - chunk.base, next)
  }

  #setPrevious(offset: number, previous: number): void {
    const chunk = this.#chunks.at(offset)!
    chunk.setPreviousSameId(offset - chunk.base, previous)
  }
}
