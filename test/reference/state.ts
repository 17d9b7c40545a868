/** Types of the reference model: its state, the requests to it, and its two kinds of error. */
import type { DeathName, HistoryEventName, QueueCounter, QueueOptions } from '@sluice/protocol'
import type { RememberedIds } from '../rules/ids.js'
import type { Deadline } from '../rules/lease.js'
import type { Line, LineMessage } from '../rules/line.js'
import type { MessageOptions } from '../rules/message.js'
import type { RateLimit } from '../rules/rate.js'
import type { RequiredHeaders } from '../rules/topic.js'

/** The content of a message. Times are in ms. */
export interface Content extends MessageOptions {
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Size of the record in bytes. */
  readonly size: number
}

/** All error codes that are allowed for a request; the product returns one of them. */
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
  /** Whether the queue of the message had a dead-letter queue when the message died. */
  isMoving: boolean
  diedMs: number
  /** The reason for the death; undefined if the broker words it. */
  reason: string | undefined
}

/** An event in the answer to HISTORY. */
export interface ModelEvent {
  readonly event: HistoryEventName
  readonly atMs: number
  readonly attempts?: number
  readonly dueMs?: number
  /** The text of the event; undefined if there is none, or if the broker chooses the words. */
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

/** The limits of a stream; 0: no limit. */
export interface RetentionLimits {
  readonly retainAgeMs: number
  readonly retainBytes: number
  readonly retainMessages: number
  readonly waitForGroupsBytes: number
}

/** A group of a stream: a queue that the messages of the stream enter in order, when it needs them. */
export interface ModelGroup {
  readonly stream: ModelQueue
  /** Messages of the stream that have not entered. */
  waiting: ModelMessage[]
  /** Messages that were published before this time do not enter. */
  fromMs: number
  /** Number of messages that retention removed before they were done. */
  missed: number
}

export interface ModelQueue {
  readonly name: string
  /** Of a stream: its limits. The messages of a stream are always ready, and are never delivered. */
  limits?: RetentionLimits
  group?: ModelGroup
  options: QueueOptions
  paused: boolean
  /** All messages that are not gone, by offset. */
  messages: ModelMessage[]
  /** Acknowledged messages. Only acknowledged messages can be replayed, and only if they are retained. */
  readonly done: { readonly message: ModelMessage; readonly atMs: number; isRetained: boolean }[]
  /** Events of each message, by offset, oldest first. */
  readonly history: Map<number, ModelEvent[]>
  /** Offset of the next message. */
  next: number
  acked: number
  line: Line<ModelMessage>
  /** Undefined if the queue has no rate. */
  rate: RateLimit | undefined
  readonly remembered: RememberedIds
  readonly counters: Record<QueueCounter, number>
  subscriptions: ModelSubscription[]
  /** The highest offset that was delivered since the broker started, plus 1. */
  deliveredBelow: number
  /** Time of the last call that named the queue, or of the end of its last consumer. */
  usedMs: number
}

export interface ModelBinding {
  readonly pattern: string
  readonly queue: ModelQueue
  readonly required: RequiredHeaders | undefined
}

/** A message that is moving to another queue, until the product shows it there. */
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
  readonly pauseKey?: boolean
}
