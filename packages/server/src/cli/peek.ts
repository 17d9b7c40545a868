/** `sluice peek`: prints messages of a queue without consuming them. */
import { MESSAGE_STATE, addressName, isGroupName, type MessageState } from '@sluice/protocol'
import { onAddress, titled } from './address.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { choiceFlag, given } from './flags.js'
import { SHOWN_DEFAULT, partOf, printMessages } from './messages.js'
import { filterFlags, filterOf, type FilterOptions } from './selection.js'

const STATES = Object.keys(MESSAGE_STATE) as MessageState[]

interface PeekOptions extends FilterOptions {
  readonly queue: string
  readonly state: string | undefined
  readonly from: string | undefined
  readonly limit: string | undefined
}

export const peek = command<PeekOptions>({
  builder: (yargs) =>
    filterFlags(
      onAddress(yargs)
        .option('state', {
          type: 'string',
          requiresArg: true,
          describe: `${STATES.join(', ')} [default: any]`,
        })
        .option('from', { type: 'string', requiresArg: true, describe: 'First offset [default: 0]' })
        .option('limit', {
          type: 'string',
          requiresArg: true,
          describe: `Show at most N messages [default: ${SHOWN_DEFAULT}]`,
        }),
    )
      .describe('json', 'Print each message in full, as a line of JSON')
      .epilogue(
        'Shows messages in offset order, with bodies shortened. Peeking changes nothing. For a group, it shows the messages that ' +
          'the group has reached and that are not done.',
      ),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const state = options.state === undefined ? undefined : choiceFlag(options.state, '--state', STATES)
    const filter = filterOf(options)
    const part = partOf(options.from, options.limit)
    await withBroker(options, 'peek', (sluice) =>
      printMessages(
        (place) => sluice.queues.peek(queue, { ...given({ state }), ...filter, ...place }),
        part,
        {
          json: options.json,
          columns: [
            'offset',
            'state',
            'when',
            'attempts',
            'priority',
            'key',
            'id',
            'holder',
            'reason',
            'error',
            'body',
          ],
          none:
            Object.keys(filter).length === 0 && state === undefined && part.from === 0
              ? isGroupName(queue)
                ? `The group ${queue} has reached no message that is not done; \`sluice group get ${queue}\` shows its position.`
                : `The queue ${queue} is empty.`
              : `No message of the ${titled(queue)} matches.`,
        },
      ),
    )
  },
})
