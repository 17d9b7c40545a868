/**
 * Computes the CRC-32 of ISO 3309 and zlib for parts of larger arrays.
 *
 * A call to zlib needs a new array for the part and takes 0.2 µs before it starts. So the checksum of a short part is
 * computed here, eight bytes at a time with eight tables ("slicing-by-8": Kounavis and Berry, ISCC 2005): 136 bytes take
 * 0.23 µs instead of 0.41. From about 300 bytes on, zlib is faster.
 */
import { crc32 as zlibCrc32 } from 'node:zlib'
import { viewBytes } from './bytes.js'

const SHORT_BYTES = 256
/** x^32 + x^26 + x^23 + x^22 + x^16 + x^12 + x^11 + x^10 + x^8 + x^7 + x^5 + x^4 + x^2 + x + 1, lowest bit first. */
const POLYNOMIAL = 0xedb8_8320
const TABLE = 256

/** `TABLES[t * 256 + b]`: the CRC of the byte b followed by t zeros. */
const TABLES = tables()

function tables(): Int32Array {
  const all = new Int32Array(8 * TABLE)
  for (let byte = 0; byte < TABLE; byte++) {
    let rest = byte
    for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ POLYNOMIAL : rest >>> 1
    all[byte] = rest
  }
  for (let at = TABLE; at < all.length; at++) {
    const before = all[at - TABLE]!
    all[at] = all[before & 0xff]! ^ (before >>> 8)
  }
  return all
}

/** The CRC of `bytes[start, end)`; `crc` is the CRC of the bytes before `start`. */
export function crc32(bytes: Uint8Array, start: number, end: number, crc = 0): number {
  if (end - start > SHORT_BYTES) return zlibCrc32(viewBytes(bytes, start, end), crc)
  let rest = ~crc
  let at = start
  for (; at + 8 <= end; at += 8) {
    const low = rest ^ (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24))
    rest =
      TABLES[7 * TABLE + (low & 0xff)]! ^
      TABLES[6 * TABLE + ((low >>> 8) & 0xff)]! ^
      TABLES[5 * TABLE + ((low >>> 16) & 0xff)]! ^
      TABLES[4 * TABLE + (low >>> 24)]! ^
      TABLES[3 * TABLE + bytes[at + 4]!]! ^
      TABLES[2 * TABLE + bytes[at + 5]!]! ^
      TABLES[TABLE + bytes[at + 6]!]! ^
      TABLES[bytes[at + 7]!]!
  }
  for (; at < end; at++) rest = TABLES[(rest ^ bytes[at]!) & 0xff]! ^ (rest >>> 8)
  return ~rest >>> 0
}
