/**
 * Shared batches: batches that several queues use, so that a body is stored once. The header of a shared batch has no
 * queue id. Its `refer` facts say which queue has which of its records at which offsets. They are all in one batch of
 * facts, which directly precedes the shared batch in the same entry. Each fact is about messages of one chunk, so that
 * there is one fact for each row of a batch table.
 *
 * This file reads shared batches and their facts. It is used when a shared batch is published, recovered, copied, or
 * searched for the messages of one queue.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  batchBaseOffset,
  batchCount,
  batchLength,
  batchQueueId,
  batchType,
  recordSize,
  sealBatch,
  type BatchHeader,
} from '@sluice/protocol'
import { entryBatches } from '../log/entry.js'
import {
  FACT,
  SHARED_QUEUE_ID,
  readFacts,
  referOf,
  type FactBuffer,
  type Refer,
  type Seed,
} from '../queue/index.js'
import { readTraits, selectTraits, type BatchTraits, type TraitRules } from './traits.js'

const NO_REFERS: readonly Refer[] = []

/** Whether the batch at `bytes[at]` is a shared batch. */
export function isSharedBatch(bytes: Uint8Array, at: number): boolean {
  return batchType(bytes, at) === BATCH_TYPE.messages && batchQueueId(bytes, at) === SHARED_QUEUE_ID
}

/** The `refer` facts in the batch at `bytes[at]`; none if it is not a batch of such facts. */
export function refersIn(bytes: Uint8Array, at: number): readonly Refer[] {
  if (batchType(bytes, at) !== BATCH_TYPE.facts || bytes[at + BATCH_HEADER_BYTES] !== FACT.refer)
    return NO_REFERS
  const refers: Refer[] = []
  readFacts(bytes, at + BATCH_HEADER_BYTES, at + batchLength(bytes, at), (fact) => refers.push(referOf(fact)))
  return refers
}

/** Writes a batch with these facts to `bytes[at]`. The shared batch must follow it in the same entry. */
export function writeReferFacts(bytes: Uint8Array, at: number, facts: FactBuffer, timeMs: number): void {
  bytes.set(facts.bytes, at + BATCH_HEADER_BYTES)
  const end = at + BATCH_HEADER_BYTES + facts.length
  sealBatch(bytes, at, end, { type: BATCH_TYPE.facts, count: facts.count, timeMs })
}

/** Splits the facts of a shared batch by queue. The facts of a queue follow each other. */
export function* byQueue(refers: readonly Refer[]): Generator<readonly Refer[]> {
  for (let from = 0; from < refers.length;) {
    let to = from + 1
    while (to < refers.length && refers[to]!.queueId === refers[from]!.queueId) to++
    yield refers.slice(from, to)
    from = to
  }
}

/** Number of messages. */
export function countOf(refers: readonly Refer[]): number {
  let count = 0
  for (const refer of refers) count += refer.count
  return count
}

/** Indexes, in the bytes of an entry, of the batches that have the message at `offset` of the queue `queueId`. */
export function batchesWith(entry: Uint8Array, queueId: number, offset: number): Set<number> {
  const found = new Set<number>()
  let refers = NO_REFERS
  for (const at of entryBatches(entry, 0)) {
    if (batchType(entry, at) !== BATCH_TYPE.messages) refers = refersIn(entry, at)
    else if (batchQueueId(entry, at) === queueId) {
      const first = batchBaseOffset(entry, at)
      if (offset >= first && offset < first + batchCount(entry, at)) found.add(at)
    } else if (isSharedBatch(entry, at)) {
      const isHere = (refer: Refer): boolean =>
        refer.queueId === queueId && offset >= refer.offset && offset < refer.offset + refer.count
      if (refers.some(isHere)) found.add(at)
    }
  }
  return found
}

/**
 * The records of the shared batch at `bytes[at]`, as each queue that uses the batch sees them. While an object is in
 * use, `readTraits` must not be called for another batch.
 */
export class SharedRecords {
  readonly #bytes: Uint8Array
  readonly #at: number
  readonly #header: Pick<BatchHeader, 'length' | 'count' | 'timeMs'>
  readonly #seed: Seed
  /** Distance from the first record to the end of each record. Filled when a queue first takes only some records. */
  #ends: Float64Array | undefined
  /** The options of all records under the rules of the last queue. */
  #traits: BatchTraits | undefined
  #ttlMs = 0
  #isSized = false

  /** `timeMs` in the header is the publish time. */
  constructor(
    bytes: Uint8Array,
    at: number,
    header: Pick<BatchHeader, 'length' | 'count' | 'timeMs'>,
    seed: Seed,
  ) {
    this.#bytes = bytes
    this.#at = at
    this.#header = header
    this.#seed = seed
  }

  /** Total size of the records. */
  bytesOf(refers: readonly Refer[]): number {
    const { count, length } = this.#header
    if (countOf(refers) === count) return length - BATCH_HEADER_BYTES
    const ends = (this.#ends ??= this.#readEnds())
    let bytes = 0
    for (const { index, count } of refers) bytes += ends[index + count]! - ends[index]!
    return bytes
  }

  /**
   * The options of the records for a queue with these rules, by index in `refers`; valid until the next call. The records
   * are read again only if the rules differ from those of the last call.
   */
  traitsOf(refers: readonly Refer[], rules: TraitRules): BatchTraits {
    const { count, timeMs } = this.#header
    const isSized = rules.maxBytes > 0
    if (this.#traits === undefined || rules.ttlMs !== this.#ttlMs || isSized !== this.#isSized) {
      this.#traits = readTraits(this.#bytes, this.#at, count, timeMs, this.#seed, rules)
      this.#ttlMs = rules.ttlMs
      this.#isSized = isSized
    }
    return countOf(refers) === count ? this.#traits : selectTraits(this.#traits, refers)
  }

  #readEnds(): Float64Array {
    const ends = new Float64Array(this.#header.count + 1)
    const first = this.#at + BATCH_HEADER_BYTES
    for (let index = 0; index < this.#header.count; index++)
      ends[index + 1] = ends[index]! + recordSize(this.#bytes, first + ends[index]!)
    return ends
  }
}
