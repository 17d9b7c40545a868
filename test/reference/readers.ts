/**
 * A model of streams and their readers. The model knows each message that was published and which messages retention may
 * have removed. A reader must get each of the others once, in order, unchanged and from the right place on, and must be
 * told about the messages that it missed.
 */
import { recordSize, type ReadRequest, type SluiceError } from '@sluice/protocol'
import type { Reader, ReaderSink } from '../../packages/server/src/broker/reader.js'
import type { Delivery } from '../../packages/server/src/queue/index.js'
import { Difference } from './state.js'

export interface StreamMessage {
  /** Undefined for a duplicate, which is not kept. */
  readonly record: Uint8Array | undefined
  readonly publishedMs: number
  readonly key: string | undefined
  readonly headers: Readonly<Record<string, string>>
}

export interface Limits {
  readonly retainAgeMs: number
  readonly retainBytes: number
  readonly retainMessages: number
}

/** The broker knows the bytes of a batch that reaches into two chunks, and estimates how they are divided. */
const BYTES_SLACK = 2_000

export class ModelStream {
  readonly messages: StreamMessage[] = []
  limits: Limits = { retainAgeMs: 0, retainBytes: 0, retainMessages: 0 }
  /** Messages before this offset may be gone, now or because of earlier limits. */
  goneBelow = 0

  /** Called when time has passed, messages have arrived or the limits have changed. */
  forget(nowMs: number): void {
    const { retainAgeMs, retainBytes, retainMessages } = this.limits
    let newer = 0
    let newerBytes = 0
    for (let offset = this.messages.length - 1; offset >= this.goneBelow; offset--) {
      const { record, publishedMs } = this.messages[offset]!
      const isOld = retainAgeMs > 0 && publishedMs <= nowMs - retainAgeMs
      const isExcess =
        (retainMessages > 0 && newer >= retainMessages) ||
        (retainBytes > 0 && newerBytes >= retainBytes - BYTES_SLACK)
      if (isOld || isExcess) this.goneBelow = offset + 1
      if (record === undefined) continue
      newer++
      newerBytes += record.length
    }
  }

  /** After a crash, only the messages before `end` exist. */
  truncate(end: number): void {
    this.messages.length = end
    this.goneBelow = Math.min(this.goneBelow, end)
  }
}

/** One reader, and what it must get. */
export class ModelReader implements ReaderSink {
  isReady = true
  reader!: Reader
  /** Offset of the next message that may arrive. */
  next = 0
  end = Infinity
  isEnded = false
  /** Offset after the last message that arrived without waiting for the disk. */
  ungatedBelow = 0
  /** Messages and bytes that were not given back. */
  held = 0
  heldBytes = 0
  readonly request: ReadRequest
  readonly #stream: ModelStream
  readonly #count: (what: string, count?: number) => void

  constructor(stream: ModelStream, request: ReadRequest, count: (what: string, count?: number) => void) {
    this.#stream = stream
    this.request = request
    this.#count = count
  }

  /** The broker has answered where the reader begins. */
  opened(reader: Reader, missed: number): void {
    this.reader = reader
    const { from, follow, until = Infinity } = this.request
    const { length } = this.#stream.messages
    this.end = Math.min(until, follow ? Infinity : length)
    this.next = from === 'first' ? 0 : from === 'last' ? length : from
    if (missed > Math.max(0, reader.next - this.next))
      this.#fail(`${missed} messages are missed at the beginning`)
    this.#pass(reader.next, typeof from === 'number' ? missed : 1)
  }

  deliverRead(_reader: Reader, { run, count, bytes, start, end }: Delivery): void {
    let at = start
    for (let offset = run.offset; offset < run.offset + count; offset++) {
      const next = at + recordSize(bytes, at)
      this.#message(offset, bytes.subarray(at, next))
      at = next
    }
    if (at !== end) this.#fail(`${count} records end at ${at}, not at ${end}`)
    if (run.ungated) this.ungatedBelow = run.offset + count
    this.#count('messages read', count)
    if (run.offset % 1024 === 0) this.#count('beginnings of chunks read')
  }

  #message(offset: number, record: Uint8Array): void {
    if (offset < this.next) this.#fail(`message ${offset} came after ${this.next - 1}`)
    if (offset >= this.end) this.#fail(`message ${offset} came after the end at ${this.end}`)
    this.#pass(offset, 0)
    const message = this.#stream.messages[offset]
    if (message?.record === undefined || !this.#isWanted(message))
      this.#fail(`message ${offset} does not match, or does not exist`)
    if (Buffer.compare(message.record, record) !== 0) this.#fail(`message ${offset} has changed`)
    this.next = offset + 1
    this.held++
    this.heldBytes += record.length
    const { messages, bytes } = this.request
    if (this.held > messages || (this.heldBytes > bytes && this.held > 1))
      this.#fail(`${this.held} messages of ${this.heldBytes} bytes exceed the credit`)
  }

  readAt({ next }: Reader, missed: number, isEnd: boolean): void {
    if (missed > Math.max(0, next - this.next)) this.#fail(`${missed} messages before ${next} are missed`)
    this.#pass(next, missed)
    if (missed > 0) this.#count('gaps reported')
    if (!isEnd) return
    if (next !== this.end) this.#fail(`it ended at ${next}, not at ${this.end}`)
    this.isEnded = true
    this.#count('readers that ended')
  }

  readEnded(_reader: Reader, error: SluiceError): void {
    this.#fail(`it ended with ${error.code}`)
  }

  // Moves on to `offset`. What is passed must be gone and reported as missed, or not be wanted.
  #pass(offset: number, missed: number): void {
    for (; this.next < offset; this.next++) {
      const message = this.#stream.messages[this.next]
      if (message?.record === undefined || !this.#isWanted(message)) continue
      if (this.next >= this.#stream.goneBelow) this.#fail(`message ${this.next} was left out`)
      if (missed === 0) this.#fail(`message ${this.next} was missed without a report`)
    }
  }

  #isWanted({ publishedMs, key, headers }: StreamMessage): boolean {
    const { fromMs = 0, filter } = this.request
    if (publishedMs < fromMs) return false
    if (filter?.key !== undefined && filter.key !== key) return false
    return Object.entries(filter?.headers ?? {}).every(([name, value]) => headers[name] === value)
  }

  /** Checks that nothing is left that the reader could have got by now. */
  checkProgress(): void {
    const { messages, bytes } = this.request
    if (this.isEnded || !this.isReady || this.held >= messages) return
    const end = Math.min(this.end, this.#stream.messages.length)
    for (let offset = this.next; offset < end; offset++) {
      const message = this.#stream.messages[offset]!
      if (message.record === undefined || !this.#isWanted(message)) continue
      // A message that may be gone can still be the next one, and too large for the credit that is left.
      if (this.held > 0 && this.heldBytes + message.record.length > bytes) return
      if (offset >= this.#stream.goneBelow) this.#fail(`message ${offset} waits, although there is credit`)
    }
    if (this.end <= this.#stream.messages.length) this.#fail(`it has not ended at ${this.end}`)
  }

  /** The client gives back what it holds. */
  giveBack(): { readonly messages: number; readonly bytes: number } {
    const given = { messages: this.held, bytes: this.heldBytes }
    this.held = 0
    this.heldBytes = 0
    return given
  }

  #fail(what: string): never {
    const { from, fromMs, until, follow, filter } = this.request
    const request = JSON.stringify({ from, fromMs, until, follow, filter })
    throw new Difference(`a reader of ${request} at ${this.next}: ${what}`)
  }
}
