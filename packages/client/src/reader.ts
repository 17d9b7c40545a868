/**
 * The messages of a stream as an async iterator. The reader keeps its own position: on a new connection it continues
 * after the last message that it yielded, so no message is left out or repeated.
 *
 * Invariant: `#next` is the offset after the last message that was yielded. What is buffered comes after it, in the order of
 * arrival, and is dropped with its connection. The broker has sent at most the credit more than was given back.
 */
import {
  decodeDeliverHead,
  decodeReadAt,
  decodeReadOk,
  encodeControl,
  encodeCredit,
  encodeSubscriptionId,
  OP,
  recordSize,
  SluiceError,
  type ReadOpened,
  type ReadPosition,
} from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { ChannelSink, Connection } from './connection.js'
import { fail } from './failure.js'
import { Fifo } from './fifo.js'
import { aborted } from './outcomes.js'
import { ReadMessage, type ReadRun } from './read-message.js'
import { Renewal } from './renewal.js'
import { decodeRun, eachCopiedPart, malformedDelivery, recordsBytes } from './run.js'
import { readBody, type Schema } from './schema.js'
import type { Consumer, Session } from './session.js'

/** Where a reader begins. */
export type ReadStart = 'first' | 'last' | { readonly offset: number } | { readonly timeMs: number }

export interface ReadSettings {
  readonly from: ReadStart
  readonly follow: boolean
  readonly filter: { readonly key?: string; readonly headers?: Readonly<Record<string, string>> } | undefined
  readonly messages: number
  readonly bytes: number
}

/** Messages of a stream that retention removed before the reader got them. */
export interface Missed {
  readonly stream: string
  /** Number of offsets before `offset` whose messages are gone. */
  readonly messages: number
  /** The reader continues at this offset. */
  readonly offset: number
}

type Result = IteratorResult<ReadMessage, undefined>
type Next = (result: Result) => void

/** Maximum number of messages that `batches` yields at once. */
const BATCH_MESSAGES_DEFAULT = 1_000
const DONE = { value: undefined, done: true } as const

export class StreamReader implements AsyncIterableIterator<ReadMessage, undefined>, ChannelSink, Consumer {
  readonly stream: string
  readonly #session: Session
  readonly #settings: ReadSettings
  readonly #schema: Schema | undefined
  readonly #signal: AbortSignal | undefined
  readonly #forget: (reader: StreamReader) => void
  readonly #missed: (missed: Missed) => void
  readonly #renewal: Renewal
  readonly #onAbort: () => void
  /** Offset after the last message that was yielded; undefined until the broker has answered where the reader begins. */
  #next: number | undefined
  /** Offset at which a reader that does not follow ends. */
  #until: number | undefined
  #queueNumber: number | undefined
  #connection: Connection | undefined
  #channel = 0
  #id = 0
  #isOpen = false
  /** Runs that were delivered, and changes of the position between them. */
  readonly #arrived = new Fifo<ReadRun | ReadPosition>()
  /** In the first run, the index of the first message that was not taken, and its position in the records. */
  #index = 0
  #at = 0
  /** Messages that were delivered on this connection and not given back, and the part of them that was taken. */
  #heldMessages = 0
  #heldBytes = 0
  #takenMessages = 0
  #takenBytes = 0
  readonly #nexts = new Fifo<Next>()
  /** The error with which the next call of `next` rejects, once. */
  #failure: SluiceError | undefined
  #hasEnded = false

  constructor(
    session: Session,
    stream: string,
    schema: Schema | undefined,
    settings: ReadSettings,
    signal: AbortSignal | undefined,
    missed: (missed: Missed) => void,
    forget: (reader: StreamReader) => void,
  ) {
    this.#session = session
    this.stream = stream
    this.#schema = schema
    this.#settings = settings
    this.#signal = signal
    this.#missed = missed
    this.#forget = forget
    if (typeof settings.from === 'object' && 'offset' in settings.from) this.#next = settings.from.offset
    this.#renewal = new Renewal(session, stream, false, (connection) => this.attach(connection))
    this.#onAbort = () => this.#end(aborted(signal!, false))
    if (signal?.aborted === true) this.#onAbort()
    else if (signal !== undefined) addAbortListener(signal, this.#onAbort)
  }

  // --- iteration ---

  [Symbol.asyncIterator](): this {
    return this
  }

  next(): Promise<Result> {
    if (this.#nexts.length === 0) {
      const message = this.#take()
      if (message !== undefined)
        return this.#schema === undefined
          ? Promise.resolve({ value: message, done: false })
          : this.#read(message, this.#schema)
      if (this.#failure !== undefined) {
        const failure = this.#failure
        this.#failure = undefined
        return Promise.reject(failure.with({ queue: this.stream }))
      }
    }
    if (this.#hasEnded) return Promise.resolve(DONE)
    const next = new Promise<Result>((resolve) => this.#nexts.push(resolve))
    const schema = this.#schema
    if (schema === undefined) return next
    return next.then((result) => (result.done === true ? result : this.#read(result.value, schema)))
  }

  async #read(message: ReadMessage, schema: Schema): Promise<Result> {
    try {
      message.read(await readBody(schema, message.body, `body of message ${message.offset}`))
    } catch (error) {
      this.#end(undefined)
      throw error instanceof SluiceError ? error.with({ queue: this.stream, offset: message.offset }) : error
    }
    return { value: message, done: false }
  }

  /** Iterates over arrays of the messages that have arrived, at most `max` in each. */
  async *batches(max = BATCH_MESSAGES_DEFAULT): AsyncGenerator<ReadMessage[], undefined> {
    try {
      for (let first = await this.next(); first.done !== true; first = await this.next()) {
        const batch = [first.value]
        for (let next; batch.length < max && (next = this.#take()) !== undefined;) {
          if (this.#schema !== undefined) await this.#read(next, this.#schema)
          batch.push(next)
        }
        yield batch
      }
    } finally {
      this.#end(undefined)
    }
  }

  /** Called when the loop ends. */
  return(): Promise<IteratorReturnResult<undefined>> {
    this.#end(undefined)
    return Promise.resolve(DONE)
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#end(undefined)
    return Promise.resolve()
  }

  // Takes the next message, if it has arrived.
  #take(): ReadMessage | undefined {
    for (let first = this.#arrived.at(0); first !== undefined; first = this.#arrived.at(0)) {
      if (!('records' in first)) {
        this.#arrived.skip(1)
        this.#move(first)
        continue
      }
      const at = this.#at + first.gap
      const message = new ReadMessage(first, this.#index, at)
      const size = recordSize(first.records, at)
      this.#next = message.offset + 1
      if (++this.#index < first.count) this.#at = at + size
      else {
        this.#index = 0
        this.#at = 0
        this.#arrived.skip(1)
      }
      this.#takenBytes += size
      if (
        ++this.#takenMessages >= this.#settings.messages / 4 ||
        this.#takenBytes >= this.#settings.bytes / 4
      )
        this.#giveBack()
      return message
    }
    return undefined
  }

  #move({ offset, missed, isEnd }: ReadPosition): void {
    this.#next = offset
    if (missed > 0) this.#missed({ stream: this.stream, messages: missed, offset })
    if (isEnd) this.#end(undefined)
  }

  #giveBack(): void {
    const { connection } = this.#session
    const messages = this.#takenMessages
    const bytes = this.#takenBytes
    this.#takenMessages = 0
    this.#takenBytes = 0
    this.#heldMessages -= messages
    this.#heldBytes -= bytes
    if (!this.#isOpen || connection === undefined || connection !== this.#connection) return
    const credit = { subscriptionId: this.#id, messages, bytes, limit: undefined, drain: false }
    connection.send(OP.CREDIT, this.#channel, 0, encodeCredit(credit))
    this.#session.turn.schedule()
  }

  // --- the connection ---

  attach(connection: Connection): void {
    if (this.#hasEnded || this.#connection !== undefined) return
    this.#renewal.cancel()
    try {
      this.#channel = connection.openChannel(this)
    } catch (error) {
      this.ended(error as SluiceError)
      return
    }
    this.#connection = connection
    const channel = this.#channel
    connection.request(OP.READ, channel, encodeControl(this.#request()), {
      expects: OP.READ_OK,
      deadlineMs: Infinity,
      answered: (bytes, start, end) => {
        const opened = decodeReadOk(bytes, start, end)
        if (this.#hasEnded) leave(this.#session, connection, channel, opened.readerId)
        else this.#opened(opened)
      },
      // When the connection is lost, `lost` is called instead.
      failed: (error) => {
        if (error.code !== 'CONNECTION_LOST') this.ended(error)
      },
    })
    this.#session.turn.schedule()
  }

  #request(): { readonly [name: string]: unknown } {
    const { from, follow, filter, messages, bytes } = this.#settings
    const isTime = typeof from === 'object' && 'timeMs' in from
    return {
      name: this.stream,
      ...(this.#next !== undefined ? { from: this.#next } : isTime ? {} : { from }),
      ...(this.#next === undefined && isTime ? { fromMs: from.timeMs } : {}),
      ...(this.#until === undefined ? {} : { until: this.#until }),
      follow,
      ...(filter === undefined ? {} : { filter }),
      messages,
      bytes,
    }
  }

  #opened({ readerId, queueNumber, offset, end, missed }: ReadOpened): void {
    this.#id = readerId
    this.#isOpen = true
    this.#renewal.subscribed()
    if (this.#queueNumber !== undefined && this.#queueNumber !== queueNumber) {
      // The offsets of another stream with this name would be taken for those of this one.
      const error = new SluiceError(
        'QUEUE_DELETED',
        `The stream ${this.stream} was deleted and created again.`,
      )
      this.#end(error.with({ queue: this.stream }))
      return
    }
    this.#queueNumber = queueNumber
    if (!this.#settings.follow) this.#until = end
    // With a time, the first message can come later than `offset`, so the position is known when it arrives.
    if (!this.#isFromTime) this.#next ??= offset
    if (missed > 0) this.#arrived.push({ readerId, isEnd: false, offset, missed })
    this.#resolve()
  }

  get #isFromTime(): boolean {
    const { from } = this.#settings
    return typeof from === 'object' && 'timeMs' in from
  }

  /** @throws SluiceError MALFORMED_FRAME */
  delivered(bytes: Uint8Array, start: number, end: number): void {
    const head = decodeDeliverHead(bytes, start, end)
    if (!this.#isOpen || head.subscriptionId !== this.#id) return
    const run: ReadRun = decodeRun(head, bytes, start, end, this)
    const { messages, bytes: bytesMax } = this.#settings
    this.#heldMessages += run.count
    this.#heldBytes += recordsBytes(run)
    // Memory is bounded by the credit, even if the broker miscounts.
    if (this.#heldMessages > messages || (this.#heldBytes > bytesMax && run.count > 1))
      throw malformedDelivery(`${this.#heldMessages} messages exceed the credit of ${messages}.`)
    eachCopiedPart(run, (part) => this.#arrived.push(part))
    this.#resolve()
  }

  /** @throws SluiceError MALFORMED_FRAME */
  readAt(bytes: Uint8Array, start: number, end: number): void {
    const position = decodeReadAt(bytes, start, end)
    if (!this.#isOpen || position.readerId !== this.#id) return
    if (position.isEnd) this.#closeChannel()
    this.#arrived.push(position)
    this.#resolve()
  }

  /** @throws SluiceError MALFORMED_FRAME */
  drained(): never {
    throw malformedDelivery('A reader has no drain.')
  }

  /** @throws SluiceError MALFORMED_FRAME */
  leasesLost(): never {
    throw malformedDelivery('A reader has no leases.')
  }

  #resolve(): void {
    while (this.#nexts.length > 0) {
      const value = this.#take()
      if (value === undefined) return
      this.#nexts.shift()!({ value, done: false })
    }
  }

  ended(error: SluiceError): void {
    this.#closeChannel()
    this.#connection = undefined
    this.#drop()
    if (this.#hasEnded || this.#renewal.renews(error)) return
    this.#end(error)
  }

  // The end of the stream may have arrived and wait to be taken.
  lost(): void {
    if (this.#connection === undefined) return
    this.#connection = undefined
    this.#isOpen = false
    this.#drop()
  }

  fail(error: SluiceError): void {
    this.#connection = undefined
    this.#isOpen = false
    this.#end(error.code === 'CLOSED' ? undefined : error)
  }

  invariants(): void {
    let messages = 0
    let skipped = this.#index
    for (const each of this.#arrived) {
      if ('records' in each) messages += each.count - skipped
      if ('records' in each) skipped = 0
    }
    if (messages + this.#takenMessages !== this.#heldMessages)
      throw new Error(
        `reader of ${this.stream}: ${messages} messages are buffered and ${this.#takenMessages} taken, but ${this.#heldMessages} are held`,
      )
  }

  // Drops what has arrived on a connection. It is read again from `#next` on.
  #drop(): void {
    this.#arrived.clear()
    this.#index = 0
    this.#at = 0
    this.#heldMessages = 0
    this.#heldBytes = 0
    this.#takenMessages = 0
    this.#takenBytes = 0
  }

  #closeChannel(): void {
    this.#connection?.closeChannel(this.#channel)
    this.#isOpen = false
  }

  /** Ends the iteration, and closes the reader at the broker. */
  #end(error: SluiceError | undefined): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    removeAbortListener(this.#signal, this.#onAbort)
    this.#renewal.cancel()
    const connection = this.#connection
    if (this.#isOpen && connection !== undefined) leave(this.#session, connection, this.#channel, this.#id)
    this.#isOpen = false
    this.#drop()
    this.#forget(this)
    const nexts = this.#nexts.drain()
    if (error !== undefined && nexts.length === 0) this.#failure = error
    nexts.forEach((resolve, index) => {
      if (index === 0 && error !== undefined) fail(resolve, error, { queue: this.stream })
      else resolve(DONE)
    })
  }
}

function leave(session: Session, connection: Connection, channel: number, id: number): void {
  const done = (): void => connection.closeChannel(channel)
  connection.request(OP.UNSUBSCRIBE, channel, encodeSubscriptionId(id), {
    expects: OP.RESULT,
    deadlineMs: session.deadlines.after(session.timeoutMs),
    answered: done,
    failed: done,
  })
  session.turn.schedule()
}
