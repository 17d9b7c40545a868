/** The format of scenarios: what a run puts on a broker. Files of them are JSON, an array of these. */
import { readFile } from 'node:fs/promises'

export const KINDS = ['publish', 'consume', 'both', 'latency'] as const
export type Kind = (typeof KINDS)[number]

export interface Scenario {
  readonly name: string
  /**
   * `publish`: as fast as it is confirmed. `consume`: what was published before. `both` at once. `latency`: publishes
   * at `rate`, open loop, each timed from when it was to be sent until a consumer has it.
   */
  readonly kind: Kind
  readonly producers: number
  readonly consumers: number
  /** They are published to round robin, by each producer. */
  readonly queues: number
  /** How far apart, in the order in which they were made, the queues of one message and the next are. */
  readonly stride: number
  /** Each message goes to every queue, with one confirm for all of it. */
  readonly fanOut: boolean
  /** Bytes of a body; at least 24. */
  readonly bodyBytes: number
  /** `object`: data of about that size, encoded by the client's usual means. */
  readonly body: 'bytes' | 'object'
  /** Unanswered publishes of a producer, and messages that a consumer holds. */
  readonly inFlight: number
  /** Messages a second of all producers together, for `latency`. */
  readonly rate: number
  /** How long to measure, after the warm-up. */
  readonly seconds: number
  readonly warmupSeconds: number
  /** Messages that are published before a `consume`. */
  readonly messages: number
  /** Names of the drivers that it is for; empty: all. */
  readonly drivers: readonly string[]
}

/** How often each message is to be consumed. */
export function copiesOf({ fanOut, queues }: Scenario): number {
  return fanOut ? queues : 1
}

const DEFAULTS = {
  producers: 1,
  consumers: 1,
  queues: 1,
  stride: 1,
  fanOut: false,
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

/** @throws Error naming the scenario, the field, its value and what it may be */
export function parseScenarios(text: string): Scenario[] {
  const list: unknown = JSON.parse(text)
  if (!Array.isArray(list)) throw new Error('A file of scenarios is a JSON array.')
  const names = new Set<string>()
  return list.map((given: Record<string, unknown>, index) => {
    const name = typeof given.name === 'string' ? given.name : ''
    const at = name === '' ? `Scenario ${index}` : `Scenario "${name}"`
    if (name === '' || names.has(name)) throw new Error(`${at} needs a name of its own.`)
    names.add(name)
    const unknown = Object.keys(given).find(
      (field) => !(field in DEFAULTS) && field !== 'name' && field !== 'kind',
    )
    if (unknown !== undefined) throw new Error(`${at} has a field "${unknown}" that means nothing.`)
    const scenario = { ...DEFAULTS, ...given } as unknown as Scenario
    if (!KINDS.includes(scenario.kind))
      throw new Error(
        `${at} has the kind ${JSON.stringify(scenario.kind)}; it is one of ${KINDS.join(', ')}.`,
      )
    for (const [field, least] of Object.entries(LEAST)) {
      const value = scenario[field as keyof Scenario]
      if (typeof value !== 'number' || !(value >= least))
        throw new Error(`${at} has ${field} ${JSON.stringify(value)}; it is a number from ${least} on.`)
    }
    if (scenario.body !== 'bytes' && scenario.body !== 'object')
      throw new Error(`${at} has the body ${JSON.stringify(scenario.body)}; it is "bytes" or "object".`)
    if (typeof scenario.fanOut !== 'boolean')
      throw new Error(`${at} has fanOut ${JSON.stringify(scenario.fanOut)}; it is true or false.`)
    if (scenario.kind === 'latency' && scenario.rate === 0)
      throw new Error(`${at} measures latency and needs a rate.`)
    if (!Array.isArray(scenario.drivers)) throw new Error(`${at} has drivers that are no array of names.`)
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
