/** After the first failed write of the log the broker confirms nothing and exits. */
import { SluiceError, connect } from '@sluice/client'
import { startServer } from '@sluice/server'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runs } from '../amount.js'
import { checkHistory, findingLines, violations, type HistoryEvent } from '../checker/history.js'
import { BrokerProcess } from '../rig/broker.js'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'
import { Random } from './random.js'
import { readTrace, straceIsMissing, traced } from './strace.js'

const missing = straceIsMissing()
const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)
const ROUNDS = runs(8, 100)
const EXIT_LOG_FAILED = 70
const EXIT_MS_MAX = 1_000
/** Maximum number of publishes in a round: far more than precede the failed write. */
const MESSAGES_MAX = 4_000

interface Round {
  /** Whether a write of the log failed, rather than the preparation of a file. */
  readonly hit: boolean
  readonly exitMs: number
  readonly confirmed: number
}

async function round(kind: string, when: number, random: Random): Promise<Round> {
  const scratch = await scratchDirectory('eio')
  const dataDir = join(scratch.path, 'data')
  const file = join(scratch.path, 'trace')
  const broker = new BrokerProcess(
    { port: 0, dataDir, segmentBytes: 1 << 20, messageBytesMax: 64 << 10, lowFreeBytes: 1 << 20 },
    // One thread writes all files, because strace counts calls per thread.
    { under: traced(file, [`pwrite64:${kind}:when=${when}`]), env: { UV_THREADPOOL_SIZE: '1' } },
  )
  const events: HistoryEvent[] = []
  try {
    const { port } = await broker.ready()
    const sluice = await connect(`sluice://127.0.0.1:${port}`)
    await sluice.queues.ensure('q').catch(() => undefined)
    let sequence = 0
    const answers: Promise<void>[] = []
    while (broker.exit === undefined && sequence < MESSAGES_MAX) {
      const burst = 1 + random.below(10)
      for (let i = 0; i < burst; i++) {
        const message = `m${sequence++}`
        events.push({ kind: 'attempt', queue: 'q', message, producer: 'p', sequence, body: message })
        answers.push(
          sluice.publish('q', message).then(
            ({ offset }) => void events.push({ kind: 'outcome', message, outcome: 'ok', offset }),
            (error: unknown) => {
              const isUnknown = !(error instanceof SluiceError) || error.outcome === 'unknown'
              events.push({ kind: 'outcome', message, outcome: isUnknown ? 'unknown' : 'fail' })
            },
          ),
        )
      }
      await Promise.race([answers.at(-1), broker.exited])
    }
    // The write that failed only prepared a file. The broker retries such a write and continues, so it is killed here.
    if (broker.exit === undefined && sequence >= MESSAGES_MAX) broker.signal('SIGKILL')
    const exit = await broker.exited
    const exitedS = Date.now() / 1000
    await sluice.close({ timeout: 1 }).catch(() => undefined)
    await Promise.all(answers)
    const trace = await readTrace(file)
    if (trace.failure?.durable !== true) return { hit: false, exitMs: 0, confirmed: 0 }
    expect(exit).toEqual({ code: EXIT_LOG_FAILED, signal: null })
    expect(trace.violations).toEqual([])

    // The log opens and has all confirmed messages.
    const server = await startServer({
      port: 0,
      dataDir,
      segmentBytes: 1 << 20,
      messageBytesMax: 64 << 10,
      lowFreeBytes: 1 << 20,
    })
    try {
      const reader = await connect(`sluice://127.0.0.1:${server.port}`)
      // Creates the queue if the broker died before the queue was durable; nothing was confirmed then.
      const { ready } = (await reader.queues.ensure('q')).queue
      let handled = 0
      reader.consume<string>('q', { concurrency: 100 }, ({ body, redelivered, offset }) => {
        events.push({ kind: 'deliver', queue: 'q', message: body, consumer: 'c', redelivered, offset, body })
        handled++
      })
      await until('the stored messages to be consumed', () => handled >= ready)
      await reader.close()
      server.broker.audit()
      const { ready: left, dead } = server.broker.catalog.info('q' as never)
      events.push({ kind: 'end', queue: 'q', left, dead })
    } finally {
      await server.stop()
    }
    const report = checkHistory(events)
    expect(findingLines(violations(report))).toBe('')
    return { hit: true, exitMs: (exitedS - trace.failure.atS) * 1000, confirmed: report.confirmed }
  } finally {
    await broker.dispose()
    await scratch.dispose()
  }
}

test.skipIf(missing !== undefined)(
  `${ROUNDS} failed writes: no confirm afterwards, exit with ${EXIT_LOG_FAILED} within a second, nothing lost${missing === undefined ? '' : `: skipped, ${missing}`}`,
  async () => {
    const random = new Random(SEED)
    const kinds = ['error=EIO', 'error=ENOSPC']
    const hits: Round[] = []
    for (let i = 0; i < ROUNDS; i++) {
      const kind = kinds[i % kinds.length]!
      // The first writes prepare files; a failure of these is not a failure of the log.
      const when = 8 + random.below(150)
      try {
        const result = await round(kind, when, random)
        if (result.hit) hits.push(result)
      } catch (error) {
        throw new Error(`seed ${SEED}, round ${i}: ${kind} on write ${when}`, { cause: error })
      }
    }
    const exitMs = hits.map(({ exitMs }) => exitMs).sort((a, b) => a - b)
    const confirmed = hits.reduce((sum, one) => sum + one.confirmed, 0)
    console.log(
      `${hits.length} of ${ROUNDS} hit the log: exit after p50 ${Math.round(exitMs[exitMs.length >> 1]!)} ms, ` +
        `max ${Math.round(exitMs.at(-1)!)} ms; ${confirmed} confirmed messages, none lost, seed ${SEED}`,
    )
    expect(hits.length).toBeGreaterThan(ROUNDS * 0.7)
    expect(confirmed).toBeGreaterThan(ROUNDS)
    expect(exitMs.at(-1)).toBeLessThan(EXIT_MS_MAX)
  },
  30_000 + ROUNDS * 5_000,
)
