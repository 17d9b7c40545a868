/**
 * Flags and progress of an operation on many messages. On a terminal the progress is shown while the operation runs.
 * When Ctrl-C ends the operation, its progress is printed. The progress comes from the counters of a queue, so it
 * includes the work of other clients on that queue.
 */
import { SluiceError, type Sluice } from '@sluice/client'
import { isGroupName } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { cursorText } from './failure.js'
import { publishedTo } from './address.js'
import { countFlag, given, numberFlag } from './flags.js'
import { notice, printJson } from './output.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

const PROGRESS_MS = 1_000
const RATE_MAX = 1_000_000

export interface BulkOptions {
  readonly limit: string | undefined
  readonly dryRun: boolean
}

export interface PacedOptions extends BulkOptions {
  readonly rate: string | undefined
}

/** Flags of each operation on many messages. */
export function bulkFlags(yargs: Argv): Argv {
  return yargs
    .option('limit', {
      type: 'string',
      requiresArg: true,
      describe: 'Affect at most N messages [default: all]',
    })
    .option('dry-run', {
      type: 'boolean',
      default: false,
      describe: 'Only count the messages that would be affected',
    })
}

export function rateFlag(yargs: Argv): Argv {
  return yargs.option('rate', {
    type: 'string',
    requiresArg: true,
    describe: 'Maximum number of messages per second [default: unlimited]',
  })
}

/** @throws UsageError */
export function bulkOf({ limit, dryRun }: BulkOptions): {
  readonly limit?: number
  readonly dryRun: boolean
} {
  return { ...given({ limit: limit === undefined ? undefined : countFlag(limit, '--limit', 1) }), dryRun }
}

/** @throws UsageError */
export function rateOf({ rate }: PacedOptions): { readonly rate?: number } {
  return given({ rate: rate === undefined ? undefined : numberFlag(rate, '--rate', 1, RATE_MAX) })
}

/** The counter of the queue that shows the progress, and the progress since the start as text. */
interface BulkProgress {
  readonly counter: 'published' | 'redriven' | 'discarded'
  readonly text: (count: number) => string
}

/**
 * Runs `work`. After Ctrl-C, prints the progress, with `json` also as JSON to stdout. The progress is that of `queue`, which
 * can be a group.
 * @returns undefined if a signal ended the operation
 * @throws the error of `work`; SluiceError QUEUE_NOT_FOUND
 */
export async function runBulk<Result>(
  sluice: Sluice,
  queue: string,
  json: boolean,
  { counter, text }: BulkProgress,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result | undefined> {
  const before = await valueOf(sluice, queue, counter)
  const soFar = async (): Promise<string> =>
    text(Math.max(0, (await valueOf(sluice, queue, counter)) - before))
  const stop = new AbortController()
  let stopped: StopSignal | undefined
  const forget = onStop((signal) => {
    stopped = signal
    stop.abort()
  })
  const hide = showProgress(soFar)
  try {
    return await work(stop.signal)
  } catch (error) {
    if (stopped === undefined) throw error
    hide()
    notice(`Interrupted: ${await soFar()}.`)
    const progress = error instanceof SluiceError ? error.progress : undefined
    if (json) await printJson({ interrupted: true, ...progress })
    const cursor = progress?.cursor
    if (cursor !== undefined) notice(`hint: ${cursorText(cursor)}`)
    process.exitCode = signalExit(stopped)
    return undefined
  } finally {
    hide()
    forget()
  }
}

// The value of the counter. A group has no counters: its dead messages become fewer instead.
async function valueOf(sluice: Sluice, queue: string, counter: BulkProgress['counter']): Promise<number> {
  if (isGroupName(queue)) return -(await sluice.groups.get(queue)).dead
  if (counter === 'published') return (await publishedTo(sluice, queue)).published
  return (await sluice.queues.get(queue))[counter]
}

/** Shows a progress line, on a terminal only. Returns a function that removes it. */
function showProgress(soFar: () => Promise<string>): () => void {
  if (!process.stderr.isTTY) return () => {}
  let isShown = false
  let isOver = false
  const timer = setInterval(() => {
    soFar().then(
      (text) => {
        if (isOver) return
        isShown = true
        process.stderr.write(`\r\u001B[K${text}`)
      },
      () => {},
    )
  }, PROGRESS_MS)
  return () => {
    clearInterval(timer)
    if (isShown && !isOver) process.stderr.write('\r\u001B[K')
    isOver = true
  }
}
