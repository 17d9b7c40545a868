/**
 * The credit of one subscription, which bounds what the broker may deliver.
 *
 * Invariant: the bounds only grow, because deliveries under an earlier credit may still be under way.
 */

import { MOVED_BYTES_MAX } from '@sluice/protocol'

/** Credit that a subscription grants the broker. */
export interface Credit {
  /** Maximum number of messages that are delivered and not settled. */
  readonly messages: number
  /** Maximum size of the records that are delivered and not settled, in bytes; a larger message is delivered alone. */
  readonly bytes: number
  /** Maximum number of messages that are ever delivered, counted from the start of the subscription. Default: no limit. */
  readonly limit?: number
  /** Whether the broker immediately delivers all messages that it can, and then answers with DRAINED. */
  readonly drain?: boolean
}

export class CreditBounds {
  messages: number
  bytes: number
  #limit: number

  constructor({ messages, bytes, limit = Infinity }: Credit) {
    this.messages = messages
    this.bytes = bytes
    this.#limit = limit
  }

  /** Raises the bounds to the credit that the subscription grants. */
  extend({ messages, bytes, limit = Infinity }: Credit): void {
    this.messages = Math.max(this.messages, messages)
    this.bytes = Math.max(this.bytes, bytes)
    this.#limit = Math.max(this.#limit, limit)
  }

  /**
   * Returns a sentence that says how a delivery exceeds the credit, or undefined if it does not. The arguments describe
   * the state after the delivery: `unsettled` messages are unsettled, `bytes` bytes of records wait for a handler, and
   * `deliveries` messages were delivered since the start.
   */
  excess(unsettled: number, bytes: number, deliveries: number): string | undefined {
    if (unsettled > this.messages)
      return `With the delivery, ${unsettled} messages are unsettled; the credit is ${this.messages}.`
    // A message that is larger than the credit is delivered alone.
    if (bytes > this.bytes + MOVED_BYTES_MAX || deliveries > this.#limit)
      return 'The delivery has more bytes or messages than the credit allows.'
    return undefined
  }
}
