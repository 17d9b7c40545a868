/**
 * `sluice queue`: creates, changes, shows, pauses, purges and deletes queues, and lists and closes their consumers.
 * Commands that delete messages ask for confirmation.
 */
import type { ConsumerInfo, QueueInfo, Sluice } from '@sluice/client'
import { QUEUE_COUNTERS, SluiceError, addressName, queueName, type QueueCounter } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { kindOf, titled } from './address.js'
import { addCommands, command, type CommandEntry } from './command.js'
import { isConfirmed, yesFlag, type YesOption } from './confirmation.js'
import { withBroker } from './connection.js'
import { numberFlag } from './flags.js'
import { UsageError } from './failure.js'
import { counted, notice, print, printJson } from './output.js'
import { list, table, widthMax, type Column } from './table.js'
import { differences, queueFlags, queueOptionsOf, unusual, withFlagNames } from './queue-flags.js'
import { rounded } from './units.js'

interface NamedOptions {
  readonly name: string
}

function named(yargs: Argv, describe = 'Name of the queue'): Argv {
  return yargs.positional('name', { type: 'string', demandOption: true, describe })
}

// Declares the name of a queue or of a group.
function addressed(yargs: Argv): Argv {
  return named(yargs, 'Name of the queue, or of a group: STREAM@GROUP')
}

const ensure = command<NamedOptions & { readonly update: boolean }>({
  builder: (yargs) =>
    queueFlags(
      named(yargs)
        .option('update', {
          type: 'boolean',
          default: false,
          describe: 'Change the queue if its options differ, instead of refusing',
        })
        .epilogue('Only the given options are compared and changed.'),
    ),
  handler: async (options) => {
    const name = queueName(options.name)
    const given = queueOptionsOf(options)
    const { before, result } = await withBroker(options, 'queue ensure', async (sluice) => {
      const before = options.update && !options.json ? await optionsOf(sluice, name) : undefined
      const result = await withFlagNames(() =>
        sluice.queues.ensure(name, { ...given, update: options.update }),
      )
      return { before, result }
    })
    if (options.json) return printJson(result)
    if (result.created) return notice(`Created the queue ${name}.`)
    const changes = before === undefined ? [] : differences(before, result.queue.options)
    notice(changesText(name, changes))
  },
})

const edit = command<NamedOptions>({
  builder: (yargs) => queueFlags(named(yargs).epilogue('Only the given options are changed.')),
  handler: async (options) => {
    const name = queueName(options.name)
    const given = queueOptionsOf(options)
    if (Object.keys(given).length === 0) {
      throw new UsageError(
        `No option to change is given for the queue ${name}.`,
        'Give options and their values; `sluice queue edit --help` lists them.',
      )
    }
    const { before, queue } = await withBroker(options, 'queue edit', async (sluice) => {
      // Unlike `ensure`, `edit` does not create a queue: `get` throws if it does not exist.
      const before = await sluice.queues.get(name)
      const { queue } = await withFlagNames(() => sluice.queues.ensure(name, { ...given, update: true }))
      return { before, queue }
    })
    const changes = differences(before.options, queue.options)
    if (options.json) await printJson({ changed: changes.length > 0, queue })
    else notice(changesText(name, changes))
  },
})

/** The options of the queue; undefined if it does not exist. */
async function optionsOf(sluice: Sluice, name: string): Promise<QueueInfo['options'] | undefined> {
  try {
    return (await sluice.queues.get(name)).options
  } catch (error) {
    if (error instanceof SluiceError && error.code === 'QUEUE_NOT_FOUND') return undefined
    throw error
  }
}

function changesText(name: string, changes: readonly string[]): string {
  return changes.length > 0
    ? `Changed the queue ${name}: ${changes.join(', ')}.`
    : `The queue ${name} is unchanged.`
}

const BYTES = 'Bytes: the size of all messages that are scheduled, ready, leased or dead.'

const get = command<NamedOptions>({
  builder: (yargs) => named(yargs).epilogue(BYTES),
  handler: async (options) => {
    const name = queueName(options.name)
    const info = await withBroker(options, 'queue get', (sluice) => sluice.queues.get(name))
    if (options.json) await printJson(info)
    else await print(description(info))
  },
})

const listQueues = command<object>({
  builder: (yargs) => yargs.epilogue(BYTES),
  handler: async (options) => {
    const queues = await withBroker(options, 'queue list', (sluice) => sluice.queues.list())
    const sorted = queues.toSorted((a, b) => (a.name < b.name ? -1 : 1))
    if (options.json) await printJson(sorted)
    else if (sorted.length === 0) notice('There are no queues; `sluice queue ensure NAME` creates one.')
    else await print(table(COLUMNS, sorted, widthMax()))
  },
})

function removal(verb: 'delete' | 'purge', doing: string): ReturnType<typeof command> {
  return command<NamedOptions & YesOption>({
    builder: (yargs) =>
      yesFlag(named(yargs)).epilogue(
        verb === 'delete'
          ? 'Also deletes all messages of the queue, including dead ones.'
          : 'Deletes all messages that are scheduled, ready or leased now; dead ones stay.',
      ),
    handler: async (options) => {
      const name = queueName(options.name)
      await withBroker(options, `queue ${verb}`, async (sluice) => {
        if (!options.yes) {
          const info = await sluice.queues.get(name)
          if (!(await isConfirmed(`${doing} the queue ${name}`, question(verb, info)))) return
        }
        const { messages } = await sluice.queues[verb](name)
        if (options.json) await printJson({ name, messages })
        else if (verb === 'delete') notice(`Deleted the queue ${name} with ${counted(messages, 'message')}.`)
        else notice(`Purged ${counted(messages, 'message')} from the queue ${name}.`)
      })
    },
  })
}

function question(verb: 'delete' | 'purge', { name, ready, scheduled, leased, dead }: QueueInfo): string {
  const live = ready + scheduled + leased
  return verb === 'delete'
    ? `Delete the queue ${name} and ${counted(live + dead, 'message')} in it?`
    : `Purge ${counted(live, 'message')} from the queue ${name}?`
}

function turn(verb: 'pause' | 'resume', done: string, wasDone: string): ReturnType<typeof command> {
  return command<NamedOptions>({
    builder: (yargs) =>
      addressed(yargs).epilogue('A pause stops deliveries and nothing else. It survives restarts.'),
    handler: async (options) => {
      const name = addressName(options.name)
      const { changed } = await withBroker(options, `queue ${verb}`, (sluice) => sluice.queues[verb](name))
      if (options.json) await printJson({ name, changed })
      else notice(changed ? `${done} the ${titled(name)}.` : `The ${titled(name)} ${wasDone}.`)
    },
  })
}

const consumers = command<NamedOptions>({
  builder: addressed,
  handler: async (options) => {
    const name = addressName(options.name)
    const all = await withBroker(options, 'queue consumers', (sluice) => sluice.queues.consumers(name))
    if (options.json) await printJson(all)
    else if (all.length === 0) notice(`The ${titled(name)} has no consumers.`)
    else await print(table(CONSUMER_COLUMNS, all))
  },
})

const CONSUMER_ID_MAX = 0xffff_ffff

const closeConsumer = command<NamedOptions & { readonly id: string }>({
  builder: (yargs) =>
    addressed(yargs)
      .positional('id', {
        type: 'string',
        demandOption: true,
        describe: 'Id of the consumer, from `sluice queue consumers`',
      })
      .epilogue(
        'Its messages return to the queue. Its client is notified, and does not resubscribe automatically.',
      ),
  handler: async (options) => {
    const name = addressName(options.name)
    const id = numberFlag(options.id, 'The id', 0, CONSUMER_ID_MAX)
    const { messages } = await withBroker(options, 'queue close-consumer', (sluice) =>
      sluice.queues.closeConsumer(name, id),
    )
    if (options.json) await printJson({ name, id, messages })
    else
      notice(
        `Closed the consumer ${id} of the ${titled(name)}; ${counted(messages, 'message')} returned to the ${kindOf(name)}.`,
      )
  },
})

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'ensure <name>',
    describe: 'Create a queue unless it exists',
    load: () => Promise.resolve(ensure),
  },
  {
    command: 'edit <name>',
    describe: 'Change options of a queue',
    load: () => Promise.resolve(edit),
  },
  { command: 'get <name>', aliases: ['info'], describe: 'Show a queue', load: () => Promise.resolve(get) },
  { command: 'list', aliases: ['ls'], describe: 'Show all queues', load: () => Promise.resolve(listQueues) },
  {
    command: 'delete <name>',
    aliases: ['rm'],
    describe: 'Delete a queue and all its messages',
    load: () => Promise.resolve(removal('delete', 'Deleting')),
  },
  {
    command: 'purge <name>',
    describe: 'Delete all messages of a queue except dead ones',
    load: () => Promise.resolve(removal('purge', 'Purging')),
  },
  {
    command: 'pause <name>',
    describe: 'Stop deliveries until the queue is resumed',
    load: () => Promise.resolve(turn('pause', 'Paused', 'is already paused')),
  },
  {
    command: 'resume <name>',
    describe: 'Start deliveries again',
    load: () => Promise.resolve(turn('resume', 'Resumed', 'is not paused')),
  },
  {
    command: 'consumers <name>',
    describe: 'List the consumers of a queue',
    load: () => Promise.resolve(consumers),
  },
  {
    command: 'close-consumer <name> <id>',
    describe: 'Close a consumer of a queue',
    load: () => Promise.resolve(closeConsumer),
  },
]

export const queue = command<object>({
  builder: (yargs) => addCommands(yargs, ['queue'], ENTRIES),
  handler: () => {},
})

const COLUMNS: readonly Column<QueueInfo>[] = [
  { title: 'NAME', value: ({ name }) => name },
  { title: 'READY', value: ({ ready }) => ready },
  { title: 'SCHEDULED', value: ({ scheduled }) => scheduled },
  { title: 'LEASED', value: ({ leased }) => leased },
  { title: 'DEAD', value: ({ dead }) => dead },
  { title: 'BYTES', value: ({ bytes }) => bytes },
  { title: 'CONSUMERS', value: ({ consumers }) => consumers },
  { title: 'OLDEST', value: ({ oldestReadyMs }) => age(oldestReadyMs) },
  { title: 'PAUSED', value: ({ paused }) => yesOrNo(paused) },
]

export const CONSUMER_COLUMNS: readonly Column<ConsumerInfo>[] = [
  { title: 'ID', value: ({ id }) => id },
  { title: 'CLIENT', value: ({ client }) => client || '-' },
  { title: 'PEER', value: ({ peer }) => peer },
  { title: 'ACTIVE', value: ({ active }) => yesOrNo(active) },
  { title: 'SINCE', value: ({ subscribedAt }) => subscribedAt.toISOString() },
  { title: 'CREDIT', value: ({ creditMessages }) => creditMessages },
  { title: 'LEASED', value: ({ leased }) => leased },
  { title: 'STARTED', value: ({ started }) => started },
  {
    title: 'OLDEST',
    value: ({ oldestLeaseAt }) => age(oldestLeaseAt === null ? null : Date.now() - oldestLeaseAt.getTime()),
  },
  { title: 'DELIVERED', value: ({ delivered }) => delivered },
]

const COUNTERS = Object.keys(QUEUE_COUNTERS) as QueueCounter[]

function description(info: QueueInfo): string {
  const options = unusual(info.options)
  return list([
    ['name', info.name],
    ['created', info.createdAt.toISOString()],
    ['paused', yesOrNo(info.paused)],
    ['held until', info.rateUntil?.toISOString() ?? '-'],
    ['held keys', info.heldKeys],
    ['ready', info.ready],
    ['scheduled', info.scheduled],
    ['leased', info.leased],
    ['dead', info.dead],
    ['bytes', info.bytes],
    ['retained bytes', info.retainedBytes],
    ['oldest ready', age(info.oldestReadyMs)],
    ['consumers', info.consumers],
    ['published', info.published],
    ['acked', info.acked],
    ...COUNTERS.map((counter): [string, number] => [counter, info[counter]]),
    ...(options.length === 0 ? [['options', 'all at their defaults'] as [string, string]] : options),
  ])
}

export function age(ms: number | null): string {
  return ms === null ? '-' : rounded(ms)
}

export function yesOrNo(value: boolean): string {
  return value ? 'yes' : 'no'
}
