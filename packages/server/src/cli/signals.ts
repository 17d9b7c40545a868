/**
 * Handles SIGINT and SIGTERM. The first signal stops the process gracefully, and the second signal ends it immediately.
 * Under `npx` or `pnpm`, one press of Ctrl-C sends two signals, so a second signal within `SAME_MS` is ignored.
 */
import { constants } from 'node:os'
import { writeBeforeExit } from './output.js'

const SAME_MS = 100

export type StopSignal = 'SIGINT' | 'SIGTERM'

/** Calls `stop` at the first signal. Returns a function that removes the handler. */
export function onStop(stop: (signal: StopSignal) => void): () => void {
  let firstMs: number | undefined
  const take = (signal: StopSignal): void => {
    const nowMs = performance.now()
    if (firstMs === undefined) {
      firstMs = nowMs
      stop(signal)
    } else if (nowMs - firstMs > SAME_MS) {
      writeBeforeExit(`Ended immediately by a second ${signal}.\n`)
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

/** The exit code that shells use for a process ended by this signal. */
export function signalExit(signal: StopSignal): number {
  return 128 + constants.signals[signal]
}
