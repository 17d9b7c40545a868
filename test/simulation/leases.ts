/** The leases that a subscription of the model holds. */
import type { Load } from '../rules/credit.js'
import { deadlineAfterAnnouncement } from '../rules/lease.js'
import type { ModelMessage, ModelSubscription } from './state.js'

/** Ends the lease; returns whether its attempt had been charged before. */
export function endLease(subscription: ModelSubscription, tag: number, message: ModelMessage): boolean {
  subscription.held.delete(tag)
  subscription.started.delete(tag)
  subscription.holdsSuspect = false
  subscription.heldBytes -= sizeOf(subscription, tag, message)
  subscription.sizes.delete(tag)
  return subscription.precharged.delete(tag)
}

export function sizeOf({ sizes }: ModelSubscription, tag: number, { record }: ModelMessage): number {
  return sizes.get(tag) ?? record.length
}

export function loadOf({ heldBytes, holdsSuspect }: ModelSubscription): Load {
  return { bytes: heldBytes, isSuspect: holdsSuspect }
}

export function creditText(subscription: ModelSubscription): string {
  const { creditMessages, creditBytes, limit, delivered, held, heldBytes } = subscription
  return `a credit of ${creditMessages} messages and ${creditBytes} bytes, of which ${held.size} and ${heldBytes} are held, or the limit ${limit} after ${delivered} deliveries`
}

export function timeoutOf({ processingTimeoutMs, queue }: ModelSubscription): number {
  return processingTimeoutMs ?? queue.options.processingTimeoutMs
}

export function leaseName(subscriptionId: number, tag: number): string {
  return `${subscriptionId}:${tag}`
}

// An announced message that has not been started by now is not being handled.
export function endAnnouncement({ started }: ModelSubscription): void {
  for (const [tag, deadlineMs] of started)
    if (deadlineAfterAnnouncement(deadlineMs) === undefined) started.delete(tag)
}
