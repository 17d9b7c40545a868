/** Names of queues and groups, for commands that take both. */
import { isGroupName } from '@sluice/protocol'
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
