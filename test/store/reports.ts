/** What the processes of the store say to each other over the IPC channel; the work itself goes through the broker. */
import type { Order } from './orders.js'

/** From the demo to the shop: customers have ordered. */
export interface Place {
  readonly orders: readonly Order[]
}

/** The work of each step, and the name of the book in which it is entered. */
export type Step = 'charged' | 'picked' | 'mailed' | 'reminded'

/** One call of a handler that came to its end. */
export interface Done {
  readonly kind: 'done'
  readonly step: Step
  readonly order: string
  readonly attempt: number
  readonly redelivered: boolean
  /** The work was in the book already and was not done again. */
  readonly before: boolean
}

export type Report =
  | { readonly kind: 'ready' }
  /** The broker has it. */
  | { readonly kind: 'placed'; readonly order: string; readonly duplicate: boolean }
  | Done
  | { readonly kind: 'declined'; readonly order: string; readonly retryAfter: string }
  | { readonly kind: 'refused'; readonly order: string; readonly reason: string }
  | { readonly kind: 'cancelled'; readonly order: string }
