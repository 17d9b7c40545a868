/** Selects messages for operator calls, and walks over many of them page by page, at a limited rate. */
import { LIMITS, SluiceError, Timer, errorCode, type DeathName, type Progress } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import { durationMs, type Duration } from './duration.js'
import { onlyKnown, whole, type CallOptions } from './options.js'
import { aborted } from './outcomes.js'
import type { Body } from './requests.js'

/** Selects messages. A message must match all fields that are set. */
export interface MessageFilter {
  /** Why the message is dead. */
  readonly reason?: DeathName
  /** Text that the error of the message contains. */
  readonly error?: string
  readonly key?: string
  readonly id?: string
  /** Names and values that the headers of the message include. */
  readonly header?: Readonly<Record<string, string>>
  /** Minimum number of attempts. */
  readonly attempts?: number
  /** Minimum age: the time since a dead message died, or since any other message was published. */
  readonly olderThan?: Duration
  /** Maximum age: the time since a dead message died, or since any other message was published. */
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

/** The `filter` field on the wire, absent without a filter. @throws SluiceError INVALID_ARGUMENT */
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

/** Refers to one message of a queue: by its offset, or by the `id` with which it was published. */
export type MessageRef = { readonly offset: number } | { readonly id: string }

/** @throws SluiceError INVALID_ARGUMENT */
export function refFields(call: string, ref: MessageRef): Body {
  onlyKnown(call, ref, ['offset', 'id'])
  const { offset, id } = ref as { readonly offset?: unknown; readonly id?: unknown }
  if ((offset === undefined) === (id === undefined)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`${call}\` takes either the \`offset\` or the \`id\` of a message.`,
    )
  }
  return withoutUndefined({ offset, id })
}

/** Limits of a call that acts on many messages. */
export interface Pace {
  /** Maximum number of messages. Default: all that match. */
  readonly limit?: number
  /** Maximum number of messages per second, above 0 and up to 1,000,000. Default: no limit. */
  readonly rate?: number
}

/** Result of one page of a walk. */
export interface Step<Place> {
  readonly matched: number
  /** Where the next page begins; undefined after the last page. */
  readonly next: Place | undefined
  /** Why the broker stopped before the end of the page. */
  readonly error?: SluiceError | undefined
}

/** Progress of a walk so far, for the error that ends the walk. */
export interface SoFar {
  /** The counts so far; undefined if nothing was done. */
  readonly progress: Progress | undefined
  /** The progress as a sentence. */
  readonly text: string
}

/** Pages per second of a walk with a rate. This is often enough for an even rate, and rarely enough to be cheap. */
const PACED_PAGES_A_SECOND = 4
const RATE_MAX = 1_000_000

/**
 * Requests pages until the last one is reached, or `limit` messages have matched. The first argument of `take` is the
 * maximum number of messages in its page.
 * @throws SluiceError INVALID_ARGUMENT, ABORTED, and the errors of `take`, with the progress of `soFar`
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

/** The error that stopped a page before its end, if any. @throws SluiceError MALFORMED_FRAME */
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

/** The error for a malformed answer to a request. */
export function malformed(frame: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker sent a malformed answer to ${frame}.`)
}

/** Returns "1 message was" or "310 messages were". */
export function messagesWere(count: number): string {
  return count === 1 ? '1 message was' : `${count} messages were`
}

function pageOf(rate: number): number {
  if (typeof rate !== 'number' || !(rate > 0 && rate <= RATE_MAX)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`rate\` is ${String(rate)}; it must be a number above 0, and at most ${RATE_MAX} messages per second.`,
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
