/** Texts of the command line: tables, suggestions, escaped text, failures. */
import { ERRORS, SluiceError, type ErrorCode, type Progress } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { EXIT, UsageError, failureOf, failureText, type Failure } from './failure.js'
import { counted, printable } from './output.js'
import { editDistance, nearest } from './spelling.js'
import { list, table } from './table.js'

test('a table right-aligns numbers and has no trailing spaces', () => {
  const columns = [
    { title: 'NAME', value: ({ name }: { name: string; ready: number }) => name },
    { title: 'READY', value: ({ ready }: { ready: number }) => ready },
  ]
  const rows = [
    { name: 'orders', ready: 7 },
    { name: 'a\u001b[31m', ready: 1_234_567 },
  ]
  expect(table(columns, rows)).toBe('NAME           READY\norders             7\na\\u{1b}[31m  1234567\n')
  expect(
    list([
      ['name', 'a'],
      ['consumers', 12],
    ]),
  ).toBe('name       a\nconsumers  12\n')
})

test('the nearest word is suggested only if it is similar', () => {
  const words = ['serve', 'queue', 'publish', 'consume', 'bench']
  expect(nearest('consum', words)).toBe('consume')
  expect(nearest('qeueu', words)).toBe('queue')
  expect(nearest('Publsih', words)).toBe('publish')
  expect(nearest('frobnicate', words)).toBeUndefined()
  expect(nearest('test', ['host'])).toBeUndefined()
  expect(nearest('x', [])).toBeUndefined()
  expect(nearest('data', ['port', 'data-dir'])).toBe('data-dir')
  expect(nearest('max', ['max-connections', 'max-message-bytes'])).toBeUndefined()
  expect(editDistance('', 'abc')).toBe(3)
  expect(editDistance('lsit', 'list')).toBe(1)
})

test('control characters are escaped', () => {
  expect(printable('a\nb\u001b[31m\u009b\u2028\u202eä漢')).toBe(
    'a\\nb\\u{1b}[31m\\u{9b}\\u{2028}\\u{202e}ä漢',
  )
  expect(counted(1, 'message')).toBe('1 message')
  expect(counted(12_345, 'queue')).toBe('12,345 queues')
})

describe('failures', () => {
  const codes = Object.keys(ERRORS) as ErrorCode[]

  test('every error code has an exit code and one line of advice', () => {
    const exits = new Set<number>(Object.values(EXIT))
    for (const code of codes) {
      const failure = failureOf(new SluiceError(code, 'What happened.'))
      expect(exits).toContain(failure.exit)
      expect(failure.exit).not.toBe(EXIT.ok)
      expect(failure.advice).toMatch(/^\S.*\.$/)
    }
    expect(codes.length).toBeGreaterThan(40)
  })

  test('each class of errors has an exit code', () => {
    const exit = (code: ErrorCode): number => failureOf(new SluiceError(code, '')).exit
    expect(exit('INVALID_NAME')).toBe(2)
    expect(exit('QUEUE_NOT_FOUND')).toBe(4)
    expect(exit('AUTH_FAILED')).toBe(5)
    expect(exit('UNREACHABLE')).toBe(6)
    expect(exit('CONNECTION_LOST')).toBe(6)
    expect(exit('QUEUE_CONFLICT')).toBe(1)
    expect(failureOf(new UsageError('What.', 'How.')).exit).toBe(2)
  })

  test('the advice after partial work says how to continue', () => {
    const cut = (progress: Progress): Failure =>
      failureOf(new SluiceError('DISK_LOW', 'No room.', { outcome: 'partial', progress }))
    const plain = failureOf(new SluiceError('DISK_LOW', 'No room.')).advice
    const replay = cut({ matched: 7, replayed: 7, cursor: '1:2:3:4:5:6:7' })
    expect(failureText(replay, false)).toBe(
      `error: No room.\n hint: ${plain} To continue where this command ended, run it again with --cursor 1:2:3:4:5:6:7\n`,
    )
    expect(JSON.parse(failureText(replay, true))).toEqual({
      error: {
        code: 'DISK_LOW',
        message: 'No room.',
        advice: replay.advice,
        outcome: 'partial',
        progress: { matched: 7, replayed: 7, cursor: '1:2:3:4:5:6:7' },
      },
    })
    expect(cut({ matched: 7, redriven: 7, guarded: 0 }).advice).toBe(
      `${plain} Run the same command again: it continues with the rest.`,
    )
  })

  test('a system error is worded as a sentence', () => {
    const taken = Object.assign(new Error('listen EADDRINUSE: address already in use 127.0.0.1:7420'), {
      code: 'EADDRINUSE',
      syscall: 'listen',
      address: '127.0.0.1',
      port: 7420,
    })
    expect(failureOf(taken)).toMatchObject({
      exit: 1,
      what: 'The broker cannot listen on 127.0.0.1:7420: the port is in use.',
    })
    const missing = Object.assign(new Error("ENOENT: no such file or directory, open 'x'"), {
      code: 'ENOENT',
    })
    expect(failureOf(missing).what).toBe("No such file or directory: open 'x'.")
  })

  test('any other error is unexpected, and printed on two lines', () => {
    const failure = failureOf(new TypeError('a\nb'))
    expect(failure).toMatchObject({ exit: 1, code: 'UNEXPECTED', what: 'TypeError: a\\nb' })
    expect(failureText(failure, false)).toMatch(/^error: .*\n hint: .*\n$/)
    expect(JSON.parse(failureText(failure, true))).toMatchObject({ error: { code: 'UNEXPECTED' } })
    expect(failureOf('thrown text').what).toBe('Error: thrown text')
  })
})
