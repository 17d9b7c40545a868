/**
 * A process of producers or consumers that outlives the broker. It writes the checker's events to a file as JSON lines,
 * each with the time of the machine's monotonic clock. The parent sends `drain` and `stop` over IPC and receives the
 * progress.
 *
 * A client survives reconnects and is replaced when a reconnect takes longer than its patience. So a run contains both
 * batches that are sent again and outcomes that stay unknown.
 */
import { connect, SluiceError, type Message, type Sluice } from '@sluice/client'
import { closeSync, openSync, writeSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import type { HistoryEvent, SettleEvent } from '../checker/history.js'
import { Random } from './random.js'

/**
 * `atUs`: the time of the event; for a settle, the time of its answer. `sentUs`: for a settle, the time of its request.
 * A process that `isKilled` also records each settle when it is sent, with an unknown outcome.
 */
export type TimedEvent = HistoryEvent & { readonly atUs: number; readonly sentUs?: number }

export interface LoadArguments {
  readonly role: 'produce' | 'consume'
  readonly url: string
  readonly history: string
  readonly seed: number
  /** The prefix of the names of clients and messages. */
  readonly name: string
  readonly queues: readonly string[]
  /** A queue that is filled once at the start and consumed only after `drain`. */
  readonly coldQueue?: string
  readonly coldMessages?: number
  /** Size of the bodies in the cold queue; by default the same as in other queues. */
  readonly coldBodyBytes?: number
  /** The number of producers, or the number of consumers of each queue in the order of `queues`. */
  readonly clients: readonly number[]
  /** The target rate of one producer in messages per second. */
  readonly rate?: number
  /** Number of ordering keys, which are the lanes of the messages; by default no message has a key. */
  readonly keys?: number
  readonly bodyBytesMax: number
  readonly heartbeatMs?: number
  /** The longest patience of a client in ms; the shortest is a tenth of it. */
  readonly patienceMs: number
  /** Number of settles other than ack, per thousand. */
  readonly otherSettles?: number
  /** Whether consumers send the name of each message as the reply to it. */
  readonly replies?: boolean
  /** Whether the process can be killed at any moment. So each event is written to the file before the process goes on. */
  readonly isKilled?: boolean
}

export interface Progress {
  readonly is: 'progress'
  readonly attempted: number
  readonly confirmed: number
  readonly refused: number
  readonly unknown: number
  /**
   * Number of publishes with an unknown outcome whose client was not replaced. Such a client should have sent them again
   * until it had an answer.
   */
  readonly unresolved: number
  readonly delivered: number
  readonly settled: number
  /** Number of failures by error code. */
  readonly failures: Readonly<Record<string, number>>
}

const load = JSON.parse(process.argv[2]!) as LoadArguments
const random = new Random(load.seed)
/** The parent's requests so far. */
const asked = { draining: false, stopping: false }
const wakers = new Set<() => void>()

class History {
  readonly #descriptor: number
  #lines: string[] = []
  #bytes = 0

  constructor(path: string) {
    this.#descriptor = openSync(path, 'a', 0o600)
  }

  add(event: HistoryEvent, sentUs?: number): void {
    const line = JSON.stringify({ ...event, atUs: nowUs(), sentUs })
    this.#lines.push(line)
    this.#bytes += line.length
    if (this.#bytes > (load.isKilled === true ? 0 : 64 << 10)) this.flush()
  }

  flush(): void {
    if (this.#lines.length === 0) return
    const bytes = Buffer.from(`${this.#lines.join('\n')}\n`)
    for (let at = 0; at < bytes.length;) at += writeSync(this.#descriptor, bytes, at)
    this.#lines = []
    this.#bytes = 0
  }

  close(): void {
    this.flush()
    closeSync(this.#descriptor)
  }
}

function nowUs(): number {
  return Number(process.hrtime.bigint() / 1000n)
}

const history = new History(load.history)
const progress = {
  is: 'progress' as const,
  attempted: 0,
  confirmed: 0,
  refused: 0,
  unknown: 0,
  unresolved: 0,
  delivered: 0,
  settled: 0,
  failures: {} as Record<string, number>,
}

function count(error: unknown): void {
  const code = error instanceof SluiceError ? error.code : String(error)
  progress.failures[code] = (progress.failures[code] ?? 0) + 1
}

/** A client that is used until a reconnect takes longer than its patience. */
class Client {
  readonly sluice: Sluice
  #isRetired = false
  #patience: NodeJS.Timeout | undefined
  readonly #onRetired = new Set<() => void>()

  constructor(sluice: Sluice) {
    this.sluice = sluice
    sluice.on('connected', () => clearTimeout(this.#patience))
    sluice.on('disconnected', () => {
      this.#patience = setTimeout(() => this.#retire(), load.patienceMs * (0.1 + 0.9 * random.next()))
    })
  }

  get isRetired(): boolean {
    return this.#isRetired
  }

  /** Resolves when the client is retired. */
  retired(): Promise<void> {
    if (this.#isRetired) return Promise.resolve()
    return new Promise((resolve) => this.#onRetired.add(resolve))
  }

  #retire(): void {
    this.#isRetired = true
    for (const resolve of this.#onRetired) resolve()
  }

  async close(timeoutMs: number): Promise<void> {
    clearTimeout(this.#patience)
    await this.sluice.close({ timeout: timeoutMs }).catch(count)
  }
}

async function dial(name: string): Promise<Client | undefined> {
  const heartbeat = load.heartbeatMs === undefined ? {} : { heartbeat: load.heartbeatMs }
  while (!asked.stopping) {
    try {
      const signal = AbortSignal.timeout(load.patienceMs)
      return new Client(await connect(load.url, { name, signal, ...heartbeat }))
    } catch (error) {
      count(error)
      // A stopped broker refuses connections at once, so the loop must not spin.
      await delay(20)
    }
  }
  return undefined
}

// --- producing ---

const OUTSTANDING_MAX = 256
const COLD_OUTSTANDING_MAX = 64

function bodyOf(message: string, size?: number): string {
  // Most bodies are small and some are large, so that some entries have one batch and others many, and some entries
  // fill a segment.
  const usual =
    random.below(50) === 0
      ? random.below(load.bodyBytesMax)
      : random.below(Math.min(1_000, load.bodyBytesMax))
  const head = `${message} `
  return head + 'x'.repeat(Math.max(0, (size ?? usual) - head.length))
}

async function produce(slot: number): Promise<void> {
  for (let generation = 0; !asked.stopping; generation++) {
    const producer = `${load.name}${slot}.${generation}`
    const client = await dial(producer)
    if (client === undefined) return
    const outstanding = new Set<Promise<void>>()
    let sequence = 0
    const publish = (queue: string, alone: boolean, size?: number): void => {
      const message = `${producer}-${++sequence}`
      const body = bodyOf(message, size)
      const key = load.keys === undefined ? {} : { key: `key-${random.below(load.keys)}` }
      const lane = key.key === undefined ? {} : { lane: key.key }
      history.add({ kind: 'attempt', queue, message, producer, sequence, body: digest(body), ...lane })
      progress.attempted++
      const receipt = alone
        ? client.sluice.publishBatch(queue, [{ body, ...key }]).then(([first]) => first!)
        : client.sluice.publish(queue, body, key)
      const done = receipt.then(
        ({ offset }) => {
          progress.confirmed++
          history.add({ kind: 'outcome', message, outcome: 'ok', offset })
        },
        (error: unknown) => {
          count(error)
          const isUnknown = !(error instanceof SluiceError) || error.outcome === 'unknown'
          if (isUnknown) progress.unknown++
          else progress.refused++
          if (isUnknown && !client.isRetired) progress.unresolved++
          history.add({ kind: 'outcome', message, outcome: isUnknown ? 'unknown' : 'fail' })
        },
      )
      outstanding.add(done)
      void done.then(() => outstanding.delete(done))
    }
    if (slot === 0 && generation === 0 && load.coldQueue !== undefined) {
      for (let i = 0; i < (load.coldMessages ?? 0); i++) {
        publish(load.coldQueue, false, load.coldBodyBytes)
        if (outstanding.size >= COLD_OUTSTANDING_MAX) await Promise.all(outstanding)
      }
    }
    while (!asked.stopping && !client.isRetired) {
      const queue = load.queues[random.below(load.queues.length)]!
      const burst = 1 + random.below(32)
      // A burst is one batch or, with `alone`, a batch per message, so that a kill finds a full window of unanswered
      // batch numbers.
      const alone = random.below(3) === 0
      for (let i = 0; i < burst; i++) publish(queue, alone)
      await Promise.race([delay((burst * 1000) / (load.rate ?? 1000)), client.retired()])
      while (outstanding.size > OUTSTANDING_MAX && !client.isRetired) {
        await Promise.race([...outstanding, client.retired()])
      }
    }
    if (!client.isRetired) await Promise.race([Promise.all(outstanding), client.retired()])
    await client.close(client.isRetired ? 1 : 10_000)
    await Promise.all(outstanding)
  }
}

// --- consuming ---

async function settle(message: Message, text: string, consumer: string): Promise<void> {
  const chance = random.below(1000)
  const others = load.otherSettles ?? 0
  const action: SettleEvent['action'] =
    chance >= others || asked.draining ? 'ack' : chance % 2 === 0 ? 'retry' : 'release'
  // Most messages are settled at once; the others keep their lease for a while.
  if (random.below(20) === 0) await delay(random.below(40))
  const event = { kind: 'settle', queue: message.queue, message: text, consumer, action } as const
  const sentUs = nowUs()
  if (load.isKilled === true) history.add({ ...event, outcome: 'unknown' }, sentUs)
  try {
    if (action === 'ack') await message.ack()
    else if (action === 'retry') await message.retry({ delay: random.below(200) })
    else await message.release()
    progress.settled++
    history.add({ ...event, outcome: 'ok' }, sentUs)
  } catch (error) {
    count(error)
    const isUnknown = !(error instanceof SluiceError) || error.outcome === 'unknown'
    history.add({ ...event, outcome: isUnknown ? 'unknown' : 'fail' }, sentUs)
  }
}

async function consume(queue: string, slot: number): Promise<void> {
  const consumer = `${load.name}-${queue}-${slot}`
  while (!asked.stopping) {
    const client = await dial(consumer)
    if (client === undefined) return
    client.sluice.consume<string>(queue, { concurrency: 16, prefetch: 64 }, async (message) => {
      const { body, redelivered, offset } = message
      const text = body.slice(0, body.indexOf(' '))
      history.add({
        kind: 'deliver',
        queue,
        message: text,
        consumer,
        redelivered,
        offset,
        body: digest(body),
      })
      progress.delivered++
      if (load.replies === true) message.reply(text).catch(count)
      await settle(message, text, consumer)
    })
    await Promise.race([client.retired(), whenAsked(() => asked.stopping)])
    await client.close(client.isRetired ? 1 : 10_000)
  }
}

function digest(body: string): string {
  return crc32(body).toString(16)
}

function whenAsked(condition: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => {
      if (!condition()) return
      wakers.delete(look)
      resolve()
    }
    wakers.add(look)
    look()
  })
}

// --- the parent ---

process.on('message', (word: unknown) => {
  if (word === 'drain') asked.draining = true
  if (word === 'stop') asked.stopping = true
  for (const look of wakers) look()
})
// The parent has ended.
process.on('disconnect', () => process.exit(1))

let told = ''
const ticker = setInterval(() => {
  const now = JSON.stringify(progress)
  if (now !== told) process.send?.(progress)
  told = now
}, 20)

const running: Promise<void>[] = []
if (load.role === 'produce') {
  for (let slot = 0; slot < (load.clients[0] ?? 1); slot++) running.push(produce(slot))
} else {
  load.queues.forEach((queue, index) => {
    for (let slot = 0; slot < (load.clients[index] ?? 1); slot++) running.push(consume(queue, slot))
  })
  const { coldQueue } = load
  if (coldQueue !== undefined)
    running.push(whenAsked(() => asked.draining || asked.stopping).then(() => consume(coldQueue, 0)))
}
await Promise.all(running)
clearInterval(ticker)
history.close()
process.send?.(progress, () => process.disconnect())
process.removeAllListeners('disconnect')
