/**
 * Compares a broker that has just recovered with what the log says, by plain reading: queues, every message with its
 * attempts and its due time, where its bytes stand, and the results of producers' batches.
 */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log } from '../../packages/server/src/log/log.js'
import type { LedgerMessage, LedgerQueue, LedgerState } from './ledger.js'
import { Violation } from './trace.js'

/** From which number on a producer may still send again. */
export type LowestUnanswered = (identity: string) => number

export interface Compared {
  messages: number
  batches: number
}

/**
 * `afterCrash`: the log did not end with an orderly stop, so everything may have been delivered.
 * @throws Violation 17
 */
export function compareRecovered(
  broker: Broker,
  log: Log,
  state: LedgerState,
  afterCrash: boolean,
  lowest: LowestUnanswered,
): Compared {
  const compared: Compared = { messages: 0, batches: 0 }
  const { firstPosition } = log.usage()
  const infos = broker.list('', Infinity).queues
  if (infos.length !== state.queues.size)
    throw new Violation(
      17,
      `${infos.length} queues are there after recovery; the log has ${state.queues.size}`,
    )
  for (const saved of state.queues.values()) compareQueue(broker, saved, firstPosition, afterCrash, compared)
  for (const saved of state.producers.values()) {
    const unsure = lowest(saved.identity)
    // Throws when it does not know what it confirmed.
    const producer = broker.attachProducer(saved.identity, saved.highest)
    if (producer.floor > unsure)
      throw new Violation(
        3,
        `producer ${saved.identity} may send ${unsure} again; its window begins at ${producer.floor}`,
      )
    for (const [number, { base, crc }] of saved.accepted) {
      if (number < unsure) continue
      compared.batches++
      const found = producer.acceptedAt(number, crc)
      if (found !== base)
        throw new Violation(
          3,
          `batch ${number} of ${saved.identity} stands at ${base}; after recovery it is said to be at ${found}`,
        )
    }
    if (producer.highest !== saved.highest)
      throw new Violation(
        3,
        `producer ${saved.identity} got to ${saved.highest}; after recovery to ${producer.highest}`,
      )
    broker.detachProducer(producer)
  }
  broker.audit()
  return compared
}

function compareQueue(
  broker: Broker,
  saved: LedgerQueue,
  firstPosition: number,
  afterCrash: boolean,
  compared: Compared,
): void {
  const queue = broker.queue(saved.name)
  const is = {
    id: queue.id,
    next: queue.next,
    live: queue.live,
    purged: queue.purged,
    createdAtMs: queue.createdAtMs,
    redeliveredBelow: queue.redeliveredBelow,
    options: queue.options,
  }
  const must = {
    id: saved.id,
    next: saved.next,
    live: saved.live.size,
    purged: saved.purged,
    createdAtMs: saved.createdAtMs,
    redeliveredBelow: afterCrash ? saved.next : saved.redeliveredBelow,
    options: saved.options,
  }
  if (JSON.stringify(is) !== JSON.stringify(must))
    throw new Violation(
      17,
      `${saved.name} is ${JSON.stringify(is)} after recovery; the log says ${JSON.stringify(must)}`,
    )
  for (const [offset, message] of saved.live) {
    compared.messages++
    const what = `offset ${offset} of ${saved.name}`
    const chunk = queue.chunkAt(offset)
    const index = chunk === undefined ? 0 : offset - chunk.base
    if (chunk === undefined || index >= chunk.count || chunk.isGone(index))
      throw new Violation(1, `${what} is gone after recovery`)
    const dueMs = chunk.dead?.has(index) === true ? 0 : chunk.dueAt(index)
    const returned = dueMs === 0 ? undefined : { attempts: chunk.attemptsAt(index), dueMs }
    compareMessage(what, message, returned, chunk.dead?.get(index))
    const position = chunk.batchPosition(chunk.batchAt(index))
    if (position < firstPosition || !saved.places.get(message.batchBase)!.includes(position)) {
      throw new Violation(
        17,
        `${what} is said to stand at ${position}; its batch stands at ${saved.places.get(message.batchBase)!.join()}, and the log begins at ${firstPosition}`,
      )
    }
  }
}

function compareMessage(
  what: string,
  message: LedgerMessage,
  returned: { readonly attempts: number; readonly dueMs: number } | undefined,
  dead: LedgerMessage['dead'],
): void {
  const isReturned =
    message.dueMs === undefined ? undefined : { attempts: message.attempts, dueMs: message.dueMs }
  if (returned?.attempts !== isReturned?.attempts || returned?.dueMs !== isReturned?.dueMs) {
    throw new Violation(
      17,
      `${what} comes back as ${JSON.stringify(returned)} after recovery; the log says ${JSON.stringify(isReturned)}`,
    )
  }
  if (JSON.stringify(dead) !== JSON.stringify(message.dead)) {
    throw new Violation(
      17,
      `${what} is dead as ${JSON.stringify(dead)} after recovery; the log says ${JSON.stringify(message.dead)}`,
    )
  }
}
