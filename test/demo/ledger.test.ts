import type { QueueInfo } from '@sluice/client'
import { expect, test } from 'vitest'
import { Delays } from './delays.js'
import { Ledger } from './ledger.js'

// There are two producers: the first publishes records 0 and 1, the second records 2 and 3.
const COUNT = 4
const WORKER = 0

const drained = {
  published: COUNT,
  acked: COUNT,
  ready: 0,
  scheduled: 0,
  leased: 0,
  dead: 0,
} as QueueInfo

const truth = new Delays()
for (let record = 0; record < COUNT; record++) truth.add('JFK', 10)

function confirmedLedger(): Ledger {
  const ledger = new Ledger(COUNT)
  ledger.confirmed(0, [0, 1])
  ledger.confirmed(1, [2, 3])
  return ledger
}

function handle(ledger: Ledger, record: number, connection = 1, redelivered = false, offset = record): void {
  const producer = record < 2 ? 0 : 1
  const index = record % 2
  ledger.handled(WORKER, { connection, producer, index, offset, redelivered, origin: 'JFK', delay: 10 })
}

function judge(ledger: Ledger, queue = drained): { lost: number; outOfOrder: number; problems: string[] } {
  const tally = ledger.close(COUNT, queue)
  const { lost, outOfOrder } = tally
  return { lost, outOfOrder, problems: ledger.problems(tally, queue, truth) }
}

test('finds nothing when every record is handled in order, and counts repeats once', () => {
  const ledger = confirmedLedger()
  for (const record of [0, 2, 1, 3]) handle(ledger, record)
  handle(ledger, 0, 1, true)
  expect(judge(ledger)).toEqual({ lost: 0, outOfOrder: 0, problems: [] })
  expect(ledger).toMatchObject({ delivered: 5, redelivered: 1, handledRecords: 4 })
})

test('finds a confirmed record that no worker handled', () => {
  const ledger = confirmedLedger()
  for (const record of [0, 1, 2]) handle(ledger, record)
  expect(judge(ledger)).toMatchObject({ lost: 1, problems: [/1 confirmed/, /delays/].map(matching) })
})

test('finds a record that the broker does not count as acknowledged', () => {
  const ledger = confirmedLedger()
  for (const record of [0, 1, 2, 3]) handle(ledger, record)
  const queue = { ...drained, acked: COUNT - 1, leased: 1 }
  const problems = [/1 confirmed/, /counts 3 acknowledged/, /leased 1/].map(matching)
  expect(judge(ledger, queue)).toMatchObject({ lost: 1, problems })
})

test('finds first deliveries out of order, on one connection only', () => {
  const ledger = confirmedLedger()
  for (const record of [1, 0]) handle(ledger, record)
  handle(ledger, 3, 1)
  handle(ledger, 2, 2)
  expect(judge(ledger)).toEqual({ lost: 0, outOfOrder: 1, problems: [matching(/1 first deliveries/)] })
})

test('finds a record that is delivered at an offset other than the one in its receipt', () => {
  const ledger = confirmedLedger()
  for (const record of [0, 1, 2]) handle(ledger, record)
  handle(ledger, 3, 1, false, 7)
  expect(judge(ledger).problems).toEqual([matching(/1 records were delivered at an offset other than/)])
})

function matching(pattern: RegExp): string {
  return expect.stringMatching(pattern) as string
}
