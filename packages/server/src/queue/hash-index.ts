/**
 * Finds things by a hash of two or four words. The things are numbers of their owner's (slots, offsets), who also keeps
 * the hashes; this is the open addressing over them, some 21 bytes a thing, with linear probing and no tombstones.
 *
 * It grows by one segment at a time (linear hashing; Litwin, 1980): a table that doubles needs three times its room for
 * a moment, and one of eight million took 1.4 s to move, in which a broker does nothing else.
 *
 * No two refs have one hash: to find a place among n of them would take n steps. Who has several things with one hash
 * puts in the first and links the others to it.
 *
 * Invariants: a ref stands in the segment that its hash names; there, from its home place to it no place is empty.
 */
const PLACES_MIN = 16
/** Of a segment; the only one begins smaller. */
const SEGMENT_PLACES = 4096
const SEGMENT_BITS = 12
const EMPTY = -1
/** Never filled: one place must stay empty. */
const NO_PLACES: Float64Array = new Float64Array(1).fill(EMPTY)

export abstract class HashIndex {
  size = 0
  // Most queues have no ids or no keys: nothing is made before the first.
  readonly #segments = [NO_PLACES]
  /** Refs in each. */
  readonly #counts = [0]
  /** The least of 2^n - 1 that is no lower than the number of the last segment. */
  #mask = 0

  /** First word of the hash of `ref`. */
  protected abstract wordOf(ref: number): number
  protected abstract isHashOf(ref: number, h0: number, h1: number, h2: number, h3: number): boolean

  /** Places for refs, filled or not, 8 bytes each. */
  get places(): number {
    return this.#segments.reduce((places, segment) => places + segment.length, 0)
  }

  /** A ref with this hash, -1 if there is none. */
  protected lookUp(h0: number, h1: number, h2: number, h3: number): number {
    const refs = this.#segments[this.#segmentOf(h0)]!
    const mask = refs.length - 1
    for (let place = h0 & mask; ; place = (place + 1) & mask) {
      const ref = refs[place]!
      if (ref === EMPTY || this.isHashOf(ref, h0, h1, h2, h3)) return ref
    }
  }

  /** Puts `other`, which has the same hash, where `ref` is. */
  protected replace(ref: number, other: number): void {
    const word = this.wordOf(ref)
    const refs = this.#segments[this.#segmentOf(word)]!
    const mask = refs.length - 1
    let place = word & mask
    while (refs[place] !== ref) place = (place + 1) & mask
    refs[place] = other
  }

  /** Puts in a ref that is not there yet, and neither is one with its hash. */
  protected enter(ref: number): void {
    this.size++
    // Segments that were split are half as full as those that were not: more than 3/4 is rare.
    const { length } = this.#segments
    const first = this.#segments[0]!.length
    if (length > 1 || first >= SEGMENT_PLACES) {
      if (this.size * 8 > length * SEGMENT_PLACES * 3) this.#split()
    } else if (this.size * 8 > first * 3) this.#refill(0, Math.max(PLACES_MIN, first * 2))
    this.#put(ref)
  }

  /** Takes out a ref that is there. */
  protected remove(ref: number): void {
    const segment = this.#segmentOf(this.wordOf(ref))
    const refs = this.#segments[segment]!
    const mask = refs.length - 1
    let hole = this.wordOf(ref) & mask
    while (refs[hole] !== ref) hole = (hole + 1) & mask
    // What stands behind moves up, as long as that brings it no further than its home.
    for (let place = (hole + 1) & mask; ; place = (place + 1) & mask) {
      const other = refs[place]!
      if (other === EMPTY) break
      const home = this.wordOf(other) & mask
      if (((place - home) & mask) < ((place - hole) & mask)) continue
      refs[hole] = other
      hole = place
    }
    refs[hole] = EMPTY
    this.size--
    this.#counts[segment]!--
    if (this.#segments.length > 1) {
      if (this.size * 8 < this.#segments.length * SEGMENT_PLACES) this.#merge()
    } else if (refs.length > PLACES_MIN && this.size * 8 < refs.length) this.#refill(0, refs.length / 2)
  }

  #segmentOf(word: number): number {
    const segment = (word >>> SEGMENT_BITS) & this.#mask
    // Not split yet: what will once go there still stands in the one that will be split.
    return segment < this.#segments.length ? segment : segment & (this.#mask >>> 1)
  }

  #put(ref: number): void {
    const word = this.wordOf(ref)
    const segment = this.#segmentOf(word)
    // One place stays empty, however the hashes fall.
    if (++this.#counts[segment]! * 8 > this.#segments[segment]!.length * 7)
      this.#refill(segment, this.#segments[segment]!.length * 2)
    putInto(this.#segments[segment]!, ref, word)
  }

  /** Makes one more segment, which takes what belongs there out of the one before. */
  #split(): void {
    const last = this.#segments.push(NO_PLACES) - 1
    this.#counts.push(0)
    if (last > this.#mask) this.#mask = this.#mask * 2 + 1
    this.#segments[last] = emptyPlaces(SEGMENT_PLACES)
    this.#putAll(this.#empty(last & (this.#mask >>> 1)))
  }

  /** Puts what the last segment holds into the one that it was split from. */
  #merge(): void {
    const refs = this.#segments.pop()!
    this.#counts.pop()
    if (this.#segments.length - 1 <= this.#mask >>> 1) this.#mask >>>= 1
    this.#putAll(refs)
  }

  // The segment has so many places from now on.
  #refill(segment: number, places: number): void {
    const old = this.#segments[segment]!
    const refs = emptyPlaces(places)
    for (const ref of old) if (ref !== EMPTY) putInto(refs, ref, this.wordOf(ref))
    this.#segments[segment] = refs
  }

  // Empties a segment; returns what was in it.
  #empty(segment: number): Float64Array {
    const refs = this.#segments[segment]!
    this.#segments[segment] = emptyPlaces(SEGMENT_PLACES)
    this.#counts[segment] = 0
    return refs
  }

  #putAll(refs: Float64Array): void {
    for (const ref of refs) if (ref !== EMPTY) this.#put(ref)
  }
}

function emptyPlaces(places: number): Float64Array {
  return new Float64Array(places).fill(EMPTY)
}

function putInto(refs: Float64Array, ref: number, word: number): void {
  const mask = refs.length - 1
  let at = word & mask
  while (refs[at] !== EMPTY) at = (at + 1) & mask
  refs[at] = ref
}
