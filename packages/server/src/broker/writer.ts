/**
 * What goes into the open entry: the facts that queues gathered, and batches of messages. Facts of a queue that were
 * applied and not written yet are listed here; they are written before anything that is computed from them leaves.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  SluiceError,
  sealBatch,
  stampBatch,
  viewBytes,
  writeBatchAttributes,
} from '@sluice/protocol'
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { factsUntil, type FactBuffer, type Queue } from '../queue/index.js'
import type { Turn } from './turn.js'

/** What of its budget of memory the broker uses, in bytes. */
export interface MemoryUse {
  readonly usedBytes: number
  readonly budgetBytes: number
}

/** Pages of state that there are, and at most may be. */
export interface PagesFull {
  readonly pages: number
  readonly pagesMax: number
}

export class Writer {
  readonly tail: Tail
  readonly turn: Turn
  /** Of the messages that were written since the broker started. */
  recordBytes = 0
  /** Set while memory is used up and no more is taken. */
  memoryFull: MemoryUse | undefined
  /** What writing all state pages anew would take: a checkpoint must always have room. */
  upkeepBytes = 0
  /** Set while a checkpoint could not list more pages than there are. */
  pagesFull: PagesFull | undefined
  readonly #log: Log
  readonly #withFacts: Queue[] = []

  constructor(log: Log, tail: Tail, turn: Turn) {
    this.#log = log
    this.tail = tail
    this.turn = turn
  }

  get segmentBytes(): number {
    return this.#log.segmentBytes
  }

  get #factsBytesMax(): number {
    return this.#log.segmentBytes / 8
  }

  /** Whether `bytes` more have room, while what must always be written keeps its own. */
  hasRoom(bytes: number): boolean {
    if (this.pagesFull !== undefined) return false
    return this.#log.reserve(this.tail.pendingBytes + bytes + this.upkeepBytes, this.turn.nowMs)
  }

  /** Whether messages of `bytes` are taken now, whatever their queue says. @throws SluiceError DISK_LOW, MEMORY_FULL */
  checkRoom(bytes: number): void {
    if (this.pagesFull !== undefined) {
      const { pages, pagesMax } = this.pagesFull
      throw new SluiceError(
        'DISK_LOW',
        `The state of queues and messages takes ${pages} pages; with segments of ${this.segmentBytes / 2 ** 20} MiB it may take ${pagesMax}. Consumers can continue; a log with larger segments holds more.`,
        { retryAfterMs: 1_000 },
      )
    }
    if (!this.hasRoom(bytes)) {
      throw new SluiceError(
        'DISK_LOW',
        'The log has no room for more messages: too little disk space is free, or no further segment could be created. Consumers can continue.',
        { retryAfterMs: 1_000 },
      )
    }
    if (this.memoryFull === undefined) return
    const { usedBytes, budgetBytes } = this.memoryFull
    throw new SluiceError(
      'MEMORY_FULL',
      `The broker uses ${Math.round(usedBytes / 2 ** 20)}MiB of its memory budget of ${Math.round(budgetBytes / 2 ** 20)}MiB; nothing is left for more messages. Consumers can continue.`,
      { retryAfterMs: 1_000 },
    )
  }

  /** The queue may have facts that are to be written by the end of the turn. */
  note(queue: Queue): void {
    if (queue.facts.isEmpty) return
    // Many settles in one turn need not wait in memory.
    if (queue.facts.length > this.#factsBytesMax) {
      this.facts(queue.id, queue.facts)
      return
    }
    if (queue.hasPendingFacts) return
    queue.hasPendingFacts = true
    this.#withFacts.push(queue)
    this.turn.wake()
  }

  /** Writes what queues have gathered. */
  flush(): void {
    for (const queue of this.#withFacts) {
      queue.hasPendingFacts = false
      if (queue.facts.isEmpty) continue
      queue.tally()
      this.facts(queue.id, queue.facts)
    }
    this.#withFacts.length = 0
  }

  /** What is written next, `bytes` with its headers, stands in one entry: all of it is durable, or nothing. */
  together(bytes: number): void {
    this.tail.reserve(bytes, this.turn.nowMs)
  }

  /** Bytes that the facts will take, at most. */
  factsBytes(facts: FactBuffer): number {
    if (facts.isEmpty) return 0
    // Each batch of them is filled to at least a half.
    const batches =
      facts.length <= this.#factsBytesMax ? 1 : Math.ceil((2 * facts.length) / this.#factsBytesMax)
    return batches * BATCH_HEADER_BYTES + facts.length
  }

  /** As one batch; more than fit a part of a segment as several, which may stand in several entries. */
  facts(queueId: number, facts: FactBuffer): void {
    const { bytes } = facts
    for (let from = 0; from < bytes.length;) {
      const { end, count } =
        bytes.length <= this.#factsBytesMax
          ? { end: bytes.length, count: facts.count }
          : factsUntil(bytes, from, this.#factsBytesMax)
      const length = BATCH_HEADER_BYTES + end - from
      const at = this.tail.reserve(length, this.turn.nowMs)
      this.tail.bytes.set(bytes.subarray(from, end), at + BATCH_HEADER_BYTES)
      sealBatch(this.tail.bytes, at, at + length, {
        type: BATCH_TYPE.facts,
        queueId,
        count,
        timeMs: this.turn.nowMs,
      })
      this.tail.add(length)
      from = end
    }
    if (facts.isEmpty) return
    facts.clear()
    this.turn.wake()
  }

  /** The batch `bytes[at, end)` of messages that are at `base` from now on; returns its place in the log. */
  messages(
    bytes: Uint8Array,
    at: number,
    end: number,
    queue: Queue,
    producerId: number,
    attributes: number,
  ): number {
    const length = end - at
    const to = this.tail.reserve(length, this.turn.nowMs)
    this.tail.bytes.set(viewBytes(bytes, at, end), to)
    stampBatch(this.tail.bytes, to, queue.id, queue.next, this.turn.nowMs, producerId)
    writeBatchAttributes(this.tail.bytes, to, attributes)
    this.recordBytes += length - BATCH_HEADER_BYTES
    this.turn.wake()
    return this.tail.add(length)
  }

  /** A batch that says something by its header alone. It is written at once. */
  mark(type: number, count: number, attributes: number): void {
    const at = this.tail.reserve(BATCH_HEADER_BYTES, this.turn.nowMs)
    sealBatch(this.tail.bytes, at, at + BATCH_HEADER_BYTES, {
      type,
      count,
      attributes,
      timeMs: this.turn.nowMs,
    })
    this.tail.add(BATCH_HEADER_BYTES)
    this.tail.flush(this.turn.nowMs)
  }
}
