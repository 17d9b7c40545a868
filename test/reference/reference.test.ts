/** Random histories over all queue options at once: the broker does what the model says. */
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { seedsFrom, ONE_SEED } from '../simulation/seeds.js'
import { commandOf, runHistory, shrink } from './history.js'
import { BUILT_READINGS } from './model.js'

const OPERATIONS = 1_000
const PRODUCT = { Broker, MemoryLog }

/** What must have been seen, at least, over 60 seeds. */
const SEEN: Readonly<Record<string, number>> = {
  operations: 50_000,
  deliveries: 40_000,
  infos: 100_000,
  audits: 50_000,
  answers: 25_000,
  refusals: 2_000,
  duplicates: 500,
  drains: 100,
  crashes: 300,
  'orderly closes': 100,
  'turns lost': 100,
  'restarts from state pages': 100,
  'restarts on a truncated log': 10,
  'leases lost': 300,
  'deliveries of a further attempt': 1_000,
  'deliveries alone': 20,
  'deliveries marked redelivered': 2_000,
  'messages moved to another queue': 500,
  'messages redriven to another queue': 50,
  'atomic steps': 500,
  'batches sent again': 300,
  'messages peeked': 5_000,
  'refused QUEUE_FULL': 200,
  'refused DEDUP_FULL': 50,
  'refused MESSAGE_LEASED': 50,
  'refused LEASE_LOST': 20,
  'event: overflow': 200,
  'event: expired': 500,
  'event: timeout': 200,
  'event: charged': 20,
  'event: key held back': 5_000,
  'event: priority passed': 1_000,
  'event: dead overflow': 100,
  'event: dead maxDeliveries': 500,
  'event: dead rejected': 500,
  'event: dead invalid': 100,
}

test('histories', { timeout: 300_000 }, async () => {
  const totals = new Map<string, number>()
  for (const seed of seedsFrom(1, 60, 10)) {
    const options = { seed, operations: OPERATIONS, readings: BUILT_READINGS }
    const { counts, failure } = await runHistory(PRODUCT, options)
    if (failure !== undefined) {
      const short = await shrink(PRODUCT, options)
      const trace: string[] = []
      await runHistory(PRODUCT, { ...short, trace: (line) => trace.push(line) })
      throw new Error(
        `seed ${seed} failed at operation ${failure.at}; again: ${commandOf(short)}\n${trace.join('\n')}`,
        { cause: failure.error },
      )
    }
    for (const [name, count] of counts) totals.set(name, (totals.get(name) ?? 0) + count)
  }
  if (ONE_SEED !== undefined) return
  for (const [name, least] of Object.entries(SEEN)) expect(totals.get(name) ?? 0, name).toBeGreaterThan(least)
})
