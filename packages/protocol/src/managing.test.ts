import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { writeU16, writeU32 } from './bytes.js'
import { decodeControl, encodeControl } from './control.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'
import {
  DEATH,
  HISTORY_EVENTS,
  MESSAGES_OVERHEAD_BYTES,
  MESSAGE_STATE,
  ORIGIN_HEADERS,
  cancelRequest,
  closeConsumerRequest,
  consumersRequest,
  deathName,
  decodeMessages,
  discardRequest,
  encodeMessages,
  historyRequest,
  peekRequest,
  peekedBytes,
  redriveRequest,
  replayRequest,
  rescheduleRequest,
  type DeathName,
  type MessageState,
  type PeekedMessage,
} from './managing.js'

type Body = { readonly [name: string]: unknown }

const PLAIN = { noNullPrototype: true } as const
const SAFE = Number.MAX_SAFE_INTEGER
const AT_MAX = 2 ** 48 - 1

/** Returns the body as it arrives at the peer: encoded and decoded, without prototypes. */
function sent(body: Body): Body {
  const bytes = encodeControl(body)
  return decodeControl(bytes, 0, bytes.length)
}

function refusal(code: string, message: string): Error {
  return expect.objectContaining({ code, message: expect.stringContaining(message) as string }) as Error
}

function thrown(action: () => unknown): SluiceError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(SluiceError)
    return error as SluiceError
  }
  throw new Error('nothing was thrown')
}

const HOSTILE: readonly unknown[] = [
  null,
  -1,
  1.5,
  NaN,
  Infinity,
  2n ** 60n,
  'x'.repeat(60_000),
  '\u001b[31m\n'.repeat(5_000),
  [],
  [{}],
  { a: {} },
  { toString: 1 },
  new Uint8Array(3),
]

const NO_FILTER = {}

/** Each request with only the fields that it needs, and with all fields that it may have, at their bounds. */
const REQUESTS: readonly {
  readonly frame: string
  readonly read: (body: Body) => unknown
  readonly least: Body
  readonly means: unknown
  readonly most: Body
}[] = [
  {
    frame: 'PEEK',
    read: peekRequest,
    least: { name: 'q' },
    means: { name: 'q', state: undefined, from: 0, limit: 1_000, filter: NO_FILTER },
    most: { name: 'q', state: 'dead', from: SAFE, limit: 1_000 },
  },
  {
    frame: 'REDRIVE',
    read: redriveRequest,
    least: { name: 'q' },
    means: {
      name: 'q',
      from: 0,
      limit: 1_000,
      offsets: undefined,
      filter: NO_FILTER,
      dryRun: false,
      to: undefined,
      force: false,
    },
    most: { name: 'q', from: SAFE, limit: 1_000, offsets: [0, SAFE], dryRun: true, to: 'other', force: true },
  },
  {
    frame: 'DISCARD',
    read: discardRequest,
    least: { name: 'q' },
    means: { name: 'q', from: 0, limit: 1_000, offsets: undefined, filter: NO_FILTER, dryRun: false },
    most: { name: 'q', from: SAFE, limit: 1_000, offsets: [], dryRun: false },
  },
  {
    frame: 'CANCEL',
    read: cancelRequest,
    least: { name: 'q', offset: 0 },
    means: { name: 'q', offset: 0, id: undefined },
    most: { name: 'q', offset: SAFE },
  },
  {
    frame: 'RESCHEDULE',
    read: rescheduleRequest,
    least: { name: 'q', id: 'i', delayMs: 0 },
    means: { name: 'q', offset: undefined, id: 'i', delayMs: 0, atMs: undefined },
    most: { name: 'q', offset: SAFE, atMs: AT_MAX },
  },
  {
    frame: 'REPLAY',
    read: replayRequest,
    least: { name: 'q' },
    means: {
      name: 'q',
      fromOffset: undefined,
      fromMs: undefined,
      untilMs: undefined,
      limit: 1_000,
      cursor: undefined,
      filter: NO_FILTER,
      to: undefined,
      dryRun: false,
    },
    most: {
      name: 'q',
      fromMs: AT_MAX,
      untilMs: AT_MAX,
      limit: 1_000,
      cursor: 'c'.repeat(64),
      to: 'other',
      dryRun: true,
    },
  },
  {
    frame: 'HISTORY',
    read: historyRequest,
    least: { name: 'q', offset: 0 },
    means: { name: 'q', offset: 0, cursor: undefined },
    most: { name: 'q', offset: SAFE, cursor: 'é'.repeat(32) },
  },
  {
    frame: 'CONSUMERS',
    read: consumersRequest,
    least: { name: 'q' },
    means: { name: 'q', from: 0 },
    most: { name: 'q', from: 0xffff_ffff },
  },
  {
    frame: 'CLOSE_CONSUMER',
    read: closeConsumerRequest,
    least: { name: 'q', id: 0 },
    means: { name: 'q', id: 0 },
    most: { name: 'q', id: 0xffff_ffff },
  },
]

describe('requests', () => {
  test.each(REQUESTS)(
    '$frame needs only its required fields, and accepts all its fields at their bounds',
    ({ read, least, means, most }) => {
      expect(read(sent(least))).toStrictEqual(means)
      expect(read(sent(most))).toMatchObject(most)
    },
  )

  test.each(REQUESTS)('$frame refuses values of every wrong type, in a short sentence', (request) => {
    const { frame, read, least, most } = request
    let refused = 0
    for (const name of Object.keys({ ...least, ...most })) {
      // Some fields exclude each other, so the request that already has this field is used.
      const base = name in most ? most : least
      for (const value of HOSTILE) {
        if (name === 'offsets' && Array.isArray(value) && value.length === 0) continue
        const { code, message } = thrown(() => read(sent({ ...base, [name]: value })))
        const expected =
          name === 'name' || name === 'to'
            ? 'INVALID_NAME'
            : name === 'delayMs' || name === 'atMs'
              ? 'INVALID_DELAY'
              : 'INVALID_ARGUMENT'
        expect(code, `${frame}.${name}`).toBe(expected)
        expect(message.length).toBeLessThan(250)
        expect(message).not.toMatch(/\p{Cc}/u)
        refused++
      }
      for (const value of [SAFE + 1, 2 ** 64]) {
        if (typeof base[name] !== 'number') continue
        expect(() => read(sent({ ...base, [name]: value }))).toThrow(SluiceError)
        refused++
      }
    }
    expect(refused).toBeGreaterThanOrEqual(HOSTILE.length)
  })

  test.each(REQUESTS)('$frame refuses unknown fields, and an invalid queue name', (request) => {
    const { frame, read, least } = request
    for (const name of ['nonsense', '__proto__', 'toString', '']) {
      const body = Object.assign(Object.create(null), least) as Record<string, unknown>
      body[name] = 1
      expect(() => read(sent(body))).toThrow(
        refusal('INVALID_ARGUMENT', `${frame} has no field ${JSON.stringify(name)}; it has name`),
      )
    }
    const { name: _, ...nameless } = least
    expect(() => read(sent(nameless))).toThrow(refusal('INVALID_NAME', 'A queue name has the type undefined'))
    expect(() => read(sent({ ...least, name: 'a b' }))).toThrow(refusal('INVALID_NAME', '"a b"'))
  })

  test('accepts numbers at their bounds, and refuses numbers one beyond', () => {
    const cases: readonly [(body: Body) => unknown, Body, string, number, number][] = [
      [peekRequest, { name: 'q' }, 'limit', 1, 1_000],
      [redriveRequest, { name: 'q' }, 'limit', 1, 1_000],
      [discardRequest, { name: 'q' }, 'limit', 1, 1_000],
      [replayRequest, { name: 'q' }, 'limit', 1, 1_000],
      [peekRequest, { name: 'q' }, 'from', 0, SAFE],
      [redriveRequest, { name: 'q' }, 'from', 0, SAFE],
      [cancelRequest, { name: 'q' }, 'offset', 0, SAFE],
      [historyRequest, { name: 'q' }, 'offset', 0, SAFE],
      [rescheduleRequest, { name: 'q', id: 'i' }, 'delayMs', 0, LIMITS.delayMsMax],
      [rescheduleRequest, { name: 'q', id: 'i' }, 'atMs', 0, AT_MAX],
      [replayRequest, { name: 'q' }, 'fromOffset', 0, SAFE],
      [replayRequest, { name: 'q' }, 'fromMs', 0, AT_MAX],
      [replayRequest, { name: 'q' }, 'untilMs', 0, AT_MAX],
      [consumersRequest, { name: 'q' }, 'from', 0, 0xffff_ffff],
      [closeConsumerRequest, { name: 'q' }, 'id', 0, 0xffff_ffff],
    ]
    for (const [read, body, name, min, max] of cases) {
      for (const value of [min, max])
        expect(read(sent({ ...body, [name]: value }))).toHaveProperty(name, value)
      for (const value of [min - 1, max + 1]) {
        expect(() => read(sent({ ...body, [name]: value }))).toThrow(
          expect.objectContaining({
            message: `\`${name}\` is ${value}; it must be a whole number from ${min} to ${max}.`,
          }),
        )
      }
    }
    expect(cases).toHaveLength(15)
  })

  test('flags are only true or false', () => {
    let refused = 0
    for (const [read, name] of [
      [redriveRequest, 'dryRun'],
      [redriveRequest, 'force'],
      [discardRequest, 'dryRun'],
      [replayRequest, 'dryRun'],
    ] as const) {
      expect(read(sent({ name: 'q', [name]: true }))).toHaveProperty(name, true)
      expect(read(sent({ name: 'q', [name]: false }))).toHaveProperty(name, false)
      for (const value of [0, 1, 'true', 'false', '', null]) {
        expect(() => read(sent({ name: 'q', [name]: value }))).toThrow(
          refusal('INVALID_ARGUMENT', `\`${name}\` is `),
        )
        refused++
      }
    }
    expect(refused).toBe(24)
  })

  test('a state is one of the table', () => {
    for (const state of Object.keys(MESSAGE_STATE))
      expect(peekRequest({ name: 'q', state }).state).toBe(state)
    for (const state of ['', 'Ready', 'toString', '__proto__', 1, true])
      expect(() => peekRequest(sent({ name: 'q', state }))).toThrow(
        refusal('INVALID_ARGUMENT', 'it must be one of ready, scheduled, leased, dead.'),
      )
  })

  test('offsets are a list of at most one page, without repetition', () => {
    const list = (offsets: unknown): unknown => redriveRequest(sent({ name: 'q', offsets })).offsets
    expect(list([])).toStrictEqual([])
    expect(list([9, 10, 1, 9, 2 ** 40, 1])).toStrictEqual([1, 9, 10, 2 ** 40])
    const page = Array.from({ length: LIMITS.pageMessagesMax }, (_, i) => 2 ** 52 + i)
    expect(list(page)).toStrictEqual(page)
    expect(() => list([...page, 0])).toThrow(
      refusal('INVALID_ARGUMENT', '`offsets` must be a list of at most 1000 offsets.'),
    )
    for (const offsets of [5, '5', {}, null, new Uint8Array(2)])
      expect(() => list(offsets)).toThrow(refusal('INVALID_ARGUMENT', '`offsets` must be a list'))
    for (const offset of [-1, 1.5, '1', null, SAFE + 1, [1]])
      expect(() => list([1, offset])).toThrow(refusal('INVALID_ARGUMENT', '`offsets` is '))
  })

  test('a cursor is any text of 1 to 128 bytes', () => {
    for (const read of [
      (cursor: unknown) => replayRequest(sent({ name: 'q', cursor })).cursor,
      (cursor: unknown) => historyRequest(sent({ name: 'q', offset: 0, cursor })).cursor,
    ]) {
      for (const cursor of ['0', '300:0', 'c'.repeat(128), 'é'.repeat(64)]) expect(read(cursor)).toBe(cursor)
      for (const cursor of ['', 'c'.repeat(129), 'é'.repeat(64) + 'c', 0, 300, SAFE, null])
        expect(() => read(cursor)).toThrow(refusal('INVALID_ARGUMENT', 'it must be text of 1 to 128 bytes.'))
    }
  })

  test('a message is named either by its offset or by its id', () => {
    for (const [frame, read, more] of [
      ['CANCEL', cancelRequest, {}],
      ['RESCHEDULE', rescheduleRequest, { delayMs: 5 }],
    ] as const) {
      const one = refusal('INVALID_ARGUMENT', `${frame} needs either \`offset\` or \`id\`.`)
      expect(() => read({ name: 'q', ...more })).toThrow(one)
      expect(() => read({ name: 'q', offset: 1, id: 'i', ...more })).toThrow(one)
      expect(read({ name: 'q', id: 'i'.repeat(255), ...more })).toHaveProperty('id', 'i'.repeat(255))
      for (const id of ['', 'i'.repeat(256), 'é'.repeat(128)])
        expect(() => read({ name: 'q', id, ...more })).toThrow(
          refusal('INVALID_ARGUMENT', 'it must be text of 1 to 255 bytes.'),
        )
    }
  })

  test('RESCHEDULE takes one time, REPLAY one start', () => {
    const one = refusal('INVALID_ARGUMENT', 'RESCHEDULE needs either `delayMs` or `atMs`.')
    expect(() => rescheduleRequest({ name: 'q', offset: 1 })).toThrow(one)
    expect(() => rescheduleRequest({ name: 'q', offset: 1, delayMs: 1, atMs: 1 })).toThrow(one)
    expect(() => replayRequest({ name: 'q', fromOffset: 0, fromMs: 0 })).toThrow(
      refusal('INVALID_ARGUMENT', '`fromOffset` and `fromMs` are mutually exclusive.'),
    )
    expect(replayRequest({ name: 'q', fromOffset: 0 })).toMatchObject({ fromOffset: 0, fromMs: undefined })
  })
})

describe('filters', () => {
  const readers = [peekRequest, redriveRequest, discardRequest, replayRequest] as const
  const filter = (value: unknown): unknown => peekRequest(sent({ name: 'q', filter: value })).filter
  const NOTHING_SET = {
    reason: undefined,
    error: undefined,
    key: undefined,
    id: undefined,
    headers: undefined,
    minAttempts: undefined,
    olderThanMs: undefined,
    youngerThanMs: undefined,
  }

  test('every frame with a filter accepts all fields at their bounds', () => {
    const most = {
      reason: 'maxDeliveries',
      error: 'e'.repeat(LIMITS.reasonBytesMax),
      key: 'k'.repeat(LIMITS.keyBytesMax),
      id: 'i'.repeat(LIMITS.idBytesMax),
      headers: { a: 'b', ['n'.repeat(255)]: '' },
      minAttempts: LIMITS.maxDeliveriesMax,
      olderThanMs: LIMITS.delayMsMax,
      youngerThanMs: 0,
    }
    for (const read of readers) {
      const { headers, ...others } = read(sent({ name: 'q', filter: most })).filter
      expect({ ...others, headers: { ...headers } }).toStrictEqual(most)
    }
    expect(filter({})).toStrictEqual(NOTHING_SET)
    for (const reason of Object.keys(DEATH))
      expect(filter({ reason })).toStrictEqual({ ...NOTHING_SET, reason })
  })

  // An operator who leaves a value empty by mistake must not select every dead letter.
  test.each<[string, unknown, string]>([
    ['an empty error', { error: '' }, '`error` is ""; it must be text of 1 to 4096 bytes.'],
    ['an empty key', { key: '' }, '`key` is ""; it must be text of 1 to 255 bytes.'],
    ['an empty id', { id: '' }, '`id` is "";'],
    ['an error that is too long', { error: 'e'.repeat(4_097) }, '`error` is "eee'],
    ['a key that is too long', { key: 'é'.repeat(128) }, '`key` is "é'],
    ['an id that is too long', { id: 'i'.repeat(256) }, '`id` is "iii'],
    ['an unknown reason', { reason: 'toString' }, '`reason` is "toString"; it must be one of rejected,'],
    ['the number of a reason', { reason: 1 }, '`reason` is 1;'],
    ['a reason that is nil', { reason: null }, '`reason` is null;'],
    [
      'too many attempts',
      { minAttempts: 65_536 },
      '`minAttempts` is 65536; it must be a whole number from 0 to 65535.',
    ],
    ['an age above 100 years', { olderThanMs: LIMITS.delayMsMax + 1 }, '`olderThanMs` is 3155760000001;'],
    ['a negative age', { youngerThanMs: -1 }, '`youngerThanMs` is -1;'],
    [
      'a field that it does not have',
      { nonsense: 1 },
      'The filter of PEEK has no field "nonsense"; it has reason,',
    ],
    ['nil', null, '`filter` must be a map.'],
    ['a list', [], '`filter` must be a map.'],
    ['bytes', new Uint8Array(2), '`filter` must be a map.'],
    ['text', 'key', '`filter` must be a map.'],
    ['headers that are a list', { headers: ['a'] }, '`headers` must be a map of text to text.'],
    ['headers that are nil', { headers: null }, '`headers` must be a map of text to text.'],
    ['a header that is a number', { headers: { a: 5 } }, '`headers` has 5 for "a"; it must be text'],
    [
      'a header that is too long',
      { headers: { a: 'v'.repeat(16_385) } },
      'it must be text of at most 16384 bytes',
    ],
    ['a header without a name', { headers: { '': 'v' } }, '`headers` names ""; a header'],
    ['a name that is too long', { headers: { ['n'.repeat(256)]: 'v' } }, '`headers` names "nnn'],
  ])('refuses %s', (_, value, message) => {
    const error = thrown(() => filter(value))
    expect(error.code).toBe('INVALID_ARGUMENT')
    expect(error.message).toContain(message)
    expect(error.message.length).toBeLessThan(250)
  })

  test('accepts as many headers as a message may have, and refuses one more', () => {
    const headers = (count: number): Body =>
      Object.fromEntries(Array.from({ length: count }, (_, i) => [`h${i}`, '']))
    expect(filter({ headers: headers(64) })).toMatchObject({ headers: headers(64) })
    expect(() => filter({ headers: headers(65) })).toThrow(
      refusal('INVALID_ARGUMENT', '`headers` names 65 headers; at most 64'),
    )
  })

  test('names such as __proto__ are ordinary names, and errors show hostile names safely', () => {
    const named = filter({ headers: JSON.parse('{"__proto__":"a","toString":"b"}') }) as { headers: object }
    expect(Object.entries(named.headers)).toStrictEqual([
      ['__proto__', 'a'],
      ['toString', 'b'],
    ])
    expect(Object.getPrototypeOf(named.headers)).toBe(null)
    const error = thrown(() => filter({ headers: { ['\u001b[31m\n'.repeat(40)]: 5 } }))
    expect(error.message).not.toMatch(/\p{Cc}/u)
    expect(error.message.length).toBeLessThan(300)
  })
})

const RECORD = Uint8Array.of(9, 0, 0, 0, 0, 0, 0, 0, 0x78)
const ready: PeekedMessage = {
  state: 'ready',
  death: undefined,
  attempts: 0,
  totalAttempts: 0,
  redrives: 0,
  offset: 1,
  publishedAtMs: 2,
  timeMs: 3,
  expiresAtMs: 0,
  reason: '',
  holder: '',
  record: RECORD,
}
const dead: PeekedMessage = {
  ...ready,
  state: 'dead',
  death: 'invalid',
  attempts: 1,
  totalAttempts: 258,
  redrives: 2,
  offset: 2 ** 32 + 4,
  expiresAtMs: 5,
  reason: 'no',
  holder: 'w',
}

describe('MESSAGES', () => {
  const page = encodeMessages({ messages: [ready, dead], next: 2 ** 33 })

  test('has the specified bytes', () => {
    expect(Array.from(page)).toStrictEqual([
      ...[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
      ...[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
      ...[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      ...[9, 0, 0, 0, 0, 0, 0, 0, 0x78],
      ...[4, 4, 1, 0, 2, 1, 2, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
      ...[3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0x6e, 0x6f, 0x77],
      ...[9, 0, 0, 0, 0, 0, 0, 0, 0x78],
    ])
    expect(decodeMessages(page, 0, page.length)).toStrictEqual({ messages: [ready, dead], next: 2 ** 33 })
    expect(peekedBytes(ready) + peekedBytes(dead)).toBe(page.length - 16)
    const none = encodeMessages({ messages: [], next: undefined })
    expect(Array.from(none)).toStrictEqual(Array.from({ length: 16 }, () => 0))
    expect(decodeMessages(none, 0, 16)).toStrictEqual({ messages: [], next: undefined })
  })

  test('any page is decoded as it was encoded, and its records are copies', () => {
    const u64 = fc.integer({ min: 0, max: SAFE })
    const u16 = fc.nat(0xffff)
    const text = (max: number): fc.Arbitrary<string> => fc.string({ unit: 'grapheme', maxLength: max })
    const anyMessage: fc.Arbitrary<PeekedMessage> = fc.record(
      {
        state: fc.constantFrom(...(Object.keys(MESSAGE_STATE) as MessageState[])),
        death: fc.constantFrom(undefined, ...(Object.keys(DEATH) as DeathName[])),
        attempts: u16,
        totalAttempts: u16,
        redrives: u16,
        offset: u64,
        publishedAtMs: u64,
        timeMs: u64,
        expiresAtMs: u64,
        reason: text(40),
        holder: text(10),
        record: fc.uint8Array({ maxLength: 40 }).map((payload) => {
          const record = new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, ...payload])
          writeU32(record, 0, record.length)
          return record
        }),
      },
      PLAIN,
    )
    fc.assert(
      fc.property(
        fc.array(anyMessage, { maxLength: 6 }),
        fc.option(u64, { nil: undefined }),
        fc.nat(9),
        (messages, next, before) => {
          const bytes = encodeMessages({ messages, next })
          const chunk = new Uint8Array([...new Uint8Array(before), ...bytes, 1, 2, 3])
          const read = decodeMessages(chunk, before, before + bytes.length)
          chunk.fill(0xff)
          expect(read).toStrictEqual({ messages, next })
        },
      ),
      { numRuns: 300 },
    )
  })

  test('refuses a page that is truncated at any byte, or one byte too long', () => {
    let refused = 0
    for (let end = 0; end < page.length; end++) {
      expect(() => decodeMessages(page, 0, end)).toThrow(refusal('MALFORMED_FRAME', 'MESSAGES'))
      refused++
    }
    expect(refused).toBe(125)
    const long = new Uint8Array([...page, 0])
    expect(() => decodeMessages(long, 0, long.length)).toThrow(
      refusal('MALFORMED_FRAME', 'MESSAGES has 1 bytes too many.'),
    )
  })

  // The messages begin at 16 and 69, and the record of the second message at 116.
  const TWO_53 = [0, 0, 0, 0, 0, 0, 0x20, 0]
  test.each<[string, (bytes: Uint8Array) => void, string]>([
    [
      'more messages than arrived',
      (b) => writeU32(b, 4, 3),
      'MESSAGES is cut off: 44 bytes are needed, and 0 are available',
    ],
    [
      'the largest count',
      (b) => writeU32(b, 4, 0xffff_ffff),
      'MESSAGES is cut off: 44 bytes are needed, and 0 are available',
    ],
    [
      'a count that is lower than the number of messages',
      (b) => writeU32(b, 4, 1),
      'MESSAGES has 56 bytes too many',
    ],
    ['state 0', (b) => (b[16] = 0), 'the unknown state 0'],
    ['state 5', (b) => (b[16] = 5), 'the unknown state 5'],
    ['a next offset of 2^53', (b) => b.set(TWO_53, 8), 'must be below 2^53'],
    ['an offset of 2^53', (b) => b.set(TWO_53, 24), 'must be below 2^53'],
    ['a publish time of 2^53', (b) => b.set(TWO_53, 32), 'must be below 2^53'],
    ['a time of 2^53', (b) => b.set(TWO_53, 40), 'must be below 2^53'],
    ['an expiry of 2^53', (b) => b.set(TWO_53, 48), 'must be below 2^53'],
    ['a reason past the end', (b) => writeU16(b, 69 + 40, 0xffff), 'MESSAGES is cut off'],
    ['a holder past the end', (b) => writeU16(b, 69 + 42, 0xffff), 'MESSAGES is cut off'],
    ['a reason into the record', (b) => writeU16(b, 69 + 40, 3), 'The record of message 1 in MESSAGES'],
    ['a record of 7 bytes', (b) => writeU32(b, 116, 7), 'The record of message 1 in MESSAGES does not fit'],
    ['a record of 0 bytes', (b) => writeU32(b, 116, 0), 'The record of message 1 in MESSAGES does not fit'],
    [
      'a record past the end',
      (b) => writeU32(b, 116, 10),
      'The record of message 1 in MESSAGES does not fit',
    ],
    [
      'the largest record',
      (b) => writeU32(b, 60, 0xffff_ffff),
      'The record of message 0 in MESSAGES does not fit',
    ],
  ])('refuses %s', (_, change, message) => {
    const bytes = page.slice()
    change(bytes)
    const error = thrown(() => decodeMessages(bytes, 0, bytes.length))
    expect(error.code).toBe('MALFORMED_FRAME')
    expect(error.message).toContain(message)
  })

  test('reserved bytes, unknown flags, unknown deaths and an unused `next` are ignored', () => {
    const bytes = encodeMessages({ messages: [ready], next: undefined })
    bytes.set([0xfe, 0xff, 0xff, 0xff], 0)
    bytes.set(TWO_53, 8)
    bytes[17] = 99
    expect(decodeMessages(bytes, 0, bytes.length)).toStrictEqual({ messages: [ready], next: undefined })
  })

  test('counts stop at the maximum of their field', () => {
    const often = { ...ready, attempts: 65_536, totalAttempts: 70_000, redrives: 2 ** 32 }
    const bytes = encodeMessages({ messages: [often], next: undefined })
    expect(decodeMessages(bytes, 0, bytes.length).messages).toStrictEqual([
      { ...ready, attempts: 65_535, totalAttempts: 65_535, redrives: 65_535 },
    ])
  })

  test('texts are truncated to their limits', () => {
    const long = { ...dead, reason: 'é'.repeat(40_000), holder: 'w'.repeat(70_000) }
    const bytes = encodeMessages({ messages: [long, ready], next: undefined })
    expect(decodeMessages(bytes, 0, bytes.length).messages).toStrictEqual([
      { ...dead, reason: 'é'.repeat(2_048), holder: 'w'.repeat(255) },
      ready,
    ])
    expect(encodeMessages({ messages: [long], next: undefined }).length).toBe(
      MESSAGES_OVERHEAD_BYTES - 12 + RECORD.length,
    )
  })

  test('the texts of a single message are truncated to make room for its record, the reason first', () => {
    const full = { ...dead, reason: 'r'.repeat(100), holder: 'h'.repeat(50) }
    const whole = encodeMessages({ messages: [full], next: 7 }).length
    const texts = (payloadBytesMax: number): [number, number] => {
      const bytes = encodeMessages({ messages: [full], next: 7 }, payloadBytesMax)
      const [message] = decodeMessages(bytes, 0, bytes.length).messages
      expect(bytes.length).toBeLessThanOrEqual(Math.max(payloadBytesMax, whole - 150))
      expect(message!.record).toStrictEqual(RECORD)
      return [message!.reason.length, message!.holder.length]
    }
    expect(texts(whole)).toStrictEqual([100, 50])
    expect(texts(whole - 1)).toStrictEqual([99, 50])
    expect(texts(whole - 100)).toStrictEqual([0, 50])
    expect(texts(whole - 101)).toStrictEqual([0, 49])
    expect(texts(whole - 150)).toStrictEqual([0, 0])
    expect(texts(whole - 151)).toStrictEqual([0, 0])
    expect(encodeMessages({ messages: [full, ready], next: 7 }, 20).length).toBe(whole + peekedBytes(ready))
  })

  test('the largest frame has room for the largest record and all its texts', () => {
    expect(LIMITS.messageBytesMax + 8 + MESSAGES_OVERHEAD_BYTES).toBeLessThan(LIMITS.frameBytesMax)
    expect(LIMITS.messageBytesDefault + 8 + MESSAGES_OVERHEAD_BYTES).toBeLessThan(LIMITS.frameBytesDefault)
    expect(Math.max(LIMITS.reasonBytesMax, LIMITS.clientNameBytesMax)).toBeLessThan(0xffff)
  })
})

test('vocabularies', () => {
  for (const [name, death] of Object.entries(DEATH)) expect(deathName(death)).toBe(name)
  for (const death of [0, 5, 255, -1, 1.5]) expect(deathName(death)).toBe(undefined)
  for (const meaning of Object.values(HISTORY_EVENTS)) expect(meaning).toMatch(/^[A-Z].*\.$/)
  const headers = Object.values(ORIGIN_HEADERS)
  expect(new Set(headers).size).toBe(headers.length)
  for (const name of headers) expect(name).toMatch(/^sluice-[a-z-]+$/)
  expect(headers).toHaveLength(8)
})
