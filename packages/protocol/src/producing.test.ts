import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { BATCH_HEADER_BYTES } from './batch.js'
import { writeU32, writeU64 } from './bytes.js'
import { LIMITS } from './limits.js'
import {
  PUBLISH_OK_ITEM_BYTES,
  decodePublishErr,
  decodePublishOk,
  encodePublishErr,
  publishBatchStart,
  writePublishOkItem,
} from './producing.js'

const PLAIN = { noNullPrototype: true } as const
const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })

function malformed(message: string): Error {
  return expect.objectContaining({
    code: 'MALFORMED_FRAME',
    message: expect.stringContaining(message) as string,
  }) as Error
}

interface Item {
  readonly batchNumber: number
  readonly baseOffset: number
  readonly duplicates: readonly (readonly [number, number])[]
}

function encode(items: readonly Item[]): Uint8Array {
  const size = items.reduce((sum, { duplicates }) => sum + PUBLISH_OK_ITEM_BYTES + duplicates.length * 12, 0)
  const bytes = new Uint8Array(size)
  let at = 0
  for (const { batchNumber, baseOffset, duplicates } of items) {
    const next = writePublishOkItem(bytes, at, batchNumber, baseOffset)
    writeU32(bytes, at + 16, duplicates.length)
    at = next
    for (const [index, offset] of duplicates) {
      writeU32(bytes, at, index)
      writeU64(bytes, at + 4, offset)
      at += 12
    }
  }
  expect(at).toBe(size)
  return bytes
}

function decode(bytes: Uint8Array): Item[] {
  const items: Item[] = []
  decodePublishOk(bytes, 0, bytes.length, (batchNumber, baseOffset, duplicates) => {
    items.push({ batchNumber, baseOffset, duplicates: [...(duplicates ?? [])] })
  })
  return items
}

describe('PUBLISH_OK', () => {
  test('any items come back', () => {
    const duplicate = fc.tuple(fc.nat(65_534), u64)
    const anyItem = fc.record(
      {
        batchNumber: u64,
        baseOffset: u64,
        duplicates: fc.uniqueArray(duplicate, { maxLength: 5, selector: ([index]) => index }),
      },
      PLAIN,
    )
    fc.assert(
      fc.property(fc.array(anyItem, { maxLength: 8 }), (items) => {
        expect(decode(encode(items))).toStrictEqual(items)
      }),
      { numRuns: 300 },
    )
  })

  test('a count of duplicates that cannot be there is refused before anything is made for it', () => {
    let refused = 0
    for (const count of [1, 2, 0xffff, 0x7fff_ffff, 0xffff_ffff]) {
      const bytes = encode([{ batchNumber: 1, baseOffset: 0, duplicates: [] }])
      writeU32(bytes, 16, count)
      expect(() => decode(bytes)).toThrow(malformed(`PUBLISH_OK has 0 bytes; it needs ${count * 12}`))
      refused++
    }
    expect(refused).toBe(5)
  })
})

describe('PUBLISH_ERR', () => {
  test('comes back, and its text is cut to its limit', () => {
    const fault = {
      code: 'MESSAGE_TOO_LARGE',
      scope: 'request',
      retryable: false,
      retryAfterMs: 0,
      message: 'x'.repeat(5_000),
    } as const
    const bytes = encodePublishErr(2 ** 53 - 1, fault)
    expect(decodePublishErr(bytes, 0, bytes.length)).toStrictEqual({
      batchNumber: 2 ** 53 - 1,
      fault: { ...fault, message: 'x'.repeat(LIMITS.reasonBytesMax) },
    })
    expect(() => decodePublishErr(bytes, 0, 7)).toThrow(malformed('PUBLISH_ERR has 7 bytes'))
    expect(() => decodePublishErr(bytes, 0, bytes.length - 1)).toThrow(malformed('it must have'))
  })
})

describe('PUBLISH', () => {
  test('the batch begins behind the name, whatever its length', () => {
    let checked = 0
    for (let length = 0; length < 256; length++) {
      const bytes = new Uint8Array(3 + 1 + length + BATCH_HEADER_BYTES)
      const batchAt = bytes.length - BATCH_HEADER_BYTES
      bytes[3] = length
      expect(publishBatchStart(bytes, 3, bytes.length)).toBe(batchAt)
      expect(() => publishBatchStart(bytes, 3, bytes.length - 1)).toThrow(
        malformed('The batch of PUBLISH has 47 bytes; it needs 48'),
      )
      if (length > 0) {
        const cut = (): number => publishBatchStart(bytes, 3, batchAt - 1)
        expect(cut).toThrow(malformed(`names a queue of ${length} bytes; ${length - 1} came`))
      }
      checked++
    }
    expect(checked).toBe(256)
    expect(() => publishBatchStart(new Uint8Array(3), 3, 3)).toThrow(malformed('PUBLISH has 0 bytes'))
  })
})
