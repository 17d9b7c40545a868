import { crc32 } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  checkBatch,
  readBatchHeader,
  recordsMatchCrc,
  sealBatch,
  stampBatch,
} from './batch.js'
import { writeU16, writeU32 } from './bytes.js'
import { LIMITS } from './limits.js'

function sealed(
  recordsBytes = 20,
  count = 1,
  stamp: { attributes?: number; batchNumber?: number } = {},
): Uint8Array {
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + recordsBytes)
  bytes.fill(7, BATCH_HEADER_BYTES)
  sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count, batchNumber: 1, ...stamp })
  return bytes
}

function check(bytes: Uint8Array): () => void {
  return () => checkBatch(bytes, 0, bytes.length)
}

function refusal(code: string, message: string): unknown {
  return expect.objectContaining({ code, message: expect.stringContaining(message) as string })
}

describe('seal, stamp and read', () => {
  test('the CRC is the CRC-32 of zlib', () => {
    // This is the check value that every description of CRC-32 gives.
    expect(crc32(new TextEncoder().encode('123456789'))).toBe(0xcbf4_3926)
  })

  test('a header is read as it was written, after other bytes, and a stamp changes only the fields of the broker', () => {
    const bytes = new Uint8Array(5 + BATCH_HEADER_BYTES + 3).fill(0xee)
    sealBatch(bytes, 5, bytes.length, { type: 1, attributes: 1, count: 3, batchNumber: 2 ** 53 - 1 })
    const header = {
      length: 51,
      type: 1,
      attributes: 1,
      version: 1,
      queueId: 0,
      count: 3,
      baseOffset: 0,
      batchNumber: 2 ** 53 - 1,
      timeMs: 0,
      producerId: 0,
      recordsCrc: crc32(bytes.subarray(53)),
    }
    expect(readBatchHeader(bytes, 5)).toStrictEqual(header)
    writeU16(bytes, 5 + 38, 0xffff)
    stampBatch(bytes, 5, 0xffff_ffff, 2 ** 53 - 1, 2 ** 48 - 1, 0xffff_fffe)
    expect(readBatchHeader(bytes, 5)).toStrictEqual({
      ...header,
      queueId: 0xffff_ffff,
      baseOffset: 2 ** 53 - 1,
      timeMs: 2 ** 48 - 1,
      producerId: 0xffff_fffe,
    })
    expect([bytes[5 + 38], bytes[5 + 39]]).toStrictEqual([0, 0])
    expect(recordsMatchCrc(bytes, 5, bytes.length)).toBe(true)
  })

  test('every flipped bit of the records and of the CRC is detected', () => {
    const bytes = sealed()
    let seen = 0
    for (let bit = 44 * 8; bit < bytes.length * 8; bit++) {
      bytes[bit >> 3]! ^= 1 << (bit & 7)
      if (!recordsMatchCrc(bytes, 0, bytes.length)) seen++
      bytes[bit >> 3]! ^= 1 << (bit & 7)
    }
    expect(seen).toBe((4 + 20) * 8)
    expect(recordsMatchCrc(bytes, 0, bytes.length)).toBe(true)
  })

  test('the CRC does not cover the header', () => {
    const bytes = sealed()
    bytes.fill(0xff, 0, 44)
    expect(recordsMatchCrc(bytes, 0, bytes.length)).toBe(true)
  })
})

describe('checkBatch', () => {
  test('accepts all that a producer may send', () => {
    const good = [sealed(), sealed(0), sealed(20, 1, { attributes: BATCH_ATTRIBUTE.atomic })]
    for (const bytes of good) expect(check(bytes)).not.toThrow()
    expect(good).toHaveLength(3)
  })

  test.each<[string, (bytes: Uint8Array) => void, unknown]>([
    [
      'a length above what arrived',
      (b) => writeU32(b, 0, 69),
      refusal('BATCH_MALFORMED', 'gives a length of 69 bytes; 68 arrived'),
    ],
    [
      'a length below what arrived',
      (b) => writeU32(b, 0, 67),
      refusal('BATCH_MALFORMED', 'gives a length of 67 bytes'),
    ],
    ['length 0', (b) => writeU32(b, 0, 0), refusal('BATCH_MALFORMED', 'gives a length of 0 bytes')],
    ['the largest length', (b) => writeU32(b, 0, 0xffff_ffff), refusal('BATCH_MALFORMED', '4294967295')],
    ['type 0', (b) => (b[4] = 0), refusal('BATCH_MALFORMED', 'batch type 0')],
    ['the type of facts', (b) => (b[4] = BATCH_TYPE.facts), refusal('BATCH_MALFORMED', 'batch type 2')],
    ['relocated', (b) => (b[5] = 2), refusal('BATCH_MALFORMED', 'batch attributes 2')],
    ['sparse', (b) => (b[5] = 8), refusal('BATCH_MALFORMED', 'batch attributes 8')],
    ['unknown attributes', (b) => (b[5] = 0x81), refusal('BATCH_MALFORMED', 'batch attributes 129')],
    ['version 0', (b) => writeU16(b, 6, 0), refusal('BATCH_MALFORMED', 'Batch version 0')],
    ['version 2', (b) => writeU16(b, 6, 2), refusal('BATCH_MALFORMED', 'Batch version 2')],
    ['no messages', (b) => writeU32(b, 12, 0), refusal('BATCH_TOO_LARGE', 'has 0 messages')],
    [
      'one message too many',
      (b) => writeU32(b, 12, 65_536),
      refusal('BATCH_TOO_LARGE', 'has 65536 messages'),
    ],
    ['the largest count', (b) => writeU32(b, 12, 0xffff_ffff), refusal('BATCH_TOO_LARGE', '4294967295')],
    ['number 0', (b) => b.fill(0, 24, 32), refusal('BATCH_MALFORMED', 'Batch number 0')],
    [
      'number 2^53',
      (b) => b.set([0, 0, 0, 0, 0, 0, 0x20, 0], 24),
      refusal('BATCH_MALFORMED', 'is out of range'),
    ],
    ['the largest number', (b) => b.fill(0xff, 24, 32), refusal('BATCH_MALFORMED', 'is out of range')],
    ['another CRC', (b) => writeU32(b, 44, 0), refusal('BATCH_CORRUPT', 'batch 1 does not match')],
    ['other records', (b) => (b[60] = 0), refusal('BATCH_CORRUPT', 'batch 1 does not match')],
  ])('refuses %s', (_, change, error) => {
    const bytes = sealed()
    change(bytes)
    expect(check(bytes)).toThrow(error)
  })

  test('refuses every length shorter than a header', () => {
    let refused = 0
    for (let length = 0; length < BATCH_HEADER_BYTES; length++) {
      expect(check(sealed().subarray(0, length))).toThrow(
        refusal('BATCH_MALFORMED', 'shorter than its header'),
      )
      refused++
    }
    expect(refused).toBe(48)
  })

  test('limits the count and the bytes of a batch', () => {
    const most = LIMITS.batchBytesMax - BATCH_HEADER_BYTES
    expect(check(sealed(20, LIMITS.batchCountMax))).not.toThrow()
    expect(check(sealed(most, 2))).not.toThrow()
    expect(check(sealed(most + 1, 2))).toThrow(refusal('BATCH_TOO_LARGE', 'has 1048577 bytes'))
    // A batch of a single message may be larger.
    expect(check(sealed(most + 1, 1))).not.toThrow()
    expect(check(sealed(20, 1, { batchNumber: Number.MAX_SAFE_INTEGER }))).not.toThrow()
  })
})
