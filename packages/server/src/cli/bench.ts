/**
 * `sluice bench`: puts a running broker under load from separate processes and prints the results. Each producer and
 * consumer has its own connection. The results count messages that are confirmed, and therefore durable, and messages
 * that are acknowledged.
 */
import { fork, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import { setTimeout as delay } from 'node:timers/promises'
import { queue, type Sluice } from '@sluice/client'
import { LIMITS, SluiceError, TIMER_PART_MS_MAX, queueName } from '@sluice/protocol'
import { command, type GlobalOptions } from './command.js'
import { withBroker } from './connection.js'
import { durationMs } from './flags.js'
import { UsageError } from './failure.js'
import type { LoadFailure, LoadReport, LoadTask } from './load.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

interface BenchOptions {
  readonly producers: number
  readonly consumers: number
  readonly size: number
  readonly inFlight: number
  readonly rate: number
  readonly duration: string
  readonly warmup: string
  readonly messages: number
  readonly queue: string | undefined
}

type Options = GlobalOptions & BenchOptions

/** The processes of a run. A signal, or the failure of one of the processes, ends the run early. */
class Run {
  readonly #children: ChildProcess[] = []
  readonly #early = new AbortController()

  get signal(): AbortSignal {
    return this.#early.signal
  }

  add(child: ChildProcess): void {
    this.#children.push(child)
  }

  endEarly(reason: Error): void {
    this.#early.abort(reason)
    this.kill()
  }

  kill(): void {
    for (const child of this.#children) child.kill('SIGKILL')
  }

  async pause(milliseconds: number): Promise<void> {
    const { signal } = this
    for (let left = milliseconds; left > 0; left -= TIMER_PART_MS_MAX)
      await delay(Math.min(left, TIMER_PART_MS_MAX), undefined, { signal })
  }
}

class Interrupted extends Error {
  readonly signal: StopSignal

  constructor(signal: StopSignal) {
    super(`interrupted by ${signal}`)
    this.signal = signal
  }
}

/** The load processes of one side and their results. Latencies are recorded in microseconds. */
interface Side {
  readonly name: 'publish' | 'consume'
  readonly loads: ChildProcess[]
  readonly reports: Map<ChildProcess, LoadReport>
  failed: number
  readonly latency: RecordableHistogram
  /** Count and time at the end of the warm-up, by the clock of the load processes. */
  fromCount: number
  fromMs: number
}

interface Figure {
  readonly messages: number
  readonly perSecond: number
  readonly failed: number
  /** Latency in milliseconds; null if nothing was timed. */
  readonly p50: number | null
  readonly p99: number | null
  readonly p999: number | null
  readonly max: number | null
}

const PROGRESS_MS = 1_000
/** Time limit for deleting the queue of a run. */
const DELETE_TIMEOUT_MS = 3_000

/** Bounds of the numeric options. A body has at least 8 bytes, so that it has room for its send time. */
const BOUNDS = {
  producers: [0, 1_000],
  consumers: [0, 1_000],
  size: [8, LIMITS.messageBytesMax],
  inFlight: [1, LIMITS.creditMessagesMax],
  rate: [0, 10_000_000],
  messages: [1, 1_000_000_000],
} as const satisfies Partial<Record<keyof BenchOptions, readonly [min: number, max: number]>>

export const bench = command<BenchOptions>({
  builder: (yargs) =>
    yargs
      .option('producers', { type: 'number', default: 1, describe: 'Producer processes' })
      .option('consumers', { type: 'number', default: 1, describe: 'Consumer processes' })
      .option('size', { type: 'number', default: 128, describe: 'Bytes per body, at least 8' })
      .option('in-flight', {
        type: 'number',
        default: 1_000,
        describe: 'Maximum number of unanswered publishes, or of held messages, per process',
      })
      .option('rate', {
        type: 'number',
        default: 0,
        describe:
          'Messages per second of all producers together, sent at a fixed rate; 0 means as fast as they are confirmed',
      })
      .option('duration', { type: 'string', default: '10s', describe: 'How long to measure' })
      .option('warmup', { type: 'string', default: '1s', describe: 'How long to run before measuring' })
      .option('messages', {
        type: 'number',
        default: 2_000_000,
        describe: 'Number of messages that are published first and then consumed, if there are no producers',
      })
      .option('queue', {
        type: 'string',
        requiresArg: true,
        describe: 'Queue to use; default: a temporary one, deleted at the end',
      }),
  handler: async (options) => {
    checkNumbers(options)
    const times = {
      durationMs: durationMs(options.duration, '--duration', 1),
      warmupMs: durationMs(options.warmup, '--warmup'),
    }
    const name = queueName(options.queue ?? `bench-${randomBytes(4).toString('hex')}`)
    await withBroker(options, 'bench', (sluice) => runBench(options, times, sluice, name))
  },
})

/** @throws UsageError */
function checkNumbers(options: BenchOptions): void {
  for (const [name, [min, max]] of Object.entries(BOUNDS)) {
    const value = options[name as keyof typeof BOUNDS]
    if (Number.isInteger(value) && value >= min && value <= max) continue
    const flag = name.replace(/[A-Z]/, (letter) => `-${letter.toLowerCase()}`)
    throw new UsageError(
      `--${flag} must be a whole number from ${min} to ${max}.`,
      'See `sluice bench --help`.',
    )
  }
  if (options.producers === 0 && options.messages < options.consumers) {
    throw new UsageError(
      'Without producers, each consumer needs at least one message.',
      'Give more --messages or fewer --consumers.',
    )
  }
  if (options.producers === 0 && options.consumers === 0) {
    throw new UsageError(
      'Without producers and consumers there is nothing to measure.',
      'Omit --producers 0 or --consumers 0.',
    )
  }
}

interface Times {
  readonly durationMs: number
  readonly warmupMs: number
}

async function runBench(options: Options, times: Times, sluice: Sluice, name: string): Promise<void> {
  const run = new Run()
  const forget = onStop((signal) => run.endEarly(new Interrupted(signal)))
  try {
    await sluice.queues.ensure(name)
    print(options, await measure(options, times, sluice, name, run))
  } catch (error) {
    const reason: unknown = run.signal.aborted ? run.signal.reason : error
    if (!(reason instanceof Interrupted)) throw reason
    process.exitCode = signalExit(reason.signal)
  } finally {
    run.kill()
    if (options.queue === undefined) {
      // A failure of this deletion is ignored, so that it does not hide a failure of the run.
      await sluice.queues.delete(name, { timeout: DELETE_TIMEOUT_MS }).catch(() => {})
    }
    forget()
  }
}

interface Figures {
  readonly publish: Figure | undefined
  readonly consume: Figure | undefined
}

async function measure(
  options: Options,
  { durationMs, warmupMs }: Times,
  sluice: Sluice,
  name: string,
  run: Run,
): Promise<Figures> {
  if (options.producers === 0) {
    await fill(options, name, run)
    const { ready } = await sluice.queues.get(queue(name))
    const consume = start(
      'consume',
      options,
      name,
      options.consumers,
      { messages: Math.floor(ready / options.consumers) },
      run,
    )
    const progress = showProgress([consume], options, run)
    await Promise.all(consume.loads.map((load) => exited(load)))
    progress()
    // The time counts from the first message, so that it does not include the startup of the processes.
    consume.fromMs = Math.min(...[...consume.reports.values()].map(({ firstMs }) => firstMs))
    return { publish: undefined, consume: figure(consume) }
  }
  const endToEnd = options.rate > 0 && options.consumers > 0
  const sides: Side[] = []
  const consume =
    options.consumers === 0
      ? undefined
      : start('consume', options, name, options.consumers, { endToEnd }, run)
  if (consume !== undefined) {
    sides.push(consume)
    while ((await sluice.queues.get(queue(name))).consumers < options.consumers) await run.pause(20)
  }
  const publish = start(
    'publish',
    options,
    name,
    options.producers,
    { endToEnd, rate: options.rate / options.producers },
    run,
  )
  sides.push(publish)
  while (publish.loads.some((load) => (publish.reports.get(load)?.count ?? 0) === 0)) await run.pause(20)
  await run.pause(warmupMs)
  for (const side of sides) {
    side.fromMs = latest(side)
    side.fromCount = total(side)
    side.latency.reset()
  }
  const progress = showProgress(sides, options, run)
  await run.pause(durationMs)
  const figures = { publish: figure(publish), consume: consume && figure(consume) }
  progress()
  for (const side of [publish, consume]) {
    if (side === undefined) continue
    for (const load of side.loads) load.send('stop')
    await Promise.all(side.loads.map((load) => exited(load)))
  }
  return figures
}

/** Publishes the messages for a run without producers. */
async function fill(options: Options, name: string, run: Run): Promise<void> {
  const side = start('publish', { ...options, inFlight: 5_000 }, name, 1, { messages: options.messages }, run)
  const progress = showProgress([side], options, run)
  await Promise.all(side.loads.map((load) => exited(load)))
  progress()
}

function start(
  name: Side['name'],
  options: Options,
  queueName: string,
  count: number,
  task: Partial<LoadTask>,
  run: Run,
): Side {
  const side: Side = {
    name,
    loads: [],
    reports: new Map(),
    failed: 0,
    latency: createHistogram(),
    fromCount: 0,
    fromMs: 0,
  }
  for (let i = 0; i < count; i++) {
    const load = fork(fileURLToPath(new URL('load.js', import.meta.url)), [], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    run.add(load)
    side.loads.push(load)
    // Sending `stop` to a process that has ended fails; its exit code is reported instead.
    load.on('error', () => {})
    load.once('exit', (code) => {
      if (code !== 0) run.endEarly(new Error(`A load process ended with code ${code}.`))
    })
    load.on('message', (report: LoadReport | LoadFailure) => {
      if ('failure' in report) {
        run.endEarly(new SluiceError(report.failure.code, report.failure.message))
        return
      }
      side.reports.set(load, report)
      side.failed += report.failed
      for (const ms of report.latencies) side.latency.record(Math.max(1, Math.round(ms * 1000)))
    })
    const whole: LoadTask = {
      role: name === 'publish' ? 'producer' : 'consumer',
      url: options.url,
      queue: queueName,
      size: options.size,
      inFlight: options.inFlight,
      rate: 0,
      messages: 0,
      endToEnd: false,
      ...task,
    }
    load.send(whole)
  }
  return side
}

function exited(load: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (code: number | null): void => {
      if (code === 0) resolve()
      else reject(new Error(`A load process ended with code ${code}.`))
    }
    if (load.exitCode !== null) done(load.exitCode)
    else load.once('exit', done)
  })
}

function total(side: Side): number {
  let sum = 0
  for (const { count } of side.reports.values()) sum += count
  return sum
}

/** The time of the newest report of a side. */
function latest(side: Side): number {
  return Math.max(0, ...[...side.reports.values()].map(({ atMs }) => atMs))
}

function figure(side: Side): Figure {
  const messages = total(side) - side.fromCount
  const seconds = Math.max(latest(side) - side.fromMs, 1) / 1000
  const at = (percent: number): number | null =>
    side.latency.count === 0 ? null : side.latency.percentile(percent) / 1000
  return {
    messages,
    perSecond: Math.round(messages / seconds),
    failed: side.failed,
    p50: at(50),
    p99: at(99),
    p999: at(99.9),
    max: side.latency.count === 0 ? null : side.latency.max / 1000,
  }
}

/** Shows a progress line on stderr, on a terminal only. Returns a function that removes it. */
function showProgress(sides: readonly Side[], options: Options, run: Run): () => void {
  if (!process.stderr.isTTY || options.json) return () => {}
  const before = new Map(sides.map((side) => [side, total(side)]))
  const timer = setInterval(() => {
    const parts = sides.map((side) => {
      const now = total(side)
      const rate = (now - before.get(side)!) / (PROGRESS_MS / 1000)
      before.set(side, now)
      const { p50, p99, p999 } = figure(side)
      const latency = p50 === null ? '' : ` p50 ${ms(p50)} p99 ${ms(p99)} p99.9 ${ms(p999)} ms`
      return `${side.name} ${Math.round(rate).toLocaleString('en')}/s${latency}`
    })
    process.stderr.write(`\r\u001B[K${parts.join('  ·  ')}`)
  }, PROGRESS_MS)
  const end = (): void => {
    clearInterval(timer)
    process.stderr.write('\r\u001B[K')
  }
  run.signal.addEventListener('abort', end, { once: true })
  return () => {
    run.signal.removeEventListener('abort', end)
    end()
  }
}

function print(options: Options, figures: Figures): void {
  const { producers, consumers, size, inFlight, rate, duration } = options
  if (options.json) {
    process.stdout.write(
      `${JSON.stringify({ settings: { producers, consumers, size, inFlight, rate, duration }, ...figures })}\n`,
    )
    return
  }
  const rows = [['', 'messages', 'per second', 'p50 ms', 'p99 ms', 'p99.9 ms', 'max ms']]
  for (const [name, of] of [
    ['publish', figures.publish],
    ['consume', figures.consume],
  ] as const) {
    if (of === undefined) continue
    rows.push([
      name,
      of.messages.toLocaleString('en'),
      of.perSecond.toLocaleString('en'),
      ms(of.p50),
      ms(of.p99),
      ms(of.p999),
      ms(of.max),
    ])
  }
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  for (const row of rows) {
    const cells = row.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
    )
    process.stdout.write(`${cells.join('  ').trimEnd()}\n`)
  }
  const failed = (figures.publish?.failed ?? 0) + (figures.consume?.failed ?? 0)
  if (failed > 0) {
    process.stderr.write(`${failed} publishes failed.\n`)
    process.exitCode = 1
  }
}

function ms(value: number | null): string {
  return value === null ? '–' : value.toFixed(2)
}
