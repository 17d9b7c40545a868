/**
 * Ids that were seen, for deduplication, each as a keyed 128-bit hash (see hash.ts): two ids never share one in practice,
 * and nobody can make two that do.
 *
 * `IdWindow` remembers each for a time after it was first accepted, in the order of acceptance. `PendingIds` knows those
 * of messages that are not done. Neither ever forgets early: whoever puts one in has looked at the count before.
 */
import { readU32, readU64, writeU32, writeU64 } from '@sluice/protocol'
import type { Chunks } from './chunks.js'
import { ID_WORDS } from './hash.js'
import { HashIndex } from './hash-index.js'
import { PageUse } from './page-use.js'

const NONE = -1
/** Ids of one state page. */
const PAGE_IDS = 1024
const IDS_FIRST = 16
const PAGE_HEAD_BYTES = 16
const PAGE_ID_BYTES = 32

/** What is known of ids that were accepted one after the other, at most `PAGE_IDS` of them. */
class IdPage {
  words = new Uint32Array(0)
  offsets = new Float64Array(0)
  times = new Float64Array(0)

  /** Makes room for `ids` of them, at least. */
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
 * Ids by acceptance: entry `n` stands in page `n / PAGE_IDS`. Pages come and go; one table of all would take twice its room
 * for a moment each time that it grows.
 */
export class IdWindow extends HashIndex {
  /** Entries `[#first, #next)` are remembered. */
  #first = 0
  #next = 0
  /** From the page of `#first` on. */
  #held: IdPage[] = []
  #heldFrom = 0
  #use: PageUse
  /** Where the newest state page of entries `[page × PAGE_IDS, …)` stands, and what it takes. */
  readonly #pages = new Map<number, { readonly position: number; readonly bytes: number }>()
  /** Entries from here on are in no page. */
  #cleanUntil = 0
  /** Ids that were accepted before this place in the log are in the pages that were read. */
  restoredUntil = -1
  #read: { readonly bytes: Uint8Array; readonly position: number; readonly pageBytes: number }[] = []

  constructor(use: PageUse = new PageUse()) {
    super()
    this.#use = use
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

  /** Ids that are remembered. */
  get count(): number {
    return this.size
  }

  /** Offset at which the id was accepted, -1 if it is not remembered. */
  find(words: Uint32Array, at: number): number {
    const entry = this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!)
    return entry === NONE ? NONE : this.#page(entry).offsets[entry % PAGE_IDS]!
  }

  /** Remembers an id as accepted now; should it be remembered already, that means nothing any more. */
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
      this.#use.count++
    }
    // Few ids take little; those that follow upon a full page fill another.
    page.reserve(this.#held.length === 1 ? (entry % PAGE_IDS) + 1 : PAGE_IDS)
    return page
  }

  /** Offset of the oldest id that is remembered; -1 when none is. */
  get oldestOffset(): number {
    return this.#first === this.#next ? NONE : this.#page(this.#first).offsets[this.#first % PAGE_IDS]!
  }

  /** Forgets what was accepted at `timeMs` or before. */
  forgetUntil(timeMs: number): void {
    while (this.#first < this.#next && this.#page(this.#first).times[this.#first % PAGE_IDS]! <= timeMs)
      this.#forgetFirst()
    this.#forgot()
  }

  /** Forgets what was accepted below `offset`. */
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

  /** Its queue is gone, and its pages with it. */
  drop(): void {
    for (let page = 0; page < this.#held.length; page++)
      this.#use.gone(this.#pages.get(this.#heldFrom + page)?.bytes ?? 0)
    // What is still done with it counts nowhere.
    this.#use = new PageUse()
  }

  #dropPages(): void {
    for (let page = 0; page < this.#held.length; page++) this.#dropPage(this.#heldFrom + page)
    this.#held = []
  }

  #dropPage(page: number): void {
    this.#use.gone(this.#pages.get(page)?.bytes ?? 0)
    this.#pages.delete(page)
  }

  // Of an id that was forgotten and accepted anew, only the newer entry is in the index.
  #isCurrent(entry: number): boolean {
    const at = (entry % PAGE_IDS) * ID_WORDS
    const { words } = this.#page(entry)
    return this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!) === entry
  }

  // --- state pages: u64 first entry · u32 count · u32 0 · entries of four u32 words, u64 offset, u64 time ---

  /**
   * Pages to append, one after the other: those that stand before `evacuateBefore`, then those with entries that are
   * in no page. More can come while a checkpoint waits between two of them, also into the one that was written last.
   */
  *pagesToWrite(evacuateBefore: number): IterableIterator<number> {
    for (let page = Math.floor(this.#first / PAGE_IDS); (page + 1) * PAGE_IDS <= this.#cleanUntil; page++)
      if (this.#pages.get(page)!.position < evacuateBefore) yield page
    while (this.#cleanUntil < this.#next) yield Math.floor(Math.max(this.#cleanUntil, this.#first) / PAGE_IDS)
    // The last one, if it is clean and not full.
    const last = Math.floor((this.#next - 1) / PAGE_IDS)
    if (this.#first < this.#next && this.#pages.get(last)!.position < evacuateBefore) yield last
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

  /** The page, with all that is in it now, was appended at `position` and takes `bytes` there. */
  pageWritten(page: number, position: number, bytes: number): void {
    this.#use.written(this.#pages.get(page)?.bytes ?? 0, bytes)
    this.#pages.set(page, { position, bytes })
    this.#cleanUntil = Math.max(this.#cleanUntil, Math.min((page + 1) * PAGE_IDS, this.#next))
  }

  pagesAt(): IterableIterator<{ readonly position: number; readonly bytes: number }> {
    return this.#pages.values()
  }

  /** State pages that there are, or will be. */
  get pageCount(): number {
    return this.#held.length
  }

  /** Recovery: takes what a page of `pageBytes` holds; `restored` follows when all have come. */
  restorePage(bytes: Uint8Array, start: number, end: number, position: number, pageBytes: number): void {
    this.#read.push({ bytes: bytes.slice(start, end), position, pageBytes })
    this.restoredUntil = Math.max(this.restoredUntil, position)
  }

  /** All pages have come, in whatever order. */
  restored(): void {
    const read = this.#read.toSorted((a, b) => readU64(a.bytes, 0) - readU64(b.bytes, 0))
    this.#read = []
    const words = new Uint32Array(ID_WORDS)
    for (const { bytes, position, pageBytes } of read) {
      const first = readU64(bytes, 0)
      const count = readU32(bytes, 8)
      if (this.#first === this.#next) this.#first = this.#next = first
      let at = PAGE_HEAD_BYTES
      for (let i = 0; i < count; i++, at += PAGE_ID_BYTES) {
        for (let word = 0; word < ID_WORDS; word++) words[word] = readU32(bytes, at + word * 4)
        // An old page can hold an id that had been forgotten when a newer one took it in again.
        this.remember(words, 0, readU64(bytes, at + 16), readU64(bytes, at + 24))
      }
      if (count > 0) this.pageWritten(Math.floor(first / PAGE_IDS), position, pageBytes)
    }
    this.#cleanUntil = this.#next
  }
}

/**
 * Ids of messages that are not done. The hashes are in the chunks of their messages. Several messages can have one id,
 * where it counts for a time that is over, or not at all, or where one of them came from another queue: they form a
 * list, in the order in which they became pending, of which the index holds the first. Lists are doubly linked through
 * the chunks, as lines of keys are; the first has the last before it.
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

  /** Different ids. */
  get count(): number {
    return this.size
  }

  /** Offset of the message with this id that became pending first, of those that `isMeant`; -1 if there is none. */
  find(words: Uint32Array, at: number, isMeant?: (offset: number) => boolean): number {
    let offset = this.lookUp(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!)
    if (isMeant !== undefined) while (offset !== NONE && !isMeant(offset)) offset = this.#next(offset)
    return offset
  }

  /** The message at `offset`, whose id is in its chunk, is pending. */
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

  /** The message at `offset`, which was pending, is done; it is still in its chunk. */
  done(offset: number): void {
    const previous = this.#previous(offset)
    // The first has the last before it: what has none before it is the only one.
    if (previous === NONE) {
      this.remove(offset)
      return
    }
    const next = this.#next(offset)
    if (this.#next(previous) === NONE) {
      // It is the first, and the last is before it.
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
    return chunk.nextLike(offset - chunk.base)
  }

  #previous(offset: number): number {
    const chunk = this.#chunks.at(offset)!
    return chunk.previousLike(offset - chunk.base)
  }

  #setNext(offset: number, next: number): void {
    const chunk = this.#chunks.at(offset)!
    chunk.setNextLike(offset - chunk.base, next)
  }

  #setPrevious(offset: number, previous: number): void {
    const chunk = this.#chunks.at(offset)!
    chunk.setPreviousLike(offset - chunk.base, previous)
  }
}
