/**
 * Polls `condition` until its value is not false, undefined or null, and returns that value. Rejects after the timeout.
 */
export async function until<T>(
  what: string,
  condition: () => T | Promise<T>,
  timeoutMs = 20_000,
): Promise<Exclude<T, false | undefined | null>> {
  const untilMs = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value !== false && value !== undefined && value !== null)
      return value as Exclude<T, false | undefined | null>
    if (performance.now() > untilMs) throw new Error(`after ${timeoutMs} ms still waiting for: ${what}`)
    await delay(10)
  }
}

export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

/** Rejects with a text that names `what` if `work` has not ended after the timeout. */
export async function withDeadline<T>(work: Promise<T>, what: string, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`after ${timeoutMs} ms still waiting for ${what}`)), timeoutMs)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
