/** The checker reports each verdict for a history that deserves it, and no verdict for a correct history. */
import { afterAll, describe, expect, test } from 'vitest'
import { VERDICTS, checkHistory, findingLines, violations } from './history.js'
import type {
  CheckOptions,
  DeliverEvent,
  HistoryEvent,
  OperationOutcome,
  SettleEvent,
  Verdict,
} from './history.js'

const found = new Set<Verdict>()

const attempt = (message: string, sequence?: number): HistoryEvent => ({
  kind: 'attempt',
  queue: 'q',
  message,
  producer: 'p',
  body: `body of ${message}`,
  ...(sequence === undefined ? {} : { sequence }),
})
const outcome = (message: string, result: OperationOutcome | 'duplicate', offset?: number): HistoryEvent => ({
  kind: 'outcome',
  message,
  outcome: result,
  ...(offset === undefined ? {} : { offset }),
})
const deliver = (message: string, more: Partial<DeliverEvent> = {}): HistoryEvent => ({
  kind: 'deliver',
  queue: 'q',
  message,
  consumer: 'c',
  redelivered: false,
  ...more,
})
const settle = (message: string, more: Partial<SettleEvent> = {}): HistoryEvent => ({
  kind: 'settle',
  queue: 'q',
  message,
  consumer: 'c',
  action: 'ack',
  outcome: 'ok',
  ...more,
})
const gone = (message: string, why = 'expired'): HistoryEvent => ({ kind: 'gone', queue: 'q', message, why })
const end = (left = 0, dead = 0): HistoryEvent => ({ kind: 'end', queue: 'q', left, dead })
const ok = (message: string): HistoryEvent[] => [attempt(message), outcome(message, 'ok')]

function verdicts(events: HistoryEvent[], options?: CheckOptions): string[] {
  const report = checkHistory(events, options)
  for (const { verdict } of report.findings) found.add(verdict)
  expect(report.findings).toHaveLength(Object.values(report.counts).reduce((sum, count) => sum + count, 0))
  return report.findings.map(({ verdict, subject }) => `${verdict} ${subject}`)
}

describe('no findings', () => {
  test('published, delivered, acknowledged, drained', () => {
    const events = [...ok('a'), ...ok('b'), deliver('a'), deliver('b'), settle('a'), settle('b'), end()]
    expect(verdicts(events)).toEqual([])
    expect(checkHistory(events)).toMatchObject({
      attempted: 2,
      confirmed: 2,
      refused: 0,
      unknown: 0,
      deliveries: 2,
      delivered: 2,
      settles: 2,
      queues: 1,
    })
  })

  test('unknown and refused messages that are never delivered', () => {
    expect(
      verdicts([
        attempt('a'),
        attempt('b'),
        outcome('b', 'fail'),
        attempt('c'),
        outcome('c', 'unknown'),
        end(),
      ]),
    ).toEqual([])
  })

  test('a marked redelivery, even to another consumer that reads it before the first delivery is read', () => {
    expect(verdicts([...ok('a'), deliver('a'), deliver('a', { redelivered: true }), end()])).toEqual([])
    expect(
      verdicts([...ok('a'), deliver('a', { redelivered: true }), deliver('a', { consumer: 'd' }), end()]),
    ).toEqual([])
  })

  test('a message that was attempted before a purge may be gone', () => {
    expect(verdicts([...ok('a'), { kind: 'remove', queue: 'q', outcome: 'unknown' }, end()])).toEqual([])
  })

  test('a message that was attempted and not finished may be dead', () => {
    const events = [...ok('a'), deliver('a'), settle('a', { action: 'retry' }), end(0, 1)]
    expect(verdicts(events)).toEqual([])
  })

  test('two consumers may each receive their own ordered part of a queue', () => {
    const events = [
      ...ok('a'),
      ...ok('b'),
      deliver('b', { offset: 1 }),
      deliver('a', { offset: 0, consumer: 'd' }),
      end(),
    ]
    expect(verdicts(events)).toEqual([])
  })
})

describe('lost', () => {
  test('confirmed and never delivered', () => {
    expect(verdicts([...ok('a'), ...ok('b'), deliver('b'), end()])).toEqual(['lost a'])
  })

  test('published after a purge, or with a purge that was refused', () => {
    expect(verdicts([{ kind: 'remove', queue: 'q', outcome: 'ok' }, ...ok('a'), end()])).toEqual(['lost a'])
    expect(verdicts([...ok('a'), { kind: 'remove', queue: 'q', outcome: 'fail' }, end()])).toEqual(['lost a'])
  })

  test('delivered, released and never delivered again', () => {
    const events = [
      ...ok('a'),
      ...ok('b'),
      deliver('a'),
      deliver('b'),
      settle('b'),
      settle('a', { action: 'release' }),
      end(),
    ]
    expect(verdicts(events)).toEqual(['lost a'])
  })

  test('delivered, and acknowledged too late', () => {
    expect(verdicts([...ok('a'), deliver('a'), settle('a', { outcome: 'fail' }), end()])).toEqual(['lost a'])
  })
})

test('recovered: of unknown outcome and delivered, which is not a violation', () => {
  const events = [attempt('a'), deliver('a'), end()]
  expect(verdicts(events)).toEqual(['recovered a'])
  expect(violations(checkHistory(events))).toEqual([])
})

describe('unexpected', () => {
  test('never attempted', () => {
    expect(verdicts([deliver('a'), end()])).toEqual(['unexpected a'])
  })

  test('refused', () => {
    expect(verdicts([attempt('a'), outcome('a', 'fail'), deliver('a'), end()])).toEqual(['unexpected a'])
  })

  test('delivered from another queue, or with another body', () => {
    expect(verdicts([...ok('a'), deliver('a'), deliver('a', { queue: 'r' }), end()])).toEqual([
      'unexpected a',
    ])
    expect(verdicts([...ok('a'), deliver('a', { body: 'body of b' }), end()])).toEqual(['unexpected a'])
  })

  test('delivered after its ack was confirmed: to the same consumer, or to any consumer if the order of events is known', () => {
    const again = { redelivered: true }
    expect(verdicts([...ok('a'), deliver('a'), settle('a'), deliver('a', again), end()])).toEqual([
      'unexpected a',
    ])
    const other = [...ok('a'), deliver('a'), settle('a'), deliver('a', { ...again, consumer: 'd' }), end()]
    expect(verdicts(other)).toEqual([])
    expect(verdicts(other, { totalOrder: true })).toEqual(['unexpected a'])
  })
})

describe('duplicated', () => {
  test('delivered twice without the mark', () => {
    expect(verdicts([...ok('a'), deliver('a'), deliver('a'), end()])).toEqual(['duplicated a'])
    expect(verdicts([...ok('a'), deliver('a'), deliver('a', { consumer: 'd' }), end()])).toEqual([
      'duplicated a',
    ])
  })

  test('delivered first with the mark, then without it', () => {
    const events = [...ok('a'), deliver('a', { redelivered: true }), deliver('a'), end()]
    expect(verdicts(events)).toEqual(['duplicated a'])
  })

  test('accepted at two offsets', () => {
    const again = deliver('a', { offset: 1, redelivered: true })
    expect(verdicts([...ok('a'), deliver('a', { offset: 0 }), again, end()])).toEqual(['duplicated a'])
    expect(verdicts([attempt('a'), outcome('a', 'ok', 0), deliver('a', { offset: 1 }), end()])).toEqual([
      'duplicated a',
    ])
    expect(verdicts([attempt('a'), deliver('a', { offset: 1 }), outcome('a', 'ok', 0), end()])).toEqual([
      'duplicated a',
    ])
  })
})

describe('reordered', () => {
  test('by offset', () => {
    const events = [...ok('a'), ...ok('b'), deliver('b', { offset: 1 }), deliver('a', { offset: 0 }), end()]
    expect(verdicts(events)).toEqual(['reordered a'])
  })

  test('by the order of sending', () => {
    const events = [attempt('a', 1), attempt('b', 2), deliver('b'), deliver('a'), end()]
    expect(verdicts(events)).toEqual(['reordered a', 'recovered a', 'recovered b'])
  })

  test('not by repeated deliveries', () => {
    const repeat = deliver('a', { offset: 0, redelivered: true })
    expect(verdicts([...ok('a'), ...ok('b'), deliver('b', { offset: 1 }), repeat, end()])).toEqual([])
  })
})

describe('stuck', () => {
  test('messages are left', () => {
    expect(verdicts([...ok('a'), end(1)])).toEqual(['stuck q'])
  })

  test('never drained', () => {
    expect(verdicts([...ok('a'), deliver('a')])).toEqual(['stuck q'])
  })
})

describe('lanes, duplicates and messages that are gone', () => {
  const lane = (message: string, sequence: number, lane: string | null): HistoryEvent[] => [
    { ...attempt(message, sequence), lane } as HistoryEvent,
    outcome(message, 'ok'),
  ]

  test('messages may overtake those of other lanes, but not those of their own lane', () => {
    const sent = [...lane('a', 1, 'x'), ...lane('b', 2, 'x'), ...lane('c', 3, 'y')]
    const done = [settle('a'), settle('b'), settle('c'), end()]
    const at = (message: string, offset: number): HistoryEvent => deliver(message, { offset })
    expect(verdicts([...sent, at('c', 2), at('a', 0), at('b', 1), ...done])).toEqual([])
    expect(verdicts([...sent, at('b', 1), at('c', 2), at('a', 0), ...done])).toEqual(['reordered a'])
  })

  test('a message with its own due time has no order', () => {
    const sent = [...lane('a', 1, null), ...lane('b', 2, null)]
    const seen = [deliver('b', { offset: 1 }), deliver('a', { offset: 0 })]
    expect(verdicts([...sent, ...seen, settle('a'), settle('b'), end()])).toEqual([])
  })

  test('a duplicate is not delivered', () => {
    const sent = [...ok('a'), attempt('b'), outcome('b', 'duplicate')]
    expect(verdicts([...sent, deliver('a'), settle('a'), end()])).toEqual([])
    expect(verdicts([...sent, deliver('a'), deliver('b'), settle('a'), settle('b'), end()])).toEqual([
      'unexpected b',
    ])
    expect(checkHistory(sent).duplicates).toBe(1)
  })

  test('a message that left according to the record of the broker is not lost', () => {
    expect(verdicts([...ok('a'), gone('a'), end()])).toEqual([])
    expect(
      verdicts([...ok('a'), deliver('a'), settle('a', { action: 'release' }), gone('a'), end()]),
    ).toEqual([])
    expect(checkHistory([...ok('a'), gone('a')]).gone).toBe(1)
  })

  test('a message that was never accepted cannot be gone', () => {
    expect(verdicts([gone('a'), end()])).toEqual(['unexpected a'])
    expect(verdicts([attempt('a'), outcome('a', 'fail'), gone('a'), end()])).toEqual(['unexpected a'])
    expect(verdicts([attempt('a'), outcome('a', 'duplicate'), gone('a'), end()])).toEqual(['unexpected a'])
  })
})

test('the history itself is checked', () => {
  expect(() => checkHistory([attempt('a'), attempt('a')])).toThrow('names message a twice')
  expect(() => checkHistory([outcome('a', 'ok')])).toThrow('no attempt of message a')
})

test('only the first findings are printed, one per line', () => {
  const events = [...Array.from({ length: 12 }, (_, index) => deliver(`m${index}`)), end()]
  const lines = findingLines(checkHistory(events).findings, 2).split('\n')
  expect(lines).toEqual([
    'unexpected q m0: it was delivered but never attempted',
    'unexpected q m1: it was delivered but never attempted',
    'and 10 more',
  ])
})

afterAll(() => {
  expect([...found].sort()).toEqual([...VERDICTS].sort())
})
