import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  AckPolicy,
  RetentionPolicy,
  jetstream,
  jetstreamManager,
  type JetStreamClient,
} from '@nats-io/jetstream'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { decoded, encoded } from '../bodies.js'
import type { Body, Driver, Session } from '../driver.js'
import { Server, outputOf } from '../../rig/server.js'
import { isAtLeast, programOf } from '../peers.js'

const CONSUMER = 'workers'

class NatsSession implements Session {
  readonly #connection: NatsConnection
  readonly #stream: JetStreamClient
  readonly #isData: boolean

  constructor(connection: NatsConnection, isData: boolean) {
    this.#connection = connection
    this.#stream = jetstream(connection, { timeout: 30_000 })
    this.#isData = isData
  }

  publish(queue: string, body: Body): Promise<unknown> {
    // The client keeps a reference to the bytes until they are sent.
    return this.#stream.publish(queue, Buffer.from(encoded(body)))
  }

  async consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const consumer = await this.#stream.consumers.get(queue, CONSUMER)
    await consumer.consume({
      max_messages: held,
      callback: (message) => each(decoded(message.data, this.#isData), () => message.ack()),
    })
  }

  close(): Promise<void> {
    return this.#connection.close()
  }
}

/** The oldest version that can sync before it confirms. */
const SYNC_LEAST = '2.10.0'

const NATS = programOf('nats-server')

async function natsVersion(): Promise<string | undefined> {
  const text = await outputOf(NATS, '--version')
  return text && /[\d.]+/.exec(text)?.[0]
}

function driver(name: string, settings: string, sync: 'default' | 'always'): Driver {
  const isSynced = sync === 'always'
  return {
    name,
    settings: `JetStream, file store, work-queue retention, explicit acks: ${settings}`,
    needs: `nats-server${isSynced ? ` ${SYNC_LEAST} or later` : ''}, on PATH or as bin/nats-server in LOAD_PEERS`,
    version: async () => {
      const version = await natsVersion()
      if (version === undefined || (isSynced && !isAtLeast(version, SYNC_LEAST))) return undefined
      return `NATS ${version}`
    },
    can: ({ queues }) => queues <= 100,
    async start(directory, port) {
      const config = join(directory, 'nats.conf')
      const store = join(directory, 'store')
      await writeFile(
        config,
        `host: 127.0.0.1\nport: ${port}\n` +
          `jetstream { store_dir: ${JSON.stringify(store)}${isSynced ? ', sync_interval: always' : ''} }\n`,
      )
      const server = new Server(NATS, ['-c', config])
      await server.listens(port)
      const url = `127.0.0.1:${port}`
      return {
        url,
        pids: [server.pid],
        async makeQueues(names) {
          const connection = await connect({ servers: url })
          const manager = await jetstreamManager(connection)
          for (const queue of names) {
            await manager.streams.add({
              name: queue,
              subjects: [queue],
              retention: RetentionPolicy.Workqueue,
            })
            await manager.consumers.add(queue, {
              durable_name: CONSUMER,
              ack_policy: AckPolicy.Explicit,
              max_ack_pending: 65_536,
            })
          }
          await connection.close()
        },
        stop: () => server.stop(),
      }
    },
    async connect(url, { body }) {
      return new NatsSession(await connect({ servers: url }), body === 'object')
    },
  }
}

export const nats = driver('nats', 'written to the page cache, synced every two minutes', 'default')
export const natsSynced = driver('nats-synced', 'sync_interval: always, fsync', 'always')
