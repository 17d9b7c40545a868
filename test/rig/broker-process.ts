/**
 * The script of a broker process. Its argument contains the server options as JSON. It prints JSON lines: one before it
 * reads its log, one when it accepts connections, one at each event or failure of the log, and one with the state of
 * its disk at each SIGUSR2. Exit codes: 0 after SIGTERM, 70 if the log failed, 1 if the broker could not start.
 */
import { startServer, type DiskReport, type ServerOptions } from '@sluice/server'
import { writeSync } from 'node:fs'

export type BrokerArguments = Omit<ServerOptions, 'onEvent' | 'onFatal'>

export type BrokerLine =
  | { readonly is: 'beginning' }
  | { readonly is: 'ready'; readonly port: number; readonly startedMs: number; readonly messages: number }
  | { readonly is: 'disk'; readonly disk: DiskReport }
  | { readonly is: 'fatal'; readonly code: string; readonly text: string }
  | { readonly is: 'event'; readonly event: string; readonly details: Readonly<Record<string, unknown>> }

/** The exit code after a failure of the log; a service manager can recognise it. */
export const EXIT_LOG_FAILED = 70

function say(line: BrokerLine): void {
  // The write is synchronous, because the process may end next.
  writeSync(1, `${JSON.stringify(line)}\n`)
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : ''
}

// Standard input is a pipe from the parent, so that the broker ends with its parent, even if the test did not stop it.
process.stdin.on('end', () => process.exit(1)).resume()

try {
  const options = JSON.parse(process.argv[2] ?? '{}') as BrokerArguments
  say({ is: 'beginning' })
  const server = await startServer({
    ...options,
    onEvent: (event, details) => {
      if (event.startsWith('log ')) say({ is: 'event', event, details })
    },
    onFatal: (error) => {
      say({ is: 'fatal', code: codeOf(error), text: String(error) })
      process.exit(EXIT_LOG_FAILED)
    },
  })
  process.once('SIGTERM', () => {
    void server.stop().then(() => process.exit(0))
  })
  process.on('SIGUSR2', () => say({ is: 'disk', disk: server.disk() }))
  const { port, startedMs, status } = server
  say({ is: 'ready', port, startedMs, messages: status.messages })
} catch (error) {
  say({ is: 'fatal', code: codeOf(error), text: String(error) })
  process.exit(1)
}
