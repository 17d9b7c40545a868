/** A scenario describes the load of one run. A file of scenarios is a JSON array. */
import { readFile } from 'node:fs/promises'

export const KINDS = ['publish', 'consume', 'both', 'latency'] as const
export type Kind = (typeof KINDS)[number]

export const FAN_OUTS = ['none', 'atomic', 'topic'] as const
export const SOURCES = ['queue', 'groups', 'readers'] as const
export const BODIES = ['bytes', 'object'] as const

export interface Scenario {
  readonly name: string
  /**
   * `publish`: publishes as fast as confirms arrive. `consume`: consumes messages that were published before the
   * measurement. `both`: publishes and consumes at the same time. `latency`: publishes at `rate`, open loop, and
   * measures each message from the time at which it was due to be sent until a consumer has it.
   */
  readonly kind: Kind
  readonly producers: number
  readonly consumers: number
  /** Number of queues; each producer publishes to them in turn. */
  readonly queues: number
  /** Distance between the queues of consecutive messages, counted in queues in the order of their creation. */
  readonly stride: number
  /**
   * Whether each message goes to every queue, with one confirm for all copies: `atomic`, as one step that publishes to
   * each queue; `topic`, as one publish that the broker routes to the queues.
   */
  readonly fanOut: (typeof FAN_OUTS)[number]
  /**
   * `queue`: the consumers share the messages of a queue. `groups`, `readers`: the queue is a stream, and each consumer
   * gets all of its messages, as a group of its own that acknowledges them, or as a reader without acks.
   */
  readonly from: (typeof SOURCES)[number]
  /** For `consume`: whether the broker restarts before the measurement, so that it has no message in its memory. */
  readonly restart: boolean
  /** Whether each message is a request, whose reply counts as its confirm. */
  readonly replies: boolean
  /** Bytes of a body; at least 24. */
  readonly bodyBytes: number
  /** `object`: data of about `bodyBytes` bytes, in the usual encoding of the client. */
  readonly body: (typeof BODIES)[number]
  /** Maximum number of unanswered publishes of a producer, and of messages that a consumer holds. */
  readonly inFlight: number
  /** For `latency`: messages per second of all producers together. */
  readonly rate: number
  /** Duration of the measurement, after the warm-up. */
  readonly seconds: number
  readonly warmupSeconds: number
  /** For `consume`: number of messages that are published before the measurement. */
  readonly messages: number
  /** Names of the drivers that run the scenario; empty: all. */
  readonly drivers: readonly string[]
}

/** Number of times that each message should be consumed. */
export function copiesOf({ fanOut, from, queues, consumers }: Scenario): number {
  if (fanOut !== 'none') return queues
  return from === 'queue' ? 1 : consumers
}

/** The names of the groups that consume; readers have none. The consumers of a queue are one group, for brokers that need one. */
export function groupsOf({ from, consumers }: Scenario): string[] {
  if (from === 'readers') return []
  const count = from === 'groups' ? consumers : 1
  return Array.from({ length: count }, (_, index) => `group-${index}`)
}

/** The group of the consumer process with this index. */
export function groupOf({ from }: Scenario, index: number): string {
  return `group-${from === 'groups' ? index : 0}`
}

const DEFAULTS = {
  producers: 1,
  consumers: 1,
  queues: 1,
  stride: 1,
  fanOut: 'none',
  from: 'queue',
  restart: false,
  replies: false,
  bodyBytes: 128,
  body: 'bytes',
  inFlight: 1_000,
  rate: 0,
  seconds: 4,
  warmupSeconds: 2,
  messages: 1_000_000,
  drivers: [],
} as const satisfies Omit<Scenario, 'name' | 'kind'>

const LEAST: Readonly<Partial<Record<keyof Scenario, number>>> = {
  producers: 1,
  consumers: 1,
  queues: 1,
  stride: 1,
  bodyBytes: 24,
  inFlight: 1,
  rate: 0,
  seconds: 0.1,
  warmupSeconds: 0,
  messages: 1,
}

const CHOICES = { kind: KINDS, fanOut: FAN_OUTS, from: SOURCES, body: BODIES } as const

/** @throws Error with the scenario, the field, its value and the allowed values */
export function parseScenarios(text: string): Scenario[] {
  const list: unknown = JSON.parse(text)
  if (!Array.isArray(list)) throw new Error('A file of scenarios is a JSON array.')
  const names = new Set<string>()
  return list.map((given: Record<string, unknown>, index) => {
    const name = typeof given.name === 'string' ? given.name : ''
    const at = name === '' ? `Scenario ${index}` : `Scenario "${name}"`
    if (name === '' || names.has(name)) throw new Error(`${at} needs a unique name.`)
    names.add(name)
    const unknown = Object.keys(given).find(
      (field) => !(field in DEFAULTS) && field !== 'name' && field !== 'kind',
    )
    if (unknown !== undefined) throw new Error(`${at} has a field "${unknown}" that is unknown.`)
    const scenario = { ...DEFAULTS, ...given } as unknown as Scenario
    for (const [field, allowed] of Object.entries(CHOICES)) {
      const value = scenario[field as keyof Scenario]
      if (!allowed.includes(value as never))
        throw new Error(`${at} has ${field} ${JSON.stringify(value)}; it is one of ${allowed.join(', ')}.`)
    }
    for (const [field, least] of Object.entries(LEAST)) {
      const value = scenario[field as keyof Scenario]
      if (typeof value !== 'number' || !(value >= least))
        throw new Error(
          `${at} has ${field} ${JSON.stringify(value)}; it must be a number of at least ${least}.`,
        )
    }
    if (scenario.kind === 'latency' && scenario.rate === 0)
      throw new Error(`${at} measures latency and needs a rate.`)
    if (scenario.fanOut !== 'none' && scenario.from !== 'queue')
      throw new Error(
        `${at} has fanOut ${scenario.fanOut} and from ${scenario.from}; they exclude each other.`,
      )
    if (typeof scenario.restart !== 'boolean')
      throw new Error(`${at} has restart ${JSON.stringify(scenario.restart)}; it is true or false.`)
    if (typeof scenario.replies !== 'boolean')
      throw new Error(`${at} has replies ${JSON.stringify(scenario.replies)}; it is true or false.`)
    if (
      scenario.replies &&
      (scenario.kind !== 'both' || scenario.fanOut !== 'none' || scenario.from !== 'queue')
    )
      throw new Error(`${at} has replies; only the kind both can have them, without fanOut and from.`)
    if (scenario.restart && scenario.kind !== 'consume')
      throw new Error(`${at} has a restart; only the kind consume can have one.`)
    if (!Array.isArray(scenario.drivers)) throw new Error(`${at} has drivers that are not an array of names.`)
    return scenario
  })
}

export async function readScenarios(path: string): Promise<Scenario[]> {
  try {
    return parseScenarios(await readFile(path, 'utf8'))
  } catch (error) {
    throw new Error(`${path}: ${(error as Error).message}`, { cause: error })
  }
}
