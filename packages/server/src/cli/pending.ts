/** `sluice cancel` and `sluice reschedule`: change one waiting message, given by its offset or its id. */
import type { Due } from '@sluice/client'
import { addressName } from '@sluice/protocol'
import { onAddress, titled } from './address.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { durationMs, timeFlag } from './flags.js'
import { UsageError } from './failure.js'
import { notice, printJson } from './output.js'
import { refFlags, refOf, type RefOptions } from './selection.js'
import { ahead } from './units.js'

interface CancelOptions extends RefOptions {
  readonly queue: string
}

const WHICH =
  'The message must be scheduled or ready. It is found by id if it has a delay, or while its id is remembered.'

export const cancel = command<CancelOptions>({
  builder: (yargs) => refFlags(onAddress(yargs)).epilogue(WHICH),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const ref = refOf(options)
    const { offset } = await withBroker(options, 'cancel', (sluice) => sluice.queues.cancel(queue, ref))
    if (options.json) await printJson({ queue, offset })
    else notice(`Cancelled message ${offset} of the ${titled(queue)}.`)
  },
})

interface RescheduleOptions extends CancelOptions {
  readonly delay: string | undefined
  readonly at: string | undefined
}

export const reschedule = command<RescheduleOptions>({
  builder: (yargs) =>
    refFlags(onAddress(yargs))
      .option('delay', {
        type: 'string',
        requiresArg: true,
        describe: 'Time from now until the message is due, such as 30s or 2h; 0 means now',
      })
      .option('at', {
        type: 'string',
        requiresArg: true,
        describe:
          'Time at which the message is due: ISO text such as 2030-05-01T10:00Z, or milliseconds since 1970',
      })
      .epilogue(WHICH),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const ref = refOf(options)
    const when = dueOf(options)
    const { offset, due } = await withBroker(options, 'reschedule', (sluice) =>
      sluice.queues.reschedule(queue, ref, when),
    )
    if (options.json) return printJson({ queue, offset, due })
    const awayMs = due.getTime() - Date.now()
    const away = awayMs > 0 ? `, in ${ahead(awayMs)}` : ', now'
    notice(`Message ${offset} of the ${titled(queue)} is due at ${due.toISOString()}${away}.`)
  },
})

/** @throws UsageError, SluiceError INVALID_ARGUMENT */
function dueOf({ delay, at }: RescheduleOptions): Due {
  if ((delay === undefined) === (at === undefined)) {
    throw new UsageError(
      delay === undefined ? 'Neither --delay nor --at is given.' : '--delay and --at are mutually exclusive.',
      'Give one of --delay and --at.',
    )
  }
  return delay === undefined ? { at: timeFlag(at!, '--at') } : { delay: durationMs(delay, '--delay') }
}
