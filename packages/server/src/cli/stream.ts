/** `sluice stream`: creates, changes, shows and deletes streams, publishes to them and reads them. */
import type { StreamInfo, StreamOptions, StreamSettings } from '@sluice/client'
import { STREAM_OPTIONS, durationText, queueName, sizeText, type StreamOptionName } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { addCommands, command, type CommandEntry } from './command.js'
import { isConfirmed, yesFlag, type YesOption } from './confirmation.js'
import { withBroker } from './connection.js'
import { UsageError } from './failure.js'
import { durationMs, given, numberFlag, sizeFlag } from './flags.js'
import { counted, grouped, notice, print, printJson } from './output.js'
import { list, table, type Column } from './table.js'

interface NamedOptions {
  readonly name: string
}

function named(yargs: Argv): Argv {
  return yargs.positional('name', { type: 'string', demandOption: true, describe: 'Name of the stream' })
}

/** The flag of each option. All values are text; 0 and `none` mean that there is no limit. */
const FLAGS = {
  retainAgeMs: 'retain-age',
  retainBytes: 'retain-bytes',
  retainMessages: 'retain-messages',
  waitForGroupsBytes: 'wait-for-groups-bytes',
  compact: 'compact',
  tombstoneAgeMs: 'tombstone-age',
  dedupWindowMs: 'dedup-window',
  dedupMaxIds: 'dedup-max-ids',
} as const satisfies Record<StreamOptionName, string>

type Flags = Readonly<Partial<Record<(typeof FLAGS)[StreamOptionName], string>>>

function optionFlags(yargs: Argv): Argv {
  for (const [name, flag] of Object.entries(FLAGS) as [StreamOptionName, string][]) {
    const option = STREAM_OPTIONS[name]
    const describe = `${option.meaning.replace(/\.$/, '')} [default: ${valueText(name, option.default)}]`
    yargs.option(flag, { type: 'string', requiresArg: true, describe })
  }
  return yargs.epilogue(
    'Numbers, times and sizes also accept the word none. Times are written as 500ms, 30s, 5m, 2h or 7d, sizes as 500kb, ' +
      '10mb, 64MiB or 1gb.',
  )
}

/** @throws UsageError */
function optionsOf(flags: Flags): StreamOptions {
  const duration = (flag: keyof Flags): number | undefined =>
    valueOf(flags[flag], (text) => durationMs(text, `--${flag}`))
  const count = (flag: keyof Flags, name: 'retainMessages' | 'dedupMaxIds'): number | undefined => {
    const { min, max } = STREAM_OPTIONS[name]
    return valueOf(flags[flag], (text) => numberFlag(text, `--${flag}`, min, max))
  }
  const retention = given({
    age: duration('retain-age'),
    bytes: valueOf(flags['retain-bytes'], (text) => sizeFlag(text, '--retain-bytes')),
    messages: count('retain-messages', 'retainMessages'),
  })
  const waits = valueOf(flags['wait-for-groups-bytes'], (text) => sizeFlag(text, '--wait-for-groups-bytes'))
  return given({
    waitForGroups: waits === undefined ? undefined : waits === 0 ? null : { bytes: waits },
    retention: Object.keys(retention).length === 0 ? undefined : retention,
    compact: compactOf(flags.compact),
    tombstoneAge: duration('tombstone-age'),
    dedupWindow: duration('dedup-window'),
    dedupMaxIds: count('dedup-max-ids', 'dedupMaxIds'),
  })
}

function valueOf(text: string | undefined, read: (text: string) => number): number | undefined {
  return text === undefined ? undefined : text === 'none' ? 0 : read(text)
}

/** @throws UsageError */
function compactOf(text: string | undefined): 'none' | 'key' | undefined {
  if (text === undefined || text === 'none' || text === 'key') return text
  throw new UsageError(
    `--compact is ${JSON.stringify(text)}; it must be one of none, key.`,
    'Give one of them.',
  )
}

function valueText(name: StreamOptionName, value: number | string): string {
  if (typeof value === 'string') return value
  if (value === 0) return 'none'
  if (name.endsWith('Ms')) return durationText(value)
  return name.endsWith('Bytes') ? sizeText(value) : grouped(value)
}

const ensure = command<NamedOptions & Flags & { readonly update: boolean }>({
  builder: (yargs) =>
    optionFlags(
      named(yargs)
        .option('update', {
          type: 'boolean',
          default: false,
          describe: 'Change the stream if its options differ, instead of refusing',
        })
        .epilogue('Only the given options are compared and changed.'),
    ),
  handler: async (options) => {
    const name = queueName(options.name)
    const { update } = options
    const result = await withBroker(options, 'stream ensure', (sluice) =>
      sluice.streams.ensure(name, { ...optionsOf(options), update }),
    )
    if (options.json) await printJson(result)
    else if (result.created) notice(`Created the stream ${name}.`)
    else notice(`The stream ${name} exists with these options.`)
  },
})

const get = command<NamedOptions>({
  builder: named,
  handler: async (options) => {
    const name = queueName(options.name)
    const info = await withBroker(options, 'stream get', (sluice) => sluice.streams.get(name))
    if (options.json) await printJson(info)
    else await print(description(info))
  },
})

const listStreams = command<object>({
  builder: (yargs) => yargs,
  handler: async (options) => {
    const streams = await withBroker(options, 'stream list', (sluice) => sluice.streams.list())
    if (options.json) await printJson(streams)
    else if (streams.length === 0) notice('There are no streams; `sluice stream ensure NAME` creates one.')
    else await print(table(COLUMNS, streams))
  },
})

const remove = command<NamedOptions & YesOption>({
  builder: (yargs) => yesFlag(named(yargs)).epilogue('Also deletes all messages and groups of the stream.'),
  handler: async (options) => {
    const name = queueName(options.name)
    await withBroker(options, 'stream delete', async (sluice) => {
      if (!options.yes) {
        const { messages } = await sluice.streams.get(name)
        const question = `Delete the stream ${name} and ${counted(messages, 'message')} in it?`
        if (!(await isConfirmed(`Deleting the stream ${name}`, question))) return
      }
      const { messages } = await sluice.streams.delete(name)
      if (options.json) await printJson({ name, messages })
      else notice(`Deleted the stream ${name} with ${counted(messages, 'message')}.`)
    })
  },
})

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'ensure <name>',
    describe: 'Create a stream unless it exists',
    load: () => Promise.resolve(ensure),
  },
  { command: 'get <name>', aliases: ['info'], describe: 'Show a stream', load: () => Promise.resolve(get) },
  {
    command: 'list',
    aliases: ['ls'],
    describe: 'Show all streams',
    load: () => Promise.resolve(listStreams),
  },
  {
    command: 'delete <name>',
    aliases: ['rm'],
    describe: 'Delete a stream and all its messages',
    load: () => Promise.resolve(remove),
  },
  {
    command: 'publish <stream> [body]',
    describe: 'Publish messages: an argument, a file, or each line of stdin',
    load: async () => (await import('./publish.js')).publishToStream,
  },
  {
    command: 'read <stream>',
    describe: 'Print the messages of a stream',
    load: async () => (await import('./stream-read.js')).read,
  },
]

export const stream = command<object>({
  builder: (yargs) => addCommands(yargs, ['stream'], ENTRIES),
  handler: () => {},
})

const COLUMNS: readonly Column<StreamInfo>[] = [
  { title: 'NAME', value: ({ name }) => name },
  { title: 'MESSAGES', value: ({ messages }) => messages },
  { title: 'BYTES', value: ({ bytes }) => bytes },
  { title: 'FIRST', value: ({ first }) => first },
  { title: 'NEXT', value: ({ next }) => next },
  { title: 'READERS', value: ({ readers }) => readers },
]

function description(info: StreamInfo): string {
  return list([
    ['name', info.name],
    ['created', info.createdAt.toISOString()],
    ['messages', info.messages],
    ['bytes', info.bytes],
    ['first offset', info.first],
    ['next offset', info.next],
    ...(info.heldBy === null ? [] : held(info.heldBy, info.heldBytes)),
    ['readers', info.readers],
    ['published', info.published],
    ['duplicates', info.duplicates],
    ['compacted', info.compacted],
    ...settings(info.options),
  ])
}

function held(group: string, bytes: number): [string, string | number][] {
  return [
    ['kept for the group', group],
    ['bytes kept for groups', bytes],
  ]
}

function settings(options: StreamSettings): [string, string][] {
  const { retention, waitForGroups, compact, tombstoneAge, dedupWindow, dedupMaxIds } = options
  const { age, bytes, messages } = retention
  const values: Record<StreamOptionName, number | string> = {
    retainAgeMs: age,
    retainBytes: bytes,
    retainMessages: messages,
    waitForGroupsBytes: waitForGroups?.bytes ?? 0,
    compact,
    tombstoneAgeMs: tombstoneAge,
    dedupWindowMs: dedupWindow,
    dedupMaxIds,
  }
  return (Object.entries(FLAGS) as [StreamOptionName, string][]).map(([name, flag]) => [
    flag.replaceAll('-', ' '),
    valueText(name, values[name]),
  ])
}
