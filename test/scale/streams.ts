/**
 * A stream with many messages: the rate of one reader and of five groups at once, the CPU time that they take, how soon a
 * reader begins at a time, and the memory of the broker.
 */
import type { Sluice } from '@sluice/client'
import { Bench, BODY, median } from './measures.js'
import { cpuMs } from './proc.js'
import { fixed, whole, type Finding, type Scenario } from './scenario.js'

const BATCH = Array.from({ length: 100 }, () => ({ body: BODY }))
const IN_FLIGHT = 50
const RATE_MIN = 1_500_000
const BEGIN_MS_MAX = 50
const GROWTH_MIB_MAX = 100
const GROWTH_LOOK_MS = 100
const GROUPS = 5

/** Publishes `messages` messages, and returns the time at which half of them had been published. */
async function publishHalves(client: Sluice, messages: number): Promise<Date> {
  let left = Math.floor(messages / BATCH.length)
  const half = Math.floor(left / 2)
  let middle = new Date()
  const one = async (): Promise<void> => {
    while (left > 0) {
      if (--left === half) middle = new Date()
      await client.publishBatch('clicks', BATCH)
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, one))
  return middle
}

/** Reads the whole stream. */
async function readAll(client: Sluice, messages: number): Promise<void> {
  let next = 0
  for await (const batch of client.read('clicks', { prefetch: 65_535 }).batches()) {
    if (batch[0]!.offset !== next) throw new Error(`offset ${batch[0]!.offset} came instead of ${next}`)
    next += batch.length
  }
  if (next !== messages) throw new Error(`${next} messages were read instead of ${messages}`)
}

/** Consumes the whole stream as a group, and acknowledges each message by a call of its own. At the end nothing is left. */
async function consumeAll(client: Sluice, group: string, messages: number): Promise<void> {
  let next = 0
  await new Promise<void>((resolve, reject) => {
    const worker = client.consume(group, { concurrency: 1_000, prefetch: 4_000 }, (message) => {
      if (message.offset !== next)
        reject(new Error(`${group} got offset ${message.offset} instead of ${next}`))
      next++
      void message.ack()
      if (next === messages) void worker.close().then(resolve, reject)
    })
    worker.closed.catch(reject)
  })
  const { lag, missed } = await client.groups.get(group)
  if (lag + missed > 0) throw new Error(`${group} has ${lag} messages left and missed ${missed}`)
}

/** The rate of `work`, which handles `count` messages, and the CPU time that it takes. */
interface Rate {
  readonly perSecond: number
  readonly brokerCpuMs: number
  readonly clientCpuMs: number
}

async function rateOf(bench: Bench, count: number, work: () => Promise<unknown>): Promise<Rate> {
  const brokerMs = (): number => {
    const { user, system } = cpuMs(bench.broker.pid)
    return user + system
  }
  const before = { brokerMs: brokerMs(), client: process.cpuUsage(), ms: performance.now() }
  await work()
  const perSecond = (count * 1000) / (performance.now() - before.ms)
  const client = process.cpuUsage(before.client)
  return {
    perSecond,
    brokerCpuMs: brokerMs() - before.brokerMs,
    clientCpuMs: (client.user + client.system) / 1_000,
  }
}

// The broker and the client need a core each. On a busy machine the CPU time says more than the rate.
function rateFinding(what: string, count: number, rates: readonly Rate[]): Finding {
  const rate = rates.toSorted((a, b) => a.perSecond - b.perSecond)[rates.length >>> 1]!
  const cpu = (ms: number): string => `${fixed(ms / 1000)} s (${fixed((ms * 1000) / count, 2)} µs each)`
  return {
    what,
    value: `${whole(rate.perSecond)}; CPU of the broker ${cpu(rate.brokerCpuMs)}, of the client ${cpu(rate.clientCpuMs)}`,
    isMet: rate.perSecond >= RATE_MIN,
  }
}

/** Time until the first message of a reader from the time `time` has arrived, in ms. */
async function beginMs(client: Sluice, time: Date): Promise<number> {
  const beganMs = performance.now()
  for await (const message of client.read('clicks', { from: { time }, prefetch: 1 })) {
    if (message.publishedAt < time)
      throw new Error(`message ${message.offset} is older than ${time.toISOString()}`)
    break
  }
  return performance.now() - beganMs
}

/** Watches how much the resident memory of the broker grows. */
class Growth {
  readonly #bench: Bench
  readonly #firstMib: number
  #mostMib: number
  readonly #timer: NodeJS.Timeout

  constructor(bench: Bench) {
    this.#bench = bench
    this.#firstMib = bench.rss()
    this.#mostMib = this.#firstMib
    this.#timer = setInterval(() => this.#look(), GROWTH_LOOK_MS)
  }

  #look(): void {
    this.#mostMib = Math.max(this.#mostMib, this.#bench.rss())
  }

  end(when: string): Finding {
    this.stop()
    this.#look()
    const grownMib = this.#mostMib - this.#firstMib
    return {
      what: `memory of the broker grew by at most, ${when}, MiB`,
      value: `${fixed(grownMib)}, from ${fixed(this.#firstMib)}`,
      isMet: grownMib <= GROWTH_MIB_MAX,
    }
  }

  stop(): void {
    clearInterval(this.#timer)
  }
}

/** One reader of `messages` messages, and then five groups at once, before and after a kill of the broker. */
export const stream: Scenario = async (messages) => {
  const bench = await Bench.start()
  let growth: Growth | undefined
  try {
    await bench.warm()
    const producer = await bench.client('producer')
    await producer.streams.ensure('clicks')
    growth = new Growth(bench)
    let time = new Date()
    const published = await rateOf(bench, messages, async () => {
      time = await publishHalves(producer, messages)
    })
    const findings: Finding[] = [
      { ...rateFinding('messages published per second', messages, [published]), isMet: true },
    ]
    for (const when of ['before a kill', 'after kill -9 and start']) {
      if (when !== 'before a kill') {
        await bench.kill()
        growth = new Growth(bench)
      }
      const client = await bench.client(when)
      findings.push(
        await beginFinding(client, time, when),
        await readFinding(bench, client, messages, when),
        await groupsFinding(bench, messages, when),
        growth.end(when),
      )
    }
    return findings
  } finally {
    growth?.stop()
    await bench.dispose()
  }
}

async function beginFinding(client: Sluice, time: Date, when: string): Promise<Finding> {
  const begins = []
  for (let round = 0; round < 5; round++) begins.push(await beginMs(client, time))
  const begin = median(begins)
  return {
    what: `from a time, first message, ${when}, ms`,
    value: fixed(begin, 1),
    isMet: begin <= BEGIN_MS_MAX,
  }
}

async function readFinding(bench: Bench, client: Sluice, messages: number, when: string): Promise<Finding> {
  const rates = []
  for (let round = 0; round < 3; round++)
    rates.push(await rateOf(bench, messages, () => readAll(client, messages)))
  return rateFinding(`messages read per second, ${when}`, messages, rates)
}

/** Five groups consume the whole stream at the same time. Each checks that it gets every message in order. */
async function groupsFinding(bench: Bench, messages: number, when: string): Promise<Finding> {
  const groups = Array.from({ length: GROUPS }, (_, index) => `clicks@${index}-${when.replaceAll(' ', '-')}`)
  const clients = await Promise.all(groups.map((group) => bench.client(group)))
  for (const group of groups) await clients[0]!.groups.ensure(group, { from: 'first' })
  const rate = await rateOf(bench, messages * GROUPS, () =>
    Promise.all(groups.map((group, index) => consumeAll(clients[index]!, group, messages))),
  )
  const what = `messages acknowledged per second, ${GROUPS} groups together, ${when}`
  return rateFinding(what, messages * GROUPS, [rate])
}
