/**
 * A reader: the position of one client in the retained messages of a queue, and its credit. It holds no message and no
 * lease, so a slow reader holds nothing in the log or in memory.
 *
 * Invariant: every matching message before `next` was delivered or counted as missed. What the client was
 * sent and has not given back is within its credit, except for a single over-large message.
 */
import type { ReadRequest, SluiceError } from '@sluice/protocol'
import type { Delivery, Queue } from '../queue/index.js'
import { RecordCursor } from './record-cursor.js'
import { RecordFilter } from './record-filter.js'

/** Receives the deliveries and events of a reader. Everything is sent to the client in this order. */
export interface ReaderSink {
  /** Whether the client takes deliveries now; false while too many sent bytes are unread. */
  readonly isReady: boolean
  deliverRead(reader: Reader, delivery: Delivery): void
  /**
   * The reader continues at `reader.next`. Retention has removed the `missed` messages before that offset. `isEnd`: the
   * reader has reached its end, and is closed.
   */
  readAt(reader: Reader, missed: number, isEnd: boolean): void
  /** Reports that the reader was closed, with the reason. */
  readEnded(reader: Reader, error: SluiceError): void
}

export class Reader {
  readonly id: number
  readonly channel: number
  readonly queue: Queue
  readonly sink: ReaderSink
  readonly filter: RecordFilter | undefined
  /** The reader ends before this offset; Infinity if it follows the stream. */
  readonly end: number
  /** Offset of the next message to look at. */
  next: number
  /** Messages that were published before this time are left out; 0 once a later message was found. */
  fromMs: number
  /** Number of messages delivered, modulo 2^32. */
  delivered = 0
  isClosed = false
  /** Whether the reader is in the list of readers that may have something to deliver. */
  isActive = false
  /** Whether a block is being loaded. */
  isLoading = false
  /** Position of the batch that could not be read; -1 if there is no such batch. */
  unreadablePosition = -1
  readonly records = new RecordCursor()
  readonly #messagesMax: number
  readonly #bytesMax: number
  #messages: number
  #bytes: number

  constructor(
    id: number,
    channel: number,
    queue: Queue,
    sink: ReaderSink,
    request: ReadRequest,
    next: number,
  ) {
    const { filter, follow, until, fromMs = 0, messages, bytes } = request
    this.id = id
    this.channel = channel
    this.queue = queue
    this.sink = sink
    this.filter = filter === undefined ? undefined : new RecordFilter(filter)
    this.end = Math.min(until ?? Infinity, follow ? Infinity : queue.next)
    this.next = next
    this.fromMs = fromMs
    this.#messagesMax = this.#messages = messages
    this.#bytesMax = this.#bytes = bytes
  }

  /** Number of messages that may be delivered now, without regard to bytes. */
  get room(): number {
    return this.#messages
  }

  /** Whether a message of `bytes` may be delivered now: within the byte credit, or alone if the client has given all back. */
  takes(bytes: number): boolean {
    return bytes <= this.#bytes || this.#bytes === this.#bytesMax
  }

  /** Called for each message of a delivery. */
  spend(bytes: number): void {
    this.#messages--
    this.#bytes -= bytes
    this.delivered = (this.delivered + 1) >>> 0
  }

  /** The client gives back credit, never more than it had at the beginning. */
  giveBack(messages: number, bytes: number): void {
    this.#messages = Math.min(this.#messagesMax, this.#messages + messages)
    this.#bytes = Math.min(this.#bytesMax, this.#bytes + bytes)
  }
}
