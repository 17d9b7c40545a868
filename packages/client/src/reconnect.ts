/**
 * When to dial again after a connection failed or was lost. Pure: time and randomness come as arguments.
 */

export const RECONNECT = { delayMsMin: 50, delayMsMax: 5_000, stableMs: 1_000 } as const

/**
 * Wait before attempt `failures` + 1: doubles with each failure in a row, half of it random, so that the clients of a
 * restarted broker do not come back in one wave.
 *
 * @param failures Attempts that failed in a row, at least 1.
 * @param random In [0, 1).
 */
export function reconnectDelayMs(failures: number, random: number): number {
  return backoffMs(RECONNECT, failures, random)
}

/** The same between any two bounds. */
export function backoffMs(
  { delayMsMin, delayMsMax }: { readonly delayMsMin: number; readonly delayMsMax: number },
  failures: number,
  random: number,
): number {
  const full = Math.min(delayMsMin * 2 ** Math.min(failures - 1, 30), delayMsMax)
  return Math.round(full / 2 + (full / 2) * random)
}

/**
 * Failures in a row once a connection that was open for `openMs` is lost. A broker that accepts and hangs up at once
 * counts as failing, or it would be dialled without a pause.
 */
export function failuresAfterLoss(failures: number, openMs: number): number {
  return openMs >= RECONNECT.stableMs ? 1 : failures + 1
}
