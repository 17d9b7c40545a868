/**
 * EXPLAIN: why a message, or any message of a queue or group, is not delivered. Reads the state in memory and changes nothing.
 * A message whose chunk is cold was read before (`Operator.whenRead`). Called by sessions.
 */
import { deathName, type ExplainReason, type ExplainRequest } from '@sluice/protocol'
import { NONE, emptyRun, type Chunk, type Queue, type Subscription } from '../queue/index.js'
import type { State } from '../state/state.js'
import { Feeds } from './feeds.js'
import type { Turn } from './turn.js'

/** Maximum number of consumers that an answer names. */
const NAMED_MAX = 10
/** Maximum number of messages that a search visits, and that are counted in front of a message of a key. */
export const VISITED_MAX = 16_384

/** What the rest of the broker knows about deliveries. */
export interface Delivering {
  /** Whether nothing is delivered because the disk is behind or full. */
  readonly isBehind: boolean
  /** Whether the message that the queue delivers next is being read from the disk. */
  isReading(queue: Queue): boolean
}

export class Explainer {
  readonly #state: State
  readonly #delivering: Delivering
  readonly #turn: Turn
  readonly #run = emptyRun()

  constructor(state: State, delivering: Delivering, turn: Turn) {
    this.#state = state
    this.#delivering = delivering
    this.#turn = turn
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND */
  explain({ name, offset }: ExplainRequest): { readonly reasons: readonly ExplainReason[] } {
    const queue = this.#state.consumable(name)
    const reasons = offset === undefined ? this.#ofQueue(queue) : this.#ofOffset(queue, offset)
    return { reasons: reasons.length === 0 ? [{ code: 'deliverable' }] : reasons }
  }

  #ofOffset(queue: Queue, offset: number): ExplainReason[] {
    const end = queue.source?.next ?? queue.next
    if (offset >= end) return [{ code: 'unpublished', next: end }]
    if (offset >= queue.next) return this.#ofUnreached(queue, offset)
    return this.#ofLostMessage(queue, offset) ?? this.#ofMessage(queue, offset)
  }

  // Why a message of the stream is not delivered that has not entered the group yet.
  #ofUnreached(group: Queue, offset: number): ExplainReason[] {
    const head = this.#head(group)
    const reasons = this.#ofDelivery(group, head)
    const first = head ?? group.next
    return reasons.length === 0 && first !== offset ? [{ code: 'line', offset: first }] : reasons
  }

  #ofQueue(queue: Queue): ExplainReason[] {
    const { nowMs } = this.#turn
    const { ready } = queue.infoAt(nowMs)
    const reasons: ExplainReason[] = []
    if (ready === 0 && !queue.isBehind) {
      const dueMs = queue.line.nextDeadline
      reasons.push(dueMs === Infinity ? { code: 'empty' } : { code: 'empty', untilMs: dueMs })
    }
    const head = this.#head(queue)
    if (ready > 0 && head === undefined && !queue.hasMoreDue && !isFed(queue))
      reasons.push(...this.#ofKeys(queue))
    return [...reasons, ...this.#ofDelivery(queue, ready === 0 ? undefined : head)]
  }

  // Why no message that is ready is eligible: its keys are held. This is known even if the search finds none of them.
  #ofKeys(queue: Queue): ExplainReason[] {
    const { nowMs } = this.#turn
    let left = VISITED_MAX
    for (const chunk of queue.chunks) {
      if (!chunk.hasKeys) continue
      for (const index of chunk.liveIndexes()) {
        if (left-- === 0) return [{ code: 'keys' }]
        const offset = chunk.base + index
        if (chunk.keyAt(index) === NONE || chunk.stateAt(index, nowMs) !== 'ready') continue
        const ofKey = this.#ofKey(queue, chunk, index)
        if (ofKey.length > 0) return [{ code: 'keys', offset }, ...ofKey]
      }
    }
    return []
  }

  // The reasons why the message is not in the line; undefined if it is, so that it can be delivered.
  #ofLostMessage(queue: Queue, offset: number): ExplainReason[] | undefined {
    const { nowMs } = this.#turn
    const chunk = queue.chunkAt(offset)
    if (chunk === undefined || queue.stateOf(offset) === undefined) return [{ code: 'gone' }]
    const index = offset - chunk.base
    const dead = queue.deadAt(offset)
    if (dead !== undefined) {
      const { attempts, timeMs: sinceMs, reason: text } = dead
      const death = deathName(dead.death)
      return [{ code: 'dead', sinceMs, attempts, text, ...(death === undefined ? {} : { death }) }]
    }
    if (queue.stateOf(offset) === 'leased') {
      const holder = holderOf(queue, (held) => held === offset)
      return [{ code: 'leased', ...holder }]
    }
    if (chunk.stateAt(index, nowMs) === undefined)
      return [{ code: 'expired', sinceMs: Math.max(chunk.expiryAt(index), chunk.lineTimeAt(index)) }]
    return undefined
  }

  #ofMessage(queue: Queue, offset: number): ExplainReason[] {
    const { nowMs } = this.#turn
    const chunk = queue.chunkAt(offset)!
    const index = offset - chunk.base
    const reasons: ExplainReason[] = []
    const attempts = chunk.attemptsAt(index)
    const isScheduled = chunk.stateOf(index) === 'scheduled'
    if (isScheduled && chunk.lineTimeAt(index) > nowMs) {
      const untilMs = chunk.lineTimeAt(index)
      reasons.push(attempts > 0 ? { code: 'retry', untilMs, attempts } : { code: 'scheduled', untilMs })
    } else if (isScheduled) reasons.push({ code: 'due' })
    else if (chunk.keyAt(index) !== NONE) reasons.push(...this.#ofKey(queue, chunk, index))
    reasons.push(...this.#ofDelivery(queue, offset).filter(({ code }) => code !== reasons[0]?.code))
    const head = this.#head(queue)
    if (reasons.length === 0 && head !== undefined && head !== offset)
      reasons.push({ code: 'line', offset: head })
    return reasons
  }

  // Why a ready message with a key is not eligible.
  #ofKey(queue: Queue, chunk: Chunk, index: number): ExplainReason[] {
    const { keys } = queue
    const { nowMs } = this.#turn
    const slot = chunk.keyAt(index)
    const offset = chunk.base + index
    const { keyLines } = queue.line
    if (keyLines === undefined || keys.offeredOf(slot) === offset || queue.hasMoreDue) return []
    const reasons: ExplainReason[] = []
    if (!keyLines.hasRoom(slot)) {
      const holder = holderOf(queue, (held) => keyOf(queue, held) === slot)
      reasons.push({ code: 'keyLeased', ...holder })
    }
    if (queue.options.onFail === 'block' && keys.retryingOf(slot) > 0)
      reasons.push({ code: 'keyRetry', ...retryOf(queue, slot) })
    const hold = keyLines.holdOf(slot, nowMs)
    if (hold !== undefined)
      reasons.push({ code: hold.isPause ? 'keyPaused' : 'keyRate', untilMs: hold.untilMs })
    const first = keys.headOf(slot)
    if (first !== NONE && first !== offset) {
      const count = keyLines.countBefore(chunk, index, VISITED_MAX)
      const more = count === VISITED_MAX ? { countMax: VISITED_MAX } : {}
      reasons.push({ code: 'keyLine', offset: first, count, ...more })
    }
    return reasons
  }

  // Why the queue delivers nothing, although messages may be eligible. `next` is the message that would be next.
  #ofDelivery(queue: Queue, next: number | undefined): ExplainReason[] {
    const { nowMs } = this.#turn
    const reasons: ExplainReason[] = []
    if (queue.paused) reasons.push({ code: 'paused' })
    if (queue.subscriptions.length === 0) reasons.push({ code: 'noConsumer' })
    const untilMs = queue.bucket?.nextMs ?? 0
    if (untilMs > nowMs) reasons.push({ code: 'queueRate', untilMs })
    reasons.push(...ofConsumers(queue, next))
    if (queue.hasMoreDue) reasons.push({ code: 'due' })
    if (this.#delivering.isBehind) reasons.push({ code: 'diskBehind' })
    if (this.#delivering.isReading(queue)) reasons.push({ code: 'reading' })
    return reasons
  }

  // The message that is delivered next; undefined if none is eligible, or if it is in a cold chunk.
  #head(queue: Queue): number | undefined {
    const isFound = queue.line.next(1, this.#turn.nowMs, this.#run)
    if (isFound) return this.#run.offset
    return queue.coldOffset === -1 ? undefined : queue.coldOffset
  }
}

// Whether further messages of the stream can enter the group, so that held keys do not stop it.
function isFed(queue: Queue): boolean {
  return queue.isBehind && queue.live - queue.deadCount < Feeds.heldMax
}

// The lease of the first message for which `matches` returns true.
function holderOf(queue: Queue, matches: (offset: number) => boolean): Omit<ExplainReason, 'code'> {
  for (const subscription of queue.subscriptions) {
    for (const { offset, leasedAtMs: sinceMs } of subscription.held())
      if (matches(offset))
        return { offset, consumer: subscription.id, client: subscription.consumer.label, sinceMs }
  }
  return {}
}

// Slot of the key of a message that is not gone.
function keyOf(queue: Queue, offset: number): number {
  const chunk = queue.chunkAt(offset)
  return chunk === undefined ? NONE : chunk.keyAt(offset - chunk.base)
}

// The failed message of the key that waits for its retry.
function retryOf(queue: Queue, slot: number): { readonly offset?: number; readonly untilMs?: number } {
  let left = VISITED_MAX
  for (const chunk of queue.chunks) {
    if (!chunk.hasKeys) continue
    for (const index of chunk.liveIndexes()) {
      if (left-- === 0) return {}
      const isRetry = chunk.isWaiting(index) && !chunk.isDue(index) && chunk.attemptsAt(index) > 0
      if (isRetry && chunk.keyAt(index) === slot)
        return { offset: chunk.base + index, untilMs: chunk.lineTimeAt(index) }
    }
  }
  return {}
}

// Why no consumer takes the message; no reasons if one does.
function ofConsumers(queue: Queue, next: number | undefined): ExplainReason[] {
  const sole = queue.options.single ? queue.soleSubscription : undefined
  const served = sole === undefined ? queue.subscriptions : [sole]
  const chunk = next === undefined ? undefined : queue.chunkAt(next)
  const bytes = chunk === undefined || next === undefined ? 0 : chunk.bytesAt(next - chunk.base)
  const isSuspect = next !== undefined && queue.line.suspects.has(next)
  const reasons: ExplainReason[] = []
  for (const subscription of served) {
    const reason = ofConsumer(subscription, bytes, isSuspect)
    if (reason === undefined) return []
    if (reasons.length < NAMED_MAX) reasons.push(reason)
  }
  if (sole !== undefined && queue.subscriptions.length > 1)
    reasons.unshift({ code: 'single', consumer: sole.id, client: sole.consumer.label })
  return reasons
}

// Why the consumer takes no message of this size; undefined if it does.
function ofConsumer(
  subscription: Subscription,
  bytes: number,
  isSuspect: boolean,
): ExplainReason | undefined {
  const {
    id: consumer,
    consumer: { label: client, isReady },
  } = subscription
  const named = { consumer, client }
  if (!isReady) return { code: 'connection', ...named }
  if (subscription.holdsSuspect) return { code: 'suspect', ...named }
  if (subscription.delivered >= subscription.limit) return { code: 'limit', ...named }
  if (subscription.room <= 0 || !subscription.takes(bytes)) {
    const {
      unsettled: leased,
      unsettledBytes: leasedBytes,
      creditMessages: credit,
      creditBytes,
    } = subscription
    return { code: 'noCredit', ...named, leased, credit, leasedBytes, creditBytes }
  }
  return isSuspect && subscription.unsettled > 0 ? { code: 'alone' } : undefined
}
