/**
 * A delivered message, and the methods with which its consumer settles it. Body, options, times and signal are decoded
 * when they are first read; until then a message is a few positions in the bytes of its run.
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
import { leaseLost, type LeaseLossReason } from './losses.js'
import { onlyKnown } from './options.js'
import { replyToOf, type ReplyOptions, type ReplyReceipt } from './responder.js'
import { INSPECT, NO_HEADERS, recordBody } from './records.js'
import type { Run } from './run.js'
import { SettleAnswer } from './settle-answer.js'
import type { SettleDetail } from './settle-request.js'
import type { Watcher } from './watchers.js'

/** Options of `message.retry` and `Retry`. */
export interface RetryOptions {
  /** Delay until the message is delivered again. Default: the queue's `retry` back-off. */
  readonly delay?: Duration
  /** Description of the failure for operators; the broker keeps at most 4 KiB of this text. */
  readonly reason?: string
  /**
   * Holds back all messages of the key until this one is due again, for example because a service that the key represents
   * asked to wait. Without a key it has no effect. The broker forgets the pause when it restarts. Default false.
   */
  readonly pauseKey?: boolean
}

/**
 * A message and the lease on it. A message is settled once: only the first of `ack`, `retry`, `release` and `deadLetter`
 * counts.
 *
 * Each of these methods returns a promise that resolves when the outcome is durable. It is safe not to await this
 * promise: an unused promise causes no unhandled rejection. The promise rejects with ALREADY_SETTLED when the message
 * was settled before; with LEASE_LOST when the message no longer belongs to this consumer, for example after its
 * processing timeout; and with CONNECTION_LOST and `outcome: 'unknown'` when the connection was lost before the
 * answer.
 */
export interface Message<Body = unknown> {
  /**
   * The body, decoded when it is first read. Reading it throws SluiceError INVALID_BODY if it cannot be decoded. A
   * `Uint8Array` may share its `buffer` with other bodies, like Node's Buffers; its bytes begin at `byteOffset`.
   */
  readonly body: Body
  readonly id: string | undefined
  readonly key: string | undefined
  /** Position of the message in the queue, from 0. */
  readonly offset: number
  /** 0 to 31; messages of a higher priority are delivered first. */
  readonly priority: number
  /** Number of this attempt, from 1. */
  readonly attempt: number
  /** Whether the message may have been delivered before. */
  readonly redelivered: boolean
  readonly publishedAt: Date
  readonly headers: Readonly<Record<string, string>>
  /** Name of the queue. */
  readonly queue: string
  /** Whether the message was sent with `request`, so that its sender waits for a reply. */
  readonly isRequest: boolean
  /** Acknowledges the message: it is done and leaves the queue. */
  ack(): Promise<void>
  /**
   * Reports a failed attempt: the message is delivered again later, or becomes a dead letter after its last attempt.
   * Throws INVALID_DELAY, and INVALID_ARGUMENT for a reason that is not text.
   */
  retry(options?: RetryOptions): Promise<void>
  /**
   * Gives the message back: it returns to its position in the queue, and this delivery does not count as an attempt.
   */
  release(): Promise<void>
  /** Makes the message a dead letter. Throws INVALID_ARGUMENT for a reason that is not text. */
  deadLetter(reason?: string): Promise<void>
  /**
   * Restarts the processing timeout with the length `duration`, which is at least 100 ms. Default: the processing
   * timeout of this consumer. This does not settle the message. Throws INVALID_ARGUMENT, and rejects with the same
   * errors as a settle.
   */
  extend(duration?: Duration): Promise<void>
  /**
   * Sends the reply to a request. This does not settle the message, and can be done before or after. The body is encoded like
   * that of `publish`. Rejects with NOT_A_REQUEST if the message was not sent with `request`, and with ALREADY_REPLIED if it has
   * a reply; INVALID_BODY, INVALID_HEADERS, MESSAGE_TOO_LARGE, TIMEOUT and CLOSED.
   */
  reply(body: unknown, options?: ReplyOptions): Promise<ReplyReceipt>
}

/** The second argument of a handler. */
export interface HandlerContext {
  /**
   * Aborted when the lease on the message, or on a message of the batch, is lost, or when the worker stops waiting for
   * the handler.
   */
  readonly signal: AbortSignal
}

const UNREAD = Symbol('unread')

const OPEN = 0
const SETTLED = 1
const LOST = 2
/** State: an atomic step acknowledges the message, and the step is not sent yet. */
const PLEDGED = 3
/** State: the atomic step that acknowledges the message is sent. */
const SENT = 4
/** Why the leases of lost messages ended. Few messages are lost, so messages have no field for it. */
const REASONS = new WeakMap<object, LeaseLossReason>()
type LeaseState = typeof OPEN | typeof SETTLED | typeof LOST | typeof PLEDGED | typeof SENT

interface HandlerOutcome {
  readonly outcome: Outcome
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly detail: SettleDetail | undefined
}

/** Outcomes of the handlers of pledged messages. */
const HANDLER_OUTCOMES = new WeakMap<DeliveredMessage, HandlerOutcome>()

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

  get isRequest(): boolean {
    return replyToOf(this.headers) !== undefined
  }

  get #flags(): number {
    return recordFlags(this.#run.records, this.#at)
  }

  get #record(): RecordOptions {
    return (this.#options ??= readRecordOptions(this.#run.records, this.#at))
  }

  /** Number of the delivery within its subscription. */
  get tag(): number {
    return (this.#run.firstTag + this.#index) >>> 0
  }

  /** Returns the fields that a log should show. */
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
    const detail = options.pauseKey === true ? 'pauseKey' : undefined
    return this.#settle(OUTCOME.retry, delayMs, givenReason(options.reason), detail)
  }

  release(): Promise<void> {
    return this.#settle(OUTCOME.release, undefined, undefined)
  }

  deadLetter(reason?: string): Promise<void> {
    return this.#settle(OUTCOME.deadLetter, undefined, givenReason(reason))
  }

  #settle(
    outcome: Outcome,
    delayMs: number | undefined,
    reason: string | undefined,
    detail?: SettleDetail,
  ): Promise<void> {
    const { keeper } = this.#run
    const { tag } = this
    if (this.#state !== OPEN || !keeper.isLeased(tag)) {
      if (this.#state === OPEN) this.#lose()
      return new SettleAnswer(this.#refusal(), this)
    }
    this.#state = SETTLED
    if (this.#abort !== undefined) keeper.unwatch(this)
    if (outcome === OUTCOME.deadLetter) this.#failRequest(reason)
    return new SettleAnswer(keeper.settle(tag, outcome, delayMs, reason, detail), this)
  }

  #isOpen(): boolean {
    if (this.#state !== OPEN) return false
    if (this.#run.keeper.isLeased(this.tag)) return true
    this.#lose()
    return false
  }

  #lose(): void {
    this.#state = LOST
    REASONS.set(this, this.#run.keeper.lossOf(this.tag))
    this.#run.keeper.forget(this.tag)
  }

  /** The reason why the message cannot be settled. */
  #refusal(): SluiceError {
    return this.#state === LOST ? leaseLost(undefined, REASONS.get(this)).with(this) : alreadySettled(this)
  }

  extend(duration?: Duration): Promise<void> {
    const durationMs = duration === undefined ? 0 : extensionMs(duration)
    if (this.#isOpen()) return this.#run.keeper.extend(this.tag, durationMs)
    const refused = Promise.reject<void>(this.#refusal())
    refused.catch(() => {})
    return refused
  }

  /** Settles the message with the outcome of its handler, unless it is settled or lost. */
  finish(outcome: Outcome, delayMs?: number, reason?: string, detail?: SettleDetail): void {
    const { keeper } = this.#run
    const { tag } = this
    if (this.#state !== OPEN || !keeper.isLeased(tag)) {
      if (this.#state >= PLEDGED) HANDLER_OUTCOMES.set(this, { outcome, delayMs, reason, detail })
      else if (this.#state === OPEN) this.#lose()
      return
    }
    this.#state = SETTLED
    if (this.#abort !== undefined) keeper.unwatch(this)
    if (outcome === OUTCOME.deadLetter) this.#failRequest(reason)
    keeper.settle(tag, outcome, delayMs, reason, detail)
  }

  reply(body: unknown, options: ReplyOptions = {}): Promise<ReplyReceipt> {
    const replied = this.#reply(body, options)
    // Like a settle, a reply need not be awaited.
    replied.catch(() => {})
    return replied
  }

  async #reply(body: unknown, options: ReplyOptions): Promise<ReplyReceipt> {
    try {
      return await this.#run.keeper.replies.reply(this, this.headers, body, options)
    } catch (error) {
      throw error instanceof SluiceError ? error.with(this) : error
    }
  }

  #failRequest(reason: string | undefined): void {
    if (this.#flags & RECORD_FLAG.headers) this.#run.keeper.replies.failed(this, this.headers, reason ?? '')
  }

  /** Whether `keeper` keeps the lease of the message, and the message is not settled. */
  isLeasedBy(keeper: LeaseKeeper): boolean {
    return (
      this.#run.keeper === keeper &&
      (this.#state === OPEN || this.#state === PLEDGED) &&
      keeper.isLeased(this.tag)
    )
  }

  /** Makes `keeper` the keeper of the lease, under this tag. */
  rebind(keeper: LeaseKeeper, tag: number): void {
    this.#run = { ...this.#run, keeper, firstTag: (tag - this.#index) >>> 0 }
  }

  /** Aborts `watcher` when the lease is lost, until `unwatchedBy`. */
  watchedBy(watcher: Watcher): void {
    this.#run.keeper.watch(watcher)
  }

  unwatchedBy(watcher: Watcher): void {
    this.#run.keeper.unwatch(watcher)
  }

  /** Replaces the body with the output of the schema of the queue. */
  read(body: unknown): void {
    this.#body = body
  }

  /**
   * Reserves the message for an atomic step on this connection. Nothing else settles it until `accepted` or `reopen`.
   * @throws SluiceError ALREADY_SETTLED, LEASE_LOST
   */
  pledge(connection: Connection | undefined): void {
    if (!this.#isOpen()) throw this.#refusal()
    if (connection === undefined || !this.#run.keeper.isOn(connection)) throw leaseLost()
    this.#state = PLEDGED
  }

  /** Returns LEASE_LOST if the atomic step that has pledged the message cannot acknowledge it on this connection. */
  obstacle(connection: Connection): SluiceError | undefined {
    const { keeper } = this.#run
    return keeper.isOn(connection) && keeper.isLeased(this.tag) ? undefined : leaseLost()
  }

  acknowledgement(): AtomicAck {
    return this.#run.keeper.acknowledgement(this.tag)
  }

  /** Called when the step that has pledged the message is sent. From then on, the message counts as settled. */
  sent(): void {
    // The step was sent before, and is sent again because an earlier batch was refused.
    if (this.#state === SENT) return
    const { keeper } = this.#run
    this.#state = SENT
    if (this.#abort !== undefined) keeper.unwatch(this)
    keeper.pledge(this.tag)
  }

  /** Called when the step took effect. */
  accepted(): void {
    this.#state = SETTLED
    HANDLER_OUTCOMES.delete(this)
    this.#run.keeper.settlePledge(this.tag)
  }

  /** Called when the step had no effect: the message can be settled again, if its lease is not lost. */
  reopen(): void {
    if (this.#state !== PLEDGED && this.#state !== SENT) return
    if (this.#state === SENT) this.#run.keeper.reopenPledge(this.tag, this.alone)
    this.#state = OPEN
    if (this.#isOpen()) {
      if (this.#abort !== undefined) this.#run.keeper.watch(this)
    } else this.abort(leaseLost())
    const ended = HANDLER_OUTCOMES.get(this)
    if (ended === undefined) return
    HANDLER_OUTCOMES.delete(this)
    // The handler ended without awaiting the step, so its success does not acknowledge the message.
    if (ended.outcome === OUTCOME.ack) this.finish(OUTCOME.retry, undefined, STEP_REFUSED)
    else this.finish(ended.outcome, ended.delayMs, ended.reason, ended.detail)
  }

  get recordBytes(): number {
    return recordSize(this.#run.records, this.#at)
  }

  /** Whether the message is a suspect: no other message may be handled at the same time; see `Isolation`. */
  get alone(): boolean {
    return (this.#run.flags & DELIVER_FLAG.alone) !== 0
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController()
      if (this.#isOpen()) this.#run.keeper.watch(this)
      else if (this.#state === LOST) this.#abort.abort(leaseLost(undefined, REASONS.get(this)))
    }
    return this.#abort.signal
  }

  /** Whether the lease of the message was lost before the message was settled. */
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

const STEP_REFUSED = 'The atomic step had no effect.'

/** Checks a caller's reason, and truncates it to the length that the broker keeps. @throws SluiceError INVALID_ARGUMENT */
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
  onlyKnown(call, options, ['delay', 'reason', 'pauseKey'])
  const { delay, pauseKey } = options
  if (pauseKey !== undefined && typeof pauseKey !== 'boolean') {
    const what = `\`pauseKey\` of \`${call}\` is ${shown(pauseKey)}`
    throw new SluiceError('INVALID_ARGUMENT', `${what}; it must be true or false.`)
  }
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
 * Thrown by a handler: the attempt failed, and the message is delivered again after `delay` instead of the queue's back-off.
 * @example
 * throw new Retry({ delay: '5m', reason: 'the shop is closed' })
 */
export class Retry extends Error {
  readonly delayMs: number | undefined
  readonly pauseKey: boolean

  /** @throws SluiceError INVALID_DELAY, INVALID_ARGUMENT */
  constructor(options: RetryOptions = {}) {
    super(options?.reason ?? '')
    this.name = 'Retry'
    this.delayMs = retryDelayMs('Retry', options)
    this.pauseKey = options.pauseKey === true
  }
}

/**
 * Thrown by a handler: the message becomes a dead letter, with `reason` as its error.
 * @example
 * throw new DeadLetter('no such customer')
 */
export class DeadLetter extends Error {
  constructor(reason = '') {
    super(reason)
    this.name = 'DeadLetter'
  }
}
