/** `sluice request`: sends one request, waits for the reply, and prints its body. */
import { LIMITS, queueName } from '@sluice/protocol'
import { bodyLine, readableFields } from './body.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { durationMs, given, headersFlag, numberFlag } from './flags.js'
import { print, printJson } from './output.js'
import { messageFlags, singleBody, type MessageFlags } from './publish.js'

interface RequestOptions extends MessageFlags {
  readonly queue: string
}

export const request = command<RequestOptions>({
  builder: (yargs) => {
    yargs
      .positional('queue', { type: 'string', demandOption: true, describe: 'Name of the queue' })
      .positional('body', { type: 'string', describe: 'The request; if omitted, the whole of stdin' })
    return messageFlags(yargs, ['key', 'priority']).epilogue(
      'Prints the body of the reply. Without a reply within --timeout, the command fails, and the request leaves the queue.',
    )
  },
  handler: async (options) => {
    const queue = queueName(options.queue)
    const { key, priority, timeout, header } = options
    const settings = given({
      key,
      priority:
        priority === undefined ? undefined : numberFlag(priority, '--priority', 0, LIMITS.priorityMax),
      headers: headersFlag(header),
      timeout: timeout === undefined ? undefined : durationMs(timeout, '--timeout', 1),
    })
    const body = await singleBody(options, '-')
    await withBroker(options, 'request', async (sluice) => {
      const reply = await sluice.request(queue, body, settings)
      if (options.json) {
        await printJson({ queue, ...readableFields(reply), headers: { ...reply.headers } })
        return
      }
      await print(bodyLine(reply.body))
    })
  },
})
