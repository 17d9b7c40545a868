/**
 * SIGINT and SIGTERM: the first asks for a graceful stop, the next ends the process at once. One press of Ctrl-C under
 * `npx` or `pnpm` arrives twice, so a second one within a moment is the same signal.
 */
import { constants } from 'node:os'
import { lastWords } from './output.js'

const SAME_MS = 100

export type StopSignal = 'SIGINT' | 'SIGTERM'

/** Calls `stop` at the first signal; returns a function that ends that. */
export function onStop(stop: (signal: StopSignal) => void): () => void {
  let firstMs: number | undefined
  const take = (signal: StopSignal): void => {
    const nowMs = performance.now()
    if (firstMs === undefined) {
      firstMs = nowMs
      stop(signal)
    } else if (nowMs - firstMs > SAME_MS) {
      lastWords(`A second ${signal} ended it at once.\n`)
      process.exit(signalExit(signal))
    }
  }
  process.on('SIGINT', take)
  process.on('SIGTERM', take)
  return () => {
    process.off('SIGINT', take)
    process.off('SIGTERM', take)
  }
}

/** The exit code that shells give a process that a signal ended. */
export function signalExit(signal: StopSignal): number {
  return 128 + constants.signals[signal]
}
