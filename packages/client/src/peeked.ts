/**
 * Messages as PEEK shows them. They are not leased, so they may have changed in the meantime. Body, options and origin
 * are decoded when they are first read.
 */
import {
  checkRecords,
  DEATH,
  decodeMessages,
  MOVED_BYTES_MAX,
  OP,
  ORIGIN_HEADERS,
  readRecordOptions,
  SluiceError,
  type DeathName,
  type MessageState,
  type RecordOptions,
  type PeekedMessage as WireMessage,
} from '@sluice/protocol'
import { INSPECT, NO_HEADERS, recordBody } from './records.js'
import type { Answer } from './requests.js'

/** Where a message was before it was moved or copied to its current queue. */
export interface Origin {
  /** Name of the queue. */
  readonly queue: string
  readonly offset: number | undefined
  readonly publishedAt: Date | undefined
  /** Reason for which the message was dead in the queue of origin; undefined if it was not dead. */
  readonly reason: DeathName | undefined
  /** Error of the message in the queue of origin, as text. */
  readonly error: string | undefined
  readonly diedAt: Date | undefined
  /** Number of attempts in the queue of origin. */
  readonly attempts: number | undefined
  /** Number of times that the message was redriven. */
  readonly redrives: number | undefined
}

/** A message in its queue, as it was at the time of the call. Peeking takes no lease. */
export interface PeekedMessage<Body = unknown> {
  /** Name of the queue. */
  readonly queue: string
  /** Position of the message in the queue, from 0. */
  readonly offset: number
  /**
   * The body as published, decoded when it is first read. Reading it throws SluiceError INVALID_BODY if it cannot be
   * decoded.
   */
  readonly body: Body
  readonly id: string | undefined
  readonly key: string | undefined
  /** 0 to 31; messages of a higher priority are delivered first. */
  readonly priority: number
  readonly headers: Readonly<Record<string, string>>
  readonly state: MessageState
  /** Reason for which the message is dead; undefined if it is not dead. */
  readonly reason: DeathName | undefined
  /** For a dead message, the text that its consumer gave as the reason; undefined if the consumer gave no reason. */
  readonly error: string | undefined
  /** Number of attempts since the message was published or last redriven. */
  readonly attempts: number
  /** Number of all attempts. */
  readonly totalAttempts: number
  /** Number of times that the message was redriven. */
  readonly redrives: number
  readonly publishedAt: Date
  /** When a ready message became ready. */
  readonly readySince: Date | undefined
  /** When a scheduled message becomes ready. */
  readonly dueAt: Date | undefined
  /** When a leased message was delivered. */
  readonly leasedAt: Date | undefined
  /** Name of the client that has the lease. */
  readonly holder: string | undefined
  /** When a dead message died. */
  readonly diedAt: Date | undefined
  /** Time at which the message expires; undefined if it does not expire. */
  readonly expiresAt: Date | undefined
  /** Where the message was before it was moved or copied to this queue. */
  readonly origin: Origin | undefined
}

/** A page of the messages of a queue, in the order of their offsets. */
export interface MessagePage<Body = unknown> {
  readonly messages: PeekedMessage<Body>[]
  /** Offset of the next page, for `from`; absent on the last page. */
  readonly next?: number
}

const UNREAD = Symbol('unread')

class Peeked implements PeekedMessage {
  readonly queue: string
  readonly #wire: WireMessage
  #body: unknown = UNREAD
  #options: RecordOptions | undefined

  constructor(queue: string, wire: WireMessage) {
    this.queue = queue
    this.#wire = wire
  }

  get body(): unknown {
    if (this.#body === UNREAD) this.#body = recordBody(this.#wire.record, 0)
    return this.#body
  }

  get #record(): RecordOptions {
    return (this.#options ??= readRecordOptions(this.#wire.record, 0))
  }

  get offset(): number {
    return this.#wire.offset
  }

  get id(): string | undefined {
    return this.#record.id
  }

  get key(): string | undefined {
    return this.#record.key
  }

  get priority(): number {
    return this.#record.priority ?? 0
  }

  get headers(): Readonly<Record<string, string>> {
    return this.#record.headers ?? NO_HEADERS
  }

  get state(): MessageState {
    return this.#wire.state
  }

  get reason(): DeathName | undefined {
    return this.#wire.death
  }

  get error(): string | undefined {
    return textOf(this.#wire.reason)
  }

  get attempts(): number {
    return this.#wire.attempts
  }

  get totalAttempts(): number {
    return this.#wire.totalAttempts
  }

  get redrives(): number {
    return this.#wire.redrives
  }

  get publishedAt(): Date {
    return new Date(this.#wire.publishedAtMs)
  }

  get readySince(): Date | undefined {
    return this.#timeIn('ready')
  }

  get dueAt(): Date | undefined {
    return this.#timeIn('scheduled')
  }

  get leasedAt(): Date | undefined {
    return this.#timeIn('leased')
  }

  get diedAt(): Date | undefined {
    return this.#timeIn('dead')
  }

  #timeIn(state: MessageState): Date | undefined {
    return this.#wire.state === state ? new Date(this.#wire.timeMs) : undefined
  }

  get holder(): string | undefined {
    return textOf(this.#wire.holder)
  }

  get expiresAt(): Date | undefined {
    const { expiresAtMs } = this.#wire
    return expiresAtMs === 0 ? undefined : new Date(expiresAtMs)
  }

  get origin(): Origin | undefined {
    return originOf(this.headers)
  }

  /** Returns the fields that a log should show. */
  toJSON(): object {
    const { queue, offset, state, id, key, priority, attempts, totalAttempts, redrives } = this
    const { publishedAt, readySince, dueAt, leasedAt, holder, diedAt, expiresAt, reason, error } = this
    const { headers, origin, body } = this
    return {
      ...{ queue, offset, state, id, key, priority, attempts, totalAttempts, redrives },
      ...{ publishedAt, readySince, dueAt, leasedAt, holder, diedAt, expiresAt, reason, error },
      ...{ headers, origin, body },
    }
  }

  [INSPECT](): object {
    return this.toJSON()
  }
}

function textOf(text: string): string | undefined {
  return text === '' ? undefined : text
}

/** Reads the origin that the broker writes to the headers of a moved message. Any client can publish such headers, so all are checked. */
function originOf(headers: Readonly<Record<string, string>>): Origin | undefined {
  const queue = headers[ORIGIN_HEADERS.queue]
  if (queue === undefined) return undefined
  const reason = headers[ORIGIN_HEADERS.reason]
  return {
    queue,
    offset: wholeOf(headers[ORIGIN_HEADERS.offset]),
    publishedAt: timeOf(headers[ORIGIN_HEADERS.publishedMs]),
    reason: reason !== undefined && Object.hasOwn(DEATH, reason) ? (reason as DeathName) : undefined,
    error: textOf(headers[ORIGIN_HEADERS.error] ?? ''),
    diedAt: timeOf(headers[ORIGIN_HEADERS.diedMs]),
    attempts: wholeOf(headers[ORIGIN_HEADERS.attempts]),
    redrives: wholeOf(headers[ORIGIN_HEADERS.redrives]),
  }
}

function wholeOf(text: string | undefined): number | undefined {
  const value = text === undefined || !/^\d{1,16}$/.test(text) ? NaN : Number(text)
  return Number.isSafeInteger(value) ? value : undefined
}

function timeOf(text: string | undefined): Date | undefined {
  const ms = wholeOf(text)
  return ms === undefined ? undefined : new Date(ms)
}

/** Reads MESSAGES, the answer about the queue of this name. */
export function messagesAnswer<Body>(queue: string): Answer<MessagePage<Body>> {
  return {
    opcode: OP.MESSAGES,
    read: (bytes, start, end) => {
      const page = decodeMessages(bytes, start, end)
      const messages = page.messages.map((wire) => {
        const { record, offset, publishedAtMs, timeMs, expiresAtMs } = wire
        const found = checkRecords(record, 0, record.length, 1, MOVED_BYTES_MAX)
        if (typeof found !== 'number') throw malformed(found.message)
        for (const number of [offset, publishedAtMs, timeMs, expiresAtMs])
          if (!Number.isSafeInteger(number))
            throw malformed(`It has the number ${number}, which is above 2^53.`)
        return new Peeked(queue, wire) as unknown as PeekedMessage<Body>
      })
      return page.next === undefined ? { messages } : { messages, next: page.next }
    },
  }
}

function malformed(what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker sent a malformed MESSAGES. ${what}`)
}
