/** The harness's interface to a broker: it starts one and publishes and consumes through the broker's usual client. */
import type { Scenario } from './scenario.js'

export type Body = Uint8Array | object

/** A connection of a load process. */
export interface Session {
  /** Resolves when the broker has confirmed. */
  publish(queue: string, body: Body): Promise<unknown>
  /** The same message to all of these queues; resolves when all of it is confirmed. Not every broker can. */
  publishToAll?(queues: readonly string[], body: Body): Promise<unknown>
  /** Calls `each` for every message; `ack` is called once for each and not waited for. Resolves when it has begun. */
  consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void>
  close(): Promise<void>
}

/** A broker that was started for a run. */
export interface Running {
  readonly url: string
  /** Processes whose memory and CPU are the broker's. */
  readonly pids: readonly number[]
  /** What is needed before messages can be sent to these queues. */
  makeQueues(names: readonly string[]): Promise<void>
  stop(): Promise<void>
}

export interface Driver {
  readonly name: string
  /** A description: the broker, and when it confirms. */
  readonly settings: string
  /** Text of its version; undefined when it is not installed. */
  version(): Promise<string | undefined>
  /** Whether it can do what the scenario asks. */
  can(scenario: Scenario): boolean
  /** Starts a broker on `port` whose data is in `directory`, which is empty. */
  start(directory: string, port: number): Promise<Running>
  connect(url: string, scenario: Scenario): Promise<Session>
}
