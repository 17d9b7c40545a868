import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { readText, readU16, writeU16, writeU32 } from './bytes.js'
import { SluiceError, type ErrorCode } from './errors.js'
import { LIMITS } from './limits.js'
import {
  ANY_PRIORITY,
  CONTENT_TYPE,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  checkRecordOptions,
  checkRecords,
  copyRecord,
  encodeHeader,
  readRecordOptions,
  recordBytes,
  recordContentType,
  recordFlags,
  recordHeaders,
  recordLayout,
  recordPayloadAt,
  recordPriority,
  recordSize,
  writeRecordHead,
  type ContentType,
  type RecordOptions,
} from './record.js'
import { runs } from '../../../test/amount.js'
import { character } from '../../../test/characters.js'

const LARGE = 1_000_000

function encode(
  options: RecordOptions | undefined,
  payload: Uint8Array = new Uint8Array(0),
  type: ContentType = 0,
): Uint8Array {
  const bytes = new Uint8Array(recordBytes(options, payload.length))
  const at = writeRecordHead(bytes, 0, options, type, payload.length)
  expect(at + payload.length).toBe(bytes.length)
  bytes.set(payload, at)
  return bytes
}

function shortText(bytesMax: number): fc.Arbitrary<string> {
  return fc
    .string({ unit: character, minLength: 1, maxLength: 30 })
    .filter((text) => Buffer.byteLength(text) <= bytesMax)
}

const headerList = fc.uniqueArray(fc.tuple(shortText(255), fc.string({ unit: character, maxLength: 20 })), {
  maxLength: 6,
  selector: ([name]) => name,
})

/** Options of which each is present or absent; `delay` and `at` are never both present. */
const anyOptions: fc.Arbitrary<RecordOptions> = fc
  .record(
    {
      priority: fc.integer({ min: 0, max: LIMITS.priorityMax }),
      delayMs: fc.integer({ min: 0, max: LIMITS.delayMsMax }),
      atMs: fc.integer({ min: 0, max: 2 ** 48 - 1 }),
      ttlMs: fc.integer({ min: 1, max: LIMITS.delayMsMax }),
      key: shortText(255),
      id: shortText(255),
      headers: headerList.map((list) => Object.fromEntries(list)),
    },
    { requiredKeys: [] },
  )
  .map(({ atMs, ...others }) =>
    others.delayMs === undefined && atMs !== undefined ? { ...others, atMs } : others,
  )

const anyPayload = fc.uint8Array({ maxLength: 40 })
const anyType = fc.constantFrom(...Object.values(CONTENT_TYPE))

describe('encode and decode', () => {
  test('any options and payload are read as they were written', () => {
    const seen = new Set<number>()
    fc.assert(
      fc.property(anyOptions, anyPayload, anyType, (options, payload, type) => {
        checkRecordOptions(options)
        const bytes = encode(options, payload, type)
        const found = checkRecords(bytes, 0, bytes.length, 1, LARGE)
        expect(found).toBe(bytes[4]! | ((options.priority ?? 0) > 0 ? ANY_PRIORITY : 0))
        const { headers, ...others } = readRecordOptions(bytes, 0)
        expect(others).toStrictEqual({ priority: 0, ...without(options, 'headers') })
        expect(headers === undefined ? undefined : { ...headers }).toStrictEqual(options.headers)
        expect(bytes[5]! >> 5).toBe(type)
        expect(bytes.subarray(RECORD_HEADER_BYTES + readU16(bytes, 6))).toStrictEqual(payload)
        seen.add(bytes[4]!)
      }),
      { numRuns: runs(300, 20_000) },
    )
    // The next test covers every set of options; this one covers many values.
    expect(seen.size).toBeGreaterThan(20)
  })

  test('every possible set of options', () => {
    let checked = 0
    const values = { delayMs: 5, atMs: 6, ttlMs: 7, key: 'k', id: 'i', headers: { a: 'b' } }
    const names = Object.keys(values) as (keyof typeof values)[]
    for (let mask = 0; mask < 64; mask++) {
      const options = Object.fromEntries(
        names.filter((_, i) => mask & (1 << i)).map((name) => [name, values[name]]),
      )
      if (mask & 1 && mask & 2) {
        expect(() => checkRecordOptions(options)).toThrow(SluiceError)
        expect(checkRecords(encode(options), 0, encode(options).length, 1, LARGE)).toMatchObject({
          code: 'BATCH_MALFORMED',
        })
        continue
      }
      checkRecordOptions(options)
      const bytes = encode(options)
      expect(bytes[4]).toBe(mask)
      expect(checkRecords(bytes, 0, bytes.length, 1, LARGE)).toBe(mask)
      expect(readRecordOptions(bytes, 0)).toEqual({ priority: 0, ...options })
      checked++
    }
    expect(checked).toBe(48)
  })

  test('several records in a row, after other bytes', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(anyOptions, anyPayload), { maxLength: 8 }), fc.nat(9), (list, before) => {
        const records = list.map(([options, payload]) => encode(options, payload))
        const bytes = Buffer.concat([new Uint8Array(before), ...records, new Uint8Array(5)])
        const end = bytes.length - 5
        expect(checkRecords(bytes, before, end, list.length, LARGE)).toBeTypeOf('number')
        expect(checkRecords(bytes, before, end, list.length + 1, LARGE)).toMatchObject({ index: list.length })
        if (list.length > 0) {
          expect(checkRecords(bytes, before, end, list.length - 1, LARGE)).toMatchObject({
            code: 'BATCH_MALFORMED',
          })
        }
      }),
      { numRuns: 200 },
    )
  })

  test('a name such as __proto__ or toString is an ordinary header', () => {
    const headers = JSON.parse('{"__proto__":"a","toString":"b","constructor":"c"}') as Record<string, string>
    const read = readRecordOptions(encode({ headers }), 0).headers!
    expect(Object.keys(read)).toStrictEqual(['__proto__', 'toString', 'constructor'])
    expect(Object.getPrototypeOf(read)).toBe(null)
  })

  test('inherited headers are neither checked nor written', () => {
    const headers = Object.create({ inherited: 5 }) as Record<string, string>
    headers['own'] = 'yes'
    checkRecordOptions({ headers })
    expect(readRecordOptions(encode({ headers }), 0)).toEqual({ priority: 0, headers: { own: 'yes' } })
  })

  test('the last of two headers with one name counts', () => {
    const bytes = Uint8Array.from([18, 0, 0, 0, 32, 0, 10, 0, 1, 97, 1, 0, 49, 1, 97, 1, 0, 50])
    expect(checkRecords(bytes, 0, bytes.length, 1, LARGE)).toBe(RECORD_FLAG.headers)
    expect(readRecordOptions(bytes, 0).headers).toEqual({ a: '2' })
  })
})

function without(options: RecordOptions, name: keyof RecordOptions): RecordOptions {
  return Object.fromEntries(Object.entries(options).filter(([each]) => each !== name))
}

describe('checkRecordOptions', () => {
  const good: readonly RecordOptions[] = [
    {},
    { priority: 31 },
    { delayMs: 0 },
    { delayMs: LIMITS.delayMsMax },
    { ttlMs: 1 },
    { ttlMs: LIMITS.delayMsMax },
    { atMs: 0 },
    { atMs: 2 ** 48 - 1 },
    { key: 'k'.repeat(255) },
    { id: 'é'.repeat(127) },
    { headers: {} },
    { headers: { ['n'.repeat(255)]: '' } },
    { headers: { a: 'v'.repeat(LIMITS.headersBytesMax - 4) } },
    { headers: manyHeaders(LIMITS.headersMax) },
  ]
  const bad: readonly [ErrorCode, RecordOptions, string][] = [
    ['INVALID_PRIORITY', { priority: 32 }, '`priority` is 32; it must be a whole number from 0 to 31.'],
    ['INVALID_PRIORITY', { priority: -1 }, '`priority` is -1;'],
    ['INVALID_PRIORITY', { priority: 1.5 }, '`priority` is 1.5;'],
    ['INVALID_PRIORITY', { priority: NaN }, '`priority` is NaN;'],
    ['INVALID_PRIORITY', { priority: '5' as never }, '`priority` is "5";'],
    ['INVALID_PRIORITY', { priority: Object.create(null) as never }, '`priority` is an object;'],
    ['INVALID_DELAY', { delayMs: LIMITS.delayMsMax + 1 }, '`delay` is 3155760000001 ms;'],
    ['INVALID_DELAY', { delayMs: -1 }, '`delay` is -1 ms;'],
    ['INVALID_TTL', { ttlMs: 0 }, '`ttl` is 0 ms;'],
    ['INVALID_TTL', { ttlMs: LIMITS.delayMsMax + 1 }, '`ttl` is 3155760000001 ms;'],
    ['INVALID_DELAY', { atMs: 2 ** 48 }, '`at` is 281474976710656 ms;'],
    ['INVALID_DELAY', { atMs: -1 }, '`at` is -1 ms;'],
    ['INVALID_DELAY', { atMs: 1.5 }, '`at` is 1.5 ms;'],
    ['INVALID_DELAY', { delayMs: '5' as never }, '`delay` is "5" ms;'],
    ['INVALID_TTL', { ttlMs: Infinity }, '`ttl` is Infinity ms;'],
    ['OPTION_CONFLICT', { delayMs: 1, atMs: 1 }, '`delay` and `at` are mutually exclusive'],
    ['INVALID_KEY', { key: '' }, 'key takes 0 bytes; it must take 1 to 255.'],
    ['INVALID_KEY', { key: 'k'.repeat(256) }, 'key takes 256 bytes;'],
    ['INVALID_KEY', { key: 5 as never }, 'key has the type number; it must be text.'],
    ['INVALID_ID', { id: '' }, 'id takes 0 bytes;'],
    ['INVALID_ID', { id: 'é'.repeat(128) }, 'id takes 256 bytes;'],
    ['INVALID_ID', { id: 'order \ud83c' }, 'id is "order \\ud83c": it has an unpaired surrogate'],
    ['INVALID_KEY', { key: '\udf89' }, 'key is "\\udf89": it has an unpaired surrogate'],
    ['INVALID_HEADERS', { headers: { '\ud83c': 'x' } }, 'header name is "\\ud83c": it has an unpaired'],
    ['INVALID_HEADERS', { headers: { a: '\ud83cü' } }, 'header "a" is "\\ud83cü": it has an unpaired'],
    ['INVALID_HEADERS', { headers: 'abc' as never }, '`headers` is "abc"; it must be an object of text.'],
    ['INVALID_HEADERS', { headers: null as never }, '`headers` is null;'],
    ['INVALID_HEADERS', { headers: ['a'] as never }, '`headers` is a list;'],
    ['INVALID_HEADERS', { headers: new Map([['a', 'b']]) as never }, '`headers` is an object;'],
    ['INVALID_HEADERS', { headers: { '': 'x' } }, 'header name takes 0 bytes;'],
    ['INVALID_HEADERS', { headers: { ['n'.repeat(256)]: '' } }, 'header name takes 256 bytes;'],
    ['INVALID_HEADERS', { headers: { a: 5 as never } }, 'header "a" has the type number;'],
    [
      'INVALID_HEADERS',
      { headers: { a: 'v'.repeat(LIMITS.headersBytesMax - 3) } },
      'The headers take 16385 bytes; at most 16384 are allowed.',
    ],
    [
      'INVALID_HEADERS',
      { headers: manyHeaders(LIMITS.headersMax + 1) },
      'A message has 65 headers; at most 64 are allowed.',
    ],
  ]

  test.each(good.map((options) => [Object.keys(options).join(), options] as const))(
    'accepts %s at its bound',
    (_, options) => {
      expect(() => checkRecordOptions(options)).not.toThrow()
      const bytes = encode(options)
      expect(checkRecords(bytes, 0, bytes.length, 1, LARGE)).toBeTypeOf('number')
      expect(readRecordOptions(bytes, 0)).toEqual({ priority: 0, ...options })
    },
  )

  test.each(bad)('refuses with %s: case %#, %s', (code, options, message) => {
    let error: unknown
    try {
      checkRecordOptions(options)
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(SluiceError)
    expect(error).toMatchObject({ code })
    expect((error as SluiceError).message).toContain(message)
  })

  test('the largest options together fit one record', () => {
    const options: RecordOptions = {
      priority: 31,
      delayMs: LIMITS.delayMsMax,
      ttlMs: LIMITS.delayMsMax,
      key: 'k'.repeat(255),
      id: 'i'.repeat(255),
      headers: { a: 'v'.repeat(LIMITS.headersBytesMax - 4) },
    }
    checkRecordOptions(options)
    const bytes = encode(options)
    expect(checkRecords(bytes, 0, bytes.length, 1, LARGE)).toBeTypeOf('number')
    expect(readRecordOptions(bytes, 0)).toEqual(options)
  })
})

describe('the parts of a record', () => {
  test('fields and headers are read as they were written', () => {
    let headersSeen = 0
    fc.assert(
      fc.property(anyOptions, anyPayload, anyType, (options, payload, type) => {
        const record = encode(options, payload, type)
        expect(recordSize(record, 0)).toBe(record.length)
        expect(recordPriority(record, 0)).toBe(options.priority ?? 0)
        expect(recordContentType(record, 0)).toBe(type)
        expect(recordFlags(record, 0) & RECORD_FLAG.key).toBe(options.key === undefined ? 0 : RECORD_FLAG.key)
        expect(record.subarray(recordPayloadAt(record, 0))).toEqual(payload)
        const headers = [...recordHeaders(record, recordLayout(record))].map(
          ({ nameAt, nameEnd, valueAt, valueEnd }) => [
            readText(record, nameAt, nameEnd),
            readText(record, valueAt, valueEnd),
          ],
        )
        headersSeen += headers.length
        expect(headers).toEqual(Object.entries(options.headers ?? {}))
      }),
      { numRuns: 300 },
    )
    expect(headersSeen).toBeGreaterThan(100)
  })

  test('a copy has the key, id, priority and payload of the record, the new headers, and nothing else', () => {
    fc.assert(
      fc.property(anyOptions, anyPayload, anyType, headerList, (options, payload, type, list) => {
        const record = encode({ ...options, replaces: options.id !== undefined }, payload, type)
        // In an object, names that are numbers come first.
        const named = Object.fromEntries(list)
        const headers = Object.entries(named).map(([name, value]) => encodeHeader(name, value))
        const copy = copyRecord(record, headers, 5).subarray(5)
        const { key, id, priority } = options
        const kept = { key, id, priority, headers: list.length > 0 ? named : undefined }
        expect(copy).toEqual(encode(kept, payload, type))
      }),
      { numRuns: 300 },
    )
  })
})

describe('records with other bytes before each', () => {
  const GAP = 16
  const between = (records: readonly Uint8Array[], gap: number): Uint8Array =>
    Buffer.concat(records.flatMap((record) => [new Uint8Array(gap).fill(0xff), record]))

  test('are checked like records without gaps, for any bytes in the gaps', () => {
    let several = 0
    fc.assert(
      fc.property(
        fc.array(fc.tuple(anyOptions, anyPayload), { minLength: 1, maxLength: 8 }),
        fc.nat(20),
        (list, gap) => {
          const records = list.map(([options, payload]) => encode(options, payload))
          const plain = Buffer.concat(records)
          const bytes = between(records, gap)
          const flags = checkRecords(plain, 0, plain.length, list.length, LARGE)
          expect(flags).toBeTypeOf('number')
          expect(checkRecords(bytes, 0, bytes.length, list.length, LARGE, gap)).toBe(flags)
          if (gap === 0 || list.length < 2) return
          several++
          for (const count of [list.length - 1, list.length + 1])
            expect(checkRecords(bytes, 0, bytes.length, count, LARGE, gap)).toMatchObject({
              code: 'BATCH_MALFORMED',
            })
          // If the records are read without a gap, or with a gap of another size, the result is different.
          for (const wrong of [0, gap - 1, gap + 1].filter((wrong) => wrong !== gap))
            expect(checkRecords(bytes, 0, bytes.length, list.length, LARGE, wrong)).not.toBe(flags)
        },
      ),
      { numRuns: 200 },
    )
    expect(several).toBeGreaterThan(50)
  })

  test('are refused if they are truncated at any byte, even in a gap', () => {
    const records = [encode({ key: 'k' }, Uint8Array.of(1)), encode(undefined), encode({ id: 'i' })]
    const bytes = between(records, GAP)
    for (let end = 0; end < bytes.length; end++)
      expect(checkRecords(bytes, 0, end, 3, LARGE, GAP), `cut at ${end}`).toMatchObject({
        code: 'BATCH_MALFORMED',
      })
    expect(checkRecords(bytes, 0, bytes.length, 3, LARGE, GAP)).toBe(RECORD_FLAG.key | RECORD_FLAG.id)
    // A gap after the last record belongs to no record.
    const more = Buffer.concat([bytes, new Uint8Array(GAP)])
    expect(checkRecords(more, 0, more.length, 3, LARGE, GAP)).toMatchObject({
      index: 3,
      message: expect.stringContaining('16 bytes follow the last record') as string,
    })
    expect(checkRecords(more, 0, more.length, 4, LARGE, GAP)).toMatchObject({ index: 3 })
  })

  test('have their index in the error if they are too large or damaged', () => {
    const records = [encode(undefined), encode(undefined, new Uint8Array(101)), encode(undefined)]
    const bytes = between(records, GAP)
    expect(checkRecords(bytes, 0, bytes.length, 3, 100, GAP)).toMatchObject({
      index: 1,
      code: 'MESSAGE_TOO_LARGE',
    })
    writeU32(bytes, GAP + 8 + GAP + 109 + GAP, 7)
    expect(checkRecords(bytes, 0, bytes.length, 3, LARGE, GAP)).toMatchObject({
      index: 2,
      code: 'BATCH_MALFORMED',
    })
  })
})

function manyHeaders(count: number): Record<string, string> {
  return Object.fromEntries(Array.from({ length: count }, (_, i) => [`h${i}`, '']))
}

describe('checkRecords refuses', () => {
  const options: RecordOptions = { delayMs: 1, ttlMs: 2, key: 'key', id: 'id', headers: { a: 'b', c: 'd' } }
  const payload = Uint8Array.of(1, 2, 3)
  // Positions: delay 8..13, ttl 14..19, key 20..23, id 24..26, headers 27..31 and 32..36, payload 37..39.
  const whole = encode(options, payload)

  function damaged(change: (bytes: Uint8Array) => void): unknown {
    const bytes = whole.slice()
    change(bytes)
    return checkRecords(bytes, 0, bytes.length, 1, LARGE)
  }

  test('no valid record', () => {
    expect(whole.length).toBe(40)
    expect(damaged(() => {})).toBe(RECORD_FLAG.delay | 4 | 8 | 16 | 32)
  })

  const damage: readonly [string, (bytes: Uint8Array) => void, string][] = [
    ['a size below the header', (b) => writeU32(b, 0, 7), 'record size 7 does not fit'],
    ['size 0', (b) => writeU32(b, 0, 0), 'record size 0 does not fit'],
    ['a size past the end', (b) => writeU32(b, 0, 41), 'record size 41 does not fit the 40 bytes'],
    ['the largest size', (b) => writeU32(b, 0, 0xffff_ffff), 'record size 4294967295'],
    ['a size short of the end', (b) => writeU32(b, 0, 39), '1 bytes follow the last record'],
    ['unknown flag 64', (b) => (b[4]! |= 64), 'flags'],
    [
      'a message that replaces another but has no id',
      (b) => (b[4] = 128),
      'replaces a message but has no id',
    ],
    ['delay and at', (b) => (b[4]! |= 2), 'delay and at are both set'],
    ['content type 3', (b) => (b[5] = 3 << 5), 'content type'],
    ['content type 7', (b) => (b[5] = 7 << 5), 'content type'],
    [
      'options past the record',
      (b) => writeU16(b, 6, 33),
      'options of 33 bytes do not fit a record of 40 bytes',
    ],
    ['the longest options', (b) => writeU16(b, 6, 0xffff), 'options of 65535 bytes do not fit'],
    ['options of 0 bytes despite the flags', (b) => writeU16(b, 6, 0), 'times are cut off'],
    ['options that end in the times', (b) => writeU16(b, 6, 11), 'times are cut off'],
    ['options that end before the key', (b) => writeU16(b, 6, 12), 'key or id is cut off'],
    ['options that end in the key', (b) => writeU16(b, 6, 14), 'key or id is cut off'],
    ['options that end before the id', (b) => writeU16(b, 6, 16), 'key or id is cut off'],
    ['options that end in the id', (b) => writeU16(b, 6, 18), 'key or id is cut off'],
    ['options that end after a name', (b) => writeU16(b, 6, 21), 'a header is cut off'],
    ['options that end in a value', (b) => writeU16(b, 6, 23), 'a header is cut off'],
    ['options that end in a name', (b) => writeU16(b, 6, 25), 'a header is cut off'],
    ['options that extend into the payload', (b) => writeU16(b, 6, 30), 'a header is cut off'],
    ['an empty key', (b) => (b[20] = 0), 'key or id is empty'],
    ['a key past the options', (b) => (b[20] = 255), 'key or id is cut off'],
    ['an empty id', (b) => (b[24] = 0), 'key or id is empty'],
    ['an id past the options', (b) => (b[24] = 200), 'key or id is cut off'],
    ['a header without a name', (b) => (b[27] = 0), 'a header has no name'],
    ['a name past the options', (b) => (b[32] = 9), 'a header is cut off'],
    ['a value past the options', (b) => writeU16(b, 34, 2), 'a header is cut off'],
    ['the longest value', (b) => writeU16(b, 34, 0xffff), 'a header is cut off'],
    ['options without flags', (b) => (b[4] = 0), 'options are longer than the flags say'],
    [
      'options that the flags do not name',
      (b) => (b[4] = 1 | 4 | 8),
      'options are longer than the flags say',
    ],
  ]

  test.each(damage)('%s', (_, change, message) => {
    const fault = damaged(change)
    expect(fault).toMatchObject({ code: 'BATCH_MALFORMED' })
    expect((fault as { message: string }).message).toContain(message)
  })

  test('a count that is too low or too high', () => {
    expect(checkRecords(whole, 0, whole.length, 0, LARGE)).toMatchObject({ index: 0 })
    expect(checkRecords(whole, 0, whole.length, 2, LARGE)).toMatchObject({ index: 1 })
    expect(checkRecords(whole, 0, whole.length, 0xffff_ffff, LARGE)).toMatchObject({ index: 1 })
  })

  test('more headers than allowed, and more bytes of them', () => {
    const at = (headers: Record<string, string>): unknown => {
      const bytes = encode({ headers })
      return checkRecords(bytes, 0, bytes.length, 1, LARGE)
    }
    expect(at(manyHeaders(64))).toBe(RECORD_FLAG.headers)
    expect(at(manyHeaders(65))).toMatchObject({
      message: expect.stringContaining('more than 64 headers') as string,
    })
    expect(at({ a: 'v'.repeat(16_380) })).toBe(RECORD_FLAG.headers)
    expect(at({ a: 'v'.repeat(16_381) })).toMatchObject({
      message: expect.stringContaining('headers of 16385 bytes exceed 16384') as string,
    })
  })

  test('a message above the limit, but not a message of exactly the limit', () => {
    const bytes = encode(undefined, new Uint8Array(100))
    expect(checkRecords(bytes, 0, bytes.length, 1, 100)).toBe(0)
    expect(checkRecords(bytes, 0, bytes.length, 1, 99)).toMatchObject({
      index: 0,
      code: 'MESSAGE_TOO_LARGE',
      message: 'Message 0 has 100 bytes; at most 99 are accepted.',
    })
  })

  test('each flipped bit of lengths and flags, or reads a record within its range', () => {
    let refused = 0
    for (let bit = 0; bit < 37 * 8; bit++) {
      const bytes = whole.slice()
      bytes[bit >> 3]! ^= 1 << (bit & 7)
      const found = checkRecords(bytes, 0, bytes.length, 1, LARGE)
      if (typeof found === 'number') readRecordOptions(bytes, 0)
      else refused++
    }
    expect(refused).toBeGreaterThan(80)
  })
})
