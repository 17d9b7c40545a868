/** Lengths of time, sizes and moments as people write and read them: text to numbers, and back. */
import { parseDuration } from '@sluice/client'

const SIZES = {
  '': 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 1024,
  MIB: 1024 ** 2,
  GIB: 1024 ** 3,
  TIB: 1024 ** 4,
} as const

/** Bytes of `10mb` (millions), `64MiB` (powers of 1024) or a plain number; undefined when it is none of these. */
export function size(text: string): number | undefined {
  const match = /^(\d{1,15})([kmgt]?i?b|)$/i.exec(text)
  if (match === null) return undefined
  const unit = SIZES[match[2]!.toUpperCase() as keyof typeof SIZES]
  // `ib` has the form of a unit and is none.
  const bytes = Number(match[1]) * (unit ?? NaN)
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

const SIZE_NAMES = [
  ['TiB', 1024 ** 4],
  ['TB', 1e12],
  ['GiB', 1024 ** 3],
  ['GB', 1e9],
  ['MiB', 1024 ** 2],
  ['MB', 1e6],
  ['KiB', 1024],
  ['KB', 1e3],
] as const

/** A size as a flag takes it, nothing rounded: 64MiB, 10MB, 1500. */
export function exactSize(bytes: number): string {
  for (const [name, unit] of SIZE_NAMES) {
    if (bytes >= unit && bytes % unit === 0) return `${bytes / unit}${name}`
  }
  return String(bytes)
}

/** A duration in milliseconds, a plain number being that; undefined when it is none or out of bounds. */
export function duration(text: string, minMs: number, maxMs: number): number | undefined {
  try {
    const ms = parseDuration(/^\d+$/.test(text) ? Number(text) : text)
    return ms >= minMs && ms <= maxMs ? ms : undefined
  } catch {
    return undefined
  }
}

const DURATIONS = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
] as const

/** Of so many of a unit, the next smaller one says little. */
const PLENTY = 10

/** How long, to the largest unit, and to the next one where there are few of it: 350ms, 12s, 1h59m, 30d. */
export function rounded(ms: number): string {
  for (const [index, [unit, unitMs]] of DURATIONS.entries()) {
    if (ms < unitMs) continue
    const many = Math.floor(ms / unitMs)
    const [nextUnit, nextMs] = DURATIONS[index + 1] ?? []
    const rest = nextMs === undefined || many >= PLENTY ? 0 : Math.floor((ms % unitMs) / nextMs)
    return rest === 0 ? `${many}${unit}` : `${many}${unit}${rest}${nextUnit}`
  }
  return `${Math.max(0, Math.round(ms))}ms`
}

/** A duration as a flag takes it, nothing rounded: 90s, 5m. */
export function exactDuration(ms: number): string {
  for (const [unit, unitMs] of DURATIONS) {
    if (ms >= unitMs && ms % unitMs === 0) return `${ms / unitMs}${unit}`
  }
  return ms === 0 ? '0' : `${ms}ms`
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
