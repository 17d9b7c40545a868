/**
 * A broker in a process of its own, for tests that kill, stop or trace it. One JSON argument says how it is started.
 * It prints one JSON line when it begins, one when it accepts connections, and one with what is on disk at each SIGUSR2. Exit codes: 0 after SIGTERM, 70 when the
 * log failed, 1 when it could not start.
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

/** The log failed: what a service manager sees. */
export const EXIT_LOG_FAILED = 70

function say(line: BrokerLine): void {
  // At once and whole: the next thing that happens may be the end of this process.
  writeSync(1, `${JSON.stringify(line)}\n`)
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : ''
}

// Standard input is the parent's end of a pipe: a broker that a test forgets, or cannot end any more, ends with it.
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
