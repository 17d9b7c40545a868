/**
 * A first-in, first-out list of (time, offset), in pages: however long the list is, adding an entry never copies more than
 * one page. An entry takes 16 bytes. `TimeQueue` keeps the entries that arrive in order here.
 *
 * Invariant: entry `i` is at place `#from + i`, where place `p` is in page `p / PAGE_ENTRIES`. If there are several pages,
 * each has room for `PAGE_ENTRIES` entries.
 */
const PAGE_ENTRIES = 2048
const PAGE_BITS = 11
const ENTRIES_FIRST = 16
/** Shared by all empty lists. */
const NO_NUMBERS = new Float64Array(0)

export class TimeList {
  length = 0
  /** Each entry is two numbers: its time and its offset. */
  #pages: Float64Array[] = []
  #first: Float64Array = NO_NUMBERS
  #last: Float64Array = NO_NUMBERS
  /** Place of the first entry in the first page, and the place after the last entry in the last page. */
  #from = 0
  #to = 0
  /** An emptied page for the next extension. */
  #spare: Float64Array | undefined

  /** Must not be read while the list is empty; the same holds for `firstOffset`. */
  get firstTime(): number {
    return this.#first[this.#from * 2]!
  }

  get firstOffset(): number {
    return this.#first[this.#from * 2 + 1]!
  }

  get lastTime(): number {
    return this.#last[this.#to * 2 - 2]!
  }

  get lastOffset(): number {
    return this.#last[this.#to * 2 - 1]!
  }

  timeAt(index: number): number {
    const place = this.#from + index
    return this.#pages[place >>> PAGE_BITS]![(place % PAGE_ENTRIES) * 2]!
  }

  offsetAt(index: number): number {
    const place = this.#from + index
    return this.#pages[place >>> PAGE_BITS]![(place % PAGE_ENTRIES) * 2 + 1]!
  }

  push(timeMs: number, offset: number): void {
    if (this.#to * 2 === this.#last.length) this.#extend()
    const at = this.#to++ * 2
    this.#last[at] = timeMs
    this.#last[at + 1] = offset
    this.length++
  }

  /** Removes the first entry. */
  pop(): void {
    this.#from++
    if (--this.length === 0) this.#restart()
    else if (this.#from === PAGE_ENTRIES) {
      this.#spare = this.#pages.shift()
      this.#first = this.#pages[0]!
      this.#from = 0
    }
  }

  /** Removes the entries for which `isKept` returns false. */
  keep(isKept: (timeMs: number, offset: number) => boolean): void {
    let kept = 0
    for (let index = 0; index < this.length; index++) {
      const [timeMs, offset] = [this.timeAt(index), this.offsetAt(index)]
      if (!isKept(timeMs, offset)) continue
      const place = this.#from + kept++
      const numbers = this.#pages[place >>> PAGE_BITS]!
      numbers[(place % PAGE_ENTRIES) * 2] = timeMs
      numbers[(place % PAGE_ENTRIES) * 2 + 1] = offset
    }
    this.length = kept
    if (kept === 0) return this.#restart()
    const last = this.#from + kept - 1
    this.#pages.length = (last >>> PAGE_BITS) + 1
    this.#last = this.#pages.at(-1)!
    this.#to = (last % PAGE_ENTRIES) + 1
  }

  clear(): void {
    this.length = 0
    this.#pages = []
    this.#first = this.#last = NO_NUMBERS
    this.#from = this.#to = 0
    this.#spare = undefined
  }

  // Called when the list is empty. Keeps the room of one page.
  #restart(): void {
    this.#pages.length = Math.min(this.#pages.length, 1)
    this.#first = this.#last = this.#pages[0] ?? NO_NUMBERS
    this.#from = this.#to = 0
    this.#spare = undefined
  }

  // Called when the last page is full.
  #extend(): void {
    const { length } = this
    const room = this.#last.length / 2
    if (this.#pages.length === 1 && (room < PAGE_ENTRIES || length * 2 <= room)) {
      const isHalf = length * 2 <= room
      const page = isHalf ? this.#last : new Float64Array(this.#last.length * 2)
      page.set(this.#last.subarray(this.#from * 2, this.#to * 2))
      this.#pages[0] = this.#first = this.#last = page
      this.#from = 0
      this.#to = length
      return
    }
    const isFirst = this.#pages.length === 0
    const page = this.#spare ?? new Float64Array((isFirst ? ENTRIES_FIRST : PAGE_ENTRIES) * 2)
    this.#spare = undefined
    this.#pages.push(page)
    this.#last = page
    if (isFirst) this.#first = page
    this.#to = 0
  }
}
