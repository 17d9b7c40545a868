import { Redis } from 'ioredis'
import { decoded, encoded } from '../bodies.js'
import type { Body, Driver, Running, Session } from '../driver.js'
import { Server, outputOf } from '../../rig/server.js'

const GROUP = 'workers'

class RedisSession implements Session {
  readonly #publishing: Redis
  readonly #isData: boolean
  readonly #others: Redis[] = []
  #isClosed = false

  constructor(publishing: Redis, isData: boolean) {
    this.#publishing = publishing
    this.#isData = isData
  }

  publish(queue: string, body: Body): Promise<unknown> {
    // The client keeps a reference to the bytes until they are sent.
    return this.#publishing.xadd(queue, '*', 'b', Buffer.from(encoded(body)))
  }

  consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    // A read that waits for messages must not hold up the acks.
    const reading = this.#publishing.duplicate({ enableAutoPipelining: false })
    this.#others.push(reading)
    this.#read(reading, queue, held, each).catch((error: unknown) => {
      // A measurement is invalid if its consumer cannot read.
      if (!this.#isClosed) throw error
    })
    return Promise.resolve()
  }

  async #read(
    reading: Redis,
    queue: string,
    held: number,
    each: (body: Body, ack: () => void) => void,
  ): Promise<void> {
    while (!this.#isClosed) {
      const found = (await reading.xreadgroupBuffer(
        'GROUP',
        GROUP,
        `${process.pid}`,
        'COUNT',
        held,
        'BLOCK',
        1_000,
        'STREAMS',
        queue,
        '>',
      )) as [Buffer, [id: Buffer, fields: Buffer[]][]][] | null
      const acks: Promise<unknown>[] = []
      for (const [, messages] of found ?? []) {
        for (const [id, fields] of messages)
          each(decoded(fields[1]!, this.#isData), () => acks.push(this.#publishing.xack(queue, GROUP, id)))
      }
      await Promise.all(acks)
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    for (const each of this.#others) each.disconnect()
    await this.#publishing.quit()
  }
}

/** Starts a Redis that syncs its file before it answers. */
export async function startRedis(directory: string, port: number): Promise<Omit<Running, 'makeQueues'>> {
  const server = new Server('redis-server', [
    ...['--port', String(port), '--bind', '127.0.0.1', '--dir', directory, '--save', ''],
    ...['--appendonly', 'yes', '--appendfsync', 'always', '--auto-aof-rewrite-percentage', '0'],
    // Eviction would lose jobs, as the documentation of BullMQ warns.
    ...['--maxmemory-policy', 'noeviction'],
  ])
  await server.listens(port)
  return { url: String(port), pids: [server.pid], stop: () => server.stop() }
}

export async function redisVersion(): Promise<string | undefined> {
  const text = await outputOf('redis-server', '--version')
  return text && `Redis ${/v=(\S+)/.exec(text)?.[1] ?? text}`
}

export const redis: Driver = {
  name: 'redis',
  settings: 'streams with a consumer group, append-only file, appendfsync always, pipelined by the client',
  needs: 'redis-server on PATH',
  version: redisVersion,
  can: ({ queues }) => queues <= 100,
  async start(directory, port) {
    const running = await startRedis(directory, port)
    return {
      ...running,
      async makeQueues(names) {
        const client = new Redis(port, '127.0.0.1')
        for (const name of names) await client.xgroup('CREATE', name, GROUP, '0', 'MKSTREAM')
        await client.quit()
      },
    }
  },
  connect(url, { body }) {
    const client = new Redis(Number(url), '127.0.0.1', {
      enableAutoPipelining: true,
      maxRetriesPerRequest: null,
    })
    return Promise.resolve(new RedisSession(client, body === 'object'))
  },
}
