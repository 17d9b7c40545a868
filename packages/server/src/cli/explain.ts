/** `sluice explain`: prints why a queue delivers nothing, or why one message is not delivered. */
import { addressName } from '@sluice/protocol'
import { onAddress } from './address.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { countFlag, given } from './flags.js'
import { print, printJson, printable } from './output.js'

interface ExplainOptions {
  readonly queue: string
  readonly offset: string | undefined
}

export const explain = command<ExplainOptions>({
  builder: (yargs) =>
    onAddress(yargs)
      .positional('offset', { type: 'string', describe: 'Offset of a message [default: the whole queue]' })
      .epilogue('The most important reason is the first. Explaining changes nothing.'),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const offset = options.offset === undefined ? undefined : countFlag(options.offset, 'The offset')
    const explanation = await withBroker(options, 'explain', (sluice) =>
      sluice.queues.explain(queue, given({ offset })),
    )
    if (options.json) return printJson(explanation)
    const lines = explanation.reasons.flatMap(({ text, hint }) =>
      hint === undefined ? [text] : [text, `  ${hint}`],
    )
    await print(lines.map((line) => `${printable(line)}\n`).join(''))
  },
})
