/**
 * Decides when a consumer subscribes again after the broker refused or ended its subscription: on the next connection, or
 * on the same one after a pause. Each pause is twice as long as the one before, and half of it is random, so that thousands
 * of waiting consumers cost little.
 */
import { Timer, type ErrorCode, type SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import { backoffMs } from './reconnect.js'
import type { Session } from './session.js'

export const RENEWAL = { delayMsMin: 50, delayMsMax: 2_000 } as const

/** Errors after which the queue may still be created, so that the consumer can subscribe again. For other errors `retryable` decides. */
const MISSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['QUEUE_NOT_FOUND', 'QUEUE_DELETED'])

export class Renewal {
  readonly #session: Session
  readonly #queue: string
  readonly #waitsForQueue: boolean
  readonly #attach: (connection: Connection) => void
  #timer: Timer | undefined
  /** Number of consecutive refusals. */
  #refusals = 0

  constructor(
    session: Session,
    queue: string,
    waitsForQueue: boolean,
    attach: (connection: Connection) => void,
  ) {
    this.#session = session
    this.#queue = queue
    this.#waitsForQueue = waitsForQueue
    this.#attach = attach
  }

  /** Called when the subscription was refused or ended. Returns whether the consumer subscribes again. */
  renews(error: SluiceError): boolean {
    if (!error.retryable && !(this.#waitsForQueue && MISSING.has(error.code))) return false
    const { connection } = this.#session
    // The client attaches the consumer to the next connection.
    if (connection === undefined || connection.stopping) return true
    this.#refusals++
    if (this.#refusals === 1) this.#session.waiting({ queue: this.#queue, error })
    const delayMs = Math.max(backoffMs(RENEWAL, this.#refusals, Math.random()), error.retryAfterMs)
    this.cancel()
    // The socket keeps the process alive, so this timer does not have to.
    this.#timer = new Timer(() => this.#again(), delayMs).unref()
    return true
  }

  #again(): void {
    const { connection } = this.#session
    if (connection !== undefined && !connection.stopping) this.#attach(connection)
  }

  /** Called when the broker accepted the subscription. */
  subscribed(): void {
    this.#refusals = 0
  }

  /** Cancels the pause: the consumer subscribes now, or never again. */
  cancel(): void {
    this.#timer?.cancel()
  }
}
