/**
 * Commands whose types differ from those of the protocol: they refer to subscriptions as objects, not by channel and
 * id.
 */
import type { AtomicBatch } from '@sluice/protocol'
import type { Subscription } from '../queue/index.js'

/** Consecutive deliveries that an atomic step acknowledges. */
export interface AckRange {
  /** Undefined: the subscription has ended. */
  readonly subscription: Subscription | undefined
  readonly firstTag: number
  readonly count: number
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
 * - `normal`: a normal end; no attempt is charged.
 * - `started`: the connection was lost while one message was being handled: an attempt of that message failed.
 * - `suspects`: several messages were being handled: each becomes a suspect.
 * - `alone`: one message was held and none was being handled: the attempt of the held message failed if the message was
 *   delivered alone.
 * - `unattributed`: several messages were held and none was being handled: the loss is attributed to none of them.
 */
export type EndReason = 'normal' | 'started' | 'suspects' | 'alone' | 'unattributed'
