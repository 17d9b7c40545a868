/** Commands whose types are not the protocol's: they refer to subscriptions as objects, not by channel and id. */
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
 * - `normal`: a normal end; nothing.
 * - `started`: the connection was lost while one message was handled: an attempt of that message failed.
 * - `suspects`: several messages were handled: each becomes a suspect.
 * - `alone`: one message was held and none was handled: its attempt failed if it was delivered alone.
 * - `unattributed`: several messages were held and none was handled: the loss is attributed to none of them.
 */
export type EndReason = 'normal' | 'started' | 'suspects' | 'alone' | 'unattributed'
