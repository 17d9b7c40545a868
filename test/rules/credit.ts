/** Rules that decide which message a subscription may receive. Pure functions, which share no code with the server. */
import type { Message } from './message.js'

export interface Credit {
  readonly creditMessages: number
  readonly creditBytes: number
  /** Maximum number of deliveries; Infinity if there is no limit. */
  readonly limit: number
  readonly delivered: number
  /** Messages that the subscription holds, by tag. */
  readonly held: { readonly size: number }
}

/** The messages that a subscription holds. */
export interface Load {
  readonly bytes: number
  /** Whether the subscription holds a single message, which was delivered alone. */
  readonly isSuspect: boolean
}

/** The active subscription of a `single` queue: the one that holds messages, or else the first with credit left. */
export function activeOf<S extends Credit>(subscriptions: Iterable<S>): S | undefined {
  let first: S | undefined
  for (const subscription of subscriptions) {
    if (subscription.held.size > 0) return subscription
    const { creditMessages, delivered, limit } = subscription
    if (creditMessages > 0 && delivered < limit) first ??= subscription
  }
  return first
}

/** Whether the subscription may receive any message. */
export function hasRoom(
  subscription: Credit,
  load: Load,
  isSingle: boolean,
  subscriptions: Iterable<Credit>,
): boolean {
  const { held, creditMessages, delivered, limit } = subscription
  if (isSingle && activeOf(subscriptions) !== subscription) return false
  return !load.isSuspect && held.size < creditMessages && delivered < limit
}

/**
 * Whether a subscription that has room may receive this message. A subscription that holds no message may receive any
 * message, so that no message is stuck.
 */
export function fits(
  { held, creditBytes }: Credit,
  load: Load,
  { bytes, isSuspect }: Pick<Message, 'bytes' | 'isSuspect'>,
): boolean {
  return held.size === 0 || (!isSuspect && load.bytes + bytes <= creditBytes)
}
