/**
 * A delivered message. What most handlers never look at (body, options, times, signal) is decoded when it is first
 * read; until then a message is a few numbers into the bytes of its run.
 */
import {
  clipText,
  DELIVER_FLAG,
  isWellFormed,
  LIMITS,
  OUTCOME,
  readRecordOptions,
  recordFlags,
  recordPriority,
  recordSize,
  scatteredOffset,
  scatteredPublishedAtMs,
  RECORD_FLAG,
  shown,
  SluiceError,
  type AtomicAck,
  type Outcome,
  type RecordOptions,
  durationText,
} from '@sluice/protocol'
import type { Connection } from './connection.js'
import { durationMs, type Duration } from './duration.js'
import type { LeaseKeeper } from './lease.js'
import { leaseLost } from './losses.js'
import { onlyKnown } from './options.js'
import { INSPECT, NO_HEADERS, recordBody } from './records.js'
import type { Run } from './run.js'
import { Settlement } from './settlement.js'
import type { Watcher } from './watchers.js'

/** Options of `message.retry` and `Retry`. */
export interface RetryOptions {
  /** When it comes back. Default: the queue's own back-off. */
  readonly delay?: Duration
  /** What went wrong, for a person; at most 4 KiB of it are kept. */
  readonly reason?: string
}

/**
 * A message and the lease on it. It is settled once: the first of `ack`, `retry`, `release` and `deadLetter` counts.
 *
 * Each returns a promise that resolves when the outcome is durable. Not awaiting it is safe: it is made only when used.
 * It rejects with ALREADY_SETTLED; with LEASE_LOST when the message no longer belongs to this consumer, such as after
 * its processing timeout; with CONNECTION_LOST and `outcome: 'unknown'` when the answer never came.
 */
export interface Message<Body = unknown> {
  /**
   * Decoded when it is first read. Bytes are the message's own, but may share their `buffer` with those of others, as Node's
   * Buffers do: they begin at `byteOffset`. Throws SluiceError INVALID_BODY where that fails.
   */
  readonly body: Body
  readonly id: string | undefined
  readonly key: string | undefined
  /** Its place in the queue, from 0. */
  readonly offset: number
  /** 0 to 31, higher goes first. */
  readonly priority: number
  /** 1 for the first try. */
  readonly attempt: number
  /** It may have been delivered before. */
  readonly redelivered: boolean
  readonly publishedAt: Date
  readonly headers: Readonly<Record<string, string>>
  /** Name of its queue. */
  readonly queue: string
  /** Done: it leaves the queue. */
  ack(): Promise<void>
  /** Failed: counts as a try and comes back later. Throws INVALID_DELAY, and INVALID_ARGUMENT for a reason that is not text. */
  retry(options?: RetryOptions): Promise<void>
  /** Not tried: does not count and comes back at its old place. */
  release(): Promise<void>
  /** Given up: kept among the dead letters for a person. Throws INVALID_ARGUMENT for a reason that is not text. */
  deadLetter(reason?: string): Promise<void>
  /**
   * Not done yet: the processing timeout begins anew, with `duration` from now, at least 100 ms, or else with the time
   * that messages of this consumer have. Not a settle. Throws INVALID_ARGUMENT.
   */
  extend(duration?: Duration): Promise<void>
}

/** The second argument of a handler. */
export interface HandlerContext {
  /**
   * Aborted when the message, or one of the batch, no longer belongs to this consumer, or the worker stops waiting for
   * the handler.
   */
  readonly signal: AbortSignal
}

const UNREAD = Symbol('unread')

const OPEN = 0
const SETTLED = 1
const LOST = 2
/** By an atomic step, before it is sent and after. */
const CLAIMED = 3
const SENT = 4
type LeaseState = typeof OPEN | typeof SETTLED | typeof LOST | typeof CLAIMED | typeof SENT

interface Ending {
  readonly outcome: Outcome
  readonly delayMs: number | undefined
  readonly reason: string | undefined
}

/** How the handlers of messages ended that are claimed by an atomic step. */
const ENDINGS = new WeakMap<DeliveredMessage, Ending>()

export class DeliveredMessage implements Message, HandlerContext, Watcher {
  #run: Run
  readonly #index: number
  readonly #at: number
  #state: LeaseState = OPEN
  #body: unknown = UNREAD
  #options: RecordOptions | undefined
  #abort: AbortController | undefined

  constructor(run: Run, index: number, at: number) {
    this.#run = run
    this.#index = index
    this.#at = at
  }

  get body(): unknown {
    if (this.#body === UNREAD) {
      this.#body = recordBody(this.#run.records, this.#at)
    }
    return this.#body
  }

  get id(): string | undefined {
    return this.#flags & RECORD_FLAG.id ? this.#record.id : undefined
  }

  get key(): string | undefined {
    return this.#flags & RECORD_FLAG.key ? this.#record.key : undefined
  }

  get offset(): number {
    const { gap, records, firstOffset } = this.#run
    return gap === 0 ? firstOffset + this.#index : scatteredOffset(records, this.#at - gap)
  }

  get priority(): number {
    return recordPriority(this.#run.records, this.#at)
  }

  get attempt(): number {
    return this.#run.attempt
  }

  get redelivered(): boolean {
    return (this.#run.flags & DELIVER_FLAG.redelivered) !== 0
  }

  get publishedAt(): Date {
    const { gap, records, publishedAtMs } = this.#run
    return new Date(gap === 0 ? publishedAtMs : scatteredPublishedAtMs(records, this.#at - gap))
  }

  get headers(): Readonly<Record<string, string>> {
    return this.#flags & RECORD_FLAG.headers ? this.#record.headers! : NO_HEADERS
  }

  get queue(): string {
    return this.#run.keeper.queue
  }

  get #flags(): number {
    return recordFlags(this.#run.records, this.#at)
  }

  get #record(): RecordOptions {
    return (this.#options ??= readRecordOptions(this.#run.records, this.#at))
  }

  /** What it is called on its subscription. */
  get tag(): number {
    return (this.#run.firstTag + this.#index) >>> 0
  }

  /** What a log should show of it. */
  toJSON(): object {
    const { queue, offset, id, key, priority, attempt, redelivered, publishedAt, headers, body } = this
    return { queue, offset, id, key, priority, attempt, redelivered, publishedAt, headers, body }
  }

  [INSPECT](): object {
    return this.toJSON()
  }

  ack(): Promise<void> {
    return this.#settle(OUTCOME.ack, undefined, undefined)
  }

  retry(options: RetryOptions = {}): Promise<void> {
    const delayMs = retryDelayMs('message.retry', options)
    return this.#settle(OUTCOME.retry, delayMs, givenReason(options.reason))
  }

  release(): Promise<void> {
    return this.#settle(OUTCOME.release, undefined, undefined)
  }

  deadLetter(reason?: string): Promise<void> {
    return this.#settle(OUTCOME.deadLetter, undefined, givenReason(reason))
  }

  #settle(outcome: Outcome, delayMs: number | undefined, reason: string | undefined): Promise<void> {
    const { keeper } = this.#run
    const { tag } = this
    if (this.#state !== OPEN || !keeper.holds(tag)) {
      if (this.#state === OPEN) this.#lose()
      return new Settlement(this.#refusal(), this)
    }
    this.#state = SETTLED
    if (this.#abort !== undefined) keeper.unwatch(this)
    return new Settlement(keeper.settle(tag, outcome, delayMs, reason), this)
  }

  #isOpen(): boolean {
    if (this.#state !== OPEN) return false
    if (this.#run.keeper.holds(this.tag)) return true
    this.#lose()
    return false
  }

  #lose(): void {
    this.#state = LOST
    this.#run.keeper.forget(this.tag)
  }

  /** Why it cannot be settled. */
  #refusal(): SluiceError {
    return this.#state === LOST ? leaseLost().with(this) : alreadySettled(this)
  }

  extend(duration?: Duration): Promise<void> {
    const durationMs = duration === undefined ? 0 : extensionMs(duration)
    if (this.#isOpen()) return this.#run.keeper.extend(this.tag, durationMs)
    const refused = Promise.reject<void>(this.#refusal())
    refused.catch(() => {})
    return refused
  }

  /** Settles as the handler's end says, unless it was settled before or is lost; nobody waits for it. */
  finish(outcome: Outcome, delayMs?: number, reason?: string, invalid?: boolean): void {
    const { keeper } = this.#run
    const { tag } = this
    if (this.#state !== OPEN || !keeper.holds(tag)) {
      if (this.#state >= CLAIMED) ENDINGS.set(this, { outcome, delayMs, reason })
      else if (this.#state === OPEN) this.#lose()
      return
    }
    this.#state = SETTLED
    if (this.#abort !== undefined) keeper.unwatch(this)
    keeper.settle(tag, outcome, delayMs, reason, invalid)
  }

  /** Whether it belongs to its consumer by a lease of `keeper`, and is not settled. */
  isLeasedBy(keeper: LeaseKeeper): boolean {
    return (
      this.#run.keeper === keeper &&
      (this.#state === OPEN || this.#state === CLAIMED) &&
      keeper.holds(this.tag)
    )
  }

  /** Its lease goes on with another keeper, under this tag. */
  rebind(keeper: LeaseKeeper, tag: number): void {
    this.#run = { ...this.#run, keeper, firstTag: (tag - this.#index) >>> 0 }
  }

  /** Wants to be told, by `watcher`, when its lease is lost; or no more. */
  watchedBy(watcher: Watcher): void {
    this.#run.keeper.watch(watcher)
  }

  unwatchedBy(watcher: Watcher): void {
    this.#run.keeper.unwatch(watcher)
  }

  /** Its body was read through a schema. */
  read(body: unknown): void {
    this.#body = body
  }

  /**
   * An atomic step on this connection is going to acknowledge it; until `accepted` or `reopen` nothing else settles it.
   * @throws SluiceError ALREADY_SETTLED, LEASE_LOST
   */
  claim(connection: Connection | undefined): void {
    if (!this.#isOpen()) throw this.#refusal()
    if (connection === undefined || !this.#run.keeper.isOn(connection)) throw leaseLost()
    this.#state = CLAIMED
  }

  /** Why an atomic step cannot acknowledge it on this connection, though it has claimed it. */
  obstacle(connection: Connection): SluiceError | undefined {
    const { keeper } = this.#run
    return keeper.isOn(connection) && keeper.holds(this.tag) ? undefined : leaseLost()
  }

  acknowledgement(): AtomicAck {
    return this.#run.keeper.acknowledgement(this.tag)
  }

  /** The step that has claimed it is sent: from now on it counts as settled. */
  sent(): void {
    // It goes again, after an earlier batch was refused.
    if (this.#state === SENT) return
    const { keeper } = this.#run
    this.#state = SENT
    if (this.#abort !== undefined) keeper.unwatch(this)
    keeper.claim(this.tag)
  }

  /** The step took effect. */
  accepted(): void {
    this.#state = SETTLED
    ENDINGS.delete(this)
    this.#run.keeper.settleClaim(this.tag)
  }

  /** The step had no effect: the message is as it was before, if it still belongs to the consumer. */
  reopen(): void {
    if (this.#state !== CLAIMED && this.#state !== SENT) return
    if (this.#state === SENT) this.#run.keeper.reopenClaim(this.tag, this.alone)
    this.#state = OPEN
    if (this.#isOpen()) {
      if (this.#abort !== undefined) this.#run.keeper.watch(this)
    } else this.abort(leaseLost())
    const ending = ENDINGS.get(this)
    if (ending === undefined) return
    ENDINGS.delete(this)
    // Its handler did not wait for the step. What it meant to do with the message was not done.
    if (ending.outcome === OUTCOME.ack) this.finish(OUTCOME.retry, undefined, STEP_REFUSED)
    else this.finish(ending.outcome, ending.delayMs, ending.reason)
  }

  get recordBytes(): number {
    return recordSize(this.#run.records, this.#at)
  }

  /** The broker wants it handled with nothing beside it. */
  get alone(): boolean {
    return (this.#run.flags & DELIVER_FLAG.alone) !== 0
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController()
      if (this.#isOpen()) this.#run.keeper.watch(this)
      else if (this.#state === LOST) this.#abort.abort(leaseLost())
    }
    return this.#abort.signal
  }

  /** It was not settled, and no longer belongs to the consumer. */
  get isLost(): boolean {
    return !this.#isOpen() && this.#state === LOST
  }

  isAmong(tags: ReadonlySet<number>): boolean {
    return tags.has(this.tag)
  }

  /** Aborts `signal`. */
  abort(reason: SluiceError): void {
    this.#abort?.abort(reason)
  }
}

const STEP_REFUSED = 'its atomic step had no effect'

/** A reason that a caller gave, as it is sent: no longer than the broker keeps. @throws SluiceError INVALID_ARGUMENT */
function givenReason(reason: unknown): string | undefined {
  if (reason === undefined) return undefined
  if (typeof reason !== 'string')
    throw new SluiceError('INVALID_ARGUMENT', `\`reason\` is ${shown(reason)}; it must be text.`)
  if (!isWellFormed(reason)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      '`reason` has an unpaired surrogate, which UTF-8 cannot represent.',
    )
  }
  return clipText(reason, LIMITS.reasonBytesMax)
}

function retryDelayMs(call: string, options: RetryOptions): number | undefined {
  onlyKnown(call, options, ['delay', 'reason'])
  const { delay } = options
  return delay === undefined ? undefined : durationMs(delay, 'delay', 'INVALID_DELAY')
}

function extensionMs(duration: Duration): number {
  const ms = durationMs(duration, 'duration', 'INVALID_ARGUMENT')
  if (ms >= LIMITS.processingTimeoutMsMin) return ms
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `\`duration\` is ${durationText(ms)}; it must be at least ${durationText(LIMITS.processingTimeoutMsMin)}.`,
  )
}

function alreadySettled(message: DeliveredMessage): SluiceError {
  return new SluiceError(
    'ALREADY_SETTLED',
    `Message ${message.offset} of ${message.queue} is already settled; the first settle counts.`,
    { queue: message.queue, offset: message.offset },
  )
}

/**
 * Thrown by a handler: the message failed and comes back, after `delay` instead of the queue's own back-off.
 * @example
 * throw new Retry({ delay: '5m', reason: 'the shop is closed' })
 */
export class Retry extends Error {
  readonly delayMs: number | undefined

  /** @throws SluiceError INVALID_DELAY, INVALID_ARGUMENT */
  constructor(options: RetryOptions = {}) {
    super(options?.reason ?? '')
    this.name = 'Retry'
    this.delayMs = retryDelayMs('Retry', options)
  }
}

/**
 * Thrown by a handler: the message is given up and kept among the dead letters.
 * @example
 * throw new DeadLetter('no such customer')
 */
export class DeadLetter extends Error {
  constructor(reason = '') {
    super(reason)
    this.name = 'DeadLetter'
  }
}
