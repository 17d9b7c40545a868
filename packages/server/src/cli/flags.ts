/** Converts and checks the values of flags. An error names the flag, the given text and the expected form. */
import type { ReadFrom } from '@sluice/client'
import { LIMITS, durationText } from '@sluice/protocol'
import { UsageError } from './failure.js'
import { nearest } from './spelling.js'
import { duration, moment, size } from './units.js'

/** The whole number that `text` contains; undefined if `text` is anything else or the number is out of bounds. */
export function whole(text: string, min: number, max: number): number | undefined {
  if (!/^\d{1,16}$/.test(text)) return undefined
  const value = Number(text)
  return Number.isSafeInteger(value) && value >= min && value <= max ? value : undefined
}

/** @throws UsageError */
export function numberFlag(text: string, flag: string, min: number, max: number, word?: string): number {
  const range = max === Number.MAX_SAFE_INTEGER ? `from ${min}` : `from ${min} to ${max}`
  const bounds = word === undefined ? range : `${range}, or ${word}`
  return (
    whole(text, min, max) ??
    refuse(text, flag, `a whole number ${bounds}`, 'Give a number within these bounds.')
  )
}

/** Reads a count or an offset: any whole number from `min` on. @throws UsageError */
export function countFlag(text: string, flag: string, min = 0): number {
  return numberFlag(text, flag, min, Number.MAX_SAFE_INTEGER)
}

const DURATIONS = "Write it with a unit: '500ms', '30s', '5m', '2h', '7d', '1d12h'."

/** Reads a duration with units, of at most 100 years. Returns milliseconds. @throws UsageError */
export function durationMs(text: string, flag: string, minMs = 0): number {
  const ms = duration(text)
  if (ms === undefined) return refuse(text, flag, 'a duration', DURATIONS)
  if (ms < minMs) return refuse(text, flag, `at least ${durationText(minMs)}`, 'Give a longer time.')
  if (ms > LIMITS.delayMsMax) return refuse(text, flag, 'at most 100 years', 'Give a shorter time.')
  return ms
}

/** Reads a rate: a number of messages, and the period for which it counts. @throws UsageError */
export function rateFlag(text: string, flag: string): { readonly messages: number; readonly per: number } {
  const at = text.indexOf('/')
  if (at === -1)
    return refuse(text, flag, 'a rate', "Write messages and period: '100/1s', '5/1m', '1000/250ms'.")
  const messages = numberFlag(text.slice(0, at), `The number of ${flag}`, 1, LIMITS.rateMessagesMax)
  const period = text.slice(at + 1)
  const per = durationMs(period, `The period of ${flag}`, 1)
  if (per > LIMITS.ratePerMsMax)
    return refuse(
      period,
      `The period of ${flag}`,
      `at most ${durationText(LIMITS.ratePerMsMax)}`,
      'Give a shorter time.',
    )
  return { messages, per }
}

/** @throws UsageError */
export function sizeFlag(text: string, flag: string): number {
  return (
    size(text) ??
    refuse(text, flag, 'a size', "Write it as bytes, or with a unit: '500kb', '10mb', '64MiB', '1gb'.")
  )
}

const MOMENTS = 'Write it as 2026-05-01T10:00Z, or without Z for local time'

/** Reads a time, given as ISO text or as milliseconds since 1970. @throws UsageError */
export function timeFlag(text: string, flag: string): Date {
  if (/^\d{1,14}$/.test(text)) return new Date(Number(text))
  return moment(text) ?? refuse(text, flag, 'a time', `${MOMENTS}, or as milliseconds since 1970.`)
}

/** Reads a starting point: a plain number is an offset, and any other text is a time. @throws UsageError */
export function placeFlag(text: string, flag: string, must = 'an offset or a time'): number | Date {
  return (
    whole(text, 0, Number.MAX_SAFE_INTEGER) ??
    moment(text) ??
    refuse(
      text,
      flag,
      must,
      `Give a number for an offset. For a time, ${MOMENTS.charAt(0).toLowerCase()}${MOMENTS.slice(1)}.`,
    )
  )
}

/** Reads a place in a stream: `first`, `last`, an offset or a time. @throws UsageError */
export function streamPlaceFlag(text: string, flag: string): ReadFrom {
  if (text === 'first' || text === 'last') return text
  const place = placeFlag(text, flag, 'first, last, an offset or a time')
  return typeof place === 'number' ? { offset: place } : { time: place }
}

/** @throws UsageError */
export function choiceFlag<Choice extends string>(
  text: string,
  flag: string,
  choices: readonly Choice[],
): Choice {
  const found = choices.find((choice) => choice === text)
  if (found !== undefined) return found
  const meant = nearest(text, choices)
  return refuse(
    text,
    flag,
    `one of ${choices.join(', ')}`,
    meant === undefined ? 'Give one of these.' : `Did you mean ${meant}?`,
  )
}

/** Reads the headers given as `--header name=value`; each name may occur once. @throws UsageError */
export function headersFlag(texts: readonly string[] | undefined): Record<string, string> | undefined {
  if (texts === undefined || texts.length === 0) return undefined
  const headers = new Map<string, string>()
  for (const text of texts) {
    const at = text.indexOf('=')
    if (at <= 0) {
      throw new UsageError(`--header is ${JSON.stringify(text.slice(0, 60))}.`, 'Write it as name=value.')
    }
    const name = text.slice(0, at)
    if (headers.has(name)) {
      throw new UsageError(`The header ${JSON.stringify(name.slice(0, 60))} is given twice.`, 'Give it once.')
    }
    headers.set(name, text.slice(at + 1))
  }
  return Object.fromEntries(headers)
}

function refuse(text: string, flag: string, must: string, advice: string): never {
  throw new UsageError(`${flag} is ${JSON.stringify(text.slice(0, 60))}; it must be ${must}.`, advice)
}

/** Drops the fields that are undefined, because the client's options may be missing, but must not be undefined. */
export function given<Fields extends object>(
  fields: Fields,
): { [Name in keyof Fields]?: NonNullable<Fields[Name]> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never
}
