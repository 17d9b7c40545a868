/**
 * Accepts shared batches: one batch for several queues, whose body is stored once. Each target applies its own options:
 * limits, ids, time to live, keys and priorities. The batch is checked for every target before anything changes; if one
 * target refuses it, no target gets it, and the `queue` of the error is that target. If its only target gets all of its
 * records, it is stored as a batch of that queue.
 *
 * `publish` accepts the numbered batch of a producer, and remembers the number of targets as its result. `take` accepts
 * a batch that has no producer.
 */
import {
  BATCH_ATTRIBUTE,
  BATCH_HEADER_BYTES,
  SluiceError,
  batchAttributes,
  batchCount,
  batchNumber,
  batchRecordsCrc,
  checkBatch,
} from '@sluice/protocol'
import {
  Admission,
  FactBuffer,
  REFER_BYTES,
  chunkEndAfter,
  countedRows,
  sharesOf,
  type AdmittedBatch,
  type Queue,
  type Refer,
} from '../queue/index.js'
import type { Producer } from '../state/producers.js'
import { SharedRecords, countOf } from '../state/shared-batches.js'
import { groupRefuses, queueNotFound, type State } from '../state/state.js'
import { checkStreamTraits, checkTraits, hasDeliveryOptions, type BatchTraits } from '../state/traits.js'
import type { BatchBytes, Target } from './commands.js'
import {
  UNCHECKED,
  admittedFactsBytes,
  checkFollows,
  isPlain,
  named,
  refused,
  type Arrival,
  type Intake,
} from './intake.js'
import type { Turn } from './turn.js'
import { NO_QUEUE, type Writer } from './writer.js'

/** Maximum number of queues that get one batch. */
export const TARGETS_MAX = 1_024
/**
 * Maximum work for one batch, for all of its targets together: each range of records counts, and each message of a target
 * that must read the options of the records. 65,536 messages with ids take a third of a second.
 */
export const WORK_MAX = 65_536
/** The places of a batch that reached no queue, in an `atomic` fact: no queue has the id 0. */
const NO_TARGETS = '[[0,0]]'
/** Maximum size of a fact with a time to live, and of the headers of the facts of one target, in bytes. */
const TTL_FACT_BYTES = 24
const FACTS_HEADERS_BYTES = 2 * BATCH_HEADER_BYTES

/** The part of a batch that one target gets. */
interface Part {
  readonly queue: Queue
  readonly refers: readonly Refer[]
  /** Offset of the first message, number of messages, and size of their records. */
  readonly base: number
  readonly count: number
  readonly recordsBytes: number
  /** Whether the options of the records must be read for this target. */
  readonly readsRecords: boolean
  readonly lacksTtl: boolean
  /** Undefined if the queue accepts every batch of messages without options. */
  readonly admission: Admission | undefined
  readonly admitted: AdmittedBatch
}

/** A batch for several queues that all of them can accept. */
interface CheckedShared extends BatchBytes {
  readonly parts: readonly Part[]
  readonly records: SharedRecords
  readonly refers: FactBuffer
  /** Maximum size in the log, with all facts that precede the batch. */
  readonly totalBytes: number
}

/**
 * Finds the targets of a batch of a producer, whose records were checked. `flags` are the flags of all records. Called only
 * if the number of the batch is new. @throws SluiceError the refusal
 */
export type TargetsOf = (flags: number) => readonly Target[]

/** The receipt of a shared batch. */
export interface Shared {
  /** Number of queues that got messages. */
  readonly targets: number
  /** Number of the entry with the batch. */
  readonly gate: number
}

export class SharedIntake {
  readonly #state: State
  readonly #writer: Writer
  readonly #turn: Turn
  readonly #intake: Intake
  readonly #messageBytesMax: number
  /** The `refer` facts of the batch that is being accepted. */
  readonly #refers = new FactBuffer()

  constructor(state: State, writer: Writer, turn: Turn, intake: Intake, messageBytesMax: number) {
    this.#messageBytesMax = messageBytesMax
    this.#state = state
    this.#writer = writer
    this.#turn = turn
    this.#intake = intake
  }

  /**
   * Accepts the batch `bytes[at, end)` of a producer for all targets, and returns the number of targets. A batch that is
   * sent again gets the answer that it got first, whatever the targets are now. A batch without targets is not stored, but
   * its result is. `unanswered` is described at `Intake.publish`.
   * @throws SluiceError the refusal
   */
  publish(
    producer: Producer,
    targetsOf: TargetsOf,
    { bytes, at, end }: BatchBytes,
    unanswered: number,
  ): number {
    checkBatch(bytes, at, end)
    const number = batchNumber(bytes, at)
    const crc = batchRecordsCrc(bytes, at)
    const known = producer.resultOf(number, crc, unanswered)?.[0]
    if (known !== undefined) return known.baseOffset
    let targets: number
    try {
      checkFollows(producer, number, bytes, at)
      targets = this.#accept(targetsOf, { bytes, at, end }, 'new', producer, undefined)
      if (targets === 0) this.#acceptNothing(producer, number, crc)
    } catch (error) {
      throw refused(producer, number, error)
    }
    producer.accept(number, targets, crc, undefined)
    producer.lastUsedMs = this.#turn.nowMs
    return targets
  }

  /**
   * Accepts a batch that has no producer for all targets. The batch is sealed with the number 0. `before` are facts about
   * no queue, which are written into the entry of the batch. A refused batch changes nothing, except that due messages become ready and expired messages are removed.
   * @throws SluiceError the refusal
   */
  take(targets: readonly Target[], batch: BatchBytes, arrival: Arrival, before?: FactBuffer): Shared {
    if (targets.length === 0) throw new Error('a batch without a producer needs targets')
    this.#accept(() => targets, batch, arrival, undefined, before)
    return { targets: targets.length, gate: this.#writer.tail.gate }
  }

  // Recovery needs the result of the number. A step without batches is the shortest record of it.
  #acceptNothing(producer: Producer, number: number, crc: number): void {
    this.#writer.checkRoom(BATCH_HEADER_BYTES)
    if (producer.id === 0) this.#intake.declare(producer)
    const facts = new FactBuffer()
    facts.atomic(producer.id, number, crc, NO_TARGETS)
    this.#writer.writeFacts(NO_QUEUE, facts)
  }

  // Returns the number of targets. Accepts nothing if there are none. @throws SluiceError
  #accept(
    targetsOf: TargetsOf,
    batch: BatchBytes,
    arrival: Arrival,
    producer: Producer | undefined,
    before: FactBuffer | undefined,
  ): number {
    const { bytes, at, end } = batch
    const messageBytesMax = arrival === 'new' ? this.#messageBytesMax : Infinity
    const flags = this.#intake.checkedFlags(bytes, at, end, messageBytesMax)
    const targets = targetsOf(flags)
    if (targets.length === 0) return 0
    const only = targets.length === 1 && targets[0]!.ranges === undefined ? targets[0]!.queue : undefined
    const checked = only === undefined ? this.#check(targets, batch, flags, arrival) : undefined
    const beforeBytes = before === undefined ? 0 : this.#writer.factsBytes(before)
    this.#writer.checkRoom((checked === undefined ? end - at : checked.totalBytes) + beforeBytes)
    if (arrival !== 'moved') this.#writer.checkMemory()
    if (checked === undefined) {
      const facts = before === undefined ? undefined : { queue: undefined, facts: before }
      named(only!, () => this.#intake.takeChecked(only!, batch, flags, arrival, producer, facts))
      return 1
    }
    if (producer?.id === 0) this.#intake.declare(producer)
    this.#take(checked, producer?.id ?? 0, before)
    return targets.length
  }

  // --- check: changes nothing, except that due messages become ready and expired messages are removed ---

  // @throws SluiceError
  #check(
    targets: readonly Target[],
    { bytes, at, end }: BatchBytes,
    flags: number,
    arrival: Arrival,
  ): CheckedShared {
    const { limits } = this.#writer
    const { nowMs } = this.#turn
    const count = batchCount(bytes, at)
    checkTargets(targets, count)
    if (hasDeliveryOptions(flags)) checkTraits(bytes, at, count, nowMs)
    const header = { length: end - at, count, timeMs: nowMs }
    const records = new SharedRecords(bytes, at, header, this.#state.seed)
    const refers = this.#refers
    refers.clear()
    const whole = [{ index: 0, count }]
    const isAnyRetaining = targets.some(({ queue }) => queue.retains)
    let aheadBytes = 0
    let work = 0
    const parts: Part[] = []
    for (const { queue, ranges } of inOrderOfRules(targets)) {
      // The queue can have been deleted while the caller waited.
      if (!this.#state.has(queue)) throw queueNotFound(queue.name).with({ queue: queue.name })
      const places = refersOf(queue, ranges ?? whole, queue.retains || !isAnyRetaining)
      work += mustRead(queue, flags) ? countOf(places) : places.length
      if (work > WORK_MAX) throw tooMuch(targets.length, count)
      const part = this.#checkTarget(queue, places, records, flags, arrival)
      for (const refer of places) refers.refer(refer)
      parts.push(part)
      if (part.admission === undefined) continue
      const partBytes = admittedFactsBytes(part.admitted) + (part.lacksTtl ? TTL_FACT_BYTES : 0)
      if (partBytes > 0) aheadBytes += partBytes + FACTS_HEADERS_BYTES
    }
    checkFacts('which queues have which records', refers.length, limits.factsBytesMax)
    checkFacts('known ids and times to live', aheadBytes, limits.aheadBytesMax)
    const totalBytes = aheadBytes + BATCH_HEADER_BYTES + refers.length + end - at
    return { bytes, at, end, parts, records, refers, totalBytes }
  }

  // A batch can have a thousand targets, so a target without rules costs one object here. @throws SluiceError
  #checkTarget(
    queue: Queue,
    refers: readonly Refer[],
    records: SharedRecords,
    flags: number,
    arrival: Arrival,
  ): Part {
    if (!isPlain(queue, flags))
      return named(queue, () => this.#checkRules(queue, refers, records, flags, arrival))
    return {
      queue,
      refers,
      base: queue.next,
      count: countOf(refers),
      recordsBytes: records.bytesOf(refers),
      readsRecords: false,
      lacksTtl: false,
      admission: undefined,
      admitted: UNCHECKED,
    }
  }

  // @throws SluiceError
  #checkRules(
    queue: Queue,
    refers: readonly Refer[],
    records: SharedRecords,
    flags: number,
    arrival: Arrival,
  ): Part {
    if (queue.group !== undefined) throw groupRefuses(queue)
    const base = queue.next
    const count = countOf(refers)
    const recordsBytes = records.bytesOf(refers)
    const admission = new Admission(queue, this.#turn.nowMs)
    const readsRecords = mustRead(queue, flags)
    this.#turn.catchUp(queue)
    this.#writer.note(queue)
    const traits = readsRecords ? records.traitsOf(refers, queue.options) : undefined
    if (queue.stream !== undefined && arrival === 'new') checkStreamTraits(queue, traits, count)
    const admitted = arrival === 'new' ? admission.look(count, recordsBytes, traits) : UNCHECKED
    this.#intake.admit(admission)
    const lacksTtl = traits?.lacksTtl === true && queue.options.ttlMs > 0
    return { queue, refers, base, count, recordsBytes, readsRecords, lacksTtl, admission, admitted }
  }

  // --- take: nothing is refused any more ---

  #take(
    { bytes, at, end, parts, records, refers }: CheckedShared,
    producerId: number,
    before: FactBuffer | undefined,
  ): void {
    const writer = this.#writer
    const { nowMs } = this.#turn
    const ahead: { readonly queue: Queue; readonly facts: FactBuffer }[] = []
    for (const part of parts) {
      const { queue, admission, admitted } = part
      if (admission === undefined) continue
      if (admitted.replaced !== undefined)
        ahead.push({ queue, facts: this.#intake.replace(queue, admission) })
      this.#intake.makeRoom(queue, admission)
      // Facts about dropped messages need not be in the entry of the batch.
      if (admitted.replaced !== undefined) writer.writeFacts(queue.id, queue.facts)
      const facts = new FactBuffer()
      this.#intake.factsAhead(part, facts)
      if (!facts.isEmpty) ahead.push({ queue, facts })
    }
    let together = BATCH_HEADER_BYTES + refers.length + end - at
    for (const { facts } of ahead) together += writer.factsBytes(facts)
    if (before !== undefined) together += writer.factsBytes(before)
    writer.together(together)
    if (before !== undefined) writer.writeFacts(NO_QUEUE, before)
    for (const { queue, facts } of ahead) writer.writeFacts(queue.id, facts)
    const readsRecords = parts.some((part) => part.readsRecords)
    const attributes = batchAttributes(bytes, at) | (readsRecords ? BATCH_ATTRIBUTE.traits : 0)
    const position = writer.writeShared(bytes, at, end, refers, parts.length, producerId, attributes)
    const rows = parts.reduce((sum, part) => sum + countedRows(part.refers), 0)
    const shares = sharesOf(end - at, rows)
    for (const part of parts) {
      const { queue, base, count, recordsBytes, admitted } = part
      const share = part.refers[0]!.isCounted ? shares.counted : shares.uncounted
      this.#state.segments.share(position, share.bytes * part.refers.length, share.scale)
      const { duplicates } = admitted
      let traits: BatchTraits | undefined
      if (part.readsRecords) traits = records.traitsOf(part.refers, queue.options)
      const batch = { baseOffset: base, count, timeMs: nowMs, length: share.bytes, scale: share.scale }
      queue.referFact(part.refers, batch, position, recordsBytes, traits, duplicates)
      if (part.readsRecords) this.#turn.accepted(count)
      if (duplicates !== undefined) queue.count('duplicates', duplicates.size)
      this.#turn.activateGroups(queue)
      this.#turn.changed(queue)
    }
  }
}

// Targets with the same rules follow each other, so that the options of the records are read once for all of them.
function inOrderOfRules(targets: readonly Target[]): readonly Target[] {
  if (targets.every(({ queue: { options } }) => options.ttlMs === 0 && options.maxBytes === 0)) return targets
  return targets.toSorted(
    ({ queue: { options: a } }, { queue: { options: b } }) =>
      a.ttlMs - b.ttlMs || Number(a.maxBytes > 0) - Number(b.maxBytes > 0),
  )
}

// Whether a target needs the options of each record.
function mustRead({ options: { ttlMs, maxBytes } }: Queue, flags: number): boolean {
  return hasDeliveryOptions(flags) || ttlMs > 0 || maxBytes > 0
}

function tooMuch(targets: number, count: number): SluiceError {
  return new SluiceError(
    'BATCH_TOO_LARGE',
    `A batch of ${count} messages for ${targets} queues takes more than ${WORK_MAX} steps: one for each range of records and, if messages have options or a queue has ttlMs or maxBytes, one for each message of each queue. Publish smaller batches.`,
  )
}

// The places of the records at the next offsets of the queue. Each place is in one chunk.
function refersOf(queue: Queue, ranges: NonNullable<Target['ranges']>, isCounted: boolean): Refer[] {
  const refers: Refer[] = []
  let offset = queue.next
  for (const range of ranges) {
    for (let index = range.index; index < range.index + range.count;) {
      const count = Math.min(range.index + range.count - index, chunkEndAfter(offset) - offset)
      refers.push({ queueId: queue.id, offset, count, index, isCounted })
      index += count
      offset += count
    }
  }
  return refers
}

// Targets and ranges come from the broker, not from a client, so all but their number are defects. @throws SluiceError
// BATCH_TOO_LARGE
function checkTargets(targets: readonly Target[], count: number): void {
  if (targets.length > TARGETS_MAX) {
    throw new SluiceError(
      'BATCH_TOO_LARGE',
      `A batch has ${targets.length} target queues; it may have at most ${TARGETS_MAX}.`,
    )
  }
  const queues = new Set<Queue>()
  for (const { queue, ranges } of targets) {
    queues.add(queue)
    if (ranges === undefined) continue
    let end = 0
    for (const range of ranges) {
      if (range.index < end || range.count < 1) throw new Error(`ranges of ${queue.name} are not in order`)
      end = range.index + range.count
    }
    if (end > count || ranges.length === 0) throw new Error(`ranges of ${queue.name} are not in the batch`)
  }
  if (queues.size < targets.length) throw new Error('each target of a shared batch must be another queue')
}

// @throws SluiceError BATCH_TOO_LARGE
function checkFacts(what: string, bytes: number, bytesMax: number): void {
  if (bytes <= bytesMax) return
  throw new SluiceError(
    'BATCH_TOO_LARGE',
    `The facts about ${what} of a batch for several queues take ${bytes} bytes; an entry of this broker's log allows at most ${bytesMax} bytes. A queue takes ${REFER_BYTES} bytes for each range of records.`,
  )
}
