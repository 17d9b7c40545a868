/** `sluice queue`: ensure, get, list, delete and purge. What takes messages away asks first. */
import { createInterface } from 'node:readline/promises'
import type { QueueInfo } from '@sluice/client'
import { LIMITS, queueName } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { addCommands, command, type CommandEntry } from './command.js'
import { durationMs, withBroker } from './connection.js'
import { EXIT, UsageError } from './failure.js'
import { counted, notice, print, printJson } from './output.js'
import { whole } from './settings.js'
import { signalExit } from './signals.js'
import { list, table, type Column } from './table.js'

interface NamedOptions {
  readonly name: string
}

function named(yargs: Argv): Argv {
  return yargs.positional('name', {
    type: 'string',
    demandOption: true,
    describe: 'Name of the queue',
  })
}

interface EnsureOptions extends NamedOptions {
  readonly maxDeliveries: string | undefined
  readonly retryInitial: string | undefined
  readonly retryMax: string | undefined
  readonly update: boolean
}

const ensure = command<EnsureOptions>({
  builder: (yargs) =>
    named(yargs)
      .option('max-deliveries', {
        type: 'string',
        requiresArg: true,
        describe: 'Tries after which a message is dead [default: 10]',
      })
      .option('retry-initial', {
        type: 'string',
        requiresArg: true,
        describe: 'Wait before the second try, doubled with each further one [default: 1s]',
      })
      .option('retry-max', {
        type: 'string',
        requiresArg: true,
        describe: 'Longest wait between two tries [default: 5m]',
      })
      .option('update', {
        type: 'boolean',
        default: false,
        describe: 'Change a queue that has other options, instead of refusing',
      })
      .epilogue('Only the options that are named are compared and changed.'),
  handler: async (options) => {
    const { maxDeliveries, retryInitial, retryMax, update } = options
    const name = queueName(options.name)
    const tries =
      maxDeliveries === undefined
        ? undefined
        : numberFlag(maxDeliveries, '--max-deliveries', 1, LIMITS.maxDeliveriesMax)
    const retry = {
      ...(retryInitial === undefined ? {} : { initial: durationMs(retryInitial, '--retry-initial') }),
      ...(retryMax === undefined ? {} : { max: durationMs(retryMax, '--retry-max') }),
    }
    const result = await withBroker(options, 'queue ensure', (sluice) =>
      sluice.queues.ensure(name, { ...(tries === undefined ? {} : { maxDeliveries: tries }), retry, update }),
    )
    if (options.json) await printJson(result)
    else notice(result.created ? `Made the queue ${name}.` : `The queue ${name} is there.`)
  },
})

const get = command<NamedOptions>({
  builder: named,
  handler: async (options) => {
    const name = queueName(options.name)
    const info = await withBroker(options, 'queue get', (sluice) => sluice.queues.get(name))
    if (options.json) await printJson(info)
    else await print(description(info))
  },
})

const listQueues = command<object>({
  builder: (yargs) => yargs,
  handler: async (options) => {
    const queues = await withBroker(options, 'queue list', (sluice) => sluice.queues.list())
    const sorted = queues.toSorted((a, b) => (a.name < b.name ? -1 : 1))
    if (options.json) await printJson(sorted)
    else if (sorted.length === 0) notice('There are no queues; `sluice queue ensure NAME` makes one.')
    else await print(table(COLUMNS, sorted))
  },
})

function removal(verb: 'delete' | 'purge', done: string): ReturnType<typeof command> {
  return command<NamedOptions & { readonly yes: boolean }>({
    builder: (yargs) =>
      named(yargs)
        .option('yes', { type: 'boolean', default: false, alias: 'y', describe: 'Do not ask' })
        .epilogue(
          verb === 'delete'
            ? 'All messages of the queue go with it, the dead ones too.'
            : 'Takes all messages that are scheduled, ready or leased now; the dead ones stay.',
        ),
    handler: async (options) => {
      const name = queueName(options.name)
      const isAsked = !options.yes
      if (isAsked && !(process.stdin.isTTY && process.stderr.isTTY)) {
        throw new UsageError(
          `Nobody is there to confirm that the queue ${name} shall be ${done}: this is not a terminal.`,
          'Add --yes if you mean it.',
        )
      }
      await withBroker(options, `queue ${verb}`, async (sluice) => {
        if (isAsked) {
          const info = await sluice.queues.get(name)
          if (!(await isConfirmed(question(verb, info)))) return
        }
        const { messages } = await sluice.queues[verb](name)
        if (options.json) await printJson({ name, messages })
        else if (verb === 'delete') notice(`Deleted the queue ${name} with ${counted(messages, 'message')}.`)
        else notice(`Took ${counted(messages, 'message')} out of the queue ${name}.`)
      })
    },
  })
}

function question(verb: 'delete' | 'purge', { name, ready, scheduled, leased, dead }: QueueInfo): string {
  const live = ready + scheduled + leased
  return verb === 'delete'
    ? `Delete the queue ${name} and ${counted(live + dead, 'message')} in it?`
    : `Take ${counted(live, 'message')} out of the queue ${name}?`
}

/** Waits for a yes; without one says that nothing was changed and sets the exit code. */
async function isConfirmed(text: string): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  let interrupted = false
  try {
    const answer = await new Promise<string | undefined>((resolve, reject) => {
      terminal.once('close', () => resolve(undefined))
      terminal.once('SIGINT', () => {
        interrupted = true
        terminal.close()
      })
      terminal.question(`${text} [y/N] `).then(resolve, reject)
    })
    if (answer !== undefined && /^y(es)?$/i.test(answer.trim())) return true
    if (answer === undefined) process.stderr.write('\n')
    notice('Nothing was changed.')
    process.exitCode = interrupted ? signalExit('SIGINT') : EXIT.failure
    return false
  } finally {
    terminal.close()
  }
}

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'ensure <name>',
    describe: 'Make a queue unless it exists',
    load: () => Promise.resolve(ensure),
  },
  { command: 'get <name>', aliases: ['info'], describe: 'Show a queue', load: () => Promise.resolve(get) },
  { command: 'list', aliases: ['ls'], describe: 'Show all queues', load: () => Promise.resolve(listQueues) },
  {
    command: 'delete <name>',
    aliases: ['rm'],
    describe: 'Delete a queue and all its messages',
    load: () => Promise.resolve(removal('delete', 'deleted')),
  },
  {
    command: 'purge <name>',
    describe: 'Take all messages out of a queue',
    load: () => Promise.resolve(removal('purge', 'emptied')),
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
]

function description(info: QueueInfo): string {
  const { options } = info
  return list([
    ['name', info.name],
    ['ready', info.ready],
    ['scheduled', info.scheduled],
    ['leased', info.leased],
    ['dead', info.dead],
    ['bytes', info.bytes],
    ['consumers', info.consumers],
    ['oldest ready', age(info.oldestReadyMs)],
    ['published', info.published],
    ['acked', info.acked],
    ['redelivered', info.redelivered],
    ['purged', info.purged],
    ['created', new Date(info.createdAtMs).toISOString()],
    ['max deliveries', options.maxDeliveries],
    ['retry initial', exact(options.retry.initial)],
    ['retry max', exact(options.retry.max)],
  ])
}

const UNITS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
] as const

/** How long ago, to the largest unit: 350ms, 12s, 3h. */
function age(ms: number | null): string {
  if (ms === null) return '-'
  for (const [unit, unitMs] of UNITS) if (ms >= unitMs) return `${Math.floor(ms / unitMs)}${unit}`
  return `${ms}ms`
}

/** A duration as a flag takes it, nothing rounded: 90s, 5m. */
function exact(ms: number): string {
  for (const [unit, unitMs] of UNITS) if (ms >= unitMs && ms % unitMs === 0) return `${ms / unitMs}${unit}`
  return `${ms}ms`
}

function numberFlag(text: string, flag: string, min: number, max: number): number {
  const value = whole(text, min, max)
  if (value !== undefined) return value
  throw new UsageError(
    `${flag} is ${JSON.stringify(text.slice(0, 60))}; it must be a whole number from ${min} to ${max}.`,
    'Give a number within these bounds.',
  )
}
