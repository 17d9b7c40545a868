/** `sluice replay` publishes acknowledged messages again; `sluice history` prints what happened to a message. */
import type { HistoryEvent } from '@sluice/client'
import { queueName, type QueueName } from '@sluice/protocol'
import { command, type GlobalOptions } from './command.js'
import { withBroker } from './connection.js'
import { countFlag, given, placeFlag, timeFlag } from './flags.js'
import { counted, notice, print, printJson } from './output.js'
import { filterOf, recordFilterFlags, type RecordFilterOptions } from './selection.js'
import { table, type Column } from './table.js'
import { rateFlag, rateOf, bulkFlags, bulkOf, runBulk, type PacedOptions } from './bulk.js'

interface ReplayFlags extends RecordFilterOptions, PacedOptions {
  readonly queue: string
  readonly from: string | undefined
  readonly until: string | undefined
  readonly to: string | undefined
  readonly cursor: string | undefined
}

export const replay = command<ReplayFlags>({
  builder: (yargs) =>
    rateFlag(
      bulkFlags(
        recordFilterFlags(
          yargs
            .positional('queue', { type: 'string', demandOption: true, describe: 'Name of the queue' })
            .option('from', {
              type: 'string',
              requiresArg: true,
              describe: 'First offset, or time of publishing such as 2030-05-01T10:00Z [default: the oldest]',
            })
            .option('until', {
              type: 'string',
              requiresArg: true,
              describe: 'Only messages published before this time [default: now]',
            })
            .option('to', {
              type: 'string',
              requiresArg: true,
              describe: 'Publish the copies to another queue [default: the same]',
            })
            .option('cursor', {
              type: 'string',
              requiresArg: true,
              describe: 'Continue an earlier replay with the same options; its error message has the cursor',
            }),
        ),
      ),
    ).epilogue(
      'Publishes again the acknowledged messages that --retain-age and --retain-bytes of `sluice queue ensure` keep. ' +
        'Each copy is a new message. Try --dry-run first.',
    ),
  handler: async (options) => {
    const queue = queueName(options.queue)
    const to = options.to === undefined ? undefined : queueName(options.to)
    const { dryRun, ...limit } = bulkOf(options)
    const request = {
      ...filterOf(options),
      ...given({
        from: options.from === undefined ? undefined : placeFlag(options.from, '--from'),
        until: options.until === undefined ? undefined : timeFlag(options.until, '--until'),
        to,
        cursor: options.cursor,
      }),
      ...limit,
      ...rateOf(options),
      dryRun,
    }
    const target = to ?? queue
    const result = await withBroker(options, 'replay', (sluice) =>
      runBulk(
        sluice,
        target,
        options.json,
        {
          counter: 'published',
          text: (count) => `${counted(count, 'message')} published to ${target} since the start`,
        },
        (signal) => sluice.queues.replay(queue, request, { signal }),
      ),
    )
    if (result === undefined) return
    const { matched, replayed } = result
    if (options.json) return printJson({ queue, to: target, dryRun, matched, replayed })
    if (matched === 0) return notice(await nothingText(options, queue))
    const what = `${counted(dryRun ? matched : replayed, 'message')} of the queue ${queue}`
    const where = to === undefined ? 'again' : `again, to the queue ${to}`
    notice(`${dryRun ? 'This would publish' : 'Published'} ${what} ${where}.`)
  },
})

// A queue that retains nothing is the most frequent reason for an empty replay.
async function nothingText(options: GlobalOptions, queue: QueueName): Promise<string> {
  const { retain } = (await withBroker(options, 'replay', (sluice) => sluice.queues.get(queue))).options
  return retain.age === 0 && retain.bytes === 0
    ? `The queue ${queue} keeps no acknowledged messages: it has neither --retain-age nor --retain-bytes.`
    : `The queue ${queue} has no acknowledged message that matches.`
}

export const history = command<{ readonly queue: string; readonly offset: string }>({
  builder: (yargs) =>
    yargs
      .positional('queue', { type: 'string', demandOption: true, describe: 'Name of the queue' })
      .positional('offset', { type: 'string', demandOption: true, describe: 'Offset of the message' })
      .epilogue(
        'The history reaches back as far as the log, which keeps its segments only while they are needed.',
      ),
  handler: async (options) => {
    const queue = queueName(options.queue)
    const offset = countFlag(options.offset, 'The offset')
    const { events, complete } = await withBroker(options, 'history', (sluice) =>
      sluice.queues.history(queue, offset),
    )
    if (options.json) return printJson({ queue, offset, complete, events })
    if (events.length > 0) await print(table(columnsOf(events), events))
    else
      notice(
        `The log no longer has events of message ${offset} of the queue ${queue}: their segments were freed.`,
      )
    if (!complete && events.length > 0) notice('Earlier events are no longer kept.')
  },
})

function columnsOf(events: readonly HistoryEvent[]): Column<HistoryEvent>[] {
  const columns: Column<HistoryEvent>[] = [
    { title: 'TIME', value: ({ at }) => at.toISOString() },
    { title: 'EVENT', value: ({ event }) => event },
  ]
  if (events.some(({ attempts }) => attempts !== undefined))
    columns.push({ title: 'ATTEMPTS', value: ({ attempts }) => String(attempts ?? '-') })
  if (events.some(({ due }) => due !== undefined))
    columns.push({ title: 'DUE', value: ({ due }) => due?.toISOString() ?? '-' })
  if (events.some(({ text }) => text !== undefined))
    columns.push({ title: 'DETAIL', value: ({ text }) => text ?? '' })
  return columns
}
