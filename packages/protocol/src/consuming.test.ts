import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { writeU16, writeU32, writeU48 } from './bytes.js'
import {
  DELIVER_HEADER_BYTES,
  LOSS,
  OUTCOME,
  SETTLE_ITEM_BYTES,
  decodeCredit,
  decodeDeliverHead,
  decodeDrained,
  decodeExtend,
  decodeLeasesLost,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  encodeCredit,
  encodeDrained,
  encodeExtend,
  encodeLeasesLost,
  encodeRanges,
  encodeSettle,
  encodeSubscriptionId,
  writeDeliverHead,
  type Extend,
  type SettleItem,
  type TagRange,
} from './consuming.js'
import { durationText } from './units.js'
import { LIMITS } from './limits.js'

const PLAIN = { noNullPrototype: true } as const
const u32 = fc.integer({ min: 0, max: 0xffff_ffff })
const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })
const tagCount = fc.integer({ min: 1, max: 6_000 })
const RANGES_ALL_MAX = LIMITS.creditMessagesMax
const TWO_53 = [0, 0, 0, 0, 0, 0, 0x20, 0]

function refusal(code: string, message: string): Error {
  return expect.objectContaining({ code, message: expect.stringContaining(message) as string }) as Error
}

function malformed(message: string): Error {
  return refusal('MALFORMED_FRAME', message)
}

function repeated<Item>(item: Item, count: number): Item[] {
  return Array.from({ length: count }, () => item)
}

describe('CREDIT', () => {
  const anyCredit = fc.record(
    {
      subscriptionId: u32,
      messages: fc.nat(LIMITS.creditMessagesMax),
      bytes: u32,
      limit: fc.option(u64, { nil: undefined }),
      drain: fc.boolean(),
    },
    PLAIN,
  )

  test('any credit is decoded as it was encoded', () => {
    fc.assert(
      fc.property(anyCredit, (credit) => {
        const bytes = encodeCredit(credit)
        expect(decodeCredit(bytes, 0, bytes.length)).toStrictEqual(credit)
      }),
      { numRuns: 300 },
    )
  })

  const credit = { subscriptionId: 1, messages: 65_535, bytes: 0xffff_ffff, limit: undefined, drain: false }

  test('one message over the limit, every unknown flag, and a limit of 2^53 are refused', () => {
    const bytes = encodeCredit(credit)
    writeU32(bytes, 4, 65_536)
    expect(() => decodeCredit(bytes, 0, 24)).toThrow(
      refusal('INVALID_ARGUMENT', 'A credit of 65536 messages'),
    )
    let refused = 0
    for (let flags = 4; flags < 256; flags++) {
      const flagged = encodeCredit(credit)
      flagged[12] = flags
      expect(() => decodeCredit(flagged, 0, 24)).toThrow(malformed(`CREDIT has unknown flags ${flags}`))
      refused++
    }
    expect(refused).toBe(252)
    const high = encodeCredit({ ...credit, limit: 1 })
    high.set(TWO_53, 16)
    expect(() => decodeCredit(high, 0, 24)).toThrow(malformed('CREDIT has the number 9007199254740992'))
  })

  test('reserved bytes are ignored', () => {
    const bytes = encodeCredit(credit)
    bytes.fill(0xff, 13, 16)
    expect(decodeCredit(bytes, 0, 24)).toStrictEqual(credit)
  })
})

describe('DELIVER', () => {
  test('any head is decoded as it was encoded, and its reserved byte and unknown flags are ignored', () => {
    const anyHead = fc.record({
      subscriptionId: u32,
      firstTag: u32,
      firstOffset: u64,
      publishedAtMs: u64,
      count: u32,
      attempt: fc.nat(0xffff),
      flags: fc.nat(0xff),
    })
    fc.assert(
      fc.property(anyHead, fc.nat(255), (head, reserved) => {
        const bytes = new Uint8Array(5 + DELIVER_HEADER_BYTES + 3)
        expect(writeDeliverHead(bytes, 5, head)).toBe(5 + DELIVER_HEADER_BYTES)
        expect(bytes[5 + 31]).toBe(0)
        bytes[5 + 31] = reserved
        expect(decodeDeliverHead(bytes, 5, bytes.length)).toEqual(head)
      }),
      { numRuns: 300 },
    )
  })

  test('an offset or a time of 2^53 is refused, and so is a head that is cut off', () => {
    const bytes = new Uint8Array(DELIVER_HEADER_BYTES)
    const times = { firstOffset: 3, publishedAtMs: 4 }
    const head = { subscriptionId: 1, firstTag: 2, ...times, count: 5, attempt: 6, flags: 1 }
    for (const at of [8, 16]) {
      writeDeliverHead(bytes, 0, head)
      bytes.set(TWO_53, at)
      expect(() => decodeDeliverHead(bytes, 0, 32)).toThrow(
        malformed('DELIVER has the number 9007199254740992; it must be below 2^53.'),
      )
    }
    let cuts = 0
    for (let end = 0; end < DELIVER_HEADER_BYTES; end++, cuts++)
      expect(() => decodeDeliverHead(bytes, 0, end)).toThrow(malformed('DELIVER is cut off'))
    expect(cuts).toBe(32)
  })
})

describe('SETTLE', () => {
  const anyItem: fc.Arbitrary<SettleItem> = fc.record(
    {
      firstTag: u32,
      count: tagCount,
      outcome: fc.constantFrom(...Object.values(OUTCOME)),
      delayMs: fc.option(fc.integer({ min: 0, max: LIMITS.delayMsMax }), { nil: undefined }),
      reason: fc.option(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 30 }), { nil: undefined }),
      invalid: fc.constant(true),
    },
    { ...PLAIN, requiredKeys: ['firstTag', 'count', 'outcome', 'delayMs', 'reason'] },
  )
  const settled = (items: readonly SettleItem[]): SettleItem[] => {
    const bytes = encodeSettle(9, items)
    return decodeSettle(bytes, 0, bytes.length).items
  }
  const ack: SettleItem = { firstTag: 1, count: 1, outcome: OUTCOME.ack }

  test('any items are decoded as they were encoded', () => {
    fc.assert(
      fc.property(u32, fc.array(anyItem, { maxLength: 10 }), (subscriptionId, items) => {
        const bytes = encodeSettle(subscriptionId, items)
        expect(decodeSettle(bytes, 0, bytes.length)).toStrictEqual({ subscriptionId, items })
      }),
      { numRuns: 300 },
    )
  })

  test('a reason is truncated to its limit, so that a settle never fails because of a long error text', () => {
    const reasons = settled([
      { ...ack, reason: 'x'.repeat(4_096) },
      { ...ack, reason: 'x'.repeat(4_097) },
      { ...ack, reason: 'é'.repeat(40_000) },
      { ...ack, reason: '' },
    ]).map(({ reason }) => reason)
    expect(reasons).toStrictEqual(['x'.repeat(4_096), 'x'.repeat(4_096), 'é'.repeat(2_048), undefined])
  })

  test.each<[string, (bytes: Uint8Array) => void, Error]>([
    ['outcome 0', (b) => (b[12] = 0), malformed('unknown outcome 0')],
    ['outcome 5', (b) => (b[12] = 5), malformed('unknown outcome 5')],
    ['outcome 255', (b) => (b[12] = 255), malformed('unknown outcome 255')],
    ['flags 8', (b) => (b[13] = 8), malformed('unknown flags 8')],
    ['flags 255', (b) => (b[13] = 255), malformed('unknown flags 255')],
    ['count 0', (b) => writeU32(b, 8, 0), malformed('a range of 0 tags')],
    ['count 65,536', (b) => writeU32(b, 8, 65_536), malformed('a range of 65536 tags')],
    ['the largest count', (b) => writeU32(b, 8, 0xffff_ffff), malformed('a range of 4294967295 tags')],
    [
      'a reason that did not arrive',
      (b) => writeU16(b, 14, 3),
      malformed('SETTLE is cut off: 3 bytes are needed, and 2 are available'),
    ],
    [
      'a reason over its limit',
      (b) => writeU16(b, 14, 4_097),
      refusal('INVALID_ARGUMENT', 'A reason of 4097 bytes'),
    ],
    [
      'a delay over its limit',
      (b) => writeU48(b, 16, LIMITS.delayMsMax + 1),
      refusal('INVALID_ARGUMENT', 'A delay of 3155760000001ms'),
    ],
    ['the largest delay', (b) => writeU48(b, 16, 2 ** 48 - 1), refusal('INVALID_ARGUMENT', 'A delay of')],
  ])('refuses %s', (_, change, error) => {
    const bytes = encodeSettle(9, [{ ...ack, outcome: OUTCOME.retry, delayMs: 5, reason: 'no' }])
    change(bytes)
    expect(() => decodeSettle(bytes, 0, bytes.length)).toThrow(error)
  })

  // u32 subscription · u32 tag · u32 count · u8 outcome · u8 flags · u16 reason length · u48 delay · u16 0 · reason
  test('an invalid body has its own flag, besides the flag of a delay', () => {
    const item = { firstTag: 3, count: 2, outcome: OUTCOME.deadLetter, reason: 'no', invalid: true } as const
    const bytes = encodeSettle(9, [item])
    expect(Array.from(bytes)).toStrictEqual([
      ...[9, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0],
      ...[4, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x6e, 0x6f],
    ])
    expect(settled([item])).toStrictEqual([{ ...item, delayMs: undefined }])
    const both = encodeSettle(9, [{ ...item, delayMs: 0 }])
    expect(both[13]).toBe(3)
    expect(decodeSettle(both, 0, both.length).items).toStrictEqual([{ ...item, delayMs: 0 }])
    expect(settled([{ ...item, invalid: false }])).toStrictEqual([
      { firstTag: 3, count: 2, outcome: 4, delayMs: undefined, reason: 'no' },
    ])
  })

  test('a paused key has its own flag', () => {
    const item = { firstTag: 3, count: 1, outcome: OUTCOME.retry, pauseKey: true } as const
    expect(encodeSettle(9, [item])[13]).toBe(4)
    expect(encodeSettle(9, [{ ...item, delayMs: 0 }])[13]).toBe(5)
    expect(settled([item])).toStrictEqual([{ ...item, delayMs: undefined, reason: undefined }])
  })

  test('accepts values at their limits, and ignores reserved bytes', () => {
    const item = { firstTag: 0xffff_ffff, count: 65_535, outcome: OUTCOME.retry, delayMs: LIMITS.delayMsMax }
    const bytes = encodeSettle(9, [item])
    bytes.fill(0xff, 4 + 18, 4 + 20)
    expect(decodeSettle(bytes, 0, bytes.length).items).toStrictEqual([{ ...item, reason: undefined }])
  })

  test('limits the number of items in one frame', () => {
    expect(settled(repeated(ack, LIMITS.rangesMax))).toHaveLength(LIMITS.rangesMax)
    const bytes = encodeSettle(9, repeated(ack, LIMITS.rangesMax + 1))
    expect(bytes.length).toBe(4 + SETTLE_ITEM_BYTES * (LIMITS.rangesMax + 1))
    expect(() => decodeSettle(bytes, 0, bytes.length)).toThrow(malformed('SETTLE has more than 16384 items'))
  })

  // Without this bound, 330 KB of items could make a broker walk a billion tags.
  test('limits the number of tags in all items together', () => {
    expect(settled([{ ...ack, count: RANGES_ALL_MAX - 1 }, ack])).toHaveLength(2)
    const items = [{ ...ack, count: RANGES_ALL_MAX }, ack]
    expect(() => settled(items)).toThrow(malformed('SETTLE names 65536 tags; at most 65535 are allowed'))
  })
})

describe('EXTEND', () => {
  const extend: Extend = { subscriptionId: 9, firstTag: 0xffff_ffff, count: 2, durationMs: 60_000 }

  test('has the specified bytes, and any EXTEND is decoded as it was encoded', () => {
    expect(Array.from(encodeExtend(extend))).toStrictEqual([
      ...[9, 0, 0, 0, 255, 255, 255, 255, 2, 0, 0, 0, 0x60, 0xea, 0, 0, 0, 0, 0, 0],
    ])
    const anyExtend = fc.record(
      {
        subscriptionId: u32,
        firstTag: u32,
        count: tagCount,
        durationMs: fc.oneof(fc.constant(0), fc.integer({ min: 100, max: LIMITS.delayMsMax })),
      },
      PLAIN,
    )
    fc.assert(
      fc.property(anyExtend, fc.nat(0xffff), (any, reserved) => {
        const bytes = encodeExtend(any)
        writeU16(bytes, 18, reserved)
        expect(decodeExtend(bytes, 0, bytes.length)).toStrictEqual(any)
      }),
      { numRuns: 300 },
    )
  })

  test('accepts durations at the limits, and refuses durations beyond them', () => {
    const decoded = (change: Partial<Extend>): Extend => {
      const bytes = encodeExtend({ ...extend, ...change })
      return decodeExtend(bytes, 0, bytes.length)
    }
    for (const durationMs of [0, LIMITS.processingTimeoutMsMin, LIMITS.delayMsMax])
      expect(decoded({ durationMs }).durationMs).toBe(durationMs)
    for (const durationMs of [1, LIMITS.processingTimeoutMsMin - 1, LIMITS.delayMsMax + 1, 2 ** 48 - 1]) {
      expect(() => decoded({ durationMs })).toThrow(
        refusal('INVALID_ARGUMENT', `${durationText(durationMs)}; it must be from 100ms to 36525d`),
      )
    }
    expect(decoded({ count: RANGES_ALL_MAX }).count).toBe(RANGES_ALL_MAX)
    for (const count of [0, RANGES_ALL_MAX + 1, 0xffff_ffff])
      expect(() => decoded({ count })).toThrow(malformed(`EXTEND has a range of ${count} tags`))
  })

  test('refuses a frame that is truncated at any byte, or one byte too long', () => {
    const bytes = new Uint8Array([...encodeExtend(extend), 0])
    let refused = 0
    for (let end = 0; end <= bytes.length; end++) {
      if (end === 20) continue
      expect(() => decodeExtend(bytes, 0, end)).toThrow(
        malformed(`EXTEND has ${end} bytes; it must have 20.`),
      )
      refused++
    }
    expect(refused).toBe(21)
  })
})

describe('STARTED, STARTING and SETTLE_OK', () => {
  const anyRanges: fc.Arbitrary<TagRange[]> = fc.array(fc.record({ firstTag: u32, count: tagCount }, PLAIN), {
    maxLength: 10,
  })
  const decoded = (ranges: readonly TagRange[]): TagRange[] => {
    const bytes = encodeRanges(9, ranges)
    return decodeRanges('STARTED', bytes, 0, bytes.length).ranges
  }
  const one: TagRange = { firstTag: 1, count: 1 }

  test('any ranges are decoded as they were encoded, even none', () => {
    fc.assert(
      fc.property(u32, anyRanges, (subscriptionId, ranges) => {
        const bytes = encodeRanges(subscriptionId, ranges)
        expect(decodeRanges('STARTED', bytes, 0, bytes.length)).toStrictEqual({ subscriptionId, ranges })
      }),
      { numRuns: 300 },
    )
    expect(decoded([])).toStrictEqual([])
  })

  test('limits the number of ranges, the tags of each range, and the tags of all ranges together', () => {
    expect(decoded(repeated(one, RANGES_ALL_MAX))).toHaveLength(RANGES_ALL_MAX)
    expect(() => decoded(repeated(one, RANGES_ALL_MAX + 1))).toThrow(malformed('more than 65535 ranges'))
    expect(decoded([{ firstTag: 0, count: RANGES_ALL_MAX }])).toHaveLength(1)
    expect(() => decoded([{ firstTag: 0, count: 0 }])).toThrow(malformed('a range of 0 tags'))
    expect(() => decoded([{ firstTag: 0, count: RANGES_ALL_MAX + 1 }])).toThrow(
      malformed('a range of 65536 tags'),
    )
    expect(() => decoded([{ firstTag: 0, count: RANGES_ALL_MAX }, one])).toThrow(
      malformed('names 65536 tags'),
    )
  })

  test('refuses a partial range, with the name of the frame in the error', () => {
    const bytes = encodeRanges(9, [one, one])
    let refused = 0
    for (let end = 0; end < bytes.length; end++) {
      if (end >= 4 && (end - 4) % 8 === 0) continue
      expect(() => decodeRanges('SETTLE_OK', bytes, 0, end)).toThrow(
        malformed(end < 4 ? 'SETTLE_OK is cut off' : 'The ranges of SETTLE_OK have'),
      )
      refused++
    }
    expect(refused).toBe(18)
  })
})

describe('LEASES_LOST', () => {
  const one = { firstTag: 0xffff_ffff, count: 2, firstOffset: 2 ** 40 }

  test('is decoded as it was encoded, even with an unknown reason', () => {
    for (const reason of [LOSS.processingTimeout, LOSS.purged, LOSS.groupMoved, LOSS.retention, 255]) {
      const lost = { subscriptionId: 9, reason, ranges: [one, { ...one, firstTag: 7 }] }
      const bytes = encodeLeasesLost(lost)
      expect(decodeLeasesLost(bytes, 0, bytes.length)).toStrictEqual(lost)
    }
  })

  test('refuses partial ranges, ranges of no tags, and more tags than the largest credit', () => {
    const bytes = encodeLeasesLost({ subscriptionId: 9, reason: 1, ranges: [one] })
    let refused = 0
    for (let end = 0; end < bytes.length; end++) {
      if (end === 8) continue
      expect(() => decodeLeasesLost(bytes, 0, end)).toThrow(
        malformed(end < 8 ? 'LEASES_LOST is cut off' : 'The ranges of LEASES_LOST have'),
      )
      refused++
    }
    expect(refused).toBe(23)
    for (const count of [0, RANGES_ALL_MAX + 1]) {
      const wrong = encodeLeasesLost({ subscriptionId: 9, reason: 1, ranges: [{ ...one, count }] })
      expect(() => decodeLeasesLost(wrong, 0, wrong.length)).toThrow(malformed(`a range of ${count} tags`))
    }
    const most = encodeLeasesLost({
      subscriptionId: 9,
      reason: 1,
      ranges: [{ ...one, count: RANGES_ALL_MAX }, one],
    })
    expect(() => decodeLeasesLost(most, 0, most.length)).toThrow(malformed('names 65537 tags'))
  })
})

test('SUBSCRIBE_OK, UNSUBSCRIBE and DRAINED are decoded as they were encoded', () => {
  fc.assert(
    fc.property(u32, u64, (subscriptionId, delivered) => {
      expect(decodeSubscriptionId('UNSUBSCRIBE', encodeSubscriptionId(subscriptionId), 0, 4)).toBe(
        subscriptionId,
      )
      const drained = encodeDrained(subscriptionId, delivered)
      expect(decodeDrained(drained, 0, drained.length)).toStrictEqual({ subscriptionId, delivered })
    }),
    { numRuns: 100 },
  )
  expect(() => decodeSubscriptionId('UNSUBSCRIBE', new Uint8Array(5), 0, 5)).toThrow(
    malformed('UNSUBSCRIBE has 5'),
  )
  expect(() => decodeDrained(new Uint8Array(13), 0, 13)).toThrow(malformed('DRAINED has 13 bytes'))
  expect(() => decodeDrained(Uint8Array.of(1, 0, 0, 0, ...TWO_53), 0, 12)).toThrow(
    malformed('DRAINED has the number'),
  )
})
