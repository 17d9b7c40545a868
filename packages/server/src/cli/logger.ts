/**
 * The event log of a running broker on stderr: one line for each event, as JSON, or formatted for a terminal. Text that
 * comes from clients cannot end a line or colour it.
 */
import { pino, type DestinationStream, type Logger as PinoLogger } from 'pino'
import { printable } from './output.js'
import type { LogLevel } from './settings.js'

type Level = Exclude<LogLevel, 'silent'>

/** Levels of events; the default is `info`. */
const LEVELS: Readonly<Record<string, Level>> = {
  'connection connected': 'debug',
  'connection closed': 'debug',
  'connection refused': 'warn',
  'clock behind': 'warn',
  'clock behind the log': 'warn',
  'clock stepped': 'warn',
  'log meta-rebuilt': 'warn',
  'log cut': 'warn',
  'log disk-low': 'warn',
  'log no-segment': 'warn',
  'log read-failed': 'error',
  'connections are limited by open files': 'warn',
  'retention waits for a group': 'warn',
  'retention removed messages that a group missed': 'warn',
  'truncation failed': 'error',
  'connections cannot be accepted': 'error',
  'stored messages could not be read': 'error',
}

/** Maximum size of the lines that are kept for a slow reader; further lines are dropped. */
const PENDING_BYTES_MAX = 8 << 20

export class Logger {
  readonly #pino: PinoLogger

  private constructor(logger: PinoLogger) {
    this.#pino = logger
  }

  /** Writes JSON lines or, with `isPretty`, lines formatted by pino-pretty. */
  static async open(level: LogLevel, isPretty: boolean): Promise<Logger> {
    const destination: DestinationStream = isPretty
      ? await prettyStderr()
      : // Writes are asynchronous, so that a stalled reader does not block the event loop.
        pino.destination({ dest: 2, sync: false, maxLength: PENDING_BYTES_MAX })
    const logger = pino(
      {
        level,
        base: { pid: process.pid },
        timestamp: pino.stdTimeFunctions.isoTime,
        formatters: { level: (label) => ({ level: label }) },
      },
      destination,
    )
    return new Logger(logger)
  }

  /** Writes one line. A closed connection is a warning only if an error closed it. */
  event(event: string, details: Readonly<Record<string, unknown>> = {}, level?: Level): void {
    const usual = event === 'connection closed' && details['code'] !== undefined ? 'warn' : LEVELS[event]
    this.#pino[level ?? usual ?? 'info'](plain(details), printable(event))
  }
}

async function prettyStderr(): Promise<DestinationStream> {
  const { default: pretty } = await import('pino-pretty')
  return pretty({
    destination: 2,
    sync: true,
    colorize: hasColour(),
    ignore: 'pid',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  })
}

/** Whether stderr may be coloured. */
export function hasColour(): boolean {
  const { NO_COLOR, TERM } = process.env
  return process.stderr.isTTY && (NO_COLOR === undefined || NO_COLOR === '') && TERM !== 'dumb'
}

function plain(details: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const fields: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(details)) {
    if (value === '' || value === undefined) continue
    if (value instanceof Error) {
      const { code } = value as NodeJS.ErrnoException
      if (code !== undefined) fields['code'] = code
      fields['reason'] = printable(value.message)
    } else fields[name] = typeof value === 'string' ? printable(value) : value
  }
  return fields
}
