/** A message that kills each worker that handles it does not harm the other messages. */
import { connect, type Sluice } from '@sluice/client'
import { afterEach, beforeEach, expect, it } from 'vitest'
import type { PoisonArguments, Style } from './poison-worker.js'
import { BrokerProcess } from '../rig/broker.js'
import { ScriptProcess } from '../rig/process.js'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'

const MESSAGES = 100
const POISON = 'poison'
const MAX_DELIVERIES = 3
/** Upper bound on worker restarts: far more than one bad message among 100 causes. */
const LIVES_MAX = 40

let broker: BrokerProcess
let sluice: Sluice
let directory: Awaited<ReturnType<typeof scratchDirectory>>
let url: string

beforeEach(async () => {
  directory = await scratchDirectory('poison')
  const port = await freePort()
  broker = new BrokerProcess({ dataDir: directory.path, port })
  await broker.ready()
  url = `sluice://127.0.0.1:${port}`
  sluice = await connect(url)
})

afterEach(async () => {
  await sluice.close()
  await broker.dispose()
  await directory.dispose()
})

const CASES: readonly (readonly [style: Style, concurrency: number, handleMs: number])[] = [
  ['handler', 1, 2],
  ['handler', 16, 2],
  ['handler', 16, 0],
  ['iterator', 1, 2],
  ['pull', 1, 2],
  ['batch', 1, 0],
]

for (const [style, concurrency, handleMs] of CASES) {
  it(`is found among ${MESSAGES}: ${style}, concurrency ${concurrency}, ${handleMs} ms per message`, async () => {
    await sluice.queues.ensure('q', {
      maxDeliveries: MAX_DELIVERIES,
      retry: { initial: 20, max: 50 },
    })
    const poisonAt = 37
    await sluice.publishBatch(
      'q',
      Array.from({ length: MESSAGES }, (_, i) => ({ body: i === poisonAt ? POISON : `message ${i}` })),
    )
    const done = new Map<number, number>()
    let deaths = 0
    for (let life = 0; life < LIVES_MAX; life++) {
      const options: PoisonArguments = {
        url,
        queue: 'q',
        poison: POISON,
        style,
        concurrency,
        prefetch: 100,
        handleMs,
      }
      const worker = new ScriptProcess('fault/poison-worker', options)
      await until('the worker to die or to finish', async () => {
        if (worker.exit !== undefined) return true
        const { ready, scheduled, leased } = await sluice.queues.get('q')
        return ready + scheduled + leased === 0
      })
      if (worker.exit !== undefined) deaths++
      await worker.dispose()
      for (const line of worker.lines) {
        const { offset, attempt } = JSON.parse(line) as { offset: number; attempt: number }
        done.set(offset, Math.max(attempt, done.get(offset) ?? 0))
      }
      const { ready, scheduled, leased } = await sluice.queues.get('q')
      if (ready + scheduled + leased === 0) break
    }
    const { messages } = await sluice.dead.list('q')
    expect(messages.map(({ offset, attempts, reason }) => ({ offset, attempts, reason }))).toEqual([
      { offset: poisonAt, attempts: MAX_DELIVERIES, reason: 'maxDeliveries' },
    ])
    expect(done.size).toBe(MESSAGES - 1)
    expect([...done.values()].every((attempt) => attempt === 1)).toBe(true)
    // The broker can bury the message before the test has seen the exit of the last worker.
    expect(deaths).toBeGreaterThanOrEqual(MAX_DELIVERIES - 1)
  }, 60_000)
}
