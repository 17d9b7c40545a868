/** The results of producers' batches. Invariant 3: one number has one result. */
import { SluiceError, type ErrorCode, type Placed } from '@sluice/protocol'
import type { Attempt } from './attempts.js'
import type { LedgerProducer } from './ledger.js'
import type { ModelCounts } from './state.js'
import { Violation } from './trace.js'

/** The place at which one batch was accepted. */
export interface ModelPlace {
  readonly queueId: number
  readonly base: number
  readonly duplicates: ReadonlyMap<number, number>
}

interface ModelProducer {
  readonly accepted: Map<number, { readonly places: readonly ModelPlace[]; readonly crc: number }>
  /** Error codes of the batches that were refused since the broker started, by number. */
  readonly refused: Map<number, ErrorCode>
  /**
   * Numbers that were refused since the broker started, including those that can still be accepted later. Batches that
   * follow them are refused.
   */
  readonly open: Set<number>
  /** Results of lower numbers are no longer requested. */
  windowStart: number
}

export class Results {
  /** Messages that were refused at least once; after a restart the broker may accept them. */
  readonly decidedAgain = new Set<string>()
  readonly #producers = new Map<string, ModelProducer>()
  readonly #counts: ModelCounts
  readonly #diskMayBeLow: () => boolean
  /** Whether the queue of any of these batches may have forgotten some of its ids. */
  readonly #isUnsure: (attempts: readonly Attempt[]) => boolean
  /** The refusals that are allowed because a queue of these batches has expired messages that it has not removed. */
  readonly #whileExpiredAreLeft: (attempts: readonly Attempt[]) => readonly ErrorCode[]

  constructor(
    counts: ModelCounts,
    diskMayBeLow: () => boolean,
    isUnsure: (attempts: readonly Attempt[]) => boolean,
    whileExpiredAreLeft: (attempts: readonly Attempt[]) => readonly ErrorCode[],
  ) {
    this.#counts = counts
    this.#diskMayBeLow = diskMayBeLow
    this.#isUnsure = isUnsure
    this.#whileExpiredAreLeft = whileExpiredAreLeft
  }

  accept(identity: string, number: number, places: readonly ModelPlace[], crc: number): void {
    this.#producer(identity).accepted.set(number, { places, crc })
  }

  /** Takes the results from the log after a restart; refusals are forgotten. */
  recover(producers: Iterable<LedgerProducer>): void {
    for (const { accepted, refused, open } of this.#producers.values()) {
      refused.clear()
      open.clear()
      accepted.clear()
    }
    for (const { identity, accepted } of producers)
      for (const [number, { places, crc }] of accepted) this.accept(identity, number, places, crc)
  }

  /** Invariant 3: a number has one result. Returns whether the batch is accepted now. */
  answered(
    identity: string,
    number: number,
    crc: number,
    unanswered: number,
    what: string,
    answer: readonly Placed[] | SluiceError,
    attempts: readonly Attempt[],
    refusalOf: () => ErrorCode | undefined,
  ): boolean {
    const producer = this.#producer(identity)
    producer.windowStart = Math.max(producer.windowStart, number - unanswered)
    const known = producer.accepted.get(number)
    const refused = producer.refused.get(number)
    const isOld = number < producer.windowStart
    const deserved = attempts.flatMap(({ expects }) => expects ?? [])
    for (const old of producer.open) if (old < producer.windowStart) producer.open.delete(old)
    const isBehind = attempts.some(({ follows }) => follows > 0 && producer.open.has(number - follows))
    if (!(answer instanceof SluiceError)) {
      if (known !== undefined) {
        if (known.crc !== crc || !samePlaces(known.places, answer))
          throw new Violation(
            3,
            `${what} is answered ${placesText(answer)}; it was accepted at ${placesText(known.places)}`,
          )
        this.#counts.duplicates++
        return false
      }
      if (refused !== undefined && !isOld)
        throw new Violation(3, `${what} is accepted but was refused with ${refused}`)
      if (isOld) throw new Violation(3, `${what} is accepted although it is older than its window`)
      if (deserved.length > 0)
        throw new Violation(21, `${what} is accepted but must be refused with ${deserved.join()}`)
      if (isBehind) throw new Violation('order', `${what} is accepted but follows a batch that was refused`)
      const refusal = refusalOf()
      if (refusal === 'LEASE_LOST' || (refusal !== undefined && !this.#isUnsure(attempts)))
        throw new Violation('limits', `${what} is accepted but must be refused with ${refusal}`)
      producer.open.delete(number)
      return true
    }
    const { code } = answer
    const allowed: ErrorCode[] = [...deserved]
    if (isOld) allowed.push('UNKNOWN_OUTCOME')
    if (known !== undefined) {
      if (known.crc !== crc) allowed.push('NUMBER_REUSED')
      // A known result is returned even if the queue has been deleted or changed since.
      else if (!isOld)
        throw new Violation(
          3,
          `${what} is refused with ${code} but was accepted at ${placesText(known.places)}`,
        )
    } else if (refused !== undefined) {
      allowed.push(refused)
    } else if (isBehind) {
      allowed.push('EARLIER_REFUSED')
      this.#counts['kept behind']++
    } else {
      const refusal = refusalOf()
      if (refusal !== undefined) allowed.push(refusal)
      else if (this.#diskMayBeLow()) allowed.push('DISK_LOW')
      if (refusal === undefined) allowed.push(...this.#whileExpiredAreLeft(attempts))
      if (this.#isUnsure(attempts)) allowed.push('DEDUP_FULL', 'QUEUE_FULL', 'DISK_LOW')
      if (code === 'QUEUE_FULL') this.#counts['queue full']++
      if (code === 'DEDUP_FULL') this.#counts['dedup full']++
    }
    if (!allowed.includes(code))
      throw new Violation(
        3,
        `${what} is refused with ${code}; allowed are ${allowed.join() || 'no refusals'}`,
      )
    // If the refusal is not final, the batch may be accepted later.
    if (!answer.retryable && code !== 'UNKNOWN_OUTCOME' && code !== 'NUMBER_REUSED' && known === undefined)
      producer.refused.set(number, code)
    if (known === undefined && !isOld) producer.open.add(number)
    // The messages are sent again in the order of the calls, so no other message overtakes them.
    if (code === 'EARLIER_REFUSED') return false
    for (const { names, isSplit } of attempts)
      if (!isSplit) for (const name of names) this.decidedAgain.add(name)
    return false
  }

  /**
   * Called when a producer without an accepted batch has left; its refusals are forgotten. If the client did not receive a
   * refusal, it sends that batch again and the broker decides it anew. The client cannot notice this, because the first
   * answer can no longer arrive.
   */
  forgotten(identity: string): void {
    const producer = this.#producer(identity)
    if (producer.accepted.size > 0)
      throw new Violation(3, `producer ${identity} is forgotten although batches of it were accepted`)
    producer.refused.clear()
    producer.open.clear()
    producer.windowStart = 0
  }

  #producer(identity: string): ModelProducer {
    let producer = this.#producers.get(identity)
    if (producer === undefined) {
      producer = { accepted: new Map(), refused: new Map(), open: new Set(), windowStart: 0 }
      this.#producers.set(identity, producer)
    }
    return producer
  }
}

type AnyPlace = ModelPlace | Placed

function placeFields(place: AnyPlace): unknown[] {
  const base = 'base' in place ? place.base : place.baseOffset
  return [base, ...(place.duplicates ?? [])]
}

function placesText(places: readonly AnyPlace[]): string {
  return JSON.stringify(places.map(placeFields))
}

function samePlaces(a: readonly AnyPlace[], b: readonly AnyPlace[]): boolean {
  return placesText(a) === placesText(b)
}
