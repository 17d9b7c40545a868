/** What the store's processes have in common: an order, and the queues that it goes through. */
import { queue, type Duration, type QueueOptions } from '@sluice/client'

export interface Order {
  readonly id: string
  readonly customer: string
  readonly item: string
  /** Euros. */
  readonly total: number
  /** Goes before those that wait. */
  readonly express: boolean
  /** What the bank is going to say. */
  readonly card: 'good' | 'declined once' | 'expired' | 'slow'
  /** When the customer is asked to pay, unless it was done by then. */
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
