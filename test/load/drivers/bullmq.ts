import { Queue, Worker } from 'bullmq'
import type { Body, Driver, Session } from '../driver.js'
import { redisVersion, startRedis } from './redis.js'

class BullSession implements Session {
  readonly #connection: { readonly host: string; readonly port: number; readonly maxRetriesPerRequest: null }
  readonly #queues = new Map<string, Queue>()
  readonly #workers: Worker[] = []

  constructor(port: number) {
    this.#connection = { host: '127.0.0.1', port, maxRetriesPerRequest: null }
  }

  publish(name: string, body: Body): Promise<unknown> {
    let queue = this.#queues.get(name)
    if (queue === undefined) {
      queue = new Queue(name, { connection: this.#connection })
      this.#queues.set(name, queue)
    }
    // Jobs are JSON, so bytes are encoded as a string.
    const data = body instanceof Uint8Array ? { bytes: Buffer.from(body).toString('latin1') } : body
    return queue.add('job', data, { removeOnComplete: true })
  }

  async consume(name: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const worker = new Worker<{ readonly bytes?: string }>(
      name,
      async ({ data }) => {
        each(data.bytes === undefined ? data : Buffer.from(data.bytes, 'latin1'), () => {})
        await Promise.resolve()
      },
      { connection: this.#connection, concurrency: held },
    )
    this.#workers.push(worker)
    await worker.waitUntilReady()
  }

  async close(): Promise<void> {
    for (const worker of this.#workers) await worker.close(true)
    for (const queue of this.#queues.values()) await queue.close()
  }
}

export const bullmq: Driver = {
  name: 'bullmq',
  settings: 'on the Redis of the driver redis, jobs removed on completion',
  needs: 'redis-server on PATH',
  version: async () => {
    const version = await redisVersion()
    return version && `BullMQ 6.7.0 on ${version}`
  },
  can: ({ queues, fanOut, from }) => queues <= 100 && fanOut === 'none' && from === 'queue',
  async start(directory, port) {
    return { ...(await startRedis(directory, port)), makeQueues: () => Promise.resolve() }
  },
  connect: (url) => Promise.resolve(new BullSession(Number(url))),
}
