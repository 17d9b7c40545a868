/**
 * One load process: a producer or a consumer with its own connection. It follows the requests of its parent, reports
 * its count on request, and reports its results at the end.
 */
import { createHistogram } from 'node:perf_hooks'
import { atMsOf, Bodies, Seen } from './bodies.js'
import type { Session } from './driver.js'
import { DRIVERS } from './drivers/index.js'
import { nowMs, pace } from './pacer.js'
import { copiesOf, type Scenario } from './scenario.js'

export interface Task {
  readonly role: 'producer' | 'consumer'
  readonly driver: string
  readonly url: string
  readonly queues: readonly string[]
  readonly scenario: Scenario
  /** Index of the producer. */
  readonly index: number
  /** Number of messages after which a producer stops; 0: it runs until `stop`. */
  readonly messages: number
}

export type Order = Task | 'count' | 'reset' | 'stop'

/** Counts since the last reset, by the monotonic clock. `lastCount` is the count at `lastMs`, when the clock was last read. */
export interface Count {
  readonly count: number
  readonly atMs: number
  readonly firstMs: number
  readonly lastMs: number
  readonly lastCount: number
}

export interface Result extends Count {
  readonly failed: number
  /** Message of the first failure. */
  readonly failure: string | undefined
  /**
   * Latencies in microseconds. A producer measures until the confirm: from the call, or at a fixed rate from the time
   * at which the message was due to be sent. A consumer measures from the time at which the message was due to be sent
   * until it arrives.
   */
  readonly latency: Latency | undefined
  /** The messages that a consumer received. */
  readonly seen: readonly (Uint8Array | undefined)[]
  readonly duplicates: number
  readonly damaged: number
  /** CPU time of this process since the last reset, in microseconds. */
  readonly cpuUs: number
}

export interface Latency {
  readonly count: number
  readonly p50: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

export type Report =
  | { readonly is: 'ready' }
  | { readonly is: 'count'; readonly count: Count }
  | { readonly is: 'result'; readonly result: Result }

/** One in this many closed-loop publishes is timed, because reading the clock for each would be measured too. */
const TIMED_EVERY = 16

class Load {
  readonly #task: Task
  readonly #session: Session
  readonly #bodies: Bodies
  readonly #seen = new Seen()
  readonly #latency = createHistogram()
  #count = 0
  #firstMs = 0
  #lastMs = 0
  #lastCount = 0
  #failed = 0
  #failure: string | undefined
  #outstanding = 0
  #sent = 0
  #isStopped = false
  #stopPacer: (() => void) | undefined
  #idle: (() => void) | undefined
  #cpu = process.cpuUsage()

  constructor(task: Task, session: Session) {
    this.#task = task
    this.#session = session
    this.#bodies = new Bodies(task.index, task.scenario)
  }

  reset(): void {
    this.#latency.reset()
    this.#firstMs = 0
    this.#cpu = process.cpuUsage()
  }

  count(): Count {
    return {
      count: this.#count,
      atMs: nowMs(),
      firstMs: this.#firstMs,
      lastMs: this.#lastMs,
      lastCount: this.#lastCount,
    }
  }

  result(): Result {
    const { user, system } = process.cpuUsage(this.#cpu)
    const latency = this.#latency
    return {
      ...this.count(),
      failed: this.#failed,
      failure: this.#failure,
      latency:
        latency.count === 0
          ? undefined
          : {
              count: latency.count,
              p50: latency.percentile(50),
              p99: latency.percentile(99),
              p999: latency.percentile(99.9),
              max: latency.max,
            },
      seen: this.#seen.bits,
      duplicates: this.#seen.duplicates,
      damaged: this.#seen.damaged,
      cpuUs: user + system,
    }
  }

  async consume(): Promise<void> {
    const { scenario, queues } = this.#task
    const timed = scenario.kind === 'latency'
    // If each queue gets all messages, as many are in flight in each.
    const shares = scenario.fanOut === 'none' ? queues.length : 1
    const held = Math.max(1, Math.floor(scenario.inFlight / shares))
    const copies = copiesOf(scenario)
    const copyOf = scenario.from === 'queue' ? (queue: number) => queue % copies : () => this.#task.index
    for (const [index, queue] of queues.entries()) {
      await this.#session.consume(queue, held, (body, ack) => {
        this.#seen.take(body, copyOf(index), copies)
        if (timed) this.#record(nowMs() - atMsOf(body))
        ack()
        this.#counted()
      })
    }
  }

  /** Publishes until it is stopped or has sent all messages; resolves when every publish is answered. */
  async produce(): Promise<void> {
    const { scenario } = this.#task
    const idle = new Promise<void>((resolve) => {
      this.#idle = resolve
    })
    const publishAt = (atMs: number): void => this.#publishAt(atMs)
    if (scenario.kind === 'latency') this.#stopPacer = pace(scenario.rate / scenario.producers, publishAt)
    else for (let i = 0; i < scenario.inFlight; i++) this.#publish()
    await idle
  }

  stop(): void {
    this.#isStopped = true
    this.#stopPacer?.()
    if (this.#outstanding === 0) this.#idle?.()
  }

  #send(atMs: number): Promise<unknown> {
    const { queues, index, scenario } = this.#task
    const body = this.#bodies.next(atMs)
    if (scenario.fanOut !== 'none') return this.#session.publishToAll!(queues, body)
    const queue =
      queues.length === 1 ? queues[0]! : queues[(this.#sent * scenario.stride + index) % queues.length]!
    return this.#session.publish(queue, body)
  }

  // In a closed loop each answer starts the next publish.
  #publish(): void {
    const { messages } = this.#task
    if (this.#isStopped || (messages > 0 && this.#sent >= messages)) {
      if (this.#outstanding === 0) this.#idle?.()
      return
    }
    this.#outstanding++
    const isTimed = this.#sent % TIMED_EVERY === 0
    const atMs = isTimed ? nowMs() : 0
    const answer = this.#send(atMs)
    this.#sent++
    if (!isTimed) {
      answer.then(this.#confirmed, this.#refused)
      return
    }
    answer.then(() => {
      this.#record(nowMs() - atMs)
      this.#confirmed()
    }, this.#refused)
  }

  readonly #confirmed = (): void => {
    this.#counted()
    this.#outstanding--
    this.#publish()
  }

  readonly #refused = (error: unknown): void => {
    this.#failed++
    this.#failure ??= String(error)
    this.#outstanding--
    this.#publish()
  }

  #publishAt(atMs: number): void {
    if (this.#isStopped) return
    this.#outstanding++
    const answer = this.#send(atMs)
    this.#sent++
    const answered = (): void => {
      this.#outstanding--
      if (this.#isStopped && this.#outstanding === 0) this.#idle?.()
    }
    answer.then(
      () => {
        this.#counted()
        this.#record(nowMs() - atMs)
        answered()
      },
      (error: unknown) => {
        this.#failed++
        this.#failure ??= String(error)
        answered()
      },
    )
  }

  #record(ms: number): void {
    this.#latency.record(Math.max(1, Math.round(ms * 1_000)))
  }

  #counted(): void {
    this.#count++
    if (this.#firstMs === 0) this.#firstMs = nowMs()
    if ((this.#count & 63) !== 0) return
    this.#lastMs = nowMs()
    this.#lastCount = this.#count
  }
}

function report(message: Report, sent?: () => void): void {
  process.send?.(message, undefined, undefined, sent)
}

async function start(task: Task): Promise<void> {
  const driver = DRIVERS.find(({ name }) => name === task.driver)!
  const session = await driver.connect(task.url, task.scenario, task.index)
  if (task.scenario.fanOut !== 'none' && session.publishToAll === undefined)
    throw new Error(
      `the driver cannot send a message to several queues, as the scenario ${task.scenario.name} does`,
    )
  const load = new Load(task, session)
  process.on('message', (order: Order) => {
    if (order === 'count') report({ is: 'count', count: load.count() })
    else if (order === 'reset') load.reset()
    else if (order === 'stop') load.stop()
  })
  if (task.role === 'producer') {
    report({ is: 'ready' })
    await load.produce()
  } else {
    await load.consume()
    report({ is: 'ready' })
    await new Promise<void>((resolve) => {
      process.on('message', (order: Order) => {
        if (order === 'stop') resolve()
      })
    })
  }
  await new Promise<void>((resolve) => report({ is: 'result', result: load.result() }, resolve))
  await session.close().catch(() => {})
  process.exit()
}

process.on('disconnect', () => process.exit())
process.once('message', (task: Task) => {
  start(task).catch((error: unknown) => {
    process.stderr.write(`${task.driver} ${task.role}: ${String(error)}\n`)
    process.exit(1)
  })
})
