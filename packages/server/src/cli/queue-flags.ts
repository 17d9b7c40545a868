/**
 * Options of a queue or a group as flags and as text, derived from the table `QUEUE_OPTIONS`. A flag is the name of the option as
 * words joined by dashes, without the unit; `--no-NAME` resets an option whose default value is none. The two options of a
 * rate share one flag.
 */
import type { GroupSettings, QueueOptions } from '@sluice/client'
import {
  GROUP_OPTIONS,
  QUEUE_OPTIONS,
  SluiceError,
  queueName,
  type QueueOptionName,
  durationText,
  sizeText,
} from '@sluice/protocol'
import type { Argv } from 'yargs'
import { choiceFlag, durationMs, numberFlag, rateFlag, sizeFlag } from './flags.js'

type Option = (typeof QUEUE_OPTIONS)[QueueOptionName]
type Unit = 'duration' | 'size' | 'count' | 'rate'

interface QueueFlag {
  readonly flag: string
  readonly option: Option
  readonly unit: Unit
  /** Path of the option in the options of the client: `retry-initial` is `retry.initial`. */
  readonly path: readonly [string, string?]
}

function queueFlag(name: QueueOptionName): QueueFlag {
  const rate = /^(rate|keyRate)(?:Messages|PerMs)$/.exec(name)
  const bare = rate?.[1] ?? name.replace(/Ms$/, '')
  const parts = /^(retry|retain)([A-Z]\w*)$/.exec(bare)
  return {
    flag: bare.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`),
    option: QUEUE_OPTIONS[name],
    unit: rate !== null ? 'rate' : bare !== name ? 'duration' : name.endsWith('Bytes') ? 'size' : 'count',
    path: parts === null ? [bare] : [parts[1]!, parts[2]!.charAt(0).toLowerCase() + parts[2]!.slice(1)],
  }
}

const NAMES = Object.keys(QUEUE_OPTIONS) as QueueOptionName[]
const QUEUE_FLAGS = NAMES.filter((name) => !/^(?:rate|keyRate)PerMs$/.test(name)).map(queueFlag)

/** The flags of a group. */
export const GROUP_FLAGS: readonly QueueFlag[] = QUEUE_FLAGS.filter(({ option }) =>
  Object.values<Option>(GROUP_OPTIONS).includes(option),
)

/** Whether the value of the option can be none. If so, the option has a flag `--no-NAME`. */
function isOptional({ option }: QueueFlag): boolean {
  return option.default === 0 || option.default === ''
}

/** Declares a flag for each option. */
export function queueFlags(yargs: Argv, flags: readonly QueueFlag[] = QUEUE_FLAGS): Argv {
  for (const each of flags) {
    const { flag, option } = each
    const describe = described(each)
    if (option.kind === 'flag') yargs.option(flag, { type: 'boolean', describe })
    else yargs.option(flag, { type: 'string', requiresArg: true, describe })
    if (isOptional(each)) yargs.option(`no-${flag}`, { type: 'boolean', hidden: true })
  }
  const negations = flags.filter((each) => isOptional(each) || each.option.kind === 'flag')
  return yargs.epilogue(
    `Reset to the default with ${negations.map(({ flag }) => `--no-${flag}`).join(', ')}. Numbers, times and sizes whose ` +
      'default is none also accept the word none. ' +
      'Times are written as 500ms, 30s, 5m, 2h or 7d, sizes as 500kb, 10mb, 64MiB or 1gb.',
  )
}

function described(each: QueueFlag): string {
  const { option } = each
  const meaning =
    each.unit === 'rate'
      ? `Maximum rate of deliveries${each.flag === 'rate' ? '' : ' of one key'}, as 100/1s`
      : namesAsFlags(option.meaning).replace(/\.$/, '')
  let choices = option.kind === 'choice' ? ` (${option.choices.join(', ')})` : ''
  const word = wordOf(option)
  if (word !== undefined) choices = ` (a number, or ${word})`
  const fallback = option.kind === 'flag' ? '' : ` [default: ${valueText(each, option.default)}]`
  return `${meaning}${choices}${fallback}`
}

/**
 * The options that are given, in the form that the client takes.
 * @throws UsageError, SluiceError INVALID_ARGUMENT, INVALID_NAME
 */
export function queueOptionsOf(
  values: Readonly<Record<string, unknown>>,
  flags: readonly QueueFlag[] = QUEUE_FLAGS,
): QueueOptions {
  const options: Record<string, unknown> = {}
  for (const each of flags) {
    const given = values[each.flag]
    if (given === undefined) continue
    const value = valueOf(each, given)
    const [name, part] = each.path
    if (part === undefined) options[name] = value
    else ((options[name] ??= {}) as Record<string, unknown>)[part] = value
  }
  return options
}

// The word that is accepted instead of a number.
function wordOf(option: QueueFlag['option']): string | undefined {
  return 'word' in option ? option.word : undefined
}

// yargs passes `--no-NAME` as the value false.
function valueOf({ flag: bare, option, unit }: QueueFlag, given: unknown): unknown {
  if (option.kind === 'flag') return given
  const flag = `--${bare}`
  if (given === false) return option.kind === 'name' || unit === 'rate' ? null : 0
  const text = String(given)
  if (option.kind === 'choice') return choiceFlag<string>(text, flag, option.choices)
  if (option.kind === 'name') return queueName(text)
  if (unit === 'rate') return text === 'none' ? null : rateFlag(text, flag)
  const { min, max } = option
  if (text === 'none' && option.default === 0) return 0
  if (wordOf(option) === text) return text
  if (unit === 'count') return numberFlag(text, flag, min, max, wordOf(option))
  if (unit === 'size') return sizeFlag(text, flag)
  return durationMs(text, flag, min)
}

/** Names and values of the options that differ from their defaults. */
export function unusual(
  options: GroupSettings,
  flags: readonly QueueFlag[] = QUEUE_FLAGS,
): [name: string, value: string][] {
  return flags
    .filter((each) => settingOf(options, each) !== defaultOf(each))
    .map((each) => [each.flag.replaceAll('-', ' '), valueText(each, settingOf(options, each))])
}

/** The changed options, each as `name from → to`. */
export function differences(
  before: GroupSettings,
  after: GroupSettings,
  flags: readonly QueueFlag[] = QUEUE_FLAGS,
): string[] {
  return flags
    .filter((each) => settingOf(before, each) !== settingOf(after, each))
    .map((each) => {
      const [from, to] = [before, after].map((options) => valueText(each, settingOf(options, each)))
      return `${each.flag} ${from} → ${to}`
    })
}

// The value of the option; a rate as text.
function settingOf(options: GroupSettings, { unit, path: [name, part] }: QueueFlag): unknown {
  const value = (options as unknown as Record<string, unknown>)[name]
  if (unit === 'rate') return value === null ? null : rateText(value as { messages: number; per: number })
  return part === undefined ? value : (value as Record<string, unknown>)[part]
}

function rateText({ messages, per }: { readonly messages: number; readonly per: number }): string {
  return `${messages}/${durationText(per)}`
}

function defaultOf({ option, unit }: QueueFlag): unknown {
  return option.kind === 'name' || unit === 'rate' ? null : option.default
}

function valueText({ option, unit }: QueueFlag, value: unknown): string {
  if (value === null || value === '') return 'none'
  if (typeof value === 'boolean') return value ? 'yes' : 'no'
  if (typeof value !== 'number') return value as string
  if (value === 0 && option.default === 0) return 'none'
  return unit === 'duration' ? durationText(value) : unit === 'size' ? sizeText(value) : String(value)
}

/** Runs `work`, and replaces the names of options in its errors by the names of their flags. */
export async function withFlagNames<Result>(work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error
    throw new SluiceError(error.code, namesAsFlags(error.message), { cause: error })
  }
}

function namesAsFlags(text: string): string {
  return text.replace(/`([a-zA-Z]+)`/g, (quoted, name: string) => {
    const option = NAMES.find((known) => known === name)
    return option === undefined ? quoted : `--${queueFlag(option).flag}`
  })
}
