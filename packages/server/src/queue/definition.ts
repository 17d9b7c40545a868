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
}

/** The options of a stream that a queue does not have. */
export interface StreamRules {
  /** Maximum number of messages that are kept; 0: not limited by number. */
  readonly retainMessages: number
}
