/** Names of queues, streams and groups, for commands that take several of these kinds. */
import type { Sluice } from '@sluice/client'
import { SluiceError, isGroupName } from '@sluice/protocol'
import type { Argv } from 'yargs'

/** Declares the positional `queue`, which is the name of a queue or of a group. */
export function onAddress(yargs: Argv): Argv {
  return yargs.positional('queue', {
    type: 'string',
    demandOption: true,
    describe: 'Name of the queue, or of a group: STREAM@GROUP',
  })
}

export function kindOf(name: string): 'queue' | 'group' {
  return isGroupName(name) ? 'group' : 'queue'
}

/** The name with its kind: `queue orders`, `group clicks@billing`. */
export function titled(name: string): string {
  return `${kindOf(name)} ${name}`
}

/**
 * The queue or stream with this name: its kind, and the number of messages that were published to it.
 * @throws SluiceError QUEUE_NOT_FOUND
 */
export async function publishedTo(
  sluice: Sluice,
  name: string,
): Promise<{ readonly kind: 'queue' | 'stream'; readonly published: number }> {
  try {
    return { kind: 'queue', published: (await sluice.queues.get(name)).published }
  } catch (error) {
    if (!(error instanceof SluiceError && error.code === 'WRONG_KIND')) throw error
    return { kind: 'stream', published: (await sluice.streams.get(name)).published }
  }
}
