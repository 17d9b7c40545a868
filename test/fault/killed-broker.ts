/**
 * A broker process that is killed at random moments, and restarted on the same data and port. Counts the moments, and
 * measures how long each start takes.
 */
import type { BrokerArguments } from '../rig/broker-process.js'
import { BrokerProcess } from '../rig/broker.js'
import { freePort } from '../rig/scratch.js'
import { delay, withDeadline } from '../rig/wait.js'
import type { Random } from './random.js'

/** When a kill happens: under load, soon after the start, or during recovery. */
export type Moment = 'load' | 'start' | 'recovery'

export const READY_MS_MAX = 20_000
const START_MEAN_MS = 30
const RECOVERY_MS_MAX = 25

export class KilledBroker implements StartTimes {
  readonly url: string
  readonly moments: Record<Moment, number> = { load: 0, start: 0, recovery: 0 }
  /** Times from spawn to the first accepted connection, in ms. */
  readonly readyMs: number[] = []
  /** How long each start took as measured by the broker, in ms. */
  readonly startedMs: number[] = []
  readonly #options: BrokerArguments
  readonly #random: Random
  readonly #seed: number
  readonly #meanLifeMs: number
  #process: BrokerProcess
  #kills = 0

  private constructor(options: BrokerArguments, random: Random, seed: number, meanLifeMs: number) {
    this.#options = options
    this.#random = random
    this.#seed = seed
    this.#meanLifeMs = meanLifeMs
    this.url = `sluice://127.0.0.1:${options.port}`
    this.#process = new BrokerProcess(options)
  }

  /** `meanLifeMs`: mean time under load before a kill. */
  static async start(
    options: Omit<BrokerArguments, 'port'>,
    random: Random,
    seed: number,
    meanLifeMs: number,
  ): Promise<KilledBroker> {
    return new KilledBroker({ ...options, port: await freePort() }, random, seed, meanLifeMs)
  }

  /** Resolves once the broker accepts connections. */
  async ready(): Promise<void> {
    const what = `the broker to be ready (seed ${this.#seed})`
    const { startedMs } = await withDeadline(this.#process.ready(), what, READY_MS_MAX)
    this.readyMs.push(this.#process.readyMs)
    this.startedMs.push(startedMs)
  }

  /** Kills the broker at a random moment, and starts it again. A kill under load waits for `work` first. */
  async kill(work: () => Promise<unknown>): Promise<void> {
    const random = this.#random
    const chance = random.next()
    const moment: Moment = chance < 0.6 ? 'load' : chance < 0.8 ? 'start' : 'recovery'
    this.moments[moment]++
    this.#kills++
    if (moment === 'recovery') {
      await this.#process.beginning()
      await delay(random.next() * RECOVERY_MS_MAX)
    } else {
      await this.ready()
      if (moment === 'load') await work()
      await delay(random.exponential(moment === 'load' ? this.#meanLifeMs : START_MEAN_MS))
    }
    const { exit, lines, stderr } = this.#process
    if (exit !== undefined) {
      const which = `seed ${this.#seed}, kill ${this.#kills}`
      throw new Error(`the broker ended by itself (${which}): ${lines.join('\n')} ${stderr}`)
    }
    this.#process.signal('SIGKILL')
    await this.#process.exited
    this.#process = new BrokerProcess(this.#options)
  }

  async dispose(): Promise<void> {
    await this.#process.dispose()
  }
}

/** The error codes that clients may receive when a broker dies or the test closes them. */
const EXPECTED_FAILURES: ReadonlySet<string> = new Set([
  'CONNECTION_LOST',
  'LEASE_LOST',
  'UNREACHABLE',
  'ABORTED',
  'CLOSED',
  'TIMEOUT',
])

/** The codes among the counted failures that a client must not receive. */
export function unexpectedFailures(failures: Readonly<Record<string, number>>): string[] {
  return Object.keys(failures).filter((code) => !EXPECTED_FAILURES.has(code))
}

export interface StartTimes {
  readonly readyMs: readonly number[]
  readonly startedMs: readonly number[]
}

/** A line about the times of all starts. */
export function readyLine(results: readonly StartTimes[]): string {
  const ready = results.flatMap(({ readyMs }) => readyMs).sort((a, b) => a - b)
  const started = results.flatMap(({ startedMs }) => startedMs).sort((a, b) => a - b)
  const at = (times: readonly number[], share: number): string => {
    const index = Math.min(times.length - 1, Math.floor(times.length * share))
    return `${Math.round(times[index] ?? Number.NaN)} ms`
  }
  return (
    `ready again p50 ${at(ready, 0.5)}, p99 ${at(ready, 0.99)} ` +
    `(as measured by the broker p50 ${at(started, 0.5)}, p99 ${at(started, 0.99)})`
  )
}
