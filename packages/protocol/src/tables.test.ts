import { describe, expect, test } from 'vitest'
import { ERRORS, SluiceError, errorCode, shown, type ErrorCode } from './errors.js'
import { LIMITS } from './limits.js'
import { OP, OPCODES, opcodeName } from './opcodes.js'

describe('opcodes', () => {
  test('each number has one name, each name has its number, and no other number has a name', () => {
    let known = 0
    for (let code = 0; code < 256; code++) {
      const name = opcodeName(code)
      if (name === undefined) continue
      expect(OPCODES[name].code).toBe(code)
      expect(OP[name]).toBe(code)
      known++
    }
    expect(known).toBe(Object.keys(OPCODES).length)
    expect(opcodeName(256)).toBe(undefined)
    expect(opcodeName(-1)).toBe(undefined)
  })

  test('every frame that a client sends is legal at only one stage', () => {
    const sent = Object.values(OPCODES).filter(({ sender }) => sender !== 'server')
    expect(sent).toHaveLength(43)
    expect(sent.map(({ stage }) => stage)).not.toContain('any')
  })

  test('no msgpack is read in the handshake', () => {
    const early = Object.values(OPCODES).filter(({ stage }) => stage !== 'open')
    expect(early).toHaveLength(4)
    expect(early.every(({ layout }) => layout === 'fixed')).toBe(true)
  })
})

describe('errors', () => {
  test('an error has the values of the table, unless it overrides them', () => {
    for (const [code, { scope, retryable }] of Object.entries(ERRORS)) {
      const error = new SluiceError(code as ErrorCode, 'text')
      expect(error).toMatchObject({
        name: 'SluiceError',
        code,
        scope,
        retryable,
        retryAfterMs: 0,
        message: 'text',
      })
      expect(error.outcome).toBe(undefined)
      expect('cause' in error).toBe(false)
    }
    const cause = new Error('why')
    const told = { scope: 'connection', retryable: true, retryAfterMs: 5, outcome: 'unknown', cause } as const
    expect(new SluiceError('INVALID_ARGUMENT', 'text', told)).toMatchObject(told)
    expect(Object.keys(ERRORS).length).toBeGreaterThanOrEqual(62)
  })

  test('numbers have 16 bits, and unknown numbers have no code', () => {
    const numbers = Object.values(ERRORS).map(({ number }) => number)
    expect(numbers.every((number) => Number.isInteger(number) && number > 0 && number <= 0xffff)).toBe(true)
    for (const number of [0, 999, 65_535, 1e9]) expect(errorCode(number)).toBe(undefined)
  })

  test('each meaning is a sentence', () => {
    for (const { meaning } of Object.values(ERRORS)) expect(meaning).toMatch(/^[A-Z].*\.$/)
  })
})

test('shown takes any value, briefly, on one line', () => {
  const cases: readonly [unknown, string][] = [
    [5, '5'],
    [-0.5, '-0.5'],
    [NaN, 'NaN'],
    [10n ** 50n, '1'.padEnd(40, '0')],
    [null, 'null'],
    [undefined, 'undefined'],
    [true, 'true'],
    [Symbol('s'), 'Symbol(s)'],
    ['a\n"', '"a\\n\\""'],
    ['\u007f\u009b\u2028', String.raw`"\u007f\u009b\u2028"`],
    ['x'.repeat(99), `"${'x'.repeat(40)}"`],
    [Object.create(null), 'an object'],
    [{ toString: null }, 'an object'],
    [[Object.create(null)], 'a list'],
    [new Uint8Array(9), 'bytes'],
    [() => 1, 'a function'],
  ]
  for (const [value, text] of cases) expect(shown(value)).toBe(text)
  expect(cases).toHaveLength(16)
})

test('limits are whole and positive, and the limit of each field fits the field', () => {
  for (const [name, value] of Object.entries(LIMITS)) {
    expect(Number.isSafeInteger(value) && value > 0, `of ${name}`).toBe(true)
  }
  const fields: readonly [keyof typeof LIMITS, number][] = [
    ['queueNameBytesMax', 0xff],
    ['clientNameBytesMax', 0xff],
    ['keyBytesMax', 0xff],
    ['idBytesMax', 0xff],
    ['priorityMax', 31],
    ['credentialBytesMax', 0xffff],
    ['reasonBytesMax', 0xffff],
    ['headersBytesMax', 0xffff],
    ['channelMax', 0xffff],
    ['maxDeliveriesMax', 0xffff],
    ['atomicAcksMax', 0xffff],
    ['atomicBatchesMax', 0xffff],
    ['keyConcurrencyMax', 0xffff],
    ['creditBytesMax', 0xffff_ffff],
    ['frameBytesMax', 0xffff_ffff],
    ['delayMsMax', 2 ** 48 - 1],
  ]
  for (const [name, max] of fields) expect(LIMITS[name], `of ${name}`).toBeLessThanOrEqual(max)
  expect(fields).toHaveLength(16)
})
