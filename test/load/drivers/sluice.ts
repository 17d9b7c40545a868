import { fileURLToPath } from 'node:url'
import { connect, queue, stream, topic, type Sluice } from '@sluice/client'
import type { Body, Driver, Session } from '../driver.js'
import { Server, outputOf } from '../../rig/server.js'
import { groupOf, groupsOf, type Scenario } from '../scenario.js'

export const PROGRAM = fileURLToPath(new URL('../../../../packages/server/bin/sluice.js', import.meta.url))

/** The topic that is bound to all queues, for scenarios with a fan-out. */
const ALL = topic('load')

class SluiceSession implements Session {
  readonly #client: Sluice
  readonly #fanOut: Scenario['fanOut']
  readonly #from: Scenario['from']
  readonly #replies: boolean
  readonly #group: string
  #isClosed = false

  constructor(client: Sluice, scenario: Scenario, index: number) {
    this.#client = client
    this.#fanOut = scenario.fanOut
    this.#from = scenario.from
    this.#replies = scenario.replies
    this.#group = groupOf(scenario, index)
  }

  publish(name: string, body: Body): Promise<unknown> {
    return this.#replies ? this.#client.request(name, body) : this.#client.publish(name, body)
  }

  publishToAll(names: readonly string[], body: Body): Promise<unknown> {
    if (this.#fanOut === 'topic') return this.#client.publish(ALL, body)
    return this.#client.atomic((step) => {
      for (const name of names) step.publish(name, body)
    })
  }

  async consume(name: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    if (this.#from === 'readers') {
      this.#read(name, held, each).catch((error: unknown) => {
        // A measurement is invalid if its consumer cannot read.
        if (!this.#isClosed) throw error
      })
      return
    }
    const source = this.#from === 'groups' ? stream<Body>(name).group(this.#group) : queue<Body>(name)
    this.#client.consume(source, { concurrency: held, prefetch: held }, (message) => {
      each(message.body, () => {
        if (this.#replies) void message.reply('done')
        void message.ack()
      })
    })
    await Promise.resolve()
  }

  async #read(name: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const reader = this.#client.read(stream<Body>(name), { follow: true, prefetch: held })
    for await (const messages of reader.batches()) for (const { body } of messages) each(body, noAck)
  }

  close(): Promise<void> {
    this.#isClosed = true
    return this.#client.close()
  }
}

function noAck(): void {}

/** Starts a broker on a directory and a port; `nodeFlags` are passed to its process. */
export async function serve(
  directory: string,
  port: number,
  nodeFlags: readonly string[] = [],
): Promise<Server> {
  const server = new Server(process.execPath, [
    ...nodeFlags,
    PROGRAM,
    'serve',
    '--data-dir',
    directory,
    '--port',
    String(port),
  ])
  await server.listens(port)
  return server
}

export const sluice: Driver = {
  name: 'sluice',
  settings: 'default settings: each write is synced (O_DSYNC) before it is confirmed',
  version: () => outputOf(process.execPath, PROGRAM, '--version'),
  can: () => true,
  hasReplies: true,
  async start(directory, port) {
    const server = await serve(directory, port)
    const url = `sluice://127.0.0.1:${port}`
    return {
      url,
      pids: [server.pid],
      async makeQueues(names, scenario) {
        const { fanOut, from } = scenario
        const client = await connect(url, { name: 'load' })
        await Promise.all(
          names.map((name) => (from === 'queue' ? client.queues.ensure(name) : client.streams.ensure(name))),
        )
        if (from === 'groups') {
          for (const name of names)
            for (const group of groupsOf(scenario)) await client.groups.ensure(stream(name).group(group))
        }
        if (fanOut === 'topic') for (const name of names) await client.topics.bind(ALL, name)
        await client.close()
      },
      stop: () => server.stop(),
    }
  },
  async connect(url, scenario, index) {
    const maxInFlight = Math.max(scenario.inFlight, 1_000)
    return new SluiceSession(await connect(url, { name: 'load', maxInFlight }), scenario, index)
  },
}
