/** Runs one scenario on a fresh broker with load processes and returns the measurements. */
import { fork, type ChildProcess } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { setTimeout as delay } from 'node:timers/promises'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { cpuMs, peakMib } from '../scale/proc.js'
import { Seen } from './bodies.js'
import type { Driver, Running } from './driver.js'
import type { Count, Latency, Order, Report, Result, Task } from './load.js'
import { copiesOf, type Scenario } from './scenario.js'

/** The results of one run. Rates are messages per second, latencies microseconds. */
export interface Outcome {
  readonly publish: number | undefined
  readonly consume: number | undefined
  /**
   * Latency from the call to the confirm; in scenarios of the kind `latency`, from the time at which the message was
   * due to be sent until the confirm.
   */
  readonly confirmLatency: Latency | undefined
  /** Latency from the time at which the message was due to be sent until a consumer has it. */
  readonly endToEnd: Latency | undefined
  readonly confirmed: number
  /** Number of messages that were confirmed but never consumed. */
  readonly lost: number
  readonly duplicates: number
  readonly damaged: number
  readonly failed: number
  readonly failure: string | undefined
  /** CPU microseconds per message, and peak resident memory in MiB, of the broker during the measurement. */
  readonly brokerCpuUs: number
  readonly brokerMib: number
}

/** A consumer is done when it receives nothing for this long. */
const STALL_MS = 10_000
/** Maximum time for publishing a backlog to a slow broker. */
const FILL_MS = 15_000

class Process {
  readonly child: ChildProcess
  readonly result: Promise<Result>
  readonly ready: Promise<true>
  readonly #counts: ((count: Count) => void)[] = []

  constructor(task: Task, node: string) {
    this.child = fork(fileURLToPath(new URL('load.js', import.meta.url)), [], {
      serialization: 'advanced',
      execPath: node,
    })
    const isTold = <T>(of: (report: Report) => T | undefined): Promise<T> => {
      const told = new Promise<T>((resolve, reject) => {
        this.child.on('message', (report: Report) => {
          const found = of(report)
          if (found !== undefined) resolve(found)
        })
        // When the process exits, its last report can still be under way; the channel is closed after the report.
        this.child.once('exit', (code) => {
          const end = (): void => reject(new Error(`a load process of ${task.driver} ended with ${code}`))
          if (this.child.connected) this.child.once('disconnect', end)
          else end()
        })
      })
      // Prevents an unhandled rejection if nothing waits for the promise.
      told.catch(() => {})
      return told
    }
    this.ready = isTold((report) => (report.is === 'ready' ? (true as const) : undefined))
    this.result = isTold((report) => (report.is === 'result' ? report.result : undefined))
    this.child.on('message', (report: Report) => {
      if (report.is === 'count') this.#counts.shift()?.(report.count)
    })
    this.child.on('error', () => {})
    this.order(task)
  }

  order(order: Order): void {
    if (this.child.connected) this.child.send(order)
  }

  count(): Promise<Count> {
    return new Promise((resolve, reject) => {
      this.#counts.push(resolve)
      this.result.catch(reject)
      this.order('count')
    })
  }
}

/** The counts at the start and at the end of a window of time. */
interface Window {
  readonly from: readonly Count[]
  readonly to: readonly Count[]
}

class Run {
  readonly #driver: Driver
  readonly #scenario: Scenario
  readonly #start: () => Promise<Running>
  readonly #queues: readonly string[]
  readonly #processes: Process[] = []
  #running: Running

  constructor(driver: Driver, scenario: Scenario, start: () => Promise<Running>, running: Running) {
    this.#driver = driver
    this.#scenario = scenario
    this.#start = start
    this.#running = running
    this.#queues = Array.from({ length: scenario.queues }, (_, index) => `load-${index}`)
  }

  makeQueues(): Promise<void> {
    return this.#running.makeQueues(this.#queues, this.#scenario)
  }

  killProcesses(): void {
    for (const { child } of this.#processes) child.kill('SIGKILL')
  }

  /** Stops the broker and all processes. */
  async stop(): Promise<void> {
    this.killProcesses()
    await this.#running.stop()
  }

  async outcome(): Promise<Outcome> {
    return this.#scenario.kind === 'consume' ? this.#backlog() : this.#steady()
  }

  // Publishes a backlog, then consumes it.
  async #backlog(): Promise<Outcome> {
    const { producers, messages } = this.#scenario
    const filling = await this.#load('producer', producers, Math.ceil(messages / producers))
    const end = setTimeout(() => {
      for (const process of filling) process.order('stop')
    }, FILL_MS)
    const published = await Promise.all(filling.map(({ result }) => result))
    clearTimeout(end)
    const confirmed = sum(published, ({ count }) => count)
    if (this.#scenario.restart) {
      await this.#running.stop()
      this.#running = await this.#start()
    }
    const cpu = this.#cpuMs()
    const consuming = await this.#load('consumer', this.#scenario.consumers, 0)
    await this.#consumed(consuming, confirmed * copiesOf(this.#scenario))
    const cpuMs = this.#cpuMs() - cpu
    const consumed = await this.#results(consuming)
    const first = Math.min(...consumed.map(({ firstMs }) => firstMs))
    const last = Math.max(...consumed.map(({ lastMs }) => lastMs))
    return this.#told(published, consumed, {
      publish: undefined,
      consume: (sum(consumed, ({ lastCount }) => lastCount) * 1_000) / (last - first),
      brokerCpuUs: (cpuMs * 1_000) / confirmed,
    })
  }

  // Publishes and consumes at the same time, for a fixed time.
  async #steady(): Promise<Outcome> {
    const { kind, producers, consumers, seconds, warmupSeconds } = this.#scenario
    const consuming = kind === 'publish' ? [] : await this.#load('consumer', consumers, 0)
    const publishing = await this.#load('producer', producers, 0)
    await delay(warmupSeconds * 1_000)
    for (const process of [...publishing, ...consuming]) process.order('reset')
    const cpu = this.#cpuMs()
    const from = await Promise.all([counts(publishing), counts(consuming)])
    await delay(seconds * 1_000)
    const to = await Promise.all([counts(publishing), counts(consuming)])
    const cpuMs = this.#cpuMs() - cpu
    const published = await this.#results(publishing)
    const confirmed = sum(published, ({ count }) => count)
    await this.#consumed(consuming, consuming.length === 0 ? 0 : confirmed * copiesOf(this.#scenario))
    const consumed = await this.#results(consuming)
    const window = { from: from[0], to: to[0] }
    return this.#told(published, consumed, {
      publish: rate(window),
      consume: consuming.length === 0 ? undefined : rate({ from: from[1], to: to[1] }),
      brokerCpuUs: (cpuMs * 1_000) / Math.max(1, messagesIn(window)),
    })
  }

  #told(
    published: readonly Result[],
    consumed: readonly Result[],
    figures: Pick<Outcome, 'publish' | 'consume' | 'brokerCpuUs'>,
  ): Outcome {
    const seen = new Seen()
    for (const { seen: bits } of consumed) seen.merge(bits)
    const all = [...published, ...consumed]
    const confirmed = sum(published, ({ count }) => count)
    return {
      ...figures,
      confirmLatency: worst(published),
      endToEnd: this.#scenario.kind === 'latency' ? worst(consumed) : undefined,
      confirmed,
      // A failed publish may still have been accepted, and its message delivered.
      lost: consumed.length === 0 ? 0 : Math.max(0, confirmed * copiesOf(this.#scenario) - seen.distinct),
      duplicates: seen.duplicates + sum(consumed, ({ duplicates }) => duplicates),
      damaged: sum(consumed, ({ damaged }) => damaged),
      failed: sum(all, ({ failed }) => failed),
      failure: all.find(({ failure }) => failure !== undefined)?.failure,
      brokerMib: this.#peakMib(),
    }
  }

  async #load(role: Task['role'], count: number, messages: number): Promise<Process[]> {
    const processes = Array.from({ length: count }, (_, index) => {
      const task: Task = {
        role,
        driver: this.#driver.name,
        url: this.#running.url,
        queues: this.#queues,
        scenario: this.#scenario,
        index,
        messages,
      }
      const started = new Process(task, this.#driver.node ?? process.execPath)
      this.#processes.push(started)
      return started
    })
    await Promise.all(processes.map(({ ready }) => ready))
    return processes
  }

  async #results(processes: readonly Process[]): Promise<Result[]> {
    for (const process of processes) process.order('stop')
    return Promise.all(processes.map(({ result }) => result))
  }

  // Waits until the consumers have `messages` messages, or no more arrive.
  async #consumed(processes: readonly Process[], messages: number): Promise<void> {
    let before = -1
    let sinceMs = performance.now()
    while (processes.length > 0) {
      const now = sum(await counts(processes), ({ count }) => count)
      if (now >= messages) return
      if (now > before) sinceMs = performance.now()
      else if (performance.now() - sinceMs > STALL_MS) return
      before = now
      await delay(50)
    }
  }

  #cpuMs(): number {
    return sum(this.#running.pids, (pid) => {
      const { user, system } = cpuMs(pid)
      return user + system
    })
  }

  #peakMib(): number {
    return sum(this.#running.pids, (pid) => peakMib(pid))
  }
}

/** Runs the scenario on a fresh broker. `signal` ends it early. No process is left running. */
export async function measure(driver: Driver, scenario: Scenario, signal: AbortSignal): Promise<Outcome> {
  const directory = await scratchDirectory('load')
  try {
    const port = await freePort()
    const start = (): Promise<Running> => driver.start(directory.path, port)
    const run = new Run(driver, scenario, start, await start())
    try {
      await run.makeQueues()
      const kill = (): void => run.killProcesses()
      signal.addEventListener('abort', kill)
      try {
        signal.throwIfAborted()
        return await run.outcome()
      } finally {
        signal.removeEventListener('abort', kill)
      }
    } finally {
      await run.stop()
    }
  } finally {
    await directory.dispose()
  }
}

function counts(processes: readonly Process[]): Promise<Count[]> {
  return Promise.all(processes.map((process) => process.count()))
}

function messagesIn({ from, to }: Window): number {
  return sum(to, ({ count }) => count) - sum(from, ({ count }) => count)
}

function rate({ from, to }: Window): number {
  return sum(to, ({ count, atMs }, index) => {
    const before = from[index]!
    return ((count - before.count) * 1_000) / (atMs - before.atMs)
  })
}

// With several processes, takes the worst value of each percentile, because percentiles cannot be added.
function worst(results: readonly Result[]): Latency | undefined {
  const all = results.flatMap(({ latency }) => latency ?? [])
  if (all.length === 0) return undefined
  const greatest = (of: (latency: Latency) => number): number => Math.max(...all.map(of))
  return {
    count: sum(all, ({ count }) => count),
    p50: greatest(({ p50 }) => p50),
    p99: greatest(({ p99 }) => p99),
    p999: greatest(({ p999 }) => p999),
    max: greatest(({ max }) => max),
  }
}

function sum<T>(values: readonly T[], of: (value: T, index: number) => number): number {
  return values.reduce((total, value, index) => total + of(value, index), 0)
}
