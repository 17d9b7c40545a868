/** `sluice schedule`: creates, changes, shows, pauses, runs and deletes schedules. */
import { queue, topic, type ScheduleInfo, type ScheduleOptions, type ScheduleTiming } from '@sluice/client'
import {
  LIMITS,
  MISSED,
  durationText,
  isTopicAddress,
  queueName,
  readTopicAddress,
  scheduleName,
} from '@sluice/protocol'
import type { Argv } from 'yargs'
import { readableFields } from './body.js'
import { addCommands, command, type CommandEntry } from './command.js'
import { isConfirmed, yesFlag, type YesOption } from './confirmation.js'
import { withBroker } from './connection.js'
import { UsageError } from './failure.js'
import { choiceFlag, durationMs, given, headersFlag, numberFlag, timeFlag } from './flags.js'
import { counted, notice, print, printJson } from './output.js'
import { bodyTypeOf, decode, onDuplicateOf, wholeFile } from './publish.js'
import { headerFlag } from './selection.js'
import { list, table, type Column } from './table.js'

interface NamedOptions {
  readonly name: string
}

function named(yargs: Argv): Argv {
  return yargs.positional('name', { type: 'string', demandOption: true, describe: 'Name of the schedule' })
}

/** The flags of `ensure` that take a value. */
const FLAGS = {
  cron: 'Five fields (minute, hour, day, month, weekday), six with seconds first, or a name such as @daily',
  'time-zone': 'Time zone of --cron, such as Europe/Berlin [default: UTC]',
  every: 'Interval between two ticks, such as 10m; at least 1s',
  start: 'First tick of --every, as ISO text or milliseconds since 1970 [default: one interval from now]',
  at: 'The only tick, as ISO text or milliseconds since 1970',
  to: 'Queue, or topic as #NAME; #?NAME drops messages that match no binding',
  body: 'The message',
  file: 'File with the message; - is stdin',
  missed: `What happens to missed ticks: ${MISSED.join(', ')} [default: once]`,
  id: 'Deduplication id of each message',
  'on-duplicate': 'keep or replace the waiting message with the same id [default: keep]',
  key: 'Ordering key of each message',
  priority: `0 to ${LIMITS.priorityMax}; a higher priority is delivered first [default: 0]`,
  ttl: 'Expire this long after the tick [default: the queue setting]',
} as const

type EnsureFlags = NamedOptions & { readonly [Name in keyof typeof FLAGS]: string | undefined } & {
  readonly bodyType: string
  readonly header: readonly string[] | undefined
  readonly paused: boolean | undefined
  readonly update: boolean
}

const ensure = command<EnsureFlags>({
  builder: (yargs) => {
    named(yargs)
    for (const [name, describe] of Object.entries(FLAGS))
      yargs.option(name, { type: 'string', requiresArg: true, describe })
    return headerFlag(yargs, 'Header as name=value; can be given several times')
      .option('body-type', {
        type: 'string',
        requiresArg: true,
        default: 'text',
        describe: 'text, json (parsed, and published as data) or bytes',
      })
      .option('paused', {
        type: 'boolean',
        describe: 'Create it paused, or pause it; --no-paused resumes it',
      })
      .option('update', {
        type: 'boolean',
        default: false,
        describe: 'Change the schedule if it differs, instead of refusing',
      })
      .epilogue('Give one of --cron, --every and --at. Options that are not given count as their defaults.')
  },
  handler: async (options) => {
    const name = scheduleName(options.name)
    const wanted = await optionsOf(options)
    const result = await withBroker(options, 'schedule ensure', (sluice) =>
      sluice.schedules.ensure(name, wanted),
    )
    if (options.json) return printJson(result)
    const { created, changed, schedule } = result
    const next = schedule.nextTicks[0]
    const when = next === undefined ? '' : ` Its next tick is ${next.toISOString()}.`
    if (created) notice(`Created the schedule ${name}.${when}`)
    else notice(changed ? `Changed the schedule ${name}.${when}` : `The schedule ${name} is unchanged.`)
  },
})

/** @throws UsageError, and the errors of invalid values */
async function optionsOf(flags: EnsureFlags): Promise<ScheduleOptions> {
  const { missed, priority, ttl, id, key, header, paused, update } = flags
  return {
    ...timingOf(flags),
    ...targetOf(flags.to),
    body: await bodyOf(flags),
    ...given({
      missed: missed === undefined ? undefined : choiceFlag(missed, '--missed', MISSED),
      id,
      onDuplicate: onDuplicateOf(flags['on-duplicate'], id),
      key,
      priority:
        priority === undefined ? undefined : numberFlag(priority, '--priority', 0, LIMITS.priorityMax),
      ttl: ttl === undefined ? undefined : durationMs(ttl, '--ttl'),
      headers: headersFlag(header),
      paused,
    }),
    update,
  }
}

/** @throws UsageError */
function timingOf({ cron, every, at, start, 'time-zone': timeZone }: EnsureFlags): ScheduleTiming {
  if ([cron, every, at].filter((value) => value !== undefined).length !== 1) {
    throw new UsageError(
      'A schedule needs exactly one of --cron, --every and --at.',
      'For example: sluice schedule ensure nightly --cron "0 3 * * *" --to reports --body run',
    )
  }
  if (timeZone !== undefined && cron === undefined)
    throw new UsageError('--time-zone has no effect without --cron.', 'Omit --time-zone.')
  if (start !== undefined && every === undefined)
    throw new UsageError('--start has no effect without --every.', 'Omit --start.')
  if (every !== undefined) {
    const interval = durationMs(every, '--every', LIMITS.everyMsMin)
    return { every: interval, ...(start === undefined ? {} : { start: timeFlag(start, '--start') }) }
  }
  if (at !== undefined) return { at: timeFlag(at, '--at') }
  return { cron: cron!, ...(timeZone === undefined ? {} : { timeZone }) }
}

/** @throws UsageError, SluiceError INVALID_NAME, INVALID_TOPIC */
function targetOf(to: string | undefined): Pick<ScheduleOptions, 'to' | 'unroutable'> {
  if (to === undefined) {
    throw new UsageError('--to is missing.', 'Name the queue or the topic that gets the messages.')
  }
  if (!isTopicAddress(to)) return { to: queue(queueName(to)) }
  const { name, drops } = readTopicAddress(to)
  return { to: topic(name), unroutable: drops ? 'drop' : 'refuse' }
}

/** @throws UsageError, SluiceError INVALID_BODY */
async function bodyOf({ body, file, bodyType: text }: EnsureFlags): Promise<unknown> {
  const bodyType = bodyTypeOf(text)
  if ((body === undefined) === (file === undefined)) {
    throw new UsageError('A schedule needs either --body or --file.', 'Give one of them.')
  }
  if (body !== undefined) return decode(Buffer.from(body), bodyType, 'The body')
  return decode(await wholeFile(file!), bodyType, file === '-' ? 'stdin' : `The file ${file}`)
}

const get = command<NamedOptions>({
  builder: named,
  handler: async (options) => {
    const name = scheduleName(options.name)
    const details = await withBroker(options, 'schedule get', (sluice) => sluice.schedules.get(name))
    const { message, ...info } = details
    const { body: _body, ...rest } = message
    const shown = { ...rest, ...readableFields(message) }
    if (options.json) return printJson({ ...info, message: shown })
    const { error } = info
    return print(
      list([
        ['name', info.name],
        ['when', whenText(info)],
        ['to', info.to],
        ['missed', info.missed],
        ['paused', info.paused ? 'yes' : 'no'],
        ['created', info.createdAt.toISOString()],
        ['fired', info.fired],
        ['last tick', timeText(info.lastTick)],
        ...info.nextTicks.map((tick, at): [string, string] => [
          at === 0 ? 'next ticks' : '',
          tick.toISOString(),
        ]),
        ...(error === null
          ? []
          : [
              [
                'error',
                `${error.message} Tried ${counted(error.tries, 'time')} since ${error.since.toISOString()}.`,
              ] as [string, string],
            ]),
        ...Object.entries(shown).flatMap(([field, value]): [string, string][] =>
          value === undefined || (field === 'headers' && Object.keys(message.headers).length === 0)
            ? []
            : [[field, typeof value === 'string' ? value : JSON.stringify(value)]],
        ),
      ]),
    )
  },
})

const next = command<NamedOptions & { readonly count: string }>({
  builder: (yargs) =>
    named(yargs).option('count', {
      type: 'string',
      requiresArg: true,
      default: '10',
      describe: `Number of ticks, up to ${LIMITS.ticksMax}`,
    }),
  handler: async (options) => {
    const name = scheduleName(options.name)
    const ticks = numberFlag(options.count, '--count', 1, LIMITS.ticksMax)
    const { nextTicks } = await withBroker(options, 'schedule next', (sluice) =>
      sluice.schedules.get(name, { ticks }),
    )
    if (options.json) await printJson(nextTicks)
    else if (nextTicks.length === 0) notice(`The schedule ${name} has no further tick, or is paused.`)
    else await print(nextTicks.map((tick) => `${tick.toISOString()}\n`).join(''))
  },
})

const listSchedules = command<object>({
  builder: (yargs) => yargs,
  handler: async (options) => {
    const all = await withBroker(options, 'schedule list', (sluice) => sluice.schedules.list())
    if (options.json) await printJson(all)
    else if (all.length === 0) notice('There are no schedules; `sluice schedule ensure NAME` creates one.')
    else await print(table(COLUMNS, all))
  },
})

const remove = command<NamedOptions & YesOption>({
  builder: (yargs) => yesFlag(named(yargs)).epilogue('Messages that it has published stay in their queues.'),
  handler: async (options) => {
    const name = scheduleName(options.name)
    await withBroker(options, 'schedule delete', async (sluice) => {
      if (!options.yes) {
        const { to } = await sluice.schedules.get(name, { ticks: 0 })
        const question = `Delete the schedule ${name}, which publishes to ${to}?`
        if (!(await isConfirmed(`Deleting the schedule ${name}`, question))) return
      }
      const { fired } = await sluice.schedules.delete(name)
      if (options.json) await printJson({ name, fired })
      else notice(`Deleted the schedule ${name}, which fired ${counted(fired, 'time')}.`)
    })
  },
})

function turn(verb: 'pause' | 'resume', done: string, wasDone: string): ReturnType<typeof command> {
  return command<NamedOptions>({
    builder: (yargs) => named(yargs).epilogue('Ticks that pass during a pause do not fire later.'),
    handler: async (options) => {
      const name = scheduleName(options.name)
      const { changed } = await withBroker(options, `schedule ${verb}`, (sluice) =>
        sluice.schedules[verb](name),
      )
      if (options.json) await printJson({ name, changed })
      else notice(changed ? `${done} the schedule ${name}.` : `The schedule ${name} ${wasDone}.`)
    },
  })
}

const run = command<NamedOptions>({
  builder: (yargs) => named(yargs).epilogue('The ticks of the schedule stay as they are.'),
  handler: async (options) => {
    const name = scheduleName(options.name)
    const result = await withBroker(options, 'schedule run', (sluice) => sluice.schedules.runNow(name))
    if (options.json) await printJson({ name, ...result })
    else
      await print('offset' in result ? `offset ${result.offset}\n` : `${counted(result.targets, 'queue')}\n`)
  },
})

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'ensure <name>',
    describe: 'Create a schedule unless it exists',
    load: () => Promise.resolve(ensure),
  },
  { command: 'get <name>', aliases: ['info'], describe: 'Show a schedule', load: () => Promise.resolve(get) },
  {
    command: 'list',
    aliases: ['ls'],
    describe: 'Show all schedules',
    load: () => Promise.resolve(listSchedules),
  },
  {
    command: 'next <name>',
    describe: 'Print the ticks to come',
    load: () => Promise.resolve(next),
  },
  {
    command: 'pause <name>',
    describe: 'Stop the ticks until the schedule is resumed',
    load: () => Promise.resolve(turn('pause', 'Paused', 'is already paused')),
  },
  {
    command: 'resume <name>',
    describe: 'Start the ticks again',
    load: () => Promise.resolve(turn('resume', 'Resumed', 'is not paused')),
  },
  { command: 'run <name>', describe: 'Publish the message now', load: () => Promise.resolve(run) },
  {
    command: 'delete <name>',
    aliases: ['rm'],
    describe: 'Delete a schedule',
    load: () => Promise.resolve(remove),
  },
]

export const schedule = command<object>({
  builder: (yargs) => addCommands(yargs, ['schedule'], ENTRIES),
  handler: () => {},
})

const COLUMNS: readonly Column<ScheduleInfo>[] = [
  { title: 'NAME', value: ({ name }) => name },
  { title: 'WHEN', value: whenText },
  { title: 'TO', value: ({ to }) => to },
  { title: 'NEXT', value: ({ nextTicks }) => timeText(nextTicks[0] ?? null) },
  { title: 'LAST', value: ({ lastTick }) => timeText(lastTick) },
  { title: 'FIRED', value: ({ fired }) => fired },
  { title: 'STATE', value: stateText },
]

function whenText({ cron, timeZone, every, at }: ScheduleInfo): string {
  if (cron !== undefined) return `${cron} ${timeZone ?? 'UTC'}`
  return every === undefined ? `at ${timeText(at ?? null)}` : `every ${durationText(every)}`
}

function stateText({ paused, error, nextTicks }: ScheduleInfo): string {
  if (paused) return 'paused'
  if (error !== null) return `retrying: ${error.code ?? 'unknown error'}`
  return nextTicks.length === 0 ? 'ended' : 'active'
}

function timeText(time: Date | null): string {
  return time === null ? '-' : time.toISOString()
}
