/** The messages between the processes of the store over IPC; the orders themselves pass through the broker. */
import type { Happening, Order } from './orders.js'

/** From the demo to the shop: customers have ordered. */
export interface Place {
  readonly orders: readonly Order[]
}

/** A step of the work; also the name of the book in which the step is entered. */
export type Step = 'charged' | 'picked' | 'mailed' | 'reminded'

/** One completed call of a handler. */
export interface Done {
  readonly kind: 'done'
  readonly step: Step
  readonly order: string
  readonly attempt: number
  readonly redelivered: boolean
  /** Whether the work was already in the book and was skipped. */
  readonly before: boolean
}

export type Report =
  | { readonly kind: 'ready' }
  /** Sent by the analyst: the history from its beginning. */
  | { readonly kind: 'history'; readonly happenings: readonly Happening[] }
  /** Sent when the broker has confirmed the order. */
  | { readonly kind: 'placed'; readonly order: string; readonly duplicate: boolean }
  | Done
  | { readonly kind: 'declined'; readonly order: string; readonly retryAfter: string }
  | { readonly kind: 'refused'; readonly order: string; readonly reason: string }
  | { readonly kind: 'cancelled'; readonly order: string }
