/**
 * How a call fails whose outcome the broker decides: which refusals concern a batch as a whole, and which error says
 * that something was not sent, was refused, or may have been accepted. The producer, and every call with a signal or a
 * deadline, rejects with these.
 */
import { faultError, SluiceError, type Fault } from '@sluice/protocol'

// Refusals that hold for the queue or the number, whatever the messages are: no message fares better by itself.
const ABOUT_THE_BATCH: ReadonlySet<string> = new Set([
  'QUEUE_NOT_FOUND',
  'QUEUE_DELETED',
  'INVALID_NAME',
  'UNKNOWN_OUTCOME',
  'NUMBER_REUSED',
])

// A limit that the batch is above, and that some of its messages may keep by themselves.
const ABOUT_ROOM: ReadonlySet<string> = new Set(['QUEUE_FULL', 'DEDUP_FULL'])

/** Whether messages of the batch that was refused may be accepted by themselves. */
export function isAboutOneMessage(fault: Fault): boolean {
  return ABOUT_ROOM.has(fault.code) || (!fault.retryable && !ABOUT_THE_BATCH.has(fault.code))
}

/** What the broker refused. */
export function refusal(fault: Fault): SluiceError {
  return fault.code === 'UNKNOWN_OUTCOME'
    ? new SluiceError(fault.code, fault.message, { ...fault, outcome: 'unknown' })
    : faultError(fault)
}

/** What was sent, and the broker's answer will never come. */
export function unknownOutcome(why: string): SluiceError {
  return new SluiceError('UNKNOWN_OUTCOME', `What was sent may have been accepted or not: ${why}.`, {
    outcome: 'unknown',
  })
}

/** What a call rejects with that does not wait for a connection. */
export function noConnection(): SluiceError {
  return new SluiceError('OFFLINE', 'There is no connection to the broker; nothing was sent.')
}

/** The deadline of a publish has passed. */
export function overdue(sent: boolean): SluiceError {
  if (!sent) return new SluiceError('TIMEOUT', 'Nothing was sent before the deadline of the call passed.')
  return new SluiceError(
    'TIMEOUT',
    'The broker did not answer before the deadline of the call passed; it may have accepted what was sent.',
    { outcome: 'unknown' },
  )
}

/** What a call rejects with whose signal was aborted. */
export function aborted(signal: AbortSignal, sent: boolean): SluiceError {
  const options = { cause: signal.reason as unknown }
  return new SluiceError(
    'ABORTED',
    'The signal of the call was aborted.',
    sent ? { ...options, outcome: 'unknown' } : options,
  )
}
