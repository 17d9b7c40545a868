/**
 * Accepts messages. A batch or an atomic step is checked as a whole before anything changes. Then its facts and
 * messages are written to one entry and applied (invariant 9).
 *
 * `publish` and `atomic` accept the numbered batches of a producer, and remember each result under its number (invariant
 * 3). They are called by sessions. `take` accepts a batch that has no producer. It is called for messages that the
 * broker moves, replays, or publishes for a schedule. The steps of these methods are also used by `SharedIntake`.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  SluiceError,
  batchAttributes,
  batchCount,
  batchFollows,
  batchNumber,
  batchRecordsCrc,
  checkBatch,
  checkRecords,
  isTopicAddress,
  type AtomicBatch,
  type Duplicates,
  type Fault,
  type Placed,
} from '@sluice/protocol'
import { Admission, FactBuffer, type AdmittedBatch, type Queue, type Subscription } from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import { answeredDuplicates, type Producer } from '../state/producers.js'
import { groupRefuses, queueNotFound, type State } from '../state/state.js'
import {
  hasDeliveryOptions,
  checkStreamTraits,
  checkTraits,
  readTraits,
  type BatchTraits,
} from '../state/traits.js'
import type { AckRange, AtomicStep, BatchBytes } from './commands.js'
import { observed, type Observer } from './observer.js'
import { StepBatches, type TargetsOfTopic } from './step-batches.js'
import type { Turn } from './turn.js'
import type { UnusedQueues } from './unused-queues.js'
import { NO_QUEUE, type Writer } from './writer.js'

/** A batch that its queue can accept. */
interface CheckedBatch {
  readonly queue: Queue
  readonly bytes: Uint8Array
  readonly at: number
  readonly end: number
  readonly count: number
  /** Offset of the first message of the batch. */
  readonly base: number
  /**
   * Whether each record must be read, because a message has a delivery option or the queue has a time to live or a limit in
   * bytes.
   */
  readonly readsRecords: boolean
  /** Options of the messages of the batch. The value is valid until the next batch is checked. */
  readonly traits: BatchTraits | undefined
  readonly lacksTtl: boolean
  readonly admitted: AdmittedBatch
}

/**
 * The result for a batch that its queue does not check: a plain batch, whose messages are only counted, or a batch that
 * is exempt from limits and ids.
 */
export const UNCHECKED: AdmittedBatch = {
  base: 0,
  later: undefined,
  duplicates: undefined,
  replaced: undefined,
  messages: 0,
  bytes: 0,
}
/** An atomic step that its queues can accept. */
interface CheckedStep {
  readonly batches: readonly CheckedBatch[]
  /** For each batch of the step, the batch for its queue or, if it was published to a topic, the number of its targets. */
  readonly answers: readonly (CheckedBatch | number)[]
}

/** Maximum size of the facts about one acknowledged message, in bytes. */
const ACK_FACT_BYTES = 16
/** Size of the fact about one duplicate, in bytes. */
const DUPLICATE_FACT_BYTES = 24
/**
 * Size of the two facts about a replacement, in bytes: one message replaces another, and the replaced message is gone.
 */
const REPLACE_FACTS_BYTES = 24 + 16
/**
 * Maximum number of messages beyond lowered limits that the publishes of one turn evict, besides the messages evicted
 * to make room for the published messages. Evicting 1,024 messages takes 6 ms.
 */
const EXCESS_MAX = 1_024

/** Facts that must be in the entry of a batch, before the batch. */
export interface FactsBefore {
  /** The queue that the facts concern, whose unwritten facts are written first. Undefined if they concern no queue. */
  readonly queue: Queue | undefined
  readonly facts: FactBuffer
}

/**
 * Why messages arrive, which decides what is checked besides the layout of the batch and the room in the log:
 *
 * - `new`: sizes, times, the limits and ids of the queue, and memory.
 * - `replayed`: memory. The messages were accepted before.
 * - `moved`: nothing more. The messages were accepted before, and leave another queue in the same entry.
 */
export type Arrival = 'new' | 'replayed' | 'moved'

/** The place of an accepted batch. */
export interface Taken extends Placed {
  /** Number of the entry with the batch. */
  readonly gate: number
}

export interface IntakeOptions {
  readonly messageBytesMax: number
  /** Tests use a smaller value than EXCESS_MAX. */
  readonly excessMax?: number
  readonly observer?: Observer | undefined
}

export class Intake {
  readonly #state: State
  readonly #cold: ColdChunks
  readonly #writer: Writer
  readonly #messageBytesMax: number
  readonly #turn: Turn
  readonly #unused: UnusedQueues
  readonly #observer: Observer | undefined
  readonly #facts = new FactBuffer()
  readonly #excessMax: number
  /** Finds the targets of the batches of atomic steps that are published to topics. */
  readonly #targetsOf: TargetsOfTopic
  /** Number of excess messages that this turn may still evict, from all queues together. */
  #excessLeft: number

  constructor(
    state: State,
    cold: ColdChunks,
    writer: Writer,
    turn: Turn,
    unused: UnusedQueues,
    targetsOf: TargetsOfTopic,
    options: IntakeOptions,
  ) {
    this.#state = state
    this.#cold = cold
    this.#writer = writer
    this.#turn = turn
    this.#unused = unused
    this.#messageBytesMax = options.messageBytesMax
    this.#observer = options.observer
    this.#targetsOf = targetsOf
    this.#excessMax = options.excessMax ?? EXCESS_MAX
    this.#excessLeft = this.#excessMax
  }

  /**
   * Drops messages to make room for what was admitted. If the oldest message is in a cold chunk, the message stays until
   * the chunk has been read, and the queue exceeds its limit until then. This happens only if the limit was set when the
   * queue already had cold chunks.
   */
  makeRoom(queue: Queue, admission: Admission): void {
    this.#excessLeft -= admission.makeRoom(this.#turn.nowMs, this.#excessLeft)
    if (queue.coldToDrop === -1) return
    // A read error is ignored here, and is reported when the chunk is needed for a delivery.
    this.#cold.load(queue, queue.coldToDrop).catch(() => {})
    queue.coldToDrop = -1
  }

  /** Called at the end of each turn. */
  endTurn(): void {
    this.#excessLeft = this.#excessMax
  }

  /**
   * Accepts the batch `bytes[at, end)` for the queue `to`, or for the queue named `to`, and returns its place.
   * `unanswered` is the distance from the number of the batch down to the lowest number that still awaits an answer. A
   * refusal is remembered under the number of the batch, unless it concerns the header of the batch or the number itself.
   * @throws SluiceError the refusal
   */
  publish(
    producer: Producer,
    to: Queue | string,
    bytes: Uint8Array,
    at: number,
    end: number,
    unanswered: number,
  ): Placed {
    const observer = this.#observer
    if (observer === undefined) return this.#publish(producer, to, bytes, at, end, unanswered)
    return observed(
      () => this.#publish(producer, to, bytes, at, end, unanswered),
      (answer) => observer.published(producer, bytes, at, end, unanswered, answer),
    )
  }

  #publish(
    producer: Producer,
    to: Queue | string,
    bytes: Uint8Array,
    at: number,
    end: number,
    unanswered: number,
  ): Placed {
    checkBatch(bytes, at, end)
    const number = batchNumber(bytes, at)
    const crc = batchRecordsCrc(bytes, at)
    // A number has one place for each of its batches. Only an atomic step can have several batches.
    const known = producer.resultOf(number, crc, unanswered)?.[0]
    if (known !== undefined) return known
    let placed: Placed
    try {
      checkFollows(producer, number, bytes, at)
      const queue = typeof to === 'string' ? this.#state.queue(to) : to
      const flags = this.checkedFlags(bytes, at, end, this.#messageBytesMax)
      placed = isPlain(queue, flags)
        ? this.#acceptPlain(queue, bytes, at, end, producer)
        : this.#accept(queue, bytes, at, end, flags, 'new', producer, undefined, 0)
    } catch (error) {
      throw refused(producer, number, error)
    }
    producer.accept(number, placed.baseOffset, crc, placed.duplicates)
    producer.lastUsedMs = this.#turn.nowMs
    return placed
  }

  /**
   * Accepts a batch that has no producer, and returns its place and its entry. The batch is sealed with the
   * number 0. `before` is written into the entry of the batch. A refused batch changes nothing, except that due messages
   * become ready and expired messages are removed. An accepted batch is a use of the queue.
   * @throws SluiceError the refusal
   */
  take(queue: Queue, batch: BatchBytes, arrival: Arrival, before?: FactsBefore): Taken {
    const messageBytesMax = arrival === 'new' ? this.#messageBytesMax : Infinity
    const flags = this.checkedFlags(batch.bytes, batch.at, batch.end, messageBytesMax)
    const { baseOffset, duplicates } = this.takeChecked(queue, batch, flags, arrival, undefined, before)
    this.#unused.used(queue)
    return { baseOffset, duplicates, gate: this.#writer.tail.gate }
  }

  /**
   * Accepts a batch that has no producer, or that its producer published to a topic. `queue` gets all of its records, which
   * were checked and have these flags. The caller remembers the result of the producer.
   * @throws SluiceError the refusal
   */
  takeChecked(
    queue: Queue,
    { bytes, at, end }: BatchBytes,
    flags: number,
    arrival: Arrival,
    producer: Producer | undefined,
    before: FactsBefore | undefined,
  ): Placed {
    // The queue can have been deleted while the caller waited, and recovery drops a batch of an unknown queue.
    if (!this.#state.has(queue)) throw queueNotFound(queue.name)
    const attributes = producer === undefined ? 0 : BATCH_ATTRIBUTE.topic
    return this.#accept(queue, bytes, at, end, flags, arrival, producer, before, attributes)
  }

  // @throws SluiceError
  #accept(
    to: Queue,
    bytes: Uint8Array,
    at: number,
    end: number,
    flags: number,
    arrival: Arrival,
    producer: Producer | undefined,
    before: FactsBefore | undefined,
    attributes: number,
  ): Placed {
    const writer = this.#writer
    const admission = new Admission(to, this.#turn.nowMs)
    const batch = this.#admitBatch(to, bytes, at, end, flags, admission, arrival)
    const { queue, admitted } = batch
    this.admit(admission)
    const beforeBytes = before === undefined ? 0 : writer.factsBytes(before.facts)
    writer.checkRoom(beforeBytes + end - at)
    if (arrival !== 'moved') writer.checkMemory()
    if (producer?.id === 0) this.declare(producer)
    const cancelled = admitted.replaced === undefined ? undefined : this.replace(queue, admission)
    this.makeRoom(queue, admission)
    // If messages are replaced, the facts about dropped messages are written first, so that only the facts about the
    // replaced ones must be in the entry of the batch. Otherwise they are written at the end of the turn.
    if (cancelled !== undefined) writer.writeFacts(queue.id, queue.facts)
    if (before?.queue !== undefined) writer.writeFacts(before.queue.id, before.queue.facts)
    this.factsAhead(batch)
    const cancelledBytes = cancelled === undefined ? 0 : writer.factsBytes(cancelled)
    writer.together(beforeBytes + cancelledBytes + writer.factsBytes(this.#facts) + end - at)
    if (before !== undefined) writer.writeFacts(before.queue?.id ?? NO_QUEUE, before.facts)
    if (cancelled !== undefined) writer.writeFacts(queue.id, cancelled)
    writer.writeFacts(queue.id, this.#facts)
    const placed = this.#append(batch, producer === undefined ? 0 : producer.id, batch.traits, attributes)
    this.#turn.changed(queue)
    return placed
  }

  // @throws SluiceError
  #acceptPlain(queue: Queue, bytes: Uint8Array, at: number, end: number, producer: Producer): Placed {
    const writer = this.#writer
    writer.checkRoom(end - at)
    writer.checkMemory()
    if (producer.id === 0) this.declare(producer)
    const baseOffset = queue.next
    const position = writer.writeMessages(bytes, at, end, queue, producer.id, batchAttributes(bytes, at))
    queue.appendPlain(batchCount(bytes, at), position, this.#turn.nowMs, end - at - BATCH_HEADER_BYTES)
    // Plain messages cause no facts and no deadline. A queue without subscriptions and readers is not accessed again,
    // because with many queues each access misses the CPU cache.
    if (queue.listeners > 0) this.#turn.changed(queue)
    return { baseOffset, duplicates: undefined }
  }

  /**
   * Removes the messages that the batch replaces. Returns the facts about the removed messages, which must be in the entry
   * of the batch.
   */
  replace(queue: Queue, admission: Admission): FactBuffer {
    this.#writer.writeFacts(queue.id, queue.facts)
    admission.replace(this.#turn.nowMs)
    return queue.facts.take()
  }

  /** Accepts the whole atomic step, or changes nothing. @throws SluiceError the refusal */
  atomic(producer: Producer, step: AtomicStep, unanswered: number): readonly Placed[] {
    const observer = this.#observer
    if (observer === undefined) return this.#atomic(producer, step, unanswered)
    return observed(
      () => this.#atomic(producer, step, unanswered),
      (answer) => observer.stepped(producer, step, unanswered, answer),
    )
  }

  #atomic(producer: Producer, step: AtomicStep, unanswered: number): readonly Placed[] {
    const { number, crc } = step
    const known = producer.resultOf(number, crc, unanswered)
    if (known !== undefined) return known
    try {
      const admissions = this.#checkLeases(step.acks)
      const checked = this.#checkBatches(producer, step, admissions)
      const { batches } = checked
      let bytes = BATCH_HEADER_BYTES
      for (const { at, end } of batches) bytes += end - at
      for (const { admitted } of batches) bytes += admittedFactsBytes(admitted)
      const acks = step.acks.reduce((sum, { count }) => sum + count, 0)
      const ackedQueues = new Set(step.acks.map(({ subscription }) => subscription!.queue)).size
      const most = this.#writer.limits.stepBytesMax
      const total = bytes + acks * ACK_FACT_BYTES + ackedQueues * BATCH_HEADER_BYTES
      if (total > most) {
        throw new SluiceError(
          'TRANSACTION_TOO_LARGE',
          `The atomic step takes ${total} bytes, ${ACK_FACT_BYTES} of them for each of its ${acks} acknowledgements; an entry of this broker's log allows at most ${most} bytes.`,
        )
      }
      this.#writer.checkRoom(bytes)
      this.#writer.checkMemory()
      if (producer.id === 0) this.declare(producer)
      return this.#apply(producer, step, checked, admissions)
    } catch (error) {
      throw refused(producer, number, error)
    }
  }

  #apply(
    producer: Producer,
    step: AtomicStep,
    { batches, answers }: CheckedStep,
    admissions: ReadonlyMap<Queue, Admission>,
  ): readonly Placed[] {
    const writer = this.#writer
    const { nowMs } = this.#turn
    const queues = [...admissions.keys()]
    // Earlier facts are written first. The facts about messages dropped to make room are also written before the
    // step: there can be many such facts, and they are not part of the step.
    for (const queue of queues) writer.writeFacts(queue.id, queue.facts)
    for (const { subscription, firstTag, count } of step.acks) subscription!.ack(firstTag, count, nowMs)
    const acked = queues.map((queue) => ({ queue, facts: queue.facts.take() }))
    for (const admission of admissions.values()) admission.replace(nowMs)
    const cancelled = queues.map((queue) => ({ queue, facts: queue.facts.take() }))
    for (const [queue, admission] of admissions) {
      this.makeRoom(queue, admission)
      writer.writeFacts(queue.id, queue.facts)
    }
    const ahead = batches.map((batch) => {
      const facts = new FactBuffer()
      if (batch.readsRecords) this.factsAhead(batch, facts)
      return facts
    })
    const result = new FactBuffer()
    const places = answers.map((answer) =>
      typeof answer === 'number'
        ? { baseOffset: answer, duplicates: undefined }
        : { baseOffset: answer.base, duplicates: duplicatesIn(answer.admitted, answer.base) },
    )
    // No queue has the id 0.
    const where = answers.map((answer) =>
      typeof answer === 'number' ? [0, answer] : [answer.queue.id, answer.base],
    )
    result.atomic(producer.id, step.number, step.crc, JSON.stringify(where))
    let bytes = writer.factsBytes(result)
    for (const facts of ahead) bytes += writer.factsBytes(facts)
    for (const { facts } of [...acked, ...cancelled]) bytes += writer.factsBytes(facts)
    for (const { at, end } of batches) bytes += end - at
    writer.together(bytes)
    for (const { queue, facts } of [...acked, ...cancelled]) writer.writeFacts(queue.id, facts)
    batches.forEach((batch, index) => {
      writer.writeFacts(batch.queue.id, ahead[index]!)
      this.#append(batch, 0, batch.readsRecords ? this.#traitsOf(batch) : undefined, 0)
    })
    writer.writeFacts(NO_QUEUE, result)
    producer.answer(step.number, step.crc, places)
    producer.lastUsedMs = nowMs
    for (const queue of queues) this.#turn.changed(queue)
    return places
  }

  // Returns one admission per queue. Each includes the room that the acknowledgements make in its queue.
  // @throws SluiceError LEASE_LOST
  #checkLeases(acks: readonly AckRange[]): Map<Queue, Admission> {
    const admissions = new Map<Queue, Admission>()
    const seen = new Map<Subscription, Set<number>>()
    for (const { subscription, firstTag, count } of acks) {
      if (subscription === undefined) throw leaseLost(firstTag)
      const tags = seen.get(subscription) ?? new Set()
      seen.set(subscription, tags)
      const admission = admissionTo(admissions, subscription.queue, this.#turn.nowMs)
      for (let i = 0; i < count; i++) {
        const tag = (firstTag + i) >>> 0
        const bytes = subscription.bytesOf(tag)
        if (bytes === -1 || tags.has(tag)) throw leaseLost(tag)
        tags.add(tag)
        admission.leaves(subscription.offsetOf(tag), bytes)
      }
    }
    return admissions
  }

  // Checks the batches of each queue together, after the acknowledgements that make room for them.
  #checkBatches(producer: Producer, step: AtomicStep, admissions: Map<Queue, Admission>): CheckedStep {
    const parts = new StepBatches(this.#writer.limits.stepBytesMax)
    const answers = step.batches.map((batch) => this.#addBatch(producer, step.number, batch, parts))
    const batches = parts.batches.map(({ queue, bytes, at, end, flags }) => {
      const admission = admissionTo(admissions, queue, this.#turn.nowMs)
      return named(queue, () => this.#admitBatch(queue, bytes, at, end, flags, admission, 'new'))
    })
    for (const [queue, admission] of admissions) named(queue, () => this.admit(admission))
    return { batches, answers: answers.map(({ index, targets }) => targets ?? batches[index]!) }
  }

  // Adds what queues get of one batch of a step. Returns the index of the part that is added first and, if the batch was
  // published to a topic, the number of its targets.
  // @throws SluiceError
  #addBatch(
    producer: Producer,
    step: number,
    batch: AtomicBatch,
    parts: StepBatches,
  ): { readonly index: number; readonly targets: number | undefined } {
    const { queue: name, bytes, at, end } = batch
    checkBatch(bytes, at, end)
    const number = batchNumber(bytes, at)
    if (number !== step) {
      throw new SluiceError(
        'BATCH_MALFORMED',
        `A batch of the atomic step ${step} has the number ${number}; it must have the number of its step.`,
      )
    }
    checkFollows(producer, number, bytes, at)
    const queue = isTopicAddress(name) ? undefined : this.#state.queue(name)
    const flags = this.checkedFlags(bytes, at, end, this.#messageBytesMax)
    const index = parts.batches.length
    if (queue !== undefined) {
      parts.add(queue, batch, flags)
      return { index, targets: undefined }
    }
    const targets = this.#targetsOf(name, batch, flags)
    // A message that no target gets must have correct times too.
    if (targets.length > 0 && hasDeliveryOptions(flags))
      checkTraits(bytes, at, batchCount(bytes, at), this.#turn.nowMs)
    parts.addForTargets(targets, batch, flags)
    return { index, targets: targets.length }
  }

  /** @throws SluiceError */
  admit(admission: Admission): void {
    const most = this.#writer.limits.aheadBytesMax
    admission.check()
    for (const batch of admission.batches) {
      if (admittedFactsBytes(batch) <= most) continue
      const known = (batch.duplicates?.size ?? 0) + (batch.replaced?.size ?? 0)
      throw new SluiceError(
        'BATCH_TOO_LARGE',
        `A batch has ${known} messages with a known id; an entry of this broker's log allows at most ${Math.floor(most / (batch.replaced === undefined ? DUPLICATE_FACT_BYTES : REPLACE_FACTS_BYTES))} in one batch.`,
      )
    }
  }

  /** Returns the flags of all options that any record of the batch has. @throws SluiceError */
  checkedFlags(bytes: Uint8Array, at: number, end: number, messageBytesMax: number): number {
    const count = batchCount(bytes, at)
    const checked = checkRecords(bytes, at + BATCH_HEADER_BYTES, end, count, messageBytesMax)
    if (typeof checked !== 'number') throw new SluiceError(checked.code, checked.message)
    // With small entries the maximum size of a batch is lower than in the protocol, because facts about each message must
    // also fit in the entry.
    const most = this.#writer.limits.batchBytesMax
    if (end - at > most) {
      throw new SluiceError(
        'BATCH_TOO_LARGE',
        `A batch of ${count} messages has ${end - at} bytes; an entry of this broker's log allows at most ${most} bytes.`,
      )
    }
    return checked
  }

  // Changes nothing, except that due messages become ready and expired messages are removed. @throws SluiceError
  #admitBatch(
    queue: Queue,
    bytes: Uint8Array,
    at: number,
    end: number,
    flags: number,
    admission: Admission,
    arrival: Arrival,
  ): CheckedBatch {
    const { nowMs } = this.#turn
    const count = batchCount(bytes, at)
    const base = queue.next + admission.taken
    if (isPlain(queue, flags)) {
      admission.pass(count)
      return {
        queue,
        bytes,
        at,
        end,
        count,
        base,
        readsRecords: false,
        traits: undefined,
        lacksTtl: false,
        admitted: UNCHECKED,
      }
    }
    if (queue.group !== undefined) throw groupRefuses(queue)
    const { maxBytes, ttlMs } = queue.options
    const readsRecords = hasDeliveryOptions(flags) || ttlMs > 0 || maxBytes > 0
    if (readsRecords) checkTraits(bytes, at, count, nowMs)
    this.#turn.catchUp(queue)
    this.#writer.note(queue)
    const traits = readsRecords ? this.#traitsOf({ queue, bytes, at, count }) : undefined
    if (queue.stream !== undefined && arrival === 'new') checkStreamTraits(queue, traits, count)
    let admitted = UNCHECKED
    if (arrival === 'new') admitted = admission.look(count, end - at - BATCH_HEADER_BYTES, traits)
    else admission.pass(count)
    const lacksTtl = traits?.lacksTtl === true
    return { queue, bytes, at, end, count, base, readsRecords, traits, lacksTtl, admitted }
  }

  /** Adds the facts that recovery must know before it applies the batch. */
  factsAhead(
    {
      queue,
      count,
      base,
      lacksTtl,
      admitted,
    }: Pick<CheckedBatch, 'queue' | 'count' | 'base' | 'lacksTtl' | 'admitted'>,
    facts: FactBuffer = this.#facts,
  ): void {
    if (lacksTtl && queue.options.ttlMs > 0) facts.ttl(base, count, queue.options.ttlMs)
    for (const [index, first] of admitted.duplicates ?? []) facts.duplicate(base + index, first)
    for (const [index, replaced] of admitted.replaced ?? []) facts.replace(base + index, replaced)
  }

  #traitsOf({
    queue,
    bytes,
    at,
    count,
  }: Pick<CheckedBatch, 'queue' | 'bytes' | 'at' | 'count'>): BatchTraits {
    return readTraits(bytes, at, count, this.#turn.nowMs, this.#state.seed, queue.options)
  }

  #append(batch: CheckedBatch, producerId: number, traits: BatchTraits | undefined, more: number): Placed {
    const { queue, bytes, at, end, count, readsRecords, admitted } = batch
    const { nowMs } = this.#turn
    const { duplicates } = admitted
    const attributes = batchAttributes(bytes, at) | (readsRecords ? BATCH_ATTRIBUTE.traits : 0) | more
    const baseOffset = queue.next
    const position = this.#writer.writeMessages(bytes, at, end, queue, producerId, attributes)
    queue.append(count, position, nowMs, end - at - BATCH_HEADER_BYTES, traits, duplicates)
    this.#turn.activateGroups(queue)
    this.#turn.accepted(count)
    if (duplicates !== undefined) queue.count('duplicates', duplicates.size)
    return { baseOffset, duplicates: duplicatesIn(admitted, baseOffset) }
  }

  /** Gives the producer its id in the log, before its first batch. */
  declare(producer: Producer): void {
    this.#state.declareProducer(producer)
    this.#facts.producer(producer.id, producer.identity)
    this.#writer.writeFacts(NO_QUEUE, this.#facts)
  }
}

/** Adds the name of the queue to its refusal. */
export function named<Result>({ name }: Queue, check: () => Result): Result {
  try {
    return check()
  } catch (error) {
    throw error instanceof SluiceError ? error.with({ queue: name }) : error
  }
}

/** Whether no message of the batch has a delivery option, and no option of the queue requires a check of each batch. */
export function isPlain(queue: Queue, flags: number): boolean {
  return !queue.checksBatches && !hasDeliveryOptions(flags)
}

function admissionTo(admissions: Map<Queue, Admission>, queue: Queue, nowMs: number): Admission {
  let admission = admissions.get(queue)
  if (admission === undefined) admissions.set(queue, (admission = new Admission(queue, nowMs)))
  return admission
}

function leaseLost(tag: number): SluiceError {
  return new SluiceError(
    'LEASE_LOST',
    `The atomic step was not applied: the consumer that acknowledges tag ${tag} no longer holds its message.`,
  )
}

export function admittedFactsBytes({ duplicates, replaced }: AdmittedBatch): number {
  return (duplicates?.size ?? 0) * DUPLICATE_FACT_BYTES + (replaced?.size ?? 0) * REPLACE_FACTS_BYTES
}

function duplicatesIn({ duplicates, replaced }: AdmittedBatch, baseOffset: number): Duplicates | undefined {
  return replaced === undefined ? duplicates : answeredDuplicates(duplicates, replaced.keys(), baseOffset)
}

// Refuses a batch that follows a refused batch, because the messages of the refused batch may be sent again and must
// come first. @throws SluiceError EARLIER_REFUSED
export function checkFollows(producer: Producer, number: number, bytes: Uint8Array, at: number): void {
  const distance = batchFollows(bytes, at)
  if (distance > 0 && producer.wasRefused(number - distance)) throw earlierRefused(number, number - distance)
}

function earlierRefused(number: number, earlier: number): SluiceError {
  return new SluiceError('EARLIER_REFUSED', `Batch ${number} follows batch ${earlier}, which was refused.`)
}

// Remembers a refusal. A final refusal is the answer to every retry of the number. After a retryable refusal the
// batch is checked again.
export function refused(producer: Producer, number: number, error: unknown): unknown {
  if (error instanceof SluiceError) producer.refuse(number, error satisfies Fault)
  return error
}
