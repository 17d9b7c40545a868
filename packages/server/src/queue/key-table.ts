/**
 * The keys of which compaction has seen a message: their hashes of 128 bits, in the order in which they were added. With a
 * billion keys, the probability that any two of them have the same hash is below 10^-20, and a client that does
 * not know the seed cannot choose such keys. So hashes are compared instead of keys.
 */
import { HashIndex } from './hash-index.js'
import { ID_WORDS } from './hash.js'

const ROOM_FIRST = 1_024

export class KeyTable extends HashIndex {
  #words = new Uint32Array(ROOM_FIRST * ID_WORDS)

  protected wordOf(entry: number): number {
    return this.#words[entry * ID_WORDS]!
  }

  protected isHashOf(entry: number, h0: number, h1: number, h2: number, h3: number): boolean {
    const words = this.#words
    const at = entry * ID_WORDS
    return words[at] === h0 && words[at + 1] === h1 && words[at + 2] === h2 && words[at + 3] === h3
  }

  /** Number of the entry of the key whose hash is at `hashes[at]`; -1 if there is none. */
  find(hashes: Uint32Array, at: number): number {
    return this.lookUp(hashes[at]!, hashes[at + 1]!, hashes[at + 2]!, hashes[at + 3]!)
  }

  /** Adds the key whose hash is at `hashes[at]`, which the table does not have. Returns the number of its entry. */
  add(hashes: Uint32Array, at: number): number {
    const entry = this.size
    if (entry * ID_WORDS === this.#words.length) {
      const grown = new Uint32Array(this.#words.length * 2)
      grown.set(this.#words)
      this.#words = grown
    }
    this.#words.set(hashes.subarray(at, at + ID_WORDS), entry * ID_WORDS)
    this.enter(entry)
    return entry
  }
}
