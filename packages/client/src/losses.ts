/** Why a lease on a message was lost, and the error of a settle after the loss. */
import { LOSS, SluiceError, type ErrorCode } from '@sluice/protocol'

/** The lease on a message that was being handled is lost: what the handler does with the message no longer counts. */
export interface LeaseLoss {
  readonly queue: string
  readonly offset: number
  readonly reason: LeaseLossReason
}

/**
 * Why a lease was lost: its processing timeout passed, its queue was purged or deleted, its group was moved, retention removed
 * the message from its stream, the connection was lost, or an operator closed the consumer. `other` is any other reason,
 * such as one that only a later version knows.
 */
export type LeaseLossReason =
  | 'processingTimeout'
  | 'purged'
  | 'groupMoved'
  | 'retention'
  | 'disconnected'
  | 'queueDeleted'
  | 'consumerClosed'
  | 'other'

const REASONS: Readonly<Record<number, LeaseLossReason>> = {
  [LOSS.processingTimeout]: 'processingTimeout',
  [LOSS.purged]: 'purged',
  [LOSS.groupMoved]: 'groupMoved',
  [LOSS.retention]: 'retention',
}

const END_REASONS: Partial<Readonly<Record<ErrorCode, LeaseLossReason>>> = {
  QUEUE_DELETED: 'queueDeleted',
  CONSUMER_CLOSED: 'consumerClosed',
}

/** Returns the reason that LEASES_LOST gives as the number `code`. */
export function lossReason(code: number): LeaseLossReason {
  return REASONS[code] ?? 'other'
}

/** The loss reason of the leases of a subscription that ended with this error. */
export function lossBy({ code }: SluiceError): LeaseLossReason {
  return END_REASONS[code] ?? 'other'
}

const REASON_TEXTS: Partial<Readonly<Record<LeaseLossReason, string>>> = {
  processingTimeout: 'its processing timeout passed',
  purged: 'its queue was purged',
  groupMoved: 'its group was moved to another place of the stream',
  retention: 'retention removed it from its stream',
}

/** The error of a settle whose message no longer belongs to this consumer. `reason` is undefined if it is not known. */
export function leaseLost(cause?: unknown, reason: LeaseLossReason = 'other'): SluiceError {
  const text =
    REASON_TEXTS[reason] ??
    'its connection was lost or closed, its processing timeout passed, its queue was purged or deleted, its group was moved, or retention removed it'
  return new SluiceError('LEASE_LOST', `The message no longer belongs to this consumer: ${text}.`, { cause })
}
