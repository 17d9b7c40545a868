/**
 * Formats sizes and durations as strings with a unit. They are used in the texts of errors, and as values that the
 * command line can parse again.
 */

const SIZES = [
  ['TiB', 1024 ** 4],
  ['TB', 1e12],
  ['GiB', 1024 ** 3],
  ['GB', 1e9],
  ['MiB', 1024 ** 2],
  ['MB', 1e6],
  ['KiB', 1024],
  ['KB', 1e3],
] as const

/** A number of bytes in the largest unit that needs no rounding: 64MiB, 10MB, 1500B. */
export function sizeText(bytes: number): string {
  const [unit, unitBytes] = SIZES.find(([, unit]) => bytes >= unit && bytes % unit === 0) ?? ['B', 1]
  return `${bytes / unitBytes}${unit}`
}

/** The value of an option in the unit that its name has: `ttlMs` as a duration, `maxBytes` as a size. */
export function optionText(name: string, value: unknown): string {
  if (typeof value !== 'number') return String(value)
  return name.endsWith('Ms') ? durationText(value) : name.endsWith('Bytes') ? sizeText(value) : String(value)
}

/** The units of durations, from the largest to the smallest. */
export const DURATION_UNITS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
  ['ms', 1],
] as const

/** A number of milliseconds in the largest unit that needs no rounding: 90s, 5m, 250ms. 0 has no unit. */
export function durationText(ms: number): string {
  if (ms === 0) return '0'
  const [unit, unitMs] = DURATION_UNITS.find(([, unit]) => ms >= unit && ms % unit === 0) ?? ['ms', 1]
  return `${ms / unitMs}${unit}`
}
