/**
 * Compares a recovered broker with the state of the log: queues with their counters; every message with its attempts,
 * times, key, id, redrives and the position of its bytes; the remembered ids; and the results of producers' batches.
 */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log } from '../../packages/server/src/log/log.js'
import {
  CHUNK_MESSAGES,
  ID_WORDS,
  emptyLocation,
  hashId,
  hashKey,
  type Chunk,
  type Queue,
  type Seed,
} from '../../packages/server/src/queue/index.js'
import { isSameJson } from '../json.js'
import { PendingIds } from '../rules/ids.js'
import {
  COUNTERS,
  type LedgerDead,
  type LedgerMessage,
  type LedgerQueue,
  type LedgerState,
} from './ledger.js'
import { Violation } from './trace.js'

/** Returns the lowest number that a producer may still send again. */
export type LowestUnanswered = (identity: string) => number

export interface Compared {
  messages: number
  batches: number
  keys: number
  ids: number
  dead: number
  coldChunks: number
  retained: number
  definitions: number
}

export function nothingCompared(): Compared {
  return { messages: 0, batches: 0, keys: 0, ids: 0, dead: 0, coldChunks: 0, retained: 0, definitions: 0 }
}

/**
 * `afterCrash`: the log does not end with an orderly stop, so any message may have been delivered. `latestMs`: the
 * latest time that any broker on this log has seen.
 * @throws Violation 17
 */
export function compareRecovered(
  broker: Broker,
  log: Log,
  state: LedgerState,
  afterCrash: boolean,
  latestMs: number,
  lowest: LowestUnanswered,
): Compared {
  const compared = nothingCompared()
  const { firstPosition } = log.usage()
  const { queues } = broker.status
  if (queues !== state.queues.size)
    throw new Violation(17, `there are ${queues} queues after recovery; the log has ${state.queues.size}`)
  for (const saved of state.queues.values()) {
    const queue = broker.catalog.queue(saved.name)
    if (isOvertaken(saved, state)) continue
    compareQueue(queue, saved, afterCrash)
    compareMessages(queue, saved, firstPosition, state.seed, compared)
    compareRetained(queue, saved, firstPosition, compared)
    for (const number of queue.chunks.coldNumbers) {
      compared.coldChunks++
      compareCold(queue, saved, number * CHUNK_MESSAGES, log.segmentBytes, firstPosition)
    }
    compareIds(queue, saved, latestMs, state.seed, compared)
  }
  compareDefinitions(broker, state, compared)
  for (const saved of state.producers.values()) {
    const unsure = lowest(saved.identity)
    // `attach` throws if the broker does not know the number that it confirmed.
    const producer = broker.producers.attach(saved.identity, saved.highest)
    if (producer.windowStart > unsure)
      throw new Violation(
        3,
        `producer ${saved.identity} may send ${unsure} again; its window begins at ${producer.windowStart}`,
      )
    for (const [number, { places, crc }] of saved.accepted) {
      if (number < unsure) continue
      compared.batches++
      const found = producer.resultOf(number, crc, number - unsure)
      compare(
        3,
        `batch ${number} of ${saved.identity}`,
        found?.map(({ baseOffset, duplicates }) => [baseOffset, ...(duplicates ?? [])]),
        places.map(({ base, duplicates }) => [base, ...duplicates]),
      )
    }
    compare(3, `the highest number of ${saved.identity}`, producer.highest, saved.highest)
    broker.producers.detach(producer)
  }
  return compared
}

/**
 * Whether the log ends after the stream released messages of the group, and before the group lost them. The broker has
 * then removed them from the group at its start, and the next entry has the fact.
 */
function isOvertaken({ group, live, next }: LedgerQueue, { queues }: LedgerState): boolean {
  if (group === undefined) return false
  const stream = queues.get(group.streamId)!
  const [first = stream.next] = stream.retained.keys()
  return next < first || [...live.keys()].some((offset) => offset < first)
}

function compareQueue(queue: Queue, saved: LedgerQueue, afterCrash: boolean): void {
  const counts = Object.fromEntries(COUNTERS.map((name) => [name, queue.counts[name]]))
  let dead = 0
  for (const message of saved.live.values()) if (message.dead !== undefined) dead++
  compare(
    17,
    saved.name,
    {
      id: queue.id,
      next: queue.next,
      live: queue.live,
      dead: queue.deadCount,
      counts,
      carried: queue.carried,
      createdAtMs: queue.createdAtMs,
      redeliveredBelow: queue.redeliveredBelow,
      options: queue.options,
      paused: queue.paused,
    },
    {
      id: saved.id,
      next: saved.next,
      live: saved.live.size,
      dead,
      counts: saved.counts,
      carried: saved.carried,
      createdAtMs: saved.createdAtMs,
      redeliveredBelow: afterCrash ? saved.next : saved.redeliveredBelow,
      options: saved.options,
      paused: saved.paused,
    },
  )
}

function compareMessages(
  queue: Queue,
  saved: LedgerQueue,
  firstPosition: number,
  seed: Seed,
  compared: Compared,
): void {
  let chunk: Chunk | undefined
  let chunkNumber = -1
  let batchBase = -1
  let isCold = false
  for (const [offset, message] of saved.live) {
    const number = Math.floor(offset / CHUNK_MESSAGES)
    const isNext = number !== chunkNumber
    if (isNext) {
      chunkNumber = number
      chunk = queue.chunkAt(offset)
      isCold = queue.chunks.isCold(offset)
    }
    if (isCold) continue
    compared.messages++
    const index = offset - number * CHUNK_MESSAGES
    if (chunk === undefined || index >= chunk.count || chunk.isGone(index))
      throw new Violation(1, `offset ${offset} of ${saved.name} is gone after recovery`)
    const { content, dead } = message
    if (dead !== undefined) compared.dead++
    if (content.key !== undefined) compared.keys++
    if (!isPlain(message) || !isPlainIn(chunk, index))
      compareState(`offset ${offset} of ${saved.name}`, queue, chunk, index, message, seed)
    // All messages of a batch that are in the same chunk have the same location.
    if (!isNext && message.batchBase === batchBase) continue
    batchBase = message.batchBase
    comparePlace(chunk, index, saved, batchBase, firstPosition)
  }
}

function comparePlace(
  chunk: Chunk,
  index: number,
  saved: LedgerQueue,
  batchBase: number,
  firstPosition: number,
): void {
  chunk.locate(index, LOCATION)
  const position = LOCATION.batchPosition
  const places = saved.places.get(batchBase)!
  if (position >= firstPosition && places.includes(position)) return
  throw new Violation(
    17,
    `offset ${chunk.base + index} of ${saved.name} is located at ${position}; its batch is at ${places.join()}, and the log begins at ${firstPosition}`,
  )
}

// Recovery may also keep messages that were acknowledged before the queue was set to retain.
function compareRetained(queue: Queue, saved: LedgerQueue, firstPosition: number, compared: Compared): void {
  let batchBase = -1
  for (const [offset, message] of saved.retained) {
    compared.retained++
    if (queue.isCold(offset)) continue
    if (!queue.isRetained(offset))
      throw new Violation(1, `offset ${offset} of ${saved.name} is not retained after recovery`)
    if (message.batchBase === batchBase) continue
    batchBase = message.batchBase
    const chunk = queue.heldChunk(offset)!
    comparePlace(chunk, offset - chunk.base, saved, batchBase, firstPosition)
  }
  if (saved.stream !== undefined && queue.retainedMessages !== saved.retained.size)
    throw new Violation(
      17,
      `${saved.name} retains ${queue.retainedMessages} messages after recovery; the log has ${saved.retained.size}`,
    )
  if (saved.group !== undefined && queue.missed !== saved.missed)
    throw new Violation(
      17,
      `${saved.name} has missed ${queue.missed} messages after recovery; the log has ${saved.missed}`,
    )
}

/** The broker has the bindings and schedules of the log, with the last tick of each schedule. */
function compareDefinitions(broker: Broker, { definitions, queues }: LedgerState, compared: Compared): void {
  const bindings: unknown[] = []
  for (let after = 0, more = true; more;) {
    const page = broker.topics.list({ pattern: undefined, target: undefined, after })
    for (const { id, target } of page.bindings) {
      bindings.push([id, target])
      after = id
    }
    more = page.more
  }
  const { schedules } = broker.schedules.list('', 1_000)
  const saved = [...definitions]
  compared.definitions += saved.length
  compare(
    17,
    'the definitions',
    [bindings, schedules.map(({ name, fired, lastTickMs }) => [name, fired, lastTickMs ?? 0])],
    [
      saved.filter(([, { kind }]) => kind === 1).map(([id, { owner }]) => [id, queues.get(owner)?.name]),
      saved
        .filter(([, { kind }]) => kind === 2)
        .map(([, { text, fired, number }]) => [(JSON.parse(text) as { name: string }).name, fired, number])
        .toSorted(([a], [b]) => (a! < b! ? -1 : 1)),
    ],
  )
}

const LOCATION = emptyLocation()

/** Whether the message is ready and has no state of its own. */
function isPlain(message: LedgerMessage): boolean {
  const { content } = message
  const hasState = message.dueMs !== undefined || message.attempts > 0 || message.earlier !== undefined
  const hasOptions = content.priority > 0 || content.key !== undefined || message.expiresMs > 0
  return !hasState && !hasOptions && message.dead === undefined && !message.isListed
}

/** Whether the chunk says the same of the message. */
function isPlainIn(chunk: Chunk, index: number): boolean {
  if (chunk.isUntouched) return true
  const hasState = chunk.dueAt(index) !== 0 || chunk.attemptsAt(index) !== 0 || chunk.isDead(index)
  const hasOptions = chunk.priorityAt(index) !== 0 || chunk.keyAt(index) !== -1 || chunk.hasId(index)
  return !hasState && !hasOptions && chunk.expiryAt(index) === 0 && chunk.redriven?.has(index) !== true
}

function compareState(
  what: string,
  queue: Queue,
  chunk: Chunk,
  index: number,
  { content, dueMs, attempts, expiresMs, earlier, dead, isListed }: LedgerMessage,
  seed: Seed,
): void {
  compare(
    17,
    what,
    {
      priority: chunk.priorityAt(index),
      dueMs: dead === undefined ? chunk.dueAt(index) : 0,
      attempts: dead === undefined ? chunk.attemptsAt(index) : 0,
      expiresMs: chunk.expiryAt(index),
      key: keyWords(chunk, index, queue),
      id: idWords(chunk, index),
      lives: chunk.redriven?.get(index),
      dead: deadOf(chunk, index),
    },
    {
      priority: content.priority,
      dueMs: dueMs ?? 0,
      attempts,
      expiresMs,
      key: content.key === undefined ? undefined : hashOfKey(content.key, seed),
      id: isListed ? hashOfId(content.id!, seed) : undefined,
      lives: earlier,
      dead,
    },
  )
}

/**
 * A cold chunk is not read: its messages must all be live and plain, and its summary must be that of its batches.
 */
function compareCold(
  { chunks }: Queue,
  saved: LedgerQueue,
  from: number,
  segmentBytes: number,
  firstPosition: number,
): void {
  const what = `the cold chunk at offset ${from} of ${saved.name}`
  const { firstMs, firstPosition: first, lastPosition: last, uses } = chunks.summaryAt(from)
  const bases = new Set<number>()
  for (let offset = from; offset < from + CHUNK_MESSAGES; offset++) {
    const message = saved.live.get(offset)
    if (message === undefined || !isPlain(message))
      throw new Violation(17, `${what} has offset ${offset}, which is gone or not plain`)
    bases.add(message.batchBase)
  }
  let batchBytes = 0
  for (const base of bases) batchBytes += saved.batchBytes.get(base)!
  const firstBatch = saved.live.get(from)!
  const lastBatch = saved.live.get(from + CHUNK_MESSAGES - 1)!
  const isHere = (position: number, base: number): boolean =>
    position >= firstPosition && saved.places.get(base)!.includes(position)
  const segments = new Set(uses.map(([position]) => Math.floor(position / segmentBytes)))
  compare(
    17,
    what,
    {
      firstMs,
      batchBytes: uses.reduce((sum, [, used]) => sum + used, 0),
      first: isHere(first, firstBatch.batchBase),
      last: isHere(last, lastBatch.batchBase),
      segments: segments.size,
    },
    {
      firstMs: firstBatch.timeMs,
      batchBytes,
      first: true,
      last: true,
      segments: uses.length,
    },
  )
}

// An id in its window, or of a pending message, is known. After its window an id may still be known, unless a change of
// options has forgotten it.
function compareIds(
  queue: Queue,
  saved: LedgerQueue,
  latestMs: number,
  seed: Seed,
  compared: Compared,
): void {
  const windowMs = saved.options['dedupWindowMs'] as number
  const known = [...saved.remembered.entries()].length
  if (queue.ids.count > known)
    throw new Violation(17, `${saved.name} knows ${queue.ids.count} ids after recovery; the log has ${known}`)
  for (const { id, offset, timeMs } of saved.remembered.entries()) {
    if (timeMs <= latestMs - windowMs) continue
    compared.ids++
    const found = queue.ids.find(Uint32Array.from(hashOfId(id, seed)), 0)
    compare(17, `the offset of id ${id} in ${saved.name}`, found, offset)
  }
  if (saved.options['unique'] !== 'pending') return
  // If several messages have the same id, the first one counts.
  const pending = new PendingIds()
  for (const [offset, { dead, content }] of saved.live)
    if (dead === undefined && content.id !== undefined) pending.add(content.id, offset)
  for (const [id, offset] of pending.entries()) {
    compared.ids++
    const found = queue.offsetOf(Uint32Array.from(hashOfId(id, seed)), 0)
    compare(17, `the offset of the pending id ${id} in ${saved.name}`, found, offset)
  }
}

function deadOf(chunk: Chunk, index: number): LedgerDead | undefined {
  const dead = chunk.dead?.get(index)
  if (dead === undefined) return undefined
  const { attempts, death, timeMs, reason, isMoving } = dead
  return { attempts, death, timeMs, reason, isMoving }
}

function keyWords(chunk: Chunk, index: number, queue: Queue): number[] | undefined {
  const slot = chunk.keyAt(index)
  return slot === -1 ? undefined : [queue.keys.low(slot), queue.keys.high(slot)]
}

function idWords(chunk: Chunk, index: number): number[] | undefined {
  if (!chunk.hasId(index)) return undefined
  return [...chunk.idAt(index)]
}

function hashOfKey(key: string, seed: Seed): number[] {
  const words = new Uint32Array(2)
  const bytes = Buffer.from(key)
  hashKey(bytes, 0, bytes.length, seed, words, 0)
  return [...words]
}

function hashOfId(id: string, seed: Seed): number[] {
  const words = new Uint32Array(ID_WORDS)
  const bytes = Buffer.from(id)
  hashId(bytes, 0, bytes.length, seed, words, 0)
  return [...words]
}

function compare(invariant: number, what: string, is: unknown, must: unknown): void {
  if (isSameJson(is, must)) return
  throw new Violation(
    invariant,
    `${what} is ${JSON.stringify(is)} after recovery; the log has ${JSON.stringify(must)}`,
  )
}
