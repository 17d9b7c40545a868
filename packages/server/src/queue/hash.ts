/**
 * Keyed hashes of the ids and keys of messages: HalfSipHash-2-4 with a result of 64 bits, in 32-bit arithmetic. All
 * queues of a log share one seed. A client that does not know the seed cannot choose strings that collide. (Aumasson
 * and Bernstein, "SipHash: a fast short-input PRF", 2012, and its reference implementation for 32-bit machines.)
 *
 * All words are 0 if a message has no id, or no key. So a hash of an id or of a key that would be all 0 is changed to
 * 1.
 */

import { readU32, writeU32 } from '@sluice/protocol'

/** Number of words of the hash of an id, which consists of two hashes made with different words of the seed. */
export const ID_WORDS = 4

/** The secret key from which all hashes of one log are computed: four words. */
export type Seed = readonly number[]
const SEED_WORDS = 4
/** Size of a seed in the log. */
export const SEED_BYTES = SEED_WORDS * 4

/** Draws the seed of a new log. `random` returns a number in [0, 1). */
export function drawSeed(random: () => number): Seed {
  return Array.from({ length: SEED_WORDS }, () => Math.floor(random() * 2 ** 32))
}

export function readSeed(bytes: Uint8Array, at: number): Seed {
  return Array.from({ length: SEED_WORDS }, (_, word) => readU32(bytes, at + word * 4))
}

export function writeSeed(bytes: Uint8Array, at: number, seed: Seed): void {
  for (const [word, value] of seed.entries()) writeU32(bytes, at + word * 4, value)
}

/** Writes the hash of the key in `bytes[start, end)` into two words of `out`, starting at `at`. */
export function hashKey(
  bytes: Uint8Array,
  start: number,
  end: number,
  seed: Seed,
  out: Uint32Array,
  at: number,
): void {
  hash(bytes, start, end, seed[0]!, seed[1]!)
  out[at] = low
  out[at + 1] = high
  if ((low | high) === 0) out[at] = 1
}

/** Writes the hash of the id in `bytes[start, end)` into four words of `out`, starting at `at`. */
export function hashId(
  bytes: Uint8Array,
  start: number,
  end: number,
  seed: Seed,
  out: Uint32Array,
  at: number,
): void {
  hash(bytes, start, end, seed[0]!, seed[2]!)
  out[at] = low
  out[at + 1] = high
  hash(bytes, start, end, seed[1]!, seed[3]!)
  out[at + 2] = low
  out[at + 3] = high
  if (!isId(out, at)) out[at] = 1
}

/** Whether the words at `words[at]` are the hash of an id. */
export function isId(words: Uint32Array, at: number): boolean {
  return (words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) !== 0
}

// The result of `hash`. These are module variables, so that a call allocates nothing.
let low = 0
let high = 0

// The round is written out twice, on local variables. As a function on module variables it took almost twice as long (for
// 20 bytes: 290 ns instead of 165).
function hash(bytes: Uint8Array, start: number, end: number, k0: number, k1: number): void {
  let v0 = k0
  let v1 = k1 ^ 0xee
  let v2 = 0x6c79_6765 ^ k0
  let v3 = 0x7465_6462 ^ k1
  const whole = start + ((end - start) & ~3)
  for (let i = start; i <= whole; i += 4) {
    const word =
      i < whole
        ? bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24)
        : lastWord(bytes, whole, end, end - start)
    v3 ^= word
    for (let round = 0; round < 2; round++) {
      v0 = (v0 + v1) | 0
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0
      v0 = (v0 << 16) | (v0 >>> 16)
      v2 = (v2 + v3) | 0
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2
      v0 = (v0 + v3) | 0
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0
      v2 = (v2 + v1) | 0
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2
      v2 = (v2 << 16) | (v2 >>> 16)
    }
    v0 ^= word
  }
  v2 ^= 0xee
  for (let round = 0; round < 8; round++) {
    if (round === 4) {
      low = v1 ^ v3
      v1 ^= 0xdd
    }
    v0 = (v0 + v1) | 0
    v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0
    v0 = (v0 << 16) | (v0 >>> 16)
    v2 = (v2 + v3) | 0
    v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2
    v0 = (v0 + v3) | 0
    v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0
    v2 = (v2 + v1) | 0
    v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2
    v2 = (v2 << 16) | (v2 >>> 16)
  }
  high = v1 ^ v3
}

// A word with the bytes after the last whole word, and the length in its highest byte.
function lastWord(bytes: Uint8Array, from: number, end: number, length: number): number {
  let word = length << 24
  for (let i = from; i < end; i++) word |= bytes[i]! << ((i - from) * 8)
  return word
}
