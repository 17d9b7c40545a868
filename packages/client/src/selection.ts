/** Which messages of a queue an operator means, and the walk over many of them, page by page and no faster than asked. */
import { LIMITS, SluiceError, Timer, errorCode, type DeathName, type Progress } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import { durationMs, type Duration } from './duration.js'
import { onlyKnown, whole, type CallOptions } from './options.js'
import { aborted } from './outcomes.js'
import type { Body } from './requests.js'

/** What a message must be to be chosen: all of what is given. */
export interface MessageFilter {
  /** Why it is dead. */
  readonly reason?: DeathName
  /** Text that its error contains. */
  readonly error?: string
  readonly key?: string
  readonly id?: string
  /** Headers and the values that they have. */
  readonly header?: Readonly<Record<string, string>>
  /** Tries at least. */
  readonly attempts?: number
  /** Dead, or else published, at least this long ago. */
  readonly olderThan?: Duration
  /** Dead, or else published, at most this long ago. */
  readonly youngerThan?: Duration
}

export const FILTER_FIELDS = [
  'reason',
  'error',
  'key',
  'id',
  'header',
  'attempts',
  'olderThan',
  'youngerThan',
] as const

export const CALL_OPTIONS = ['timeout', 'signal'] as const

/** The broker's `filter` field, if anything is filtered. @throws SluiceError INVALID_ARGUMENT */
export function filterField(filter: MessageFilter): Body {
  const { reason, error, key, id, header, attempts, olderThan, youngerThan } = filter
  const fields = withoutUndefined({
    reason,
    error,
    key,
    id,
    headers: header,
    minAttempts: attempts,
    olderThanMs: ageMs('olderThan', olderThan),
    youngerThanMs: ageMs('youngerThan', youngerThan),
  })
  return Object.keys(fields).length === 0 ? {} : { filter: fields }
}

function ageMs(name: string, value: Duration | undefined): number | undefined {
  return value === undefined ? undefined : durationMs(value, name, 'INVALID_ARGUMENT')
}

export function withoutUndefined(fields: Record<string, unknown>): Body {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}

/** One message of a queue: by its offset, or by the id that it was published with. */
export type MessageRef = { readonly offset: number } | { readonly id: string }

/** @throws SluiceError INVALID_ARGUMENT */
export function refFields(call: string, ref: MessageRef): Body {
  onlyKnown(call, ref, ['offset', 'id'])
  const { offset, id } = ref as { readonly offset?: unknown; readonly id?: unknown }
  if ((offset === undefined) === (id === undefined)) {
    throw new SluiceError('INVALID_ARGUMENT', `\`${call}\` takes the \`offset\` or the \`id\` of a message.`)
  }
  return withoutUndefined({ offset, id })
}

/** How far and how fast a walk goes. */
export interface Pace {
  /** Most messages that it acts on. Default: all. */
  readonly limit?: number
  /** Most messages a second. Default: unlimited. */
  readonly rate?: number
}

/** What one page of a walk did. */
export interface Step<Place> {
  readonly matched: number
  /** Where the next page begins; undefined: this was the last one. */
  readonly next: Place | undefined
  /** Why it ended at `next`, after it had done a part of its work. */
  readonly error?: SluiceError | undefined
}

/** What a walk has done so far, for when it fails. */
export interface SoFar {
  /** Undefined: nothing. */
  readonly progress: Progress | undefined
  /** A sentence. */
  readonly text: string
}

/** Pages a second of a walk that has a rate: short enough that the rate is even, long enough to be cheap. */
const PACED_PAGES_A_SECOND = 4
const RATE_MAX = 1_000_000

/**
 * Takes pages until there are no more, or `limit` messages matched. `take` is told how many messages its page may have.
 * @throws SluiceError INVALID_ARGUMENT, ABORTED; what `take` throws; with what `soFar` says, if that is anything
 */
export async function walk<Place>(
  pace: Pace,
  call: CallOptions | undefined,
  take: (limit: number, place: Place | undefined) => Promise<Step<Place>>,
  soFar: () => SoFar,
): Promise<void> {
  try {
    await walkPages(pace, call, take)
  } catch (error) {
    const { progress, text } = soFar()
    if (!(error instanceof SluiceError) || progress === undefined) throw error
    const { code, scope, retryable, retryAfterMs, outcome = 'partial' } = error
    const message = `${error.message} ${text}`
    throw new SluiceError(code, message, { cause: error, scope, retryable, retryAfterMs, outcome, progress })
  }
}

async function walkPages<Place>(
  { limit, rate }: Pace,
  call: CallOptions | undefined,
  take: (limit: number, place: Place | undefined) => Promise<Step<Place>>,
): Promise<void> {
  let left = limit === undefined ? Infinity : whole('limit', limit, 0, Number.MAX_SAFE_INTEGER)
  const page = rate === undefined ? LIMITS.pageMessagesMax : pageOf(rate)
  const beganMs = performance.now()
  let done = 0
  let place: Place | undefined
  while (left > 0) {
    const { matched, next, error } = await take(Math.min(page, left), place)
    if (error !== undefined) throw error
    done += matched
    left -= matched
    if (next === undefined || left <= 0) return
    place = next
    if (rate !== undefined) await until(beganMs + (done / rate) * 1000, call?.signal)
  }
}

/** Why the broker ended a page that had done a part of its work. @throws SluiceError MALFORMED_FRAME */
export function cutShort(frame: string, { error }: Body): SluiceError | undefined {
  if (error === undefined || error === null) return undefined
  if (typeof error !== 'object') throw malformed(frame)
  const { code, retryable, retryAfterMs, message } = error as Body
  if (!Number.isSafeInteger(code) || !Number.isSafeInteger(retryAfterMs) || typeof message !== 'string')
    throw malformed(frame)
  return new SluiceError(errorCode(code as number) ?? 'NOT_SUPPORTED', message, {
    scope: 'request',
    retryable: retryable === true,
    retryAfterMs: retryAfterMs as number,
  })
}

/** The broker's answer to a request is not acceptable. */
export function malformed(frame: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker's answer to ${frame} is not of the expected form.`)
}

/** "1 message was" or "310 messages were". */
export function messagesWere(count: number): string {
  return count === 1 ? '1 message was' : `${count} messages were`
}

function pageOf(rate: number): number {
  if (typeof rate !== 'number' || !(rate > 0 && rate <= RATE_MAX)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`rate\` is ${String(rate)}; it must be a number above 0, at most ${RATE_MAX} messages a second.`,
    )
  }
  return Math.min(LIMITS.pageMessagesMax, Math.max(1, Math.floor(rate / PACED_PAGES_A_SECOND)))
}

function until(timeMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) throw aborted(signal, false)
    const onAbort = (): void => {
      timer.cancel()
      reject(aborted(signal!, false))
    }
    const timer = new Timer(
      () => {
        removeAbortListener(signal, onAbort)
        resolve()
      },
      Math.max(0, timeMs - performance.now()),
    )
    if (signal !== undefined) addAbortListener(signal, onAbort)
  })
}
