/**
 * One load process of `sluice bench`: a producer or a consumer with its own connection. It receives its task from its
 * parent, and reports counts and latencies a few times a second.
 *
 * If a rate is set, latencies are measured from the intended send time, so that a stall increases the latency of each
 * message that it delays. Otherwise latencies are measured from the call. Times are read from the monotonic clock of
 * the system, which all processes share.
 */
import {
  connect,
  queue,
  SluiceError,
  type ErrorCode,
  type Message,
  type Queue,
  type Sluice,
} from '@sluice/client'
import { nowMs, pace } from './pacer.js'

export interface LoadTask {
  readonly role: 'producer' | 'consumer'
  readonly url: string | undefined
  readonly queue: string
  /** Size of a body in bytes; at least 8, for the send time. */
  readonly size: number
  /** Maximum number of unanswered publishes, or of messages that a consumer holds. */
  readonly inFlight: number
  /** Number of messages per second that this process publishes, independent of confirms. With 0, each confirm starts the next publish. */
  readonly rate: number
  /** Number of messages after which the process stops. With 0, it stops when the parent sends `stop`. */
  readonly messages: number
  /** Whether bodies contain their send time, which the consumer reads. */
  readonly endToEnd: boolean
}

export interface LoadReport {
  /** Number of messages confirmed or acknowledged since the process started. */
  readonly count: number
  /** Times of the first message and of this report, by the monotonic clock. */
  readonly firstMs: number
  readonly atMs: number
  /**
   * Since the last report: failed publishes, and latencies in ms. If there are more than `SAMPLES_MAX` latencies, they
   * are a sample.
   */
  readonly failed: number
  readonly latencies: readonly number[]
}

/** The error that ended the process. */
export interface LoadFailure {
  readonly failure: { readonly code: ErrorCode; readonly message: string }
}

const REPORT_MS = 200
/** Maximum number of latencies in one report. */
const SAMPLES_MAX = 5_000
/** Without a rate, one in this many publishes is timed. Reading the clock for each publish would distort the result. */
const TIMED_EVERY = 16

class Load {
  readonly #task: LoadTask
  readonly #sluice: Sluice
  readonly #queue: Queue<Uint8Array>
  /** The body of messages without a send time. */
  readonly #plainBody: Uint8Array
  #count = 0
  #firstMs = 0
  #failed = 0
  #hasReportedFailure = false
  #latencies: number[] = []
  #stopped = false
  #stopPacer: (() => void) | undefined
  #finished: (() => void) | undefined
  #outstanding = 0
  #sent = 0

  constructor(task: LoadTask, sluice: Sluice) {
    this.#task = task
    this.#sluice = sluice
    this.#queue = queue<Uint8Array>(task.queue)
    this.#plainBody = new Uint8Array(task.size).fill(0x78)
  }

  async run(): Promise<void> {
    const reporter = setInterval(() => this.#report(), REPORT_MS)
    process.on('message', (message) => {
      if (message === 'stop') this.#stop()
    })
    if (this.#task.role === 'consumer') await this.#consume()
    else await this.#produce()
    clearInterval(reporter)
    this.#report()
    await this.#sluice.close()
    process.disconnect()
  }

  #stop(): void {
    this.#stopped = true
    this.#stopPacer?.()
    this.#finished?.()
  }

  #report(): void {
    const report: LoadReport = {
      count: this.#count,
      firstMs: this.#firstMs,
      atMs: nowMs(),
      failed: this.#failed,
      latencies: this.#latencies,
    }
    this.#failed = 0
    this.#latencies = []
    process.send?.(report)
  }

  #sample(ms: number): void {
    if (this.#latencies.length < SAMPLES_MAX) this.#latencies.push(ms)
    else this.#latencies[Math.floor(Math.random() * SAMPLES_MAX)] = ms
  }

  async #produce(): Promise<void> {
    const { inFlight, rate } = this.#task
    const done = new Promise<void>((resolve) => {
      this.#finished = () => {
        if (this.#outstanding === 0) resolve()
      }
    })
    if (rate > 0) this.#pace(rate)
    else for (let i = 0; i < inFlight; i++) this.#publish()
    await done
  }

  // Each confirm starts the next publish.
  #publish(): void {
    const { messages, endToEnd } = this.#task
    if (this.#stopped || (messages > 0 && this.#sent >= messages)) {
      this.#finished?.()
      return
    }
    const timed = this.#sent++ % TIMED_EVERY === 0
    this.#outstanding++
    if (!timed) {
      this.#sluice
        .publish(this.#queue, endToEnd ? this.#body(nowMs()) : this.#plainBody)
        .then(this.#confirmed, this.#refused)
      return
    }
    const at = nowMs()
    this.#sluice.publish(this.#queue, endToEnd ? this.#body(at) : this.#plainBody).then(() => {
      this.#sample(nowMs() - at)
      this.#confirmed()
    }, this.#refused)
  }

  readonly #confirmed = (): void => {
    this.#count++
    this.#outstanding--
    this.#publish()
  }

  readonly #refused = (error: unknown): void => {
    this.#failed++
    this.#outstanding--
    this.#publishFailed(error)
    this.#publish()
  }

  #publishFailed(error: unknown): void {
    if (this.#hasReportedFailure) return
    this.#hasReportedFailure = true
    // Further publishes would be refused too.
    if (error instanceof SluiceError && !error.retryable && error.outcome === undefined) giveUp(error)
    else process.stderr.write(`A publish failed: ${String(error)}\n`)
  }

  #pace(rate: number): void {
    const end = pace(rate, (at) => this.#publishAt(at))
    this.#stopPacer = () => {
      end()
      this.#finished?.()
    }
  }

  #publishAt(at: number): void {
    if (this.#stopped) return
    this.#outstanding++
    this.#sluice.publish(this.#queue, this.#body(at)).then(
      () => {
        this.#count++
        this.#outstanding--
        this.#sample(nowMs() - at)
        if (this.#stopped) this.#finished?.()
      },
      (error: unknown) => {
        this.#failed++
        this.#outstanding--
        this.#publishFailed(error)
        if (this.#stopped) this.#finished?.()
      },
    )
  }

  #body(at: number): Uint8Array {
    const body = new Uint8Array(this.#task.size)
    new DataView(body.buffer).setFloat64(0, at)
    return body
  }

  async #consume(): Promise<void> {
    const { inFlight, messages, endToEnd } = this.#task
    const handle = (message: Message<Uint8Array>): void => {
      if (endToEnd) {
        const body = message.body
        this.#sample(nowMs() - new DataView(body.buffer, body.byteOffset).getFloat64(0))
      }
      void message.ack()
      if (this.#count++ === 0) this.#firstMs = nowMs()
      if (this.#count === messages) this.#finished?.()
    }
    const worker = this.#sluice.consume(this.#queue, { concurrency: inFlight, prefetch: inFlight }, handle)
    await new Promise<void>((resolve) => {
      this.#finished = resolve
    })
    await worker.close()
  }
}

async function start(task: LoadTask): Promise<void> {
  const sluice = await connect(task.url, {
    name: `bench ${task.role}`,
    maxInFlight: Math.max(task.inFlight, 1_000),
  })
  await new Load(task, sluice).run()
}

function giveUp(error: unknown): void {
  if (!(error instanceof SluiceError)) {
    process.stderr.write(`${String(error)}\n`)
    process.exit(1)
  }
  const report: LoadFailure = { failure: { code: error.code, message: error.message } }
  process.send?.(report, () => process.exit(1))
}

// Ctrl-C reaches the whole process group. This process ignores the signal, and is ended by its parent. It also exits
// when the parent is gone.
process.on('SIGINT', () => {})
process.on('disconnect', () => process.exit())

process.once('message', (task: LoadTask) => {
  start(task).catch(giveUp)
})
