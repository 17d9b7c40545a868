import { describe, expect, test } from 'vitest'
import { SluiceError } from './errors.js'
import { addressName, groupName, queueName, scheduleName, streamOfGroup, type QueueName } from './names.js'

describe('queueName', () => {
  const good = ['a', 'A', '0', '_', 'orders', 'eu/orders.v2:high-prio_1', 'a/../b', 'x'.repeat(255)]
  test.each(good.map((name) => [name]))('takes %s', (name) => {
    expect(queueName(name)).toBe(name)
  })

  const bad: readonly unknown[] = [
    '',
    'x'.repeat(256),
    'x'.repeat(65_536),
    '.',
    '..',
    '../etc/passwd',
    '/a',
    '-rf',
    ':a',
    'a b',
    'a\n',
    '\na',
    'a\0',
    'a\u001b[31m',
    'é',
    'a\u0301',
    '\ud800',
    'a\\b',
    '<script>',
    '"',
    'a%2f',
    '*',
    undefined,
    null,
    5,
    {},
    ['a'],
    Object.create(null),
    Symbol('a'),
  ]
  test('refuses hostile names with a short sentence on one line', () => {
    let refused = 0
    for (const name of bad) {
      let error: unknown
      try {
        queueName(name)
      } catch (thrown) {
        error = thrown
      }
      expect(error).toBeInstanceOf(SluiceError)
      expect(error).toMatchObject({ code: 'INVALID_NAME' })
      const { message } = error as SluiceError
      expect(message.length).toBeLessThan(250)
      // No control character of the name may get into a log line.
      expect(message).not.toMatch(/\p{Cc}/u)
      refused++
    }
    expect(refused).toBe(29)
  })

  test('says that the name of a group is not the name of a queue', () => {
    for (const name of ['clicks@billing', 'a/b@c.d']) {
      expect(() => queueName(name)).toThrow(
        wrongKind(
          `${name} is a group of the stream ${streamOfGroup(name as QueueName)}, not a queue or a stream.`,
        ),
      )
      expect(() => scheduleName(name)).toThrow(
        wrongKind(`${name} is a group of the stream ${streamOfGroup(name as QueueName)}, not a schedule.`),
      )
      expect(addressName(name)).toBe(name)
    }
    for (const name of ['@', 'a@', '@b', 'a@b c', 'a@-b']) {
      expect(() => queueName(name)).toThrow(expect.objectContaining({ code: 'INVALID_NAME' }))
      expect(() => addressName(name)).toThrow(expect.objectContaining({ code: 'INVALID_NAME' }))
    }
    expect(() => groupName('a@b@c')).toThrow(expect.objectContaining({ code: 'INVALID_NAME' }))
  })

  test('accepts only the allowed ASCII characters, at the start and later', () => {
    let first = 0
    let later = 0
    for (let code = 0; code < 128; code++) {
      const character = String.fromCharCode(code)
      if (accepts(`${character}a`)) first++
      if (accepts(`a${character}`)) later++
    }
    expect(first).toBe(63)
    expect(later).toBe(67)
  })
})

function wrongKind(message: string): object {
  return expect.objectContaining({ code: 'WRONG_KIND', message }) as object
}

function accepts(name: string): boolean {
  try {
    queueName(name)
    return true
  } catch {
    return false
  }
}
