/**
 * A rate: at most `messages` deliveries in a burst, and one more each `perMs / messages`. Shares no code with the server:
 * it keeps the time at which the burst is available again, as an exact fraction.
 */
export class RateLimit {
  readonly #messages: bigint
  readonly #perMs: bigint
  /** The time at which the whole burst is available, times `messages`. */
  #full = 0n

  constructor(messages: number, perMs: number) {
    this.#messages = BigInt(messages)
    this.#perMs = BigInt(perMs)
  }

  /** Undefined if `messages` is 0: there is no limit. */
  static of(messages: number, perMs: number): RateLimit | undefined {
    return messages === 0 ? undefined : new RateLimit(messages, perMs)
  }

  /** The first time, not before `nowMs`, at which one message may be delivered. */
  nextMs(nowMs: number): number {
    const needed = this.#full + this.#perMs - this.#perMs * this.#messages
    const now = BigInt(nowMs) * this.#messages
    if (needed <= now) return nowMs
    return Number((needed + this.#messages - 1n) / this.#messages)
  }

  /** Called when a message is delivered. */
  take(nowMs: number): void {
    const now = BigInt(nowMs) * this.#messages
    this.#full = (this.#full > now ? this.#full : now) + this.#perMs
  }
}
