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
import { groupOf, groupsOf, type Scenario } from '../scenario.js'

class NatsSession implements Session {
  readonly #connection: NatsConnection
  readonly #stream: JetStreamClient
  readonly #isData: boolean
  readonly #group: string | undefined

  constructor(connection: NatsConnection, scenario: Scenario, index: number) {
    this.#connection = connection
    this.#stream = jetstream(connection, { timeout: 30_000 })
    this.#isData = scenario.body === 'object'
    this.#group = scenario.from === 'readers' ? undefined : groupOf(scenario, index)
  }

  publish(queue: string, body: Body): Promise<unknown> {
    // The client keeps a reference to the bytes until they are sent.
    return this.#stream.publish(queue, Buffer.from(encoded(body)))
  }

  async consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    // Without a group, the consumer is an ordered one, without acks.
    const consumer = await this.#stream.consumers.get(queue, this.#group)
    await consumer.consume({
      max_messages: held,
      callback: (message) =>
        each(decoded(message.data, this.#isData), this.#group === undefined ? noAck : () => message.ack()),
    })
  }

  close(): Promise<void> {
    return this.#connection.close()
  }
}

function noAck(): void {}

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
    settings: `JetStream, file store, work-queue retention for queues, explicit acks: ${settings}`,
    needs: `nats-server${isSynced ? ` ${SYNC_LEAST} or later` : ''}, on PATH or as bin/nats-server in LOAD_PEERS`,
    version: async () => {
      const version = await natsVersion()
      if (version === undefined || (isSynced && !isAtLeast(version, SYNC_LEAST))) return undefined
      return `NATS ${version}`
    },
    can: ({ queues, fanOut }) => queues <= 100 && fanOut === 'none',
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
        async makeQueues(names, scenario) {
          const connection = await connect({ servers: url })
          const manager = await jetstreamManager(connection)
          const retention = scenario.from === 'queue' ? RetentionPolicy.Workqueue : RetentionPolicy.Limits
          for (const queue of names) {
            await manager.streams.add({ name: queue, subjects: [queue], retention })
            for (const group of groupsOf(scenario))
              await manager.consumers.add(queue, {
                durable_name: group,
                ack_policy: AckPolicy.Explicit,
                max_ack_pending: 65_536,
              })
          }
          await connection.close()
        },
        stop: () => server.stop(),
      }
    },
    async connect(url, scenario, index) {
      return new NatsSession(await connect({ servers: url }), scenario, index)
    },
  }
}

export const nats = driver('nats', 'written to the page cache, synced every two minutes', 'default')
export const natsSynced = driver('nats-synced', 'sync_interval: always, fsync', 'always')
