import { Redis } from 'ioredis'
import { decoded, encoded } from '../bodies.js'
import type { Body, Driver, Running, Session } from '../driver.js'
import { Server, outputOf } from '../../rig/server.js'
import { groupOf, groupsOf, type Scenario } from '../scenario.js'

type Found = [queue: Buffer, messages: [id: Buffer, fields: Buffer[]][]][] | null

class RedisSession implements Session {
  readonly #publishing: Redis
  readonly #isData: boolean
  readonly #group: string
  readonly #hasGroup: boolean
  readonly #others: Redis[] = []
  #isClosed = false

  constructor(publishing: Redis, scenario: Scenario, index: number) {
    this.#publishing = publishing
    this.#isData = scenario.body === 'object'
    this.#group = groupOf(scenario, index)
    this.#hasGroup = scenario.from !== 'readers'
  }

  publish(queue: string, body: Body): Promise<unknown> {
    // The client keeps a reference to the bytes until they are sent.
    return this.#publishing.xadd(queue, '*', 'b', Buffer.from(encoded(body)))
  }

  consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    // A read that waits for messages must not hold up the acks.
    const reading = this.#publishing.duplicate({ enableAutoPipelining: false })
    this.#others.push(reading)
    const read = this.#hasGroup
      ? this.#read(reading, queue, held, each)
      : this.#readWithoutGroup(reading, queue, held, each)
    read.catch((error: unknown) => {
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
    const batch = ['COUNT', held, 'BLOCK', 1_000, 'STREAMS', queue] as const
    while (!this.#isClosed) {
      const found = (await reading.xreadgroupBuffer(
        ...(['GROUP', this.#group, `${process.pid}`, ...batch, '>'] as const),
      )) as Found
      const acks: Promise<unknown>[] = []
      for (const [, messages] of found ?? []) {
        for (const [id, fields] of messages) {
          const ack = (): void => void acks.push(this.#publishing.xack(queue, this.#group, id))
          each(decoded(fields[1]!, this.#isData), ack)
        }
      }
      await Promise.all(acks)
    }
  }

  async #readWithoutGroup(
    reading: Redis,
    queue: string,
    held: number,
    each: (body: Body, ack: () => void) => void,
  ): Promise<void> {
    for (let after: Buffer | string = '0'; !this.#isClosed;) {
      const found: Found = await reading.xreadBuffer('COUNT', held, 'BLOCK', 1_000, 'STREAMS', queue, after)
      for (const [, messages] of found ?? []) {
        for (const [id, fields] of messages) {
          each(decoded(fields[1]!, this.#isData), () => {})
          after = id
        }
      }
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
  can: ({ queues, fanOut }) => queues <= 100 && fanOut === 'none',
  async start(directory, port) {
    const running = await startRedis(directory, port)
    return {
      ...running,
      async makeQueues(names, scenario) {
        const client = new Redis(port, '127.0.0.1')
        for (const name of names)
          for (const group of groupsOf(scenario)) await client.xgroup('CREATE', name, group, '0', 'MKSTREAM')
        await client.quit()
      },
    }
  },
  connect(url, scenario, index) {
    const client = new Redis(Number(url), '127.0.0.1', {
      enableAutoPipelining: true,
      maxRetriesPerRequest: null,
    })
    return Promise.resolve(new RedisSession(client, scenario, index))
  },
}
