/** An order and the queues that it passes, for all processes of the store. */
import { queue, type Duration, type QueueOptions } from '@sluice/client'

export interface Order {
  readonly id: string
  readonly customer: string
  readonly item: string
  /** Euros. */
  readonly total: number
  /** Delivered before waiting orders. */
  readonly express: boolean
  /** The answer of the bank. */
  readonly card: 'good' | 'declined once' | 'expired' | 'slow'
  /** The time of the reminder, if the order is unpaid then. */
  readonly remindAfter: Duration
}

export const Payments = queue<Order>('payments')
export const Picking = queue<Order>('picking')
export const Mails = queue<Order>('mails')
export const Reminders = queue<Order>('reminders')

export const QUEUES = [Payments, Picking, Mails, Reminders] as const

export const OPTIONS: QueueOptions = { maxDeliveries: 5, retry: { initial: '400ms', max: '5s' } }

/** 0 to 31, higher goes first. */
export function priority({ express }: Order): number {
  return express ? 20 : 10
}
