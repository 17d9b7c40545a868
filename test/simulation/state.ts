/** The state of the model: queues, messages, and the subscriptions that hold them, in plain Maps. */
import type { QueueOptions } from '@sluice/protocol'
import type { PendingIds, RememberedIds } from '../rules/ids.js'
import type { Line, LineMessage } from '../rules/line.js'
import type { Counters } from './ledger.js'
import type { Content } from './record.js'
import { Violation } from './trace.js'

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
  /** Whether the message's id is known while the message is pending. */
  readonly isListed: boolean
  /** Whether a delivery must be marked as redelivered, and whether it may be marked. */
  mustMark: boolean
  mayMark: boolean
  /** Whether a delivery of the message has left the broker. */
  left: boolean
  /** The last lease of the message, if it ended since the broker started and no later lease has followed. */
  former: FormerLease | undefined
}

export interface FormerLease {
  /** Number of bytes that the lease counts towards the credit. */
  readonly bytes: number
  readonly lease: string
  readonly deadlineMs: number
  /** Whether the attempt was charged when the lease ended. */
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
  /** All messages that are not gone, by offset. */
  readonly live: Map<number, ModelMessage>
  readonly line: Line<ModelMessage>
  readonly remembered: RememberedIds
  /** Remembered ids that a broker with a later clock may have forgotten before the restart. */
  readonly unsure: Set<string>
  readonly pending: PendingIds
  readonly subscriptions: Set<ModelSubscription>
  /** Leased messages that expire when they are released. */
  readonly expiring: Set<number>
  /** Time at which the broker last looked for due messages. */
  lookedMs: number
}

/** The connection, with the parts that the model uses. */
export interface ModelConsumer {
  readonly isReady: boolean
}

export interface ModelSubscription {
  readonly id: number
  readonly queue: ModelQueue
  /** The connection of the subscription. */
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
  /** Tags of messages that are being handled or are announced, with their deadlines; Infinity for announced ones. */
  readonly started: Map<number, number>
  /** Tags of claimed leases whose attempt was already charged. */
  readonly precharged: Set<number>
  /** Number of bytes that each claimed lease counts towards the credit, by tag; other leases count their record. */
  readonly sizes: Map<number, number>
  /** Every tag that was ever granted, with the offset and attempt of its message; late frames can name such tags. */
  readonly granted: Map<number, { readonly offset: number; readonly attempt: number; readonly order: number }>
  /** For each tag that was settled as a retry: the attempts of its message afterwards. No entry if the message died. */
  readonly charged: Map<number, number>
}

export type ModelCounts = ReturnType<typeof noModelCounts>

/** Counts of checks and events, so that a test can assert that something happened. */
function noModelCounts() {
  return {
    dispatched: 0,
    order: 0,
    keyed: 0,
    prioritized: 0,
    stale: 0,
    retried: 0,
    released: 0,
    died: 0,
    acked: 0,
    charged: 0,
    suspected: 0,
    alone: 0,
    drained: 0,
    repeated: 0,
    calm: 0,
    duplicates: 0,
    'duplicate ids': 0,
    'kept behind': 0,
    replaced: 0,
    expired: 0,
    'sweeps cut': 0,
    'full while expired are left': 0,
    dropped: 0,
    overflowed: 0,
    excess: 0,
    'part of an excess': 0,
    moved: 0,
    carried: 0,
    redriven: 0,
    discarded: 0,
    cancelled: 0,
    rescheduled: 0,
    'timed out': 0,
    extended: 0,
    announced: 0,
    claims: 0,
    'claims granted': 0,
    'claims granted after a restart': 0,
    'queue full': 0,
    'dedup full': 0,
    steps: 0,
    'steps repeated': 0,
    'steps refused': 0,
    'step acks': 0,
    'step batches': 0,
    'further batches': 0,
  }
}

export class ModelState {
  readonly queues = new Map<number, ModelQueue>()
  readonly names = new Map<string, ModelQueue>()
  readonly subscriptions = new Map<object, ModelSubscription>()
  readonly counts = noModelCounts()
  /** Boot number of the current broker process. */
  boot = 0

  add(queue: ModelQueue): void {
    this.queues.set(queue.id, queue)
    this.names.set(queue.name, queue)
  }

  remove({ id, name }: ModelQueue): void {
    this.queues.delete(id)
    this.names.delete(name)
  }

  named(name: string): ModelQueue {
    const queue = this.names.get(name)
    if (queue === undefined) throw new Violation(6, `the broker names queue ${name}, which does not exist`)
    return queue
  }

  numbered(id: number): ModelQueue {
    const queue = this.queues.get(id)
    if (queue === undefined) throw new Violation(6, `the broker names queue ${id}, which does not exist`)
    return queue
  }
}
