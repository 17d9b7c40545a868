/**
 * Decides when to ping and when a silent peer is dead. Pure: the connection tells it the time and owns the timer.
 *
 * A tick that comes late means that this process was stalled, not the peer: bytes may wait in the socket unread. The
 * stall is given back to the peer, and death is only pronounced by `judge`, after one more poll of the socket.
 */
export type Tick = 'quiet' | 'ping' | 'suspect'

export class Heartbeat {
  /** How often `tick` wants to be called. */
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

  /** Any byte came. */
  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  /** Any byte went out. */
  sent(nowMs: number): void {
    this.#sentMs = nowMs
  }

  tick(nowMs: number): Tick {
    const stallMs = nowMs - this.#tickDueMs
    if (stallMs > 0) this.#heardMs = Math.min(nowMs, this.#heardMs + stallMs)
    this.#tickDueMs = nowMs + this.tickMs
    if (nowMs - this.#heardMs >= this.#intervalMs * 2) return 'suspect'
    // Half the interval must not pass unnoticed between two ticks, so the next tick counts as now.
    return nowMs + this.tickMs - this.#sentMs > this.#intervalMs / 2 ? 'ping' : 'quiet'
  }

  /** Whether a suspect is still silent after the socket was polled once more. */
  judge(nowMs: number): boolean {
    return nowMs - this.#heardMs >= this.#intervalMs * 2
  }
}
