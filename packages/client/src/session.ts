/**
 * The part of a client that its consumers and requests use: the connection, the turn, the deadlines and the events. The
 * client makes one session and passes it to each worker, iterator, puller and request.
 */
import type { SluiceError } from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { Deadlines } from './deadlines.js'
import type { Isolation } from './isolation.js'
import type { LeaseLoss } from './losses.js'
import type { Orphans } from './orphans.js'
import type { Responder } from './responder.js'
import type { Turn } from './turn.js'

export interface Session {
  readonly turn: Turn
  readonly deadlines: Deadlines
  readonly timeoutMs: number
  readonly isolation: Isolation
  readonly orphans: Orphans
  readonly replies: Responder
  /**
   * Leases of consumers that have ended. The client attaches them before all other consumers: otherwise another
   * consumer of the queue could get the messages of these leases. With `single`, only the first consumer that
   * subscribes is granted its claims.
   */
  readonly retired: Set<Consumer>
  /** Whether the client is closed: there is no further connection. */
  readonly isClosed: boolean
  /** The open connection, if there is one. */
  readonly connection: Connection | undefined
  /** Emits `error`. */
  report(error: SluiceError): void
  /** Emits `handlerError`. */
  handlerFailed(failure: HandlerFailure): void
  /** Emits `leaseLost`. */
  leaseLost(loss: LeaseLoss): void
  /** Emits `waiting`. */
  waiting(event: ConsumerWaiting): void
}

/**
 * A worker, an iterator, the pullers, or the leases of a consumer that has ended. The client attaches each consumer to
 * every new connection.
 */
export interface Consumer {
  attach(connection: Connection): void
  /** Called when the client is closed, and there is no further connection. */
  fail(error: SluiceError): void
}

/**
 * A worker or an iterator has no subscription, because its queue does not exist or the broker refuses the subscription for
 * now. The client tries again.
 */
export interface ConsumerWaiting {
  readonly queue: string
  /** QUEUE_NOT_FOUND, QUEUE_DELETED, or an error that is `retryable`. */
  readonly error: SluiceError
}

/**
 * A handler threw a value other than `Retry` or `DeadLetter`. The attempt counts as failed, so the message is
 * delivered again or becomes a dead letter.
 */
export interface HandlerFailure {
  readonly queue: string
  /** Offset of the message, or of the first message of a batch. */
  readonly offset: number
  readonly attempt: number
  /** Number of messages that the handler got. */
  readonly messages: number
  /** What the handler threw. */
  readonly error: unknown
}
