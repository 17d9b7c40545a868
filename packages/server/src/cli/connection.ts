/** The connection of a command to its broker: options to settings, and notices when it is lost and restored. */
import { connect, type Sluice } from '@sluice/client'
import type { GlobalOptions } from './command.js'
import { durationMs } from './flags.js'
import { notice } from './output.js'

/** How long a command that has failed, or was interrupted, still waits for the broker. */
const FAREWELL_MS = 3_000
/** After this long without an answer, a notice says what the command waits for. */
const PATIENCE_MS = 700

/** Does `work` with a connection and closes it. @throws what `work` throws; SluiceError as `connect` */
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
    const closing = sluice.close({ timeout: FAREWELL_MS })
    // The work is done, or has failed for a reason that matters more.
    if (failed) await closing.catch(() => {})
    else await closing
  }
}

async function dial({ url, timeout }: GlobalOptions, label: string): Promise<Sluice> {
  const timer = setTimeout(() => {
    if (process.stderr.isTTY)
      notice(`Waiting for ${url ?? process.env['SLUICE_URL'] ?? 'the broker on this machine'} …`)
  }, PATIENCE_MS)
  try {
    const sluice = await connect(url, {
      name: `sluice ${label}`,
      // A user is watching: a broker that does not answer at once is reported at once.
      connectTimeout: 0,
      ...(timeout === undefined ? {} : { timeout: durationMs(timeout, '--timeout', 1) }),
    })
    // The command counts and reports what it could not acknowledge; a warning of Node for each would be noise.
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
