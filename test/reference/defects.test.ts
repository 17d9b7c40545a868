/** Every planted defect is found, within few seeds. */
import { expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Schedule } from '../../packages/server/src/queue/schedule.js'
import { DEFECTS, type PlantedDefect } from './defects.js'
import { runHistory } from './history.js'
import { Difference } from './model.js'

const PRODUCT = { Broker, MemoryLog, Schedule }
const SEEDS_MAX = 40
const OPERATIONS = 600

const found: string[] = []

async function firstDifference({ plant }: PlantedDefect): Promise<unknown> {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    const options = { seed, operations: OPERATIONS, defect: plant() }
    const { failure } = await runHistory(PRODUCT, options)
    if (failure !== undefined) return failure.error
  }
  return undefined
}

test.each(DEFECTS)('found: $name', { timeout: 120_000 }, async (defect) => {
  const difference = await firstDifference(defect)
  expect(difference, `not found in ${SEEDS_MAX} seeds`).toBeInstanceOf(Difference)
  found.push(defect.name)
})

test('as many were found as were planted', () => {
  expect(DEFECTS.length).toBeGreaterThanOrEqual(10)
  expect(new Set(found).size).toBe(DEFECTS.length)
})
