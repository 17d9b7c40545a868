/** The refusal of a change of a message that is not in the line. */
import { SluiceError, type MessageState } from '@sluice/protocol'

/** Returns MESSAGE_LEASED or MESSAGE_NOT_FOUND. `state` is undefined if there is no such message. */
export function notInLine(queue: string, offset: number, state: MessageState | undefined): SluiceError {
  if (state === 'leased')
    return new SluiceError(
      'MESSAGE_LEASED',
      `Message ${offset} of the queue ${queue} is held by a consumer; it cannot be changed until it is settled.`,
    )
  return new SluiceError(
    'MESSAGE_NOT_FOUND',
    state === 'dead'
      ? `Message ${offset} of the queue ${queue} is dead; it can be redriven or discarded.`
      : `There is no message ${offset} in the queue ${queue}.`,
  )
}
