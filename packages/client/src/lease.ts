/**
 * The interface between a delivered message and the keeper of its lease. The keeper is the subscription that the message
 * was delivered on or, after a lost connection, the claims that wait for the next connection.
 */
import type { AtomicAck, Outcome } from '@sluice/protocol'
import type { Connection } from './connection.js'
import type { LeaseLossReason } from './losses.js'
import type { Responder } from './responder.js'
import type { SettleDetail, SettleRequest } from './settle-request.js'
import type { Watcher } from './watchers.js'

export interface LeaseKeeper {
  readonly queue: string
  readonly replies: Responder
  /** Whether a message that was delivered with this tag, and is not settled, still belongs to the consumer. */
  isLeased(tag: number): boolean
  /**
   * Removes the tag from the lost tags. Called once the message itself has recorded the loss of its lease; the message
   * does not ask again.
   */
  forget(tag: number): void
  /** Why the lease of a lost tag ended; `other` if that is not known. */
  lossOf(tag: number): LeaseLossReason
  settle(
    tag: number,
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail?: SettleDetail,
  ): SettleRequest
  extend(tag: number, durationMs: number): Promise<void>
  /** Whether the lease was granted on this connection. */
  isOn(connection: Connection): boolean
  acknowledgement(tag: number): AtomicAck
  /** Called when an atomic step that acknowledges the message is sent. Until the answer, the message counts as settled. */
  pledge(tag: number): void
  /** Called when the step took effect. */
  settlePledge(tag: number): void
  /** Called when the step had no effect. */
  reopenPledge(tag: number, alone: boolean): void
  /** Aborts `watcher` when one of its leases is lost. */
  watch(watcher: Watcher): void
  unwatch(watcher: Watcher): void
}
