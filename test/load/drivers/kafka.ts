/**
 * Kafka with one partition per queue, through two clients. Kafka has no acks of single messages: a consumer commits how
 * far it has read, here once a second.
 */
import { randomBytes } from 'node:crypto'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Server, outputOf } from '../../rig/server.js'
import { freePort } from '../../rig/scratch.js'
import { decoded, encoded } from '../bodies.js'
import type { Body, Driver, Running, Session } from '../driver.js'
import { groupOf, type Scenario } from '../scenario.js'
import { clientVersion, fetchedPath, importClient, isAtLeast, programOf } from '../peers.js'

const COMMIT_MS = 1_000
const TIMEOUT_MS = 30_000
/** The default of max.in.flight.requests.per.connection. */
export const UNANSWERED_MAX = 5
/** Settings of Kafka's own start script. */
const JVM = ['-Xms1G', '-Xmx1G', '-XX:+UseG1GC', '-XX:MaxGCPauseMillis=20']
const SETTINGS = 'one broker with KRaft, log.flush.interval.messages=1: fsync; a commit of offsets per second'
const NEEDS = "Java, and Kafka's jars and clients in LOAD_PEERS"

interface Record {
  readonly topic: string
  readonly value: Buffer
}

/** The part of `@platformatic/kafka` that is used. */
interface Platformatic {
  readonly Producer: new (options: object) => {
    send(request: { messages: readonly Record[]; acks: number }): Promise<unknown>
    close(): Promise<void>
  }
  readonly Consumer: new (options: object) => {
    consume(options: object): Promise<{
      on(event: 'data', listener: (message: { readonly value: Buffer }) => void): unknown
    }>
    close(force: boolean): Promise<void>
  }
}

/** The part of `kafkajs` that is used. */
interface Kafkajs {
  readonly Kafka: new (options: object) => KafkajsClient
  readonly Partitioners: { readonly DefaultPartitioner: unknown }
  readonly logLevel: { readonly NOTHING: number }
}

interface KafkajsClient {
  admin(): KafkajsLink & { createTopics(request: object): Promise<boolean> }
  producer(options: object): KafkajsProducer
  consumer(options: object): KafkajsConsumer
}

interface KafkajsLink {
  connect(): Promise<void>
  disconnect(): Promise<void>
}

interface KafkajsProducer extends KafkajsLink {
  sendBatch(request: object): Promise<unknown>
}

interface KafkajsConsumer extends KafkajsLink {
  readonly events: { readonly GROUP_JOIN: string }
  on(event: string, listener: () => void): unknown
  subscribe(options: object): Promise<void>
  run(options: {
    readonly autoCommit: boolean
    readonly autoCommitInterval: number
    eachBatch(payload: {
      readonly batch: { readonly messages: readonly { readonly value: Buffer }[] }
    }): Promise<void>
  }): Promise<void>
}

/** What a session consumes as. Each queue has groups of its own, so that its consumers do not wait for those of others. */
interface Role {
  readonly isData: boolean
  readonly group: string
  /** Whether it commits how far it has read. */
  readonly commits: boolean
}

function roleOf(scenario: Scenario, index: number): Role {
  const commits = scenario.from !== 'readers'
  return {
    isData: scenario.body === 'object',
    group: commits ? groupOf(scenario, index) : `reader-${index}`,
    commits,
  }
}

/**
 * Sends what is published in one turn of the event loop as one request. What is published while as many requests are
 * unanswered as Kafka's own producer allows goes into the next one: otherwise each message of a steady rate would be a
 * request, and so a sync, of its own.
 */
export class TurnSender {
  readonly #send: (records: Record[]) => Promise<unknown>
  #records: Record[] = []
  #answer: PromiseWithResolve | undefined
  #unanswered = 0

  constructor(send: (records: Record[]) => Promise<unknown>) {
    this.#send = send
  }

  async publish(topic: string, body: Body): Promise<void> {
    // The clients keep a reference to the bytes until they are sent.
    this.#records.push({ topic, value: Buffer.from(encoded(body)) })
    if (this.#answer === undefined) {
      this.#answer = promiseWithResolve()
      setImmediate(() => this.#flush())
    }
    await this.#answer.promise
  }

  #flush(): void {
    if (this.#answer === undefined || this.#unanswered >= UNANSWERED_MAX) return
    const { resolve } = this.#answer
    const sent = this.#send(this.#records)
    this.#records = []
    this.#answer = undefined
    this.#unanswered++
    resolve(sent)
    const answered = (): void => {
      this.#unanswered--
      this.#flush()
    }
    sent.then(answered, answered)
  }
}

interface PromiseWithResolve {
  readonly promise: Promise<unknown>
  readonly resolve: (value: unknown) => void
}

function promiseWithResolve(): PromiseWithResolve {
  let resolve!: (value: unknown) => void
  const promise = new Promise((given) => {
    resolve = given
  })
  return { promise, resolve }
}

class PlatformaticSession implements Session {
  readonly #client: Platformatic
  readonly #broker: string
  readonly #role: Role
  readonly #producer: InstanceType<Platformatic['Producer']>
  readonly #consumers: InstanceType<Platformatic['Consumer']>[] = []
  readonly #sender = new TurnSender((records) => this.#producer.send({ messages: records, acks: -1 }))

  constructor(client: Platformatic, broker: string, role: Role) {
    this.#client = client
    this.#broker = broker
    this.#role = role
    this.#producer = new client.Producer(this.#options())
  }

  publish(queue: string, body: Body): Promise<void> {
    return this.#sender.publish(queue, body)
  }

  async consume(queue: string, _held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const consumer = new this.#client.Consumer({
      ...this.#options(),
      groupId: `${this.#role.group}-${queue}`,
    })
    this.#consumers.push(consumer)
    const stream = await consumer.consume({
      topics: [queue],
      mode: 'committed',
      fallbackMode: 'earliest',
      autocommit: this.#role.commits && COMMIT_MS,
    })
    stream.on('data', ({ value }) => each(decoded(value, this.#role.isData), noAck))
  }

  async close(): Promise<void> {
    for (const consumer of this.#consumers) await consumer.close(true)
    await this.#producer.close()
  }

  #options(): object {
    return { clientId: 'load', bootstrapBrokers: [this.#broker], timeout: TIMEOUT_MS }
  }
}

class KafkajsSession implements Session {
  readonly #kafka: KafkajsClient
  readonly #producer: KafkajsProducer
  readonly #role: Role
  readonly #consumers: KafkajsConsumer[] = []
  readonly #sender = new TurnSender((records) => {
    const byTopic = new Map<string, Record[]>()
    for (const record of records) {
      const messages = byTopic.get(record.topic)
      if (messages === undefined) byTopic.set(record.topic, [record])
      else messages.push(record)
    }
    return this.#producer.sendBatch({
      acks: -1,
      topicMessages: Array.from(byTopic, ([topic, messages]) => ({ topic, messages })),
    })
  })

  constructor(kafka: KafkajsClient, producer: KafkajsProducer, role: Role) {
    this.#kafka = kafka
    this.#producer = producer
    this.#role = role
  }

  publish(queue: string, body: Body): Promise<void> {
    return this.#sender.publish(queue, body)
  }

  async consume(queue: string, _held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    const consumer = this.#kafka.consumer({ groupId: `${this.#role.group}-${queue}` })
    this.#consumers.push(consumer)
    await consumer.connect()
    await consumer.subscribe({ topic: queue, fromBeginning: true })
    const joined = new Promise<void>((resolve) => {
      consumer.on(consumer.events.GROUP_JOIN, () => resolve())
    })
    await consumer.run({
      autoCommit: this.#role.commits,
      autoCommitInterval: COMMIT_MS,
      eachBatch: async ({ batch }) => {
        for (const { value } of batch.messages) each(decoded(value, this.#role.isData), noAck)
        await Promise.resolve()
      },
    })
    await joined
  }

  async close(): Promise<void> {
    for (const consumer of this.#consumers) await consumer.disconnect()
    await this.#producer.disconnect()
  }
}

function noAck(): void {}

async function kafkajsClient(broker: string): Promise<KafkajsClient> {
  const { Kafka, logLevel } = await importClient<Kafkajs>('kafkajs')
  return new Kafka({ brokers: [broker], logLevel: logLevel.NOTHING, requestTimeout: TIMEOUT_MS })
}

function propertiesOf(directory: string, port: number, controllerPort: number): string {
  return Object.entries({
    'process.roles': 'broker,controller',
    'node.id': 1,
    'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
    'controller.listener.names': 'CONTROLLER',
    listeners: `PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controllerPort}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${port}`,
    'listener.security.protocol.map': 'PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT',
    'log.dirs': join(directory, 'log'),
    'log.flush.interval.messages': 1,
    'offsets.topic.replication.factor': 1,
    'offsets.topic.num.partitions': 1,
    'group.initial.rebalance.delay.ms': 0,
  })
    .map(([name, value]) => `${name}=${value}\n`)
    .join('')
}

async function start(directory: string, port: number): Promise<Running> {
  const classes = join(fetchedPath('kafka')!, '*')
  const properties = join(directory, 'server.properties')
  await writeFile(properties, propertiesOf(directory, port, await freePort()))
  const id = randomBytes(16).toString('base64url')
  // A log that was formatted by an earlier start is left as it is.
  const format = ['kafka.tools.StorageTool', 'format', '--ignore-formatted', '-t', id, '-c', properties]
  await outputOf('java', '-cp', classes, ...format)
  const server = new Server('java', [...JVM, '-cp', classes, 'kafka.Kafka', properties])
  await server.listens(port)
  const url = `127.0.0.1:${port}`
  return {
    url,
    pids: [server.pid],
    async makeQueues(names) {
      const admin = (await kafkajsClient(url)).admin()
      await admin.connect()
      await admin.createTopics({ topics: names.map((topic) => ({ topic, numPartitions: 1 })) })
      await admin.disconnect()
    },
    stop: () => server.stop(),
  }
}

/** The versions of the fetched Kafka and its client; undefined if one of them or Java is not installed. */
async function versionWith(client: string): Promise<string | undefined> {
  const folder = fetchedPath('kafka')
  const version = clientVersion(client)
  // The topics are created with kafkajs, which runs on the Node of the harness.
  if (folder === undefined || version === undefined || clientVersion('kafkajs') === undefined)
    return undefined
  if ((await outputOf('java', '-version')) === undefined) return undefined
  const jar = (await readdir(folder)).find((name) => name.startsWith('kafka_'))
  return jar && `Kafka ${/-(.+)\.jar$/.exec(jar)?.[1]}, ${client} ${version}`
}

function canDo({ queues, consumers, fanOut, from }: Scenario): boolean {
  // With one partition, all consumers of a group but one are idle.
  return queues <= 100 && fanOut === 'none' && (consumers === 1 || from !== 'queue')
}

/** The oldest Node of the client @platformatic/kafka, and the program that is new enough. */
const NODE_LEAST = '24.6.0'
const NODE = isAtLeast(process.versions.node, NODE_LEAST) ? process.execPath : programOf('node')

export const kafka: Driver = {
  name: 'kafka',
  settings: SETTINGS,
  needs: `${NEEDS}, and Node ${NODE_LEAST} or later, as bin/node in LOAD_PEERS`,
  node: NODE,
  version: async () => {
    const node = (await outputOf(NODE, '--version'))?.slice(1)
    if (node === undefined || !isAtLeast(node, NODE_LEAST)) return undefined
    const versions = await versionWith('@platformatic/kafka')
    return versions && `${versions} on Node ${node}`
  },
  can: canDo,
  start,
  async connect(url, scenario, index) {
    return new PlatformaticSession(
      await importClient<Platformatic>('@platformatic/kafka'),
      url,
      roleOf(scenario, index),
    )
  },
}

export const kafkaKafkajs: Driver = {
  name: 'kafka-kafkajs',
  settings: SETTINGS,
  needs: NEEDS,
  version: () => versionWith('kafkajs'),
  can: canDo,
  start,
  async connect(url, scenario, index) {
    const { Partitioners } = await importClient<Kafkajs>('kafkajs')
    const client = await kafkajsClient(url)
    const producer = client.producer({ createPartitioner: Partitioners.DefaultPartitioner })
    await producer.connect()
    return new KafkajsSession(client, producer, roleOf(scenario, index))
  },
}
