/**
 * Traces the system calls of a broker under load: each confirm and each delivery must follow the completed durable
 * write of its batch.
 *
 * As a script: node test/dist/fault/trace.js [--messages 20000]
 */
import { connect } from '@sluice/client'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { BrokerProcess } from '../rig/broker.js'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'
import { Random } from './random.js'
import { readTrace, straceIsMissing, traced, type TraceReport } from './strace.js'

export interface TraceOptions {
  readonly messages: number
  readonly seed: number
}

export async function traceUnderLoad({ messages, seed }: TraceOptions): Promise<TraceReport> {
  const random = new Random(seed)
  const scratch = await scratchDirectory('trace')
  const file = join(scratch.path, 'trace')
  const broker = new BrokerProcess(
    {
      port: 0,
      dataDir: join(scratch.path, 'data'),
      segmentBytes: 1 << 20,
      messageBytesMax: 64 << 10,
      lowFreeBytes: 1 << 20,
    },
    { under: traced(file) },
  )
  try {
    const { port } = await broker.ready()
    const url = `sluice://127.0.0.1:${port}`
    const producer = await connect(url)
    const consumer = await connect(url)
    await producer.queues.ensure('q')
    let handled = 0
    consumer.consume('q', { concurrency: 100, prefetch: 500 }, () => {
      handled++
    })
    for (let sent = 0; sent < messages;) {
      const burst = Math.min(1 + random.below(100), messages - sent)
      sent += burst
      const confirms = Array.from({ length: burst }, () =>
        producer.publish('q', 'x'.repeat(random.below(300))),
      )
      // Some bursts start during the write of the previous burst.
      if (random.below(2) === 0) await Promise.all(confirms)
      else await confirms[0]
    }
    await until('everything to be handled', () => handled >= messages, 60_000)
    await producer.close()
    await consumer.close()
    broker.signal('SIGTERM')
    const exit = await broker.exited
    if (exit.code !== 0) throw new Error(`the broker ended with ${JSON.stringify(exit)}: ${broker.stderr}`)
    return await readTrace(file)
  } finally {
    await broker.dispose()
    await scratch.dispose()
  }
}

export function traceSummary(report: TraceReport): string {
  const { confirms, deliveries, durableWrites, durableBatches, socketWrites, violations } = report
  return (
    `${confirms} confirms and ${deliveries} deliveries in ${socketWrites} socket writes checked against ` +
    `${durableBatches} batches in ${durableWrites} durable writes: ${violations.length} violations`
  )
}

async function main(args: readonly string[]): Promise<void> {
  const missing = straceIsMissing()
  if (missing !== undefined) {
    console.log(`skipped: ${missing}`)
    return
  }
  const at = args.indexOf('--messages')
  const seed = Date.now() % 1_000_000
  const report = await traceUnderLoad({ messages: at === -1 ? 20_000 : Number(args[at + 1]), seed })
  console.log(`${traceSummary(report)}, seed ${seed}`)
  for (const { what, why } of report.violations.slice(0, 10)) console.log(`${what}: ${why}`)
  if (report.violations.length > 0) process.exitCode = 1
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2))
