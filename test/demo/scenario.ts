/**
 * The course of the demo: two producers and three workers use one queue. Half-way through, a worker is killed and
 * restarted, and then the broker, while producers publish. The clients reconnect without help.
 *
 * Producers may only run a limited number of records ahead of the workers; otherwise they would end before the first
 * kill.
 */
import { connect, type QueueInfo, type Sluice } from '@sluice/client'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { Conditions } from './conditions.js'
import { firstRecord, Flights, PRODUCERS } from './flights.js'
import { Ledger } from './ledger.js'
import type { Stop } from './part.js'
import { BROKER_PROGRAM, type Process } from '../rig/program.js'
import { freePort } from '../rig/scratch.js'
import { grouped, type Progress } from './progress.js'
import type { Grant, Hold, ProducerReport, Refusal, WorkerReport } from './reports.js'
import type { Stage } from './stage.js'

const WORKERS = 3
/** The share of all records that may be published and not yet acknowledged. */
const LEAD_SHARE = 0.25
/** The share of acknowledged records at which the worker is killed. */
const WORKER_KILL_SHARE = 0.5
/** The broker is not killed until that worker is back at work or this share of the records is acknowledged. */
const BROKER_KILL_SHARE = 0.6
/** Minimum number of unanswered publishes when the broker is killed. */
const UNANSWERED_AT_KILL_MIN = 200
/** Minimum number of confirmed records that are not yet handled when the broker is killed. */
const UNHANDLED_AT_KILL_MIN = 100
/**
 * When this share of the records is acknowledged, the broker is killed even if the two minimums above are not reached,
 * so that there are records left to publish.
 */
const BROKER_KILL_SHARE_MAX = 0.72
const POLL_MS = 5

const PRODUCER_PROGRAM = new URL('./producer.js', import.meta.url)
const WORKER_PROGRAM = new URL('./worker.js', import.meta.url)

export interface Settings extends Stage {
  readonly count: number
  readonly progress: Progress
}

export interface Outcome {
  readonly ledger: Ledger
  readonly published: number
  /** The state of the queue at the end. */
  readonly queue: QueueInfo
  readonly refusals: readonly Refusal[]
  /** Time from the first publish until the queue is empty. */
  readonly seconds: number
  /** Time without a broker: from the kill of the broker to the first connection that the restarted broker accepts. */
  readonly awaySeconds: number
}

interface ProducerState {
  process: Process
  readonly count: number
  isReady: boolean
  isDone: boolean
  allowed: number
  published: number
  confirmed: number
}

interface WorkerState {
  process: Process
  isReady: boolean
  isAtWork: boolean
  /** Whether the worker holds work that it will not acknowledge. */
  isHeld: boolean
}

export class Scenario {
  readonly #settings: Settings
  readonly #ledger: Ledger
  readonly #producers: ProducerState[] = []
  readonly #refusals: Refusal[] = []
  #sluice: Sluice | undefined
  #workersStarted = 0
  #url = ''
  #acked = 0
  #unansweredAtCut = 0
  readonly #conditions = new Conditions()

  constructor(settings: Settings) {
    this.#settings = settings
    this.#ledger = new Ledger(settings.count)
  }

  get counts(): { published: number; confirmed: number; acked: number } {
    let published = 0
    let confirmed = 0
    for (const producer of this.#producers) {
      published += producer.published
      confirmed += producer.confirmed
    }
    return { published, confirmed, acked: this.#acked }
  }

  async play(): Promise<Outcome> {
    const { count, progress, signal, fail } = this.#settings
    const port = await freePort()
    this.#url = `sluice://127.0.0.1:${port}`
    const broker = this.#startBroker(port)
    const sluice = (this.#sluice = await connect(this.#url, { name: 'demo', connectTimeout: '30s', signal }))
    await sluice.queues.ensure(Flights)
    const workers = Array.from({ length: WORKERS }, () => this.#startWorker())
    for (let number = 0; number < PRODUCERS; number++) this.#startProducer(number)
    await this.#conditions.until(() => [...workers, ...this.#producers].every(({ isReady }) => isReady))
    const cast = `${PRODUCERS} producers, ${WORKERS} workers, 1 broker on port ${port}`
    progress.say(`${grouped(count)} flight records, ${cast}`, 'in full flow')

    const beganMs = performance.now()
    const drained = this.#watch(sluice)
    drained.catch(fail)
    await this.#conditions.until(() => this.#acked >= count * WORKER_KILL_SHARE)
    workers[1] = await this.#restartWorker(workers[1]!)
    const awaySeconds = await this.#restartBroker(broker, port, sluice, workers[1])
    const queue = await drained
    const seconds = (performance.now() - beganMs) / 1000
    progress.say('the queue is drained', 'closing')
    for (const { process } of workers) {
      process.mayEnd = true
      process.send({ stop: true } satisfies Stop)
    }
    await Promise.all(workers.map(({ process }) => process.ended))
    const { published } = this.counts
    return { ledger: this.#ledger, published, queue, refusals: this.#refusals, seconds, awaySeconds }
  }

  /** Closes the connection, after success and failure. */
  async close(): Promise<void> {
    // The broker may have ended already.
    await this.#sluice?.close({ timeout: 0 }).catch(() => {})
  }

  async #restartWorker(worker: WorkerState): Promise<WorkerState> {
    // A worker without leased messages would leave no message to deliver again.
    worker.process.send({ hold: true } satisfies Hold)
    await this.#conditions.until(() => worker.isHeld)
    await worker.process.kill()
    this.#settings.progress.say('killed worker 2 (SIGKILL), starting it again', 'worker 2 is starting again')
    return this.#startWorker()
  }

  /** Kills the broker and restarts it; returns the seconds without a broker. */
  async #restartBroker(broker: Process, port: number, sluice: Sluice, worker: WorkerState): Promise<number> {
    const { count, progress } = this.#settings
    await this.#conditions.until(() => worker.isAtWork || this.#acked >= count * BROKER_KILL_SHARE)
    await this.#conditions.until(() => this.#isInFullFlow || this.#acked >= count * BROKER_KILL_SHARE_MAX)
    const back = new Promise<void>((resolve) => {
      sluice.on('connected', () => resolve())
    })
    await broker.kill()
    const beganMs = performance.now()
    progress.say('killed the broker (SIGKILL), starting it again on the same data', 'the broker is away')
    this.#startBroker(port)
    await back
    const awaySeconds = (performance.now() - beganMs) / 1000
    const again = `${grouped(this.#unansweredAtCut)} unanswered publishes are sent again`
    progress.say(`the broker is back after ${awaySeconds.toFixed(1)} s; ${again}`, 'in full flow again')
    return awaySeconds
  }

  /** Whether enough is in flight for the kill, according to the reports so far. */
  get #isInFullFlow(): boolean {
    const { published, confirmed } = this.counts
    const unhandled = confirmed - this.#ledger.handledRecords
    return published - confirmed >= UNANSWERED_AT_KILL_MIN && unhandled >= UNHANDLED_AT_KILL_MIN
  }

  #startBroker(port: number): Process {
    const { directory, processes } = this.#settings
    const args = ['serve', '--port', String(port), '--data-dir', join(directory, 'data')]
    return processes.start('broker', BROKER_PROGRAM, args, join(directory, 'broker.log'))
  }

  #startProducer(number: number): void {
    const { count, directory, processes } = this.#settings
    const name = `producer ${number + 1}`
    const args = [this.#url, String(number), String(count)]
    const process = processes.startReporting(
      name,
      PRODUCER_PROGRAM,
      args,
      join(directory, 'clients.log'),
      (report) => this.#producerReported(number, report as ProducerReport),
    )
    const records = firstRecord(number + 1, count) - firstRecord(number, count)
    this.#producers[number] = {
      process,
      count: records,
      isReady: false,
      isDone: false,
      allowed: 0,
      published: 0,
      confirmed: 0,
    }
  }

  #producerReported(number: number, report: ProducerReport): void {
    const producer = this.#producers[number]!
    switch (report.kind) {
      case 'ready':
        producer.isReady = true
        break
      case 'progress':
        producer.published = report.published
        producer.confirmed = report.confirmed
        break
      case 'cut':
        this.#unansweredAtCut += report.unanswered
        break
      case 'done':
        producer.isDone = true
        producer.process.mayEnd = true
        this.#ledger.confirmed(number, report.offsets)
        this.#refusals.push(...report.refusals)
        break
    }
    this.#changed()
  }

  #startWorker(): WorkerState {
    const { directory, processes } = this.#settings
    const id = this.#workersStarted++
    const name = `worker ${(id % WORKERS) + 1}`
    const process = processes.startReporting(
      name,
      WORKER_PROGRAM,
      [this.#url, name],
      join(directory, 'clients.log'),
      (report) => this.#workerReported(id, state, report as WorkerReport),
    )
    const state: WorkerState = { process, isReady: false, isAtWork: false, isHeld: false }
    return state
  }

  #workerReported(id: number, worker: WorkerState, report: WorkerReport): void {
    switch (report.kind) {
      case 'ready':
        worker.isReady = true
        break
      case 'handled':
        worker.isAtWork = true
        if (report.isHeld) worker.isHeld = true
        for (const record of report.records) this.#ledger.handled(id, record)
        break
    }
    this.#changed()
  }

  /** Polls the broker's count of acknowledged messages and allows more publishes, until the queue is drained. */
  async #watch(sluice: Sluice): Promise<QueueInfo> {
    for (;;) {
      const isPublished = this.#producers.every(({ isDone }) => isDone)
      const queue = await sluice.queues.get(Flights)
      this.#acked = queue.acked
      this.#grant()
      this.#changed()
      if (isPublished && queue.ready + queue.scheduled + queue.leased === 0) return queue
      await pause(POLL_MS)
    }
  }

  /**
   * Allows the producers to run ahead of the workers. The allowance grows in large steps, so that they publish at full
   * speed.
   */
  #grant(): void {
    const { count } = this.#settings
    const ahead = count * LEAD_SHARE
    for (const producer of this.#producers) {
      const allowed = Math.min(Math.ceil((this.#acked + ahead) / PRODUCERS), producer.count)
      const isEnough = allowed - producer.allowed >= ahead / PRODUCERS / 2 || allowed === producer.count
      if (producer.isDone || !isEnough || allowed === producer.allowed) continue
      producer.allowed = allowed
      producer.process.send({ allowed } satisfies Grant)
    }
  }

  #changed(): void {
    this.#settings.progress.update(this.counts)
    this.#conditions.look()
  }
}
