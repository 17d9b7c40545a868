import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  clipText,
  readText,
  readU16,
  readU32,
  readU48,
  readU64,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU48,
  writeU64,
} from './bytes.js'
import { character } from '../../../test/characters.js'

type Read = (bytes: Uint8Array, at: number) => number
type Write = (bytes: Uint8Array, at: number, value: number) => void

const NUMBERS: readonly [string, number, number, Read, Write][] = [
  ['u16', 2, 0xffff, readU16, writeU16],
  ['u32', 4, 0xffff_ffff, readU32, writeU32],
  ['u48', 6, 2 ** 48 - 1, readU48, writeU48],
  ['u64', 8, Number.MAX_SAFE_INTEGER, readU64, writeU64],
]

/** The bytes of a number according to the layout, computed with BigInt. */
function littleEndian(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Number((BigInt(value) >> BigInt(8 * i)) & 0xffn))
}

describe.each(NUMBERS)('%s', (_, size, max, read, write) => {
  const edges = [0, 1, 127, 128, 255, 256, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2 ** 32, 2 ** 32 + 1]
  const fitting = [...edges, 2 ** 40, 2 ** 47, max - 1, max].filter((value) => value <= max)

  function expectRoundTrip(value: number): void {
    const bytes = new Uint8Array(size + 4).fill(0xa5)
    write(bytes, 2, value)
    expect([...bytes]).toStrictEqual([0xa5, 0xa5, ...littleEndian(value, size), 0xa5, 0xa5])
    expect(read(bytes, 2)).toBe(value)
  }

  test('edge values are read as they were written, in little-endian order', () => {
    for (const value of fitting) expectRoundTrip(value)
    expect(fitting.length).toBeGreaterThanOrEqual(8)
  })

  test('any number is read as it was written', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max }), expectRoundTrip), { numRuns: 300 })
  })

  test('any bytes are read as a number that is not negative', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: size, maxLength: size }), (bytes) => {
        const expected = bytes.reduceRight((sum, byte) => sum * 256n + BigInt(byte), 0n)
        if (expected <= BigInt(Number.MAX_SAFE_INTEGER)) expect(read(bytes, 0)).toBe(Number(expected))
        else expect(Number.isSafeInteger(read(bytes, 0))).toBe(false)
      }),
      { numRuns: 300 },
    )
  })
})

describe('text', () => {
  test('is read from the middle of a larger buffer, and takes as many bytes as textBytes returns', () => {
    let checked = 0
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 50 }), (text) => {
        const backing = new Uint8Array(1024)
        const bytes = backing.subarray(100, 1000)
        const length = writeText(bytes, 7, text)
        expect(length).toBe(textBytes(text))
        expect(readText(bytes, 7, 7 + length)).toBe(text)
        expect(backing[106 + length + 1]).toBe(0)
        checked++
      }),
      { numRuns: 300 },
    )
    expect(checked).toBe(300)
  })

  test('ill-formed bytes and lone surrogates become U+FFFD', () => {
    expect(readText(Uint8Array.of(0x61, 0xff, 0x62), 0, 3)).toBe('a\ufffdb')
    expect(readText(Uint8Array.of(0xe2, 0x82), 0, 2)).toBe('\ufffd')
    expect(textBytes('\ud83d')).toBe(3)
  })
})

describe('clipText', () => {
  test('returns the longest prefix that fits, and never splits a character', () => {
    let cut = 0
    fc.assert(
      fc.property(fc.string({ unit: character, maxLength: 40 }), fc.nat(60), (text, bytesMax) => {
        const clipped = clipText(text, bytesMax)
        expect(textBytes(clipped)).toBeLessThanOrEqual(bytesMax)
        expect(text.startsWith(clipped)).toBe(true)
        const next = text.codePointAt(clipped.length)
        if (next !== undefined) {
          expect(textBytes(clipped + String.fromCodePoint(next))).toBeGreaterThan(bytesMax)
          cut++
        }
      }),
      { numRuns: 500 },
    )
    expect(cut).toBeGreaterThan(50)
  })

  test.each([
    ['é', 1, ''],
    ['aé', 2, 'a'],
    ['€', 2, ''],
    ['€', 3, '€'],
    ['\u{1f407}x', 3, ''],
    ['\u{1f407}x', 4, '\u{1f407}'],
    ['\u{1f407}x', 5, '\u{1f407}x'],
    ['abc', 0, ''],
    ['', 0, ''],
  ])('%j to %i bytes is %j', (text, bytesMax, expected) => {
    expect(clipText(text, bytesMax)).toBe(expected)
  })
})
