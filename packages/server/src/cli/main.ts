/**
 * The command line: the commands, their common options, and how a failure ends the process. The module of a command is
 * imported only if the command is used.
 */
import { fileURLToPath } from 'node:url'
import yargs, { type Argv, type ArgumentsCamelCase } from 'yargs'
import {
  GLOBAL_OPTIONS,
  addCommands,
  helpAdvice,
  missingArgument,
  refuseOptions,
  shieldWords,
  type CommandEntry,
} from './command.js'
import { UsageError, failureOf, failureText } from './failure.js'
import { OutputClosed, guardOutput } from './output.js'
import { version } from '../version.js'

const COMMANDS: readonly CommandEntry[] = [
  {
    command: 'serve',
    describe: 'Run a broker',
    load: async () => (await import('./serve.js')).serve,
  },
  {
    command: 'queue',
    describe: 'Create, show, change, pause, purge and delete queues',
    isGroup: true,
    load: async () => (await import('./queue.js')).queue,
  },
  {
    command: 'stream',
    describe: 'Create, show, change and delete streams, publish to them and read them',
    isGroup: true,
    load: async () => (await import('./stream.js')).stream,
  },
  {
    command: 'group',
    describe: 'Create, show, change, move and delete groups, which consume streams',
    isGroup: true,
    load: async () => (await import('./group.js')).group,
  },
  {
    command: 'publish <queue> [body]',
    describe: 'Publish messages: an argument, a file, or each line of stdin',
    load: async () => (await import('./publish.js')).publish,
  },
  {
    command: 'request <queue> [body]',
    describe: 'Send a request, and print the reply of a consumer',
    load: async () => (await import('./request.js')).request,
  },
  {
    command: 'consume <queue>',
    describe: 'Print the messages of a queue and acknowledge them',
    load: async () => (await import('./consume.js')).consume,
  },
  {
    command: 'explain <queue> [offset]',
    describe: 'Say why a queue delivers nothing, or why a message is not delivered',
    load: async () => (await import('./explain.js')).explain,
  },
  {
    command: 'peek <queue>',
    describe: 'Look at the messages of a queue without consuming them',
    load: async () => (await import('./peek.js')).peek,
  },
  {
    command: 'cancel <queue>',
    describe: 'Cancel a message that is scheduled or ready',
    load: async () => (await import('./pending.js')).cancel,
  },
  {
    command: 'reschedule <queue>',
    describe: 'Change when a message is due',
    load: async () => (await import('./pending.js')).reschedule,
  },
  {
    command: 'dead',
    describe: 'List, redrive and delete dead messages',
    isGroup: true,
    load: async () => (await import('./dead.js')).dead,
  },
  {
    command: 'topic',
    describe: 'Publish to topics, and bind queues to them',
    isGroup: true,
    load: async () => (await import('./topic.js')).topic,
  },
  {
    command: 'replay <queue>',
    describe: 'Publish acknowledged messages again',
    load: async () => (await import('./replay.js')).replay,
  },
  {
    command: 'history <queue> <offset>',
    describe: 'Print what happened to a message',
    load: async () => (await import('./replay.js')).history,
  },
  {
    command: 'schedule',
    describe: 'Create, show, pause, run and delete schedules',
    isGroup: true,
    load: async () => (await import('./schedule.js')).schedule,
  },
  {
    command: 'bench',
    describe: 'Measure a running broker under load',
    load: async () => (await import('./bench.js')).bench,
  },
]

const EPILOGUE = `Start here:
  sluice serve                     run a broker, with its data in ./data
  sluice queue ensure orders       create a queue
  sluice publish orders hello      publish a message
  sluice consume orders            print and acknowledge messages as they arrive
  sluice dead list orders          list messages that were given up, and why

Exit codes: 0 ok, 1 failure, 2 usage, 4 not found, 5 denied, 6 unreachable.
SIGINT gives 130 and SIGTERM 143, except in \`sluice serve\`: it exits with 0 on both, and with 70 when its log fails.`

const WIDTH_MAX = 100

/** Replacements for the messages of yargs. */
const WORDING = {
  'Not enough non-option arguments: got %s, need at least %s': plural('%s of %s arguments'),
  'Not enough arguments following: %s': 'The option --%s needs a value.',
} as unknown as Record<string, string>
const TOO_FEW = /^(\d+) of \d+ arguments$/

function plural(text: string): object {
  return { one: text, other: text }
}

function program(args: readonly string[]): Argv {
  const wantsHelp = asksForHelp(args)
  const instance = yargs(shieldWords(args))
    .scriptName('sluice')
    .locale('en')
    .updateStrings(WORDING)
    .usage('$0 <command> [options]\n\nA message broker and its tools.')
    .option('url', {
      type: 'string',
      requiresArg: true,
      describe: 'Address of the broker [default: SLUICE_URL, then sluice://localhost:7420]',
    })
    .option('timeout', {
      type: 'string',
      requiresArg: true,
      describe:
        'Maximum time to wait for an answer, such as 500ms or 10s [default: 5s to connect, 30s per call]',
    })
    .option('json', { type: 'boolean', default: false, describe: 'Print JSON' })
    .version(version())
    .group(GLOBAL_OPTIONS, 'Common options:')
    .parserConfiguration({ 'greedy-arrays': false, 'dot-notation': false, 'boolean-negation': true })
    .wrap(Math.min(WIDTH_MAX, process.stdout.columns ?? WIDTH_MAX))
    .exitProcess(false)
    // If yargs passes an exception, it is thrown again. Otherwise `message` describes a wrong use of the command.
    .fail((message: string | null, error: Error | undefined) => {
      if (error !== undefined) throw error
      const words = commandWord(args)
      const tooFew = TOO_FEW.exec(message ?? '')
      if (tooFew !== null) throw missingArgument(words, Number(tooFew[1]))
      throw new UsageError(message ?? 'The command is incomplete.', helpAdvice(words))
    })
    .check(((options: ArgumentsCamelCase, known: unknown) =>
      refuseOptions(options, known, args)) as Parameters<Argv['check']>[0])
  // When help is registered, yargs also treats the word `help` as a request for it, even if the word is the body of a
  // message.
  if (wantsHelp)
    instance
      .help('help')
      .alias('help', 'h')
      .epilogue(args.length === 1 ? EPILOGUE : '')
  else instance.help(false)
  return addCommands(instance, [], COMMANDS)
}

/** The arguments before `--`. */
function beforeWords(args: readonly string[]): readonly string[] {
  const end = args.indexOf('--')
  return end === -1 ? args : args.slice(0, end)
}

// The arguments may be invalid, so they are not parsed here.
function asksForJson(args: readonly string[]): boolean {
  const flags = beforeWords(args)
  return flags.includes('--json') || flags.includes('--json=true')
}

function asksForHelp(args: readonly string[]): boolean {
  const flags = beforeWords(args)
  return args.length === 0 || flags.includes('--help') || flags.includes('-h')
}

function commandWord(args: readonly string[]): string[] {
  const entryOf = (arg: string): CommandEntry | undefined =>
    COMMANDS.find(({ command }) => command.split(' ')[0] === arg)
  const at = args.findIndex((arg) => entryOf(arg) !== undefined)
  if (at === -1) return []
  const [word, next] = args.slice(at) as [string, string?]
  return entryOf(word)!.isGroup === true && next !== undefined && !next.startsWith('-')
    ? [word, next]
    : [word]
}

/** Runs a command to its end, and sets the exit code of the process. */
export async function main(args: readonly string[]): Promise<void> {
  guardOutput()
  try {
    if (args.length === 0) process.stdout.write(`${await program(['--help']).getHelp()}\n`)
    else await program(args[0] === 'help' ? [...args.slice(1), '--help'] : args).parseAsync()
  } catch (error) {
    // The reader of stdout has closed it.
    if (error instanceof OutputClosed) return
    const failure = failureOf(
      isYargsError(error) ? new UsageError(error.message, helpAdvice(commandWord(args))) : error,
    )
    process.exitCode = failure.exit
    process.stderr.write(failureText(failure, asksForJson(args)))
    if (failure.code === 'UNEXPECTED' && error instanceof Error)
      process.stderr.write(`${error.stack ?? ''}\n`)
  }
}

// yargs reports most errors through `fail`, but not a missing value of an option.
function isYargsError(error: unknown): error is Error {
  return error instanceof Error && error.name === 'YError'
}

// `node dist/cli/main.js` runs a command, as `bin/sluice.js` does.
if (process.argv[1] === fileURLToPath(import.meta.url)) void main(process.argv.slice(2))
