/** The common part of the scenarios: a broker process, its memory, functions that fill and drain a queue, percentiles. */
import { connect, type PublishOptions, type Sluice } from '@sluice/client'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { BrokerArguments } from '../rig/broker-process.js'
import { BrokerProcess } from '../rig/broker.js'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { deviceWrittenBytes, residentMib } from './proc.js'

/** The message body of all scenarios. */
export const BODY = new Uint8Array(128).fill(7)
const MIB = 1 << 20

/** A broker process that has its own directory, and can be killed and restarted. */
export class Bench {
  broker!: BrokerProcess
  port = 0
  readonly #clients: Sluice[] = []
  #options: Omit<BrokerArguments, 'dataDir' | 'port'> = {}
  #directory: Awaited<ReturnType<typeof scratchDirectory>> | undefined

  static async start(options: Omit<BrokerArguments, 'dataDir' | 'port'> = {}): Promise<Bench> {
    const bench = new Bench()
    bench.#options = options
    bench.#directory = await scratchDirectory('scale')
    bench.port = await freePort()
    await bench.serve()
    return bench
  }

  async serve(): Promise<number> {
    this.broker = new BrokerProcess({ ...this.#options, dataDir: this.#directory!.path, port: this.port })
    await this.broker.ready()
    return this.broker.readyMs
  }

  async client(name: string): Promise<Sluice> {
    const client = await connect(`sluice://127.0.0.1:${this.port}`, { name })
    this.#clients.push(client)
    return client
  }

  /** Kills the broker, restarts it on its data and returns the time until it is ready, ms. */
  async kill(): Promise<number> {
    await this.broker.dispose()
    return this.serve()
  }

  /** Resident memory of the broker process in MiB. */
  rss(): number {
    return residentMib(this.broker.pid)
  }

  /** Bytes written so far to the device that holds the broker's directory. */
  deviceWrittenBytes(): number {
    return deviceWrittenBytes(this.#directory!.path)
  }

  /** Size of the broker's directory in MiB. */
  async diskMib(): Promise<number> {
    const { path } = this.#directory!
    let blocks = 0
    for (const name of await readdir(path)) {
      const found = await stat(join(path, name)).catch(() => undefined)
      blocks += found?.blocks ?? 0
    }
    return (blocks * 512) / MIB
  }

  /** Publishes and consumes enough to fill the broker's caches, so that later growth comes only from the backlog. */
  async warm(messages = 400_000): Promise<void> {
    const client = await this.client('warm')
    await client.queues.ensure('warm')
    await fill(client, 'warm', messages, () => undefined)
    await drain(client, 'warm', messages)
    await client.queues.delete('warm')
  }

  async dispose(): Promise<void> {
    await Promise.allSettled(this.#clients.map((client) => client.close({ timeout: 2_000 })))
    await this.broker.dispose()
    await this.#directory?.dispose()
  }
}

/** Publishes `count` messages; `of` returns the options of each. Returns messages per second. */
export async function fill(
  client: Sluice,
  queue: string,
  count: number,
  of: (index: number) => PublishOptions | undefined,
): Promise<number> {
  const beganMs = performance.now()
  const CHUNK = 1_000
  const waves: Promise<unknown>[] = []
  for (let from = 0; from < count; from += CHUNK) {
    const wave: Promise<unknown>[] = []
    for (let index = from; index < Math.min(from + CHUNK, count); index++)
      wave.push(client.publish(queue, BODY, of(index)))
    waves.push(Promise.all(wave))
    if (waves.length > 4) await waves.shift()
  }
  await Promise.all(waves)
  return (count * 1000) / (performance.now() - beganMs)
}

/** Consumes and acknowledges `count` messages; returns messages per second. */
export async function drain(client: Sluice, queue: string, count: number, prefetch = 1_000): Promise<number> {
  let left = count
  const beganMs = performance.now()
  await new Promise<void>((resolve, reject) => {
    const worker = client.consume(queue, { concurrency: prefetch, prefetch }, () => {
      if (--left === 0) void worker.close().then(resolve, reject)
    })
    worker.closed.catch(reject)
  })
  return (count * 1000) / (performance.now() - beganMs)
}

export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >>> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
