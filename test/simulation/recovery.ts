/**
 * Compares a recovered broker with the state of the log: queues with their counters; every message with its attempts,
 * times, key, id, redrives and the position of its bytes; the remembered ids; and the results of producers' batches.
 */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log } from '../../packages/server/src/log/log.js'
import {
  ID_WORDS,
  emptyLocation,
  hashId,
  hashKey,
  type Chunk,
  type Queue,
  type Seed,
} from '../../packages/server/src/queue/index.js'
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
}

export function nothingCompared(): Compared {
  return { messages: 0, batches: 0, keys: 0, ids: 0, dead: 0 }
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
    compareQueue(queue, saved, afterCrash)
    for (const [offset, message] of saved.live)
      compareMessage(queue, saved, offset, message, firstPosition, state.seed, compared)
    compareIds(queue, saved, latestMs, state.seed, compared)
  }
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
  broker.audit()
  return compared
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

function compareMessage(
  queue: Queue,
  saved: LedgerQueue,
  offset: number,
  message: LedgerMessage,
  firstPosition: number,
  seed: Seed,
  compared: Compared,
): void {
  compared.messages++
  const what = `offset ${offset} of ${saved.name}`
  const chunk = queue.chunkAt(offset)
  const index = chunk === undefined ? 0 : offset - chunk.base
  if (chunk === undefined || index >= chunk.count || chunk.isGone(index))
    throw new Violation(1, `${what} is gone after recovery`)
  const { content, dead, earlier } = message
  if (dead !== undefined) compared.dead++
  if (content.key !== undefined) compared.keys++
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
      dueMs: message.dueMs ?? 0,
      attempts: message.attempts,
      expiresMs: message.expiresMs,
      key: content.key === undefined ? undefined : hashOfKey(content.key, seed),
      id: message.isListed ? hashOfId(content.id!, seed) : undefined,
      lives: earlier,
      dead,
    },
  )
  const location = emptyLocation()
  chunk.locate(index, location)
  const position = location.batchPosition
  if (position < firstPosition || !saved.places.get(message.batchBase)!.includes(position)) {
    throw new Violation(
      17,
      `${what} is located at ${position}; its batch is at ${saved.places.get(message.batchBase)!.join()}, and the log begins at ${firstPosition}`,
    )
  }
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
  if (sorted(is) !== sorted(must))
    throw new Violation(invariant, `${what} is ${sorted(is)} after recovery; the log has ${sorted(must)}`)
}

// JSON in which the fields of objects are sorted by name.
function sorted(value: unknown): string {
  return JSON.stringify(value, (_name, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  )
}
