/** Types of the reference model: its state, the requests to it, and its two kinds of error. */
import type { DeathName, HistoryEventName, QueueCounter, QueueOptions } from '@sluice/protocol'
import type { RememberedIds } from '../rules/ids.js'
import type { Deadline } from '../rules/lease.js'
import type { Line, LineMessage } from '../rules/line.js'
import type { MessageOptions } from '../rules/message.js'

/** The content of a message. Times in ms. */
export interface Content extends MessageOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Bytes of the record. */
  readonly size: number
}

/** All error codes that a request deserves; the product names one of them. */
export class Refused extends Error {
  readonly codes: readonly string[]

  constructor(codes: readonly string[]) {
    super(`refused with ${codes.join(' or ')}`)
    this.codes = codes
  }
}

/** The product did something that the specification does not allow. */
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
  /** Undefined where the broker chooses the words. */
  reason: string | undefined
}

/** An event in the answer to HISTORY. */
export interface ModelEvent {
  readonly event: HistoryEventName
  readonly atMs: number
  readonly attempts?: number
  readonly dueMs?: number
  /** Undefined where the broker chooses the words, or where there are none. */
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
  /** All messages that are not gone, by offset. */
  messages: ModelMessage[]
  /** Acknowledged messages; only these can be replayed, if they are retained. */
  readonly done: { readonly message: ModelMessage; readonly atMs: number; readonly isRetained: boolean }[]
  /** Events of each message, by offset, oldest first. */
  readonly history: Map<number, ModelEvent[]>
  /** Offset of the next message. */
  next: number
  acked: number
  line: Line<ModelMessage>
  readonly remembered: RememberedIds
  readonly counters: Record<QueueCounter, number>
  subscriptions: ModelSubscription[]
  /** Highest offset that was delivered since the broker started, + 1. */
  deliveredBelow: number
}

/** A message on its way into another queue, until the product shows it there. */
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
