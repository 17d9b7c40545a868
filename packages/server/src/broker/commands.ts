/** What sessions ask of the broker, where the protocol has no type for it: subscriptions are named by themselves. */
import type { AtomicBatch } from '@sluice/protocol'
import type { Subscription } from '../queue/index.js'

/** Consecutive deliveries that an atomic step acknowledges; no subscription: it is over. */
export interface AckRange {
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
 * What the end of a subscription means for the messages that it held: nothing; a try, for the only one that was being
 * handled; suspicion, for several; a try, for the only one that was held, if it was delivered alone; or a death that none
 * of them explains.
 */
export type Blame = 'nobody' | 'started' | 'suspects' | 'alone' | 'unexplained'
