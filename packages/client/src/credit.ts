/**
 * The credit of one subscription, which bounds what the broker may deliver.
 *
 * Invariant: the bounds only grow, because deliveries under an earlier credit may still be under way.
 */

import { MOVED_BYTES_MAX } from '@sluice/protocol'

/** Credit that a subscription grants the broker. */
export interface Credit {
  /** Most messages that are delivered and not settled. */
  readonly messages: number
  /** Most bytes of records that are delivered and not settled; a larger message is delivered alone. */
  readonly bytes: number
  /** Most messages that are ever delivered, counted from the start of the subscription. Default: no limit. */
  readonly limit?: number
  /** The broker delivers what it can at once, and then answers with DRAINED. */
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

  /** The subscription grants this credit too. */
  extend({ messages, bytes, limit = Infinity }: Credit): void {
    this.messages = Math.max(this.messages, messages)
    this.bytes = Math.max(this.bytes, bytes)
    this.#limit = Math.max(this.#limit, limit)
  }

  /**
   * What is wrong with a delivery after which `unsettled` messages are unsettled, `bytes` of records wait for a handler, and
   * `deliveries` messages were delivered in all. Undefined when it is within the bounds.
   */
  excess(unsettled: number, bytes: number, deliveries: number): string | undefined {
    if (unsettled > this.messages)
      return `It brings ${unsettled} unsettled messages; the credit is ${this.messages}.`
    // A message that is larger than the credit is delivered alone.
    if (bytes > this.bytes + MOVED_BYTES_MAX || deliveries > this.#limit)
      return 'It brings more bytes or messages than the credit allows.'
    return undefined
  }
}
