import { describe, expect, test } from 'vitest'
import { decodeControl, encodeControl } from './control.js'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'
import {
  QUEUE_COUNTERS,
  QUEUE_OPTIONS,
  QUEUE_OPTION_DEFAULTS,
  checkOptionsTogether,
  ensureRequest,
  nameRequest,
  onlyFields,
  queueOptions,
  subscribeRequest,
} from './queues.js'

type Body = { readonly [name: string]: unknown }

/** Returns the body as it arrives at the peer: encoded and decoded, without prototypes. */
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
  test('defaults are those of the table and are valid', () => {
    expect(queueOptions(QUEUE_OPTION_DEFAULTS)).toStrictEqual(QUEUE_OPTION_DEFAULTS)
    expect(Object.keys(QUEUE_OPTION_DEFAULTS)).toStrictEqual(Object.keys(QUEUE_OPTIONS))
    for (const [name, option] of Object.entries(QUEUE_OPTIONS)) {
      expect(QUEUE_OPTION_DEFAULTS[name as keyof typeof QUEUE_OPTIONS]).toBe(option.default)
    }
    expect(queueOptions(undefined)).toStrictEqual({})
    expect(queueOptions({})).toStrictEqual({})
  })

  test('accepts each number at its bounds, and refuses numbers one beyond', () => {
    let checked = 0
    for (const [name, option] of Object.entries(QUEUE_OPTIONS)) {
      if (option.kind !== 'number') continue
      const { min, max } = option
      const least = 'least' in option ? option.least : min
      const bounds = least === min ? `a whole number from ${min}` : `0, or a whole number from ${least}`
      const word = 'word' in option ? `, or "${option.word}"` : ''
      if ('word' in option)
        expect(queueOptions({ [name]: option.word })).toStrictEqual({ [name]: option.word })
      for (const value of [min, least, max])
        expect(queueOptions({ [name]: value })).toStrictEqual({ [name]: value })
      for (const value of [min - 1, least - 1, max + 1]) {
        const refused = refusal(
          'INVALID_OPTION',
          `The queue option \`${name}\` is ${value}; it must be ${bounds} to ${max}${word}.`,
        )
        expect(() => queueOptions({ [name]: value })).toThrow(refused)
      }
      checked++
    }
    expect(checked).toBe(17)
  })

  test('accepts each choice, flag and name, and refuses invalid values', () => {
    let checked = 0
    const refused = (name: string, value: unknown, code: string, message: string): void => {
      expect(() => queueOptions({ [name]: value })).toThrow(refusal(code, message))
    }
    for (const [name, option] of Object.entries(QUEUE_OPTIONS)) {
      if (option.kind === 'number') continue
      const values =
        option.kind === 'choice'
          ? option.choices
          : option.kind === 'flag'
            ? [true, false]
            : ['', 'q', 'q'.repeat(255)]
      for (const value of values) expect(queueOptions({ [name]: value })).toStrictEqual({ [name]: value })
      if (option.kind === 'choice') {
        for (const value of ['', 'BLOCK', ' reject', 0, option.choices])
          refused(name, value, 'INVALID_OPTION', `it must be one of ${option.choices.join(', ')}.`)
      } else if (option.kind === 'flag') {
        for (const value of [0, 1, 'true', ''])
          refused(name, value, 'INVALID_OPTION', 'must be true or false.')
      } else {
        for (const value of [' ', '-q', 'a b', 'q'.repeat(256), 5, null, false])
          refused(name, value, 'INVALID_NAME', 'queue name')
      }
      checked++
    }
    expect(checked).toBe(5)
  })

  test('values of every wrong type are refused in a short sentence', () => {
    let refused = 0
    for (const [name, { kind }] of Object.entries(QUEUE_OPTIONS)) {
      for (const value of HOSTILE) {
        if (kind === 'flag' && value === true) continue
        // An option of the kind `name` accepts these values.
        if (kind === 'name' && typeof value === 'string' && value.length < 256) continue
        for (const body of [sent({ [name]: value }), { [name]: value }]) {
          let error: unknown
          try {
            queueOptions(body)
          } catch (thrown) {
            error = thrown
          }
          expect(error, `${name} of ${kind}`).toBeInstanceOf(SluiceError)
          expect(error).toMatchObject({ code: kind === 'name' ? 'INVALID_NAME' : 'INVALID_OPTION' })
          expect((error as SluiceError).message.length).toBeLessThan(200)
          refused++
        }
      }
    }
    expect(refused).toBe((HOSTILE.length * 22 - 2) * 2)
  })

  test('refuses options that are not a map', () => {
    const others = [null, 5, 'x', true, [], [1], new Uint8Array(0), new Uint8Array(2)]
    for (const options of others) {
      expect(() => queueOptions(options)).toThrow(refusal('INVALID_ARGUMENT', '`options` must be a map'))
    }
    expect(others).toHaveLength(8)
  })

  test('refuses unknown names', () => {
    const unknown = [
      'maxdeliveries',
      '',
      '__proto__',
      'toString',
      'constructor',
      'retain',
      'x'.repeat(60_000),
      '\u001b[31m\n',
    ]
    for (const name of unknown) {
      const body = sent(JSON.parse(`{${JSON.stringify(name)}:1}`) as Body)
      expect(() => queueOptions(body)).toThrow(refusal('INVALID_OPTION', 'There is no queue option "'))
    }
    expect(unknown).toHaveLength(8)
  })
})

describe('options that contradict each other', () => {
  test('a first delay above the longest delay', () => {
    const equal = { retryInitialMs: 5, retryMaxMs: 5 }
    expect(queueOptions(equal)).toStrictEqual(equal)
    expect(() => queueOptions({ retryInitialMs: 6, retryMaxMs: 5 })).toThrow(
      refusal('OPTION_CONFLICT', '`retryInitialMs` is 6ms, above `retryMaxMs` of 5ms.'),
    )
    // By itself the value is valid; it conflicts only with the other option.
    expect(queueOptions({ retryInitialMs: 300_001 })).toStrictEqual({ retryInitialMs: 300_001 })
    expect(() => checkOptionsTogether({ ...QUEUE_OPTION_DEFAULTS, retryInitialMs: 300_001 })).toThrow(
      refusal('OPTION_CONFLICT', 'above `retryMaxMs` of 5m'),
    )
  })

  test('an overflow without a limit', () => {
    expect(() => checkOptionsTogether(QUEUE_OPTION_DEFAULTS)).not.toThrow()
    let refused = 0
    for (const overflow of ['drop-oldest', 'dead-letter'] as const) {
      const conflict = refusal('OPTION_CONFLICT', `\`overflow\` is "${overflow}", and neither`)
      expect(queueOptions({ overflow })).toStrictEqual({ overflow })
      expect(queueOptions({ overflow, maxBytes: 0 })).toStrictEqual({ overflow, maxBytes: 0 })
      expect(() => queueOptions({ overflow, maxMessages: 0, maxBytes: 0 })).toThrow(conflict)
      expect(() => checkOptionsTogether({ ...QUEUE_OPTION_DEFAULTS, overflow })).toThrow(conflict)
      for (const limit of ['maxMessages', 'maxBytes'])
        expect(() => checkOptionsTogether({ ...QUEUE_OPTION_DEFAULTS, overflow, [limit]: 1 })).not.toThrow()
      refused++
    }
    expect(refused).toBe(2)
    expect(queueOptions({ overflow: 'reject', maxMessages: 0, maxBytes: 0 })).toBeDefined()
  })

  test('a window for ids that are remembered while pending', () => {
    expect(() => queueOptions({ unique: 'pending', dedupWindowMs: 600_000 })).toThrow(
      refusal('OPTION_CONFLICT', '`dedupWindowMs` has no effect with `unique` of "pending"'),
    )
    for (const named of [{ unique: 'pending' }, { unique: 'window', dedupWindowMs: 0 }, { dedupWindowMs: 5 }])
      expect(queueOptions(named)).toStrictEqual(named)
    // An option that was not given cannot conflict: every queue has the default window.
    expect(() => checkOptionsTogether({ ...QUEUE_OPTION_DEFAULTS, unique: 'pending' })).not.toThrow()
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
    expect(() => ensureRequest(sent({}))).toThrow(
      refusal('INVALID_NAME', 'A queue name has the type undefined'),
    )
  })

  test('GET, DELETE, PURGE, PAUSE and RESUME', () => {
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
      processingTimeoutMs: LIMITS.delayMsMax,
    }
    expect(subscribeRequest(sent(most))).toStrictEqual({ ...most, claims: [] })
    expect(subscribeRequest(sent({ queue: 'q', messages: 0, bytes: 0 }))).toStrictEqual({
      queue: 'q',
      messages: 0,
      bytes: 0,
      limit: undefined,
      processingTimeoutMs: undefined,
      claims: [],
    })
    const least = { ...most, processingTimeoutMs: LIMITS.processingTimeoutMsMin }
    expect(subscribeRequest(sent(least))).toStrictEqual({ ...least, claims: [] })
    expect(() => subscribeRequest(sent({ ...most, processingTimeoutMs: 99 }))).toThrow(
      refusal('INVALID_ARGUMENT', '`processingTimeoutMs` is 99; it must be a whole number from 100 to'),
    )
    let refused = 0
    for (const name of ['messages', 'bytes', 'limit', 'processingTimeoutMs'] as const) {
      for (const value of [...HOSTILE, most[name] + 1]) {
        expect(() => subscribeRequest(sent({ ...most, [name]: value }))).toThrow(
          refusal('INVALID_ARGUMENT', `\`${name}\` is `),
        )
        refused++
      }
    }
    expect(refused).toBe(4 * (HOSTILE.length + 1))
    expect(() => subscribeRequest(sent({ queue: 'q', messages: 1 }))).toThrow(
      refusal('INVALID_ARGUMENT', '`bytes` is'),
    )
  })

  test('unknown fields are refused, and the error names them', () => {
    expect(() => onlyFields('LIST', sent({}), [])).not.toThrow()
    expect(() => onlyFields('LIST', sent({ a: 1 }), [])).toThrow(
      refusal('INVALID_ARGUMENT', 'LIST has no field "a"; it has none.'),
    )
    expect(() => subscribeRequest(sent({ queue: 'q', messages: 1, bytes: 1, processingTimeout: 5 }))).toThrow(
      refusal('INVALID_ARGUMENT', 'SUBSCRIBE has no field "processingTimeout"; it has queue, messages'),
    )
    const proto = sent(JSON.parse('{"__proto__":{"name":"q"}}') as Body)
    expect(() => nameRequest('GET', proto)).toThrow(
      refusal('INVALID_ARGUMENT', 'GET has no field "__proto__"'),
    )
  })
})

test('each option and each counter has a sentence as its meaning', () => {
  const meanings = [
    ...Object.values(QUEUE_OPTIONS).map(({ meaning }) => meaning),
    ...Object.values(QUEUE_COUNTERS),
  ]
  for (const meaning of meanings) expect(meaning).toMatch(/^[A-Z].*\.$/)
  expect(meanings).toHaveLength(22 + 10)
})
