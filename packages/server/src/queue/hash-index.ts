/**
 * Finds things by a hash of two or four words. The things are numbers of their owner's (slots, offsets), who also keeps
 * the hashes; this is the open addressing over them, 16 bytes a thing, with linear probing and no tombstones.
 *
 * Invariant: from its home place to a ref no place is empty.
 */
const PLACES_MIN = 16
const EMPTY = -1
/** Never filled: one place must stay empty. */
const NO_PLACES: Float64Array = new Float64Array(1).fill(EMPTY)

export abstract class HashIndex {
  size = 0
  // Most queues have no ids or no keys: nothing is made before the first.
  #refs = NO_PLACES
  #mask = 0

  /** First word of the hash of `ref`. */
  protected abstract wordOf(ref: number): number
  protected abstract isHashOf(ref: number, h0: number, h1: number, h2: number, h3: number): boolean

  /** A ref with this hash, -1 if there is none. */
  protected lookUp(h0: number, h1: number, h2: number, h3: number): number {
    for (let place = h0 & this.#mask; ; place = (place + 1) & this.#mask) {
      const ref = this.#refs[place]!
      if (ref === EMPTY || this.isHashOf(ref, h0, h1, h2, h3)) return ref
    }
  }

  /** Of the refs with this hash, and that `isMeant`, the lowest; -1 if there is none. */
  protected lowest(
    h0: number,
    h1: number,
    h2: number,
    h3: number,
    isMeant?: (ref: number) => boolean,
  ): number {
    let lowest = EMPTY
    for (let place = h0 & this.#mask; ; place = (place + 1) & this.#mask) {
      const ref = this.#refs[place]!
      if (ref === EMPTY) return lowest
      if (
        (lowest === EMPTY || ref < lowest) &&
        this.isHashOf(ref, h0, h1, h2, h3) &&
        isMeant?.(ref) !== false
      )
        lowest = ref
    }
  }

  /** Puts in a ref that is not there yet. */
  protected enter(ref: number): void {
    if ((this.size + 1) * 2 > this.#refs.length) this.#resize(this.#refs.length * 2)
    this.#put(ref)
    this.size++
  }

  /** Takes out a ref that is there. */
  protected remove(ref: number): void {
    let hole = this.wordOf(ref) & this.#mask
    while (this.#refs[hole] !== ref) hole = (hole + 1) & this.#mask
    // What stands behind moves up, as long as that brings it no further than its home.
    for (let place = (hole + 1) & this.#mask; ; place = (place + 1) & this.#mask) {
      const other = this.#refs[place]!
      if (other === EMPTY) break
      const home = this.wordOf(other) & this.#mask
      if (((place - home) & this.#mask) < ((place - hole) & this.#mask)) continue
      this.#refs[hole] = other
      hole = place
    }
    this.#refs[hole] = EMPTY
    this.size--
    if (this.#refs.length > PLACES_MIN && this.size * 8 < this.#refs.length)
      this.#resize(this.#refs.length / 4)
  }

  #put(ref: number): void {
    let place = this.wordOf(ref) & this.#mask
    while (this.#refs[place] !== EMPTY) place = (place + 1) & this.#mask
    this.#refs[place] = ref
  }

  #resize(places: number): void {
    const old = this.#refs
    const size = Math.max(places, PLACES_MIN)
    this.#refs = new Float64Array(size).fill(EMPTY)
    this.#mask = size - 1
    for (const ref of old) if (ref !== EMPTY) this.#put(ref)
  }
}
