/**
 * Kills a broker at random moments under load and restarts it on the same data, many times; then drains the queues and
 * checks the histories of the clients. `kill -9` keeps the page cache, so this proves recovery from any point of the
 * program. trace.ts and the simulated disk prove that bytes reach the disk.
 *
 * As a script: node test/dist/fault/kill.js --kills 200 [--seed 1] [--segment-mib 64] [--backlog-mib 1024]
 */
import { connect } from '@sluice/client'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { checkHistory, findingLines, violations, type HistoryEvent, type Report } from '../checker/history.js'
import { numberOption, printComplaints } from './arguments.js'
import { KilledBroker, readyLine, unexpectedFailures, READY_MS_MAX, type Moment } from './killed-broker.js'
import { LoadProcess, added, readHistories } from './load.js'
import type { TimedEvent } from './load-process.js'
import { scratchDirectory } from '../rig/scratch.js'
import { until, withDeadline } from '../rig/wait.js'
import { Random } from './random.js'

export interface KillOptions {
  readonly kills: number
  readonly seed: number
  readonly segmentBytes?: number
  /** Mean time under load before a kill. */
  readonly meanLifeMs?: number
  /**
   * Total size of the messages that are published before the first kill and consumed at the end; by default there are
   * 100 of them. Each start of the broker recovers these messages.
   */
  readonly backlogBytes?: number
  readonly say?: (line: string) => void
}

export interface KillResult {
  readonly seed: number
  readonly kills: number
  /** Kills by moment: under load, soon after the start, during recovery. */
  readonly moments: Readonly<Record<Moment, number>>
  readonly report: Report
  /** First deliveries, marked or not, that were out of order on the queue with one consumer. */
  readonly overtaken: readonly string[]
  /** Number of unanswered publishes of clients that were not replaced. */
  readonly unresolved: number
  readonly failures: Readonly<Record<string, number>>
  /** Times from spawn to the first accepted connection, in ms. */
  readonly readyMs: readonly number[]
  /** How long each start took as measured by the broker, in ms. */
  readonly startedMs: readonly number[]
  /** Number of segments that were started, and number that were freed. */
  readonly rolls: number
  readonly removed: number
  readonly tookMs: number
}

/** A queue with one consumer, whose first deliveries are in order. */
const STRICT = 'strict'
/** A queue with two consumers. */
const SHARED = 'shared'
/** A queue that is filled at the start and consumed at the end, so that its records are moved. */
const COLD = 'cold'
const QUEUES = [STRICT, SHARED, COLD] as const

export async function killRepeatedly(options: KillOptions): Promise<KillResult> {
  const {
    kills,
    seed,
    segmentBytes = 256 << 10,
    meanLifeMs = 500,
    backlogBytes,
    say = () => undefined,
  } = options
  const messageBytesMax = Math.min(segmentBytes / 8, 1 << 20)
  const bodyBytesMax = Math.floor(messageBytesMax / 2)
  const random = new Random(seed)
  const begunMs = performance.now()
  const scratch = await scratchDirectory('kill')
  const dataDir = join(scratch.path, 'data')
  const broker = await KilledBroker.start(
    { dataDir, segmentBytes, messageBytesMax, lowFreeBytes: 1 << 20 },
    random,
    seed,
    meanLifeMs,
  )
  const { url } = broker
  const running: { dispose: () => Promise<void> }[] = []
  try {
    await broker.ready()
    const admin = await connect(url)
    for (const queue of QUEUES) await admin.queues.ensure(queue, { maxDeliveries: 255 })
    await admin.close()
    const common = {
      url,
      queues: [STRICT, SHARED],
      coldQueue: COLD,
      bodyBytesMax,
      patienceMs: 1_500,
    }
    const coldMessages = backlogBytes === undefined ? 100 : Math.ceil(backlogBytes / bodyBytesMax)
    const producers = new LoadProcess({
      ...common,
      role: 'produce',
      name: 'p',
      seed: seed + 1,
      history: join(scratch.path, 'produced.ndjson'),
      clients: [2],
      rate: 1_000,
      coldMessages,
      ...(backlogBytes === undefined ? {} : { coldBodyBytes: bodyBytesMax }),
    })
    const consumers = new LoadProcess({
      ...common,
      role: 'consume',
      name: 'c',
      seed: seed + 2,
      history: join(scratch.path, 'consumed.ndjson'),
      clients: [1, 2],
      otherSettles: 80,
    })
    running.push(producers, consumers)
    const untilBothWork = (): Promise<true> => {
      const { confirmed } = producers.progress
      const { settled } = consumers.progress
      return until(
        `confirms and settles to continue (seed ${seed})`,
        () => {
          if (producers.exit !== undefined || consumers.exit !== undefined) {
            throw new Error(`a load process ended: ${producers.stderr} ${consumers.stderr}`)
          }
          return producers.progress.confirmed > confirmed && consumers.progress.settled > settled
        },
        READY_MS_MAX,
      )
    }
    await until('the backlog to be confirmed', () => producers.progress.confirmed >= coldMessages, 300_000)
    await untilBothWork()
    const before = await segmentNumbers(dataDir)

    for (let kill = 1; kill <= kills; kill++) {
      await broker.kill(untilBothWork)
      if (kill % 50 === 0)
        say(
          `${kill} kills, ${producers.progress.confirmed} confirmed, ${consumers.progress.delivered} delivered`,
        )
    }

    await broker.ready()
    await untilBothWork()
    const producing = producers.stop()
    consumers.drain()
    await withDeadline(producing, `the producers to end (seed ${seed})`, 60_000)
    const ends = await drained(url)
    await withDeadline(consumers.stop(), `the consumers to end (seed ${seed})`, 60_000)
    for (const load of [producers, consumers]) {
      if (load.exit?.code !== 0)
        throw new Error(`a load process ended with ${JSON.stringify(load.exit)}: ${load.stderr}`)
    }
    const after = await segmentNumbers(dataDir)
    const events = await readHistories([producers.history, consumers.history])
    // All consumers ran in one process that was never stopped, so their events are in true order.
    const report = checkHistory([...events, ...ends], { totalOrder: true })
    return {
      seed,
      kills,
      moments: broker.moments,
      report,
      overtaken: overtakings(events),
      unresolved: producers.progress.unresolved,
      failures: added([producers.progress.failures, consumers.progress.failures]),
      readyMs: broker.readyMs,
      startedMs: broker.startedMs,
      rolls: after.last - before.last,
      removed: after.first - before.first,
      tookMs: performance.now() - begunMs,
    }
  } finally {
    await Promise.all([broker, ...running].map((process) => process.dispose()))
    await scratch.dispose()
  }
}

/** The numbers of the first and the last segment file in a data directory. */
async function segmentNumbers(dataDir: string): Promise<{ first: number; last: number }> {
  const names = await readdir(dataDir).catch(() => [])
  const numbers = names
    .filter((name) => /^\d{20}\.segment$/.test(name))
    .map((name) => Number(name.slice(0, 20)))
  return { first: Math.min(...numbers), last: Math.max(...numbers) }
}

/** Waits until the queues are empty, or stop getting emptier, and reports what they hold. */
async function drained(url: string): Promise<HistoryEvent[]> {
  const admin = await connect(url)
  try {
    const left = async (): Promise<{ queue: string; left: number; dead: number }[]> =>
      Promise.all(
        QUEUES.map(async (queue) => {
          const { ready, scheduled, leased, dead } = await admin.queues.get(queue)
          return { queue, left: ready + scheduled + leased, dead }
        }),
      )
    await until(
      'the queues to be drained',
      async () => (await left()).every((queue) => queue.left === 0),
      60_000,
    ).catch(() => undefined)
    return (await left()).map((queue) => ({ kind: 'end', ...queue }))
  } finally {
    await admin.close()
  }
}

/**
 * Finds first deliveries that are out of order on the queue with one consumer, marked or not. A repeated delivery does
 * not count, because the message was seen before.
 */
function overtakings(events: readonly TimedEvent[]): string[] {
  const found: string[] = []
  const seen = new Set<number>()
  let highest = -1
  for (const event of events) {
    if (event.kind !== 'deliver' || event.queue !== STRICT || event.offset === undefined) continue
    if (seen.has(event.offset)) continue
    seen.add(event.offset)
    if (event.offset < highest)
      found.push(`${event.message} at offset ${event.offset} was first delivered after offset ${highest}`)
    highest = Math.max(highest, event.offset)
  }
  return found
}

/** The problems as text for a failure message; empty without problems. */
export function complaints({ report, overtaken, unresolved, failures, seed, kills }: KillResult): string {
  const lines = [findingLines(violations(report)), ...overtaken.slice(0, 10)].filter((line) => line !== '')
  if (unresolved > 0) {
    lines.push(
      `${unresolved} publishes of clients that were not replaced had no outcome: ${JSON.stringify(failures)}`,
    )
  }
  const refusals = unexpectedFailures(failures)
  if (refusals.length > 0) lines.push(`clients received ${refusals.join(', ')}: ${JSON.stringify(failures)}`)
  if (lines.length > 0)
    lines.push(`repeat with: node test/dist/fault/kill.js --kills ${kills} --seed ${seed}`)
  return lines.join('\n')
}

export function summary(results: readonly KillResult[]): string {
  const sum = (pick: (result: KillResult) => number): number =>
    results.reduce((total, one) => total + pick(one), 0)
  const kills = sum((one) => one.kills)
  const verdicts = ['lost', 'unexpected', 'duplicated', 'reordered', 'stuck', 'recovered'] as const
  return [
    `${kills} kills (${sum((one) => one.moments.load)} under load, ${sum((one) => one.moments.start)} just started, ` +
      `${sum((one) => one.moments.recovery)} recovering), seeds ${results.map(({ seed }) => seed).join(' ')}`,
    `${sum(({ report }) => report.attempted)} published: ${sum(({ report }) => report.confirmed)} confirmed, ` +
      `${sum(({ report }) => report.refused)} refused, ${sum(({ report }) => report.unknown)} unknown; ` +
      `${sum(({ report }) => report.deliveries)} deliveries, ${sum(({ report }) => report.settles)} settles`,
    `${verdicts.map((verdict) => `${verdict} ${sum(({ report }) => report.counts[verdict])}`).join(', ')}, ` +
      `overtaken ${sum(({ overtaken }) => overtaken.length)}, unresolved ${sum(({ unresolved }) => unresolved)}`,
    `errors that clients received: ${JSON.stringify(added(results.map(({ failures }) => failures)))}`,
    readyLine(results),
    `${sum(({ rolls }) => rolls)} segments started, ${sum(({ removed }) => removed)} freed; ${Math.round(sum(({ tookMs }) => tookMs) / 1000)} s`,
    `at a confidence of 95 %, a fault that shows in more than ${((3 / kills) * 100).toPrecision(2)} % of kills would have shown here`,
  ].join('\n')
}

/** Maximum number of kills in one history; more kills take several histories, each drained and checked. */
const KILLS_A_HISTORY = 200

async function main(args: readonly string[]): Promise<void> {
  const option = (name: string, fallback: number): number => numberOption(args, name, fallback)
  const kills = option('kills', 200)
  const seed = option('seed', Date.now() % 1_000_000)
  const mebibytes = (name: string): number | undefined => {
    const count = option(name, Number.NaN)
    return Number.isNaN(count) ? undefined : count * 2 ** 20
  }
  const segmentBytes = mebibytes('segment-mib')
  const backlogBytes = mebibytes('backlog-mib')
  const results: KillResult[] = []
  for (let done = 0, round = 0; done < kills; round++) {
    const result = await killRepeatedly({
      kills: Math.min(KILLS_A_HISTORY, kills - done),
      seed: seed + round,
      ...(segmentBytes === undefined ? {} : { segmentBytes }),
      ...(backlogBytes === undefined ? {} : { backlogBytes }),
      say: (line) => console.log(line),
    })
    results.push(result)
    done += result.kills
    printComplaints(complaints(result))
  }
  console.log(summary(results))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2))
