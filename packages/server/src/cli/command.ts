/**
 * A command as this program knows it, and the checks that all commands share: no unknown word or option,
 * none given twice, and a hint at the right help page.
 */
import type { Argv, ArgumentsCamelCase } from 'yargs'
import { UsageError } from './failure.js'
import { nearest } from './spelling.js'

/** Options that every command has. */
export interface GlobalOptions {
  readonly url: string | undefined
  readonly timeout: string | undefined
  readonly json: boolean
}

/** Their names, and those that yargs brings. */
export const GLOBAL_OPTIONS = ['url', 'timeout', 'json', 'help', 'version']

export interface CommandEntry {
  /** Name, then `<needed>` and `[optional]` arguments. */
  readonly command: string
  readonly aliases?: readonly string[]
  readonly describe: string
  /** It has subcommands. */
  readonly isGroup?: boolean
  /** Imports the rest; called only when the command is. */
  readonly load: () => Promise<CommandBody>
}

/** Options and handler, for any type of options. */
export interface CommandBody {
  readonly builder?: unknown
  readonly handler: (options: never) => unknown
}

/** The body of a command: its builder has to declare the options that its handler reads. */
export function command<Options>(body: {
  readonly builder: (yargs: Argv) => unknown
  readonly handler: (options: ArgumentsCamelCase<GlobalOptions & Options>) => Promise<void> | void
}): CommandBody {
  return body
}

/** Adds commands under `path`, the words before them; `$0` handles a missing or an unknown one. */
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
 * Arguments after `--`, which yargs would not assign: prefixed with a character that no argument can have, they are
 * ordinary words, whatever they begin with.
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

/** Options of this command only, without arguments and common options; its help lists them first. */
function ownOptions(yargs: Argv, positionals: readonly string[]): string[] {
  const { key } = (yargs as unknown as { getOptions(): KnownOptions }).getOptions()
  // Single letters are aliases.
  return Object.keys(key).filter(
    (name) =>
      name.length > 1 &&
      !GLOBAL_OPTIONS.includes(name) &&
      !positionals.includes(`<${name}>`) &&
      !positionals.includes(`[${name}]`),
  )
}

/** Refuses extra words: `orders hello world` has three words where two are accepted. */
function refuseExtra(options: ArgumentsCamelCase, words: readonly string[], positionals: number): void {
  const extra = options._.slice(words.length)
  if (extra.length === 0) return
  const advice =
    positionals === 0
      ? `Omit it. ${helpAdvice(words)}`
      : `Put quotes around an argument that has spaces in it. ${helpAdvice(words)}`
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

/** What yargs knows of the running command; it passes this to a check, although its types say otherwise. */
interface KnownOptions {
  readonly key: Readonly<Record<string, unknown>>
  readonly boolean: readonly string[]
  readonly alias: Readonly<Record<string, readonly string[]>>
  readonly array: readonly string[]
}

const ALWAYS = ['_', '$0', '--', 'help', 'h', 'version']

/**
 * A check for yargs: refuses unknown options, and options that are given twice. The options of an unknown command are
 * not known; `refuseWord` refuses it.
 */
export function refuseOptions(options: ArgumentsCamelCase, known: unknown): true {
  const words = commandWords(options)
  if (words.length > 0 && !COMMANDS.has(words.join(' '))) return true
  const { key: keys, alias: aliases, array, boolean: flags } = known as KnownOptions
  const names = new Set([...ALWAYS, ...Object.keys(keys), ...Object.values(aliases).flat()])
  for (const [name, value] of Object.entries(options)) {
    const dashed = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
    if (ALWAYS.includes(name) || (dashed !== name && names.has(dashed))) continue
    const flag = `${name.length === 1 ? '-' : '--'}${name}`
    if (!names.has(name)) {
      const meant = name.length === 1 ? undefined : nearest(name, Object.keys(keys))
      throw new UsageError(
        `Unknown option ${flag}.`,
        meant === undefined ? helpAdvice(words) : `Did you mean --${meant}?`,
      )
    }
    // `--no-NAME` is read as NAME of false: meaningless if NAME has a value, unless the command declares it.
    if (isNegated(value) && !flags.includes(name) && !names.has(`no-${name}`)) {
      throw new UsageError(`Unknown option --no-${name}.`, `Omit --${name} instead.`)
    }
    if (Array.isArray(value) && !array.includes(name)) {
      throw new UsageError(`The option ${flag} is given twice.`, 'Give it once.')
    }
  }
  return true
}

function isNegated(value: unknown): boolean {
  return value === false || (Array.isArray(value) && value.includes(false))
}

/** What can be called, by the words that name it, with its form; the commands of a group once the group is called. */
const COMMANDS = new Map<string, string>()
/** Words after which another one names the command. */
const GROUPS = new Set<string>()

// The words that name the command come first; what follows them in `_` is for `refuseExtra`.
function commandWords(options: ArgumentsCamelCase): string[] {
  return options._.slice(0, GROUPS.has(String(options._[0])) ? 2 : 1).map(String)
}

/** A command was called with `given` arguments, fewer than it needs. */
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
