import { expect, test } from 'vitest'
import type { Entry } from './book.js'
import { judge, type Counts, type Evidence } from './judgement.js'
import type { Order } from './orders.js'
import type { Done, Report, Step } from './reports.js'

const CHECKS = 16
/** The order whose card is declined once, and then accepted. */
const DECLINED = 'order-01'
/** The order whose card has expired. */
const EXPIRED = 'order-03'
/** The order that the shop sends twice. */
const REPEATED = 'order-04'
/** The order that a worker was handling when it was killed. */
const CRASHED = 'order-38'
/** An order that the same worker held and had not started. */
const NEIGHBOUR = 'order-39'
/** The express order. */
const EXPRESS = 'order-40'

const placed: readonly Order[] = Array.from({ length: 40 }, (_, index) => ({
  id: `order-${String(index + 1).padStart(2, '0')}`,
  customer: index === 39 ? 'Edda' : `customer ${index % 10}`,
  item: 'a lamp',
  total: 10,
  express: false,
  card: 'good',
  remindAfter: '10m',
}))
const waiting = placed.slice(20, -1).map(({ id }) => id)

/** The evidence of a run without failures. */
function evidence(): Evidence & { books: Record<Step, Entry[]>; reports: (Report & { by: string })[] } {
  // The express order precedes the waiting orders. The order with the expired card is last.
  const plain = placed.map(({ id }) => id).filter((id) => id !== EXPIRED && id !== EXPRESS)
  const sequence = [...plain.slice(0, 19), EXPRESS, ...plain.slice(19), EXPIRED]
  const entries = (): Entry[] => sequence.map((id) => ({ id, by: 'a worker' }))
  const done = (
    step: Step,
    order: string,
    more: Partial<Done & { by: string }> = {},
  ): Done & { by: string } => ({
    kind: 'done',
    step,
    order,
    attempt: order === DECLINED ? 2 : 1,
    redelivered: [DECLINED, EXPIRED, NEIGHBOUR].includes(order),
    before: false,
    by: order === CRASHED ? 'payment 1' : 'payment 2',
    ...more,
  })
  return {
    placed,
    books: {
      charged: entries(),
      picked: entries(),
      mailed: entries(),
      reminded: [{ id: EXPIRED, by: 'a worker' }],
    },
    reports: [
      { kind: 'placed', order: REPEATED, duplicate: true, by: 'shop' },
      { kind: 'declined', order: DECLINED, retryAfter: '1s', by: 'payment 1' },
      { kind: 'refused', order: EXPIRED, reason: 'expired', by: 'payment 1' },
      ...sequence.map((id) => done('charged', id)),
      done('charged', CRASHED, { by: 'payment 2', attempt: 2, redelivered: true, before: true }),
    ],
    history: [
      ...(['charged', 'picked', 'mailed'] as const).flatMap((step) =>
        sequence.map((order) => ({ order, step, total: 10 })),
      ),
      { order: EXPIRED, step: 'reminded', total: 10 },
    ],
    queues: [
      counts('payments', { published: 40, duplicates: 1, acked: 40, redelivered: 4 }),
      counts('picking', { published: 40, acked: 40 }),
      counts('mails', { published: 40, acked: 40 }),
      counts('reminders', { published: 40, duplicates: 1, acked: 1, cancelled: 39 }),
    ],
    redriven: 1,
    longest: 30,
    overtaking: { order: EXPRESS, waiting },
    crash: { order: CRASHED, worker: 'payment 1', neighbours: [NEIGHBOUR] },
  }
}

function counts(name: string, some: Partial<Counts>): Counts {
  const none = { published: 0, duplicates: 0, acked: 0, cancelled: 0, redelivered: 0 }
  return { name, ...none, ready: 0, scheduled: 0, leased: 0, dead: 0, ...some }
}

function failures(evidence: Evidence): string[] {
  const checks = judge(evidence)
  expect(checks).toHaveLength(CHECKS)
  return checks.filter(({ isGood }) => !isGood).map(({ text }) => text)
}

test('finds nothing if all went well', () => {
  expect(failures(evidence())).toEqual([])
})

test('finds an order that was charged twice, and one that was not charged', () => {
  const twice = evidence()
  twice.books.charged.push({ id: 'order-07', by: 'a worker' })
  expect(failures(twice)).toContain('39 of 40 orders charged exactly once')
  const never = evidence()
  never.books.mailed.pop()
  expect(failures(never)).toEqual(['39 of 40 orders mailed exactly once'])
})

test('finds orders of one customer that were charged the wrong way round', () => {
  const swapped = evidence()
  const { charged } = swapped.books
  const [a, b] = ['order-05', 'order-15'].map((id) => charged.findIndex((entry) => entry.id === id))
  ;[charged[a!], charged[b!]] = [charged[b!]!, charged[a!]!]
  expect(failures(swapped)).toEqual([
    'charged in order for each of 11 customers: 28 pairs of orders, 1 the wrong way round',
  ])
})

test('finds a charged attempt of a neighbour of the crash, and work that was done a second time', () => {
  const blamed = evidence()
  blamed.reports = blamed.reports.map((report) =>
    report.kind === 'done' && report.order === NEIGHBOUR ? { ...report, attempt: 2 } : report,
  )
  expect(failures(blamed)).toEqual(['0 of its 1 neighbours came back with no try counted'])
  const again = evidence()
  again.reports = again.reports.map((report) =>
    report.kind === 'done' && report.before ? { ...report, before: false } : report,
  )
  expect(failures(again)).toHaveLength(2)
})

test('finds what the broker still holds, and one reminder too many', () => {
  const held = evidence()
  const [payments, ...others] = held.queues
  expect(failures({ ...held, queues: [{ ...payments!, leased: 1, dead: 1 }, ...others] })).toEqual([
    '1 dead letter, 1 redriven, 1 left',
    'the counts of 3 of 4 queues add up',
  ])
  const reminded = evidence()
  reminded.books.reminded.push({ id: 'order-02', by: 'a worker' })
  expect(failures(reminded)).toEqual(['2 reminder sent, 39 cancelled'])
})

test('finds an express order that was delivered last', () => {
  const late = evidence()
  late.books.charged = [
    ...late.books.charged.filter(({ id }) => id !== EXPRESS),
    { id: EXPRESS, by: 'a worker' },
  ]
  expect(failures(late)).toEqual(['the express order overtook 0 of 19 waiting orders'])
})

test('finds a happening that is missing, one that is there twice, and two in the wrong order', () => {
  const { history } = evidence()
  const broken = [
    history.slice(1),
    [...history, history[0]!],
    [history.at(-2)!, ...history.slice(0, -2), history.at(-1)!],
  ]
  expect(broken.map((history) => failures({ ...evidence(), history }))).toEqual([
    ['the history has 120 happenings; the steps of 39 of 40 orders are complete and in order'],
    ['the history has 122 happenings; the steps of 39 of 40 orders are complete and in order'],
    ['the history has 121 happenings; the steps of 39 of 40 orders are complete and in order'],
  ])
})
