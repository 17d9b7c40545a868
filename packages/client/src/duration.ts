/** Parses durations that users write: milliseconds, or text such as '30s'. Internally all durations are milliseconds. */
import { LIMITS, shown, SluiceError, type ErrorCode } from '@sluice/protocol'

const UNIT_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** Milliseconds as a number, or a number with a unit: `'250ms'`, `'30s'`, `'5m'`, `'2h'`, `'7d'`. */
export type Duration = number | `${number}${keyof typeof UNIT_MS}`

/**
 * Converts a duration to milliseconds, rounded to whole ones.
 *
 * @param value Milliseconds, or text with one of the units ms, s, m, h, d.
 * @param name Name of the value, for the error.
 * @throws SluiceError INVALID_ARGUMENT when the value is not a duration, is negative, or is longer than 100 years
 * @example
 * parseDuration('1.5s') // 1500
 */
export function parseDuration(value: unknown, name = 'duration'): number {
  return durationMs(value, name, 'INVALID_ARGUMENT')
}

/** Like `parseDuration`, but throws an error with the code `code`. */
export function durationMs(value: unknown, name: string, code: ErrorCode): number {
  let ms: number | undefined
  if (typeof value === 'number') ms = value
  else if (typeof value === 'string') {
    const match = /^(\d{1,15}(?:\.\d{1,9})?)(ms|s|m|h|d)$/.exec(value)
    if (match !== null) ms = Number(match[1]) * UNIT_MS[match[2] as keyof typeof UNIT_MS]
  }
  if (ms === undefined || !Number.isFinite(ms) || ms < 0) {
    throw new SluiceError(
      code,
      `\`${name}\` is ${shown(value)}; it must be milliseconds or text such as '250ms', '30s', '5m', '2h', '7d'.`,
    )
  }
  ms = Math.round(ms)
  if (ms > LIMITS.delayMsMax) {
    throw new SluiceError(code, `\`${name}\` is ${shown(value)}; at most 100 years are allowed.`)
  }
  return ms
}
