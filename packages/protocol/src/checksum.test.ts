import fc from 'fast-check'
import { crc32 as zlibCrc32 } from 'node:zlib'
import { expect, test } from 'vitest'
import { crc32 } from './checksum.js'

test('the CRC of the digits 1 to 9 is the published check value', () => {
  expect(crc32(new TextEncoder().encode('123456789'), 0, 9)).toBe(0xcbf4_3926)
})

test('the CRC of any part, computed in one piece or in two, equals the CRC of zlib', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 700, size: 'max' }),
      fc.nat(700),
      fc.nat(700),
      fc.nat(700),
      (bytes, a, b, c) => {
        const [start, middle, end] = [a, b, c]
          .map((at) => Math.min(at, bytes.length))
          .sort((x, y) => x - y) as [number, number, number]
        const expected = zlibCrc32(bytes.subarray(start, end))
        expect(crc32(bytes, start, end)).toBe(expected)
        expect(crc32(bytes, middle, end, crc32(bytes, start, middle))).toBe(expected)
      },
    ),
    { numRuns: 2_000 },
  )
})
