/**
 * Consumers and readers of a world with routed traffic: what they receive, and when. As in a session, a delivery that is
 * gated is received only when the entry of its turn is durable; if the broker crashes first, the client never gets it.
 */
import type { LostRange, QueueName, SluiceError } from '@sluice/protocol'
import type { Reader, ReaderSink } from '../../packages/server/src/broker/reader.js'
import type { Consumer, Delivery, Subscription } from '../../packages/server/src/queue/index.js'
import { sameBytes, splitRecords } from './attempts.js'
import type { LedgerState } from './ledger.js'
import { contentOf } from './record.js'
import { Violation } from './trace.js'

/** What the clients use of their world. */
export interface Receiving {
  readonly durable: LedgerState
  count(what: string, by?: number): void
  /** Calls `work` now, or when the entry of this turn is durable. */
  receive(isGated: boolean, work: () => void): void
  guard(work: () => void): void
  ended(name: QueueName): void
}

/** What was received from a queue, or from a group since it moved last. It outlives brokers. */
export class Received {
  /** Offsets of received messages, and of messages whose ack was confirmed. */
  readonly seen = new Set<number>()
  readonly acked = new Set<number>()
  /** The last message of each key that was received for the first time. */
  readonly #lastOfKey = new Map<string, number>()
  readonly #isGroup: boolean

  constructor(isGroup: boolean) {
    this.#isGroup = isGroup
  }

  note(what: string, offset: number, key: string | undefined, isMarked: boolean): void {
    if (this.acked.has(offset)) throw new Violation(8, `${what} was acknowledged and is delivered again`)
    if (this.seen.has(offset)) {
      // Invariant 22.
      if (!isMarked) throw new Violation(22, `${what} is delivered again and not marked`)
      return
    }
    this.seen.add(offset)
    if (!this.#isGroup || key === undefined) return
    const last = this.#lastOfKey.get(key) ?? -1
    if (offset < last) throw new Violation(13, `${what} is delivered after offset ${last} of its key`)
    this.#lastOfKey.set(key, offset)
  }
}

/** Messages of one queue that are leased now, and their keys. They do not outlive the broker. */
export class Leased {
  readonly #offsets = new Map<number, string | undefined>()
  readonly #keys = new Set<string>()

  add(what: string, offset: number, key: string | undefined): void {
    if (this.#offsets.has(offset)) throw new Violation(7, `${what} is leased twice`)
    if (key !== undefined && this.#keys.has(key))
      throw new Violation(13, `${what} is delivered while another message of its key is leased`)
    this.#offsets.set(offset, key)
    if (key !== undefined) this.#keys.add(key)
  }

  delete(offset: number): void {
    const key = this.#offsets.get(offset)
    this.#offsets.delete(offset)
    if (key !== undefined) this.#keys.delete(key)
  }
}

interface Held {
  readonly offset: number
  readonly record: Uint8Array
  isReceived: boolean
}

/** One subscription to a queue or a group. */
export class Member implements Consumer {
  readonly label = 'a member'
  readonly address = ''
  readonly isReady = true
  readonly name: QueueName
  readonly held = new Map<number, Held>()
  subscription!: Subscription
  isOver = false
  readonly #around: Receiving
  readonly #leased: Leased
  /** Returns what was received from the queue; a move of a group starts it again from nothing. */
  readonly #received: () => Received

  constructor(around: Receiving, name: QueueName, leased: Leased, received: () => Received) {
    this.#around = around
    this.name = name
    this.#leased = leased
    this.#received = received
  }

  deliver({ queue }: Subscription, { run, firstTag, bytes, start, end }: Delivery): void {
    this.#around.guard(() => {
      const { attempt, redelivered, ungated } = run
      for (const [index, record] of splitRecords(bytes, start, end).entries()) {
        const offset = run.offset + index
        const what = `offset ${offset} of ${this.name}`
        const { key } = contentOf(record)
        const held = { offset, record, isReceived: false }
        this.#leased.add(what, offset, key)
        this.held.set((firstTag + index) >>> 0, held)
        const received = this.#received()
        this.#around.count(queue.group === undefined ? 'delivered' : 'delivered to groups')
        this.#around.receive(!ungated, () => {
          held.isReceived = true
          this.#checkBytes(queue.id, offset, record, what)
          received.note(what, offset, key, redelivered || attempt > 1)
        })
      }
    })
  }

  // Invariant 2. What is gone by now cannot be compared.
  #checkBytes(queueId: number, offset: number, record: Uint8Array, what: string): void {
    const saved = this.#around.durable.queues.get(queueId)
    const stream =
      saved?.group === undefined ? undefined : this.#around.durable.queues.get(saved.group.streamId)
    const message = saved?.live.get(offset) ?? stream?.retained.get(offset)
    if (saved !== undefined && offset >= (stream ?? saved).next)
      throw new Violation(2, `${what} is received before it is durable`)
    if (message !== undefined && !sameBytes(message.record, record))
      throw new Violation(2, `${what} is delivered with other bytes`)
  }

  lost(_subscription: Subscription, _reason: unknown, ranges: readonly LostRange[]): void {
    for (const { firstTag, count } of ranges)
      for (let i = 0; i < count; i++) this.release((firstTag + i) >>> 0)
  }

  release(tag: number): void {
    const held = this.held.get(tag)
    if (held === undefined) return
    this.held.delete(tag)
    this.#leased.delete(held.offset)
  }

  drained(): void {}

  ended(_subscription: Subscription, error: SluiceError): void {
    this.over()
    if (error.code === 'CORRUPT' || error.code === 'READ_FAILED')
      this.#around.guard(() => {
        throw new Violation(2, `${this.name} ends its consumers: ${error.message}`)
      })
  }

  over(): void {
    this.isOver = true
    for (const tag of [...this.held.keys()]) this.release(tag)
    this.#around.ended(this.name)
  }
}

/**
 * One client that reads a stream from its beginning, and goes on after each crash at the message that it needs next. It
 * gets each message once, in order; it misses only what retention removed.
 */
export class Follower implements ReaderSink {
  readonly isReady = true
  readonly streamId: number
  next: number
  reader: Reader | undefined
  /** Credit to give back. */
  messages = 0
  bytes = 0
  readonly #around: Receiving

  constructor(around: Receiving, streamId: number, next: number) {
    this.#around = around
    this.streamId = streamId
    this.next = next
  }

  deliverRead(reader: Reader, { run, bytes, start, end }: Delivery): void {
    const first = run.offset
    const records = splitRecords(bytes, start, end)
    // Messages that were left out are found in the log, so the check waits until the log has everything of this turn.
    this.#around.receive(true, () => {
      if (reader !== this.reader) return
      for (const [index, record] of records.entries()) {
        this.#receive(reader.queue.name, first + index, record)
        this.messages++
        this.bytes += record.length
      }
    })
  }

  #receive(name: string, offset: number, record: Uint8Array): void {
    if (offset < this.next)
      throw new Violation('reader', `offset ${offset} of ${name} is read after offset ${this.next - 1}`)
    const retained = this.#around.durable.queues.get(this.streamId)?.retained
    for (let left = this.next; left < offset; left++)
      if (retained?.has(left) === true)
        throw new Violation('reader', `offset ${left} of ${name} is left out, and ${offset} is read`)
    const message = retained?.get(offset)
    if (message !== undefined && !sameBytes(message.record, record))
      throw new Violation(2, `offset ${offset} of ${name} is read with other bytes`)
    this.next = offset + 1
    this.#around.count('read')
  }

  readAt(_reader: Reader, missed: number): void {
    this.#around.count('missed by readers', missed)
  }

  readEnded(): void {
    this.reader = undefined
  }

  /** Nothing is left to read. */
  checkEnd(name: string): void {
    for (const offset of this.#around.durable.queues.get(this.streamId)?.retained.keys() ?? [])
      if (offset >= this.next)
        throw new Violation('reader', `offset ${offset} of ${name} is not read although there is credit`)
  }
}
