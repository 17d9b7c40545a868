/** An order, and the queues that it passes through. Used by all processes of the store. */
import { queue, type Duration, type QueueOptions } from '@sluice/client'

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

export const QUEUES = [Payments, Picking, Mails, Reminders] as const

export const OPTIONS: QueueOptions = { maxDeliveries: 5, retry: { initial: '400ms', max: '5s' } }

/** The priority of an order's messages, 0 to 31; higher ones are delivered first. */
export function priority({ express }: Order): number {
  return express ? 20 : 10
}
