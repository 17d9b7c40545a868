/**
 * The log of a running broker: one line for each event on stderr, as JSON, or formatted for people on a terminal.
 * Text from outside cannot end a line or colour it.
 */
import { pino, type DestinationStream, type Logger } from 'pino'
import { printable } from './output.js'
import type { LogLevel } from './settings.js'

type Level = Exclude<LogLevel, 'silent'>

/** Levels of events; others are `info`. */
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
  'truncation failed': 'error',
  'connections cannot be accepted': 'error',
  'stored messages could not be read': 'error',
}

/** Lines that wait for a slow reader; beyond it they are dropped rather than kept. */
const PENDING_BYTES_MAX = 8 << 20

export class Journal {
  readonly #logger: Logger

  private constructor(logger: Logger) {
    this.#logger = logger
  }

  /** JSON lines, or on a terminal what pino-pretty makes of them. */
  static async open(level: LogLevel, isPretty: boolean): Promise<Journal> {
    const destination: DestinationStream = isPretty
      ? await prettyStderr()
      : // Written beside the event loop: a reader that stalls must not stall the broker.
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
    return new Journal(logger)
  }

  /** One line. A closed connection matters only if there was a reason to close it. */
  event(event: string, details: Readonly<Record<string, unknown>> = {}, level?: Level): void {
    const usual = event === 'connection closed' && details['code'] !== undefined ? 'warn' : LEVELS[event]
    this.#logger[level ?? usual ?? 'info'](plain(details), printable(event))
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
