/**
 * Writes to the open entry: facts of queues, and batches of messages. Called by the parts of the broker that change the
 * state. Relocation and checkpoints write their copies and pages to the tail themselves.
 *
 * Invariant: facts that were applied but not written are written by the end of the turn, before an answer based on them is
 * sent.
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
import { entryLimits, type EntryLimits } from '../log/entry-limits.js'
import type { Log } from '../log/log.js'
import type { Tail } from '../log/tail.js'
import { SHARED_QUEUE_ID, factsUntil, type FactBuffer, type Queue } from '../queue/index.js'
import { writeReferFacts } from '../state/shared-batches.js'
import type { Turn } from './turn.js'

/** Memory that the process uses, and its budget. */
export interface MemoryUse {
  readonly usedBytes: number
  readonly budgetBytes: number
}

/** Number of pages of state, and the maximum number of pages. */
export interface PagesFull {
  readonly pages: number
  readonly pagesMax: number
}

/** Queue id of facts about producers and atomic steps. */
export const NO_QUEUE = 0

export class Writer {
  readonly tail: Tail
  readonly turn: Turn
  readonly limits: EntryLimits
  /** Bytes of the records written since the broker started. */
  recordBytes = 0
  /** Use of memory while publishes are refused because the process is out of memory; otherwise undefined. */
  memoryFull: MemoryUse | undefined
  /** Maximum size of a checkpoint in bytes. Room for one checkpoint is always kept free. */
  checkpointBytesMax = 0
  /** Number of pages while the directory of a checkpoint has no room for more pages; otherwise undefined. */
  pagesFull: PagesFull | undefined
  readonly #log: Log
  readonly #withFacts: Queue[] = []

  constructor(log: Log, tail: Tail, turn: Turn) {
    this.#log = log
    this.tail = tail
    this.turn = turn
    this.limits = entryLimits(log.entryBytesMax)
  }

  /**
   * Checks that the log has room for `bytes` more, besides the room that a checkpoint needs.
   * @throws SluiceError DISK_LOW
   */
  checkRoom(bytes: number): void {
    if (this.pagesFull !== undefined) {
      const { pages, pagesMax } = this.pagesFull
      throw new SluiceError(
        'DISK_LOW',
        `The state of queues and messages takes ${pages} pages; at most ${pagesMax} are allowed. Publishes are accepted again when consumers have settled enough messages, and the retention of enough messages has ended.`,
        { retryAfterMs: 1_000 },
      )
    }
    const totalBytes = this.tail.pendingBytes + bytes + this.checkpointBytesMax
    if (!this.#log.hasRoomFor(totalBytes, this.turn.nowMs)) {
      throw new SluiceError(
        'DISK_LOW',
        'The log has no room for more messages: too little disk space is free, or no further segment could be created. Consumers can continue.',
        { retryAfterMs: 1_000 },
      )
    }
  }

  /** Checks that the process has memory for more messages, bindings or schedules. @throws SluiceError MEMORY_FULL */
  checkMemory(): void {
    if (this.memoryFull === undefined) return
    const { usedBytes, budgetBytes } = this.memoryFull
    throw new SluiceError(
      'MEMORY_FULL',
      `The broker uses ${Math.round(usedBytes / 2 ** 20)} MiB of its memory budget of ${Math.round(budgetBytes / 2 ** 20)} MiB and has no room for more messages, bindings or schedules. Consumers can continue.`,
      { retryAfterMs: 1_000 },
    )
  }

  /** Notes that the queue may have unwritten facts, which are written by the end of the turn. */
  note(queue: Queue): void {
    if (!queue.hasFacts) return
    // After many settles in one turn, the facts are written before the end of the turn, so that not all facts stay in
    // memory.
    if (queue.facts.length > this.limits.factsBytesMax) {
      this.writeFacts(queue.id, queue.facts)
      return
    }
    if (queue.hasPendingFacts) return
    queue.hasPendingFacts = true
    this.#withFacts.push(queue)
    this.turn.wake()
  }

  /** Writes the facts of all noted queues. */
  writeNoted(): void {
    for (const queue of this.#withFacts) {
      queue.hasPendingFacts = false
      this.writeFactsOf(queue)
    }
    this.#withFacts.length = 0
  }

  /** Writes the facts of the queue, and with them its tally. */
  writeFactsOf(queue: Queue): void {
    if (!queue.hasFacts) return
    queue.tally()
    this.writeFacts(queue.id, queue.facts)
  }

  /**
   * Ensures that the next `bytes` of writes, including their headers, are in one entry, so that a crash keeps either
   * all of these writes or no part of them.
   */
  together(bytes: number): void {
    this.tail.reserve(bytes, this.turn.nowMs)
  }

  /** Returns the maximum size of the facts in the log, in bytes. */
  factsBytes(facts: FactBuffer): number {
    if (facts.isEmpty) return 0
    // Any two consecutive batches of facts are together larger than `factsBytesMax`, which limits their number.
    const batches =
      facts.length <= this.limits.factsBytesMax
        ? 1
        : Math.ceil((2 * facts.length) / this.limits.factsBytesMax)
    return batches * BATCH_HEADER_BYTES + facts.length
  }

  /**
   * Writes the facts as one batch. If there are many facts, writes several batches, which may be in several entries.
   */
  writeFacts(queueId: number, facts: FactBuffer): void {
    if (facts.isEmpty) return
    const { bytes } = facts
    for (let from = 0; from < bytes.length;) {
      const { end, count } =
        bytes.length <= this.limits.factsBytesMax
          ? { end: bytes.length, count: facts.count }
          : factsUntil(bytes, from, this.limits.factsBytesMax)
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
    facts.clear()
    this.turn.wake()
  }

  /** Writes the batch `bytes[at, end)`, whose messages get the queue's next offsets; returns its position in the log. */
  writeMessages(
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

  /**
   * Writes the batch `bytes[at, end)` as a shared batch of `queues` queues, after its `refer` facts. Returns its position
   * in the log.
   */
  writeShared(
    bytes: Uint8Array,
    at: number,
    end: number,
    refers: FactBuffer,
    queues: number,
    producerId: number,
    attributes: number,
  ): number {
    const { nowMs } = this.turn
    const factsBytes = BATCH_HEADER_BYTES + refers.length
    const length = end - at
    const factsAt = this.tail.reserve(factsBytes + length, nowMs)
    writeReferFacts(this.tail.bytes, factsAt, refers, nowMs)
    this.tail.add(factsBytes)
    const to = this.tail.reserve(length, nowMs)
    this.tail.bytes.set(viewBytes(bytes, at, end), to)
    stampBatch(this.tail.bytes, to, SHARED_QUEUE_ID, queues, nowMs, producerId)
    writeBatchAttributes(this.tail.bytes, to, attributes)
    this.recordBytes += length - BATCH_HEADER_BYTES
    this.turn.wake()
    return this.tail.add(length)
  }

  /** Writes a batch about the run of the broker, with `payload` after its header, and sends it to the disk at once. */
  mark(type: number, count: number, attributes: number, payload: Uint8Array): void {
    const length = BATCH_HEADER_BYTES + payload.length
    const at = this.tail.reserve(length, this.turn.nowMs)
    this.tail.bytes.set(payload, at + BATCH_HEADER_BYTES)
    sealBatch(this.tail.bytes, at, at + length, {
      type,
      count,
      attributes,
      timeMs: this.turn.nowMs,
    })
    this.tail.add(length)
    this.tail.flush(this.turn.nowMs)
  }
}
