/** The connection of a command to the broker: its options, and notices when it is lost and restored. */
import { connect, type Sluice } from '@sluice/client'
import type { GlobalOptions } from './command.js'
import { durationMs } from './flags.js'
import { notice } from './output.js'

/** Time limit for closing the connection at the end of a command. */
const CLOSE_TIMEOUT_MS = 3_000
/** Delay before a notice that the command is waiting for the broker. */
const WAITING_NOTICE_MS = 700

/** Runs `work` with a connection, then closes the connection. @throws the errors of `work` and of `connect` */
export async function withBroker<Result>(
  options: GlobalOptions,
  label: string,
  work: (sluice: Sluice) => Promise<Result>,
): Promise<Result> {
  const sluice = await dial(options, label)
  let failed = true
  try {
    const result = await work(sluice)
    failed = false
    return result
  } finally {
    const closing = sluice.close({ timeout: CLOSE_TIMEOUT_MS })
    // If `work` has failed, the error of `work` is reported.
    if (failed) await closing.catch(() => {})
    else await closing
  }
}

async function dial({ url, timeout }: GlobalOptions, label: string): Promise<Sluice> {
  const timer = setTimeout(() => {
    if (process.stderr.isTTY)
      notice(`Waiting for ${url ?? process.env['SLUICE_URL'] ?? 'the broker on this machine'} …`)
  }, WAITING_NOTICE_MS)
  try {
    const sluice = await connect(url, {
      name: `sluice ${label}`,
      // With 0, an unreachable broker is reported at once instead of being dialled again, because a user is waiting.
      connectTimeout: 0,
      ...(timeout === undefined ? {} : { timeout: durationMs(timeout, '--timeout', 1) }),
    })
    // The command reports the messages that it could not acknowledge, so the warning for each of them is suppressed.
    sluice.on('leaseLost', () => {})
    let isLost = false
    sluice.on('disconnected', ({ error }) => {
      isLost = true
      notice(`${error.message} Reconnecting.`)
    })
    sluice.on('connected', ({ address }) => {
      if (isLost) notice(`Reconnected to ${address}.`)
      isLost = false
    })
    return sluice
  } finally {
    clearTimeout(timer)
  }
}
