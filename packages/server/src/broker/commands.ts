/**
 * Commands whose types differ from those of the protocol: they refer to subscriptions as objects, not by channel and
 * id.
 */
import type { AtomicBatch } from '@sluice/protocol'
import type { Queue, Subscription } from '../queue/index.js'

/** Consecutive deliveries that an atomic step acknowledges. */
export interface AckRange {
  /** Undefined if the subscription has ended. */
  readonly subscription: Subscription | undefined
  readonly firstTag: number
  readonly count: number
}

/** A batch in `bytes[at, end)`, with its header. */
export interface BatchBytes {
  readonly bytes: Uint8Array
  readonly at: number
  readonly end: number
}

/** Consecutive records of a batch. */
export interface RecordRange {
  /** Index of the first record. */
  readonly index: number
  readonly count: number
}

/** A queue that gets records of a shared batch. */
export interface Target {
  readonly queue: Queue
  /** The records, in ascending order without overlaps; undefined if the queue gets all records. */
  readonly ranges: readonly RecordRange[] | undefined
}

export interface AtomicStep {
  readonly number: number
  readonly crc: number
  readonly acks: readonly AckRange[]
  readonly batches: readonly AtomicBatch[]
}

/**
 * What the end of a subscription means for the messages that it held.
 *
 * - `normal`: the subscription ended without a lost connection; no attempt is charged.
 * - `started`: the connection was lost while one message was being handled: an attempt of that message failed.
 * - `suspects`: the connection was lost while several messages were being handled: each becomes a suspect.
 * - `alone`: the connection was lost while one message was held and no message was being handled: an attempt of the
 *   held message failed if the message was delivered alone; otherwise the end is treated as `unattributed`.
 * - `unattributed`: the connection was lost while several messages were held and no message was being handled: the
 *   loss is attributed to no message.
 */
export type EndReason = 'normal' | 'started' | 'suspects' | 'alone' | 'unattributed'
