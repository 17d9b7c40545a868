/**
 * Facts: what happened to messages and queues, as the log keeps it. Each names exact offsets and absolute times;
 * applying one looks at nothing but the durable state, and applying it twice in order changes nothing.
 *
 * Item: u8 kind · u8 attempts · u16 text bytes · u32 count · u64 offset · [u64 time, ms] · text.
 * The time is there for the kinds that have one.
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
  /** Done: `count` messages from `offset` are gone. */
  ack: 1,
  /** Tried and failed: `attempts` so far, comes back at `time`. */
  retry: 2,
  /** Dead since `time` after `attempts`; count is the death, text what the consumer said. */
  dead: 3,
  /** All that was scheduled, ready or leased below `offset` is gone: `count` messages. */
  purge: 4,
  /** Everything below `offset` may have been delivered before; written when the broker stops. */
  delivered: 5,
  /** Their time to live is over: `count` messages from `offset` are gone. */
  expire: 6,
  /** A queue was made or its options changed; the text is its definition. */
  ensure: 16,
  /** The queue is gone with all its messages. */
  delete: 17,
  /** `offset` is the id of the producer whose identity is the text, in hex. */
  producer: 32,
} as const
export type FactKind = (typeof FACT)[keyof typeof FACT]

const HEAD_BYTES = 16
const TIME_BYTES = 8

function hasTime(kind: number): boolean {
  return kind === FACT.retry || kind === FACT.dead
}

/** Gathers facts of one queue until they are written to the open entry. Consecutive acks become one item. */
export class FactBuffer {
  #bytes = new Uint8Array(256)
  length = 0
  count = 0
  #ackAt = -1
  #ackEnd = -1

  get isEmpty(): boolean {
    return this.length === 0
  }

  /** The items so far; valid until the next call. */
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.length)
  }

  clear(): void {
    this.length = 0
    this.count = 0
    this.#ackAt = -1
    this.#ackEnd = -1
    if (this.#bytes.length > KEPT_BYTES) this.#bytes = new Uint8Array(256)
  }

  ack(offset: number, count: number): void {
    if (offset === this.#ackEnd) {
      writeU32(this.#bytes, this.#ackAt + 4, readU32(this.#bytes, this.#ackAt + 4) + count)
      this.#ackEnd += count
      return
    }
    const at = this.#item(FACT.ack, 0, count, offset, 0)
    this.#ackAt = at
    this.#ackEnd = offset + count
  }

  retry(offset: number, attempts: number, dueMs: number): void {
    const at = this.#item(FACT.retry, attempts, 1, offset, TIME_BYTES)
    writeU64(this.#bytes, at + HEAD_BYTES, dueMs)
  }

  dead(offset: number, attempts: number, death: number, timeMs: number, reason: string): void {
    const at = this.#item(FACT.dead, attempts, death, offset, TIME_BYTES + reason.length * 3)
    writeU64(this.#bytes, at + HEAD_BYTES, timeMs)
    this.#text(at, at + HEAD_BYTES + TIME_BYTES, reason)
  }

  purge(below: number, messages: number): void {
    this.#item(FACT.purge, 0, messages, below, 0)
  }

  expire(offset: number, count: number): void {
    this.#item(FACT.expire, 0, count, offset, 0)
  }

  delivered(below: number): void {
    this.#item(FACT.delivered, 0, 0, below, 0)
  }

  ensure(definition: string): void {
    const at = this.#item(FACT.ensure, 0, 0, 0, definition.length * 3)
    this.#text(at, at + HEAD_BYTES, definition)
  }

  delete(): void {
    this.#item(FACT.delete, 0, 0, 0, 0)
  }

  producer(id: number, identity: string): void {
    const at = this.#item(FACT.producer, 0, 0, id, identity.length * 3)
    this.#text(at, at + HEAD_BYTES, identity)
  }

  // Room for the item and at most `extra` bytes behind its head; without a text the length is exact already.
  #item(kind: FactKind, attempts: number, count: number, offset: number, extra: number): number {
    const at = this.length
    const needed = at + HEAD_BYTES + extra
    if (needed > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(needed, this.#bytes.length * 2))
      grown.set(this.#bytes.subarray(0, at))
      this.#bytes = grown
    }
    this.#bytes[at] = kind
    this.#bytes[at + 1] = attempts
    writeU16(this.#bytes, at + 2, 0)
    writeU32(this.#bytes, at + 4, count)
    writeU64(this.#bytes, at + 8, offset)
    this.length = at + HEAD_BYTES + (hasTime(kind) ? TIME_BYTES : 0)
    this.count++
    this.#ackEnd = -1
    return at
  }

  #text(itemAt: number, at: number, text: string): void {
    const bytes = writeText(this.#bytes, at, text)
    writeU16(this.#bytes, itemAt + 2, bytes)
    this.length = at + bytes
  }
}

const KEPT_BYTES = 64 * 1024

export interface Fact {
  readonly kind: number
  readonly attempts: number
  readonly count: number
  readonly offset: number
  readonly timeMs: number
  readonly text: string
}

/**
 * Reads back what a FactBuffer wrote. The bytes have passed their checksum, so damage here is a defect of ours.
 * @throws Error when the items do not fill the range exactly
 */
export function readFacts(bytes: Uint8Array, start: number, end: number, each: (fact: Fact) => void): void {
  let at = start
  while (at < end) {
    const kind = bytes[at]!
    const textAt = at + HEAD_BYTES + (hasTime(kind) ? TIME_BYTES : 0)
    const next = textAt + readU16(bytes, at + 2)
    if (next > end) throw new Error(`a fact of kind ${kind} is cut off at byte ${at - start} of its batch`)
    each({
      kind,
      attempts: bytes[at + 1]!,
      count: readU32(bytes, at + 4),
      offset: readU64(bytes, at + 8),
      timeMs: hasTime(kind) ? readU64(bytes, at + HEAD_BYTES) : 0,
      text: readText(bytes, textAt, next),
    })
    at = next
  }
}
