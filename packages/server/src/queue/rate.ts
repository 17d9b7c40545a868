/**
 * A rate and its token bucket. A bucket is full at first, and holds at most `messages` tokens; each delivery takes one, and
 * the bucket refills continuously. It is volatile: after a restart it is full again. An empty bucket would hold back
 * everything for as long as a token takes to arrive, which can be days, and a broker that restarts more often would
 * deliver nothing.
 *
 * All numbers are whole: a token is `perMs` units, and each millisecond adds `messages` units. So no rounding error adds up.
 */
import type { QueueOptions } from '@sluice/protocol'

export interface Rate {
  readonly messages: number
  readonly perMs: number
}

/** Undefined if `messages` is 0, which means that there is no limit. */
export function rateOf(messages: number, perMs: number): Rate | undefined {
  return messages === 0 ? undefined : { messages, perMs }
}

/** Units of a full bucket. */
export function fullUnits({ messages, perMs }: Rate): number {
  return messages * perMs
}

/** Units at `nowMs` of a bucket that had `units` at `atMs`. */
export function unitsAt(rate: Rate, units: number, atMs: number, nowMs: number): number {
  return Math.min(fullUnits(rate), units + Math.max(0, nowMs - atMs) * rate.messages)
}

/** Time at which a bucket that has `units` at `atMs` has at least `needed` units. */
export function reachedMs(rate: Rate, units: number, atMs: number, needed: number): number {
  return units >= needed ? atMs : atMs + Math.ceil((needed - units) / rate.messages)
}

/** A full bucket for the queue with these options; undefined if it has no rate. */
export function bucketOf(
  { rateMessages, ratePerMs }: Pick<QueueOptions, 'rateMessages' | 'ratePerMs'>,
  nowMs: number,
): Bucket | undefined {
  const rate = rateOf(rateMessages, ratePerMs)
  return rate === undefined ? undefined : new Bucket(rate, nowMs)
}

export class Bucket {
  /** Time at which the next token arrives for a consumer that waits for it; otherwise Infinity. */
  wakeMs = Infinity
  readonly #rate: Rate
  #units: number
  #atMs: number

  constructor(rate: Rate, nowMs: number) {
    this.#rate = rate
    this.#units = fullUnits(rate)
    this.#atMs = nowMs
  }

  /** Number of messages that may be delivered at `nowMs`. */
  available(nowMs: number): number {
    return Math.floor(unitsAt(this.#rate, this.#units, this.#atMs, nowMs) / this.#rate.perMs)
  }

  /** Called when `count` messages are delivered at `nowMs`; at least as many were available. */
  take(count: number, nowMs: number): void {
    this.#units = unitsAt(this.#rate, this.#units, this.#atMs, nowMs) - count * this.#rate.perMs
    this.#atMs = Math.max(this.#atMs, nowMs)
  }

  /** Called when the time is `nowMs`: the consumers that wait are served now. */
  wake(nowMs: number): void {
    if (this.wakeMs <= nowMs) this.wakeMs = Infinity
  }

  /** Time at which the next message may be delivered. It can be in the past. */
  get nextMs(): number {
    return reachedMs(this.#rate, this.#units, this.#atMs, this.#rate.perMs)
  }
}
