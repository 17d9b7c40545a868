/** The state of the model: queues, messages, and the subscriptions that hold them. */
import type { QueueOptions } from '@sluice/protocol'
import type { PendingIds, RememberedIds } from '../rules/ids.js'
import type { Line, LineMessage } from '../rules/line.js'
import type { Counters } from './ledger.js'
import type { Content } from './record.js'

export interface ModelDead {
  readonly attempts: number
  readonly death: number
  readonly timeMs: number
  readonly isMoving: boolean
}

export interface ModelMessage extends LineMessage {
  readonly record: Uint8Array
  readonly content: Content
  dead: ModelDead | undefined
  /** Its id is known while it is pending. */
  readonly isListed: boolean
  /** A delivery must be marked as redelivered; it may be. */
  mustMark: boolean
  mayMark: boolean
  /** A delivery of it left the broker. */
  left: boolean
  /** Its last lease of this life of the broker, while no other has followed. */
  former: FormerLease | undefined
}

export interface FormerLease {
  /** What it counts in a credit. */
  readonly bytes: number
  readonly lease: string
  readonly deadlineMs: number
  /** The attempt was charged when it ended. */
  readonly isCharged: boolean
}

export interface ModelQueue {
  readonly id: number
  readonly name: string
  options: QueueOptions
  paused: boolean
  next: number
  acked: number
  readonly counts: Counters
  carried: number
  /** All that is not gone, by offset. */
  readonly live: Map<number, ModelMessage>
  readonly line: Line<ModelMessage>
  readonly remembered: RememberedIds
  /** Of these, those that an earlier life with a later clock may have forgotten. */
  readonly unsure: Set<string>
  readonly pending: PendingIds
  readonly subscriptions: Set<ModelSubscription>
  /** What expired while it was being given back. */
  readonly expiring: Set<number>
}

/** What the model needs of a connection. */
export interface ModelConsumer {
  readonly isReady: boolean
}

export interface ModelSubscription {
  readonly id: number
  readonly queue: ModelQueue
  /** Whose it is: the connection. */
  readonly consumer: ModelConsumer
  readonly processingTimeoutMs: number | undefined
  creditMessages: number
  creditBytes: number
  limit: number
  draining: boolean
  delivered: number
  lastTag: number
  readonly held: Map<number, ModelMessage>
  heldBytes: number
  holdsSuspect: boolean
  /** Tags that are being handled, and when each has to be done: Infinity where it is only announced. */
  readonly started: Map<number, number>
  /** Tags of claimed leases whose try was charged before. */
  readonly precharged: Set<number>
  /** What claimed leases count in the credit, by tag; others count their record. */
  readonly sizes: Map<number, number>
  /** Every tag that was ever granted, with the offset and the attempt of its message, for what comes late. */
  readonly granted: Map<number, { readonly offset: number; readonly attempt: number }>
  /** Attempts that were charged with the settle of a tag; of those that were retried and did not die. */
  readonly charged: Map<number, number>
}
