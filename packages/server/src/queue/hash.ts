/**
 * HalfSipHash-2-4 with 64 bits of result: a keyed hash of short texts in 32-bit arithmetic. Who does not know the key
 * cannot choose texts that collide. (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, and its reference
 * implementation for 32-bit machines.)
 */

/** Words of the hash of an id: two hashes under different keys. */
export const ID_WORDS = 4

/** Writes the hash of `bytes[start, end)` under the key (k0, k1) into `out[at]` and `out[at + 1]`. */
export function hashInto(
  bytes: Uint8Array,
  start: number,
  end: number,
  k0: number,
  k1: number,
  out: Uint32Array,
  at: number,
): void {
  v0 = k0
  v1 = k1 ^ 0xee
  v2 = 0x6c79_6765 ^ k0
  v3 = 0x7465_6462 ^ k1
  const length = end - start
  const whole = start + (length & ~3)
  for (let i = start; i < whole; i += 4) {
    const word = bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24)
    compress(word)
  }
  let last = length << 24
  for (let i = whole; i < end; i++) last |= bytes[i]! << ((i - whole) * 8)
  compress(last)
  v2 ^= 0xee
  for (let i = 0; i < 4; i++) round()
  out[at] = v1 ^ v3
  v1 ^= 0xdd
  for (let i = 0; i < 4; i++) round()
  out[at + 1] = v1 ^ v3
}

// The state of the hash that is being computed: nothing is made per call.
let v0 = 0
let v1 = 0
let v2 = 0
let v3 = 0

function compress(word: number): void {
  v3 ^= word
  round()
  round()
  v0 ^= word
}

function round(): void {
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

/** Whether the hash at `words[at]` is that of an id: what has no id has all 0. */
export function isId(words: Uint32Array, at: number): boolean {
  return (words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) !== 0
}
