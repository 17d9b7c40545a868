/**
 * `sluice serve`: the broker as a process. The first signal stops the broker gracefully, and the second signal stops it
 * immediately. If the log fails, the process exits with code 70, because the broker must not confirm any further
 * message.
 */
import { startServer, type RunningServer } from '../server.js'
import { command } from './command.js'
import { EXIT, UsageError } from './failure.js'
import { Logger } from './logger.js'
import { counted } from './output.js'
import {
  SETTINGS,
  SETTING_NAMES,
  readSettings,
  unknownVariables,
  variableOf,
  type Settings,
} from './settings.js'
import { onStop } from './signals.js'
import { list } from './table.js'
import { version } from '../version.js'

/** Time limit of a graceful stop. */
const STOP_MS_MAX = 9_500
/** Time limit for finishing a startup after a signal. Aborting a startup loses nothing. */
const START_MS_MAX = 2_000

export const serve = command({
  builder: (yargs) => {
    for (const name of SETTING_NAMES) {
      const { describe, default: fallback } = SETTINGS[name]
      yargs.option(name, {
        type: 'string',
        requiresArg: true,
        describe: `${describe} (${variableOf(name)}) [default: ${fallback}]`,
      })
    }
    return yargs
      .hide('url')
      .hide('timeout')
      .option('force-lock', {
        type: 'boolean',
        default: false,
        describe: 'Take over a data directory on a network file system, if its broker is permanently gone',
      })
      .describe('json', 'Log JSON even on a terminal')
      .epilogue(
        'A flag overrides its variable, which overrides the default. SIGTERM and SIGINT stop the broker gracefully, within ' +
          '10 seconds and with exit code 0; a second signal ends it at once. Exit code 1: the broker could not start, for example ' +
          'because the disk has no room for another segment; nothing is lost. Exit code 70: the log could not be written; ' +
          'nothing that was confirmed is lost.',
      )
  },
  handler: async (options) => {
    if (options.url !== undefined || options.timeout !== undefined) {
      const flag = options.url === undefined ? '--timeout' : '--url'
      throw new UsageError(
        `\`sluice serve\` has no option ${flag}.`,
        'Set the address to listen on with --host and --port.',
      )
    }
    const settings = readSettings(options, process.env)
    const unknown = unknownVariables(process.env)
    for (const { name, meant } of unknown) {
      if (meant !== undefined) throw new UsageError(`Unknown setting ${name}.`, `Did you mean ${meant}?`)
    }
    const isPretty = process.stderr.isTTY && !options.json
    const logger = await Logger.open(settings['log-level'], isPretty)
    for (const { name } of unknown) logger.event('unknown setting in the environment', { name }, 'warn')
    await run(settings, options['force-lock'] === true, logger, isPretty)
  },
})

async function run(settings: Settings, forceLock: boolean, logger: Logger, isPretty: boolean): Promise<void> {
  const starting = startServer({
    dataDir: settings['data-dir'],
    forceLock,
    host: settings.host,
    port: settings.port,
    segmentBytes: settings['segment-bytes'],
    messageBytesMax: settings['max-message-bytes'],
    connectionsMax: settings['max-connections'],
    memoryBytes: settings.memory,
    session: { heartbeatMs: settings.heartbeat },
    onEvent: (event, details) => {
      // `onFatal` logs this event.
      if (event !== 'log failed') logger.event(event, details)
    },
    onFatal: (error) => fatal(logger, error),
  })
  // A signal during startup stops the broker after it has started.
  const forget = onStop((signal) => {
    logger.event('stopping', { signal })
    void stop(starting, logger)
  })
  let server: RunningServer
  try {
    server = await starting
  } catch (error) {
    forget()
    throw error
  }
  process.on('uncaughtException', (error) => fatal(logger, error))
  announce(server, settings, logger, isPretty)
}

async function stop(starting: Promise<RunningServer>, logger: Logger): Promise<void> {
  const beganMs = performance.now()
  const overdue = setTimeout(() => {
    logger.event('stopping took too long; exiting', { afterMs: STOP_MS_MAX }, 'error')
    process.exit(EXIT.failure)
  }, STOP_MS_MAX)
  const ended = setTimeout(() => {
    logger.event('stopped during startup', { afterMs: START_MS_MAX })
    process.exit(EXIT.ok)
  }, START_MS_MAX)
  let server: RunningServer
  try {
    server = await starting
  } catch {
    // The startup has failed, and reports its own error.
    clearTimeout(overdue)
    return
  } finally {
    clearTimeout(ended)
  }
  try {
    await server.stop()
  } catch (error) {
    fatal(logger, error)
  }
  logger.event('stopped', { afterMs: Math.round(performance.now() - beganMs) })
  process.exit(EXIT.ok)
}

// Exits synchronously, so that no later turn of the event loop can confirm a message.
function fatal(logger: Logger, error: unknown): never {
  logger.event(
    'the broker failed; exiting',
    { error: error instanceof Error ? error : new Error(String(error)) },
    'fatal',
  )
  process.exit(EXIT.fatal)
}

function announce(server: RunningServer, settings: Settings, logger: Logger, isPretty: boolean): void {
  const { status } = server
  const host = server.host.includes(':') ? `[${server.host}]` : server.host
  const address = `sluice://${host}:${server.port}`
  if (!isPretty) {
    logger.event('listening', {
      version: version(),
      address,
      port: server.port,
      dataDir: server.dataDir,
      startedMs: Math.round(server.startedMs),
      recoveryMs: Math.round(status.recoveryMs),
      queues: status.queues,
      messages: status.messages,
      entries: status.entries,
      cutBytes: status.cutBytes,
      afterCrash: status.afterCrash && status.boot > 1,
    })
    return
  }
  if (settings['log-level'] === 'silent') return
  const recovered = `${counted(status.queues, 'queue')}, ${counted(status.messages, 'message')} in ${Math.round(status.recoveryMs)} ms`
  const lines: [string, string][] = [
    ['version', version()],
    ['address', address],
    ['data', server.dataDir],
    ['recovered', status.boot === 1 ? 'nothing: the data directory is new' : recovered],
  ]
  if (status.afterCrash && status.boot > 1)
    lines.push(['', 'the previous run did not stop gracefully; nothing confirmed is lost'])
  lines.push(['ready', `after ${Math.round(server.startedMs)} ms; press Ctrl-C to stop`])
  process.stderr.write(`Sluice\n${list(lines, '  ')}\n`)
}
