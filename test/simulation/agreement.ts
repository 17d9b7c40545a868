/** Compares the whole state of the model with the broker's counters and with the log. */
import type { QueueInfo } from '@sluice/protocol'
import { NO_EARLIER_LIVES, isExpired } from '../rules/message.js'
import { sameBytes } from './attempts.js'
import { COUNTERS, type Counters, type LedgerQueue, type LedgerState } from './ledger.js'
import type { ModelQueue, ModelState } from './state.js'
import { Violation } from './trace.js'

/**
 * Invariant 6: each message is in exactly one state, and the broker's counters agree with the model at `nowMs`, even if
 * the broker has not yet noticed that time has passed.
 */
export function compareCounts(queue: ModelQueue, info: QueueInfo, nowMs: number): void {
  const states = { ready: 0, scheduled: 0, leased: 0, dead: 0 }
  let expired = 0
  for (const message of queue.live.values()) {
    const { state, lineMs } = message
    const isThere = state === 'ready' || (state === 'scheduled' && lineMs <= nowMs)
    if (!isThere) states[state]++
    else if (isExpired(message, nowMs)) expired++
    else states.ready++
  }
  const must = {
    ...states,
    ...queue.counts,
    expired: queue.counts.expired + expired,
    published: queue.next - queue.counts.duplicates,
    acked: queue.acked,
    consumers: queue.subscriptions.size,
    paused: queue.paused,
  }
  const is = Object.fromEntries(Object.keys(must).map((name) => [name, info[name as keyof QueueInfo]]))
  if (JSON.stringify(is) !== JSON.stringify(must))
    throw new Violation(
      6,
      `${queue.name} counts ${JSON.stringify(is)}; the model counts ${JSON.stringify(must)}`,
    )
  const all = states.ready + states.scheduled + states.leased + states.dead + expired
  if (queue.next !== all + queue.acked + goneOtherwise(queue))
    throw new Violation(6, `the ${queue.next} messages of ${queue.name} are not all accounted for`)
}

/** Invariants 8 and 17: once everything is durable, the log has the same state as the model. */
export function compareWithLog({ queues }: ModelState, state: LedgerState): void {
  if (state.queues.size !== queues.size)
    throw new Violation(17, `the log has ${state.queues.size} queues; the model has ${queues.size}`)
  for (const queue of queues.values()) {
    const saved = state.queues.get(queue.id)
    if (saved === undefined || saved.name !== queue.name)
      throw new Violation(17, `the log has no queue ${queue.name}`)
    compare(`${queue.name} in the log`, queueFields(saved), queueFields(queue))
    for (const [offset, message] of queue.live) {
      const written = saved.live.get(offset)
      const what = `offset ${offset} of ${queue.name}`
      if (written === undefined || !sameBytes(written.record, message.record))
        throw new Violation(17, `the log has no ${what}`)
      const { dead } = written
      compare(
        `${what} in the log`,
        {
          attempts: written.attempts,
          lineMs: dead === undefined ? (written.dueMs ?? written.timeMs) : 0,
          expiresMs: written.expiresMs,
          earlier: written.earlier ?? NO_EARLIER_LIVES,
          dead: dead && [dead.attempts, dead.death, dead.timeMs, dead.isMoving],
        },
        {
          attempts: message.attempts,
          lineMs: message.dead === undefined ? message.lineMs : 0,
          expiresMs: message.expiresMs,
          earlier: message.earlier,
          dead: message.dead && [
            message.dead.attempts,
            message.dead.death,
            message.dead.timeMs,
            message.dead.isMoving,
          ],
        },
      )
    }
  }
}

/** Counters of messages that remain in their queue. */
const STAYING: ReadonlySet<string> = new Set(['redriven', 'released', 'redelivered'])

export function goneOtherwise({
  counts,
  carried,
}: {
  readonly counts: Counters
  readonly carried: number
}): number {
  let gone = carried
  for (const name of COUNTERS) if (!STAYING.has(name)) gone += counts[name]
  return gone
}

// `released` and `redelivered` are written to the log later, so they are not compared.
function queueFields({ next, live, counts, carried, paused, options }: ModelQueue | LedgerQueue): object {
  const exact = { ...counts, released: 0, redelivered: 0 }
  return { next, live: live.size, counts: exact, carried, paused, options }
}

function compare(what: string, is: object, must: object): void {
  if (JSON.stringify(is) !== JSON.stringify(must))
    throw new Violation(17, `${what} is ${JSON.stringify(is)}; it must be ${JSON.stringify(must)}`)
}
