/** Random histories over all queue options at once: the broker must behave as the model says. */
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { leastIn, ONE_SEED, seedsFrom, TIMEOUT_MS } from '../amount.js'
import { commandOf, runHistory, shrink } from './history.js'

const OPERATIONS = 1_000
const PRODUCT = { Broker, MemoryLog, Schedule }

/** The minimum counts below are for this many seeds. */
const SEEN_IN = 60
const SEEN: Readonly<Record<string, number>> = {
  operations: 36_000,
  deliveries: 13_000,
  infos: 210_000,
  audits: 57_000,
  answers: 18_000,
  refusals: 3_300,
  duplicates: 880,
  'event: replaced': 20,
  drains: 170,
  crashes: 180,
  'orderly closes': 100,
  'turns lost': 84,
  'restarts from state pages': 230,
  'restarts on a truncated log': 150,
  'leases lost': 590,
  'deliveries of a further attempt': 1_500,
  'deliveries alone': 42,
  'deliveries marked redelivered': 5_900,
  'messages moved to another queue': 590,
  'messages redriven to another queue': 120,
  'atomic steps': 860,
  'atomic steps with topics': 100,
  'batches sent again': 440,
  'messages peeked': 3_900,
  'refused QUEUE_FULL': 1_000,
  'refused DEDUP_FULL': 190,
  'refused MESSAGE_LEASED': 90,
  'refused LEASE_LOST': 21,
  'event: overflow': 640,
  'event: part of an excess evicted': 48,
  'event: expired': 4_100,
  'event: timeout': 340,
  'event: charged': 69,
  'event: key held back': 11_000,
  'event: priority passed': 5_000,
  'event: dead overflow': 640,
  'event: dead maxDeliveries': 500,
  'event: dead rejected': 780,
  'event: dead invalid': 190,
  'event: redriven': 820,
  'event: held by pause': 8_600,
  'event: held by the rate': 2_500,
  'event: key at its rate': 800,
  'event: key paused': 130,
  'messages drained': 1_700,
  extensions: 520,
  'stale tags': 260,
  ticks: 8_900,
  'topic publishes': 300,
  'topic publishes without targets': 40,
  'bindings compared': 50_000,
  'refused UNROUTABLE': 200,
  'unused queues deleted': 20,
  'refused MESSAGE_NOT_FOUND': 820,
  'pages that were not the last': 120,
  'messages replayed': 900,
  'crashes between pages of a replay': 120,
  'pages replayed twice': 60,
  'complete histories': 1_200,
  'in a history: delivered': 160,
  'in a history: retried': 90,
  'in a history: acked': 270,
  'in a history: dead': 100,
  'in a history: moved': 16,
  'in a history: redriven': 15,
  'in a history: rescheduled': 15,
  'in a history: cancelled': 20,
  'in a history: expired': 200,
  'in a history: dropped': 45,
  'in a history: duplicate': 40,
  'in a history: discarded': 4,
  'in a history: purged': 140,
}

test('histories', { timeout: TIMEOUT_MS }, async () => {
  const totals = new Map<string, number>()
  const seeds = seedsFrom(1, 15, 1_000)
  for (const seed of seeds) {
    const options = { seed, operations: OPERATIONS }
    const { counts, failure } = await runHistory(PRODUCT, options)
    if (failure !== undefined) {
      const short = await shrink(PRODUCT, options)
      const trace: string[] = []
      await runHistory(PRODUCT, { ...short, trace: (line) => trace.push(line) })
      throw new Error(
        `seed ${seed} failed at operation ${failure.at}; run it again: ${commandOf(short)}\n${trace.join('\n')}`,
        { cause: failure.error },
      )
    }
    for (const [name, count] of counts) totals.set(name, (totals.get(name) ?? 0) + count)
  }
  if (ONE_SEED !== undefined) return
  for (const [name, least] of Object.entries(SEEN))
    expect(totals.get(name) ?? 0, name).toBeGreaterThanOrEqual(leastIn(seeds.length, least, SEEN_IN))
})
