/** The audit of a queue: recounts its messages. Called by tests and by the simulator. */
import type { Contents } from './contents.js'
import { ENTRIES_PER_DEAD } from './moving.js'

/** The counters that are compared. */
interface Audited extends Contents {
  readonly leased: number
  readonly movingCount: number
  readonly subscriptions: readonly { readonly unsettled: number }[]
}

/** Compares the counters of the queue with its messages. @throws Error with both counts */
export function auditCounts(queue: Audited): void {
  const cold = queue.chunks.coldMessages
  let live = cold
  let dead = 0
  let deadBytes = 0
  let inLine = cold
  for (const chunk of queue.chunks) {
    chunk.invariants()
    live += chunk.live
    for (const index of chunk.dead?.indexes() ?? []) {
      dead++
      deadBytes += chunk.dead!.get(index)!.bytes
    }
    for (const index of chunk.liveIndexes()) if (chunk.isInLine(index)) inLine++
  }
  let held = 0
  for (const subscription of queue.subscriptions) held += subscription.unsettled
  const counted = inLine + queue.leased + dead
  if (
    live !== queue.live ||
    dead !== queue.deadCount ||
    deadBytes !== queue.deadBytes ||
    counted !== live ||
    held !== queue.leased ||
    queue.movingCount > ENTRIES_PER_DEAD * dead
  ) {
    throw new Error(
      `queue ${queue.name}: live ${queue.live}/${live}, dead ${queue.deadCount}/${dead} of ${queue.deadBytes}/${deadBytes} bytes, ` +
        `leased ${queue.leased}/${held}, in the line ${inLine} + leased + dead = ${counted}, to be moved ${queue.movingCount}`,
    )
  }
}
