/** Durations, sizes and times as people write and read them: text to numbers, and ages as text. */
import { DURATION_UNITS } from '@sluice/protocol'

const PREFIXES = ['', 'k', 'm', 'g', 't']

/**
 * Bytes of `10mb` or `10m` (millions), `64MiB` (powers of 1024), `1.5gb` or a plain number; undefined when the text is
 * none of these, or is not a whole number of bytes.
 */
export function size(text: string): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,9})?)([kmgt]?)(i?b|)$/i.exec(text)
  if (match === null) return undefined
  const power = PREFIXES.indexOf(match[2]!.toLowerCase())
  const isBinary = match[3]!.length === 2
  // `ib` alone has the form of a unit and is none.
  if (isBinary && power === 0) return undefined
  const bytes = Number(match[1]) * (isBinary ? 1024 : 1000) ** power
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/**
 * Milliseconds of `30s`, `250ms`, `1.5h`, or of several units from the largest to the smallest as in `1d12h`. A unit is
 * required, except for 0: a bare number could be read as seconds or as milliseconds. Undefined when the
 * text is not a duration; the caller checks bounds.
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

/** From this many of a unit on, the next smaller one is left out. */
const UNITS_MANY = 10

/** A duration to the largest unit, and to the next smaller one below 10 of it: 350ms, 12s, 1h59m, 30d. */
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

const MOMENT = /^(\d{4})-(\d\d)-(\d\d)(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?(?:Z|[+-]\d\d:\d\d)?)?$/i

/** ISO 8601; without a zone it is the time of this machine, a date alone its midnight. Undefined when it is no time. */
export function moment(text: string): Date | undefined {
  const match = MOMENT.exec(text)
  if (match === null) return undefined
  const [, year, month, day] = match.map(Number) as [number, number, number, number]
  // 31 April would be taken for 1 May.
  if (new Date(Date.UTC(year, month - 1, day)).getUTCDate() !== day) return undefined
  const date = new Date(text.length === 10 ? `${text}T00:00` : text.replace(' ', 'T').toUpperCase())
  return Number.isNaN(date.getTime()) ? undefined : date
}
