import { clipText, LIMITS, OUTCOME } from '@sluice/protocol'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Sluice } from './client.js'
import { attempt, callHandler, endingOf, reasonOf, Thrown, type Follower } from './endings.js'
import { DeadLetter, Retry, type Message } from './message.js'
import { Peer, turns, until } from './testing/peer.js'

const THEN: string = ['th', 'en'].join('')
const thenable = (then: unknown): object => Object.fromEntries([[THEN, then]])

const throwing = (): never => {
  throw new Error('a look at it')
}

const revoked = (): object => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

const withMessage = (error: Error, message: unknown): Error =>
  Object.defineProperty(error, 'message', { value: message })

const cycle = (): Error => {
  const error = new Error('outer')
  error.cause = new Error('inner', { cause: error })
  return error
}

/** Values that a handler throws, and the reason for which its message fails. */
const thrown: [unknown, string][] = [
  [undefined, 'undefined'],
  [null, 'null'],
  [0, '0'],
  ['', ''],
  [1n, '1'],
  [Symbol('s'), 'Symbol(s)'],
  [() => {}, '() => {}'],
  [{ a: 1 }, '[object Object]'],
  [new Error('plain'), 'plain'],
  [new Error(''), 'Error'],
  [cycle(), 'outer'],
  [withMessage(new Error('x'), 5), '5'],
  [withMessage(new Error('x'), { code: 1 }), '[object Object]'],
  [withMessage(new Error('x'), undefined), 'undefined'],
  [withMessage(new Error('x'), Symbol('m')), 'Symbol(m)'],
  [new Error('half \ud83c'), 'half \ufffd'],
  [new Error('ü'.repeat(5000)), 'ü'.repeat(2048)],
]

const NO_TEXT = 'The handler threw a value that has no text.'
const textless: unknown[] = [
  Object.create(null),
  { toString: throwing },
  revoked(),
  new Proxy({}, { get: throwing, getPrototypeOf: throwing, has: throwing }),
  Object.defineProperty(new Error('x'), 'message', { get: throwing }),
  withMessage(new Error('x'), Object.create(null)),
]

describe('a thrown value', () => {
  it('always has text that can be sent', () => {
    for (const [value, reason] of thrown) expect(reasonOf(value)).toBe(reason)
    for (const value of textless) expect(reasonOf(value)).toBe(NO_TEXT)
    expect(thrown).toHaveLength(17)
    expect(reasonOf(new Error('x'.repeat(5_000_000)))).toHaveLength(LIMITS.reasonBytesMax)
  })

  it('keeps its decision, without an invalid delay or reason', () => {
    const { deadLetter, retry } = OUTCOME
    const end = (error: unknown): unknown[] => {
      const { outcome, delayMs, reason, isFailure } = endingOf(error)
      return [outcome, delayMs, reason, isFailure]
    }
    expect(end(new DeadLetter('gone'))).toEqual([deadLetter, undefined, 'gone', false])
    expect(end(new DeadLetter('\udc00'))).toEqual([deadLetter, undefined, '\ufffd', false])
    expect(end(withMessage(new DeadLetter('x'), 5))).toEqual([deadLetter, undefined, '5', false])
    expect(end(new Retry({ delay: 5, reason: 'busy' }))).toEqual([retry, 5, 'busy', false])
    for (const delayMs of [NaN, -1, 1.5, Infinity, '5', null, LIMITS.delayMsMax + 1])
      expect(end(Object.assign(new Retry(), { delayMs }))).toEqual([retry, undefined, undefined, false])
    for (const wrong of ['busy', null, { delayMs: 5 }, { reason: 'x', after: 1 }])
      expect(() => new Retry(wrong as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    expect(endingOf(new Retry({ pauseKey: true })).detail).toBe('pauseKey')
    expect(endingOf(new Retry({ pauseKey: false })).detail).toBeUndefined()
    expect(() => new Retry({ pauseKey: 1 as never })).toThrow(
      '`pauseKey` of `Retry` is 1; it must be true or false.',
    )
    const broken = Object.defineProperty(new DeadLetter('x'), 'message', { get: throwing })
    expect(end(broken)).toEqual([retry, undefined, NO_TEXT, true])
  })
})

describe('a call of user code', () => {
  type Call = (value?: unknown) => void
  const NOW = 'now'
  const calls: [call: () => unknown, end: string, whenFollowed: string][] = [
    [() => 5, NOW, 'nothing'],
    [throwing, 'thrown', 'failed'],
    [() => Promise.resolve(5), 'done', 'nothing'],
    [() => Promise.reject(new Error('later')), 'failed', 'failed'],
    [() => thenable(throwing), 'failed', 'failed'],
    [() => revoked(), 'thrown', 'failed'],
    [() => Object.create(Promise.prototype) as unknown, 'thrown', 'failed'],
    [
      () =>
        thenable((done: Call, failed: Call) => {
          done()
          failed()
          done()
          throwing()
        }),
      'done',
      'nothing',
    ],
  ]

  it('always ends exactly once, and throws nothing', async () => {
    for (const [call, expected] of calls) {
      const ends: string[] = []
      const follower: Follower = {
        ended: undefined,
        done: () => ends.push('done'),
        failed: () => ends.push('failed'),
      }
      let followed = 0
      const caller = { follower: () => (followed++, follower), unfollowed: () => followed-- }
      const end = callHandler(call, undefined, undefined, caller)
      if (end === undefined) ends.push(NOW)
      else if (end instanceof Thrown) ends.push('thrown')
      expect(followed).toBe(end === follower ? 1 : 0)
      await turns()
      expect(ends).toEqual([expected])
    }
    expect(calls).toHaveLength(8)
  })

  it('reports a failure exactly once, whether it comes at once or later, and reports nothing else', async () => {
    for (const [call, , expected] of calls) {
      const failures: string[] = []
      attempt(call, () => failures.push('failed'))
      await turns()
      expect(failures).toEqual(expected === 'failed' ? ['failed'] : [])
    }
  })
})

let peer: Peer
let sluice: Sluice

beforeEach(async () => {
  peer = new Peer()
  sluice = await peer.connect()
})

afterEach(async () => {
  await sluice.close({ timeout: 1 }).catch(() => {})
})

const outcomes = async (count: number): Promise<[number, number, string | undefined][]> => {
  const settled = (): [number, number, string | undefined][] =>
    peer.link.settles.flatMap(({ firstTag, count, outcome, reason }) =>
      Array.from({ length: count }, (_, i): [number, number, string | undefined] => [
        firstTag + i,
        outcome,
        reason,
      ]),
    )
  await until(() => settled().length >= count)
  await turns()
  return settled().toSorted(([a], [b]) => a - b)
}

type Options = [name: string, options: object]
const KINDS: Options[] = [
  ['single messages', { concurrency: 4, prefetch: 100 }],
  ['batches', { batch: { size: 1 }, concurrency: 4, prefetch: 100 }],
  ['keys', { ordering: 'key', concurrency: 4, prefetch: 100 }],
]

for (const [kind, options] of KINDS) {
  describe(`a worker of ${kind}`, () => {
    const consume = (handler: (body: string) => unknown): void => {
      const handle = (given: Message | Message[]): unknown =>
        handler((Array.isArray(given) ? given[0]! : given).body as string)
      sluice.consume('q', options as never, handle as never)
    }

    it('fails a message for any value that its handler throws, at once or later, and continues', async () => {
      const all = [...thrown.map(([value]) => value), ...textless]
      sluice.on('handlerError', () => {})
      consume((body) => {
        const [how, index] = body.split(' ')
        if (how === 'done') return undefined
        const value = all[Number(index)]
        if (how === 'sync') throw value
        return Promise.reject(value)
      })
      const channel = await peer.subscribed()
      const bodies = all.flatMap((_, i) => [`sync ${i}`, `async ${i}`])
      const first = peer.link.deliver(channel, 101, [...bodies, 'done'])
      const ends = await outcomes(bodies.length + 1)
      // On the wire, an empty string means that there is no reason.
      const reasons = all.flatMap((value) => Array(2).fill(reasonOf(value) || undefined))
      expect(ends).toEqual([
        ...reasons.map((reason, i) => [first + i, OUTCOME.retry, reason]),
        [first + bodies.length, OUTCOME.ack, undefined],
      ])
    })

    it('follows the result of its handler as await does', async () => {
      sluice.on('handlerError', () => {})
      type Call = (value?: unknown) => void
      const returned: [unknown, boolean][] = [
        [thenable(throwing), false],
        [Object.defineProperty({}, THEN, { get: throwing }), false],
        [revoked(), false],
        [Object.create(Promise.prototype), false],
        [Object.defineProperty(Promise.resolve(), 'constructor', { get: throwing }), false],
        [thenable((done: Call) => done(Promise.reject(new Error('inner')))), false],
        [thenable((_: Call, failed: Call) => failed()), false],
        [
          thenable((done: Call) => {
            done()
            throwing()
          }),
          true,
        ],
        [thenable((done: Call, failed: Call) => failed(done())), true],
        [thenable(5), true],
        [
          Object.assign(
            () => {},
            thenable((done: Call) => setImmediate(done)),
          ),
          true,
        ],
        [() => {}, true],
        [Object.create(null), true],
        [Symbol('s'), true],
      ]
      consume((body) => returned[Number(body)]![0])
      const channel = await peer.subscribed()
      const first = peer.link.deliver(
        channel,
        101,
        returned.map((_, i) => String(i)),
      )
      const ends = await outcomes(returned.length)
      expect(ends.map(([tag, outcome]) => [tag, outcome])).toEqual(
        returned.map(([, isDone], i) => [first + i, isDone ? OUTCOME.ack : OUTCOME.retry]),
      )
      expect(ends).toHaveLength(14)
    })

    it('acknowledges no other message when a thenable calls back a second time', async () => {
      let again: (() => void) | undefined
      let fail: ((error: Error) => void) | undefined
      sluice.on('handlerError', () => {})
      consume((body) => {
        if (body === 'fails') return new Promise((_, reject) => (fail = reject))
        return thenable((done: () => void) => {
          again = done
          done()
        })
      })
      const channel = await peer.subscribed()
      const first = peer.link.deliver(channel, 101, ['twice'])
      await outcomes(1)
      peer.link.deliver(channel, 101, ['fails'], { offset: 1 })
      await until(() => fail !== undefined)
      again!()
      await turns()
      fail!(new Error('it failed'))
      expect(await outcomes(2)).toEqual([
        [first, OUTCOME.ack, undefined],
        [first + 1, OUTCOME.retry, 'it failed'],
      ])
    })
  })
}

describe('a reason', () => {
  it('of a settle must be text, or the message is not settled', async () => {
    let message: Message | undefined
    sluice.consume('q', { concurrency: 1 }, (given) => {
      message = given
      return new Promise(() => {})
    })
    const channel = await peer.subscribed()
    const tag = peer.link.deliver(channel, 101, ['a'])
    await until(() => message !== undefined)
    for (const reason of [5, null, { a: 1 }, Symbol('x'), 'half \ud83c']) {
      expect(() => message!.deadLetter(reason as string)).toThrow(/reason/)
      expect(() => message!.retry({ reason: reason as string })).toThrow(/reason/)
    }
    void message!.deadLetter('ü'.repeat(3000))
    expect(await outcomes(1)).toEqual([
      [tag, OUTCOME.deadLetter, clipText('ü'.repeat(3000), LIMITS.reasonBytesMax)],
    ])
  })
})

describe('a listener', () => {
  it('that fails becomes a warning, and stops neither the others nor the process', async () => {
    const warnings = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    let heard = 0
    sluice.on('handlerError', throwing)
    const listener: () => unknown = () => Promise.reject(revoked())
    sluice.on('handlerError', listener)
    sluice.on('handlerError', () => heard++)
    sluice.consume('q', { concurrency: 1 }, throwing)
    const channel = await peer.subscribed()
    peer.link.deliver(channel, 101, ['a', 'b'])
    await outcomes(2)
    expect(heard).toBe(2)
    const texts = warnings.mock.calls.map(([text]) => String(text))
    warnings.mockRestore()
    expect(texts.toSorted()).toEqual([
      `A listener of 'handlerError' failed: ${NO_TEXT}`,
      `A listener of 'handlerError' failed: ${NO_TEXT}`,
      "A listener of 'handlerError' failed: a look at it",
      "A listener of 'handlerError' failed: a look at it",
    ])
  })
})
