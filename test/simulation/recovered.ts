/** The queues of the model after a restart, built from the state of the log. */
import type { QueueOptions } from '@sluice/protocol'
import { PendingIds } from '../rules/ids.js'
import { CLEARED } from '../rules/lease.js'
import { Line } from '../rules/line.js'
import { NO_EARLIER_LIVES } from '../rules/message.js'
import { goneOtherwise } from './agreement.js'
import type { LedgerQueue } from './ledger.js'
import type { ModelMessage, ModelQueue } from './state.js'
import { Violation } from './trace.js'

export function recoverQueue(
  saved: LedgerQueue,
  afterCrash: boolean,
  nowMs: number,
  latestMs: number,
  old: ModelQueue | undefined,
): ModelQueue {
  const options = saved.options as unknown as QueueOptions
  const queue: ModelQueue = {
    id: saved.id,
    name: saved.name,
    options,
    paused: saved.paused,
    next: saved.next,
    acked: 0,
    counts: { ...saved.counts },
    carried: saved.carried,
    live: new Map(),
    line: new Line<ModelMessage>(options),
    remembered: saved.remembered.clone(),
    unsure: new Set(),
    pending: new PendingIds(),
    subscriptions: new Set(),
    expiring: new Set(),
    lookedMs: nowMs,
  }
  queue.acked = queue.next - saved.live.size - goneOtherwise(queue)
  for (const name of ['released', 'redelivered'] as const) {
    const had = old?.counts[name] ?? saved.counts[name]
    if (afterCrash ? saved.counts[name] > had : saved.counts[name] !== had)
      throw new Violation(6, `${saved.name} has ${saved.counts[name]} ${name} messages; it counted ${had}`)
  }
  // It is uncertain whether an id is still known after its window, because a broker with a later clock may have
  // forgotten the id before the restart.
  queue.remembered.forgetUntil(nowMs - options.dedupWindowMs)
  for (const { id, timeMs } of queue.remembered.entries())
    if (timeMs <= latestMs - options.dedupWindowMs) queue.unsure.add(id)
  for (const [offset, message] of saved.live) {
    const { record, content, timeMs, attempts, earlier, dead, isListed, expiresMs } = message
    const left = old?.live.get(offset)?.left ?? false
    const lineMs = message.dueMs ?? timeMs
    const wasOut = attempts > 0 || earlier !== undefined
    const known: ModelMessage = {
      offset,
      record,
      bytes: record.length,
      content,
      publishedMs: timeMs,
      state: dead === undefined ? 'scheduled' : 'dead',
      lineMs,
      isPlain: message.dueMs === undefined,
      sinceMs: lineMs,
      expiresMs,
      attempts,
      earlier: earlier ?? NO_EARLIER_LIVES,
      dead,
      isListed,
      // Invariant 22: after an unclean stop, every message that was accepted before the stop is delivered with the
      // mark.
      mustMark: afterCrash || left || wasOut,
      mayMark: afterCrash || offset < saved.redeliveredBelow || wasOut,
      left,
      ...CLEARED,
      former: undefined,
    }
    queue.live.set(offset, known)
    if (dead !== undefined) continue
    if (isListed) queue.pending.add(content.id!, offset)
    // A plain message does not wait for a time, even if the clock was set back.
    if (known.isPlain || lineMs <= nowMs) known.state = 'ready'
    else {
      known.state = 'leased'
      queue.line.enter(known, nowMs)
    }
  }
  queue.line.rebuild(queue.live.values())
  return queue
}
