/**
 * Errors of calls whose outcome the broker decides: the call was not sent, was refused, or may have been accepted. The
 * producer, and every call with a signal or a deadline, rejects with these errors. This file also knows which refusals
 * concern a batch as a whole.
 */
import { faultError, SluiceError, type Fault } from '@sluice/protocol'

// Refusals that are due to the queue or the number of the batch. Each message of the batch would also be refused by
// itself.
const ABOUT_THE_BATCH: ReadonlySet<string> = new Set([
  'QUEUE_NOT_FOUND',
  'QUEUE_DELETED',
  'INVALID_NAME',
  'INVALID_TOPIC',
  'UNROUTABLE',
  'TOO_MANY_TARGETS',
  'UNKNOWN_OUTCOME',
  'NUMBER_REUSED',
])

// Limits that a whole batch may exceed although some of its messages would fit.
const ABOUT_ROOM: ReadonlySet<string> = new Set(['QUEUE_FULL', 'DEDUP_FULL'])

/** Whether messages of a refused batch may be accepted by themselves. */
export function isAboutOneMessage(fault: Fault): boolean {
  return ABOUT_ROOM.has(fault.code) || (!fault.retryable && !ABOUT_THE_BATCH.has(fault.code))
}

/** The error for a refusal by the broker. */
export function refusal(fault: Fault): SluiceError {
  return fault.code === 'UNKNOWN_OUTCOME'
    ? new SluiceError(fault.code, fault.message, { ...fault, outcome: 'unknown' })
    : faultError(fault)
}

/** The error of a call that was sent and can no longer be answered. */
export function unknownOutcome(why: string): SluiceError {
  return new SluiceError('UNKNOWN_OUTCOME', `The broker may or may not have accepted the publish: ${why}.`, {
    outcome: 'unknown',
  })
}

/** The error of a call that found no connection and does not wait for one. */
export function noConnection(): SluiceError {
  return new SluiceError('OFFLINE', 'There is no connection to the broker; nothing was sent.')
}

/** The error of a publish whose deadline has passed. */
export function overdue(sent: boolean): SluiceError {
  if (!sent) return new SluiceError('TIMEOUT', 'Nothing was sent before the deadline of the call passed.')
  return new SluiceError(
    'TIMEOUT',
    'The broker did not answer before the deadline of the call passed; it may have accepted the publish.',
    { outcome: 'unknown' },
  )
}

/** The error of a call whose signal was aborted. */
export function aborted(signal: AbortSignal, sent: boolean): SluiceError {
  const options = { cause: signal.reason as unknown }
  return new SluiceError(
    'ABORTED',
    'The signal of the call was aborted.',
    sent ? { ...options, outcome: 'unknown' } : options,
  )
}
