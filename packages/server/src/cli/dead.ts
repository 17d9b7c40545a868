/** `sluice dead`: lists, redrives and deletes dead messages. Deletion asks for confirmation. */
import type { Redriven, RedriveOptions, Sluice } from '@sluice/client'
import { LIMITS, SluiceError, addressName, queueName } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { onAddress, titled } from './address.js'
import { addCommands, command, type CommandEntry } from './command.js'
import { isConfirmed, yesFlag, type YesOption } from './confirmation.js'
import { withBroker } from './connection.js'
import { countFlag, given } from './flags.js'
import { UsageError } from './failure.js'
import { SHOWN_DEFAULT, partOf, printMessage, printMessages } from './messages.js'
import { counted, grouped, notice, printJson } from './output.js'
import { filterFlags, filterOf, type FilterOptions } from './selection.js'
import { rateFlag, rateOf, bulkFlags, bulkOf, runBulk, type PacedOptions, type BulkOptions } from './bulk.js'

interface QueueOption {
  readonly queue: string
}

interface ListOptions extends QueueOption, FilterOptions {
  readonly from: string | undefined
  readonly limit: string | undefined
}

const listDead = command<ListOptions>({
  builder: (yargs) =>
    filterFlags(
      onAddress(yargs)
        .option('from', { type: 'string', requiresArg: true, describe: 'First offset [default: 0]' })
        .option('limit', {
          type: 'string',
          requiresArg: true,
          describe: `Show at most N messages [default: ${SHOWN_DEFAULT}]`,
        }),
    ).describe('json', 'Print each message in full, as a line of JSON'),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const filter = filterOf(options)
    const part = partOf(options.from, options.limit)
    await withBroker(options, 'dead list', (sluice) =>
      printMessages((place) => sluice.dead.list(queue, { ...filter, ...place }), part, {
        json: options.json,
        columns: ['offset', 'reason', 'when', 'attempts', 'key', 'id', 'error', 'body'],
        none: noneOf(queue, filter),
      }),
    )
  },
})

const get = command<QueueOption & { readonly offset: string }>({
  builder: (yargs) =>
    onAddress(yargs).positional('offset', {
      type: 'string',
      demandOption: true,
      describe: 'Offset of the message',
    }),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const offset = countFlag(options.offset, 'The offset')
    await withBroker(options, 'dead get', async (sluice) =>
      printMessage(await sluice.dead.get(queue, offset), options.json),
    )
  },
})

interface ChoiceOptions extends QueueOption, FilterOptions {
  readonly offset: readonly string[] | undefined
}

function choiceFlags(yargs: Argv): Argv {
  return filterFlags(
    yargs.option('offset', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'The message at this offset; can be given several times',
    }),
  )
}

/** @throws UsageError, SluiceError INVALID_ARGUMENT */
function choiceOf(options: ChoiceOptions): RedriveOptions {
  const offsets = options.offset?.map((text) => countFlag(text, '--offset'))
  return { ...filterOf(options), ...given({ offsets }) }
}

/** Returns the error for the named offsets at which there is no dead message. */
async function notDead(
  sluice: Sluice,
  queue: string,
  { offsets = [] }: RedriveOptions,
): Promise<SluiceError | undefined> {
  const missing: number[] = []
  for (const offset of new Set(offsets)) {
    try {
      await sluice.dead.get(queue, offset)
    } catch (error) {
      if (!(error instanceof SluiceError) || error.code !== 'MESSAGE_NOT_FOUND') throw error
      missing.push(offset)
    }
  }
  if (missing.length === 0) return undefined
  const where = `offset${missing.length === 1 ? '' : 's'} ${missing.join(', ')}`
  return new SluiceError('MESSAGE_NOT_FOUND', `The ${titled(queue)} has no dead message at ${where}.`)
}

function noneOf(queue: string, choice: object): string {
  return Object.keys(choice).length === 0
    ? `The ${titled(queue)} has no dead messages.`
    : `No dead message of the ${titled(queue)} matches.`
}

interface RedriveFlags extends ChoiceOptions, PacedOptions {
  readonly to: string | undefined
  readonly force: boolean
}

const redrive = command<RedriveFlags>({
  builder: (yargs) =>
    rateFlag(bulkFlags(choiceFlags(onAddress(yargs))))
      .option('to', { type: 'string', requiresArg: true, describe: 'Move the messages to another queue' })
      .option('force', {
        type: 'boolean',
        default: false,
        describe: `Include messages already redriven ${LIMITS.redrivesMax} times`,
      })
      .epilogue(
        'Redriven messages start again at attempt 1. Without a filter all dead messages match: try --dry-run first.',
      ),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const to = options.to === undefined ? undefined : queueName(options.to)
    if (to === queue) {
      throw new UsageError(
        `--to names the queue ${queue} itself.`,
        'Omit --to: the messages then return to their own queue.',
      )
    }
    const { dryRun, ...limit } = bulkOf(options)
    const choice = choiceOf(options)
    const request = {
      ...choice,
      ...limit,
      ...rateOf(options),
      ...given({ to }),
      dryRun,
      force: options.force,
    }
    const [missing, result] = await withBroker(options, 'dead redrive', async (sluice) => [
      await notDead(sluice, queue, choice),
      await runBulk(
        sluice,
        queue,
        options.json,
        { counter: 'redriven', text: (count) => `${counted(count, 'message')} redriven` },
        (signal) => sluice.dead.redrive(queue, request, { signal }),
      ),
    ])
    if (result === undefined) return
    if (options.json) {
      const { matched, redriven, guarded, barred } = result
      await printJson({ queue, to: to ?? queue, dryRun, matched, redriven, guarded, barred })
    } else if (result.matched > 0) redriveNotices(queue, to, dryRun, result)
    else if (missing === undefined) notice(noneOf(queue, choice))
    // The messages at the other offsets are redriven anyway, so that the command can be repeated after an interruption.
    if (missing !== undefined) throw missing
  },
})

function redriveNotices(
  queue: string,
  to: string | undefined,
  dryRun: boolean,
  { matched, redriven, guarded, barred }: Redriven,
): void {
  const what = counted(dryRun ? matched - guarded : redriven, 'dead message')
  if (to === undefined)
    notice(`${dryRun ? 'This would return' : 'Returned'} ${what} to the ${titled(queue)}.`)
  else notice(`${dryRun ? 'This would move' : 'Moved'} ${what} of the ${titled(queue)} to the queue ${to}.`)
  const worn = guarded - barred
  if (worn > 0) {
    const many = worn === 1 ? '1 was' : `${grouped(worn)} were`
    const stay = worn === 1 ? 'stays' : 'stay'
    notice(
      `Of the matching messages, ${many} already redriven ${LIMITS.redrivesMax} times and ${stay} dead; --force redrives such messages too.`,
    )
  }
  if (barred > 0) {
    const stay =
      barred === 1
        ? '1 stays dead: its id is in use by a pending message'
        : `${grouped(barred)} stay dead: their ids are in use by pending messages`
    notice(
      `Of the matching messages, ${stay}, and the queue has --unique pending. Redrive such messages when their ids are no longer in use, or to another queue with --to.`,
    )
  }
}

const remove = command<ChoiceOptions & BulkOptions & YesOption>({
  builder: (yargs) =>
    yesFlag(bulkFlags(choiceFlags(onAddress(yargs)))).epilogue('Without a filter all dead messages match.'),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const { dryRun, ...limit } = bulkOf(options)
    const choice = choiceOf(options)
    const request = { ...choice, ...limit }
    await withBroker(options, 'dead delete', async (sluice) => {
      const missing = await notDead(sluice, queue, choice)
      let isEmpty = false
      if (!dryRun && !options.yes) {
        const { matched } = await sluice.dead.delete(queue, { ...request, dryRun: true })
        const question = `Permanently delete ${counted(matched, 'dead message')} of the ${titled(queue)}?`
        isEmpty = matched === 0
        if (!isEmpty && !(await isConfirmed(`Deleting dead messages of the ${titled(queue)}`, question)))
          return
      }
      // If the count was zero, nothing is deleted: a message that has died since then was not part of the confirmation.
      const result = isEmpty
        ? { matched: 0, deleted: 0 }
        : await runBulk(
            sluice,
            queue,
            options.json,
            { counter: 'discarded', text: (count) => `${counted(count, 'message')} deleted` },
            (signal) => sluice.dead.delete(queue, { ...request, dryRun }, { signal }),
          )
      if (result === undefined) return
      const { matched, deleted } = result
      const what = `${counted(dryRun ? matched : deleted, 'dead message')} of the ${titled(queue)}`
      if (options.json) await printJson({ queue, dryRun, matched, deleted })
      else if (matched > 0) notice(dryRun ? `This would delete ${what}.` : `Deleted ${what}.`)
      else if (missing === undefined) notice(noneOf(queue, choice))
      if (missing !== undefined) throw missing
    })
  },
})

const ENTRIES: readonly CommandEntry[] = [
  {
    command: 'list <queue>',
    aliases: ['ls'],
    describe: 'List the dead messages of a queue',
    load: () => Promise.resolve(listDead),
  },
  {
    command: 'get <queue> <offset>',
    aliases: ['info'],
    describe: 'Show a dead message with its whole body',
    load: () => Promise.resolve(get),
  },
  {
    command: 'redrive <queue>',
    describe: 'Return dead messages to their queue',
    load: () => Promise.resolve(redrive),
  },
  {
    command: 'delete <queue>',
    aliases: ['rm'],
    describe: 'Permanently delete dead messages',
    load: () => Promise.resolve(remove),
  },
]

export const dead = command<object>({
  builder: (yargs) => addCommands(yargs, ['dead'], ENTRIES),
  handler: () => {},
})
