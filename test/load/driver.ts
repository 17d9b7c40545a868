/** The harness's interface to a broker: it starts one and publishes and consumes through the broker's usual client. */
import type { Scenario } from './scenario.js'

export type Body = Uint8Array | object

/** A connection of a load process. */
export interface Session {
  /** Resolves when the broker has confirmed the message. */
  publish(queue: string, body: Body): Promise<unknown>
  /** Publishes one message to all queues of the scenario, as its `fanOut` says; resolves when all copies are confirmed. */
  publishToAll?(queues: readonly string[], body: Body): Promise<unknown>
  /**
   * Calls `each` for every message; `each` calls `ack` once and does not wait for its result. Resolves when consuming
   * has started. A session consumes from a stream as the group or the reader that belongs to its process.
   */
  consume(queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void>
  close(): Promise<void>
}

/** A broker that was started for a run. */
export interface Running {
  readonly url: string
  /** The processes whose memory and CPU count as the broker's. */
  readonly pids: readonly number[]
  /** Creates the queues or streams, and what delivers messages to several of them or to several groups. */
  makeQueues(names: readonly string[], scenario: Scenario): Promise<void>
  stop(): Promise<void>
}

export interface Driver {
  readonly name: string
  /** A description of the broker, including when it confirms. */
  readonly settings: string
  /** What must be installed, if it is not part of the project; for the notice that the broker is skipped. */
  readonly needs?: string
  /** The Node program of the load processes, if the client needs another one than the harness. */
  readonly node?: string
  /** The broker's version; undefined if the broker is not installed. */
  version(): Promise<string | undefined>
  /** Whether the broker supports what the scenario requires. */
  can(scenario: Scenario): boolean
  /** Whether the client has requests and replies. */
  readonly hasReplies?: boolean
  /** Starts a broker on `port` with its data in `directory`, which is empty or has the data of an earlier start. */
  start(directory: string, port: number): Promise<Running>
  /** `index`: number of the load process, among the producers or among the consumers. */
  connect(url: string, scenario: Scenario, index: number): Promise<Session>
}
