/**
 * Every planted defect must be found within a few seeds. `pnpm test` starts with the seed that is known to find the
 * defect; the long mode searches from the first seed.
 */
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { TIMEOUT_MS } from '../amount.js'
import { findDefect } from '../planted.js'
import { DEFECTS, type PlantedDefect } from './defects.js'
import { runHistory } from './history.js'
import { Difference } from './state.js'

const PRODUCT = { Broker, MemoryLog, Schedule }
const SEEDS_MAX = 40
const OPERATIONS = 600

const KNOWN_SEEDS: Readonly<Record<string, number>> = {
  'in a queue with `single`, the oldest subscription gets messages, even without credit': 3,
  'a turn does not continue with the due messages of the previous turn': 8,
  'only one turn evicts a part of an excess': 5,
  'a limit accepts one message too many': 3,
  'a dead message is redriven without a maximum': 33,
  'a page of a replay begins with the last message of the previous page': 8,
  'a later page of a replay skips its first message': 2,
  'the end of a consumer does not count as a use of its queue': 21,
  'the bucket of a queue refills twice as fast': 9,
  'a queue whose unused time is changed keeps the earlier timer': 2,
  'an extension does nothing': 2,
  'a purge does not notify the holders': 2,
  'a key at its rate holds back the other keys': 2,
  'a retry pauses no key': 2,
  'a suspect is not marked': 3,
  'a lost connection charges no message': 2,
  'a refused atomic step acknowledges its messages': 2,
}

const found: string[] = []

function firstDifference({ name, plant }: PlantedDefect): Promise<unknown> {
  return findDefect(name, { seedsMax: SEEDS_MAX, knownSeeds: KNOWN_SEEDS }, async (seed) => {
    const options = { seed, operations: OPERATIONS, defect: plant() }
    const { failure } = await runHistory(PRODUCT, options)
    return failure?.error
  })
}

test.each(DEFECTS)('found: $name', { timeout: TIMEOUT_MS }, async (defect) => {
  const difference = await firstDifference(defect)
  expect(difference, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(Difference)
  found.push(defect.name)
})

test('every planted defect is found', () => {
  expect(DEFECTS.length).toBeGreaterThanOrEqual(10)
  expect(new Set(found).size).toBe(DEFECTS.length)
})
