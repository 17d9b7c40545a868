/**
 * The atomic steps of one simulated client. The class numbers them, keeps unanswered ones, and returns them, byte for
 * byte, for the next connection.
 */
import { encodeAtomic, type AtomicAck, type Placed } from '@sluice/protocol'
import type { HistoryEvent } from '../checker/history.js'
import { accepted, buildBatch, remember, type Attempt, type Attempts, type RecordDraft } from './attempts.js'

export interface Step<Ack> {
  readonly number: number
  readonly payload: Uint8Array
  readonly attempts: readonly Attempt[]
  /** The client's own data about each message that the step acknowledges. */
  readonly acks: readonly Ack[]
}

export class Steps<Ack> {
  readonly #producer: string
  readonly #identity: string
  readonly #history: HistoryEvent[]
  readonly #attempts: Attempts
  readonly #unanswered = new Map<number, Step<Ack>>()
  #number = 0
  acceptedNumber = 0

  constructor(producer: string, identity: string, history: HistoryEvent[], attempts: Attempts) {
    this.#producer = producer
    this.#identity = identity
    this.#history = history
    this.#attempts = attempts
  }

  get nextNumber(): number {
    return this.#number + 1
  }

  get size(): number {
    return this.#unanswered.size
  }

  /** The lowest number that the client may still send again. */
  get lowestUnanswered(): number {
    for (const number of this.#unanswered.keys()) return number
    return this.#number + 1
  }

  unanswered(): IterableIterator<Step<Ack>> {
    return this.#unanswered.values()
  }

  /** A step that acknowledges `ranges` and publishes `batches`; several batches can be for the same queue. */
  make(
    ranges: readonly AtomicAck[],
    acks: readonly Ack[],
    batches: readonly { readonly queue: string; readonly drafts: readonly RecordDraft[] }[],
  ): Step<Ack> {
    const number = ++this.#number
    const attempts = batches.map(({ queue, drafts }): Attempt => {
      const { batch, records } = buildBatch(number, drafts, false)
      return {
        identity: this.#identity,
        number,
        queue,
        batch,
        records,
        names: drafts.map(({ name }) => name),
        options: drafts.map(({ options }) => options),
        follows: 0,
        isSplit: false,
        expects: undefined,
      }
    })
    let from = 0
    for (const attempt of attempts) {
      this.#attempts.add(attempt)
      remember(attempt, this.#producer, this.#history, from)
      from += attempt.names.length
    }
    const payload = encodeAtomic(
      number,
      ranges,
      attempts.map(({ queue, batch }) => ({ queue, bytes: batch, at: 0, end: batch.length })),
    )
    const step = { number, payload, attempts, acks }
    this.#unanswered.set(number, step)
    return step
  }

  /** Called when the step was accepted. Returns the step, or undefined if the client does not wait for it. */
  confirmed(number: number, places: readonly Placed[]): Step<Ack> | undefined {
    const step = this.#take(number)
    for (const [i, attempt] of step?.attempts.entries() ?? []) {
      const { baseOffset, duplicates } = places[i]!
      accepted(attempt, baseOffset, duplicates, this.#history)
    }
    this.acceptedNumber = Math.max(this.acceptedNumber, number)
    return step
  }

  /** Called when the step was refused as a whole. Returns the step, or undefined if the client does not wait for it. */
  refused(number: number): Step<Ack> | undefined {
    const step = this.#take(number)
    for (const { names } of step?.attempts ?? [])
      for (const message of names) this.#history.push({ kind: 'outcome', message, outcome: 'fail' })
    return step
  }

  #take(number: number): Step<Ack> | undefined {
    const step = this.#unanswered.get(number)
    this.#unanswered.delete(number)
    return step
  }
}
