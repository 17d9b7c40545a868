/**
 * The outcomes of single messages in the state of the model: a message is added, acknowledged, released, retried, dead,
 * expired or gone. The caller has already ended the lease.
 */
import { CLEARED } from '../rules/lease.js'
import {
  NO_EARLIER_LIVES,
  afterFailure,
  afterRelease,
  backoffBoundsMs,
  dueMsOf,
  expiryOf,
  isListedById,
} from '../rules/message.js'
import { contentOf } from './record.js'
import type { ModelCounts, ModelMessage, ModelQueue } from './state.js'
import { Violation } from './trace.js'

const MAX_DELIVERIES = 2

export class Outcomes {
  readonly #counts: ModelCounts
  readonly #dueMs: (queueId: number, offset: number) => number | undefined

  /** `dueMs` returns the time at which the broker will deliver a message again. */
  constructor(counts: ModelCounts, dueMs: (queueId: number, offset: number) => number | undefined) {
    this.#counts = counts
    this.#dueMs = dueMs
  }

  add(queue: ModelQueue, record: Uint8Array, nowMs: number): void {
    const { unique, dedupWindowMs, ttlMs } = queue.options
    const offset = queue.next++
    const content = contentOf(record)
    const lineMs = dueMsOf(content, nowMs)
    const isPlain = lineMs === nowMs
    const isListed = isListedById(content, unique, !isPlain)
    const message: ModelMessage = {
      offset,
      record,
      bytes: record.length,
      content,
      publishedMs: nowMs,
      state: 'leased',
      lineMs,
      isPlain,
      sinceMs: lineMs,
      expiresMs: expiryOf(content, ttlMs, lineMs),
      attempts: 0,
      earlier: NO_EARLIER_LIVES,
      dead: undefined,
      isListed,
      mustMark: false,
      mayMark: false,
      left: false,
      ...CLEARED,
      former: undefined,
    }
    queue.live.set(offset, message)
    if (isListed) queue.pending.add(content.id!, offset)
    if (content.id !== undefined && unique === 'window' && dedupWindowMs > 0) {
      queue.remembered.remember(content.id, offset, nowMs)
      queue.unsure.delete(content.id)
    }
    queue.line.add(message, nowMs)
  }

  ack(queue: ModelQueue, message: ModelMessage, nowMs: number): void {
    queue.line.settled(message, nowMs)
    queue.acked++
    this.#counts.acked++
    this.remove(queue, message)
  }

  release(queue: ModelQueue, message: ModelMessage, nowMs: number): void {
    queue.counts.released++
    if (this.#expiresBack(queue, message, afterRelease(message, nowMs) === 'expired', nowMs)) return
    queue.line.release(message, nowMs)
  }

  // A lease can last longer than the time to live of its message. When such a lease ends, the message does not return
  // to the queue.
  #expiresBack(queue: ModelQueue, message: ModelMessage, mustExpire: boolean, nowMs: number): boolean {
    const wasTold = queue.expiring.delete(message.offset)
    if (mustExpire !== wasTold)
      throw new Violation(
        'time to live',
        `offset ${message.offset} of ${queue.name} is released at ${nowMs} and expires at ${message.expiresMs}; the broker removed it: ${wasTold}`,
      )
    if (!wasTold) return false
    queue.line.settled(message, nowMs)
    this.expire(queue, message)
    return true
  }

  retry(
    queue: ModelQueue,
    message: ModelMessage,
    delayMs: number | undefined,
    nowMs: number,
    isCharged: boolean,
  ): void {
    const attempts = message.attempts + (isCharged ? 0 : 1)
    const becomes = afterFailure(message, attempts, queue.options, nowMs)
    // Invariant 10: after the last attempt the message is dead.
    if (becomes === 'dead') {
      queue.line.settled(message, nowMs)
      this.die(queue, message, attempts, MAX_DELIVERIES, nowMs)
      return
    }
    if (this.#expiresBack(queue, message, becomes === 'expired', nowMs)) return
    message.attempts = attempts
    Object.assign(message, CLEARED)
    this.#counts.retried++
    const dueMs = this.#dueMs(queue.id, message.offset)
    const what = `offset ${message.offset} of ${queue.name} after attempt ${message.attempts}`
    if (dueMs === undefined) throw new Violation(6, `${what} is not scheduled again`)
    if (delayMs !== undefined) {
      if (dueMs !== nowMs + delayMs)
        throw new Violation(11, `${what} is due at ${dueMs}, not at ${nowMs} + ${delayMs}`)
    } else {
      const { least, most } = backoffBoundsMs(queue.options, attempts)
      const waitMs = dueMs - nowMs
      if (waitMs < least || waitMs > most)
        throw new Violation(11, `${what} waits ${waitMs} ms; its back-off is ${least} to ${most} ms`)
    }
    message.lineMs = dueMs
    message.isPlain = false
    queue.line.retry(message, nowMs)
  }

  die(queue: ModelQueue, message: ModelMessage, attempts: number, death: number, nowMs: number): void {
    const isMoving = queue.options.deadLetter !== ''
    message.dead = { attempts, death, timeMs: nowMs, isMoving }
    message.state = 'dead'
    message.attempts = 0
    Object.assign(message, CLEARED)
    if (message.isListed) queue.pending.done(message.content.id!, message.offset)
    this.#counts.died++
  }

  expire(queue: ModelQueue, message: ModelMessage): void {
    queue.counts.expired++
    this.#counts.expired++
    this.remove(queue, message)
  }

  remove(queue: ModelQueue, { offset, isListed, content }: ModelMessage): void {
    if (isListed) queue.pending.done(content.id!, offset)
    queue.live.delete(offset)
  }
}
