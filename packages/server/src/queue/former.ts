/**
 * Leases of a queue that ended before their messages were settled, so that a client which still handles one can claim
 * it when it subscribes again. A lease can be claimed until its message is leased again, by whomever.
 *
 * Across a restart only what is durable counts: which subscriptions had ended while the broker ran, so that others may
 * have had their messages since. Those are remembered for one boot, as facts and in the page of the queue.
 *
 * Bounded: of the leases the newest are kept, and of the ended subscriptions so many; beyond that all of them count as
 * ended. What is forgotten can no longer be claimed, which costs a client its lease and breaks no promise.
 */
import type { Claim } from '@sluice/protocol'

/** Leases that can be claimed, of one queue. */
export const FORMER_LEASES_MAX = 1_024
/** Ended subscriptions of one boot that are told apart, of one queue. */
export const ENDED_MAX = 256
/** Stands for all subscriptions of the boot. */
export const ALL_ENDED = -1

export interface FormerLease {
  readonly subscriptionId: number
  readonly tag: number
  /** When it had to be done; Infinity where no time ran. */
  readonly deadlineMs: number
  /** Its try was charged when it ended. */
  readonly isCharged: boolean
  /** Of its record. */
  readonly bytes: number
}

export class FormerLeases {
  /** By offset. */
  readonly #leases = new Map<number, FormerLease>()
  /** Some that ended are not among them, and were not leased since for all that is known. */
  #hasForgotten = false
  /** Subscriptions of this boot that ended and gave messages back. */
  #ended = new Set<number>()
  /** The same of the boot before, as the log has it. */
  #endedBefore: ReadonlySet<number> = new Set()

  get size(): number {
    return this.#leases.size
  }

  /** Whether a message that is delivered now may be one that another client could claim after a restart. */
  get isWatched(): boolean {
    return this.#leases.size > 0 || this.#hasForgotten
  }

  add(offset: number, lease: FormerLease): void {
    this.#leases.delete(offset)
    this.#leases.set(offset, lease)
    if (this.#leases.size <= FORMER_LEASES_MAX) return
    this.#hasForgotten = true
    for (const oldest of this.#leases.keys()) {
      this.#leases.delete(oldest)
      break
    }
  }

  get(offset: number): FormerLease | undefined {
    return this.#leases.get(offset)
  }

  /** The message is leased again, or is not what it was. */
  delete(offset: number): void {
    this.#leases.delete(offset)
  }

  /** None of the leases so far can be claimed in this boot. */
  forget(): void {
    if (this.#leases.size > 0) this.#hasForgotten = true
    this.#leases.clear()
  }

  /** All messages are gone. */
  clear(): void {
    this.#leases.clear()
    this.#hasForgotten = false
  }

  /** The subscription ended and gave messages back. Returns whether that is news. */
  end(subscriptionId: number): boolean {
    if (this.#ended.has(ALL_ENDED) || this.#ended.has(subscriptionId)) return false
    if (this.#ended.size === ENDED_MAX) this.#ended = new Set([ALL_ENDED])
    else this.#ended.add(subscriptionId)
    return true
  }

  /** Ended subscriptions of this boot, for the page of the queue. */
  get ended(): readonly number[] {
    return [...this.#ended]
  }

  restoreEnded(ended: readonly number[]): void {
    this.#ended = new Set(ended)
  }

  /** In recovery: a boot began, and what ended before it is of no concern any more. */
  bootBegan(): void {
    if (this.#ended.size > 0) this.#ended = new Set()
  }

  /** Recovery is over: what the log has is of the boot before. */
  open(): void {
    this.#endedBefore = this.#ended
    this.#ended = new Set()
  }

  /** Whether the lease may not be claimed because its subscription ended in the boot before. */
  hadEnded({ subscriptionId }: Claim): boolean {
    return this.#endedBefore.has(ALL_ENDED) || this.#endedBefore.has(subscriptionId)
  }
}
