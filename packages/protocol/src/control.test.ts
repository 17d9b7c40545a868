import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { checkPlain, decodeControl, encodeControl, NOT_PLAIN, PLAIN_HAS } from './control.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'
import { runs } from '../../../test/amount.js'

function hex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text.replaceAll(' ', ''), 'hex'))
}

function decode(bytes: Uint8Array): { readonly [name: string]: unknown } {
  return decodeControl(bytes, 0, bytes.length)
}

/** Asserts that `bytes` are refused with MALFORMED_FRAME, in one sentence that does not quote the bytes. */
function expectRefused(bytes: Uint8Array, what?: string): void {
  let error: unknown
  try {
    decode(bytes)
  } catch (thrown) {
    error = thrown
  }
  expect(error, `of ${what}`).toBeInstanceOf(SluiceError)
  expect(error, `of ${what}`).toMatchObject({ code: 'MALFORMED_FRAME', scope: 'connection' })
  expect((error as SluiceError).message, `of ${what}`).toMatch(/^A control frame /)
}

/** Returns `value` without prototypes and undefined fields, like a result of `decodeControl`. */
function bare(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(bare)
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return value
  const object = Object.create(null) as Record<string, unknown>
  for (const [name, item] of Object.entries(value)) if (item !== undefined) object[name] = bare(item)
  return object
}

const plain = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, withCrossShrink: true },
    fc.oneof(
      fc.constant(null),
      fc.boolean(),
      fc.integer(),
      fc.double({ noNaN: true }).map((number) => number + 0),
      fc.constantFrom(
        0,
        127,
        128,
        255,
        256,
        65_535,
        65_536,
        2 ** 32 - 1,
        2 ** 32,
        2 ** 53 - 1,
        -1,
        -32,
        -33,
        -(2 ** 53),
      ),
      fc.string({ unit: 'grapheme', maxLength: 40 }),
      fc.uint8Array({ maxLength: 40 }),
    ),
    fc.array(tie('value'), { maxLength: 20 }),
    tie('map'),
  ),
  map: fc.dictionary(fc.string({ maxLength: 20 }), tie('value'), { maxKeys: 20 }),
}))

describe('plain data', () => {
  test('any map is decoded as it was encoded, without a prototype', () => {
    const numRuns = runs(60, 2_000)
    let checked = 0
    fc.assert(
      fc.property(plain.map, fc.nat(5), (body, before) => {
        const bytes = encodeControl(body)
        const inside = Buffer.concat([Buffer.alloc(before, 0xc1), bytes, Buffer.alloc(5, 0xc1)])
        expect(decodeControl(inside, before, before + bytes.length)).toStrictEqual(bare(body))
        checked++
      }),
      { numRuns },
    )
    expect(checked).toBe(numRuns)
  })

  test('any map is refused if it is truncated, at every byte', () => {
    let cuts = 0
    fc.assert(
      fc.property(plain.map, (body) => {
        const bytes = encodeControl(body)
        for (let end = 0; end < Math.min(bytes.length, 60); end++) {
          expectRefused(bytes.subarray(0, end))
          cuts++
        }
      }),
      { numRuns: runs(20, 600) },
    )
    expect(cuts).toBeGreaterThan(200)
  })

  test('bytes are copies, even of a Buffer from a socket', () => {
    for (const bytes of [hex('81 a1 61 c4 02 05 06'), Buffer.from(hex('81 a1 61 c4 02 05 06'))]) {
      const body = decode(bytes)
      bytes.fill(0)
      expect(body).toStrictEqual(bare({ a: Uint8Array.of(5, 6) }))
    }
  })

  test('an undefined field is not encoded', () => {
    expect(decode(encodeControl({ a: 1, b: undefined, c: { d: undefined } }))).toStrictEqual(
      bare({ a: 1, c: {} }),
    )
  })

  test('decodes every form of every kind of value', () => {
    const forms: readonly [string, unknown][] = [
      ['00', 0],
      ['7f', 127],
      ['e0', -32],
      ['ff', -1],
      ['c0', null],
      ['c2', false],
      ['c3', true],
      ['cc ff', 255],
      ['cd ff ff', 65_535],
      ['ce ff ff ff ff', 2 ** 32 - 1],
      ['cf 00 00 00 00 00 00 00 05', 5],
      ['cf 00 1f ff ff ff ff ff ff', 2 ** 53 - 1],
      ['cf ff ff ff ff ff ff ff ff', 2n ** 64n - 1n],
      ['d0 80', -128],
      ['d1 80 00', -32_768],
      ['d2 80 00 00 00', -(2 ** 31)],
      ['d3 ff ff ff ff ff ff ff fe', -2],
      ['d3 80 00 00 00 00 00 00 00', -(2n ** 63n)],
      ['ca 3f 80 00 00', 1],
      ['cb 40 14 00 00 00 00 00 00', 5],
      ['a0', ''],
      ['a1 61', 'a'],
      ['d9 01 61', 'a'],
      ['da 00 01 61', 'a'],
      ['db 00 00 00 01 61', 'a'],
      ['c4 01 61', Uint8Array.of(0x61)],
      ['c5 00 01 61', Uint8Array.of(0x61)],
      ['c6 00 00 00 01 61', Uint8Array.of(0x61)],
      ['90', []],
      ['91 05', [5]],
      ['dc 00 01 05', [5]],
      ['dd 00 00 00 01 05', [5]],
      ['80', bare({})],
      ['81 a1 61 05', bare({ a: 5 })],
      ['de 00 01 a1 61 05', bare({ a: 5 })],
      ['df 00 00 00 01 a1 61 05', bare({ a: 5 })],
    ]
    for (const [bytes, value] of forms) {
      expect(decode(hex(`81 a1 76 ${bytes}`)), `of ${bytes}`).toStrictEqual(bare({ v: value }))
    }
    expect(forms).toHaveLength(36)
  })

  test.each(['__proto__', 'constructor', 'toString', 'hasOwnProperty', ''])(
    'the key %j is a name like any other',
    (name) => {
      const text = Buffer.from(name)
      const bytes = Buffer.concat([hex('81'), Uint8Array.of(0xa0 + text.length), text, hex('81 a1 78 05')])
      const body = decode(bytes)
      expect(Object.getPrototypeOf(body)).toBe(null)
      expect(Object.keys(body)).toStrictEqual([name])
      expect(Object.getOwnPropertyDescriptor(body, name)!.value).toEqual({ x: 5 })
      expect(({} as { x?: unknown }).x).toBe(undefined)
    },
  )

  test('the last value of a repeated key counts', () => {
    expect(decode(hex('83 a1 61 01 a1 62 02 a1 61 03'))).toStrictEqual(bare({ a: 3, b: 2 }))
  })
})

describe('text with an unpaired surrogate', () => {
  test.each([[{ id: 'a \ud83c' }], [{ a: { '\udc00': 1 } }], [{ a: ['b', ['\ud83c\ud83c']] }]])(
    'is refused in %j',
    (body) => {
      const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT' })
      expect(() => encodeControl(body)).toThrow(refused)
    },
  )
})

describe('what is not plain data is refused', () => {
  const extensions: readonly [string, string][] = [
    ['undefined', 'd4 00 00'],
    ['unknown, fixext 1', 'd4 05 00'],
    ['unknown, fixext 2', 'd5 05 00 00'],
    ['unknown, fixext 4', 'd6 05 00 00 00 00'],
    ['unknown, fixext 8', 'd7 05 00 00 00 00 00 00 00 00'],
    ['unknown, fixext 16', 'd8 05 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00'],
    ['unknown, ext 8', 'c7 01 05 00'],
    ['unknown, ext 16', 'c8 00 01 05 00'],
    ['unknown, ext 32', 'c9 00 00 00 01 05 00'],
    ['timestamp 32', 'd6 ff 00 00 00 00'],
    ['timestamp 64', 'd7 ff 00 00 00 00 00 00 00 00'],
    ['timestamp 96', 'c7 0c ff 00 00 00 00 00 00 00 00 00 00 00 00'],
    ['timestamp of a wrong size', 'd4 ff 00'],
    ['big integer', 'd4 42 05'],
    ['Set', 'd4 73 00 91 01'],
    ['RegExp', 'd4 78 00 92 a1 61 a0'],
    ['Error', 'd4 65 00 93 a5 45 72 72 6f 72 a1 61 c0'],
    ['Error that names a constructor', 'd4 65 00 93 ab 63 6f 6e 73 74 72 75 63 74 6f 72 80 c0'],
    ['typed array', 'd5 74 01 ff'],
    ['ArrayBuffer', 'd5 74 10 ff'],
    ['reference', 'd6 69 00 00 00 01 80'],
    ['pointer', 'd6 70 00 00 00 01'],
    ['record', 'd4 72 40 91 a1 61 05'],
    ['record of two bytes', 'd5 72 40 00 91 a1 61 05'],
    ['shared text', 'c7 04 62 00 00 00 05 05'],
    ['the byte that is never used', 'c1'],
  ]

  test('every extension, as a value, as a whole, in a list and as a key', () => {
    let refused = 0
    for (const [what, bytes] of extensions) {
      for (const around of [`81 a1 61 ${bytes}`, bytes, `81 a1 61 91 ${bytes}`, `81 ${bytes} 05`]) {
        expectRefused(hex(around), what)
        refused++
      }
      // A decoder that remembered a part of the refused bytes would read the next frame wrongly.
      expect(decode(hex('81 a1 61 40'))).toStrictEqual(bare({ a: 64 }))
    }
    expect(refused).toBe(104)
  })

  test('what is not a map', () => {
    const others = [
      '',
      'c0',
      'c2',
      '05',
      'e0',
      'a1 61',
      '90',
      '91 80',
      'c4 01 61',
      'cb 00 00 00 00 00 00 00 00',
    ]
    for (const bytes of others) expectRefused(hex(bytes), bytes)
    expect(others).toHaveLength(10)
  })

  test('bytes after the map, and two maps', () => {
    for (const bytes of ['80 00', '80 80', '81 a1 61 05 c0', '80 c1']) expectRefused(hex(bytes), bytes)
  })

  test('keys that are not text', () => {
    const keys = ['05', 'e0', 'c0', 'c3', 'c4 01 61', 'cb 00 00 00 00 00 00 00 00', '90', '80', 'cd 00 01']
    for (const key of keys) {
      expectRefused(hex(`81 ${key} 05`), key)
      expectRefused(hex(`81 a1 61 82 a1 62 01 ${key} 05`), key)
    }
    expect(keys).toHaveLength(9)
  })
})

describe('hostile sizes', () => {
  test('declared lengths that exceed the bytes', () => {
    const lengths: string[] = []
    for (const value of ['7f ff ff ff', '80 00 00 00', 'ff ff ff ff', '00 01 00 00']) {
      for (const token of ['db', 'c6', 'dd', 'df', 'c9']) lengths.push(`${token} ${value}`)
    }
    for (const value of ['ff ff', '01 00']) {
      for (const token of ['da', 'c5', 'dc', 'de', 'c8']) lengths.push(`${token} ${value}`)
    }
    for (const token of ['d9 ff', 'c4 ff', 'c7 ff', '9f', '8f', 'bf']) lengths.push(token)
    for (const length of lengths) {
      expectRefused(hex(length), length)
      expectRefused(hex(`81 a1 61 ${length}`), length)
      expectRefused(hex(`81 a1 61 ${length} 00 00 00`), length)
      expectRefused(hex(`81 ${length} 05`), length)
    }
    expect(lengths).toHaveLength(36)
  })

  test('maps and lists nest as deep as the limit, and not one deeper', () => {
    const nested = (maps: boolean, depth: number): Uint8Array =>
      maps
        ? Buffer.concat([...Array<Uint8Array>(depth - 1).fill(hex('81 a1 61')), hex('80')])
        : Buffer.concat([hex('81 a1 61'), Buffer.alloc(depth - 2, 0x91), hex('90')])
    for (const maps of [true, false]) {
      expect(decode(nested(maps, LIMITS.controlDepthMax))).toBeTypeOf('object')
      expectRefused(nested(maps, LIMITS.controlDepthMax + 1))
    }
  })

  test('64 KiB is accepted, and not a byte more, on either side', () => {
    const fitting = 'x'.repeat(LIMITS.controlBytesMax - 1 - 2 - 3)
    const bytes = encodeControl({ a: fitting })
    expect(bytes.length).toBe(LIMITS.controlBytesMax)
    expect(decode(bytes)).toStrictEqual(bare({ a: fitting }))
    expect(() => encodeControl({ a: `${fitting}x` })).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: 'A request of 65537 bytes is too long; at most 65536 are allowed.',
      }),
    )
    const longer = Buffer.concat([bytes, hex('78')])
    longer.writeUInt16BE(longer.readUInt16BE(4) + 1, 4)
    expect(longer.length).toBe(LIMITS.controlBytesMax + 1)
    expect(() => decode(longer)).toThrow(
      expect.objectContaining({
        code: 'MALFORMED_FRAME',
        message: 'A control frame has 65537 bytes; at most 65536 are accepted.',
      }),
    )
  })

  test('64 KiB of the worst data take little time and memory', () => {
    const size = LIMITS.controlBytesMax
    const worst: readonly [string, Uint8Array][] = [
      ...[0x81, 0x91, 0x80, 0x90, 0x00, 0xa0, 0xc0, 0xc1, 0xdf, 0xdd, 0xd4, 0x72, 0xff].map(
        (byte): [string, Uint8Array] => [`0x${byte.toString(16)}`, Buffer.alloc(size, byte)],
      ),
      ['nested maps', Buffer.alloc(size, hex('81 a1 61'))],
      ['records', Buffer.alloc(size, hex('d4 72 40 91 a1 61'))],
      ['a big integer', Buffer.concat([hex('81 a1 61 c9 00 00 ff f4 42'), Buffer.alloc(0xfff4, 0x7f)])],
      ['shared text', sharedText()],
    ]
    const before = process.memoryUsage().rss
    const cpu = process.cpuUsage()
    for (const [what, bytes] of worst) {
      expect(bytes.length).toBeLessThanOrEqual(size)
      for (let round = 0; round < 5; round++) expectRefused(bytes, what)
    }
    // CPU time is compared, so that the test does not fail on a busy machine.
    expect(process.cpuUsage(cpu).user / 1000).toBeLessThan(400)
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024)
    expect(worst).toHaveLength(17)
  })

  test('64 KiB of good data take little time', () => {
    const bodies = [
      { a: Array.from({ length: 60_000 }, () => 1) },
      { a: Array.from({ length: 20_000 }, () => ({})) },
      Object.fromEntries(Array.from({ length: 9_000 }, (_, i) => [`k${i}`, 1])),
    ]
    for (const body of bodies) {
      const bytes = encodeControl(body)
      const before = process.cpuUsage()
      expect(Object.keys(decode(bytes))).toHaveLength(Object.keys(body).length)
      expect(process.cpuUsage(before).user / 1000).toBeLessThan(400)
    }
    expect(bodies).toHaveLength(3)
  })

  /**
   * Thousands of references in the format of msgpackr to one string of 30,000 characters. When decoded, these
   * references would take 100 MB.
   */
  function sharedText(): Uint8Array {
    const count = 3_000
    const text = Buffer.concat([hex('da 75 30'), Buffer.alloc(30_000, 0x61), hex('a0')])
    const head = Buffer.from([0x81, 0xa1, 0x61, 0xdc, count >> 8, count & 255])
    const items = Buffer.alloc(count * 9)
    for (let i = 0; i < count; i++) {
      items.set([0xc7, 4, 0x62], i * 9)
      items.writeInt32BE((count - i) * 9 - 7 + 4, i * 9 + 3)
      items.set([0xc1, 0xe0], i * 9 + 7)
    }
    return Buffer.concat([head, items, text])
  }
})

describe('checkPlain', () => {
  test('timestamps are reported, and pass only in their three forms', () => {
    const forms = [
      'd6 ff 00 00 00 00',
      'd7 ff 00 00 00 00 00 00 00 00',
      'c7 0c ff 00 00 00 00 00 00 00 00 00 00 00 00',
    ]
    for (const form of forms) {
      for (const bytes of [hex(form), hex(`81 a1 61 ${form}`), hex(`92 ${form} 05`)]) {
        expect(checkPlain(bytes, 0, bytes.length)).toBe(PLAIN_HAS.timestamps)
        for (let end = 0; end < bytes.length; end++) expect(checkPlain(bytes, 0, end)).toBe(NOT_PLAIN)
        expectRefused(bytes)
      }
      expect(checkPlain(hex(`81 ${form} 05`), 0, hex(form).length + 2)).toBe(NOT_PLAIN)
    }
    const others = [
      'd4 ff 00',
      'd5 ff 00 00',
      'd6 00 00 00 00 00',
      'c7 0b ff 00 00 00 00 00 00 00 00 00 00 00',
      'c7 04 62 00 00 00 05 05',
    ]
    for (const other of others)
      expect(checkPlain(hex(other), 0, hex(other).length), `of ${other}`).toBe(NOT_PLAIN)
    expect(forms.length + others.length).toBe(8)
  })

  test('long keys, and keys that an object cannot have, are reported', () => {
    const proto = Buffer.from('__proto__').toString('hex')
    const rare = [`a9 ${proto}`, `d9 09 ${proto}`, `da 00 09 ${proto}`, `db 00 00 00 09 ${proto}`, 'd9 01 61']
    for (const key of rare) {
      for (const bytes of [hex(`81 ${key} 05`), hex(`92 05 81 a1 61 81 ${key} c0`)])
        expect(checkPlain(bytes, 0, bytes.length), key).toBe(PLAIN_HAS.rareKeys)
    }
    const others = [
      `a8 ${proto.slice(0, 16)}`,
      `aa ${proto} 5f`,
      `a9 ${proto.slice(0, 16)} 5e`,
      'a0',
      'a2 5f 5f',
    ]
    for (const key of others) {
      const bytes = hex(`82 ${key} 05 a1 62 a9 ${proto}`)
      expect(checkPlain(bytes, 0, bytes.length), key).toBe(0)
    }
    expect(rare.length + others.length).toBe(10)
  })

  test('data that passes can be decoded, and all plain data of msgpackr passes', () => {
    let passed = 0
    let refused = 0
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 12 }), (tail) => {
        const bytes = Uint8Array.from([0x81, 0xa1, 0x61, ...tail])
        const found = checkPlain(bytes, 0, bytes.length)
        if (found !== NOT_PLAIN && !(found & PLAIN_HAS.timestamps)) {
          expect(Object.keys(decode(bytes))).toStrictEqual(['a'])
          passed++
        } else {
          expectRefused(bytes)
          refused++
        }
      }),
      { numRuns: runs(1_000, 100_000) },
    )
    expect(passed).toBeGreaterThan(50)
    expect(refused).toBeGreaterThan(50)
  })
})
