/**
 * Facts: events of messages and queues, as recorded in the log. A fact has exact offsets and absolute times. Its effect
 * depends only on the durable state, and applying the same facts again, in order, changes nothing.
 *
 * Item: u8 kind · u8 death · u16 text bytes · u32 count · u64 offset · [u64 time, ms] · text.
 * The time exists only for some kinds.
 */
import {
  readText,
  readU16,
  readU32,
  readU64,
  writeText,
  writeU16,
  writeU32,
  writeU64,
} from '@sluice/protocol'

export const FACT = {
  /** Acknowledged: `count` messages from `offset` are gone. */
  ack: 1,
  /** Failed: `count` is the number of attempts so far; the message returns at `time`. */
  retry: 2,
  /** Dead since `time`; `count` is the number of attempts, and `text` is the reason from the consumer. */
  dead: 3,
  /** Purged: all scheduled, ready and leased messages below `offset` are gone. `count` is their number. */
  purge: 4,
  /** Every message below `offset` may have been delivered before. Written when the broker stops. */
  delivered: 5,
  /** Expired: `count` messages from `offset` are gone. */
  expire: 6,
  /** Dropped to make room: `count` messages from `offset` are gone. */
  drop: 7,
  /** Cancelled: `count` messages from `offset` are gone. */
  cancel: 8,
  /** Precedes the batch of the message. The message is gone at once, because an earlier message has its id; `time` is the offset of that message. */
  duplicate: 9,
  /** Discarded while dead: `count` messages from `offset` are gone. */
  discard: 10,
  /** The dead message moved to the queue that `text` names. The same entry holds the batch that was appended to that queue. */
  move: 11,
  /** The dead message was redriven at `time` by the client that `text` names, for the `count`th time. */
  redrive: 12,
  /** The dead message was redriven to the queue that `text` names. The same entry holds the batch that was appended to that queue. */
  carry: 13,
  /** The due time was changed to `time`. */
  reschedule: 14,
  /** Precedes a batch: messages of the batch that set no time to live have a time to live of `time` ms. */
  ttl: 15,
  /** A queue was created or its options changed; `text` is its definition. */
  ensure: 16,
  /** The queue was deleted with all its messages. */
  delete: 17,
  /** `count` messages from `offset` were delivered to the client that `text` names. Only for inspection. */
  hand: 18,
  /** Precedes the batch of the message. The message replaced an earlier one, which was cancelled; `time` is the offset of the earlier one. */
  replace: 19,
  /**
   * Totals so far: `offset` is the number of releases, `time` the number of redeliveries. Written together with the
   * next other fact of the queue, and at a graceful stop.
   */
  tally: 20,
  /** The subscription with id `offset` ended and returned messages: none of its leases can be claimed after a restart. */
  ended: 21,
  /** Acknowledged messages from `offset` up to but not including `time` are no longer kept for replay. */
  release: 22,
  /**
   * Precedes a shared batch: `count` messages from `offset` of a queue are records of the batch. The queue and the index
   * of the first record are in `time`; see `referOf`. All messages are in one chunk. The death byte is 0 or `UNCOUNTED`.
   */
  refer: 23,
  /**
   * The definition with the id `offset` was added or changed: `death` is its kind, `count` the id of the queue that it
   * belongs to or 0, `time` its number, and `text` its text.
   */
  define: 24,
  /** The definition with the id `offset` is gone. */
  undefine: 25,
  /**
   * Messages of the stream enter the group: those from `offset` up to but not including `time`, as far as the stream keeps
   * them. With the death byte `SKIPPED` none enters. The text has the hashes of their keys in hex, or is empty.
   */
  enter: 26,
  /** The group moved to `offset`: all messages left it, except dead ones below `offset`. */
  position: 27,
  /** Retention removes the messages below `offset` from the stream; `count` messages of the group were not done. */
  miss: 28,
  /**
   * Precedes the batch that the tick published, in the same entry: the schedule with the definition id `offset` fired for
   * the tick at `time`. `count` is the number of its ticks that have fired.
   */
  fired: 29,
  /**
   * Compaction removes `count` messages from the stream, all in the chunk that begins at `offset`. The text has the set of
   * their indexes in hex: 32 words of 32 bits.
   */
  compact: 30,
  /** `offset` is the id of the producer with the identity `text`, in hex. */
  producer: 32,
  /** An atomic step: `time` is its number, `offset` the id of its producer, `count` its checksum, and `text` its batches as JSON. */
  atomic: 33,
} as const
export type FactKind = (typeof FACT)[keyof typeof FACT]

const HEAD_BYTES = 16
const TIME_BYTES = 8

function hasTime(kind: number): boolean {
  return WITH_TIME.has(kind)
}

const WITH_TIME: ReadonlySet<number> = new Set([
  FACT.retry,
  FACT.dead,
  FACT.duplicate,
  FACT.replace,
  FACT.redrive,
  FACT.reschedule,
  FACT.ttl,
  FACT.tally,
  FACT.release,
  FACT.refer,
  FACT.enter,
  FACT.define,
  FACT.fired,
  FACT.atomic,
])

/** In the `death` byte of an `ack` fact: the queue keeps the messages for replay. */
export const RETAINED = 1

/** In the `death` byte of an `enter` fact: the messages are passed over. */
export const SKIPPED = 1

/** Bit in the `death` byte of a `dead` fact: the message will be moved to the dead-letter queue. */
export const MOVING = 128

/** In the `death` byte of a `refer` fact: the row counts no part of the size of the batch. */
const UNCOUNTED = 1

/** Size of a `refer` fact. */
export const REFER_BYTES = HEAD_BYTES + TIME_BYTES
/** Queue ids are below this number. */
const QUEUE_IDS = 2 ** 32

/** Consecutive messages of a queue that are stored in a shared batch. They are in one chunk of the queue. */
export interface Refer {
  readonly queueId: number
  /** Offset of the first message. */
  readonly offset: number
  readonly count: number
  /** Index of the first message in the batch. */
  readonly index: number
  /** Whether the row of these messages counts a part of the size of the batch (see shares.ts). */
  readonly isCounted: boolean
}

export function referOf({ offset, count, timeMs, death }: Fact): Refer {
  const index = Math.floor(timeMs / QUEUE_IDS)
  return { queueId: timeMs % QUEUE_IDS, offset, count, index, isCounted: death !== UNCOUNTED }
}

export type GoneFact = 'ack' | 'expire' | 'drop' | 'cancel' | 'discard'

/**
 * The facts of one queue until they are written to the open entry. Facts of one kind about consecutive messages share
 * an item.
 */
export class FactBuffer {
  #bytes: Uint8Array = NO_BYTES
  length = 0
  count = 0
  /** The last item, if further messages may join it: its position, its kind with its detail, and the next offset that would join. */
  #openAt = -1
  #openKind = 0
  #openEnd = -1

  get isEmpty(): boolean {
    return this.length === 0
  }

  /** The items; valid until the next method call. */
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.length)
  }

  clear(): void {
    this.length = 0
    this.count = 0
    this.#openAt = -1
    if (this.#bytes.length > KEPT_BYTES) this.#bytes = NO_BYTES
  }

  /** Moves the items into a new buffer. */
  take(): FactBuffer {
    const taken = new FactBuffer()
    taken.#bytes = this.#bytes
    taken.length = this.length
    taken.count = this.count
    this.#bytes = NO_BYTES
    this.clear()
    return taken
  }

  /** Adds a fact about messages that are gone. `detail` is 0 or, in an `ack` fact, `RETAINED`. */
  gone(kind: GoneFact, offset: number, count: number, detail = 0): void {
    const openKind = FACT[kind] + detail * DETAIL
    if (this.#openAt !== -1 && this.#openKind === openKind && this.#openEnd === offset) {
      writeU32(this.#bytes, this.#openAt + 4, readU32(this.#bytes, this.#openAt + 4) + count)
      this.#openEnd += count
      return
    }
    this.#openAt = this.#item(FACT[kind], detail, count, offset, 0)
    this.#openKind = openKind
    this.#openEnd = offset + count
  }

  retry(offset: number, attempts: number, dueMs: number, reason: string): void {
    const at = this.#item(FACT.retry, 0, attempts, offset, TIME_BYTES + reason.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, dueMs)
    if (reason !== '') this.#text(at, at + HEAD_BYTES + TIME_BYTES, reason)
  }

  dead(
    offset: number,
    attempts: number,
    death: number,
    isMoving: boolean,
    timeMs: number,
    reason: string,
  ): void {
    const how = death | (isMoving ? MOVING : 0)
    const at = this.#item(FACT.dead, how, attempts, offset, TIME_BYTES + reason.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, timeMs)
    this.#text(at, at + HEAD_BYTES + TIME_BYTES, reason)
  }

  purge(below: number, messages: number): void {
    this.#item(FACT.purge, 0, messages, below, 0)
  }

  duplicate(offset: number, first: number): void {
    const at = this.#item(FACT.duplicate, 0, 1, offset, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, first)
  }

  replace(offset: number, replaced: number): void {
    const at = this.#item(FACT.replace, 0, 1, offset, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, replaced)
  }

  move(kind: 'move' | 'carry', offset: number, text: string): void {
    const at = this.#item(FACT[kind], 0, 1, offset, text.length * 3)
    this.#text(at, at + HEAD_BYTES, text)
  }

  redrive(offset: number, redrives: number, timeMs: number, by: string): void {
    const at = this.#item(FACT.redrive, 0, redrives, offset, TIME_BYTES + by.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, timeMs)
    this.#text(at, at + HEAD_BYTES + TIME_BYTES, by)
  }

  reschedule(offset: number, dueMs: number): void {
    const at = this.#item(FACT.reschedule, 0, 1, offset, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, dueMs)
  }

  ttl(base: number, count: number, ttlMs: number): void {
    const at = this.#item(FACT.ttl, 0, count, base, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, ttlMs)
  }

  hand(offset: number, count: number, client: string): void {
    const at = this.#item(FACT.hand, 0, count, offset, client.length * 3)
    this.#text(at, at + HEAD_BYTES, client)
  }

  atomic(producerId: number, number: number, crc: number, places: string): void {
    const at = this.#item(FACT.atomic, 0, crc, producerId, TIME_BYTES + places.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, number)
    this.#text(at, at + HEAD_BYTES + TIME_BYTES, places)
  }

  delivered(below: number): void {
    this.#item(FACT.delivered, 0, 0, below, 0)
  }

  tally(released: number, redelivered: number): void {
    const at = this.#item(FACT.tally, 0, 0, released, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, redelivered)
  }

  ended(subscriptionId: number): void {
    this.#item(FACT.ended, 0, 0, subscriptionId, 0)
  }

  release(from: number, end: number): void {
    const at = this.#item(FACT.release, 0, 0, from, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, end)
  }

  enter(from: number, end: number, keys: Uint32Array | undefined, isSkipped: boolean): void {
    const text = keys === undefined ? '' : wordsText(keys)
    const at = this.#item(FACT.enter, isSkipped ? SKIPPED : 0, end - from, from, TIME_BYTES + text.length)
    writeU64(this.#bytes, at + HEAD_BYTES, end)
    if (text !== '') this.#text(at, at + HEAD_BYTES + TIME_BYTES, text)
  }

  position(offset: number): void {
    this.#item(FACT.position, 0, 0, offset, 0)
  }

  miss(end: number, missed: number): void {
    this.#item(FACT.miss, 0, missed, end, 0)
  }

  compact(base: number, count: number, indexes: Uint32Array): void {
    const text = wordsText(indexes)
    const at = this.#item(FACT.compact, 0, count, base, text.length)
    this.#text(at, at + HEAD_BYTES, text)
  }

  refer({ queueId, offset, count, index, isCounted }: Refer): void {
    const at = this.#item(FACT.refer, isCounted ? 0 : UNCOUNTED, count, offset, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, index * QUEUE_IDS + queueId)
  }

  ensure(definition: string): void {
    const at = this.#item(FACT.ensure, 0, 0, 0, definition.length * 3)
    this.#text(at, at + HEAD_BYTES, definition)
  }

  delete(): void {
    this.#item(FACT.delete, 0, 0, 0, 0)
  }

  define(id: number, kind: number, owner: number, number: number, text: string): void {
    const at = this.#item(FACT.define, kind, owner, id, TIME_BYTES + text.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, number)
    this.#text(at, at + HEAD_BYTES + TIME_BYTES, text)
  }

  undefine(id: number): void {
    this.#item(FACT.undefine, 0, 0, id, 0)
  }

  fired(id: number, tickMs: number, count: number): void {
    const at = this.#item(FACT.fired, 0, count, id, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, tickMs)
  }

  producer(id: number, identity: string): void {
    const at = this.#item(FACT.producer, 0, 0, id, identity.length * 3)
    this.#text(at, at + HEAD_BYTES, identity)
  }

  // Writes the head of an item, and makes room for up to `extra` bytes after it. Sets `length` as for an item without a text.
  #item(kind: FactKind, death: number, count: number, offset: number, extra: number): number {
    const at = this.length
    const needed = at + HEAD_BYTES + extra
    if (needed > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(BYTES_FIRST, needed, this.#bytes.length * 2))
      grown.set(this.#bytes.subarray(0, at))
      this.#bytes = grown
    }
    this.#bytes[at] = kind
    this.#bytes[at + 1] = death
    writeU16(this.#bytes, at + 2, 0)
    writeU32(this.#bytes, at + 4, count)
    writeU64(this.#bytes, at + 8, offset)
    this.length = at + HEAD_BYTES + (hasTime(kind) ? TIME_BYTES : 0)
    this.count++
    this.#openAt = -1
    return at
  }

  #text(itemAt: number, at: number, text: string): void {
    const bytes = writeText(this.#bytes, at, text)
    if (bytes > TEXT_BYTES_MAX)
      throw new Error(`the text of a fact has ${bytes} bytes, the limit is ${TEXT_BYTES_MAX}`)
    writeU16(this.#bytes, itemAt + 2, bytes)
    this.length = at + bytes
  }
}

/** Kinds of facts are below this number. */
const DETAIL = 256
const NO_BYTES = new Uint8Array(0)
const BYTES_FIRST = 256
const KEPT_BYTES = 64 * 1024
const TEXT_BYTES_MAX = 0xffff

/** End and number of the items from byte `from` on that together take at most `bytesMax`. The first item counts even if it is larger. */
export function factsUntil(
  bytes: Uint8Array,
  from: number,
  bytesMax: number,
): { readonly end: number; readonly count: number } {
  let end = from
  let count = 0
  while (end < bytes.length) {
    const next = end + HEAD_BYTES + (hasTime(bytes[end]!) ? TIME_BYTES : 0) + readU16(bytes, end + 2)
    if (count > 0 && next - from > bytesMax) break
    end = next
    count++
  }
  return { end, count }
}

export interface Fact {
  readonly kind: number
  /**
   * In a `dead` fact: the cause of death, plus the MOVING bit. In an `ack` fact: `RETAINED` or 0. In a `refer` fact:
   * `UNCOUNTED` or 0. In a `define` fact: the kind of the definition.
   */
  readonly death: number
  /** Number of attempts in a `retry` or `dead` fact; 0 in other facts. */
  readonly attempts: number
  readonly count: number
  readonly offset: number
  readonly timeMs: number
  readonly text: string
}

/**
 * Reads what a FactBuffer wrote. The checksum of the bytes was verified, so an error here is a defect of the broker.
 * @throws Error if the items do not fill the range exactly
 */
export function readFacts(bytes: Uint8Array, start: number, end: number, each: (fact: Fact) => void): void {
  let at = start
  while (at < end) {
    const kind = bytes[at]!
    const textAt = at + HEAD_BYTES + (hasTime(kind) ? TIME_BYTES : 0)
    const next = textAt + readU16(bytes, at + 2)
    if (next > end) throw new Error(`a fact of kind ${kind} is cut off at byte ${at - start} of its batch`)
    const count = readU32(bytes, at + 4)
    const hasAttempts = kind === FACT.retry || kind === FACT.dead
    each({
      kind,
      death: bytes[at + 1]!,
      attempts: hasAttempts ? count : 0,
      count: hasAttempts ? 1 : count,
      offset: readU64(bytes, at + 8),
      timeMs: hasTime(kind) ? readU64(bytes, at + HEAD_BYTES) : 0,
      text: readText(bytes, textAt, next),
    })
    at = next
  }
}

function wordsText(words: Uint32Array): string {
  let text = ''
  for (const word of words) text += word.toString(16).padStart(8, '0')
  return text
}

/** The hashes of keys in the text of an `enter` fact; undefined if no message has a key. */
export function keysIn(text: string): Uint32Array | undefined {
  return text === '' ? undefined : wordsIn(text)
}

/** The words in the text of a fact. */
export function wordsIn(text: string): Uint32Array {
  const words = new Uint32Array(text.length / 8)
  for (let at = 0; at < words.length; at++) words[at] = Number.parseInt(text.slice(at * 8, at * 8 + 8), 16)
  return words
}
