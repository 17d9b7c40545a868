/** The wait before a failed message is delivered again. The consumer can ask for another one. */
import type { QueueOptions } from '@sluice/protocol'

/** More doublings reach the longest wait in any case. */
const DOUBLINGS_MAX = 50

/**
 * Wait before attempt `attempts + 1`: initial × 2^(attempts − 1), within ± 20 % by `chance` in [0, 1), at most
 * `retryMaxMs`.
 */
export function backoffMs(
  { retryInitialMs, retryMaxMs }: Pick<QueueOptions, 'retryInitialMs' | 'retryMaxMs'>,
  attempts: number,
  chance: number,
): number {
  const nominal = Math.min(retryInitialMs * 2 ** Math.min(attempts - 1, DOUBLINGS_MAX), retryMaxMs)
  return Math.min(Math.round(nominal * (0.8 + 0.4 * chance)), retryMaxMs)
}
