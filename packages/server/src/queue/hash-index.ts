/**
 * An index by a hash of two or four words. Its entries are refs: numbers (slots, offsets) to which the subclass gives a
 * meaning. The subclass also keeps the hashes. The index uses open addressing with linear probing and without tombstones, and
 * takes about 21 bytes per ref.
 *
 * The index grows by one segment at a time (linear hashing; Litwin, 1980). A table that doubles its size needs three
 * times its room for a moment, and doubling a table of eight million refs blocked the broker for 1.4 s.
 *
 * No two refs have the same hash, because a search among n such refs would take n steps. A subclass in which several
 * items have the same hash adds the first item and links the others to it.
 *
 * Invariants: a ref is in the segment of its hash. In this segment, no place between the home place of the ref and its actual
 * place is empty.
 */
const PLACES_MIN = 16
/** Number of places of a segment. The first segment starts smaller. */
const SEGMENT_PLACES = 4096
const SEGMENT_BITS = 12
const EMPTY = -1
/** A segment that stays empty. A search ends at its empty place. */
const NO_PLACES: Float64Array = new Float64Array(1).fill(EMPTY)
/** Shared by all indexes without refs, because most queues have no ids and no keys. */
const NO_SEGMENTS: Float64Array[] = [NO_PLACES]
const NO_COUNTS: number[] = [0]

export abstract class HashIndex {
  size = 0
  #segments = NO_SEGMENTS
  /** Number of refs, by segment. */
  #counts = NO_COUNTS
  /** The smallest 2^n - 1 that is at least the number of the last segment. */
  #mask = 0

  /** First word of the hash of `ref`. */
  protected abstract wordOf(ref: number): number
  protected abstract isHashOf(ref: number, h0: number, h1: number, h2: number, h3: number): boolean

  /** Number of places, used or not. Each takes 8 bytes. */
  get places(): number {
    return this.#segments.reduce((places, segment) => places + segment.length, 0)
  }

  /** The ref with this hash; -1 if no ref has it. */
  protected lookUp(h0: number, h1: number, h2: number, h3: number): number {
    const refs = this.#segments[this.#segmentOf(h0)]!
    const mask = refs.length - 1
    for (let place = h0 & mask; ; place = (place + 1) & mask) {
      const ref = refs[place]!
      if (ref === EMPTY || this.isHashOf(ref, h0, h1, h2, h3)) return ref
    }
  }

  /** Puts `other`, which has the same hash, in the place of `ref`. */
  protected replace(ref: number, other: number): void {
    const word = this.wordOf(ref)
    const refs = this.#segments[this.#segmentOf(word)]!
    const mask = refs.length - 1
    let place = word & mask
    while (refs[place] !== ref) place = (place + 1) & mask
    refs[place] = other
  }

  /** Adds a ref. No other ref with its hash may be in the index. */
  protected enter(ref: number): void {
    if (this.size++ === 0 && this.#segments === NO_SEGMENTS) {
      this.#segments = [NO_PLACES]
      this.#counts = [0]
    }
    // The index grows when 3/8 of its places are used. Segments that were split are half as full as the others, so few
    // segments are more than 3/4 full.
    const { length } = this.#segments
    const first = this.#segments[0]!.length
    if (length > 1 || first >= SEGMENT_PLACES) {
      if (this.size * 8 > length * SEGMENT_PLACES * 3) this.#split()
    } else if (this.size * 8 > first * 3) this.#refill(0, Math.max(PLACES_MIN, first * 2))
    this.#put(ref)
  }

  /** Removes a ref. It must be in the index. */
  protected remove(ref: number): void {
    const segment = this.#segmentOf(this.wordOf(ref))
    const refs = this.#segments[segment]!
    const mask = refs.length - 1
    let hole = this.wordOf(ref) & mask
    while (refs[hole] !== ref) hole = (hole + 1) & mask
    // Fills the hole: refs after it move back, except refs that would end up before their home place.
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

  /** Removes all refs. */
  protected removeAll(): void {
    this.size = 0
    this.#mask = 0
    this.#segments = NO_SEGMENTS
    this.#counts = NO_COUNTS
  }

  #segmentOf(word: number): number {
    const segment = (word >>> SEGMENT_BITS) & this.#mask
    // If this segment does not exist yet, its refs are still in the segment from which it will be split.
    return segment < this.#segments.length ? segment : segment & (this.#mask >>> 1)
  }

  #put(ref: number): void {
    const word = this.wordOf(ref)
    const segment = this.#segmentOf(word)
    // At least one place stays empty, whatever the hashes are.
    if (++this.#counts[segment]! * 8 > this.#segments[segment]!.length * 7)
      this.#refill(segment, this.#segments[segment]!.length * 2)
    putInto(this.#segments[segment]!, ref, word)
  }

  /** Adds a segment, and moves to it the refs of an older segment that belong there. */
  #split(): void {
    const last = this.#segments.push(NO_PLACES) - 1
    this.#counts.push(0)
    if (last > this.#mask) this.#mask = this.#mask * 2 + 1
    this.#segments[last] = emptyPlaces(SEGMENT_PLACES)
    this.#putAll(this.#empty(last & (this.#mask >>> 1)))
  }

  /** Removes the last segment, and moves its refs back to the one from which it was split. */
  #merge(): void {
    const refs = this.#segments.pop()!
    this.#counts.pop()
    if (this.#segments.length - 1 <= this.#mask >>> 1) this.#mask >>>= 1
    this.#putAll(refs)
  }

  // Resizes the segment.
  #refill(segment: number, places: number): void {
    const old = this.#segments[segment]!
    const refs = emptyPlaces(places)
    for (const ref of old) if (ref !== EMPTY) putInto(refs, ref, this.wordOf(ref))
    this.#segments[segment] = refs
  }

  // Empties a segment and returns its refs.
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
