import { describe, expect, test } from 'vitest'
import { decodeControl, encodeControl } from './control.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'
import {
  QUEUE_OPTIONS,
  QUEUE_OPTIONS_RESERVED,
  QUEUE_OPTION_DEFAULTS,
  ensureRequest,
  nameRequest,
  onlyFields,
  queueOptions,
  subscribeRequest,
} from './queues.js'

type Body = { readonly [name: string]: unknown }

/** As it arrives: encoded, decoded, without prototypes. */
function sent(body: Body): Body {
  const bytes = encodeControl(body)
  return decodeControl(bytes, 0, bytes.length)
}

function refusal(code: string, message: string): Error {
  return expect.objectContaining({ code, message: expect.stringContaining(message) as string }) as Error
}

const HOSTILE: readonly unknown[] = [
  null,
  true,
  -1,
  1.5,
  NaN,
  Infinity,
  2n ** 60n,
  '5',
  'x'.repeat(60_000),
  [],
  [{}],
  {},
  { a: {} },
  { toString: 1 },
  new Uint8Array(3),
]

describe('queueOptions', () => {
  test('defaults are those of the table and pass', () => {
    expect(queueOptions(QUEUE_OPTION_DEFAULTS)).toStrictEqual(QUEUE_OPTION_DEFAULTS)
    expect(Object.keys(QUEUE_OPTION_DEFAULTS)).toStrictEqual(Object.keys(QUEUE_OPTIONS))
    for (const [name, option] of Object.entries(QUEUE_OPTIONS)) {
      expect(QUEUE_OPTION_DEFAULTS[name as keyof typeof QUEUE_OPTIONS]).toBe(option.default)
    }
    expect(queueOptions(undefined)).toStrictEqual({})
    expect(queueOptions({})).toStrictEqual({})
  })

  test('each option at its bounds and one beyond', () => {
    let checked = 0
    for (const [name, { min, max }] of Object.entries(QUEUE_OPTIONS)) {
      for (const value of [min, max]) expect(queueOptions({ [name]: value })).toStrictEqual({ [name]: value })
      for (const value of [min - 1, max + 1]) {
        const refused = refusal(
          'INVALID_ARGUMENT',
          `The queue option \`${name}\` is ${value}; it must be a whole number from ${min} to ${max}.`,
        )
        expect(() => queueOptions({ [name]: value })).toThrow(refused)
      }
      checked++
    }
    expect(checked).toBeGreaterThanOrEqual(3)
  })

  test('values of every wrong kind, as they arrive, are refused by type and in a short sentence', () => {
    let refused = 0
    for (const value of HOSTILE) {
      for (const body of [sent({ maxDeliveries: value }), { maxDeliveries: value }]) {
        let error: unknown
        try {
          queueOptions(body)
        } catch (thrown) {
          error = thrown
        }
        expect(error).toBeInstanceOf(SluiceError)
        expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' })
        expect((error as SluiceError).message.length).toBeLessThan(200)
        refused++
      }
    }
    expect(refused).toBe(HOSTILE.length * 2)
  })

  test('options that are not a map', () => {
    const others = [null, 5, 'x', true, [], [1], new Uint8Array(0), new Uint8Array(2)]
    for (const options of others) {
      expect(() => queueOptions(options)).toThrow(refusal('INVALID_ARGUMENT', '`options` must be a map'))
    }
    expect(others).toHaveLength(8)
  })

  test('reserved and unknown names', () => {
    for (const name of QUEUE_OPTIONS_RESERVED) {
      expect(() => queueOptions({ [name]: 1 })).toThrow(
        refusal('NOT_SUPPORTED', `\`${name}\` is not supported`),
      )
    }
    const unknown = [
      'maxdeliveries',
      '',
      '__proto__',
      'toString',
      'constructor',
      'x'.repeat(60_000),
      '\u001b[31m\n',
    ]
    for (const name of unknown) {
      const body = sent(JSON.parse(`{${JSON.stringify(name)}:1}`) as Body)
      expect(() => queueOptions(body)).toThrow(refusal('INVALID_ARGUMENT', 'There is no queue option "'))
    }
    expect(unknown).toHaveLength(7)
  })

  test('a first wait above the longest wait', () => {
    expect(queueOptions({ retryInitialMs: 5, retryMaxMs: 5 })).toStrictEqual({
      retryInitialMs: 5,
      retryMaxMs: 5,
    })
    expect(() => queueOptions({ retryInitialMs: 6, retryMaxMs: 5 })).toThrow(
      refusal('INVALID_ARGUMENT', '`retryInitialMs` is 6, above `retryMaxMs` of 5.'),
    )
  })
})

describe('requests', () => {
  test('ENSURE', () => {
    expect(ensureRequest(sent({ name: 'q' }))).toStrictEqual({ name: 'q', options: {}, update: false })
    expect(ensureRequest(sent({ name: 'q', options: { maxDeliveries: 1 }, update: true }))).toStrictEqual({
      name: 'q',
      options: { maxDeliveries: 1 },
      update: true,
    })
    for (const update of [null, 1, 0, 'true', {}]) {
      expect(() => ensureRequest(sent({ name: 'q', update }))).toThrow(
        refusal('INVALID_ARGUMENT', '`update` must be'),
      )
    }
    expect(() => ensureRequest(sent({}))).toThrow(refusal('INVALID_NAME', 'A queue name is a undefined'))
  })

  test('GET, DELETE and PURGE', () => {
    expect(nameRequest('GET', sent({ name: 'q' }))).toBe('q')
    expect(() => nameRequest('GET', sent({ name: 'q', queue: 'q' }))).toThrow(
      refusal('INVALID_ARGUMENT', 'GET has no field "queue"; it has name.'),
    )
    for (const name of HOSTILE.filter((value) => typeof value !== 'string')) {
      expect(() => nameRequest('GET', sent({ name }))).toThrow(refusal('INVALID_NAME', 'it must be text'))
    }
  })

  test('SUBSCRIBE at its bounds and one beyond', () => {
    const most = {
      queue: 'q',
      messages: LIMITS.creditMessagesMax,
      bytes: LIMITS.creditBytesMax,
      limit: Number.MAX_SAFE_INTEGER,
    }
    expect(subscribeRequest(sent(most))).toStrictEqual(most)
    expect(subscribeRequest(sent({ queue: 'q', messages: 0, bytes: 0 }))).toStrictEqual({
      queue: 'q',
      messages: 0,
      bytes: 0,
      limit: undefined,
    })
    let refused = 0
    for (const name of ['messages', 'bytes', 'limit'] as const) {
      for (const value of [...HOSTILE, most[name] + 1]) {
        expect(() => subscribeRequest(sent({ ...most, [name]: value }))).toThrow(
          refusal('INVALID_ARGUMENT', `\`${name}\` is `),
        )
        refused++
      }
    }
    expect(refused).toBe(3 * (HOSTILE.length + 1))
    expect(() => subscribeRequest(sent({ queue: 'q', messages: 1 }))).toThrow(
      refusal('INVALID_ARGUMENT', '`bytes` is'),
    )
  })

  test('unknown fields are refused by name, and a later version’s as not supported', () => {
    expect(() => onlyFields('LIST', sent({}), [])).not.toThrow()
    expect(() => onlyFields('LIST', sent({ a: 1 }), [])).toThrow(
      refusal('INVALID_ARGUMENT', 'LIST has no field "a"; it has none.'),
    )
    expect(() =>
      subscribeRequest(sent({ queue: 'q', messages: 1, bytes: 1, processingTimeoutMs: 5 })),
    ).toThrow(refusal('NOT_SUPPORTED', 'processingTimeoutMs'))
    const proto = sent(JSON.parse('{"__proto__":{"name":"q"}}') as Body)
    expect(() => nameRequest('GET', proto)).toThrow(
      refusal('INVALID_ARGUMENT', 'GET has no field "__proto__"'),
    )
  })
})
