/**
 * When to dial again after a connection failed or was lost. The functions are pure: time and randomness are arguments.
 */

export const RECONNECT = { delayMsMin: 50, delayMsMax: 5_000, stableMs: 1_000 } as const

/**
 * The pause before attempt `failures` + 1. It doubles with each consecutive failure, and half of it is random, so that the
 * clients of a restarted broker do not all connect at the same time.
 *
 * @param failures Number of consecutive failures, at least 1.
 * @param random A random number in [0, 1).
 */
export function reconnectDelayMs(failures: number, random: number): number {
  return backoffMs(RECONNECT, failures, random)
}

/** Like `reconnectDelayMs`, but between two given bounds. */
export function backoffMs(
  { delayMsMin, delayMsMax }: { readonly delayMsMin: number; readonly delayMsMax: number },
  failures: number,
  random: number,
): number {
  const full = Math.min(delayMsMin * 2 ** Math.min(failures - 1, 30), delayMsMax)
  return Math.round(full / 2 + (full / 2) * random)
}

/**
 * The number of consecutive failures after the loss of a connection that was open for `openMs`. A connection that is
 * lost soon counts as a failure, because otherwise a broker that closes each connection at once would be dialled
 * without a pause.
 */
export function failuresAfterLoss(failures: number, openMs: number): number {
  return openMs >= RECONNECT.stableMs ? 1 : failures + 1
}
