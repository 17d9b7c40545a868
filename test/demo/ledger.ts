/**
 * The ledger of the demo compares the records that were confirmed to producers with those that workers handled.
 *
 * It checks two promises:
 * - No confirmed record is lost: each is handled at least once and acknowledged. A worker reports before it acknowledges,
 *   so a record without a report was never acknowledged.
 * - First deliveries are in order. Of one producer's records that are delivered to one connection of one worker, those
 *   without the redelivered mark have increasing indexes. Repeats may come in any order, but each is marked. After a
 *   crash of the broker every message of the queue is marked, because deliveries are not on disk; the mark means "may
 *   have been delivered before".
 */
import type { QueueInfo } from '@sluice/client'
import { Delays } from './delays.js'
import { firstRecord } from './flights.js'
import type { Handled } from './reports.js'

export interface Tally {
  readonly published: number
  readonly confirmed: number
  /** Number of handler calls. */
  readonly delivered: number
  /** Number of handler calls with a message that was marked as redelivered. */
  readonly redelivered: number
  /** Number of messages that the broker counts as acknowledged. */
  readonly acked: number
  readonly lost: number
  readonly outOfOrder: number
}

export class Ledger {
  readonly delays = new Delays()
  delivered = 0
  redelivered = 0
  /** Number of records that were handled at least once. */
  handledRecords = 0
  #outOfOrder = 0
  readonly #count: number
  /** For each record, the offset in its receipt; -1: not confirmed. */
  readonly #confirmedAt: Float64Array
  /** For each record, the offset at which it was delivered; -1: never delivered. */
  readonly #handledAt: Float64Array
  /**
   * For each worker, connection and producer: the index of the latest record that was delivered there for the first
   * time.
   */
  readonly #lastIndex = new Map<string, number>()

  constructor(count: number) {
    this.#count = count
    this.#confirmedAt = new Float64Array(count).fill(-1)
    this.#handledAt = new Float64Array(count).fill(-1)
  }

  /** Records the offsets of a producer's receipts, by the index of the record; -1: refused. */
  confirmed(producer: number, offsets: readonly number[]): void {
    this.#confirmedAt.set(offsets, firstRecord(producer, this.#count))
  }

  /** Records one call of a handler. `worker` identifies the process. */
  handled(
    worker: number,
    { connection, producer, index, offset, redelivered, origin, delay }: Handled,
  ): void {
    this.delivered++
    if (redelivered) this.redelivered++
    else {
      const line = `${worker} ${connection} ${producer}`
      if (index <= (this.#lastIndex.get(line) ?? -1)) this.#outOfOrder++
      this.#lastIndex.set(line, index)
    }
    const record = firstRecord(producer, this.#count) + index
    if (this.#handledAt[record] !== -1) return
    this.#handledAt[record] = offset
    this.handledRecords++
    this.delays.add(origin, delay)
  }

  /** Returns the result. Called after the queue is drained and all reports were received. */
  close(published: number, queue: QueueInfo): Tally {
    let confirmed = 0
    let unhandled = 0
    for (let record = 0; record < this.#count; record++) {
      if (this.#confirmedAt[record] === -1) continue
      confirmed++
      if (this.#handledAt[record] === -1) unhandled++
    }
    const { delivered, redelivered } = this
    const lost = Math.max(unhandled, confirmed - queue.acked)
    return {
      published,
      confirmed,
      delivered,
      redelivered,
      acked: queue.acked,
      lost,
      outOfOrder: this.#outOfOrder,
    }
  }

  /** Returns the problems as sentences. `truth` is the result that is computed directly from the file. */
  problems(tally: Tally, queue: QueueInfo, truth: Delays): string[] {
    const { ready, scheduled, leased, dead } = queue
    const problems: string[] = []
    const expect = (good: boolean, problem: string): void => {
      if (!good) problems.push(problem)
    }
    expect(tally.lost === 0, `${tally.lost} confirmed records were lost.`)
    expect(tally.outOfOrder === 0, `${tally.outOfOrder} first deliveries were out of order.`)
    expect(
      tally.confirmed === tally.published,
      `${tally.published - tally.confirmed} publishes were not confirmed.`,
    )
    expect(
      queue.published === tally.published,
      `The broker counts ${queue.published} accepted messages; ${tally.published} were published.`,
    )
    expect(
      queue.acked === queue.published,
      `The broker counts ${queue.acked} acknowledged messages of ${queue.published}.`,
    )
    expect(
      ready + scheduled + leased + dead === 0,
      `The queue still holds messages: ready ${ready}, scheduled ${scheduled}, leased ${leased}, dead ${dead}.`,
    )
    let misplaced = 0
    for (let record = 0; record < this.#count; record++) {
      const confirmedAt = this.#confirmedAt[record]
      const handledAt = this.#handledAt[record]
      if (confirmedAt !== -1 && handledAt !== -1 && confirmedAt !== handledAt) misplaced++
    }
    expect(
      misplaced === 0,
      `${misplaced} records were delivered at an offset other than the one in their receipt.`,
    )
    expect(this.delays.equals(truth), 'The delays that the workers summed differ from those of the file.')
    return problems
  }
}
