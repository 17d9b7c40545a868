/** The definition of a queue or a stream: it is written to the log when it changes, and not with the counters. */
import type { QueueOptions } from '@sluice/protocol'

/** The durable properties of a queue, apart from its messages and counters. */
export interface QueueDefinition {
  readonly name: string
  readonly options: QueueOptions
  readonly createdAtMs: number
  readonly paused: boolean
  /** Ids of messages below this offset were forgotten when the deduplication window changed. */
  readonly idsFrom: number
  /** Options that only a stream has; a queue has none. `options` has the others. */
  readonly stream?: StreamRules
  /** Only of a group. */
  readonly group?: GroupRules
}

/** What only a group has. */
export interface GroupRules {
  /** Id of the stream. */
  readonly streamId: number
  /** Messages that were published before this time do not enter; 0: all enter. */
  readonly fromMs: number
}

/** The options of a stream that a queue does not have. */
export interface StreamRules {
  /** Maximum number of messages that are kept; 0: not limited by number. */
  readonly retainMessages: number
  /**
   * Retention keeps messages that a group has not finished, until the stream has more bytes than this; 0: it never
   * waits.
   */
  readonly waitForGroupsBytes: number
  /** `key`: only the newest message of each key is kept. */
  readonly compact: 'none' | 'key'
  /** How long a compacted stream keeps a message without a body. */
  readonly tombstoneAgeMs: number
}
