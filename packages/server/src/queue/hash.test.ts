import { describe, expect, it } from 'vitest'
import { hashId, hashKey } from './hash.js'

describe('HalfSipHash-2-4', () => {
  // Results of the reference implementation for the key 00 01 … 07 and the first n bytes of 00 01 02 …
  const VECTORS: readonly (readonly [number, string])[] = [
    [0, '218d1f59b9b83cc8'],
    [1, 'be552412f8387315'],
    [2, '064f39ef7c50eb57'],
    [3, 'ce0f1a45f7060679'],
    [7, 'ff202728b07bc684'],
    [8, 'edfee820bce4858c'],
  ]

  it('gives the values that its authors published', () => {
    const out = new Uint32Array(2)
    for (const [length, expected] of VECTORS) {
      const bytes = Uint8Array.from({ length }, (_, i) => i)
      hashKey(bytes, 0, length, [0x0302_0100, 0x0706_0504], out, 0)
      expect(Buffer.from(out.buffer).toString('hex'), `${length} bytes`).toBe(expected)
    }
  })

  it('hashes an id with words 0 and 2 of the seed, then with words 1 and 3', () => {
    const bytes = Uint8Array.from({ length: 9 }, (_, i) => i)
    const id = new Uint32Array(6)
    const halves = new Uint32Array(6)
    hashId(bytes, 1, 9, [5, 6, 7, 8], id, 2)
    hashKey(bytes, 1, 9, [5, 7], halves, 2)
    hashKey(bytes, 1, 9, [6, 8], halves, 4)
    expect(id).toEqual(halves)
  })

  it('reads no bytes outside the range', () => {
    const out = new Uint32Array(4)
    const bytes = Uint8Array.from({ length: 40 }, (_, i) => i * 7)
    hashKey(bytes, 3, 20, [1, 2], out, 0)
    hashKey(bytes.slice(3, 20), 0, 17, [1, 2], out, 2)
    expect([out[0], out[1]]).toEqual([out[2], out[3]])
    hashKey(bytes, 3, 21, [1, 2], out, 2)
    expect([out[0], out[1]]).not.toEqual([out[2], out[3]])
    hashKey(bytes, 3, 20, [1, 3], out, 2)
    expect([out[0], out[1]]).not.toEqual([out[2], out[3]])
  })
})
