/**
 * An operation on many messages at the broker, as its user sees it: progress on a terminal, and at Ctrl-C how far it
 * got. Both are read from the counters of a queue, so the work of other clients on that queue is counted too.
 */
import { SluiceError, type QueueInfo, type Sluice } from '@sluice/client'
import type { Argv } from 'yargs'
import { goOnText } from './failure.js'
import { countFlag, given, numberFlag } from './flags.js'
import { notice } from './output.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

const PROGRESS_MS = 1_000
const RATE_MAX = 1_000_000

export interface WalkOptions {
  readonly limit: string | undefined
  readonly dryRun: boolean
}

export interface PacedOptions extends WalkOptions {
  readonly rate: string | undefined
}

/** Flags of every such operation. */
export function walkFlags(yargs: Argv): Argv {
  return yargs
    .option('limit', {
      type: 'string',
      requiresArg: true,
      describe: 'Affect at most N messages [default: all]',
    })
    .option('dry-run', {
      type: 'boolean',
      default: false,
      describe: 'Only count the messages it would affect',
    })
}

export function rateFlag(yargs: Argv): Argv {
  return yargs.option('rate', {
    type: 'string',
    requiresArg: true,
    describe: 'Most messages per second [default: unlimited]',
  })
}

/** @throws UsageError */
export function walkOf({ limit, dryRun }: WalkOptions): {
  readonly limit?: number
  readonly dryRun: boolean
} {
  return { ...given({ limit: limit === undefined ? undefined : countFlag(limit, '--limit', 1) }), dryRun }
}

/** @throws UsageError */
export function rateOf({ rate }: PacedOptions): { readonly rate?: number } {
  return given({ rate: rate === undefined ? undefined : numberFlag(rate, '--rate', 1, RATE_MAX) })
}

/**
 * Does `work`. `tell` describes the progress so far, from the counters of `queue` before and now.
 * @returns undefined when a signal ended it
 * @throws what `work` throws; SluiceError QUEUE_NOT_FOUND
 */
export async function walked<Result>(
  sluice: Sluice,
  queue: string,
  tell: (before: QueueInfo, now: QueueInfo) => string,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result | undefined> {
  const before = await sluice.queues.get(queue)
  const soFar = async (): Promise<string> => tell(before, await sluice.queues.get(queue))
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
    const cursor = error instanceof SluiceError ? error.progress?.cursor : undefined
    if (cursor !== undefined) notice(`hint: ${goOnText(cursor)}`)
    process.exitCode = signalExit(stopped)
    return undefined
  } finally {
    hide()
    forget()
  }
}

/** A progress line that is rewritten; only on a terminal. Returns a function that removes it. */
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
