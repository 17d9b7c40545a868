/** After SIGTERM at full load a broker completes its work, exits with 0 and loses nothing. */
import { connect } from '@sluice/client'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runs } from '../amount.js'
import { checkHistory, findingLines, violations, type HistoryEvent } from '../checker/history.js'
import { LoadProcess, readHistories } from './load.js'
import { BrokerProcess } from '../rig/broker.js'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'

const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)
const ROUNDS = runs(3, 50)
const EXIT_MS_MAX = 10_000

test(
  `SIGTERM at full load, ${ROUNDS} times: exit 0 within ${EXIT_MS_MAX / 1000} s, nothing lost, nothing acknowledged is delivered again`,
  async () => {
    const scratch = await scratchDirectory('sigterm')
    const port = await freePort()
    const url = `sluice://127.0.0.1:${port}`
    const start = (): BrokerProcess =>
      new BrokerProcess({
        port,
        dataDir: join(scratch.path, 'data'),
        segmentBytes: 1 << 20,
        messageBytesMax: 64 << 10,
        lowFreeBytes: 1 << 20,
      })
    let broker = start()
    const loads: LoadProcess[] = []
    const exitMs: number[] = []
    try {
      await broker.ready()
      const admin = await connect(url)
      await admin.queues.ensure('q', { maxDeliveries: 255 })
      await admin.close()
      const common = { url, queues: ['q'], bodyBytesMax: 8_000, patienceMs: 1_000 }
      const producers = new LoadProcess({
        ...common,
        role: 'produce',
        name: 'p',
        seed: SEED,
        history: join(scratch.path, 'produced.ndjson'),
        clients: [2],
        rate: 20_000,
      })
      const consumers = new LoadProcess({
        ...common,
        role: 'consume',
        name: 'c',
        seed: SEED + 1,
        history: join(scratch.path, 'consumed.ndjson'),
        clients: [2],
        otherSettles: 20,
      })
      loads.push(producers, consumers)
      for (let round = 0; round < ROUNDS; round++) {
        const { confirmed } = producers.progress
        const { settled } = consumers.progress
        await until(
          `load in round ${round}, seed ${SEED}`,
          () =>
            producers.progress.confirmed > confirmed + 2_000 && consumers.progress.settled > settled + 500,
          30_000,
        )
        const toldMs = performance.now()
        broker.signal('SIGTERM')
        const exit = await broker.exited
        exitMs.push(performance.now() - toldMs)
        expect(exit, `round ${round}, seed ${SEED}: ${broker.stderr}`).toEqual({ code: 0, signal: null })
        broker = start()
        await broker.ready()
      }
      const ending = producers.stop()
      consumers.drain()
      await ending
      const reader = await connect(url)
      const left = async (): Promise<number> => {
        const { ready, scheduled, leased } = await reader.queues.get('q')
        return ready + scheduled + leased
      }
      await until(`the queue to be drained, seed ${SEED}`, async () => (await left()) === 0, 60_000).catch(
        () => undefined,
      )
      const end: HistoryEvent = {
        kind: 'end',
        queue: 'q',
        left: await left(),
        dead: (await reader.queues.get('q')).dead,
      }
      await reader.close()
      await consumers.stop()
      expect([producers.exit?.code, consumers.exit?.code]).toEqual([0, 0])
      const events = await readHistories(loads.map(({ history }) => history))
      const report = checkHistory([...events, end], { totalOrder: true })
      console.log(
        `${ROUNDS} times SIGTERM: exit after max ${Math.round(Math.max(...exitMs))} ms; ${report.confirmed} of ` +
          `${report.attempted} confirmed, ${report.unknown} unknown, ${report.deliveries} deliveries, ${report.settles} settles; ` +
          `${JSON.stringify(report.counts)}, seed ${SEED}`,
      )
      expect(findingLines(violations(report)), `seed ${SEED}`).toBe('')
      // Clients send unanswered publishes again, so each publish has an outcome at the end.
      expect(producers.progress.unresolved).toBe(0)
      expect(report.confirmed).toBeGreaterThan(ROUNDS * 2_000)
      expect(exitMs).toHaveLength(ROUNDS)
      expect(Math.max(...exitMs)).toBeLessThan(EXIT_MS_MAX)
    } finally {
      await Promise.all([broker, ...loads].map((process) => process.dispose()))
      await scratch.dispose()
    }
  },
  90_000 + ROUNDS * 15_000,
)
