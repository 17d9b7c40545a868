/**
 * Rules for one message: its times, and the effect of an outcome, a reschedule or a redrive. Pure functions, which share
 * no code with the server.
 *
 * `test/reference` applies the rules to an exact state, `test/simulation` to the states that a crash can leave.
 */
import type { MessageState, QueueOptions } from '@sluice/protocol'

/** The options in a record. Times are in ms; an option that is absent is undefined. */
export interface MessageOptions {
  readonly priority: number
  readonly key: string | undefined
  readonly id: string | undefined
  /** Whether the message replaces a waiting message with the same id. */
  readonly replaces: boolean
  readonly delayMs: number | undefined
  readonly atMs: number | undefined
  readonly ttlMs: number | undefined
}

/** Totals up to the last redrive: the number of redrives, and of the attempts before them. */
export interface EarlierLives {
  readonly redrives: number
  readonly attempts: number
}

export const NO_EARLIER_LIVES: EarlierLives = { redrives: 0, attempts: 0 }

/** A message in its queue. */
export interface Message {
  readonly offset: number
  readonly content: MessageOptions
  /** Size of the message's record. */
  readonly bytes: number
  readonly publishedMs: number
  state: MessageState
  /** The message's time in the line: its publish time, or the time at which it is or was due. */
  lineMs: number
  /** Time at which the message expires; 0: never. */
  expiresMs: number
  /** Failed attempts since the last redrive. */
  attempts: number
  earlier: EarlierLives
  /**
   * Whether the message may have ended the process of its consumer, so that it is delivered alone until it is settled.
   */
  isSuspect: boolean
  /** Number of connections that died while they held the message and handled nothing. */
  unattributedDeaths: number
}

/** How far in the past the requested time of a new message may be. */
const AT_PAST_MS_MAX = 60_000

export function isTooFarPast(atMs: number | undefined, nowMs: number): boolean {
  return atMs !== undefined && atMs < nowMs - AT_PAST_MS_MAX
}

/** Due time of a message that is published or rescheduled now; never in the past. */
export function dueMsOf({ delayMs, atMs }: Pick<MessageOptions, 'delayMs' | 'atMs'>, nowMs: number): number {
  return Math.max(nowMs + (delayMs ?? 0), atMs ?? 0)
}

/** `expiresMs` of a published message; the time to live starts when the message is due. */
export function expiryOf({ ttlMs }: MessageOptions, queueTtlMs: number, dueMs: number): number {
  const ownTtlMs = ttlMs ?? queueTtlMs
  return ownTtlMs === 0 ? 0 : dueMs + ownTtlMs
}

export function isExpired({ expiresMs }: Pick<Message, 'expiresMs'>, nowMs: number): boolean {
  return expiresMs !== 0 && expiresMs <= nowMs
}

/** Whether another message with the same id can replace the message. */
export function isWaiting({ state }: Pick<Message, 'state'>): boolean {
  return state === 'scheduled' || state === 'ready'
}

/**
 * Whether the message has expired in the line. For all requests it is gone, even if the broker has not removed it yet. A
 * message does not expire before it is due, or while it is leased or dead.
 */
export function isOver(message: Pick<Message, 'state' | 'lineMs' | 'expiresMs'>, nowMs: number): boolean {
  return isExpired(message, nowMs) && isWaiting(message) && message.lineMs <= nowMs
}

/** Whether the id is known while the message is pending, regardless of the window. */
export function isListedById({ id }: MessageOptions, unique: string, isDelayed: boolean): boolean {
  return id !== undefined && (unique === 'pending' || isDelayed)
}

type Times = Pick<Message, 'lineMs' | 'expiresMs'>

/** Times after a reschedule: the expiry moves with the due time, unless an attempt has failed. */
export function rescheduled(
  { lineMs, expiresMs, attempts }: Times & Pick<Message, 'attempts'>,
  dueMs: number,
): Times {
  const isMoved = attempts === 0 && expiresMs !== 0
  return { lineMs: dueMs, expiresMs: isMoved ? expiresMs + dueMs - lineMs : expiresMs }
}

/** Totals after a redrive of a message with `attempts` attempts, in its own queue or into another one. */
export function livesAfterRedrive(
  { redrives, attempts: before }: EarlierLives,
  attempts: number,
): EarlierLives {
  return { redrives: redrives + 1, attempts: before + attempts }
}

/** The next state of a released message. A lease can last longer than the time to live of its message. */
export function afterRelease(message: Pick<Message, 'expiresMs'>, nowMs: number): 'expired' | 'ready' {
  return isExpired(message, nowMs) ? 'expired' : 'ready'
}

/** The next state of a message after its failed attempt number `attempts`. */
export function afterFailure(
  message: Pick<Message, 'expiresMs'>,
  attempts: number,
  { maxDeliveries }: Pick<QueueOptions, 'maxDeliveries'>,
  nowMs: number,
): 'dead' | 'expired' | 'retried' {
  if (maxDeliveries !== 'unlimited' && attempts >= maxDeliveries) return 'dead'
  return isExpired(message, nowMs) ? 'expired' : 'retried'
}

type Backoff = Pick<QueueOptions, 'retryInitialMs' | 'retryMaxMs'>

function nominalBackoffMs({ retryInitialMs, retryMaxMs }: Backoff, attempts: number): number {
  return Math.min(retryInitialMs * 2 ** (attempts - 1), retryMaxMs)
}

/** Delay before the attempt that follows failed attempt number `attempts`; `chance` is in [0, 1). */
export function backoffMs(options: Backoff, attempts: number, chance: number): number {
  const nominalMs = nominalBackoffMs(options, attempts)
  return Math.min(Math.round(nominalMs * (0.8 + 0.4 * chance)), options.retryMaxMs)
}

/** Bounds of `backoffMs` over all values of `chance`. */
export function backoffBoundsMs(
  options: Backoff,
  attempts: number,
): { readonly least: number; readonly most: number } {
  return { least: backoffMs(options, attempts, 0), most: backoffMs(options, attempts, 1) }
}

/** Number of redrives of a message in other queues, from its header. */
export function redrivesElsewhere(header: string | undefined): number {
  return Number(header ?? 0)
}

/** The origin of a copy in another queue. */
export interface Origin {
  readonly queue: string
  readonly offset: number
  readonly publishedMs: number
  /** Number of attempts on the original, added up over all its redrives. */
  readonly attempts: number
  /** Redrives in all queues, including the redrive that makes the copy. */
  readonly redrives: number
  /** Why and when the original died; undefined for a replay. */
  readonly dead: { readonly death: string; readonly diedMs: number; readonly error: string } | undefined
}

/** The headers of a copy that name its origin; they replace those of an earlier copy. */
export function originHeaders(origin: Origin): readonly (readonly [name: string, value: string])[] {
  const { dead } = origin
  const death = [
    ['sluice-dead-reason', dead?.death],
    ['sluice-dead-at', dead && String(dead.diedMs)],
    ['sluice-dead-error', dead?.error],
  ] as const
  return [
    ['sluice-origin-queue', origin.queue],
    ['sluice-origin-offset', String(origin.offset)],
    ['sluice-origin-published', String(origin.publishedMs)],
    ['sluice-redrives', String(origin.redrives)],
    ['sluice-attempts', String(origin.attempts)],
    ...death.flatMap(([name, value]) => (value === undefined ? [] : [[name, value] as const])),
  ]
}
