import { readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { connect, type Channel, type ChannelModel, type ConfirmChannel } from 'amqplib'
import { freePort } from '../../rig/scratch.js'
import { decoded, encoded } from '../bodies.js'
import type { Body, Driver, Session } from '../driver.js'
import { Server } from '../../rig/server.js'

/** The exchange that is bound to all queues, for scenarios with a fan-out. */
const EXCHANGE = 'load'
const LIBRARIES = '/usr/lib/rabbitmq/lib'

class RabbitSession implements Session {
  readonly #connection: ChannelModel
  readonly #publishing: ConfirmChannel
  readonly #isData: boolean
  readonly #consuming: Channel[] = []

  constructor(connection: ChannelModel, publishing: ConfirmChannel, isData: boolean) {
    this.#connection = connection
    this.#publishing = publishing
    this.#isData = isData
  }

  publish(queue: string, body: Body): Promise<void> {
    return this.#publishTo('', queue, body)
  }

  publishToAll(_queues: readonly string[], body: Body): Promise<void> {
    return this.#publishTo(EXCHANGE, '', body)
  }

  #publishTo(exchange: string, key: string, body: Body): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#publishing.publish(exchange, key, encoded(body), { persistent: true }, (error: unknown) => {
        if (error === null || error === undefined) resolve()
        else reject(error instanceof Error ? error : new Error('refused'))
      })
    })
  }

  async consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const channel = await this.#connection.createChannel()
    this.#consuming.push(channel)
    await channel.prefetch(held)
    await channel.consume(queue, (message) => {
      if (message !== null) each(decoded(message.content, this.#isData), () => channel.ack(message))
    })
  }

  async close(): Promise<void> {
    await this.#connection.close()
  }
}

function rabbitmq(type: 'quorum' | 'classic', settings: string): Driver {
  return {
    name: `rabbitmq-${type}`,
    settings,
    needs: `a rabbitmq_server in ${LIBRARIES}`,
    version: async () => {
      const folder = await serverFolder()
      return folder && `RabbitMQ ${folder.replace(/^.*-/, '')}`
    },
    can: ({ queues, fanOut, from }) => queues <= 100 && fanOut !== 'atomic' && from === 'queue',
    async start(directory, port) {
      const program = join(LIBRARIES, (await serverFolder())!, 'sbin', 'rabbitmq-server')
      const plugins = join(directory, 'plugins')
      await writeFile(plugins, '[].')
      // The driver starts its own port mapper, because one that the server starts would outlive the server.
      const mapperPort = await freePort()
      const mapper = new Server('epmd', ['-port', String(mapperPort), '-address', '127.0.0.1'])
      await mapper.listens(mapperPort)
      const pidFile = join(directory, 'pid')
      const server = new Server(program, [], {
        HOME: directory,
        RABBITMQ_NODENAME: `sluice-load-${port}@localhost`,
        RABBITMQ_MNESIA_BASE: join(directory, 'mnesia'),
        RABBITMQ_LOG_BASE: join(directory, 'log'),
        RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
        RABBITMQ_NODE_PORT: String(port),
        RABBITMQ_DIST_PORT: String(await freePort()),
        RABBITMQ_CONFIG_FILE: join(directory, 'none'),
        RABBITMQ_ENABLED_PLUGINS_FILE: plugins,
        RABBITMQ_PID_FILE: pidFile,
        ERL_EPMD_PORT: String(mapperPort),
      })
      const stop = async (): Promise<void> => {
        const pid = Number(await readFile(pidFile, 'utf8').catch(() => '0'))
        if (pid > 0) process.kill(pid, 'SIGTERM')
        await server.stop()
        await mapper.stop()
      }
      try {
        await server.listens(port)
      } catch (error) {
        await stop()
        throw error
      }
      const url = `amqp://127.0.0.1:${port}`
      return {
        url,
        pids: [Number(await readFile(pidFile, 'utf8'))],
        async makeQueues(names, { fanOut }) {
          const connection = await connect(url)
          const channel = await connection.createChannel()
          await channel.assertExchange(EXCHANGE, 'fanout', { durable: true })
          for (const name of names) {
            await channel.assertQueue(name, { durable: true, arguments: { 'x-queue-type': type } })
            if (fanOut === 'topic') await channel.bindQueue(name, EXCHANGE, '')
          }
          await connection.close()
        },
        stop,
      }
    },
    async connect(url, { body }) {
      const connection = await connect(url)
      return new RabbitSession(connection, await connection.createConfirmChannel(), body === 'object')
    },
  }
}

async function serverFolder(): Promise<string | undefined> {
  const names = await readdir(LIBRARIES).catch(() => [])
  return names.find((name) => name.startsWith('rabbitmq_server-'))
}

export const rabbitmqQuorum = rabbitmq(
  'quorum',
  'durable quorum queues of one node, persistent messages: fsync',
)
export const rabbitmqClassic = rabbitmq(
  'classic',
  'durable classic queues, persistent messages: written, not synced',
)
