/**
 * `sluice replay` publishes the messages of a stream, or acknowledged messages of a queue, again. `sluice history` prints
 * what happened to a message.
 */
import type { HistoryEvent, Replayed, Sluice } from '@sluice/client'
import { addressName, queueName, type QueueName } from '@sluice/protocol'
import { publishedTo } from './address.js'
import { command } from './command.js'
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
            .positional('queue', {
              type: 'string',
              demandOption: true,
              describe: 'Name of the queue or stream',
            })
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
              describe: 'Publish the copies to another queue or stream [default: the same]',
            })
            .option('cursor', {
              type: 'string',
              requiresArg: true,
              describe: 'Continue an earlier replay with the same options; its error message has the cursor',
            }),
        ),
      ),
    ).epilogue(
      'Publishes again the messages of a stream, or the acknowledged messages of a queue that --retain-age and ' +
        '--retain-bytes of `sluice queue ensure` keep. Each copy is a new message. Try --dry-run first.',
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
    await withBroker(options, 'replay', async (sluice) => {
      const result = await runBulk(
        sluice,
        target,
        options.json,
        {
          counter: 'published',
          text: (count) => `${counted(count, 'message')} published to ${target} since the start`,
        },
        (signal) => sluice.queues.replay(queue, request, { signal }),
      )
      if (result === undefined) return
      if (options.json) await printJson({ queue, to: target, dryRun, ...result })
      else notice(await resultText(sluice, queue, to, dryRun, result))
    })
  },
})

async function resultText(
  sluice: Sluice,
  from: QueueName,
  to: QueueName | undefined,
  dryRun: boolean,
  { matched, replayed }: Replayed,
): Promise<string> {
  if (matched === 0) return nothingText(sluice, from)
  const title = async (name: QueueName): Promise<string> =>
    `the ${(await publishedTo(sluice, name)).kind} ${name}`
  const what = `${counted(dryRun ? matched : replayed, 'message')} of ${await title(from)}`
  const where = to === undefined ? 'again' : `again, to ${await title(to)}`
  return `${dryRun ? 'This would publish' : 'Published'} ${what} ${where}.`
}

// A queue that retains nothing is the most frequent reason for an empty replay.
async function nothingText(sluice: Sluice, queue: QueueName): Promise<string> {
  if ((await publishedTo(sluice, queue)).kind === 'stream')
    return `No message of the stream ${queue} matches.`
  const { retain } = (await sluice.queues.get(queue)).options
  return retain.age === 0 && retain.bytes === 0
    ? `The queue ${queue} keeps no acknowledged messages: it has neither --retain-age nor --retain-bytes.`
    : `The queue ${queue} has no acknowledged message that matches.`
}

export const history = command<{ readonly queue: string; readonly offset: string }>({
  builder: (yargs) =>
    yargs
      .positional('queue', {
        type: 'string',
        demandOption: true,
        describe: 'Name of the queue, stream or group',
      })
      .positional('offset', { type: 'string', demandOption: true, describe: 'Offset of the message' })
      .epilogue(
        'The history reaches back as far as the log, which keeps its segments only while they are needed.',
      ),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const offset = countFlag(options.offset, 'The offset')
    const { events, complete } = await withBroker(options, 'history', (sluice) =>
      sluice.queues.history(queue, offset),
    )
    if (options.json) return printJson({ queue, offset, complete, events })
    if (events.length > 0) await print(table(columnsOf(events), events))
    else notice(`The log no longer has events of message ${offset} of ${queue}: their segments were freed.`)
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
