/**
 * `sluice group`: creates, changes, shows, moves and deletes groups of streams. In everything else, a group is used with the
 * commands of queues.
 */
import type { ConsumerInfo, GroupInfo, Sluice } from '@sluice/client'
import { SluiceError, groupName, queueName, type ErrorCode } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { addCommands, command, type CommandEntry } from './command.js'
import { isConfirmed, yesFlag, type YesOption } from './confirmation.js'
import { withBroker } from './connection.js'
import { AdvisedError, UsageError } from './failure.js'
import { given, streamPlaceFlag } from './flags.js'
import { counted, notice, print, printJson } from './output.js'
import { CONSUMER_COLUMNS, age, yesOrNo } from './queue.js'
import {
  GROUP_FLAGS,
  differences,
  queueFlags,
  queueOptionsOf,
  unusual,
  withFlagNames,
} from './queue-flags.js'
import { list, table, widthMax, type Column } from './table.js'

interface NamedOptions {
  readonly name: string
}

function named(yargs: Argv): Argv {
  return yargs.positional('name', {
    type: 'string',
    demandOption: true,
    describe: 'Name of the group: STREAM@GROUP',
  })
}

const PLACES =
  'first (the oldest message), last (only new messages), an offset, or a time such as 2030-05-01T10:00Z'

const ensure = command<NamedOptions & { readonly from: string | undefined; readonly update: boolean }>({
  builder: (yargs) =>
    queueFlags(
      named(yargs)
        .option('from', {
          type: 'string',
          requiresArg: true,
          describe: `Where a new group begins: ${PLACES} [default: first]`,
        })
        .option('update', {
          type: 'boolean',
          default: false,
          describe: 'Change the group if its options differ, instead of refusing',
        })
        .epilogue('Only the given options are compared and changed.'),
      GROUP_FLAGS,
    ),
  handler: async (options) => {
    const name = groupName(options.name)
    const { update } = options
    const from = options.from === undefined ? undefined : streamPlaceFlag(options.from, '--from')
    const wanted = { ...queueOptionsOf(options, GROUP_FLAGS), ...given({ from }), update }
    const { before, result } = await withBroker(options, 'group ensure', async (sluice) => ({
      before: update && !options.json ? await existing(sluice, name) : undefined,
      result: await advised({}, () => withFlagNames(() => sluice.groups.ensure(name, wanted))),
    }))
    if (options.json) return printJson(result)
    const { created, group } = result
    if (created) return notice(`Created the group ${name} at offset ${group.position}.`)
    const changes = before === undefined ? [] : differences(before.options, group.options, GROUP_FLAGS)
    if (changes.length > 0) notice(`Changed the group ${name}: ${changes.join(', ')}.`)
    else notice(`The group ${name} is unchanged.`)
    if (from !== undefined)
      notice(`It keeps its position, ${group.position}; \`sluice group move\` changes it.`)
  },
})

/** The group; undefined if it does not exist. */
async function existing(sluice: Sluice, name: string): Promise<GroupInfo | undefined> {
  try {
    return await sluice.groups.get(name)
  } catch (error) {
    if (error instanceof SluiceError && error.code === 'QUEUE_NOT_FOUND') return undefined
    throw error
  }
}

const get = command<NamedOptions>({
  builder: (yargs) =>
    named(yargs).epilogue(
      'Position: all messages below this offset are done, dead or missed. Lag: messages of the stream that are not done, and the ' +
        'age of the oldest. Missed: messages that retention removed before they were acknowledged or dead.',
    ),
  handler: async (options) => {
    const name = groupName(options.name)
    const { info, members } = await withBroker(options, 'group get', (sluice) =>
      advised(MISSING, async () => ({
        info: await sluice.groups.get(name),
        members: await sluice.queues.consumers(name),
      })),
    )
    if (options.json) return printJson({ ...info, members })
    await print(description(info))
    if (members.length > 0) await print(`\n${table<ConsumerInfo>(CONSUMER_COLUMNS, members, widthMax())}`)
  },
})

const listGroups = command<{ readonly stream: string | undefined }>({
  builder: (yargs) =>
    yargs.positional('stream', { type: 'string', describe: 'Name of the stream [default: all streams]' }),
  handler: async (options) => {
    const stream = options.stream === undefined ? undefined : queueName(options.stream)
    const groups = await withBroker(options, 'group list', async (sluice) => {
      const found = await sluice.groups.list(stream)
      // Throws if there is no such stream.
      if (found.length === 0 && stream !== undefined) await sluice.streams.get(stream)
      return found
    })
    if (options.json) await printJson(groups)
    else if (groups.length > 0) await print(table(COLUMNS, groups, widthMax()))
    else
      notice(
        `${stream === undefined ? 'There are no groups' : `The stream ${stream} has no groups`}; ` +
          `\`sluice group ensure ${stream ?? 'STREAM'}@GROUP\` creates one.`,
      )
  },
})

const move = command<NamedOptions & { readonly to: string | undefined }>({
  builder: (yargs) =>
    named(yargs)
      .option('to', { type: 'string', requiresArg: true, describe: `Where the group continues: ${PLACES}` })
      .epilogue(
        'The leases of the group end, and messages lose their attempts. Dead messages before the new place stay; those after it ' +
          'are delivered again.',
      ),
  handler: async (options) => {
    const name = groupName(options.name)
    if (options.to === undefined)
      throw new UsageError('--to is not given.', 'Give first, last, an offset or a time.')
    const to = streamPlaceFlag(options.to, '--to')
    const info = await withBroker(options, 'group move', (sluice) =>
      advised(MISSING, () => sluice.groups.move(name, { to })),
    )
    if (options.json) await printJson(info)
    else
      notice(
        `Moved the group ${name} to offset ${info.position}; its lag is ${counted(info.lag, 'message')}.`,
      )
  },
})

const remove = command<NamedOptions & YesOption>({
  builder: (yargs) =>
    yesFlag(named(yargs)).epilogue(
      'Also deletes the position and the dead messages of the group. The stream keeps its messages.',
    ),
  handler: async (options) => {
    const name = groupName(options.name)
    await withBroker(options, 'group delete', (sluice) =>
      advised(MISSING, async () => {
        if (!options.yes) {
          const { lag, dead } = await sluice.groups.get(name)
          const question =
            `Delete the group ${name}, for which ${counted(lag, 'message')} ${lag === 1 ? 'is' : 'are'} not done, ` +
            `and its ${counted(dead, 'dead message')}?`
          if (!(await isConfirmed(`Deleting the group ${name}`, question))) return
        }
        const { messages } = await sluice.groups.delete(name)
        if (options.json) await printJson({ name, messages })
        else notice(`Deleted the group ${name}, with a lag of ${counted(messages, 'message')}.`)
      }),
    )
  },
})

type Advice = Readonly<Partial<Record<ErrorCode, string>>>

/** Advice of each command: only a place can name a message. */
const PLACED: Advice = {
  MESSAGE_NOT_FOUND:
    'Give first, last, a time, or an offset that the stream keeps; `sluice stream get NAME` shows the first and the next one.',
}
/** Advice of commands that need a group that exists. */
const MISSING: Advice = {
  QUEUE_NOT_FOUND:
    'List groups with `sluice group list`, or create this one with `sluice group ensure STREAM@GROUP`.',
}

/** Runs `work`, and gives its errors the advice for groups. */
async function advised<Result>(more: Advice, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error
    const advice = more[error.code] ?? PLACED[error.code]
    throw advice === undefined ? error : new AdvisedError(error.code, error.message, advice)
  }
}

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'ensure <name>',
    describe: 'Create a group unless it exists',
    load: () => Promise.resolve(ensure),
  },
  {
    command: 'get <name>',
    aliases: ['info'],
    describe: 'Show a group and its consumers',
    load: () => Promise.resolve(get),
  },
  {
    command: 'list [stream]',
    aliases: ['ls'],
    describe: 'Show the groups of a stream, or all groups',
    load: () => Promise.resolve(listGroups),
  },
  {
    command: 'move <name>',
    describe: 'Move a group to another place of its stream',
    load: () => Promise.resolve(move),
  },
  {
    command: 'delete <name>',
    aliases: ['rm'],
    describe: 'Delete a group; its stream keeps the messages',
    load: () => Promise.resolve(remove),
  },
]

export const group = command<object>({
  builder: (yargs) =>
    addCommands(yargs, ['group'], ENTRIES).epilogue(
      'These commands take a group instead of a queue: consume, peek, explain, cancel, reschedule, dead, queue pause, queue ' +
        'resume, queue consumers, queue close-consumer.',
    ),
  handler: () => {},
})

const COLUMNS: readonly Column<GroupInfo>[] = [
  { title: 'NAME', value: ({ name }) => name },
  { title: 'POSITION', value: ({ position }) => position },
  { title: 'LAG', value: ({ lag }) => lag },
  { title: 'OLDEST', value: ({ lagMs }) => age(lagMs) },
  { title: 'MISSED', value: ({ missed }) => missed },
  { title: 'LEASED', value: ({ leased }) => leased },
  { title: 'DEAD', value: ({ dead }) => dead },
  { title: 'CONSUMERS', value: ({ consumers }) => consumers },
  { title: 'PAUSED', value: ({ paused }) => yesOrNo(paused) },
]

function description(info: GroupInfo): string {
  const options = unusual(info.options, GROUP_FLAGS)
  return list([
    ['name', info.name],
    ['stream', info.stream],
    ['created', info.createdAt.toISOString()],
    ['paused', yesOrNo(info.paused)],
    ['position', info.position],
    ['lag', info.lag],
    ['oldest of the lag', age(info.lagMs)],
    ['missed', info.missed],
    ['acknowledged', info.acked],
    ['scheduled', info.scheduled],
    ['leased', info.leased],
    ['dead', info.dead],
    ['discarded', info.discarded],
    ['consumers', info.consumers],
    ...(options.length === 0 ? [['options', 'all at their defaults'] as [string, string]] : options),
  ])
}
