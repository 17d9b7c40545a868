/**
 * An order, the queues that it passes through, and the history of what happened to it. Used by all processes of the store.
 */
import { queue, stream, topic, type Duration, type QueueOptions, type Topic } from '@sluice/client'
import type { Step } from './reports.js'

export interface Order {
  readonly id: string
  readonly customer: string
  readonly item: string
  /** Total in euros. */
  readonly total: number
  /** Whether the order is delivered before waiting orders. */
  readonly express: boolean
  /** The answer of the bank. */
  readonly card: 'good' | 'declined once' | 'expired' | 'slow'
  /** Time after which a reminder is sent, if the order is unpaid then. */
  readonly remindAfter: Duration
}

export const Payments = queue<Order>('payments')
export const Picking = queue<Order>('picking')
export const Mails = queue<Order>('mails')
export const Reminders = queue<Order>('reminders')

/** What a worker has done to an order. */
export interface Happening {
  readonly order: string
  readonly step: Step
  readonly total: number
}

/** Each happening is published to a topic of its step. The topics are bound to the stream of the history. */
export const HAPPENINGS = 'orders.*'
export const History = stream<Happening>('history')

export function happened(step: Step): Topic<Happening> {
  return topic<Happening>(`orders.${step}`)
}

export const QUEUES = [Payments, Picking, Mails, Reminders] as const

export const OPTIONS: QueueOptions = { maxDeliveries: 5, retry: { initial: '400ms', max: '5s' } }

/** The priority of an order's messages, 0 to 31; higher ones are delivered first. */
export function priority({ express }: Order): number {
  return express ? 20 : 10
}
