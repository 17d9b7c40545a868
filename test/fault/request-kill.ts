/**
 * Sends requests while the processes that reply are killed. Each request must get its own reply, or time out at its
 * deadline; afterwards nothing is left of them.
 *
 * As a script: node test/dist/fault/request-kill.js [--requests 20000] [--in-flight 64] [--seed 1]
 */
import { connect, SluiceError, type Sluice } from '@sluice/client'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { numberOption, printComplaints } from './arguments.js'
import { LoadProcess } from './load.js'
import { Random } from './random.js'
import { BrokerProcess } from '../rig/broker.js'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { delay, until, withDeadline } from '../rig/wait.js'
import { percentile } from '../scale/measures.js'

interface RequestKillOptions {
  readonly requests: number
  readonly inFlight: number
  readonly seed: number
}

interface RequestKillResult {
  readonly seed: number
  readonly requests: number
  readonly kills: number
  readonly answered: number
  readonly timedOut: number
  /** Times from the call to the reply, in ms. */
  readonly answerMs: readonly number[]
  /** Times from the deadline to the rejection, in ms. */
  readonly lateMs: readonly number[]
  /** What was wrong with requests: other replies, other errors. */
  readonly wrong: readonly string[]
  /** Messages in the queue at the end. */
  readonly left: number
  readonly tookMs: number
}

const QUEUE = 'questions'
const RESPONDERS = 3
const MEAN_LIFE_MS = 300
/** Most requests can wait for another responder; one in twenty cannot. */
const TIMEOUT_MS = 10_000
const SHORT_TIMEOUT_MS = 20
const SHORT_ONE_IN = 20
/** Maximum time between the deadline of a request and its rejection, on a busy machine. */
const LATE_MS_MAX = 1_000
const EARLY_MS_MAX = 1

/** The processes that reply. They are killed one after the other, each followed by a new one, until `end` is called. */
class Responders {
  kills = 0
  readonly #random: Random
  readonly #start: (name: string) => LoadProcess
  readonly #all: LoadProcess[] = []
  #isEnding = false
  #ended: Promise<void> = Promise.resolve()

  constructor(random: Random, start: (name: string) => LoadProcess) {
    this.#random = random
    this.#start = start
  }

  begin(): void {
    for (let place = 0; place < RESPONDERS; place++) this.#all.push(this.#start(`r${place}`))
    this.#ended = this.#run()
    // `end` reports the error.
    this.#ended.catch(() => undefined)
  }

  async #run(): Promise<void> {
    do {
      await delay(this.#random.exponential(MEAN_LIFE_MS))
      const running = this.#all.filter(({ exit }) => exit === undefined)
      const victim = running[this.#random.below(running.length)]!
      victim.signal('SIGKILL')
      await victim.exited
      this.kills++
      this.#all.push(this.#start(`r${this.#all.length}`))
    } while (!this.#isEnding)
  }

  async end(): Promise<void> {
    this.#isEnding = true
    await this.#ended
  }

  async dispose(): Promise<void> {
    await Promise.allSettled([this.end()])
    await Promise.all(this.#all.map((responder) => responder.dispose()))
  }
}

/** Sends the requests, and records the outcome of each. */
class Requester {
  readonly answerMs: number[] = []
  readonly lateMs: number[] = []
  readonly wrong: string[] = []
  readonly #client: Sluice
  readonly #random: Random
  #left: number

  constructor(client: Sluice, random: Random, requests: number) {
    this.#client = client
    this.#random = random
    this.#left = requests
  }

  async run(inFlight: number): Promise<void> {
    await Promise.all(Array.from({ length: inFlight }, () => this.#loop()))
  }

  async #loop(): Promise<void> {
    while (this.#left > 0) await this.#one(`q-${this.#left--}`)
  }

  async #one(name: string): Promise<void> {
    const timeout = this.#random.below(SHORT_ONE_IN) === 0 ? SHORT_TIMEOUT_MS : TIMEOUT_MS
    const sentMs = performance.now()
    try {
      const { body } = await this.#client.request(QUEUE, `${name} `, { timeout })
      this.answerMs.push(performance.now() - sentMs)
      if (body !== name) this.wrong.push(`${name} got the reply ${String(body)}`)
    } catch (error) {
      const lateMs = performance.now() - sentMs - timeout
      const isTimeout = error instanceof SluiceError && error.code === 'REQUEST_TIMEOUT'
      if (!isTimeout) this.wrong.push(`${name}: ${String(error)}`)
      else if (lateMs < -EARLY_MS_MAX || lateMs > LATE_MS_MAX)
        this.wrong.push(`${name} timed out ${lateMs.toFixed(1)} ms after its deadline of ${timeout} ms`)
      else this.lateMs.push(lateMs)
    }
  }
}

async function killResponders(options: RequestKillOptions): Promise<RequestKillResult> {
  const { requests, inFlight, seed } = options
  const random = new Random(seed)
  const begunMs = performance.now()
  const scratch = await scratchDirectory('request-kill')
  const port = await freePort()
  const broker = new BrokerProcess({ port, dataDir: join(scratch.path, 'data') })
  const url = `sluice://127.0.0.1:${port}`
  const responders = new Responders(
    new Random(seed + 1),
    (name) =>
      new LoadProcess({
        role: 'consume',
        name,
        url,
        queues: [QUEUE],
        clients: [1],
        replies: true,
        bodyBytesMax: 0,
        patienceMs: 10_000,
        seed: random.below(1 << 30),
        history: join(scratch.path, `${name}.ndjson`),
      }),
  )
  let client: Sluice | undefined
  try {
    await withDeadline(broker.ready(), 'the broker to be ready', 20_000)
    client = await connect(url, { name: 'requester' })
    const { queues } = client
    await queues.ensure(QUEUE)
    responders.begin()
    const requester = new Requester(client, random, requests)
    await withDeadline(requester.run(inFlight), `the requests to end (seed ${seed})`, 240_000)
    await responders.end()
    const left = async (): Promise<number> => {
      const { ready, scheduled, leased, dead } = await queues.get(QUEUE)
      return ready + scheduled + leased + dead
    }
    // A request whose responder was killed after it had replied comes back, or expires.
    await until('the queue to be empty', async () => (await left()) === 0, 30_000).catch(() => undefined)
    const { answerMs, lateMs, wrong } = requester
    return {
      seed,
      requests,
      kills: responders.kills,
      answered: answerMs.length,
      timedOut: lateMs.length,
      answerMs,
      lateMs,
      wrong,
      left: await left(),
      tookMs: performance.now() - begunMs,
    }
  } finally {
    await client?.close({ timeout: 2_000 })
    await responders.dispose()
    await broker.dispose()
    await scratch.dispose()
  }
}

/** The problems as text; empty without problems. */
function complaints({ requests, answered, timedOut, wrong, left, seed }: RequestKillResult): string {
  const lines = wrong.slice(0, 10)
  if (answered + timedOut !== requests)
    lines.push(`${answered} requests got a reply and ${timedOut} timed out, of ${requests}`)
  if (left > 0) lines.push(`${left} messages are left in the queue`)
  if (lines.length > 0)
    lines.push(`repeat with: node test/dist/fault/request-kill.js --requests ${requests} --seed ${seed}`)
  return lines.join('\n')
}

function summary(result: RequestKillResult): string {
  const { requests, kills, answered, timedOut, answerMs, lateMs, wrong, left, seed, tookMs } = result
  const ms = (times: readonly number[], share: number): string => `${percentile(times, share).toFixed(1)} ms`
  return [
    `${requests} requests, ${kills} kills of responders, seed ${seed}`,
    `answered ${answered}, timed out at the deadline ${timedOut}, wrong ${wrong.length}, left in the queue ${left}`,
    `reply p50 ${ms(answerMs, 0.5)}, p99 ${ms(answerMs, 0.99)}, max ${ms(answerMs, 1)}`,
    `rejected after the deadline p50 ${ms(lateMs, 0.5)}, max ${ms(lateMs, 1)}; ${Math.round(tookMs / 1000)} s`,
  ].join('\n')
}

async function main(args: readonly string[]): Promise<void> {
  const result = await killResponders({
    requests: numberOption(args, 'requests', 20_000),
    inFlight: numberOption(args, 'in-flight', 64),
    seed: numberOption(args, 'seed', Date.now() % 1_000_000),
  })
  printComplaints(complaints(result))
  console.log(summary(result))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2))
