/** The wait before a failed message is delivered again. The consumer can ask for another wait. */
import type { QueueOptions } from '@sluice/protocol'

/** Maximum number of doublings. After these, the longest wait is reached in any case. */
const DOUBLINGS_MAX = 50

/**
 * Returns the wait before attempt `attempts + 1`: initial × 2^(attempts − 1), changed by up to ± 20 % according to `chance`
 * in [0, 1), and at most `retryMaxMs`.
 */
export function backoffMs(
  { retryInitialMs, retryMaxMs }: Pick<QueueOptions, 'retryInitialMs' | 'retryMaxMs'>,
  attempts: number,
  chance: number,
): number {
  const nominal = Math.min(retryInitialMs * 2 ** Math.min(attempts - 1, DOUBLINGS_MAX), retryMaxMs)
  return Math.min(Math.round(nominal * (0.8 + 0.4 * chance)), retryMaxMs)
}
