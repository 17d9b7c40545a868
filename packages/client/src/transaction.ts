/** Collects what an atomic step does, until it is sent. */
import { SluiceError, type RecordOptions } from '@sluice/protocol'
import { DeliveredMessage, type Message } from './message.js'
import { MESSAGE_OPTIONS, recordOptions, type MessageOptions, type QueueRef } from './options.js'
import { checkBody } from './schema.js'
import { Step, type StepRecord } from './step.js'
import type { Session } from './session.js'
import { destinationOf, isTopic, type RoutingOptions, type Topic } from './topics.js'

/**
 * The argument of the function that `atomic` calls. The calls of its methods take effect together, after that function
 * has ended. If one of them throws, the step has no effect.
 */
export interface Transaction {
  /**
   * Acknowledges a message. From now on the message cannot be settled in another way, unless the step has no effect.
   * @throws SluiceError ALREADY_SETTLED; LEASE_LOST when the message no longer belongs to a consumer of this client
   */
  ack(message: Message): void
  /**
   * Publishes a message to the queues that are bound to the topic. It has no receipt. If no queue is bound, the step is
   * refused with UNROUTABLE, unless `unroutable` is `'drop'`.
   * @throws SluiceError The errors of `publish`: INVALID_TOPIC, INVALID_BODY, MESSAGE_TOO_LARGE, …
   */
  publish<Input>(
    topic: Topic<Input, unknown>,
    body: NoInfer<Input>,
    options?: MessageOptions & RoutingOptions,
  ): void
  /**
   * Publishes a message to a queue or a stream. `atomic` resolves with the receipts, in the order of these calls.
   * @throws SluiceError The errors of `publish`: INVALID_NAME, INVALID_BODY, MESSAGE_TOO_LARGE, …
   */
  publish<Input>(queue: QueueRef<Input, unknown>, body: NoInfer<Input>, options?: MessageOptions): void
}

/** Encodes a body and its options as a record. @throws SluiceError */
export type Encode = (body: unknown, options: RecordOptions | undefined) => Uint8Array

export class StepDraft implements Transaction {
  readonly #session: Session
  readonly #encode: Encode
  readonly #messages: DeliveredMessage[] = []
  readonly #records: StepRecord[] = []
  readonly #checks: Promise<void>[] = []
  #fault: { readonly error: unknown } | undefined
  #isClosed = false

  constructor(session: Session, encode: Encode) {
    this.#session = session
    this.#encode = encode
  }

  ack(message: Message): void {
    this.#do(() => {
      if (!(message instanceof DeliveredMessage))
        throw new SluiceError('INVALID_ARGUMENT', '`ack` takes a message that was delivered to this client.')
      message.pledge(this.#session.connection)
      this.#messages.push(message)
    })
  }

  publish(ref: QueueRef | Topic, body: unknown, options?: MessageOptions & RoutingOptions): void {
    this.#do(() => {
      const { name, schema } = destinationOf(ref, options)
      const known = isTopic(ref) ? TOPIC_MESSAGE_OPTIONS : MESSAGE_OPTIONS
      const record = options === undefined ? undefined : recordOptions(options, known)
      this.#records.push({ queue: name, record: this.#encode(body, record) })
      if (schema === undefined) return
      const check = checkBody(schema, body, 'body')
      // `complete` awaits this promise.
      check.catch(() => {})
      this.#checks.push(check)
    })
  }

  // Even if the caller catches the error, a part of the step is missing, so the step must have no effect.
  #do(part: () => void): void {
    if (this.#isClosed)
      throw new SluiceError('CLOSED', 'The atomic step has ended: its function has already returned.')
    try {
      part()
    } catch (error) {
      this.#fault ??= { error }
      throw error
    }
  }

  /**
   * Makes the step, after the function has ended. Returns undefined if the step does nothing.
   * @throws The error that a call threw; SluiceError INVALID_BODY, TRANSACTION_TOO_LARGE
   */
  async complete(): Promise<Step | undefined> {
    this.#isClosed = true
    if (this.#fault !== undefined) throw this.#fault.error
    for (const check of this.#checks) await check
    if (this.#messages.length === 0 && this.#records.length === 0) return undefined
    return new Step(this.#messages, this.#records)
  }

  /** Called when no step is made. The acknowledged messages can be settled again. */
  abandon(): void {
    this.#isClosed = true
    for (const message of this.#messages) message.reopen()
  }
}

const TOPIC_MESSAGE_OPTIONS = [...MESSAGE_OPTIONS, 'unroutable']
