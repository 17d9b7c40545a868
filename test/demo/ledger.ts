/**
 * The books of the demo: what producers had confirmed, what workers handled, and whether the two agree.
 *
 * What is promised, and checked here:
 * - Nothing confirmed is lost: each confirmed record is handled at least once and acknowledged. A worker reports before
 *   it acknowledges, so a record that nobody reported was acknowledged by nobody.
 * - First deliveries are in order: those that one connection of one worker gets of one producer, and that are not
 *   marked as redelivered, have increasing indexes. Nothing is promised about repeats but that each is marked. After a
 *   crash of the broker everything that was in the queue is marked, because nothing on disk says what had been handed
 *   out; a mark means "may have been delivered before".
 */
import type { QueueInfo } from '@sluice/client'
import { Delays } from './delays.js'
import { firstRecord } from './flights.js'
import type { Handled } from './reports.js'

export interface Tally {
  readonly published: number
  readonly confirmed: number
  /** Calls of handlers. */
  readonly delivered: number
  /** Those of them whose message was marked. */
  readonly redelivered: number
  /** On record at the broker. */
  readonly acked: number
  readonly lost: number
  readonly outOfOrder: number
}

export class Ledger {
  readonly delays = new Delays()
  delivered = 0
  redelivered = 0
  /** Records that were handled at least once. */
  handledRecords = 0
  #outOfOrder = 0
  readonly #count: number
  /** By record: offset in the receipt; -1: not confirmed. */
  readonly #confirmedAt: Float64Array
  /** By record: offset at which it was delivered; -1: never. */
  readonly #handledAt: Float64Array
  /** Last index of a first delivery, by worker, connection and producer. */
  readonly #lastIndex = new Map<string, number>()

  constructor(count: number) {
    this.#count = count
    this.#confirmedAt = new Float64Array(count).fill(-1)
    this.#handledAt = new Float64Array(count).fill(-1)
  }

  /** Takes the offsets of a producer's receipts, by index; -1: refused. */
  confirmed(producer: number, offsets: readonly number[]): void {
    this.#confirmedAt.set(offsets, firstRecord(producer, this.#count))
  }

  /** Takes one call of a handler. `worker` tells one process from another. */
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

  /** The result, once the queue is drained and every report has come. */
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

  /** What is wrong, in sentences; none when all is well. `truth` is the result computed straight from the file. */
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
    expect(misplaced === 0, `${misplaced} records were delivered at another offset than their receipt says.`)
    expect(this.delays.equals(truth), 'The delays that the workers summed are not those of the file.')
    return problems
  }
}
