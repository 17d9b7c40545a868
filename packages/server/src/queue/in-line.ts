/** Finds a message that an operator wants to change; it must be in the line. Called by `Queue`. */
import { SluiceError } from '@sluice/protocol'
import type { Chunk } from './chunk.js'
import type { Contents } from './contents.js'

/** Returns the chunk of the message. @throws SluiceError MESSAGE_NOT_FOUND, MESSAGE_LEASED */
export function chunkInLine(queue: Contents, offset: number, nowMs: number): Chunk {
  const { name } = queue
  const state = queue.stateAt(offset, nowMs)
  if (state === 'ready' || state === 'scheduled') return queue.chunkAt(offset)!
  if (state === 'leased')
    throw new SluiceError(
      'MESSAGE_LEASED',
      `Message ${offset} of the queue ${name} is held by a consumer; it cannot be changed until it is settled.`,
    )
  throw new SluiceError(
    'MESSAGE_NOT_FOUND',
    state === 'dead'
      ? `Message ${offset} of the queue ${name} is dead; it can be redriven or discarded.`
      : `There is no message ${offset} in the queue ${name}.`,
  )
}
