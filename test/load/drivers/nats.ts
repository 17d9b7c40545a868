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

export const nats: Driver = {
  name: 'nats',
  settings:
    'JetStream, file store, work-queue retention, explicit acks: written to the page cache, synced every two minutes',
  version: () => outputOf('nats-server', '--version'),
  can: ({ queues }) => queues <= 100,
  async start(directory, port) {
    const server = new Server('nats-server', ['-js', '-sd', directory, '-a', '127.0.0.1', '-p', String(port)])
    await server.listens(port)
    const url = `127.0.0.1:${port}`
    return {
      url,
      pids: [server.pid],
      async makeQueues(names) {
        const connection = await connect({ servers: url })
        const manager = await jetstreamManager(connection)
        for (const name of names) {
          await manager.streams.add({ name, subjects: [name], retention: RetentionPolicy.Workqueue })
          await manager.consumers.add(name, {
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
