/**
 * Sets of message indexes within one chunk. A set has 1,024 bits in 32 words, and several sets follow one another. The
 * functions are pure and allocate nothing.
 */

export const CHUNK_MESSAGES = 1024
export const CHUNK_WORDS = CHUNK_MESSAGES / 32

export function hasBit(words: Uint32Array, index: number): boolean {
  return (words[index >>> 5]! & (1 << (index & 31))) !== 0
}

/** Adds `[from, to)` and returns how many were not in the set. */
export function addBits(words: Uint32Array, from: number, to: number): number {
  let added = 0
  for (let index = from; index < to;) {
    const word = index >>> 5
    const mask = wordMask(index, to)
    const before = words[word]!
    added += countBits(mask & ~before)
    words[word] = before | mask
    index = (word + 1) << 5
  }
  return added
}

export function removeBits(words: Uint32Array, from: number, to: number): void {
  for (let index = from; index < to;) {
    const word = index >>> 5
    words[word] = words[word]! & ~wordMask(index, to)
    index = (word + 1) << 5
  }
}

/** Number of members in `[from, to)`. */
export function countRange(words: Uint32Array, from: number, to: number): number {
  let count = 0
  for (let index = from; index < to;) {
    const word = index >>> 5
    count += countBits(words[word]! & wordMask(index, to))
    index = (word + 1) << 5
  }
  return count
}

/** The first member at or after `index`; `CHUNK_MESSAGES` if there is none. */
export function nextBit(words: Uint32Array, index: number): number {
  for (let at = index; at < CHUNK_MESSAGES; at = (at | 31) + 1) {
    const word = words[at >>> 5]! & (-1 << (at & 31))
    if (word !== 0) return (at & ~31) + trailingZeros(word)
  }
  return CHUNK_MESSAGES
}

/** The first index at or after `index` that is not a member; `CHUNK_MESSAGES` if there is none. */
export function nextGap(words: Uint32Array, index: number): number {
  for (let at = index; at < CHUNK_MESSAGES; at = (at | 31) + 1) {
    const word = ~words[at >>> 5]! & (-1 << (at & 31))
    if (word !== 0) return (at & ~31) + trailingZeros(word)
  }
  return CHUNK_MESSAGES
}

/** Mask of the bits of `[from, to)` in the word that holds `from`. */
export function wordMask(from: number, to: number): number {
  const low = from & 31
  const wordEnd = (from | 31) + 1
  const mask = -1 << low
  return to >= wordEnd ? mask : mask & ~(-1 << (to & 31))
}

export function trailingZeros(word: number): number {
  return 31 - Math.clz32(word & -word)
}

function countBits(word: number): number {
  let bits = word - ((word >>> 1) & 0x5555_5555)
  bits = (bits & 0x3333_3333) + ((bits >>> 2) & 0x3333_3333)
  return (((bits + (bits >>> 4)) & 0x0f0f_0f0f) * 0x0101_0101) >>> 24
}
