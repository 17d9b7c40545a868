/**
 * The form of a command, and the checks that all commands share: unknown words, unknown options and options that are given
 * twice are refused, and an error names the right help page.
 */
import { shown } from '@sluice/protocol'
import type { Argv, ArgumentsCamelCase } from 'yargs'
import { UsageError } from './failure.js'
import { nearest } from './spelling.js'

/** Options that every command has. */
export interface GlobalOptions {
  readonly url: string | undefined
  readonly timeout: string | undefined
  readonly json: boolean
}

/** Names of the global options, including those that yargs adds. */
export const GLOBAL_OPTIONS = ['url', 'timeout', 'json', 'help', 'version']

export interface CommandEntry {
  /** Name of the command, followed by its `<required>` and `[optional]` arguments. */
  readonly command: string
  readonly aliases?: readonly string[]
  readonly describe: string
  /** Whether the command has subcommands. */
  readonly isGroup?: boolean
  /** Imports the body of the command; called only if the command is used. */
  readonly load: () => Promise<CommandBody>
}

/** The options and the handler of a command, for any type of options. */
export interface CommandBody {
  readonly builder?: unknown
  readonly handler: (options: never) => unknown
}

/** Types the body of a command: the builder must declare the options that the handler reads. */
export function command<Options>(body: {
  readonly builder: (yargs: Argv) => unknown
  readonly handler: (options: ArgumentsCamelCase<GlobalOptions & Options>) => Promise<void> | void
}): CommandBody {
  return body
}

/** Adds commands below `path`, which is the list of words that precede them. `$0` handles a missing or unknown command. */
export function addCommands(yargs: Argv, path: readonly string[], entries: readonly CommandEntry[]): Argv {
  for (const { command: text, aliases = [], describe, isGroup = false, load } of entries) {
    const [name, ...positionals] = text.split(' ')
    const words = [...path, name!]
    if (isGroup) GROUPS.add(name!)
    for (const other of [name!, ...aliases]) COMMANDS.set([...path, other].join(' '), text)
    const form = [...words, ...(isGroup ? ['<command>'] : positionals), '[options]'].join(' ')
    let body: CommandBody | undefined
    yargs.command({
      command: text,
      aliases,
      describe,
      builder: async (inner: Argv) => {
        body = await load()
        inner.usage(`$0 ${form}\n\n${describe}.`)
        if (typeof body.builder === 'function') await (body.builder as (yargs: Argv) => unknown)(inner)
        inner.group(ownOptions(inner, positionals), 'Options:')
        return inner
      },
      handler: async (shielded) => {
        const options = unshielded(shielded)
        refuseExtra(options, words, positionals.length)
        await body!.handler(options as never)
      },
    })
  }
  yargs.command(
    '$0',
    false,
    () => {},
    (options) => refuseWord(options, path, entries),
  )
  return yargs
}

const SHIELD = '\0'

/**
 * Prefixes the arguments after `--` with a character that no argument can contain. Without the prefix, yargs would not
 * assign them to positionals. With it, yargs treats them as ordinary words, even if they start with a dash.
 */
export function shieldWords(args: readonly string[]): string[] {
  const end = args.indexOf('--')
  return end === -1 ? [...args] : [...args.slice(0, end), ...args.slice(end + 1).map((word) => SHIELD + word)]
}

function unshielded(options: ArgumentsCamelCase): ArgumentsCamelCase {
  const bare = (value: unknown): unknown =>
    typeof value === 'string' && value.startsWith(SHIELD)
      ? value.slice(SHIELD.length)
      : Array.isArray(value)
        ? value.map(bare)
        : value
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [name, bare(value)]),
  ) as typeof options
}

/** The command's own options, which the help text lists before the common ones. */
function ownOptions(yargs: Argv, positionals: readonly string[]): string[] {
  const { key } = (yargs as unknown as { getOptions(): KnownOptions }).getOptions()
  // Names of a single letter are aliases.
  return Object.keys(key).filter(
    (name) =>
      name.length > 1 &&
      !GLOBAL_OPTIONS.includes(name) &&
      !positionals.includes(`<${name}>`) &&
      !positionals.includes(`[${name}]`),
  )
}

/** Refuses extra words, such as `world` in `orders hello world` where two words are accepted. */
function refuseExtra(options: ArgumentsCamelCase, words: readonly string[], positionals: number): void {
  const extra = options._.slice(words.length)
  if (extra.length === 0) return
  const advice =
    positionals === 0
      ? `Omit it. ${helpAdvice(words)}`
      : `Quote an argument that contains spaces. ${helpAdvice(words)}`
  throw new UsageError(`Unexpected argument ${JSON.stringify(extra[0])}.`, advice)
}

function refuseWord(
  options: ArgumentsCamelCase,
  path: readonly string[],
  entries: readonly CommandEntry[],
): void {
  const word = options._[path.length]
  const names = entries.map(({ command }) => command.split(' ')[0]!)
  if (word === undefined) {
    const what = path.length === 0 ? 'No command is given.' : `\`sluice ${path.join(' ')}\` needs a command.`
    throw new UsageError(what, `Use one of ${names.join(', ')}. ${helpAdvice(path)}`)
  }
  const meant = nearest(String(word), [...names, ...entries.flatMap(({ aliases = [] }) => aliases)])
  const what = `Unknown command ${JSON.stringify([...path, word].join(' '))}.`
  throw new UsageError(
    what,
    meant === undefined
      ? `Use one of ${names.join(', ')}. ${helpAdvice(path)}`
      : `Did you mean \`sluice ${[...path, meant].join(' ')}\`?`,
  )
}

/** The options that yargs knows. yargs passes them to a check, although its types omit this. */
interface KnownOptions {
  readonly key: Readonly<Record<string, unknown>>
  readonly boolean: readonly string[]
  readonly alias: Readonly<Record<string, readonly string[]>>
  readonly array: readonly string[]
}

const ALWAYS = ['_', '$0', '--', 'help', 'h', 'version']

/**
 * A check for yargs: refuses unknown options, options given twice, and flags with a value other than true and false. It
 * accepts any option of an unknown command, because `refuseWord` refuses the command itself.
 */
export function refuseOptions(options: ArgumentsCamelCase, known: unknown, args: readonly string[]): true {
  const words = commandWords(options)
  if (words.length > 0 && !COMMANDS.has(words.join(' '))) return true
  const { key: keys, alias: aliases, array, boolean: flags } = known as KnownOptions
  refuseFlagValues(flags, args)
  const names = new Set([...ALWAYS, ...Object.keys(keys), ...Object.values(aliases).flat()])
  for (const [name, value] of Object.entries(options)) {
    const kebab = dashed(name)
    if (ALWAYS.includes(name) || (kebab !== name && names.has(kebab))) continue
    const flag = `${name.length === 1 ? '-' : '--'}${name}`
    if (!names.has(name)) {
      const meant = name.length === 1 ? undefined : nearest(name, Object.keys(keys))
      // yargs reads `--no-NAME` as NAME=false, also if it does not know NAME.
      const no = isNegated(value) && args.includes(`--no-${name}`) ? 'no-' : ''
      throw new UsageError(
        `Unknown option ${no === '' ? flag : `--no-${name}`}.`,
        meant === undefined ? helpAdvice(words) : `Did you mean --${no}${meant}?`,
      )
    }
    // yargs reads `--no-NAME` as NAME=false. That is an error for an option with a value, unless `no-NAME` is declared.
    if (isNegated(value) && !flags.includes(name) && !names.has(`no-${name}`)) {
      throw new UsageError(`Unknown option --no-${name}.`, `Omit --${name} instead.`)
    }
    if (Array.isArray(value) && !array.includes(name)) {
      throw new UsageError(`The option ${flag} is given twice.`, 'Give it once.')
    }
  }
  return true
}

/** yargs also accepts an option as `camelCase`. */
function dashed(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

const ASSIGNMENT = /^--?([^=]+)=(.*)$/s

// yargs reads any value of a flag other than `true` as false, so this function reads the arguments themselves.
function refuseFlagValues(flags: readonly string[], args: readonly string[]): void {
  for (const arg of args) {
    if (arg === '--') return
    const [, name, value] = ASSIGNMENT.exec(arg) ?? []
    if (name === undefined || !flags.includes(dashed(name)) || value === 'true' || value === 'false') continue
    const flag = `${name.length === 1 ? '-' : '--'}${name}`
    throw new UsageError(
      `${flag} is ${shown(value)}; it must be true or false.`,
      `Give ${flag} without a value, or omit it.`,
    )
  }
}

function isNegated(value: unknown): boolean {
  return value === false || (Array.isArray(value) && value.includes(false))
}

/**
 * Forms of the commands, such as `publish <queue> [body]`, by the words that name them. Commands of a group are added
 * when the group is used.
 */
const COMMANDS = new Map<string, string>()
/** Commands that have subcommands. */
const GROUPS = new Set<string>()

// The words that name the command. Further words in `_` are checked by `refuseExtra`.
function commandWords(options: ArgumentsCamelCase): string[] {
  return options._.slice(0, GROUPS.has(String(options._[0])) ? 2 : 1).map(String)
}

/** The error for a command with only `given` arguments, fewer than it requires. */
export function missingArgument(words: readonly string[], given: number): UsageError {
  const positionals = (COMMANDS.get(words.join(' ')) ?? '').split(' ').slice(1)
  const missing = positionals[given] ?? 'An argument'
  return new UsageError(
    `${missing} is missing: sluice ${[...words, ...positionals].join(' ')}`,
    helpAdvice(words),
  )
}

export function helpAdvice(words: readonly string[]): string {
  return `See \`sluice ${[...words, '--help'].join(' ')}\`.`
}
