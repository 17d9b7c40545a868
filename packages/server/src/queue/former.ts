/**
 * Former leases: leases that ended before their messages were settled. A client that still handles such a message can
 * claim its lease when it subscribes again, until the message is leased again.
 *
 * After a restart only the durable part counts: the subscriptions that ended while the broker ran. The messages of such
 * a subscription may have been delivered to other consumers since, so none of its leases can be claimed. The ended
 * subscriptions are kept for one boot, as facts and in the page of the queue.
 *
 * Bounds: the newest `FORMER_LEASES_MAX` leases are kept. A forgotten lease cannot be claimed, so its message is delivered
 * again. Up to `ENDED_MAX` ended subscriptions are kept; beyond that, all subscriptions count as ended.
 */
import { LIMITS, type Claim, type MessageState } from '@sluice/protocol'
import type { Chunk } from './chunk.js'
import type { Line } from './line.js'

/** Maximum number of former leases that one queue keeps. */
export const FORMER_LEASES_MAX = 1_024
/** Maximum number of ended subscriptions of one boot that one queue keeps. */
export const ENDED_MAX = 256
/** Used instead of a subscription id: all subscriptions of the boot count as ended. */
export const ALL_ENDED = -1

export interface FormerLease {
  readonly subscriptionId: number
  readonly tag: number
  /** Deadline of the handling; Infinity if the handling has no deadline. */
  readonly deadlineMs: number
  /** Whether the attempt was charged when the lease ended. */
  readonly isCharged: boolean
  /** Size of the record. */
  readonly bytes: number
}

/** The result of a claim. */
export interface Reclaimed {
  /** Time from which the message was eligible; -1 if it was in the plain line. */
  readonly sinceMs: number
  readonly attempt: number
  /** Deadline of the handling; Infinity if the handling time starts again. */
  readonly deadlineMs: number
  readonly isCharged: boolean
  /** Size of the record. After a restart this is the size that the chunk knows or estimates. */
  readonly bytes: number
}

const NONE_ENDED: ReadonlySet<number> = new Set()

export class FormerLeases {
  /** The former leases, by offset; created with the first. */
  #leases: Map<number, FormerLease> | undefined
  /** Whether the queue has forgotten a former lease of a message that may not have been leased again. */
  #hasForgotten = false
  /** Subscriptions of this boot that ended and returned messages. */
  #ended = NONE_ENDED
  /** Subscriptions of the previous boot that ended, according to the log. */
  #endedBefore = NONE_ENDED

  get size(): number {
    return this.#leases?.size ?? 0
  }

  /** Whether a message that is delivered now could be claimed by another client after a restart. */
  get isWatched(): boolean {
    return this.size > 0 || this.#hasForgotten
  }

  add(offset: number, lease: FormerLease): void {
    this.#leases ??= new Map()
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
    return this.#leases?.get(offset)
  }

  /** Called when the message was leased again, or has changed. */
  delete(offset: number): void {
    this.#leases?.delete(offset)
  }

  /** Forgets all former leases: none can be claimed any more in this boot. */
  forget(): void {
    if (this.size > 0) this.#hasForgotten = true
    this.#leases = undefined
  }

  /** Called when the queue was purged: no message is left that could be claimed. */
  clear(): void {
    this.#leases = undefined
    this.#hasForgotten = false
  }

  /** Called when the subscription ended and returned messages. Returns false if this was already known. */
  end(subscriptionId: number): boolean {
    if (this.#ended.has(ALL_ENDED) || this.#ended.has(subscriptionId)) return false
    this.#ended = new Set(this.#ended.size === ENDED_MAX ? [ALL_ENDED] : [...this.#ended, subscriptionId])
    return true
  }

  /** Ended subscriptions of this boot, for the page of the queue. */
  get ended(): readonly number[] {
    return this.#ended.size === 0 ? [] : [...this.#ended]
  }

  restoreEnded(ended: readonly number[]): void {
    this.#ended = ended.length === 0 ? NONE_ENDED : new Set(ended)
  }

  /**
   * Used in recovery, at the start of each boot in the log. Subscriptions that ended before that boot no longer matter.
   */
  bootBegan(): void {
    this.#ended = NONE_ENDED
  }

  /** Called when recovery is over: the ended subscriptions in the log belong to the previous boot. */
  open(): void {
    this.#endedBefore = this.#ended
    this.#ended = NONE_ENDED
  }

  /** Whether the lease cannot be claimed because its subscription ended in the previous boot. */
  hadEnded({ subscriptionId }: Claim): boolean {
    return this.#endedBefore.has(ALL_ENDED) || this.#endedBefore.has(subscriptionId)
  }
}

interface Claimed {
  readonly id: number
  chunkAt(offset: number): Chunk | undefined
  stateOf(offset: number): MessageState | undefined
}

/**
 * Whether the message that the claim names is in the line, and cannot have been delivered to another consumer or redriven
 * since the claimed lease. `boot` is the number of this run of the broker.
 */
export function isClaimable(
  queue: Claimed,
  line: Line,
  formerLeases: FormerLeases | undefined,
  claim: Claim,
  boot: number,
): boolean {
  const { offset } = claim
  const chunk = queue.chunkAt(offset)
  if (claim.queueNumber !== queue.id || chunk === undefined || queue.stateOf(offset) === undefined)
    return false
  const index = offset - chunk.base
  if (chunk.isDead(index) || !chunk.isInLine(index)) return false
  if (claim.boot === boot) {
    // A lease to another consumer since then would have deleted the former lease.
    const former = formerLeases?.get(offset)
    return former?.subscriptionId === claim.subscriptionId && former.tag === claim.tag
  }
  return (
    claim.boot === boot - 1 &&
    claim.attempt === chunk.attemptsAt(index) + 1 &&
    // The count of attempts stops at this maximum.
    claim.attempt <= LIMITS.maxDeliveriesMax &&
    formerLeases?.hadEnded(claim) !== true &&
    !line.isSeen(chunk, index) &&
    chunk.redriven?.has(index) !== true
  )
}
