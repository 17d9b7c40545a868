/** The state of the reference model, what is asked of it, and how it objects. */
import type { DeathName, HistoryEventName, QueueCounter, QueueOptions } from '@sluice/protocol'
import type { RememberedIds } from '../rules/ids.js'
import type { Deadline } from '../rules/lease.js'
import type { Line, LineMessage } from '../rules/line.js'
import type { MessageOptions } from '../rules/message.js'

/** What a message says. Times in milliseconds. */
export interface Content extends MessageOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Bytes of the record. */
  readonly size: number
}

/** The codes of all that is wrong with a request; the product names one of them. */
export class Refused extends Error {
  readonly codes: readonly string[]

  constructor(codes: readonly string[]) {
    super(`refused with ${codes.join(' or ')}`)
    this.codes = codes
  }
}

/** The product did what the specification does not allow. */
export class Difference extends Error {}

interface ModelLease {
  readonly subscription: ModelSubscription
  readonly tag: number
  readonly atMs: number
  readonly alone: boolean
  deadlineMs: Deadline
}

export interface ModelMessage extends LineMessage {
  readonly content: Content
  /** Whether a delivery must be marked as redelivered. */
  marked: 'no' | 'maybe' | 'yes'
  lease: ModelLease | undefined
  death: DeathName | undefined
  /** Its queue had a dead-letter queue when it died. */
  isMoving: boolean
  diedMs: number
  /** Undefined: the broker's own words. */
  reason: string | undefined
}

/** What HISTORY tells of a message. */
export interface ModelEvent {
  readonly event: HistoryEventName
  readonly atMs: number
  readonly attempts?: number
  readonly dueMs?: number
  /** Undefined: the broker's own words, or none. */
  readonly text?: string
}

export interface ModelSubscription {
  readonly queue: ModelQueue
  readonly client: string
  readonly processingTimeoutMs: number | undefined
  creditMessages: number
  creditBytes: number
  limit: number
  draining: boolean
  delivered: number
  readonly held: Map<number, ModelMessage>
  isOpen: boolean
}

export interface ModelQueue {
  readonly name: string
  options: QueueOptions
  paused: boolean
  /** All that is not gone, by offset. */
  messages: ModelMessage[]
  /** Acknowledged ones: what is retained can be replayed, and nothing else than these. */
  readonly done: { readonly message: ModelMessage; readonly atMs: number; readonly isRetained: boolean }[]
  /** What happened to each message, by offset, in order. */
  readonly history: Map<number, ModelEvent[]>
  /** Offset of the next message. */
  next: number
  acked: number
  line: Line<ModelMessage>
  readonly remembered: RememberedIds
  readonly counters: Record<QueueCounter, number>
  subscriptions: ModelSubscription[]
  /** Highest offset handed out since the broker began, + 1. */
  deliveredBelow: number
}

/** A message on its way into another queue; it is there once the product shows it. */
export interface Transfer {
  readonly kind: 'moved' | 'redriven'
  readonly from: ModelQueue
  readonly to: ModelQueue
  readonly message: ModelMessage
}

export interface ModelPlaced {
  readonly base: number
  readonly duplicates: ReadonlyMap<number, number>
}

export interface ModelBatch {
  readonly queue: string
  readonly contents: readonly Content[]
}

export interface ModelSettle {
  readonly tags: readonly number[]
  readonly outcome: 'ack' | 'retry' | 'release' | 'deadLetter'
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly invalid: boolean
}
