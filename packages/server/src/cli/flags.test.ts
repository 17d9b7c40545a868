/** Values of flags: accepted values, and errors that name the flag, the given text and the expected form. */
import { QUEUE_OPTIONS } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { UsageError, failureOf } from './failure.js'
import {
  choiceFlag,
  countFlag,
  durationMs,
  headersFlag,
  numberFlag,
  placeFlag,
  sizeFlag,
  timeFlag,
} from './flags.js'
import { filterOf, refOf } from './selection.js'
import { queueOptionsOf } from './queue-flags.js'

test('valid texts are converted', () => {
  expect(numberFlag('31', '--priority', 0, 31)).toBe(31)
  expect(countFlag('9007199254740991', '--offset')).toBe(Number.MAX_SAFE_INTEGER)
  expect(durationMs('0', '--delay')).toBe(0)
  expect(durationMs('1d12h', '--delay')).toBe(129_600_000)
  expect(durationMs('1.5s', '--delay', 1_500)).toBe(1_500)
  expect(timeFlag('1900000000000', '--at')).toEqual(new Date(1_900_000_000_000))
  expect(timeFlag('2030-05-01T10:00Z', '--at')).toEqual(new Date('2030-05-01T10:00:00Z'))
  expect(placeFlag('1900000000000', '--from')).toBe(1_900_000_000_000)
  expect(placeFlag('2030-05-01T10:00Z', '--from')).toEqual(new Date('2030-05-01T10:00:00Z'))
  expect(headersFlag(['a=b', 'c.d=e=f', '__proto__='])).toEqual({ a: 'b', 'c.d': 'e=f', ['__proto__']: '' })
})

const refused: readonly (readonly [name: string, call: () => unknown, what: RegExp, advice: RegExp])[] = [
  ['a number', () => numberFlag('32', '--priority', 0, 31), /--priority is "32".* from 0 to 31/, /bounds/],
  ['half a number', () => numberFlag('1.5', '--rate', 1, 9), /--rate is "1.5"/, /bounds/],
  ['an offset', () => countFlag('9007199254740992', '--offset'), /--offset is .* from 0\./, /bounds/],
  ['a duration', () => durationMs('soon', '--ttl'), /--ttl is "soon".* a duration/, /'30s'/],
  ['a duration without a unit', () => durationMs('30', '--ttl'), /--ttl is "30"/, /with a unit/],
  ['a long duration', () => durationMs('101y', '--ttl'), /--ttl is "101y"/, /'7d'/],
  ['too long a duration', () => durationMs('36526d', '--ttl'), /at most 100 years/, /shorter/],
  ['a short duration', () => durationMs('99ms', '--wait', 100), /--wait is "99ms".* 100ms/, /longer/],
  ['a size', () => sizeFlag('10x', '--max-bytes'), /--max-bytes is "10x".* a size/, /'10mb'/],
  ['a time', () => timeFlag('2030-02-30', '--at'), /--at is "2030-02-30".* a time/, /milliseconds/],
  ['a place', () => placeFlag('yesterday', '--from'), /"yesterday".* an offset or a time/, /T10:00Z/],
  ['a choice', () => choiceFlag('redy', '--state', ['ready', 'dead']), /one of ready, dead/, /mean ready/],
  ['no choice', () => choiceFlag('', '--state', ['ready', 'dead']), /--state is ""/, /one of these/],
  ['a header', () => headersFlag(['=x']), /--header is "=x"/, /name=value/],
  ['a header twice', () => headersFlag(['a=1', 'a=2']), /"a" is given twice/, /once/],
  ['two messages', () => refOf({ offset: '1', id: 'a' }), /--offset and --id are/, /one of --offset/],
  ['an empty id', () => refOf({ offset: undefined, id: '' }), /--id is empty/, /id/],
  ['long text', () => sizeFlag('x'.repeat(1_000), '--max-bytes'), /^.{0,120}$/, /\S/],
]
test.each(refused)(
  '%s: the error names the flag, and the hint says what to do',
  (_name, call, what, advice) => {
    let failure
    try {
      call()
    } catch (error) {
      failure = failureOf(error)
    }
    expect(failure).toMatchObject({ exit: 2 })
    expect(failure?.what).toMatch(what)
    expect(failure?.advice).toMatch(advice)
  },
)

test('an empty filter value is refused, because it is probably an unset variable', () => {
  const none = { header: undefined, olderThan: undefined, youngerThan: undefined }
  expect(filterOf({ ...none, key: 'k', id: undefined })).toEqual({ key: 'k' })
  expect(() => filterOf({ ...none, key: '', id: undefined })).toThrow(UsageError)
  expect(() => filterOf({ ...none, key: undefined, id: '' })).toThrow(UsageError)
})

describe('options of a queue', () => {
  test('are converted to the names and units of the client', () => {
    expect(
      queueOptionsOf({ 'retry-max': '5m', 'retain-bytes': '1gb', 'dead-letter': 'failed', single: false }),
    ).toEqual({ retry: { max: 300_000 }, retain: { bytes: 1e9 }, deadLetter: 'failed', single: false })
    expect(queueOptionsOf({ 'dead-letter': false, ttl: false, unrelated: 'x' })).toEqual({
      deadLetter: null,
      ttl: 0,
    })
    expect(queueOptionsOf({ rate: '100/1s', 'key-rate': '1/1m' })).toEqual({
      rate: { messages: 100, per: 1_000 },
      keyRate: { messages: 1, per: 60_000 },
    })
    expect(queueOptionsOf({ rate: false, 'key-rate': 'none' })).toEqual({ rate: null, keyRate: null })
    expect(Object.keys(QUEUE_OPTIONS)).toHaveLength(22)
  })

  test('are named by their flags in an error', () => {
    expect(() => queueOptionsOf({ 'max-deliveries': '65536' })).toThrow('--max-deliveries is "65536"')
    expect(queueOptionsOf({ 'max-deliveries': 'unlimited' })).toEqual({ maxDeliveries: 'unlimited' })
    expect(queueOptionsOf({ 'max-deliveries': '256' })).toEqual({ maxDeliveries: 256 })
    expect(() => queueOptionsOf({ overflow: 'drop' })).toThrow(
      '--overflow is "drop"; it must be one of reject',
    )
    expect(() => queueOptionsOf({ 'dead-letter': 'two words' })).toThrow('queue name')
    expect(() => queueOptionsOf({ rate: '100' })).toThrow('--rate is "100"; it must be a rate')
    expect(() => queueOptionsOf({ rate: '0/1s' })).toThrow('The number of --rate is "0"')
    expect(() => queueOptionsOf({ rate: '1000001/1s' })).toThrow('from 1 to 1000000')
    expect(() => queueOptionsOf({ 'key-rate': '1/0' })).toThrow('The period of --key-rate is "0"')
    expect(() => queueOptionsOf({ 'key-rate': '1/31d' })).toThrow(
      'The period of --key-rate is "31d"; it must be at most 30d',
    )
  })
})
