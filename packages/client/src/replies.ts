/**
 * Requests and their replies. A request is an ordinary message with a time to live and a header that names the mailbox of
 * this client and a number; the broker sends each reply to the mailbox. This file keeps the pending requests, and sends the
 * replies of consumers.
 *
 * Invariant: a request is pending from its publish until its reply, its failure, its deadline or its abort, whichever comes
 * first, and across reconnects. Numbers are never reused, so a late or repeated reply matches no request.
 */
import {
  LIMITS,
  MAILBOX_BYTES,
  OP,
  REPLY_FATE,
  REPLY_KIND,
  REPLY_TO_HEADER,
  SluiceError,
  checkRecordOptions,
  clipText,
  decodeAnswer,
  decodeReplied,
  durationText,
  encodeMailbox,
  encodeReply,
  failureRecord,
  readRecordOptions,
  replyToValue,
  type RecordOptions,
  type ReplyFate,
  type ReplyTo,
} from '@sluice/protocol'
import { randomBytes } from 'node:crypto'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import { fail } from './failure.js'
import { onlyKnown, queueOf, recordOptions, timeoutOf, type CallOptions, type QueueRef } from './options.js'
import { aborted } from './outcomes.js'
import type { Producer } from './producer.js'
import { INSPECT, NO_HEADERS, recordBody } from './records.js'
import { Requests, type Answer } from './requests.js'
import { replyToOf, type ReplyOptions, type ReplyReceipt, type Responder } from './responder.js'
import { checkBody } from './schema.js'
import type { Session } from './session.js'

/** Options of `request`. */
export interface RequestOptions extends CallOptions {
  /** Ordering key of the request: see `publish`. */
  readonly key?: string
  /** 0 to 31; requests of a higher priority are delivered first. Default 0. */
  readonly priority?: number
  /** Headers of the request; the consumer reads them as `message.headers`. */
  readonly headers?: Readonly<Record<string, string>>
}

/** The reply to a request. */
export interface Reply {
  /** The body, decoded when it is first read. Reading it throws SluiceError INVALID_BODY if it cannot be decoded. */
  readonly body: unknown
  readonly headers: Readonly<Record<string, string>>
}

/**
 * Publishes a request, and resolves with the reply that a consumer sends with `message.reply`. The request is an ordinary
 * durable message, which expires at the deadline. A request stays pending while the client reconnects.
 *
 * @throws SluiceError REQUEST_TIMEOUT; REQUEST_FAILED when the consumer made the request a dead letter; ABORTED; otherwise as
 * `publish`
 * @example
 * const { body } = await sluice.request('quotes', { item: 7 }, { timeout: '5s' })
 */
export type RequestCall = <Input>(
  queue: QueueRef<Input, unknown>,
  body: NoInfer<Input>,
  options?: RequestOptions,
) => Promise<Reply>

interface Pending {
  readonly queue: string
  readonly timeoutMs: number
  readonly deadlineMs: number
  settle(reply: Reply): void
  fail(error: SluiceError): void
}

const REQUEST_OPTIONS = ['timeout', 'signal', 'key', 'priority', 'headers']
const REPLIED: Answer<ReplyFate> = { opcode: OP.REPLIED, read: decodeReplied }

export class Replies implements Responder {
  readonly #session: Session
  readonly #producer: Producer
  readonly #requests: Requests
  /** The name of the mailbox; undefined until the first request. */
  #mailbox: string | undefined
  #lastNumber = 0
  #closed: SluiceError | undefined
  readonly #pending = new Map<number, Pending>()
  /** Messages that this client has replied to. */
  readonly #replied = new WeakSet<object>()

  constructor(session: Session, producer: Producer) {
    this.#session = session
    this.#producer = producer
    this.#requests = new Requests(session)
    session.deadlines.add((nowMs) => this.#sweep(nowMs))
  }

  /** See `RequestCall`. */
  async request(ref: QueueRef, body: unknown, options: RequestOptions = {}): Promise<Reply> {
    onlyKnown('request', options, REQUEST_OPTIONS)
    const { name: queue, schema } = queueOf(ref)
    const { signal, key, priority, headers } = options
    const timeoutMs = Math.max(1, Math.ceil(timeoutOf(options, this.#session.timeoutMs)))
    const given = recordOptions({
      ...(key !== undefined && { key }),
      ...(priority !== undefined && { priority }),
      ...(headers !== undefined && { headers }),
    })
    if (schema !== undefined) await checkBody(schema, body, 'body')
    const closed = this.#closed
    if (closed !== undefined) throw closed.with({})
    if (signal?.aborted === true) throw aborted(signal, false)
    const request = ++this.#lastNumber
    const record: RecordOptions = {
      ...given,
      ttlMs: Math.min(timeoutMs, LIMITS.delayMsMax),
      headers: {
        ...given?.headers,
        [REPLY_TO_HEADER]: replyToValue({ mailbox: this.#open(), request }),
      },
    }
    // Without headers of the caller, `recordOptions` has checked what the caller gave.
    if (headers !== undefined) checkRecordOptions(record)
    const reply = this.#wait(request, queue, timeoutMs, signal)
    try {
      const published = this.#producer.publish(queue, body, record, timeoutMs, undefined)
      published.catch((error: unknown) => this.#refused(request, error))
    } catch (error) {
      this.#refused(request, error)
    }
    return reply
  }

  #wait(request: number, queue: string, timeoutMs: number, signal: AbortSignal | undefined): Promise<Reply> {
    return new Promise((resolve) => {
      const over = (): void => {
        removeAbortListener(signal, onAbort)
        this.#pending.delete(request)
      }
      const pending: Pending = {
        queue,
        timeoutMs,
        deadlineMs: this.#session.deadlines.after(timeoutMs),
        settle: (reply) => {
          over()
          resolve(reply)
        },
        fail: (error) => {
          over()
          fail(resolve, error, { queue })
        },
      }
      const onAbort = (): void => pending.fail(aborted(signal!, true))
      this.#pending.set(request, pending)
      if (signal !== undefined) addAbortListener(signal, onAbort)
    })
  }

  // The deadline of the publish counts from the start of its turn, so it can be before the deadline of the request, which
  // the sweep notices.
  #refused(request: number, error: unknown): void {
    if (error instanceof SluiceError && error.code === 'TIMEOUT') return
    this.#pending.get(request)?.fail(error as SluiceError)
  }

  // The broker gets the name of the mailbox before the first request that names it, and again on each new connection.
  #open(): string {
    if (this.#mailbox === undefined) {
      this.#mailbox = randomBytes(MAILBOX_BYTES).toString('hex')
      const { connection } = this.#session
      if (connection !== undefined) this.#present(connection)
    }
    return this.#mailbox
  }

  /** Called with each new connection. */
  attach(connection: Connection): void {
    if (this.#mailbox !== undefined) this.#present(connection)
    this.#requests.attach(connection)
  }

  #present(connection: Connection): void {
    connection.send(OP.MAILBOX, 0, 0, encodeMailbox(this.#mailbox!))
  }

  /** Called with the payload of an ANSWER. @throws SluiceError MALFORMED_FRAME */
  answered(bytes: Uint8Array, start: number, end: number): void {
    const { request, kind, record } = decodeAnswer(bytes, start, end)
    const pending = this.#pending.get(request)
    // Undefined if the deadline has passed, or if the request was handled twice and this is the second reply.
    if (pending === undefined) return
    const reply = new ReceivedReply(record)
    if (kind === REPLY_KIND.answer) pending.settle(reply)
    else pending.fail(requestFailed(pending.queue, reply.body))
  }

  reply(
    message: object,
    headers: Readonly<Record<string, string>>,
    body: unknown,
    options: ReplyOptions,
  ): Promise<ReplyReceipt> {
    onlyKnown('message.reply', options, ['headers'])
    const replyTo = replyToOf(headers)
    if (replyTo === undefined) {
      throw new SluiceError(
        'NOT_A_REQUEST',
        'The message was not sent with `request`, so no client waits for a reply.',
      )
    }
    if (this.#replied.has(message))
      throw new SluiceError('ALREADY_REPLIED', 'The message has a reply already; the first reply counts.')
    const given = options.headers === undefined ? undefined : recordOptions({ headers: options.headers })
    const record = this.#producer.record(body, given)
    this.#replied.add(message)
    return this.#send(replyTo, REPLY_KIND.answer, record)
  }

  failed(message: object, headers: Readonly<Record<string, string>>, reason: string): void {
    const replyTo = replyToOf(headers)
    if (replyTo === undefined || this.#replied.has(message)) return
    this.#replied.add(message)
    const record = failureRecord(clipText(reason, LIMITS.reasonBytesMax))
    // Without this report, the request fails at its deadline.
    this.#send(replyTo, REPLY_KIND.failure, record).catch(() => {})
  }

  // A reply may be sent again after a reconnect, because a second reply matches no pending request.
  async #send(replyTo: ReplyTo, kind: 0 | 1, record: Uint8Array): Promise<ReplyReceipt> {
    const payload = encodeReply(replyTo, kind, record)
    const fate = await this.#requests.sendPayload(OP.REPLY, payload, {}, 'again', undefined, REPLIED)
    return { delivered: fate === REPLY_FATE.delivered || fate === REPLY_FATE.kept }
  }

  #sweep(nowMs: number): number {
    let nextMs = Infinity
    for (const pending of this.#pending.values()) {
      if (pending.deadlineMs > nowMs) nextMs = Math.min(nextMs, pending.deadlineMs)
      else pending.fail(requestTimeout(pending))
    }
    return nextMs
  }

  /** Fails all pending requests. */
  close(error: SluiceError): void {
    this.#closed = error
    this.#requests.close(error)
    for (const pending of this.#pending.values()) pending.fail(error)
  }
}

function requestTimeout({ queue, timeoutMs }: Pending): SluiceError {
  return new SluiceError(
    'REQUEST_TIMEOUT',
    `No reply to a request to the queue ${queue} has arrived within ${durationText(timeoutMs)}.`,
    { outcome: 'unknown' },
  )
}

function requestFailed(queue: string, reason: unknown): SluiceError {
  const text = typeof reason === 'string' && reason !== '' ? reason : 'no reason was given'
  return new SluiceError('REQUEST_FAILED', `A consumer of the queue ${queue} gave up the request: ${text}.`)
}

class ReceivedReply implements Reply {
  readonly #record: Uint8Array
  #body: { readonly value: unknown } | undefined

  constructor(record: Uint8Array) {
    this.#record = record
  }

  get body(): unknown {
    return (this.#body ??= { value: recordBody(this.#record, 0) }).value
  }

  get headers(): Readonly<Record<string, string>> {
    return readRecordOptions(this.#record, 0).headers ?? NO_HEADERS
  }

  /** Returns the fields that a log should show. */
  toJSON(): object {
    return { body: this.body, headers: this.headers }
  }

  [INSPECT](): object {
    return this.toJSON()
  }
}
