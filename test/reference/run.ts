/**
 * The long run from the command line: many seeds, their totals, and for every difference the shortest history that still
 * shows it.
 *
 * node test/dist/reference/run.js [--seeds 1000] [--first 1] [--operations 1000]
 * node test/dist/reference/run.js --seed 17 [--operations 1000] [--only 3,17,45] [--no-shrink]
 *
 * `--streams` runs histories of streams and groups instead of queues.
 */
import { parseArgs } from 'node:util'
import type { Product } from './bench.js'
import { commandOf, runHistory, shrink, type HistoryOptions } from './history.js'
import { runStreamHistory } from './stream-history.js'

async function product(): Promise<Product> {
  const from = async (path: string): Promise<unknown> =>
    import(new URL(path, import.meta.resolve('@sluice/server')).href)
  const broker = (await from('./broker/broker.js')) as Pick<Product, 'Broker'>
  const log = (await from('./log/memory-log.js')) as Pick<Product, 'MemoryLog'>
  const schedule = (await from('./queue/schedule.js')) as Pick<Product, 'Schedule'>
  return { Broker: broker.Broker, MemoryLog: log.MemoryLog, Schedule: schedule.Schedule }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seeds: { type: 'string', default: '1000' },
      first: { type: 'string', default: '1' },
      operations: { type: 'string', default: '1000' },
      seed: { type: 'string' },
      only: { type: 'string' },
      shrink: { type: 'boolean', default: true },
      streams: { type: 'boolean', default: false },
    },
    allowNegative: true,
  })
  const subject = await product()
  const operations = Number(values.operations)
  if (values.seed !== undefined) {
    const only = values.only?.split(',').map(Number)
    await look(subject, { seed: Number(values.seed), operations, only }, values.shrink, values.streams)
    return
  }
  const first = Number(values.first)
  const totals = new Map<string, number>()
  const startedMs = Date.now()
  let differences = 0
  for (let seed = first; seed < first + Number(values.seeds); seed++) {
    const run = values.streams ? runStreamHistory : runHistory
    const { counts, failure } = await run(subject, { seed, operations })
    for (const [name, count] of counts) totals.set(name, (totals.get(name) ?? 0) + count)
    if (failure === undefined) continue
    differences++
    const { message } = failure.error as Error
    console.log(
      `seed ${seed}, operation ${failure.at}: ${message}\n  ${commandOf({ seed, operations }, values.streams)}`,
    )
  }
  for (const [name, count] of [...totals].toSorted(([a], [b]) => (a < b ? -1 : 1)))
    console.log(`${String(count).padStart(10)} ${name}`)
  const ran = totals.get('operations') ?? 0
  const seconds = Math.round((Date.now() - startedMs) / 1000)
  console.log(`${differences} differences in ${ran} operations of ${values.seeds} seeds, ${seconds} s`)
  if (differences > 0) process.exitCode = 1
}

/** Runs one history, and shortens it if it shows a difference. */
async function look(
  subject: Product,
  options: HistoryOptions,
  isShrunk: boolean,
  isOfStreams: boolean,
): Promise<void> {
  const run = isOfStreams ? runStreamHistory : runHistory
  const { failure } = await run(subject, options)
  if (failure === undefined) {
    console.log('no difference')
    return
  }
  const shortest = isShrunk ? await shrink(subject, options, run) : options
  const trace: string[] = []
  const again = await run(subject, { ...shortest, trace: (line) => trace.push(line) })
  console.log(trace.slice(-120).join('\n'))
  console.log(again.failure?.error)
  console.log(`again: ${commandOf(shortest, isOfStreams)}`)
  process.exitCode = 1
}

await main()
