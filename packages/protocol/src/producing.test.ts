import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { crc32 } from 'node:zlib'
import { BATCH_HEADER_BYTES, sealBatch } from './batch.js'
import { writeU16, writeU32 } from './bytes.js'
import { LIMITS } from './limits.js'
import {
  atomicNumber,
  decodeAtomic,
  decodeAtomicOk,
  decodePublishErr,
  decodePublishOk,
  encodeAtomic,
  encodeAtomicOk,
  encodePublishErr,
  publishBatchStart,
  publishOkItemBytes,
  writePublishOkItem,
  type AtomicAck,
  type AtomicBatch,
} from './producing.js'

const PLAIN = { noNullPrototype: true } as const
const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })

const TWO_53 = [0, 0, 0, 0, 0, 0, 0x20, 0]

function refusal(code: string, message: string): Error {
  return expect.objectContaining({ code, message: expect.stringContaining(message) as string }) as Error
}

function malformed(message: string): Error {
  return refusal('MALFORMED_FRAME', message)
}

interface Item {
  readonly batchNumber: number
  readonly baseOffset: number
  readonly duplicates: readonly (readonly [number, number])[]
}

function encode(items: readonly Item[]): Uint8Array {
  const maps = items.map(({ duplicates }) => (duplicates.length === 0 ? undefined : new Map(duplicates)))
  const size = maps.reduce((sum, duplicates) => sum + publishOkItemBytes(duplicates), 0)
  const bytes = new Uint8Array(size)
  let at = 0
  for (const [index, { batchNumber, baseOffset }] of items.entries())
    at = writePublishOkItem(bytes, at, batchNumber, baseOffset, maps[index])
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
  test('any items are decoded as they were encoded', () => {
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

  test('has the specified bytes', () => {
    const bytes = encode([
      { batchNumber: 2 ** 32 + 1, baseOffset: 7, duplicates: [] },
      { batchNumber: 3, baseOffset: 8, duplicates: [[2, 2 ** 40 + 5]] },
    ])
    expect(Array.from(bytes)).toStrictEqual([
      ...[1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      ...[3, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
      ...[2, 0, 0, 0, 5, 0, 0, 0, 0, 1, 0, 0],
    ])
  })

  test('a number of 2^53 in any field is refused', () => {
    for (const at of [0, 8, 24]) {
      const bytes = encode([{ batchNumber: 1, baseOffset: 2, duplicates: [[3, 4]] }])
      bytes.set(TWO_53, at)
      expect(() => decode(bytes)).toThrow(malformed('PUBLISH_OK has the number 9007199254740992'))
    }
  })

  test('a count of duplicates that exceeds the frame is refused before any allocation', () => {
    let refused = 0
    for (const count of [1, 2, 0xffff, 0x7fff_ffff, 0xffff_ffff]) {
      const bytes = encode([{ batchNumber: 1, baseOffset: 0, duplicates: [] }])
      writeU32(bytes, 16, count)
      expect(() => decode(bytes)).toThrow(
        malformed(`PUBLISH_OK is cut off: ${count * 12} bytes are needed, and 0 are available`),
      )
      refused++
    }
    expect(refused).toBe(5)
  })
})

describe('PUBLISH_ERR', () => {
  test('is decoded as it was encoded, with its text truncated to the limit', () => {
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
    expect(() => decodePublishErr(bytes, 0, 7)).toThrow(malformed('PUBLISH_ERR is cut off'))
    expect(() => decodePublishErr(bytes, 0, bytes.length - 1)).toThrow(malformed('it must have'))
  })
})

describe('PUBLISH', () => {
  test('the batch begins after the name, for any length of the name', () => {
    let checked = 0
    for (let length = 0; length < 256; length++) {
      const bytes = new Uint8Array(3 + 1 + length + BATCH_HEADER_BYTES)
      const batchAt = bytes.length - BATCH_HEADER_BYTES
      bytes[3] = length
      expect(publishBatchStart(bytes, 3, bytes.length)).toBe(batchAt)
      expect(() => publishBatchStart(bytes, 3, bytes.length - 1)).toThrow(
        malformed('The batch of PUBLISH is cut off: 48 bytes are needed, and 47 are available'),
      )
      if (length > 0) {
        const cut = (): number => publishBatchStart(bytes, 3, batchAt - 1)
        expect(cut).toThrow(malformed(`has ${length} bytes; ${length - 1} arrived`))
      }
      checked++
    }
    expect(checked).toBe(256)
    expect(() => publishBatchStart(new Uint8Array(3), 3, 3)).toThrow(malformed('PUBLISH is cut off'))
  })
})

/** Makes a sealed batch of `count` records of 8 bytes, which is valid as far as ATOMIC checks it. */
function batchOf(number: number, queue: string, count = 1, records = count): AtomicBatch {
  const bytes = new Uint8Array(2 + BATCH_HEADER_BYTES + records * 8 + 3)
  const end = bytes.length - 3
  sealBatch(bytes, 2, end, { type: 1, count, batchNumber: number })
  return { queue, bytes, at: 2, end }
}

describe('ATOMIC', () => {
  const ack: AtomicAck = { channel: 1, subscriptionId: 9, firstTag: 3, count: 2 }

  function read(bytes: Uint8Array, start = 0, end = bytes.length): unknown {
    const { batches, ...others } = decodeAtomic(bytes, start, end)
    return {
      ...others,
      batches: batches.map(({ queue, ...of }) => ({ queue, bytes: of.bytes.slice(of.at, of.end) })),
    }
  }

  /** Changes the bytes of `step(…)` and corrects their checksum. */
  function resealed(bytes: Uint8Array, change: (bytes: Uint8Array) => void, end = bytes.length): Uint8Array {
    const changed = bytes.slice(0, end)
    change(changed)
    writeU32(changed, 8, crc32(changed.subarray(12)))
    return changed
  }

  const batches = [batchOf(5, 'log'), batchOf(5, 'q', 2)]
  const step = encodeAtomic(5, [ack, { ...ack, channel: 65_535, firstTag: 0xffff_ffff }], batches)
  // Positions: head 0..15, ranges 16..31 and 32..47, name 48..51, batch 52..107, name 108..109, batch 110..173.

  test('has the specified bytes', () => {
    expect(step.length).toBe(174)
    expect(Array.from(step.subarray(0, 8))).toStrictEqual([5, 0, 0, 0, 0, 0, 0, 0])
    expect(Array.from(step.subarray(12, 52))).toStrictEqual([
      ...[2, 0, 2, 0],
      ...[1, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0],
      ...[255, 255, 0, 0, 9, 0, 0, 0, 255, 255, 255, 255, 2, 0, 0, 0],
      ...[3, 0x6c, 0x6f, 0x67],
    ])
    expect(step.subarray(52, 108)).toStrictEqual(batches[0]!.bytes.slice(2, 58))
    expect(Array.from(step.subarray(108, 110))).toStrictEqual([1, 0x71])
    // The checksum was computed with python3: zlib.crc32(b'\0\0\0\0').
    expect(Array.from(encodeAtomic(1, [], []))).toStrictEqual([
      ...[1, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0xdf, 0x44, 0x21, 0, 0, 0, 0],
    ])
  })

  test('any ATOMIC is decoded as it was encoded, even after other bytes', () => {
    const anyAck = fc.record(
      {
        channel: fc.nat(0xffff),
        subscriptionId: fc.nat(0xffff_ffff),
        firstTag: fc.nat(0xffff_ffff),
        count: fc.integer({ min: 1, max: 6_000 }),
      },
      PLAIN,
    )
    const anyBatch = fc.tuple(fc.stringMatching(/^[a-z]{1,255}$/), fc.integer({ min: 1, max: 3 }))
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
        fc.array(anyAck, { maxLength: 10 }),
        fc.array(anyBatch, { maxLength: 4 }),
        (number, acks, list) => {
          const made = list.map(([queue, count]) => batchOf(number, queue, count))
          const bytes = encodeAtomic(number, acks, made)
          const chunk = new Uint8Array([9, 9, 9, ...bytes, 9, 9])
          expect(read(chunk, 3, chunk.length - 2)).toStrictEqual({
            number,
            crc: crc32(bytes.subarray(12)),
            acks,
            batches: made.map((of) => ({ queue: of.queue, bytes: of.bytes.slice(of.at, of.end) })),
          })
          expect(atomicNumber(chunk, 3, chunk.length - 2)).toBe(number)
        },
      ),
      { numRuns: 200 },
    )
  })

  test('refuses a step that is truncated at any byte, even if its checksum is corrected, or one byte too long', () => {
    let refused = 0
    for (let end = 0; end < step.length; end++) {
      const code = end < 16 ? 'MALFORMED_FRAME' : 'BATCH_CORRUPT'
      expect(() => decodeAtomic(step, 0, end)).toThrow(refusal(code, ''))
      if (end >= 16) {
        const mended = resealed(step, () => {}, end)
        expect(() => decodeAtomic(mended, 0, end)).toThrow(malformed(''))
      } else {
        expect(() => atomicNumber(step, 0, end)).toThrow(
          malformed(`ATOMIC is cut off: 16 bytes are needed, and ${end} are available`),
        )
      }
      refused++
    }
    expect(refused).toBe(174)
    const long = resealed(new Uint8Array([...step, 0]), () => {})
    expect(() => read(long)).toThrow(malformed('ATOMIC has 1 bytes after its last batch'))
  })

  test('each flipped bit in and after the checksum is detected', () => {
    let refused = 0
    for (let bit = 8 * 8; bit < step.length * 8; bit++) {
      const bytes = step.slice()
      bytes[bit >> 3]! ^= 1 << (bit & 7)
      expect(() => decodeAtomic(bytes, 0, bytes.length)).toThrow(
        refusal('BATCH_CORRUPT', 'The checksum of the atomic step 5 does not match'),
      )
      refused++
    }
    expect(refused).toBe(166 * 8)
  })

  test.each<[string, (bytes: Uint8Array) => void, string, string]>([
    ['number 0', (b) => b.fill(0, 0, 8), 'BATCH_MALFORMED', 'The number 0 of an atomic step'],
    ['number 2^53', (b) => b.set(TWO_53), 'MALFORMED_FRAME', 'must be below 2^53'],
    [
      'a number that its batches do not have',
      (b) => (b[0] = 6),
      'BATCH_MALFORMED',
      'Batch 0 of the atomic step 6',
    ],
    [
      'a second batch with another number',
      (b) => (b[110 + 24] = 6),
      'BATCH_MALFORMED',
      'Batch 1 of the atomic step 5',
    ],
    ['a range of 0 tags', (b) => writeU32(b, 28, 0), 'MALFORMED_FRAME', 'ATOMIC has a range of 0 tags'],
    [
      'the largest range',
      (b) => writeU32(b, 28, 0xffff_ffff),
      'TRANSACTION_TOO_LARGE',
      '4294967295 acknowledgements; at most 65535',
    ],
    [
      'more ranges than arrived',
      (b) => writeU16(b, 12, 0xffff),
      'MALFORMED_FRAME',
      '1048560 bytes are needed',
    ],
    ['one range more', (b) => writeU16(b, 12, 3), 'MALFORMED_FRAME', ''],
    ['one batch less', (b) => writeU16(b, 14, 1), 'MALFORMED_FRAME', '66 bytes after its last batch'],
    ['one batch more', (b) => writeU16(b, 14, 3), 'MALFORMED_FRAME', 'PUBLISH is cut off'],
    ['1,025 batches', (b) => writeU16(b, 14, 1_025), 'TRANSACTION_TOO_LARGE', '1025 batches; at most 1024'],
    ['a name past the end', (b) => (b[108] = 255), 'MALFORMED_FRAME', 'PUBLISH has 255 bytes; 65 arrived'],
    [
      'a batch of 47 bytes',
      (b) => writeU32(b, 52, 47),
      'MALFORMED_FRAME',
      'The header of batch 0 of ATOMIC gives a length of 47 bytes',
    ],
    [
      'a batch of 0 bytes',
      (b) => writeU32(b, 52, 0),
      'MALFORMED_FRAME',
      'gives a length of 0 bytes; 122 are left',
    ],
    [
      'a batch past the end',
      (b) => writeU32(b, 110, 65),
      'MALFORMED_FRAME',
      'gives a length of 65 bytes; 64 are left',
    ],
    ['the longest batch', (b) => writeU32(b, 110, 0xffff_ffff), 'MALFORMED_FRAME', '4294967295 bytes'],
    [
      'more messages than allowed, by the counts of the batches',
      (b) => writeU32(b, 52 + 12, 65_534),
      'TRANSACTION_TOO_LARGE',
      '65536 messages; at most 65535',
    ],
  ])('refuses %s', (_, change, code, message) => {
    const bytes = resealed(step, change)
    expect(() => read(bytes)).toThrow(refusal(code, message))
  })

  test('the reserved field of a range is ignored', () => {
    expect(
      decodeAtomic(
        resealed(step, (b) => writeU16(b, 18, 0xffff)),
        0,
        step.length,
      ).acks[0],
    ).toStrictEqual(ack)
  })

  test('accepts values at each limit and refuses values one beyond, in the encoder and the decoder', () => {
    const one = { ...ack, count: 1 }
    const acks = Array.from({ length: LIMITS.atomicAcksMax }, () => one)
    const most = encodeAtomic(1, acks, [])
    expect(decodeAtomic(most, 0, most.length).acks).toHaveLength(65_535)
    const tooManyAcks = refusal(
      'TRANSACTION_TOO_LARGE',
      '65536 acknowledgements; at most 65535 are accepted.',
    )
    // A count that does not fit its field is refused, and not truncated to 0.
    expect(() => encodeAtomic(1, [...acks, one], [])).toThrow(tooManyAcks)
    expect(() => encodeAtomic(1, [{ ...ack, count: 65_535 }, one], [])).toThrow(tooManyAcks)
    const over = resealed(encodeAtomic(1, [{ ...ack, count: 65_534 }, one], []), (b) => (b[44] = 2))
    expect(() => read(over)).toThrow(tooManyAcks)

    const small = batchOf(1, 'q')
    const many = Array.from({ length: LIMITS.atomicBatchesMax }, () => small)
    const full = encodeAtomic(1, [], many)
    expect(decodeAtomic(full, 0, full.length).batches).toHaveLength(1_024)
    expect(() => encodeAtomic(1, [], [...many, small])).toThrow(
      refusal('TRANSACTION_TOO_LARGE', '1025 batches; at most 1024 are accepted.'),
    )

    const large = batchOf(1, 'q', LIMITS.atomicMessagesMax)
    const whole = encodeAtomic(1, [], [large])
    expect(decodeAtomic(whole, 0, whole.length).batches).toHaveLength(1)
    expect(() => encodeAtomic(1, [], [large, small])).toThrow(
      refusal('TRANSACTION_TOO_LARGE', '65536 messages; at most 65535 are accepted.'),
    )
    for (const queue of ['', 'q'.repeat(256), 'é'])
      expect(() => encodeAtomic(1, [], [batchOf(1, queue)])).toThrow(refusal('INVALID_NAME', 'queue name'))
  })
})

describe('ATOMIC_OK', () => {
  const places = [
    { baseOffset: 2 ** 32 + 7, duplicates: undefined },
    { baseOffset: 9, duplicates: new Map([[1, 4]]) },
  ]
  const ok = encodeAtomicOk(5, places)

  test('has the specified bytes', () => {
    expect(Array.from(ok)).toStrictEqual([
      ...[5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
      ...[7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
      ...[9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
      ...[1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
    ])
    expect(decodeAtomicOk(ok, 0, ok.length)).toStrictEqual({ number: 5, places })
  })

  test('any ATOMIC_OK is decoded as it was encoded', () => {
    const anyPlace = fc.record(
      {
        baseOffset: u64,
        duplicates: fc.option(
          fc
            .array(fc.tuple(fc.nat(65_534), u64), { minLength: 1, maxLength: 5 })
            .map((entries) => new Map(entries)),
          { nil: undefined },
        ),
      },
      PLAIN,
    )
    fc.assert(
      fc.property(u64, fc.array(anyPlace, { maxLength: 8 }), (number, any) => {
        const bytes = encodeAtomicOk(number, any)
        expect(decodeAtomicOk(bytes, 0, bytes.length)).toStrictEqual({ number, places: any })
      }),
      { numRuns: 200 },
    )
  })

  test('refuses truncation at any byte, one byte too many, impossible counts, and 2^53', () => {
    let refused = 0
    for (let end = 0; end <= ok.length + 1; end++) {
      if (end === ok.length) continue
      const bytes = new Uint8Array([...ok, 0])
      expect(() => decodeAtomicOk(bytes, 0, end)).toThrow(
        malformed(end < ok.length ? 'ATOMIC_OK is cut off' : 'ATOMIC_OK has 1 bytes too many'),
      )
      refused++
    }
    expect(refused).toBe(49)
    for (const at of [8, 20, 32]) {
      for (const count of [3, 0xffff, 0x7fff_ffff, 0xffff_ffff]) {
        const bytes = ok.slice()
        writeU32(bytes, at, count)
        expect(() => decodeAtomicOk(bytes, 0, bytes.length)).toThrow(malformed('ATOMIC_OK is cut off'))
        refused++
      }
    }
    for (const at of [0, 12, 24, 40]) {
      const bytes = ok.slice()
      bytes.set(TWO_53, at)
      expect(() => decodeAtomicOk(bytes, 0, bytes.length)).toThrow(malformed('must be below 2^53'))
      refused++
    }
    expect(refused).toBe(49 + 12 + 4)
  })

  test('the answer to the largest step fits every frame size that the handshake can agree on', () => {
    const duplicates = new Map(Array.from({ length: LIMITS.atomicMessagesMax }, (_, i) => [i, i]))
    const all = Array.from({ length: LIMITS.atomicBatchesMax }, (_, i) => ({
      baseOffset: i,
      duplicates: i === 0 ? duplicates : undefined,
    }))
    expect(encodeAtomicOk(1, all).length).toBeLessThan(LIMITS.batchBytesMax)
  })
})
