/**
 * Decides when to ping, and when a silent peer is dead. This class is pure: the connection passes the time as an
 * argument and owns the timer.
 *
 * A late tick means that this process was stalled, not the peer: bytes may be unread in the socket. So a stall does
 * not count as silence of the peer, and only `judge` declares the peer dead, after one more poll of the socket.
 */
export type Tick = 'quiet' | 'ping' | 'suspect'

export class Heartbeat {
  /** Interval between calls of `tick`. */
  readonly tickMs: number
  readonly #intervalMs: number
  #heardMs: number
  #sentMs: number
  #tickDueMs: number

  constructor(intervalMs: number, nowMs: number) {
    this.#intervalMs = intervalMs
    this.tickMs = Math.max(10, intervalMs / 4)
    this.#heardMs = nowMs
    this.#sentMs = nowMs
    this.#tickDueMs = nowMs + this.tickMs
  }

  /** Called when bytes were received. */
  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  /** Called when bytes were sent. */
  sent(nowMs: number): void {
    this.#sentMs = nowMs
  }

  tick(nowMs: number): Tick {
    const stallMs = nowMs - this.#tickDueMs
    if (stallMs > 0) this.#heardMs = Math.min(nowMs, this.#heardMs + stallMs)
    this.#tickDueMs = nowMs + this.tickMs
    if (nowMs - this.#heardMs >= this.#intervalMs * 2) return 'suspect'
    // Half the interval must not pass without a send. The next tick may be too late, so this tick decides.
    return nowMs + this.tickMs - this.#sentMs > this.#intervalMs / 2 ? 'ping' : 'quiet'
  }

  /** Whether a suspect peer is still silent after one more poll of the socket. */
  judge(nowMs: number): boolean {
    return nowMs - this.#heardMs >= this.#intervalMs * 2
  }
}
