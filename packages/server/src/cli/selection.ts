/** Flags that select messages: the filters of peek, dead and replay, and the one message of cancel and reschedule. */
import type { MessageFilter, MessageRef } from '@sluice/client'
import { DEATH, LIMITS, type DeathName } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { choiceFlag, countFlag, durationMs, given, headersFlag, numberFlag } from './flags.js'
import { UsageError } from './failure.js'

/** Filters on the options with which a message was published, and on the time at which it was published or died. */
export interface RecordFilterOptions {
  readonly key: string | undefined
  readonly id: string | undefined
  readonly header: readonly string[] | undefined
  readonly olderThan: string | undefined
  readonly youngerThan: string | undefined
}

/** Filters that also use what happened to a message after it was published. */
export interface FilterOptions extends RecordFilterOptions {
  readonly reason: string | undefined
  readonly error: string | undefined
  readonly attempts: string | undefined
}

const DEATHS = Object.keys(DEATH) as DeathName[]

const RECORD_FILTERS = {
  key: 'Has this key',
  id: 'Published with this id',
  'older-than': 'Published at least this long ago, such as 2h',
  'younger-than': 'Published at most this long ago',
} as const

const FATE_FILTERS = {
  'older-than': 'Published (or died, if dead) at least this long ago, such as 2h',
  'younger-than': 'Published (or died, if dead) at most this long ago',
  reason: `Dead for this reason: ${DEATHS.join(', ')}`,
  error: 'Dead with an error that contains this text',
  attempts: 'Has at least this many attempts',
} as const

export function filterFlags(yargs: Argv): Argv {
  return textFlags(recordFilterFlags(yargs), FATE_FILTERS)
}

export function recordFilterFlags(yargs: Argv): Argv {
  return headerFlag(
    textFlags(yargs, RECORD_FILTERS),
    'Has this header, name=value; can be given several times',
  )
}

function textFlags(yargs: Argv, flags: Readonly<Record<string, string>>): Argv {
  for (const [name, describe] of Object.entries(flags))
    yargs.option(name, { type: 'string', requiresArg: true, describe })
  return yargs
}

export function headerFlag(yargs: Argv, describe: string): Argv {
  return yargs.option('header', { type: 'string', array: true, requiresArg: true, describe })
}

/** @throws UsageError, SluiceError INVALID_ARGUMENT */
export function filterOf(options: RecordFilterOptions & Partial<FilterOptions>): MessageFilter {
  const { key, id, header, reason, error, attempts, olderThan, youngerThan } = options
  // An empty value is most likely an unset variable of the shell.
  for (const [flag, text] of Object.entries({ key, id, error })) {
    if (text === '') throw new UsageError(`--${flag} is empty.`, 'Give a value, or omit the option.')
  }
  return given({
    key,
    id,
    error,
    header: headersFlag(header),
    reason: reason === undefined ? undefined : choiceFlag(reason, '--reason', DEATHS),
    attempts:
      attempts === undefined ? undefined : numberFlag(attempts, '--attempts', 0, LIMITS.maxDeliveriesMax),
    olderThan: olderThan === undefined ? undefined : durationMs(olderThan, '--older-than'),
    youngerThan: youngerThan === undefined ? undefined : durationMs(youngerThan, '--younger-than'),
  })
}

export interface RefOptions {
  readonly offset: string | undefined
  readonly id: string | undefined
}

export function refFlags(yargs: Argv): Argv {
  return yargs
    .option('offset', { type: 'string', requiresArg: true, describe: 'The message at this offset' })
    .option('id', {
      type: 'string',
      requiresArg: true,
      describe: 'The message that was published with this id',
    })
}

/** @throws UsageError */
export function refOf({ offset, id }: RefOptions): MessageRef {
  if ((offset === undefined) === (id === undefined)) {
    throw new UsageError(
      offset === undefined
        ? 'Neither --offset nor --id is given.'
        : '--offset and --id are mutually exclusive.',
      'Give one of --offset and --id; `sluice peek QUEUE` shows both.',
    )
  }
  if (id === '') throw new UsageError('--id is empty.', 'Give the id of a message.')
  return id === undefined ? { offset: countFlag(offset!, '--offset') } : { id }
}
