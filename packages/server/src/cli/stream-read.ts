/** `sluice stream read`: prints the messages of a stream in the order of their offsets. Nothing is settled. */
import type { ReadFrom, Sluice, StreamMessage } from '@sluice/client'
import { queueName } from '@sluice/protocol'
import { bodyFields, bodyLine } from './body.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { countFlag, given, headersFlag, streamPlaceFlag } from './flags.js'
import { UsageError } from './failure.js'
import { counted, notice, print } from './output.js'
import { headerFlag } from './selection.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

interface ReadOptions {
  readonly stream: string
  readonly from: string
  readonly follow: boolean
  readonly limit: string | undefined
  readonly key: string | undefined
  readonly header: readonly string[] | undefined
}

export const read = command<ReadOptions>({
  builder: (yargs) =>
    headerFlag(
      yargs
        .positional('stream', { type: 'string', demandOption: true, describe: 'Name of the stream' })
        .option('from', {
          type: 'string',
          requiresArg: true,
          default: 'first',
          describe: 'first, last (only new messages), an offset, or a time such as 2030-05-01T10:00Z',
        })
        .option('follow', { type: 'boolean', default: false, describe: 'Wait for new messages at the end' })
        .option('limit', { type: 'string', requiresArg: true, describe: 'Exit after N messages' })
        .option('key', { type: 'string', requiresArg: true, describe: 'Has this key' }),
      'Has this header, name=value; can be given several times',
    )
      .describe('json', 'Print each message with its metadata, as a line of JSON')
      .epilogue(
        'Text is printed as is, data as JSON, bytes raw; with --json bytes are base64. Also reads the acknowledged messages ' +
          'that a queue retains, without --follow. Additional exit codes: 130 after SIGINT (Ctrl-C), 143 after SIGTERM.',
      ),
  handler: async (options) => {
    const { follow, key, header, json } = options
    if (key === '') throw new UsageError('--key is empty.', 'Give a value, or omit the option.')
    const stream = queueName(options.stream)
    const limit = options.limit === undefined ? Infinity : countFlag(options.limit, '--limit', 1)
    const filter = given({ key, headers: headersFlag(header) })
    const task = { stream, from: streamPlaceFlag(options.from, '--from'), follow, limit, filter, json }
    await withBroker(options, 'stream read', (sluice) => readAll(sluice, task))
  },
})

interface ReadTask {
  readonly stream: string
  readonly from: ReadFrom
  readonly follow: boolean
  readonly limit: number
  readonly filter: { readonly key?: string; readonly headers?: Readonly<Record<string, string>> }
  readonly json: boolean
}

async function readAll(
  sluice: Sluice,
  { stream, from, follow, limit, filter, json }: ReadTask,
): Promise<void> {
  const forgetMissed = sluice.on('missed', ({ messages, offset }) =>
    notice(
      `Retention removed ${counted(messages, 'message')} before offset ${offset} before they were read.`,
    ),
  )
  const reader = sluice.read(stream, { from, follow, filter })
  let stopped: StopSignal | undefined
  const forget = onStop((signal) => {
    stopped = signal
    reader.return?.().catch(() => {})
  })
  if (process.stdout.isTTY && follow && limit === Infinity)
    notice(`Printing messages of ${stream} as they arrive. Press Ctrl-C to stop.`)
  try {
    let left = limit
    for await (const messages of reader.batches()) {
      const printed = messages.slice(0, left)
      // Messages that arrived together are written together.
      await print(Buffer.concat(printed.map((message) => rendered(message, json))))
      left -= printed.length
      if (left === 0) break
    }
  } finally {
    forget()
    forgetMissed()
  }
  if (stopped !== undefined) process.exitCode = signalExit(stopped)
}

/** A message as a line. @throws SluiceError INVALID_BODY */
function rendered(message: StreamMessage, json: boolean): Uint8Array {
  if (!json) return Buffer.from(bodyLine(message.body))
  const { stream, offset, id, key, publishedAt, headers } = message
  const document = { stream, offset, id, key, publishedAt, headers, ...bodyFields(message.body) }
  return Buffer.from(`${JSON.stringify(document)}\n`)
}
