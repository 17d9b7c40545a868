/** `sluice topic`: binds queues to patterns of topics, lists and tests the bindings, and publishes to a topic. */
import { topic as topicOf, type BindingHeaders, type Binding, type Route } from '@sluice/client'
import { queueName, topicName, topicPattern } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { addCommands, command, type CommandEntry } from './command.js'
import { withBroker } from './connection.js'
import { durationMs, given, headersFlag } from './flags.js'
import { UsageError } from './failure.js'
import { counted, notice, print, printJson } from './output.js'
import { messageFlags, recordOf, singleBody, type MessageFlags } from './publish.js'
import { headerFlag } from './selection.js'
import { table, type Column } from './table.js'

interface BindingFlags {
  readonly pattern: string
  readonly target: string
  readonly header: readonly string[] | undefined
  readonly any: boolean
}

function bindingFlags(yargs: Argv): Argv {
  return headerFlag(
    yargs
      .positional('pattern', {
        type: 'string',
        demandOption: true,
        describe: 'Topic in which * matches one level, and # any number of levels',
      })
      .positional('target', { type: 'string', demandOption: true, describe: 'Name of the queue' })
      .option('any', {
        type: 'boolean',
        default: false,
        describe: 'One of the headers is enough, instead of all',
      }),
    'Only messages with this header, name=value; can be given several times',
  )
}

/** @throws UsageError */
function requiredHeaders({ header, any }: BindingFlags): BindingHeaders | undefined {
  const headers = headersFlag(header)
  if (headers !== undefined) return any ? { any: headers } : { all: headers }
  if (any) throw new UsageError('--any is given without --header.', 'Add --header NAME=VALUE, or omit --any.')
  return undefined
}

function change(verb: 'bind' | 'unbind'): ReturnType<typeof command> {
  return command<BindingFlags>({
    builder: (yargs) =>
      bindingFlags(yargs).epilogue(
        verb === 'bind'
          ? 'Quote the pattern, so that the shell does not replace * and #. The binding is removed when the queue is deleted.'
          : 'Removes the binding with exactly this pattern, queue and headers.',
      ),
    handler: async (options) => {
      const pattern = topicPattern(options.pattern)
      const target = queueName(options.target)
      const headers = requiredHeaders(options)
      const { changed } = await withBroker(options, `topic ${verb}`, (sluice) =>
        sluice.topics[verb](pattern, target, given({ headers })),
      )
      if (options.json) return printJson({ pattern, target, changed })
      if (verb === 'bind')
        notice(changed ? `Bound ${target} to ${pattern}.` : `${target} is already bound to ${pattern}.`)
      else notice(changed ? `Unbound ${target} from ${pattern}.` : `${target} has no such binding.`)
    },
  })
}

interface ListOptions {
  readonly pattern: string | undefined
  readonly target: string | undefined
}

const listBindings = command<ListOptions>({
  builder: (yargs) =>
    yargs
      .option('pattern', { type: 'string', requiresArg: true, describe: 'Only bindings with this pattern' })
      .option('target', { type: 'string', requiresArg: true, describe: 'Only bindings of this queue' }),
  handler: async (options) => {
    const { pattern, target } = options
    const selection = given({ pattern, target })
    const bindings = await withBroker(options, 'topic list', (sluice) => sluice.topics.list(selection))
    if (options.json) await printJson(bindings)
    else if (bindings.length === 0) notice('There are no bindings; `sluice topic bind` makes one.')
    else await print(table(BINDING_COLUMNS, bindings))
  },
})

interface TestOptions {
  readonly name: string
  readonly header: readonly string[] | undefined
}

const test = command<TestOptions>({
  builder: (yargs) =>
    headerFlag(
      yargs.positional('name', { type: 'string', demandOption: true, describe: 'Name of the topic' }),
      'Header of the message, name=value; without any, bindings that require headers match too',
    ),
  handler: async (options) => {
    const name = topicName(options.name)
    const headers = headersFlag(options.header)
    const routes = await withBroker(options, 'topic test', (sluice) => sluice.topics.test(name, headers))
    if (options.json) await printJson(routes)
    else if (routes.length === 0) notice(`No binding matches the topic ${name}.`)
    else await print(table(ROUTE_COLUMNS, routes.flatMap(rowsOf)))
  },
})

interface PublishOptions extends MessageFlags {
  readonly name: string
  readonly unroutable: string | undefined
}

const publish = command<PublishOptions>({
  builder: (yargs) =>
    messageFlags(
      yargs
        .positional('name', { type: 'string', demandOption: true, describe: 'Name of the topic' })
        .positional('body', {
          type: 'string',
          describe: 'The message; if omitted, the whole of stdin is the message',
        })
        .option('unroutable', {
          type: 'string',
          requiresArg: true,
          describe: 'refuse or drop a message that matches no binding [default: refuse]',
        }),
    ).epilogue('Prints the number of queues that got the message.'),
  handler: async (options) => {
    const name = topicName(options.name)
    const { unroutable } = options
    if (unroutable !== undefined && unroutable !== 'refuse' && unroutable !== 'drop') {
      throw new UsageError(
        `--unroutable is ${JSON.stringify(unroutable)}; it must be refuse or drop.`,
        'Give one of the two.',
      )
    }
    const record = recordOf(options)
    const body = await singleBody(options, '-')
    const timeout = options.timeout === undefined ? undefined : durationMs(options.timeout, '--timeout', 1)
    const { targets } = await withBroker(options, 'topic publish', (sluice) =>
      sluice.publish(topicOf(name), body, { ...record, ...given({ unroutable, timeout }) }),
    )
    if (options.json) await printJson({ topic: name, targets })
    else await print(`${counted(targets, 'queue')}\n`)
  },
})

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'bind <pattern> <target>',
    describe: 'Route the messages of matching topics to a queue',
    load: () => Promise.resolve(change('bind')),
  },
  {
    command: 'unbind <pattern> <target>',
    describe: 'Remove a binding',
    load: () => Promise.resolve(change('unbind')),
  },
  {
    command: 'list',
    aliases: ['ls'],
    describe: 'Show the bindings',
    load: () => Promise.resolve(listBindings),
  },
  {
    command: 'test <name>',
    describe: 'Show which queues a message would reach, and by which bindings',
    load: () => Promise.resolve(test),
  },
  {
    command: 'publish <name> [body]',
    describe: 'Publish a message to a topic',
    load: () => Promise.resolve(publish),
  },
]

export const topic = command<object>({
  builder: (yargs) => addCommands(yargs, ['topic'], ENTRIES),
  handler: () => {},
})

const BINDING_COLUMNS: readonly Column<Binding>[] = [
  { title: 'PATTERN', value: ({ pattern }) => pattern },
  { title: 'TARGET', value: ({ target }) => target },
  { title: 'HEADERS', value: ({ headers }) => headersText(headers) },
  { title: 'CREATED', value: ({ createdAt }) => createdAt.toISOString() },
]

interface RouteRow {
  readonly target: string
  readonly binding: Binding
}

const ROUTE_COLUMNS: readonly Column<RouteRow>[] = [
  { title: 'TARGET', value: ({ target }) => target },
  { title: 'PATTERN', value: ({ binding }) => binding.pattern },
  { title: 'HEADERS', value: ({ binding }) => headersText(binding.headers) },
]

function rowsOf({ target, bindings }: Route): RouteRow[] {
  return bindings.map((binding) => ({ target, binding }))
}

function headersText(headers: BindingHeaders | undefined): string {
  if (headers === undefined) return '-'
  const [kind, pairs] = headers.all === undefined ? ['any', headers.any] : ['all', headers.all]
  const texts = Object.entries(pairs).map(([name, value]) => `${name}=${value}`)
  return `${kind} of ${texts.join(', ')}`
}
