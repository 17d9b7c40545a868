/**
 * Judges a run of the store: compares the books of the workers, their reports and the broker's counters with the placed
 * orders. It is a pure function, so that a test can pass it failures that never happen.
 */
import type { QueueInfo } from '@sluice/client'
import type { Entry } from './book.js'
import { Mails, Payments, Picking, Reminders, type Happening, type Order } from './orders.js'
import type { Report, Step } from './reports.js'

/** An express order: placed last, delivered first. */
export interface Overtaking {
  readonly order: string
  /** Orders that were unpaid when the express order was placed. */
  readonly waiting: readonly string[]
}

/** A worker was killed after it charged an order and before it acknowledged that order. */
export interface Crash {
  readonly order: string
  readonly worker: string
  /** Other orders that the worker held and had not started. */
  readonly neighbours: readonly string[]
}

/** The broker's counts of a queue at the end. */
export type Counts = Pick<
  QueueInfo,
  | 'name'
  | 'published'
  | 'duplicates'
  | 'acked'
  | 'cancelled'
  | 'redelivered'
  | 'ready'
  | 'scheduled'
  | 'leased'
  | 'dead'
>

export interface Evidence {
  /** The orders in the sequence in which customers placed them. */
  readonly placed: readonly Order[]
  /** The entries of each step, in the order of the work. */
  readonly books: Readonly<Record<Step, readonly Entry[]>>
  readonly reports: readonly (Report & { readonly by: string })[]
  /** What the analyst read from the stream, from its beginning. */
  readonly history: readonly Happening[]
  readonly queues: readonly Counts[]
  /** Number of redriven dead letters. */
  readonly redriven: number
  /** The largest number of ready messages seen in the queue of payments. */
  readonly longest: number
  readonly overtaking: Overtaking
  readonly crash: Crash
}

export interface Check {
  readonly text: string
  readonly isGood: boolean
}

/** The steps of an order, in their order. An unpaid order is also reminded. */
const WORK = ['charged', 'picked', 'mailed'] as const satisfies Step[]
const LONGEST_MIN = 20
const WAITING_MIN = 10

export function judge(evidence: Evidence): Check[] {
  const { placed, books, reports, history, queues, redriven, longest, overtaking, crash } = evidence
  const count = placed.length
  const ids = placed.map(({ id }) => id)
  const done = reports.filter((report) => report.kind === 'done')
  const charges = done.filter(({ step }) => step === 'charged')
  const refused = reports.filter(({ kind }) => kind === 'refused').map((report) => idOf(report))
  const declined = reports.filter(({ kind }) => kind === 'declined').map((report) => idOf(report))
  const checks: Check[] = []
  const check = (isGood: boolean, text: string): void => {
    checks.push({ text, isGood })
  }

  for (const step of WORK) {
    const { once, strangers } = tally(ids, books[step])
    check(once === count && strangers === 0, `${once} of ${count} orders ${step} exactly once`)
  }

  const { pairs, broken, customers } = sequences(placed, books.charged, new Set(refused))
  check(
    pairs > 0 && broken === 0,
    `charged in order for each of ${customers} customers: ${pairs} pairs of orders, ${broken} the wrong way round`,
  )

  const duplicates = reports.filter((report) => report.kind === 'placed' && report.duplicate).length
  check(
    duplicates === 1,
    `${duplicates} order sent twice by the shop, and reported as a duplicate by its receipt`,
  )

  const recovered = charges.filter(({ order, attempt }) => declined.includes(order) && attempt === 2).length
  check(
    declined.length === 1 && recovered === 1,
    `${declined.length} card declined, ${recovered} of them charged on try 2`,
  )

  const dead = queues.reduce((sum, queue) => sum + queue.dead, 0)
  check(
    refused.length === 1 && redriven === 1 && dead === 0,
    `${refused.length} dead letter, ${redriven} redriven, ${dead} left`,
  )

  const reminded = books.reminded.map(({ id }) => id)
  const reminders = queues.find(({ name }) => name === Reminders.name)
  check(
    reminded.length === 1 && reminded[0] === refused[0] && reminders?.cancelled === count - 1,
    `${reminded.length} reminder sent, ${reminders?.cancelled} cancelled`,
  )

  check(longest >= LONGEST_MIN, `the queue of payments grew to ${longest} and was emptied`)

  const places = new Map(books.charged.map(({ id }, index) => [id, index]))
  const place = places.get(overtaking.order) ?? Infinity
  const overtaken = overtaking.waiting.filter((id) => (places.get(id) ?? -1) > place).length
  check(
    overtaking.waiting.length >= WAITING_MIN && overtaken >= overtaking.waiting.length / 2,
    `the express order overtook ${overtaken} of ${overtaking.waiting.length} waiting orders`,
  )

  const tries = charges.filter(({ order }) => order === crash.order)
  const [first, second] = tries
  check(
    tries.length === 2 &&
      first?.by === crash.worker &&
      !first.before &&
      second?.attempt === 2 &&
      second.redelivered &&
      second.before &&
      second.by !== crash.worker,
    `the order of the crash was tried ${tries.length} times, charged ${tries.filter(({ before }) => !before).length} time`,
  )

  const neighbours = charges.filter(({ order }) => crash.neighbours.includes(order))
  const unblamed = neighbours.filter(
    ({ attempt, redelivered, before, by }) => attempt === 1 && redelivered && !before && by !== crash.worker,
  ).length
  check(
    unblamed > 0 && unblamed === crash.neighbours.length && neighbours.length === unblamed,
    `${unblamed} of its ${crash.neighbours.length} neighbours came back with no try counted`,
  )

  const payments = queues.find(({ name }) => name === Payments.name)
  const expected = declined.length + redriven + 1 + crash.neighbours.length
  check(
    payments?.redelivered === expected,
    `${payments?.redelivered} payments came back, ${expected} of them with a reason: a card, the operator, the crash`,
  )

  const before = done.filter((report) => report.before).length
  check(
    before === 1,
    `${done.length} handlers finished, ${before} of them found the work already done, after the crash`,
  )

  const told = steps(ids, history)
  check(
    told === count && history.length === count * WORK.length + refused.length,
    `the history has ${history.length} happenings; the steps of ${told} of ${count} orders are complete and in order`,
  )

  const sums = [Payments, Picking, Mails, Reminders].map(({ name }) => {
    const queue = queues.find((queue) => queue.name === name)
    if (queue === undefined) return false
    const { published, acked, cancelled, ready, scheduled, leased } = queue
    return published === count && acked + cancelled === count && ready + scheduled + leased === 0
  })
  const good = sums.filter(Boolean).length
  check(good === sums.length, `the counts of ${good} of ${sums.length} queues add up`)
  return checks
}

function idOf(report: Report): string {
  return 'order' in report ? report.order : ''
}

function tally(ids: readonly string[], entries: readonly Entry[]): { once: number; strangers: number } {
  const times = new Map(ids.map((id) => [id, 0]))
  let strangers = 0
  for (const { id } of entries) {
    const before = times.get(id)
    if (before === undefined) strangers++
    else times.set(id, before + 1)
  }
  return { once: [...times.values()].filter((count) => count === 1).length, strangers }
}

/** Number of orders for which the history has each step of the work once, and in their order. */
function steps(ids: readonly string[], history: readonly Happening[]): number {
  const byOrder = new Map<string, Step[]>()
  for (const { order, step } of history) {
    if (step !== 'reminded') byOrder.set(order, [...(byOrder.get(order) ?? []), step])
  }
  return ids.filter((id) => byOrder.get(id)?.join() === WORK.join()).length
}

/**
 * Compares the sequence of each customer's orders with that in the book, pair by pair. A redriven order is skipped,
 * because it is placed at the end of its customer's line.
 */
function sequences(
  placed: readonly Order[],
  entries: readonly Entry[],
  refused: ReadonlySet<string>,
): { pairs: number; broken: number; customers: number } {
  const places = new Map(entries.map(({ id }, index) => [id, index]))
  const last = new Map<string, number>()
  let pairs = 0
  let broken = 0
  for (const { id, customer } of placed) {
    const place = places.get(id)
    if (place === undefined || refused.has(id)) continue
    const before = last.get(customer)
    if (before !== undefined) {
      pairs++
      if (before > place) broken++
    }
    last.set(customer, place)
  }
  return { pairs, broken, customers: last.size }
}

/** The broker's counts as a printable table. */
export function table(queues: readonly Counts[]): string {
  const columns = ['published', 'duplicates', 'acked', 'cancelled', 'redelivered', 'dead'] as const
  const head = ['queue'.padEnd(9), ...columns].join('  ')
  const rows = queues.map((queue) =>
    [queue.name.padEnd(9), ...columns.map((column) => String(queue[column]).padStart(column.length))].join(
      '  ',
    ),
  )
  return [head, ...rows].join('\n')
}
