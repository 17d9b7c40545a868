/** Parses durations, sizes and times, and formats ages. */
import { DURATION_UNITS } from '@sluice/protocol'

const PREFIXES = ['', 'k', 'm', 'g', 't']

/**
 * Parses a size such as `10mb` or `10m` (millions), `64MiB` (powers of 1024), `1.5gb`, or a plain number. Returns bytes,
 * or undefined if the text is not a size or not a whole number of bytes.
 */
export function size(text: string): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,9})?)([kmgt]?)(i?b|)$/i.exec(text)
  if (match === null) return undefined
  const power = PREFIXES.indexOf(match[2]!.toLowerCase())
  const isBinary = match[3]!.length === 2
  // `ib` without a prefix matches the pattern, but it is not a unit.
  if (isBinary && power === 0) return undefined
  const bytes = Number(match[1]) * (isBinary ? 1024 : 1000) ** power
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/**
 * Parses a duration such as `30s`, `250ms`, `1.5h`, or `1d12h`, with the units from the largest to the smallest. A unit is
 * required except for 0, because a bare number could be seconds or milliseconds. Returns milliseconds, or undefined if
 * the text is not a duration; the caller checks bounds.
 */
export function duration(text: string): number | undefined {
  if (text === '0') return 0
  const part = /(\d{1,15}(?:\.\d{1,9})?)(ms|[dhms])/gy
  let ms = 0
  let previous = -1
  for (let end = 0; end < text.length; end = part.lastIndex) {
    const match = part.exec(text)
    const index = DURATION_UNITS.findIndex(([unit]) => unit === match?.[2])
    if (match === null || index <= previous) return undefined
    previous = index
    ms += Number(match[1]) * DURATION_UNITS[index]![1]
  }
  return text === '' ? undefined : Math.round(ms)
}

/** If a duration has at least this many of its largest unit, the next smaller unit is omitted. */
const UNITS_MANY = 10

/**
 * Formats a duration in its largest unit and, if it has fewer than 10 of that unit, also in the next smaller unit:
 * 350ms, 12s, 1h59m, 30d.
 */
export function rounded(ms: number): string {
  for (const [index, [unit, unitMs]] of DURATION_UNITS.entries()) {
    if (ms < unitMs || unit === 'ms') continue
    const count = Math.floor(ms / unitMs)
    const [nextUnit, nextMs] = DURATION_UNITS[index + 1]!
    const rest = nextUnit === 'ms' || count >= UNITS_MANY ? 0 : Math.floor((ms % unitMs) / nextMs)
    return rest === 0 ? `${count}${unit}` : `${count}${unit}${rest}${nextUnit}`
  }
  return `${Math.max(0, Math.round(ms))}ms`
}

/** The time until something happens, rounded up to the second: `1h` just after a delay of an hour has begun. */
export function ahead(ms: number): string {
  return rounded(ms < 1_000 ? ms : Math.ceil(ms / 1_000) * 1_000)
}

const MOMENT = /^(\d{4})-(\d\d)-(\d\d)(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?(?:Z|[+-]\d\d:\d\d)?)?$/i

/**
 * Parses ISO 8601. Without a zone, the local time zone is used; a date alone means the midnight at which it begins.
 * Returns undefined if the text is not a valid time.
 */
export function moment(text: string): Date | undefined {
  const match = MOMENT.exec(text)
  if (match === null) return undefined
  const [, year, month, day] = match.map(Number) as [number, number, number, number]
  // `Date` would accept 31 April as 1 May.
  if (new Date(Date.UTC(year, month - 1, day)).getUTCDate() !== day) return undefined
  const date = new Date(text.length === 10 ? `${text}T00:00` : text.replace(' ', 'T').toUpperCase())
  return Number.isNaN(date.getTime()) ? undefined : date
}
