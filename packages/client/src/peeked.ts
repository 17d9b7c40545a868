/**
 * Messages as PEEK shows them: nobody has a lease on them, and they may have changed since. Body, options and origin
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

/** Where a message was before it was moved or copied to its queue. */
export interface Origin {
  /** Name of the queue. */
  readonly queue: string
  readonly offset: number | undefined
  readonly publishedAt: Date | undefined
  /** Why it was dead there; undefined when it was not. */
  readonly reason: DeathName | undefined
  /** What went wrong there, for a person. */
  readonly error: string | undefined
  readonly diedAt: Date | undefined
  /** Tries there. */
  readonly attempts: number | undefined
  /** How often it was brought back from the dead. */
  readonly redrives: number | undefined
}

/** A message in its queue, as it was when it was looked at. Looking takes no lease. */
export interface PeekedMessage<Body = unknown> {
  /** Name of its queue. */
  readonly queue: string
  /** Its place in the queue, from 0. */
  readonly offset: number
  /** As it was published; decoded when it is first read. Throws SluiceError INVALID_BODY where that fails. */
  readonly body: Body
  readonly id: string | undefined
  readonly key: string | undefined
  /** 0 to 31, higher goes first. */
  readonly priority: number
  readonly headers: Readonly<Record<string, string>>
  readonly state: MessageState
  /** Why it is dead; undefined when it is not. */
  readonly reason: DeathName | undefined
  /** Of a dead message, what its consumer said, for a person; undefined when nothing was said. */
  readonly error: string | undefined
  /** Tries so far, since it was published or last brought back from the dead. */
  readonly attempts: number
  /** Tries in all. */
  readonly totalAttempts: number
  /** How often it was brought back from the dead. */
  readonly redrives: number
  readonly publishedAt: Date
  /** Ready: since when it can be delivered. */
  readonly readySince: Date | undefined
  /** Scheduled: when it becomes ready. */
  readonly dueAt: Date | undefined
  /** Leased: when it was delivered. */
  readonly leasedAt: Date | undefined
  /** Leased: the name that its consumer's client gave itself. */
  readonly holder: string | undefined
  /** Dead: since when. */
  readonly diedAt: Date | undefined
  /** When its time to live is over; undefined: never. */
  readonly expiresAt: Date | undefined
  /** Where it was before, when it was moved or copied here. */
  readonly origin: Origin | undefined
}

/** Some messages of a queue, by offset. */
export interface MessagePage<Body = unknown> {
  readonly messages: PeekedMessage<Body>[]
  /** Where the next page begins: goes into `from`. Undefined: nothing is behind. */
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

  /** What a log should show of it: all that is there. */
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

/** What the broker wrote on a message that it moved; anybody can publish such headers, so nothing is relied on. */
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

/** MESSAGES, about the queue of this name. */
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
          if (!Number.isSafeInteger(number)) throw malformed(`It has the number ${number}, above 2^53.`)
        return new Peeked(queue, wire) as unknown as PeekedMessage<Body>
      })
      return page.next === undefined ? { messages } : { messages, next: page.next }
    },
  }
}

function malformed(what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `MESSAGES is not acceptable. ${what}`)
}
